"""The vector arithmetic of L-BFGS, in an order of its own: BLAS sums by its number of threads."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit

_LANES = 8  # sums that run side by side, so that the compiler can use the vector unit


@jit
def dot(a, b):
    """Inner product."""
    lanes = np.zeros(_LANES)
    whole = len(a) // _LANES * _LANES
    for i in range(0, whole, _LANES):
        for j in range(_LANES):
            lanes[j] += a[i + j] * b[i + j]
    total = 0.0
    for j in range(_LANES):
        total += lanes[j]
    for i in range(whole, len(a)):
        total += a[i] * b[i]
    return total


@jit
def direction(steps, changes, curvature, oldest, kept, slope, out):
    """Write minus the inverse Hessian's estimate times `slope` into `out`: the two-loop recursion.

    The pairs of steps and changes of slope stand in rings, shape (memory, n); `kept` of them count,
    from `oldest` on; `curvature` holds their inner products.
    """
    memory = len(steps)
    weight = np.empty(memory)
    for i in range(len(slope)):
        out[i] = -slope[i]
    for j in range(kept - 1, -1, -1):
        r = (oldest + j) % memory
        s, y = steps[r], changes[r]
        weight[r] = dot(s, out) / curvature[r]
        for i in range(len(out)):
            out[i] -= weight[r] * y[i]
    if kept:
        r = (oldest + kept - 1) % memory
        scale = curvature[r] / dot(changes[r], changes[r])
        for i in range(len(out)):
            out[i] *= scale
    for j in range(kept):
        r = (oldest + j) % memory
        s, y = steps[r], changes[r]
        more = weight[r] - dot(y, out) / curvature[r]
        for i in range(len(out)):
            out[i] += more * s[i]
