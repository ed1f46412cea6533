"""Time and peak memory of training as cells grow ten- and a hundredfold, and classes and genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.atlases import atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, SECONDS, Column, View, curves
from benchmarks.suites.train import CELLTYPIST, OURS
from streamtrain.budget import parse_bytes

VIEW = View(
    (
        SECONDS,
        PEAK,
        Column("memory_above_base", "above the interpreter, MB", lambda x: f"{x / 1e6:,.0f}"),
        Column("steps_per_s", "steps/s"),
        CPU,
    ),
    "time",
    curves,
)
_TRAINING = ("batch_size", "batch_number", "epochs")


def cases(settings: dict[str, Any]) -> list[Case]:
    """A middle size, varied one dimension at a time; CellTypist where it holds the cells."""
    base = {k: settings[k] for k in ("cells", "genes", "cell_types")}
    found = []
    for axis, values in settings["grow"].items():
        for value in values:
            shape = base | {axis: value}
            fits = 17 * shape["cells"] * shape["genes"] <= parse_bytes(settings["celltypist_up_to"])
            held = fits and axis in settings["celltypist_along"]
            also: tuple[Contender, ...] = (CELLTYPIST,) if held else ()
            found.append(_case(settings, axis, shape, (OURS, *also)))
    return found


def _case(
    settings: dict[str, Any], axis: str, shape: dict[str, int], contenders: tuple[Contender, ...]
) -> Case:
    # zarr, which is the smaller on disk, for ours; CellTypist reads h5ad.
    donors = {"donors": settings["donors"]}
    store = str(atlas("zarr", **shape, **donors))
    h5ad = str(atlas("h5ad", **shape, **donors)) if len(contenders) > 1 else store
    small = shape | {"cells": settings["warm_up_cells"]}
    job = {
        "store": store,
        "h5ad": h5ad,
        "held_out": [],
        "memory": settings["memory"],
        "at_most": shape["cells"],
        "settings": {name: settings[name] for name in _TRAINING},
    }
    warm_up = job | {
        "store": str(atlas("zarr", **small, **donors)),
        "h5ad": str(atlas("h5ad", **small, **donors)),
        "repeat": 0,
        "settings": {"batch_size": 100, "batch_number": 2, "epochs": 1},
    }
    large = shape["cells"] >= settings["once_from"]
    return Case(
        f"{axis.replace('_', ' ')} {shape[axis]:,}", job, contenders, warm_up=warm_up,
        repeats=1 if large else None, about={"axis": axis, "value": shape[axis], **shape},
    )  # fmt: skip


def check(
    case: Case,
    _: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """All cells were trained on, by the steps asked for, and ours stayed inside its budget."""
    settings, cells = case.job["settings"], case.about["cells"]
    steps = settings["epochs"] * min(settings["batch_number"] * settings["batch_size"], cells)
    budget = parse_bytes(case.job["memory"])
    for name, lines in done.items():
        for line in lines:
            for key, value in (("cells", cells), ("steps", steps)):
                if line[key] != value:
                    raise WrongWorkError(
                        f"{case.name}: {name} trained with {line[key]:,} {key}, not {value:,}"
                    )
            line["steps_per_s"] = steps / line["seconds"]
            line["memory_above_base"] = line["peak_rss"] - line["base_rss"]
            if name == OURS.name and line["memory_above_base"] > budget:
                raise WrongWorkError(
                    f"{case.name}: {name} held {line['memory_above_base']:,} bytes over what it "
                    f"began with, more than memory={case.job['memory']}"
                )
