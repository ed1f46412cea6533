"""Kept cells, or what sums over them, and settings in; logistic regression at its optimum out."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.frozen import Keep
from streamtrain.pairwise import stretch_of
from streamtrain.progress import stage
from streamtrain.scaling import Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import (
    Logistic,
    Penalty,
    Progress,
    Sums,
    TileSums,
    column_classes,
    problem_weights,
)
from streamtrain.stored import Fitted, Stored, unconverged
from streamtrain.threads import Threads
from streamtrain.tiles import Tiles

logger = logging.getLogger(__name__)

_READING = 512 * 10**6  # bytes of cells scaled and turned by gene at a time, at most


def fit_logistic(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    room: float,
    threads: Threads,
    *,
    progress: bool,
    before: Progress | None = None,
    keep: Keep | None = None,
) -> Fitted:
    """Train on kept cells; see `rounds.fit`."""
    cells, n_genes = stored.cells, len(scaler.shift)
    room -= stored.spill.held
    vectors = vectors_bytes(n_genes, cells, room)
    reading = min((room - vectors) / 2, _READING)
    with Tiles(n_genes, config.dtype, room - vectors - reading, config.scratch) as tiles:
        # Alive at a time: a window as stored, scaled and by gene.
        stretch = stretch_of(cells.n_obs)
        with stage("Scaling", cells.n_obs, show=progress) as bar:
            for first in range(0, cells.n_obs, stretch):
                part = np.arange(first, min(first + stretch, cells.n_obs))
                for rows in stored.sweep(part, int(reading / 6), cells.n_obs):
                    tiles.append(scaler(rows).rows)
                    bar.update(rows.n_obs)
        logger.info("solving on %s of scaled cells", format_bytes(tiles.nbytes))
        weights = weights_of(config, cells)
        if stored.device is None:
            sums: Sums = TileSums(tiles, weights, threads, stretch)
        else:
            from streamtrain.gpu.logistic import DeviceSums

            sums = DeviceSums(stored.device, tiles, weights, column_classes(len(weights)))
        return solve(
            config, cells, scaler.shift, start, sums, vectors, threads, progress=progress,
            before=before, keep=keep,
        )  # fmt: skip


def vectors_bytes(n_genes: int, cells: Cells, room: float) -> float:
    """Bytes of `room` for the solver's vectors; the cells that do not fit beside lie on scratch."""
    size = Logistic.nbytes(n_genes, cells.n_obs)
    return max(size, min(len(column_classes(len(cells.classes))) * size, 0.75 * room))


def weights_of(config: Settings, cells: Cells) -> NDArray[np.float64]:
    """Weight of a cell by its class in each column's problem, shape (n_classes, columns)."""
    liblinear = config.solver == "liblinear"
    return problem_weights(config.class_weight, cells.classes, cells.counts, liblinear)


def solve(
    config: Settings,
    cells: Cells,
    shift: NDArray[np.float64],
    start: State | None,
    sums: Sums,
    vectors: float,
    threads: Threads,
    *,
    progress: bool,
    before: Progress | None = None,
    keep: Keep | None = None,
) -> Fitted:
    """Train on what `sums` sums over, which are the `cells`.

    Parameters
    ----------
    shift
        Of the scaler, shape (genes,).
    vectors
        Bytes for the solver's vectors.
    before, keep
        As of `rounds.fit`.
    """
    most, columns = (
        config.most_passes(cells.n_obs),
        1 if len(cells.classes) == 2 else len(cells.classes),
    )
    solver = Logistic(
        shift,
        weights_of(config, cells),
        cells.counts,
        penalty=_penalty(config),
        tol=config.stop_tol or 0.0,
        max_iter=most,
        fit_intercept=config.fit_intercept,
        threads=threads,
        memory=vectors,
        start=start,
    )
    with stage("Training", None, show=progress) as bar:
        seen = 0

        def report(n: int, ended: int) -> None:
            nonlocal seen
            seen += n
            bar.set_postfix_str(f"{ended} of {columns} cell types done", refresh=False)
            bar.update(n)
            if config.verbose and seen % cells.n_obs == 0:
                passes = seen // cells.n_obs
                logger.info("pass %d: %d of %d cell types done", passes, ended, columns)

        solution = solver.fit(sums, report, before, keep)
    certificate = solution.certificate
    logger.info("%d passes over the cells", certificate["n_passes"].max())
    not_yet, late = ~certificate["converged"], certificate["n_iter"] >= most
    words = unconverged(
        cells.classes, not_yet & late, f"after {most} iterations: raise max_iter, or tol"
    ) or unconverged(cells.classes, not_yet, "within the precision of the numbers: raise tol")
    state = State(solution.coef.astype(config.dtype), solution.intercept)
    return Fitted(state, certificate, words, history=solution.history)


def _penalty(config: Settings) -> Penalty:
    l1_ratio = {"l1": 1.0, "elasticnet": config.l1_ratio or 0.0}.get(config.penalty or "", 0.0)
    return Penalty(
        np.inf if config.penalty is None else config.C,
        l1_ratio,
        config.intercept_scaling if config.solver == "liblinear" else None,
    )
