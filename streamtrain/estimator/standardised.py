"""Moments of features in; their centres and divisors out, and weights moved from one to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.scaling import RunningMoments, Scaler, standard_deviation
from streamtrain.solvers.counters import State


@dataclass(frozen=True)
class Standard:
    """How features are scaled: z = min((x - centre) / scale, max_value).

    Attributes
    ----------
    n_features
        Their number.
    moments
        Mean and variance of the features, or None where neither is needed.
    with_mean, with_std
        Whether to centre, and to divide by the standard deviation.
    max_value
        Upper bound of the scaled values, or None.
    """

    n_features: int
    moments: RunningMoments | None
    with_mean: bool
    with_std: bool
    max_value: float | None

    @property
    def centre(self) -> NDArray[np.float64]:
        """What is subtracted, shape (n_features,)."""
        if self.moments is None or not self.with_mean:
            return np.zeros(self.n_features)
        return self.moments.mean

    @property
    def scale(self) -> NDArray[np.float64]:
        """What is divided by, shape (n_features,)."""
        if self.moments is None or not self.with_std:
            return np.ones(self.n_features)
        return standard_deviation(self.moments)

    def scaler(self, dtype: Any, *, outright: bool, apart: bool = False) -> Scaler:
        """What scales rows.

        Features that most rows hold are centred outright, and kept `apart`, if asked for.
        """
        share = self.moments.nonzero / self.moments.n if outright and self.moments else None
        return Scaler(
            self.centre,
            self.scale,
            np.arange(self.n_features, dtype=np.int32),
            with_mean=self.with_mean,
            dtype=dtype,
            share=share,
            apart=apart,
            clip=np.inf if self.max_value is None else self.max_value,
        )

    def move(self, state: State, new: Standard, *, fit_intercept: bool) -> State:
        """Weights under the `new` scaling that score x as `state` does under this one.

        With w . (x - mean) / scale the same function of x has weights w scale'/scale and intercept
        b + w . (mean' - mean) / scale, but for `max_value`. Without intercepts the constant is
        lost.
        """
        old_scale = self.scale
        ratio, shift = new.scale / old_scale, (new.centre - self.centre) / old_scale

        def moved(coef: Any, intercept: Any) -> tuple[Any, Any]:
            constant = coef @ shift if fit_intercept else 0.0
            return (coef * ratio).astype(coef.dtype), intercept + constant

        coef, intercept = moved(state.coef, state.intercept)
        state = replace(state, coef=coef, intercept=intercept)
        if state.average_coef is None:
            return state
        coef, intercept = moved(state.average_coef, state.average_intercept)
        return replace(state, average_coef=coef, average_intercept=intercept)
