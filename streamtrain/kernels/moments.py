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
def scale_rows(
    data, indices, indptr, position, cap, scale, mean, shift, everywhere, zero, place,
    out_data, out_indices, dense, dots,
):  # fmt: skip
    """Scale cells at the model's gene positions: x' = min(x, cap) / scale, or centred outright.

    `position` gives each gene's place in the model, -1 where it has none (the entry is dropped).
    The genes `everywhere` get a number in every cell, x' - mean, or `zero` for a zero: in `dense`,
    if it has columns, or else entries of their own, which come first; `place` gives their order, -1
    for other genes. `dots` gets the sum of shift * x' over each cell, shift being 0 for the genes
    `everywhere`. Returns the new offsets.
    """
    out_indptr = np.empty(len(indptr), np.int64)
    out_indptr[0] = 0
    n, n_everywhere = 0, len(everywhere)
    apart = dense.shape[1] > 0
    nothing = zero.astype(out_data.dtype)
    for i in range(len(indptr) - 1):
        dot = 0.0
        first = n
        if apart:
            dense[i] = nothing
        else:
            out_data[n : n + n_everywhere] = nothing
            out_indices[n : n + n_everywhere] = everywhere
            n += n_everywhere
        for k in range(indptr[i], indptr[i + 1]):
            gene = position[indices[k]]
            if gene < 0:
                continue
            x = min(np.float64(data[k]), cap[gene]) / scale[gene]
            if place[gene] >= 0:
                if apart:
                    dense[i, place[gene]] = x - mean[gene]
                else:
                    out_data[first + place[gene]] = x - mean[gene]
                continue
            out_data[n] = x
            out_indices[n] = gene
            dot += shift[gene] * out_data[n]
            n += 1
        out_indptr[i + 1] = n
        dots[i] = dot
    return out_indptr
