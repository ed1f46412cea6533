"""From rows to mini-batches: CSR kernels, scratch, windows, and reading ahead."""

import errno
import gc
import os
import threading
import time
import weakref
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain import scratch
from streamtrain.batches import Waited, batches, gathered
from streamtrain.errors import InputError
from streamtrain.kernels import csr
from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.scaling import Scaler
from streamtrain.scratch import require_free
from streamtrain.sources import open_source
from streamtrain.spill import Spill
from streamtrain.streaming import ahead, sweep
from streamtrain.threads import Threads

DTYPES = (np.float32, np.float64, np.int32, np.uint16)


def positions(n_obs, n_vars, dtype=np.float32, density=0.4, seed=0):
    """Values that encode their place, row + (gene + 1) / 1,000 (whole for integers)."""
    i, j = np.indices((n_obs, n_vars))
    value = i + (j + 1) / 1000 if np.issubdtype(dtype, np.floating) else i * 50 + j + 1
    dense = np.where(np.random.default_rng(seed).random((n_obs, n_vars)) < density, value, 0)
    dense[[k for k in (0, 3) if n_obs > 4]] = 0
    return dense.astype(dtype)


def rows_of(matrix):
    matrix = sp.csr_matrix(matrix)
    return Rows(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), matrix.shape[1])


def assert_rows(found, expected):
    assert found.n_vars == expected.n_vars
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


SHAPES = ((0, 5), (1, 1), (23, 11))


@pytest.mark.parametrize("index", [[], [0], [-1, 0, -1], "reversed", "all twice"], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_take__as_scipy(dtype, shape, index):
    dense = positions(*shape, dtype)
    every = np.arange(shape[0])
    index = {"reversed": every[::-1], "all twice": np.tile(every, 2)}.get(str(index), index)
    index = np.array(index, np.int64)
    if len(index) and shape[0] == 0:
        return
    index = index % max(shape[0], 1)
    rows = rows_of(dense).with_codes(every.astype(np.int32))
    found = rows.take(index)
    expected = sp.csr_matrix(dense)[index]
    assert found.data.dtype == dtype
    assert_rows(found, rows_of(expected))
    np.testing.assert_array_equal(found.codes, index)


def test_slice__shares_memory():
    rows = rows_of(positions(23, 11)).with_codes(np.arange(23, dtype=np.int32))
    for lo, hi in ((0, 23), (2, 9), (5, 5), (23, 23)):
        part = rows.slice(lo, hi)
        assert_rows(part, rows.take(np.arange(lo, hi)))
        assert part.indptr[0] == 0
        assert part.codes.tolist() == list(range(lo, hi))
        assert part.data.size == 0 or np.shares_memory(part.data, rows.data)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_from_dense__as_scipy(dtype, shape):
    dense = positions(*shape, dtype)
    indptr = csr.count_nonzero(dense)
    data, indices = np.empty(indptr[-1], dtype), np.empty(indptr[-1], np.int32)
    csr.from_dense(dense, indptr, data, indices)
    assert_rows(Rows(data, indices, indptr, shape[1]), rows_of(dense))


def test_from_dense__keeps_nan_and_strides():
    dense = np.array([[0, np.nan, -0.0], [np.inf, 0, 2]], np.float32)
    for layout in (dense, np.asfortranarray(dense)):
        indptr = csr.count_nonzero(layout)
        data, indices = np.empty(3, np.float32), np.empty(3, np.int32)
        csr.from_dense(layout, indptr, data, indices)
        assert indptr.tolist() == [0, 1, 3]
        assert indices.tolist() == [1, 0, 2]
        np.testing.assert_array_equal(data, np.array([np.nan, np.inf, 2], np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_place__as_python(dtype):
    values = np.arange(100, 120).astype(dtype)
    starts, stops = np.array([3, 0, 10, 10, 7]), np.array([5, 3, 10, 14, 10])
    places = np.array([4, 0, 3, 1, 2])
    lengths = np.zeros(5, int)
    lengths[places] = stops - starts
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    out = np.zeros(indptr[-1], dtype)
    csr.place(values, starts, stops, places, indptr, out)
    for start, stop, place in zip(starts, stops, places, strict=True):
        assert out[indptr[place] : indptr[place + 1]].tolist() == values[start:stop].tolist()


@pytest.mark.parametrize(("values", "found"), [
    ([], True), ([0, 3, 65_535], True), ([65_536], False), ([-1], False), ([0.5], False),
    ([np.nan], False), ([np.inf], False), ([-0.0], True),
])  # fmt: skip
def test_all_counts(values, found):
    for dtype in (np.float32, np.float64):
        assert csr.all_counts(np.array(values, dtype), 65_535) is found
    if all(float(value).is_integer() for value in values):
        assert csr.all_counts(np.array(values, np.int64), 65_535) is found


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ([], (csr.CANONICAL, -1)),
        ([[]], (csr.CANONICAL, -1)),
        ([[0]], (csr.CANONICAL, -1)),
        ([[0, 1, 4], [], [4], [0, 4]], (csr.CANONICAL, -1)),
        ([[0, 1], [2, 1], [1, 0]], (csr.UNSORTED, 1)),
        ([[0, 1], [2, 2]], (csr.UNSORTED, 1)),
        ([[0, 5]], (csr.OUT_OF_RANGE, 0)),
        ([[], [-1, 3]], (csr.OUT_OF_RANGE, 1)),
        ([[1, 0], [2], [7]], (csr.OUT_OF_RANGE, 2)),  # worse than the unsorted cell before it
        ([[1, -2]], (csr.OUT_OF_RANGE, 0)),
    ],
)
def test_check_indices__verdicts(cells, verdict, dtype):
    indices = np.array([gene for cell in cells for gene in cell], dtype)
    indptr = np.cumsum([0, *map(len, cells)])
    assert csr.check_indices(indices, indptr, 5) == verdict


def spilled(rows, cuts=(), dtype=np.float32, **options):
    """A finished Spill of `rows`, appended in pieces."""
    spill = Spill(rows.n_vars, dtype, None, **options)
    edges = [0, *cuts, rows.n_obs]
    for lo, hi in pairwise(edges):
        spill.append(rows.slice(lo, hi))
    spill.finish()
    return spill


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_vars", [1, 11, 2**16, 2**16 + 1])
def test_spill__gathers_what_it_got(n_vars, dtype):
    dense = positions(60, 11, dtype)
    rows = rows_of(dense)
    if n_vars == 1:
        rows = rows_of(dense[:, 5:6])
    if n_vars > 11:  # the last gene there is
        indices = np.where(rows.indices == 10, n_vars - 1, rows.indices).astype(np.int32)
        rows = Rows(rows.data, indices, rows.indptr, n_vars)
    rng = np.random.default_rng(1)
    with spilled(rows, (0, 1, 1, 40), dtype) as spill:
        assert spill.n_obs == 60
        assert spill.entry_bytes == np.dtype(dtype).itemsize + (2 if n_vars <= 2**16 else 4)
        assert spill.nbytes == spill.entry_bytes * len(rows.data)
        for cells in (np.arange(60), np.arange(60)[::-1], rng.integers(0, 60, 200), np.array([3])):
            found = spill.gather(cells)
            assert_rows(found, rows.take(cells))
            assert found.data.dtype == dtype
            assert found.indices.dtype == (np.uint16 if n_vars <= 2**16 else np.int32)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.integers(0, 39), max_size=80),
    memory=st.sampled_from([0, 300, 10**6]),
    counts=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    n_threads=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 40), max_size=3).map(sorted),
)
def test_spill__any_order_and_place(cells, memory, counts, dtype, n_threads, cuts):
    rows = rows_of(positions(40, 11, dtype))
    cells = np.array(cells, np.int64)
    with (
        Threads(n_threads) as threads,
        spilled(rows, cuts, dtype, memory=memory, counts=counts, threads=threads) as spill,
    ):
        assert spill.in_memory == (memory > 300)
        assert spill.held == (spill.nbytes if spill.in_memory else 0)
        found = spill.gather(cells)
        assert_rows(found, rows.take(cells))
        assert found.data.dtype == dtype
        assert spill.gather(cells, np.int32).indices.dtype == np.int32
        whole = counts and dtype in (np.int32, np.uint16)
        assert spill.entry_bytes == 2 + (2 if whole else np.dtype(dtype).itemsize)


@pytest.mark.parametrize("memory", [0, 700, 10**6])
def test_spill__counts_that_end(memory):
    """Two bytes a value until one comes that they do not hold; what was there stays."""
    whole = rows_of(np.floor(positions(40, 11)))
    broken = rows_of(positions(40, 11))
    with Spill(11, np.float32, None, memory=memory, counts=True) as spill:
        spill.append(whole)
        assert spill.entry_bytes == 4
        before = spill.in_memory
        spill.append(broken)
        spill.append(whole)
        spill.finish()
        assert spill.entry_bytes == 6
        assert (before, spill.in_memory) == {0: (False,) * 2, 700: (True, False)}.get(
            memory, (True, True)
        )
        for i, part in enumerate((whole, broken, whole)):
            assert_rows(spill.gather(np.arange(40 * i, 40 * (i + 1))), part)


def test_spill__scratch_that_was_cut_short():
    rows = rows_of(positions(40, 11))
    with spilled(rows) as spill:
        os.ftruncate(spill._arrays[0]._file.fileno(), 50)
        with pytest.raises(OSError, match="scratch file ended early"):
            spill.gather(np.arange(40))


@pytest.mark.parametrize("n_obs", [0, 1, 7])
def test_spill__cells_without_entries(n_obs):
    empty = Rows(np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(n_obs + 1, np.int64), 5)
    with spilled(empty) as spill:
        assert (spill.n_obs, spill.nbytes) == (n_obs, 0)
        assert_rows(spill.gather(np.arange(n_obs)), empty)
        assert_rows(spill.gather(np.zeros(0, np.int64)), empty.slice(0, 0))


def test_spill__nothing_appended():
    with Spill(5, np.float32, None) as spill:
        spill.finish()
        assert spill.n_obs == 0
        assert spill.gather(np.zeros(0, np.int64)).n_obs == 0


def test_spill__converts_values():
    """Counts as stored, when nothing is normalised."""
    rows = rows_of(positions(20, 11, np.int32))
    with spilled(rows) as spill:
        found = spill.gather(np.arange(20))
    assert found.data.dtype == np.float32
    np.testing.assert_array_equal(found.data, rows.data)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_spill__disk_full(tmp_path, monkeypatch, number):
    rows = rows_of(positions(20, 11))
    spill = Spill(11, np.float32, tmp_path)
    spill.append(rows)
    real, left = os.pwrite, [10]

    def pwrite(file, view, offset):  # part of it, then no more
        if not left[0]:
            raise OSError(number, os.strerror(number))
        n, left[0] = left[0], 0
        return real(file, view[:n], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    words = (
        rf"the scratch folder {tmp_path} is full after \d+ bytes: pass scratch=FOLDER \(--scratch\)"
    )
    with spill, pytest.raises(InputError, match=words):
        spill.append(rows)
    assert not list(tmp_path.iterdir())


def test_spill__other_write_errors_are_not_reworded(monkeypatch):
    def pwrite(*_):
        raise OSError(errno.EIO, "broken")

    with Spill(11, np.float32, None) as spill:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="broken"):
            spill.append(rows_of(positions(20, 11)))


def test_spill__short_writes(monkeypatch):
    rows = rows_of(positions(20, 11))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, view, at: real(file, view[:13], at))
    with Spill(11, np.float32, None) as spill:
        spill.append(rows)
        spill.finish()
        assert_rows(spill.gather(np.arange(20)), rows)


def test_require_free__says_what_is_needed_and_there(tmp_path, monkeypatch):
    require_free(tmp_path, 1, "training")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    words = rf"training needs 2 GB of scratch, and {tmp_path} has 1 MB free: pass scratch=FOLDER"
    with pytest.raises(InputError, match=words):
        require_free(tmp_path, 2e9, "training")


def test_spill__scratch_that_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for wrong, why in ((tmp_path / "none", "No such file"), (file, "Not a directory")):
        words = f"scratch must be a folder that can be written; {wrong}: {why}"
        with pytest.raises(InputError, match=words):
            Spill(5, np.float32, wrong)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_spill__scratch_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"scratch must be a folder that can be written.*denied"):
        Spill(5, np.float32, tmp_path)


def test_spill__leaves_no_files(tmp_path):
    def open_files():
        folder = Path("/proc/self/fd")  # Linux
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    before = open_files()
    with Spill(11, np.float32, tmp_path) as spill:
        spill.append(rows_of(positions(20, 11)))
        assert not [p for p in tmp_path.iterdir() if p.stat().st_size]  # nameless
    with pytest.raises(ZeroDivisionError), Spill(11, np.float32, tmp_path):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
    assert open_files() == before
    spill.close()  # again: no harm


N_OBS, N_VARS = 157, 11


def scaler_of(dtype):
    position = np.arange(N_VARS, dtype=np.int32) - 1  # gene 0 is none of the model's
    mean, scale = np.linspace(1, 50, N_VARS - 1), np.linspace(2, 0.5, N_VARS - 1)
    return Scaler(mean, scale, position, with_mean=True, dtype=dtype)


def plan_of(**options):
    codes = (np.arange(N_OBS) % 3).astype(np.int32)
    options = {"batch_size": 20, "batch_number": 6, "epochs": 3} | options
    return codes, Plan(codes, 3, **options, balance=True, shuffle=True, seed=5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_number", [1, 6, 100])
def test_batches__are_the_direct_ones(batch_number, dtype):
    rows = rows_of(positions(N_OBS, N_VARS, dtype))
    codes, plan = plan_of(batch_number=batch_number)
    drawn = plan.ever_drawn()
    rank = np.cumsum(drawn) - 1
    scaler = scaler_of(dtype)
    reported = []
    with spilled(rows.take(np.flatnonzero(drawn)), (5,), dtype) as spill:
        found = list(
            batches(
                gathered(
                    plan, lambda p: spill.gather(rank[p]),
                    lambda epoch, cells: reported.append((epoch, cells.tolist())),
                ),
                codes, scaler,
            )
        )  # fmt: skip
    at = iter(found)
    for epoch in range(3):
        order = plan.epoch(epoch)
        assert reported[epoch] == (epoch, order.tolist())
        for start in range(0, len(order), 20):
            cells = order[start : start + 20].astype(np.int64)
            expected, batch = scaler(rows.take(cells)), next(at)
            assert batch.epoch == epoch
            np.testing.assert_array_equal(batch.cells.rows.codes, codes[cells])
            assert_rows(batch.cells.rows, expected.rows)
            np.testing.assert_array_equal(batch.cells.dots, expected.dots)
    assert next(at, None) is None


def test_batches__three_gathered_at_a_time():
    rows = rows_of(positions(N_OBS, N_VARS))
    codes, plan = plan_of(epochs=8)
    alive, most, lock = set(), [], threading.Lock()

    def gather(cells):
        time.sleep(0.002)  # the solver gets to the batch before
        found = rows.take(cells)
        with lock:
            name = object()
            alive.add(name)
            most.append(len(alive))
        weakref.finalize(found.data, alive.discard, name)
        return found

    gc.disable()  # memory must return without the collector's help
    try:
        for _ in batches(gathered(plan, gather), codes, scaler_of(np.float32)):
            time.sleep(0.001)
    finally:
        gc.enable()
    assert len(most) > 10
    assert max(most) <= 3
    assert not alive


def test_waited__counts_the_time_in_next():
    def items():
        for i in range(3):
            time.sleep(0.02)
            yield i

    waited = Waited(items())
    assert list(waited) == [0, 1, 2]
    assert 0.06 <= waited.waited <= waited.waited / waited.share
    time.sleep(0.1)
    assert waited.share < 0.9


def test_batches__closed_early():
    rows = rows_of(positions(N_OBS, N_VARS))
    codes, plan = plan_of()
    before = threading.active_count()
    with spilled(rows) as spill:
        served = batches(gathered(plan, spill.gather), codes, scaler_of(np.float32))
        assert next(served).epoch == 0
        served.close()
    del served
    assert threading.active_count() == before


def test_batches__errors_surface():
    rows = rows_of(positions(N_OBS, N_VARS))
    codes, plan = plan_of()
    with spilled(rows) as spill:
        real, calls = spill.gather, []

        def gather(cells):
            calls.append(1)
            if len(calls) == 3:
                raise OSError(errno.EIO, "lost the disk")
            return real(cells)

        served = batches(gathered(plan, gather), codes, scaler_of(np.float32))
        with pytest.raises(OSError, match="lost the disk"):
            list(served)


def test_ahead__keeps_order():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, None]))) == [None, None]


def test_ahead__works_one_item_ahead_in_a_thread():
    made, threads = [], set()
    second = threading.Event()

    def items():
        for i in range(4):
            threads.add(threading.get_ident())
            made.append(i)
            if i == 1:
                second.set()
            yield i

    stream = ahead(items())
    assert made == []  # nothing before the first is asked for
    assert next(stream) == 0
    assert second.wait(5)
    time.sleep(0.01)
    assert made == [0, 1]  # one ahead and no more
    assert list(stream) == [1, 2, 3]
    assert threading.get_ident() not in threads


def test_ahead__exceptions_come_in_their_turn():
    def items():
        yield 1
        yield 2
        raise InputError("third")

    stream = ahead(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(InputError, match="third"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_ahead__closed_early(taken):
    closed = threading.Event()
    before = threading.active_count()

    def items():
        try:
            yield from range(100)
        finally:
            closed.set()

    stream = ahead(items())
    for _ in range(taken):
        next(stream)
    stream.close()
    del stream
    assert threading.active_count() == before
    assert closed.is_set() == (taken > 0)  # a generator that never began has no finally to run


@pytest.mark.parametrize("nbytes", [1, 300, 2000, 10**9])
@pytest.mark.parametrize(
    "selected", [None, [], [0], [22], [4, 5, 6], [0, 1, 9, 21], list(range(23))], ids=str
)
def test_sweep__selected_cells_in_order(selected, nbytes):
    dense = positions(23, 11)
    source = open_source(sp.csr_matrix(dense), genes=[f"g{j}" for j in range(11)])
    index = None if selected is None else np.array(selected, np.int64)
    at, parts = 0, []
    for position, rows in sweep(source, index, nbytes):
        assert position == at
        assert rows.n_obs > 0
        at += rows.n_obs
        parts.append(sp.csr_matrix((rows.data, rows.indices, rows.indptr), (rows.n_obs, 11)))
    expected = dense if index is None else dense[index]
    assert at == len(expected)
    if parts:
        np.testing.assert_array_equal(sp.vstack(parts).toarray(), expected)


def test_sweep__reads_no_block_without_selected_cells():
    source = open_source(sp.csr_matrix(positions(23, 11)), genes=list("abcdefghijk"))
    read, real = [], source.read

    def spy(start, stop):
        read.append((start, stop))
        return real(start, stop)

    source.read = spy
    assert [p for p, _ in sweep(source, np.array([7, 8, 20]), 1)] == [0, 1, 2]
    assert read == [(7, 8), (8, 9), (20, 21)]


def test_scratch__not_in_memory_unless_asked(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: "/tmp")  # noqa: S108
    monkeypatch.setattr(scratch, "_in_memory", lambda place: place == "/tmp")  # noqa: S108
    assert scratch.place_of(None) == "/var/tmp"  # noqa: S108
    assert scratch.place_of(tmp_path) == str(tmp_path)
    assert caplog.messages == []
    assert scratch.place_of("/tmp") == "/tmp"  # noqa: S108
    assert "lies in memory" in caplog.text


def test_scratch__home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scratch.place_of("~") == str(tmp_path)


@pytest.mark.parametrize(("kind", "answer"), [("tmpfs", True), ("ext4", False)])
def test_scratch__tells_memory_from_disk(tmp_path, monkeypatch, kind, answer):
    parts = [
        SimpleNamespace(mountpoint="/", fstype="overlay"),
        SimpleNamespace(mountpoint=str(tmp_path.parent), fstype=kind),
        SimpleNamespace(mountpoint=str(tmp_path) + "-other", fstype="tmpfs"),
    ]
    monkeypatch.setattr(scratch.psutil, "disk_partitions", lambda **_: parts)
    assert scratch._in_memory(str(tmp_path)) is answer
