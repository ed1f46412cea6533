"""Blocks of cells enter; an AnnData on disk whose matrix and obs grow by them leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from threading import Lock
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import write_elem
from isal import isal_zlib
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

Store = Callable[[int, NDArray[Any]], None]  # the first row of a chunk, and its values

# CPU time a cell of 2,550 genes to encode: blosc (lz4, bitshuffle) 13 us, and its byte shuffle
# left 6.2 kB a cell instead of 5.5; zstd (level 3, as anndata's default) 74 us; gzip (shuffle,
# ISA-L) 34 us; none is bound by the disk. lzf is left to h5py, one chunk at a time. The first of
# each is the default.
COMPRESSION = {".h5ad": ("none", "lzf", "gzip"), ".zarr": ("blosc", "none", "zstd")}
# Bytes on disk of an entry, as measured on cells of 2,552 (of 25: a quarter less with gzip and
# zstd), and of a cell's obs and indptr.
ENTRY_BYTES = {
    codec: nbytes / 2_552
    for codec, nbytes in {
        "none": 20_416, "lzf": 5_700, "blosc": 5_500, "zstd": 5_000, "gzip": 4_200
    }.items()
}  # fmt: skip
CELL_BYTES = {".h5ad": 80, ".zarr": 5}
H5_CHUNK, ZARR_CHUNK = 1 << 18, 1 << 20  # entries; HDF5's cache holds chunks up to 1 MB
_NAMES = 1 << 16  # rows of a chunk of obs
_GZIP_LEVEL, _ZSTD_LEVEL, _LZ4_LEVEL = 1, 3, 5


def lay_out(
    root: Any, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any], n_obs: int, named: Any
) -> Any:
    """Write all of an AnnData but its matrix and columns of obs, and return the empty group X.

    anndata lays out its own format for no cells; what it made is then only appended to. `named`
    goes to every array: `shards` for zarr, since anndata warns wherever it is left to decide.
    """
    write_elem(root, "/", AnnData(obs=obs, var=var, uns=uns), dataset_kwargs=named)
    if "raw" in root:  # the mark that there is none, at which anndata's own backed mode stumbles
        del root["raw"]
    x, shape = root.create_group("X"), [n_obs, len(var)]
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    return x


def compressor(codec: str) -> Any:
    """The codec of a zarr array, for its metadata."""
    return {
        "none": None,
        "zstd": ZstdCodec(level=_ZSTD_LEVEL),
        "blosc": BloscCodec(cname="lz4", clevel=_LZ4_LEVEL, shuffle="bitshuffle"),
    }[codec]


def encoder(codec: str) -> Callable[[NDArray[Any]], Any]:
    """The same codec as a function: zarr's one event loop took 26 us a cell more.

    Blosc on a thread of a pool has one thread, and so gives the same bytes each time.
    """
    encode: Callable[[NDArray[Any]], Any] = {
        "none": lambda values: values,
        "zstd": Zstd(_ZSTD_LEVEL).encode,
        "blosc": Blosc("lz4", _LZ4_LEVEL, Blosc.BITSHUFFLE).encode,
    }[codec]
    return encode


class GrowingAnnData:
    """An AnnData on disk that cells are appended to, as rows of a CSR matrix; a context manager.

    Parameters
    ----------
    path
        Where to create it.
    kind, codec
        A key of `COMPRESSION` and one of its values, for the matrix.
    obs
        The columns and their dtypes, with no cells.
    var, uns
        As they shall stand in the file.
    n_obs
        Number of cells that will have been appended in the end.
    pool
        Threads that compress and write the chunks of the matrix.
    n_jobs
        Twice as many chunks may wait for the pool.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        codec: str,
        *,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        uns: dict[str, Any],
        n_obs: int,
        pool: Executor,
        n_jobs: int,
    ) -> None:
        self.h5, self.codec, self.nnz = kind == ".h5ad", codec, 0
        self.root: Any = (
            h5py.File(path, "w") if self.h5 else zarr.open_group(path, mode="w", zarr_format=3)
        )
        self.queue = _Queue(pool, 2 * n_jobs)
        try:
            self._lay_out(obs, var, uns, n_obs)
        except BaseException:  # there will be no __exit__ to close the file
            self._close()
            raise

    def _lay_out(
        self, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any], n_obs: int
    ) -> None:
        named: dict[str, Any] = {} if self.h5 else {"shards": None}
        x = lay_out(self.root, obs[[]], var, uns, n_obs, named)
        grows = {"maxshape": (None,)} if self.h5 else named
        write_elem(self.root, "obs", obs, dataset_kwargs={**grows, "chunks": (_NAMES,)})
        store = _hdf5_store if self.h5 else _zarr_store
        self.columns = {"indptr": _Column(self._create(x, "indptr", np.int64))}
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            array: Any = self._create(x, name, dtype)
            if self.codec == "lzf":
                self.columns[name] = _Column(array)
            else:
                self.columns[name] = _Column(array, store(array, self.codec), self.queue)
        for name in ("_index", *obs):
            array = self.root[f"obs/{name}"]
            self.columns[name] = _Column(array["codes"] if hasattr(array, "keys") else array)
        self.columns["indptr"].append(np.zeros(1, np.int64))

    def _create(self, group: Any, name: str, dtype: type) -> Any:
        if not self.h5:
            return group.create_array(
                name, shape=(0,), dtype=dtype, chunks=(ZARR_CHUNK,),
                compressors=compressor(self.codec),
            )  # fmt: skip
        filters = {
            "none": {},
            "lzf": {"compression": "lzf", "shuffle": True},
            "gzip": {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True},
        }[self.codec]
        return group.create_dataset(
            name, shape=(0,), dtype=dtype, maxshape=(None,), chunks=(H5_CHUNK,), **filters
        )

    def append(
        self,
        data: NDArray[np.float32],
        indices: NDArray[np.int32],
        indptr: NDArray[np.int64],
        names: list[str],
        obs: dict[str, NDArray[Any]],
    ) -> None:
        """Append cells: the rows of a CSR matrix, their names and, for categories, their codes."""
        self.columns["data"].append(data)
        self.columns["indices"].append(indices)
        self.columns["indptr"].append(indptr[1:] + self.nnz)
        self.columns["_index"].append(np.array(names, object))
        for name, values in obs.items():
            self.columns[name].append(values)
        self.nnz += len(data)

    def _narrow(self) -> None:
        """Store indptr as int32 where it fits: scipy wants one type for indices and indptr."""
        if self.nnz < 2**31:
            values = self.root["X/indptr"][:].astype(np.int32)
            del self.root["X/indptr"]
            array = self._create(self.root["X"], "indptr", np.int32)
            array.resize(values.shape)
            array[:] = values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                for column in self.columns.values():
                    column.flush()
                self.queue.finish()
                for column in self.columns.values():
                    column.array.resize((column.end,))
                self._narrow()
        finally:
            # Whatever failed, be it here: no thread may write to a file that is closed.
            self.queue.cancel()
            self._close()

    def _close(self) -> None:
        if self.h5:
            self.root.close()


class _Queue:
    """Tasks on a pool, of which a few may wait."""

    def __init__(self, pool: Executor, limit: int) -> None:
        self.pool, self.limit = pool, limit
        self.waiting: deque[Future[None]] = deque()

    def submit(self, task: Callable[..., None], *arguments: Any) -> None:
        """Have a task run; blocks while as many as the limit wait, and raises what one raised."""
        while len(self.waiting) >= self.limit:
            self.waiting[0].result()  # stays listed, should an interrupt end the wait for it
            self.waiting.popleft()
        self.waiting.append(self.pool.submit(task, *arguments))

    def finish(self) -> None:
        """Wait for every task, and raise what one raised."""
        for task in self.waiting:
            task.result()

    def cancel(self) -> None:
        """Cancel the tasks not begun, and wait for those that run."""
        wait([task for task in self.waiting if not task.cancel()])


class _Column:
    """A growing array on disk that takes rows and stores whole chunks, on a queue or at once."""

    def __init__(self, array: Any, store: Store | None = None, queue: _Queue | None = None) -> None:
        self.array, self.queue = array, queue
        self.store = store or _by_library(array)
        self.chunk: int = array.chunks[0]
        self.buffer: NDArray[Any] | None = None
        self.n = self.end = 0  # rows in the buffer, and rows handed on

    def append(self, values: NDArray[Any]) -> None:
        while len(values):
            if self.buffer is None:
                self.buffer = np.empty(self.chunk, values.dtype)
            taken = min(self.chunk - self.n, len(values))
            self.buffer[self.n : self.n + taken] = values[:taken]
            self.n += taken
            values = values[taken:]
            if self.n == self.chunk:
                self.flush()

    def flush(self) -> None:
        """Store what is in the buffer; only the last chunk may be short of rows."""
        if self.buffer is not None:
            chunk = self.end, self.buffer[: self.n]
            if self.queue is None:
                self.store(*chunk)
            else:
                self.queue.submit(self.store, *chunk)
            self.buffer, self.n, self.end = None, 0, self.end + self.n


def _by_library(array: Any) -> Store:
    def store(start: int, values: NDArray[Any]) -> None:
        array.resize((start + len(values),))
        array[start:] = values

    return store


def _zarr_store(array: Any, codec: str) -> Store:
    encode = encoder(codec)
    folder, chunk = Path(array.store_path.store.root, array.path), array.chunks[0]

    def store(start: int, values: NDArray[Any]) -> None:
        path = folder / array.metadata.encode_chunk_key((start // chunk,))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(padded(values, chunk)))

    return store


def _hdf5_store(array: Any, codec: str) -> Store:
    """Encode on the thread that calls: HDF5 does so under one lock (152 us a cell for gzip)."""
    encode = {"none": lambda values: values, "gzip": _gzip}[codec]
    lock, chunk = Lock(), array.chunks[0]

    def store(start: int, values: NDArray[Any]) -> None:
        encoded = encode(padded(values, chunk))
        with lock:
            array.resize((max(array.shape[0], start + len(values)),))
            array.id.write_direct_chunk((start,), encoded)

    return store


def padded(values: NDArray[Any], n: int) -> NDArray[Any]:
    """Fill a chunk up to its length, as both formats have it on disk."""
    return values if len(values) == n else np.pad(values, (0, n - len(values)))


def _shuffled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Put the first bytes of all values first, as HDF5's shuffle filter does."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T).reshape(-1)


def _gzip(values: NDArray[Any]) -> bytes:
    """Deflate by ISA-L: 34 us a cell with the shuffle, a fifth of zlib's time at level 1."""
    return isal_zlib.compress(_shuffled(values), _GZIP_LEVEL)
