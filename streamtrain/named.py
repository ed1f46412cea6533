"""A source and rows of it enter; its cells leave in storage order, with names and checksums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.kernels import checksum
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.sharded import Named
from streamtrain.sources.base import Source
from streamtrain.sources.columns import plain_text
from streamtrain.streaming import sweep
from streamtrain.threads import Threads
from streamtrain.writing import encoder

PER_CELL = 400  # bytes of a name as text and bytes, its sum, place and offsets, while it is moved
_SLICE = 1 << 20  # cells whose positions are held at a time beside the order
_SAMPLES, _SAMPLE = 8, 64  # stretches of cells, and cells of each, that sizes are estimated from


@dataclass(frozen=True, slots=True)
class NamedCells:
    """Cells of a source, to be read with their names and checksums.

    Attributes
    ----------
    source
        Where they are.
    rows
        Their row numbers, ascending, shape (n_obs,), or None for all.
    threads
        Threads that make the checksums.
    progress
        Whether to show progress.
    """

    source: Source
    rows: NDArray[np.int64] | None
    threads: Threads
    progress: bool

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)

    def names(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names of the cells `start` to `stop`."""
        if self.rows is None:
            return self.source.obs_names(start, stop)
        wanted = self.rows[start:stop]
        first = int(wanted[0])
        return self.source.obs_names(first, int(wanted[-1]) + 1)[wanted - first]

    def obs(self, column: str, order: NDArray[Any] | None) -> pd.Series[Any]:
        """One column of obs, in the order `order` of these cells."""
        values = plain_text(self.source.obs(column))
        if self.rows is not None:
            values = values.iloc[self.rows]
        if order is None:
            return values
        pieces = [values.iloc[order[a : a + _SLICE]] for a in range(0, len(order), _SLICE)]
        return pd.concat(pieces) if len(pieces) > 1 else pieces[0]

    def stream(self, start: int, nbytes: int, stage: str) -> Iterator[tuple[int, Named]]:
        """Cells from `start` on in storage order, with their position, blocks of `nbytes`."""
        most = max(1, nbytes // PER_CELL)
        blocks = sweep(self.source, self.rows, nbytes, most, start)
        for position, rows in counted(blocks, stage, self.n_obs, show=self.progress):
            yield position, self._named(position, rows)

    def _named(self, position: int, rows: Rows) -> Named:
        """Add names and checksums to cells."""
        names = [str(n).encode() for n in self.names(position, position + rows.n_obs)]
        text = np.frombuffer(b"".join(names), np.uint8)
        ends = np.cumsum([len(n) for n in names], dtype=np.int64)
        sums = np.empty(rows.n_obs, np.uint64)
        bits = rows.data.view(f"u{rows.data.itemsize}")
        self.threads.share(
            rows.n_obs,
            lambda lo, hi: checksum.cell_sums(bits, rows.indices, rows.indptr, lo, hi, sums),
        )
        checksum.add_name_sums(text, ends, sums)
        return Named(rows, text, ends, sums)

    def sizes(self, codec: str, index_dtype: str) -> tuple[float, float]:
        """Entries of a cell, and bytes that they take on disk, from some stretches of cells."""
        n, entries, encoded, seen = self.n_obs, 0, 0, 0
        encode = encoder(codec)
        for first in np.unique(np.linspace(0, max(0, n - _SAMPLE), _SAMPLES).astype(int)).tolist():
            last = min(first + _SAMPLE, n)
            chosen = np.arange(first, last) if self.rows is None else self.rows[first:last]
            low = int(chosen[0])
            # A selection may lie scattered: as many cells again as it has are read at most.
            chosen = chosen[chosen < low + 2 * _SAMPLE]
            rows = self.source.read(low, int(chosen[-1]) + 1).take(chosen - low)
            seen, entries = seen + rows.n_obs, entries + len(rows.data)
            if len(rows.data):
                indices = rows.indices.astype(index_dtype)
                encoded += sum(len(memoryview(encode(a)).cast("B")) for a in (rows.data, indices))
        return entries / seen, encoded / seen
