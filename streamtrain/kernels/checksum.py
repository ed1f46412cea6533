"""Sums that tell whether a cell came through unchanged: its values with their genes, its name."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit
from streamtrain.kernels.simulate import mix

# Typed, since uint64 with a plain int is float64 to numba.
_STEP, _ONE = np.uint64(0x9E3779B97F4A7C15), np.uint64(1)


@jit
def cell_sums(bits, indices, indptr, start, stop, out):
    """Write the sums of the cells `start` to `stop` into `out`, in 64 bits that wrap around.

    Each entry is mixed from its gene and the bits of its value (unsigned integers), so an entry
    that is lost, changed or in another place changes the sum, but for one chance in 2^64.
    """
    for i in range(start, stop):
        total = np.uint64(0)
        for k in range(indptr[i], indptr[i + 1]):
            total += mix(np.uint64(bits[k]) ^ ((np.uint64(indices[k]) + _ONE) * _STEP))
        out[i] = total


@jit
def add_name_sums(text, ends, out):
    """Add to each cell's sum in `out` one of its name, the bytes of `text` that end at `ends`."""
    k = 0
    for i in range(len(ends)):
        state = np.uint64(0)
        while k < ends[i]:
            state = mix((state ^ np.uint64(text[k])) + _STEP)
            k += 1
        out[i] += state
