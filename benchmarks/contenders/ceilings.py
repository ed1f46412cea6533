"""What this machine can do at best: gigabytes moved and GFLOP done a second, on all cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from streamtrain.kernels.jit import jit
from streamtrain.threads import Threads


@jit
def _triad(a, b, c, start, stop):
    """Write a = b + 3 c, the kernel of the STREAM benchmark (McCalpin 1995)."""
    for i in range(start, stop):
        a[i] = b[i] + 3.0 * c[i]


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


def _best(work: Callable[[], None], rounds: int) -> float:
    """Fewest seconds of several rounds: a ceiling is what the machine can do undisturbed."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
