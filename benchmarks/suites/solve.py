"""Logistic regression on cells in memory: the time it takes, and the objective that it reaches.

Every model is judged by the same plain arithmetic: dense, in float64, on cells scaled once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.preprocessing import StandardScaler

from benchmarks.atlases import LABEL, atlas, real
from benchmarks.contenders.split import TYPE, everything
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, SECONDS, Column, View, bars

OURS = Contender("streamtrain", "benchmarks.contenders.training:solve")
THEIRS = (
    Contender("CellTypist logistic", "benchmarks.contenders.celltypist:solve", "celltypist"),
    Contender("scikit-learn, fit alone", "benchmarks.contenders.sklearn:fit", "celltypist"),
)
SIMULATED = "simulated"
# scikit-learn stops where no slope is above its tol, 1e-4. A hundredth is for rounding: ours and
# CellTypist's scaled values are float32.
SLOPE = 1.01e-4
ABOVE = 1e-6  # most that our objective may be above theirs, relative
AGREE = 0.999  # least share of cells that get the same label
_SCALING = 1e-9  # relative; only the order of sums in float64 differs
_BLOCK = 1000  # cells judged at a time
VIEW = View(
    (
        SECONDS,
        PEAK,
        CPU,
        Column("n_cells", "cells"),
        Column("n_genes", "genes"),
        Column("n_types", "types"),
        Column("iterations", "iterations"),
        Column("slope", "largest slope", "{:.0e}".format),
        Column("above_least", "objective above the least", "{:.2%}".format),
        Column("accuracy", "accuracy in training", "{:.2%}".format),
        Column("agree", "labels as ours", "{:.2%}".format),
    ),
    "time",
    bars,
)


def cases(settings: dict[str, Any]) -> list[Case]:
    """One case a data set."""
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    small = str(atlas("h5ad", cells=settings["warm_up_cells"], **shape))
    found = []
    for name in settings["sets"]:
        if name == SIMULATED:
            file = str(atlas("h5ad", cells=settings["cells"], **shape))
        else:
            file = real(name, settings["data"])
        job = {"label": LABEL, "files": [file]}
        found.append(Case(name, job, (OURS, *THEIRS), warm_up=job | {"files": [small]}))
    return found


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """All solved the same problem by scikit-learn's rule; ours as well as any, class by class."""
    cells = everything(dict(case.job))
    problem = Problem(cells.train)
    runs = [(line, found) for name, lines in done.items()
            for line, found in zip(lines, evidence[name], strict=True)]  # fmt: skip
    for line, found in runs:
        if line["digest"] != cells.digest:
            wrong = "had other cells than the case's"
        else:
            wrong = problem.differs(found)
        if wrong:
            raise WrongWorkError(f"{case.name}: {line['contender']} {wrong}")
    reached = problem.reached([found for _, found in runs])
    least = np.min([one.objective for one in reached], axis=0, initial=np.inf)
    ours = [one for (line, _), one in zip(runs, reached, strict=True)
            if line["contender"] == OURS.name]  # fmt: skip
    for (line, _), one in zip(runs, reached, strict=True):
        line |= {
            "n_cells": cells.train.n_obs, "n_genes": len(problem.genes),
            "n_types": len(problem.types), "objective": one.objective.tolist(),
            "above_least": float((one.objective / least - 1).max()), "slope": one.slope,
            "accuracy": float((one.labels == problem.codes).mean()),
        }  # fmt: skip
        if not one.slope <= SLOPE:
            raise WrongWorkError(
                f"{case.name}: {line['contender']} stopped at a slope of {one.slope:.1e}, before "
                "scikit-learn's rule of 1e-4"
            )
        for mine in ours:
            _compare(case, line, problem, mine, one)


def _compare(
    case: Case, line: dict[str, Any], problem: Problem, ours: Reached, theirs: Reached
) -> None:
    """Require of one run of ours that its objectives and labels stand beside a run of another."""
    above = ours.objective / theirs.objective - 1
    if not (above <= ABOVE).all():
        raise WrongWorkError(
            f"{case.name}: the objective of {problem.columns[above.argmax()]} is {above.max():.1e} "
            f"above {line['contender']}'s, relatively; at most {ABOVE:.0e} is allowed"
        )
    line["agree"] = float((ours.labels == theirs.labels).mean())
    if line["agree"] < AGREE:
        raise WrongWorkError(
            f"{case.name}: {line['contender']} gives {1 - line['agree']:.2%} of the cells another "
            f"label than {OURS.name}; at most {1 - AGREE:.1%} is allowed"
        )


@dataclass(frozen=True)
class Reached:
    """What a model is worth on the cells it was trained on.

    Attributes
    ----------
    objective
        Of each class against the rest, as scikit-learn 1.7's: mean loss + |w|^2 / (2 C n), with
        C = 1; shape (columns,).
    slope
        Largest |partial derivative| of any objective, by weights and intercept.
    labels
        Code of the class with the highest score, shape (n_cells,).
    """

    objective: NDArray[np.float64]
    slope: float
    labels: NDArray[np.int64]


class Problem:
    """Cells scaled as CellTypist scales them, by scikit-learn in float64, and their types.

    Parameters
    ----------
    cells
        X is CSR, log-normalised; obs has `cell_type`.

    Attributes
    ----------
    genes
        Names of the expressed genes, shape (n_genes,).
    types
        Names of the types, ascending.
    columns
        Of those, the ones that have weights: the second of two, else all.
    codes
        Of the cells' types, shape (n_cells,).
    """

    def __init__(self, cells: anndata.AnnData) -> None:
        expressed = np.asarray(cells.X.sum(axis=0)).ravel() > 0
        self._X = cells.X[:, expressed].astype(np.float64)
        self.genes = cells.var_names[expressed].to_numpy().astype(str)
        self.types, self.codes = np.unique(cells.obs[TYPE].astype(str), return_inverse=True)
        self.columns = self.types[1:] if len(self.types) == 2 else self.types
        self._scaler = StandardScaler()
        for block in self._blocks():
            self._scaler.partial_fit(self._X[block].toarray())

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.codes), _BLOCK):
            yield slice(start, min(start + _BLOCK, len(self.codes)))

    def differs(self, model: Evidence) -> str:
        """Say what is wrong with a model of these cells; "" where nothing is."""
        if not np.array_equal(model["classes"], self.types):
            return "has other classes than the types of the cells"
        if not np.array_equal(model["genes"], self.genes):
            return "has other genes than those expressed"
        shape = (len(self.columns), len(self.genes))
        if model["coef"].shape != shape or model["intercept"].shape != shape[:1]:
            return f"has weights of shape {model['coef'].shape}, not {shape}"
        if not (np.isfinite(model["coef"]).all() and np.isfinite(model["intercept"]).all()):
            return "has weights that are not finite"
        for name, due in (("mean", self._scaler.mean_), ("scale", self._scaler.scale_)):
            if not np.allclose(model[name], due, rtol=_SCALING, atol=0):
                return f"scaled by another {name} of some gene"
        return ""

    def reached(self, models: Sequence[Evidence]) -> list[Reached]:
        """Judge models, all in one pass over the cells."""
        if not models:
            return []
        n, k = len(self.codes), len(self.columns)
        W = np.concatenate([model["coef"] for model in models]).astype(np.float64).T
        intercept = np.concatenate([model["intercept"] for model in models])
        inside = np.tile(self.types[self.codes][:, None] == self.columns, len(models))
        loss, slope, total = np.zeros(W.shape[1]), np.zeros(W.shape), np.zeros(W.shape[1])
        scores = np.empty((n, W.shape[1]))
        for block in self._blocks():
            Z = np.minimum(self._scaler.transform(self._X[block].toarray()), 10)
            scores[block] = Z @ W + intercept
            loss += np.logaddexp(0, np.where(inside[block], -1, 1) * scores[block]).sum(axis=0)
            residual = expit(scores[block]) - inside[block]
            slope += Z.T @ residual
            total += residual.sum(axis=0)
        objective = (loss + (W**2).sum(axis=0) / 2) / n
        steepest = np.maximum(np.abs(slope + W).max(axis=0), np.abs(total)) / n
        return [
            Reached(objective[at], float(steepest[at].max()), _labels(scores[:, at]))
            for at in (slice(i, i + k) for i in range(0, W.shape[1], k))
        ]


def _labels(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    if scores.shape[1] == 1:
        scores = np.hstack([-scores, scores])
    labels: NDArray[np.int64] = scores.argmax(axis=1)
    return labels
