"""Columns of obs in, the experimental batch and the weight in drawing of each labelled cell out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.cells import Cells, Labels, name_cell, per_cell
from streamtrain.errors import InputError, some
from streamtrain.sources.base import Source


def batch_keys(source: Source, cells: Cells, column: Labels) -> NDArray[Any]:
    """Code the values of a column for each labelled cell, a missing one as one more.

    Returns
    -------
    ndarray
        Shape (n,), uint16, or uint32 for more values than that holds.

    Raises
    ------
    InputError
        If there is no such column, or its values do not group cells.
    """
    series = _of_cells(source, cells, column, "batch_key").astype("category")
    series = series.cat.remove_unused_categories()
    codes, n = series.cat.codes.to_numpy(), len(series.cat.categories)
    if 2 * n > cells.n_obs:
        raise InputError(
            f"batch_key={column!r} has {n:,} values for {cells.n_obs:,} cells: name a column of "
            "donors, samples or studies"
        )
    keys = codes.astype(np.uint16 if n < 2**16 else np.uint32)
    keys[codes < 0] = n
    return keys


def sampling_weights(source: Source, cells: Cells, values: Labels) -> NDArray[np.float64]:
    """Weight of each labelled cell from a column, or from one number a cell.

    Returns
    -------
    ndarray
        Shape (n,), float64.

    Raises
    ------
    InputError
        If there is no such column, or a weight is no finite number of at least 0, or none is above.
    """
    series = _of_cells(source, cells, values, "sampling_weight")
    weights = _numbers(series)
    wrong = ~((weights >= 0) & (weights < np.inf))  # NaN too
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(
            f"{source.name}: sampling_weight must be finite numbers of at least 0; "
            f"{name_cell(source, cells.rows, at)} has {series.iloc[at]} and {int(wrong.sum()):,} "
            "cells have such: mend them, or leave these cells out with where (--where)"
        )
    with np.errstate(over="ignore"):
        total = weights.sum()
    if total == 0 or total == np.inf:
        word = "are all zero" if total == 0 else "are too large to add up"
        raise InputError(
            f"{source.name}: the weights of sampling_weight {word}: name another column"
        )
    return weights


def check_weights(
    weight: NDArray[np.float64],
    codes: NDArray[np.int32],
    classes: Iterable[str],
    *,
    by_class: bool,
    n_draws: int | None,
) -> None:
    """Refuse weights that leave too little to draw from.

    Parameters
    ----------
    by_class
        Whether every class is drawn.
    n_draws
        Cells that an epoch draws without replacement, or None.

    Raises
    ------
    InputError
        If there are fewer cells of positive weight, or a class has none.
    """
    positive = weight > 0
    if by_class or not positive.any():
        names = list(classes)
        counts = np.bincount(codes[positive], minlength=len(names))
        none = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if none:
            raise InputError(
                f"sampling_weight is 0 in every cell of {some(none)}: raise it there, or leave "
                "out such types with where (--where)"
            )
    n_positive = int(positive.sum())
    if n_draws is not None and n_positive < n_draws:
        raise InputError(
            f"sampling_weight is above 0 in {n_positive:,} cells, and an epoch draws {n_draws:,} "
            "without replacement: pass replace=True (--replace), or lower batch_number "
            "(--batch-number)"
        )


def _of_cells(source: Source, cells: Cells, values: Labels, what: str) -> pd.Series[Any]:
    series = per_cell(source, values, what)
    if len(series) != source.n_obs:
        raise InputError(
            f"{what} must have one value for each cell; got {len(series):,} for {source.n_obs:,} "
            f"cells of {source.name}"
        )
    return series if cells.rows is None else series.iloc[cells.rows]


def _numbers(series: pd.Series[Any]) -> NDArray[np.float64]:
    """Values as numbers, NaN for what is none."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        values = pd.to_numeric(pd.Series(series.cat.categories), errors="coerce")
        known = np.append(values.to_numpy(np.float64, na_value=np.nan), np.nan)
        of_cells: NDArray[np.float64] = known[series.cat.codes.to_numpy()]  # -1 is missing
        return of_cells
    numbers = pd.to_numeric(series, errors="coerce")
    return numbers.to_numpy(np.float64, na_value=np.nan)
