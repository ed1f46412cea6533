"""A query enters; a client's workers go over ranges of its cells, and what they find leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.annotating import Query, Rule, annotate, blocks_within
from streamtrain.annotations import Calls
from streamtrain.budget import BLOCK
from streamtrain.cells import expression_of
from streamtrain.cluster.turns import kept, opened, turn
from streamtrain.cluster.workers import Shared, Task, Workers
from streamtrain.expression import Normalize
from streamtrain.model import Model
from streamtrain.pairwise import PairwiseSum
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments
from streamtrain.scoring import Part, PartScorer, Scaling, part_at
from streamtrain.sources.base import Source
from streamtrain.streaming import sweep
from streamtrain.threads import Threads

T = TypeVar("T")
Check = Literal["sum", "range"] | None

LEAST, MOST = MomentsPass.BLOCK, 16 * MomentsPass.BLOCK  # cells of a task: it takes 40 ms or more
_EACH = 8  # tasks for each worker at least, so that all end at about the same time
_RESULT = BLOCK // 4  # bytes that a task gives back


@dataclass(frozen=True, slots=True)
class Job:
    """What workers are told of a query, once.

    Attributes
    ----------
    run
        Name of the run, under which they keep things.
    source, model, rule, parts, normalize
        As of the query.
    memory, n_jobs
        As of `predict`.
    beside
        Bytes that are held beside what prediction does.
    """

    run: str
    source: Source
    model: Model
    rule: Rule
    parts: list[Part]
    normalize: Normalize
    memory: int | str | None
    n_jobs: int | None
    beside: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Cells of one part.

    Attributes
    ----------
    start
        Position of the first among the selected.
    n_obs
        Number of cells.
    chosen
        Their rows in the source, ascending; None where all cells are selected.
    """

    start: int
    n_obs: int
    chosen: NDArray[np.int64] | None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows in the source."""
        return self.start + np.arange(self.n_obs) if self.chosen is None else self.chosen


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a task found.

    Attributes
    ----------
    position
        Of its first cell.
    value
        What was asked for.
    tally
        What the check of its cells saw.
    """

    position: int
    value: T
    tally: dict[str, Any]


class _Reader:
    """Cells of a task, read and normalised in a worker's turn, block after block; they are checked.

    Parameters
    ----------
    job, cells, check
        As of the task.
    budget, threads
        Of the turn.
    """

    def __init__(
        self, job: Job, cells: Stretch, check: Check, budget: int, threads: Threads
    ) -> None:
        self.source = opened(job.run, "source", threads, job.source.with_threads)
        self._cells = cells
        self._blocks = blocks_within(
            budget, job.model, self.source.n_vars, job.rule.detail is not None, job.beside
        )
        self._expression = expression_of(
            self.source, cells.rows, normalize=job.normalize, dtype=np.float64, threads=threads,
            check=check, judges=False,
        )  # fmt: skip

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        stored: Any = sweep(self.source, self._cells.rows, *self._blocks)
        with closing(stored):  # an error must not leave a thread that reads beyond this turn
            for position, block in stored:
                yield self._cells.start + position, self._expression(block, position)

    def found(self, value: T) -> Found[T]:
        """What the task found, once all cells are read."""
        return Found(self._cells.start, value, self._expression.tally())


def predict_cells(
    job: Job, scalings: Sequence[Scaling | None] | None, cells: Stretch, check: Check
) -> Found[tuple[list[Calls], list[str]]]:
    """Annotate cells; a task.

    Returns
    -------
    Found
        Calls in blocks, and for "prob match" the labels that their codes number.
    """
    with turn(job.memory, job.n_jobs) as (budget, threads):
        reader = _Reader(job, cells, check, budget, threads)
        n_vars = reader.source.n_vars
        scorer: PartScorer = kept(
            job.run, "scorer", lambda _: PartScorer(job.model, job.parts, n_vars, threads, scalings)
        )
        joined = job.rule.joined(job.model)
        calls = [annotate(scorer(rows, at), at, job.rule, joined) for at, rows in reader]
        return reader.found((calls, [] if joined is None else joined.names))


def sum_cells(job: Job, cells: Stretch, check: Check) -> Found[PairwiseSum[RunningMoments]]:
    """Sum the moments of cells, which begin with a block of their part; a task."""
    with turn(job.memory, job.n_jobs) as (budget, threads):
        reader = _Reader(job, cells, check, budget, threads)
        begun = job.parts[part_at(job.parts, cells.start)].start
        first = (cells.start - begun) // MomentsPass.BLOCK
        moments = MomentsPass(reader.source.n_vars, threads, first)
        for _, rows in reader:
            moments.update(rows)
        return reader.found(moments.sums())


class ClusterPasses:
    """The passes of a query, which workers make; a context manager.

    Parameters
    ----------
    query
        What they go over.
    client
        A dask.distributed Client.
    memory, n_jobs, beside
        As of `Job`.
    """

    def __init__(
        self, query: Query, client: Any, memory: int | str | None, n_jobs: int | None, beside: int
    ) -> None:
        self._query, self._workers = query, Workers(client)
        # What scores do not take, such as the last weights of an averaged model, stays here.
        model = Model(query.model.dataset[["coef", "intercept", "mean", "scale", "var"]])
        self._job = Job(
            self._workers.run, query.source, model, query.rule, query.parts, query.normalize,
            memory, n_jobs, beside,
        )  # fmt: skip

    def __enter__(self) -> ClusterPasses:
        self._shared = self._workers.__enter__().share(self._job)
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__(*error)

    def moments(self) -> Iterator[tuple[int, RunningMoments]]:
        """Moments of each part that has cells, with its place; the same bits as of one process."""
        block = MomentsPass.BLOCK
        # A power of two, so that what a task finds is one sum.
        size = block << ((self._size() // block).bit_length() - 1)
        found = self._found("Reading", "sum-cells", sum_cells, size)
        for i, stretches in groupby(
            found, key=lambda one: part_at(self._query.parts, one.position)
        ):
            sums: PairwiseSum[RunningMoments] = PairwiseSum()
            for stretch in stretches:
                sums.merge(stretch.value)
            yield i, sums.total(RunningMoments.empty(self._query.source.n_vars))

    def calls(self, scalings: Sequence[Scaling | None] | None) -> Iterator[Calls]:
        """Annotate all cells, in order; each part scaled as said or, for None, as the model is."""
        of_cell = 12 + 8 * (len(self._query.model.cell_types) * (self._job.rule.detail is not None))
        size = max(1, min(self._size(), self._query.most, _RESULT // of_cell))
        shared = None if scalings is None else self._workers.share(scalings)
        for one in self._found("Predicting", "predict-cells", predict_cells, size, shared):
            calls, names = one.value
            for cells in calls:
                if self._query.joined is None:
                    yield cells
                else:
                    yield replace(cells, codes=self._query.joined.recoded(cells.codes, names))

    def _size(self) -> int:
        """Cells of a task."""
        return min(max(self._query.n_obs // (_EACH * self._workers.n), LEAST), MOST)

    def _found(
        self, stage: str, name: str, task: Callable[..., Found[T]], size: int, *args: Shared | None
    ) -> Iterator[Found[T]]:
        """Have tasks go over all cells, `size` at a time; give what they find, in order."""
        query = self._query
        expression, first = query.begin()
        tasks: Iterator[Callable[[], Task]] = (
            partial(
                self._workers.submit,
                name,
                task,
                self._shared,
                *args,
                cells,
                expression.check,
                alone=True,
            )
            for cells in self._stretches(size)
        )
        results = ((found.position, found) for found in self._workers.in_order(tasks))
        for _, found in counted(results, stage, query.n_obs, show=query.progress):
            if first:
                expression.merge(found.tally)
            yield found
        if first:
            expression.finish()

    def _stretches(self, size: int) -> Iterator[Stretch]:
        rows = self._query.rows
        for part in self._query.parts:
            for start in range(part.start, part.stop, size):
                stop = min(start + size, part.stop)
                yield Stretch(start, stop - start, None if rows is None else rows[start:stop])
