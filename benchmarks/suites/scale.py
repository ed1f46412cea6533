"""Time and peak memory of training as cells grow ten- and a hundredfold, and classes and genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.atlases import atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, SECONDS, Column, View, curves
from benchmarks.suites.train import CELLTYPIST, OURS, TRAINING, trained, warm_up
from streamtrain.budget import parse_bytes

VIEW = View(
    (
        SECONDS,
        PEAK,
        Column("memory_above_base", "above the libraries, MB", lambda x: f"{x / 1e6:,.0f}"),
        Column("steps_per_s", "steps/s"),
        CPU,
    ),
    "time a step",
    curves,
)


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
    job = {
        "store": store,
        "h5ad": h5ad,
        "held_out": [],
        "memory": settings["memory"],
        "at_most": shape["cells"],
        "settings": {name: settings[name] for name in TRAINING},
    }
    large = shape["cells"] >= settings["once_from"]
    return Case(
        f"{axis.replace('_', ' ')} {shape[axis]:,}",
        job,
        contenders,
        warm_up=warm_up(job),
        files=(store, h5ad),
        repeats=1 if large else None,
        about={"axis": axis, "value": shape[axis], **shape},
    )


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """All cells were trained on, by the steps asked for, and ours stayed inside its budget."""
    budget = parse_bytes(case.job["memory"])
    for name, lines in done.items():
        for line, found in zip(lines, evidence[name], strict=True):
            trained(line, case, case.about["cells"])
            coef = found["coef"]
            if coef.shape != (case.about["cell_types"], len(found["genes"])) or not (
                np.isfinite(coef).all() and coef.any(axis=1).all()
            ):
                raise WrongWorkError(
                    f"{case.name}: {name} gave no weights for some of the "
                    f"{case.about['cell_types']} cell types: shape {coef.shape}"
                )
            line["memory_above_base"] = line["peak_rss"] - line["base_rss"]
            if name == OURS.name and line["memory_above_base"] > budget:
                raise WrongWorkError(
                    f"{case.name}: {name} held {line['memory_above_base']:,} bytes over its "
                    f"libraries, more than memory={case.job['memory']}"
                )
