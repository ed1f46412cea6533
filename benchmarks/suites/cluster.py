"""Training by workers of dask.distributed, beside one process and beside dask-ml; and a model.

Workers are processes of this machine, whose cores they share. What one core takes for each part of
the work is measured, and a model says what follows for larger clusters and atlases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks import cluster_tables
from benchmarks.atlases import DONOR, LABEL, atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, READ, SECONDS, Column, View, bars
from benchmarks.suites.train import predict
from streamtrain import evaluate, open_source
from streamtrain.errors import InputError

_OURS = "benchmarks.contenders.cluster:ours"
_DISTRIBUTED = "distributed"


def _by(workers: int, threads: int, name: str = "") -> Contender:
    name = name or f"{workers} worker{'s' * (workers > 1)} x {threads}"
    options = {"workers": workers, "threads": threads}
    return Contender(name, _OURS, options=options, needs=_DISTRIBUTED if workers else "")


RATES = Contender("one core", "benchmarks.contenders.cluster:rates", needs=_DISTRIBUTED)
_TWO = {"workers": 2, "threads": 1}
OURS = _by(**_TWO, name="streamtrain")
THEIRS = {
    "SGD": Contender("dask-ml, Incremental", "benchmarks.contenders.dask_ml:incremental",
                     options=_TWO, needs="dask_ml"),
    "logistic regression": Contender("dask-ml, LogisticRegression",
                                     "benchmarks.contenders.dask_ml:logistic", options=_TWO,
                                     needs="dask_ml"),
}  # fmt: skip
VIEW = View(
    (
        SECONDS,
        CPU,
        PEAK,
        Column("driver_rss", "driver above its libraries, MB", lambda x: f"{x / 1e6:,.0f}"),
        Column("workers_rss", "workers above theirs, MB", lambda x: f"{x / 1e6:,.0f}"),
        READ,
        Column("cells", "cells"),
        Column("macro_f1", "macro-F1", "{:.3f}".format),
    ),
    None,
    lambda lines, view: bars([line for line in lines if line["group"] != "rates"], view),
    (cluster_tables.beside_one_process, cluster_tables.beside_dask_ml, cluster_tables.checked,
     cluster_tables.larger),
)  # fmt: skip


def cases(settings: dict[str, Any]) -> list[Case]:
    """Each way of training by one process and by workers; what a core takes; dask-ml's two."""
    if not 1 <= settings["dask_held_out"] < settings["donors"]:
        raise InputError(
            f"dask_held_out must be at least 1 and less than donors={settings['donors']}; got "
            f"{settings['dask_held_out']}"
        )
    small = atlas("zarr", cells=1_000, genes=500, cell_types=4, donors=4)
    job = {"memory": settings["memory"], "small": str(small), "held_out": []}
    return [*_beside_one(settings, job), _rates(settings, job), *_beside_dask_ml(settings, job)]


def _beside_one(settings: dict[str, Any], job: dict[str, Any]) -> list[Case]:
    shape = {key: settings[key] for key in ("cells", "genes", "cell_types", "donors")}
    store = str(atlas("zarr", **shape))
    mini = {
        "use_SGD": True, "mini_batch": True,
        **{key: settings[key] for key in ("batch_size", "batch_number", "epochs")},
    }  # fmt: skip
    threads = settings["threads"]
    alone = _by(0, threads, cluster_tables.ALONE)
    ways: dict[str, dict[str, Any]] = {
        "SGD, mini-batches": mini,
        "SGD, whole epochs": {
            "use_SGD": True, "max_iter": settings["whole_epochs"], "tol": None,
        },
        "logistic regression": {"max_iter": settings["max_iter"]},
        "SGD, mini-batches, 4 copies": mini | {"replicas": 4},
    }  # fmt: skip
    found = []
    for name, way in ways.items():
        case: dict[str, Any] = {
            "job": job | {"store": store, "settings": way}, "files": (store,),
            "about": {"group": "one process", "shape": shape},
        }  # fmt: skip
        if "replicas" not in way:
            found.append(Case(name, contenders=(alone, _by(1, threads)), **case))
        # Which take long on few cores: once.
        more = (alone, *(_by(workers, 1) for workers in settings["more_workers"]))
        found.append(Case(f"{name}, more workers", contenders=more, repeats=1, **case))
    return found


def _rates(settings: dict[str, Any], job: dict[str, Any]) -> Case:
    shape = {key: settings[key] for key in ("genes", "cell_types", "donors")}
    cells = settings["rate_cells"]
    store = str(atlas("zarr", cells=cells, **shape))
    size = settings["batch_size"]
    way = {
        "use_SGD": True, "mini_batch": True, "batch_size": size, "batch_number": -(-cells // size),
        "epochs": settings["rate_epochs"],
    }  # fmt: skip
    of_model = {key: value for key, value in settings.items() if key.startswith("model_")}
    of_model |= {key: settings[key] for key in ("network", "storage")}
    case = job | {
        "store": store, "settings": way, "max_iter": settings["max_iter"],
        "planned": settings["planned"],
    }  # fmt: skip
    about = {"group": "rates", "model": of_model}
    return Case("rates", case, (RATES,), repeats=1, files=(store,), about=about)


def _beside_dask_ml(settings: dict[str, Any], job: dict[str, Any]) -> list[Case]:
    cells = settings["dask_cells"]
    store = atlas(
        "zarr", cells=cells, genes=settings["dask_genes"], cell_types=settings["dask_cell_types"],
        donors=settings["donors"],
    )  # fmt: skip
    with closing(open_source(store)) as source:
        donors = sorted(source.obs(DONOR).unique())
    size, epochs = settings["batch_size"], settings["dask_epochs"]
    ways = {
        "SGD": {"use_SGD": True, "mini_batch": True, "batch_size": size,
                "batch_number": -(-cells // size), "epochs": epochs},
        "logistic regression": {},
    }  # fmt: skip
    return [
        Case(
            f"dask-ml, {name}",
            job | {
                "store": str(store), "held_out": donors[-settings["dask_held_out"] :],
                "settings": way, "cells": cells, "batch_size": size, "epochs": epochs,
                "max_iter": settings["dask_max_iter"],
            },
            (OURS, THEIRS[name]), repeats=1, files=(str(store),), about={"group": "dask-ml"},
            reference=store,
        )
        for name, way in ways.items()
    ]  # fmt: skip


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Workers gave the model of one process to the bit; the rates are sound; dask-ml learned."""
    group = case.about["group"]
    if group == "one process":
        _alike(case, evidence, done)
    elif group == "rates":
        for line in (line for lines in done.values() for line in lines):
            wrong = {k: v for k, v in line["rates"].items() if not (np.isfinite(v) and v >= 0)}
            if wrong:
                raise WrongWorkError(f"{case.name}: no rate is negative, or not finite: {wrong}")
    else:
        _scored(case, evidence, done)


def _alike(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    alone = cluster_tables.ALONE
    for name, lines in done.items():
        for line, found in zip(lines, evidence[name], strict=True):
            cells, ways = case.about["shape"]["cells"], case.job["settings"]
            if line["cells"] != cells:
                raise WrongWorkError(f"{case.name}: {name} had {line['cells']} cells of {cells}")
            steps = _steps(ways, cells)
            if steps is not None and line["steps"] != steps:
                raise WrongWorkError(f"{case.name}: {name} took {line['steps']} steps of {steps}")
            one = [evidence[alone][i] for i, of in enumerate(done.get(alone, ()))
                   if of["repeat"] == line["repeat"]]  # fmt: skip
            for key in ("coef", "intercept"):
                if one and not np.array_equal(found[key], one[0][key]):
                    raise WrongWorkError(
                        f"{case.name}: {name} gave another {key} than {alone}, by "
                        f"{np.abs(found[key] - one[0][key]).max():.1e}"
                    )


def _steps(ways: Mapping[str, Any], cells: int) -> int | None:
    """Steps of SGD that the settings ask for; None where not all are of one model."""
    if "use_SGD" not in ways or "replicas" in ways:
        return None
    if "mini_batch" not in ways:
        return int(ways["max_iter"]) * cells
    of_epoch = min(ways["batch_number"] * ways["batch_size"], cells)
    return int(ways["epochs"] * of_epoch)


def _scored(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    with closing(open_source(case.reference)) as source:
        held_out = source.obs(DONOR).isin(case.job["held_out"]).to_numpy()
        truth = source.obs(LABEL).astype(str).to_numpy()[held_out]
        runs = [(line, found) for name, lines in done.items()
                for line, found in zip(lines, evidence[name], strict=True)]  # fmt: skip
        training = int((~held_out).sum())
        for line, found in runs:
            if line["cells"] != training:
                raise WrongWorkError(
                    f"{case.name}: {line['contender']} had {line['cells']} cells, not {training}"
                )
            line["macro_f1"] = evaluate(truth, predict(found, source, held_out)).macro_f1
    steps = {line["steps"] for line, _ in runs if "steps" in line}
    if len(steps) > 1:
        raise WrongWorkError(f"{case.name}: the steps differ: {sorted(steps)}")
    best = max((line["macro_f1"] for line, _ in runs), default=0.0)
    for line, _ in runs:
        if line["macro_f1"] < best - 0.2:
            raise WrongWorkError(
                f"{case.name}: {line['contender']} reached a macro-F1 of {line['macro_f1']:.2f} on "
                f"the held-out donors, where the best has {best:.2f}: that is no model of the atlas"
            )
