"""A plan and the kept cells in, scaled mini-batches in plan order out, made ahead of the solver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.sampling import Plan, dropped_genes
from streamtrain.streaming import ahead

T = TypeVar("T")
Served = Iterator[tuple[int, NDArray[np.int64], Rows]]  # epoch, planned cells, their expression


@dataclass(frozen=True, slots=True)
class Batch:
    """One mini-batch: its epoch, counted from 0, its places in the plan, and its scaled cells."""

    epoch: int
    at: NDArray[np.int64]
    cells: Any  # `Scaled`, or on a device

    @property
    def codes(self) -> NDArray[np.int32]:
        """Class of each cell."""
        codes: NDArray[np.int32] | None = self.cells.codes
        if codes is None:
            raise ValueError("a batch needs label codes")
        return codes


def planned(
    plan: Plan,
    report: Callable[[int, NDArray[Any]], None] | None = None,
    first: int = 0,
    done: int = 0,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Epoch and cells of every batch of a plan, in order, from the epoch `first` on.

    The first `done` batches of that epoch are left out.

    `report` is called with the number of each epoch, from 0, and its cells before the first batch.
    """
    for epoch in range(first, plan.epochs):
        order = plan.epoch(epoch)
        if report is not None:
            report(epoch, order)
        for start in range(done * plan.batch_size, len(order), plan.batch_size):
            # A copy, which does not keep the whole epoch alive beside the next.
            yield epoch, order[start : start + plan.batch_size].astype(np.int64)
        done = 0


def gathered(
    plan: Plan,
    gather: Callable[[NDArray[np.int64]], Rows],
    report: Callable[[int, NDArray[Any]], None] | None = None,
    first: int = 0,
    done: int = 0,
) -> Served:
    """Epoch, cells and expression of every batch of a plan, in order.

    `gather` gives planned cells by their position in the plan; the rest is as of `planned`.
    """
    for epoch, cells in planned(plan, report, first, done):
        yield epoch, cells, gather(cells)


def batches(
    served: Served,
    codes: NDArray[np.int32],
    scaler: Any,
    *,
    gene_dropout: float = 0.0,
    seed: int = 0,
    numbers: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Scale what is served, with the class of each cell of the plan.

    Each batch goes without a share `gene_dropout` of the genes, drawn by `seed` and the number of
    the batch in the plan: those of `numbers`, or all from 0 on.

    The next batch is scaled ahead, and the one after it gathered: with one step alone the solver
    waited for a tenth of its time.
    """

    def scaled() -> Iterator[Batch]:
        for number, (epoch, cells, rows) in zip(numbers or count(), ahead(served), strict=False):
            scale = scaler
            if gene_dropout:
                n_genes = len(scaler.shift)
                scale = scaler.without(dropped_genes(n_genes, gene_dropout, seed, number))
            yield Batch(epoch, cells, scale(rows.with_codes(codes[cells])))

    return ahead(scaled())


class Waited(Generic[T]):
    """Items as they come, and the seconds that were spent waiting for them."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self.waited = items, 0.0
        self._began: float | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        start = time.perf_counter()
        self._began = start if self._began is None else self._began
        try:
            return next(self._items)
        finally:
            self.waited += time.perf_counter() - start

    @property
    def share(self) -> float:
        """Seconds waited, as a share of those since the first item was asked for."""
        if self._began is None:
            return 0.0
        return self.waited / max(time.perf_counter() - self._began, 1e-9)
