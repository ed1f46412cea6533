"""Training on a GPU: steps from batches in host memory, gradients, and whole jobs from a store.

A job's `device` is "gpu", "cpu" for the engine of the CPU, or `STAND_IN`, which is the code of the
GPU on NumPy: for tests of what is here. Each contender of ours on a device tells its `floors`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import chain, pairwise, repeat
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks import floors
from benchmarks.simulated import Genes, uniform
from streamtrain.batches import Served, batches
from streamtrain.gpu.cells import DeviceScaler
from streamtrain.gpu.device import Device
from streamtrain.gpu.sgd import DeviceSGD
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler
from streamtrain.solvers.logistic import Sums, TileSums, column_classes, problem_weights
from streamtrain.solvers.schedule import Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads
from streamtrain.tiles import Tiles

STAND_IN, CPU = "numpy", "cpu"
_COMPARED = 16  # classes whose weights are compared


class _Sized(Protocol):
    @property
    def n_obs(self) -> int: ...


T = TypeVar("T", bound=_Sized)


@cache
def device_of(kind: str) -> Device | None:
    """The device of a job, or None for the engine of the CPU."""
    if kind == CPU:
        return None
    return Device(np) if kind == STAND_IN else Device.gpu()


def within(device: Device | None, threads: Threads) -> AbstractContextManager[None]:
    """Let these threads copy to a device."""
    return nullcontext() if device is None else device.within(threads)


@cache
def _card(device: Device, megabytes: int, order: int) -> floors.Card:
    return floors.measured(device, megabytes, order)


def card_of(job: dict[str, Any]) -> floors.Card | None:
    """What the job's device does at best, measured once a process; None for the CPU engine."""
    device = device_of(job["device"])
    return None if device is None else _card(device, job["megabytes"], job["order"])


def expression(job: dict[str, Any]) -> Rows:
    """Log-normalised cells as training keeps them, of a store or simulated ones of a density."""
    if job["density"]:
        rows = uniform(job["cells"], job["genes"], job["density"], job["classes"])
    else:
        from benchmarks.contenders import steps

        rows = steps.expression(job)
    return kept(rows)


def kept(rows: Rows) -> Rows:
    """The same cells with gene positions of two bytes where they fit, as on scratch."""
    kind = np.uint16 if rows.n_vars <= 2**16 else np.int32
    return Rows(rows.data, rows.indices.astype(kind), rows.indptr, rows.n_vars, rows.codes)


def cut(n: int, size: int) -> list[int]:
    """Where each batch of so many cells starts, and the last one ends."""
    return [*range(0, n, size), n]


def scaled(
    rows: Rows, edges: list[int], scale: Any, *, again: bool = False, gene_dropout: float = 0.0
) -> Iterator[Any]:
    """Batches made ahead of the solver, as training makes them; `again` and again without end."""

    def once() -> Served:
        for start, stop in pairwise(edges):
            yield 0, np.arange(start, stop), rows.slice(start, stop)

    served = chain.from_iterable(once() for _ in repeat(None)) if again else once()
    codes = rows.codes
    assert codes is not None  # noqa: S101 - for the type checker
    return (batch.cells for batch in batches(served, codes, scale, gene_dropout=gene_dropout))


def timed(
    take: Callable[[T], Any], items: Iterable[T], at_least_s: float, finish: Callable[[], Any]
) -> dict[str, float]:
    """Take items until that took long enough, and finish; the seconds and the cells of it."""
    cells, start, cpu_start = 0, time.perf_counter(), time.process_time()
    for item in items:
        take(item)
        cells += item.n_obs
        if time.perf_counter() - start >= at_least_s:
            break
    finish()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu, "cells": cells}


class Trainer:
    """Makes solvers of one kind, on the CPU or a device, and the cells that they take.

    Parameters
    ----------
    rule
        How cells are scaled, the genes that most express kept apart.
    device
        Where; None for the engine of the CPU.
    options
        As of `SGD`.
    """

    def __init__(
        self,
        rule: Scaler,
        n_classes: int,
        schedules: list[Schedule],
        device: Device | None,
        threads: Threads,
        **options: Any,
    ) -> None:
        self.scale: Any = rule if device is None else DeviceScaler(rule, device)
        self._given, self._device, self._threads = (
            (n_classes, rule.shift, schedules),
            device,
            threads,
        )
        self._options = {"dtype": rule.dtype, **options}

    def new(self) -> Any:
        """A solver that has taken no step."""
        n_classes, shift, schedules = self._given
        if self._device is None:
            return SGD(*self._given, threads=self._threads, **self._options)
        return DeviceSGD(self._device, n_classes, len(shift), schedules, **self._options)


def schedule(rule: Scaler, rows: Rows) -> Schedule:
    """Steps of `step="auto"`: 1 / |z|², |z|² being the mean over some cells."""
    square = rule(rows.slice(0, min(1000, rows.n_obs))).mean_square()
    return Schedule("constant", 1e-4, 1 / square)


def sgd(job: dict[str, Any]) -> Iterator[Any]:
    """Take one step a cell, from batches in host memory, which are scaled under the clock."""
    device = device_of(job["device"])
    with Threads(job["n_jobs"]) as threads, within(device, threads):
        rows = expression(job)
        rule = Genes.of(rows, threads).scaler(job["dtype"], apart=True)
        steps = [schedule(rule, rows)]
        trainer = Trainer(
            rule, job["classes"], steps, device, threads, average=job["average"]
        )  # fmt: skip

        def finish() -> None:
            if device is not None:
                floors.finish(device)

        def compared() -> Any:
            solver, n = trainer.new(), min(job["compared"], rows.n_obs)
            for cells in scaled(rows, cut(n, job["batch_size"]), trainer.scale):
                solver.partial_fit(cells)
            return solver.state()

        compared()  # compiles
        solver = trainer.new()
        every = cut(rows.n_obs, job["batch_size"])
        endless = scaled(rows, every, trainer.scale, again=True)
        yield
        found = timed(solver.partial_fit, endless, job["at_least_s"], finish)
        entries = len(rows.data) / rows.n_obs
        yield found | _floors(
            job,
            found,
            floors.sgd(len(rule.shift), _columns(job), entries, job["dtype"], job["average"]),
        )
        state = compared()
        coef, intercept = state.scoring
        yield {"coef": coef[_some(coef)], "intercept": intercept, "steps": state.t - 1}


def _columns(job: dict[str, Any]) -> int:
    return 1 if job["classes"] == 2 else int(job["classes"])


def _some(columns: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, len(columns) - 1, _COMPARED).astype(np.int64))


def _floors(job: dict[str, Any], found: dict[str, float], work: floors.Work) -> dict[str, Any]:
    card = card_of(job)
    return {} if card is None else floors.figures(work, card, found["cells"] / found["seconds"])


class Gradients:
    """Cells in tiles, and a point at which loss and slope are summed over them.

    Parameters
    ----------
    rows, rule
        Stored cells with codes, and how they are scaled.
    """

    def __init__(self, rows: Rows, rule: Scaler, n_classes: int) -> None:
        codes = rows.codes
        assert codes is not None  # noqa: S101 - for the type checker
        self.scaled, self._rule = rule(rows).rows, rule
        self.classes = column_classes(n_classes)
        names = np.arange(n_classes).astype(object)
        self.weights = problem_weights(None, names, np.bincount(codes, minlength=n_classes))
        rng = np.random.default_rng(1)
        self.W = rng.normal(0, 1e-2, (len(rule.shift), len(self.classes)))
        self.constant = rng.normal(size=len(self.classes)) - self.W.T @ rule.shift

    def matrix(self) -> sp.csr_array[Any]:
        """The cells in float64; without the shift, which is in `constant`."""
        rows = self.scaled
        parts = rows.data.astype(np.float64), rows.indices.astype(np.int32), rows.indptr
        found = sp.csr_array(parts, shape=(rows.n_obs, len(self._rule.shift)))
        found.sort_indices()
        return found

    def tiles(self) -> Tiles:
        """The cells, by gene; to be closed."""
        tiles = Tiles(len(self._rule.shift), self._rule.dtype, np.inf, None)
        tiles.append(self.scaled)
        return tiles

    def sums(self, tiles: Tiles, device: Device | None, threads: Threads) -> Sums:
        """What passes over them."""
        if device is None:
            return TileSums(tiles, self.weights, threads)
        from streamtrain.gpu.logistic import DeviceSums

        return DeviceSums(device, tiles, self.weights, self.classes)

    def __call__(self, sums: Sums) -> tuple[NDArray[np.float64], ...]:
        """Pass once: loss, slope, total and bend of each column."""
        columns = np.arange(len(self.classes))
        return sums(columns, self.W, self.constant, lambda _: None)


def gradient(job: dict[str, Any]) -> Iterator[Any]:
    """Pass over scaled cells again and again, which stay on the device."""
    device = device_of(job["device"])
    with Threads(job["n_jobs"]) as threads, within(device, threads):
        rows = expression(job)
        rule = Genes.of(rows, threads).scaler(job["dtype"])

        def passes(rows: Rows) -> tuple[Gradients, Tiles, Sums]:
            point = Gradients(rows, rule, job["classes"])
            tiles = point.tiles()
            return point, tiles, point.sums(tiles, device, threads)

        point, tiles, sums = passes(rows)
        with tiles:
            point(sums)  # compiles, and uploads
            yield
            found = timed(lambda _: point(sums), repeat(tiles), job["at_least_s"], lambda: None)
        work = _gradient_work(job, rows, rule) if device is not None else None
        yield found | ({} if work is None else _floors(job, found, work))
        point, tiles, sums = passes(rows.slice(0, min(job["compared"], rows.n_obs)))
        with tiles:
            yield sampled(*point(sums))


def _gradient_work(job: dict[str, Any], rows: Rows, rule: Scaler) -> floors.Work:
    from streamtrain.gpu.logistic import CELLS

    entries = len(rows.data) / rows.n_obs
    return floors.gradient(len(rule.shift), _columns(job), entries, job["dtype"], CELLS)


def sampled(
    loss: NDArray[np.float64], slope: NDArray[np.float64], *others: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Evidence of a pass; the slopes, (genes, columns), of some columns."""
    named = zip(("total", "bend"), others, strict=False)
    return {"loss": loss, "slope": np.ascontiguousarray(slope[:, _some(loss)]), **dict(named)}


@contextmanager
def watched(device: Device) -> Iterator[floors.Stopwatch]:
    """Time what SGD has a device do, from the first kernel of each batch to its last."""
    watch, fit = floors.Stopwatch(device), DeviceSGD.partial_fit

    def partial_fit(self: DeviceSGD, *args: Any, **options: Any) -> DeviceSGD:
        with watch:
            return fit(self, *args, **options)

    with patch.object(DeviceSGD, "partial_fit", partial_fit):
        yield watch


@contextmanager
def on(kind: str) -> Iterator[Any]:
    """Give what `train` takes as device, which for the stand-in is a GPU that is none."""
    if kind != STAND_IN:
        yield kind
        return
    with patch.object(Device, "gpu", lambda _memory=None: device_of(STAND_IN)):
        yield "gpu"


def whole(job: dict[str, Any]) -> Iterator[Any]:
    """Train from a store, file to model.

    `busy_share` is the share of the whole job, reading and scaling included, that the device works
    on batches, from the first kernel of each to the last, by CUDA's events.
    """
    from streamtrain import train

    device = device_of(job["device"])
    yield
    with (
        nullcontext() if device is None else watched(device) as watch,
        on(job["device"]) as there,
    ):
        start = time.perf_counter()
        model = train(
            job["store"], "cell_type", normalize="log1p", memory=job["memory"], progress=False,
            use_SGD=True, mini_batch=True, step="auto", dtype=job["dtype"], n_jobs=job["n_jobs"],
            device=there, **job["settings"],
        )  # fmt: skip
        seconds = time.perf_counter() - start
    found: dict[str, Any] = {"seconds": seconds, "cells": int(model.dataset.attrs["t"]) - 1}
    if watch is not None:
        found["busy_share"] = watch.seconds / seconds
    yield found
    coef = model.dataset["coef"].to_numpy()
    intercept = model.dataset["intercept"].to_numpy()
    yield {"coef": coef[_some(coef)], "intercept": intercept, "steps": np.array(found["cells"])}
