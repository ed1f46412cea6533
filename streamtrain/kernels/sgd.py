"""Stochastic gradient descent on linear classifiers, one cell after the other, many at once.

The weights of the centred data are W = a (U - m c'), U over the genes, m the genes' shift: a cell
costs its non-zero entries although every centred entry is non-zero (DESIGN, section 3). An L1
penalty needs W itself: `sgd_l1` keeps c = 0 and visits every gene of a centred cell. `w` holds the
arrays of the columns at hand, a `solvers.stripe.Columns`.
"""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

# Steps between two calls of recentre. Against one a batch, 64 costs a quarter of the time and
# rounds 10 to 30 times less (float64, against dense SGD's coefficients after 2,000 to 8,000 steps).
RECENTRE = 64
FOLD_BELOW = 1e-6  # the decay a is multiplied into U before U, which grows as 1/a, loses precision

LOG, HINGE, MODIFIED_HUBER = 0, 1, 2
UNTRACKED, WHOLE, STORED = 0, 1, 2  # norms of the weights: none, over all genes, over the cell's


@jit
def gradient(loss, y, score):
    """Slope of the loss of a cell of the class (y = 1) or of another (y = 0) at `score`.

    Never beyond 4 in size, so scikit-learn's limit of 1e12 has no place here.
    """
    if loss == LOG:  # exact where the probability rounds to 0 or 1
        if score > -37:
            e = math.exp(-score)
            return ((1 - y) - y * e) / (1 + e)
        return math.exp(score) - y
    sign = 2 * y - 1
    margin = sign * score
    if loss == HINGE:
        return -sign if margin <= 1 else 0.0
    if margin >= 1:
        return 0.0
    return -2 * (1 - margin) * sign if margin >= -1 else -4 * sign


@jit
def loss_value(loss, y, score):
    """The loss whose slope `gradient` is."""
    if loss == LOG:
        return max(score, 0.0) + math.log1p(math.exp(-abs(score))) - y * score
    margin = (2 * y - 1) * score
    if margin >= 1:
        return 0.0
    if loss == HINGE:
        return 1 - margin
    return (1 - margin) ** 2 if margin >= -1 else -4 * margin


@jit
def finite(U, b, c):
    """Whether every weight is a number."""
    total = (b + c) * 0  # of zeros; NaN where a weight is infinite or NaN
    for g in range(U.shape[0]):
        for k in range(U.shape[1]):
            total[k] += U[g, k] * 0
    return not np.isnan(total).any()


@jit
def fold(scalars, w):
    """Multiply the decay into U, c and q, and move the running sum of weights into A and ac.

    `scalars` holds (a, S) and becomes (1, 0). The sum of all weights so far is S U - A before as
    after, likewise S c - ac.
    """
    a, total = scalars[0], scalars[1]
    for g in range(w.A.shape[0]):
        for k in range(w.A.shape[1]):
            w.A[g, k] -= total * w.U[g, k]
    for g in range(w.U.shape[0]):
        for k in range(w.U.shape[1]):
            w.U[g, k] *= a
    for k in range(len(w.c)):
        w.ac[k] -= total * w.c[k]
        w.c[k] *= a
        w.q[k] *= a
    scalars[0], scalars[1] = 1.0, 0.0


@jit
def recentre(shift, U, c, q):
    """Move the part m c' of the weights into U, leaving c = 0, and sum q = W'm / a anew.

    U holds W / a + m c', and c wanders: left alone, its rounding swamps that of W (after 10 epochs
    of real data in float64, coefficients 2e-2 away from dense SGD's, relatively).
    """
    for k in range(len(c)):
        q[k] = 0.0
    for g in range(U.shape[0]):
        for k in range(U.shape[1]):
            U[g, k] -= shift[g] * c[k]
            q[k] += shift[g] * U[g, k]
    for k in range(len(c)):
        c[k] = 0.0


@jit
def square_norms(a, U, square):
    """Sum the squares of the weights a U anew, where c = 0."""
    square[:] = 0
    for g in range(U.shape[0]):
        for k in range(U.shape[1]):
            square[k] += U[g, k] * U[g, k]
    for k in range(len(square)):
        square[k] *= a * a


@jit
def scores(data, indices, indptr, shift, a, w, out):
    """Scores of scaled cells under the present weights, into `out` (cells, columns)."""
    n_classes = len(w.b)
    constant = np.zeros(n_classes, np.float64)  # -m'W / a
    for g in range(len(shift)):
        if shift[g] != 0:
            for k in range(n_classes):
                constant[k] -= shift[g] * (w.U[g, k] - shift[g] * w.c[k])
    for i in range(out.shape[0]):
        for k in range(n_classes):
            out[i, k] = constant[k]
        for p in range(indptr[i], indptr[i + 1]):
            x, m = data[p], shift[indices[p]]
            row = w.U[indices[p]]
            for k in range(n_classes):
                out[i, k] += x * (row[k] - m * w.c[k])
        for k in range(n_classes):
            out[i, k] = a * out[i, k] + w.b[k]


@jit
def sgd(
    data, indices, indptr, dots, codes, column_of, eta, decay, averaged, shift, intercept_rate,
    loss, norms, alpha, scalars, w,
):  # fmt: skip
    """Take one step per cell, in order, for each of the columns `w`; the penalty is L2 or none.

    Parameters are cells as scaled rows (x', `dots` = m.x'), the column of each class (-1: none of
    these), the step and the decay of each cell, whether each step counts in the average, the shift
    m, the factor of the intercept's step, the loss, the `norms` that the penalty alpha |W|^2 / 2
    is summed by (UNTRACKED: neither loss nor penalty is summed), `scalars` (a, S) and the columns,
    which are updated in place.
    """
    U, c, q, b, A = w.U, w.c, w.q, w.b, w.A
    n_classes = len(b)
    score = np.empty(n_classes, np.float64)
    step = np.empty(n_classes, U.dtype)
    summed = np.empty(n_classes, np.float64)
    averaging = A.shape[0] > 0
    shift_norm = 0.0
    for g in range(len(shift)):
        shift_norm += shift[g] * shift[g]
    for i in range(len(codes)):
        if i % RECENTRE == 0:
            if shift_norm > 0:
                recentre(shift, U, c, q)
            if norms == WHOLE:
                square_norms(scalars[0], U, w.square)
        score[:] = 0
        for p in range(indptr[i], indptr[i + 1]):
            x, m = data[p], shift[indices[p]]
            row = U[indices[p]]
            for k in range(n_classes):
                # Per gene: summed apart, x'U and m.x' c are large and cancel to little.
                score[k] += x * (row[k] - m * c[k])
        a = scalars[0]
        own = column_of[codes[i]]
        if norms != UNTRACKED:
            for k in range(n_classes):
                summed[k] = a * (score[k] - q[k])
                y = 1.0 if k == own else 0.0
                w.loss[k] += loss_value(loss, y, summed[k] + b[k])
                w.penalty[k] += alpha * 0.5 * w.square[k]
        for k in range(n_classes):
            centred = score[k] - q[k]
            y = 1.0 if k == own else 0.0
            score[k] = -eta[i] * gradient(loss, y, a * centred + b[k])
            score[k] *= w.positive[k] if k == own else w.negative[k]
        scalars[0] *= decay[i]
        if scalars[0] < FOLD_BELOW:
            fold(scalars, w)
        for k in range(n_classes):
            step[k] = score[k] / scalars[0]
            c[k] += step[k]  # as rounded for U, so that the step stays along the centred cell
            q[k] += (dots[i] - shift_norm) * step[k]
            b[k] += intercept_rate * score[k]
        for p in range(indptr[i], indptr[i + 1]):
            x = data[p]
            row = U[indices[p]]
            for k in range(n_classes):
                row[k] += x * step[k]
        if averaging:
            before = scalars[1]
            for p in range(indptr[i], indptr[i + 1]):
                x = data[p] * before
                row = A[indices[p]]
                for k in range(n_classes):
                    row[k] += x * step[k]
            for k in range(n_classes):
                w.ac[k] += before * step[k]
            if averaged[i]:
                scalars[1] += scalars[0]
                for k in range(n_classes):
                    w.ab[k] += b[k]
        if norms == WHOLE:  # |r W + u z|^2, with z = x' - m
            length = shift_norm - 2 * dots[i]
            for p in range(indptr[i], indptr[i + 1]):
                length += data[p] * data[p]
            for k in range(n_classes):
                cross = 2 * decay[i] * summed[k] * score[k]
                w.square[k] = decay[i] ** 2 * w.square[k] + cross + score[k] ** 2 * length
        elif norms == STORED:
            summed[:] = 0
            for p in range(indptr[i], indptr[i + 1]):
                row = U[indices[p]]
                for k in range(n_classes):
                    summed[k] += row[k] * row[k]
            for k in range(n_classes):
                if score[k] != 0:
                    w.square[k] = summed[k] * scalars[0] ** 2
                else:
                    w.square[k] *= decay[i] ** 2


@jit
def sgd_l1(
    data, indices, indptr, codes, column_of, eta, decay, levy, averaged, shift, dense, fold_below,
    intercept_rate, loss, tracked, alpha, l1_share, scalars, w,
):  # fmt: skip
    """Take the steps of `sgd` with an L1 penalty, summed up and clipped at 0 as by Tsuruoka (2009).

    Each step raises the penalty owed by `levy`; the genes of the cell then pay what they owe, as
    far as their weight lasts. These are all genes if `dense`, so a step costs genes x columns,
    three times: as much as scikit-learn's, but that the columns share the cell. Otherwise they are
    the stored ones, and m must be 0. c stays 0 and q unused.
    """
    U, A, paid, owed, b = w.U, w.A, w.paid, w.owed, w.b
    n_classes, n_genes = len(b), U.shape[0]
    at, z = np.arange(n_genes).astype(np.int32), np.empty(n_genes, data.dtype)
    n = n_genes
    score = np.empty(n_classes, np.float64)
    step = np.empty(n_classes, np.float64)
    square = np.empty(n_classes, np.float64)
    absolute = np.empty(n_classes, np.float64)
    averaging = A.shape[0] > 0
    for i in range(len(codes)):
        start = indptr[i]
        if dense:
            for g in range(n_genes):
                z[g] = -shift[g]
            for p in range(start, indptr[i + 1]):
                z[indices[p]] += data[p]
        else:
            n = indptr[i + 1] - start
            for j in range(n):
                at[j], z[j] = indices[start + j], data[start + j]
        score[:] = 0
        for j in range(n):
            row = U[at[j]]
            for k in range(n_classes):
                score[k] += z[j] * row[k]
        own = column_of[codes[i]]
        if tracked:
            for k in range(n_classes):
                y = 1.0 if k == own else 0.0
                w.loss[k] += loss_value(loss, y, scalars[0] * score[k] + b[k])
                mixed = (1 - l1_share) * 0.5 * w.square[k] + l1_share * w.absolute[k]
                w.penalty[k] += alpha * mixed
        for k in range(n_classes):
            y = 1.0 if k == own else 0.0
            score[k] = -eta[i] * gradient(loss, y, scalars[0] * score[k] + b[k])
            score[k] *= w.positive[k] if k == own else w.negative[k]
        scalars[0] *= decay[i]
        if scalars[0] < fold_below:
            fold(scalars, w)
        a, before = scalars[0], scalars[1]
        for k in range(n_classes):
            step[k] = score[k] / a
            b[k] += intercept_rate * score[k]
            owed[k] += levy[i]
        square[:] = 0
        absolute[:] = 0
        for j in range(n):
            row, paid_row = U[at[j]], paid[at[j]]
            if averaging:
                sums = A[at[j]]
                for k in range(n_classes):
                    sums[k] += before * z[j] * step[k]
            for k in range(n_classes):
                row[k] += z[j] * step[k]
            if tracked:  # before the penalty, as in scikit-learn
                for k in range(n_classes):
                    square[k] += row[k] * row[k]
                    absolute[k] += abs(row[k])
            for k in range(n_classes):
                weight = row[k]
                if weight > 0:
                    row[k] = max(0.0, weight - (owed[k] + paid_row[k]) / a)
                elif weight < 0:
                    row[k] = min(0.0, weight + (owed[k] - paid_row[k]) / a)
                paid_row[k] += a * (row[k] - weight)
        if averaging and averaged[i]:
            scalars[1] += a
            for k in range(n_classes):
                w.ab[k] += b[k]
        for k in range(n_classes):
            if score[k] != 0:
                w.square[k], w.absolute[k] = square[k] * a * a, absolute[k] * a
            else:
                w.square[k] *= decay[i] ** 2
                w.absolute[k] *= decay[i]
