"""Tiles give back every cell, in memory and on scratch, whatever slices they came in."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.rows import Rows
from streamtrain.scratch import ScratchArray
from streamtrain.tiles import TILE, Tiles


def random_rows(n_obs, n_genes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = rng.random((n_obs, n_genes)) * (rng.random((n_obs, n_genes)) < 0.3)
    i, j = np.nonzero(dense)
    indptr = np.searchsorted(i, np.arange(n_obs + 1)).astype(np.int64)
    codes = rng.integers(0, 3, n_obs).astype(np.int32)
    return Rows(dense[i, j].astype(dtype), j.astype(np.int32), indptr, n_genes, codes), dense


def restored(tiles):
    """The cells, dense, and their codes, from the blocks."""
    dense, codes = [], []
    for block in tiles:
        gene, entry = 0, 0
        for n, k in zip(block.tile_cells, block.tile_genes, strict=True):
            tile = np.zeros((n, tiles.n_genes))
            for g, count in zip(block.genes[gene : gene + k], block.counts[gene:], strict=False):
                at = slice(entry, entry + count)
                assert (np.diff(block.cells[at].astype(int)) > 0).all()
                tile[block.cells[at], g] = block.values[at]
                entry += count
            gene += k
            dense.append(tile)
        codes.append(block.codes)
    return np.concatenate(dense), np.concatenate(codes)


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 700), max_size=4),
    memory=st.sampled_from([0, 20_000, 10**9]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_tiles__give_back_every_cell(cuts, memory, dtype):
    rows, dense = random_rows(700, 40, dtype=dtype)
    edges = sorted({0, *cuts, 700})
    with Tiles(40, dtype, memory, None) as tiles:
        for lo, hi in pairwise(edges):
            tiles.append(rows.slice(lo, hi))
        assert tiles.n_obs == 700
        for _ in range(2):  # as often as asked
            found, codes = restored(tiles)
            np.testing.assert_array_equal(found, dense.astype(dtype))
            np.testing.assert_array_equal(codes, rows.codes)


def test_tiles__hold_no_more_than_memory():
    rows, _ = random_rows(4 * TILE, 50)
    with Tiles(50, np.float32, 10**9, None) as held, Tiles(50, np.float32, 0, None) as stored:
        for start in range(0, 4 * TILE, TILE):
            held.append(rows.slice(start, start + TILE))
            stored.append(rows.slice(start, start + TILE))
        assert held.nbytes == stored.nbytes
        limit = held.nbytes / 2
        with Tiles(50, np.float32, limit, None) as half:
            for start in range(0, 4 * TILE, TILE):
                half.append(rows.slice(start, start + TILE))
            assert 0 < sum(f.nbytes for f in half._files) < held.nbytes
            assert half._held <= limit
            np.testing.assert_array_equal(restored(half)[0], restored(held)[0])


def test_tiles__need_codes():
    rows, _ = random_rows(5, 4)
    with Tiles(4, np.float32, 0, None) as tiles, pytest.raises(ValueError, match="label codes"):
        tiles.append(Rows(rows.data, rows.indices, rows.indptr, 4))


@pytest.mark.parametrize("memory", [0, 12_000, 10**9])
def test_blocks__from_a_number_on_read_no_block_before(memory, monkeypatch):
    rows, _ = random_rows(5 * TILE, 20)
    with Tiles(20, np.float32, memory, None) as tiles:
        for start in range(0, 5 * TILE, TILE):
            tiles.append(rows.slice(start, start + TILE))
        every = [block.values for block in tiles]
        assert tiles.largest == max(sum(a.nbytes for a in block.arrays()) for block in tiles)
        reads = []
        read = ScratchArray.__getitem__
        monkeypatch.setattr(
            ScratchArray, "__getitem__", lambda self, part: reads.append(part) or read(self, part)
        )
        in_memory = len(tiles._blocks)
        assert in_memory == {0: 0, 12_000: 1, 10**9: 5}[memory]
        for start in range(6):
            reads.clear()
            found = [block.values for block in tiles.blocks(start)]
            assert len(reads) == 8 * (5 - max(start, in_memory))  # eight arrays a block
            for a, b in zip(found, every[start:], strict=True):
                np.testing.assert_array_equal(a, b)
