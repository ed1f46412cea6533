"""A device in; how far what it computes is from the CPU's, one check after the other, out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.gpu import STAND_IN, Gradients, Trainer, cut, kept, on, scaled, schedule
from benchmarks.simulated import Genes, by_class
from streamtrain.gpu.cells import DeviceScaler
from streamtrain.gpu.device import Device
from streamtrain.gpu.sgd import DeviceSGD
from streamtrain.kernels import predict as kernel
from streamtrain.rows import Rows
from streamtrain.sampling import dropped_genes
from streamtrain.scaling import Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import LOSSES, Schedule
from streamtrain.threads import Threads

DTYPES = ("float32", "float64")
# Relative, by the norm. A kernel rounds as its reference, but for fused multiply-adds; products sum
# in another order, of which many steps make more: on NumPy 7e-7 of float32 and 5e-15 of float64.
# Tiles rounded to TF32, which no product should be in, make 1e-4 to 4e-3.
KERNEL = {"float32": 1e-5, "float64": 1e-12}
TRAINED = {"float32": 2e-5, "float64": 1e-10}
SETS = ("pbmc3k", "mouse_bm_paul15", "pancreas_4studies")
LABELS = 0.999  # least share of real cells that get the same label from both models


@dataclass(frozen=True)
class Check:
    """How far a device is from the CPU, and how far it may be; NaN is too far."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is near enough."""
        return bool(self.difference <= self.tolerance)


def distance(found: Any, expected: Any) -> float:
    """Norm of the difference over that of what was expected; infinite for another shape."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    if found.shape != expected.shape:
        return float("inf")
    largest = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (largest or 1.0))


def apart(found: State, expected: State) -> float:
    """Largest `distance` of the weights of two models; infinite where they took other steps."""
    worst = []
    for name in ("t", "n_averaged", "coef", "intercept", "average_coef", "average_intercept"):
        a, b = getattr(found, name), getattr(expected, name)
        if a is None and b is None:
            continue
        counts = name in ("t", "n_averaged")
        same = a is not None and b is not None and (not counts or np.array_equal(a, b))
        worst.append(distance(a, b) if same else np.inf)
    return float(np.max(worst))


def tiles(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Dense tiles of scaled cells, with all genes or without some, by positions of either type."""
    rows = kept(by_class(300, sizes["genes"], 3))
    with Threads(1) as threads:
        genes = Genes.of(rows, threads)
    for dtype in DTYPES:
        rule = genes.scaler(dtype, apart=True)
        dropped = dropped_genes(len(rule.shift), 0.2, 0, 0)
        for kind in (np.uint16, np.int32):
            part = replace(rows, indices=rows.indices.astype(kind))
            for name, one in (("", rule), (", gene_dropout", rule.without(dropped))):
                found, expected = (_tile(d, one, part) for d in (device, Device(np)))
                what = f"tile, {dtype}, {np.dtype(kind).name}{name}"
                yield Check(what, distance(found, expected), KERNEL[dtype])


def _tile(device: Device, rule: Scaler, rows: Rows) -> Any:
    cells = DeviceScaler(rule, device)(rows)
    cells.wait()
    found = device.to_host(cells.tile(7, 263))
    cells.release()
    return found


def blocks(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """The steps of one block by every loss, tracked and averaged or not, from weights in use."""
    rows = kept(by_class(256, sizes["genes"], 7))
    with Threads(1) as threads:
        genes = Genes.of(rows, threads)
    for dtype in DTYPES:
        rule = genes.scaler(dtype, apart=True)
        rng = np.random.default_rng(0)
        coef = rng.normal(0, 1e-2, (7, len(rule.shift))).astype(dtype)
        state = State(coef, rng.normal(size=7), t=5.0)
        for loss in LOSSES:
            for n, epochs, average in ((256, False, False), (255, True, True), (1, True, False)):
                one = _Block(
                    rule, rows.slice(0, n), schedule(rule, rows), state, loss, epochs, average
                )
                pairs = zip(one(device), one(Device(np)), strict=True)
                difference = np.max([distance(a, b) for a, b in pairs])
                what = f"block of {n}, {loss}, {dtype}"
                yield Check(what, difference, KERNEL[dtype])


@dataclass(frozen=True)
class _Block:
    rule: Any
    rows: Rows
    schedule: Schedule
    state: State
    loss: Any
    epochs: bool
    average: bool

    def __call__(self, device: Device) -> list[Any]:
        """Weights and sums after the block."""
        solver = DeviceSGD(
            device, 7, len(self.rule.shift), self.schedule, state=self.state, loss=self.loss,
            epochs=self.epochs, average=self.average, dtype=self.rule.dtype, intercept_rate=0.5,
            class_weight=np.linspace(0.5, 2, 7),
        )  # fmt: skip
        solver.partial_fit(DeviceScaler(self.rule, device)(self.rows))
        found = solver.state()
        kept = [found.coef, found.intercept, *(solver.end_epoch() if self.epochs else ())]
        return [*kept, found.average_coef, found.average_intercept] if self.average else kept


def sgd(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Runs beside the engine of the CPU: classes, averages, models, dropped genes, freezing."""
    for n_classes in sizes["classes"]:
        for dtype in DTYPES:
            for average in (False, True):
                run = _Run(n_classes, dtype, sizes, average=average)
                yield run.check(device, ", averaged" if average else "")
    for dtype in DTYPES:
        yield _Run(10, dtype, sizes, average=sizes["cells"] // 2).check(device, ", averaged later")
        yield _Run(10, dtype, sizes, gene_dropout=0.2).check(device, ", gene_dropout")
        yield _Run(10, dtype, sizes, models=3, average=True).check(device, ", three models")
        yield _Run(10, dtype, sizes, freezes=True, average=True).check(
            device, ", frozen and slowed"
        )


@dataclass(frozen=True)
class _Run:
    n_classes: int
    dtype: str
    sizes: dict[str, Any]
    average: bool | int = False
    gene_dropout: float = 0.0
    models: int = 1
    freezes: bool = False

    def check(self, device: Device, what: str) -> Check:
        """Train on the device and on the CPU."""
        rows = kept(by_class(self.sizes["cells"], self.sizes["genes"], self.n_classes))
        found, expected = (self._trained(rows, where) for where in (device, None))
        difference = np.max([apart(a, b) for a, b in zip(found, expected, strict=True)])
        return Check(f"SGD, {self.n_classes} classes, {self.dtype}{what}", difference,
                     TRAINED[self.dtype])  # fmt: skip

    def _trained(self, rows: Rows, device: Device | None) -> list[State]:
        with Threads(2) as threads:
            rule = Genes.of(rows, threads).scaler(self.dtype, apart=True)
            first = schedule(rule, rows)
            steps = [
                replace(first, eta0=first.eta0 / 2**i, alpha=10.0**-i) for i in range(self.models)
            ]
            if self.freezes:
                steps = [replace(first, learning_rate="adaptive")]
            trainer = Trainer(rule, self.n_classes, steps, device, threads, average=self.average)
            solver, at = trainer.new(), 0
            taken = np.random.default_rng(2).random((self.models, rows.n_obs)) < 0.7
            for cells in scaled(
                rows, cut(rows.n_obs, 700), trainer.scale, gene_dropout=self.gene_dropout
            ):
                some = taken[:, at : at + cells.n_obs] if self.models > 1 else None
                solver.partial_fit(cells, taken=some)
                at += cells.n_obs
                if self.freezes and at == 700:
                    solver.slow(np.array([0, 4]))
                    solver.freeze(np.array([2, 5]))
            return [solver.state(model) for model in range(self.models)]


def sums(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Loss and slope of logistic regression, from memory and from what stays on the device."""
    for n_classes in sizes["classes"]:
        rows = kept(by_class(sizes["cells"], sizes["genes"], n_classes))
        for dtype in DTYPES:
            with Threads(2) as threads:
                rule = Genes.of(rows, threads).scaler(dtype)
                point = Gradients(rows, rule, n_classes)
                with point.tiles() as held:
                    expected = point(point.sums(held, None, threads))
                    ours = point.sums(held, device, threads)
                    for turn in ("first", "second"):
                        pairs = zip(point(ours), expected, strict=True)
                        difference = np.max([distance(a, b) for a, b in pairs])
                        what = f"sums, {n_classes} classes, {dtype}, {turn} pass"
                        yield Check(what, difference, TRAINED["float64"])


def scores(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Scores of cells under a model, as prediction finds them, beside the kernel of the CPU."""
    from streamtrain.gpu.scores import DeviceScores

    for n_classes in sizes["classes"]:
        rows = kept(by_class(sizes["cells"], sizes["genes"], n_classes))
        with Threads(1) as threads:
            rule = Genes.of(rows, threads).scaler("float64")
        rng = np.random.default_rng(5)
        weights = rng.normal(0, 0.1, (len(rule.shift), n_classes))
        intercept, cells = rng.normal(size=n_classes), rule(rows).rows
        expected = np.empty((rows.n_obs, n_classes))
        constant = intercept - weights.T @ rule.shift
        kernel.scores(
            cells.data, cells.indices, cells.indptr, weights, constant, 0, rows.n_obs, expected
        )
        found = DeviceScores(DeviceScaler(rule, device), weights, intercept)(rows)
        yield Check(f"scores, {n_classes} classes", distance(found, expected), TRAINED["float64"])


def slots(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Uploads whose buffers are used again, of any sizes, while the device is behind.

    Each is told by its sum, found on the device after it had other work to do; the arrays of the
    host are overwritten as soon as they are sent.
    """
    xp, rng = device.xp, np.random.default_rng(3)
    busy = xp.ones((sizes["busy"], sizes["busy"]), np.float32)
    due, found = [], []
    under_way: deque[Any] = deque()

    def settle() -> None:
        sent = under_way.popleft()
        arrays = sent.wait()
        xp.matmul(busy, busy)
        found.append(sum(xp.asarray(a, np.float64).sum() for a in arrays))
        sent.release()

    for _ in range(sizes["uploads"]):
        length = int(rng.integers(0, sizes["longest"]))
        values = rng.integers(0, 1000, length).astype(np.int32)
        half = rng.integers(0, 1000, length // 2).astype(np.uint16)
        due.append(float(values.sum()) + float(half.sum(dtype=np.int64)))
        under_way.append(device.send(values, half))
        if xp is not np:  # NumPy's are the arrays themselves
            values[:] = half[:] = -1 % 2**16
        if len(under_way) == 3:
            settle()
    while under_way:
        settle()
    wrong = sum(float(device.to_host(a)) != b for a, b in zip(found, due, strict=True))
    yield Check("uploads that arrived otherwise", wrong, 0)


def uneven(device: Device, sizes: dict[str, Any]) -> Iterator[Check]:
    """Training on batches of any sizes, made ahead in another thread, as training has them."""
    rows = kept(by_class(sizes["cells"], sizes["genes"], 5))
    inner = np.random.default_rng(4).integers(1, rows.n_obs, 40)
    edges = [0, *np.unique(inner).tolist(), rows.n_obs]
    states = []
    with Threads(2) as threads:
        rule = Genes.of(rows, threads).scaler("float64", apart=True)
        for where in (device, None):
            trainer = Trainer(rule, 5, [schedule(rule, rows)], where, threads)
            solver = trainer.new()
            for cells in scaled(rows, edges, trainer.scale):
                solver.partial_fit(cells)
            states.append(solver.state())
    yield Check("SGD, batches of any sizes", apart(*states), TRAINED["float64"])


def sets() -> list[Path]:
    """Those of `SETS` that are in the folder DATA."""
    folder = os.environ.get("DATA")
    paths = [Path(folder, f"{name}.h5ad") for name in SETS] if folder else []
    return [path for path in paths if path.exists()]


def real(device: Device, sizes: dict[str, Any], sets: Sequence[Path]) -> Iterator[Check]:
    """Models of real sets, of SGD in both types and of logistic regression."""
    from streamtrain import predict, train

    kind = STAND_IN if device.xp is np else "gpu"
    sgd = {"use_SGD": True, "mini_batch": True, "epochs": sizes["epochs"], "step": "auto"}
    exact, wide = {"dtype": "float64"}, 1e-3
    ways: list[tuple[str, float, dict[str, Any]]] = [
        ("SGD, float32", TRAINED["float32"], sgd),
        ("SGD, float64", TRAINED["float64"], sgd | exact),
        # Its first steps are thousands of times as large, and magnify rounding: 2e-5 on NumPy.
        ("SGD, CellTypist's, float64", wide, sgd | exact | {"step": None, "average": True}),
        # It ends where the slope is small, by way of other roundings: 8e-5 on NumPy.
        ("logistic regression", wide, {"max_iter": sizes["max_iter"]}),
    ]
    for path in sets:
        for way, tolerance, options in ways:
            models = []
            for where in (kind, "cpu"):
                with on(where) as there:
                    models.append(train(path, "cell_type", normalize="log1p", progress=False,
                                        device=there, **options))  # fmt: skip
            found, expected = (m.dataset["coef"].to_numpy() for m in models)
            yield Check(f"{path.stem}, {way}", distance(found, expected), tolerance)
            tables: list[Any] = []
            for where, model in zip((kind, "cpu"), models, strict=True):
                with on(where) as there:
                    tables.append(predict(model, path, normalize="log1p", progress=False,
                                          device=there))  # fmt: skip
            a, b = (t["predicted_labels"].to_numpy() for t in tables)
            share = float(np.mean(a != b))
            yield Check(f"{path.stem}, {way}: other labels", share, 1 - LABELS)
