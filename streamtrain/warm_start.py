"""A model and the genes, scaling and classes of new cells in, weights to continue from out."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.model import Model
from streamtrain.solvers.sgd import State

logger = logging.getLogger(__name__)


def as_model(start: Any) -> Model | None:
    """Turn what `warm_start` may be into a model: a Model, the path of one, None or False."""
    if start is None or start is False:
        return None
    if isinstance(start, Model):
        return start
    if not isinstance(start, (str, os.PathLike)):
        raise InputError(f"warm_start must be a Model or the path of one; got {start!r}")
    return Model.load(start)


def weights_from(
    model: Model,
    classes: NDArray[np.object_],
    genes: NDArray[np.object_],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    *,
    with_mean: bool,
    dtype: Any,
) -> State:
    """Weights that score cells as `model` does, for other genes, scaling and classes.

    With w . (x - mean) / scale the same function of x under a new mean and scale has weights
    w scale'/scale and intercept b + w . (mean' - mean) / scale, but for the clip at 10. Genes and
    classes that the model lacks begin at zero.

    Parameters
    ----------
    classes, genes
        Names, in the order of the solver's columns and genes.
    mean, scale
        Of those genes, shape (genes,).

    Raises
    ------
    InputError
        If no gene or no class is shared.
    """
    data = model.dataset
    at = pd.Index(model.features).get_indexer(pd.Index(genes))
    known = pd.Index(model.cell_types).get_indexer(pd.Index(classes))
    for what, found in (("gene", at), ("cell type", known)):
        if (found < 0).all():
            raise InputError(f"warm_start: the model shares no {what} with these cells")
    logger.info(
        "continuing from a model: %d of %d genes and %d of %d cell types are in it",
        (at >= 0).sum(), len(at), (known >= 0).sum(), len(known),
    )  # fmt: skip
    ratio = np.where(at >= 0, scale / data["scale"].to_numpy()[at], 0.0)
    moved = np.zeros(len(genes))
    old = data["mean"].to_numpy()[at] * bool(data.attrs["with_mean"])
    moved[at >= 0] = ((mean * with_mean - old) / data["scale"].to_numpy()[at])[at >= 0]

    def convert(coef: str, intercept: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
        W = data[coef].to_numpy().astype(np.float64)
        W = np.where((known >= 0)[:, None] & (at >= 0), W[known][:, at], 0.0)
        b = np.where(known >= 0, data[intercept].to_numpy()[known], 0.0) + W @ moved
        rows = slice(1, None) if len(classes) == 2 else slice(None)
        return (W * ratio)[rows].astype(dtype), b[rows]

    if "coef_last" not in data:
        return State(*convert("coef", "intercept"), t=float(data.attrs["t"]))
    average = convert("coef", "intercept")
    return State(*convert("coef_last", "intercept_last"), *average, t=float(data.attrs["t"]))
