"""Stochastic gradient descent on linear classifiers, one cell after the other, many at once.

A stripe of columns (classifiers) fills a cache line: a gene's weights of all its columns are read
and written together, and what a column computes does not depend on the others. Cells come in two
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

FOLD_BELOW = 1e-6  # the decay a at which a block ends, as U, which grows as 1/a, loses precision
CHUNK = 64  # genes summed in the weights' dtype, before sums go on in float64

UNTRACKED, WHOLE, STORED = 0, 1, 2  # norms of the weights: none, over all genes, over the cell's
PASSIVE_1, PASSIVE_2 = 1, 2  # kinds of passive-aggressive steps


@jit
def block_edges(decay, size):
    """Cut the cells into blocks of at most `size`, before the decay of a column falls too low.

    `decay` has shape (groups, n_obs). A first cell's decay may be as low as 0, see `shrink`.
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
def gram(dense, start, stop, out, width):
    """Write the products of a block's dense rows with those before, out[i, j - start] for j < i.

    out[i] is also written to at j >= i, and is as long as the block.
    """
    sums = np.empty((16, len(width)), dense.dtype)
    out[start:stop] = 0
    for first in range(0, dense.shape[1], CHUNK * len(width)):  # genes that the caches hold
        last = min(first + CHUNK * len(width), dense.shape[1])
        for i in range(start, stop, 4):
            for j in range(start, i + 1, 4):
                gram_4x4(dense, i, j, start, stop, first, last, sums, out, width)


@jit
def gram_4x4(dense, i, j, start, stop, first, last, sums, out, width):
    """Add the products of four rows and four others, over the genes [first, last), to `out`."""
    wide, n_genes = len(width), dense.shape[1]
    whole = last - (last - first) % wide
    # Rows past the end stand for the last one.
    i0, i1, i2, i3 = i, min(i + 1, stop - 1), min(i + 2, stop - 1), min(i + 3, stop - 1)
    j0, j1, j2, j3 = j, min(j + 1, stop - 1), min(j + 2, stop - 1), min(j + 3, stop - 1)
    zero = fill(0.0, dense, width)
    a00, a01, a02, a03 = zero, zero, zero, zero
    a10, a11, a12, a13 = zero, zero, zero, zero
    a20, a21, a22, a23 = zero, zero, zero, zero
    a30, a31, a32, a33 = zero, zero, zero, zero
    for d in range(first, whole, wide):
        x0, x1 = load(dense, i0 * n_genes + d, width), load(dense, i1 * n_genes + d, width)
        x2, x3 = load(dense, i2 * n_genes + d, width), load(dense, i3 * n_genes + d, width)
        y = load(dense, j0 * n_genes + d, width)
        a00, a10 = multiply_add(x0, y, a00), multiply_add(x1, y, a10)
        a20, a30 = multiply_add(x2, y, a20), multiply_add(x3, y, a30)
        y = load(dense, j1 * n_genes + d, width)
        a01, a11 = multiply_add(x0, y, a01), multiply_add(x1, y, a11)
        a21, a31 = multiply_add(x2, y, a21), multiply_add(x3, y, a31)
        y = load(dense, j2 * n_genes + d, width)
        a02, a12 = multiply_add(x0, y, a02), multiply_add(x1, y, a12)
        a22, a32 = multiply_add(x2, y, a22), multiply_add(x3, y, a32)
        y = load(dense, j3 * n_genes + d, width)
        a03, a13 = multiply_add(x0, y, a03), multiply_add(x1, y, a13)
        a23, a33 = multiply_add(x2, y, a23), multiply_add(x3, y, a33)
    at = 0
    for lanes in (
        a00, a01, a02, a03, a10, a11, a12, a13, a20, a21, a22, a23, a30, a31, a32, a33
    ):  # fmt: skip
        store(sums, at, lanes)
        at += wide
    for r in range(min(4, stop - i)):
        for c in range(min(4, stop - j)):
            total = 0.0
            for lane in sums[4 * r + c]:
                total += lane
            for d in range(whole, last):
                total += np.float64(dense[i + r, d]) * dense[j + c, d]
            out[i + r, j + c - start] += total


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
def dense_scores(dense, start, stop, D, L, width):
    """Write Z D of the dense rows [start, stop) to the first rows of L; D is by dense gene."""
    n, n_genes = len(width), dense.shape[1]
    L[: stop - start] = 0
    for first in range(0, n_genes, CHUNK):  # of D, that stay in the innermost cache
        last = min(first + CHUNK, n_genes)
        for i in range(start, stop, 4):
            # Four cells share each read of D; those past the end repeat the last one.
            i0, i1, i2, i3 = i, min(i + 1, stop - 1), min(i + 2, stop - 1), min(i + 3, stop - 1)
            a0 = fill(0.0, L, width)
            a1, a2, a3 = a0, a0, a0
            for d in range(first, last):
                u = load(D, n * d, width)
                a0 = multiply_add(spread(dense, i0 * n_genes + d, L, width), u, a0)
                a1 = multiply_add(spread(dense, i1 * n_genes + d, L, width), u, a1)
                a2 = multiply_add(spread(dense, i2 * n_genes + d, L, width), u, a2)
                a3 = multiply_add(spread(dense, i3 * n_genes + d, L, width), u, a3)
            one = fill(1.0, L, width)
            at = n * (i - start)
            store(L, at, multiply_add(one, a0, load(L, at, width)))
            if i + 1 < stop:
                store(L, at + n, multiply_add(one, a1, load(L, at + n, width)))
            if i + 2 < stop:
                store(L, at + 2 * n, multiply_add(one, a2, load(L, at + 2 * n, width)))
            if i + 3 < stop:
                store(L, at + 3 * n, multiply_add(one, a3, load(L, at + 3 * n, width)))


@jit
def dense_add(dense, start, stop, V, D, width):
    """Add Z'V to D, V (cells, columns) having a row for each of the dense rows [start, stop)."""
    n, n_genes = len(width), dense.shape[1]
    for d in range(0, n_genes - 3, 4):  # four genes share each read of V
        at = n * d
        a0, a1 = load(D, at, width), load(D, at + n, width)
        a2, a3 = load(D, at + 2 * n, width), load(D, at + 3 * n, width)
        for i in range(start, stop):
            v = load(V, n * (i - start), width)
            a0 = multiply_add(spread(dense, i * n_genes + d, D, width), v, a0)
            a1 = multiply_add(spread(dense, i * n_genes + d + 1, D, width), v, a1)
            a2 = multiply_add(spread(dense, i * n_genes + d + 2, D, width), v, a2)
            a3 = multiply_add(spread(dense, i * n_genes + d + 3, D, width), v, a3)
        store(D, at, a0)
        store(D, at + n, a1)
        store(D, at + 2 * n, a2)
        store(D, at + 3 * n, a3)
    for d in range(n_genes - n_genes % 4, n_genes):
        a0 = load(D, n * d, width)
        for i in range(start, stop):
            v = load(V, n * (i - start), width)
            a0 = multiply_add(spread(dense, i * n_genes + d, D, width), v, a0)
        store(D, n * d, a0)


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
def row_scores(dense, i, D, sums, wide):
    """Product of a dense row with the one column D; `sums` (2, lanes) is for partial sums."""
    n, n_genes = len(wide), dense.shape[1]
    a0 = fill(0.0, D, wide)
    a1 = a0
    whole = n_genes - n_genes % (2 * n)
    for d in range(0, whole, 2 * n):
        at = i * n_genes + d
        a0 = multiply_add(load(dense, at, wide), load(D, d, wide), a0)
        a1 = multiply_add(load(dense, at + n, wide), load(D, d + n, wide), a1)
    store(sums, 0, a0)
    store(sums, n, a1)
    total = 0.0
    for k in range(n):
        total += np.float64(sums[0, k]) + sums[1, k]
    for d in range(whole, n_genes):
        total += np.float64(dense[i, d]) * D[d, 0]
    return total


@jit
def row_add(dense, i, v, D):
    """Add v times a dense row to the one column D."""
    source, target = dense[i], D[:, 0]
    for d in range(len(source)):
        target[d] += v * source[d]


@jit
def earlier_steps(G, i, n_before, V, L, out, width):
    """Write to `out` cell i's row of L and what the `n_before` earlier cells of its block did."""
    n, at = len(width), i * G.shape[1]
    a0, a1 = load(L, n * n_before, width), fill(0.0, V, width)
    for j in range(0, n_before - 1, 2):
        a0 = multiply_add(spread(G, at + j, V, width), load(V, n * j, width), a0)
        a1 = multiply_add(spread(G, at + j + 1, V, width), load(V, n * j + n, width), a1)
    if n_before % 2:
        j = n_before - 1
        a0 = multiply_add(spread(G, at + j, V, width), load(V, n * j, width), a0)
    store(out, 0, multiply_add(fill(1.0, V, width), a1, a0))


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
def objective(options, score, own, alpha, label, square, absolute, loss, penalty):
    """Add a cell's loss and the penalty, before its step, to the sums of its columns."""
    for k in range(len(score)):
        y = 1.0 if own == label[k] else 0.0
        loss[k] += loss_value(options.loss, options.epsilon, y, score[k])
        if not options.passive:
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
def sgd(cells, steps, options, shift, dense_at, w, width, wide):
    """Take one step per cell, in order, for each column of the stripe; the penalty is L2 or none.

    `dense_at` are the positions of the dense genes, whose `shift` is 0. `width` is as long as the
    stripe has columns, and `wide` as a cache line has numbers. Returns whether every weight is a
    number.
    """
    # Names of their own: an array inside a tuple costs more time to reach, and a call more still.
    data, indices, indptr, dense, dots = (
        cells.data, cells.indices, cells.indptr, cells.dense, cells.dots
    )  # fmt: skip
    U, A, q, b, group = w.U, w.A, w.q, w.b, w.group
    n, n_dense, averaging = len(width), len(dense_at), w.A.shape[0] > 0
    # One column's dense genes are stepped on cell by cell: neighbouring genes fill the lanes.
    blocked = n > 1 and n_dense > 0
    D = U[dense_at]
    AD = A[dense_at] if averaging else A
    U[dense_at] = 0  # so that sums over U leave them out
    flat = np.zeros(n_dense)
    # Rows of few arrays, as each array that a kernel makes takes a tenth of a second to compile.
    number = np.zeros((13, n))
    margin, score, step, eta, lost, a, c = (
        number[0], number[1], number[2], number[3], number[4], number[5], number[6]
    )  # fmt: skip
    total, pulled, alpha, square, unused = (
        number[7], number[8], number[9], number[10], number[11]
    )  # fmt: skip
    lanes = np.zeros((11, n), U.dtype)
    inner, v, pull, block, parts = lanes[0], lanes[1], lanes[2], lanes[3:7], lanes[7:]
    line = np.zeros((2, len(wide)), U.dtype)
    most = steps.largest
    rows = np.zeros((3 * most, n), U.dtype)
    L, V, P = rows[:most], rows[most : 2 * most], rows[2 * most :]
    shift_norm, length, fine = 0.0, 0.0, True
    tracked, whole = options.norms != UNTRACKED, options.norms == WHOLE
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
            if options.passive == PASSIVE_1 and length == 0:
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
            if tracked:
                objective(
                    options, score, own, alpha, w.label, w.square, w.absolute, w.loss, w.penalty
                )
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
            moved = False
            for k in range(n):
                a[k] *= 1.0 if fold and lost[k] < FOLD_BELOW else lost[k]
                v[k] = step[k] / a[k]
                moved |= v[k] != 0
                c[k] += v[k]  # as rounded for U, so that the step stays along the centred cell
                q[k] += (dot - shift_norm) * v[k]
                b[k] += options.intercept_rate * step[k]
                pull[k] = -total[k] * v[k]
                pulled[k] -= pull[k]
                V[j, k], P[j, k] = v[k], pull[k]
            if moved:  # a hinge's slope is often 0
                sparse_add(data, indices, start, stop, v, U, width)
                if not blocked and n_dense:
                    row_add(dense, i, v[0], D)
            if averaging:
                sparse_add(data, indices, start, stop, pull, A, width)
                if not blocked and n_dense:
                    row_add(dense, i, pull[0], AD)
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
    U[dense_at] = D
    if averaging:
        A[dense_at] = AD
    return fine
