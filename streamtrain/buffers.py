"""Sizes in, uninitialised arrays out, of memory that is used again once nothing refers to it.

Fresh pages cost more than what is written to them: 4 to 17 us of a cell of 2,550 entries went to
the system, beside 9 to decode it, as blocks and batches were allocated anew.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST = 1 << 20  # bytes; smaller arrays come from pages that the allocator keeps
_SPARE = 1.125  # room beyond what is asked for, as blocks and batches differ a little
_LOOSE = 4  # times the bytes asked for that a buffer may have

_MOST = 1 << 28  # bytes that may lie idle

_lock = RLock()  # a collection within `empty` may end a lease in the same thread
_free: list[NDArray[np.uint8]] = []


class _Lease:
    """Holds a buffer as long as any array is a view of it, then gives it back."""

    def __init__(self, buffer: NDArray[np.uint8], n: int, dtype: np.dtype[Any]) -> None:
        self._buffer = buffer
        self.__array_interface__ = {
            "version": 3, "shape": (n,), "typestr": dtype.str, "data": (buffer.ctypes.data, False),
        }  # fmt: skip

    def __del__(self, lock: Any = _lock, free: list[Any] = _free) -> None:
        # As defaults, which are there until the end of the process, where globals are not.
        with lock:
            if sum(map(len, free)) + len(self._buffer) <= _MOST:
                free.append(self._buffer)


def empty(n: int, dtype: Any) -> NDArray[Any]:
    """Array of n values, as numpy's, shape (n,)."""
    kind = np.dtype(dtype)
    nbytes = int(n) * kind.itemsize
    if nbytes < _LEAST:
        return np.empty(n, kind)
    with _lock:
        fitting = [b for b in _free if nbytes <= len(b) <= _LOOSE * nbytes]
        best = min(fitting, key=len, default=None)
        # On a miss what is free and smaller goes: it would lie idle beside the larger one.
        _free[:] = [b for b in _free if (b is not best if fitting else len(b) > nbytes)]
    buffer = np.empty(int(nbytes * _SPARE), np.uint8) if best is None else best
    return np.asarray(_Lease(buffer, int(n), kind))


def clear() -> None:
    """Free what is not in use."""
    with _lock:
        _free.clear()
