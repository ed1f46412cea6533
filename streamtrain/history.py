"""What each epoch or pass came to, column by column, in; the training curve of a model out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MOST = 1000  # rows of a curve, and one for its end
INDEXES = ("epoch", "pass")
COLUMNS = (
    "n_cells", "loss", "objective", "learning_rate", "accuracy", "macro_f1", "seconds"
)  # fmt: skip
History = dict[str, list[Any]]  # a list for each column, with None for what is no number

Row = tuple[int, int, float, NDArray[np.float64]]  # number, cells, seconds, values (names, columns)


@dataclass(slots=True)
class Curve:
    """Epochs of some columns so far, the last of them and evenly spaced ones before it.

    Attributes
    ----------
    names
        What is known of each column.
    rows
        A row for each epoch that is kept.
    seconds
        Spent on the epoch under way.
    """

    names: list[str]
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, n_cells: int, *values: NDArray[np.float64]) -> None:
        """End an epoch of so many cells.

        Parameters
        ----------
        values
            For each of `names`, shape (columns,); NaN where a column has ended, which then counts
            with its last value.
        """
        number, found = 1, np.array(values, np.float64)
        if self.rows:
            last = self.rows[-1]
            number, found = last[0] + 1, np.where(np.isnan(found), last[3], found)
        step = spacing(number)
        if step > spacing(number - 1):
            self.rows = [row for row in self.rows if (row[0] - 1) % step == 0]
        elif self.rows and (self.rows[-1][0] - 1) % step:
            self.rows.pop()
        self.rows.append((number, n_cells, self.seconds, found))
        self.seconds = 0.0

    def copy(self) -> Curve:
        """The same, to go on by itself."""
        return replace(self, rows=list(self.rows))


def spacing(n: int) -> int:
    """Of n epochs the first is kept and every so-manyth after it: a power of two."""
    step = 1
    while n > step * MOST:
        step *= 2
    return step


def of_epochs(curves: Sequence[Curve]) -> History:
    """The curve of all columns, of which each of `curves` has some, in order.

    Values are means over the columns, seconds those of the slowest.
    """
    longest = max(curves, key=lambda curve: curve.rows[-1][0])
    kept = [(curve, {row[0]: row for row in curve.rows}) for curve in curves]
    found: History = {name: [] for name in ("epoch", "n_cells", *longest.names, "seconds")}
    for number, n_cells, *_ in longest.rows:
        slowest = max(rows[number][2] for _, rows in kept if number in rows)
        each = [rows.get(number, curve.rows[-1])[3] for curve, rows in kept]
        values = np.concatenate(each, axis=1).mean(axis=1)
        row = number, n_cells, *values.tolist(), round(slowest, 6)
        for column, value in zip(found.values(), row, strict=True):
            column.append(value if math.isfinite(value) else None)
    return found


def of_passes(
    objectives: Sequence[Sequence[float]], seconds: Sequence[float], n_cells: int
) -> History:
    """The curve of problems that each have an objective after each of their passes.

    A problem that has ended counts with its last one.
    """
    n = max(map(len, objectives))
    numbers = [*range(1, n, spacing(n)), n]
    means = [
        np.array([one[min(number, len(one)) - 1] for one in objectives]).mean()
        for number in numbers
    ]  # fmt: skip
    return {
        "pass": numbers,
        "n_cells": list(repeat(n_cells, len(numbers))),
        "objective": [float(mean) if math.isfinite(mean) else None for mean in means],
        "seconds": [round(seconds[number - 1], 6) for number in numbers],
    }


def with_macro_f1(history: History | None, macro_f1: NDArray[np.float64] | None) -> History | None:
    """The curve with what cross-validation found after each epoch, shape (epochs, folds)."""
    if history is None or macro_f1 is None:
        return history
    means = macro_f1.mean(axis=1)
    return history | {"macro_f1": [float(means[epoch - 1]) for epoch in history["epoch"]]}


def check(found: Any) -> None:
    """Check a curve that a model says it has.

    Raises
    ------
    InputError
        It is none.
    """
    columns = list(found.values()) if isinstance(found, dict) else []
    of_lists = all(isinstance(column, list) for column in columns)
    indexes = [found[name] for name in INDEXES if name in found] if columns and of_lists else []
    if (
        len(indexes) != 1
        or not indexes[0]
        or not all(type(number) is int for number in indexes[0])
        or {len(column) for column in columns} != {len(indexes[0])}
        or not all(_is_number(x) for column in columns for x in column)
    ):
        raise InputError(
            "provenance: history must be a dict of lists of numbers, as many each as its epoch or "
            f"pass has whole ones; got {found!r:.80}"
        )


def _is_number(x: Any) -> bool:
    return x is None or isinstance(x, float) or (type(x) is int and abs(x) < 2**63)


def index_of(history: History) -> str:
    """Whether a curve goes by epochs or passes."""
    return next(name for name in INDEXES if name in history)


def frame(history: History) -> pd.DataFrame:
    """A curve as a table."""
    import pandas as pd

    index = pd.Index(history[index_of(history)], name=index_of(history))
    known = {name: history[name] for name in COLUMNS if name in history}
    kinds = {name: float for name in known if name != "n_cells"}
    return pd.DataFrame(known, index).astype(kinds)
