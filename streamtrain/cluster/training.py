"""A run in; moments, searches and rounds of training by the workers of a client out.

SGD's classes are shared out: each worker trains some on the same plan. The settings of a search are
shared out, and the cells of logistic regression. So the model is that of one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.cluster.reading import Job, at_work, first_pass, gathered, place_for
from streamtrain.cluster.summing import ClusterSums
from streamtrain.cluster.turns import kept, let_go
from streamtrain.cluster.workers import SchedulerLostError, Shared, Task, Workers, check_source
from streamtrain.config import Settings
from streamtrain.descent import Descent, fitted
from streamtrain.features import Features
from streamtrain.frozen import Keep
from streamtrain.journal import Journal, go_on
from streamtrain.kernels.lanes import lanes_of
from streamtrain.local import Local, with_own
from streamtrain.optimum import solve, vectors_bytes
from streamtrain.pairwise import PairwiseSum
from streamtrain.parts import Part
from streamtrain.progress import stage
from streamtrain.replicas import Replica, averaged, nothing_yet
from streamtrain.rounds import check_room
from streamtrain.scaling import RunningMoments
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import Progress, column_classes
from streamtrain.sources.base import Source
from streamtrain.stored import Fitted
from streamtrain.targets import Target
from streamtrain.threads import Threads, spans
from streamtrain.trials import Search, Trial, Tried, log_search, trials_of

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Seconds that a share trains before its weights come to the driver: what a killed worker, or a lost
# scheduler, loses.
_FIRST, _LONGEST = 5.0, 60.0


def _keep_nothing(_: Any) -> None:
    """Where there is no journal."""


class Cluster:
    """A run by workers; a context manager. See `local.Place`.

    Parameters
    ----------
    client
        A dask.distributed Client.
    source, targets, taken, config, room, threads, journal, progress
        As of `Local`, of the driver, which reads labels and steps logistic regression. The cells
        are with the workers: a run that goes on reads them once more.
    """

    def __init__(
        self,
        client: Any,
        source: Source,
        targets: list[Target],
        taken: NDArray[np.bool_] | None,
        config: Settings,
        room: int,
        threads: Threads,
        *,
        journal: Journal | None = None,
        progress: bool,
    ) -> None:
        check_source(source)
        self._journal = journal
        self._workers = Workers(client, None if journal is None else journal.look)
        self._targets, self._config, self._room = targets, config, room
        self._threads, self._progress = threads, progress
        n = max(len(target.columns.classes) for target in targets)
        columns = n
        if config.use_SGD and config.folds is None:
            columns = max(map(len, self._shares(n)))
        if config.replicas > 1:  # of one copy, what others add up to, and their sum
            columns = 3 * n
        sent = [replace(target, labels="") for target in targets]
        self._job = Job(self._workers.run, source, sent, config, taken, columns)
        self._of: dict[int, Shared] = {}
        self._parts = Shared([])
        self._selected: Features | None = None

    def __enter__(self) -> Cluster:
        self._workers.__enter__()
        self._shared = self._workers.share(self._job)
        logger.info("training by %d workers", self._workers.n)
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__(*error)

    def first_pass(self) -> RunningMoments:
        """See `Place`."""
        with self._kept():
            found, parts = first_pass(
                self._workers, self._job, self._shared, self._threads, progress=self._progress
            )
        self._parts = self._workers.share(parts)
        return found

    def select(self, features: Features) -> None:
        """See `Place`."""
        self._selected = features

    def search(self, target: Target, features: Features) -> Search:
        """See `Place`; each task tries one setting, in all folds."""
        if target.folds is None or target.judged is None:
            raise ValueError("a search needs folds")
        log_search(self._config, target.folds, target.judged)
        config, judged, given = self._config, target.judged, self._given(target, features)

        def find(before: Tried | None = None, keep: Keep = _keep_nothing) -> Search:
            tried = Tried() if before is None else before
            waiting = trials_of(config)[len(tried.done) :]
            tasks = (
                partial(self._workers.submit, "try-settings", _try, *given, settings, alone=True)
                for settings in waiting
            )
            with stage("Cross-validating", len(waiting), " settings", show=self._progress) as bar:
                found = self._workers.in_order(tasks)
                for settings, (trial, scores) in zip(waiting, found, strict=True):
                    bar.update()
                    tried.add(settings, trial, scores)
                    keep(lambda: tried)
            return tried.conclude(config, judged)

        return with_own(self._stage("search", find), config)

    def fit(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """See `Place`."""
        train: Callable[..., Fitted] = self._solve
        if config.use_SGD:
            train = self._average if config.replicas > 1 else self._descend
        return self._stage("round", partial(train, config, target, features, start))

    def _stage(self, name: str, work: Callable[..., T]) -> T:
        """What a stage gives."""
        with self._kept():
            return work() if self._journal is None else self._journal.next(name, work)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep how far the run is if the scheduler is lost, and say so."""
        try:
            yield
        except SchedulerLostError as error:
            if self._journal is None:
                raise ConnectionError(
                    f"{error}, and the run so far with it: checkpoint=FOLDER (--checkpoint) would "
                    "keep it"
                ) from error
            self._journal.save()
            raise ConnectionError(f"{error}; {go_on(self._journal.folder)}") from error

    def _solve(
        self, config: Settings, target: Target, features: Features, start: State | None,
        before: Progress | None = None, keep: Keep | None = None,
    ) -> Fitted:  # fmt: skip
        """The optimum: steps here, sums over the cells by the workers."""
        sums = ClusterSums(
            self._workers, self._job, self._given(target, features)[:4]
        )  # fmt: skip
        vectors = vectors_bytes(len(features.names), target.columns, self._room)
        shift = self._job.scaler(features).shift
        given = config, target.columns, shift, start, sums, vectors, self._threads
        return solve(*given, progress=self._progress, before=before, keep=keep)

    def _shares(self, n_classes: int) -> list[range]:
        """Columns of the workers, whole cache lines, about as many each."""
        columns, width = len(column_classes(n_classes)), lanes_of(self._config.dtype)
        lines = -(-columns // width)
        n = min(lines, self._workers.n)
        edges = [min(columns, width * (lines * i // n)) for i in range(n + 1)]
        return [range(*ends) for ends in pairwise(edges)]

    def _descend(
        self, config: Settings, target: Target, features: Features, start: State | None,
        before: list[Any] | None = None, keep: Keep = _keep_nothing,
    ) -> Fitted:  # fmt: skip
        """SGD: each task trains some columns, for a while.

        `before` has the columns of each task, and how far it was.
        """
        workers, given = self._workers, self._given(target, features)
        shares, runs = before or [self._shares(len(target.columns.classes)), []]
        runs = runs or [None] * len(shares)
        first = workers.share(start)

        def submit(i: int, before: Shared, seconds: float) -> Task:
            rest = config, shares[i], first, before, seconds
            on = before.on or workers.idlest()
            return workers.submit("train-classes", _descend, *given, *rest, on=on)

        waiting = [i for i, run in enumerate(runs) if run is None or not run.ended]
        tasks = {i: submit(i, workers.share(runs[i]), _FIRST) for i in waiting}
        seconds = dict.fromkeys(tasks, _FIRST)
        total = config.epochs if config.mini_batch else config.most_passes(target.cells.n_obs)
        total = total * len(shares) - sum(run.epoch for run in runs if run is not None)
        with stage("Training", total, " epochs", show=self._progress) as bar:
            while tasks:
                i = workers.first_of(tasks)
                former = runs[i]
                run: Descent = workers.result(tasks[i])
                runs[i] = run
                keep(lambda: [shares, runs])
                bar.update(run.epoch - (0 if former is None else former.epoch))
                if run.ended:
                    del tasks[i]
                    continue
                seconds[i] = min(2 * seconds[i], _LONGEST)
                # From here, not as the task's result, which would be made of all that came before.
                on, tasks[i].future = tasks[i].on, None
                there = on if on in workers.addresses() else workers.idlest()
                tasks[i] = submit(i, workers.share(run, there), seconds[i])
        done = [run for run in runs if run is not None]
        return fitted(config, target.columns, target.held_out, done)

    def _average(
        self, config: Settings, target: Target, features: Features, start: State | None,
        before: list[Any] | None = None, keep: Keep = _keep_nothing,
    ) -> Fitted:  # fmt: skip
        """Copies of the model: each task trains one for an epoch, from the mean of the last.

        `before` is as of `replicas.fit_replicas`.
        """
        workers, given = self._workers, self._given(target, features)
        last: Replica | None
        done, last, drawn, curve = before or nothing_yet(len(target.columns.classes))
        with stage("Training", config.epochs - done, " epochs", show=self._progress) as bar:
            for epoch in range(done, config.epochs):
                began = time.perf_counter()
                state = workers.share(start if last is None else last.mean())
                copies = [
                    workers.submit(
                        "train-copies", _copies, *given, config, state, epoch, numbers, alone=True
                    )
                    for numbers in spans(config.replicas, workers.n)
                ]
                last = workers.result(workers.merged("merge-copies", copies)).total()
                drawn = drawn + last.drawn
                curve.seconds = time.perf_counter() - began
                last.end_epoch(curve)
                keep(partial(list, [epoch + 1, last, drawn, curve.copy()]))
                bar.update()
        if last is None:
            raise ValueError("there are no epochs")
        return averaged(config, target.columns.counts, last, drawn, curve)

    def _given(self, target: Target, features: Features) -> tuple[Any, ...]:
        """What tasks take first: run, parts, genes (sent once), target, whether genes are fewer."""
        number = next(i for i, own in enumerate(self._targets) if own is target)
        if id(features) not in self._of:
            self._of[id(features)] = self._workers.share(features)
        genes, selected = self._of[id(features)], features is self._selected
        return self._shared, self._parts, genes, number, selected


def _with_cells(
    job: Job, parts: list[Part], features: Features, selected: bool, work: Callable[[Local], T]
) -> T:
    """Work on the cells of all units, which the first task that asks finds."""

    def make(source: Source, room: float, threads: Threads, stack: ExitStack) -> Local:
        config = replace(job.config, scratch=place_for(job))
        local = stack.enter_context(
            Local(source, job.targets, job.taken, config, int(room), threads)
        )
        local.hold(gathered(job, parts, source, room / 2, threads))
        spill = local.spill
        check_room(job.config, room, spill.nbytes / max(1, spill.n_obs), spill.entry_bytes)
        return local

    def found() -> Local:
        local = kept(job.run, "cells", partial(make, *given))
        if selected and not local.has_selected:
            local.select(features)
        return local

    with at_work(job) as given:
        try:
            return work(found())
        except OSError as error:  # as files on a shared disk went with their worker
            logger.info("cells are looked for once more: %s", error)
        let_go(job.run, "cells")  # out here, as the error holds what it came from
        return work(found())


def _copies(
    job: Job, parts: list[Part], features: Features, target: int, selected: bool, config: Settings,
    start: State | None, epoch: int, numbers: tuple[int, int],
) -> PairwiseSum[Replica]:  # fmt: skip
    """Train some copies for an epoch, one after the other."""

    def train(local: Local) -> PairwiseSum[Replica]:
        given = config, job.targets[target], features, start
        return local.copies(*given, epoch=epoch, numbers=range(*numbers))

    return _with_cells(job, parts, features, selected, train)


def _descend(
    job: Job, parts: list[Part], features: Features, target: int, selected: bool, config: Settings,
    share: range, start: State | None, before: Descent | None, seconds: float,
) -> Descent:  # fmt: skip
    """Train some columns for a while."""

    def train(local: Local) -> Descent:
        end = time.monotonic() + seconds
        return local.descend(
            config, job.targets[target], features, start, share=share, before=before,
            due=lambda: time.monotonic() >= end,
        )  # fmt: skip

    return _with_cells(job, parts, features, selected, train)


def _try(
    job: Job,
    parts: list[Part],
    features: Features,
    target: int,
    selected: bool,
    settings: Settings,
) -> tuple[Trial, NDArray[np.float32] | None]:
    """Try some settings; their scores come along if they are asked for."""

    def work(local: Local) -> tuple[Trial, NDArray[np.float32] | None]:
        trials = local.trials(job.targets[target], features)
        [trial], scores = trials.of_settings([settings], progress=False)
        return trial, scores[0] if job.config.calibrate else None

    return _with_cells(job, parts, features, selected, work)
