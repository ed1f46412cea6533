"""A source and groups to hold out enter; which cells those are, and the rest, leave as `where`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import numpy as np
import pandas as pd

from streamtrain.cells import select_rows
from streamtrain.errors import InputError, near, some
from streamtrain.sources.base import Source


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Whole groups of cells that training leaves out and evaluation takes.

    Attributes
    ----------
    column
        Column of obs that has the groups (donors, studies).
    values
        The groups held out.
    within
        `where` of all cells that are divided; None for all.
    n_cells, n_rest
        Cells held out, and cells left.
    """

    column: str
    values: list[Any]
    within: str | None
    n_cells: int
    n_rest: int

    @property
    def where(self) -> str:
        """Expression that takes the cells held out."""
        return self._selected("in")

    @property
    def rest(self) -> str:
        """Expression that takes the other cells."""
        return self._selected("not in")

    def _selected(self, how: str) -> str:
        return joined(self.within, f"{_name(self.column)} {how} {self.values!r}") or ""

    def inside(self, other: HeldOut) -> bool:
        """Whether its groups are among those of another."""
        return self.column == other.column and all(v in other.values for v in self.values)

    def require_rest(self, name: str) -> None:
        """Refuse a split of the source `name` that leaves nothing to train on."""
        if not self.n_rest:
            raise InputError(
                f"{name}: all {self.n_cells:,} cells are held out ({self}), and none are left to "
                "train on: hold out fewer groups"
            )

    def provenance(self) -> dict[str, Any]:
        """What a model says of them; see `recalled`."""
        within = {} if self.within is None else {"within": self.within}
        return {"column": self.column, "values": self.values, **within, "n_cells": self.n_cells}

    def __str__(self) -> str:
        return f"{self.column} {', '.join(map(str, self.values))}"


def joined(*conditions: str | None) -> str | None:
    """Expression that asks for all conditions; None for none."""
    given = [condition for condition in conditions if condition is not None]
    return " and ".join(f"({each})" for each in given) if len(given) > 1 else (*given, None)[0]


def split(
    source: Source,
    where: str | None,
    *,
    holdout: str | None,
    fraction: float | None,
    group: str | None,
    seed: int,
) -> HeldOut | None:
    """Find the groups that are held out; None where nothing asks for them.

    Parameters
    ----------
    where
        Cells that are divided.
    holdout
        "donor_id=D3,D7", a column of obs and some of its values.
    fraction, group
        Share of the cells, and the column whose groups are drawn until it is best met. Their order
        goes by the seed and their names alone: the same groups for the same cells and seed.

    Raises
    ------
    InputError
        If there is no such column or value, or the column has one group.
    """
    if holdout is not None:
        column, text = (part.strip() for part in holdout.split("=", 1))
        values, sizes = _groups(source, where, column, "holdout")
        chosen = _named(source, column, values, text)
    elif fraction is not None and group is not None:
        column = group
        values, sizes = _groups(source, where, column, "group")
        if np.count_nonzero(sizes) < 2:
            raise InputError(
                f"group={column!r} has one group alone, {some(values)}, and whole groups are held "
                "out: name a column with more"
            )
        chosen = _drawn(values, sizes, fraction, seed)
    else:
        return None
    held = int(sizes[chosen].sum())
    if not held:
        raise InputError(
            f"{source.name}: where={where!r} selects no cell with {holdout!r}: hold out others"
        )
    n_obs = source.n_obs
    if where is not None:
        rows = select_rows(source, where)
        n_obs = n_obs if rows is None else len(rows)
    found = [list(values.values())[i] for i in chosen]
    return HeldOut(column, found, where, held, n_obs - held)


def recalled(model_says: Any) -> HeldOut | None:
    """Cells that a model's provenance says were held out; None where it names none."""
    if not isinstance(model_says, Mapping) or not {"column", "values"} <= set(model_says):
        return None
    return HeldOut(
        str(model_says["column"]), list(model_says["values"]), model_says.get("within"),
        int(model_says.get("n_cells", 0)), 0,
    )  # fmt: skip


def holds(source: Source, held: HeldOut) -> bool:
    """Whether a source has the column of the groups, and one of them at least."""
    if held.column not in source.obs_columns():
        return False
    values, _ = _groups(source, None, held.column, "holdout")
    return any(value in values.values() for value in held.values)


def _name(column: str) -> str:
    """A column as an expression names it."""
    plain = column.isidentifier() and column.isascii() and not iskeyword(column)
    return column if plain else f"`{column}`"


def _groups(
    source: Source, where: str | None, column: str, argument: str
) -> tuple[dict[str, Any], Any]:
    """Groups of a column, as their text: value, in order of text; and the selected cells of each.

    A missing value is no group: such cells are never held out.
    """
    if column not in source.obs_columns():
        raise InputError(
            f"{argument}: {source.name} has no obs column {column!r}: "
            f"{near(column, source.obs_columns())}"
        )
    series = source.obs(column)
    rows = select_rows(source, where)
    codes, found = pd.factorize(series, use_na_sentinel=True)
    plain = [getattr(value, "item", lambda value=value: value)() for value in found]
    texts = [_text(value) for value in plain]
    order = np.argsort(np.array(texts, dtype=object), kind="stable")
    kept = codes if rows is None else codes[rows]
    sizes = np.bincount(kept[kept >= 0], minlength=len(plain))
    return {texts[i]: plain[i] for i in order}, sizes[order]


def _text(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()  # beside a missing one
    return str(int(value)) if whole else str(value)


def _named(source: Source, column: str, values: dict[str, Any], text: str) -> list[int]:
    """Positions of the values that a text lists; a value may itself hold commas."""
    pieces, names = text.split(","), list(values)
    chosen: list[int] = []
    start = 0
    while start < len(pieces):
        for stop in range(len(pieces), start, -1):
            name = ",".join(pieces[start:stop]).strip()
            if name in values:
                break
        else:
            raise InputError(
                f"holdout: column {column!r} of {source.name} never holds "
                f"{pieces[start].strip()!r}: {near(pieces[start].strip(), names)}"
            )
        chosen.append(names.index(name))
        start = stop
    return sorted(set(chosen))


def _drawn(values: dict[str, Any], sizes: Any, fraction: float, seed: int) -> list[int]:
    """Positions of groups, taken in a random order while they bring the share nearer.

    One group at least is taken, the smallest where all are too large, and one is left.
    """
    keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in values]
    wanted, held = fraction * sizes.sum(), 0
    there = [i for i in sorted(range(len(keys)), key=keys.__getitem__) if sizes[i]]
    chosen: list[int] = []
    for i in there:
        nearer = abs(held + sizes[i] - wanted) < abs(held - wanted)
        if nearer and len(chosen) < len(there) - 1:
            chosen.append(i)
            held += int(sizes[i])
    return sorted(chosen or [min(there, key=sizes.__getitem__)])
