"""Kernels of decode, and those of csr that go with them, against plain Python."""

import os
import tempfile
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.kernels import csr, remap, scratch
from streamtrain.kernels import decode as kernel
from streamtrain.rows import Rows
from streamtrain.sources.matrix import CsrMatrix, RowIndex, canonical
from streamtrain.threads import Threads


def unlzf(raw, size):
    """LZF by the letter of LibLZF's lzf_d.c, of at most `size` bytes; None for damage."""
    raw, out = list(raw), []
    while raw:
        control = raw.pop(0)
        if control < 32:
            n = control + 1
            if len(raw) < n or len(out) + n > size:
                return None
            out += raw[:n]
            del raw[:n]
            continue
        n = control >> 5
        if n == 7:
            if not raw:
                return None
            n += raw.pop(0)
        if not raw:
            return None
        distance = ((control & 31) << 8 | raw.pop(0)) + 1
        if distance > len(out) or len(out) + n + 2 > size:
            return None
        for _ in range(n + 2):
            out.append(out[-distance])
    return bytes(out)


def guarded(raw, size):
    """unlzf between guard bytes: (bytes written or -1, what was written)."""
    room = np.full(size + 64, 0xA5, np.uint8)
    fenced = np.concatenate([np.full(32, 0xFF, np.uint8), np.frombuffer(raw, np.uint8), [255]])
    fenced = fenced.astype(np.uint8)
    n = kernel.unlzf(fenced[32:-1], room[32:-32])
    assert (room[:32] == 0xA5).all()
    assert (room[-32:] == 0xA5).all()
    return n, room[32 : 32 + max(n, 0)].tobytes()


LZF = [
    (b"", b""),
    (b"\x00a", b"a"),
    (b"\x02abc", b"abc"),
    (b"\x00a\x20\x00", b"aaaa"),  # overlaps itself
    (b"\x01ab\xe0\x05\x01", b"ab" * 8),  # 7 + 5 + 2
    (b"\x02abc\x40\x02", b"abcabca"),
]


@pytest.mark.parametrize(("raw", "due"), LZF)
def test_unlzf__by_hand(raw, due):
    assert unlzf(raw, 100) == due
    for size in (len(due), 100):
        assert guarded(raw, size) == (len(due), due)
    if due:
        assert guarded(raw, len(due) - 1)[0] == -1
    for end in range(len(raw)):
        expected = unlzf(raw[:end], 100)
        assert guarded(raw[:end], 100)[0] == (-1 if expected is None else len(expected))


# Of literals, near and far repeats and noise: random bytes alone go wrong at once.
PIECE = st.one_of(
    st.binary(min_size=1, max_size=32).map(lambda b: bytes([len(b) - 1]) + b),
    st.tuples(st.integers(1, 6), st.integers(0, 40)).map(lambda t: bytes([t[0] << 5, t[1]])),
    st.tuples(st.integers(0, 255), st.integers(0, 40)).map(lambda t: bytes([0xE0, *t])),
    st.binary(max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(PIECE, max_size=12), size=st.integers(0, 1200), cut=st.integers(0, 9))
def test_unlzf__any_bytes(pieces, size, cut):
    raw = b"".join(pieces)
    raw = raw[: max(0, len(raw) - cut)]
    due = unlzf(raw, size)
    n, found = guarded(raw, size)
    assert (n, found) == ((-1, b"") if due is None else (len(due), due))


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("n", [0, 1, 3, 64, 1001])
def test_unshuffle__as_python(size, n):
    raw = np.random.default_rng(n).integers(0, 256, n * size).astype(np.uint8)
    out = np.zeros(n, f"u{size}")
    kernel.UNSHUFFLE[size](raw, out)
    due = [sum(int(raw[j * n + i]) << 8 * j for j in range(size)) for i in range(n)]
    assert out.tolist() == due


def fletcher32(raw):
    raw = bytes(raw) + b"\0" * (len(raw) % 2)
    low = high = 0
    for i in range(0, len(raw), 2):
        low += raw[i] << 8 | raw[i + 1]
        high += low

    def folded(n):
        return n if n < 1 else (n - 1) % 65535 + 1

    return folded(high) << 16 | folded(low)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 719, 720, 721, 1440, 5000, 65537])
def test_fletcher32__as_python(n):
    for raw in (
        np.random.default_rng(n).integers(0, 256, n).astype(np.uint8),
        np.full(n, 255, np.uint8),
        np.zeros(n, np.uint8),
    ):
        assert kernel.fletcher32(raw) == fletcher32(raw)


PLACE = [(np.float32, np.float32), (np.int64, np.int32), (np.int32, np.int32), (np.uint8, np.int32)]


@pytest.mark.parametrize(("dtype", "to"), PLACE)
def test_place__every_stretch_and_chunk(dtype, to):
    """Stretches that begin before the chunk, end after it, hold it, or lie within."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 100, 60).astype(dtype)
    for _ in range(60):
        edges = np.sort(rng.choice(61, 2 * rng.integers(1, 8), replace=False)).astype(np.int64)
        starts, stops = edges[::2], edges[1::2]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        first, last = np.sort(rng.choice(61, 2, replace=False)).tolist()
        lo = int(np.searchsorted(stops, first, side="right"))
        hi = int(np.searchsorted(starts, last, side="left"))
        due = np.full(offsets[-1], 101, to)
        wanted = []
        for k, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            for i in range(max(start, first), min(stop, last)):
                due[offsets[k] + i - start] = data[i]
                wanted.append(int(data[i]))
        where = data[first:last], first, starts, stops, offsets, lo, hi
        out = np.full(offsets[-1], 101, to)
        kernel.place(*where, out)
        assert out.tolist() == due.tolist()
        if np.issubdtype(dtype, np.integer):
            for limit in {100, *wanted, *(value + 1 for value in wanted)}:
                out = np.full(offsets[-1], 101, to)
                fine = kernel.place_below(*where, limit, out)
                assert fine == (max(wanted, default=-1) < limit)
                assert out.tolist() == due.tolist()
        else:
            for limit in {100, *wanted, *(value + 1 for value in wanted)}:
                out = np.full(offsets[-1], 101, to)
                fine = kernel.place_counts(*where, limit, out)
                assert fine == (max(wanted, default=-1) < limit)
                assert out.tolist() == due.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_place_counts__what_are_counts(dtype):
    whole = np.array([0]), np.array([2]), np.array([0, 2]), 0, 1
    out = np.zeros(2, np.uint16)
    for value in (0, 65_535, -0.0, 65_536, -1, 0.5, np.nan, np.inf, -np.inf):
        data = np.array([7, value], dtype)
        fine = kernel.place_counts(data, 0, *whole, 2**16, out)
        assert fine == (value in (0, 65_535))
        assert out[0] == 7


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_place_below__ends_of_types(dtype):
    """The values outside of the stretches do not count, the first one and the last one do."""
    ends = np.iinfo(dtype)
    whole = np.array([0]), np.array([3]), np.array([0, 3]), 0, 1
    out = np.zeros(3, np.int32)
    for values in ([ends.min, 1, 2], [1, ends.min, 2], [2, 1, ends.max], [ends.max, 1, 0]):
        data = np.array(values, dtype)
        due = all(0 <= value < 100 for value in values)
        assert kernel.place_below(data, 0, *whole, 100, out) == due
    data = np.array([ends.max, 1, 2, ends.max], dtype)
    part = np.array([1]), np.array([3]), np.array([0, 2]), 0, 1
    assert kernel.place_below(data, 0, *part, 3, out)
    assert not kernel.place_below(data, 0, *part, 2, out)
    assert kernel.place_below(data, 0, *part[:3], 0, 0, 2, out)  # no stretch


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), max_size=700),
    seed=st.integers(0, 99),
    step=st.sampled_from([128, 256, 1 << 20]),
)
def test_row_index__as_indptr(lengths, seed, step):
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    asked = []

    def offsets(start, stop):
        asked.append(stop - start)
        return indptr[start : stop + 1]

    index = RowIndex(offsets, len(lengths), step)
    assert sum(asked) == len(lengths)
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(lengths)) < 0.4)
    starts, stops = index.spans(rows)
    assert starts.tolist() == indptr[rows].tolist()
    assert stops.tolist() == indptr[rows + 1].tolist()


def test_row_index__beyond_four_billion_entries():
    lengths = np.full(300, 2**32 - 1, np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    index = RowIndex(lambda start, stop: indptr[start : stop + 1], 300, 128)
    starts, stops = index.spans(np.arange(300))
    assert starts.tolist() == indptr[:-1].tolist()
    assert stops.tolist() == indptr[1:].tolist()


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.lists(st.integers(-1, 6), max_size=9), max_size=6),
    ordered=st.booleans(),
)
def test_check_indices__as_python(cells, ordered):
    cells = [sorted(set(cell)) for cell in cells] if ordered else cells
    verdict = csr.CANONICAL, -1
    for i, cell in enumerate(cells):
        if any(gene < 0 or gene >= 6 for gene in cell):
            verdict = csr.OUT_OF_RANGE, i
            break
        ascends = all(a < b for a, b in pairwise(cell))
        if not ascends and verdict[0] == csr.CANONICAL:
            verdict = csr.UNSORTED, i
    indices = np.array([gene for cell in cells for gene in cell], np.int32)
    indptr = np.cumsum([0, *map(len, cells)])
    assert csr.check_indices(indices, indptr, 6) == verdict


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    index=st.lists(st.integers(0, 99), max_size=12),
)
def test_take_values__as_python(lengths, index):
    """Cells in any order, some twice; from memory and from a file alike."""
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    index = np.array(index, np.int64) % len(lengths)
    found = csr.take_indptr(indptr, index)
    values, genes = np.empty(found[-1], np.float32), np.empty(found[-1], np.int32)
    csr.take_values(np.arange(indptr[-1], dtype=np.float32), indptr, index, found, values)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(np.arange(indptr[-1], dtype=np.uint16).tobytes())
        stage = np.empty(max(lengths), np.uint16)
        one = np.array([file.fileno()], np.intc), np.zeros(1, np.int64), np.zeros(1, np.int64)
        assert scratch.pick(*one, indptr, index, found, stage, genes)
        os.ftruncate(file.fileno(), 0)
        assert scratch.pick(*one, indptr, index, found, stage, genes) == (found[-1] == 0)
    due = [k for i in index for k in range(indptr[i], indptr[i + 1])]
    assert found.tolist() == [0, *np.cumsum([lengths[i] for i in index]).tolist()]
    assert values.tolist() == due
    assert genes.tolist() == due


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=6))
def test_any_repeated__as_python(cells):
    indices = np.array([gene for cell in cells for gene in cell], np.int32)
    indptr = np.cumsum([0, *map(len, cells)])
    assert remap.any_repeated(indices, indptr, 7) == any(len(set(c)) < len(c) for c in cells)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("repeat", [False, True])
def test_canonical__as_scipy(n_threads, repeat):
    rng = np.random.default_rng(0)
    matrix = sp.random(40, 90, 0.3, "csr", np.float32, random_state=1)
    indices = matrix.indices.copy()
    for lo, hi in pairwise(matrix.indptr[20:]):  # unsorted from cell 20 on
        order = rng.permutation(hi - lo)
        indices[lo:hi], matrix.data[lo:hi] = indices[lo:hi][order], matrix.data[lo:hi][order]
    if repeat:
        lo = matrix.indptr[30]
        indices[lo] = indices[lo + 1]
    for kind in (np.int32, np.uint16):
        rows = Rows(matrix.data.copy(), indices.astype(kind), matrix.indptr.astype(np.int64), 90)
        with Threads(n_threads) as threads:
            found = canonical(rows, "X", threads)
        due = sp.csr_matrix((matrix.data.copy(), indices.copy(), matrix.indptr.copy()), (40, 90))
        due.sum_duplicates()
        np.testing.assert_array_equal(found.indptr, due.indptr)
        np.testing.assert_array_equal(found.indices, due.indices)
        np.testing.assert_allclose(found.data, due.data, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("compact", [False, True])
def test_take__sums_of_repeats_keep_their_type(dtype, compact):
    """Or are refused: 255 + 255 is no uint8."""
    top = 1000 if dtype == np.float32 else np.iinfo(dtype).max
    indices, indptr = np.array([2, 2, 0], np.int32), np.array([0, 2, 3])
    for values, fits in (([1, top - 1, 3], True), ([top, 1, 3], dtype == np.float32)):
        matrix = CsrMatrix(np.array(values, dtype), indices, indptr, (2, 4), "X")
        if fits:
            rows = matrix.take(np.arange(2), compact=compact)
            assert rows.data.tolist() == [values[0] + values[1], 3]
            assert rows.data.dtype in (dtype, np.uint16)
        else:
            with pytest.raises(InputError, match=r"more than its type .* holds: sum them"):
                matrix.read(0, 2)
