"""Cells by gene, a tile of a few hundred at a time; logistic loss and slope over them."""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit


@jit
def by_gene(data, indices, indptr, start, stop, n_vars, first, counts, genes, cells, values):
    """Store the cells [start, stop), one tile, by gene; returns the number of genes it holds.

    `first` is scratch of n_vars + 1 integers. `genes` and `counts` get the genes that occur,
    ascending, and their entries; `cells` and `values` the place in the tile and the value of each
    entry, by gene and within a gene by cell.
    """
    first[:] = 0
    for p in range(indptr[start], indptr[stop]):
        first[indices[p] + 1] += 1
    found = 0
    for g in range(n_vars):
        if first[g + 1] > 0:
            genes[found], counts[found] = g, first[g + 1]
            found += 1
        first[g + 1] += first[g]
    for i in range(start, stop):
        for p in range(indptr[i], indptr[i + 1]):
            k = first[indices[p]]
            first[indices[p]] = k + 1
            cells[k], values[k] = i - start, data[p]
    return found


@jit
def logistic(
    tile_cells, tile_genes, codes, counts, genes, cells, values, first_class, weights, W, constant,
    loss, slope, total,
):  # fmt: skip
    """Add loss and slope over some tiles, for the classes first_class, first_class + 1, ...

    Tile by tile the scores are x' W + constant, every gene's weights read once. `weights` is the
    weight of a cell in each class's problem, by the cell's class; `loss` gets the weighted sum of
    log(1 + exp(score)) - y score, `slope` (genes x classes) that of x' times the residual,
    `total` that of the residual. All float64.
    """
    n_classes = W.shape[1]
    most = 0
    for t in range(len(tile_cells)):
        most = max(most, tile_cells[t])
    score = np.empty((most, n_classes))
    cell, gene, entry = 0, 0, 0
    for t in range(len(tile_cells)):
        n = tile_cells[t]
        for i in range(n):
            for k in range(n_classes):
                score[i, k] = constant[k]
        first_entry = entry
        for j in range(gene, gene + tile_genes[t]):
            w = W[genes[j]]
            for e in range(entry, entry + counts[j]):
                row, x = score[cells[e]], np.float64(values[e])
                for k in range(n_classes):
                    row[k] += x * w[k]
            entry += counts[j]
        for i in range(n):
            code = codes[cell + i]
            for k in range(n_classes):
                s, weight = score[i, k], weights[code, k]
                y = 1.0 if code == first_class[k] else 0.0
                small = math.exp(-math.fabs(s))
                loss[k] += weight * (math.log1p(small) + max(s, 0.0) - y * s)
                p = 1 / (1 + small) if s >= 0 else small / (1 + small)
                score[i, k] = weight * (p - y)
                total[k] += score[i, k]
        entry = first_entry
        for j in range(gene, gene + tile_genes[t]):
            into = slope[genes[j]]
            for e in range(entry, entry + counts[j]):
                row, x = score[cells[e]], np.float64(values[e])
                for k in range(n_classes):
                    into[k] += x * row[k]
            entry += counts[j]
        gene += tile_genes[t]
        cell += n
