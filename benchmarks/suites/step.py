"""SGD steps on cells in memory, over few and many classes, beside the machine's own ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atlases import atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, RATE, Column, Line, View, bars

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
# Largest relative difference of our weights (Frobenius) and intercepts from scikit-learn's.
# float64: only the order of sums differs. float32: measured 1e-6 to 5e-5, but the large first steps
# of the "optimal" schedule can amplify its rounding: with 10 classes, after 4,096 steps,
# scikit-learn's own float32 is 0.17 from its float64 and ours 0.13. A tenth of the steps left out
# makes 0.34 or more; fewer are seen by the number of steps.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
TOLERANCE_10_CLASSES = {"float64": 1e-6, "float32": 0.3}


def cases(settings: dict[str, Any]) -> list[Case]:
    """The ceilings, then one case for each number of classes."""
    store = atlas(
        "zarr", cells=max(settings["cells"]), genes=settings["genes"],
        cell_types=max(settings["classes"]), donors=1,
    )  # fmt: skip
    common = {"store": str(store), "batch_size": settings["batch_size"], "n_jobs": -1}
    ceilings = {key: settings[key] for key in ("megabytes", "order", "rounds")}
    found = [Case("ceilings", ceilings, CEILINGS, repeats=1, about={"classes": 0})]
    sizes = zip(settings["classes"], settings["cells"], settings["passes"], strict=True)
    for classes, cells, passes in sizes:
        for dtype in ("float32", "float64"):
            job = common | {"classes": classes, "dtype": dtype}
            found.append(
                Case(
                    f"{classes} classes, {dtype}",
                    job | {"cells": cells, "passes": passes},
                    (OURS, SKLEARN),
                    warm_up=job | {"cells": 16, "passes": 1},
                    verify={"passes": 1},  # more would only amplify the rounding
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
    due = case.job["cells"] * case.job["passes"]
    columns = 1 if case.about["classes"] == 2 else case.about["classes"]
    for name, lines in done.items():
        for line in lines:
            if line["cells"] != due:
                raise WrongWorkError(f"{case.name}: {name} took {line['cells']:,} steps of {due:,}")
            # A score and an update of every class at every entry: two multiply-adds.
            line["gflops"] = 4e-9 * line["entries"] * columns / line["seconds"]
    if len(evidence) < 2:  # one of them ran over the time limit, or failed
        return
    ours, theirs = (evidence[contender.name][0] for contender in (OURS, SKLEARN))
    allowed = TOLERANCE_10_CLASSES if case.about["classes"] == 10 else TOLERANCE
    for key in ("coef", "intercept"):
        difference = np.linalg.norm(ours[key] - theirs[key]) / np.linalg.norm(theirs[key])
        for line in done[OURS.name]:
            line[f"difference_{key}"] = float(difference)
        if not difference <= allowed[case.job["dtype"]]:
            raise WrongWorkError(
                f"{case.name}: {key} of {OURS.name} differs from {SKLEARN.name}'s by "
                f"{difference:.1e}, more than {allowed[case.job['dtype']]:.0e}"
            )


def steps(lines: Sequence[Line], view: View) -> Figure:
    """Draw the cases as bars; the ceilings stand in the table."""
    return bars([line for line in lines if line["classes"]], view)


VIEW = View(
    (
        RATE,
        Column("gflops", "useful GFLOP/s", "{:,.1f}".format),
        Column("gbytes", "GB/s", "{:,.1f}".format),
        Column("difference_coef", "weights differ by", "{:.0e}".format),
        CPU,
    ),
    "rate",
    steps,
)
