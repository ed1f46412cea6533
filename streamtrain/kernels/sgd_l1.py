"""Stochastic gradient descent with an L1 penalty, one cell after the other, many columns at once.

The penalty needs each weight itself, so a centred cell costs every gene. The arrays are those of
`kernels.sgd`.
"""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit
from streamtrain.kernels.sgd import PASSIVE_1, UNTRACKED, add_losses, add_penalties, slopes


@jit
def fold(w, below):
    """Multiply the scale of the columns where it is less than `below` into their weights.

    The running sum of the weights, A + total U, is the same before as after.
    """
    n = len(w.scale)
    scale, total = np.ones(n), np.zeros(n)
    for k in range(n):
        if w.scale[k] < below:
            scale[k], total[k] = w.scale[k], w.total[k]
            w.scale[k], w.total[k] = 1.0, 0.0
    for g in range(w.A.shape[0]):
        for k in range(n):
            w.A[g, k] += total[k] * w.U[g, k]
    for g in range(w.U.shape[0]):
        for k in range(n):
            w.U[g, k] *= scale[k]


@jit
def sgd_l1(cells, steps, options, shift, dense, fold_below, w):
    """Take the steps of `sgd` with an L1 penalty, summed up and clipped at 0 as by Tsuruoka (2009).

    Each step raises the penalty owed by the cell's `levy`; the genes of the cell then pay what they
    owe, as far as their weight lasts. These are all genes if `dense`, so a step costs genes x
    columns, three times: as much as scikit-learn's, but that the columns share the cell. Otherwise
    they are the stored ones, and the shift must be 0. Scales below `fold_below` are folded, as
    scikit-learn's average depends on it. Genes pay nothing to columns that do not take the cell, be
    what is owed as it may. Returns whether every weight is a number.
    """
    U, A, paid = w.U, w.A, w.paid
    n_columns, n_genes = len(w.b), U.shape[0]
    at, z = np.arange(n_genes).astype(np.int32), np.empty(n_genes, cells.data.dtype)
    n = n_genes
    score, step, lost = np.empty(n_columns), np.empty(n_columns), np.empty(n_columns)
    square, absolute = np.empty(n_columns), np.empty(n_columns)
    alpha, eta, length = np.empty(n_columns), np.empty(n_columns), 0.0
    over = np.empty(n_columns)  # the scale that divides what is owed: nothing comes of an infinite
    for k in range(n_columns):
        alpha[k] = steps.alpha[w.group[k]]
    averaging, tracked = A.shape[0] > 0, options.norms != UNTRACKED
    skipped = np.ones(len(cells.codes), np.bool_)  # found in the loop, they made it a tenth slower
    for k in range(n_columns):
        skipped &= ~steps.taken[w.group[k]]
    for i in range(len(cells.codes)):
        start, stop, own = cells.indptr[i], cells.indptr[i + 1], cells.codes[i]
        if options.passive:
            length = cells.lengths[i]
        if skipped[i] or (options.passive == PASSIVE_1 and length == 0):
            continue
        if dense:
            for g in range(n_genes):
                z[g] = -shift[g]
            for p in range(start, stop):
                z[cells.indices[p]] += cells.data[p]
        else:
            n = stop - start
            for j in range(n):
                at[j], z[j] = cells.indices[start + j], cells.data[start + j]
        score[:] = 0
        for j in range(n):
            row = U[at[j]]
            for k in range(n_columns):
                score[k] += z[j] * row[k]
        for k in range(n_columns):
            score[k] = w.scale[k] * score[k] + w.b[k]
            eta[k] = steps.eta[w.group[k], i]
        if cells.judged[i]:
            add_losses(options, score, own, w.label, w.loss)
        if tracked:
            add_penalties(options, alpha, w.square, w.absolute, w.penalty)
        slopes(
            options, score, own, cells.weight[i], eta, length, w.label, w.positive, w.negative, step
        )
        low = False
        for k in range(n_columns):
            lost[k] = steps.decay[w.group[k], i]
            w.scale[k] *= lost[k]
            low |= w.scale[k] < fold_below
        if low:
            fold(w, fold_below)
        for k in range(n_columns):
            w.b[k] += options.intercept_rate * step[k]
            step[k] /= w.scale[k]
            w.owed[k] += steps.levy[w.group[k], i]
            over[k] = w.scale[k] if steps.taken[w.group[k], i] else np.inf
        square[:] = 0
        absolute[:] = 0
        for j in range(n):
            row, paid_row = U[at[j]], paid[at[j]]
            if averaging:
                sums = A[at[j]]
                for k in range(n_columns):
                    sums[k] -= w.total[k] * z[j] * step[k]
            for k in range(n_columns):
                row[k] += z[j] * step[k]
            if tracked:  # before the penalty, as in scikit-learn
                for k in range(n_columns):
                    square[k] += row[k] * row[k]
                    absolute[k] += abs(row[k])
            for k in range(n_columns):
                weight = row[k]
                if weight > 0:
                    row[k] = max(0.0, weight - (w.owed[k] + paid_row[k]) / over[k])
                elif weight < 0:
                    row[k] = min(0.0, weight + (w.owed[k] - paid_row[k]) / over[k])
                paid_row[k] += w.scale[k] * (row[k] - weight)
        for k in range(n_columns):
            if averaging and steps.averaged[w.group[k], i]:
                w.total[k] += w.scale[k]
                w.ab[k] += w.b[k]
            if step[k] != 0:
                w.square[k], w.absolute[k] = square[k] * w.scale[k] ** 2, absolute[k] * w.scale[k]
            else:
                w.square[k] *= lost[k] ** 2
                w.absolute[k] *= lost[k]
    test = w.b * 0  # of zeros; NaN where a weight is infinite or NaN
    for g in range(n_genes):
        for k in range(n_columns):
            test[k] += U[g, k] * 0
    return not np.isnan(test).any()
