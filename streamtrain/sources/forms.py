"""The first cells of a file enter; in which form its values are leaves: counts, log1p, or other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from streamtrain.budget import BLOCK
from streamtrain.errors import InputError, some
from streamtrain.expression import MAX_LOG1P, TARGET_SUM, TOLERANCE, Normalize
from streamtrain.kernels import expression as kernel
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


def form_of(source: Source, nbytes: int = BLOCK) -> str:
    """Word the form of a source's values, by its first 1,000 cells; see `FileReport`."""
    sums, highest, flags = [], 0.0, 0
    for start, stop in source.blocks(nbytes):
        if start >= FIRST:
            break
        rows = source.read(start, min(stop, FIRST))
        found, flag = np.zeros(rows.n_obs), np.zeros(rows.n_obs, np.uint8)
        kernel.inspect_rows(rows.data, rows.indptr, True, 0, rows.n_obs, found, flag)
        sums.append(found[found != 0])
        highest = max(highest, float(rows.data.max(initial=0)))
        flags |= int(np.bitwise_or.reduce(flag, initial=0))
    total = np.concatenate(sums) if sums else np.empty(0)
    if flags & kernel.NOT_FINITE:
        return "other: not finite"
    if flags & kernel.NEGATIVE:
        return "other: negative values"
    if len(total) == 0:
        return EMPTY
    if not flags & kernel.FRACTION:
        return COUNTS
    if np.count_nonzero(np.abs(total - TARGET_SUM) <= TOLERANCE) > len(total) / 2:
        return LOG1P
    if highest > 2 * MAX_LOG1P:  # log1p of 10**8
        return f"other: fractions up to {highest:g}"
    return f"other: sum(expm1(x)) from {total.min():,.0f} to {total.max():,.0f}"


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
