"""Class counts and storage neighbours of the batches of an epoch."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit


@jit
def put(marks, cell):
    """Mark a cell, one bit each; returns whether it was unmarked."""
    bit = np.uint8(1 << (cell & 7))
    fresh = marks[cell >> 3] & bit == 0
    marks[cell >> 3] |= bit
    return fresh


@jit
def is_next(marks, rows, left, right):
    """Whether both cells are marked and, where `rows` are given, stored in rows that follow."""
    if left < 0 or right >= 8 * len(marks):
        return False
    both = (marks[left >> 3] >> (left & 7)) & (marks[right >> 3] >> (right & 7)) & 1
    return both == 1 and (len(rows) == 0 or rows[right] - rows[left] == 1)


@jit
def tally(positions, codes, batch_size, rows, seen, marks, counts, totals):
    """Sum what each batch holds.

    `seen` and `marks` are zeros of a bit a cell at least, `counts` of a class each; all are
    overwritten. `totals` gets, summed over the batches: distinct cells of the epoch; std / mean and
    entropy of the class counts; distinct cells, those whose next cell in the store is in the batch
    too, and the pairs m (m - 1) of m distinct cells.
    """
    for start in range(0, len(positions), batch_size):
        stop = min(start + batch_size, len(positions))
        distinct = 0
        counts[:] = 0
        for d in range(start, stop):
            cell = np.int64(positions[d])
            counts[codes[cell]] += 1
            totals[0] += put(seen, cell)
            if put(marks, cell):
                distinct += 1
                totals[4] += is_next(marks, rows, cell - 1, cell)
                totals[4] += is_next(marks, rows, cell, cell + 1)
        for d in range(start, stop):
            marks[np.int64(positions[d]) >> 3] = 0
        mean = (stop - start) / len(counts)
        squares, entropy = 0.0, 0.0
        for k in range(len(counts)):
            squares += (counts[k] - mean) ** 2
            if counts[k] > 0:
                share = counts[k] / (stop - start)
                entropy -= share * np.log2(share)
        totals[1] += np.sqrt(squares / len(counts)) / mean
        totals[2] += entropy
        totals[3] += distinct
        totals[5] += distinct * (distinct - 1.0)


@jit
def n_adjacent(rows):
    """Cells whose next cell is stored in the row that follows."""
    n = 0
    for i in range(len(rows) - 1):
        n += rows[i + 1] - rows[i] == 1
    return n
