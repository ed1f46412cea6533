"""A scheduler's address, or a number of processes, in; a client of its workers out, until the end.

For the command line; in Python one passes a client of one's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from streamtrain.errors import InputError
from streamtrain.threads import n_threads

logger = logging.getLogger(__name__)

_ANSWER = 30.0  # seconds that a scheduler may take to answer, and its file to appear
_FIRST = 60.0  # that the first worker may take to join
_MORE = 3.0  # that the next may take: classes are shared out among those at the start
_ADDRESS = re.compile(r"((tcp|tls)://)?[^/\s]+:\d+")
_THRESHOLDS = ("target", "spill", "pause")
_PACKAGES = ("streamtrain", "numpy", "numba")  # of which the model's bits may come


@contextmanager
def connected(
    scheduler: str | None,
    workers: int | None,
    *,
    n_jobs: int | None = None,
    memory: int | str | None = None,
) -> Iterator[Any]:
    """Connect to a scheduler that runs, or start workers on this machine and end them after.

    Parameters
    ----------
    scheduler
        Its address, tcp://host:8786 or tls://host:8786, or the path of its file (.json).
    workers
        Processes to start on this machine.
    n_jobs
        Threads of each that is started. The default, and -1, shares out the CPUs.
    memory
        Bytes of each, as the run has them; where they are given dask sets no limit of its own.

    Yields
    ------
    distributed.Client or None
        None for neither.

    Raises
    ------
    InputError
        For both; where no scheduler answers, no worker joins, or one has other versions than this
        process; without dask.distributed.
    """
    if scheduler is None and workers is None:
        yield None
        return
    if scheduler is not None and workers is not None:
        raise InputError(
            "--scheduler takes the workers of a cluster that runs, and --workers starts some here: "
            "leave one of them out"
        )
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be a number of processes, 1 at least; got {workers}")
    if find_spec("distributed") is None:
        raise InputError(
            "workers need dask.distributed: pip install 'streamtrain[cluster]', on every machine"
        )
    from distributed import Client  # which sets the levels of its logs

    if workers is not None:
        with _quiet(), _started(workers, n_jobs, memory) as client:
            yield client
        return
    address = _answering(str(scheduler))
    with _quiet(), Client(address, timeout=_ANSWER) as client:  # type: ignore[no-untyped-call]
        logger.info("Scheduler at %s, dashboard at %s", address, client.dashboard_link)
        _await_workers(client, address)
        _check_versions(client)
        yield client


@contextmanager
def _started(workers: int, n_jobs: int | None, memory: int | str | None) -> Iterator[Any]:
    """Processes of this machine."""
    import dask
    from distributed import Client, LocalCluster

    threads = n_threads(n_jobs)
    if n_jobs is None or n_jobs == -1:
        threads = max(1, threads // workers)
    # What fills a worker is no data of dask's, which could be spilled; and as it stays until the
    # run ends, a worker that is paused would never go on.
    thresholds = {f"distributed.worker.memory.{name}": False for name in _THRESHOLDS}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(thresholds))
        with _signals_later():
            cluster = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=threads,
                processes=True,
                dashboard_address="127.0.0.1:0",  # with None it takes 8787, or warns
                memory_limit="auto" if memory is None else None,
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster, timeout=_ANSWER))  # type: ignore[no-untyped-call]
        # Without bokeh its page says that bokeh is missing.
        where = f"; dashboard at {cluster.dashboard_link}" if find_spec("bokeh") else ""
        logger.info("Started %d workers, threads of each: %d%s", workers, threads, where)
        yield client


@contextmanager
def _signals_later() -> Iterator[None]:
    """Let signals take effect at the end; processes that start here take no Ctrl-C.

    Half-started workers could not be ended in order, and those that Ctrl-C reached, as it does
    every process of a terminal, would end with tracebacks of their own.
    """
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: came.append(n))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    # Threads and processes are born with the mask, those too that dask starts anew later;
    # starting multiprocessing's tracker takes it off (Python 3.11).
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let dask tell of workers that ran out of memory, and nothing else."""
    levels = dict.fromkeys(("distributed", "distributed.client"), logging.CRITICAL + 1)
    levels["distributed.nanny.memory"] = logging.WARNING
    with ExitStack() as stack:
        for name, level in levels.items():
            log = logging.getLogger(name)
            stack.callback(log.setLevel, log.level)
            log.setLevel(level)
        yield


def _answering(scheduler: str) -> str:
    """Address of a scheduler that answers.

    Asked before there is a client, which waits for ever where something else listens, such as the
    dashboard (distributed 2026.8).
    """
    from distributed import Security
    from distributed.core import rpc

    if scheduler.endswith(".json"):
        address = _address_in(Path(scheduler).expanduser())
    elif _ADDRESS.fullmatch(scheduler):
        address = scheduler
    else:
        raise InputError(
            "--scheduler must be an address, such as tcp://host:8786, or the path of the file that "
            f"dask scheduler --scheduler-file FILE.json writes; got {scheduler!r}"
        )

    async def ask() -> str:
        keys = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
        async with rpc(  # type: ignore[no-untyped-call]
            address, timeout=_ANSWER, connection_args=keys
        ) as server:
            return str((await server.identity())["type"])

    try:
        kind = asyncio.run(asyncio.wait_for(ask(), _ANSWER + 1))
    except Exception as error:  # anything may listen there
        reason = str(error) or type(error).__name__
    else:
        if kind == "Scheduler":
            return address
        reason = f"a {kind} answers"
    raise InputError(
        f"no scheduler answers at {address}: start one (dask scheduler), or pass its address, such "
        "as tcp://host:8786, or its file (.json) as --scheduler; tls:// needs the certificates of "
        f"dask's configuration ({reason})"
    )


def _address_in(path: Path) -> str:
    """Address that a scheduler wrote to its file, which may be about to start."""
    reason: Exception | None = None
    for _ in _moments(f"for the scheduler's file {str(path)!r}", _ANSWER):
        try:
            return str(json.loads(path.read_text())["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:  # not there, or half-written
            reason = error
    raise InputError(
        f"{str(path)!r} is no scheduler's file: start one (dask scheduler --scheduler-file "
        f"{path}) on a file system that every machine has, or correct --scheduler ({reason})"
    )


def _await_workers(client: Any, address: str) -> None:
    """Wait for the first worker, and then for those that come right after it."""
    if client.nthreads():
        return
    for _ in _moments("for a worker to join", _FIRST):
        n = len(client.nthreads())
        if n:
            break
    else:
        raise InputError(
            f"the scheduler at {address} has no worker after {_FIRST:.0f} s: start some, such as "
            f"dask worker {address}"
        )
    before = 0
    while n > before:
        time.sleep(_MORE)
        before, n = n, len(client.nthreads())


def _moments(what: str, seconds: float) -> Iterator[None]:
    """Moments at which to look, one at once; then it is said what is waited for."""
    yield
    logger.warning("Waiting %s, up to %d s", what, seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
        yield


def _check_versions(client: Any) -> None:
    """Refuse workers of another Python or package, which would make another model, or none."""
    checks: dict[str, tuple[Any, ...]] = {"Python": (sysconfig.get_python_version,)}
    for name, (function, *args) in (checks | {name: (version, name) for name in _PACKAGES}).items():
        own = function(*args)
        for worker, found in sorted(client.run(function, *args, on_error="return").items()):
            if found != own:
                there = f"no {name}" if isinstance(found, Exception) else f"{name} {found}"
                raise InputError(
                    f"the worker at {worker} has {there}, and this process {own}: install the same "
                    "on every machine, as another could make another model"
                )
