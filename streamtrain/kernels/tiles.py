"""Cells by gene, a tile of a few hundred at a time; logistic loss and slope over them."""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

_CHUNK = 64  # columns at a time: the scores of a tile of 256 cells then take 131 kB of the cache


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
def residuals(
    first_tile, stop_tile, tile_cells, tile_genes, tile_entries, codes, counts, genes, cells,
    values, first_class, weights, W, constant, loss, residual, bend,
):  # fmt: skip
    """Write weighted loss, residual and bend of the cells of some tiles, shape (cells, columns).

    Scores are x' W + constant, the loss log(1 + exp(score)) - y score, the residual its slope and
    the bend its curvature, with y = 1 for the class `first_class` of the column; `weights` is the
    weight of a cell in each column's problem, by the cell's class. Every cell is by itself, so
    threads can share the tiles.
    """
    n_columns = W.shape[1]
    for t in range(first_tile, stop_tile):
        cell, gene = tile_cells[:t].sum(), tile_genes[:t].sum()
        entry, n = tile_entries[:t].sum(), tile_cells[t]
        score = residual[cell : cell + n]
        for i in range(n):
            for k in range(n_columns):
                score[i, k] = constant[k]
        for start in range(0, n_columns, _CHUNK):
            stop = min(start + _CHUNK, n_columns)
            e = entry
            for j in range(gene, gene + tile_genes[t]):
                w = W[genes[j], start:stop]
                for _ in range(counts[j]):
                    row, x = score[cells[e], start:stop], np.float64(values[e])
                    for k in range(stop - start):
                        row[k] += x * w[k]
                    e += 1
        for i in range(n):
            code = codes[cell + i]
            for k in range(n_columns):
                s, weight = score[i, k], weights[code, k]
                y = 1.0 if code == first_class[k] else 0.0
                small = math.exp(-math.fabs(s))
                loss[cell + i, k] = weight * (math.log1p(small) + max(s, 0.0) - y * s)
                p = 1 / (1 + small) if s >= 0 else small / (1 + small)
                score[i, k] = weight * (p - y)
                bend[cell + i, k] = weight * p * (1 - p)


@jit
def slopes(
    first_gene, stop_gene, tile_cells, tile_genes, counts, genes, cells, values, residual, slope
):
    """Add x' times the residual over the cells to the `slope` of the genes [first_gene, stop_gene).

    Each gene meets the cells in their order, so threads can share the genes.
    """
    n_columns = slope.shape[1]
    cell, gene, entry = 0, 0, 0
    for t in range(len(tile_cells)):
        of_tile = genes[gene : gene + tile_genes[t]]
        first = gene + np.searchsorted(of_tile, first_gene)
        stop = gene + np.searchsorted(of_tile, stop_gene)
        begin = entry + counts[gene:first].sum()
        score = residual[cell : cell + tile_cells[t]]
        for c in range(0, n_columns, _CHUNK):
            d = min(c + _CHUNK, n_columns)
            e = begin
            for j in range(first, stop):
                into = slope[genes[j], c:d]
                for _ in range(counts[j]):
                    row, x = score[cells[e], c:d], np.float64(values[e])
                    for k in range(d - c):
                        into[k] += x * row[k]
                    e += 1
        entry += counts[gene : gene + tile_genes[t]].sum()
        gene += tile_genes[t]
        cell += tile_cells[t]


@jit
def add_rows(values, out):
    """Add every row of `values` to `out`, in order."""
    for i in range(len(values)):
        for k in range(len(out)):
            out[k] += values[i, k]
