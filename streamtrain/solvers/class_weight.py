"""Class weights: what the user gave and the cells of each class in, one factor per class out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError, near


def class_weights(
    spec: Mapping[str, float] | Literal["balanced"] | None,
    classes: Sequence[str] | NDArray[Any],
    counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Weight of each class's cells.

    Parameters
    ----------
    spec
        Class name to weight (1 for those not named); "balanced" for n / (K n_class), over the K
        classes that have cells, and 1 for others; or None for 1.
    classes
        Names, in order.
    counts
        Cells of each class, shape (n_classes,).

    Returns
    -------
    ndarray
        Shape (n_classes,), float64.

    Raises
    ------
    InputError
        For an unknown class, or a weight that is negative or no number.
    """
    weights = np.ones(len(classes))
    if spec is None:
        return weights
    if isinstance(spec, str):
        if spec != "balanced":
            raise InputError(f"class_weight must be 'balanced' or name weights; got {spec!r}")
        held = np.asarray(counts) > 0
        weights[held] = np.sum(counts) / (held.sum() * counts[held].astype(float))
        return weights
    place = {str(name): k for k, name in enumerate(classes)}
    for name, weight in spec.items():
        if str(name) not in place:
            raise InputError(
                f"class_weight names {name!r}, which is no cell type: {near(str(name), place)}"
            )
        if not isinstance(weight, Real) or not 0 <= weight < math.inf:
            raise InputError(
                f"class_weight must be numbers of at least 0; got {weight!r} for {name!r}"
            )
        weights[place[str(name)]] = weight
    return weights
