"""train(): cells on disk in, a Model out. The whole flow stands here once, top to bottom."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import batches
from streamtrain.budget import (
    BLOCK,
    READING_RESERVE,
    format_bytes,
    parse_bytes,
    release_freed,
)
from streamtrain.cells import Cells, Labels, labelled_cells, name_cell
from streamtrain.config import Settings, takes_settings
from streamtrain.errors import InputError
from streamtrain.expression import Expression
from streamtrain.model import Model
from streamtrain.progress import counted, stage
from streamtrain.sampling import Plan
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler, places, standard_deviation
from streamtrain.scratch import require_free
from streamtrain.solvers.sgd import SGD, SPARSE_INTERCEPT_RATE, Schedule, State
from streamtrain.sources import open_source
from streamtrain.sources.base import Source
from streamtrain.spill import Spill
from streamtrain.streaming import sweep
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

_WINDOW = 512 * 10**6  # bytes of cells gathered at a time; more only delays the first step


@takes_settings
def train(
    X: Any,
    labels: Labels | None = None,
    genes: Sequence[str] | NDArray[Any] | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> Model:
    """Train a CellTypist classifier from cells on disk, without holding them in memory.

    Parameters
    ----------
    X
        Cells x genes: the path of an AnnData (.h5ad, or a zarr folder), or in memory an AnnData
        (backed ones too), a SciPy sparse matrix or array, a NumPy or Dask array, a DataFrame.
    labels
        Name of the obs column with the cell types, or one label a cell: a list-like, or the path
        of a text file with one a line.
    genes
        Gene names, shape (n_vars,); needed only where X carries none.
    progress
        Show progress on standard error in stages that take more than two seconds.
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
    """
    config = Settings.from_keywords(settings)
    if X is None or labels is None:
        raise InputError("train() needs both X and labels")
    budget = parse_bytes(config.memory)
    with (
        closing(
            open_source(
                X, layer=config.layer, gene_key=config.gene_key, genes=genes,
                memory=budget // 4, scratch=config.scratch,
            )
        ) as source,
        Threads(config.n_jobs) as threads,
    ):  # fmt: skip
        cells = labelled_cells(
            source, labels, where=config.where, drop_unlabeled=config.drop_unlabeled
        )
        plan = _plan(cells, config, source.name)
        room = _room(budget, source, cells, plan, config)
        logger.info(
            "%s: %d cells x %d genes, %d cell types; memory budget %s",
            source.name, cells.n_obs, source.n_vars, len(cells.classes), format_bytes(budget),
        )  # fmt: skip
        with Spill(source.n_vars, config.dtype, config.scratch) as spill:
            moments, record = _first_pass(
                source, cells, plan, spill, config, room, threads, progress
            )
            release_freed()
            expressed = np.flatnonzero(moments.nonzero)
            if len(expressed) < source.n_vars:
                logger.info("%d non-expressed genes are left out", source.n_vars - len(expressed))
            scale = standard_deviation(moments)
            scaler = Scaler(
                moments.mean[expressed],
                scale[expressed],
                places(expressed, source.n_vars),
                with_mean=config.with_mean,
                dtype=config.dtype,
                share=moments.nonzero[expressed] / moments.n,
            )
            solver = _solver(config, len(cells.classes), scaler, source, threads)
            window = _window(room, spill.nbytes / spill.n_obs, spill.entry_bytes, config)
            total = plan.epochs * plan.epoch_size
            with stage("Training", total, show=progress) as bar:
                for batch in batches(plan, spill, record, cells.codes, scaler, window):
                    solver.partial_fit(batch.cells)
                    bar.update(batch.cells.rows.n_obs)
        provenance = _provenance(X, labels, source, cells, config)
        return _model(solver.state(), config, source, cells, moments, scale, expressed, provenance)


def _plan(cells: Cells, config: Settings, name: str) -> Plan:
    if cells.n_obs <= config.batch_size:
        raise InputError(
            f"{name}: mini-batches need more cells than batch_size; got {cells.n_obs:,} cells and "
            f"batch_size={config.batch_size:,}: lower batch_size (--batch-size)"
        )
    if cells.n_obs < 10 * config.batch_size:
        logger.info(
            "%s: %d cells are few for mini-batches of %d; a smaller batch_size may do better",
            name, cells.n_obs, config.batch_size,
        )  # fmt: skip
    return Plan(
        cells.codes,
        len(cells.classes),
        batch_size=config.batch_size,
        batch_number=config.batch_number,
        epochs=config.epochs,
        balance=config.balance_cell_type,
        shuffle=config.shuffle,
        seed=config.random_state,
    )


def _first_pass(
    source: Source,
    cells: Cells,
    plan: Plan,
    spill: Spill,
    config: Settings,
    room: int,
    threads: Threads,
    progress: bool,
) -> tuple[RunningMoments, Callable[[NDArray[np.int64]], NDArray[np.int64]]]:
    """Read every cell once: checks, moments, and the cells that any epoch draws onto scratch.

    Returns the moments, and the function from positions in the plan to numbers on scratch.
    """
    expression = Expression(
        source.name,
        normalize=config.normalize,
        check="sum" if config.check_expression else None,
        dtype=config.dtype,
        cell=lambda position: name_cell(source, cells.rows, position),
        gene=lambda position: str(source.genes[position]),
        threads=threads,
    )
    moments = MomentsPass(source.n_vars, threads)
    drawn = plan.ever_drawn()
    # Alive at a time: the block at hand and the next, each as stored and as read, the normalised
    # values and the spilled copy.
    block = min(room // 6, BLOCK)
    blocks = sweep(source, cells.rows, block)
    for position, stored in counted(blocks, "Reading", cells.n_obs, show=progress):
        if position == 0:  # what the first cells tell of the rest, before hours are spent
            cell_bytes = len(stored.data) / stored.n_obs * spill.entry_bytes
            _window(room, cell_bytes, spill.entry_bytes, config)
            require_free(config.scratch, cell_bytes * np.count_nonzero(drawn), "training")
        rows = expression(stored, position)
        moments.update(rows)
        wanted = np.flatnonzero(drawn[position : position + rows.n_obs])
        spill.append(rows if len(wanted) == rows.n_obs else rows.take(wanted))
    expression.finish()
    spill.finish()
    logger.info("scratch holds %s", format_bytes(spill.nbytes))
    if drawn.all():
        return moments.result(), lambda positions: positions
    rank = np.cumsum(drawn, dtype=np.uint32) - np.uint32(1)
    return moments.result(), lambda positions: rank[positions].astype(np.int64)


def _solver(
    config: Settings,
    n_classes: int,
    scaler: Scaler,
    source: Source,
    threads: Threads,
) -> SGD:
    sparse = source.is_sparse and not config.with_mean
    return SGD(
        n_classes,
        scaler.shift,
        Schedule(config.learning_rate, config.alpha, config.eta0, config.power_t),
        average=config.average,
        intercept_rate=(SPARSE_INTERCEPT_RATE if sparse else 1.0) * config.fit_intercept,
        dtype=config.dtype,
        threads=threads,
    )


def _room(budget: int, source: Source, cells: Cells, plan: Plan, config: Settings) -> int:
    """Bytes of the budget that are left for cells.

    Taken already: weights, moments (twelve float64 arrays over the genes, names and temporaries
    included), and per cell label, order, rank, mark, offset and row number; per draw of an epoch
    its position and random numbers. A reserve stays for what reading leaves behind.
    """
    fixed = SGD.nbytes(source.n_vars, len(cells.classes), config.dtype, config.average)
    fixed += 12 * 8 * source.n_vars + 32 * cells.n_obs + 64 * plan.epoch_size + READING_RESERVE
    least = 16 * 10**6
    if budget < fixed + least:
        raise InputError(
            f"memory={format_bytes(budget)} is too small for {len(cells.classes)} cell types x "
            f"{source.n_vars:,} genes and {cells.n_obs:,} cells: at least "
            f"{format_bytes(fixed + least)} is needed"
        )
    return budget - fixed


def _window(room: int, cell_bytes: float, entry_bytes: int, config: Settings) -> int:
    """Bytes of one window of gathered cells, each `cell_bytes` on scratch.

    Two windows are alive beside three scaled batches and what the gathering holds in between.
    """
    batch = cell_bytes * config.batch_size
    # Room for as many entries again: genes in most cells get one in every cell.
    scaled = 2 * batch * (np.dtype(config.dtype).itemsize + 4) / entry_bytes
    besides = 3 * scaled + 16 * 10**6
    window = (room - besides) / 2
    if window < batch:
        raise InputError(
            f"memory is too small for batches of {config.batch_size:,} cells of "
            f"{format_bytes(batch)}: {format_bytes(2 * batch + besides - room)} more are needed; "
            "raise memory or lower batch_size"
        )
    return int(min(window, _WINDOW))


def _model(
    state: State,
    config: Settings,
    source: Source,
    cells: Cells,
    moments: RunningMoments,
    scale: NDArray[np.float64],
    expressed: NDArray[np.int64],
    provenance: dict[str, Any],
) -> Model:
    weights: dict[str, Any] = {"coef": state.coef, "intercept": state.intercept}
    if state.average_coef is not None:
        weights = {
            "coef": state.average_coef,
            "intercept": state.average_intercept,
            "coef_last": state.coef,
            "intercept_last": state.intercept,
        }
    return Model.build(
        **weights,
        cell_types=cells.classes,
        genes=source.genes[expressed],
        mean=moments.mean[expressed],
        var=moments.var[expressed],
        scale=scale[expressed],
        n_cells=np.bincount(cells.codes, minlength=len(cells.classes)),
        with_mean=config.with_mean,
        t=state.t,
        settings=config.to_dict(),
        provenance=provenance,
        description={
            "date": config.date or str(datetime.now()),
            "details": config.details,
            "url": config.url,
            "source": config.source,
            "version": config.version,
            "number_celltypes": len(cells.classes),
        },
    )


def _provenance(
    X: Any, labels: Labels, source: Source, cells: Cells, config: Settings
) -> dict[str, Any]:
    """What a model was made from, and with."""
    origin = {"name": source.name, "n_obs": source.n_obs, "n_vars": source.n_vars}
    if isinstance(X, (str, os.PathLike)):
        origin["bytes"] = _stored_bytes(Path(X).expanduser())
    return {
        "sources": [origin],
        "labels": str(labels) if isinstance(labels, (str, os.PathLike)) else "given as values",
        "n_cells": cells.n_obs,
        "trained": datetime.now().isoformat(timespec="seconds"),
        "random_state": config.random_state,
        "python": platform.python_version(),
        "packages": {p: version(p) for p in ("streamtrain", "anndata", "numba", "numpy")},
    }


def _stored_bytes(path: Path) -> int:
    """Size of a file or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
