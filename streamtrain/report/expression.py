"""Labelled cells and some genes enter, cells streamed; how each type expresses them leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.budget import BLOCK, READING_RESERVE, format_bytes, parse_bytes
from streamtrain.cells import Cells, Labels, expression_of, labelled_cells
from streamtrain.errors import InputError
from streamtrain.expression import Expression, Normalize
from streamtrain.progress import counted
from streamtrain.querying import files_of, opened
from streamtrain.rows import Rows
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource
from streamtrain.streaming import sweep

_CELLS = 1 << 16  # of a block, at most


@dataclass(frozen=True, eq=False)
class MarkerExpression:
    """How the cells of each type express some genes: tables of types by genes.

    Attributes
    ----------
    share
        Share of the type's cells that express the gene; NaN where no file with such cells has it.
    mean
        Mean over these cells of the log1p-normalised expression, zeros included; NaN as above.
    n_cells
        Cells of each type.
    absent
        Genes asked for that no file has.
    """

    share: pd.DataFrame
    mean: pd.DataFrame
    n_cells: pd.Series[int]
    absent: list[str]


def marker_expression(
    X: Any,
    labels: Labels,
    markers: str | Iterable[str],
    genes: Any = None,
    *,
    where: str | None = None,
    drop_unlabeled: bool = False,
    normalize: Normalize = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    transpose_input: bool = False,
    memory: int | str | None = None,
    scratch: str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> MarkerExpression:
    """Go once over labelled cells, keeping sums of some genes for each cell type.

    Parameters
    ----------
    X, labels, genes, where, drop_unlabeled, normalize, check_expression, layer, gene_key, \
transpose_input, memory, scratch, n_jobs, progress, storage_options
        As of `evaluate_model`.
    markers
        Names of the genes, of which each counts once; or one name.

    Raises
    ------
    InputError
        If X or labels cannot be used.
    FileNotFoundError
        If X does not exist.
    """
    budget = parse_bytes(memory)
    with opened(
        files_of(X, storage_options), genes, normalize=normalize,
        check_expression=check_expression, layer=layer, gene_key=gene_key,
        transpose_input=transpose_input, budget=budget, scratch=scratch, n_jobs=n_jobs,
        device=None, client=None, progress=progress,
    ) as (source, threads):  # fmt: skip
        cells = labelled_cells(source, labels, where=where, drop_unlabeled=drop_unlabeled, least=1)
        names = [markers] if isinstance(markers, str) else markers
        sums = _Sums(source, cells, list(dict.fromkeys(names)))
        check: Literal["range"] | None = "range" if check_expression else None
        expression = expression_of(
            source, cells.rows, normalize=normalize, dtype=np.float64, threads=threads, check=check
        )
        for position, rows in _expressed(source, cells, expression, budget, progress):
            sums.add(rows, position)
    return sums.found()


def _expressed(
    source: Source, cells: Cells, expression: Expression, budget: int, progress: bool
) -> Iterator[tuple[int, Rows]]:
    """Go over the cells, normalised; what evaluation has warned of is not said twice."""
    # Alive at a time are two blocks as stored, and one normalised in float64.
    room = (budget - READING_RESERVE) // 10
    if room <= 0:
        raise InputError(
            f"memory={format_bytes(budget)} is too small to read cells: more than "
            f"{format_bytes(READING_RESERVE)} is needed: raise it (--memory)"
        )
    stored = sweep(source, cells.rows, min(room, BLOCK), _CELLS)
    for position, block in counted(stored, "Markers", cells.n_obs, show=progress):
        yield position, expression(block, position)


class _Sums:
    """Sums of marker genes over the cells of each type, which come in order.

    A gene that a file lacks is no zero there: its cells do not count for it.
    """

    def __init__(self, source: Source, cells: Cells, markers: list[str]) -> None:
        self._cells, self._markers = cells, markers
        at = pd.Index(source.genes).get_indexer(pd.Index(self._markers, dtype=object))
        self._slot = np.full(source.n_vars, -1, np.int32)
        self._slot[at[at >= 0]] = np.flatnonzero(at >= 0)
        self._ends, self._held = _held(source, cells.rows, at)
        shape = (len(cells.classes), len(at))
        self.total, self.expressing = np.zeros(shape), np.zeros(shape, np.int64)
        self.seen = np.zeros((len(self._ends), len(cells.classes)), np.int64)

    def add(self, rows: Rows, position: int) -> None:
        """Count the cells from `position` on; zeros are not stored."""
        codes = self._cells.codes[position : position + rows.n_obs]
        files = np.searchsorted(self._ends, np.arange(position, position + rows.n_obs), "right")
        np.add.at(self.seen, (files, codes), 1)
        slots = self._slot[rows.indices]
        entries = np.flatnonzero(slots >= 0)
        of = codes[np.searchsorted(rows.indptr, entries, "right") - 1].astype(np.int64)
        place = of * self.total.shape[1] + slots[entries]
        size, shape = self.total.size, self.total.shape
        self.total += np.bincount(place, rows.data[entries], size).reshape(shape)
        self.expressing += np.bincount(place, minlength=size).reshape(shape)

    def found(self) -> MarkerExpression:
        """What the sums say."""
        types = pd.Index(self._cells.classes, dtype=object, name="cell_type")
        n = self.seen.T @ self._held  # cells of each type in files that have the gene
        there = np.flatnonzero(self._held.any(axis=0))
        absent = np.flatnonzero(~self._held.any(axis=0))
        names = pd.Index(self._markers, dtype=object, name="gene")
        with np.errstate(invalid="ignore"):
            share, mean = (
                pd.DataFrame((sums / n)[:, there], index=types, columns=names[there])
                for sums in (self.expressing, self.total)
            )
        n_cells = pd.Series(self.seen.sum(axis=0), index=types)
        return MarkerExpression(share, mean, n_cells, [str(name) for name in names[absent]])


def _held(
    source: Source, rows: NDArray[np.int64] | None, at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the cells of each file end among those taken; which genes it has (files, genes)."""
    n_obs = source.n_obs if rows is None else len(rows)
    if not isinstance(source, CollectionSource):
        return np.array([n_obs]), (at >= 0)[None].astype(np.int64)
    ends = np.cumsum([member.n_obs for member in source.members])
    ends = ends if rows is None else np.searchsorted(rows, ends)
    every = np.ones(source.n_vars, bool)
    marks = [source.held(i) for i in range(len(ends))]
    held = [(at >= 0) & (every if mark is None else mark)[at] for mark in marks]
    return ends.astype(np.int64), np.array(held, np.int64)
