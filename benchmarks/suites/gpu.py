"""Training on a GPU: ours beside the two floors of the card, our CPU engine, PyTorch and cuML.

Over numbers of classes: exact steps of SGD from batches in host memory, and gradients of logistic
regression; and a whole job from a store, with the share of it that the device works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atlases import atlas
from benchmarks.contenders.gpu import CPU, STAND_IN
from benchmarks.environments import NoDeviceError
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU as CPU_SECONDS
from benchmarks.report import RATE, Column, Line, View, bars
from streamtrain.errors import InputError
from streamtrain.gpu.device import Device

_GPU = "benchmarks.contenders.gpu"
_ON_CPU = {"device": CPU}
SGD = (
    Contender("streamtrain", f"{_GPU}:sgd"),
    Contender("streamtrain, CPU", f"{_GPU}:sgd", options=_ON_CPU),
    Contender("PyTorch, a step a batch", "benchmarks.contenders.torch:sgd", needs="torch"),
)
GRADIENT = (
    Contender("streamtrain", f"{_GPU}:gradient"),
    Contender("streamtrain, CPU", f"{_GPU}:gradient", options=_ON_CPU),
    Contender("torch.sparse", "benchmarks.contenders.torch:gradient", needs="torch"),
    Contender("cuML, softmax", "benchmarks.contenders.cuml:gradient", needs="cuml"),
)
_ALL = {"n_jobs": -1}  # threads that read and decode
WHOLE = (
    Contender("streamtrain", f"{_GPU}:whole", options=_ALL),
    Contender("streamtrain, CPU", f"{_GPU}:whole", options=_ALL | _ON_CPU),
)
SAME = ("streamtrain", "torch.sparse")  # who must find what our CPU engine does
# Relative, by the norm. Sums are in another order: 3e-6 of float32 after 2,048 steps, on NumPy.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
TRAINING = ("batch_size", "batch_number", "epochs")


def cases(settings: dict[str, Any]) -> list[Case]:
    """Steps, gradients and whole jobs.

    Raises
    ------
    NoDeviceError
        There is no GPU that works.
    """
    _check(settings["device"])
    shape = {"genes": settings["genes"], "donors": 1}
    most = max(settings["cells"], settings["gradient_cells"])
    store = atlas("zarr", cells=most, cell_types=max(settings["classes"]), **shape)
    same = ("device", "genes", "at_least_s", "compared", "megabytes", "order", "n_jobs")
    plain = {key: settings[key] for key in (*same, "batch_size", "dtype")} | {
        "store": str(store), "density": 0.0, "average": False,
    }  # fmt: skip
    found = []
    for n in settings["classes"]:
        job = plain | {"classes": n, "cells": settings["cells"]}
        found.append(_case(f"SGD, {n} classes", job, "SGD", SGD))
        if n == settings["averaged"]:
            name = f"SGD, {n} classes, averaged"
            found.append(_case(name, job | {"average": True}, "SGD", SGD[:2]))
    for n in settings["classes"]:
        job = plain | {"classes": n, "cells": settings["gradient_cells"]}
        found.append(_case(f"gradient, {n} classes", job, "gradient", GRADIENT))
    return [*found, _whole(settings, plain)]


def _check(device: str) -> None:
    if device not in ("gpu", STAND_IN):
        raise InputError(
            f"device must be 'gpu', or {STAND_IN!r} for its stand-in on the CPU; got {device!r}"
        )
    if device == STAND_IN:
        return
    try:
        Device.gpu()
    except InputError as error:
        why = re.sub(r"[,;]( or)? leave out device$", "", str(error))
        raise NoDeviceError(
            f"suite gpu is for a machine with a GPU: {why}; --set device={STAND_IN} tries its code "
            "out on the CPU"
        ) from error


def _case(
    name: str, job: dict[str, Any], group: str, who: tuple[Contender, ...], **options: Any
) -> Case:
    return Case(name, job, who, about={"group": group}, **options)


def _whole(settings: dict[str, Any], plain: dict[str, Any]) -> Case:
    cells, types = settings["job_cells"], settings["job_classes"]
    shape = {"cell_types": types, "donors": settings["job_donors"]}
    store = str(atlas("zarr", cells=cells, genes=settings["genes"], **shape))
    small = str(atlas("zarr", cells=1_000, genes=500, cell_types=4, donors=4))
    job = plain | {
        "store": store, "memory": settings["memory"],
        "settings": {name: settings[name] for name in TRAINING},
    }  # fmt: skip
    few = {"batch_size": 100, "batch_number": 2, "epochs": 1}
    return _case(
        f"whole job, {cells:,} cells, {types} classes", job, "whole", WHOLE, files=(store,),
        warm_up=job | {"store": small, "settings": few},
    )  # fmt: skip


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every cell was a step, and what is the same work ended where our CPU engine ended."""
    ours = {contender.name: contender.options.get("device") for contender in case.contenders}
    expected = next((evidence[name][0] for name in evidence if ours[name] == CPU), None)
    for name, lines in done.items():
        for line, found in zip(lines, evidence.get(name, ()), strict=False):
            _sound(case, name, found)
            if name in SAME and expected is not None:
                line["difference"] = _difference(found, expected)
                tolerance = TOLERANCE["float64" if case.about["group"] == "gradient" else
                                      case.job["dtype"]]  # fmt: skip
                if not line["difference"] <= tolerance:
                    raise WrongWorkError(
                        f"{case.name}: {name} differs from the CPU by {line['difference']:.1e}, "
                        f"more than {tolerance:.0e}"
                    )


def _sound(case: Case, name: str, found: Evidence) -> None:
    for key, values in found.items():
        if not np.isfinite(values).all():
            raise WrongWorkError(f"{case.name}: {key} of {name} is not finite")
    job = case.job
    due = (
        np.prod([job["settings"][key] for key in TRAINING]) if "settings" in job
        else min(job["compared"], job["cells"])
    )  # fmt: skip
    for taken in np.unique(found.get("steps", due)):
        if taken != due:
            raise WrongWorkError(f"{case.name}: {name} took {taken:,.0f} steps of {due:,}")


def _difference(found: Evidence, expected: Evidence) -> float:
    """Largest relative difference of what both have."""
    both = found.keys() & expected.keys()
    return max(
        float(np.linalg.norm(found[key] - expected[key]) / np.linalg.norm(expected[key]))
        for key in both
    )


def card(lines: Sequence[Line]) -> list[str]:
    """Say what the floors were reckoned from: medians over the processes."""
    cards = [line["card"] for line in lines if "card" in line]
    if not cards:
        return []
    rates = {key: median(one[key] for one in cards) for key in cards[0] if key != "name"}
    return [
        f"{cards[0]['name']}: {rates['copied'] / 1e9:,.0f} GB/s in its memory, "
        f"{rates['uploaded'] / 1e9:,.1f} GB/s from pinned memory, products at "
        f"{rates['float32'] / 1e12:,.1f} (float32) and {rates['float64'] / 1e12:,.1f} (float64) "
        "TFLOP/s, as measured by each process. The floors are the cells a second at which a "
        "step or gradient would take all of that; the share is of the nearer one."
    ]


def rates(lines: Sequence[Line], view: View) -> Figure:
    """Draw the steps and gradients as bars; whole jobs stand in the table."""
    return bars([line for line in lines if line["group"] != "whole"], view)


VIEW = View(
    (
        RATE,
        Column("bytes_floor", "bytes' floor, cells/s"),
        Column("operations_floor", "operations' floor, cells/s"),
        Column("share", "of the nearer floor", "{:.0%}".format),
        Column("busy_share", "device busy, by its events", "{:.0%}".format),
        Column("difference", "differs from the CPU", "{:.0e}".format),
        CPU_SECONDS,
    ),
    "rate",
    rates,
    (card,),
)
