"""Stochastic gradient descent on the logistic loss, one cell after the other, many classes at once.

The weights of the centred data are W = a (U - m c'), U over the genes, m the genes' shift: a cell
costs its non-zero entries although every centred entry is non-zero (DESIGN, section 3).
"""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

# Steps between two calls of recentre. Against one a batch, 64 costs a quarter of the time and
# rounds 10 to 30 times less (float64, against dense SGD's coefficients after 2,000 to 8,000 steps).
RECENTRE = 64
FOLD_BELOW = 1e-6  # the decay a is multiplied into U before U, which grows as 1/a, loses precision


@jit
def logistic_gradient(y, score):
    """Slope of log(1 + exp(score)) - y score, exact where the probability rounds to 0 or 1."""
    if score > -37:
        e = math.exp(-score)
        return ((1 - y) - y * e) / (1 + e)
    return math.exp(score) - y


@jit
def fold(scalars, U, c, q, A, ac):
    """Multiply the decay into U, c and q, and move the running sum of weights into A and ac.

    `scalars` holds (a, S) and becomes (1, 0). The sum of all weights so far is S U - A before as
    after, likewise S c - ac.
    """
    a, total = scalars[0], scalars[1]
    for g in range(A.shape[0]):
        for k in range(A.shape[1]):
            A[g, k] -= total * U[g, k]
    for g in range(U.shape[0]):
        for k in range(U.shape[1]):
            U[g, k] *= a
    for k in range(len(c)):
        if len(ac):
            ac[k] -= total * c[k]
        c[k] *= a
        q[k] *= a
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
def sgd(
    data, indices, indptr, dots, codes, first_class, eta, decay, averaged, shift, intercept_rate,
    scalars, U, c, q, b, A, ac, ab,
):  # fmt: skip
    """Take one step per cell, in order, for the classes first_class, first_class + 1, ...

    Parameters are cells as scaled rows (x', `dots` = m.x'), the step and the decay 1 - eta alpha
    of each cell, whether each step counts in the average, the shift m, and the factor of the
    intercept's step. `scalars` (a, S), U, c, q = W'm / a, the intercepts b, and for averaging the
    sums A, ac, ab (length 0 if unused) are updated in place; b, c, q are float64.
    """
    n_classes = len(c)
    score = np.empty(n_classes, np.float64)
    step = np.empty(n_classes, U.dtype)
    averaging = len(ac) > 0
    shift_norm = 0.0
    for g in range(len(shift)):
        shift_norm += shift[g] * shift[g]
    for i in range(len(codes)):
        if i % RECENTRE == 0 and shift_norm > 0:
            recentre(shift, U, c, q)
        score[:] = 0
        for p in range(indptr[i], indptr[i + 1]):
            x, m = data[p], shift[indices[p]]
            row = U[indices[p]]
            for k in range(n_classes):
                # Per gene: summed apart, x'U and m.x' c are large and cancel to little.
                score[k] += x * (row[k] - m * c[k])
        a = scalars[0]
        for k in range(n_classes):
            centred = score[k] - q[k]
            y = 1.0 if codes[i] == first_class + k else 0.0
            score[k] = -eta[i] * logistic_gradient(y, a * centred + b[k])
        scalars[0] *= decay[i]
        if scalars[0] < FOLD_BELOW:
            fold(scalars, U, c, q, A, ac)
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
                ac[k] += before * step[k]
            if averaged[i]:
                scalars[1] += scalars[0]
                for k in range(n_classes):
                    ab[k] += b[k]
