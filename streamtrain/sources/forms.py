"""The first cells of a file enter; in which form its values are leaves: counts, log1p, or other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import BLOCK
from streamtrain.errors import InputError, some
from streamtrain.expression import MAX_LOG1P, TARGET_SUM, TOLERANCE, Normalize
from streamtrain.kernels import expression as kernel
from streamtrain.rows import Rows
from streamtrain.sources.base import Source

FIRST = 1000  # cells that tell, as in CellTypist
COUNTS, LOG1P, EMPTY = "counts", "log1p of 10,000", "no expression"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one file brings to a collection.

    Attributes
    ----------
    file
        Its name.
    n_obs, n_vars
        Its cells and genes.
    n_matched
        Those of its genes that the collection has.
    matrix
        What is read of it: X, raw/X or layers/NAME.
    form
        Its values, by the first 1,000 cells: "counts", "log1p of 10,000", "no expression", or
        "other: " and what they look like.
    """

    file: str
    n_obs: int
    n_vars: int
    n_matched: int
    matrix: str
    form: str

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.file}: {self.n_obs:,} cells, {self.n_vars:,} genes of which "
            f"{self.n_matched:,} are taken, {self.matrix}: {self.form}"
        )


@dataclass(frozen=True, slots=True)
class Values:
    """What was seen of some cells' values.

    Attributes
    ----------
    totals
        Sum of each cell that is not zero after expm1, shape (n,): of the values as they are.
    logged
        The same after expm1.
    low, high
        The least and the highest value; zeros that are not stored count.
    entries
        Stored entries of a cell, on average.
    flags
        What the kernel noted, of all cells together.
    """

    totals: NDArray[np.float64]
    logged: NDArray[np.float64]
    low: float
    high: float
    entries: float
    flags: int

    @property
    def form(self) -> str:
        """Their form in words; see `FileReport`."""
        if self.flags & kernel.NOT_FINITE:
            return "other: not finite"
        if self.flags & kernel.NEGATIVE:
            return "other: negative values"
        if len(self.logged) == 0:
            return EMPTY
        if not self.flags & kernel.FRACTION:
            return COUNTS
        close = np.abs(self.logged - TARGET_SUM) <= TOLERANCE
        if np.count_nonzero(close) > len(self.logged) / 2:
            return LOG1P
        if self.high > 2 * MAX_LOG1P:  # log1p of 10**8
            return f"other: fractions up to {self.high:g}"
        low, high = self.logged.min(), self.logged.max()
        return f"other: sum(expm1(x)) from {low:,.0f} to {high:,.0f}"


def values_of(blocks: Iterable[Rows]) -> Values:
    """Look at the values of cells, block by block."""
    totals, logged = [np.empty(0)], [np.empty(0)]
    low = high = 0.0
    flags = entries = n_obs = 0
    for rows in blocks:
        sums = np.zeros((2, rows.n_obs))
        flag = np.zeros(rows.n_obs, np.uint8)
        for exponentiate in (0, 1):
            kernel.inspect_rows(
                rows.data, rows.indptr, bool(exponentiate), 0, rows.n_obs, sums[exponentiate], flag
            )
        seen = sums[1] != 0
        totals.append(sums[0][seen])
        logged.append(sums[1][seen])
        low = min(low, float(rows.data.min(initial=0)))
        high = max(high, float(rows.data.max(initial=0)))
        flags |= int(np.bitwise_or.reduce(flag, initial=0))
        entries, n_obs = entries + len(rows.data), n_obs + rows.n_obs
    mean = entries / max(1, n_obs)
    return Values(np.concatenate(totals), np.concatenate(logged), low, high, mean, flags)


def form_of(source: Source, nbytes: int = BLOCK) -> str:
    """Word the form of a source's values, by its first 1,000 cells; see `FileReport`."""
    firsts = takewhile(lambda block: block[0] < FIRST, source.blocks(nbytes))
    return values_of(source.read(start, min(stop, FIRST)) for start, stop in firsts).form


def require_one_form(
    name: str, reports: list[FileReport], normalize: Normalize, check: Literal["sum", "range"]
) -> None:
    """Refuse files of which some hold values in the form that is due, and some do not.

    Where none does, the check of every cell says so. `normalize` and `check` as in `Expression`:
    "range" lets pass what is off 10,000.

    Raises
    ------
    InputError
        With the files of each form.
    """
    held = [report for report in reports if report.form != EMPTY]
    if normalize == "log1p":  # of counts, which may be corrected ones, fractions
        fits = [report.form != LOG1P for report in held]
    elif check == "range":
        fits = [report.form != COUNTS for report in held]
    else:
        fits = [report.form == LOG1P for report in held]
    if all(fits) or not any(fits):
        return
    forms: dict[str, list[str]] = {}
    for report in held:
        forms.setdefault(report.form, []).append(report.file)
    words = "; ".join(f"{form} in {some(files)}" for form, files in forms.items())
    raise InputError(
        f"{name}: all files must hold the same kind of values, and by their first cells there are "
        f"{words}. Name a matrix that is the same in all (layer, --layer), for raw counts with "
        "normalize='log1p' (--normalize log1p), or normalise the others with "
        "scanpy.pp.normalize_total(target_sum=1e4) and scanpy.pp.log1p, or leave them out; "
        "check_expression=False (--no-check-expression) takes values as they are"
    )
