"""What is read is what was written: checksums, structure, chunks that went, files that changed."""

import os
import pickle
import shutil
import subprocess
import time
import warnings
import zipfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain import InputError, Loader, open_source
from streamtrain.atomic import disk_full, replacing
from streamtrain.cli import main
from streamtrain.decode import codecs
from streamtrain.scratch import ScratchArray
from streamtrain.sources import matrix as matrix_module
from tests import atlas, stores
from tests.servers import serving

N_OBS, N_VARS = 60, 20
FOLDERS = ("zarr2", "zarr3", "sharded")
ARRAYS = ("data", "indices", "indptr")


def counts(n_obs=N_OBS, n_vars=N_VARS, kind="csr"):
    """Every cell has values, and none of its stored entries is 0."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((n_obs, n_vars)) < 0.5, rng.integers(1, 9, (n_obs, n_vars)), 0)
    dense[:, -1] = 1
    return stores.of_kind(dense.astype(np.float32), kind)


def write(X, folder, form="zarr3", chunk=None):
    """An AnnData of X, its one-dimensional arrays in chunks of `chunk` entries, or as they come."""
    obs = pd.DataFrame({"type": [f"T{i % 2}" for i in range(X.shape[0])]})
    obs.index = [f"cell{i}" for i in range(X.shape[0])]
    folder.mkdir(exist_ok=True)
    path = stores.write(ad.AnnData(X, obs=obs), folder, "zarr3" if form == "sharded" else form)
    if chunk is not None and form != "h5ad":
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        for name in ARRAYS:
            shards = {"shards": (2 * chunk,)} if form == "sharded" else {}
            values = root[f"X/{name}"][:]
            root.create_array(
                f"X/{name}", data=values, chunks=(chunk,), overwrite=True, **shards
            )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(path)
    return path


def chunk_files(path, array=""):
    """Files of the chunks of an array of X."""
    found = [p for p in (path / "X" / array).rglob("*") if p.is_file()]
    return sorted(p for p in found if not p.name.startswith((".z", "zarr.json")))


def read_all(path, **options):
    with closing(open_source(path, **options)) as source:
        return stores.read_all(source, 3000)


def dense(X):
    return X.toarray() if sp.issparse(X) else X


# Checksums -----------------------------------------------------------------------------------

VALUES = np.arange(1000, dtype="<i4")
CRC32C = [{"name": "bytes"}, {"name": "crc32c"}]
# Name -> bytes as encoded, decoder, bytes from the end at which the checksum ends.
ZLIB, GZIP = numcodecs.Zlib(1).encode(VALUES), numcodecs.GZip(1).encode(VALUES)
ZSTD = numcodecs.Zstd(1, checksum=True).encode(VALUES)
FLETCHER32 = numcodecs.Fletcher32().encode(VALUES.view(np.uint8))
TRAILERS = {
    "zlib's adler32": (ZLIB, codecs.for_zarr2({"id": "zlib"}, None, "<i4"), 0),
    "HDF5's zlib": (ZLIB, codecs.for_hdf5([1], "<i4"), 0),
    "gzip's CRC": (GZIP, codecs.for_zarr2({"id": "gzip"}, None, "<i4"), 4),
    "zstd's own": (ZSTD, codecs.for_zarr2({"id": "zstd"}, None, "<i4"), 0),
    "fletcher32": (FLETCHER32, codecs.for_hdf5([3], "<i4"), 0),
    "crc32c": (numcodecs.CRC32C().encode(VALUES), codecs.for_zarr3(CRC32C, "<i4"), 0),
}


@pytest.mark.parametrize("name", TRAILERS)
def test_checksum__is_verified(name):
    """The data decode as before: the checksum alone is another."""
    raw, decode, end = TRAILERS[name]
    raw = np.frombuffer(bytes(raw), np.uint8)
    np.testing.assert_array_equal(decode(raw, 1000, np.empty(4000, np.uint8)), VALUES)
    bad = raw.copy()
    bad[len(bad) - end - 2] ^= 1
    with pytest.raises(Exception, match=r"(?i)checksum|decompress|corrupt|invalid|DATA"):
        decode(bad, 1000, np.empty(4000, np.uint8))


def spoil(path, array="data"):
    """Change the middle byte of the largest chunk."""
    file = max(chunk_files(path, array), key=lambda p: p.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("sums", ["crc32c", "unknown codec"])
def test_checksum__is_verified_where_zarr_reads(tmp_path, sums, zipped):
    path = write(counts(), tmp_path)
    values = zarr.open_group(path)["X/data"][:]
    options = {"compressors": zarr.codecs.Crc32cCodec()}
    if sums == "unknown codec":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of codecs that zarr's specification lacks
            options = {"compressors": [zarr.codecs.numcodecs.LZ4(), zarr.codecs.Crc32cCodec()]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        root.create_array("X/data", data=values, overwrite=True, **options)
        zarr.consolidate_metadata(path)
        ours = pack(path) if zipped else path
        np.testing.assert_array_equal(read_all(ours), counts().toarray())
        spoil(path)
        ours = pack(path) if zipped else path
        with pytest.raises(InputError, match="damaged"):
            read_all(ours)


def pack(path, leave_out=None):
    """The folder as a .zip."""
    packed = path.with_suffix(".zarr.zip")
    with zipfile.ZipFile(packed, "w") as file:
        for part in sorted(path.rglob("*")):
            if part.is_file() and part != leave_out:
                file.write(part, part.relative_to(path))
    return packed


# Structure -----------------------------------------------------------------------------------


def change(array, at, value):
    def apply(group):
        values = group[array][:]
        values[at] = value
        group[array][:] = values

    return apply


def resize(array, n):
    def apply(group):
        values = group[array][:n]
        del group[array]
        group[array] = values

    return apply


def merge_cells(group):
    """The first cells become empty, and their entries those of cell 9, as they are."""
    values = group["indptr"][:]
    values[1:10] = 0
    group["indptr"][:] = values


FAULTS = {
    "does not begin at 0": (change("indptr", 0, 1), "indptr runs from 1 to"),
    "ends before": (change("indptr", -1, 500), r"indptr runs from 0 to 500, and there are"),
    "ends behind": (change("indptr", -1, 5000), "indptr runs from 0 to 5000"),
    "descends": (change("indptr", 5, 0), r"offsets \(indptr\) at (cell|gene) 4 do not ascend"),
    "negative": (change("indptr", 5, -7), "do not ascend"),
    "beyond": (change("indptr", 5, 10**6), "do not ascend"),
    "values are fewer": (resize("data", 100), r"data has shape \(100,\) and indices"),
    "positions are fewer": (resize("indices", 100), r"and indices \(100,\)"),
    "offsets are fewer": (resize("indptr", 10), r"indptr has shape \(10,\) where"),
    "position beyond": (change("indices", 7, 60), r"position 60, outside 0 to (19|59)"),
    "position below": (change("indices", 7, -1), r"position -1, outside 0 to"),
}


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("fault", FAULTS)
def test_structure__contradictions(tmp_path, kind, fault):
    path = write(counts(kind=kind), tmp_path, "h5ad")
    apply, match = FAULTS[fault]
    with h5py.File(path, "r+") as file:
        apply(file["X"])
    with pytest.raises(InputError, match=match) as told:
        read_all(path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("way", ["read", "take", "memory"])
def test_structure__more_entries_than_genes(tmp_path, way):
    path = write(counts(), tmp_path, "h5ad")
    with h5py.File(path, "r+") as file:
        merge_cells(file["X"])
        parts = tuple(file["X"][name][:] for name in ARRAYS)
    X = ad.AnnData(sp.csr_matrix(parts, shape=(N_OBS, N_VARS))) if way == "memory" else path
    with (
        closing(open_source(X)) as source,
        pytest.raises(InputError, match=r"cell 9 has \d+ stored entries, and there are 20 genes"),
    ):
        source.take(np.array([3])) if way == "take" else source.read(0, N_OBS)


def test_structure__obs_of_another_length(tmp_path):
    path = write(counts(), tmp_path, "h5ad")
    with h5py.File(path, "r+") as file:
        resize("_index", 10)(file["obs"])
    with pytest.raises(InputError, match="obs has 10 cells and the matrix 60"):
        open_source(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "memory"])
def test_values__not_finite(tmp_path, form, value):
    X = counts(kind="csr" if form == "memory" else form)
    if sp.issparse(X):
        at = 7
        X.data[at] = value
        cell, gene = np.argwhere(~np.isfinite(X.toarray()))[0]
    else:
        cell, gene = 3, 19
        X[cell, gene] = value
    where = ad.AnnData(X) if form == "memory" else write(X, tmp_path, "h5ad")
    for options in ({}, {"order": "blocks", "block_size": 8, "window": 16, "batch_size": 8}):
        with (
            Loader(where, progress=False, **({"batch_size": 30} | options)) as loader,
            pytest.raises(InputError, match=rf"of gene .* in cell {cell} .* not finite") as told,
        ):
            list(loader)
        assert f"gene '{gene}'" in str(told.value)


def test_values__not_finite_in_a_gene_that_is_left_out(tmp_path):
    """Its cell's sum would be wrong."""
    first = atlas.make(60)
    second = atlas.make(60)
    values = second.X.tolil()
    values[7, 0] = np.nan
    second.X = values.tocsr()
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    first[:, 1:].copy().write_h5ad(paths[0])
    second.write_h5ad(paths[1])
    with pytest.raises(InputError, match=r"not all files have is not, in cell 7 of .*b\.h5ad"):
        streamtrain.train(paths, "cell_type", check_expression=False, progress=False)


# Chunks that are missing ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr", "csc"])
@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("form", FOLDERS)
def test_missing__any_chunk_of_a_sparse_matrix(tmp_path, form, array, kind):
    path = write(counts(kind=kind), tmp_path, form, chunk=7)
    np.testing.assert_array_equal(read_all(path), counts().toarray())
    files = chunk_files(path, array)
    assert len(files) > 1
    for file in files[:: max(1, len(files) // 4)]:
        raw = file.read_bytes()
        file.unlink()
        with pytest.raises(InputError, match=rf"X/{array} the chunk of entries .* is missing"):
            read_all(path)
        packed = pack(path)
        with pytest.raises(InputError, match=rf"X/{array} the chunk in the file .* is missing"):
            read_all(packed)
        file.write_bytes(raw)
    np.testing.assert_array_equal(read_all(path), counts().toarray())


def test_missing__before_any_other_chunk(tmp_path):
    """Cells with few entries, which their first offsets as zeros do not contradict."""
    X = sp.csr_matrix(np.eye(40, dtype=np.float32))
    path = write(X, tmp_path, "zarr3", chunk=10)
    chunk_files(path, "indptr")[0].unlink()
    with pytest.raises(InputError, match="X/indptr the chunk of entries 0 on is missing"):
        read_all(path)


def test_missing__a_chunk_that_hdf5_never_wrote(tmp_path):
    path = write(counts(), tmp_path, "h5ad")
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        new = file.create_dataset("X/data", values.shape, "f4", chunks=(100,))
        new[:300] = values[:300]
    with pytest.raises(InputError, match="X/data the chunk of entries 300 on is missing"):
        read_all(path)


LEGITIMATE = {
    "nothing stored": sp.csr_matrix((30, 5), dtype=np.float32),
    "nothing stored by gene": sp.csc_matrix((30, 5), dtype=np.float32),
    "one gene": sp.csr_matrix(np.ones((30, 1), np.float32)),
    "one gene, by gene": sp.csc_matrix(np.ones((30, 1), np.float32)),
    "one cell": sp.csr_matrix(np.arange(9, dtype=np.float32)[None]),
    "one cell, by gene": sp.csc_matrix(np.ones((1, 9), np.float32)),
    "few empty cells first": sp.csr_matrix(np.tri(30, 5, -9, dtype=np.float32)),
    "dense zeros": np.zeros((30, 5), np.float32),
    "large": sp.random(3000, 400, 0.1, "csr", np.float32, random_state=0),
}


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "h5ad"])
@pytest.mark.parametrize("name", LEGITIMATE)
def test_missing__what_anndata_leaves_out(tmp_path, name, form):
    path = write(LEGITIMATE[name], tmp_path, form)
    with closing(open_source(path)) as source:
        found = stores.read_all(source, 1 << 20)
    np.testing.assert_array_equal(found, dense(LEGITIMATE[name]))
    if form != "h5ad":
        np.testing.assert_array_equal(read_all(pack(path)), dense(LEGITIMATE[name]))


def test_missing__chunks_of_zeros_that_a_shard_tells(tmp_path):
    X = counts()
    X.data[:70] = 0
    path = write(X, tmp_path, "sharded", chunk=10)
    with pytest.raises(InputError, match="X/data the chunk of entries 0 on is missing"):
        read_all(path)
    X.data[[0, 20, 40, 60]] = 1  # one chunk of each shard is told to be left out
    path = write(X, tmp_path / "b", "sharded", chunk=10)
    np.testing.assert_array_equal(read_all(path), X.toarray())


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_missing__random_matrices(tmp_path_factory, data):
    """None is read as another: it is as written, or refused."""
    folder = tmp_path_factory.mktemp("any")
    n_obs, n_vars = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 6))
    seed, chunk = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 9))
    X = sp.random(n_obs, n_vars, 0.4, "csr", np.float32, random_state=seed)
    X.data += 1
    path = write(X, folder, data.draw(st.sampled_from(FOLDERS)), chunk)
    files = [file for array in ARRAYS for file in chunk_files(path, array)]
    if files and data.draw(st.booleans()):
        data.draw(st.sampled_from(files)).unlink()
        with pytest.raises(InputError, match=r"is missing|indptr runs from"):
            read_all(path)
        return
    try:
        found = read_all(path)
    except InputError as error:  # gene 0 alone, or empty first cells, as long as a chunk
        assert "is missing" in str(error)  # noqa: PT017
        assert "X/data" not in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(found, X.toarray())


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_missing__a_dense_chunk_that_went(tmp_path, form):
    X = counts(kind="dense")
    X[20:40] = 0  # a chunk that is left out
    path = write(X, tmp_path, form)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    attributes = dict(root["X"].attrs)
    root.create_array("X", data=X, chunks=(20, 20), overwrite=True, attributes=attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    files = chunk_files(path)
    assert len(files) == 2
    later()
    with closing(open_source(path)) as source:
        np.testing.assert_array_equal(stores.read_all(source, 3000), X)
        files[1].unlink()
        with pytest.raises(InputError, match=r"is missing, and .* has changed since it was opened"):
            source.read(0, N_OBS)


# Files that change ---------------------------------------------------------------------------


def later():
    """Let the clock of the file system, which ticks every few milliseconds, move on."""
    time.sleep(0.02)


def rewrite(path):
    path.write_bytes(path.read_bytes())


def replace(path):
    """By another of the same bytes."""
    new = path.with_name("new")
    if path.is_dir():
        shutil.copytree(path, new, copy_function=shutil.copyfile)
        path.rename(path.with_name("old"))
    else:
        shutil.copyfile(path, new)
    new.replace(path)


def drop(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


CHANGES = {
    "h5ad, in place": ("h5ad", lambda p: os.truncate(p, p.stat().st_size + 1)),
    "h5ad, touched": ("h5ad", lambda p: os.utime(p)),
    "h5ad, replaced": ("h5ad", replace),
    "h5ad, gone": ("h5ad", drop),
    "chunk": ("zarr3", lambda p: rewrite(chunk_files(p, "data")[0])),
    "chunk of zarr 2": ("zarr2", lambda p: rewrite(chunk_files(p, "indices")[-1])),
    "shard": ("sharded", lambda p: rewrite(chunk_files(p, "data")[0])),
    "metadata": ("zarr3", lambda p: rewrite(p / "X/data/zarr.json")),
    "folder, replaced": ("zarr3", replace),
    "folder, gone": ("zarr2", drop),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("pause", ["none", "closed", "pickled"])
def test_changed__every_pass_notices(tmp_path, name, pause):
    form, apply = CHANGES[name]
    path = write(counts(), tmp_path / "a", form, chunk=50)
    later()
    with closing(open_source(path)) as source:
        before = stores.read_all(source, 3000)
        np.testing.assert_array_equal(before, counts().toarray())
        for array in ("_data", "_indices"):  # what is left of one chunk is not read again
            getattr(source._parts()[0], array)._forget()
        later()
        apply(path)
        if pause == "closed":
            source.close()
        other = source
        if pause == "pickled":
            other = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
        with pytest.raises(InputError, match="begin") as told:
            stores.read_all(other, 3000)
        other.close()
        assert str(path) in str(told.value)


def test_changed__not_by_rights_or_times_of_the_future(tmp_path):
    path = write(counts(), tmp_path, "zarr3", chunk=50)
    file = chunk_files(path, "data")[0]
    os.utime(file, (2**33, 2**33))  # as unpacked from another machine
    later()
    with closing(open_source(path)) as source:
        later()
        chunk_files(path, "indices")[0].chmod(0o600)
        np.testing.assert_array_equal(stores.read_all(source, 3000), counts().toarray())


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_changed__not_by_what_others_put_beside(tmp_path, form):
    """zarr looks for metadata of other versions; a copy that was pickled opens the store anew."""
    path = write(counts(), tmp_path, form)
    with closing(open_source(path)) as source:
        expected = stores.read_all(source, 3000)
        (path / ".DS_Store").write_text("")
        (path / "obs" / "note.txt").write_text("")
        with closing(pickle.loads(pickle.dumps(source))) as other:  # noqa: S301 - our own
            np.testing.assert_array_equal(dense(stores.read_all(other, 3000)), dense(expected))


@pytest.mark.parametrize("form", ["zarr3", "h5ad"])
def test_changed__not_where_the_disk_has_another_clock(tmp_path, form, monkeypatch):
    """Which is ahead: what was just written has a time to come."""
    path, ours = write(counts(), tmp_path, form), time.time_ns
    monkeypatch.setattr("streamtrain.decode.files.time.time_ns", lambda: ours() - 10**12)
    read_all(path)


@pytest.mark.parametrize("form", ["zarr3", "h5ad"])
def test_changed__not_where_each_machine_has_a_copy(tmp_path, form, monkeypatch):
    """Of other times; but of other sizes it is another."""
    path = write(counts(), tmp_path, form)
    with closing(open_source(path)) as source:
        sent = pickle.dumps(source)
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    for file in files:
        os.utime(file, ns=(10**18, 10**18))
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(sent).read(0, 3)  # noqa: S301 - our own
    monkeypatch.setattr("streamtrain.decode.files.gethostname", lambda: "another")
    with closing(pickle.loads(sent)) as source:  # noqa: S301
        assert source.read(0, 3).n_obs == 3
    metadata = path / "zarr.json" if form == "zarr3" else path
    with metadata.open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(sent).read(0, 3)  # noqa: S301


def test_changed__one_of_several_files(tmp_path):
    paths = [write(counts(), tmp_path / f"{i}", "h5ad") for i in range(6)]
    with closing(open_source(paths)) as source:
        source.read(0, source.n_obs)
        later()
        rewrite(paths[0])  # closed meanwhile, as four are open at a time
        with pytest.raises(InputError, match=rf"{paths[0]} has changed"):
            source.read(0, source.n_obs)


def ago(**time):
    return format_datetime(datetime.now(UTC) - timedelta(**time), usegmt=True)


def test_remote__chunk_that_changed_or_went(tmp_path):
    path = write(counts(), tmp_path, "zarr3", chunk=50)
    with serving(tmp_path) as server, closing(open_source(f"{server.url}/{path.name}")) as source:
        np.testing.assert_array_equal(stores.read_all(source, 3000), counts().toarray())
        source._parts()[0]._data._forget()
        server.modified = ago(days=1)
        source.read(0, N_OBS)
        server.modified = ago(days=-9999)  # a clock that is wrong
        source.read(0, N_OBS)
        source._opened.since -= 10**10  # as if opened ten seconds ago
        server.modified = ago(seconds=2)
        with pytest.raises(InputError, match="has changed on the server since it was opened"):
            source.read(0, N_OBS)
        server.modified = "Thu, 01 Jan 2026 00:00:00 GMT"
        (path / "X/data/c/2").unlink()
        with pytest.raises(InputError, match="X/data the chunk of entries 100 on is missing"):
            source.read(0, N_OBS)


# Disks and memory ----------------------------------------------------------------------------


@contextmanager
def mounted(folder, options):
    """A small disk in memory, or one that cannot be written."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S603, S607


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    atlas.make(200).write_h5ad(folder / "a.h5ad")
    model = streamtrain.train(folder / "a.h5ad", "cell_type", progress=False)
    return folder / "a.h5ad", model


def test_full__a_model_leaves_nothing(tmp_path, trained):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        (disk / "fill").write_bytes(bytes(50_000))
        with pytest.raises(InputError, match=r"the disk of .*m\.zarr is full .*: free some space"):
            trained[1].save(disk / "m.zarr")
        time.sleep(0.2)
        assert [p.name for p in disk.iterdir()] == ["fill"]


def test_full__scratch(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        array = ScratchArray(disk, np.float64)
        with pytest.raises(InputError, match=r"full after .* pass scratch=FOLDER"):
            array.append(np.ones(10_000))
        array.close()
        assert list(disk.iterdir()) == []


def test_full__what_h5py_says(tmp_path):
    """Only its words have the number."""
    error = RuntimeError("Can't decrement id ref count (file write failed: ..., errno = 28, ...)")
    with pytest.raises(InputError, match="is full"), disk_full(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="other"), disk_full(tmp_path):
        raise RuntimeError("other")


def test_read_only__output_and_scratch(tmp_path):
    with mounted(tmp_path / "disk", "ro") as disk:
        with pytest.raises(InputError, match="no permission to write"), replacing(disk / "a"):
            pytest.fail("it was begun")
        with pytest.raises(InputError, match="scratch must be a folder that can be written"):
            ScratchArray(disk, np.float64)


def test_read_only__from_then_on(tmp_path):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".a"))

    with (
        pytest.raises(InputError, match=r"a cannot be written \(Permission denied\): choose"),
        replacing(tmp_path / "a"),
    ):
        refuse()
    other = PermissionError(13, "Permission denied", "/elsewhere/input")
    with pytest.raises(PermissionError), replacing(tmp_path / "a"):
        raise other


def test_scratch__that_went(tmp_path):
    """An open array stays readable; the next one is told where it would be."""
    place = tmp_path / "scratch"
    place.mkdir()
    array = ScratchArray(place, np.int64)
    array.append(np.arange(5))
    place.rmdir()
    array.append(np.arange(5))
    assert array[3:7].tolist() == [3, 4, 0, 1]
    with pytest.raises(InputError, match="scratch must be a folder that can be written"):
        ScratchArray(place, np.int64)


def test_memory__that_runs_out(tmp_path, monkeypatch):
    path = write(counts(), tmp_path, "h5ad")

    def refuse(*_):
        raise MemoryError

    with closing(open_source(path)) as source:
        monkeypatch.setattr(matrix_module, "empty", refuse)
        for ask in (lambda: source.read(0, 9), lambda: source.take(np.array([1]))):
            with pytest.raises(
                InputError, match=r"a\w*\.h5ad cannot be read: more memory .*lower memory"
            ):
                ask()


def test_inputs__stay_as_they_are(tmp_path, trained):
    path, model = trained
    model.save(tmp_path / "m.zarr")
    before = path.read_bytes(), path.stat().st_mtime_ns
    with mounted(tmp_path / "disk", "size=16k") as disk:
        (disk / "fill").write_bytes(bytes(12_000))
        words = ["predict", tmp_path / "m.zarr", path, "--out", disk / "p.csv", "--quiet"]
        with pytest.raises(SystemExit) as told:
            main([str(word) for word in words])
        assert told.value.code == 2
        assert [p.name for p in disk.iterdir()] == ["fill"]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
