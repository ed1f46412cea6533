"""The cells of a source enter once; their moments, and those that training takes, kept, leave."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import (
    BLOCK,
    READING_RESERVE,
    format_bytes,
    free_memory,
)
from streamtrain.cells import (
    Cells,
    expression_of,
)
from streamtrain.config import Settings
from streamtrain.descent import plan_epochs
from streamtrain.errors import InputError
from streamtrain.frozen import Keep
from streamtrain.kept import Kept
from streamtrain.ordered import PlanOrder
from streamtrain.progress import counted
from streamtrain.rounds import check_room, fixed_bytes, needed_room
from streamtrain.scaling import MomentsPass, RunningMoments
from streamtrain.scratch import free_disk, require_free
from streamtrain.sources.base import Source
from streamtrain.spill import Spill
from streamtrain.strategies import window_in_cache
from streamtrain.streaming import sweep
from streamtrain.targets import Target
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)


def first_pass(
    source: Source,
    targets: list[Target],
    taken: NDArray[np.bool_] | None,
    spill: Spill,
    config: Settings,
    room: int,
    kept: float,
    threads: Threads,
    progress: bool,
    *,
    files: Kept | None = None,
    before: list[Any] | None = None,
    keep: Keep | None = None,
) -> tuple[RunningMoments, PlanOrder | None]:
    """Read every cell once: checks, moments, and the cells that any round takes are kept.

    They are kept by `spill`, or, where the page cache would not hold them, in plan order; or by
    `files`.

    Parameters
    ----------
    before
        Where the same reading was, as `keep` was told; `files` are as far.
    keep
        Called after each block with what gives the state then.
    """
    cells = targets[0].cells
    check: Literal["sum"] | None = "sum" if config.check_expression else None
    expression = expression_of(
        source, cells.rows, normalize=config.normalize, check=check, dtype=config.dtype,
        threads=threads,
    )  # fmt: skip
    moments = MomentsPass(source.n_vars, threads)
    first = 0
    if before is not None:
        first, so_far, tally, _ = before
        moments.go_on(so_far)
        expression.merge(tally)
    ordered: PlanOrder | None = None
    n_taken = cells.n_obs if taken is None else int(np.count_nonzero(taken))
    # Alive at a time: the block at hand and the next, each as stored and as read, the normalised
    # values and the spilled copy.
    block = int(min((room - kept) / 6, BLOCK))
    blocks = sweep(source, cells.rows, block, start=first)
    for position, stored in counted(blocks, "Reading", cells.n_obs - first, show=progress):
        if position == first:  # what the first cells tell of the rest, before hours are spent
            cell_bytes = len(stored.data) / stored.n_obs * spill.entry_bytes
            held = cell_bytes * n_taken if files is None else 0
            sizes = cell_bytes, spill.entry_bytes
            batches = needed_room(config, room, *sizes) if config.trains_sgd else 0
            if held > min(kept, room - batches):
                held = 0
            if not held:
                spill.to_scratch()
            if config.trains_sgd:
                check_room(config, room, *sizes)
            # By cell, by gene for the solver, and of the selected genes.
            copies = 1 + (not config.use_SGD) + config.feature_selection
            if files is not None:
                left = cell_bytes * n_taken * (1 - first / cells.n_obs)
                require_free(files.folder, left, "training", "checkpoint=FOLDER (--checkpoint)")
                copies -= 1
            if copies > 1 or (copies and not held):
                require_free(config.scratch, cell_bytes * n_taken * copies, "training")
            if not held and files is None:
                ordered = _in_plan_order(config, cells, source.n_vars, cell_bytes, n_taken, threads)
        rows = expression(stored, position)
        moments.update(rows)
        wanted = np.arange(rows.n_obs)
        if taken is not None:
            wanted = np.flatnonzero(taken[position : position + rows.n_obs])
            rows = rows if len(wanted) == rows.n_obs else rows.take(wanted)
        if files is not None:
            files.append(rows)
        elif ordered is None:
            spill.append(rows)
        else:
            ordered.append(rows, position + wanted)
        if keep is not None and files is not None:
            at, kept_by_files = position + stored.n_obs, files
            keep(
                lambda at=at, files=kept_by_files: [  # type: ignore[misc]
                    at, moments.under_way(), expression.tally(), files.under_way()
                ]
            )  # fmt: skip
    expression.finish()
    if files is not None:
        return moments.result(), None
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
    way = config.use_SGD and config.mini_batch and config.replicas == 1
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


def room_for_cells(
    budget: int,
    known: int,
    source: Source,
    targets: list[Target],
    config: Settings,
    n_columns: int | None = None,
) -> int:
    """Bytes of the budget that are left for cells, where so many classes (None: all) are trained.

    Taken already: the `known` bytes of models to go on from, weights of the columns, moments
    (twelve float64 arrays over the genes, names and temporaries included), and per cell label,
    order, rank, mark, offset and row number, and its experimental batch and weight where they are
    drawn by; per draw of an epoch its place in this and the next, what drawing takes beside (two
    keys and cells to sort by weight) and what serving does. A reserve stays for what reading leaves
    behind.
    """
    cells = targets[0].cells
    n_columns = n_columns or max(len(target.columns.classes) for target in targets)
    fixed = known + fixed_bytes(config, source.n_vars, n_columns, cells.n_obs)
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
    drawn = config.batch_number * config.batch_size if config.mini_batch else cells.n_obs
    if config.trains_sgd:
        drawn = drawn if repeats else min(drawn, cells.n_obs)
        fixed += (40 if cells.weight is None or config.replace else 96) * drawn
    least = 16 * 10**6
    if budget < fixed + least:
        remedy = ": raise it (--memory)"
        if repeats:
            remedy = f", as an epoch draws {drawn:,}: raise it (--memory), or lower batch_number"
        if config.folds is not None:
            remedy = (
                f", with a model for each of {config.folds} folds: raise it (--memory), or ask for "
                "fewer"
            )
        raise InputError(
            f"memory={format_bytes(budget)} is too small for {n_columns} cell types x "
            f"{source.n_vars:,} genes and {cells.n_obs:,} cells: at least "
            f"{format_bytes(fixed + least)} is needed{remedy}"
        )
    return budget - fixed
