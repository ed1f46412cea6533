"""The thread budget of a run: a number of CPUs in, work shared among that many threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeVar

from streamtrain.errors import InputError

T = TypeVar("T")
WORKER = "streamtrain"  # what the threads are called


def n_threads(n_jobs: int | None) -> int:
    """Threads to use: all CPUs that this process may run on for None and -1."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if n_jobs is None or n_jobs == -1:
        return available or 1
    if not isinstance(n_jobs, Integral) or isinstance(n_jobs, bool) or n_jobs < 1:
        raise InputError(f"n_jobs must be a positive number of CPUs, or -1 for all; got {n_jobs!r}")
    return int(n_jobs)


def spans(total: int, parts: int) -> list[tuple[int, int]]:
    """Cut range(total) into at most `parts` even pieces, none of them empty."""
    parts = min(total, parts)
    edges = [total * i // parts for i in range(parts + 1)] if parts else []
    return list(pairwise(edges))


class Threads:
    """Threads that share work which runs off the GIL; a context manager.

    Parameters
    ----------
    n_jobs
        Their number, as in `n_threads`.
    """

    def __init__(self, n_jobs: int | None = None) -> None:
        self.n = n_threads(n_jobs)
        self._begin()

    def _begin(self) -> None:
        self._pool, self._process = ThreadPoolExecutor(self.n, WORKER), os.getpid()

    def each(self, work: Callable[[T], Any], items: Iterable[T]) -> None:
        """Run `work` on every item, and return when all are done; the first error is raised."""
        items = list(items)
        if self.n == 1 or len(items) == 1:  # a hand-over takes 50 us
            for item in items:
                work(item)
            return
        if self._process != os.getpid():  # a forked child has none of the threads
            self._begin()
        for future in [self._pool.submit(work, item) for item in items]:
            future.result()

    def share(self, total: int, work: Callable[[int, int], Any]) -> None:
        """Run `work(start, stop)` on even pieces of range(total), one a thread."""
        self.each(lambda span: work(*span), spans(total, self.n))

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


@cache
def every_cpu() -> Threads:
    """Threads for sources that were opened outside of a run, one for each CPU; never shut down."""
    return Threads()
