"""Transposition of compressed columns: count rows, part entries into buckets, sort a bucket."""

from __future__ import annotations

from streamtrain.kernels.jit import jit


@jit
def count_groups(rows, n_rows, width, counts):
    """Add to `counts` the entries of each group of `width` consecutive rows.

    Returns the position of the first row out of range, or -1.
    """
    for k in range(len(rows)):
        row = rows[k]
        if row < 0 or row >= n_rows:
            return k
        counts[row // width] += 1
    return -1


@jit
def part(rows, cols, values, width, bucket_of, first_row, ends, out_rows, out_cols, out_values):
    """Group entries by bucket, in their order: a stable counting sort.

    `bucket_of` gives the bucket of each group of `width` rows, `first_row` the first row of each
    bucket. Overwrites `ends` with where each bucket's entries end in `out_rows` (counted from the
    bucket's first row), `out_cols` and `out_values`.
    """
    ends[:] = 0
    for k in range(len(rows)):
        ends[bucket_of[rows[k] // width]] += 1
    total = 0
    for b in range(len(ends)):  # ends[b] holds bucket b's start until the copy below advances it
        n = ends[b]
        ends[b] = total
        total += n
    for k in range(len(rows)):
        b = bucket_of[rows[k] // width]
        to = ends[b]
        out_rows[to] = rows[k] - first_row[b]
        out_cols[to] = cols[k]
        out_values[to] = values[k]
        ends[b] = to + 1


@jit
def sort_by_row(rows, cols, values, indptr, out_cols, out_values):
    """Sort entries by row, in their order within one (counting sort).

    `indptr` (number of rows + 1, zeros) is overwritten with where each row starts.
    """
    for k in range(len(rows)):
        indptr[rows[k] + 1] += 1
    for i in range(len(indptr) - 1):
        indptr[i + 1] += indptr[i]
    for k in range(len(rows)):
        to = indptr[rows[k]]
        out_cols[to] = cols[k]
        out_values[to] = values[k]
        indptr[rows[k]] = to + 1
    for i in range(len(indptr) - 1, 0, -1):  # each start was advanced to its row's end: shift back
        indptr[i] = indptr[i - 1]
    indptr[0] = 0
