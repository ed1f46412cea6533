"""Compressed sparse rows: take cells, check indices, turn dense rows sparse."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit

CANONICAL, UNSORTED, OUT_OF_RANGE = 0, 1, 2


@jit
def take_indptr(indptr, index):
    """Offsets of the cells `index` once they stand one after the other."""
    out = np.empty(len(index) + 1, np.int64)
    out[0] = 0
    for i in range(len(index)):
        j = index[i]
        out[i + 1] = out[i] + indptr[j + 1] - indptr[j]
    return out


@jit
def take_values(values, indptr, index, out_indptr, out):
    """Copy the entries of the cells `index` into `out` at `out_indptr`."""
    for i in range(len(index)):
        # Slices of their own let the loop run as vectors: a tenth of the time.
        source = values[indptr[index[i]] : indptr[index[i] + 1]]
        target = out[out_indptr[i] : out_indptr[i + 1]]
        for k in range(len(source)):
            target[k] = source[k]


@jit
def check_indices(indices, indptr, n_vars):
    """Tell whether each cell's gene positions ascend strictly and lie in range.

    Returns (verdict, cell): CANONICAL, or UNSORTED or OUT_OF_RANGE with the first such cell;
    OUT_OF_RANGE wins, since such an index must never reach a kernel.
    """
    verdict, where = CANONICAL, -1
    for i in range(len(indptr) - 1):
        genes = indices[indptr[i] : indptr[i + 1]]
        ascends = True
        for k in range(len(genes) - 1):  # as vectors: 0.1 ns an entry, where one by one takes 1.2
            ascends &= genes[k + 1] > genes[k]
        if len(genes) == 0 or (ascends and genes[0] >= 0 and genes[-1] < n_vars):
            continue
        before = -1
        for gene in genes:
            if gene < 0 or gene >= n_vars:
                return OUT_OF_RANGE, i
            if gene <= before and verdict == CANONICAL:
                verdict, where = UNSORTED, i
            before = gene
    return verdict, where


@jit
def count_nonzero(dense):
    """Offsets of the non-zero entries of each row of `dense` (NaN counts as non-zero)."""
    indptr = np.empty(dense.shape[0] + 1, np.int64)
    indptr[0] = 0
    for i in range(dense.shape[0]):
        n = 0
        for j in range(dense.shape[1]):
            if dense[i, j] != 0:
                n += 1
        indptr[i + 1] = indptr[i] + n
    return indptr


@jit
def from_dense(dense, indptr, data, indices):
    """Write the non-zero entries of `dense` into `data` and `indices` at `indptr`."""
    for i in range(dense.shape[0]):
        k = indptr[i]
        for j in range(dense.shape[1]):
            if dense[i, j] != 0:
                data[k] = dense[i, j]
                indices[k] = j
                k += 1


@jit
def place(values, starts, stops, places, indptr, out):
    """Copy the stretches [start, stop) of `values` to the cells `places` of `out` at `indptr`."""
    for i in range(len(places)):
        source = values[starts[i] : stops[i]]
        target = out[indptr[places[i]] : indptr[places[i] + 1]]
        for k in range(len(source)):
            target[k] = source[k]


@jit
def select_genes(data, indices, indptr, position, out_data, out_indices):
    """Keep the entries of the genes with a `position` of at least 0, there; returns the offsets."""
    out_indptr = np.empty(len(indptr), np.int64)
    out_indptr[0] = 0
    n = 0
    for i in range(len(indptr) - 1):
        for p in range(indptr[i], indptr[i + 1]):
            gene = position[indices[p]]
            if gene >= 0:
                out_data[n], out_indices[n] = data[p], gene
                n += 1
        out_indptr[i + 1] = n
    return out_indptr


@jit
def spans(lengths, bases, step, rows, starts, stops):
    """Write where the entries of each cell of `rows` start and stop.

    `lengths` are the entries of every cell, `bases` where each `step`-th cell starts.
    """
    for i in range(len(rows)):
        first = rows[i] // step
        at = bases[first]
        for j in range(first * step, rows[i]):
            at += lengths[j]
        starts[i], stops[i] = at, at + lengths[rows[i]]


@jit
def all_finite(values):
    """Tell whether no value is infinite or NaN."""
    fine = True
    for i in range(len(values)):
        fine &= values[i] - values[i] == 0  # as vectors: half the time of isfinite
    return fine


@jit
def all_counts(values, most):
    """Tell whether all values are whole numbers from 0 to `most`."""
    fine = True
    for i in range(len(values)):
        value = values[i]
        fine &= (value >= 0) & (value <= most) & (value == np.floor(value))
    return fine
