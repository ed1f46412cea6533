"""Labelled cells and folds in; the cells that trials are judged by, and how well, out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.cells import Cells
from streamtrain.holdout import Folds
from streamtrain.sampling import JUDGE, uniforms

MOST = 20_000  # held-out cells that trials are judged by, at most


@dataclass(frozen=True, slots=True)
class Judged:
    """Cells that trials are judged by.

    Attributes
    ----------
    at
        Their positions among the labelled cells, ascending, shape (m,).
    codes, fold
        Class and fold of each, shape (m,).
    weight
        Cells that each stands for, shape (m,), float64: common types are sampled.
    n_classes
        Number of classes.
    """

    at: NDArray[np.int64]
    codes: NDArray[np.int32]
    fold: NDArray[Any]
    weight: NDArray[np.float64]
    n_classes: int

    @property
    def nbytes(self) -> int:
        """Bytes of these arrays."""
        return sum(a.nbytes for a in (self.at, self.codes, self.fold, self.weight))

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores of these cells under the models of one trial."""
        return 4 * len(self.at) * self.n_classes


def judged_cells(cells: Cells, folds: Folds, seed: int) -> Judged:
    """Take all cells of rare types, and of each common one as many as `MOST` has room for.

    In each fold by itself, and one at least: a small donor may be a fold, which would have none.
    """
    codes, n_classes = cells.codes, len(cells.classes)
    stratum = codes * np.int32(folds.n) + folds.of
    counts = np.bincount(stratum)
    sizes = np.sort(counts[counts > 0])
    left, cap = MOST, 0
    for i, n in enumerate(sizes.tolist()):
        cap = max(1, left // (len(sizes) - i))
        if n > cap:
            break
        left, cap = left - n, n
    keys = uniforms(seed, JUDGE, 0, len(codes))
    order = np.lexsort((keys, stratum))
    place = np.arange(len(codes)) - (np.cumsum(counts) - counts)[stratum[order]]
    at = np.sort(order[place < cap]).astype(np.int64)
    of = stratum[at]
    weight = (counts / np.maximum(np.bincount(of, minlength=len(counts)), 1))[of]
    return Judged(at, codes[at], folds.of[at], weight, n_classes)


def macro_f1(true: NDArray[Any], predicted: NDArray[Any], weight: NDArray[np.float64]) -> float:
    """Mean of the F1 of the classes that occur in `true`, of weighted cells."""
    n = int(max(true.max(initial=0), predicted.max(initial=0))) + 1
    of_true = np.bincount(true, weight, n)
    right = np.bincount(true[true == predicted], weight[true == predicted], n)
    there = of_true > 0
    of_both = of_true + np.bincount(predicted, weight, n)
    return float((2 * right[there] / of_both[there]).mean())
