"""Chunks decoded by us equal what h5py and zarr read, and the path taken is the one expected."""

import json
import pickle
import warnings
import zlib
from itertools import product
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.core.chunk_key_encodings import V2ChunkKeyEncoding

from streamtrain.decode import slices
from streamtrain.decode.arrays import StoredArray, gatherable
from streamtrain.decode.slices import SlicedArray
from streamtrain.threads import Threads

DTYPES = (
    *("i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "?"),
    *(">i2", ">i4", ">i8", ">u4", ">f2", ">f4", ">f8"),
)
FEW = ("<f4", "<i8", "u1")  # for codecs that know no dtype
SIZE = 1003


def values_of(dtype, size=SIZE, seed=0):
    """Positions with noise: they compress, and their order shows."""
    rng = np.random.default_rng(seed)
    return (np.arange(size) % 97 + rng.integers(0, 2, size) * 20).astype(dtype)


def stretches(rng, size):
    """Random disjoint ascending stretches, some of them empty."""
    edges = np.sort(rng.integers(0, size + 1, 2 * rng.integers(0, 9)))
    return edges[::2].astype(np.int64), edges[1::2].astype(np.int64)


def assert_reads(array, kind, threads=None):
    """`array`, of h5py or zarr, is read by a `kind`, and as its library reads it."""
    ours = gatherable(array, threads)
    assert type(ours) is kind
    due = np.asarray(array[:])
    assert ours.shape == due.shape
    whole = ours[0 : len(due)]
    np.testing.assert_array_equal(whole, due)
    if kind is StoredArray:
        assert whole.dtype == ours.dtype
        assert ours.dtype.isnative
    rng = np.random.default_rng(len(due))
    for _ in range(3):
        starts, stops = stretches(rng, len(due))
        parts = [due[lo:hi] for lo, hi in zip(starts, stops, strict=True)]
        expected = np.concatenate([due[:0], *parts])
        out = np.full(len(expected), 9, np.float64)
        assert ours.gather(starts, stops, out)
        np.testing.assert_array_equal(out, expected.astype(np.float64))
    ours.close()
    return whole


@pytest.fixture
def hdf5(tmp_path):
    """A function that writes by one and gives the file opened for reading."""
    opened = []

    def make(write, **options):
        path = tmp_path / f"{len(opened)}.h5"
        with h5py.File(path, "w", **options) as file:
            write(file)
        opened.append(h5py.File(path, "r"))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


FILTERS = {
    "none": {},
    "gzip1": {"compression": "gzip", "compression_opts": 1},
    "gzip9": {"compression": "gzip", "compression_opts": 9},
    "lzf": {"compression": "lzf"},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
    "shuffle+lzf": {"compression": "lzf", "shuffle": True},
    "gzip+fletcher32": {"compression": "gzip", "fletcher32": True},
    "shuffle+lzf+fletcher32": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    "shuffle+fletcher32": {"shuffle": True, "fletcher32": True},
}
CHUNKS = (1, 7, 256, SIZE, SIZE + 500)


@pytest.mark.slow
@pytest.mark.parametrize("filters", FILTERS)
def test_hdf5__every_filter_dtype_and_chunk(hdf5, filters):
    # Two chunk sizes each: over all filters, every pair occurs.
    turn = list(FILTERS).index(filters)
    cases = [(dtype, CHUNKS[(i + turn + j) % 5]) for i, dtype in enumerate(DTYPES) for j in (0, 2)]

    def write(file):
        for dtype, chunk in cases:
            size = 40 if chunk == 1 else SIZE
            file.create_dataset(
                f"{dtype}/{chunk}",
                data=values_of(dtype, size),
                chunks=(chunk,),
                maxshape=(None,),  # a chunk may be larger than the array then
                **FILTERS[filters],
            )

    file = hdf5(write)
    for dtype, chunk in cases:
        assert_reads(file[f"{dtype}/{chunk}"], StoredArray)


def test_hdf5__noise_that_lzf_cannot_compress(hdf5):
    """HDF5 stores such chunks as they are, and says so by their filter mask."""
    noise = np.random.default_rng(0).integers(0, 2**32, SIZE, np.uint32)
    mixed = np.concatenate([noise, np.zeros(SIZE, np.uint32), noise])
    options = {"compression": "lzf", "chunks": (100,)}

    def write(file):
        file.create_dataset("lzf", data=mixed, **options)
        file.create_dataset("all", data=mixed, shuffle=True, fletcher32=True, **options)

    file = hdf5(write)
    masks = {file["lzf"].id.get_chunk_info(i).filter_mask for i in range(30)}
    assert masks == {0, 1}
    assert_reads(file["lzf"], StoredArray)
    assert_reads(file["all"], StoredArray)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_hdf5__every_chunk_index(hdf5, libver):
    """B-trees of both versions, fixed and extensible array, single chunk, implicit."""
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_chunk((64,))
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    data = values_of("<i4")

    def write(file):
        for name, filters in {"raw": {}, "gzip": {"compression": "gzip"}}.items():
            file.create_dataset(f"fixed/{name}", data=data, chunks=(64,), **filters)
            file.create_dataset(f"single/{name}", data=data, chunks=(SIZE,), **filters)
            file.create_dataset(
                f"extensible/{name}", data=data, chunks=(64,), maxshape=(None,), **filters
            )
        space = h5py.h5s.create_simple((SIZE,))
        made = h5py.h5d.create(file.id, b"implicit", h5py.h5t.STD_I32LE, space, early)
        h5py.Dataset(made)[...] = data

    file = hdf5(write, libver=libver)
    for kind, name in product(("fixed", "single", "extensible"), ("raw", "gzip")):
        assert_reads(file[f"{kind}/{name}"], StoredArray)
    assert_reads(file["implicit"], StoredArray)


def test_hdf5__masked_chunks(hdf5):
    """Bit i of the mask skips the i-th filter: shuffle, gzip, fletcher32."""
    data = values_of("<i4", 6 * 50)

    def write(file):
        made = file.create_dataset(
            "x", 300, "<i4", chunks=(50,), compression="gzip", shuffle=True, fletcher32=True
        )
        made[...] = data
        made.id.write_direct_chunk((50,), data[50:100].tobytes(), 0b111)
        shuffled = data[100:150].view(np.uint8).reshape(50, 4).T.tobytes()
        made.id.write_direct_chunk((100,), shuffled, 0b110)
        made.id.write_direct_chunk((200,), zlib.compress(data[200:250].tobytes()), 0b101)

    array = hdf5(write)["x"]
    assert [array.id.get_chunk_info(i).filter_mask for i in range(6)] == [0, 7, 6, 0, 5, 0]
    np.testing.assert_array_equal(assert_reads(array, StoredArray), data)


@pytest.mark.parametrize(
    ("dtype", "fill"), [("<i4", 7), ("<f4", np.nan), (">f4", 1.5), ("?", True), ("<f8", 0)]
)
def test_hdf5__never_written_chunks(hdf5, dtype, fill):
    def write(file):
        array = file.create_dataset(
            "x", (SIZE,), dtype, chunks=(50,), fillvalue=fill, compression="gzip"
        )
        array[60:70] = 1
        array[1000:] = 1
        file.create_dataset("none", (SIZE,), dtype, chunks=(50,), fillvalue=fill)
        file.create_dataset("contiguous", (SIZE,), dtype, fillvalue=fill)

    file = hdf5(write)
    found = assert_reads(file["x"], StoredArray)
    assert found[60:70].tolist() == [1] * 10
    np.testing.assert_array_equal(found[:50], np.full(50, fill, found.dtype))
    assert_reads(file["none"], StoredArray)
    assert_reads(file["contiguous"], SlicedArray)


def test_hdf5__never_filled(hdf5):
    def write(file):
        for name in ("all", "some"):
            options = {"fill_time": "never", "fillvalue": 5}
            array = file.create_dataset(name, (100,), "i4", chunks=(10,), **options)
            array[: 100 if name == "all" else 30] = 1

    file = hdf5(write)
    assert_reads(file["all"], StoredArray)
    assert type(gatherable(file["some"], None)) is SlicedArray


def test_hdf5__resized(hdf5):
    def write(file):
        for name in ("grown", "shrunk", "within", "again"):
            options = {"maxshape": (None,), "compression": "gzip", "fillvalue": 3}
            file.create_dataset(name, data=values_of("<f4"), chunks=(64,), **options)
        file["grown"].resize((2 * SIZE,))
        file["shrunk"].resize((100,))
        file["within"].resize((SIZE - 2,))
        file["again"].resize((70,))
        file["again"].resize((SIZE,))

    file = hdf5(write)
    for name in file:
        assert_reads(file[name], StoredArray)


def test_hdf5__in_one_piece(hdf5):
    big = values_of("<i2", (1 << 20) + 11)  # several pieces of those that are read at a time

    def write(file):
        file["big"] = big
        file["empty"] = big[:0]
        file["offset"] = np.frombuffer(b"abc", np.uint8)
        for dtype in DTYPES:
            file[dtype] = values_of(dtype)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((10,))
        made = h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_I32LE, space, compact)
        h5py.Dataset(made)[...] = np.arange(10)
        file.create_dataset("chunked", (0,), "f4", chunks=(5,), maxshape=(None,))

    file = hdf5(write)
    for dtype in (*DTYPES, "big"):
        assert_reads(file[dtype], StoredArray)
    assert_reads(file["compact"], SlicedArray)
    assert_reads(file["empty"], SlicedArray)
    assert_reads(file["chunked"], StoredArray)


def test_hdf5__enum_is_its_integers(hdf5):
    kind = h5py.enum_dtype({"a": 1, "b": 2}, "i2")
    file = hdf5(lambda file: file.create_dataset("x", data=np.array([1, 2, 1], "i2"), dtype=kind))
    assert_reads(file["x"], StoredArray)


def test_hdf5__left_to_h5py(hdf5, tmp_path):
    """Types that numpy lacks, other filters, data elsewhere, two dimensions."""
    outside = tmp_path / "outside.bin"
    outside.write_bytes(np.arange(10, dtype="<i4").tobytes())
    twelve = h5py.h5t.STD_I16LE.copy()
    twelve.set_precision(12)
    twelve.set_offset(4)
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_fields(30, 22, 8, 0, 22)
    odd.set_size(4)
    orders = {"gzip_shuffle": ("deflate", "shuffle"), "sum_shuffle": ("fletcher32", "shuffle")}

    def write(file):
        file.create_dataset("scaled", data=np.arange(100), chunks=(10,), scaleoffset=0)
        file.create_dataset("outside", (10,), "<i4", external=[(str(outside), 0, 40)])
        layout = h5py.VirtualLayout((100,), "i8")
        layout[:] = h5py.VirtualSource(file["scaled"])
        file.create_virtual_dataset("virtual", layout)
        file["long"] = np.arange(10, dtype=np.longdouble)
        for name, kind in (("twelve", twelve), ("odd", odd)):
            made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((10,)))
            h5py.Dataset(made)[...] = np.arange(10)
        for name, filters in orders.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((10,))
            for one in filters:
                getattr(plist, f"set_{one}")(*([4] if one == "deflate" else []))
            space = h5py.h5s.create_simple((25,))
            made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_I32LE, space, plist)
            h5py.Dataset(made)[...] = np.arange(25)

    file = hdf5(write)
    for name in file:
        assert_reads(file[name], SlicedArray)
    behind = hdf5(lambda file: file.create_dataset("x", data=np.arange(10)), userblock_size=512)
    assert_reads(behind["x"], SlicedArray)


def test_hdf5__file_not_at_rest(tmp_path):
    """In memory, open for writing (here or in another handle), or replaced since it was opened."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        made = file.create_dataset("x", data=np.arange(100), chunks=(10,))
        assert_reads(made, SlicedArray)
    with h5py.File(path, "r+") as file:
        file["x"][3] = 77
        assert_reads(file["x"], SlicedArray)
        with h5py.File(path, "r") as again:
            assert assert_reads(again["x"], SlicedArray)[3] == 77
    for options in ({"driver": "core"}, {"driver": "stdio"}, {"swmr": True}):
        with h5py.File(path, "r", **options) as file:
            assert_reads(file["x"], SlicedArray)
    with h5py.File(path, "r") as file:
        assert_reads(file["x"], StoredArray)
        path.rename(tmp_path / "moved.h5")
        assert_reads(file["x"], SlicedArray)
        with h5py.File(path, "w") as other:
            other.create_dataset("x", data=np.arange(100) + 5, chunks=(10,))
        assert assert_reads(file["x"], SlicedArray)[0] == 0


COMPRESSORS = {"none": None, "zstd": {"id": "zstd", "level": 3}, "lz4": {"id": "lz4"}}
COMPRESSORS |= {name: {"id": name, "level": 5} for name in ("gzip", "zlib")}
COMPRESSORS |= {
    f"blosc {name} {shuffle}": {"id": "blosc", "cname": name, "clevel": 5, "shuffle": shuffle}
    for name in ("lz4", "zstd", "zlib", "blosclz")
    for shuffle in (-1, 0, 1, 2)
}


def zarr2(path, data, chunk, compressor=None, **options):
    """A v2 array, with some chunks never written where it is long enough."""
    made = zarr.create_array(
        path,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(chunk,),
        compressors=None if compressor is None else numcodecs.get_codec(compressor),
        zarr_format=2,
        **options,
    )
    made[: len(data) // 3] = data[: len(data) // 3]
    made[len(data) // 2 :] = data[len(data) // 2 :]
    return zarr.open_array(path, mode="r")


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_zarr2__every_codec_and_dtype(tmp_path, codec):
    for i, dtype in enumerate(DTYPES if codec in ("none", "zlib") else FEW):
        chunk = (7, 256, SIZE, SIZE + 500)[i % 4]
        array = zarr2(tmp_path / f"{i}", values_of(dtype), chunk, COMPRESSORS[codec])
        assert_reads(array, StoredArray)


@pytest.mark.parametrize("chunk", [1, 7, 300, 301, 1000])
def test_zarr2__every_chunk(tmp_path, chunk):
    array = zarr2(tmp_path / "x", values_of("<f4", 301), chunk, COMPRESSORS["zstd"])
    assert_reads(array, StoredArray)


@pytest.mark.parametrize("fill", [None, 0, 3, float("nan")])
def test_zarr2__fill_values(tmp_path, fill):
    array = zarr2(tmp_path / "x", values_of("<f4"), 50, fill_value=fill)
    assert len(list(tmp_path.glob("x/*"))) < 1 + SIZE // 50
    found = assert_reads(array, StoredArray)
    np.testing.assert_array_equal(found[400:410], np.full(10, 0 if fill is None else fill))


def test_zarr2__null_fill_value(tmp_path):
    zarr2(tmp_path / "x", values_of("<i4"), 50, COMPRESSORS["zlib"])
    path = tmp_path / "x" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fill_value": None}))
    array = zarr.open_array(tmp_path / "x", mode="r")
    assert array.metadata.fill_value is None
    assert_reads(array, StoredArray)


def test_zarr2__separator_and_nesting(tmp_path):
    for separator in "./":
        array = zarr2(
            tmp_path / f"{ord(separator)}/deep/er", values_of("<f4"), 50, COMPRESSORS["zlib"],
            chunk_key_encoding=V2ChunkKeyEncoding(separator),
        )  # fmt: skip
        assert_reads(array, StoredArray)
        group = zarr.open_group(tmp_path / f"{ord(separator)}/deep", mode="a", zarr_format=2)
        assert_reads(group["er"], StoredArray)


def test_zarr2__left_to_zarr(tmp_path):
    data = values_of("<i4")
    filtered = zarr2(tmp_path / "f", data, 50, filters=[numcodecs.Delta("<i4")])
    assert_reads(filtered, SlicedArray)
    for codec in ({"id": "bz2", "level": 1}, {"id": "lzma"}):
        assert_reads(zarr2(tmp_path / codec["id"], data, 50, codec), SlicedArray)
    assert_reads(zarr.array(data, chunks=(50,)), SlicedArray)  # in memory
    with zarr.storage.ZipStore(tmp_path / "x.zip", mode="w") as store:
        assert_reads(zarr.create_array(store, data=data, chunks=(50,)), SlicedArray)


@pytest.mark.parametrize("form", [2, 3])
def test_zarr__empty(tmp_path, form):
    made = zarr.create_array(tmp_path / "x", shape=(0,), dtype="f4", chunks=(5,), zarr_format=form)
    assert_reads(made, StoredArray)


CODECS = {
    "none": [],
    "zstd": [ZstdCodec(level=1)],
    "zstd checksum": [ZstdCodec(level=1, checksum=True)],
    "gzip": [GzipCodec(level=1)],
    "crc32c": [Crc32cCodec()],
    "zstd crc32c": [ZstdCodec(level=1), Crc32cCodec()],
    "blosc crc32c": [BloscCodec(cname="lz4"), Crc32cCodec()],
    "crc32c crc32c": [Crc32cCodec(), Crc32cCodec()],
}
CODECS |= {
    f"blosc {name} {shuffle}": [BloscCodec(cname=name, shuffle=shuffle)]
    for name in ("lz4", "zstd", "zlib")
    for shuffle in ("noshuffle", "shuffle", "bitshuffle")
}


def zarr3(path, data, chunk, codecs, fill=0):
    """A v3 array of this chain of codecs, the middle never written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = zarr.create(
            store=path, shape=data.shape, dtype=data.dtype, chunks=(chunk,), codecs=codecs,
            zarr_format=3, fill_value=fill,
        )  # fmt: skip
    made[: len(data) // 3] = data[: len(data) // 3]
    made[len(data) // 2 :] = data[len(data) // 2 :]
    return zarr.open_array(path, mode="r")


@pytest.mark.parametrize("codec", CODECS)
def test_zarr3__every_codec_and_dtype(tmp_path, codec):
    for i, dtype in enumerate(DTYPES[:12] if codec in ("none", "zstd") else FEW):
        chunk = (7, 256, SIZE, SIZE + 500)[i % 4]
        for endian in ("little", "big"):
            chain = [BytesCodec(endian=endian), *CODECS[codec]]
            array = zarr3(tmp_path / f"{i}{endian}", values_of(dtype), chunk, chain)
            assert_reads(array, StoredArray)


SHARDED = {
    "plain": {},
    "at the start": {"index_location": "start"},
    "no checksum": {"index_codecs": [BytesCodec()]},
    "start, no checksum": {"index_codecs": [BytesCodec()], "index_location": "start"},
    "raw": {"codecs": [BytesCodec()]},
    "raw at the start": {"codecs": [BytesCodec()], "index_location": "start"},
    "big": {"codecs": [BytesCodec(endian="big"), GzipCodec(), Crc32cCodec()]},
}


@pytest.mark.parametrize("layout", SHARDED)
def test_sharded__every_layout(tmp_path, layout):
    """Several shards, the last partly filled, one missing, and inner chunks missing."""
    options = {"codecs": [BytesCodec(), ZstdCodec()]} | SHARDED[layout]
    for i, dtype in enumerate(("<i4", "<f8", "u1", "<f2", "?")):
        chain = [ShardingCodec(chunk_shape=(10,), **options)]
        array = zarr3(tmp_path / f"{i}", values_of(dtype), 100, chain, fill=1)
        assert array.shards == (100,)
        written = len(list((tmp_path / f"{i}" / "c").iterdir()))
        assert written == (
            2 if dtype == "?" else 10
        )  # shards of nothing but the fill value are not
        found = assert_reads(array, StoredArray)
        assert found[400] == 1  # in the missing shard
        assert found[340] == 1  # in a missing chunk
        with Threads(3) as threads:
            assert_reads(array, StoredArray, threads)


def test_zarr3__left_to_zarr(tmp_path):
    warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of codecs outside the standard
    data, little = values_of("<i4"), BytesCodec()
    shard = {"chunk_shape": (10,), "codecs": [little]}
    big_index = ShardingCodec(index_codecs=[BytesCodec(endian="big"), Crc32cCodec()], **shard)
    chains = {
        "transposed": [TransposeCodec(order=(0,)), little],
        "sum inside": [little, Crc32cCodec(), ZstdCodec()],
        "twice": [little, ZstdCodec(), GzipCodec()],
        "other": [little, zarr.codecs.numcodecs.LZ4()],
        "other zstd": [little, zarr.codecs.numcodecs.Zstd()],
        "shards in gzip": [ShardingCodec(**shard), GzipCodec()],
        "index big": [big_index],
        "inner": [ShardingCodec(chunk_shape=(10,), codecs=[little, zarr.codecs.numcodecs.BZ2()])],
        "two sums": [ShardingCodec(index_codecs=[little, Crc32cCodec(), Crc32cCodec()], **shard)],
        "shards of shards": [ShardingCodec(chunk_shape=(50,), codecs=[ShardingCodec(**shard)])],
    }  # fmt: skip
    for name, chain in chains.items():
        assert_reads(zarr3(tmp_path / name, data, 100, chain), SlicedArray)


def test_zarr3__other_grids_are_left_to_zarr(tmp_path, monkeypatch):
    array = zarr3(tmp_path / "x", values_of("<i4"), 100, [BytesCodec()])
    told = array.metadata.to_dict()
    told["chunk_grid"] = {"name": "rectilinear", "configuration": {}}
    monkeypatch.setattr(type(array.metadata), "to_dict", lambda _: told)
    assert type(gatherable(array, None)) is SlicedArray


def test_zarr__two_dimensions_are_left_alone(tmp_path):
    array = zarr.create_array(tmp_path / "x", data=np.ones((3, 4)))
    assert type(gatherable(array, None)) is SlicedArray
    text = zarr.create_array(tmp_path / "y", data=np.array(["a", "b"]), zarr_format=2)
    assert type(gatherable(text, None)) is SlicedArray


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Chunk size -> the same numbers in an array of each format."""
    folder = tmp_path_factory.mktemp("stored")
    data = np.random.default_rng(1).integers(0, 1000, 200).astype("<i4")
    files, arrays = [], {}
    for n in (1, 3, 16, 64, 200, 250):
        file = h5py.File(folder / f"{n}.h5", "w")
        file.create_dataset("x", data=data, chunks=(n,), maxshape=(None,), compression="gzip")
        file.create_dataset("lzf", data=data, chunks=(n,), maxshape=(None,), compression="lzf")
        file.close()
        files.append(h5py.File(folder / f"{n}.h5", "r"))
        sharded = zarr.create_array(
            folder / f"{n}.zarr", data=data, chunks=(n,), shards=(3 * n,), compressors=ZstdCodec()
        )
        arrays[n] = [files[-1]["x"], files[-1]["lzf"], sharded]
    yield data, arrays
    for file in files:
        file.close()


@settings(max_examples=80, deadline=None)
@given(edges=st.lists(st.integers(0, 200)), case=st.data(), limit=st.integers(990, 1001))
def test_gather__any_stretches(stored, edges, case, limit):
    data, arrays = stored
    edges = np.sort(edges[: len(edges) // 2 * 2]).astype(np.int64)
    starts, stops = edges[::2], edges[1::2]
    due = np.concatenate([data[:0], *(data[lo:hi] for lo, hi in zip(starts, stops, strict=True))])
    array = case.draw(st.sampled_from(arrays[case.draw(st.sampled_from(sorted(arrays)))]))
    with Threads(case.draw(st.integers(1, 8))) as threads:
        ours = gatherable(array, threads)
        assert type(ours) is StoredArray
        for asked in (None, limit):
            out = np.full(len(due) + 1, -1, np.int64)
            fine = ours.gather(starts, stops, out[:-1], asked)
            assert out.tolist() == [*due.tolist(), -1]
            assert fine is (asked is None or bool((due < asked).all()))


# Name -> file format and options of an array; those that need chunks of a kind make their own.
ANY = {
    "hdf5 plain": ("hdf5", {}),
    "hdf5 gzip": ("hdf5", {"compression": "gzip", "shuffle": True}),
    "hdf5 lzf": ("hdf5", {"compression": "lzf", "fletcher32": True}),
    "zarr2 blosc": (2, {"compressors": numcodecs.Blosc("zstd", 3, 2)}),
    "zarr2 lz4": (2, {"compressors": numcodecs.LZ4()}),
    "zarr2 plain": (2, {"compressors": None}),
    "zarr3 gzip": (3, {"compressors": GzipCodec()}),
    "zarr3 sums": (3, {"compressors": [BloscCodec(), Crc32cCodec()]}),
    "zarr3 shards": (3, {"compressors": ZstdCodec(), "sharded": True}),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_gather__any_codec_chunks_and_slices(tmp_path_factory, data):
    """As its library reads it; some chunks are never written, and hold the fill value."""
    form, options = ANY[data.draw(st.sampled_from(sorted(ANY)))]
    dtype = data.draw(st.sampled_from([kind for kind in DTYPES if form == "hdf5" or kind != "?"]))
    size, chunk = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 130))
    lo, hi = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    folder, options = tmp_path_factory.mktemp("any"), dict(options)
    fill = 1 if dtype == "?" else 7
    if form == "hdf5":
        path, options["chunks"] = folder / "x.h5", (min(chunk, size),)
        with h5py.File(path, "w") as file:
            file.create_dataset("x", (size,), dtype, fillvalue=fill, **options)
            file["x"][lo:hi] = values_of(dtype, size)[lo:hi]
        array = h5py.File(path, "r")["x"]
    else:
        if options.pop("sharded", False):
            options["shards"] = (3 * chunk,)
        array = zarr.create_array(
            folder / "x.zarr", shape=(size,), dtype=dtype, chunks=(chunk,), fill_value=fill,
            zarr_format=form, **options,
        )  # fmt: skip
        array[lo:hi] = values_of(dtype, size)[lo:hi]
    due, ours = np.asarray(array[:]), gatherable(array, None)
    assert type(ours) is StoredArray
    for _ in range(4):
        start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        np.testing.assert_array_equal(ours[start:stop], due[start:stop])
    ours.close()
    if form == "hdf5":
        array.file.close()


@pytest.mark.parametrize("n", [1, 3, 16, 64, 250])
@pytest.mark.parametrize("step", [1, 5, 63, 64, 65])
def test_gather__in_order_decodes_each_chunk_once(stored, n, step, monkeypatch):
    data, arrays = stored
    decoded = []
    read = StoredArray._decoded

    def counted(self, chunks):
        decoded.extend(chunks.tolist())
        return read(self, chunks)

    monkeypatch.setattr(StoredArray, "_decoded", counted)
    for array in arrays[n]:
        decoded.clear()
        ours = gatherable(array, None)
        parts = [ours[i : i + step] for i in range(0, 200, step)]
        assert np.concatenate(parts).tolist() == data.tolist()
        assert decoded == list(range(-(-200 // n)))
        assert ours[3:9].tolist() == data[3:9].tolist()  # back again
        assert ours[5:7].tolist() == data[5:7].tolist()


@pytest.mark.parametrize(
    ("values", "fine"),
    [
        ([0, 9, 3], True),
        ([0, 10, 3], False),
        ([-1, 2], False),
        ([2**32 + 1], False),  # 1 once cast
        ([2**63 - 1, 0], False),
        ([-(2**63)], False),
    ],
)
def test_gather__limit_sees_before_the_cast(hdf5, values, fine):
    data = np.array([99, *values, 99], np.int64)
    file = hdf5(lambda file: file.create_dataset("x", data=data, chunks=(2,)))
    for ours in (gatherable(file["x"], None), SlicedArray(data), SlicedArray(file["x"])):
        out = np.zeros(len(values), np.int32)
        assert ours.gather(np.array([1]), np.array([1 + len(values)]), out, 10) is fine
    big = SlicedArray(np.array([2**64 - 1], np.uint64))
    assert big.gather(np.array([0]), np.array([1]), np.zeros(1, np.int32), 10) is False


def test_sliced__reads_pieces_of_whole_chunks(monkeypatch):
    """A slice of all would take the memory of the result once more."""
    monkeypatch.setattr(slices, "_SLICE", 400)
    asked = []

    class Array:
        shape, dtype, chunks = (1000,), np.dtype("<i4"), (30,)

        def __getitem__(self, part):
            asked.append((part.start, part.stop))
            return np.arange(part.start, part.stop, dtype="<i4")

    ours = slices.as_gatherable(Array())
    out = np.zeros(300, np.int32)
    assert ours.gather(np.array([5, 400]), np.array([205, 500]), out)
    assert out.tolist() == [*range(5, 205), *range(400, 500)]
    assert asked == [(5, 90), (90, 180), (180, 205), (400, 450), (450, 500)]
    with pytest.raises(OSError, match="entries 0 to 10: only 3 could be read"):
        SlicedArray(np.arange(3)).gather(np.array([0]), np.array([10]), out)


def test_stored__pickles_and_opens_again(stored):
    data, arrays = stored
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n, array in product((3, 64), range(3)):
        ours = gatherable(arrays[n][array], None)
        assert ours[3:60].tolist() == data[3:60].tolist()
        again = pickle.loads(pickle.dumps(ours))  # noqa: S301
        assert again[60:100].tolist() == data[60:100].tolist()
        for one in (ours, again):
            one.close()
            assert one[50:90].tolist() == data[50:90].tolist()
            one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
