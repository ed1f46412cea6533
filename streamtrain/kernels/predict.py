"""Scores of scaled cells under a linear model."""

from __future__ import annotations

from streamtrain.kernels.jit import jit


@jit
def scores(data, indices, indptr, weights, constant, start, stop, out):
    """Write x' W + constant for the cells [start, stop) into `out`; all float64.

    `weights` is genes x classes, so that a cell reads whole rows.
    """
    n_classes = weights.shape[1]
    for i in range(start, stop):
        row = out[i]
        for k in range(n_classes):
            row[k] = constant[k]
        for p in range(indptr[i], indptr[i + 1]):
            x = data[p]
            w = weights[indices[p]]
            for k in range(n_classes):
                row[k] += x * w[k]
