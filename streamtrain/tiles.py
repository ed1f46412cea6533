"""Scaled cells in, the same by gene in tiles out, as often as asked; in memory or on scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import tiles as kernel
from streamtrain.rows import Rows
from streamtrain.scratch import Folder, ScratchArray
from streamtrain.streaming import ahead

TILE = 256  # cells: their place takes a byte, and their scores of 50 types 100 kB of the L2 cache
MOST = 4096  # cells of a block, whose scores of every type are held
_BLOCK = 2**22  # entries of a block, about


@dataclass(frozen=True, slots=True)
class Block:
    """Some tiles, one after the other.

    Attributes
    ----------
    tile_cells, tile_genes, tile_entries
        Cells, genes and entries of each tile, shape (tiles,), int64.
    codes
        Class of each cell, int32.
    counts, genes
        Entries of each gene of each tile, int32, and its position, uint16 or int32.
    cells, values
        Place within the tile, uint8, and value of each entry.
    """

    tile_cells: NDArray[np.int64]
    tile_genes: NDArray[np.int64]
    tile_entries: NDArray[np.int64]
    codes: NDArray[np.int32]
    counts: NDArray[np.int32]
    genes: NDArray[Any]
    cells: NDArray[np.uint8]
    values: NDArray[Any]

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in the order of the fields."""
        return (
            self.tile_cells, self.tile_genes, self.tile_entries, self.codes, self.counts,
            self.genes, self.cells, self.values,
        )  # fmt: skip


class Tiles:
    """Cells that a solver reads many times, stored by gene in tiles of `TILE` cells.

    A gene's weights are then read once a tile, and the tile's scores stay in the cache.

    Parameters
    ----------
    n_genes
        Number of genes.
    dtype
        Of the values.
    memory
        Bytes that may be held; whatever is more lies on scratch and is read ahead.
    scratch
        Folder for it; the system's temporary one if None.

    Attributes
    ----------
    n_obs
        Number of cells.
    largest
        Bytes of the largest block.
    """

    def __init__(self, n_genes: int, dtype: Any, memory: float, scratch: Folder) -> None:
        self.n_genes, self.n_obs, self.largest = n_genes, 0, 0
        gene = np.uint16 if n_genes <= 2**16 else np.int32
        self._types = [np.int64, np.int64, np.int64, np.int32, np.int32, gene, np.uint8, dtype]
        self._memory, self._scratch = memory, scratch
        self._blocks: list[Block] = []
        self._held = 0
        self._files: list[ScratchArray] = []
        self._offsets: list[NDArray[np.int64]] = []

    @property
    def held(self) -> int:
        """Bytes held in memory."""
        return self._held

    @property
    def nbytes(self) -> int:
        """Bytes held in memory or on scratch."""
        return self._held + sum(file.nbytes for file in self._files)

    def append(self, rows: Rows) -> None:
        """Store scaled cells, with their codes, after those already there."""
        step = round(_BLOCK * rows.n_obs / max(1, len(rows.data)) / TILE) * TILE
        step = min(max(TILE, step), MOST)
        for start in range(0, rows.n_obs, step):
            self._add(self._block(rows, start, min(rows.n_obs, start + step)))
        self.n_obs += rows.n_obs

    def _block(self, rows: Rows, start: int, stop: int) -> Block:
        if rows.codes is None:
            raise ValueError("tiles need label codes")
        edges = np.append(np.arange(start, stop, TILE), stop)
        entries = rows.indptr[edges] - rows.indptr[start]
        most = len(edges[1:]) * self.n_genes
        counts, genes = np.empty(most, np.int32), np.empty(most, self._types[5])
        cells, values = np.empty(entries[-1], np.uint8), np.empty(entries[-1], self._types[7])
        first = np.empty(self.n_genes + 1, np.int64)
        tile_genes = np.empty(len(edges) - 1, np.int64)
        at = 0
        for i, (lo, hi) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            span = slice(entries[i], entries[i + 1])
            tile_genes[i] = kernel.by_gene(
                rows.data, rows.indices, rows.indptr, lo, hi, self.n_genes, first,
                counts[at:], genes[at:], cells[span], values[span],
            )  # fmt: skip
            at += int(tile_genes[i])
        return Block(
            np.diff(edges), tile_genes, np.diff(entries), rows.codes[start:stop].copy(),
            counts[:at].copy(), genes[:at].copy(), cells, values,
        )  # fmt: skip

    def _add(self, block: Block) -> None:
        size = sum(array.nbytes for array in block.arrays())
        self.largest = max(self.largest, size)
        if not self._files and self._held + size <= self._memory:
            self._blocks.append(block)
            self._held += size
            return
        if not self._files:
            self._files = [ScratchArray(self._scratch, kind) for kind in self._types]
            self._offsets = [np.zeros(len(self._files), np.int64)]
        for file, array in zip(self._files, block.arrays(), strict=True):
            file.append(array)
        lengths = np.array([len(array) for array in block.arrays()])
        self._offsets.append(self._offsets[-1] + lengths)

    def __iter__(self) -> Iterator[Block]:
        """Every block, in the order in which the cells came."""
        return self.blocks()

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Every block from number `start` on; those before it are not read."""
        yield from self._blocks[start:]
        if self._files:
            yield from ahead(self._stored(max(0, start - len(self._blocks))))

    def _stored(self, start: int) -> Iterator[Block]:
        for lo, hi in pairwise(self._offsets[start:]):
            parts = zip(self._files, lo.tolist(), hi.tolist(), strict=True)
            yield Block(*(file[start:stop] for file, start, stop in parts))

    def close(self) -> None:
        """Let go of the memory and delete the scratch."""
        self._blocks.clear()
        self._held = 0
        while self._files:
            self._files.pop().close()
        self._offsets.clear()

    def __enter__(self) -> Tiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
