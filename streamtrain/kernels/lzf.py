"""The LZF format (Lehmann), which h5py reads: literal runs and references at most 8 KiB back.

HDF5's own filter takes 92 us a cell of 2,550 genes, its shuffle included, and takes them under one
lock; this takes 75, on any thread.
"""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit

_HASH_BITS = 13  # 32 KB of places: they stay in the first cache
_FACTOR = np.uint32(2654435761)  # Knuth's, 2^32 / golden ratio
_SHIFT = np.uint32(32 - _HASH_BITS)
_FURTHEST, _LONGEST, _LITERALS = 1 << 13, 264, 32


def bound(n: int) -> int:
    """Give the most bytes that `n` bytes can become."""
    return n + (n + _LITERALS - 1) // _LITERALS


@jit
def compress(values, out):
    """Compress the bytes `values` into `out`, of `bound` bytes; return the length."""
    n = len(values)
    places = np.full(1 << _HASH_BITS, -_FURTHEST - 1, np.int32)
    at, literal, k = 0, 0, 0  # reading, first literal not written, writing
    while at + 2 < n:
        three = (
            np.uint32(values[at])
            | np.uint32(values[at + 1]) << np.uint32(8)
            | np.uint32(values[at + 2]) << np.uint32(16)
        )
        slot = np.uint32(three * _FACTOR) >> _SHIFT
        before = places[slot]
        places[slot] = at
        if (
            at - before > _FURTHEST
            or values[before] != values[at]
            or values[before + 1] != values[at + 1]
            or values[before + 2] != values[at + 2]
        ):
            at += 1
            continue
        most, length = min(_LONGEST, n - at), 3
        while length < most and values[before + length] == values[at + length]:
            length += 1
        k = literals(values, literal, at, out, k)
        k = reference(at - before - 1, length - 2, out, k)
        at += length
        literal = at
    return literals(values, literal, n, out, k)


@jit
def literals(values, start, stop, out, k):
    """Write the bytes from `start` to `stop` as they are; return where the next one goes."""
    while start < stop:
        n = min(_LITERALS, stop - start)
        out[k] = n - 1
        for i in range(n):
            out[k + 1 + i] = values[start + i]
        k += n + 1
        start += n
    return k


@jit
def reference(back, length, out, k):
    """Write a copy of `length` + 2 bytes from `back` + 1 before; return where the next one goes."""
    out[k] = min(length, 7) << 5 | back >> 8
    k += 1
    if length >= 7:
        out[k] = length - 7
        k += 1
    out[k] = back & 255
    return k + 1
