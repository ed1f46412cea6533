"""A source in; its moments, and the cells that training takes as files of workers, out."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from streamtrain.progress import stage
from streamtrain.rounds import check_room
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler
from streamtrain.scratch import ScratchArray, free_disk, place_of, require_free
from streamtrain.sources.base import Source
from streamtrain.streaming import sweep
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
class Part:
    """The taken cells of a unit, normalised, in files of the worker that read them.

    Attributes
    ----------
    path
        Of its files, but for their endings.
    n_obs, entries
        Cells, and their entries.
    by
        Address of that worker.
    """

    path: Path
    n_obs: int
    entries: int
    by: str

    def rows(self, n_vars: int, dtype: Any, nbytes: float) -> Iterator[Rows]:
        """The cells, about `nbytes` at a time.

        Raises
        ------
        OSError
            Where the files are not, or not whole: another worker's, or one's that has ended.
        """
        kinds = {"lengths": np.uint32, "values": dtype, "genes": _gene_type(n_vars)}
        with ExitStack() as stack:
            arrays = {}
            for name, kind in kinds.items():
                array = ScratchArray.opened(self.path.with_suffix(f".{name}"), kind)
                arrays[name] = array
                stack.callback(array.close)
            sizes = {name: array.shape[0] for name, array in arrays.items()}
            if sizes != {"lengths": self.n_obs, "values": self.entries, "genes": self.entries}:
                raise OSError(f"{self.path}: not whole")
            indptr = np.concatenate([[0], np.cumsum(arrays["lengths"][:], dtype=np.int64)])
            each = self.entries * sum(np.dtype(k).itemsize for k in kinds.values()) + 1
            step = max(1, int(nbytes * self.n_obs / each))
            for start in range(0, self.n_obs, step):
                edges = indptr[start : start + step + 1]
                span = slice(int(edges[0]), int(edges[-1]))
                genes = arrays["genes"][span]
                yield Rows(arrays["values"][span], genes, edges - edges[0], n_vars)


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
        folder = kept(job.run, "folder", lambda stack: stack.enter_context(_folder(job)))
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

        for unit, pieces in groupby(cells(), itemgetter(0)):
            with _Written(folder / f"{unit}", source.n_vars, job.config.dtype) as written:
                for _, piece in pieces:
                    written.append(piece)
            parts.append(written.part)
        return _Found(moments.sums(), expression.tally(), parts)


def _check_fits(job: Job, first: Rows, n_units: int, room: float) -> None:
    """Refuse by the first cells what the others will not fit in: batches, or scratch."""
    config = job.config
    entry = np.dtype(config.dtype).itemsize + np.dtype(_gene_type(first.n_vars)).itemsize
    cell = len(first.data) / first.n_obs * entry
    if config.trains_sgd:
        check_room(config, room, cell, entry)
    share = 1.0 if job.taken is None else float(job.taken.mean())
    place = config.scratch or get_worker().local_directory
    require_free(place, cell * share * n_units * job.unit, "reading")


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
    rows_of_unit = job.rows_of(job.cells_of(unit)[given:])
    expression = job.expression(source, rows_of_unit, threads, check=False)
    for position, stored in sweep(source, rows_of_unit, int(min(room / 6, BLOCK))):
        yield expression(stored, position)


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
    given = job.config.scratch
    if given is not None:
        free_disk(given)  # refuses what is no folder here
    where = Path(get_worker().local_directory if given is None else place_of(given))
    prefix = f"streamtrain-{job.run}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    try:
        yield folder
    finally:  # with those of workers that were killed
        for each in where.glob(f"{prefix}*"):
            shutil.rmtree(each, ignore_errors=True)


class _Written:
    """Appends cells to the files of a part; a context manager. The part is there in the end."""

    part: Part

    def __init__(self, path: Path, n_vars: int, dtype: Any) -> None:
        self._path, self._n_obs = path, 0
        self._values = ScratchArray.named(path.with_suffix(".values"), dtype)
        self._genes = ScratchArray.named(path.with_suffix(".genes"), _gene_type(n_vars))
        self._lengths = ScratchArray.named(path.with_suffix(".lengths"), np.uint32)

    def append(self, rows: Rows) -> None:
        """Write cells after those already there."""
        self._values.append(rows.data)
        self._genes.append(rows.indices)
        self._lengths.append(np.diff(rows.indptr))
        self._n_obs += rows.n_obs

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        entries = self._values.shape[0]
        self.part = Part(self._path, self._n_obs, entries, get_worker().address)
        for array in (self._values, self._genes, self._lengths):
            array.close()


def _gene_type(n_vars: int) -> Any:
    return np.uint16 if n_vars <= 2**16 else np.int32
