"""train(): cells on disk in, a Model out. The whole flow stands here once, top to bottom."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.adding import Addition
from streamtrain.budget import (
    BLOCK,
    READING_RESERVE,
    format_bytes,
    free_memory,
    parse_bytes,
    release_freed,
)
from streamtrain.calibration import Calibration
from streamtrain.cells import (
    Cells,
    Labels,
    common_rows,
    expression_of,
    labelled_cells,
    require_file,
)
from streamtrain.config import Settings, takes_settings, with_recipe
from streamtrain.decode.address import located
from streamtrain.errors import InputError, some
from streamtrain.features import Features
from streamtrain.holdout import Folds, folds_of, hold_out
from streamtrain.model import Model
from streamtrain.ordered import PlanOrder
from streamtrain.progress import counted
from streamtrain.rounds import (
    Fitted,
    Stored,
    check,
    check_room,
    fit,
    fixed_bytes,
    keeps_apart,
    needed_room,
    plan_epochs,
)
from streamtrain.sampling_columns import batch_keys, sampling_weights
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler
from streamtrain.scratch import free_disk, require_free
from streamtrain.selection import check_enough, top_genes
from streamtrain.solvers.class_weight import class_weights
from streamtrain.sources import open_expression, open_source
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource, report_files
from streamtrain.sources.genes import Genes
from streamtrain.sources.lines import read_lines
from streamtrain.spill import Spill
from streamtrain.strategies import window_in_cache
from streamtrain.streaming import sweep
from streamtrain.threads import Threads
from streamtrain.trials import Judged, Search, judged_cells, search
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
    assert outcome.model is not None  # noqa: S101 - one was asked for
    return outcome.model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one column of labels: how the trials did, where there are, and the model."""

    labels: Labels
    search: Search | None
    model: Model | None


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
    check(config)
    if config.scratch is not None:
        free_disk(config.scratch)  # refuses what is no folder
    X = located(X, storage_options)
    require_file(genes, "genes")
    config.warn_of_ignored()
    added = None if base is None else Addition.of(base, config)
    budget = parse_bytes(config.memory)
    logger.info("Preparing data before training")
    with (
        Threads(config.n_jobs) as threads,
        closing(_open(X, genes, config, budget, threads, progress)) as source,
    ):
        report_files(source, config.normalize, "sum" if config.check_expression else None)
        targets = _targets(source, labels, weight, config, added)
        cells = targets[0].cells  # of which other targets have the rows
        listed = _listed(source, config.gene_list)
        if before is not None:
            check_shared(before, cells.classes, source.genes)
        if config.feature_selection:
            check_enough(source.name, source.n_vars, config.top_genes)
        known = sum(0 if model is None else model.dataset.nbytes for model in (before, base))
        room = _room(budget, known, source, targets, config)
        taken = _cells_taken(source.name, targets, config)
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
            moments, ordered = _first_pass(
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
                    spill, _recorder(taken), target.columns, target.cells, target.held_out,
                    source.is_sparse, ordered,
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
                    first = round_of(config.first_round(), stored, features)
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
                if fitted.unconverged:
                    _warn(fitted.unconverged)
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
                return Outcome(target.labels, found, model)

            outcomes = [outcome_of(target) for target in targets]
        logger.info("Model training done")
        return outcomes


@dataclass(frozen=True, slots=True)
class Target:
    """One column of labels.

    Attributes
    ----------
    labels
        As given.
    cells
        The labelled cells, the same rows for every target.
    columns
        The same, by the classes that the solver has columns of.
    held_out
        Which cells epochs are judged by, shape (n,); None for none.
    folds
        Of cross-validation; None without it.
    judged
        Cells that it judges by; None without it.
    """

    labels: Labels
    cells: Cells
    columns: Cells
    held_out: NDArray[np.bool_] | None
    folds: Folds | None
    judged: Judged | None


def _targets(
    source: Source,
    labels: Sequence[Labels | None],
    weight: Any,
    config: Settings,
    added: Addition | None,
) -> list[Target]:
    each = [
        labelled_cells(
            source, column, where=config.where, drop_unlabeled=config.drop_unlabeled,
            least=2 if added is None else 1,
        )
        for column in labels if column is not None
    ]  # fmt: skip
    each = common_rows(each)
    key = weights = None
    if config.batch_key is not None:
        key = batch_keys(source, each[0], config.batch_key)
    if weight is not None:
        weights = sampling_weights(source, each[0], weight)
    targets = []
    for column, cells in zip(labels, each, strict=True):
        columns = cells if added is None else added.join(cells, source.genes)
        counts = np.bincount(columns.codes, minlength=len(columns.classes))
        class_weights(config.class_weight, columns.classes, counts)
        cells = replace(cells, batch_key=key, weight=weights)
        folds = judged = None
        if config.folds is not None:
            folds = folds_of(
                source, cells, n=config.folds, groups=config.validation_groups,
                seed=config.random_state,
            )  # fmt: skip
            judged = judged_cells(cells, folds, config.random_state)
        held_out = _held_out(source, cells, config)
        target = Target(column, cells, columns, held_out, folds, judged)  # type: ignore[arg-type]
        targets.append(target)
    return targets


def _listed(source: Source, gene_list: str | list[str] | None) -> NDArray[np.bool_] | None:
    """Mark the source's genes that `gene_list` names, shape (n_vars,); None for all."""
    if gene_list is None:
        return None
    names = gene_list
    if isinstance(names, str):
        require_file(names, "gene_list")
        names = [name for name in read_lines(names, "gene_list") if name]
    at = pd.Index(source.genes).get_indexer(pd.Index(names, dtype=object))
    found = np.zeros(source.n_vars, bool)
    found[at[at >= 0]] = True
    if not found.any():
        raise InputError(
            f"{source.name}: none of its genes is in gene_list; it has names such as "
            f"{some(source.genes)}, the list {some(names)}"
        )
    lacking = np.asarray(names, object)[at < 0]
    if len(lacking):
        logger.warning(
            "%s: %d of %d genes of gene_list are not there: %s", source.name, len(lacking),
            len(names), some(lacking),
        )  # fmt: skip
    return found


def _named_model(settings: dict[str, Any], argument: str) -> Model | None:
    """Take a model out of the settings, and leave there what it is called."""
    given = settings.pop(argument, None)
    model = as_model(given, argument)
    if model is not None:
        settings[argument] = "a Model" if given is model else str(given)
    return model


def _warn(words: str) -> None:
    from sklearn.exceptions import ConvergenceWarning

    warnings.warn(words, ConvergenceWarning, stacklevel=3)  # at the caller of train()


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


def _held_out(source: Source, cells: Cells, config: Settings) -> NDArray[np.bool_] | None:
    if not config.early_stopping:
        return None
    held = hold_out(
        source, cells, fraction=config.validation_fraction, groups=config.validation_groups,
        seed=config.random_state,
    )  # fmt: skip
    logger.info("%d of %d cells are held out to judge epochs by", held.sum(), len(held))
    return held


def _cells_taken(name: str, targets: list[Target], config: Settings) -> NDArray[np.bool_] | None:
    """Mark the cells that any round takes, shape (n,); None for all of them."""
    cells, held_out = targets[0].cells, targets[0].held_out
    n = cells.n_obs if held_out is None else int((~held_out).sum())
    if not (config.trains_sgd and config.mini_batch):
        return None
    repeats = config.replace or config.quotas is not None
    if n <= config.batch_size and not repeats:
        raise InputError(
            f"{name}: mini-batches need more cells than batch_size; got {n:,} cells and "
            f"batch_size={config.batch_size:,}: lower batch_size (--batch-size), or leave out "
            "mini_batch"
        )
    if n < 10_000 and config.folds is None:
        logger.warning(
            "%s: %d cells are few for mini-batches; SGD over whole epochs (mini_batch=False) may "
            "do better", name, n,
        )  # fmt: skip
    taken = np.zeros(cells.n_obs, bool)
    for target in targets:
        plan = plan_epochs(config, target.cells, target.held_out)  # refuses what cannot be drawn
        if not config.use_SGD:  # the second round takes every cell
            return None
        drawn = plan.ever_drawn()
        if target.held_out is not None:
            taken |= target.held_out
            taken[~target.held_out] |= drawn
        else:
            taken |= drawn
        if target.judged is not None:
            taken[target.judged.at] = True
    return None if taken.all() else taken


def _recorder(
    taken: NDArray[np.bool_] | None,
) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Make the function from positions among the labelled cells to numbers on scratch."""
    if taken is None:
        return lambda positions: positions
    rank = np.cumsum(taken, dtype=np.uint32) - np.uint32(1)
    return lambda positions: rank[positions].astype(np.int64)


def _first_pass(
    source: Source,
    targets: list[Target],
    taken: NDArray[np.bool_] | None,
    spill: Spill,
    config: Settings,
    room: int,
    kept: float,
    threads: Threads,
    progress: bool,
) -> tuple[RunningMoments, PlanOrder | None]:
    """Read every cell once: checks, moments, and the cells that any round takes are kept.

    They are kept by `spill`, or, where the page cache would not hold them, in plan order.
    """
    cells = targets[0].cells
    check: Literal["sum"] | None = "sum" if config.check_expression else None
    expression = expression_of(
        source, cells.rows, normalize=config.normalize, check=check, dtype=config.dtype,
        threads=threads,
    )  # fmt: skip
    moments = MomentsPass(source.n_vars, threads)
    ordered: PlanOrder | None = None
    n_taken = cells.n_obs if taken is None else int(np.count_nonzero(taken))
    # Alive at a time: the block at hand and the next, each as stored and as read, the normalised
    # values and the spilled copy.
    block = int(min((room - kept) / 6, BLOCK))
    blocks = sweep(source, cells.rows, block)
    for position, stored in counted(blocks, "Reading", cells.n_obs, show=progress):
        if position == 0:  # what the first cells tell of the rest, before hours are spent
            cell_bytes = len(stored.data) / stored.n_obs * spill.entry_bytes
            held = cell_bytes * n_taken
            sizes = cell_bytes, spill.entry_bytes
            batches = needed_room(config, room, *sizes) if config.trains_sgd else 0
            if held > min(kept, room - batches):
                spill.to_scratch()
                held = 0
            if config.trains_sgd:
                check_room(config, room, *sizes)
            # By cell, by gene for the solver, and of the selected genes.
            copies = 1 + (not config.use_SGD) + config.feature_selection
            if not held or copies > 1:
                require_free(config.scratch, cell_bytes * n_taken * copies, "training")
            if not held:
                ordered = _in_plan_order(config, cells, source.n_vars, cell_bytes, n_taken, threads)
        rows = expression(stored, position)
        moments.update(rows)
        wanted = np.arange(rows.n_obs)
        if taken is not None:
            wanted = np.flatnonzero(taken[position : position + rows.n_obs])
            rows = rows if len(wanted) == rows.n_obs else rows.take(wanted)
        if ordered is None:
            spill.append(rows)
        else:
            ordered.append(rows, position + wanted)
    expression.finish()
    kept_by = spill if ordered is None else ordered
    kept_by.finish()
    where = "memory" if kept_by is spill and spill.in_memory else "scratch"
    logger.info("%s holds %s of cells", where, format_bytes(kept_by.nbytes))
    return moments.result(), ordered


def _in_plan_order(
    config: Settings, cells: Cells, n_vars: int, cell_bytes: float, n_taken: int, threads: Threads
) -> PlanOrder | None:
    """Scratch in plan order for mini-batches alone, where it is quicker than in storage order.

    So it is where the drawn cells outgrow the page cache, which would be read cell by cell.
    """
    way = config.use_SGD and config.mini_batch
    if not way or config.early_stopping or config.feature_selection or config.folds is not None:
        return None
    cache = free_memory()
    if n_taken * cell_bytes <= cache:  # before the cells are grouped for a plan once more
        return None
    plan = plan_epochs(config, cells, None)
    size = window_in_cache(plan, cell_bytes, cache)
    total = plan.epochs * plan.epoch_size * cell_bytes
    if size == 0 or total > free_disk(config.scratch):
        return None
    logger.info("%s of drawn cells go to scratch in plan order", format_bytes(total))
    return PlanOrder(plan, size, n_vars, config.dtype, config.scratch, threads=threads)


def _room(budget: int, known: int, source: Source, targets: list[Target], config: Settings) -> int:
    """Bytes of the budget that are left for cells.

    Taken already: the `known` bytes of models to go on from, weights of the columns, moments
    (twelve float64 arrays over the genes, names and temporaries included), and per cell label,
    order, rank, mark, offset and row number, and its experimental batch and weight where they are
    drawn by; per draw of an epoch its place in this and the next, what drawing takes beside (two
    keys and cells to sort by weight) and what serving does. A reserve stays for what reading leaves
    behind.
    """
    cells = targets[0].cells
    n_columns = max(len(target.columns.classes) for target in targets)
    fixed = known + fixed_bytes(config, source.n_vars, n_columns)
    # Of the other targets codes, and models that are done.
    fixed += 4 * cells.n_obs * (len(targets) - 1)
    of_class = (1 + bool(config.average)) * source.n_vars * np.dtype(config.dtype).itemsize
    fixed += of_class * sum(len(target.columns.classes) for target in targets[:-1])
    # Folds, and what cells are judged by, with the scores of one trial and of the best so far.
    folds = [target.judged for target in targets if target.judged is not None]
    fixed += sum(cells.n_obs + judged.nbytes for judged in folds)
    fixed += 2 * max((judged.score_bytes for judged in folds), default=0)
    fixed += 12 * 8 * source.n_vars + 32 * cells.n_obs + READING_RESERVE
    fixed += 4 * cells.n_obs * (config.init is not None)  # labels as the model has them
    if cells.batch_key is not None:
        n_strata = (int(cells.batch_key.max()) + 1) * len(cells.classes)
        fixed += cells.batch_key.nbytes + 64 * n_strata
    if cells.weight is not None:
        fixed += (9 + 8 * config.early_stopping) * cells.n_obs  # and of those not held out
    repeats = config.replace or config.quotas is not None
    if config.trains_sgd:
        drawn = config.batch_number * config.batch_size if config.mini_batch else cells.n_obs
        drawn = drawn if repeats else min(drawn, cells.n_obs)
        fixed += (40 if cells.weight is None or config.replace else 96) * drawn
    least = 16 * 10**6
    if budget < fixed + least:
        remedy = f", as an epoch draws {drawn:,}: raise it, or lower batch_number" * repeats
        raise InputError(
            f"memory={format_bytes(budget)} is too small for {n_columns} cell types x "
            f"{source.n_vars:,} genes and {cells.n_obs:,} cells: at least "
            f"{format_bytes(fixed + least)} is needed{remedy}"
        )
    return budget - fixed


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
