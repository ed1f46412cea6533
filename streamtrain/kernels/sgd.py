"""Stochastic gradient descent on linear classifiers, one cell after the other, many at once.

A stripe of columns (classifiers) fills a cache line: a gene's weights of all its columns are read
and written together, and what a column computes does not depend on the others (but that a block of
cells ends for all where the weights of one have decayed far). Cells come in two
parts. A `sparse` entry costs a line read for the score and a line read and written for the step.
The genes that most cells express come `dense`, and go block by block: with L the scores of a
block's cells under the weights before it, and G = Z Z' between its cells, the score of cell i is
L_i + sum over j < i of G_ij v_j, with v_j the step of cell j. These are the same iterates, and what
is left to do with the weights are two products of matrices.

The weights of centred sparse genes are W = a (U - m c') while a block lasts, with m the genes'
shift, as every centred entry is non-zero although a cell costs its stored entries alone; and U is
W itself between two blocks. `w` holds the arrays of a stripe, a `solvers.stripe.Columns`; `cells`
and `steps` are a `solvers.stripe.Cells` and `Steps`.
"""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit
from streamtrain.kernels.lanes import fill, load, multiply_add, row_of, spread, store
from streamtrain.kernels.losses import gradient, loss_value
from streamtrain.kernels.sgd_dense import (
    dense_add,
    dense_scores,
    earlier_steps,
    row_add,
    row_scores,
)

# The decay a at which a block ends, as U grows as 1/a. Averages lose the digits first: in float32,
# at decays of 0.9, 2e-2 of their size with 1e-6 here, and 2e-5 with 1e-3.
FOLD_BELOW = 1e-3
CHUNK = 64  # genes summed in the weights' dtype, before sums go on in float64

UNTRACKED, WHOLE, STORED = 0, 1, 2  # norms of the weights: none, over all genes, over the cell's
PASSIVE_1, PASSIVE_2 = 1, 2  # kinds of passive-aggressive steps


@jit
def block_edges(decay, size):
    """Cut the cells into blocks of at most `size`, before the decay of a column falls too low.

    `decay` has shape (groups, n_obs). A first cell's decay may be as low as 0: `sgd`
    multiplies it into the weights at once.
    """
    n_groups, n_obs = decay.shape
    edges = [0]
    product = np.ones(n_groups)
    for i in range(n_obs):
        first = i == edges[-1]
        low = False
        for g in range(n_groups):
            low |= product[g] * decay[g, i] < FOLD_BELOW
        if not first and (low or i - edges[-1] == size):
            edges.append(i)
            first = True
            product[:] = 1
        for g in range(n_groups):
            if not first or decay[g, i] >= FOLD_BELOW:
                product[g] *= decay[g, i]
    edges.append(n_obs)
    return np.array(edges)


@jit
def lengths(data, indptr, dots, dense, shift_norm, out):
    """Write the squared length |z|^2 of each centred cell."""
    for i in range(len(out)):
        total = shift_norm - 2 * dots[i]
        for x in data[indptr[i] : indptr[i + 1]]:
            total += np.float64(x) * x
        for x in dense[i]:
            total += np.float64(x) * x
        out[i] = total


@jit
def sparse_scores(data, indices, start, stop, U, sums, out, width):
    """Write x'U of one cell's entries; `sums` (4, columns) is for partial sums."""
    n = len(width)
    a0 = fill(0.0, U, width)
    a1, a2, a3 = a0, a0, a0
    last = stop - (stop - start) % 4
    for p in range(start, last, 4):
        u = load(U, row_of(indices, p, width), width)
        a0 = multiply_add(spread(data, p, U, width), u, a0)
        u = load(U, row_of(indices, p + 1, width), width)
        a1 = multiply_add(spread(data, p + 1, U, width), u, a1)
        u = load(U, row_of(indices, p + 2, width), width)
        a2 = multiply_add(spread(data, p + 2, U, width), u, a2)
        u = load(U, row_of(indices, p + 3, width), width)
        a3 = multiply_add(spread(data, p + 3, U, width), u, a3)
    for p in range(last, stop):
        u = load(U, row_of(indices, p, width), width)
        a0 = multiply_add(spread(data, p, U, width), u, a0)
    store(sums, 0, a0)
    store(sums, n, a1)
    store(sums, 2 * n, a2)
    store(sums, 3 * n, a3)
    for k in range(n):
        out[k] = (np.float64(sums[0, k]) + sums[1, k]) + (np.float64(sums[2, k]) + sums[3, k])


@jit
def scale_rows(U, factor, width):
    """Multiply every row of U by `factor` (columns,)."""
    n = len(width)
    zero, f = fill(0.0, U, width), load(factor, 0, width)
    for g in range(U.shape[0]):
        store(U, n * g, multiply_add(f, load(U, n * g, width), zero))


@jit
def settle(shift, block, U, A, q, square, width):
    """End a block: W = a (U - m c') into U, q = W'm, and the sum of the weights into A.

    `block` (4, columns) has, as numbers of U, a; -c; the sum of a over the averaged steps, before
    which A has lost that of x v' times the sum so far; and what m has of it. `square` gains |W|^2.
    The weights' sums are in float64, but of `CHUNK` genes. Returns whether all are numbers.
    """
    n, n_genes = len(width), U.shape[0]
    zero = fill(0.0, U, width)
    a, minus_c, total, pulled = (
        load(block, 0, width), load(block, n, width), load(block, 2 * n, width),
        load(block, 3 * n, width),
    )  # fmt: skip
    averaging = A.shape[0] > 0
    sums, test = np.empty((3, n), U.dtype), np.zeros(n)
    for k in range(n):
        q[k] = 0
    for first in range(0, n_genes, CHUNK):
        dot, norm, nothing = zero, zero, zero
        for g in range(first, min(first + CHUNK, n_genes)):
            m = spread(shift, g, U, width)
            u = multiply_add(m, minus_c, load(U, n * g, width))
            if averaging:
                grown = multiply_add(total, u, load(A, n * g, width))
                store(A, n * g, multiply_add(m, pulled, grown))
            u = multiply_add(a, u, zero)
            store(U, n * g, u)
            dot = multiply_add(m, u, dot)
            norm = multiply_add(u, u, norm)
            nothing = multiply_add(u, zero, nothing)  # NaN where a weight is infinite or NaN
        store(sums, 0, dot)
        store(sums, n, norm)
        store(sums, 2 * n, nothing)
        for k in range(n):
            q[k] += sums[0, k]
            square[k] += sums[1, k]
            test[k] += sums[2, k]
    return not np.isnan(test).any()


@jit
def sparse_add(data, indices, start, stop, v, U, width):
    """Add x v' of one cell's entries to U.

    From the last to the first, as the cell's scores have just read the last: 5% of all time.
    """
    lanes = load(v, 0, width)
    for p in range(stop - 1, start - 1, -1):
        at = row_of(indices, p, width)
        store(U, at, multiply_add(spread(data, p, U, width), lanes, load(U, at, width)))


@jit
def slopes(options, score, own, weight, eta, length, label, positive, negative, step):
    """Write the steps that a cell of class `own` takes, by the scores of its columns."""
    for k in range(len(step)):
        y = 1.0 if own == label[k] else 0.0
        if options.passive:  # Crammer et al. 2006
            size = loss_value(options.loss, options.epsilon, y, score[k])
            if options.passive == PASSIVE_1:
                size = min(eta[k], size / length)
            else:
                size /= length + 0.5 / eta[k]
            step[k] = size * (2 * y - 1)
        else:
            step[k] = -eta[k] * gradient(options.loss, options.epsilon, y, score[k])
        step[k] *= (positive[k] if y else negative[k]) * weight


@jit
def add_losses(options, score, own, label, loss):
    """Add a cell's loss, before its step, to the sums of its columns."""
    for k in range(len(score)):
        y = 1.0 if own == label[k] else 0.0
        loss[k] += loss_value(options.loss, options.epsilon, y, score[k])


@jit
def add_penalties(options, alpha, square, absolute, penalty):
    """Add the penalty before a step to the sums of its columns."""
    if not options.passive:
        for k in range(len(penalty)):
            mixed = (1 - options.l1_share) * 0.5 * square[k] + options.l1_share * absolute[k]
            penalty[k] += alpha[k] * mixed


@jit
def stored_norms(indices, U, a, lost, step, square):
    """Bring |W|^2 up to date as scikit-learn sums it on sparse cells: over the cell's own genes."""
    for k in range(len(step)):
        if step[k] == 0:
            square[k] *= lost[k] ** 2
            continue
        total = 0.0
        for g in indices:
            total += np.float64(U[g, k]) * U[g, k]
        square[k] = total * a[k] ** 2


@jit
def take_rows(U, at, D):
    """Move the rows `at` of U to D, and leave zeros."""
    for d in range(len(at)):
        for k in range(U.shape[1]):
            D[d, k] = U[at[d], k]
            U[at[d], k] = 0


@jit
def put_rows(D, at, U):
    """Write the rows of D to the rows `at` of U."""
    for d in range(len(at)):
        for k in range(U.shape[1]):
            U[at[d], k] = D[d, k]


@jit
def scores(cells, dense_at, w, q, out, width, wide):
    """Write the scores of scaled cells under the present weights to `out` (n_obs, columns)."""
    n, n_dense = len(width), len(dense_at)
    D, L = w.U[dense_at], np.zeros((CHUNK, n), w.U.dtype)
    parts, line = np.zeros((4, n), w.U.dtype), np.zeros((2, len(wide)), w.U.dtype)
    for first in range(0, len(out), CHUNK):
        end = min(first + CHUNK, len(out))
        if n > 1 and n_dense:
            dense_scores(cells.dense, first, end, D, L, width)
        for i in range(first, end):
            start, stop = cells.indptr[i], cells.indptr[i + 1]
            sparse_scores(cells.data, cells.indices, start, stop, w.U, parts, out[i], width)
            if n == 1 and n_dense:
                L[i - first, 0] = row_scores(cells.dense, i, D, line, wide)
            for k in range(n):
                out[i, k] = w.scale[k] * (out[i, k] + L[i - first, k] - q[k]) + w.b[k]


@jit
def sgd(cells, steps, options, shift, dense_at, w, work, width, wide):
    """Take one step per cell, in order, for each column of the stripe; the penalty is L2 or none.

    A cell that no column takes is passed over; otherwise a column that does not take it has a step
    of 0 and a decay of 1, which leave its numbers as they are.

    `dense_at` are the positions of the dense genes, whose `shift` is 0. `width` is as long as the
    stripe has columns, and `wide` as a cache line has numbers. Returns whether every weight is a
    number.
    """
    # Names of their own: an array inside a tuple costs more time to reach, and a call more still.
    data, indices, indptr, dense, dots, judged = (
        cells.data, cells.indices, cells.indptr, cells.dense, cells.dots, cells.judged
    )  # fmt: skip
    U, A, q, b, group = w.U, w.A, w.q, w.b, w.group
    n, n_dense, averaging = len(width), len(dense_at), w.A.shape[0] > 0
    # One column's dense genes are stepped on cell by cell: neighbouring genes fill the lanes.
    blocked = n > 1 and n_dense > 0
    D, AD, flat, line, largest = work.D, work.AD, work.flat, work.line, steps.largest
    take_rows(U, dense_at, D)  # of U none are left, so that sums over it leave them out
    if averaging:
        take_rows(A, dense_at, AD)
    numbers, lanes = work.numbers, work.lanes
    margin, score, step, eta, lost, a, c = (
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]
    )  # fmt: skip
    total, pulled, alpha, square, unused = (
        numbers[7], numbers[8], numbers[9], numbers[10], numbers[11]
    )  # fmt: skip
    inner, v, pull, block, parts = lanes[0], lanes[1], lanes[2], lanes[3:7], lanes[7:]
    L, V, P = work.rows[:largest], work.rows[largest : 2 * largest], work.rows[2 * largest :]
    shift_norm, length, fine = 0.0, 0.0, True
    tracked, whole = options.norms != UNTRACKED, options.norms == WHOLE
    skipped = np.ones(len(cells.codes), np.bool_)
    for k in range(n):
        skipped &= ~steps.taken[group[k]]
    for g in range(len(shift)):
        shift_norm += shift[g] * shift[g]
    for k in range(n):
        alpha[k] = steps.alpha[group[k]]
    for e in range(len(steps.edges) - 1):
        first, end = steps.edges[e], steps.edges[e + 1]
        for k in range(n):
            a[k], c[k], total[k], pulled[k] = 1, 0, 0, 0
        if blocked:
            dense_scores(dense, first, end, D, L, width)
        for i in range(first, end):
            start, stop, j, dot, own = indptr[i], indptr[i + 1], i - first, dots[i], cells.codes[i]
            if options.passive or whole:
                length = cells.lengths[i]
            if skipped[i] or (options.passive == PASSIVE_1 and length == 0):
                for k in range(n):
                    V[j, k], P[j, k] = 0, 0
                continue
            sparse_scores(data, indices, start, stop, U, parts, margin, width)
            if blocked:
                earlier_steps(cells.gram, i, j, V, L, inner, width)
            elif n_dense:
                inner[0] = row_scores(dense, i, D, line, wide)
            fold = False  # a decay as low as 0, see `block_edges`
            for k in range(n):
                eta[k], lost[k] = steps.eta[group[k], i], steps.decay[group[k], i]
                fold |= j == 0 and lost[k] < FOLD_BELOW
                margin[k] = a[k] * (margin[k] + inner[k] - dot * c[k] - q[k])
                score[k] = margin[k] + b[k]
            if judged[i]:
                add_losses(options, score, own, w.label, w.loss)
            if tracked:
                add_penalties(options, alpha, w.square, w.absolute, w.penalty)
            slopes(
                options, score, own, cells.weight[i], eta, length, w.label, w.positive, w.negative,
                step,
            )  # fmt: skip
            if fold:
                for k in range(n):
                    v[k] = lost[k] if lost[k] < FOLD_BELOW else 1.0
                    q[k] *= v[k]
                scale_rows(U, v, width)
                scale_rows(D, v, width)
                scale_rows(L, v, width)
            moved = summed = False
            for k in range(n):
                a[k] *= 1.0 if fold and lost[k] < FOLD_BELOW else lost[k]
                v[k] = step[k] / a[k]
                moved |= v[k] != 0
                c[k] += v[k]  # as rounded for U, so that the step stays along the centred cell
                q[k] += (dot - shift_norm) * v[k]
                b[k] += options.intercept_rate * step[k]
                pull[k] = -total[k] * v[k]
                pulled[k] -= pull[k]
                summed |= averaging and pull[k] != 0  # infinite steps make it NaN
                V[j, k], P[j, k] = v[k], pull[k]
            if moved:  # a hinge's slope is often 0
                sparse_add(data, indices, start, stop, v, U, width)
                if not blocked and n_dense:
                    row_add(dense, i, v[0], D)
            if summed:  # from the second averaged step of a block on
                sparse_add(data, indices, start, stop, pull, A, width)
                if not blocked and n_dense:
                    row_add(dense, i, pull[0], AD)
            if averaging:
                for k in range(n):
                    if steps.averaged[group[k], i]:
                        total[k] += a[k]
                        w.ab[k] += b[k]
            if whole:  # |r W + u z|^2
                for k in range(n):
                    cross = 2 * lost[k] * margin[k] * step[k]
                    w.square[k] = lost[k] ** 2 * w.square[k] + cross + step[k] ** 2 * length
            elif tracked:
                stored_norms(indices[start:stop], U, a, lost, step, w.square)
        if blocked:
            dense_add(dense, first, end, V, D, width)
            if averaging:
                dense_add(dense, first, end, P, AD, width)
        for k in range(n):
            block[0, k], block[1, k], block[2, k], block[3, k] = a[k], -c[k], total[k], pulled[k]
            square[k] = 0
        fine &= settle(flat, block, D, AD, unused, square, width)
        fine &= settle(shift, block, U, A, q, square, width)
        for k in range(n):
            fine &= np.isfinite(b[k])
            if whole:
                w.square[k] = square[k]
    put_rows(D, dense_at, U)
    if averaging:
        put_rows(AD, dense_at, A)
    return fine
