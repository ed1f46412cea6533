"""Functions and their arguments in, results out: the tasks of a run, done by a client's workers."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distributed import Client, KilledWorker, wait
from distributed.comm.core import CommClosedError

from streamtrain.cluster.turns import forget
from streamtrain.errors import InputError
from streamtrain.pairwise import merged
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource
from streamtrain.sources.store import StoreSource

logger = logging.getLogger(__name__)
K = TypeVar("K")

_DEATHS = 20  # of workers during one task, beyond those that the scheduler allows
_LOOK = 10.0  # seconds after which it is looked whether there are workers at all
_SIGNALS = 1.0  # and, where something is to be done between, what has come meanwhile


class SchedulerLostError(ConnectionError):
    """The connection to the scheduler ended and did not come back."""


@dataclass(eq=False)
class Shared:
    """An argument of many tasks; sent once, and again if all workers that had it are gone."""

    value: Any
    on: str | None = None
    future: Any = None


@dataclass(eq=False)
class Task:
    """A pure function of its arguments, which may be run any number of times."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    on: str | None
    future: Any = None
    deaths: int = 0


@dataclass(eq=False)
class Workers:
    """The workers of a client for the length of a run; a context manager.

    A task whose worker is killed is run by another, and one whose arguments went with it gets them
    again. Keys begin with what a task does, which the dashboard shows.

    Parameters
    ----------
    client
        A dask.distributed Client.
    between
        Called about every second while tasks are waited for.
    """

    client: Any
    between: Callable[[], None] | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _n: int = 0
    _direct: bool = True
    _placed: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._address = self.client.scheduler.address

    def addresses(self) -> list[str]:
        """Of the workers at present, in an order of their own."""
        while True:
            try:
                return sorted(self.client.nthreads(callback_timeout=self._limit))
            except TimeoutError:  # it does not answer, and may yet
                self._meanwhile()
            except OSError as error:
                self._reconnect(error)

    @property
    def _limit(self) -> float:
        """Seconds of one wait."""
        return _LOOK if self.between is None else _SIGNALS

    def _meanwhile(self) -> None:
        if self.between is not None:
            self.between()

    @property
    def n(self) -> int:
        """Workers at present, one at least."""
        return max(1, len(self.addresses()))

    def share(self, value: Any, on: str | None = None) -> Shared:
        """Send an object, `on` some worker or any, to be an argument of tasks."""
        shared = Shared(value, on)
        self._send(shared)
        return shared

    def submit(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        on: str | None = None,
        alone: bool = False,
    ) -> Task:
        """Have a worker call a function.

        Parameters
        ----------
        name
            What it does, such as "read-cells".
        args
            Its arguments; of `Task` the result, and of `Shared` the object.
        on
            Address of the worker that should rather do it.
        alone
            It takes a worker's turn, and should rather go to the one with the fewest such tasks:
            dask takes a worker with eight threads for one that does eight at a time.
        """
        task = Task(name, function, args, self.idlest() if alone else on)
        self._start(task)
        if task.on is not None:
            self._placed.append(task)
        return task

    def idlest(self) -> str | None:
        """Address of the worker to which the fewest tasks were given that have not ended."""
        self._placed = [
            task for task in self._placed
            if task.future is not None and task.future.status == "pending"
        ]  # fmt: skip
        load = Counter(task.on for task in self._placed)
        return min(self.addresses(), key=lambda address: load[address], default=None)

    def result(self, task: Task) -> Any:
        """Wait for a task.

        Raises
        ------
        SchedulerLostError
            If there is no scheduler any more.
        InputError
            If one worker after the other died of it.
        """
        while True:
            try:
                self._wait([task.future], "ALL_COMPLETED")
                return self.client.gather(task.future, direct=self._direct)
            except KilledWorker as error:
                self._died(task, error)
            except (CancelledError, CommClosedError) as error:
                self._reconnect(error)
                self._start(task)

    def first_of(self, tasks: Mapping[K, Task]) -> K:
        """Key of one that has ended, one way or the other."""
        while True:
            for key, task in tasks.items():
                if task.future.status != "pending":
                    return key
            self._wait([task.future for task in tasks.values()], "FIRST_COMPLETED")

    def merged(self, name: str, tasks: Sequence[Task]) -> Task:
        """Have `PairwiseSum`s made one, two by two: neighbours first, which travels least."""
        tasks = list(tasks)
        while len(tasks) > 1:
            odd = tasks[len(tasks) & ~1 :]
            pairs = zip(tasks[::2], tasks[1::2], strict=False)
            tasks = [self.submit(name, merged, *pair) for pair in pairs] + odd
        return tasks[0]

    def in_order(self, tasks: Iterable[Callable[[], Task]], ahead: int = 2) -> Iterator[Any]:
        """Results of tasks in order; `ahead` for each worker are begun at a time."""
        begun: deque[Task] = deque()
        for make in tasks:
            begun.append(make())
            if len(begun) > ahead * self.n:
                yield self._taken(begun.popleft())
        while begun:
            yield self._taken(begun.popleft())

    def _taken(self, task: Task) -> Any:
        found = self.result(task)
        task.future = None
        return found

    def _send(self, shared: Shared) -> None:
        told = False
        while True:
            there = self.addresses()
            if not there:
                told = self._tell_none(told)
                self._meanwhile()
                time.sleep(0.5)
                continue
            to = shared.on if shared.on in there else there[self._n % len(there)]
            try:
                # To one worker, from which the others get it as an argument of their tasks: to
                # replicate it, dask waits for ever where a worker dies meanwhile (2026.8). Direct:
                # through the scheduler, which would grow by it, where workers cannot be reached.
                [shared.future] = self.client.scatter(
                    [shared.value], workers=[to], hash=False, direct=self._direct
                )
                return
            except OSError as error:  # CommClosedError and TimeoutError are such
                self._reconnect(error)
                if self.addresses() == there:  # of none it is known that it has died
                    self._direct = False

    def _start(self, task: Task) -> None:
        """Submit a task, and whatever it takes that is lost."""
        args = []
        for arg in task.args:
            if isinstance(arg, (Shared, Task)):
                if arg.future is None or arg.future.status in ("cancelled", "lost", "error"):
                    self._send(arg) if isinstance(arg, Shared) else self._start(arg)
                args.append(arg.future)
            else:
                args.append(arg)
        self._n += 1
        where = {} if task.on is None else {"workers": [task.on], "allow_other_workers": True}
        task.future = self.client.submit(
            task.function, *args, key=f"{task.name}-{self.run}-{self._n}", pure=False, **where
        )

    def _wait(self, futures: list[Any], until: str) -> None:
        """Wait, and say so where no worker is there to do it."""
        told, since = False, time.monotonic()
        while True:
            try:
                with self.client.as_current():  # which `wait` waits by
                    wait(futures, timeout=self._limit, return_when=until)  # type: ignore[no-untyped-call]
                return
            except CancelledError:  # which `result` looks into
                return
            except TimeoutError:
                self._meanwhile()
                if time.monotonic() - since >= _LOOK:
                    since = time.monotonic()
                    if not self.addresses():
                        told = self._tell_none(told)

    def _tell_none(self, told: bool) -> bool:
        if not told:
            logger.warning("%s has no worker: waiting for one to join", self._address)
        return True

    def _died(self, task: Task, error: KilledWorker) -> None:
        task.deaths += 1
        if task.deaths > _DEATHS:
            raise InputError(
                f"workers died one after the other of {task.name}: where the scheduler's log tells "
                "of their memory, lower memory (--memory), which is of each worker, or give them "
                "more"
            ) from error
        logger.warning("workers died of %s; it is run again", task.name)
        self._start(task)

    def _reconnect(self, error: BaseException) -> None:
        """Wait until the client has its scheduler again."""
        while self.client.status == "connecting":
            self._meanwhile()
            time.sleep(0.1)
        if self.client.status != "running":
            raise self._lost() from error

    def _lost(self) -> SchedulerLostError:
        return SchedulerLostError(f"the scheduler at {self._address} is lost")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):  # the client may not know yet that its scheduler is lost
            if self.client.status == "running":
                # After an error, or Ctrl-C, the tasks that run may take hours to end.
                self.client.run(forget, self.run, on_error="ignore", wait=error[0] is None)


def check(client: Any, *, on_gpu: bool = False) -> None:
    """Refuse a client that is none, or has no workers, and the GPU.

    Raises
    ------
    InputError
        With the remedy.
    """
    if not isinstance(client, Client):
        raise InputError(f"client must be a dask.distributed Client; got a {type(client).__name__}")
    if client.asynchronous or client.status != "running":
        state = "asynchronous" if client.asynchronous else client.status
        raise InputError(f"client must be connected, and not asynchronous; it is {state}")
    if on_gpu:
        raise InputError("a cluster works on CPUs: leave out device='gpu' (--device), or client")
    if not client.nthreads():  # type: ignore[no-untyped-call]
        raise InputError(
            f"the client {client} has no worker: start some, such as dask worker ADDRESS, or wait "
            "for them with client.wait_for_workers(1)"
        )


def check_source(source: Source) -> None:
    """Refuse what workers cannot read.

    Raises
    ------
    InputError
        For cells in memory and text.
    """
    members = source.members if isinstance(source, CollectionSource) else [source]
    if not all(isinstance(member, StoreSource) for member in members):
        raise InputError(
            f"{source.name}: on a cluster each worker reads the cells by itself: pass the path or "
            "address of an .h5ad or zarr store that all of them can open (streamtrain convert "
            "writes one)"
        )
