"""A run in; moments, searches and rounds of training by the workers of a client out.

SGD's classes are shared out: each worker trains some on the same plan. The settings of a search are
shared out, and the cells of logistic regression. So the model is that of one process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
from streamtrain.kernels.lanes import lanes_of
from streamtrain.local import Local
from streamtrain.optimum import solve, vectors_bytes
from streamtrain.pairwise import PairwiseSum
from streamtrain.parts import Part
from streamtrain.progress import stage
from streamtrain.replicas import Replica, averaged
from streamtrain.rounds import check_room
from streamtrain.scaling import RunningMoments
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import column_classes
from streamtrain.sources.base import Source
from streamtrain.stored import EndedEarlyError, Fitted
from streamtrain.targets import Target
from streamtrain.threads import Threads, spans
from streamtrain.trials import Search, Trial, Tried, conclude, log_search, trials_of

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Seconds that a share trains before its weights come to the driver: what a killed worker, or a lost
# scheduler, loses.
_FIRST, _LONGEST = 5.0, 60.0


class Cluster:
    """A run by workers; a context manager. See `local.Place`.

    Parameters
    ----------
    client
        A dask.distributed Client.
    source, targets, taken, config, room, threads, progress
        As of `Local`, of the driver, which reads labels and steps logistic regression.
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
        progress: bool,
    ) -> None:
        check_source(source)
        self._workers = Workers(client)
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
        config, given = self._config, self._given(target, features)
        waiting = trials_of(config)
        tasks = (
            partial(self._workers.submit, "try-settings", _try, *given, settings, alone=True)
            for settings in waiting
        )

        def found() -> Iterator[Tried]:
            with stage("Cross-validating", len(waiting), " settings", show=self._progress) as bar:
                tried = self._workers.in_order(tasks)
                for settings, (trial, scores) in zip(waiting, tried, strict=True):
                    bar.update()
                    yield settings, trial, scores

        return conclude(config, target.judged, found())

    def fit(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """See `Place`."""
        if config.use_SGD and config.replicas > 1:
            return self._average(config, target, features, start)
        if config.use_SGD:
            return self._descend(config, target, features, start)
        return self._solve(config, target, features, start)

    def _solve(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """The optimum: steps here, sums over the cells by the workers."""
        sums = ClusterSums(
            self._workers, self._job, self._given(target, features)[:4]
        )  # fmt: skip
        vectors = vectors_bytes(len(features.names), target.columns, self._room)
        shift = self._job.scaler(features).shift
        given = config, target.columns, shift, start, sums, vectors, self._threads
        return solve(*given, progress=self._progress)

    def _shares(self, n_classes: int) -> list[range]:
        """Columns of the workers, whole cache lines, about as many each."""
        columns, width = len(column_classes(n_classes)), lanes_of(self._config.dtype)
        lines = -(-columns // width)
        n = min(lines, self._workers.n)
        edges = [min(columns, width * (lines * i // n)) for i in range(n + 1)]
        return [range(*ends) for ends in pairwise(edges)]

    def _descend(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """SGD: each task trains some columns, for a while."""
        workers, given = self._workers, self._given(target, features)
        shares = self._shares(len(target.columns.classes))
        first = workers.share(start)
        runs: list[Descent | None] = [None] * len(shares)

        def submit(i: int, before: Shared, seconds: float) -> Task:
            rest = config, shares[i], first, before, seconds
            on = before.on or workers.idlest()
            return workers.submit("train-classes", _descend, *given, *rest, on=on)

        nothing = workers.share(None)
        tasks = {i: submit(i, nothing, _FIRST) for i in range(len(shares))}
        seconds = dict.fromkeys(tasks, _FIRST)
        total = config.epochs if config.mini_batch else config.most_passes(target.cells.n_obs)
        with stage("Training", total * len(shares), " epochs", show=self._progress) as bar:
            while tasks:
                i = workers.first_of(tasks)
                before = runs[i]
                try:
                    run: Descent = workers.result(tasks[i])
                except SchedulerLostError as error:
                    raise EndedEarlyError(str(error), _so_far(runs)) from error
                runs[i] = run
                bar.update(run.epoch - (0 if before is None else before.epoch))
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
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """Copies of the model: each task trains one for an epoch, from the mean of the last."""
        workers, given = self._workers, self._given(target, features)
        state = workers.share(start)
        drawn: NDArray[np.int64] = np.zeros(len(target.columns.classes), np.int64)
        last: Replica | None = None
        with stage("Training", config.epochs, " epochs", show=self._progress) as bar:
            for epoch in range(config.epochs):
                copies = [
                    workers.submit(
                        "train-copies", _copies, *given, config, state, epoch, numbers, alone=True
                    )
                    for numbers in spans(config.replicas, workers.n)
                ]
                total = workers.merged("merge-copies", copies)
                try:
                    last = workers.result(total).total()
                except SchedulerLostError as error:
                    so_far = None if last is None else Fitted(last.mean(), eta0=last.eta0)
                    raise EndedEarlyError(str(error), so_far) from error
                state = workers.share(last.mean())
                drawn += last.drawn
                bar.update()
        if last is None:
            raise ValueError("there are no epochs")
        return averaged(config, target.columns.counts, last, drawn)

    def _given(self, target: Target, features: Features) -> tuple[Any, ...]:
        """What tasks take first: run, parts, genes (sent once), target, whether genes are fewer."""
        number = next(i for i, own in enumerate(self._targets) if own is target)
        if id(features) not in self._of:
            self._of[id(features)] = self._workers.share(features)
        genes, selected = self._of[id(features)], features is self._selected
        return self._shared, self._parts, genes, number, selected


def _so_far(runs: list[Descent | None]) -> Fitted | None:
    """The weights as they last came; None where some never did."""
    done = [run for run in runs if run is not None]
    if len(done) < len(runs):
        return None
    return Fitted(State.joined([run.solver.state() for run in done]), eta0=done[0].eta0)


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
