"""JSON lines of the quality suite in; tables of the recipe beside others, and a picture, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks.questions import CONDITIONS, DONORS, PAIRS, STUDIES
from benchmarks.report import Column, Line, View, grouped, table

RECIPE = "streamtrain, recipe atlas"
CELLTYPIST = SGD, BALANCED, LOGISTIC = (
    "CellTypist SGD", "CellTypist SGD, balanced", "CellTypist logistic",
)  # fmt: skip
AUTO = "auto"  # the mode of adaptation that predict() decides on

Found = dict[str, Any]  # of a question, by a column's key
_SCORE, _DIFFERENCE, _SHARE = "{:.3f}".format, "{:+.3f}".format, "{:.3%}".format
_BESIDE = (
    Column("ours", "recipe's macro-F1", _SCORE),
    Column("ours_sd", "±", _SCORE),
    Column("best", "CellTypist's best", _SCORE),
    Column("whose", "that is", str),
    Column("gain", "difference", _DIFFERENCE),
    Column("adapted", "with adapt auto", _SCORE),
    Column("adapted_gain", "difference", _DIFFERENCE),
    Column("sgd", "CellTypist SGD", _SCORE),
    Column("sgd_sd", "±", _SCORE),
    Column("over_sgd", "difference", _DIFFERENCE),
    Column("log_loss", "recipe's log-loss", _SCORE),
    Column("logistic_loss", "CellTypist logistic's", _SCORE),
    Column("calibration_error", "recipe's calibration error", _SCORE),
    Column("hopeless", "cells without a probability of 0.001", _SHARE),
)
_ADAPTATION = (
    Column("as_is", "macro-F1 as is", _SCORE),
    Column("adapted", "adapt auto", _SCORE),
    Column("gain", "difference", _DIFFERENCE),
    Column("switched", "seeds that adapted", str),
    Column("log_loss", "log-loss as is", _SCORE),
    Column("adapted_log_loss", "adapt auto", _SCORE),
)
_WORST: dict[str, Callable[[list[float]], float]] = {
    "gain": min, "adapted_gain": min, "over_sgd": min, "calibration_error": max, "hopeless": max,
}  # fmt: skip
_ADAPTED = f"{AUTO}_macro_f1"
_SEEN_ALIKE, _ACROSS = (DONORS, CONDITIONS), (STUDIES, PAIRS)


def beside_celltypist(lines: Sequence[Line]) -> list[str]:
    """Compare the recipe with CellTypist in each question that both answered."""
    found = {}
    for case, runs in _answered(lines).items():
        theirs = {name: runs[name] for name in CELLTYPIST if name in runs}
        if RECIPE in runs and theirs:
            found[case] = _beside(runs[RECIPE], theirs)
    groups = {
        "all": (*_SEEN_ALIKE, STUDIES), "donors and conditions": _SEEN_ALIKE, "studies": (STUDIES,),
    }  # fmt: skip
    text = (
        "Means over seeds, ± their standard deviation; the last column is of the worst seed. "
        "CellTypist's SGD takes five epochs, as the settings say, and all else by its defaults. "
        "CellTypist's best is, for each question anew, the best mean of its SGD, balanced SGD and "
        "logistic regression on the very cells they are judged on. With adapt auto, the same "
        'models annotate by `adapt="auto"`.'
    )
    return _section("The recipe beside CellTypist", text, _BESIDE, found, _grouped(lines, groups))


def _beside(ours: list[Line], theirs: Mapping[str, list[Line]]) -> Found:
    best = max(theirs, key=lambda name: _mean(theirs[name], "macro_f1"))
    few = "" if len(theirs) == len(CELLTYPIST) else f", of {len(theirs)}"
    found: Found = {
        "ours": _mean(ours, "macro_f1"),
        "best": _mean(theirs[best], "macro_f1"),
        "whose": best.removeprefix("CellTypist ") + few,
        "calibration_error": _mean(ours, "calibration_error"),
        "log_loss": _mean(ours, "log_loss"),
        "hopeless": max(run["hopeless"] for run in ours),
    }
    found["gain"] = found["ours"] - found["best"]
    if _ADAPTED in ours[0]:
        found["adapted"] = _mean(ours, _ADAPTED)
        found["adapted_gain"] = found["adapted"] - found["best"]
    if SGD in theirs:
        found["sgd"] = _mean(theirs[SGD], "macro_f1")
        found["over_sgd"] = found["ours"] - found["sgd"]
    if LOGISTIC in theirs:
        found["logistic_loss"] = _mean(theirs[LOGISTIC], "log_loss")
    for key, runs in (("ours_sd", ours), ("sgd_sd", theirs.get(SGD, []))):
        if len(runs) > 1:
            found[key] = stdev(run["macro_f1"] for run in runs)
    return found


def adaptation(lines: Sequence[Line]) -> list[str]:
    """Compare prediction with and without adaptation by the recipe's models."""
    found: dict[str, Found] = {}
    for case, runs in _answered(lines).items():
        if _ADAPTED not in runs.get(RECIPE, [{}])[0]:
            continue
        ours = runs[RECIPE]
        adapted = [run[f"{AUTO}_adapted"] for run in ours if f"{AUTO}_adapted" in run]
        found[case] = {
            "as_is": _mean(ours, "macro_f1"),
            "adapted": _mean(ours, _ADAPTED),
            "gain": _mean(ours, _ADAPTED) - _mean(ours, "macro_f1"),
            "switched": f"{sum(adapted)} of {len(adapted)}" if adapted else "",
            "log_loss": _mean(ours, "log_loss"),
            "adapted_log_loss": _mean(ours, f"{AUTO}_log_loss"),
        }
    groups = {"studies and pairs of them": _ACROSS, "donors and conditions": _SEEN_ALIKE}
    text = 'The same models, which annotate the same cells as they are and with `adapt="auto"`.'
    return _section("Adaptation", text, _ADAPTATION, found, _grouped(lines, groups))


def _answered(lines: Sequence[Line]) -> dict[str, dict[str, list[Line]]]:
    """Runs that were scored, by question and contender."""
    found: dict[str, dict[str, list[Line]]] = {}
    for (case, name), runs in grouped([x for x in lines if "macro_f1" in x]).items():
        found.setdefault(case, {})[name] = runs
    return found


def _grouped(lines: Sequence[Line], groups: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Questions of each group of kinds."""
    return {
        name: {line["case"] for line in lines if line["kind"] in kinds}
        for name, kinds in groups.items()
    }


def _mean(runs: Sequence[Line], key: str) -> float:
    return fmean(run[key] for run in runs)


def _section(
    title: str,
    text: str,
    columns: Sequence[Column],
    found: Mapping[str, Found],
    groups: Mapping[str, set[str]],
) -> list[str]:
    """Write a row a question, then the means and the worst of each group of questions."""
    if not found:
        return []
    rows = dict(found)
    for name, cases in groups.items():
        of = [found[case] for case in found if case in cases]
        if len(of) > 1:  # a column that some lack would mix questions
            keys = [
                c.key
                for c in columns
                if c.title != "±" and all(isinstance(x.get(c.key), float) for x in of)
            ]
            rows[f"mean of {len(of)}: {name}"] = {k: fmean(x[k] for x in of) for k in keys}
            rows[f"worst of {len(of)}: {name}"] = {
                k: worst([x[k] for x in of]) for k, worst in _WORST.items() if k in keys
            }
    body = [
        [case, *(c.form(row[c.key]) if c.key in row else "" for c in columns)]
        for case, row in rows.items()
    ]
    titles = ["question", *(column.title for column in columns)]
    return [f"## {title}", "", text, "", *table(titles, body, words=1)]


def dots(lines: Sequence[Line], view: View) -> Figure:
    """One row a question, a dot for each contender's mean, a line for its range."""
    column, runs = view.columns[0], _answered(lines)
    names = list(dict.fromkeys(name for who in runs.values() for name in who))
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(runs)), layout="constrained")
    panel = figure.subplots()
    for i, name in enumerate(names):
        rows = [row for row, who in enumerate(runs.values()) if name in who]
        values = [[x[column.key] for x in who[name]] for who in runs.values() if name in who]
        y = [row + 0.5 * (i / max(1, len(names) - 1) - 0.5) for row in rows]
        color = "tab:orange" if name == RECIPE else f"C{i + 2}"
        panel.hlines(y, [min(v) for v in values], [max(v) for v in values], color=color, lw=1)
        panel.plot([fmean(v) for v in values], y, "o", ms=4, color=color, label=name)
    panel.set_yticks(range(len(runs)), list(runs))
    panel.set_ylim(len(runs) - 0.4, -0.6)
    panel.grid(axis="y", color="0.9")
    panel.set_xlabel(column.title)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
