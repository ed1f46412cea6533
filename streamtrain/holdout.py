"""Labelled cells in; marks on those held out to judge training by, or folds of all of them, out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.cells import Cells
from streamtrain.errors import InputError
from streamtrain.sampling import FOLD, HOLD_OUT, uniforms
from streamtrain.sources.base import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folds:
    """Folds of the labelled cells.

    Attributes
    ----------
    of
        Fold of each cell, shape (n,), uint8.
    n
        Their number.
    by
        Column whose groups they hold whole, or None.
    """

    of: NDArray[np.uint8]
    n: int
    by: str | None

    def outside(self, codes: NDArray[np.int32], n_classes: int) -> NDArray[np.int64]:
        """Cells of each class outside of each fold, shape (folds, n_classes)."""
        # Fold by fold, which takes no number of eight bytes for each cell.
        inside = np.stack(
            [np.bincount(codes[self.of == fold], minlength=n_classes) for fold in range(self.n)]
        )
        outside: NDArray[np.int64] = inside.sum(axis=0) - inside
        return outside


def folds_of(source: Source, cells: Cells, *, n: int, groups: str | None, seed: int) -> Folds:
    """Cut the cells into folds of about the same size.

    Parameters
    ----------
    n
        Folds; fewer where there are fewer groups.
    groups
        Column of obs: its groups (donors, studies) stay whole, the largest first, each going to
        the fold that has the fewest cells. Without it, cells of each class spread evenly.
    seed
        Of the order of the cells of a class, and of groups of one size.

    Raises
    ------
    InputError
        If there is one group alone, or a group for every other cell; or a fold has no cell of a
        type that others have too.
    """
    if groups is None:
        folds = _even_folds(cells, n, seed)
    else:
        folds = _of_groups(source, cells, n, groups, seed)
    for fold, outside in enumerate(folds.outside(cells.codes, len(cells.classes))):
        if not outside[cells.codes[folds.of == fold]].any():
            where = f"validation_groups={groups!r}" if groups else f"{cells.n_obs:,} cells"
            raise InputError(
                f"{where}: of {folds.n} folds one holds no cell of a type that others have too, so "
                "that nothing can be judged there: ask for fewer folds (--folds), or leave such "
                "cells out with where (--where)"
            )
    return folds


def _even_folds(cells: Cells, n: int, seed: int) -> Folds:
    fold = np.empty(cells.n_obs, np.uint8)
    order = np.lexsort((uniforms(seed, FOLD, 0, cells.n_obs), cells.codes))
    # On through the classes, so that small ones do not all come to the first folds.
    fold[order] = np.arange(cells.n_obs) % n
    return Folds(fold, n, None)


def _of_groups(source: Source, cells: Cells, n: int, groups: str, seed: int) -> Folds:
    codes, names = _groups(source, cells, groups)
    if len(names) < 2:
        raise InputError(
            f"validation_groups={groups!r} has one group alone, {str(names[0])!r}, and folds hold "
            "out whole groups: name a column with more, or leave it out"
        )
    n = min(n, len(names))
    sizes, cells_of = np.bincount(codes), np.zeros(n, np.int64)
    place = np.empty(len(names), np.uint8)
    for g in np.lexsort((uniforms(seed, FOLD, 0, len(names)), -sizes)).tolist():
        place[g] = cells_of.argmin()
        cells_of[place[g]] += sizes[g]
    return Folds(place[codes], n, groups)


def hold_out(
    source: Source, cells: Cells, *, fraction: float, groups: str | None, seed: int
) -> NDArray[np.bool_]:
    """Choose cells to hold out.

    Parameters
    ----------
    fraction
        Share of the cells, of each class or, with `groups`, of all.
    groups
        Column of obs: its groups (donors, studies) are held out whole, in random order until
        `fraction` is reached, but for those that exceed it by half or whose loss would leave a
        class without cells; if nothing is left, the smallest that leaves all, with a warning.
    seed
        Of the choice.

    Returns
    -------
    ndarray
        Shape (n,), bool; cells of every class remain.

    Raises
    ------
    InputError
        If no cell can be held out so.
    """
    if groups is None:
        return _of_each_class(cells, fraction, seed)
    codes, names = _groups(source, cells, groups)
    ones = np.ones(cells.n_obs, np.int64)
    table = sp.csr_matrix((ones, (codes, cells.codes)), (len(names), len(cells.classes)))
    sizes, left = np.bincount(codes), np.bincount(cells.codes, minlength=len(cells.classes))
    held, wanted = 0, fraction * cells.n_obs
    chosen: list[int] = []

    def take(g: int, most: float) -> None:
        nonlocal held, left
        rest = left - table[g].toarray()[0]
        if held < wanted and held + sizes[g] <= most and (rest > 0).all():
            chosen.append(g)
            held, left = held + int(sizes[g]), rest

    for g in np.argsort(uniforms(seed, HOLD_OUT, 0, len(names)), kind="stable").tolist():
        take(g, 1.5 * wanted)
    if not chosen:
        for g in np.argsort(sizes, kind="stable").tolist():
            take(g, cells.n_obs if not chosen else 0)
        logger.warning(
            "validation_groups=%r: the smallest group that can be held out has %d of %d cells",
            groups, held, cells.n_obs,
        )  # fmt: skip
    if not chosen:
        raise InputError(
            f"validation_groups={groups!r}: none of its {len(names):,} groups can be held out and "
            "leave cells of every type to train on: name a column with more groups, or leave it out"
        )
    marks: NDArray[np.bool_] = np.isin(codes, chosen)
    return marks


def _groups(source: Source, cells: Cells, groups: str) -> tuple[NDArray[np.intp], Any]:
    """Group of each cell and their names; a missing value is one more."""
    column = source.obs(groups)
    if cells.rows is not None:
        column = column.iloc[cells.rows]
    codes, names = pd.factorize(column, use_na_sentinel=False)
    if 2 * len(names) > cells.n_obs:
        raise InputError(
            f"validation_groups={groups!r} has {len(names):,} groups for {cells.n_obs:,} cells: "
            "name a column of donors, samples or studies"
        )
    return codes, names


def _of_each_class(cells: Cells, fraction: float, seed: int) -> NDArray[np.bool_]:
    held = np.zeros(cells.n_obs, bool)
    keys = uniforms(seed, HOLD_OUT, 0, cells.n_obs)
    for k in range(len(cells.classes)):
        members = np.flatnonzero(cells.codes == k)
        n = min(round(fraction * len(members)), len(members) - 1)
        held[members[np.argsort(keys[members], kind="stable")[:n]]] = True
    if not held.any():
        raise InputError(
            f"validation_fraction={fraction} of each cell type holds out no cell: raise it"
        )
    return held
