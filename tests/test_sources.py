import logging
import pickle
import shutil
import subprocess
import sys
import warnings

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.utils import make_index_unique
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.kernels import transpose
from streamtrain.scratch import Room
from streamtrain.sources import columns, open_source
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.genes import unique_names
from streamtrain.sources.matrix import CsrMatrix, DenseMatrix, cut
from tests import stores
from tests.stores import DATA, FORMATS, KINDS, make_anndata, of_kind, positions, read_all, write

SIZES = (1, 200, 1_000, 1 << 30)


def repickle(source):
    return pickle.loads(pickle.dumps(source))  # noqa: S301  # written one call before


LAYERS = {None: "X", "counts": "counts", "layers/counts": "counts", "raw": "raw", "raw/X": "raw"}


def dense(X):
    return X.toarray() if sp.issparse(X) else np.asarray(X)


def expected(adata, layer):
    what = LAYERS[layer]
    X = {"X": adata.X, "counts": adata.layers["counts"], "raw": adata.raw.X}[what]
    return dense(X), list(adata.raw.var_names if what == "raw" else adata.var_names)


@pytest.fixture(scope="module")
def atlases(tmp_path_factory):
    """Every kind of matrix in every format, written once."""
    made = {}
    for kind in KINDS:
        adata = make_anndata(kind)
        for form in FORMATS:
            folder = tmp_path_factory.mktemp(f"{kind}-{form}")
            made[kind, form] = adata, write(adata, folder, form)
    return made


@pytest.mark.parametrize("layer", [None, "counts", "raw"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_store__every_layout(atlases, kind, form, layer):
    adata, path = atlases[kind, form]
    values, names = expected(adata, layer)
    source = open_source(path, layer=layer)
    assert (source.n_obs, source.n_vars) == values.shape
    assert source.is_sparse == (kind != "dense")
    assert source.dtype == np.float32
    assert list(source.genes) == names
    assert source.obs_columns() == ["cell_type", "n_genes", "flag"]
    assert list(source.obs_names(2, 5)) == ["cell2", "cell3", "cell4"]
    for nbytes in SIZES:
        np.testing.assert_array_equal(read_all(source, nbytes), values)
    source.close()
    np.testing.assert_array_equal(read_all(source, 1 << 20), values)  # opens again
    copy = repickle(source)
    np.testing.assert_array_equal(read_all(copy, 1 << 20), values)
    assert copy.obs("cell_type").equals(source.obs("cell_type"))
    copy.close()
    source.close()


@pytest.mark.parametrize("layer", LAYERS)
def test_store__names_of_matrices(atlases, layer):
    adata, path = atlases["csr", "zarr3"]
    for X in (adata, path):
        source = open_source(X, layer=layer)
        np.testing.assert_array_equal(read_all(source, 1 << 20), expected(adata, layer)[0])
        source.close()


def test_store__whole_matrix_is_one_block(atlases):
    for kind in KINDS:
        source = open_source(str(atlases[kind, "h5ad"][1]))
        assert list(source.blocks(1 << 30)) == [(0, 23)]
        assert [stop - start for start, stop in source.blocks(1)] == [1] * 23
        source.close()


@pytest.mark.parametrize("kind", [*KINDS, "view", "dask", "dask_csr"])
@pytest.mark.parametrize("nbytes", [1, 300, 900, 1 << 20])
def test_blocks__of_a_range(atlases, kind, nbytes):
    X = atlases[kind, "h5ad"][1] if kind in KINDS else atlases["csr", "h5ad"][0]
    if kind == "view":
        X = X[::-1, 2:]
    elif kind not in KINDS:
        X = da.from_array(dense(X.X), chunks=(5, 11))
        X = X.map_blocks(sp.csr_matrix) if kind == "dask_csr" else X
    source = open_source(X, genes=list("abcdefghijk") if kind.startswith("dask") else None)
    for start, stop in ((0, 23), (3, 17), (4, 5), (22, 23), (6, 6)):
        found = list(source.blocks(nbytes, start, stop))
        assert [i for block in found for i in range(*block)] == list(range(start, stop))
        for low, high in found:
            assert high - low == 1 or source._matrix.row_bytes(low, high).sum() <= nbytes
    assert list(source.blocks(nbytes, 3)) == list(source.blocks(nbytes, 3, 23))
    source.close()


@pytest.mark.parametrize("kind", KINDS)
def test_lengths__where_the_offsets_tell(atlases, kind):
    source = open_source(atlases[kind, "h5ad"][1])
    found = source.lengths(3, 17)
    if kind == "csr":
        assert found.tolist() == np.diff(source.read(3, 17).indptr).tolist()
    else:
        assert found is None
    source.close()


def test_dense__blocks_of_a_range_follow_chunks():
    matrix = DenseMatrix(zarr.array(positions(64, 8), chunks=(10, 8)), "X")
    row = 8 * (2 * 4 + 4) + 8
    assert list(matrix.blocks(25 * row + 8, 13, 55)) == [(13, 30), (30, 50), (50, 55)]


def test_store__zipped_zarr(atlases, tmp_path):
    adata, path = atlases["csr", "zarr3"]
    packed = shutil.make_archive(str(tmp_path / "atlas.zarr"), "zip", path)
    source = open_source(packed)
    np.testing.assert_array_equal(read_all(source, 1_000), dense(adata.X))
    copy = repickle(source)
    np.testing.assert_array_equal(read_all(copy, 1_000), dense(adata.X))
    source.close()
    copy.close()


def test_store__not_consolidated(atlases, tmp_path):
    adata, path = atlases["csr", "zarr2"]
    bare = tmp_path / "bare.zarr"
    shutil.copytree(path, bare)
    (bare / ".zmetadata").unlink()
    source = open_source(bare)
    np.testing.assert_array_equal(read_all(source, 1_000), dense(adata.X))


def test_store__legacy_h5sparse(atlases, tmp_path):
    adata, path = atlases["csr", "h5ad"]
    old = shutil.copy(path, tmp_path / "old.h5ad")
    with h5py.File(old, "r+") as file:
        attrs = file["X"].attrs
        shape = attrs["shape"]
        for key in list(attrs):
            del attrs[key]
        attrs["h5sparse_format"], attrs["h5sparse_shape"] = np.bytes_("csr"), shape
    source = open_source(old)
    np.testing.assert_array_equal(read_all(source, 500), dense(adata.X))
    source.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (1, 7), (9, 1)])
def test_store__all_empty(tmp_path, kind, shape):
    adata = ad.AnnData(of_kind(np.zeros(shape, np.float32), kind))
    source = open_source(write(adata, tmp_path, "h5ad"))
    for nbytes in SIZES:
        np.testing.assert_array_equal(read_all(source, nbytes), np.zeros(shape))
    source.close()


def in_memory():
    values = positions(17, 6)
    cells, genes = [f"c{i}" for i in range(17)], list("abcdef")
    frame = pd.DataFrame(values, index=cells, columns=genes)
    sparse_frame = frame.astype(pd.SparseDtype("float32", 0))
    chunked = da.from_array(values, chunks=(5, 4))
    return values, {
        "csr_matrix": sp.csr_matrix(values),
        "csc_matrix": sp.csc_matrix(values),
        "csr_array": sp.csr_array(values),
        "csc_array": sp.csc_array(values),
        "numpy": values,
        "fortran": np.asfortranarray(values),
        "big_endian": values.astype(">f4"),
        "read_only": np.broadcast_to(values, values.shape),
        "frame": frame,
        "sparse_frame": sparse_frame,
        "dask": chunked,
        "dask_csr": chunked.map_blocks(sp.csr_matrix),
        "dask_csr_array": chunked.map_blocks(sp.csr_array),
        "dask_one_column": da.from_array(values, chunks=(5, 6)).map_blocks(sp.csr_matrix),
        "zarr": zarr.array(values, chunks=(4, 4)),
        "anndata": ad.AnnData(sp.csr_matrix(values), obs=pd.DataFrame(index=cells)),
        "anndata_dask": ad.AnnData(chunked, var=pd.DataFrame(index=genes)),
    }


@pytest.mark.parametrize("name", in_memory()[1])
def test_memory__every_type(name):
    values, objects = in_memory()
    X = objects[name]
    named = name in ("frame", "sparse_frame") or name.startswith("anndata")
    source = open_source(X, genes=None if named else list("abcdef"))
    assert source.dtype == np.float32
    assert len(source.genes) == 6
    assert source.is_sparse == ("cs" in name or name in ("anndata", "dask_one_column"))
    for nbytes in SIZES:
        np.testing.assert_array_equal(read_all(source, nbytes), values)
    np.testing.assert_array_equal(read_all(repickle(source), 900), values)
    assert list(source.obs_names(0, 2)) == (
        ["c0", "c1"] if name in ("frame", "sparse_frame", "anndata") else ["0", "1"]
    )
    source.close()


def test_memory__reads_share_nothing_with_the_users_arrays():
    for X in (sp.csr_matrix(positions(9, 4)), positions(9, 4)):
        before = X.copy()
        rows = open_source(X, genes=list("abcd")).read(0, 9)
        rows.data[:] = -1
        rows.indices[:] = 0
        assert (dense(X) == dense(before)).all()


@pytest.mark.parametrize("dtype", [bool, np.float16, np.int8, np.uint16, np.int64, np.longdouble])
def test_memory__dtypes(dtype):
    values = (positions(9, 4) > 0).astype(dtype) * dtype(1)
    for X in (values, sp.csr_matrix(values) if dtype != np.float16 else values):
        np.testing.assert_array_equal(read_all(open_source(X, genes=list("abcd")), 60), values)


def test_memory__nan_is_kept():
    values = np.array([[0, np.nan], [1, 0]])
    rows = open_source(values, genes=["a", "b"]).read(0, 2)
    np.testing.assert_array_equal(rows.data, [np.nan, 1])


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [None, "counts", "raw"])
def test_anndata__backed_and_its_views(atlases, tmp_path, kind, layer, mode):
    adata, path = atlases[kind, "h5ad"]
    backed = ad.read_h5ad(shutil.copy(path, tmp_path), backed=mode)
    backed.obs["mine"] = np.arange(23) * 2
    cells, genes = [20, 3, 4, 3, 19, 0], [7, 2, 5]
    values, names = expected(adata, layer)
    views = {
        "whole": (backed, slice(None), slice(None)),
        "cells": (backed[cells], cells, slice(None)),
        "genes": (backed[:, genes], slice(None), genes),
        "both": (backed[2:19, genes], slice(2, 19), genes),
        "mask": (backed[np.arange(23) % 3 == 0], np.arange(23) % 3 == 0, slice(None)),
    }
    for view, obs_index, var_index in views.values():
        var_index = slice(None) if layer == "raw" else var_index
        source = open_source(view, layer=layer)
        want = values[obs_index][:, var_index]
        for nbytes in (1, 900, 1 << 30):
            np.testing.assert_array_equal(read_all(source, nbytes), want)
        assert list(source.genes) == list(np.array(names)[var_index])
        assert list(source.obs("mine")) == list(np.arange(0, 46, 2)[obs_index])
        if mode == "r":
            copy = repickle(source)
            np.testing.assert_array_equal(read_all(copy, 900), want)
            copy.close()
        source.close()
    backed.file.close()


def test_anndata__view_in_memory_is_not_copied():
    adata = make_anndata("csr")
    view = adata[[5, 2, 9], [3, 1]]
    source = open_source(view)
    np.testing.assert_array_equal(read_all(source, 1 << 20), dense(adata.X)[[5, 2, 9]][:, [3, 1]])
    assert view.is_view
    twice = open_source(view[[2, 0]])
    np.testing.assert_array_equal(read_all(twice, 1), dense(adata.X)[[9, 5]][:, [3, 1]])


def test_csc__a_copy_in_another_process_shows_no_progress():
    X = sp.csc_matrix(positions(4, 3, density=0.5, seed=0))
    matrix = CscMatrix(X.data, X.indices, X.indptr, X.shape, "X", Room(progress=True))
    assert matrix._room.progress
    assert not repickle(matrix)._room.progress


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 30), st.integers(1, 8)),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    nbytes=st.integers(1, 3_000),
    memory=st.integers(1, 3_000),
    wide=st.booleans(),
)
def test_csc__transposition_and_blocks(
    tmp_path_factory, shape, density, seed, nbytes, memory, wide
):
    values = positions(*shape, density=density, seed=seed) if shape[0] else np.zeros(shape, "f4")
    X = sp.csc_matrix(values)
    index = np.int64 if wide else np.int32
    matrix = CscMatrix(
        X.data, X.indices.astype(index), X.indptr.astype(index), X.shape, "X", Room(memory)
    )
    want = X.tocsr()
    out = []
    blocks = list(matrix.blocks(nbytes, 0, shape[0]))
    assert [b for block in blocks for b in block] == sorted(b for block in blocks for b in block)
    assert sum(stop - start for start, stop in blocks) == shape[0]
    for start, stop in blocks:
        rows = matrix.read(start, stop)
        np.testing.assert_array_equal(
            rows.indptr, want.indptr[start : stop + 1] - want.indptr[start]
        )
        out.append(rows)
    if out:
        np.testing.assert_array_equal(np.concatenate([r.indices for r in out]), want.indices)
        np.testing.assert_array_equal(np.concatenate([r.data for r in out]), want.data)
    matrix.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(9, 200), st.integers(1, 9))
def test_cut__covers_exactly_and_greedily(sizes, nbytes, step):
    sizes = np.array(sizes, np.int64)
    blocks = list(cut(lambda a, b: sizes[a:b], nbytes, 0, len(sizes), step))
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in blocks:
        assert stop - start == 1 or sizes[start:stop].sum() <= nbytes - 8
        full = stop == len(sizes) or stop - start == step  # the sizes asked for at once
        assert full or sizes[start : stop + 1].sum() > nbytes - 8


def test_dense__blocks_follow_chunks():
    array = zarr.array(positions(64, 8), chunks=(10, 8))
    row = 8 * (2 * 4 + 4) + 8
    matrix = DenseMatrix(array, "X")
    assert list(matrix.blocks(25 * row + 8, 0, 64))[:2] == [(0, 20), (20, 40)]
    assert next(matrix.blocks(7 * row + 8, 0, 64)) == (0, 7)


def test_sort_by_row__keeps_order_within_a_row():
    rows, cols = np.array([2, 0, 2, 1, 2], np.int32), np.arange(5, dtype=np.int32)
    indptr, out, values = np.zeros(5, np.int64), np.empty(5, np.int32), np.empty(5, np.float32)
    transpose.sort_by_row(rows, cols, cols.astype("f4"), indptr, out, values)
    assert indptr.tolist() == [0, 1, 2, 5, 5]
    assert out.tolist() == values.tolist() == [1, 3, 0, 2, 4]


def test_csc__scratch_is_named_and_deleted(tmp_path, caplog):
    X = sp.csc_matrix(positions(20, 5))
    source = open_source(X, genes=list("abcde"), scratch=tmp_path)
    assert not list(tmp_path.iterdir())
    with caplog.at_level(logging.INFO):
        source.read(0, 3)
    assert "stored by gene (CSC); transposing it through " in caplog.text
    assert f" of scratch in {tmp_path}" in caplog.text
    assert not list(tmp_path.iterdir())  # nameless files
    source.close()
    np.testing.assert_array_equal(stores.to_dense(source.read(0, 3)), X[:3].toarray())
    source.close()


def test_csc__damage_leaves_no_scratch(tmp_path):
    X = sp.csc_matrix(positions(20, 5))
    X.indices[7] = 20
    source = open_source(X, genes=list("abcde"), scratch=tmp_path)
    with pytest.raises(InputError, match="entry 7 has cell position 20, outside 0 to 19"):
        source.read(0, 1)
    assert not list(tmp_path.iterdir())


def test_csc__no_room(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    source = open_source(sp.csc_matrix(positions(20, 5)), genes=list("abcde"), scratch=tmp_path)
    with pytest.raises(
        InputError, match=r"by gene \(CSC\), needs .* of scratch, and .* 10 bytes free"
    ):
        source.read(0, 1)
    monkeypatch.undo()
    missing = open_source(sp.csc_matrix((2, 1)), genes=["a"], scratch=tmp_path / "no")
    with pytest.raises(InputError, match="scratch must be a folder"):
        missing.read(0, 1)


def test_csr__unsorted_is_sorted_and_repeats_are_summed(caplog):
    data, indices, indptr = np.arange(1.0, 6), np.array([2, 0, 1, 1, 0]), np.array([0, 2, 2, 5])
    matrix = CsrMatrix(data, indices, indptr, (3, 3), "X")
    rows = matrix.read(0, 3)
    assert rows.indices.tolist() == [0, 2, 0, 1]
    assert rows.data.tolist() == [2, 1, 5, 7]
    assert "1 entries repeat a gene" in caplog.text
    assert data.tolist() == [1, 2, 3, 4, 5]


DAMAGED = {
    "range": ({"indices": [0, 3, 1, 0, 2]}, "cell 0 has gene position 3, outside 0 to 2"),
    "negative": ({"indices": [0, 1, 1, -1, 2]}, "cell 2 has gene position -1"),
    "wraps": ({"indices": [0, 1, 1, 2**32, 2]}, "cell 2 has gene position 4294967296"),
    "order": ({"indptr": [0, 4, 2, 5]}, r"offsets \(indptr\) at cell 1 do not ascend"),
    "end": ({"indptr": [0, 2, 2, 6]}, "indptr runs from 0 to 6, and there are 5 values"),
    "start": ({"indptr": [1, 2, 2, 5]}, "indptr runs from 1 to 5"),
    "short": ({"indptr": [0, 2, 5]}, r"indptr has shape \(3,\) where \(4,\) is due"),
    "lengths": ({"indices": [0, 1, 1, 0]}, r"data has shape \(5,\) and indices \(4,\)"),
    "float": ({"indices": [0.0, 1, 1, 0, 2]}, "indices and indptr are float64"),
    "text": ({"data": list("abcde")}, "holds values of type <U1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_csr__damage(case):
    parts = {"data": np.arange(5.0), "indices": [0, 1, 1, 0, 2], "indptr": [0, 2, 2, 5]}
    change, match = DAMAGED[case]
    parts = {k: np.array(v) for k, v in {**parts, **change}.items()}
    with pytest.raises(InputError, match=match):
        CsrMatrix(**parts, shape=(3, 3), name="X of atlas.h5ad").read(0, 3)


N = 11


def make_obs():
    text = np.array([f"d{i % 3}" for i in range(N)], dtype=object)
    with_gaps = text.copy()
    with_gaps[[1, 5]] = None
    return pd.DataFrame(
        {
            "cat": pd.Categorical(with_gaps),
            "ordered": pd.Categorical(text, categories=["d2", "d0", "d1"], ordered=True),
            "numbered": pd.Categorical(np.arange(N) % 2 + 5),
            "text": text,
            "gappy": pd.array(with_gaps, dtype="string"),
            "int": np.arange(N, dtype=np.int16),
            "float": np.where(np.arange(N) == 2, np.nan, np.arange(N)),
            "bool": np.arange(N) % 2 == 0,
            "Int": pd.array([None if i == 4 else i for i in range(N)], dtype="Int64"),
            "Bool": pd.array([None if i == 4 else i > 5 for i in range(N)], dtype="boolean"),
            "µ name": np.arange(N),
        },
        index=[f"cell{i}" for i in range(N)],
    )


@pytest.fixture(scope="module", params=["h5ad", "zarr2", "zarr3", "memory"])
def obs_source(request, tmp_path_factory):
    obs = make_obs()
    adata = ad.AnnData(np.ones((N, 2), np.float32), obs=obs)
    if request.param == "memory":
        return open_source(adata)
    before = ad.settings.allow_write_nullable_strings
    ad.settings.allow_write_nullable_strings = True
    try:
        # anndata makes text columns with repeats categorical: write text as text
        path = write(adata, tmp_path_factory.mktemp("obs"), request.param)
        root = (
            h5py.File(path, "r+")
            if request.param == "h5ad"
            else zarr.open_group(path, mode="r+", use_consolidated=False)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ad.io.write_elem(root["obs"], "text", obs["text"].to_numpy())
            ad.io.write_elem(root["obs"], "gappy", obs["gappy"].array)
        encoding = root["obs/text"].attrs["encoding-type"]
        assert encoding == "string-array"
        assert root["obs/gappy"].attrs["encoding-type"] == "nullable-string-array"
        if request.param == "h5ad":
            root.close()
        else:
            zarr.consolidate_metadata(path)
    finally:
        ad.settings.allow_write_nullable_strings = before
    return open_source(path)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("slice_size", [4, 65_536])
@pytest.mark.parametrize("name", make_obs().columns)
def test_obs__every_encoding(obs_source, name, slice_size, monkeypatch):
    monkeypatch.setattr(columns, "TEXT_SLICE", slice_size)
    want = make_obs()[name].reset_index(drop=True)
    found = obs_source.obs(name)
    assert found.name == name
    assert isinstance(found.index, pd.RangeIndex)
    np.testing.assert_array_equal(found.isna(), want.isna())
    present = ~want.isna()
    assert found[present].tolist() == want[present].tolist()
    if name in ("cat", "ordered", "text", "gappy", "numbered"):
        assert isinstance(found.dtype, pd.CategoricalDtype)
        assert found.cat.codes.dtype == np.int8
        assert found.cat.ordered == (name == "ordered")
        names = ["d2", "d0", "d1"] if name == "ordered" else ["d0", "d1", "d2"]
        assert list(found.cat.categories) == ([5, 6] if name == "numbered" else names)
    else:
        assert found.dtype == want.dtype
    assert list(obs_source.obs_names(9, 11)) == ["cell9", "cell10"]
    assert obs_source.obs_columns() == list(make_obs().columns)


def test_obs__unknown_column(obs_source):
    with pytest.raises(InputError, match="has no column 'flaot': did you mean 'float'"):
        obs_source.obs("flaot")


def test_obs__object_columns_in_memory():
    obs = pd.DataFrame(
        {
            "flags": np.array([True, None, False], object),
            "numbers": np.array([1, None, 3], object),
            "bytes": np.array([b"a", b"b", b"a"], object),
            "nothing": np.array([None] * 3, object),
            "mixed": np.array([1, "a", None], object),
        }
    )
    adata = ad.AnnData(np.ones((3, 1), np.float32))
    adata.obs = obs.set_axis(["a", "b", "c"])
    source = open_source(adata)
    assert source.obs("flags").dtype == "boolean"
    assert source.obs("numbers").dtype == "Int64"
    assert source.obs("bytes").tolist() == ["a", "b", "a"]
    assert source.obs("nothing").isna().all()
    with pytest.raises(InputError, match="'mixed' of obs of AnnData mixes types"):
        source.obs("mixed")


def test_obs__anndata_0_7_categories(tmp_path):
    path = write(make_anndata("dense"), tmp_path, "h5ad")
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        codes, categories = obs["cell_type/codes"][:], obs["cell_type/categories"][:]
        del obs["cell_type"]
        obs["cell_type"] = codes
        obs["__categories/cell_type"] = categories
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
        for key in ("encoding-type", "encoding-version"):
            del obs["n_genes"].attrs[key]
    source = open_source(path)
    assert source.obs("cell_type").tolist()[:4] == ["T0", "T1", "T2", "T0"]
    assert source.obs("n_genes").tolist() == list(range(23))
    source.close()


def test_obs__anndata_0_6_compound(tmp_path):
    path = tmp_path / "old.h5ad"
    fields = [("index", h5py.string_dtype()), ("type", "i1"), ("note", "S3"), ("n", "f4")]
    obs = np.zeros(3, fields)
    obs["index"], obs["type"] = ["c0", "c1", "c2"], [1, -1, 0]
    obs["note"], obs["n"] = [b"x", b"yy", b"x"], [1, 2, 3]
    var = np.zeros(2, [("index", "S2")])
    var["index"] = [b"g0", b"g1"]
    with h5py.File(path, "w") as file:
        file["X"], file["obs"], file["var"] = positions(3, 2), obs, var
        file["uns/type_categories"] = ["B", "T"]
    source = open_source(path)
    assert source.obs_columns() == ["type", "note", "n"]
    assert list(source.genes) == ["g0", "g1"]
    assert list(source.obs_names(1, 3)) == ["c1", "c2"]
    assert source.obs("type").fillna("B").tolist() == ["T", "B", "B"]
    assert source.obs("type").isna().tolist() == [False, True, False]
    assert source.obs("note").tolist() == ["x", "yy", "x"]
    assert source.obs("n").tolist() == [1, 2, 3]
    source.close()


@pytest.mark.filterwarnings("ignore:Suffix used:UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "a-1", "b", "a-1-1", "c"]), max_size=9))
def test_genes__unique_as_anndata(names):
    want = list(make_index_unique(pd.Index(names, dtype=object)))
    assert list(unique_names(np.array(names, dtype=object), "atlas")) == want


def test_genes__key_repeats_and_gaps(tmp_path, caplog):
    adata = make_anndata()
    adata.var["symbol"] = pd.Categorical(["A", "B", "A", None, *"CDEFGHI"])
    source = open_source(write(adata, tmp_path, "h5ad"), gene_key="symbol")
    assert list(source.genes) == ["A", "B", "A-1", "g3", *"CDEFGHI"]
    assert "names no gene in 1 of 11" in caplog.text
    assert "1 gene names repeat an earlier one (first 'A')" in caplog.text
    assert list(open_source(adata, gene_key="symbol").genes) == list(source.genes)
    with pytest.raises(InputError, match="has no column 'symbl': did you mean 'symbol'"):
        open_source(source.name, gene_key="symbl")
    source.close()


def make_bad(tmp_path, case):
    """Something that must not open, or whose data must not be read."""
    path = tmp_path / "bad.h5ad"
    match case:
        case "text":
            path.write_text("cell,gene\n")
        case "empty":
            path.touch()
        case "hdf5":
            with h5py.File(path, "w") as file:
                file["table"] = [1]
        case "folder":
            path.mkdir()
        case "zarr_array" | "zarr2_array":
            path = tmp_path / "bad.zarr"
            zarr.save_array(path, np.ones(3), zarr_format=2 if case == "zarr2_array" else 3)
        case "zarr_group":
            path = tmp_path / "bad.zarr"
            zarr.open_group(path, mode="w")
        case "zarr_json":
            path = write(make_anndata(), tmp_path, "zarr3")
            (path / "zarr.json").write_text("{")
        case "zip":
            path = tmp_path / "bad.zarr.zip"
            path.write_bytes(b"PK no zip")
        case "cut":
            path = write(make_anndata(), tmp_path, "h5ad")
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "no_x":
            adata = make_anndata()
            adata.X = None
            path = write(adata, tmp_path, "h5ad")
        case "obs_length" | "var_length":
            path = write(make_anndata(), tmp_path, "h5ad")
            with h5py.File(path, "r+") as file:
                group = file[case[:3]]
                short = group["_index"][:-1]
                del group["_index"]
                group["_index"] = short
        case "group_x":
            path = write(make_anndata(), tmp_path, "h5ad")
            with h5py.File(path, "r+") as file:
                file["X"].attrs["encoding-type"] = "dataframe"
        case "no_data":
            path = write(make_anndata(), tmp_path, "h5ad")
            with h5py.File(path, "r+") as file:
                del file["X/indices"]
        case "obs_array":
            path = write(make_anndata(), tmp_path, "h5ad")
            with h5py.File(path, "r+") as file:
                del file["obs"]
                file["obs"] = [1, 2]
    return path


BAD = {
    "text": r"is not an .h5ad \(HDF5\) file; write one with AnnData.write_h5ad",
    "empty": "is not an .h5ad",
    "hdf5": "is not an AnnData: it has no obs",
    "folder": "is not an AnnData: it is a folder without zarr metadata",
    "zarr_array": "is not an AnnData: it is a zarr array",
    "zarr2_array": "is not an AnnData: it is a zarr array",
    "zarr_group": "is not an AnnData: it has no obs",
    "zarr_json": "cannot be opened as zarr",
    "zip": "cannot be opened as zarr",
    "cut": "cannot be opened: it is damaged, cut short or still being written",
    "no_x": "has no X: choose layer='raw' or layer='counts'",
    "obs_length": "obs has 22 cells and the matrix 23",
    "var_length": "var has 10 genes and the matrix 11",
    "group_x": "encoded as 'dataframe', and must be",
    "no_data": "is damaged: it cannot be read",
    "obs_array": "obs of .* is an array where a table is due.*re-save it",
}


@pytest.mark.parametrize("case", BAD)
def test_open__bad_store(tmp_path, case):
    path = make_bad(tmp_path, case)
    with pytest.raises(InputError, match=BAD[case]) as caught:
        open_source(path)
    assert path.name in str(caught.value)


def test_open__missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad does not exist"):
        open_source(tmp_path / "none.h5ad")


def test_open__missing_layer(atlases):
    adata, path = atlases["csr", "h5ad"]
    for X in (path, adata):
        with pytest.raises(InputError, match="has no layer 'count': did you mean 'counts'"):
            open_source(X, layer="count")
    bare = ad.AnnData(np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match=r"AnnData has no raw/X: choose layer=None"):
        open_source(bare, layer="raw")
    with pytest.raises(InputError, match="has no layer 'counts': there are none"):
        open_source(bare, layer="counts")


M = np.ones((2, 2))
UNSUITABLE = {
    "list": ([[1, 2]], {}, r"paths or AnnData objects, and X\[0\] is a list: lists are not nested"),
    "coo": (sp.coo_matrix(M), {"genes": "ab"}, "coo_matrix, and must be"),
    "masked": (np.ma.masked_array(M), {"genes": list("ab")}, "MaskedArray, and must be"),
    "one_dimension": (np.ones(3), {"genes": ["a"]}, r"shape \(3,\), and must be cells x genes"),
    "no_genes": (M, {}, "ndarray has no gene names: pass genes="),
    "string_genes": (M, {"genes": "ab"}, "is one string"),
    "few_genes": (M, {"genes": ["a"]}, "genes has 1 names, and ndarray has 2 columns"),
    "objects": (M.astype(object), {"genes": list("ab")}, "must be real numbers"),
    "complex": (M * 1j, {"genes": list("ab")}, "must be real numbers"),
    "frame_text": (pd.DataFrame({"a": [1], "type": ["B"]}), {}, "column 'type' of DataFrame has"),
    "layer": (M, {"genes": list("ab"), "layer": "counts"}, "layer='counts' is for an AnnData"),
    "gene_key": (M, {"genes": list("ab"), "gene_key": "s"}, "gene_key='s' is for an AnnData"),
    "genes": ("x.h5ad", {"genes": ["a"]}, "genes= is for a matrix without gene names"),
    "unknown_chunks": (
        da.from_array(M)[da.from_array(M)[:, 0] > 0],
        {"genes": list("ab")},
        "compute_chunk_sizes",
    ),
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_open__unsuitable(case):
    X, options, match = UNSUITABLE[case]
    with pytest.raises(InputError, match=match):
        open_source(X, **options)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_store__damaged_bytes_never_escape_as_another_error(tmp_path, kind, form):
    """Overwrite stretches of stored chunks: reads must work or raise InputError."""
    path = write(make_anndata(kind, 60, 30), tmp_path, form)
    rng = np.random.default_rng(2)
    files = [path] if form == "h5ad" else [p for p in (path / "X").rglob("*") if p.is_file()]
    files = [p for p in files if p.name != "zarr.json" and not p.name.startswith(".z")]
    refused = 0
    for _ in range(25 if form == "h5ad" else 5):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        bad = bytearray(good)
        # A codec's header may claim gigabytes, which take seconds to allocate: spare it.
        at = int(rng.integers(min(24, len(bad) // 2), len(bad)))
        bad[at : at + 40] = rng.bytes(len(bad[at : at + 40]))
        file.write_bytes(bad if rng.random() < 0.7 else good[:at])
        try:
            source = open_source(path)
            try:
                list(source.blocks(5_000))
                source.read(0, 60)
                for name in source.obs_columns():
                    source.obs(name)
                source.obs_names(0, 60)
            finally:
                source.close()
        except InputError:
            refused += 1
        file.write_bytes(good)
    assert refused > 0


def test_store__damaged_chunk_is_named(tmp_path):
    path = write(make_anndata("csr", 400, 30), tmp_path, "h5ad")
    with h5py.File(path) as file:
        at = file["X/data"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff" * 40)
    source = open_source(path)
    with pytest.raises(InputError, match=r"X of .*atlas\.h5ad is damaged: it cannot be read"):
        source.read(0, 10)
    source.close()


@pytest.mark.skipif(not (DATA / "pbmc3k.h5ad").exists(), reason="shared/data is not here")
def test_store__real_data():
    path = DATA / "pbmc3k.h5ad"
    adata = ad.read_h5ad(path)
    source = open_source(path)
    assert list(source.genes) == list(adata.var_names)
    assert list(source.obs_names(0, source.n_obs)) == list(adata.obs_names)
    for column in source.obs_columns():
        assert source.obs(column).tolist() == adata.obs[column].tolist()
    blocks = list(source.blocks(2 << 20))
    assert len(blocks) > 5
    at = 0
    for start, stop in blocks:
        rows, want = source.read(start, stop), adata.X[start:stop]
        assert start == at
        assert rows.nbytes <= 2 << 20
        np.testing.assert_array_equal(rows.data, want.data)
        np.testing.assert_array_equal(rows.indices, want.indices)
        np.testing.assert_array_equal(rows.indptr, want.indptr)
        at = stop
    assert at == adata.n_obs
    by_gene = open_source(adata.X.tocsc(), genes=adata.var_names, memory=4 << 20)
    rows = by_gene.read(0, by_gene.n_obs)
    np.testing.assert_array_equal(rows.data, adata.X.data)
    np.testing.assert_array_equal(rows.indices, adata.X.indices)
    by_gene.close()
    source.close()


def test_import__loads_neither_anndata_nor_dask():
    code = (
        "import sys, streamtrain.sources as s, numpy as n; s.open_source(n.ones((2, 1)), genes='a'"
        ".split()).read(0, 2); assert not {'anndata', 'dask', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  # our own code


def test_obs_names__any_stretch(tmp_path, monkeypatch):
    """Names are read in aligned stretches, of which the last is kept."""
    monkeypatch.setattr("streamtrain.sources.columns.TEXT_SLICE", 5)
    path = write(make_anndata(), tmp_path, "h5ad")
    source = open_source(path)
    names = [f"cell{i}" for i in range(23)]
    for start, stop in ((0, 23), (3, 4), (4, 11), (5, 10), (22, 23), (7, 7), (0, 1)):
        assert source.obs_names(start, stop).tolist() == names[start:stop]


def test_csr__chunks_larger_than_a_block_are_warned_of(tmp_path, caplog):
    path = write(make_anndata(n_obs=400, n_vars=50), tmp_path, "h5ad")
    source = open_source(path)
    list(source.blocks(10**6))
    assert caplog.messages == []
    list(source.blocks(200))
    assert "more than the 200 bytes that are read at a time" in caplog.text
