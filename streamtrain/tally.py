"""Calls of cells, with scores, and their true types enter block by block; sums of them leave.

Nothing is kept of a cell: memory goes with the number of cell types.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp

from streamtrain.annotations import UNASSIGNED, Calls

BINS = 15  # of equal width: as Guo et al. 2017
SEVERAL = "several types"
_EDGES = np.arange(BINS + 1) / BINS


class Tally:
    """What evaluation counts, over cells that come in order.

    Parameters
    ----------
    codes
        True type of each cell, among `types`, shape (n_obs,).
    types
        The cell types of the truth.
    cell_types
        Those of the model.
    temperature
        Of a calibrated model, else None.
    joined
        The labels of "prob match", which grow as cells come; None for the best match. An attribute.
    k
        A cell counts as found where its type is among the `k` of highest score.

    Attributes
    ----------
    names
        What a cell may be called: `types`, then the model's others, sorted; for "prob match" then
        UNASSIGNED and SEVERAL.
    known
        Which of `types` the model has, shape (n_types,).
    confusion
        Cells by true type and name, shape (n_types, n_names).
    within
        Cells of known types that are found, number.
    log_loss
        Sum over cells of known types of minus the logarithm of their own type's probability; None
        where the probabilities of a cell do not add up to 1.
    bins
        By whether the type is known (no, yes) and by the probability of the best match, in BINS
        bins of equal width, each without its lower end: cells, the sum of these probabilities, and
        how many best matches are right; shape (2, BINS, 3).
    """

    def __init__(
        self,
        codes: NDArray[np.int32],
        types: NDArray[np.object_],
        cell_types: NDArray[np.object_],
        temperature: float | None,
        joined: list[str] | None,
        k: int,
    ) -> None:
        self._codes, self.joined, self._k = codes, joined, k
        self._own = pd.Index(cell_types).get_indexer(pd.Index(types))
        self.known = self._own >= 0
        others = sorted({*cell_types} - {*types})
        names = [*types, *others]
        if joined is not None:
            names += [UNASSIGNED] * (UNASSIGNED not in names)
        self._place_of = {name: i for i, name in enumerate(names)}
        # By its place, the last, as a type may be called so.
        self.names = names if joined is None else [*names, SEVERAL]
        self._placed: list[int] = []  # of `joined`
        self._place = np.array([self._place_of[name] for name in cell_types])
        # Of two types the scores are -s and s, and the softmax at 2 is the sigmoid of each.
        self._softmax_at = temperature or (2.0 if len(cell_types) == 2 else None)
        self.log_loss = None if self._softmax_at is None else 0.0
        self.within = 0
        self.confusion = np.zeros((len(types), len(self.names)), np.int64)
        self.bins = np.zeros((2, BINS, 3))

    def add(self, calls: Calls) -> None:
        """Count cells; their `values` are the highest probability and the scores of all types."""
        truth = self._codes[calls.position : calls.position + len(calls.codes)]
        scores, confidence = calls.values[:, 1:], calls.values[:, 0]
        own = self._own[truth]
        known = own >= 0
        best = scores.argmax(axis=1)
        self._count(truth, self._called(calls.codes))
        self._count_bins(known, confidence, best == own)
        scores, own = scores[known], own[known]
        score = np.take_along_axis(scores, own[:, None], axis=1)
        # Of equal scores the first counts as higher, as in the best match.
        before = (scores == score) & (np.arange(scores.shape[1]) < own[:, None])
        self.within += int((((scores > score) | before).sum(axis=1) < self._k).sum())
        if self.log_loss is not None and self._softmax_at is not None:
            relative = (scores - score) / self._softmax_at
            self.log_loss += float(logsumexp(relative, axis=1).sum())

    def _called(self, codes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where the labels of cells stand among the names."""
        if self.joined is None:
            return self._place[codes]
        several = len(self.names) - 1
        new = self.joined[len(self._placed) :]  # since the last cells
        self._placed += [self._place_of.get(name, several) for name in new]
        return np.array(self._placed, np.int64)[codes]

    def _count(self, truth: NDArray[np.int32], called: NDArray[np.int64]) -> None:
        pairs = truth.astype(np.int64) * len(self.names) + called
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(
            self.confusion.shape
        )

    def _count_bins(
        self, known: NDArray[np.bool_], confidence: NDArray[np.float64], right: NDArray[np.bool_]
    ) -> None:
        which = np.maximum(np.searchsorted(_EDGES, confidence) - 1, 0)
        which += known * BINS
        for i, weight in enumerate((None, confidence, right)):
            sums = np.bincount(which, weight, minlength=2 * BINS)
            self.bins[..., i] += sums.reshape(2, BINS)


def reliability(bins: NDArray[np.float64]) -> pd.DataFrame:
    """Give the curve of sums of bins, shape (BINS, 3), as `Tally.bins` has them."""
    n = bins[:, 0]
    with np.errstate(invalid="ignore"):  # bins without cells have no mean
        return pd.DataFrame(
            {
                "above": _EDGES[:-1],
                "up_to": _EDGES[1:],
                "n_cells": n.astype(np.int64),
                "probability": bins[:, 1] / n,
                "accuracy": bins[:, 2] / n,
            }
        )


def calibration_error(bins: NDArray[np.float64]) -> float:
    """Expected calibration error: mean |probability - accuracy| over bins, by their cells."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())
