"""Cells picked from scratch files by pread, without a call of Python's for each."""

from __future__ import annotations

import numpy as np
from numba import types

from streamtrain.kernels.jit import jit

# The C library's own, called from compiled code and off the GIL: 1 us a read, where os.pread and
# the arrays around it take 10.
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.voidptr, types.uintp, types.int64)
)


@jit
def pick(files, edges, starts, offsets, cells, indptr, stage, out):
    """Read the entries of `cells`, which start at `offsets`, to `indptr` in `out`.

    Those from edges[p] on stand in files[p] from starts[p] on, up to edges[p + 1]; a cell is in one
    file. `stage` is of the files' type and holds any one cell. Tells whether all could be read.
    """
    size = stage.itemsize
    for i in range(len(cells)):
        at = offsets[cells[i]]
        n = offsets[cells[i] + 1] - at
        piece = np.searchsorted(edges, at, side="right") - 1
        first, done = starts[piece] + at - edges[piece], 0
        while done < n * size:
            got = _pread(
                files[piece], stage.ctypes.data + done, n * size - done, first * size + done
            )
            if got <= 0:  # type: ignore[operator] # an ExternalFunction, typed as what it is not
                return False
            done += got  # type: ignore[operator]
        source, goal = stage[:n], out[indptr[i] : indptr[i] + n]
        for k in range(n):
            goal[k] = source[k]
    return True
