"""Cells in any ascending order, from every source, equal the same cells read by ranges."""

import gc
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from streamtrain import InputError, open_source
from streamtrain.decode.arrays import StoredArray, gatherable
from streamtrain.sources import matrix as matrices
from streamtrain.sources.derived import SlicedMatrix
from streamtrain.sources.matrix import CsrMatrix, DenseMatrix
from streamtrain.threads import Threads
from tests.stores import FORMATS, KINDS, make_anndata, of_kind, positions, to_dense, write

N = 23


@pytest.fixture(scope="module")
def atlases(tmp_path_factory):
    """(kind, format) -> path."""
    found = {}
    for kind in KINDS:
        adata = make_anndata(kind, N)
        for form in FORMATS:
            found[kind, form] = write(adata, tmp_path_factory.mktemp(kind), form)
    return found


def choices(n_obs):
    """Ascending rows: none, the first, the last, all, every second, at random."""
    rng = np.random.default_rng(n_obs)
    every = np.arange(n_obs)
    random = [np.flatnonzero(rng.random(n_obs) < share) for share in (0.1, 0.3, 0.7)]
    return [every[:0], every[:1], every[-1:], every, every[::2], *random]


def assert_takes(source):
    whole = source.read(0, source.n_obs)
    due = to_dense(whole)
    for rows in choices(source.n_obs):
        found = source.take(rows)
        assert found.n_obs == len(rows)
        assert found.n_vars == source.n_vars
        assert found.data.dtype == whole.data.dtype == source.dtype
        assert found.indices.dtype == np.int32
        assert found.indptr.dtype == np.int64
        np.testing.assert_array_equal(to_dense(found), due[rows])
        assert len(found.data) == (np.diff(whole.indptr)[rows]).sum()
    for rows in ([-1, 0], [source.n_obs]):
        with pytest.raises(IndexError, match=f"cells .* of {source.n_obs}"):
            source.take(np.array(rows))
    for rows in ([2, 0, 1], [1, 1]):
        with pytest.raises(IndexError, match="must be ascending and distinct: sort them first"):
            source.take(np.array(rows))
    return due


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_take__every_store(atlases, kind, form):
    for layer in (None, "counts", "raw"):
        with closing(open_source(atlases[kind, form], layer=layer)) as source:
            due = assert_takes(source)
            again = pickle.loads(pickle.dumps(source))  # noqa: S301
            np.testing.assert_array_equal(to_dense(again.take(np.array([2, 9]))), due[[2, 9]])
            again.close()
            source.close()
            np.testing.assert_array_equal(to_dense(source.take(np.array([4, 22]))), due[[4, 22]])


@pytest.mark.parametrize("kind", KINDS)
def test_take__anndata_and_views(atlases, kind):
    adata = make_anndata(kind, N)
    backed = ad.read_h5ad(atlases[kind, "h5ad"], backed="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chunked = ad.AnnData(da.from_array(positions(N, 11), chunks=(5, 4)))
    for one in (adata, backed, chunked):
        for view in (one, one[[20, 3, 4, 3, 19, 0]], one[2:19, [7, 2, 5]]):
            source = open_source(view)
            assert_takes(source)
            source.close()
    backed.file.close()


def test_take__objects_and_tables(tmp_path):
    values = positions(40, 6)
    frame = pd.DataFrame(values, [f"c{i}" for i in range(40)], list("abcdef"))
    frame.to_csv(tmp_path / "table.csv")
    chunked = da.concatenate([da.from_array(part) for part in np.split(values, [5, 5, 6])])
    for X, genes in (
        (sp.csr_matrix(values), list("abcdef")),
        (sp.csc_matrix(values), list("abcdef")),
        (values, list("abcdef")),
        (frame, None),
        (chunked, list("abcdef")),
        (chunked.map_blocks(sp.csr_matrix), list("abcdef")),
        (tmp_path / "table.csv", None),
    ):
        with closing(open_source(X, genes=genes)) as source:
            np.testing.assert_allclose(assert_takes(source), values, rtol=1e-6)


def test_take__empty_matrices(tmp_path):
    for shape in ((0, 4), (5, 4)):
        for kind, form in product(KINDS, ("h5ad", "zarr2" if shape[0] else "zarr3")):
            empty = ad.AnnData(of_kind(np.zeros(shape, np.float32), kind))
            folder = tmp_path / f"{shape[0]}{kind}{form}"
            folder.mkdir()
            with closing(open_source(write(empty, folder, form))) as source:
                assert_takes(source)


def test_take__dask_computes_each_chunk_once():
    computed = []

    def made(block):
        computed.append(len(block))
        return block

    array = da.from_array(positions(40, 6), chunks=(8, 6)).map_blocks(
        made, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    SlicedMatrix(array, "dask").take(np.array([1, 3, 17, 23, 39]))
    assert computed == [8, 8, 8]


class Counted:
    """Dense rows that note the ranges asked for."""

    def __init__(self, values, chunk=None):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.asked = []
        if chunk:
            self.chunks = (chunk, values.shape[1])

    def __getitem__(self, part):
        self.asked.append((part.start, part.stop))
        return self.values[part]


@pytest.mark.parametrize(
    ("chunk", "asked"),
    [
        # At most ten cells together, or whole chunks of about as many; not over gaps of 33 cells.
        (None, [(0, 10), (10, 16), (60, 67), (99, 100)]),
        (4, [(0, 8), (9, 16), (60, 64), (66, 67), (99, 100)]),
        (50, [(0, 16), (60, 100)]),
    ],
)
def test_take__dense_reads_near_cells_together_and_few(monkeypatch, chunk, asked):
    values = positions(100, 2, 1)
    monkeypatch.setattr(matrices, "TOGETHER", 10 * (2 * 12 + 8))
    array = Counted(values, chunk)
    rows = np.array([0, 3, 7, 9, 10, 15, 60, 63, 66, 99])
    found = DenseMatrix(array, "X").take(rows)
    np.testing.assert_array_equal(to_dense(found), values[rows])
    assert array.asked == asked


def test_take__csr_reads_each_entry_once():
    """Neighbours as one stretch, and the offsets once for all calls until it is closed."""
    values = sp.csr_matrix(positions(60, 8))
    asked = []

    class Flat:
        shape, dtype = values.indptr.shape, values.indptr.dtype

        def __getitem__(self, part):
            asked.append((part.start, part.stop))
            return values.indptr[part]

    matrix = CsrMatrix(values.data, values.indices, Flat(), values.shape, "X")
    asked.clear()
    for rows in choices(60):
        np.testing.assert_array_equal(to_dense(matrix.take(rows)), values[rows].toarray())
    assert asked == [(0, 61)]
    matrix.close()
    matrix.take(np.array([3]))
    assert asked == [(0, 61), (0, 61)]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("entry", "cell"), [(0, 0), (3, 1), (9, 5), (10, 5)])
@pytest.mark.parametrize("position", [-1, 5, 2**31 + 1, 2**32 + 1])
def test_csr__position_out_of_range_names_the_cell(tmp_path, stored, entry, cell, position):
    """By `read` and by `take`, whatever other cells come with it; cells 2 to 4 are empty."""
    indptr = np.array([0, 3, 6, 6, 6, 6, 11, 11])
    indices = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 3, 0], np.int64)
    indices[entry] = position
    data = np.ones(11, np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("indices", data=indices, chunks=(2,))
    file = h5py.File(tmp_path / "x.h5", "r")
    array = gatherable(file["indices"], None) if stored else indices
    assert isinstance(array, StoredArray) is stored
    matrix = CsrMatrix(data, array, indptr, (7, 5), "X of here")
    match = rf"X of here is damaged: cell {cell} has gene position {position}, outside 0 to 4"
    for ask in (
        lambda: matrix.read(0, 7),
        lambda: matrix.read(cell, 7),
        lambda: matrix.take(np.arange(7)),
        lambda: matrix.take(np.array(sorted({2, cell, 6}))),
        lambda: matrix.take(np.array([cell])),
    ):
        with pytest.raises(InputError, match=match):
            ask()
    others = np.array([row for row in (0, 1, 3) if row != cell])
    assert matrix.take(others).n_obs == len(others)
    matrix.close()
    file.close()


def open_files():
    gc.collect()
    return sorted(str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.is_symlink())


@pytest.mark.parametrize("form", FORMATS)
def test_close__leaves_no_file_open(atlases, form):
    """After reads on several threads, after damage, and of copies."""
    path = atlases["csr", form]
    before = [name for name in open_files() if str(path) in name]
    assert before == []
    for n_jobs in (1, 4):
        with Threads(n_jobs) as threads, closing(open_source(path, threads=threads)) as source:
            for _ in source.blocks(900):
                source.read(0, N)
                source.take(np.array([1, 4, 20]))
        with closing(open_source(path)) as source:
            source.read(0, 5)
            copy = pickle.loads(pickle.dumps(source))  # noqa: S301
            copy.read(3, 9)
            copy.close()
    assert [name for name in open_files() if str(path) in name] == []


def test_close__of_a_backed_anndata_leaves_only_its_own(atlases):
    path = atlases["csr", "h5ad"]
    backed = ad.read_h5ad(path, backed="r")
    source = open_source(backed)
    source.read(0, 9)
    assert open_files().count(str(path)) > 1
    source.close()
    assert open_files().count(str(path)) == 1
    assert source.read(0, 9).n_obs == 9
    source.close()
    backed.file.close()
    assert open_files().count(str(path)) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_read__same_from_many_threads(atlases, form):
    """Sources with threads of their own side by side, and any number of them."""
    due = None
    for n_jobs in (1, 2, 8):
        with (
            Threads(n_jobs) as threads,
            closing(open_source(atlases["csr", form], threads=threads)) as source,
        ):
            found = to_dense(source.read(0, N))
            due = found if due is None else due
            np.testing.assert_array_equal(found, due)

    def whole(_):
        with closing(open_source(atlases["csr", form])) as source:
            return np.concatenate([to_dense(source.read(i, i + 1)) for i in range(N)])

    with ThreadPoolExecutor(4) as executor:
        for found in executor.map(whole, range(8)):
            np.testing.assert_array_equal(found, due)
