"""Numbered parts of a sum in, in any order and from any hands; the sum out, the same to the bit."""

from __future__ import annotations

import math
from typing import Any, Generic, Protocol, TypeVar


class _Added(Protocol):
    def __add__(self: T, other: T, /) -> T: ...


T = TypeVar("T", bound=_Added)


_LEAST, _MOST = 16_384, 512  # cells of a stretch at least, and stretches at most, about


def stretch_of(n_obs: int) -> int:
    """Cells of a stretch, of which the last may be short; it follows from their number alone.

    A stretch is what a worker of a cluster may take by itself. Its cells are summed one after the
    other, and stretches as a `PairwiseSum`.
    """
    height = max(0, math.ceil(math.log2(max(1, n_obs) / (_LEAST * _MOST))))
    return _LEAST << height


class PairwiseSum(Generic[T]):
    """A sum whose parts are added two by two, as in a binary tree over their numbers.

    Floating-point sums depend on their order, and this one follows from the numbers alone: several
    can take some of the parts each, and then merge. Held are at most as many sums as the number of
    parts has binary digits, for each stretch of parts that follow each other.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], T] = {}  # by height, and place among those as high

    def add(self, value: T, number: int, height: int = 0) -> None:
        """Take a part, or the sum of the `number`-th 2^height parts."""
        while (height, number ^ 1) in self._nodes:
            other = self._nodes.pop((height, number ^ 1))
            value = other + value if number & 1 else value + other
            height, number = height + 1, number >> 1
        self._nodes[height, number] = value

    def merge(self, other: PairwiseSum[T]) -> PairwiseSum[T]:
        """Take what another has taken; it is left as it was."""
        for (height, number), value in other._nodes.items():
            self.add(value, number, height)
        return self

    def total(self, nothing: T | None = None) -> T:
        """Sum of all, in the order of their numbers: what has no neighbour is added from the end.

        Where there are none it is `nothing`.

        Raises
        ------
        ValueError
            If there are none, and `nothing` is not given.
        """
        if not self._nodes:
            if nothing is None:
                raise ValueError("there is nothing to add up")
            return nothing
        start: Any = lambda node: node[0][1] << node[0][0]  # noqa: E731
        (_, total), *rest = sorted(self._nodes.items(), key=start, reverse=True)
        for _, value in rest:
            total = value + total
        return total


def merged(one: PairwiseSum[T], other: PairwiseSum[T]) -> PairwiseSum[T]:
    """What two have taken, in a new one."""
    both: PairwiseSum[T] = PairwiseSum()
    return both.merge(one).merge(other)
