"""The turns of a worker's tasks: its bytes and threads, and what it keeps from one to the next."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from typing import Any, TypeVar

from distributed import get_worker

from streamtrain.budget import keep_freed, parse_bytes, release_freed
from streamtrain.errors import InputError
from streamtrain.sources.base import Source
from streamtrain.threads import Threads, n_threads

T = TypeVar("T")
logger = logging.getLogger(__name__)

_turn = threading.Lock()  # a worker has one budget of memory and threads, for a task at a time
_kept: dict[str, dict[str, tuple[Any, ExitStack]]] = {}  # by run and name
_over: set[str] = set()  # runs that have ended, of which tasks may still come where one failed


@contextmanager
def turn(memory: int | str | None, n_jobs: int | None) -> Iterator[tuple[int, Threads]]:
    """Wait for this worker's other tasks; give the bytes and the threads of one.

    Parameters
    ----------
    memory
        The run's, of each worker; None for a quarter of what is free, but no more than half of the
        worker's own limit.
    n_jobs
        The run's; a worker's own threads are the most.
    """
    worker = get_worker()
    with _turn:
        keep_freed()
        budget = parse_bytes(memory)
        limit = getattr(getattr(worker, "memory_manager", None), "memory_limit", None)
        if memory is None and limit:
            budget = min(budget, int(limit) // 2)
        try:
            yield budget, _threads(min(n_threads(n_jobs), int(worker.state.nthreads)))
        except FileNotFoundError as error:
            raise InputError(
                f"the worker at {worker.address} finds no {error.filename or error}: put it on a "
                "file system that every worker has, under the same path"
            ) from error


@cache
def _threads(n: int) -> Threads:
    """Threads that stay, as what a worker keeps may work by them."""
    return Threads(n)


def kept(run: str, name: str, make: Callable[[ExitStack], T]) -> T:
    """Give what this worker keeps for a run under a name, made by the first task that asks.

    Within a `turn`. `make` gets a stack for what is to be closed at the end of the run.
    """
    if run in _over:
        raise RuntimeError(f"run {run} is over")
    mine = _kept.setdefault(run, {})
    if name not in mine:
        with ExitStack() as stack:
            made = make(stack)
            mine[name] = made, stack.pop_all()
    found: T = mine[name][0]
    return found


def let_go(run: str, name: str) -> None:
    """Close what is kept under a name, if it is there; within a `turn`."""
    if name in _kept.get(run, {}):
        _kept[run].pop(name)[1].close()


def opened(run: str, name: str, threads: Threads, make: Callable[[Threads], Source]) -> Source:
    """Give a source that this worker keeps open for a run, and that decodes by its threads."""
    return kept(run, name, lambda stack: stack.enter_context(closing(make(threads))))


async def forget(run: str) -> None:
    """Close what this worker keeps for a run, once its task has ended."""
    # In a thread: the worker's loop has to answer its scheduler all the while.
    await asyncio.to_thread(_forget, run)
    # Collecting takes 0.1 s, for which the end of the run does not wait.
    asyncio.get_running_loop().run_in_executor(None, release_freed)


def _forget(run: str) -> None:
    _over.add(run)  # at once: tasks that wait for their turn end then
    with _turn:
        for name in reversed(list(_kept.get(run, {}))):
            let_go(run, name)
        _kept.pop(run, None)
