"""Quality: donors and studies that training has not seen, annotated and scored by one code.

Each contender trains on the same normalised cells in memory and hands back, of every query cell,
the predicted type and the probabilities that it reports. CellTypist's runs are kept in the cache
folder: nothing of ours changes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from benchmarks import comparison
from benchmarks.atlases import DONOR, LABEL, atlas, real
from benchmarks.contenders.split import Split, split
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.questions import PAIRS, SIMULATED, Question, chosen
from benchmarks.report import Column, View
from streamtrain.errors import InputError, near

_OURS, _THEIRS = (f"benchmarks.contenders.{m}:quality" for m in ("training", "celltypist"))
_SGD = {"use_SGD": True, "mini_batch": True}
_BALANCED = {"balance_cell_type": True}
SEEDED = (
    Contender(
        comparison.RECIPE, _OURS, options={"train": {"recipe": "atlas"}, "adapt": [comparison.AUTO]}
    ),
    Contender("streamtrain", _OURS, options={"train": _SGD}),
    Contender(comparison.SGD, _THEIRS, "celltypist", {"train": _SGD}),
    Contender(comparison.BALANCED, _THEIRS, "celltypist", {"train": _SGD | _BALANCED}),
)
LOGISTIC = (
    Contender("streamtrain logistic", _OURS, options={"train": {}}),
    Contender(comparison.LOGISTIC, _THEIRS, "celltypist", {"train": {}}),
)
_CONTENDERS = Path(__file__).parents[1] / "contenders"
_BINS = 15
_HOPELESS = 1e-3
_SCORES = (
    ("macro_f1", "macro-F1"),
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("log_loss", "log-loss"),
    ("calibration_error", "calibration error"),
    ("hopeless", "no probability of 0.001"),
)
VIEW = View(
    tuple(Column(*score, "{:.3f}".format) for score in _SCORES), None, comparison.dots,
    (comparison.beside_celltypist, comparison.adaptation),
)  # fmt: skip
_NO_TYPES = ("Other", "Unclassified")  # what an annotator left over


@dataclass(frozen=True)
class Answer:
    """What check() compares with: digest of the split, types of the training half, the truth."""

    digest: str
    types: NDArray[Any]
    truth: NDArray[Any]


def cases(settings: dict[str, Any]) -> list[Case]:
    """Each question twice: a run for each seed of those that draw, one of what does not."""
    known = [one.name for one in (*SEEDED, *LOGISTIC)]
    unknown = [name for name in settings["contenders"] if name not in known]
    if unknown:
        raise InputError(f"contenders: there is no {unknown[0]!r}: {near(unknown[0], known)}")
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    common = {"drop": _NO_TYPES, "epochs": settings["epochs"], "batch_size": 200}
    small = atlas("h5ad", cells=settings["warm_up_cells"], **shape)
    warm_up = common | {"files": [str(small)], "label": LABEL, "group": DONOR, "held_out": []}
    warm_up |= {"inner": DONOR, "epochs": 1, "repeat": 0}
    found = []
    for name, question in chosen(settings["sets"]).items():
        job: dict[str, Any] = common | {
            "files": [_file(file, settings, shape) for file in question.files],
            "label": question.label, "group": question.group, "held_out": question.held_out,
            "inner": question.inner, "trained_on": question.trained_on,
        }  # fmt: skip
        halves = split(job)
        job["held_out"] = halves.held_out
        if halves.train.n_obs > settings["batch_size"]:
            job["batch_size"] = settings["batch_size"]
        for contenders, repeats in ((SEEDED, None), (LOGISTIC, 1)):
            case = Case(
                name, job, _who(contenders, question, settings), warm_up, repeats=repeats,
                files=job["files"], about={"kind": question.kind, "held_out": halves.held_out},
                reference=Answer(halves.digest, halves.types, halves.truth),
                depends=_depends(halves, job),
            )  # fmt: skip
            found += [case] if case.contenders else []
    return found


def _who(
    contenders: Sequence[Contender], question: Question, settings: dict[str, Any]
) -> list[Contender]:
    """Those whom the settings name; of pairs only those that adapt."""
    return [
        one
        for one in contenders
        if one.name in settings["contenders"] and (question.kind != PAIRS or "adapt" in one.options)
    ]


def _depends(halves: Split, job: dict[str, Any]) -> dict[str, Any]:
    """What CellTypist's answers depend on: the cells, its steps, and the code that runs it."""
    code = b"".join((_CONTENDERS / name).read_bytes() for name in ("celltypist.py", "split.py"))
    return {
        "digest": halves.digest,
        "epochs": job["epochs"],
        "batch_size": job["batch_size"],
        "code": hashlib.sha256(code).hexdigest(),
    }


def _file(name: str, settings: dict[str, Any], shape: dict[str, int]) -> str:
    if name == SIMULATED:
        return str(atlas("h5ad", cells=settings["cells"], **shape))
    return real(name, settings["data"])


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every contender saw the split's cells and answered for each; its scores join its records."""
    answer: Answer = case.reference
    for name, lines in done.items():
        found = evidence.get(name, [])
        if len(found) != len(lines):
            raise WrongWorkError(
                f"{case.name}: {name} predicted in {len(found)} of its runs; there are {len(lines)}"
            )
        for line, one in zip(lines, found, strict=True):
            if wrong := _steps(case, line):
                raise WrongWorkError(f"{case.name}: {name} {wrong}")
            for mode, given in _by_mode(one).items():
                if wrong := _wrong(answer, line, given):
                    raise WrongWorkError(f"{case.name}: {name} {wrong}")
                line.update({mode + k: v for k, v in scores(given, answer.truth).items()})
                if "adapted" in given:
                    line[f"{mode}adapted"] = bool(given["adapted"])


def _by_mode(found: Evidence) -> dict[str, Evidence]:
    """Evidence of prediction as it is, under "", and as adapted, under the mode's prefix."""
    prefixes = [key.removesuffix("predicted") for key in found if key.endswith("predicted")]
    return {
        prefix: {"truth": found["truth"]}
        | {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}
        for prefix in prefixes
    }


def _wrong(answer: Answer, line: dict[str, Any], found: Evidence) -> str:
    """Say what is wrong with a contender's work; "" where nothing is."""
    n_query, n_types = len(answer.truth), len(answer.types)
    if line["digest"] != answer.digest:
        return "had other cells than the split's"
    if not np.array_equal(found["truth"], answer.truth):
        return "was judged by other labels than the split's"
    if len(found["predicted"]) != n_query or found["probabilities"].shape != (n_query, n_types):
        return (
            f"predicted {len(found['predicted']):,} cells, with probabilities of shape "
            f"{found['probabilities'].shape}; there are {n_query:,} and {n_types} types"
        )
    if sorted(found["classes"]) != sorted(answer.types):
        return "has other classes than the types of the training cells"
    if not ((found["predicted"] >= 0) & (found["predicted"] < n_types)).all():
        return "predicted a label that is no type of the training cells"
    probabilities = found["probabilities"]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # nor NaN
        return "gave probabilities that are not between 0 and 1"
    return ""


def _steps(case: Case, line: dict[str, Any]) -> str:
    """Say where SGD took other steps than its settings ask for; "" where it did not."""
    if "steps" not in line:  # the logistic regression's
        return ""
    size = case.job["batch_size"]
    # 100 batches an epoch, CellTypist's default.
    due = case.job["epochs"] * min(100 * size, line["n_train"])
    return "" if line["steps"] == due else f"took {line['steps']:,} steps, not {due:,}"


def scores(found: Evidence, truth: NDArray[Any]) -> dict[str, float]:
    """Score one run.

    Parameters
    ----------
    found
        `classes`, `predicted` codes and `probabilities` as reported, one-vs-rest ones as they are.
    truth
        Type of each cell; each is among the classes.

    Returns
    -------
    dict
        `macro_f1` and `balanced_accuracy`, means over the types of the truth; `accuracy`;
        `log_loss` of each cell's probabilities divided by their sum (evenly spread where all are
        0) and not taken below 1e-15; `calibration_error`, the expected one of the predicted type's
        probability as reported, over 15 bins of equal width; `confidence`, that probability's mean;
        `hopeless`, the share of cells with no probability of 0.001 or more.
    """
    order = np.argsort(found["classes"])
    true = order[np.searchsorted(found["classes"], truth, sorter=order)]
    predicted, probabilities = found["predicted"], found["probabilities"]
    _, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=np.unique(true), zero_division=0
    )
    cells = np.arange(len(true))
    total = probabilities.sum(axis=1)
    even = np.full(len(true), 1 / probabilities.shape[1])
    share = np.divide(probabilities[cells, true], total, out=even, where=total > 0)
    confidence = probabilities[cells, predicted]
    return {
        "macro_f1": float(f1.mean()),
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": float(recall.mean()),
        "log_loss": float(-np.log(np.maximum(share, 1e-15)).mean()),
        "calibration_error": calibration_error(confidence, predicted == true),
        "confidence": float(confidence.mean()),
        "hopeless": float((probabilities.max(axis=1) < _HOPELESS).mean()),
    }


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean over cells of |share right - mean confidence| of their bin (Guo et al. 2017)."""
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gap = np.bincount(bins, right.astype(np.float64) - confidence, minlength=_BINS)
    return float(np.abs(gap).sum() / len(confidence))
