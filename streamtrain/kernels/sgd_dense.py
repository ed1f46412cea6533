"""The dense part of SGD's cells: their rows and weights in, scores and stepped-on weights out.

Rows of the genes that most cells express are read as they lie, n_obs x genes. A stripe's weights of
these genes are D (genes, columns).
"""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit
from streamtrain.kernels.lanes import fill, load, multiply_add, spread, store

CHUNK = 64  # genes, or lines of a row, that the innermost cache holds for several rows


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
