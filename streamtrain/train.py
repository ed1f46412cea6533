"""train(): cells on disk in, a Model out. The whole flow stands here once, top to bottom."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from streamtrain.adding import Addition
from streamtrain.budget import (
    format_bytes,
    parse_bytes,
)
from streamtrain.calibration import Calibration
from streamtrain.cells import (
    Labels,
    require_file,
)
from streamtrain.config import Settings, takes_settings, with_recipe
from streamtrain.decode.address import located
from streamtrain.errors import InputError
from streamtrain.features import Features
from streamtrain.first_pass import room_for_cells
from streamtrain.given import TrainGiven
from streamtrain.history import with_macro_f1
from streamtrain.journal import EVERY, Journal
from streamtrain.local import Local, Place
from streamtrain.model import Model
from streamtrain.provenance import asked, beside, identity, made_from
from streamtrain.rounds import check, check_matrix
from streamtrain.scaling import RunningMoments
from streamtrain.scratch import free_disk
from streamtrain.selection import check_enough, top_genes
from streamtrain.solvers.counters import State
from streamtrain.solvers.sgd import SGD
from streamtrain.sources import open_expression, open_source
from streamtrain.sources.base import Source
from streamtrain.sources.collection import report_files
from streamtrain.sources.genes import Genes
from streamtrain.splits import split
from streamtrain.stored import Fitted
from streamtrain.targets import Target, cells_taken, listed_genes, targets_of
from streamtrain.threads import Threads
from streamtrain.trials import Search
from streamtrain.warm_start import as_model, check_shared, weights_from

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device

logger = logging.getLogger(__name__)


@takes_settings
def train(
    X: Any,
    labels: Labels | None = None,
    genes: Genes | None = None,
    *,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    client: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = EVERY,
    resume: bool = False,
    **settings: Unpack[TrainGiven],
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
    client
        A dask.distributed Client, whose workers train: SGD a share of the classes each, logistic
        regression sums over a share of the cells. They read X by themselves, which must be an .h5ad
        or zarr store that all of them can open; `memory` and `n_jobs` are of each. The model is
        that of one process, to the bit for SGD and within 1e-10 for logistic regression. Needs
        pip install 'streamtrain[cluster]'.
    checkpoint
        Folder in which the run is kept while it goes on: the cells that training takes, as on
        scratch, and every `checkpoint_every` seconds, and when SIGINT, SIGTERM or SIGHUP comes, how
        far it is. With a client, how far it is alone, also where the scheduler is lost: the cells
        are read once more by the workers of the run that goes on.
    checkpoint_every
        Seconds.
    resume
        Go on from the folder of `checkpoint`, if it holds a run, which must be of the same data,
        labels and settings, those of memory and threads aside. The model is the same, to the bit,
        as if nothing had come between; on a GPU as far as two runs there are the same.
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
    ConnectionError
        If the scheduler of `client` is lost and does not come back; the run is kept first, if
        `checkpoint` asks for it.
    StoppedError
        After a signal, when the run is saved; it is a KeyboardInterrupt.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If cell types did not converge within `max_iter`; the message names them.
    """
    [outcome] = run(
        X, [labels], genes, dict(settings), progress, storage_options, client=client,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume,
    )  # fmt: skip
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
    client: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = EVERY,
    resume: bool = False,
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
    if client is not None:
        from streamtrain.cluster.workers import check as check_client

        check_client(client, on_gpu=config.on_gpu)
    device = check(config)
    journal = _journal(checkpoint, checkpoint_every, resume, settings)
    if config.scratch is not None:
        free_disk(config.scratch)  # refuses what is no folder
    X = located(X, storage_options)
    request = asked(X, labels, genes, storage_options, config)
    require_file(genes, "genes")
    config.warn_of_ignored()
    added = None if base is None else Addition.of(base, config)
    budget = parse_bytes(config.memory)
    logger.info("Preparing data before training")
    with (
        nullcontext() if journal is None else journal,
        Threads(config.n_jobs) as threads,
        nullcontext() if device is None else device.within(threads),
        closing(_open(X, genes, config, budget, threads, progress)) as source,
    ):
        report_files(source, config.normalize, "sum" if config.check_expression else None)
        check_matrix(config, source.is_sparse)
        held = split(
            source, config.where, holdout=config.holdout, fraction=config.test_fraction,
            group=config.group, seed=config.random_state,
        )  # fmt: skip
        if held is not None:
            held.require_rest(source.name)
            logger.info("%s: %d cells are held out: %s", source.name, held.n_cells, held)
        chosen = config.where if held is None else held.rest
        targets = targets_of(source, labels, weight, config, added, chosen)
        cells = targets[0].cells  # of which other targets have the rows
        listed = listed_genes(source, config.gene_list)
        if before is not None:
            check_shared(before, cells.classes, source.genes)
        if config.feature_selection:
            check_enough(source.name, source.n_vars, config.top_genes)
        known = sum(0 if model is None else model.dataset.nbytes for model in (before, base))
        # Weights as they were saved, beside those under way, and those of a first round; from the
        # beginning, so that as many trials have room then as when the run goes on.
        copies = 0 if journal is None else 1 + config.feature_selection
        if config.trains_sgd and copies:
            known += copies * SGD.nbytes(
                source.n_vars, len(cells.classes), config.dtype, config.average, config.penalty
            )
        room = room_for_cells(budget, known, source, targets, config)
        taken = cells_taken(source.name, targets, config)
        logger.info(
            "%s: %d cells x %d genes, %s cell types; memory budget %s",
            source.name, cells.n_obs, source.n_vars,
            " and ".join(str(len(target.cells.classes)) for target in targets),
            format_bytes(budget),
        )  # fmt: skip
        run_of = source, targets, taken, config, room, threads
        if journal is not None:
            known_by = identity(config, source, targets, listed, [before, base])
            # Which keep states of other kinds.
            where = "one process" if client is None else "a cluster"
            where_on = "cpu" if device is None else "gpu"
            journal.begin({"place": where, "device": where_on, **known_by})
        with _place(client, *run_of, device=device, journal=journal, progress=progress) as place:
            moments = place.first_pass()
            if added is None:
                features = _expressed(source, moments, listed)
            else:
                features = added.features(source.genes, moments)

            def start_of(target: Target, features: Features) -> State | None:
                if config.warm_start is not None and before is not None:
                    return weights_from(
                        before, target.columns.classes, features, with_mean=config.with_mean,
                        fit_intercept=config.fit_intercept, dtype=config.dtype,
                    )  # fmt: skip
                if added is None:
                    return None
                return added.state(target.columns.classes, features, config)

            def model_of(
                target: Target, config: Settings, features: Features, fitted: Fitted,
                found: Search | None,
            ) -> Model:  # fmt: skip
                provenance = made_from(target.labels, source, target.cells, config)
                provenance["run"] = request
                n_cells: NDArray[np.int64] | None = target.columns.counts
                if added is not None:
                    n_cells = added.n_cells(target.columns.classes, target.columns.counts)
                    provenance["init"] = added.provenance()
                if held is not None:
                    provenance["held_out"] = held.provenance()
                if found is not None:
                    provenance["cross_validation"] = found.report()
                f1 = None if found is None else found.chosen.macro_f1
                provenance["history"] = with_macro_f1(fitted.history, f1)
                return _model(
                    fitted, config, target.columns.classes, n_cells, features, provenance,
                    None if found is None else found.calibration,
                )  # fmt: skip

            def outcome_of(target: Target) -> Outcome:
                chosen, own, found = config, features, None
                if target.folds is not None:
                    found = place.search(target, features)
                    chosen = found.config
                    if not refit:
                        return Outcome(target.labels, found, None)
                if config.feature_selection:
                    own = _selected(place, config, target, features, source.name)
                fitted = place.fit(chosen, target, own, start_of(target, own))
                model = model_of(target, chosen, own, fitted, found)
                return Outcome(target.labels, found, model, fitted.unconverged)

            outcomes = [outcome_of(target) for target in targets]
        logger.info("Model training done")
        return outcomes


def _journal(
    checkpoint: str | os.PathLike[str] | None, every: float, resume: bool, settings: dict[str, Any]
) -> Journal | None:
    """What keeps a run, if that is asked for."""
    if checkpoint is None:
        for asked, name in ((resume, "resume"), (every != EVERY, "checkpoint_every")):
            if asked:
                raise InputError(
                    f"{name} is of a run that is kept: pass checkpoint=FOLDER (--checkpoint), too"
                )
        return None
    if settings.get("random_state", 0) is None:
        raise InputError("random_state=None cannot be resumed: pass a number with checkpoint")
    return Journal(checkpoint, resume=resume, every=every)


def _named_model(settings: dict[str, Any], argument: str) -> Model | None:
    """Take a model out of the settings, and leave there what it is called."""
    given = settings.get(argument)
    model = as_model(given, argument)
    if given is not None:  # what is left out the recipe would fill in once more
        named = "a Model" if given is model else str(given)
        settings[argument] = None if model is None else named
    return model


def _expressed(
    source: Source, moments: RunningMoments, listed: NDArray[np.bool_] | None
) -> Features:
    """The genes that any cell expresses, of those that are asked for."""
    features = Features.expressed(source.genes, moments)
    silent = source.n_vars - len(features.names)
    if silent == source.n_vars:
        raise InputError(
            f"{source.name}: no cell expresses any of its {silent:,} genes: name another matrix "
            "(layer, --layer), or write the file anew"
        )
    if silent:
        logger.info("%d non-expressed genes are left out", silent)
    if listed is not None:
        features = features.take(np.flatnonzero(listed[features.at]))
        if not len(features.names):
            raise InputError(
                f"{source.name}: no cell expresses any of the genes of gene_list that it has: name "
                "others"
            )
        logger.info("%d genes of gene_list are trained on", len(features.names))
    return features


def _selected(
    place: Place, config: Settings, target: Target, features: Features, name: str
) -> Features:
    """The genes that weigh most in a first round, which later rounds take."""
    check_enough(name, len(features.names), config.top_genes)
    logger.info("Selecting features by a first round of SGD")
    first = place.fit(config.first_round(), target, features, None)
    if first.unconverged:
        logger.warning("in the first round %s", first.unconverged)
    selected = features.take(top_genes(first.weights, config.top_genes))
    del first  # its weights of all genes
    logger.info("%d features are selected; second round of training", len(selected.names))
    place.select(selected)
    return selected


def _place(
    client: Any, *run: Any, device: Device | None, journal: Journal | None, progress: bool
) -> AbstractContextManager[Place]:
    """Where to train: here, or by the workers of a client."""
    if client is None:
        return Local(*run, device=device, journal=journal, progress=progress)
    from streamtrain.cluster.training import Cluster

    return Cluster(client, *run, journal=journal, progress=progress)


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
    provenance["run"] = beside(provenance["run"], settings)
    return Model.build(
        **weights,
        cell_types=classes,
        genes=features.names,
        mean=features.moments.mean,
        var=features.moments.var,
        scale=features.scale,
        n_obs=features.moments.n,
        n_cells=n_cells,
        n_drawn=fitted.drawn,
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
