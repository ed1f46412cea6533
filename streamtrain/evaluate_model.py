"""evaluate_model(): a Model and labelled cells on disk in, how well it calls them out; streamed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.adapt import Adapt
from streamtrain.annotations import UNASSIGNED
from streamtrain.atomic import check_output, replacing
from streamtrain.budget import parse_bytes
from streamtrain.cells import Labels, labelled_cells, require_file
from streamtrain.config import check_split, require_number
from streamtrain.errors import InputError, some
from streamtrain.evaluate import Evaluation, from_confusion
from streamtrain.expression import Normalize
from streamtrain.lineage import Lineage, Parents
from streamtrain.model import Model
from streamtrain.querying import (
    adapted,
    check_rule,
    device_of,
    files_of,
    keep_inputs,
    model_of,
    opened,
    passes_of,
    query_of,
)
from streamtrain.sources.base import Source
from streamtrain.splits import HeldOut, holds, joined, recalled, split
from streamtrain.tally import Tally, calibration_error, reliability

logger = logging.getLogger(__name__)

_MARKS = ("scores.json",)  # a folder of scores is known by this file
_SIZES = (1, 10, 100, 1_000, 10_000)  # cells from which on a cell type is of the next size


@dataclass(frozen=True, eq=False)
class ModelEvaluation(Evaluation):
    """How well a model calls cells; printed it is a table.

    Attributes
    ----------
    accuracy, macro_f1, balanced_accuracy, weighted_f1, n_cells, per_type, confusion
        As of `Evaluation`, over all cells. `per_type` also says whether the model has the type
        (`known`) and, with a parent table, `ontology_f1` and `coarser`. For "prob match" cells with
        no type, or with several, stand in the columns "Unassigned" and "several types".
    known
        The same over the cells whose type the model has; None where it has all or none of them.
    ontology
        The same where a call that descends from the true type is right, too; None without a parent
        table.
    top_k
        A cell is found where its type is among so many of highest score.
    summary
        Scores by what they are over, "all cells", "known types" (where there are others) and
        "ontology". "calibration error" is the expected calibration error (Naeini et al. 2015) over
        15 bins of equal width, as in Guo et al. 2017, of the probability of the best match;
        "log-loss" the mean over cells of known types of minus the natural logarithm of their own
        type's probability, where those of a cell add up to 1; "coarser" the share of cells whose
        call the true type descends from, which is wrong but not false.
    calibration
        The curve: for each bin its ends (the lower one left out), cells, mean probability of the
        best match, and how many of these are right.
    by_size
        Cell types by their number of cells here: types, cells, and mean F1.
    unknown
        Cells of each type that the model does not have.
    cells
        What was evaluated: `source`, `labels`, `where`; the `groups` that were taken alone, else
        None; and whether training `held_out` all of these, None where the model does not say.
    """

    known: Evaluation | None
    ontology: Evaluation | None
    top_k: int
    summary: pd.DataFrame
    calibration: pd.DataFrame
    by_size: pd.DataFrame
    unknown: pd.Series[int]
    cells: dict[str, Any]

    def __str__(self) -> str:
        return self.to_table()

    def to_table(self) -> str:
        """Word the scores for a terminal, the summary last."""
        ordered = self.per_type.sort_values("support", ascending=False, kind="stable")
        curve = self.calibration[self.calibration["n_cells"] > 0]
        parts = [
            _worded(ordered.drop(columns="known")),
            "F1 by the cells of a type\n" + _worded(self.by_size),
            "Calibration: probability of the best match, and how often it is right\n"
            + _worded(curve, index=False),
            _worded(self.summary),
        ]
        if len(self.unknown):
            named = [f"{name!r} ({n:,})" for name, n in self.unknown.items()]
            parts.append(
                f"The model does not have {len(named)} of {len(self.per_type)} cell types, of "
                f"{self.unknown.sum():,} cells: {', '.join(named)}"
            )
        parts.append(f"{self.n_cells:,} cells of {self.cells['source']}{_chosen(self.cells)}")
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values, for JSON; numbers that do not exist are None."""
        return {
            "cells": self.cells | {"n_cells": self.n_cells},
            "summary": _plain(self.summary.to_dict()),
            "top_k": self.top_k,
            "unknown": _plain(self.unknown.to_dict()),
            "per_type": _plain(self.per_type.to_dict("index")),
            "by_size": _plain(self.by_size.to_dict("index")),
            "calibration": [_plain(row) for row in self.calibration.to_dict("records")],
            "confusion": {
                name: {k: int(n) for k, n in row.items() if n}
                for name, row in self.confusion.to_dict("index").items()
            },
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the scores to `path`, all of it or nothing.

        Parameters
        ----------
        path
            .json for everything; .csv for the scores of each cell type; without an ending a
            folder with scores.json, and each table as CSV.
        overwrite
            Whether what stands there is replaced: a file, or a folder that has scores.json.

        Raises
        ------
        InputError
            The path has another ending, exists or cannot be written.
        """
        folder = _check_out(path, overwrite)
        with replacing(path, overwrite, folder=folder, marks=_MARKS) as partial:
            if folder:
                partial.mkdir()
                (partial / _MARKS[0]).write_text(self._json(), encoding="utf-8")
                for name in ("summary", "per_type", "by_size", "calibration", "confusion"):
                    getattr(self, name).to_csv(partial / f"{name}.csv", index=name != "calibration")
            elif Path(path).suffix.lower() == ".csv":
                self.per_type.to_csv(partial)
            else:
                partial.write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"


def evaluate_model(
    model: Model | str | os.PathLike[str],
    X: Any,
    labels: Labels,
    genes: Any = None,
    *,
    mode: Literal["best match", "prob match"] = "best match",
    p_thres: float = 0.5,
    top_k: int = 3,
    parents: Parents | None = None,
    held_out: bool | None = None,
    holdout: str | None = None,
    test_fraction: float | None = None,
    group: str | None = None,
    random_state: int = 0,
    drop_unlabeled: bool = False,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    adapt: Adapt = "none",
    normalize: Normalize = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    transpose_input: bool = False,
    where: str | None = None,
    memory: int | str | None = None,
    scratch: str | None = None,
    n_jobs: int | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    gpu_memory: int | str | None = None,
    client: Any = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> ModelEvaluation:
    """Call labelled cells by a model and score the calls, without holding the cells in memory.

    What is kept of a cell is its true type and its row, 12 bytes at most.

    Parameters
    ----------
    model, X, genes, mode, p_thres
        As in `predict`. Cells with several types, or none, by "prob match" count as wrong.
    labels
        The true types: name of an obs column, path of a text file with one a line, or a list-like.
    top_k
        Also give the share of cells whose type is among so many of highest score.
    parents
        Cell types and what they are a kind of: path of a CSV file with the columns child and
        parent (a type may have several), such a DataFrame, or a dict. A call that descends from
        the true type then is right in the column "ontology".
    held_out
        Take the cells that training held out, and no others. The default does so where X is the
        atlas that the model was trained on, by its number of cells, and the model names some; False
        takes all cells.
    holdout
        Take the cells of some groups alone: "donor_id=D3,D7", as in `train`.
    test_fraction, group, random_state
        Take groups drawn at random, as in `train`: of the same cells, the same ones.
    drop_unlabeled
        Leave out cells without a label. By default they are an error.
    out, overwrite
        Also write the scores here, as `ModelEvaluation.save` does.
    adapt, normalize, check_expression, layer, gene_key, transpose_input, where, memory, scratch, \
n_jobs, device, gpu_memory, client, progress, storage_options
        As in `predict`.

    Returns
    -------
    ModelEvaluation
        The scores; print it, or see its tables.

    Raises
    ------
    InputError
        If model, cells, labels or parents cannot be used, or no true type is known.
    FileNotFoundError
        If X or the model does not exist.
    """
    check_rule(
        mode, p_thres, adapt, normalize, drop_unlabeled=drop_unlabeled, overwrite=overwrite,
        check_expression=check_expression, transpose_input=transpose_input,
    )  # fmt: skip
    require_number("top_k", top_k, 1, whole=True)
    check_split(holdout, test_fraction, group)
    if random_state and test_fraction is None:
        logger.warning("random_state is ignored: it is for test_fraction")
    if held_out not in (True, False, None):
        raise InputError(f"held_out must be True, False or None; got {held_out!r}")
    if held_out and (holdout is not None or test_fraction is not None):
        raise InputError(
            "held_out takes the cells that the model names: leave out holdout and test_fraction"
        )
    on = device_of(device, gpu_memory, client)
    X = files_of(X, storage_options)
    if out is not None:
        _check_out(out, overwrite)
        read = {"X": X, "model": model, "genes": genes, "labels": labels, "parents": parents}
        keep_inputs(out, read)
    require_file(genes, "genes")
    lineage = None if parents is None else Lineage.of(parents)
    model = model_of(model)
    budget = parse_bytes(memory)
    with opened(
        X, genes, normalize=normalize, check_expression=check_expression, layer=layer,
        gene_key=gene_key, transpose_input=transpose_input, budget=budget, scratch=scratch,
        n_jobs=n_jobs, device=on, client=client, progress=progress,
    ) as (source, threads):  # fmt: skip
        told = _here(source, recalled(model.provenance.get("held_out")), asked=bool(held_out))
        groups = split(
            source, where, holdout=holdout, fraction=test_fraction, group=group, seed=random_state
        )
        if groups is not None:
            where = groups.where
        elif held_out is not False:
            groups = _held_out(source, told, model, asked=bool(held_out))
            where = where if groups is None else joined(groups.where, where)
        unseen = None if groups is None or told is None else groups.inside(told)
        if unseen is False:
            logger.warning("training held out %s alone: scores of cells it has seen flatter", told)
        cells = labelled_cells(source, labels, where=where, drop_unlabeled=drop_unlabeled, least=1)
        _require_known(source, cells.classes, model.cell_types, lineage)
        query, beside = query_of(
            model, source, cells.rows, p_thres=p_thres if mode == "prob match" else None,
            detail="scores", adapt=adapt, normalize=normalize, check_expression=check_expression,
            budget=budget, threads=threads, device=on, progress=progress,
        )  # fmt: skip
        tally = Tally(
            cells.codes, cells.classes, model.cell_types, query.rule.temperature,
            None if query.joined is None else query.joined.names, top_k,
        )  # fmt: skip
        with passes_of(query, client, memory, n_jobs, beside) as passes:
            calls, decisions = adapted(query, passes, adapt)
            for block in calls:
                tally.add(block)
        said: dict[str, Any] = {
            "source": source.name,
            "labels": str(labels) if isinstance(labels, (str, os.PathLike)) else "given as values",
            "where": where,
            "groups": None if groups is None else groups.provenance(),
            "held_out": unseen,
        }
        found = _scored(tally, lineage, top_k, said | ({"adapt": decisions} if decisions else {}))
    if out is not None:
        found.save(out, overwrite=overwrite)
    return found


def _here(source: Source, told: HeldOut | None, *, asked: bool) -> HeldOut | None:
    """What the model says was held out of training, where some of it is here."""
    if told is None or holds(source, told):
        return told
    if asked:
        raise InputError(
            f"{source.name} has none of the cells that training held out, {told}: name another "
            "file, or leave out held_out (--held-out)"
        )
    logger.info("%s has none of the groups that training held out", source.name)
    return None


def _held_out(source: Source, told: HeldOut | None, model: Model, *, asked: bool) -> HeldOut | None:
    """The cells that the model says were held out, where these are of the atlas it is from.

    Unless they are asked for: another atlas may call its donors alike.
    """
    if told is None:
        if asked:
            raise InputError(
                "the model names no cells that were held out of its training: train with holdout "
                "(--holdout), or name the cells to take by holdout or where"
            )
        return None
    n_trained = sum(each["n_obs"] for each in model.provenance.get("sources", []))
    if asked or source.n_obs == n_trained:
        logger.info("%s: the cells that training held out alone: %s", source.name, told)
        return told
    logger.info(
        "%s has %d cells, and the atlas of the model %d: all are taken, as new; held_out=True "
        "(--held-out) takes %s alone", source.name, source.n_obs, n_trained, told,
    )  # fmt: skip
    return None


def _require_known(
    source: Source, types: NDArray[Any], cell_types: NDArray[Any], lineage: Lineage | None
) -> None:
    if np.isin(types, cell_types).any():
        return
    if lineage is not None and lineage.below(types, cell_types).any():
        return
    raise InputError(
        f"{source.name}: the model has none of the {len(types)} cell types of its labels, "
        f"{some(types)}; it has {some(cell_types)}: name another column of labels, or pass parents "
        "(--parents), a table by which the model's types descend from these"
    )


def _scored(
    tally: Tally, lineage: Lineage | None, top_k: int, cells: dict[str, Any]
) -> ModelEvaluation:
    """Turn sums into scores."""
    known = np.flatnonzero(tally.known)
    n_types = len(tally.known)
    counts = tally.confusion
    occurring = np.append(np.arange(n_types), n_types + np.flatnonzero(counts[:, n_types:].any(0)))
    counts, names = counts[:, occurring], [tally.names[i] for i in occurring]
    plain = from_confusion(counts, names[:n_types], names)
    over = {"all cells": _summary(plain, tally, np.arange(n_types), top_k)}
    per_type = plain.per_type.assign(known=tally.known)
    of_known = ontology = None
    if 0 < len(known) < n_types:
        order = np.append(known, np.setdiff1d(np.arange(len(names)), known))
        kept = [names[i] for i in order]
        of_known = from_confusion(counts[known][:, order], kept[: len(known)], kept)
        over["known types"] = _summary(of_known, tally, known, top_k)
    if lineage is not None:
        ontology = _by_lineage(counts, names, n_types, lineage)
        over["ontology"] = _averages(ontology)
        coarser = ontology.per_type["coarser"]
        over["ontology"]["coarser"] = float(np.average(coarser, weights=per_type["support"]))
        per_type = per_type.assign(ontology_f1=ontology.per_type["f1"], coarser=coarser)
    shared = {f.name: getattr(plain, f.name) for f in fields(Evaluation)}
    support = per_type["support"]
    return ModelEvaluation(
        **shared | {"per_type": per_type},
        known=of_known,
        ontology=ontology,
        top_k=top_k,
        summary=pd.DataFrame(over).dropna(how="all").rename_axis("score"),
        calibration=reliability(tally.bins.sum(axis=0)),
        by_size=_by_size(per_type),
        unknown=support[~tally.known].sort_values(ascending=False, kind="stable"),
        cells=cells,
    )


def _averages(found: Evaluation) -> dict[str, float]:
    return {
        "accuracy": found.accuracy,
        "balanced accuracy": found.balanced_accuracy,
        "macro F1": found.macro_f1,
        "weighted F1": found.weighted_f1,
    }


def _summary(
    found: Evaluation, tally: Tally, types: NDArray[np.int64], top_k: int
) -> dict[str, float]:
    """Scores over the cells of `types`, positions among all: all types, or the known ones."""
    every = len(types) == len(tally.known)
    n_known = int(tally.confusion[tally.known].sum())
    bins = tally.bins.sum(axis=0) if every else tally.bins[1]
    called = found.confusion
    scores = _averages(found) | {f"top-{top_k} accuracy": tally.within / found.n_cells}
    if tally.joined:
        one = found.n_cells
        for name in (UNASSIGNED, tally.names[-1]):
            n = int(called[name].to_numpy().sum()) if name in called else 0
            scores[name.lower()] = n / found.n_cells
            one -= n
        right = found.accuracy * found.n_cells
        scores["accuracy of one type"] = right / one if one else np.nan
    scores["calibration error"] = calibration_error(bins)
    if tally.log_loss is not None and n_known:
        scores["log-loss"] = tally.log_loss / n_known
    return scores


def _by_lineage(
    counts: NDArray[np.int64], names: list[str], n_types: int, lineage: Lineage
) -> Evaluation:
    """Scores where a call that descends from the true type is right; and how many are coarser."""
    finer = lineage.below(names[:n_types], names)
    coarser = lineage.below(names, names[:n_types]).T
    moved = np.where(finer, 0, counts)
    moved[np.arange(n_types), np.arange(n_types)] += np.where(finer, counts, 0).sum(axis=1)
    found = from_confusion(moved, names[:n_types], names)
    share = np.where(coarser, counts, 0).sum(axis=1) / counts.sum(axis=1)
    return replace(found, per_type=found.per_type.assign(coarser=share))


def _by_size(per_type: pd.DataFrame) -> pd.DataFrame:
    """Cell types by the decade of their number of cells here."""
    size = np.searchsorted(_SIZES, per_type["support"], side="right") - 1
    rows = {}
    for i in np.unique(size).tolist():
        kept = per_type[size == i]
        last = i + 1 == len(_SIZES)
        name = f"{_SIZES[i]:,} or more" if last else f"{_SIZES[i]:,} to {_SIZES[i + 1] - 1:,}"
        rows[name] = {
            "n_types": len(kept), "n_cells": int(kept["support"].sum()),
            "macro_f1": float(kept["f1"].mean()),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("cells_of_type")


def _check_out(path: str | os.PathLike[str], overwrite: bool) -> bool:
    """Check that scores may be written there; whether as a folder."""
    ending = Path(path).suffix.lower()
    if ending not in (".json", ".csv", ""):
        raise InputError(
            f"out must end in .json or .csv, or have no ending, for a folder; got {str(path)!r}"
        )
    check_output(path, overwrite, folder=not ending, marks=_MARKS)
    return not ending


def _worded(frame: pd.DataFrame, *, index: bool = True) -> str:
    frame = frame.rename_axis(None)
    counted = {name: "{:,}".format for name in ("support", "n_cells", "n_types") if name in frame}
    return frame.to_string(
        index=index, float_format="{:.3f}".format, formatters=counted, na_rep="-"
    )


def _chosen(cells: dict[str, Any]) -> str:
    """Word which cells were taken."""
    groups, where = cells["groups"], cells["where"]
    if groups is None:
        return "" if where is None else f", where {where}"
    held = {True: ", held out of training", False: ", not all held out of training", None: ""}
    return f": {groups['column']} {', '.join(map(str, groups['values']))}{held[cells['held_out']]}"


def _plain(value: Any) -> Any:
    """Values that JSON has a form for."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
