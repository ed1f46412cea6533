"""cross_validate(): cells on disk in, settings ranked by held-out macro-F1 and models out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import xarray as xr

from streamtrain.cells import Labels
from streamtrain.config import takes_settings, with_recipe
from streamtrain.given import TrainGiven
from streamtrain.model import Model
from streamtrain.sources.genes import Genes
from streamtrain.train import Outcome, run

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """How each setting did on the cells that its models had not seen.

    Attributes
    ----------
    table
        A row for each column of labels and setting, the best first: `labels`, `alpha`, `step`,
        `epochs` (until it ended), `macro_f1` (the mean over the folds and the last epochs), `sd`
        (its standard deviation over the folds), whether it is `chosen` (see `folds`), and
        `fold_1`, `fold_2`, ...
    macro_f1
        Macro-F1 by (labels, trial, epoch, fold), with `alpha` and `step` of each trial; NaN after
        a trial has ended.
    models
        By labels, the model of the chosen setting, trained on all cells; none without `refit`.
    """

    table: pd.DataFrame
    macro_f1: xr.DataArray
    models: dict[str, Model]


@takes_settings
def cross_validate(
    X: Any,
    labels: Labels | Sequence[str],
    genes: Genes | None = None,
    *,
    refit: bool = True,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    client: Any = None,
    **settings: Unpack[TrainGiven],
) -> CrossValidation:
    """Rank settings by cross-validation, for one or several columns of labels, from one reading.

    Every alpha is tried with every step, in each fold, all side by side on the mini-batches that
    training takes. `train` with `folds` does the same for one column of labels, and gives the model
    alone.

    Parameters
    ----------
    X, genes, progress, storage_options, client
        As in `train`; the workers of a client try a setting each at a time.
    labels
        As in `train`; or a list of obs columns, each of which is trained on by itself. Cells need
        a label in each of them (`drop_unlabeled`).
    refit
        Train the chosen setting of each column on all cells.
    **settings
        Any field of `Settings`; `folds` is 5 if not given:
        {settings}

    Returns
    -------
    CrossValidation
        The ranking, and the models.

    Raises
    ------
    InputError, FileNotFoundError, TypeError
        As in `train`.
    """
    columns: list[Any] = [labels]
    if isinstance(labels, list | tuple):
        named = all(isinstance(column, (str, os.PathLike)) for column in labels)
        # One label a cell is a list of texts as well, but one in which some come twice.
        if named and 0 < len(set(labels)) == len(labels):
            columns = list(labels)
    keywords = {"use_SGD": True, "mini_batch": True, "folds": _FOLDS}
    keywords |= with_recipe(dict(settings))
    if keywords["folds"] is None:
        keywords["folds"] = _FOLDS
    outcomes = run(
        X, columns, genes, keywords, progress, storage_options, refit=refit, client=client
    )
    names = [_name(outcome.labels) for outcome in outcomes]
    models = {
        name: outcome.model
        for name, outcome in zip(names, outcomes, strict=True)
        if outcome.model is not None
    }
    return CrossValidation(_table(names, outcomes), _curves(names, outcomes), models)


def _name(labels: Labels) -> str:
    return str(labels) if isinstance(labels, (str, os.PathLike)) else "labels"


def _table(names: list[str], outcomes: list[Outcome]) -> pd.DataFrame:
    rows = []
    for name, outcome in zip(names, outcomes, strict=True):
        for row in outcome.search.report() if outcome.search is not None else []:
            folds = {f"fold_{i + 1}": f1 for i, f1 in enumerate(row.pop("folds"))}
            rows.append({"labels": name, **row, **folds})
    return pd.DataFrame(rows)


def _curves(names: list[str], outcomes: list[Outcome]) -> xr.DataArray:
    searches = [outcome.search for outcome in outcomes if outcome.search is not None]
    # In one order for all columns of labels, which rank them each in its own.
    trials = [sorted(found.trials, key=lambda t: (t.alpha, str(t.step))) for found in searches]
    n_epochs, n_folds = np.max([t.macro_f1.shape for each in trials for t in each], axis=0)
    values = np.full((len(names), len(trials[0]), n_epochs, n_folds), np.nan)
    for i, each in enumerate(trials):
        for j, trial in enumerate(each):
            values[i, j, : len(trial.macro_f1), : trial.macro_f1.shape[1]] = trial.macro_f1
    coords = {
        "labels": names,
        "epoch": np.arange(1, n_epochs + 1),
        "fold": np.arange(1, n_folds + 1),
        "alpha": ("trial", [trial.alpha for trial in trials[0]]),
        "step": ("trial", [str(trial.step) for trial in trials[0]]),
    }
    return xr.DataArray(values, coords, ("labels", "trial", "epoch", "fold"), name="macro_f1")
