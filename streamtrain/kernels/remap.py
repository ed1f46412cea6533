"""Genes moved to other places: sort each cell again, sum what of it is left out."""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

# Position of the one bit that is set in a number below 2**32, by its remainder of 37.
BIT = np.zeros(37, np.int64)
BIT[[(1 << bit) % 37 for bit in range(32)]] = np.arange(32)


@jit
def any_repeated(indices, indptr, n_vars):
    """Tell whether a gene stands twice in any cell; all positions must lie in range."""
    seen = np.full(n_vars, -1, np.int64)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            if seen[indices[k]] == i:
                return True
            seen[indices[k]] = i
    return False


@jit
def sort_genes(data, indices, indptr, n_vars):
    """Sort each cell's entries by gene, in place; no gene may stand twice in a cell.

    Values are laid out by gene, a bit marks each place, and the bits are read in order: 3 to 8
    times as fast as sorting a cell of 500 to 2,500 entries by comparison.
    """
    values = np.empty(n_vars, data.dtype)
    marks = np.zeros((n_vars + 31) // 32, np.int64)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            gene = np.int64(indices[k])
            values[gene] = data[k]
            marks[gene >> 5] |= np.int64(1) << (gene & 31)
        k = indptr[i]
        for w in range(len(marks)):
            word = marks[w]
            marks[w] = 0
            while word:
                lowest = word & -word
                word ^= lowest
                gene = 32 * w + BIT[lowest % 37]
                indices[k], data[k] = gene, values[gene]
                k += 1


@jit
def sum_left_out(data, indices, indptr, position, sums):
    """Sum x and expm1(x) over each cell's entries without a `position`, into `sums` (n_obs, 2).

    The first is not finite where a value is not; those are left out of the second.
    """
    # As in kernels.expression: few values, so the last results are kept.
    seen_x = np.full(64, np.nan)
    seen_y = np.zeros(64)
    for i in range(len(indptr) - 1):
        plain, exponential = 0.0, 0.0
        for k in range(indptr[i], indptr[i + 1]):
            x = np.float64(data[k])
            if position[indices[k]] >= 0:
                continue
            plain += x
            if not math.isfinite(x):
                continue
            slot = np.int64(math.fabs(x) * 9973.0) & 63 if math.fabs(x) < 1e6 else 0
            if seen_x[slot] != x:
                seen_x[slot] = x
                seen_y[slot] = math.expm1(x)
            exponential += seen_y[slot]
        sums[i, 0], sums[i, 1] = plain, exponential
