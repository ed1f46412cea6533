"""SGD steps on cells in memory, over few and many classes, beside the machine's own ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atlases import atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, RATE, Column, Line, View, bars

OURS = Contender("streamtrain", "benchmarks.contenders.steps:ours")
SKLEARN = Contender("scikit-learn, dense", "benchmarks.contenders.steps:sklearn")
CEILINGS = [
    Contender("memory", "benchmarks.contenders.ceilings:memory"),
    *(
        Contender(f"multiply-add {dtype}", "benchmarks.contenders.ceilings:multiply_add",
                  options={"dtype": dtype})
        for dtype in ("float32", "float64")
    ),
]  # fmt: skip
# Largest relative difference (Frobenius) of our weights from scikit-learn's after a case's steps.
# float64: only the order of sums differs. float32: the large first steps of the "optimal" schedule
# amplify its rounding; of 10 classes after 4,096 steps scikit-learn's own float32 is 0.17 from its
# float64 and ours 0.13, of 2 and 100 classes both below 1e-4. A tenth of the steps left out makes
# 0.34 or more; fewer are seen by the number of steps.
TOLERANCE = {"float64": 1e-6, "float32": 0.3}


def cases(settings: dict[str, Any]) -> list[Case]:
    """The ceilings, then one case for each number of classes."""
    store = atlas(
        "zarr", cells=max(settings["cells"]), genes=settings["genes"],
        cell_types=max(settings["classes"]), donors=1,
    )  # fmt: skip
    common = {"store": str(store), "batch_size": settings["batch_size"], "n_jobs": -1}
    ceilings = {key: settings[key] for key in ("megabytes", "order", "rounds")}
    found = [Case("ceilings", ceilings, CEILINGS, about={"classes": 0})]
    for classes, cells in zip(settings["classes"], settings["cells"], strict=True):
        for dtype in ("float32", "float64"):
            job = common | {"classes": classes, "dtype": dtype}
            found.append(
                Case(
                    f"{classes} classes, {dtype}",
                    job | {"cells": cells},
                    (OURS, SKLEARN),
                    warm_up=job | {"cells": 16},
                    about={"classes": classes},
                )
            )
    return found


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every contender took a step for each cell, and both reached the same weights."""
    if case.about["classes"] == 0:
        return
    for name, lines in done.items():
        for line in lines:
            if line["cells"] != case.job["cells"]:
                raise WrongWorkError(
                    f"{case.name}: {name} took {line['cells']:,} steps of {case.job['cells']:,}"
                )
            # A score and an update of every class at every entry: two multiply-adds.
            columns = 1 if line["classes"] == 2 else line["classes"]
            line["gflops"] = 4e-9 * line["entries"] * columns / line["seconds"]
    if len(evidence) < 2:  # scikit-learn ran over the time limit
        return
    reference = evidence[SKLEARN.name][0]["coef"]
    for line, found in zip(done[OURS.name], evidence[OURS.name], strict=True):
        difference = np.linalg.norm(found["coef"] - reference) / np.linalg.norm(reference)
        line["difference"] = float(difference)
        allowed = TOLERANCE[case.job["dtype"]]
        if not difference <= allowed:
            raise WrongWorkError(
                f"{case.name}: the weights of {OURS.name} differ from those of {SKLEARN.name} by "
                f"{difference:.1e}, more than {allowed:.0e}"
            )


def steps(lines: Sequence[Line], view: View) -> Figure:
    """Draw the cases as bars; the ceilings stand in the table."""
    return bars([line for line in lines if line["classes"]], view)


VIEW = View(
    (
        RATE,
        Column("gflops", "useful GFLOP/s", "{:,.1f}".format),
        Column("gbytes", "GB/s", "{:,.1f}".format),
        Column("difference", "weights differ by", "{:.0e}".format),
        CPU,
        PEAK,
    ),
    "rate",
    steps,
)
