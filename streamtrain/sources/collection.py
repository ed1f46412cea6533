"""Several files as one source: members and the join of their genes enter, a Source leaves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, near
from streamtrain.expression import Normalize
from streamtrain.kernels import csr, remap
from streamtrain.rows import Rows, stack
from streamtrain.sources.base import Source
from streamtrain.sources.forms import FileReport, form_of, require_one_form
from streamtrain.sources.genes import Genes
from streamtrain.sources.join_var import join_var
from streamtrain.sources.joins import distinct_names, is_text, join_columns, join_genes, same
from streamtrain.sources.matrix import parts_of
from streamtrain.sources.members import Members
from streamtrain.sources.opened import MatrixSource, require_rows
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

FILE = "file"  # obs column with the file of each cell, but where a file has its own of that name
OPEN = 4  # files open at a time: 60 of HDF5 that were read hold 0.57 GB of caches


class CollectionSource:
    """Cells of several files, one file after the other; see `streamtrain.sources.base.Source`.

    All files are opened at once, so that a broken one is found before anything is read, and four
    are kept open from then on, but for those that were transposed through scratch.

    Parameters
    ----------
    members
        The files.
    open_member
        Opens one of them.
    join
        Which genes; see `join_genes`. Values of other genes are left out, and their sums handed
        on with the rows, so that cells are normalised over all genes of their file.

    Raises
    ------
    InputError
        Where one cannot be read, or they cannot be joined.
    """

    is_table = False

    def __init__(
        self, members: Members, open_member: Callable[[Any], MatrixSource], join: Genes | None
    ) -> None:
        self.name, self._lock = members.name, threading.RLock()
        self._decoded = 0
        self._open: dict[int, int] = {}  # readers of each open file, the longest unused first
        self.files, self.members = members.names, []
        self._columns: list[list[str]] = []
        index_names = set()
        try:
            for i, item in enumerate(members.items):
                self.members.append(_opened(open_member, item, members.names[i]))
                with self._using(i) as member:
                    self._columns.append(member.obs_columns())
                    index_names.add(member.index_name)
            _share_names(self.members)
            self.genes = join_genes(self.files, [m.genes for m in self.members], join)
        except BaseException:
            self.close()
            raise
        self.n_vars = len(self.genes)
        self._starts = np.cumsum([0, *(m.n_obs for m in self.members)], dtype=np.int64)
        self.n_obs = int(self._starts[-1])
        self.dtype = np.result_type(*(m.dtype for m in self.members))
        self.is_sparse = any(m.is_sparse for m in self.members)
        index: Any = pd.Index(self.genes)
        # Where each gene of a file stands in the collection, -1 for nowhere; None for the same.
        self._positions = [
            None if same(m.genes, self.genes) else index.get_indexer(m.genes).astype(np.int32)
            for m in self.members
        ]
        self.index_name = index_names.pop() if len(index_names) == 1 else None
        self._var: tuple[pd.DataFrame, list[str]] | None = None
        self._report: list[FileReport] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @contextmanager
    def _using(self, i: int) -> Iterator[MatrixSource]:
        """Keep a file open meanwhile; close the longest unused one beyond `OPEN`."""
        member = self.members[i]
        with self._lock:
            if i not in self._open:
                member.obs_columns()  # opens it, so that two threads do not
            self._open[i] = self._open.pop(i, 0) + 1
            # To transpose a file anew costs more than its handle.
            open_ones = [j for j in self._open if not self.members[j].on_scratch]
            idle = [j for j in open_ones if not self._open[j]]
            for j in idle[: max(0, len(open_ones) - OPEN)]:
                self.members[j].close()
                del self._open[j]
        try:
            yield member
        finally:
            with self._lock:
                if self._open.get(i):  # not closed meanwhile
                    self._open[i] -= 1

    def locate(self, row: int) -> tuple[int, int]:
        """File of a cell, as its position in `files`, and the row number there."""
        i = int(np.searchsorted(self._starts, row, side="right")) - 1
        return i, row - int(self._starts[i])

    def by_file(self) -> list[tuple[str, MatrixSource]]:
        """Name and source of each file."""
        return list(zip(self.files, self.members, strict=True))

    def held(self, file: int) -> NDArray[np.bool_] | None:
        """Which of the genes a file has, shape (n_vars,); None for all."""
        position = self._positions[file]
        if position is None:
            return None
        marks = np.zeros(self.n_vars, bool)
        marks[position[position >= 0]] = True
        return marks

    def obs_columns(self) -> list[str]:
        """Names of the obs columns of any file, the index left out, and `file`."""
        return list(dict.fromkeys([*(name for part in self._columns for name in part), FILE]))

    def lacking(self, column: str) -> list[str]:
        """Files without an obs column."""
        if column == FILE and not any(FILE in part for part in self._columns):
            return []
        return [f for f, part in zip(self.files, self._columns, strict=True) if column not in part]

    def obs(self, column: str) -> pd.Series[Any]:
        """One obs column of all files; missing for the cells of a file without it."""
        if column not in self.obs_columns():
            raise InputError(
                f"obs of {self.name} has no column {column!r}: {near(column, self.obs_columns())}"
            )
        lengths = np.diff(self._starts).tolist()
        if column == FILE and not any(FILE in part for part in self._columns):
            codes = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
            names = pd.Index(distinct_names(self.files), dtype=object)
            return pd.Series(pd.Categorical.from_codes(codes, categories=names), name=FILE)
        parts: list[pd.Series[Any] | None] = []
        for i, columns in enumerate(self._columns):
            with self._using(i) as member:
                parts.append(member.obs(column) if column in columns else None)
        if column == FILE and all(is_text(part) for part in parts if part is not None):
            for i, (name, n) in enumerate(zip(distinct_names(self.files), lengths, strict=True)):
                if parts[i] is None:
                    categories = pd.Index([name], dtype=object)
                    parts[i] = pd.Series(
                        pd.Categorical.from_codes(np.zeros(n, np.int8), categories=categories)
                    )
        return join_columns(column, self.files, parts, lengths)

    def own_text(self, column: str) -> bool:
        """Whether an obs column holds, in some file, a text of its own for each cell."""
        for i, columns in enumerate(self._columns):
            with self._using(i) as member:
                if column in columns and member.own_text(column):
                    return True
        return False

    def _joined_var(self) -> tuple[pd.DataFrame, list[str]]:
        if self._var is None:
            self._var = join_var(self.genes, self._vars())
        return self._var

    def _vars(self) -> Iterator[pd.DataFrame]:
        for i in range(len(self.members)):
            with self._using(i) as member:
                yield member.var()

    def var(self) -> pd.DataFrame:
        """The columns of var in which no two files differ, under the gene names."""
        return self._joined_var()[0]

    def left_out(self) -> list[str]:
        """Names of what else the files hold beside obs, var and the matrix that is read."""
        names: dict[str, None] = {}
        for i in range(len(self.members)):
            with self._using(i) as member:
                names |= dict.fromkeys(member.left_out())
        differ = [f"var/{name} (files differ)" for name in self._joined_var()[1]]
        return [*names, *differ]

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells start to stop, as str; two files may use the same."""
        parts = [np.empty(0, object)]
        for i, low, high in parts_of(self._starts, start, stop):
            with self._using(i) as member:
                parts.append(member.obs_names(low, high))
        return np.concatenate(parts)

    def blocks(
        self, nbytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Row ranges in order, covering the cells start to stop; none spans two files."""
        for i, low, high in parts_of(self._starts, start, self.n_obs if stop is None else stop):
            first = int(self._starts[i])
            with self._using(i) as member:
                entry = member.dtype.itemsize + 4
                kept = self._positions[i] is None and member.dtype == self.dtype
                copied = 0 if kept else self.dtype.itemsize + 4
                # While cells are remapped they are there twice.
                own = max(1, nbytes * entry // (entry + copied))
                for begin, end in member.blocks(own, low, high):
                    yield first + begin, first + end

    def lengths(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """Stored entries of each cell, shape (stop - start,); None where only reading tells."""
        found = [np.empty(0, np.int64)]
        for i, low, high in parts_of(self._starts, start, stop):
            position = self._positions[i]
            if position is not None and np.any(position < 0):
                return None
            with self._using(i) as member:
                lengths = member.lengths(low, high)
            if lengths is None:
                return None
            found.append(lengths)
        return np.concatenate(found)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        if not 0 <= start <= stop <= self.n_obs:
            raise IndexError(f"cells {start} to {stop} of {self.n_obs}")
        parts = []
        for i, low, high in parts_of(self._starts, start, stop):
            with self._using(i) as member:
                before = member.decoded
                parts.append(self._joined(i, member.read(low, high)))
                self._decoded += member.decoded - before
        return stack(parts, self.n_vars, self.dtype)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """Cells `rows`, ascending and distinct."""
        require_rows(rows, self.n_obs)
        edges = np.searchsorted(rows, self._starts)
        parts = []
        for i in np.flatnonzero(np.diff(edges)).tolist():
            with self._using(i) as member:
                own, before = rows[edges[i] : edges[i + 1]] - self._starts[i], member.decoded
                parts.append(self._joined(i, member.take(own, compact=compact), compact))
                self._decoded += member.decoded - before
        return stack(parts, self.n_vars, self.dtype)

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending, about."""
        edges, found = np.searchsorted(rows, self._starts), 0
        for i in np.flatnonzero(np.diff(edges)).tolist():
            with self._using(i) as member:
                found += member.decoded_bytes(rows[edges[i] : edges[i + 1]] - self._starts[i])
        return found

    @property
    def decoded(self) -> int:
        """Bytes decoded so far."""
        return self._decoded

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average, taking all genes as equally expressed."""
        entries = 0.0
        for i, member in enumerate(self.members):
            held, n_vars = self.held(i), max(1, member.n_vars)
            share = 1.0 if held is None else np.count_nonzero(held) / n_vars
            with self._using(i):
                entries += member.cell_entries() * share * member.n_obs
        return entries / max(1, self.n_obs)

    def _joined(self, i: int, rows: Rows, compact: bool = False) -> Rows:
        """Cells of a file with the collection's genes; the same arrays where these are the same."""
        position = self._positions[i]
        dtype = rows.data.dtype if compact and rows.data.dtype == np.uint16 else self.dtype
        if position is None:
            data = rows.data.astype(dtype, copy=False)
            return Rows(data, rows.indices, rows.indptr, self.n_vars)
        data = np.empty(len(rows.data), dtype)
        indices = np.empty(len(rows.data), np.int32)
        indptr = csr.select_genes(rows.data, rows.indices, rows.indptr, position, data, indices)
        n = indptr[-1]
        data, indices = data[:n], indices[:n]
        if 2 * n < len(rows.data):  # so that what is left out does not stay in memory
            data, indices = data.copy(), indices.copy()
        held = position[position >= 0]
        if np.any(held[1:] < held[:-1]):
            remap.sort_genes(data, indices, indptr, self.n_vars)
        left_out = None
        if len(held) < len(position):
            left_out = np.zeros((rows.n_obs, 2))
            remap.sum_left_out(rows.data, rows.indices, rows.indptr, position, left_out)
        return Rows(data, indices, indptr, self.n_vars, left_out=left_out)

    def report(self) -> list[FileReport]:
        """What each file brings; reads its first 1,000 cells, once."""
        if self._report is None:
            self._report = []
            for i, file in enumerate(self.files):
                with self._using(i) as m:
                    at = self._positions[i]
                    matched = m.n_vars if at is None else int(np.count_nonzero(at >= 0))
                    self._report.append(
                        FileReport(file, m.n_obs, m.n_vars, matched, m.matrix, form_of(m))
                    )
        return self._report

    def with_threads(self, threads: Threads) -> CollectionSource:
        """Give a closed copy, which decodes on `threads`."""
        other = copy(self)
        other.members = [member.with_threads(threads) for member in self.members]
        return other

    def close(self) -> None:
        """Close all files and delete scratch, if any; a later read opens again."""
        for member in self.members:
            member.close()
        self._open.clear()


def _opened(open_member: Callable[[Any], MatrixSource], item: Any, name: str) -> MatrixSource:
    try:
        return open_member(item)
    except InputError as error:
        if str(item) == name:  # a path, which the message has
            raise
        raise InputError(f"{name}: {error}") from error


def _share_names(members: list[MatrixSource]) -> None:
    """Keep each gene's name once: 30,000 of them take 2 MB in every file."""
    seen: dict[str, str] = {}
    lists: dict[tuple[str, ...], NDArray[np.object_]] = {}
    for member in members:
        names = tuple(seen.setdefault(name, name) for name in member.genes)
        member.genes = lists.setdefault(names, np.array(names, dtype=object))


def lacking(source: Source, column: str) -> list[str]:
    """Files of a collection without an obs column; none for another source."""
    return source.lacking(column) if isinstance(source, CollectionSource) else []


def report_files(
    source: Source, normalize: Normalize, check: Literal["sum", "range"] | None
) -> None:
    """Log what each file of a collection brings; nothing for another source.

    Raises
    ------
    InputError
        With `check`, where some files hold the values that are due and some do not; see
        `require_one_form`.
    """
    if not isinstance(source, CollectionSource):
        return
    for report in source.report():
        logger.info("%s", report)
    if check is not None:
        require_one_form(source.name, source.report(), normalize, check)
