"""A table of cell types and their parents enters; which type descends from which leaves."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, absent, some

Parents = str | os.PathLike[str] | Mapping[str, Any] | pd.DataFrame
_COLUMNS = ("child", "parent")


class Lineage:
    """Which cell types are kinds of which.

    Parameters
    ----------
    pairs
        (child, parent) each; a type may have several parents.
    name
        What messages call the table.

    Raises
    ------
    InputError
        If there is no pair, or a type descends from itself.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], name: str) -> None:
        self.name = name
        parents: dict[str, set[str]] = {}
        for child, parent in pairs:
            parents.setdefault(child, set()).add(parent)
            parents.setdefault(parent, set())
        if not parents:
            raise InputError(f"{name} names no parent: give a child and its parent in each row")
        try:
            order = list(TopologicalSorter(parents).static_order())  # parents first
        except CycleError as error:
            circle = " -> ".join(repr(each) for each in reversed(error.args[1]))
            raise InputError(
                f"{name}: a cell type cannot descend from itself, and {circle} (child -> parent): "
                "leave one of these rows out"
            ) from None
        self._above: dict[str, set[str]] = {}
        for each in order:
            self._above[each] = parents[each].union(*(self._above[p] for p in parents[each]))

    @classmethod
    def of(cls, parents: Parents) -> Lineage:
        """Read the table that `parents` is or names.

        Parameters
        ----------
        parents
            Path of a CSV file with the columns child and parent, others being left alone; or such
            a DataFrame; or a dict from child to parent, or to a list of parents. A type without a
            parent may have an empty one, or be left out.

        Raises
        ------
        InputError
            If it is no such table; and as the class.
        FileNotFoundError
            If there is no such file.
        """
        if isinstance(parents, Mapping):
            pairs = (
                (str(child), str(parent))
                for child, of in parents.items()
                for parent in ([of] if isinstance(of, str) else of)
            )
            return cls(pairs, "parents")
        if isinstance(parents, pd.DataFrame):
            _require(parents.columns, "parents")
            kept = parents[list(_COLUMNS)].dropna()
            return cls(_filled(kept.itertuples(index=False, name=None)), "parents")
        if not isinstance(parents, (str, os.PathLike)):
            raise InputError(
                "parents must be the path of a CSV file with the columns child and parent, a "
                f"DataFrame or a dict; got {parents!r:.80}"
            )
        path, name = Path(parents).expanduser(), str(parents)
        if not path.exists():
            raise absent(path, "table of parents")
        if path.is_dir():
            raise InputError(f"parents must be a CSV file, and {name!r} is a folder")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, strict=True)
                _require(rows.fieldnames or [], name)
                return cls(_filled((row["child"], row["parent"]) for row in rows), name)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{name} is no CSV file in UTF-8: {error}") from error

    def below(self, types: Iterable[str], names: Iterable[str]) -> NDArray[np.bool_]:
        """Tell which of `names` are kinds of each of `types`, shape (types, names).

        Raises
        ------
        InputError
            If the table has none of these cell types.
        """
        kinds, types = list(names), list(types)
        if not any(name in self._above for name in (*types, *kinds)):
            raise InputError(
                f"{self.name} has none of the cell types that are compared; it has names such as "
                f"{some(self._above)}, they are {some(types)}: give the names of the labels"
            )
        none: set[str] = set()
        return np.array(
            [[each in self._above.get(kind, none) for kind in kinds] for each in types], bool
        ).reshape(len(types), len(kinds))


def _require(columns: Iterable[Any], name: str) -> None:
    lacking = [column for column in _COLUMNS if column not in list(columns)]
    if lacking:
        raise InputError(
            f"{name} needs the columns child and parent, and has {some(columns, 9)}: rename them"
        )


def _filled(rows: Iterable[tuple[Any, ...]]) -> Iterable[tuple[str, str]]:
    """Pairs without those whose parent is empty."""
    for child, parent in rows:
        both = str(child or "").strip(), str(parent or "").strip()
        if all(both):
            yield both
