"""One source for every reader: a matrix, an obs frame and gene names enter, a Source leaves."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.rows import Rows
from streamtrain.sources.columns import Frame
from streamtrain.sources.csc import CooMatrix
from streamtrain.sources.damage import within_memory
from streamtrain.sources.matrix import CsrMatrix, Matrix
from streamtrain.threads import Threads


def require_rows(rows: NDArray[np.int64], n_obs: int) -> None:
    """Refuse cells that are not there, or in an order for which the decoders are not made."""
    if (np.diff(rows) <= 0).any():
        raise IndexError("the numbers of cells must be ascending and distinct: sort them first")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < n_obs):
        raise IndexError(f"cells {rows[0]} to {rows[-1]} of {n_obs}")


class MatrixSource:
    """A Source over a matrix, its obs and its genes; see `streamtrain.sources.base.Source`.

    Raises
    ------
    InputError
        Where obs or var has another length than the matrix.
    """

    is_table = False
    _threads: Threads | None = None
    matrix = "X"  # which matrix of an AnnData is read

    def __init__(self, name: str, matrix: Matrix, obs: Frame, genes: NDArray[np.object_]) -> None:
        self.name, self.genes = name, genes
        self.n_obs, self.n_vars = matrix.shape
        self.dtype, self.is_sparse = matrix.dtype, matrix.is_sparse
        self.on_scratch = isinstance(matrix, CooMatrix)  # made anew at the read after a close
        self._matrix: Matrix | None = matrix
        self._obs: Frame | None = obs
        require_length(name, "obs", "cells", len(obs), self.n_obs)
        require_length(name, "var", "genes", len(genes), self.n_vars)

    @property
    def path(self) -> Path | None:
        """Where it lies on disk; None for what is in memory."""
        return None

    def with_threads(self, threads: Threads) -> Self:
        """Give a closed copy, which decodes on `threads`."""
        other = copy(self)
        other._threads = threads
        return other

    def _open(self) -> None:
        """Set `_matrix` and `_obs` again after they were dropped."""

    def _parts(self) -> tuple[Matrix, Frame]:
        if self._matrix is None or self._obs is None:
            self._open()
        if self._matrix is None or self._obs is None:
            raise RuntimeError(f"{self.name} did not open")
        return self._matrix, self._obs

    def obs_columns(self) -> list[str]:
        """Names of the obs columns, the index left out."""
        return self._parts()[1].columns()

    def obs(self, column: str) -> pd.Series[Any]:
        """One obs column, read alone: categorical for text, else numeric or boolean."""
        return self._parts()[1].column(column)

    @property
    def index_name(self) -> str | None:
        """Name of obs's index."""
        return self._parts()[1].index_name

    def own_text(self, column: str) -> bool:
        """Whether an obs column seems to hold a text of its own for each cell, by the first."""
        return self._parts()[1].own_text(column)

    def var(self) -> pd.DataFrame:
        """The columns of var, under the gene names; of a matrix without var none."""
        return pd.DataFrame(index=self.genes)

    def left_out(self) -> list[str]:
        """Names of what else there is beside obs, var and this matrix."""
        return []

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells start to stop, as str."""
        return self._parts()[1].index(start, stop)

    def blocks(
        self, nbytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Row ranges in order, covering the cells start to stop, each at most `nbytes` decoded."""
        return self._parts()[0].blocks(nbytes, start, self.n_obs if stop is None else stop)

    def lengths(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """Stored entries of each cell, shape (stop - start,); None where only reading tells.

        `read` gives fewer for a cell that repeats a gene.
        """
        matrix = self._parts()[0]
        return matrix.lengths(start, stop) if isinstance(matrix, CsrMatrix) else None

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        if not 0 <= start <= stop <= self.n_obs:
            raise IndexError(f"cells {start} to {stop} of {self.n_obs}")
        with within_memory(self.name):
            return self._parts()[0].read(start, stop)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, row numbers ascending and distinct."""
        require_rows(rows, self.n_obs)
        with within_memory(self.name):
            return self._parts()[0].take(rows, compact=compact)

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending, about."""
        return self._parts()[0].decoded_bytes(rows)

    @property
    def decoded(self) -> int:
        """Bytes decoded so far, since it was opened."""
        return self._parts()[0].decoded

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average."""
        return self._parts()[0].cell_entries()

    def close(self) -> None:
        """Delete scratch, if any; a later read makes it again."""
        if self._matrix is not None:
            self._matrix.close()


def require_length(name: str, frame: str, what: str, found: int, due: int) -> None:
    """Refuse an obs or var of another length than the matrix."""
    if found != due:
        raise InputError(
            f"{name}: {frame} has {found} {what} and the matrix {due}: "
            "they must be equal; write the file anew"
        )
