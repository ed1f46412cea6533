"""An open zarr array enters; the places of its chunks, and their decoder, leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.decode import codecs
from streamtrain.decode.chunks import Chunks, Place
from streamtrain.decode.codecs import Decoder
from streamtrain.decode.files import Files, LocalFiles, Opened
from streamtrain.errors import InputError

_INDEXES = 64  # shard indexes kept: 16 bytes a chunk, about 5 kB each
_MISSING = 2**64 - 1  # offset and size of a chunk that was never written


@dataclass
class ZarrChunks:
    """Chunks of a zarr array, each a file of its own."""

    files: Files
    n: int
    decoder: Decoder
    metadata: Any
    path: str
    padded = True
    told = False

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
    told = True
    _indexes: OrderedDict[int, Future[NDArray[np.uint64] | None]] = field(
        default_factory=OrderedDict
    )
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
            found = self._indexes.get(shard)
            if found is not None:
                self._indexes.move_to_end(shard)
            else:  # others that ask meanwhile wait for it
                mine = self._indexes[shard] = Future()
                if len(self._indexes) > _INDEXES:
                    self._indexes.popitem(last=False)
        if found is not None:
            return found.result()
        try:
            mine.set_result(self._read_index(shard))
        except BaseException as error:
            with self._lock:
                self._indexes.pop(shard, None)
            mine.set_exception(error)
        return mine.result()

    def _read_index(self, shard: int) -> NDArray[np.uint64] | None:
        nbytes = 16 * self.per_shard + 4 * self.checksum
        key, files = self.shards.key(shard), self.files
        if self.at_end:
            raw = files.tail(key, nbytes)
        else:
            try:
                raw = files.read(key, 0, nbytes)
            except FileNotFoundError:
                raw = None
        if raw is None:
            return None
        if len(raw) != nbytes:
            raise ValueError(f"shard {key} has {len(raw)} bytes, fewer than its index")
        body = codecs.verified(raw) if self.checksum else raw
        return body.view("<u8").reshape(self.per_shard, 2)

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie, if they do."""
        found: list[Place | None] = []
        for i in chunks.tolist():
            shard, inner = divmod(i, self.per_shard)
            index = self._index(shard)
            key, decoder = self.shards.key(shard), self.shards.decoder
            if index is None:  # no such file
                found.append(Place(key, 0, None, decoder))
                continue
            start, size = index[inner].tolist()
            left_out = start == size == _MISSING
            found.append(None if left_out else Place(key, start, start + size, decoder))
        return found


def missing(name: str, array: str, which: str) -> InputError:
    """Word the error for a chunk that zarr would take for zeros."""
    return InputError(
        f"{name} is damaged: in {array} the chunk {which} is missing, and would be read as zeros; "
        "restore it from a copy. If its writer left it out, as it holds zeros alone, write it anew "
        "with zarr.config.set({'array.write_empty_chunks': True})"
    )


def require_chunks(array: Any) -> None:
    """Refuse a zarr array, to be read by zarr, whose chunks are not all there, now or later.

    Raises
    ------
    InputError
        Where one is missing now; later the store does, if it is one of `sources`.
    """
    store = array.store_path.store
    if hasattr(store, "watched"):
        store.watched.complete.add(array.path)
    elif array.nchunks_initialized < array.nchunks:
        raise missing(str(store), array.path, "of some entries")


def watch_texts(array: Any) -> None:
    """Have the store check how many texts a chunk claims, for which numcodecs makes room first.

    Of stores of `sources`, and codecs that are known.
    """
    watched = getattr(array.store_path.store, "watched", None)
    steps = codecs.before_texts(array.metadata)
    if watched is not None and steps is not None:
        watched.texts[array.path] = steps


def of_zarr(array: Any) -> Chunks | None:
    """Chunks of a zarr array; None where only zarr can read it.

    So it is in a .zip file or in memory, and with codecs that `codecs` does not know.
    """
    from zarr.storage import LocalStore

    store = array.store_path.store
    files: Files | None = getattr(store, "files", None)  # which stores of `sources` bring along
    if files is None and isinstance(store, LocalStore):
        files = LocalFiles(store.root, opened=Opened(str(store.root)))
    if files is None:
        return None
    metadata, path = array.metadata, array.path
    if metadata.zarr_format == 2:
        compressor = metadata.compressor
        config = None if compressor is None else compressor.get_config()
        filters = metadata.filters
        decoder = codecs.for_zarr2(config, filters, metadata.dtype.to_native_dtype())
        if decoder is None:
            return None
        return ZarrChunks(files, int(array.chunks[0]), decoder, metadata, path)
    named = metadata.to_dict()
    if named["chunk_grid"]["name"] != "regular":
        return None
    chain: Sequence[dict[str, Any]] = named["codecs"]
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
