"""Cells of units in, appended to files of the worker that reads them; out for any that can read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.scratch import Folder, ScratchArray, ScratchPieces
from streamtrain.spill import Spill
from streamtrain.threads import Threads

_ENDINGS = ".values", ".genes", ".lengths"
Files = tuple[ScratchArray, ScratchArray, ScratchArray]  # values, genes, and lengths of cells


@dataclass(frozen=True, slots=True)
class Part:
    """The taken cells of a unit, normalised, in files of the worker that read them.

    Attributes
    ----------
    path
        Of the files, but for their endings.
    first, n_obs
        Number of its first cell in the files, and its cells.
    start, entries
        Number of its first entry in the files, and its entries.
    by
        Address of that worker.
    """

    path: Path
    first: int
    n_obs: int
    start: int
    entries: int
    by: str

    def lengths(self, files: Files) -> NDArray[np.uint32]:
        """Entries of each cell.

        Raises
        ------
        OSError
            Where the part is not whole in the files.
        """
        values, genes, lengths = files
        found = lengths[self.first : self.first + self.n_obs].astype(np.uint32, copy=False)
        there = min(values.shape[0], genes.shape[0]) >= self.start + self.entries
        if not there or len(found) < self.n_obs or found.sum() != self.entries:
            raise OSError(f"{self.path}: not whole")
        return found

    def rows(self, n_vars: int, dtype: Any, nbytes: float) -> Iterator[Rows]:
        """The cells, about `nbytes` at a time.

        Raises
        ------
        OSError
            Where the files are not, or not whole: another worker's, or one's that has ended.
        """
        with _while_open(ScratchArray.opened, self.path, n_vars, dtype) as files:
            indptr = np.concatenate([[0], np.cumsum(self.lengths(files), dtype=np.int64)])
            each = entry_bytes(n_vars, dtype) * self.entries + 4 * self.n_obs + 1
            step = max(1, int(nbytes * self.n_obs / each))
            for start in range(0, self.n_obs, step):
                edges = indptr[start : start + step + 1]
                span = slice(self.start + int(edges[0]), self.start + int(edges[-1]))
                yield Rows(files[0][span], files[1][span], edges - edges[0], n_vars)


class Written:
    """Files to which a worker appends the cells of all units that it reads in a run.

    They are closed after each unit, as other machines see on a shared disk what was closed.

    Parameters
    ----------
    path
        Of the files, but for their endings.
    n_vars
        Number of genes.
    dtype
        Of the values.
    by
        Address of the worker.
    n_obs, entries
        What is there already; what is behind it is written over.
    """

    def __init__(
        self, path: Path, n_vars: int, dtype: Any, by: str, *, n_obs: int = 0, entries: int = 0
    ) -> None:
        self._given, self._by = (path, n_vars, dtype), by
        self._n_obs, self._entries = n_obs, entries

    def append(self, blocks: Iterable[Rows]) -> Part:
        """Write the cells of a unit; where that fails, the next takes their place."""
        cell, entry = self._n_obs, self._entries
        with _while_open(ScratchArray.named, *self._given) as (values, genes, lengths):
            for rows in blocks:
                values.write(rows.data, entry)
                genes.write(rows.indices, entry)
                lengths.write(np.diff(rows.indptr), cell)
                cell, entry = cell + rows.n_obs, entry + len(rows.data)
        first, start, self._n_obs, self._entries = self._n_obs, self._entries, cell, entry
        return Part(self._given[0], first, cell - first, start, entry - start, self._by)


class Opened:
    """Files of several workers, opened once each, to gather cells of parts from.

    Parameters
    ----------
    n_vars, dtype
        As of `Written`.
    """

    def __init__(self, n_vars: int, dtype: Any) -> None:
        self._given = n_vars, dtype
        self._files: dict[Path, Files] = {}

    def lengths(self, part: Part) -> NDArray[np.uint32]:
        """Entries of each cell; raises OSError where the part is not here, or not whole."""
        if part.path not in self._files:
            self._files[part.path] = _open(ScratchArray.opened, part.path, *self._given)
        return part.lengths(self._files[part.path])

    def spill(self, parts: list[Part], scratch: Folder, threads: Threads) -> Spill:
        """The cells of parts that are here, one part after the other; the rest as of `Spill`."""
        none = np.empty(0, np.uint32)
        lengths = np.concatenate([none, *(self.lengths(part) for part in parts)])
        values, genes = (
            ScratchPieces(
                [(self._files[part.path][i], part.start, part.entries) for part in parts], kind
            )
            for i, kind in enumerate(types_of(*self._given)[:2])
        )
        return Spill.of((values, genes), lengths, self._given[0], scratch, threads=threads)


def files_of(path: Path) -> list[Path]:
    """The files of cells."""
    return [path.with_suffix(ending) for ending in _ENDINGS]


def entry_bytes(n_vars: int, dtype: Any) -> int:
    """Bytes of an entry in the files."""
    return sum(np.dtype(kind).itemsize for kind in types_of(n_vars, dtype)[:2])


def types_of(n_vars: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Of values, genes and lengths of cells, as they are in the files."""
    return dtype, np.uint16 if n_vars <= 2**16 else np.int32, np.uint32


def _open(how: Callable[[Path, Any], ScratchArray], path: Path, n_vars: int, dtype: Any) -> Files:
    values, genes, lengths = (
        how(file, kind) for file, kind in zip(files_of(path), types_of(n_vars, dtype), strict=True)
    )
    return values, genes, lengths


@contextmanager
def _while_open(
    how: Callable[[Path, Any], ScratchArray], path: Path, n_vars: int, dtype: Any
) -> Iterator[Files]:
    """Open files, and close them in the end."""
    files = _open(how, path, n_vars, dtype)
    values, genes, lengths = files
    with closing(values), closing(genes), closing(lengths):
        yield files
