"""Cells in the files of several workers: appended by units, gathered and swept, lost, cut short."""

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.parts import Opened, Written, entry_bytes
from streamtrain.rows import Rows
from streamtrain.scratch import ScratchArray, ScratchPieces
from streamtrain.threads import Threads

N_VARS = 7


def cells(first, lengths, n_vars=N_VARS, dtype=np.float32):
    """Values that encode their place: the number of the cell, + (gene + 1) / 1,000."""
    n = np.array(lengths, np.int64)
    rng = np.random.default_rng(first)
    genes = [np.sort(rng.permutation(N_VARS)[:k]) for k in lengths]
    genes = np.concatenate([np.empty(0, int), *genes]) + n_vars - N_VARS  # the last ones
    values = first + np.repeat(np.arange(len(n)), n) + (genes + 1) / 1000
    indptr = np.concatenate([[0], np.cumsum(n)])
    return Rows(values.astype(dtype), genes.astype(np.int32), indptr, n_vars)


def concat(blocks):
    indptr = np.cumsum([0, *(n for rows in blocks for n in np.diff(rows.indptr))])
    data, indices = (np.concatenate([getattr(r, x) for r in blocks]) for x in ("data", "indices"))
    return Rows(data, indices, indptr, blocks[0].n_vars)


def selected(rows, genes):
    """Cells with these genes alone, which are the last ones."""
    keep = rows.indices >= genes[0]
    indptr = np.concatenate([[0], np.cumsum(keep)])[rows.indptr]
    return Rows(rows.data[keep], rows.indices[keep] - genes[0], indptr, len(genes))


def assert_rows(found, expected):
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


@settings(max_examples=100, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 50), max_size=9), min_size=1, max_size=4),
    n_threads=st.integers(1, 3),
    data=st.data(),
)
def test_pieces__are_read_as_one_array(files, n_threads, data):
    """Stretches of several files, in any order, which may overlap, against plain slices."""
    arrays = [ScratchArray(None, np.uint16) for _ in files]
    contents = [np.array(values, np.uint16) + 100 * i for i, values in enumerate(files)]
    for array, values in zip(arrays, contents, strict=True):
        array.append(values)
    pieces, edges, expected = [], [0], []
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(0, len(files) - 1))
        start, stop = sorted(data.draw(st.integers(0, len(files[i]))) for _ in range(2))
        pieces.append((arrays[i], start, stop - start))
        cuts = sorted(data.draw(st.lists(st.integers(start, stop), max_size=3)))
        for lo, hi in zip([start, *cuts], [*cuts, stop], strict=True):  # a cell is in one piece
            expected.append(contents[i][lo:hi])
            edges.append(edges[-1] + hi - lo)
    of = st.lists(st.integers(0, len(expected) - 1), max_size=12)
    wanted = np.array(data.draw(of), np.int64)
    offsets, lengths = np.array(edges), np.array([len(expected[i]) for i in wanted], np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    out = np.zeros(indptr[-1], np.int32)
    with closing(ScratchPieces(pieces, np.uint16)) as joined, Threads(n_threads) as threads:
        threads.share(
            len(wanted),
            lambda lo, hi: joined.take(offsets, wanted[lo:hi], indptr[lo : hi + 1], out),
        )
        assert joined.nbytes == 2 * edges[-1]
    plain = [expected[i].tolist() for i in wanted]
    assert out.tolist() == [value for cell in plain for value in cell]


def test_pieces__a_file_that_was_cut_short(tmp_path):
    whole, cut = (ScratchArray.named(tmp_path / name, np.float32) for name in "ab")
    for array in (whole, cut):
        array.append(np.arange(10))
    joined = ScratchPieces([(whole, 0, 10), (cut, 5, 5)], np.float32)
    offsets, out = np.array([0, 10, 15]), np.empty(10, np.float32)
    ScratchArray.named(tmp_path / "b", np.float32)  # what is there already stays
    joined.take(offsets, np.array([1]), np.array([0, 5]), out)
    assert out[:5].tolist() == [5, 6, 7, 8, 9]
    with (tmp_path / "b").open("r+b") as file:
        file.truncate(39)
    joined.take(offsets, np.array([0]), np.array([0, 10]), out)
    with pytest.raises(OSError, match="scratch file ended early"):
        joined.take(offsets, np.array([1]), np.array([0, 5]), out)


@settings(max_examples=50, deadline=None)
@given(
    units=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.lists(st.integers(0, N_VARS), max_size=5), max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
    n_vars=st.sampled_from([N_VARS, 2**16 + 1]),
    dtype=st.sampled_from([np.float32, np.float64]),
    nbytes=st.sampled_from([1, 60, 10**6]),
    data=st.data(),
)
def test_parts__of_several_workers(units, n_vars, dtype, nbytes, data):
    """Units that workers append in turns, against their cells one after the other."""
    with TemporaryDirectory() as folder, Threads(2) as threads:
        files = [Written(Path(folder) / f"{i}", n_vars, dtype, by=f"{i}") for i in range(3)]
        parts, of_unit, n = [], [], 0
        for by, pieces in units:
            blocks = [cells(n + i, piece, n_vars, dtype) for i, piece in enumerate(pieces)]
            parts.append(files[by].append(iter(blocks)))
            of_unit.append(concat([cells(n, [], n_vars, dtype), *blocks]))
            n += of_unit[-1].n_obs
            assert parts[-1].by == f"{by}"
        whole = concat(of_unit)
        wanted = np.array(data.draw(st.lists(st.integers(0, n - 1)) if n else st.just([])), int)
        with Opened(n_vars, dtype).spill(parts, folder, threads) as spill:
            assert (spill.n_obs, spill.held) == (n, 0)
            assert spill.nbytes == len(whole.data) * entry_bytes(n_vars, dtype)
            assert_rows(spill.gather(wanted), whole.take(wanted))
            genes = np.arange(n_vars - 3, n_vars)
            with spill.select(genes) as fewer:
                found = fewer.gather(np.arange(n))
                assert_rows(found, selected(whole, genes))
        for part, rows in zip(parts, of_unit, strict=True):
            swept = list(part.rows(n_vars, dtype, nbytes))
            assert_rows(concat([cells(0, [], n_vars, dtype), *swept]), rows)
            if nbytes == 1:
                assert all(each.n_obs == 1 for each in swept)


def test_parts__what_failed_half_way_is_written_over(tmp_path):
    first, second, third = (cells(i, [3, 0, 7]) for i in range(3))

    def failing():
        yield second
        raise ZeroDivisionError

    files = Written(tmp_path / "cells", N_VARS, np.float32, by="")
    parts = [files.append([first])]
    with pytest.raises(ZeroDivisionError):
        files.append(failing())
    parts.append(files.append([third]))
    with Threads(1) as threads, Opened(N_VARS, np.float32).spill(parts, None, threads) as spill:
        assert_rows(spill.gather(np.arange(6)), concat([first, third]))


@pytest.mark.parametrize("ending", ["values", "genes", "lengths"])
def test_parts__not_whole(ending, tmp_path):
    """The last is not; whatever stands before it is, and what is appended meanwhile is no harm."""
    files = Written(tmp_path / "cells", N_VARS, np.float32, by="")
    one, other = files.append([cells(0, [3, 7])]), files.append([cells(2, [2, 5])])
    opened = Opened(N_VARS, np.float32)
    assert opened.lengths(other).tolist() == [2, 5]
    files.append([cells(4, [1])])
    assert opened.lengths(other).tolist() == [2, 5]
    path = (tmp_path / "cells").with_suffix(f".{ending}")
    n = {"values": 4 * 17, "genes": 2 * 17, "lengths": 4 * 4}[ending]
    with path.open("r+b") as file:
        file.truncate(n - 1)
    assert opened.lengths(one).tolist() == [3, 7]
    assert_rows(next(one.rows(N_VARS, np.float32, 10**6)), cells(0, [3, 7]))
    for read in (lambda: opened.lengths(other), lambda: next(other.rows(N_VARS, np.float32, 1))):
        with pytest.raises(OSError, match="cells: not whole"):
            read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Opened(N_VARS, np.float32).lengths(one)
