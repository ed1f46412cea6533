"""Cells enter in their final order; a sharded zarr AnnData leaves, resumable at any cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.partial import GrowingFile, State
from streamtrain.rows import Rows
from streamtrain.shards import ShardWriter
from streamtrain.writing import compressor, lay_out

# Cells of a chunk of obs and of indptr, and chunks of a shard: 20 MB of names as Python has them.
_NAMES, _PER_SHARD = 1 << 16, 4
_NULLABLE = ("boolean", *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)))


@dataclass(frozen=True, slots=True)
class Named:
    """Cells with their names and checksums.

    Attributes
    ----------
    rows
        The cells.
    text, ends
        Their names in UTF-8, one after the other, uint8, and where each ends, shape (n_obs,).
    sums
        As `kernels.checksum` makes them, shape (n_obs,), uint64.
    """

    rows: Rows
    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    sums: NDArray[np.uint64]


def create(
    folder: Path, name: str, columns: Iterator[tuple[str, pd.Series[Any]]], var: pd.DataFrame,
    uns: dict[str, Any], n_obs: int, arrays: dict[str, np.dtype[Any]], codec: str,
    chunk: int, shard: int, index_name: str | None = None,
) -> None:  # fmt: skip
    """Write an AnnData with all columns of obs, whose names and matrix are yet empty.

    Parameters
    ----------
    name
        The source, for messages.
    columns
        Names and values of the columns of obs, taken and written one after the other.
    arrays
        Types of X's data and indices.
    chunk, shard
        Their entries.
    index_name
        Of obs.

    Raises
    ------
    InputError
        If a column cannot stand in an AnnData.
    OSError
        If a column reads back as other than was written.
    """
    for column, values in var.items():
        _require_plain(f"var column {column!r} of {name}", str(column), values)
    root: Any = zarr.open_group(folder, mode="w", zarr_format=3)
    index = pd.Index([], dtype=str, name=index_name)
    x = lay_out(root, pd.DataFrame(index=index), var, uns, n_obs, {"shards": None})
    found = read_elem(root["var"])
    for column, values in var.items():
        _require_same(f"var column {column!r} of {name}", found[column].array, values.array)
    for key, dtype in arrays.items():
        x.create_array(
            key, shape=(0,), dtype=dtype, chunks=(chunk,), shards=(shard,),
            compressors=compressor(codec),
        )  # fmt: skip
    obs, order, layout = root["obs"], [], _layout(n_obs)
    for column, series in columns:
        what = f"obs column {column!r} of {name}"
        _require_plain(what, column, series)
        array = series.to_numpy() if isinstance(series.dtype, np.dtype) else series.array
        write_elem(obs, column, array, dataset_kwargs=layout)
        _require_same(what, read_elem(obs[column]), array)
        order.append(column)
    obs.attrs["column-order"] = order
    key = obs.attrs["_index"]
    del obs[key]
    write_elem(obs, key, np.empty(0, object), dataset_kwargs=layout)


def _require_plain(what: str, name: str, values: pd.Series[Any]) -> None:
    """Refuse what AnnData does not store."""
    if name == "_index" or "/" in name:
        raise InputError(f"{what}: AnnData on disk has no place for that name; rename it")
    kind: Any = values.dtype
    word = f"type {kind}"
    if isinstance(kind, pd.CategoricalDtype):
        kind = kind.categories.dtype
        word = f"categories of type {kind}"
    if isinstance(kind, np.dtype):
        stored = kind.kind in "biuO" or (kind.kind == "f" and kind.itemsize <= 8)
    else:
        stored = isinstance(kind, pd.StringDtype) or str(kind) in _NULLABLE
    if not stored:
        raise InputError(
            f"{what} has {word}, which AnnData does not store: make it text or a number, or drop it"
        )


def _require_same(what: str, found: Any, written: Any) -> None:
    if not _same(found, written):
        raise OSError(f"{what} reads back as something else: the disk may be faulty")


def digest(store: Path) -> str:
    """Checksum of all columns of obs and var as they stand on disk."""
    obs = zarr.open_group(store / "obs", mode="r", use_consolidated=False)
    names = store / "obs" / str(obs.attrs["_index"])  # these come with the cells
    total = hashlib.sha256()
    for path in sorted(path for part in ("obs", "var") for path in (store / part).rglob("*")):
        if path.is_file() and names not in path.parents:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(store)}\0{content}\n".encode())
    return total.hexdigest()


def _same(found: Any, written: Any) -> bool:
    """Whether a column is what was written; how text is held may differ."""
    a, b = pd.Series(found), pd.Series(written)
    if isinstance(b.dtype, pd.CategoricalDtype) and isinstance(a.dtype, pd.CategoricalDtype):
        same = list(a.cat.categories) == list(b.cat.categories) and a.cat.ordered == b.cat.ordered
        return same and np.array_equal(a.cat.codes, b.cat.codes)
    return a.equals(b) or (a.dtype != b.dtype and a.astype(object).equals(b.astype(object)))


def _layout(n_obs: int) -> dict[str, Any]:
    chunk = max(1, min(n_obs, _NAMES))
    return {"chunks": (chunk,), "shards": (_PER_SHARD * chunk,) if n_obs > chunk else None}


class CellFiles:
    """What each cell of an AnnData has beside its entries, kept in files until the end.

    Parameters
    ----------
    folder
        Where its names, lengths and checksums are kept: 20 bytes a cell and the names.
    store
        The AnnData that `create` laid out, within `folder`.
    state
        As `ShardedAnnData.commit` gave it; {} to begin.
    """

    def __init__(self, folder: Path, store: Path, state: State) -> None:
        self.root: Any = zarr.open_group(store, mode="r+", use_consolidated=False)
        self._folder = folder
        self.n_obs: int = state.get("n_obs", 0)
        kinds = {"lengths": np.uint32, "sums": np.uint64, "name_lengths": np.uint32}
        self.files = {
            name: GrowingFile(folder / name, dtype, self.n_obs) for name, dtype in kinds.items()
        }
        self.files["names"] = GrowingFile(folder / "names", np.uint8, state.get("names", 0))

    def append_names(
        self, text: NDArray[np.uint8], lengths: NDArray[np.int64], sums: NDArray[np.uint64]
    ) -> None:
        """Append names of cells, all their text and the length of each, and checksums."""
        self.files["sums"].append(sums)
        self.files["name_lengths"].append(lengths)
        self.files["names"].append(text)
        self.n_obs += len(sums)

    def finish_cells(self, nnz: int) -> None:
        """Write the offsets and the names, and set the length of the matrix."""
        for name in ("data", "indices"):
            self.root[f"X/{name}"].resize((nnz,))
        self._write_offsets(nnz)
        self._write_names()

    def _write_offsets(self, nnz: int) -> None:
        x, n = self.root["X"], self.n_obs
        # scipy wants one type for indices and indptr, where it can.
        dtype = np.int32 if nnz < 2**31 else np.int64
        array = x.create_array(
            "indptr", shape=(n + 1,), dtype=dtype, overwrite=True, compressors=compressor("blosc"),
            **_layout(n + 1),
        )  # fmt: skip
        end = 0
        for start in range(0, n + 1, _PER_SHARD * _NAMES):
            lengths = self.files["lengths"][max(0, start - 1) : start + _PER_SHARD * _NAMES - 1]
            offsets = end + np.cumsum(lengths, dtype=np.int64)
            if start == 0:
                offsets = np.concatenate([[0], offsets])
            array[start : start + len(offsets)] = offsets.astype(dtype)
            end = int(offsets[-1])

    def _write_names(self) -> None:
        obs: Any = self.root["obs"]
        array = obs[obs.attrs["_index"]]
        array.resize((self.n_obs,))
        at = 0
        for start in range(0, self.n_obs, _PER_SHARD * _NAMES):
            ends = at + np.cumsum(
                self.files["name_lengths"][start : start + _PER_SHARD * _NAMES], dtype=np.int64
            )
            text = self.files["names"][at : int(ends[-1])].tobytes()
            cuts = [0, *(ends - at).tolist()]
            names = [text[a:b].decode() for a, b in pairwise(cuts)]
            array[start : start + len(names)] = np.array(names, object)
            at = int(ends[-1])

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()


class ShardedAnnData(CellFiles):
    """Appends cells to the AnnData that `create` laid out; a context manager.

    Parameters
    ----------
    folder, store, state
        As of `CellFiles`.
    codec
        Of X.
    pool, limit
        Threads that encode, and chunks that may wait for them.
    """

    def __init__(
        self, folder: Path, store: Path, codec: str, pool: Executor, limit: int, state: State
    ) -> None:
        super().__init__(folder, store, state)
        self._turn: int = state.get("turn", 0)
        self._writers = {}
        for name in ("data", "indices"):
            file = self._tail_file(name, self._turn, state.get("tail", 0))
            self._writers[name] = ShardWriter(
                self.root[f"X/{name}"], codec, pool, limit, state.get(name, {}), file[:]
            )
            file.close()

    def _tail_file(self, name: str, turn: int, n: int) -> GrowingFile:
        dtype = self.root[f"X/{name}"].dtype
        return GrowingFile(self._folder / f"{name}.tail{turn}", dtype, n)

    def append(self, cells: Named) -> None:
        """Append cells."""
        rows = cells.rows
        self._writers["data"].append(rows.data)
        self._writers["indices"].append(rows.indices)
        self.files["lengths"].append(np.diff(rows.indptr))
        self.append_names(cells.text, np.diff(cells.ends, prepend=0), cells.sums)

    def commit(self) -> State:
        """Have all that was appended written to the disk, and return what going on needs.

        Of that, `files` holds the bytes of each file, by its path within the folder.
        """
        self._turn = 1 - self._turn  # the journal still tells of the other tail
        names = self.files["names"].length
        state: State = {"n_obs": self.n_obs, "names": names, "turn": self._turn}
        written: list[tuple[Path, int]] = []
        for name, writer in self._writers.items():
            state[name], tail = writer.commit()
            file = self._tail_file(name, self._turn, 0)
            file.append(tail)
            file.sync()
            file.close()
            state["tail"] = len(tail)
            written += [(file.path, file.nbytes), *writer.files()]
        for growing in self.files.values():
            growing.sync()
            written.append((growing.path, growing.nbytes))
        state["files"] = {str(path.relative_to(self._folder)): size for path, size in written}
        return state

    def finish(self) -> None:
        """Write what is left, the offsets and the names."""
        for writer in self._writers.values():
            writer.finish()
        self.finish_cells(self._writers["data"].length)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        super().close()
