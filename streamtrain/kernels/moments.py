"""Per-gene count, mean and squared deviation of the non-zero entries of cells."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit


@jit
def welford(data, indices, indptr, start, stop, first_gene, stop_gene, count, mean, m2):
    """Take the non-zero entries of the cells [start, stop) into `count`, `mean` and `m2` in place.

    Only the genes [first_gene, stop_gene), so that threads can share the genes: each gene sees
    its entries in the order of the cells, whatever the split. Gene positions ascend in a cell.
    """
    for i in range(start, stop):
        lo, hi = indptr[i], indptr[i + 1]
        if first_gene > 0:
            lo += np.searchsorted(indices[lo:hi], first_gene)
        for k in range(lo, hi):
            gene = indices[k]
            if gene >= stop_gene:
                break
            x = np.float64(data[k])
            count[gene] += 1
            delta = x - mean[gene]
            mean[gene] += delta / count[gene]
            m2[gene] += delta * (x - mean[gene])


@jit
def scale_rows(data, indices, indptr, table, slot, zero, out_data, out_indices, dense, dots):
    """Scale cells: min(x, cap) * factor - offset, by the four numbers of each gene in `table`.

    They are cap, factor, offset and shift. `slot` says where a gene's number goes: to the model's
    gene of that position; or, at -2 - d, to the d-th of those that are centred outright, which get
    a number in every cell, `zero` where it holds none; or nowhere, at -1. The outright ones go to
    `dense`, if it has columns, or else they come first among the entries, by their positions, which
    `out_indices` then begins with. `dots` gets the sum of shift and entry over each cell. Returns
    the new offsets.
    """
    n_cells, n_outright = len(indptr) - 1, len(zero)
    out_indptr = np.empty(n_cells + 1, np.int64)
    out_indptr[0] = 0
    apart = dense.shape[1] > 0
    first = 0 if apart else n_outright
    places = out_indices[:first].copy()
    nothing = zero.astype(out_data.dtype)
    row = np.empty(n_outright + 1, out_data.dtype)  # the last takes what is for no place in it
    n = np.uint64(0)
    for i in range(n_cells):
        x, genes = data[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]]
        row[:n_outright] = nothing
        n += np.uint64(first)
        even, odd = 0.0, 0.0  # two sums, as one would wait for itself
        for k in range(len(x)):
            g = np.uint64(genes[k])  # unsigned, as numba allows for negative places
            at = slot[g]
            value = min(np.float64(x[k]), table[g, 0]) * table[g, 1] - table[g, 2]
            # Written to both, and kept in one: which of them is no better than a coin to predict.
            out_data[n] = value
            out_indices[n] = at
            row[n_outright if at >= -1 else -2 - at] = value
            odd, even = even, odd + table[g, 3] * out_data[n]
            n += np.uint64(at >= 0)
        start = out_indptr[i]
        if apart:
            dense[i] = row[:n_outright]
        else:
            out_data[start : start + first] = row[:n_outright]
            out_indices[start : start + first] = places
        out_indptr[i + 1] = n
        dots[i] = even + odd
    return out_indptr
