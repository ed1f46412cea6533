"""What this machine can do at best: gigabytes moved, GFLOP done, rows of weights met a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import lanes
from streamtrain.kernels.jit import jit
from streamtrain.threads import Threads

_CELL, _CELLS = 2_500, 1_000  # entries of a cell, and cells


@jit
def _triad(a, b, c, start, stop):
    """Write a = b + 3 c, the kernel of the STREAM benchmark (McCalpin 1995)."""
    for i in range(start, stop):
        a[i] = b[i] + 3.0 * c[i]


@jit
def _meet(panel, at, x, size, width):
    """Sum the rows that a cell of `size` entries meets, times its entries, and add that to them."""
    n = len(width)
    for start in range(0, len(at), size):
        total = lanes.fill(0.0, panel, width)
        for p in range(start, start + size):
            row = lanes.load(panel, at[p] * n, width)
            total = lanes.multiply_add(lanes.fill(x[p], panel, width), row, total)
        for p in range(start, start + size):
            row = lanes.load(panel, at[p] * n, width)
            row = lanes.multiply_add(lanes.fill(x[p], panel, width), total, row)
            lanes.store(panel, at[p] * n, row)


def memory(job: dict[str, Any]) -> Iterator[Any]:
    """Measure the triad over arrays far larger than the caches: three arrays' bytes a round."""
    n = job["megabytes"] * 10**6 // 24
    a, b, c = (np.ones(n) for _ in range(3))
    with Threads() as threads:

        def work() -> None:
            threads.share(n, lambda start, stop: _triad(a, b, c, start, stop))

        work()
        yield
        yield {"gbytes": 24e-9 * n / _best(work, job["rounds"])}


def multiply_add(job: dict[str, Any]) -> Iterator[Any]:
    """Measure NumPy's matrix product (BLAS on all cores): two operations a multiply-add."""
    n = job["order"]
    a = np.ones((n, n), job["dtype"])
    out = np.empty_like(a)

    def work() -> None:
        np.matmul(a, a, out=out)

    work()
    yield
    yield {"gflops": 2e-9 * n**3 / _best(work, job["rounds"])}


def rows(job: dict[str, Any]) -> Iterator[Any]:
    """Measure what a sparse entry costs: its row of a panel read, then read again and written.

    A row is one gene's weights of some classes, in float32. Every core has a panel of its own, and
    cells whose genes lie at random in it, ascending.
    """
    width = (0,) * job["lanes"]
    size = min(_CELL, job["genes"] // 2)
    rng = np.random.default_rng(0)
    cells = [np.sort(rng.choice(job["genes"], size, replace=False)) for _ in range(_CELLS)]
    at = np.concatenate(cells).astype(np.int32)
    x = np.full(len(at), 1e-6, np.float32)
    with Threads(job["n_jobs"]) as threads:
        panels = [_aligned(job["genes"] * job["lanes"]) for _ in range(threads.n)]

        def work() -> None:
            threads.each(lambda panel: _meet(panel, at, x, size, width), panels)

        work()
        yield
        met = len(at) * len(panels) / _best(work, job["rounds"])
        yield {"rows_per_s": met, "gbytes": 3e-9 * met * 4 * job["lanes"]}


def _aligned(n: int) -> NDArray[np.float32]:
    """Ones, of which the first begins a cache line."""
    space = np.ones(n + lanes.LINE // 4, np.float32)
    start = -space.ctypes.data % lanes.LINE // 4
    return space[start : start + n]


def _best(work: Callable[[], None], rounds: int) -> float:
    """Fewest seconds of several rounds: a ceiling is what the machine can do undisturbed."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
