"""Stochastic gradient descent on the logistic loss, one cell after the other, many classes at once.

The weights of the centred data are W = a (U - m c'), U over the genes, m the genes' shift: a cell
costs its non-zero entries although every centred entry is non-zero (DESIGN, section 3).
"""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

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
def sgd(
    data, indices, indptr, dots, codes, first_class, eta, decay, averaged, shift_norm,
    intercept_rate, scalars, U, c, q, b, A, ac, ab,
):  # fmt: skip
    """Take one step per cell, in order, for the classes first_class, first_class + 1, ...

    Parameters are cells as scaled rows (x', `dots` = m.x'), the step and the decay 1 - eta alpha
    of each cell, whether each step counts in the average, `shift_norm` = |m|^2, and the factor of
    the intercept's step. `scalars` (a, S), U, c, q = U'm, the intercepts b, and for averaging the
    sums A, ac, ab (length 0 if unused) are updated in place; b, c, q are float64.
    """
    n_classes = len(c)
    score = np.empty(n_classes, np.float64)
    step = np.empty(n_classes, U.dtype)
    averaging = len(ac) > 0
    for i in range(len(codes)):
        score[:] = 0
        for p in range(indptr[i], indptr[i + 1]):
            x = data[p]
            row = U[indices[p]]
            for k in range(n_classes):
                score[k] += x * row[k]
        a = scalars[0]
        for k in range(n_classes):
            centred = score[k] - q[k] + (shift_norm - dots[i]) * c[k]
            y = 1.0 if codes[i] == first_class + k else 0.0
            score[k] = -eta[i] * logistic_gradient(y, a * centred + b[k])
        scalars[0] *= decay[i]
        if scalars[0] < FOLD_BELOW:
            fold(scalars, U, c, q, A, ac)
        for k in range(n_classes):
            step[k] = score[k] / scalars[0]
            c[k] += step[k]  # as rounded for U, so that the step stays along the centred cell
            q[k] += dots[i] * step[k]
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
