"""A model's dataset enters; the genes that weigh most for its cell types leave."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from streamtrain.errors import InputError, near


def names(
    dataset: xr.Dataset, cell_type: str, top_n: int, *, only_positive: bool
) -> NDArray[np.object_]:
    """Do what `Model.extract_top_markers` documents."""
    (row,) = _rows(dataset, [cell_type])
    genes = dataset["gene"].to_numpy().astype(object)
    ranked: NDArray[np.object_] = genes[_ranked(row, top_n, only_positive)]
    return ranked


def table(
    dataset: xr.Dataset,
    top_n: int,
    cell_types: str | Iterable[str] | None,
    *,
    only_positive: bool,
) -> pd.DataFrame:
    """Do what `Model.markers` documents."""
    if isinstance(cell_types, str) or not isinstance(cell_types, Iterable | None):
        cell_types = [cell_types]
    types = list(dataset["cell_type"].to_numpy() if cell_types is None else cell_types)
    if not types:
        raise InputError("cell_types must name a cell type at least, or be None for all; got none")
    expression = {
        "gene": dataset["gene"].to_numpy().astype(object),
        "mean": dataset["mean"].to_numpy(),
        "std": np.sqrt(dataset["var"].to_numpy()),
    }
    parts = []
    for cell_type, row in zip(types, _rows(dataset, types), strict=True):
        best = _ranked(row, top_n, only_positive)
        best = best[row[best] > 0] if only_positive else best
        of_genes = {name: values[best] for name, values in expression.items()}
        ranks = np.arange(1, len(best) + 1)
        columns = {"cell_type": str(cell_type), "rank": ranks, "coef": row[best]} | of_genes
        parts.append(pd.DataFrame(columns))
    order = ["cell_type", "rank", "gene", "coef", "mean", "std"]
    return pd.concat(parts, ignore_index=True)[order]


def _rows(dataset: xr.Dataset, wanted: list[str]) -> list[NDArray[Any]]:
    """Coefficients of each type, shapes (genes,)."""
    types, coef = dataset["cell_type"].to_numpy().astype(object), dataset["coef"].to_numpy()
    for cell_type in wanted:
        if cell_type not in types:
            raise InputError(
                f"no cell type {cell_type!r} in the model: {near(str(cell_type), types)}"
            )
    return [coef[types == cell_type][0] for cell_type in wanted]


def _ranked(row: NDArray[Any], top_n: int, only_positive: bool) -> NDArray[np.intp]:
    """Places of the largest coefficients, largest first; equals stand in their order."""
    if isinstance(top_n, bool) or not isinstance(top_n, Integral) or top_n < 1:
        raise InputError(f"top_n must be a whole number of at least 1; got {top_n!r}")
    return np.argsort(-(row if only_positive else np.abs(row)), kind="stable")[:top_n]
