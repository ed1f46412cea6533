"""A model and the genes, scaling and classes of new cells in, weights to continue from out."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, some
from streamtrain.features import Features
from streamtrain.model import Model
from streamtrain.model_schema import n_averaged, steps
from streamtrain.solvers.counters import State

logger = logging.getLogger(__name__)

_REMEDY = {
    "gene": "gene names may stand in another column of var (gene_key, --gene-key)",
    "cell type": "name another column of labels, or leave warm_start out",
}


def as_model(start: Any, argument: str) -> Model | None:
    """Turn what `argument` may be into a model: a Model, the path of one, None or False."""
    if start is None or start is False:
        return None
    if not isinstance(start, (Model, str, os.PathLike)):
        raise InputError(f"{argument} must be a Model or the path of one; got {start!r}")
    model = start if isinstance(start, Model) else Model.load(start)
    if model.calibration is not None:
        logger.info("%s: its calibration is left out: new weights need a new one", argument)
    return model


def check_shared(model: Model, classes: NDArray[np.object_], genes: NDArray[np.object_]) -> None:
    """Refuse a model that knows none of the genes or none of the classes; log what it knows."""
    known = []
    for what, of_model, names in (
        ("gene", model.features, genes),
        ("cell type", model.cell_types, classes),
    ):
        known.append(int(pd.Index(names).isin(of_model).sum()))
        if not known[-1]:
            raise InputError(
                f"warm_start: the model shares no {what} with these cells: it has "
                f"{some(of_model)}, they have {some(names)}; {_REMEDY[what]}"
            )
    logger.info(
        "continuing from a model: %d of %d genes and %d of %d cell types are in it",
        known[0], len(genes), known[1], len(classes),
    )  # fmt: skip


def weights_from(
    model: Model,
    classes: NDArray[np.object_],
    features: Features,
    *,
    with_mean: bool,
    fit_intercept: bool,
    dtype: Any,
) -> State:
    """Weights that score cells as `model` does, for other features and classes.

    With w . (x - mean) / scale the same function of x under a new mean and scale has weights
    w scale'/scale and intercept b + w . (mean' - mean) / scale, but for the clip at 10. Genes and
    classes that the model lacks begin at zero.

    Parameters
    ----------
    classes
        Names, in the order of the solver's columns.
    fit_intercept
        Whether there are intercepts; else they are zero.
    """
    data, mean, scale = model.dataset, features.moments.mean, features.scale
    at = pd.Index(model.features).get_indexer(pd.Index(features.names))
    known = pd.Index(model.cell_types).get_indexer(pd.Index(classes))
    shared = np.flatnonzero(at >= 0)
    old = data["scale"].to_numpy()[at[shared]]
    ratio = scale[shared] / old
    centre = data["mean"].to_numpy()[at[shared]] * bool(data.attrs["with_mean"])
    moved = (mean[shared] * with_mean - centre) / old
    rows = known[1:] if len(classes) == 2 else known  # the second of two has the only column

    def convert(coef: str, intercept: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
        W, b = np.zeros((len(rows), len(at)), dtype), np.zeros(len(rows))
        for k, row in enumerate(rows.tolist()):  # one by one, as copies of all take memory
            if row >= 0:
                w = data[coef].to_numpy()[row, at[shared]].astype(np.float64)
                W[k, shared] = w * ratio
                b[k] = data[intercept].to_numpy()[row] + w @ moved if fit_intercept else 0.0
        return W, b

    t = np.where(rows >= 0, steps(data)[rows], data.attrs["t"])
    if "coef_last" not in data:
        return State(*convert("coef", "intercept"), t=t)
    average = convert("coef", "intercept")
    averaged = np.where(rows >= 0, n_averaged(data)[rows], 0)
    return State(*convert("coef_last", "intercept_last"), *average, t=t, n_averaged=averaged)
