"""A source and columns of labels enter; the cells, genes and folds to train each on leave."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.adding import Addition
from streamtrain.cells import (
    Cells,
    Labels,
    common_rows,
    labelled_cells,
    require_file,
)
from streamtrain.config import Settings
from streamtrain.descent import plan_epochs
from streamtrain.errors import InputError, some
from streamtrain.holdout import Folds, folds_of, hold_out
from streamtrain.judged import Judged, judged_cells
from streamtrain.sampling_columns import batch_keys, sampling_weights
from streamtrain.solvers.class_weight import class_weights
from streamtrain.sources.base import Source
from streamtrain.sources.lines import read_lines

logger = logging.getLogger(__name__)


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


def targets_of(
    source: Source,
    labels: Sequence[Labels | None],
    weight: Any,
    config: Settings,
    added: Addition | None,
    where: str | None,
) -> list[Target]:
    """Select and label the cells by each column; what they are drawn by, and who judges.

    Parameters
    ----------
    weight
        `sampling_weight` as given.
    added
        The model that cells are added to; None for none.
    where
        Cells to train on.

    Raises
    ------
    InputError
        If labels, batches, weights or groups cannot be used.
    """
    each = [
        labelled_cells(
            source, column, where=where, drop_unlabeled=config.drop_unlabeled,
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


def _held_out(source: Source, cells: Cells, config: Settings) -> NDArray[np.bool_] | None:
    if not config.early_stopping:
        return None
    held = hold_out(
        source, cells, fraction=config.validation_fraction, groups=config.validation_groups,
        seed=config.random_state,
    )  # fmt: skip
    logger.info("%d of %d cells are held out to judge epochs by", held.sum(), len(held))
    return held


def cells_taken(name: str, targets: list[Target], config: Settings) -> NDArray[np.bool_] | None:
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


def recorder(
    taken: NDArray[np.bool_] | None,
) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Make the function from positions among the labelled cells to numbers on scratch."""
    if taken is None:
        return lambda positions: positions
    rank = np.cumsum(taken, dtype=np.uint32) - np.uint32(1)
    return lambda positions: rank[positions].astype(np.int64)


def listed_genes(source: Source, gene_list: str | list[str] | None) -> NDArray[np.bool_] | None:
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
            f"{some(source.genes)}, the list {some(names)}: gene names may stand in another column "
            "of var (gene_key, --gene-key)"
        )
    lacking = np.asarray(names, object)[at < 0]
    if len(lacking):
        logger.warning(
            "%s: %d of %d genes of gene_list are not there: %s", source.name, len(lacking),
            len(names), some(lacking),
        )  # fmt: skip
    return found
