"""Batches of a loader in; counts of what was delivered out, and on demand each cell's identity.

NumPy alone: every contender's environment has it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fingerprints(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], n_vars: int
) -> NDArray[np.uint64]:
    """Tell cells apart: the sum of count times a random number of the gene, modulo 2^64.

    Whole numbers, so that the order of a cell's entries does not matter. Shape (n_obs,).
    """
    weights = np.random.Philox(0).random_raw(n_vars)
    terms = data.astype(np.uint64) * weights[indices]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    prints: NDArray[np.uint64] = sums[indptr[1:]] - sums[indptr[:-1]]
    return prints


def class_spread(classes: NDArray[np.int64]) -> float:
    """Mean over batches of the class counts' standard deviation over their mean; 0 is balance.

    Parameters
    ----------
    classes
        Cells of each class in each batch, shape (n_batches, n_types).
    """
    return float((classes.std(axis=1) / classes.mean(axis=1)).mean())


class Delivery:
    """Counts what a loader delivers: the same few operations for each, on every batch.

    Parameters
    ----------
    job
        Of which `n_types`, and `verify`: whether to fingerprint every cell (slow).
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._n_types, self._verify = job["n_types"], job.get("verify", False)
        self._cells = self._entries = 0
        self._total, self._first = 0.0, 0.0
        self._classes: list[NDArray[np.int64]] = []
        self._prints: list[NDArray[np.uint64]] = []
        self._labels: list[NDArray[np.int64]] = []

    def take(self, X: Any, codes: Any) -> None:
        """Count one batch: a SciPy-like CSR matrix and the label codes of its cells."""
        if not self._cells:
            self._first = time.perf_counter()
        self._cells += len(codes)
        self._entries += len(X.data)
        self._total += float(X.data.sum(dtype=np.float64))
        self._classes.append(np.bincount(codes, minlength=self._n_types))
        if self._verify:
            prints = fingerprints(X.data, X.indices, np.asarray(X.indptr), X.shape[1])
            self._prints.append(prints)
            self._labels.append(np.asarray(codes, np.int64))

    def counts(self) -> dict[str, Any]:
        """Sums over all batches."""
        return {"cells": self._cells, "entries": self._entries, "total": self._total}

    def draws(self, start: float, classes_left_out: int = 0) -> dict[str, Any]:
        """Sums over all batches, and what is asked of a sampler besides.

        Parameters
        ----------
        start
            When the work began, as `time.perf_counter` gave it.
        classes_left_out
            Classes that the sampler cannot serve.
        """
        return self.counts() | {
            "seconds_to_first_batch": self._first - start,
            "class_spread": class_spread(np.array(self._classes)),
            "classes_left_out": classes_left_out,
        }

    def evidence(self) -> dict[str, NDArray[Any]]:
        """Class counts of each batch, the sums, and, when verifying, every cell in order."""
        found: dict[str, NDArray[Any]] = {
            "classes": np.array(self._classes),
            "sums": np.array(list(self.counts().values())),
        }
        if self._verify:
            found |= {
                "prints": np.concatenate(self._prints),
                "labels": np.concatenate(self._labels),
            }
        return found
