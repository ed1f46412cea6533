"""Damaged chunks and indexes end in one InputError that names the file, and never in other data."""

import json
import resource
import shutil
import warnings
import zlib
from contextlib import closing

import anndata as ad
import google_crc32c
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from streamtrain import InputError, open_source
from streamtrain.decode import codecs
from streamtrain.sources.damage import READ_ERRORS

N_OBS, N_VARS, N = 300, 20, 3000
LITTLE = zarr.codecs.BytesCodec()
# Name -> options of the array of values; where a checksum covers it, damage cannot pass.
HDF5 = {
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "shuffle+fletcher32": {"shuffle": True, "fletcher32": True},
}
ZARR = {
    "blosc2": (2, {"compressors": numcodecs.Blosc("lz4")}),
    "lz4": (2, {"compressors": numcodecs.LZ4()}),
    "zlib": (2, {"compressors": numcodecs.Zlib()}),
    "none": (2, {"compressors": None}),
    "zstd": (3, {"compressors": zarr.codecs.ZstdCodec(checksum=True)}),
    "gzip3": (3, {"compressors": zarr.codecs.GzipCodec()}),
    "crc32c": (3, {"compressors": [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()]}),
    "sharded": (3, {"compressors": zarr.codecs.ZstdCodec(checksum=True), "shards": (1000,)}),
}
CHECKED = {"gzip", "shuffle+fletcher32", "zlib", "zstd", "gzip3", "crc32c", "sharded"}


def matrix():
    rng = np.random.default_rng(0)
    indices = np.concatenate([np.sort(rng.permutation(N_VARS)[:10]) for _ in range(N_OBS)])
    data = rng.integers(1, 60, N).astype(np.float32)
    return sp.csr_matrix((data, indices, np.arange(0, N + 1, 10)), shape=(N_OBS, N_VARS))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same AnnData as .h5ad, and as zarr of both formats."""
    folder = tmp_path_factory.mktemp("plain")
    obs = pd.DataFrame(index=[f"c{i}" for i in range(N_OBS)])
    adata = ad.AnnData(matrix(), obs=obs)
    adata.write_h5ad(folder / "plain.h5ad")
    for form in (2, 3):
        before = ad.settings.zarr_write_format
        ad.settings.zarr_write_format = form
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr warns of consolidated metadata in v3
            adata.write_zarr(folder / f"plain{form}.zarr")
        ad.settings.zarr_write_format = before
    return folder


def store(plain, folder, form):
    """A copy whose X/data is stored in chunks of 100 as `form` says."""
    if form in HDF5:
        path = folder / "atlas.h5ad"
        shutil.copy(plain / "plain.h5ad", path)
        with h5py.File(path, "r+") as file:
            values = file["X/data"][:]
            del file["X/data"]
            file.create_dataset("X/data", data=values, chunks=(100,), **HDF5[form])
        return path
    version, options = ZARR[form]
    path = folder / "atlas.zarr"
    shutil.copytree(plain / f"plain{version}.zarr", path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    options = {"data": root["X/data"][:], "chunks": (100,), "overwrite": True, **options}
    root.create_array("X/data", **options)
    for name in ("zarr.json", ".zmetadata"):  # consolidated: tells the array as it was
        file = path / name
        if name == "zarr.json" and file.exists():
            known = json.loads(file.read_text())
            known.pop("consolidated_metadata", None)
            file.write_text(json.dumps(known))
        elif file.exists():
            file.unlink()
    return path


def chunk_of(path):
    """File, offset and size of the chunk (all of its shard) with the entries 200 to 300."""
    if path.suffix == ".h5ad":
        with h5py.File(path) as file:
            info = file["X/data"].id.get_chunk_info(2)
        return path, info.byte_offset, info.size
    sharded = len(list((path / "X/data/c").glob("*"))) == 3
    found = path / "X/data" / ("2" if (path / ".zgroup").exists() else f"c/{0 if sharded else 2}")
    return found, 0, found.stat().st_size


def overwrite(file, at, raw):
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(raw)


def outcome(path, ask):
    """What `ask` gives of the source, or its InputError."""
    try:
        with closing(open_source(path)) as source:
            return ask(source)
    except InputError as error:
        return error


ROWS = np.array([0, 21, 25, 299])
ASKS = {
    "read": lambda source: source.read(0, N_OBS),
    "part": lambda source: source.read(20, 30),
    "take": lambda source: source.take(ROWS),
}


def assert_refused(path, match, asks=ASKS):
    for ask in asks:
        found = outcome(path, ASKS[ask])
        assert isinstance(found, InputError), ask
        assert path.name in str(found)
        assert match in str(found), (ask, found)


@pytest.mark.parametrize("form", [*HDF5, *ZARR])
def test_damage__none_is_read(plain, tmp_path, form):
    path = store(plain, tmp_path, form)
    for name, ask in ASKS.items():
        rows = outcome(path, ask)
        due = {"read": slice(None), "part": slice(20, 30), "take": ROWS}[name]
        assert rows.data.tolist() == matrix()[due].data.tolist()


@pytest.mark.parametrize("form", [*HDF5, *ZARR])
def test_damage__overwritten_bytes(plain, tmp_path, form):
    path = store(plain, tmp_path, form)
    file, offset, size = chunk_of(path)
    good = file.read_bytes()[offset : offset + size]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(12):
        at = int(rng.integers(0, size))
        bad = bytes([good[at] ^ int(rng.integers(1, 256))])
        overwrite(file, offset + at, bad)
        found = outcome(path, ASKS["read"])
        if form in CHECKED and not isinstance(found, InputError):
            # a byte that decodes to the same, as of gzip's date
            assert found.data.tolist() == matrix().data.tolist()
        refused += isinstance(found, InputError)
        overwrite(file, offset + at, good[at : at + 1])
    assert refused >= (9 if form in CHECKED else 0)
    overwrite(file, offset, rng.bytes(size))
    if form != "none":
        assert_refused(path, "damaged")


@pytest.mark.parametrize("form", [*ZARR])
def test_damage__chunk_cut_short(plain, tmp_path, form):
    path = store(plain, tmp_path, form)
    file, _, size = chunk_of(path)
    good = file.read_bytes()
    for keep in (0, 1, 3, 12, size // 2, size - 1):
        file.write_bytes(good[:keep])
        assert_refused(path, "damaged", ["read", "take"])
    file.unlink()
    file.mkdir()
    assert_refused(path, "damaged", ["read", "take"])


def test_damage__hdf5_cut_short(plain, tmp_path):
    path = store(plain, tmp_path, "gzip")
    good = path.read_bytes()
    for keep in (len(good) // 2, len(good) - 1):
        path.write_bytes(good[:keep])
        assert_refused(path, "cannot be opened", ["read"])
    path.write_bytes(good)
    source = open_source(path)
    _, offset, size = chunk_of(path)
    with path.open("r+b") as opened:  # while it is read
        opened.truncate(offset + size // 2)
    with pytest.raises(InputError, match=r"atlas\.h5ad has .* bytes, and those from .* are due"):
        source.read(0, N_OBS)
    source.close()


@pytest.mark.parametrize("entries", [0, 99, 101])
def test_damage__chunk_of_another_size(plain, tmp_path, entries):
    values = np.ones(entries, np.float32)
    for form in HDF5:
        path = store(plain, tmp_path, form)
        mask = 1 if form == "lzf" else 0b11
        raw = zlib.compress(values) if form == "gzip" else values.tobytes()
        if not raw:
            continue
        with h5py.File(path, "r+") as file:
            file["X/data"].id.write_direct_chunk((200,), raw, 0 if form == "gzip" else mask)
        assert_refused(path, "damaged")
    for form in ("blosc2", "lz4", "zlib", "none"):
        (tmp_path / form).mkdir()
        path = store(plain, tmp_path / form, form)
        compressor = ZARR[form][1]["compressors"]
        if entries or form == "none":
            raw = values.tobytes() if compressor is None else compressor.encode(values)
            chunk_of(path)[0].write_bytes(raw)
            assert_refused(path, "damaged")
    (tmp_path / "zstd").mkdir()
    path = store(plain, tmp_path / "zstd", "zstd")
    chunk_of(path)[0].write_bytes(numcodecs.Zstd().encode(np.append(values, np.float32(0))[:-1]))
    assert_refused(path, "damaged")


def shard_index(path, change, sum_too):
    """Rewrite the index of the first shard: ten offsets and sizes, and their checksum."""
    file = path / "X/data/c/0"
    good = file.read_bytes()
    index = np.frombuffer(good[-164:-4], "<u8").reshape(10, 2).copy()
    change(index)
    raw = index.tobytes()
    told = google_crc32c.value(raw).to_bytes(4, "little") if sum_too else good[-4:]
    file.write_bytes(good[:-164] + raw + told)


def test_damage__shard_index(plain, tmp_path):
    path = store(plain, tmp_path, "sharded")
    file = path / "X/data/c/0"
    good = file.read_bytes()

    def put(row, column, value):
        def change(index):
            index[row, column] = value

        return change

    for value in (len(good), 2**40, 2**63, 2**64 - 2, 2**64 - 1):
        for column in (0, 1):
            shard_index(path, put(2, column, value), sum_too=True)
            assert_refused(path, "damaged")
            file.write_bytes(good)
    shard_index(path, put(2, 0, 1), sum_too=False)
    assert_refused(path, "a checksum (crc32c) does not match its bytes")
    shard_index(path, put(2, 0, 1), sum_too=True)
    assert_refused(path, "damaged")
    file.write_bytes(good)
    shard_index(path, lambda index: index[[2, 3]].sort(), sum_too=True)
    assert not isinstance(outcome(path, ASKS["read"]), InputError)  # as it was
    file.write_bytes(good)
    for keep in (0, 3, 100, 163):
        file.write_bytes(good[:keep])
        assert_refused(path, "fewer than its index")


def test_damage__hdf5_index(plain, tmp_path):
    """The B-tree tells an offset outside of the file."""
    path = store(plain, tmp_path, "gzip")
    _, offset, _ = chunk_of(path)
    good = path.read_bytes()
    told = offset.to_bytes(8, "little")
    assert good.count(told) == 1
    for value in (len(good), 2**40, 2**62, 2**63, 2**64 - 2):
        path.write_bytes(good.replace(told, value.to_bytes(8, "little")))
        assert_refused(path, "damaged")
    path.write_bytes(good.replace(told, (offset + 1).to_bytes(8, "little")))
    assert_refused(path, "damaged")


@pytest.mark.parametrize("form", ["zlib", "zstd", "sharded"])
def test_damage__metadata_that_asks_for_the_world(plain, tmp_path, form):
    """No memory is taken for entries or chunks that are not there."""
    path = store(plain, tmp_path, form)
    file = path / "X/data" / (".zarray" if form == "zlib" else "zarr.json")
    text = file.read_text()
    for old, new in (("3000", str(2**50)), ("3000", str(2**33))):
        file.write_text(text.replace(old, new))
        assert_refused(path, "damaged", ["take"])
    file.write_text(text.replace("100\n", f"{2**46}\n"))
    assert file.read_text() != text
    found = outcome(path, ASKS["take"])
    assert isinstance(found, InputError)


def test_damage__hdf5_that_claims_entries(plain, tmp_path):
    path = store(plain, tmp_path, "gzip")
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file.create_dataset("X/data", (2**33,), "f4", chunks=(64,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # its table would take 2 GB
    assert_refused(path, "data has shape (8589934592,)", ["take"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


CODECS = {
    **{f"blosc {c} {s}": numcodecs.Blosc(c, 5, s) for c in ("lz4", "zstd") for s in (0, 1, 2)},
    "blosc copy": numcodecs.Blosc("lz4", 0, 0),
    "zstd": numcodecs.Zstd(1),
    "zstd sum": numcodecs.Zstd(1, checksum=True),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(1),
    "gzip": numcodecs.GZip(1),
}


@pytest.mark.parametrize("codec", CODECS)
def test_codecs__any_bytes(codec):
    """They raise what `reading` knows, write within their buffer, and see what checksums see."""
    values = (np.arange(1000) % 97).astype("<i4")
    good = np.frombuffer(bytes(CODECS[codec].encode(values)), np.uint8)
    decoder = codecs.for_zarr2(CODECS[codec].get_config(), None, "<i4")
    rng = np.random.default_rng(0)
    room = np.full(4064, 0xA5, np.uint8)
    for i in range(400):
        bad = good.copy()
        for at in rng.integers(0, min(len(bad), (32, len(bad))[i % 2]), 1 + i % 3):
            bad[at] = rng.integers(0, 256)
        if i % 4 == 3:
            bad = bad[: rng.integers(0, len(bad))].copy()
        try:
            found = decoder(bad, 1000, room[:4000])
        except (*READ_ERRORS, MemoryError):
            continue
        finally:
            assert (room[4000:] == 0xA5).all()
        assert len(found) == 1000
        if codec in ("zstd sum", "zlib", "gzip"):
            assert found.tolist() == values.tolist()


def test_codecs__blosc_reads_no_further_than_the_chunk():
    """numcodecs decodes a chunk that was cut short from the memory behind it."""
    values = np.arange(1000, dtype="<i4")
    raw = np.frombuffer(numcodecs.Blosc("lz4", 5, 1).encode(values), np.uint8)
    decoder = codecs.for_zarr2({"id": "blosc"}, None, "<i4")
    room = np.empty(4000, np.uint8)
    assert decoder(raw, 1000, room).tolist() == values.tolist()
    with pytest.raises(ValueError, match=r"a chunk has \d+ bytes, and \d+ are due"):
        decoder(raw[:-1], 1000, room)
