"""What a source of cells must offer; every reader below it and every stage above it agree here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.threads import Threads


class Source(Protocol):
    """Cells x genes that can be read as row ranges, with their obs columns and gene names.

    A source is a picklable locator: it opens its file at the first read. `read` is called from one
    thread at a time; names may be asked for meanwhile from another.
    """

    name: str  # what messages call it: a path, or the type of an object in memory
    is_table: bool  # a text file, which CellTypist takes as raw counts and normalises

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        ...

    @property
    def is_sparse(self) -> bool:
        """Whether the matrix is stored sparse (scikit-learn treats its intercept differently)."""
        ...

    @property
    def genes(self) -> NDArray[np.object_]:
        """Gene names as str, shape (n_vars,), duplicates made unique as AnnData does."""
        ...

    def obs_columns(self) -> list[str]:
        """Names of the obs columns, the index left out."""
        ...

    def obs(self, column: str) -> pd.Series[Any]:
        """One obs column, read alone: categorical for text, else numeric or boolean."""
        ...

    def obs_names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells start to stop, as str."""
        ...

    def blocks(
        self, nbytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Row ranges in order, covering the cells start to stop, each at most `nbytes` decoded.

        A range holds at least one cell, and follows the chunks on disk where it can.
        """
        ...

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop: stored dtype, indices int32 ascending, explicit zeros allowed."""
        ...

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, row numbers ascending and distinct; otherwise as `read`.

        With `compact` values and gene positions may come as uint16 where that holds them all.
        """
        ...

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending, about: what `take` decodes."""
        ...

    @property
    def decoded(self) -> int:
        """Bytes decoded so far."""
        ...

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average; of a dense matrix the genes."""
        ...

    def with_threads(self, threads: Threads) -> Self:
        """Give a closed copy, which decodes on `threads`."""
        ...

    def close(self) -> None:
        """Close the file and delete scratch, if any; a later read opens again."""
        ...
