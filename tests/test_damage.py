"""Nodes of another kind, shape or length than an AnnData has: refused, and read by nobody."""

import json
import shutil
import zlib
from contextlib import closing
from itertools import product

import h5py
import numcodecs
import numpy as np
import pytest
import zarr

from streamtrain import InputError, open_source
from streamtrain.decode import codecs
from tests import stores


@pytest.fixture
def atlas(tmp_path):
    """Copies of one .h5ad file, each changed by h5py."""
    adata = stores.make_anndata("csr")
    adata.obs["maybe"] = np.arange(adata.n_obs)
    adata.obs["maybe"] = adata.obs["maybe"].astype("Int64")
    adata.obs["flag"] = adata.obs["flag"].astype("boolean")
    adata.obs["text"] = [f"t{i % 20}" for i in range(adata.n_obs)]
    sound = tmp_path / "sound.h5ad"
    adata.write_h5ad(sound, convert_strings_to_categoricals=False)

    def make(change):
        path = tmp_path / "atlas.h5ad"
        shutil.copy(sound, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def refusal(path, column=None, match="is damaged"):
    """Read everything, or one column; the words of the refusal."""
    with pytest.raises(InputError, match=match) as caught:
        read(path, column)
    return str(caught.value)


def read(path, column):
    with closing(open_source(path)) as source:
        if column is not None:
            return source.obs(column)
        return source.read(0, source.n_obs), source.obs_names(0, source.n_obs)


KINDS = {
    "group": lambda file, name: file.create_group(name),
    "type": lambda file, name: file.__setitem__(name, np.dtype("f8")),
    "one value": lambda file, name: file.__setitem__(name, 3),
    "nothing": lambda file, name: file.__setitem__(name, h5py.Empty("f4")),
    "two dimensions": lambda file, name: file.__setitem__(name, np.zeros((23, 1), "i8")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("X/data", None), ("X/indptr", None), ("obs/_index", None), ("var/_index", None),
        ("obs/n_genes", "n_genes"), ("obs/cell_type/codes", "cell_type"), ("obs/maybe/mask",
        "maybe"), ("obs/maybe/values", "maybe"), ("obs/cell_type/categories", "cell_type"),
    ],
)  # fmt: skip
def test_node__of_another_kind(atlas, kind, name, column):
    def change(file):
        del file[name]
        KINDS[kind](file, name)

    if kind == "group" and name in ("obs/n_genes", "obs/cell_type/categories"):
        assert "is encoded as None" in refusal(atlas(change), column, "cannot read")
    else:
        refusal(atlas(change), column)


@pytest.mark.parametrize("kind", ["type", "nothing", "one value"])
def test_matrix__of_another_kind(atlas, kind):
    def change(file):
        del file["X"]
        KINDS[kind](file, "X")

    refusal(atlas(change), match="must be cells x genes" if kind == "one value" else "is damaged")


@pytest.mark.parametrize(
    "shape", [23, True, np.nan, [23.5, 11.0], [23], [23, 11, 1], [-23, 11], "23", [b"23", b"11"]]
)
def test_matrix__shape_that_is_none(atlas, shape):
    words = refusal(atlas(lambda file: file["X"].attrs.__setitem__("shape", shape)))
    assert "where two whole numbers are due" in words


def claim(name, n=2**36):
    def change(file):
        values, attrs = file[name][:], dict(file[name].attrs)
        del file[name]
        kind = h5py.string_dtype() if values.dtype.kind == "O" else values.dtype
        made = file.create_dataset(name, data=values, dtype=kind, chunks=True, maxshape=(None,))
        made.attrs.update(attrs)
        made.resize(n, axis=0)

    return change


# Before anything is read of them: 2**36 names would take hours, as many values 500 GB.
def test_lengths__are_checked_before_reading(atlas):
    words = refusal(atlas(claim("var/_index")), match="they must be equal")
    assert "var has 68719476736 genes and the matrix 11" in words
    for name in ("n_genes", "text", "cell_type"):
        node = "obs/cell_type/codes" if name == "cell_type" else f"obs/{name}"
        words = refusal(atlas(claim(node)), name)
        assert "it has 68719476736 values for 23 names" in words
    words = refusal(atlas(claim("obs/maybe/mask")), "maybe")
    assert "mask has shape (68719476736,) and values (23,)" in words


# As HDF5 writes them, with filters and without.
@pytest.mark.parametrize(
    ("name", "filters"),
    [
        *product(["obs/text", "obs/_index"], [{}, {"shuffle": True}, {"compression": "gzip"}]),
        *product(["obs/n_genes", "obs/flag/mask"], [{}, {"shuffle": True}, {"fletcher32": True},
                 {"compression": "gzip", "fletcher32": True, "shuffle": True}]),
    ],
)  # fmt: skip
def test_chunk__sound(atlas, name, filters):
    def change(file):
        values, attrs = file[name][:], dict(file[name].attrs)
        kind = file[name].dtype
        del file[name]
        made = file.create_dataset(name, data=values, dtype=kind, chunks=(7,), **filters)
        made.attrs.update(attrs)

    source = open_source(atlas(change))
    assert source.obs_names(0, 2).tolist() == ["cell0", "cell1"]
    for column in source.obs_columns():
        assert len(source.obs(column)) == 23
    source.close()


@pytest.mark.parametrize(
    ("name", "column"), [("X", None), ("obs/n_genes", "n_genes"), ("obs/text", "text")]
)
def test_chunk__plain_and_short(atlas, name, column):
    """HDF5 hands out what lies in memory behind it."""

    def change(file):
        values, attrs = file[name][()] if name != "X" else np.ones((23, 11), "f4"), {}
        if name != "X":
            attrs = dict(file[name].attrs)
        del file[name]
        kind = h5py.string_dtype() if values.dtype.kind == "O" else values.dtype
        made = file.create_dataset(
            name, data=values, dtype=kind, chunks=values.shape, compression="gzip"
        )
        made.attrs.update(attrs)
        raw = zlib.compress(b"\1" * 100)  # as if it had passed through gzip: the mask says no
        made.id.write_direct_chunk((0,) * values.ndim, raw, 1)

    refusal(atlas(change), column)


def test_nullable__of_texts(atlas):
    def change(key, kind):
        def apply(file):
            del file[f"obs/flag/{key}"]
            file[f"obs/flag/{key}"] = np.array([b"False"] * 23).astype(kind)

        return apply

    for key in ("values", "mask"):
        refusal(atlas(change(key, "S5")), "flag")


def test_legacy__categories_that_are_gone(atlas):
    """Codes must not stand in for labels."""

    def compound(file):
        del file["obs"]
        obs = np.zeros(23, [("index", "S8"), ("kind", "i1")])
        obs["index"] = [f"c{i}".encode() for i in range(23)]
        file["obs"] = obs
        file["uns/kind_categories"] = h5py.SoftLink("/nowhere")

    refusal(atlas(compound), "kind")

    def references(to):
        def change(file):
            obs = file["obs"]
            del obs["cell_type"]
            obs["cell_type"] = np.arange(23) % 2
            obs["__categories/cell_type"] = np.array([b"wrong", b"also"])
            obs["__categories/other"] = np.array([b"right", b"too"])
            obs["cell_type"].attrs["categories"] = obs[to].ref if to else h5py.Reference()

        return change

    source = open_source(atlas(references("__categories/other")))  # as anndata follows it
    assert source.obs("cell_type").cat.categories.tolist() == ["right", "too"]
    source.close()
    refusal(atlas(references(None)), "cell_type")


def test_columns__no_list(atlas):
    for told in (3, np.nan):
        path = atlas(lambda file, told=told: file["obs"].attrs.__setitem__("column-order", told))
        source = open_source(path)
        with pytest.raises(InputError, match="is damaged"):
            source.obs_columns()
        source.close()


def test_open__a_group_that_cannot_be_looked_into(atlas, monkeypatch):
    def fail(*args):
        raise RuntimeError("bad heap free list")

    path = atlas(dict)
    monkeypatch.setattr(h5py.Group, "__contains__", fail)
    assert "bad heap free list" in refusal(path)


@pytest.mark.parametrize("key", ["shape", "chunk_shape"])
@pytest.mark.parametrize("name", ["obs/_index", "obs/n_genes", "X/data", "var/_index"])
def test_zarr__numbers_beyond_64_bits(tmp_path, name, key):
    adata = stores.make_anndata("csr")
    path = stores.write(adata, tmp_path, "zarr3")
    whole = json.loads((path / "zarr.json").read_text())
    whole.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(whole))
    file = path / name / "zarr.json"
    told = json.loads(file.read_text())
    if key == "shape":
        told["shape"] = [10**30]
    else:
        told["chunk_grid"]["configuration"]["chunk_shape"] = [10**30]
    file.write_text(json.dumps(told))
    refusal(path, "n_genes" if name == "obs/n_genes" else None)


def test_zarr__group_of_no_format(tmp_path):
    path = stores.write(stores.make_anndata("csr"), tmp_path, "zarr2")
    (path / ".zmetadata").unlink()
    (path / "var" / ".zgroup").write_text('{"zarr_format": "<i4"}')
    refusal(path)


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
@pytest.mark.parametrize("of", ["genes", "labels"])
def test_texts__a_chunk_that_claims_more_than_it_holds(tmp_path, form, of):
    """numcodecs makes room for all of them first: 1 GB for these."""
    adata = stores.make_anndata("csr")
    path = stores.write(adata, tmp_path, form)
    root = zarr.open_group(path, mode="r", use_consolidated=False)
    column = next(name for name, _ in root["obs"].groups())
    names = {"genes": f"var/{root['var'].attrs['_index']}", "labels": f"obs/{column}/categories"}
    array = root[names[of]]
    chunk = next(p for p in sorted((path / array.path).rglob("*")) if p.name == "0" and p.is_file())
    raw = chunk.read_bytes()
    for step in codecs.before_texts(array.metadata):
        raw = step(raw)
    raw = (2**27).to_bytes(4, "little") + bytes(raw[4:])
    if form == "zarr3":
        raw = numcodecs.Zstd().encode(raw)
    elif array.metadata.compressor is not None:
        raw = array.metadata.compressor.encode(raw)
    chunk.write_bytes(raw)
    told = "it claims more texts than it has bytes for"
    with pytest.raises(InputError, match=told), closing(open_source(path)) as source:
        source.obs(column)
