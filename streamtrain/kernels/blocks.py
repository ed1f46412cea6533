"""The CUDA kernels of `gpu/kernels.cu`, on the CPU: cells and products in, steps and sums out."""

from __future__ import annotations

import math

from streamtrain.kernels.jit import jit
from streamtrain.kernels.losses import gradient, loss_value

NOTHING, LOSSES, PENALTIES = 0, 1, 2  # what is summed beside the steps


@jit
def fill(data, indices, indptr, place, rule, nothing, out):
    """Write z of cells to dense rows.

    `place` is the column of each source gene, or -1, and `rule` its cap, factor and offset;
    `nothing` is z of a cell without entries.
    """
    for i in range(len(out)):
        out[i] = nothing
        for p in range(indptr[i], indptr[i + 1]):
            g = indices[p]
            if place[g] >= 0:
                out[i, place[g]] = min(float(data[p]), rule[g, 0]) * rule[g, 1] - rule[g, 2]


@jit
def later(decay, averaged, edges, after, tail):
    """Write the product of the decays after each step of a block, and what averages have of it.

    `tail` is the sum of such products up to each averaged step, the step's own first. All have
    shape (groups, n).
    """
    for g in range(decay.shape[0]):
        for e in range(len(edges) - 1):
            product, total = 1.0, 0.0
            for i in range(edges[e + 1] - 1, edges[e] - 1, -1):
                total += 1.0 if averaged[g, i] else 0.0
                after[g, i], tail[g, i] = product, total
                product *= decay[g, i]
                total *= decay[g, i]


@jit
def steps(
    scores, gram, codes, weight, judged, eta, decay, averaged, after, tail, alpha, group, label,
    positive, negative, loss, epsilon, intercept_rate, tracked, averaging, b, ab, square, losses,
    penalties, out,
):  # fmt: skip
    """Take a step for each cell, in order, for each column.

    Parameters
    ----------
    scores, gram
        Products of the cells with the weights before the first step, (n, columns), and with each
        other, (n, n).
    codes, weight, judged
        Class of each cell, factor of its step, and whether its loss is summed, (n,).
    eta, decay, averaged
        Step, decay and whether the weights afterwards count, (n, groups).
    after, tail
        What a step counts for in the weights after the last one, and in the sum of those that
        count, (n, groups).
    alpha
        Penalty of each group, (groups,).
    group, label, positive, negative
        Of each column, (columns,): its group, class, and the factors of the steps of cells of the
        class and of others.
    tracked
        What to sum before each step: `NOTHING`, `LOSSES`, or `PENALTIES`, too.
    averaging
        Whether to sum weights.
    b, ab, square, losses, penalties
        Intercepts, their sums, squared norms of the weights, and sums, (columns,), brought up to
        date.
    out
        Gets the steps times `after`, and where averaging beside them those times `tail`, (n,
        columns) or (n, 2 columns).
    """
    n, n_columns = scores.shape
    margin = scores.astype(b.dtype)
    for i in range(n):
        for k in range(n_columns):
            g = group[k]
            lost = decay[i, g]
            y = 1.0 if codes[i] == label[k] else 0.0
            score = margin[i, k] + b[k]
            if tracked and judged[i]:
                losses[k] += loss_value(loss, epsilon, y, score)
            if tracked == PENALTIES:
                penalties[k] += alpha[g] * 0.5 * square[k]
            s = -eta[i, g] * gradient(loss, epsilon, y, score)
            s *= (positive[k] if y else negative[k]) * weight[i]
            b[k] += intercept_rate * s
            if averaged[i, g]:
                ab[k] += b[k]
            if tracked == PENALTIES:
                cross = 2 * lost * margin[i, k] * s
                square[k] = lost**2 * square[k] + cross + s**2 * gram[i, i]
            out[i, k] = s * after[i, g]
            if averaging:
                out[i, n_columns + k] = s * tail[i, g]
            for j in range(i + 1, n):
                margin[j, k] = lost * margin[j, k] + s * gram[i, j]


@jit
def settle(moved, whole, begun, group, averaging, U, A):
    """End a block: A += begun U + moved, where averaging, and U = whole U + moved.

    `moved` is (genes, columns), and beside them as many for A; `whole` and `begun` are by group.
    """
    n_genes, n_columns = U.shape
    for gene in range(n_genes):
        for k in range(n_columns):
            u = U[gene, k]
            if averaging:
                A[gene, k] += U.dtype.type(begun[group[k]]) * u + moved[gene, n_columns + k]
            U[gene, k] = U.dtype.type(whole[group[k]]) * u + moved[gene, k]


@jit
def spread(values, cells, genes, first, edges, begin, out):
    """Write the entries of runs, each of a gene in a tile, to `out`, zeros of (genes, cells).

    Parameters
    ----------
    values, cells
        Value of each entry of the block, and its cell's place in its tile.
    genes, first
        Gene of each run, and the first cell of its tile.
    edges
        Where the runs begin among the entries, and where the last one ends.
    begin
        Cell that the first column of `out` is for.
    """
    for run in range(len(genes)):
        row = out[genes[run]]
        for p in range(edges[run], edges[run + 1]):
            row[first[run] - begin + cells[p]] = values[p]


@jit
def residuals(codes, classes, weights, constant, score, loss, total, bend):
    """Make residuals of scores without their constant, and add to sums by place in the tile.

    Parameters
    ----------
    codes
        Class of each cell, (n,).
    classes, constant
        Class that each column stands for, and what its scores lack, (columns,).
    weights
        Weight of a cell by its class in each column's problem, (classes, columns).
    score
        Overwritten by the weighted slope of the loss, (n, columns); see `kernels.tiles.residuals`.
    loss, total, bend
        Weighted loss, slope and curvature are added to these, (n or more, columns).
    """
    n, n_columns = score.shape
    for i in range(n):
        code = codes[i]
        for k in range(n_columns):
            s, weight = score[i, k] + constant[k], weights[code, k]
            y = 1.0 if code == classes[k] else 0.0
            small = math.exp(-math.fabs(s))
            p = 1 / (1 + small) if s >= 0 else small / (1 + small)
            slope = weight * (p - y)
            loss[i, k] += weight * (math.log1p(small) + max(s, 0.0) - y * s)
            total[i, k] += slope
            bend[i, k] += weight * p * (1 - p)
            score[i, k] = slope
