"""Scores of held-out cells and their types in; how to turn scores into probabilities out.

Neither a temperature nor an offset for all types changes which type scores highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 100
_PIECE = 1 << 18  # scores that are worked on at a time: six copies of them, in float64
_LEAST, _MOST = 1e-3, 1e3  # of the temperature


@dataclass(frozen=True, slots=True)
class Calibration:
    """How scores become probabilities.

    Attributes
    ----------
    temperature
        T of p = softmax(s / T), over the types: probabilities that add up to 1 (Guo et al. 2017).
    offset
        b of p = 1 / (1 + exp(-(s / T + b))), a sigmoid of each type as CellTypist reports it, by
        which the predicted types' probabilities are right on average.
    """

    temperature: float
    offset: float

    @classmethod
    def fit(
        cls, scores: NDArray[Any], codes: NDArray[np.int32], weight: NDArray[np.float64]
    ) -> Calibration:
        """Fit both by their likelihood.

        Parameters
        ----------
        scores
            Shape (n, n_classes); minus infinity for a class that the model of the cell has not
            seen. Cells whose own class it has not seen are left out.
        codes, weight
            Class of each cell, and cells that it stands for, shape (n,).
        """
        own = np.take_along_axis(scores, codes[:, None].astype(np.int64), axis=1)[:, 0]
        usable = np.isfinite(own)
        scores, codes = scores[usable], codes[usable]
        weight = weight[usable] / weight[usable].mean()
        softness = _softness(scores, codes, weight)
        return cls(1 / softness, _offset(scores, codes, weight, softness))

    def __str__(self) -> str:
        return (
            f"calibrated by held-out cells: temperature {self.temperature:.3g}; as sigmoids, "
            f"offset {self.offset:.3g}"
        )


def probabilities(scores: NDArray[np.float64], temperature: float | None) -> NDArray[np.float64]:
    """Turn scores, shape (n, n_classes), into a sigmoid each, or the softmax at a temperature."""
    with np.errstate(over="ignore"):  # exp(-score) of a hopeless score is inf, its probability 0
        if temperature is None:
            return np.asarray(1 / (1 + np.exp(-scores)))
        relative = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(relative / relative.sum(axis=1, keepdims=True))


def _softness(scores: NDArray[Any], codes: NDArray[np.int32], weight: NDArray[np.float64]) -> float:
    """1 / T of the largest likelihood.

    One cell more, of every type alike, keeps it finite where all cells are scored right.
    """

    def slopes(beta: float) -> tuple[float, float]:
        """First and second derivative of minus the log-likelihood."""
        first = second = 0.0
        step = max(1, _PIECE // scores.shape[1])
        for start in range(0, len(scores), step):
            s = scores[start : start + step].astype(np.float64)
            k, w = codes[start : start + step], weight[start : start + step]
            there = np.isfinite(s)
            p = probabilities(s, 1 / beta)
            s = np.where(there, s, 0.0)
            mean = (p * s).sum(axis=1)
            var = (p * (s - mean[:, None]) ** 2).sum(axis=1)
            own = s[np.arange(len(s)), k]
            even = s.sum(axis=1) / there.sum(axis=1)
            n = len(scores)
            first += float((w * (mean - own)).sum() + (mean - even).sum() / n)
            second += float((w * var).sum() + var.sum() / n)
        return first, second

    return _minimum(slopes, 1 / _MOST, 1 / _LEAST, 1.0)


def _offset(
    scores: NDArray[Any], codes: NDArray[np.int32], weight: NDArray[np.float64], softness: float
) -> float:
    """Offset of the largest likelihood that the types of the highest scores are right.

    Platt's (2000) targets keep it finite where all are.
    """
    top = scores.argmax(axis=1)
    s = scores[np.arange(len(scores)), top].astype(np.float64)[:, None] * softness
    right = top == codes
    n_right, n_wrong = weight[right].sum(), weight[~right].sum()
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))

    def slopes(offset: float) -> tuple[float, float]:
        p = probabilities(s + offset, None)[:, 0]
        return float((weight * (p - target)).sum()), float((weight * p * (1 - p)).sum())

    reach = float(np.abs(s).max()) + np.log(len(s) + 2.0) + 1
    return _minimum(slopes, -reach, reach, 0.0)


def _minimum(
    slopes: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> float:
    """Where a convex function is least, by Newton's steps within bounds, else by halves."""
    at = start
    for _ in range(_STEPS):
        first, second = slopes(at)
        low, high = (at, high) if first < 0 else (low, at)
        new = at - first / second if second > 0 else np.inf
        if not low < new < high:
            new = (low + high) / 2
        if abs(new - at) <= 1e-10 * max(abs(at), 1e-3):
            return float(new)
        at = float(new)
    return at
