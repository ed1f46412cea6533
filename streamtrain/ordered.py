"""Planned cells enter in storage order, batches of rows leave in plan order, through scratch.

An external shuffle of exactly the sampled cells: every byte is written and read in one stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import Served, planned
from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.scratch import Folder
from streamtrain.spill import Spill
from streamtrain.threads import Threads


def windows(
    plan: Plan, size: int, report: Callable[[int, NDArray[Any]], None] | None = None
) -> Iterator[list[tuple[int, NDArray[np.int64]]]]:
    """Epoch and cells of the batches of a plan, `size` batches at a time; `report` as `planned`."""
    held = []
    for batch in planned(plan, report):
        held.append(batch)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def cells_of(window: list[tuple[int, NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Every cell of a window's batches once, ascending."""
    return np.unique(np.concatenate([cells for _, cells in window]))


class PlanOrder:
    """The cells of each window of a plan on scratch of its own.

    Parameters
    ----------
    plan
        Whose cells are numbered as they will be appended.
    size
        Batches of a window.
    n_vars, dtype, scratch, counts, threads
        As of `Spill`.
    """

    def __init__(
        self,
        plan: Plan,
        size: int,
        n_vars: int,
        dtype: Any,
        scratch: Folder,
        *,
        counts: bool = False,
        threads: Threads | None = None,
    ) -> None:
        self._plan, self._size = plan, size
        # 4 bytes a draw: which cells of the sweep each window waits for.
        self._cells = [cells_of(window).astype(np.uint32) for window in windows(plan, size)]
        self._spills: list[Spill] = []
        self.read = 0  # bytes so far
        try:
            for _ in self._cells:
                self._spills.append(Spill(n_vars, dtype, scratch, counts=counts, threads=threads))
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> float:
        """Entries of a cell, on average, of the first window still here."""
        return self._spills[0].entries if self._spills else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes on scratch."""
        return sum(spill.nbytes for spill in self._spills)

    def append(self, rows: Rows, cells: NDArray[np.int64]) -> None:
        """Write `rows`, which are the planned `cells`, ascending, where they are needed."""
        if len(cells) == 0:
            return
        ends = np.array([cells[0], cells[-1] + 1], np.uint32)  # another type would copy `wanted`
        for wanted, spill in zip(self._cells, self._spills, strict=True):
            lo, hi = np.searchsorted(wanted, ends).tolist()
            if lo < hi:
                spill.append(rows.take(np.searchsorted(cells, wanted[lo:hi])))

    def finish(self) -> None:
        """End the writing."""
        for spill in self._spills:
            spill.finish()

    def serve(self, report: Callable[[int, NDArray[Any]], None] | None = None) -> Served:
        """Epoch, cells and rows of every batch; a window's scratch goes when it was served.

        `report` is as of `planned`.
        """
        for window in windows(self._plan, self._size, report):
            wanted, spill = self._cells.pop(0), self._spills.pop(0)
            with spill:
                for epoch, cells in window:
                    rows = spill.gather(np.searchsorted(wanted, cells), np.int32)
                    self.read += len(rows.data) * spill.entry_bytes
                    yield epoch, cells, rows

    def close(self) -> None:
        """Give the scratch back."""
        while self._spills:
            self._spills.pop().close()
