"""A source in; its moments, and the cells that training takes as files of workers, out."""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from distributed import get_worker
from numpy.typing import NDArray

from streamtrain.budget import BLOCK
from streamtrain.cells import expression_of
from streamtrain.cluster.turns import kept, opened, turn
from streamtrain.cluster.workers import Shared, Workers
from streamtrain.config import Settings
from streamtrain.expression import Expression
from streamtrain.features import Features
from streamtrain.first_pass import room_for_cells
from streamtrain.pairwise import PairwiseSum, stretch_of
from streamtrain.parts import Opened, Part, Written, entry_bytes
from streamtrain.progress import stage
from streamtrain.rounds import check_room
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler
from streamtrain.scratch import free_disk, place_of, require_free
from streamtrain.sources.base import Source
from streamtrain.spill import Spill
from streamtrain.streaming import ahead, sweep
from streamtrain.targets import Target
from streamtrain.threads import Threads, spans

logger = logging.getLogger(__name__)

_TASKS = 2  # ranges for each worker: late ones then find some left


@dataclass(frozen=True, slots=True)
class Job:
    """What every task of a run asks for, sent to each worker once.

    Attributes
    ----------
    run
        Name of the run.
    source, targets, config
        The run's.
    taken
        Which cells any round takes, shape (n,); None for all.
    columns
        Classes that one worker trains at a time.
    """

    run: str
    source: Source
    targets: list[Target]
    config: Settings
    taken: NDArray[np.bool_] | None
    columns: int

    @property
    def n_obs(self) -> int:
        """Labelled cells."""
        return self.targets[0].cells.n_obs

    @property
    def unit(self) -> int:
        """Cells of a unit: a stretch, which is whole blocks of moments."""
        return stretch_of(self.n_obs)

    @property
    def n_units(self) -> int:
        """Number of units; the last may be short."""
        return -(-self.n_obs // self.unit)

    def cells_of(self, unit: int) -> NDArray[np.int64]:
        """Positions of those cells of a unit that any round takes, among the labelled cells."""
        start, stop = unit * self.unit, min((unit + 1) * self.unit, self.n_obs)
        if self.taken is None:
            return np.arange(start, stop)
        return start + np.flatnonzero(self.taken[start:stop])

    def rows_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of cells in the source."""
        rows = self.targets[0].cells.rows
        return cells if rows is None else rows[cells]

    def scaler(self, features: Features) -> Scaler:
        """Scaling of cells as logistic regression takes them: no genes apart."""
        return features.scaler(
            features.at, self.source.n_vars, with_mean=self.config.with_mean,
            dtype=self.config.dtype, apart=False,
        )  # fmt: skip

    def expression(self, source: Source, rows: NDArray[np.int64] | None, threads: Threads,
                   *, check: bool) -> Expression:  # fmt: skip
        """What checks and normalises."""
        by: Literal["sum"] | None = "sum" if check and self.config.check_expression else None
        return expression_of(
            source, rows, normalize=self.config.normalize, check=by, dtype=self.config.dtype,
            threads=threads, judges=False,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Found:
    """What reading some units found."""

    sums: PairwiseSum[RunningMoments]
    tally: dict[str, Any]
    parts: list[Part]


def first_pass(
    workers: Workers, job: Job, shared: Shared, threads: Threads, *, progress: bool
) -> tuple[RunningMoments, list[Part]]:
    """Read every cell once, by ranges: checks, moments, and the cells that any round takes."""
    ranges = spans(job.n_units, _TASKS * workers.n)
    tasks = (
        partial(workers.submit, "read-cells", _read, shared, *ends, alone=True) for ends in ranges
    )
    expression = job.expression(job.source, job.targets[0].cells.rows, threads, check=True)
    sums: PairwiseSum[RunningMoments] = PairwiseSum()
    parts: list[Part] = []
    with stage("Reading", job.n_obs, show=progress) as bar:
        results: Iterator[_Found] = workers.in_order(tasks)
        for found, (_, stop) in zip(results, ranges, strict=True):
            sums.merge(found.sums)
            parts += found.parts
            expression.merge(found.tally)  # in the order of the cells
            bar.update(min(stop * job.unit, job.n_obs) - bar.n)
    expression.finish()
    return sums.total(RunningMoments.empty(job.source.n_vars)), parts


def _read(job: Job, start: int, stop: int) -> _Found:
    """Read the units start to stop."""
    with at_work(job) as (source, room, threads):
        first, end = start * job.unit, min(stop * job.unit, job.n_obs)
        expression = job.expression(source, job.targets[0].cells.rows, threads, check=True)
        moments = MomentsPass(source.n_vars, threads, first // MomentsPass.BLOCK)
        written = kept(job.run, "written", lambda _: _written(job, source, "cells"))
        parts: list[Part] = []

        def cells() -> Iterator[tuple[int, Rows]]:
            """Units and their taken cells."""
            rows = job.rows_of(np.arange(first, end))
            for position, stored in sweep(source, rows, int(min(room / 6, BLOCK))):
                if position == 0:
                    _check_fits(job, stored, stop - start, room)
                block, at = expression(stored, first + position), first + position
                moments.update(block)
                edges = np.arange(at - at % job.unit, at + block.n_obs, job.unit) - at
                for lo, hi in pairwise([0, *edges[edges > 0].tolist(), block.n_obs]):
                    piece = block.slice(lo, hi)
                    if job.taken is not None:
                        piece = piece.take(np.flatnonzero(job.taken[at + lo : at + hi]))
                    yield (at + lo) // job.unit, piece

        for _, pieces in groupby(cells(), itemgetter(0)):
            parts.append(written.append(piece for _, piece in pieces))
        return _Found(moments.sums(), expression.tally(), parts)


def _check_fits(job: Job, first: Rows, n_units: int, room: float) -> None:
    """Refuse by the first cells what the others will not fit in: batches, or scratch."""
    config = job.config
    entry = entry_bytes(first.n_vars, config.dtype)
    cell = len(first.data) / first.n_obs * entry
    if config.trains_sgd:
        check_room(config, room, cell, entry)
    share = 1.0 if job.taken is None else float(job.taken.mean())
    require_free(place_for(job), cell * share * n_units * job.unit, "reading")


def cells_of(
    job: Job, part: Part, unit: int, source: Source, room: float, threads: Threads
) -> Iterator[Rows]:
    """Taken cells of a unit, in order: of its files, or, where these are not, read once more."""
    given = 0
    try:
        for rows in part.rows(source.n_vars, job.config.dtype, min(room / 6, BLOCK)):
            yield rows
            given += rows.n_obs
        return
    except OSError as error:
        logger.info("unit %d is read once more: %s", unit, error)
    yield from _again(job, job.cells_of(unit)[given:], source, room, threads)


def gathered(job: Job, parts: list[Part], source: Source, room: float, threads: Threads) -> Spill:
    """Taken cells of all units, from the files where they are.

    What is in none that can be read here is read once more, into files of this worker's.
    """
    given = source.n_vars, job.config.dtype
    files, entry = Opened(*given), entry_bytes(*given)
    lacking = []
    for unit, part in enumerate(parts):
        try:
            files.lengths(part)
        except OSError as error:
            logger.info("unit %d is read once more: %s", unit, error)
            lacking.append(unit)
    if lacking:
        needed = entry * sum(parts[unit].entries for unit in lacking)
        require_free(place_for(job), needed, "training")
        parts = list(parts)
        written = _written(job, source, f"again-{uuid.uuid4().hex}")  # others may read the first
        for unit in lacking:
            cells = _again(job, job.cells_of(unit), source, room, threads)
            parts[unit] = written.append(ahead(cells))
    return files.spill(parts, place_for(job), threads)


def _again(
    job: Job, cells: NDArray[np.int64], source: Source, room: float, threads: Threads
) -> Iterator[Rows]:
    """Read cells once more, of the source."""
    rows = job.rows_of(cells)
    expression = job.expression(source, rows, threads, check=False)
    for position, stored in sweep(source, rows, int(min(room / 6, BLOCK))):
        yield expression(stored, position)


def _written(job: Job, source: Source, name: str) -> Written:
    """Files of this worker, which keeps their folder for the run."""
    folder = kept(job.run, "folder", lambda stack: stack.enter_context(_folder(job)))
    by = get_worker().address
    return Written(folder / name, source.n_vars, job.config.dtype, by=by)


def place_for(job: Job) -> str:
    """Folder of a worker's files: as given, or where it keeps its own."""
    given = job.config.scratch
    return str(get_worker().local_directory) if given is None else place_of(given)


@contextmanager
def at_work(job: Job) -> Iterator[tuple[Source, float, Threads]]:
    """Take this worker's turn; give the source, the bytes for cells, and the threads."""
    with turn(job.config.memory, job.config.n_jobs) as (now, threads):
        # As at first: what is free changes with what others on the machine do.
        budget = kept(job.run, "budget", lambda _: now)
        source = opened(job.run, "source", threads, job.source.with_threads)
        known = 0
        if job.config.warm_start is not None or job.config.init is not None:  # it comes whole
            n_all = max(len(target.columns.classes) for target in job.targets)
            each = 2 * source.n_vars * np.dtype(job.config.dtype).itemsize
            known = max(0, n_all - job.columns) * each
        room = room_for_cells(budget, known, source, job.targets, job.config, job.columns)
        yield source, room, threads


@contextmanager
def _folder(job: Job) -> Iterator[Path]:
    """A folder for this worker's files, on scratch or where the worker keeps its own."""
    where = Path(place_for(job))
    free_disk(where)  # refuses what is no folder here
    prefix = f"streamtrain-{job.run}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    try:
        yield folder
    finally:  # with those of workers that were killed
        for each in where.glob(f"{prefix}*"):
            shutil.rmtree(each, ignore_errors=True)
