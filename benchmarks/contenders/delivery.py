"""Batches of a loader in; counts of what was delivered out, and on demand each cell's identity.

NumPy alone: every contender's environment has it.
"""

from __future__ import annotations

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
    return sums[indptr[1:]] - sums[indptr[:-1]]


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
        self._total = 0.0
        self._classes: list[NDArray[np.int64]] = []
        self._prints: list[NDArray[np.uint64]] = []
        self._labels: list[NDArray[np.int64]] = []

    def take(self, X: Any, codes: Any) -> None:
        """Count one batch: a SciPy-like CSR matrix and the label codes of its cells."""
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

    def evidence(self) -> dict[str, NDArray[Any]]:
        """Class counts of each batch and, when verifying, who was delivered, in order."""
        found: dict[str, NDArray[Any]] = {"classes": np.array(self._classes)}
        if self._verify:
            found |= {
                "prints": np.concatenate(self._prints),
                "labels": np.concatenate(self._labels),
            }
        return found
