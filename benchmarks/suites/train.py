"""Whole jobs, file to model: the largest atlas that CellTypist holds, then one it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.atlases import DONOR, LABEL, atlas
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, SECONDS, Column, View, bars
from streamtrain import evaluate, open_source
from streamtrain.errors import InputError

OURS = Contender("streamtrain", "benchmarks.contenders.training:ours")
BY_HAND = Contender("scikit-learn by hand", "benchmarks.contenders.training:by_hand")
CELLTYPIST = Contender("CellTypist", "benchmarks.contenders.celltypist:train", "celltypist")
VIEW = View(
    (
        SECONDS,
        Column("cells", "cells"),
        Column("steps_per_s", "steps/s"),
        Column("macro_f1", "macro-F1", "{:.3f}".format),
        CPU,
        PEAK,
    ),
    "time a step",
    bars,
)
TRAINING = ("batch_size", "batch_number", "epochs")  # the settings that all of them take


def cases(settings: dict[str, Any]) -> list[Case]:
    """One case an atlas; where there are more cells than CellTypist holds, it samples them."""
    if not 1 <= settings["held_out"] < settings["donors"]:
        raise InputError(
            f"held_out must be at least 1 and less than donors={settings['donors']}; "
            f"got {settings['held_out']}"
        )
    return [_case(settings, cells) for cells in settings["cells"]]


def _case(settings: dict[str, Any], cells: int) -> Case:
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    path = atlas("h5ad", cells=cells, **shape)
    with closing(open_source(path)) as source:
        donors = sorted(source.obs(DONOR).unique())
    job = {
        "store": str(path),
        "h5ad": str(path),
        "held_out": donors[-settings["held_out"] :],
        "memory": settings["memory"],
        "at_most": settings["at_most"],
        "settings": {name: settings[name] for name in TRAINING},
    }
    contenders = (
        (OURS, CELLTYPIST, BY_HAND) if cells <= settings["by_hand_up_to"] else (OURS, CELLTYPIST)
    )
    return Case(
        f"{cells:,} cells", job, contenders, warm_up=warm_up(job), files=(str(path),),
        about={"atlas_cells": cells}, reference=path,
    )  # fmt: skip


def warm_up(job: dict[str, Any]) -> dict[str, Any]:
    """Make the same job of an atlas so small that what it leaves in memory is the libraries'."""
    small = str(atlas("h5ad", cells=1_000, genes=500, cell_types=4, donors=4))
    few = {"batch_size": 100, "batch_number": 2, "epochs": 1}
    return job | {"store": small, "h5ad": small, "held_out": [], "repeat": 0, "settings": few}


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """All took the steps asked for, on all cells of the training donors or the sample's number.

    The models differ by their draws; the scores of each on the held-out donors, computed here by
    the same code for all, go into the records, and none may be far below the best.
    """
    with closing(open_source(case.reference)) as source:
        held_out = source.obs(DONOR).isin(case.job["held_out"]).to_numpy()
        training = int((~held_out).sum())
        models = [(line, found) for name, lines in done.items()
                  for line, found in zip(lines, evidence[name], strict=True)]  # fmt: skip
        for line, _ in models:
            sample = min(training, case.job["at_most"])
            wanted = sample if line["contender"] == CELLTYPIST.name else training
            trained(line, case, wanted)
        predicted = [predict(found, source, held_out) for _, found in models]
        truth = source.obs(LABEL).astype(str).to_numpy()[held_out]
    for (line, _), labels in zip(models, predicted, strict=True):
        scores = evaluate(truth, labels)
        line |= {"macro_f1": scores.macro_f1, "accuracy": scores.accuracy}
    best = max((line["macro_f1"] for line, _ in models), default=0.0)
    for line, _ in models:
        if line["macro_f1"] < best - 0.2:
            raise WrongWorkError(
                f"{case.name}: {line['contender']} reached a macro-F1 of {line['macro_f1']:.2f} on "
                f"the held-out donors, where the best has {best:.2f}: that is no model of the atlas"
            )


def trained(line: dict[str, Any], case: Case, cells: int) -> None:
    """Require that a run trained on `cells` cells by the steps that the settings ask for."""
    settings = case.job["settings"]
    steps = settings["epochs"] * min(settings["batch_number"] * settings["batch_size"], cells)
    for key, value in (("cells", cells), ("steps", steps)):
        if line[key] != value:
            raise WrongWorkError(
                f"{case.name}: {line['contender']} trained with {line[key]:,} {key}, not {value:,}"
            )
    line["steps_per_s"] = steps / line["seconds"]


def predict(model: Evidence, source: Any, selected: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Label the selected cells of raw counts by any contender's weights.

    z = min((x - mean) / scale, 10) is min(x, mean + 10 scale) / scale less mean / scale, of which
    only the first differs between cells, and is 0 where x is.
    """
    at = {gene: i for i, gene in enumerate(source.genes)}
    genes = np.array([at[gene] for gene in model["genes"]])
    cap = np.full(source.n_vars, np.inf)
    cap[genes] = model["mean"] + 10 * model["scale"]
    weights = np.zeros((source.n_vars, len(model["coef"])))
    weights[genes] = (model["coef"] / model["scale"]).T
    offset = model["intercept"] - (model["coef"] * (model["mean"] / model["scale"])).sum(axis=1)
    labels = []
    for start, stop in source.blocks(64 * 10**6):
        if not selected[start:stop].any():
            continue
        rows = source.read(start, stop).take(np.flatnonzero(selected[start:stop]))
        X = sparse.csr_array((rows.data, rows.indices, rows.indptr), (rows.n_obs, rows.n_vars))
        lengths = np.diff(X.indptr)
        X.data = np.log1p(X.data / np.repeat(X.sum(axis=1), lengths) * 1e4)
        X.data = np.minimum(X.data, cap[X.indices])
        scores = X @ weights + offset
        if scores.shape[1] == 1:
            scores = np.hstack([-scores, scores])
        labels.append(model["classes"][scores.argmax(axis=1)])
    return np.concatenate(labels)
