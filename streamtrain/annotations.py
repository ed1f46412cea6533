"""Labels and confidences of cells enter, block by block; a DataFrame or a table on disk leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.atomic import check_output, replacing
from streamtrain.obs_columns import Column, ObsFile, warn_of_leftovers
from streamtrain.scratch import Folder, ScratchArray, require_free
from streamtrain.voting import Clusters

UNASSIGNED = "Unassigned"
TABLES = (".parquet", ".csv", ".csv.gz")
_PIECE = 1 << 20  # codes read from scratch at a time


@dataclass(frozen=True, slots=True)
class Calls:
    """Annotations of cells that follow each other.

    Attributes
    ----------
    position
        Of the first cell, among the selected.
    codes
        Position of each cell's label among the labels, shape (n_obs,), int32.
    values
        The confidence and, where asked for, a number for each cell type, shape (n_obs, 1) or
        (n_obs, 1 + n_types), float64.
    """

    position: int
    codes: NDArray[np.int32]
    values: NDArray[np.float64]


class JoinedLabels:
    """Labels that join the names of several cell types by "|"; their list grows as they occur.

    Attributes
    ----------
    names
        The labels so far.
    """

    def __init__(self, cell_types: NDArray[np.object_]) -> None:
        self.names: list[str] = []
        self._cell_types = cell_types
        self._codes: dict[str, int] = {}

    def codes(self, flags: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Code of the label of each cell; `flags` are (n_obs, n_types)."""
        found, first, which = np.unique(
            np.packbits(flags, axis=1), axis=0, return_index=True, return_inverse=True
        )
        kinds = np.unpackbits(found, axis=1, count=flags.shape[1]).astype(bool)
        table = np.empty(len(kinds), np.int32)
        for i in np.argsort(first):  # so that codes do not depend on how cells are cut
            table[i] = self._code("|".join(self._cell_types[kinds[i]]) or UNASSIGNED)
        return table[which.reshape(-1)]

    def recoded(self, codes: NDArray[np.int32], names: list[str]) -> NDArray[np.int32]:
        """Codes here of the next cells, whose labels another has numbered, as `names` are."""
        return np.array([self._code(name) for name in names], np.int32)[codes]

    def _code(self, label: str) -> int:
        if label not in self._codes:
            self._codes[label] = len(self.names)
            self.names.append(label)
        return self._codes[label]


class Kept:
    """Calls on scratch, column by column: written once, read again in blocks or as whole columns.

    Parameters
    ----------
    calls
        The stream; it is consumed here.
    n_obs, n_values
        Number of cells, and of values of a cell.
    scratch
        Folder for the files.

    Raises
    ------
    InputError
        If the folder has not enough space.
    """

    def __init__(self, calls: Iterable[Calls], n_obs: int, n_values: int, scratch: Folder) -> None:
        require_free(scratch, n_obs * (4 + 8 * n_values), "keeping the predictions")
        self._n_obs, self._n_values = n_obs, n_values
        self._codes = ScratchArray(scratch, np.int32)
        self._values = ScratchArray(scratch, np.float64)
        self._blocks: list[tuple[int, int]] = []
        for block in calls:
            stop = block.position + len(block.codes)
            self._blocks.append((block.position, stop))
            self._codes.append(block.codes)
            for k in range(n_values):
                self._values.write(block.values[:, k], k * n_obs + block.position)

    def __iter__(self) -> Iterator[Calls]:
        for start, stop in self._blocks:
            values = np.empty((stop - start, self._n_values))
            for k in range(self._n_values):
                values[:, k] = self._values[k * self._n_obs + start : k * self._n_obs + stop]
            yield Calls(start, self._codes[start:stop], values)

    def pieces(self) -> Iterator[NDArray[np.int32]]:
        """All codes, in pieces that follow each other."""
        for start in range(0, self._n_obs, _PIECE):
            yield self._codes[start : start + _PIECE]

    def codes(self) -> NDArray[np.int32]:
        """All codes, shape (n_obs,)."""
        return self._codes[:]

    def value(self, k: int) -> NDArray[np.float64]:
        """One value of every cell, shape (n_obs,)."""
        return self._values[k * self._n_obs : (k + 1) * self._n_obs]


@dataclass
class Layout:
    """What the columns of a result are called and what stands in them.

    Attributes
    ----------
    labels
        The label of each code.
    fixed
        Whether all labels are known from the start.
    details
        Cell types whose numbers are given as well.
    names
        Gives the names of the cells start to stop, among the selected.
    clusters, majority
        For majority voting: the cluster of each cell, and the label of each cluster.
    """

    labels: list[str]
    fixed: bool
    details: list[str]
    names: Callable[[int, int], NDArray[np.object_]]
    clusters: Clusters | None = None
    majority: pd.Categorical | None = None

    def label_columns(
        self, position: int, codes: NDArray[np.int32], complete: bool
    ) -> dict[str, Any]:
        """Labels by cell, and by cluster; as text where further labels may come."""
        labels = np.array(self.labels, dtype=object)
        called: Any
        if self.fixed or complete:
            order = np.arange(len(labels)) if self.fixed else np.argsort(labels)
            place = np.argsort(order).astype(np.int32)
            called = pd.Categorical.from_codes(place[codes], pd.Index(labels[order]))
        else:
            called = labels[codes]
        columns = {"predicted_labels": called}
        if self.clusters is not None and self.majority is not None:
            cluster = self.clusters.codes[position : position + len(codes)]
            columns["over_clustering"] = pd.Categorical.from_codes(cluster, self.clusters.names)
            columns["majority_voting"] = self.majority[cluster]
        return columns

    def frame(self, calls: Calls, complete: bool = False) -> pd.DataFrame:
        """Give some cells as a table, indexed by their names."""
        stop = calls.position + len(calls.codes)
        index = pd.Index(self.names(calls.position, stop), name="cell")
        columns = self.label_columns(calls.position, calls.codes, complete)
        labels = pd.DataFrame(columns, index=index)
        numbers = pd.DataFrame(calls.values, columns=["conf_score", *self.details], index=index)
        return pd.concat([labels, numbers], axis=1)


class Output(Protocol):
    """Where annotations go."""

    def check(self, columns: list[str]) -> None:
        """Refuse columns that cannot stand there, before any work is spent on them."""
        ...

    def write(self, layout: Layout, calls: Iterable[Calls]) -> pd.DataFrame | None:
        """Take all calls; give what predict() returns."""
        ...


class Frame:
    """One DataFrame in memory."""

    def check(self, columns: list[str]) -> None:
        """Refuse nothing."""

    def write(self, layout: Layout, calls: Iterable[Calls]) -> pd.DataFrame:
        """Give all cells as one table."""
        blocks = list(calls)
        codes = np.concatenate([block.codes for block in blocks])
        values = np.concatenate([block.values for block in blocks])
        return layout.frame(Calls(0, codes, values), complete=True)


class TableFile:
    """A parquet or CSV file, which grows block by block beside its place and then takes it."""

    def __init__(self, out: str | os.PathLike[str], overwrite: bool) -> None:
        self._path, self._overwrite = Path(out), overwrite
        target = check_output(self._path, overwrite, folder=False)
        warn_of_leftovers(target.parent, target.name)

    def check(self, columns: list[str]) -> None:
        """Refuse nothing."""

    def write(self, layout: Layout, calls: Iterable[Calls]) -> None:
        """Append the cells, a block at a time."""
        blocks = (layout.frame(block) for block in calls)
        with replacing(self._path, self._overwrite, folder=False) as partial:
            if self._path.suffix.lower() == ".parquet":
                _write_parquet(partial, blocks)
                return
            gzip: Any = "gzip" if self._path.suffix.lower() == ".gz" else None
            for n, block in enumerate(blocks):
                block.to_csv(partial, mode="a", header=n == 0, compression=gzip)


def _write_parquet(path: Path, blocks: Iterator[pd.DataFrame]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = (pa.Table.from_pandas(b.reset_index(), preserve_index=False) for b in blocks)
    first = next(tables)
    with closing(pq.ParquetWriter(path, first.schema)) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


class ObsOutput:
    """Columns of obs, in a copy of the input or in the input itself.

    Parameters
    ----------
    file
        Where they go.
    prefix
        Of their names.
    n_obs, rows
        Number of cells of the input, and those that are annotated (None: all).
    scratch
        Folder that keeps the calls until all are there.
    given
        Column of obs that is read, and so left as it is where a result has its name: with `rows`
        the result would hold less.
    """

    def __init__(
        self,
        file: ObsFile,
        prefix: str,
        n_obs: int,
        rows: NDArray[np.int64] | None,
        scratch: Folder,
        given: str | None = None,
    ) -> None:
        self._file, self._prefix = file, prefix
        self._given = given
        self._n_obs, self._rows, self._scratch = n_obs, rows, scratch

    def check(self, columns: list[str]) -> None:
        """Refuse columns that the file has, or cannot have."""
        self._file.check([self._prefix + name for name in columns if not self._is_given(name)])

    def write(self, layout: Layout, calls: Iterable[Calls]) -> None:
        """Add the columns, one at a time."""
        if not isinstance(calls, Kept):
            n = self._n_obs if self._rows is None else len(self._rows)
            calls = Kept(calls, n, 1 + len(layout.details), self._scratch)
        self._file.write(self._columns(layout, calls))

    def _is_given(self, name: str) -> bool:
        return name == "over_clustering" and self._prefix + name == self._given

    def _columns(self, layout: Layout, kept: Kept) -> Iterator[tuple[str, Column]]:
        for name, labels in layout.label_columns(0, kept.codes(), complete=True).items():
            if self._is_given(name):
                continue
            column = labels.remove_unused_categories()
            if self._rows is not None:
                codes = np.full(self._n_obs, -1, column.codes.dtype)
                codes[self._rows] = column.codes
                column = pd.Categorical.from_codes(codes, dtype=column.dtype)
            yield self._prefix + name, column
        for k, name in enumerate(["conf_score", *layout.details]):
            values = kept.value(k)
            if self._rows is not None:
                spread = np.full(self._n_obs, np.nan)
                spread[self._rows] = values
                values = spread
            yield self._prefix + name, values
