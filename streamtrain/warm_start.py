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


def check_shared(model: Model, classes: NDArray[np.object_], genes: NDArray[np.object_]) -> None:
    """Refuse a model that knows none of the genes or none of the classes."""
    for what, of_model, names in (
        ("gene", model.features, genes),
        ("cell type", model.cell_types, classes),
    ):
        if not pd.Index(names).isin(of_model).any():
            raise InputError(f"warm_start: the model shares no {what} with these cells")


def weights_from(
    model: Model,
    classes: NDArray[np.object_],
    genes: NDArray[np.object_],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    *,
    with_mean: bool,
    fit_intercept: bool,
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
    fit_intercept
        Whether there are intercepts; else they are zero.
    """
    data = model.dataset
    at = pd.Index(model.features).get_indexer(pd.Index(genes))
    known = pd.Index(model.cell_types).get_indexer(pd.Index(classes))
    logger.info(
        "continuing from a model: %d of %d genes and %d of %d cell types are in it",
        (at >= 0).sum(), len(at), (known >= 0).sum(), len(known),
    )  # fmt: skip
    shared = np.flatnonzero(at >= 0)
    old = data["scale"].to_numpy()[at[shared]]
    ratio = scale[shared] / old
    centre = data["mean"].to_numpy()[at[shared]] * bool(data.attrs["with_mean"])
    moved = (mean[shared] * with_mean - centre) / old
    rows = known[1:] if len(classes) == 2 else known  # the second of two has the only column

    def convert(coef: str, intercept: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
        W, b = np.zeros((len(rows), len(genes)), dtype), np.zeros(len(rows))
        for k, row in enumerate(rows.tolist()):  # one by one, as copies of all take memory
            if row >= 0:
                w = data[coef].to_numpy()[row, at[shared]].astype(np.float64)
                W[k, shared] = w * ratio
                b[k] = data[intercept].to_numpy()[row] + w @ moved if fit_intercept else 0.0
        return W, b

    if "coef_last" not in data:
        return State(*convert("coef", "intercept"), t=float(data.attrs["t"]))
    average = convert("coef", "intercept")
    return State(*convert("coef_last", "intercept_last"), *average, t=float(data.attrs["t"]))
