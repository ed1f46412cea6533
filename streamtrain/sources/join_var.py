"""Tables of the genes of several files enter; one of the joined genes, where they agree, leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.sources.columns import factorise, plain_text


def join_var(
    genes: NDArray[np.object_], tables: Iterable[pd.DataFrame]
) -> tuple[pd.DataFrame, list[str]]:
    """Put the columns of var of several files together.

    Parameters
    ----------
    genes
        Names of the joined genes, shape (n_vars,), str.
    tables
        Columns of each file under its gene names, distinct; taken one after the other.

    Returns
    -------
    DataFrame
        The columns in which no two files have different values for a gene, in the order of the
        first file that has them; missing where no file has a value.
    list of str
        Names of the other columns.
    """
    index = pd.Index(genes, dtype=object)
    joined: dict[str, _Column] = {}
    names = set()
    for table in tables:
        at = index.get_indexer(table.index)
        names.add(table.index.name)
        for name, values in table.items():
            joined.setdefault(str(name), _Column(len(index))).add(at, values)
    columns = {name: column.values() for name, column in joined.items()}
    kept = {name: values for name, values in columns.items() if values is not None}
    name = names.pop() if len(names) == 1 else None
    frame = pd.DataFrame(kept, index=index.rename(None if name in kept else name))
    return frame, [name for name in columns if name not in kept]


class _Column:
    """One column of the joined genes, to which the values of file after file are added."""

    def __init__(self, n_vars: int) -> None:
        self._values = np.full(n_vars, None, object)
        self._known = np.zeros(n_vars, bool)
        self._dtypes: list[Any] = []
        self._differ = False

    def add(self, at: NDArray[np.intp], part: pd.Series[Any]) -> None:
        """Take a file's values for the genes at `at`, -1 for those that are not joined."""
        held = (at >= 0) & part.notna().to_numpy()
        at, values = at[held], part.astype(object).to_numpy()[held]
        known = self._known[at]
        self._differ |= bool((self._values[at[known]] != values[known]).any())
        self._values[at[~known]], self._known[at] = values[~known], True
        if part.dtype not in self._dtypes:
            self._dtypes.append(part.dtype)

    def values(self) -> Any:
        """In the type that all files have, or that holds all; None where files differ."""
        return None if self._differ else _typed(self._values, self._dtypes)


def _typed(values: NDArray[np.object_], dtypes: list[Any]) -> Any:
    """The same in the type that all files have, or that holds all; None where there is none."""
    alike = len(dtypes) == 1
    if alike and isinstance(dtypes[0], pd.CategoricalDtype):
        return pd.Categorical(values, dtype=dtypes[0])
    column: Any = pd.Series(values)
    missing = bool(column.isna().any())
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("string", "empty"):
        return plain_text(pd.Series(factorise([values], len(values)))).array
    if alike and (not missing or dtypes[0].kind == "f" or hasattr(dtypes[0], "numpy_dtype")):
        return column.astype(dtypes[0]).array
    if kind in ("integer", "boolean"):
        wide = {"integer": ("int64", "Int64"), "boolean": ("bool", "boolean")}[kind]
        return column.astype(wide[missing]).array
    return column.astype("float64").array if kind in ("floating", "mixed-integer-float") else None
