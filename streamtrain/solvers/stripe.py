"""The arrays that SGD keeps of some columns; taken apart and joined in, stripes for threads out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Columns(NamedTuple):
    """What training keeps of some columns (one-vs-rest classifiers): the last axis is theirs.

    U and the sum A of the average have the weights' dtype, shape (genes, columns), as has `paid`,
    the L1 penalty that each weight has paid; the others are float64, shape (columns,): c, q = W'm
    / a, the intercepts b, the sums ac and ab, the L1 penalty `owed` by a weight that paid it all,
    the norms |W|^2 and |W|_1 as of the last step, the sums of `loss` and `penalty` before each
    step, and the factors of a step for the class's own cells and for the others. A has no rows
    without averaging, nor has `paid` without an L1 penalty.
    """

    U: NDArray[Any]
    A: NDArray[Any]
    paid: NDArray[Any]
    c: NDArray[np.float64]
    q: NDArray[np.float64]
    b: NDArray[np.float64]
    ac: NDArray[np.float64]
    ab: NDArray[np.float64]
    owed: NDArray[np.float64]
    square: NDArray[np.float64]
    absolute: NDArray[np.float64]
    loss: NDArray[np.float64]
    penalty: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]


class Stripe:
    """Some columns, of one step size: threads share the columns, never the arrays.

    `slowed` counts the divisions of its step, `averaged` the steps of its average once frozen.
    """

    def __init__(
        self,
        columns: NDArray[np.int64],
        w: Columns,
        scalars: NDArray[np.float64],
        slowed: int = 0,
        averaged: int | None = None,
    ) -> None:
        self.columns, self.w, self.scalars = columns, w, scalars
        self.slowed, self.averaged = slowed, averaged

    def take(self, at: Any) -> Stripe:
        """A copy of some of the columns, by position, slice or mask."""
        w = Columns(*(np.ascontiguousarray(array[..., at]) for array in self.w))
        return Stripe(self.columns[at], w, self.scalars.copy(), self.slowed)

    @staticmethod
    def join(parts: list[Stripe]) -> Stripe:
        """The columns of stripes of equal scalars."""
        w = Columns(*map(np.hstack, zip(*(part.w for part in parts), strict=True)))
        columns = np.concatenate([part.columns for part in parts])
        return Stripe(columns, w, parts[0].scalars, parts[0].slowed)

    def column_of(self, n_classes: int) -> NDArray[np.int32]:
        """Place of each class among these columns, -1 where it has none."""
        place = np.full(n_classes, -1, np.int32)
        # With two classes the one column stands for the second.
        place[self.columns + (n_classes == 2)] = np.arange(len(self.columns))
        return place
