"""Cells picked from scratch files by pread, without a call of Python's for each."""

from __future__ import annotations

from numba import types

from streamtrain.kernels.jit import jit

# The C library's own, called from compiled code and off the GIL: 1 us a read, where os.pread and
# the arrays around it take 10.
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.voidptr, types.uintp, types.int64)
)


@jit
def pick(fd, offsets, cells, indptr, stage, out):
    """Read the entries of `cells`, which start at `offsets` in the file, to `indptr` in `out`.

    `stage` is of the file's type and holds any one cell. Tells whether all could be read.
    """
    size = stage.itemsize
    for i in range(len(cells)):
        first = offsets[cells[i]]
        n = offsets[cells[i] + 1] - first
        done = 0
        while done < n * size:
            got = _pread(fd, stage.ctypes.data + done, n * size - done, first * size + done)
            if got <= 0:  # type: ignore[operator] # an ExternalFunction, typed as what it is not
                return False
            done += got  # type: ignore[operator]
        source, goal = stage[:n], out[indptr[i] : indptr[i] + n]
        for k in range(n):
            goal[k] = source[k]
    return True
