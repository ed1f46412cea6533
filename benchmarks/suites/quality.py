"""Quality: donors and studies that training has not seen, annotated and scored by one code.

Each contender trains on the same normalised cells in memory and hands back, of every query cell,
the predicted type and the probabilities that it reports; times are of training alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from benchmarks.atlases import DONOR, LABEL, atlas, real
from benchmarks.contenders.split import STUDY, split
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import SECONDS, Column, View, bars
from streamtrain.errors import InputError, near

_OURS, _THEIRS = (f"benchmarks.contenders.{m}:quality" for m in ("training", "celltypist"))
_SGD = {"use_SGD": True, "mini_batch": True}
_BALANCED = {"balance_cell_type": True}
SEEDED = (
    Contender("streamtrain", _OURS, options={"train": _SGD}),
    Contender("streamtrain, balanced", _OURS, options={"train": _SGD | _BALANCED}),
    Contender(
        "streamtrain, balanced, averaged",
        _OURS,
        options={"train": _SGD | _BALANCED | {"average": True}},
    ),
    Contender("CellTypist SGD", _THEIRS, "celltypist", {"train": _SGD}),
    Contender("CellTypist SGD, balanced", _THEIRS, "celltypist", {"train": _SGD | _BALANCED}),
)
LOGISTIC = (
    Contender("streamtrain logistic", _OURS, options={"train": {}}),
    Contender("CellTypist logistic", _THEIRS, "celltypist", {"train": {}}),
)
SIMULATED = "simulated"
_BINS = 15
_SCORES = (
    ("macro_f1", "macro-F1"),
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("log_loss", "log-loss"),
    ("calibration_error", "calibration error"),
)
VIEW = View((*(Column(*score, "{:.3f}".format) for score in _SCORES), SECONDS), None, bars)


@dataclass(frozen=True)
class Question:
    """Which cells to annotate, and which to learn that from.

    Attributes
    ----------
    files
        Names of files in the data folder; several are joined on their common genes.
    group
        obs column of donors, libraries or studies; "study" is the file.
    held_out
        The groups to annotate; by default a quarter of them, drawn once.
    label
        obs column of the cell types. `cell_type_coarse` names alike what the PBMC sets name each
        in its own way, and pools the FACS sorts of CD4 and of CD8 T cells.
    """

    files: tuple[str, ...]
    group: str
    held_out: tuple[str, ...] = ()
    label: str = LABEL


_PANCREAS, _COARSE = ("pancreas_4studies",), "cell_type_coarse"
QUESTIONS = {
    "bone marrow, mouse": Question(("mouse_bm_paul15",), "batch"),
    "lung": Question(("lung_ts",), "donor"),
    "mammary gland, mouse": Question(("mouse_mammary_mca",), "batch"),
    "BALF": Question(("balf_covid",), "donor"),
    "brain": Question(("brain_habib17",), "batch"),
    "PBMC, IFN-beta": Question(("pbmc_kang_ifnb",), "donor"),
    "PBMC, 10x": Question(("pbmc_10x_4k8k",), "batch"),
    "pancreas": Question(_PANCREAS, "donor"),
    "pancreas, study Fasolino": Question(_PANCREAS, "batch", ("Fasolino et al. 2022",)),
    "pancreas, study Muraro": Question(_PANCREAS, "batch", ("Muraro et al. 2016",)),
    "pancreas, study Tosti": Question(_PANCREAS, "batch", ("Tosti et al. 2021",)),
    "pancreas, study Tritschler": Question(_PANCREAS, "batch", ("Tritschler et al. 2022",)),
    "PBMC, 3k to FACS": Question(
        ("pbmc3k", "pbmc_zheng_facs"), STUDY, ("pbmc_zheng_facs",), _COARSE
    ),
    "PBMC, 10x to FACS": Question(
        ("pbmc_10x_4k8k", "pbmc_zheng_facs"), STUDY, ("pbmc_zheng_facs",), _COARSE
    ),
    "PBMC, IFN-beta to 3k": Question(("pbmc_kang_ifnb", "pbmc3k"), STUDY, ("pbmc3k",), _COARSE),
    "PBMC, 10x to IFN-beta": Question(
        ("pbmc_10x_4k8k", "pbmc_kang_ifnb"), STUDY, ("pbmc_kang_ifnb",), _COARSE
    ),
    SIMULATED: Question((SIMULATED,), DONOR),
}
_NO_TYPES = ("Other", "Unclassified")  # what an annotator left over


@dataclass(frozen=True)
class Answer:
    """What check() compares with: digest of the split, types of the training half, the truth."""

    digest: str
    types: NDArray[Any]
    truth: NDArray[Any]


def cases(settings: dict[str, Any]) -> list[Case]:
    """Each question twice: a run for each seed of those that draw, one of what does not."""
    unknown = [name for name in settings["sets"] if name not in QUESTIONS]
    if unknown:
        raise InputError(f"sets: there is no {unknown[0]!r}: {near(unknown[0], QUESTIONS)}")
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    common = {"drop": _NO_TYPES, "epochs": settings["epochs"], "batch_size": 200}
    small = atlas("h5ad", cells=settings["warm_up_cells"], **shape)
    warm_up = common | {"files": [str(small)], "label": LABEL, "group": DONOR, "held_out": []}
    warm_up |= {"epochs": 1, "repeat": 0}
    found = []
    for name in settings["sets"]:
        question = QUESTIONS[name]
        job: dict[str, Any] = common | {
            "files": [_file(file, settings, shape) for file in question.files],
            "label": question.label, "group": question.group, "held_out": question.held_out,
        }  # fmt: skip
        halves = split(job)
        job["held_out"] = halves.held_out
        if halves.train.n_obs > settings["batch_size"]:
            job["batch_size"] = settings["batch_size"]
        answer = Answer(halves.digest, halves.types, halves.truth)
        about = {"held_out": halves.held_out}
        found += [
            Case(
                name,
                job,
                who,
                warm_up,
                repeats=repeats,
                files=job["files"],
                about=about,
                reference=answer,
            )
            for who, repeats in ((SEEDED, None), (LOGISTIC, 1))
        ]
    return found


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
            if wrong := _wrong(answer, line, one) or _steps(case, line):
                raise WrongWorkError(f"{case.name}: {name} {wrong}")
            line.update(scores(one, answer.truth))


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
        probability as reported, over 15 bins of equal width; `confidence`, that probability's mean.
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
    }


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean over cells of |share right - mean confidence| of their bin (Guo et al. 2017)."""
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gap = np.bincount(bins, right.astype(np.float64) - confidence, minlength=_BINS)
    return float(np.abs(gap).sum() / len(confidence))
