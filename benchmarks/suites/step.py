"""SGD steps on cells in memory, ours and scikit-learn's, beside the machine's own ceilings.

Over numbers of classes, shares of non-zero entries and sizes of a batch; with averaging; and for
ten penalties at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atlases import atlas
from benchmarks.contenders.steps import EARLY
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, RATE, Column, Line, View, bars

OURS = Contender("streamtrain", "benchmarks.contenders.steps:ours")
DENSE = Contender("scikit-learn, dense", "benchmarks.contenders.steps:sklearn")
SPARSE = Contender("scikit-learn, sparse", "benchmarks.contenders.steps:sklearn")
ONE = Contender("streamtrain, one model", "benchmarks.contenders.steps:ours")
CEILINGS = [
    Contender("memory", "benchmarks.contenders.ceilings:memory"),
    *(
        Contender(f"multiply-add {dtype}", "benchmarks.contenders.ceilings:multiply_add",
                  options={"dtype": dtype})
        for dtype in ("float32", "float64")
    ),
    *(
        Contender(f"rows of {4 * lanes} bytes, {cores}", "benchmarks.contenders.ceilings:rows",
                  options={"lanes": lanes, "n_jobs": n_jobs})
        for lanes, cores, n_jobs in ((16, "all cores", -1), (16, "one core", 1), (1, "one core", 1))
    ),
]  # fmt: skip
LINE = 64  # bytes of a row of weights, a cache line; 4 or 8 where there is one column
# Largest relative difference of our weights (Frobenius) and intercepts from scikit-learn's, after
# EARLY cells and after all. In float64 only the order of sums differs; in float32, too, and it is
# 1e-7 to 2e-4 early, where a step left out makes 4e-2 or more. Later a score comes so near 0 that
# rounding turns its sign, and the large steps of the "optimal" schedule amplify that, up to 0.45
# (scikit-learn's own float32 is 0.17 from its float64 with 10 classes, ours 0.13). Weights that
# have nothing in common are 1.4 apart.
TOLERANCE = {
    "float64": {"coef_early": 1e-6, "intercept_early": 1e-6, "coef": 1e-6, "intercept": 1e-6},
    "float32": {"coef_early": 1e-2, "intercept_early": 1e-2, "coef": 0.8, "intercept": np.inf},
}


def cases(settings: dict[str, Any]) -> list[Case]:
    """The ceilings, then a group of cases for each question."""
    numbers = (*settings["cells"], *settings["density_cells"], *settings["batch_cells"])
    store = atlas(
        "zarr", cells=max(*numbers, settings["alpha_cells"]), genes=settings["genes"],
        cell_types=max(settings["classes"]), donors=1,
    )  # fmt: skip
    plain = {
        "store": str(store), "density": 0.0, "genes": settings["genes"],
        "batch_size": settings["batch_size"], "at_least_s": settings["at_least_s"], "n_jobs": -1,
        "dtype": "float32", "centred": True, "average": False, "alphas": [1e-4], "scaling": False,
    }  # fmt: skip
    ceilings = {key: settings[key] for key in ("megabytes", "order", "rounds", "genes")}
    return [
        Case("ceilings", ceilings, CEILINGS, repeats=1, about={"group": "ceilings"}),
        *_by_classes(settings, plain),
        *_by_density(settings, plain),
        *_by_batch_size(settings, plain),
        *_by_alphas(settings, plain),
    ]


def _by_classes(settings: dict[str, Any], plain: dict[str, Any]) -> list[Case]:
    """Every number of classes; scikit-learn 1.9 loses an averaged intercept between two calls."""
    found = []
    once = settings["once_from"]
    for classes, cells in zip(settings["classes"], settings["cells"], strict=True):
        for dtype in settings["dtypes"]:
            job = plain | {"classes": classes, "cells": cells, "dtype": dtype}
            name, repeats = f"{classes} classes, {dtype}", 1 if classes >= once else None
            found.append(_case(name, job, "classes", repeats=repeats))
            if classes == settings["averaged"]:
                mean = job | {"average": True, "batch_size": cells}
                found.append(_case(f"{name}, averaged", mean, "averaged", repeats=1))
    return found


def _by_density(settings: dict[str, Any], plain: dict[str, Any]) -> list[Case]:
    """Few and many non-zero entries, centred or not; the atlas's cells centred are above."""
    found = []
    keys = ("density", "density_genes", "density_cells")
    for classes in settings["density_classes"]:
        for density, genes, cells in zip(*(settings[key] for key in keys), strict=True):
            job = plain | {"classes": classes, "density": density, "genes": genes, "cells": cells}
            name = f"{classes} classes, {f'{100 * density:g}% non-zero' if density else 'atlas'}"
            if density:
                found.append(_case(name, job, "density", repeats=1))
            free = job | {"centred": False}
            found.append(_case(f"{name}, not centred", free, "density", repeats=1))
    return found


def _by_batch_size(settings: dict[str, Any], plain: dict[str, Any]) -> list[Case]:
    classes, found = settings["batch_classes"], []
    for size, cells in zip(settings["batch_sizes"], settings["batch_cells"], strict=True):
        job = plain | {"classes": classes, "batch_size": size, "cells": cells}
        found.append(_case(f"{classes} classes, batches of {size:,}", job, "batches", repeats=1))
    return found


def _by_alphas(settings: dict[str, Any], plain: dict[str, Any]) -> list[Case]:
    """One model and several over the same cells: their steps alone, and with what they share."""
    classes, alphas = settings["alpha_classes"], settings["alphas"]
    several = Contender(f"streamtrain, {len(alphas)} alphas", ONE.call, options={"alphas": alphas})
    job = plain | {"classes": classes, "cells": settings["alpha_cells"]}
    name = f"{classes} classes, {len(alphas)} alphas"
    return [
        _case(name, job, "alphas", who=(ONE, several)),
        _case(f"{name}, with scaling", job | {"scaling": True}, "alphas", who=(ONE, several)),
    ]


def _case(
    name: str,
    job: dict[str, Any],
    group: str,
    *,
    who: tuple[Contender, ...] = (),
    repeats: int | None = None,
) -> Case:
    who = who or (OURS, DENSE if job["centred"] else SPARSE)
    return Case(name, job, who, repeats=repeats, about={"group": group})


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every model took a step for each cell, and all reached the weights that they should."""
    if case.about["group"] == "ceilings":
        return
    for contender in case.contenders:
        name, job = contender.name, {**case.job, **contender.options}
        for line, found in zip(done.get(name, ()), evidence.get(name, ()), strict=True):
            for taken in np.unique(found["steps"]):
                if taken != job["cells"]:
                    raise WrongWorkError(
                        f"{case.name}: {name} took {taken:,.0f} steps of {job['cells']:,}"
                    )
            _work(line, job)
            if len(job["alphas"]) > 1:
                _as_alone(case, name, found)
    if case.about["group"] == "alphas":
        one, several = (done.get(contender.name, ()) for contender in case.contenders)
        for line in several if one else ():
            line["times_one"] = median(x["cells_per_s"] for x in one) / line["cells_per_s"]
    else:
        _as_theirs(case, evidence, done)


def _work(line: dict[str, Any], job: dict[str, Any]) -> None:
    """Reckon what a run did in the units of the ceilings."""
    columns = len(job["alphas"]) * (1 if job["classes"] == 2 else job["classes"])
    # A score and an update of every class at every entry: two multiply-adds.
    line["gflops"] = 4e-9 * line["entries_a_cell"] * line["cells_per_s"] * columns
    if "sparse_a_cell" in line:  # ours: the genes that most cells express meet no row one by one
        rows = -(-columns * np.dtype(job["dtype"]).itemsize // LINE)
        line["rows_per_s"] = line["sparse_a_cell"] * line["cells_per_s"] * rows


def _as_alone(case: Case, name: str, found: Evidence) -> None:
    for key in ("coef", "intercept"):
        if not np.array_equal(found[key], found[f"{key}_alone"]):
            raise WrongWorkError(f"{case.name}: {key} of {name} are not those of models alone")


def _as_theirs(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    theirs = case.contenders[1].name
    if len(evidence) < 2:  # one of them ran over the time limit, or failed
        return
    for line, ours in zip(done[OURS.name], evidence[OURS.name], strict=True):
        for key, allowed in TOLERANCE[case.job["dtype"]].items():
            difference = _distance(ours[key], evidence[theirs][0][key])
            line[f"difference_{key}"] = difference
            if not difference <= allowed:
                raise WrongWorkError(
                    f"{case.name}: {key} of {OURS.name} differs from {theirs}'s by "
                    f"{difference:.1e}, more than {allowed:.0e}"
                )


def _distance(ours: Any, theirs: Any) -> float:
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def steps(lines: Sequence[Line], view: View) -> Figure:
    """Draw the numbers of classes as bars; all else stands in the table."""
    return bars([line for line in lines if line["group"] == "classes"], view)


VIEW = View(
    (
        RATE,
        Column("entries_a_cell", "non-zero a cell"),
        Column("gflops", "useful GFLOP/s", "{:,.1f}".format),
        Column("sparse_a_cell", "of sparse genes"),
        Column("rows_per_s", "rows of weights, M/s", lambda x: f"{x / 1e6:,.0f}"),
        Column("gbytes", "GB/s", "{:,.1f}".format),
        Column("times_one", "time / one model's", "{:.2f}".format),
        Column("difference_coef_early", f"weights differ after {EARLY} cells", "{:.0e}".format),
        Column("difference_coef", "after all", "{:.0e}".format),
        CPU,
    ),
    "rate",
    steps,
)
