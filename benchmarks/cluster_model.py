"""What one core was measured to take, in; seconds and bytes of a job by many workers, out.

A model, of which `Assumed` and the comments say what it takes for granted. A worker has as many
cores as are asked for, each as fast as the one that was measured.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from streamtrain.kernels.lanes import lanes_of
from streamtrain.pairwise import stretch_of
from streamtrain.scaling import MomentsPass
from streamtrain.threads import spans

LINE = lanes_of("float32")  # classes that SGD steps together, and that workers share out
_RANGES = 2  # of cells, for each worker to read
_FIRST, _LONGEST = 5.0, 60.0  # seconds after which weights come to the driver
_MOMENTS = 3 * 8  # bytes of a gene
_WEIGHT = 8  # bytes of a weight, and of its slope, of logistic regression


@dataclass(frozen=True)
class Rates:
    """What was measured, in seconds of one core unless it says otherwise.

    Attributes
    ----------
    read
        A cell: read, decoded, checked, normalised, summed to moments, and kept in files.
    decode
        A cell: read, decoded and normalised once more.
    load
        A cell: found in those files by a worker that trains, which gathers from there.
    step
        A cell of SGD, whatever the classes: gathered, scaled, multiplied by its neighbours.
    line, line_averaged
        A cell and `LINE` classes, also with averaged weights.
    tile
        A cell: scaled and turned by gene.
    multiply_add
        One of logistic regression.
    add
        A byte of sums that merge.
    optimise
        A weight, once a pass, by the driver.
    plan
        A cell of the atlas, wherever a task of SGD begins: what it draws from.
    start
        A job, beside reading and training: the driver's labels, model and so on.
    task, trip
        A task of many, by the scheduler; and of one alone, there and back.
    wire
        A byte between processes of one machine, pickled.
    entries
        Non-zero entries of a cell.
    stored
        Bytes of a cell in the store.
    chunk
        Cells of a chunk, which is decoded whole.
    """

    read: float
    decode: float
    load: float
    step: float
    line: float
    line_averaged: float
    tile: float
    multiply_add: float
    add: float
    optimise: float
    plan: float
    start: float
    task: float
    trip: float
    wire: float
    entries: float
    stored: float
    chunk: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> Rates:
        """From what the contender `rates` gives, and more."""
        return cls(**{field.name: float(found[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class Assumed:
    """What nothing here measured.

    Attributes
    ----------
    network
        Bytes a second that a machine sends, and as many that it receives.
    storage
        Bytes a second that all workers together read from where the atlas is.
    """

    network: float = 10e9 / 8
    storage: float = 5e9


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes
    ----------
    name
        As tables show it.
    cells, genes, classes
        The atlas.
    draws
        Steps of SGD in all; 0 for logistic regression.
    epochs
        Of SGD.
    taken
        Different cells among them; all for logistic regression.
    averaged
        Whether weights are averaged.
    passes
        Of logistic regression, each of all classes.
    settings, folds, judged
        Settings that are tried before, in so many folds, by so many cells after each epoch.
    replicas
        Copies of the model that are averaged after each epoch; 0 for as many as workers.
    most_replicas
        Mini-batches of an epoch: copies beyond have nothing to do.
    """

    name: str
    cells: int
    genes: int
    classes: int
    draws: int = 0
    epochs: int = 1
    taken: int = 0
    averaged: bool = False
    passes: int = 0
    settings: int = 0
    folds: int = 0
    judged: int = 0
    replicas: int = 1
    most_replicas: int = 1

    @property
    def columns(self) -> int:
        """One for two classes."""
        return 1 if self.classes == 2 else self.classes


@dataclass(frozen=True)
class Crew:
    """Who works.

    Attributes
    ----------
    workers, threads
        Their number, and the cores of each.
    shared
        Whether all have the same scratch. If not, a worker decodes what another has read.
    cores
        Of all together, where they share a machine; None for enough.
    """

    workers: int
    threads: int = 1
    shared: bool = False
    cores: int | None = None

    @property
    def slower(self) -> float:
        """How many threads share a core."""
        return 1.0 if self.cores is None else max(1.0, self.workers * self.threads / self.cores)


@dataclass
class Predicted:
    """Seconds of each stage, and bytes.

    Attributes
    ----------
    reading, loading, searching, training, between, driving, start
        Seconds: the first pass; what workers that train lack of the cells; settings tried; steps,
        or sums; weights and sums on the network; the driver's own; the rest.
    busy
        Workers that train.
    stored
        Bytes read from the store.
    sent
        Bytes on the network.
    held
        Bytes of cells that the worker with most has in files and in memory of its own.
    """

    reading: float = 0.0
    loading: float = 0.0
    searching: float = 0.0
    training: float = 0.0
    between: float = 0.0
    driving: float = 0.0
    start: float = 0.0
    busy: int = 1
    stored: float = 0.0
    sent: float = 0.0
    held: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all."""
        stages = self.reading + self.loading + self.searching + self.training
        return stages + self.between + self.driving + self.start


def predict(job: Job, crew: Crew, rates: Rates, assumed: Assumed | None = None) -> Predicted:
    """Reckon seconds and bytes of a job."""
    model = _Model(job, crew, rates, assumed or Assumed())
    model.read()
    if job.passes:
        model.solve()
    else:
        model.descend()
    return model.found


def nodes(start: int, stop: int) -> int:
    """Sums that neighbours start to stop leave in a binary tree over their numbers."""
    found = 0
    while start < stop:
        size = start & -start or 1 << (stop - start).bit_length()
        while start + size > stop:
            size >>= 1
        start, found = start + size, found + 1
    return found


class _Model:
    """A job in the making: each stage adds to what is `found`."""

    def __init__(self, job: Job, crew: Crew, rates: Rates, assumed: Assumed) -> None:
        self.job, self.crew, self.rates, self.assumed = job, crew, rates, assumed
        self.unit = stretch_of(job.cells)
        self.units = -(-job.cells // self.unit)
        # Alone on its machine a worker hears from the driver over the loopback.
        self.byte = rates.wire if crew.cores else max(rates.wire, 1 / assumed.network)
        self.found = Predicted(start=rates.start)

    def work(self, seconds: float, parts: int = 10**9) -> float:
        """Wall time of a worker's core seconds, which its threads share in so many parts."""
        return seconds / min(self.crew.threads, parts) * self.crew.slower

    def share(self, nbytes: float) -> float:
        """Send an object to every worker; each that has it sends it on to two at a time."""
        rounds = math.ceil(math.log(self.crew.workers, 3) - 1e-9)
        self.found.sent += self.crew.workers * nbytes
        return (1 + 2 * rounds) * nbytes * self.byte + self.rates.trip

    def from_store(self, nbytes: float) -> float:
        """Least seconds in which all workers read so much."""
        self.found.stored += nbytes
        return nbytes / self.assumed.storage

    def read(self) -> None:
        """The first pass: ranges of units, as workers become free; moments come to the driver."""
        job, rates, found = self.job, self.rates, self.found
        free = [(0.0, 0)] * self.crew.workers  # when, and how many cells it has read
        blocks, sums = self.unit // MomentsPass.BLOCK, 0
        ranges = spans(self.units, _RANGES * self.crew.workers)
        for first, stop in ranges:
            cells = min(stop * self.unit, job.cells) - first * self.unit
            begun, before = heapq.heappop(free)
            heapq.heappush(free, (begun + self.work(cells * rates.read), before + cells))
            sums += nodes(first * blocks, min(stop * blocks, -(-job.cells // MomentsPass.BLOCK)))
        come = sums * _MOMENTS * job.genes
        found.sent += come
        # Moments come while others read on.
        stored = self.from_store(job.cells * rates.stored)
        found.reading = max(max(free)[0], stored, come * self.byte)
        found.reading += len(ranges) * rates.task + rates.trip
        codes = 4 * job.cells + (job.cells if self.taken < job.cells else 0)
        found.between += self.share(codes) + self.share(2 * _MOMENTS * job.genes)
        most = max(cells for _, cells in free)
        found.held = most / job.cells * self.taken * self.cell_bytes

    @property
    def taken(self) -> int:
        """Cells that training takes."""
        return self.job.taken or self.job.cells

    @property
    def cell_bytes(self) -> float:
        """Bytes of a cell in files."""
        return self.rates.entries * (4 + (2 if self.job.genes <= 2**16 else 4)) + 4

    def load(self, cells: float, workers: int) -> float:
        """Bring `cells` of the taken ones to each of so many workers; seconds of one.

        Of a worker's files are as many as it has read; it decodes the others' chunks once more.
        """
        job, rates, n = self.job, self.rates, self.crew.workers
        own = 1.0 if self.crew.shared else 1 / n
        loading = self.work(cells * own * rates.load)
        share = self.taken / job.cells
        touched = 1 - (1 - share) ** rates.chunk  # of the chunks, where taken cells lie anywhere
        again = cells / share * touched * (1 - own)
        reading = self.from_store(workers * again * rates.stored)
        return loading + max(self.work(again * rates.decode), reading)

    def descend(self) -> None:
        """SGD: settings are tried, each by a worker, and then lines of classes trained."""
        job, rates, crew, found = self.job, self.rates, self.crew, self.found
        line = rates.line_averaged if job.averaged else rates.line
        lines = -(-job.columns // LINE)
        if job.settings:
            tries = min(job.settings, crew.workers)
            found.loading += self.load(self.taken, tries)
            scored = job.epochs * job.judged * rates.entries * job.columns * rates.multiply_add
            stepped = job.draws * (rates.step + job.folds * lines * line)
            found.searching = -(-job.settings // tries) * self.work(scored + stepped)
        copies = min(crew.workers, job.most_replicas) if job.replicas == 0 else job.replicas
        found.busy = min(crew.workers, copies if copies > 1 else lines)
        if crew.workers > job.settings:  # of those who tried, all may train again
            found.loading += self.load(self.taken, found.busy)
        if not crew.shared:  # what others have read goes into files of its own once more
            found.held = self.taken * self.cell_bytes
        if copies > 1:
            self._replicas(copies, lines, line)
        else:
            self._shares(lines, line)

    def _weights(self, columns: float) -> float:
        """Bytes of so many columns of SGD, as tasks give them."""
        return self.job.genes * columns * 4 * (1 + self.job.averaged)

    def _shares(self, lines: int, line: float) -> None:
        job, rates, found = self.job, self.rates, self.found
        most = -(-lines // found.busy)  # lines of the worker that has most
        each = self.work(rates.step) + self.work(most * line, most)
        found.training = job.draws * each
        tasks, length = 0, _FIRST
        left = found.training
        while left > 0:  # a task gives its weights after twice as long as the one before
            tasks, left, length = tasks + 1, left - length, min(2 * length, _LONGEST)
        come = found.busy * self._weights(min(job.columns, LINE * most))
        found.sent += tasks * come
        found.between += tasks * (come * self.byte + rates.trip)
        found.training += tasks * self.work(rates.plan * job.cells)

    def _replicas(self, copies: int, lines: int, line: float) -> None:
        job, rates, found = self.job, self.rates, self.found
        each = -(-copies // found.busy)  # of a worker
        one = self.work(rates.step) + self.work(lines * line, lines)
        begun = each * job.epochs * self.work(rates.plan * job.cells)
        found.training = job.draws / copies * each * one + begun
        nbytes = self._weights(job.columns)
        height = math.ceil(math.log2(copies))
        merging = height * nbytes * (self.byte + self.work(rates.add)) + nbytes * self.byte
        # From one to all, as asked for: a worker sends the mean to all the others.
        found.sent += job.epochs * (2 * copies + 1) * nbytes
        back = (found.busy - 1) * nbytes * self.byte
        found.between += job.epochs * (merging + back + copies * 2 * rates.task + rates.trip)

    def solve(self) -> None:
        """Logistic regression: sums over cells that each worker holds, in a tree, every pass."""
        job, rates, found = self.job, self.rates, self.found
        n = min(self.crew.workers, self.units)
        edges = [self.units * i // n for i in range(n + 1)]
        units = max(stop - first for first, stop in pairwise(edges))
        cells = min(units * self.unit, job.cells)
        found.busy = n
        weights = job.genes * job.columns
        found.loading = self.load(cells, n) + self.work(cells * rates.tile)
        slopes = _WEIGHT * weights
        adding = units * slopes * rates.add
        sums = 2 * cells * rates.entries * job.columns * rates.multiply_add
        found.training = job.passes * (self.work(sums) + adding * self.crew.slower)
        merging, sent = self._tree(edges, slopes)
        before = found.sent
        broadcast = self.share(slopes)
        found.sent = before + job.passes * (n * slopes + sent)
        found.between += job.passes * (broadcast + merging + 2 * n * rates.task)
        found.driving = job.passes * weights * rates.optimise
        found.held += cells * self.cell_bytes  # by gene, too

    def _tree(self, edges: list[int], nbytes: float) -> tuple[float, float]:
        """Seconds and bytes of merging sums of stretches, neighbours first, to the driver."""
        seconds, sent = 0.0, 0.0
        while len(edges) > 2:
            slowest = 0
            for at in range(0, len(edges) - 2, 2):
                moved = nodes(edges[at + 1], edges[at + 2])
                slowest, sent = max(slowest, moved), sent + moved * nbytes
            seconds += slowest * nbytes * (self.byte + self.work(self.rates.add))
            edges = edges[::2] if len(edges) % 2 else [*edges[::2], edges[-1]]
        last = nodes(edges[0], edges[-1]) * nbytes
        return seconds + last * self.byte, sent + last
