"""Scores of held-out cells and their types in; how to turn scores into probabilities out.

Neither changes which type scores highest: one temperature, or one slope and offset, for all types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 100
_PIECE = 1 << 18  # scores that are worked on at a time: six copies of them, in float64
_LEAST, _MOST = 1e-3, 1e3  # of the temperature; the slope has the same least


@dataclass(frozen=True, slots=True)
class Calibration:
    """How scores become probabilities.

    Attributes
    ----------
    temperature
        T of p = softmax(s / T), over the types: probabilities that add up to 1 (Guo et al. 2017).
    slope, offset
        a and b of p = 1 / (1 + exp(-(a s + b))), a sigmoid of each type as CellTypist reports it,
        by which the predicted type's probability is calibrated (Platt 2000, on predicted types).
    """

    temperature: float
    slope: float
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
        return cls(1 / _softness(scores, codes, weight), *_sigmoid(scores, codes, weight))

    def __str__(self) -> str:
        return (
            f"calibrated by held-out cells: temperature {self.temperature:.3g}; as sigmoids, slope "
            f"{self.slope:.3g} and offset {self.offset:.3g}"
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

    return _minimum(slopes)


def _minimum(slopes: Callable[[float], tuple[float, float]]) -> float:
    """Where a convex function of a positive number is least, by Newton's steps within bounds."""
    low, high, beta = 1 / _MOST, 1 / _LEAST, 1.0
    for _ in range(_STEPS):
        first, second = slopes(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        new = beta - first / second if second > 0 else np.inf
        if not low < new < high:
            new = np.sqrt(low * high)
        if abs(new - beta) <= 1e-10 * beta:
            return float(new)
        beta = float(new)
    return beta


def _sigmoid(
    scores: NDArray[Any], codes: NDArray[np.int32], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and offset by which the highest score tells how likely its type is right."""
    top = scores.argmax(axis=1)
    s = scores[np.arange(len(scores)), top].astype(np.float64)
    right = top == codes
    # Platt's targets, which keep both finite where the score tells right from wrong.
    n_right, n_wrong = weight[right].sum(), weight[~right].sum()
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    middle, width = float(np.average(s, weights=weight)), float(s.std())
    if width <= 1e-6 * abs(middle):  # by rounding alone, which tells nothing
        width = 1.0
    z = (s - middle) / width
    least = _LEAST * width
    a, b = 1.0, 0.0
    loss = _loss(a, b, z, target, weight)
    for _ in range(_STEPS):
        p = probabilities(a * z + b, None)
        gap, curve = weight * (p - target), weight * p * (1 - p) + 1e-12
        g = np.array([(gap * z).sum(), gap.sum()])
        mixed = (curve * z).sum()
        if a == least and g[0] >= 0:  # held there, the slope does not move, nor move the offset
            g[0] = mixed = 0.0
        if np.abs(g).max() <= 1e-9 * weight.sum():
            break
        H = np.array([[(curve * z * z).sum(), mixed], [mixed, curve.sum()]])
        step = np.linalg.solve(H + 1e-12 * np.eye(2), g)
        size = 1.0
        while size > 1e-10:
            new_a, new_b = max(least, a - size * step[0]), b - size * step[1]
            new = _loss(new_a, new_b, z, target, weight)
            if new <= loss:
                break
            size /= 2
        if loss - new <= 1e-13 * abs(loss):
            break
        a, b, loss = float(new_a), float(new_b), new
    return a / width, b - a * middle / width


def _loss(
    a: float,
    b: float,
    z: NDArray[np.float64],
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> float:
    u = a * z + b
    return float((weight * (np.logaddexp(0, u) - target * u)).sum())
