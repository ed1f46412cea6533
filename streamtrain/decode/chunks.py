"""An open HDF5 or zarr array enters; the places of its chunks, and their decoder, leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from streamtrain.decode import codecs
from streamtrain.decode.codecs import Decoder
from streamtrain.decode.files import Files, LocalFiles

_INDEXES = 64  # shard indexes kept: 16 bytes a chunk, about 5 kB each
_MISSING = np.uint64(2**64 - 1)  # zarr's offset of a chunk that was never written


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one chunk lie; `stop` is None for all of a file of its own."""

    key: str
    start: int
    stop: int | None
    decoder: Decoder


class Chunks(Protocol):
    """The chunks of a one-dimensional array, by their number."""

    n: int  # entries of a chunk
    padded: bool  # whether the last chunk is stored as long as the others

    @property
    def files(self) -> Files:
        """Where they lie."""
        ...

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where in the files; None for a chunk that was never written and holds the fill value."""
        ...


@dataclass
class FlatChunks:
    """An uncompressed array in one piece, seen as chunks of `n` entries."""

    files: Files
    n: int
    offset: int
    size: int
    decoder: Decoder
    padded = False

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie."""
        width = self.decoder.dtype.itemsize
        return [
            Place(
                "",
                self.offset + i * self.n * width,
                self.offset + min((i + 1) * self.n, self.size) * width,
                self.decoder,
            )
            for i in chunks.tolist()
        ]


@dataclass
class Hdf5Chunks:
    """Chunks of an HDF5 dataset: offset, size and filter mask of each, 20 bytes, read once."""

    files: Files
    n: int
    decoder: Decoder
    table: NDArray[np.int64]  # offset, or -1 where never written, and size; shape (n_chunks, 2)
    masks: dict[int, int]  # of the chunks that skip filters
    padded = True

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie."""
        found: list[Place | None] = []
        for i, (offset, size) in zip(chunks.tolist(), self.table[chunks].tolist(), strict=True):
            mask = self.masks.get(i, 0)
            decoder = self.decoder.without(mask) if mask else self.decoder
            found.append(None if offset < 0 else Place("", offset, offset + size, decoder))
        return found


@dataclass
class ZarrChunks:
    """Chunks of a zarr array, each a file of its own."""

    files: Files
    n: int
    decoder: Decoder
    metadata: Any
    path: str
    padded = True

    def key(self, i: int) -> str:
        """File of the i-th chunk."""
        name = self.metadata.encode_chunk_key((i,))
        return f"{self.path}/{name}" if self.path else str(name)

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie, if they do."""
        return [Place(self.key(i), 0, None, self.decoder) for i in chunks.tolist()]


@dataclass
class ShardedChunks:
    """Chunks within the shards of a zarr v3 array; indexes of shards are kept, and verified."""

    shards: ZarrChunks
    n: int
    per_shard: int
    at_end: bool
    checksum: bool
    padded = True
    _indexes: OrderedDict[int, NDArray[np.uint64] | None] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    @property
    def files(self) -> Files:
        """Those of the shards."""
        return self.shards.files

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def _index(self, shard: int) -> NDArray[np.uint64] | None:
        """Offset and size of each chunk of a shard; None where there is no such file."""
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        nbytes = 16 * self.per_shard + 4 * self.checksum
        key, files = self.shards.key(shard), self.files
        if self.at_end:
            raw = files.tail(key, nbytes)
        else:
            try:
                raw = files.read(key, 0, nbytes)
            except FileNotFoundError:
                raw = None
        index = None
        if raw is not None:
            if len(raw) != nbytes:
                raise ValueError(f"shard {key} has {len(raw)} bytes, fewer than its index")
            body = codecs.verified(raw) if self.checksum else raw
            index = body.view("<u8").reshape(self.per_shard, 2)
        with self._lock:
            self._indexes[shard] = index
            if len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
        return index

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie, if they do."""
        found: list[Place | None] = []
        for i in chunks.tolist():
            shard, inner = divmod(i, self.per_shard)
            index = self._index(shard)
            if index is None or index[inner, 0] == _MISSING:
                found.append(None)
                continue
            start, size = index[inner].tolist()
            found.append(Place(self.shards.key(shard), start, start + size, self.shards.decoder))
        return found


def of_hdf5(dataset: h5py.Dataset) -> Chunks | None:
    """Chunks of an HDF5 dataset; None where only h5py can read it.

    So it is for data that is virtual, external, behind a user block, in memory or still being
    written, and for filters that `codecs` does not know.
    """
    file = dataset.file
    if (
        file.mode != "r"
        or file.driver not in ("sec2", "stdio")
        or file.userblock_size
        or dataset.is_virtual
        or dataset.external
        or not Path(file.filename).is_file()
    ):
        return None
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[:3:2] for i in range(plist.get_nfilters())]
    decoder = codecs.for_hdf5(filters, dataset.dtype)
    if decoder is None:
        return None
    files = LocalFiles(file.filename)
    if dataset.chunks is None:
        offset = dataset.id.get_offset()  # None: compact in its header, or never written
        n = max(1, (1 << 20) // dataset.dtype.itemsize)
        return None if offset is None else FlatChunks(files, n, offset, len(dataset), decoder)
    n = int(dataset.chunks[0])
    table = np.full((-(-len(dataset) // n), 2), -1, np.int64)
    masks: dict[int, int] = {}

    def note(info: Any) -> None:
        i = info.chunk_offset[0] // n
        if i < len(table):  # a dataset that shrank may keep chunks beyond its end
            table[i] = info.byte_offset, info.size
            if info.filter_mask:
                masks[i] = info.filter_mask

    dataset.id.chunk_iter(note)  # one pass over the B-tree; get_chunk_info walks it for each chunk
    return Hdf5Chunks(files, n, decoder, table, masks)


def of_zarr(array: Any) -> Chunks | None:
    """Chunks of a zarr array; None where only zarr can read it.

    So it is in a .zip file or in memory, and with codecs that `codecs` does not know.
    """
    from zarr.storage import LocalStore

    store = array.store_path.store
    if not isinstance(store, LocalStore):
        return None
    files: Files = LocalFiles(store.root)
    metadata, path = array.metadata, array.path
    if metadata.zarr_format == 2:
        compressor = metadata.compressor
        config = None if compressor is None else compressor.get_config()
        filters = metadata.filters
        decoder = codecs.for_zarr2(config, filters, metadata.dtype.to_native_dtype())
        if decoder is None:
            return None
        return ZarrChunks(files, int(array.chunks[0]), decoder, metadata, path)
    chain: Sequence[dict[str, Any]] = metadata.to_dict()["codecs"]
    if chain[0]["name"] != "sharding_indexed":
        decoder = codecs.for_zarr3(chain, array.dtype)
        if decoder is None:
            return None
        return ZarrChunks(files, int(array.chunks[0]), decoder, metadata, path)
    if len(chain) > 1:
        return None
    sharding = chain[0]["configuration"]
    decoder = codecs.for_zarr3(sharding["codecs"], array.dtype)
    index = [codec["name"] for codec in sharding["index_codecs"]]
    little = sharding["index_codecs"][0].get("configuration", {}).get("endian") == "little"
    if decoder is None or index not in (["bytes"], ["bytes", "crc32c"]) or not little:
        return None
    shard, n = int(array.shards[0]), int(array.chunks[0])
    shards = ZarrChunks(files, shard, decoder, metadata, path)
    at_end = sharding.get("index_location", "end") == "end"
    return ShardedChunks(shards, n, shard // n, at_end, "crc32c" in index)
