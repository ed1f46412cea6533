"""Labelled cells in, a mark on those that are held out to judge training by."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.cells import Cells
from streamtrain.errors import InputError
from streamtrain.sampling import HOLD_OUT, uniforms
from streamtrain.sources.base import Source


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
        `fraction` is reached, but for those whose loss would leave a class without cells.
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
    column = source.obs(groups)
    if cells.rows is not None:
        column = column.iloc[cells.rows]
    codes, names = pd.factorize(column, use_na_sentinel=False)
    table = np.zeros((len(names), len(cells.classes)), np.int64)
    np.add.at(table, (codes, cells.codes), 1)
    left = table.sum(axis=0)
    chosen: list[int] = []
    for g in np.argsort(uniforms(seed, HOLD_OUT, 0, len(names)), kind="stable").tolist():
        if table[chosen].sum() >= fraction * cells.n_obs:
            break
        if (left - table[g] > 0).all():
            left -= table[g]
            chosen.append(g)
    if not chosen:
        raise InputError(
            f"validation_groups={groups!r}: none of its {len(names):,} groups can be held out and "
            "leave cells of every type to train on: name a column with more groups, or leave it out"
        )
    held: NDArray[np.bool_] = np.isin(codes, chosen)
    return held


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
