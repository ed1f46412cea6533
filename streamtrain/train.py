"""train(): cells on disk in, a Model out. The whole flow stands here once, top to bottom."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.adding import Addition
from streamtrain.budget import (
    BLOCK,
    format_bytes,
    parse_bytes,
    release_freed,
)
from streamtrain.calibration import Calibration
from streamtrain.cells import (
    Cells,
    Labels,
    require_file,
)
from streamtrain.config import Settings, takes_settings, with_recipe
from streamtrain.decode.address import located
from streamtrain.errors import InputError
from streamtrain.features import Features
from streamtrain.first_pass import first_pass, room_for_cells
from streamtrain.model import Model
from streamtrain.rounds import (
    check,
    check_matrix,
    fit,
    keeps_apart,
)
from streamtrain.scaling import Scaler
from streamtrain.scratch import free_disk
from streamtrain.selection import check_enough, top_genes
from streamtrain.sources import open_expression, open_source
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource, report_files
from streamtrain.sources.genes import Genes
from streamtrain.spill import Spill
from streamtrain.stored import Fitted, Stored
from streamtrain.targets import Target, cells_taken, listed_genes, recorder, targets_of
from streamtrain.threads import Threads
from streamtrain.trials import Search, search
from streamtrain.warm_start import as_model, check_shared, weights_from

logger = logging.getLogger(__name__)

_KEPT = 0.5  # share of the room for cells that are kept in memory if all of them fit there


@takes_settings
def train(
    X: Any,
    labels: Labels | None = None,
    genes: Genes | None = None,
    *,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Train a CellTypist classifier from cells on disk, without holding them in memory.

    Parameters
    ----------
    X
        Cells x genes. On disk: the path of an AnnData (.h5ad, or a zarr folder) with log1p
        expression normalised to 10,000 counts, or its address on a server (s3://, gs://, az://,
        https://); or of raw counts, normalised here: a text table
        (.csv, .txt, .tsv, .tab), a Matrix Market file (.mtx), gzipped or not, or a 10x folder. In
        memory: an AnnData (backed ones too), a SciPy sparse matrix or array, a NumPy or Dask array,
        a DataFrame. Several AnnData as one: a list, a pattern such as "atlases/*.h5ad", a folder of
        them, or a collection that annbatch wrote; `file` is an obs column with the file of each
        cell, and `join` says which genes.
    labels
        Name of the obs column with the cell types, or one label a cell: a list-like, or the path
        of a text file with one a line.
    genes
        Gene names, shape (n_vars,), or the path of a text file with one a line; needed only where X
        carries none.
    progress
        Show progress on standard error in stages that take more than two seconds.
    storage_options
        For an address: region, endpoint, credentials and other settings of obstore's store or
        HTTP client, where they are not in the environment (AWS_*, GOOGLE_*, AZURE_*). They are not
        kept in the model.
    **settings
        Any field of `Settings`:
        {settings}

    Returns
    -------
    Model
        Save it with ``model.save``, or for CellTypist with ``model.to_celltypist``.

    Raises
    ------
    InputError
        If the input or a setting cannot be used; the message says what to do.
    FileNotFoundError
        If X is a path that does not exist.
    TypeError
        For a keyword that is no setting.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If cell types did not converge within `max_iter`; the message names them.
    """
    [outcome] = run(X, [labels], genes, settings, progress, storage_options)
    if outcome.unconverged:
        from sklearn.exceptions import ConvergenceWarning

        warnings.warn(outcome.unconverged, ConvergenceWarning, stacklevel=2)
    assert outcome.model is not None  # noqa: S101 - one was asked for
    return outcome.model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one column of labels.

    Attributes
    ----------
    labels
        As given.
    search
        How the trials did; None without folds.
    model
        Trained on all cells, unless not asked for.
    unconverged
        Words which cell types did not converge; empty for none.
    """

    labels: Labels
    search: Search | None
    model: Model | None
    unconverged: str = ""


def run(
    X: Any,
    labels: Sequence[Labels | None],
    genes: Genes | None,
    settings: dict[str, Any],
    progress: bool,
    storage_options: Mapping[str, Any] | None,
    *,
    refit: bool = True,
) -> list[Outcome]:
    """Do what `train` and `cross_validate` do, from one reading for all columns of `labels`."""
    settings = with_recipe(settings)
    before, base = (_named_model(settings, argument) for argument in ("warm_start", "init"))
    weight = settings.get("sampling_weight")
    if weight is not None and not isinstance(weight, str):
        path = isinstance(weight, os.PathLike)
        settings["sampling_weight"] = str(weight) if path else "given as values"
    config = Settings.from_keywords(settings)
    if X is None or not labels or any(column is None for column in labels):
        raise InputError("train() needs both X and labels")
    device = check(config)
    if config.scratch is not None:
        free_disk(config.scratch)  # refuses what is no folder
    X = located(X, storage_options)
    require_file(genes, "genes")
    config.warn_of_ignored()
    added = None if base is None else Addition.of(base, config)
    budget = parse_bytes(config.memory)
    logger.info("Preparing data before training")
    with (
        nullcontext() if device is None else device.within(),
        Threads(config.n_jobs) as threads,
        closing(_open(X, genes, config, budget, threads, progress)) as source,
    ):
        report_files(source, config.normalize, "sum" if config.check_expression else None)
        check_matrix(config, source.is_sparse)
        targets = targets_of(source, labels, weight, config, added)
        cells = targets[0].cells  # of which other targets have the rows
        listed = listed_genes(source, config.gene_list)
        if before is not None:
            check_shared(before, cells.classes, source.genes)
        if config.feature_selection:
            check_enough(source.name, source.n_vars, config.top_genes)
        known = sum(0 if model is None else model.dataset.nbytes for model in (before, base))
        room = room_for_cells(budget, known, source, targets, config)
        taken = cells_taken(source.name, targets, config)
        logger.info(
            "%s: %d cells x %d genes, %s cell types; memory budget %s",
            source.name, cells.n_obs, source.n_vars,
            " and ".join(str(len(target.cells.classes)) for target in targets),
            format_bytes(budget),
        )  # fmt: skip
        with ExitStack() as scratch:
            kept = room * (_KEPT if config.use_SGD else _KEPT / 2)
            spill = scratch.enter_context(
                Spill(source.n_vars, config.dtype, config.scratch, memory=kept, threads=threads)
            )
            moments, ordered = first_pass(
                source, targets, taken, spill, config, room, kept, threads, progress
            )
            if ordered is not None:
                scratch.callback(ordered.close)
            if spill.nbytes > BLOCK:  # collecting takes 0.1 s, which a small job would notice
                release_freed()
            if added is None:
                features = Features.expressed(source.genes, moments)
                silent = source.n_vars - len(features.names)
                if silent:
                    logger.info("%d non-expressed genes are left out", silent)
                if listed is not None:
                    features = features.take(np.flatnonzero(listed[features.at]))
                    if not len(features.names):
                        raise InputError(
                            f"{source.name}: no cell expresses any of the genes of gene_list that "
                            "it has: name others"
                        )
                    logger.info("%d genes of gene_list are trained on", len(features.names))
            else:
                features = added.features(source.genes, moments)

            def scaler_of(stored: Stored, features: Features, *, apart: bool) -> Scaler:
                at = features.at if stored.spill is spill else np.arange(len(features.at))
                return features.scaler(
                    at, stored.spill.n_vars, with_mean=config.with_mean, dtype=config.dtype,
                    apart=apart and keeps_apart(config, source.is_sparse),
                )  # fmt: skip

            def round_of(config: Settings, stored: Stored, features: Features) -> Fitted:
                scaler = scaler_of(stored, features, apart=True)
                classes, start = stored.cells.classes, None
                if added is not None:
                    start = added.state(classes, features, config)
                if config.warm_start is not None and before is not None:
                    start = weights_from(
                        before, classes, features, with_mean=config.with_mean,
                        fit_intercept=config.fit_intercept, dtype=config.dtype,
                    )  # fmt: skip
                return fit(config, stored, scaler, start, room, threads, progress=progress)

            def outcome_of(target: Target) -> Outcome:
                stored = Stored(
                    spill, recorder(taken), target.columns, target.cells, target.held_out,
                    source.is_sparse, ordered, device,
                )  # fmt: skip
                chosen, chosen_features, found = config, features, None
                if target.folds is not None and target.judged is not None:
                    found = search(
                        config, stored, scaler_of(stored, features, apart=True),
                        scaler_of(stored, features, apart=False), target.folds, target.judged,
                        room, threads, progress=progress,
                    )  # fmt: skip
                    chosen = found.config
                    if not refit:
                        return Outcome(target.labels, found, None)
                if config.feature_selection:
                    check_enough(source.name, len(features.names), config.top_genes)
                    logger.info("Selecting features by a first round of SGD")
                    # Of another solver's settings, which a GPU's SGD may not have, by the CPU's.
                    by = stored if config.use_SGD else replace(stored, device=None)
                    first = round_of(config.first_round(), by, features)
                    if first.unconverged:
                        logger.warning("in the first round %s", first.unconverged)
                    chosen_features = features.take(top_genes(first.weights, config.top_genes))
                    del first  # its weights of all genes
                    logger.info(
                        "%d features are selected; second round of training",
                        len(chosen_features.names),
                    )
                    fewer = scratch.enter_context(spill.select(chosen_features.at))
                    stored = replace(stored, spill=fewer)
                    spill.close()
                fitted = round_of(chosen, stored, chosen_features)
                provenance = _provenance(target.labels, source, target.cells, config)
                n_cells: NDArray[np.int64] | None = stored.counts
                if added is not None:
                    n_cells = added.n_cells(target.columns.classes, stored.counts)
                    provenance["init"] = added.provenance()
                if found is not None:
                    provenance["cross_validation"] = found.report()
                model = _model(
                    fitted, chosen, target.columns.classes, n_cells, chosen_features, provenance,
                    None if found is None else found.calibration,
                )  # fmt: skip
                return Outcome(target.labels, found, model, fitted.unconverged)

            outcomes = [outcome_of(target) for target in targets]
        logger.info("Model training done")
        return outcomes


def _named_model(settings: dict[str, Any], argument: str) -> Model | None:
    """Take a model out of the settings, and leave there what it is called."""
    given = settings.get(argument)
    model = as_model(given, argument)
    if given is not None:  # what is left out the recipe would fill in once more
        named = "a Model" if given is model else str(given)
        settings[argument] = None if model is None else named
    return model


def _open(
    X: Any, genes: Any, config: Settings, budget: int, threads: Threads, progress: bool
) -> Source:
    # Raw counts are asked for by name; else X must hold expression, or its raw, as in CellTypist.
    opener = open_source if config.normalize else open_expression
    return opener(
        X, layer=config.layer, gene_key=config.gene_key, genes=genes,
        transpose=config.transpose_input, join=config.join, memory=budget // 4,
        scratch=config.scratch, progress=progress, threads=threads,
    )  # fmt: skip


def _model(
    fitted: Fitted,
    config: Settings,
    classes: NDArray[np.object_],
    n_cells: NDArray[np.int64] | None,
    features: Features,
    provenance: dict[str, Any],
    calibration: Calibration | None,
) -> Model:
    state = fitted.state
    weights: dict[str, Any] = {"coef": state.coef, "intercept": state.intercept}
    if state.average_coef is not None:
        weights = {
            "coef": state.average_coef,
            "intercept": state.average_intercept,
            "coef_last": state.coef,
            "intercept_last": state.intercept,
            "n_averaged": state.n_averaged,
        }
    settings = config.to_dict()
    if fitted.eta0 is not None:
        settings |= {"learning_rate": "constant", "eta0": fitted.eta0}
    return Model.build(
        **weights,
        cell_types=classes,
        genes=features.names,
        mean=features.moments.mean,
        var=features.moments.var,
        scale=features.scale,
        n_obs=features.moments.n,
        n_cells=n_cells,
        with_mean=config.with_mean,
        t=state.t,
        certificate=fitted.certificate,
        settings=settings,
        calibration=None if calibration is None else asdict(calibration),
        provenance=provenance,
        description={
            "date": config.date or str(datetime.now()),
            "details": config.details,
            "url": config.url,
            "source": config.source,
            "version": config.version,
            "number_celltypes": len(classes),
        },
    )


def _provenance(labels: Labels, source: Source, cells: Cells, config: Settings) -> dict[str, Any]:
    """What a model was made from, and with."""
    one = [(source.name, source)]
    files = source.by_file() if isinstance(source, CollectionSource) else one
    return {
        "sources": [_origin(name, part) for name, part in files],
        "labels": str(labels) if isinstance(labels, (str, os.PathLike)) else "given as values",
        "n_cells": cells.n_obs,
        "trained": datetime.now().isoformat(timespec="seconds"),
        "random_state": config.random_state,
        "device": "gpu" if config.on_gpu else "cpu",
        "python": platform.python_version(),
        "packages": {p: version(p) for p in ("streamtrain", "anndata", "numba", "numpy")},
    }


def _origin(name: str, source: Source) -> dict[str, Any]:
    origin = {"name": name, "n_obs": source.n_obs, "n_vars": source.n_vars}
    path = getattr(source, "path", None)
    return origin if path is None else origin | {"bytes": _stored_bytes(path)}


def _stored_bytes(path: Path) -> int:
    """Size of a file or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
