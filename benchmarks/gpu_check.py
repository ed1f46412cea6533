"""All that a GPU must show, in one script of less than ten minutes: it compiles, checks and times.

    python -m benchmarks.gpu_check --out figures

It is for a bare machine: a checkout of this repository, Python and a GPU. With CuPy (cupy-cuda12x
or cupy-cuda13x, by the driver), numpy, numba with llvmlite, scipy, pandas with python-dateutil,
pytz and tzdata, pyarrow and psutil it does all but real sets and whole jobs. These need anndata,
array-api-compat, deflate, donfig, google-crc32c, h5py, isal, legacy-api-wrap, natsort, numcodecs,
packaging, pyyaml, scikit-learn with joblib and threadpoolctl, scverse-misc, tqdm,
typing-extensions, xarray and zarr, and the version of streamtrain, which its wheel brings. Where
nothing can be downloaded, make wheels elsewhere, for the Python of that machine, by

    pip wheel --no-deps -w wheels .
    pip download --only-binary=:all: --no-deps -d wheels --python-version 3.12 NAME ...

(`--platform manylinux_2_28_x86_64` and the like name its system), and there, in the checkout,

    pip install --no-index --no-deps --target /tmp/site wheels/*.whl
    PYTHONPATH=/tmp/site DATA=data python -m benchmarks.gpu_check --out figures

Real sets are read from the folder in DATA: pbmc3k.h5ad and others of `agreement.SETS`, with raw
counts in X and obs.cell_type. Without a GPU, `--device numpy` runs the same code on NumPy, small,
in seconds.

Checks compare the device with the CPU (see `agreement`); if one fails, the status is 1. Figures are
cells a second beside the two floors of `floors`, with the targets that there are. What is done is
printed and written, as JSON lines, at once; what the time does not suffice for is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks import agreement, floors
from benchmarks.agreement import Check
from benchmarks.child import versions
from benchmarks.contenders import gpu
from benchmarks.contenders.gpu import STAND_IN
from benchmarks.simulated import Genes
from streamtrain.errors import InputError
from streamtrain.gpu.cells import TILE, DeviceScaler
from streamtrain.gpu.device import Device, _module, source
from streamtrain.gpu.products import Products
from streamtrain.kernels import blocks
from streamtrain.threads import Threads

SIZES: dict[str, dict[str, Any]] = {
    "gpu": {
        "genes": 3_000, "cells": 3_000, "classes": [2, 10, 100],
        "busy": 2_048, "uploads": 2_000, "longest": 400_000,
        "epochs": 3, "max_iter": 1_000, "gradient_cells": 65_536,
        "timed": [10, 100, 400, 1_000], "averaged": 100,
        "job": {"genes": 30_000, "cells": 16_384, "density": 2_500 / 30_000, "batch_size": 1_000,
                "at_least_s": 2.0, "compared": 1_000, "megabytes": 2_000, "order": 8_192},
        "store": {"n_obs": 40_000, "n_vars": 30_000, "n_types": 100, "n_donors": 4},
        "settings": {"batch_size": 1_000, "batch_number": 40, "epochs": 5},
    },
    STAND_IN: {
        "genes": 150, "cells": 600, "classes": [2, 10],
        "busy": 8, "uploads": 20, "longest": 1_000,
        "epochs": 1, "max_iter": 10, "gradient_cells": 600,
        "timed": [3], "averaged": 3,
        "job": {"genes": 200, "cells": 600, "density": 0.1, "batch_size": 200, "at_least_s": 1e-3,
                "compared": 200, "megabytes": 1, "order": 50},
        "store": {"n_obs": 300, "n_vars": 200, "n_types": 3, "n_donors": 2},
        "settings": {"batch_size": 50, "batch_number": 2, "epochs": 1},
    },
}  # fmt: skip
TARGETS = {"SGD, 100 classes": ("cells_per_s", 500_000.0), "SGD, 100 classes, CPU": ("times", 20.0),
           "gradient": ("share", 0.6)}  # fmt: skip
_OURS = ("benchmarks", "cupy", "streamtrain")  # of which no module may be missing
_CPU_JOBS = 2  # threads of the CPU engine that the target is over


@dataclass(frozen=True)
class Figures:
    """What was measured, and whether it is what it should be; None where there is no target."""

    name: str
    figures: dict[str, Any]
    met: bool | None = None


Found = Check | Figures
Section = Callable[[Device, dict[str, Any]], Iterator[Found]]


def compiled(device: Device, _sizes: dict[str, Any]) -> Iterator[Found]:
    """Every kernel, which must have a reference on the CPU; what it takes of a processor."""
    names = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)', source())
    bare = {re.sub(r"_u?int\d+$", "", name) for name in names}
    yield Check("kernels without a reference", sum(not hasattr(blocks, n) for n in bare), 0)
    if device.xp is np:
        return
    for dtype in agreement.DTYPES:
        start = time.perf_counter()
        for name in names:
            took = _module(device.xp, dtype).get_function(name).attributes
            figures = {key: took[key] for key in ("num_regs", "local_size_bytes")}
            yield Figures(f"{name}, {dtype}", figures)
        yield Figures(f"compiling, {dtype}", {"seconds": time.perf_counter() - start})


def rates(_device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """What the card does at best."""
    card = gpu.card_of(_job(sizes, 2))
    if card is not None:
        yield Figures(card.name, {key: rate for key, rate in asdict(card).items() if key != "name"})


def parts(device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """Microseconds a cell of each part of a block of SGD, one by one, and of the host."""
    job, xp = _job(sizes, 2), device.xp
    with Threads(-1) as threads, device.within(threads):
        rows = gpu.expression(job)
        rule = Genes.of(rows, threads).scaler(np.float32, apart=True)
        batch, scale = rows.slice(0, min(4 * TILE, rows.n_obs)), DeviceScaler(rule, device)
        cells = scale(batch)
        n = min(TILE, batch.n_obs)
        cells.wait()
        Z, product = cells.tile(0, n), Products(xp)
        gram = xp.empty((n, n), np.float32)
        alone = {"tile": lambda: cells.tile(0, n, Z), "gram": lambda: product(Z, Z.T, gram)}
        yield Figures("parts", {k: 1e6 * floors.fastest(device, f) / n for k, f in alone.items()})
        for n_classes in sizes["timed"]:
            U, V = (xp.ones((m, n_classes), np.float32) for m in (Z.shape[1], n))
            products = {"scores": partial(product, Z, U, V), "update": partial(product, Z.T, V, U)}
            found = {k: 1e6 * floors.fastest(device, f) / n for k, f in products.items()}
            steps = [gpu.schedule(rule, rows)]
            solver = gpu.Trainer(rule, n_classes, steps, device, threads).new()
            found |= _of_batches(device, solver, scale, batch)
            yield Figures(f"parts, {n_classes} classes", found)


def _of_batches(device: Device, solver: Any, scale: Any, batch: Any) -> dict[str, float]:
    """Fewest microseconds a cell to send a batch, to tell of its steps, and to have them taken."""
    seconds = []
    for _ in range(5):
        floors.finish(device)
        marks = [time.perf_counter()]
        cells = scale(batch)
        marks.append(time.perf_counter())
        solver.partial_fit(cells)
        marks.append(time.perf_counter())
        floors.finish(device)
        marks.append(time.perf_counter())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[1]))
    least = 1e6 * np.min(seconds, axis=0) / batch.n_obs
    names = "host: send", "host: steps", "steps"
    return {name: float(one) for name, one in zip(names, least, strict=True)}


def _job(sizes: dict[str, Any], n_classes: int, **options: Any) -> dict[str, Any]:
    plain = {"device": sizes["device"], "classes": n_classes, "dtype": "float32", "n_jobs": -1,
             "average": False}  # fmt: skip
    return {**plain, **sizes["job"], **options}


def _figures(
    contender: Callable[[dict[str, Any]], Iterator[Any]], job: dict[str, Any]
) -> dict[str, Any]:
    """What a contender of the suite found, in this process."""
    work = contender(job)
    next(work)
    found: dict[str, Any] = next(work)
    del work  # with the evidence that it has not gathered
    return {**found, "cells_per_s": found["cells"] / found["seconds"]}


def _met(device: Device, kind: str, figures: dict[str, Any]) -> bool | None:
    """Whether a card reaches a target; None where there is none."""
    if kind not in TARGETS or device.xp is np:
        return None
    key, target = TARGETS[kind]
    return bool(figures[key] >= target)


def sgd_times(device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """Exact steps from batches in host memory; those of the CPU on two cores are its target's."""
    ours: dict[str, Any] = {}
    for n in sizes["timed"]:
        name = f"SGD, {n} classes"
        found = ours[name] = _figures(gpu.sgd, _job(sizes, n))
        yield Figures(name, found, _met(device, name, found))
    n = sizes["averaged"]
    for name, options in (("averaged", {"average": True}), ("float64", {"dtype": "float64"})):
        yield Figures(f"SGD, {n} classes, {name}", _figures(gpu.sgd, _job(sizes, n, **options)))
    for n in sizes["timed"]:
        name = f"SGD, {n} classes"
        job = _job(sizes, n, device=gpu.CPU, n_jobs=_CPU_JOBS)
        found = _figures(gpu.sgd, job | {"cells": min(job["cells"], 4_000)})
        found["times"] = ours[name]["cells_per_s"] / found["cells_per_s"]
        met = _met(device, f"{name}, CPU", found)
        yield Figures(f"{name}, CPU, {_CPU_JOBS} threads", found, met)


def gradient_times(device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """Passes of logistic regression over cells that stay on the device."""
    for n in sizes["timed"]:
        found = _figures(gpu.gradient, _job(sizes, n, cells=sizes["gradient_cells"]))
        yield Figures(f"gradient, {n} classes", found, _met(device, "gradient", found))


def whole(_device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """A job from a zarr store, after a small one that compiles; see `contenders.gpu.whole`."""
    from streamtrain import simulate

    with tempfile.TemporaryDirectory(prefix="streamtrain-gpu-") as folder:
        job = _job(sizes, sizes["store"]["n_types"], memory="8GB", settings=sizes["settings"])
        small = SIZES[STAND_IN]
        for name, one in (("small", small), ("whole job", sizes)):
            store = simulate(Path(folder, f"{name}.zarr"), progress=False, **one["store"])
            job |= {"store": str(store), "settings": one["settings"]}
            found = _figures(gpu.whole, job)
            if name != "small":
                yield Figures(f"{name}, {one['store']['n_obs']:,} cells from zarr", found)


def real(device: Device, sizes: dict[str, Any]) -> Iterator[Found]:
    """Models of the real sets that are there."""
    sets = agreement.sets()
    yield Figures("sets in the folder DATA", {"sets": len(sets)})
    yield from agreement.real(device, sizes, sets)


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("compiling", compiled), ("tiles", agreement.tiles), ("blocks", agreement.blocks),
    ("SGD", agreement.sgd), ("uploads", agreement.slots), ("uneven batches", agreement.uneven),
    ("sums", agreement.sums), ("scores", agreement.scores), ("rates", rates),
    ("SGD, timed", sgd_times), ("gradient, timed", gradient_times), ("parts", parts),
    ("whole job", whole), ("real sets", real),
)  # fmt: skip


@dataclass
class Report:
    """Prints and writes what is found, as it is found."""

    file: TextIO | None
    failed: list[str] = field(default_factory=list)

    def line(self, section: str, kind: str, name: str, words: str, **record: Any) -> None:
        """Tell of one thing."""
        print(f"{section:16} {kind:7} {name:58} {words}", flush=True)
        if self.file is not None:
            self.file.write(json.dumps({"section": section, "kind": kind, "name": name, **record}))
            self.file.write("\n")
            self.file.flush()

    def found(self, section: str, one: Found) -> None:
        """Tell of a check or of figures."""
        if isinstance(one, Check):
            if not one.ok:
                self.failed.append(one.name)
            words = f"{one.difference:.1e} of {one.tolerance:.0e}"
            record = {"difference": float(one.difference), "tolerance": one.tolerance, "ok": one.ok}
            self.line(section, "ok" if one.ok else "FAILED", one.name, words, **record)
            return
        words = ", ".join(
            f"{k} {v:,.4g}" for k, v in one.figures.items() if not isinstance(v, dict)
        )
        target = {None: "", True: "; target met", False: "; TARGET MISSED"}[one.met]
        self.line(section, "figures", one.name, words + target, met=one.met, **one.figures)

    def lost(self, section: str, why: str) -> None:
        """Tell of a section that ended in an error."""
        self.failed.append(section)
        self.line(section, "FAILED", section, why, error=why)


def run(
    device: Device, sizes: dict[str, Any], report: Report, seconds: float, names: Sequence[str]
) -> None:
    """Work through the sections until the time is up; an error ends its own section alone."""
    until = time.monotonic() + seconds
    for name, section in SECTIONS:
        if name not in names:
            continue
        began = time.monotonic()
        try:
            for one in section(device, sizes) if began < until else ():
                report.found(name, one)
                if time.monotonic() > until:
                    break
        except Exception as error:
            missing = (getattr(error, "name", None) or "").partition(".")[0]
            if not isinstance(error, ModuleNotFoundError) or missing in _OURS:
                report.lost(name, traceback.format_exc())
            else:
                report.line(name, "left", f"it needs {missing}, which is not installed here", "")
        took = time.monotonic() - began
        left = "; what was left of it is left out" if time.monotonic() > until else ""
        report.line(name, "took", f"{took:,.1f} s{left}", "", seconds=took)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 if a check fails or there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--out", type=Path, help="folder for gpu_check.jsonl")
    parser.add_argument("--device", choices=tuple(SIZES), default="gpu")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which to stop")
    every = [name for name, _section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="what to do")
    given = parser.parse_args(arguments)
    try:
        device = gpu.device_of(given.device)
    except InputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    assert device is not None  # noqa: S101 - for the type checker
    file = None
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        file = (given.out / "gpu_check.jsonl").open("w", encoding="utf-8")
    report = Report(file)
    try:
        report.line("machine", "is", floors.name(device), "", versions=versions())
        run(
            device,
            {"device": given.device, **SIZES[given.device]},
            report,
            given.seconds,
            given.only,
        )
    finally:
        if file is not None:
            file.close()
    print(f"{len(report.failed)} failed: {report.failed}" if report.failed else "all checks passed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
