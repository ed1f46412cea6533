"""Columns of obs and var: a stored or in-memory frame enters, one pandas Series leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.decode.arrays import gatherable
from streamtrain.errors import InputError, near
from streamtrain.sources.damage import (
    damaged,
    fetch,
    reading,
    require_array,
    require_whole_chunks,
    stored_array,
    stored_attr,
)
from streamtrain.threads import Threads

TEXT_SLICE = 65_536  # strings held at once: 10 million as Python objects would take 600 MB


class Frame(Protocol):
    """A table of cells or genes whose columns are read one at a time."""

    def __len__(self) -> int: ...

    def columns(self) -> list[str]:
        """Names of the columns, the index left out."""
        ...

    def column(self, name: str) -> pd.Series[Any]:
        """One column under a RangeIndex: categorical for text, else numeric or boolean."""
        ...

    def own_text(self, name: str) -> bool:
        """Whether a column seems to hold a text of its own in each row, by the first of them."""
        ...

    @property
    def index_name(self) -> str | None:
        """Name of the index."""
        ...

    def index(self, start: int, stop: int) -> NDArray[np.object_]:
        """Index names start to stop, as str."""
        ...


def factorise(slices: Iterable[NDArray[np.object_]], length: int) -> pd.Categorical:
    """Turn slices of strings (None or NaN where missing) into a categorical, categories sorted."""
    seen: dict[str, int] = {}
    codes = np.empty(length, np.int32)
    at = 0
    for values in slices:
        local, found = pd.factorize(values, use_na_sentinel=True)
        table = np.array([seen.setdefault(text, len(seen)) for text in found] + [-1], np.int32)
        codes[at : at + len(values)] = table[local]  # a missing value is -1: the table's last
        at += len(values)
    names = np.empty(len(seen), object)
    names[:] = list(seen)
    order = np.argsort(names, kind="stable")
    rank = np.empty(len(seen) + 1, np.int32)
    rank[order] = np.arange(len(seen), dtype=np.int32)
    rank[-1] = -1
    return pd.Categorical.from_codes(rank[codes], categories=pd.Index(names[order], dtype=object))


def plain_text(values: pd.Series[Any]) -> pd.Series[Any]:
    """A column as `Frame.column` gives it, but text with a value of its own in each row as text.

    Text comes as a categorical from any frame; AnnData, too, makes text one if values repeat.
    """
    if not isinstance(values.dtype, pd.CategoricalDtype) or values.cat.ordered:
        return values
    names = values.cat.categories
    sorted_text = names.dtype.kind == "O" and names.is_monotonic_increasing
    return values.astype(object) if sorted_text and len(names) == len(values) else values


def table(frame: Frame, names: NDArray[np.object_]) -> pd.DataFrame:
    """All columns of a frame under `names`; text with a value of its own in each row stays text.

    The frame's own index, where `names` differ from it, is kept as the column "var_names".
    """
    columns: dict[str, Any] = {}
    for name in frame.columns():
        columns[name] = plain_text(frame.column(name)).array
    index = frame.index(0, len(frame))
    if "var_names" not in columns and not np.array_equal(index, names):
        columns["var_names"] = index
    name_of_it = frame.index_name if np.array_equal(index, names) else None
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object, name=name_of_it))


def as_text(values: Any) -> NDArray[np.object_]:
    """Turn an array of any string type into an object array of str."""
    text: NDArray[np.object_] = np.asarray(values).astype(object)
    if pd.api.types.infer_dtype(text, skipna=True) not in ("string", "empty"):  # bytes, or mixed
        decoded = [value.decode() if isinstance(value, bytes) else value for value in text]
        text = np.array(decoded, dtype=object)
    return text


def _storable(name: Any, columns: list[str]) -> str | None:
    """The name of an index, if an AnnData can have it beside its columns."""
    fits = isinstance(name, str) and name != "" and "/" not in name and name not in columns
    return name if fits else None


class MemoryFrame:
    """A pandas DataFrame as a Frame."""

    def __init__(self, frame: pd.DataFrame, name: str) -> None:
        self._frame, self._name = frame, name

    def __len__(self) -> int:
        return len(self._frame)

    def columns(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self._frame.columns]

    def column(self, name: str) -> pd.Series[Any]:
        """One column; object columns become what their values are."""
        names = self.columns()
        if name not in names:
            raise InputError(f"{self._name} has no column {name!r}: {near(name, names)}")
        found = self._frame.iloc[:, names.index(name)].reset_index(drop=True).rename(name)
        if isinstance(found.dtype, pd.CategoricalDtype):
            return found
        if not (found.dtype == object or pd.api.types.is_string_dtype(found.dtype)):
            return found
        values = found.astype(object)
        kind = pd.api.types.infer_dtype(values, skipna=True)
        if kind in ("string", "bytes", "empty"):
            text = as_text(values.to_numpy())
            return pd.Series(factorise([text], len(text)), name=name)
        wider = {"boolean": "boolean", "integer": "Int64", "floating": "float64"}.get(kind)
        if wider is None:
            raise InputError(
                f"column {name!r} of {self._name} mixes types ({kind}): "
                "make it text, e.g. with .astype(str)"
            )
        return found.astype(wider)  # type: ignore[call-overload,no-any-return]

    def own_text(self, name: str) -> bool:
        """Whether a column seems to hold a text of its own in each row, by the first of them."""
        found = self._frame.iloc[:TEXT_SLICE, self.columns().index(name)]
        text = found.dtype == object or isinstance(found.dtype, pd.StringDtype)
        return bool(text) and found.is_unique

    @property
    def index_name(self) -> str | None:
        """Name of the index."""
        return _storable(self._frame.index.name, self.columns())

    def index(self, start: int, stop: int) -> NDArray[np.object_]:
        """Index names start to stop."""
        return np.array([str(n) for n in self._frame.index[start:stop]], dtype=object)


class _Field:
    """One field of a compound dataset, sliceable as an array of its own."""

    def __init__(self, node: Any, name: str) -> None:
        self._node, self._name = node, name
        self.shape, self.dtype = node.shape, node.dtype[name]
        self.attrs: dict[str, Any] = {}

    def __getitem__(self, part: slice) -> Any:
        return self._node[part][self._name]


class StoredFrame:
    """A dataframe group in HDF5 or zarr, or the compound dataset of anndata before 0.7.

    Parameters
    ----------
    node
        Group or dataset.
    name
        What messages call it.
    root
        Of the store, in whose uns anndata before 0.7 keeps the categories.
    """

    def __init__(self, node: Any, name: str, root: Any = None) -> None:
        self._node, self._name, self._root = node, name, root
        self._compound = not hasattr(node, "keys")
        if self._compound and node.dtype.names is None:
            raise InputError(
                f"{name} is an array where a table is due: this is not an AnnData; re-save it with "
                "a current anndata"
            )
        with reading(name):
            self._index = self._find_index()
            length = _length(self._index, f"index of {name}")
        if length is None:
            raise damaged(
                name, f"its index is encoded as {stored_attr(self._index, 'encoding-type')!r}"
            )
        self._length = length
        self._kept: tuple[int, NDArray[np.object_]] | None = None

    def _find_index(self) -> Any:
        if self._compound:
            return _Field(self._node, self._node.dtype.names[0])
        key = stored_attr(self._node, "_index")
        if key is None:
            key = next((k for k in ("_index", "index") if k in self._node), None)
        if key is None or key not in self._node:
            raise damaged(self._name, f"its index {key!r} is missing")
        self._index_key = key
        node = self._node[key]
        if hasattr(node, "keys"):
            return node
        require_whole_chunks(node, f"index of {self._name}")
        return require_array(node, f"index of {self._name}")

    def __len__(self) -> int:
        return self._length

    def columns(self) -> list[str]:
        """Names of the columns, as stored in column-order."""
        if self._compound:
            return list(self._node.dtype.names[1:])
        with reading(self._name):
            order = stored_attr(self._node, "column-order")
            if order is None:
                return sorted(set(self._node.keys()) - {self._index_key, "__categories"})
            return [name.decode() if isinstance(name, bytes) else str(name) for name in order]

    def column(self, name: str) -> pd.Series[Any]:
        """One column; no other is read."""
        names = self.columns()
        if name not in names:
            raise InputError(f"{self._name} has no column {name!r}: {near(name, names)}")
        what = f"column {name!r} of {self._name}"
        with reading(what):
            if self._compound:
                node: Any = _Field(self._node, name)
                categories = self._legacy_uns(f"{name}_categories")
            else:
                node = self._node[name]
                categories = self._legacy_categories(node)
            found = _length(node, what)  # before memory is taken for entries that are not there
            if found not in (self._length, None):
                raise damaged(what, f"it has {found} values for {self._length} names")
            values = self._values(node, what, categories)
        return pd.Series(values, name=name)

    def _legacy_uns(self, key: str) -> Any:
        """Categories in uns, as anndata before 0.7 kept them; None for a column without."""
        # By the names: a link that leads nowhere has one, too, and its codes are no labels.
        uns = self._root["uns"] if self._root is not None and "uns" in list(self._root) else {}
        return uns[key] if key in list(uns) else None

    def _legacy_categories(self, node: Any) -> Any:
        """Categories kept beside the column, as anndata 0.7 did (a reference or a path)."""
        if "categories" not in node.attrs:
            return None
        return self._node[stored_attr(node, "categories")]

    def _values(self, node: Any, what: str, categories: Any = None) -> Any:
        """Decode one column (or the categories of one) by its encoding."""
        if categories is not None:
            ordered = bool(stored_attr(categories, "ordered", False))
            return _categorical(_whole(node, what), self._values(categories, what), ordered)
        if hasattr(node, "keys"):
            return self._group_values(node, what)
        if require_array(node, what).dtype.kind in "OSUT":
            require_whole_chunks(node, what)
            return factorise(_text_slices(node, what), node.shape[0])
        return _whole(node, what)

    def _group_values(self, node: Any, what: str) -> Any:
        encoding = stored_attr(node, "encoding-type")
        if encoding == "categorical":
            categories = self._values(node["categories"], what)
            ordered = bool(stored_attr(node, "ordered", False))
            return _categorical(_whole(node["codes"], what), categories, ordered)
        if encoding in ("nullable-string-array", "nullable-integer", "nullable-boolean"):
            stored, mask = _nullable(node, what)
            if encoding == "nullable-string-array":
                require_whole_chunks(stored, what)
                return factorise(_text_slices(stored, what, mask), stored.shape[0])
            values, missing = _whole(stored, what), _whole(mask, what).astype(bool)
            if encoding == "nullable-integer":
                return pd.arrays.IntegerArray(values, missing)
            return pd.arrays.BooleanArray(values, missing)
        raise InputError(
            f"{what} is encoded as {encoding!r}, which streamtrain cannot read: drop it"
        )

    def own_text(self, name: str) -> bool:
        """Whether a column seems to hold a text of its own in each row, by the first of them."""
        what = f"column {name!r} of {self._name}"
        with reading(what):
            node: Any = _Field(self._node, name) if self._compound else self._node[name]
            legacy = not self._compound and "categories" in node.attrs
            if hasattr(node, "keys") and "values" in node:
                node = node["values"]
            if hasattr(node, "keys") or legacy or node.dtype.kind not in "OSUT":
                return False
            text = next(_text_slices(node, what), np.empty(0, object))
        return pd.Index(text).is_unique

    @property
    def index_name(self) -> str | None:
        """Name of the index, as anndata reads it."""
        name = None if self._compound else stored_attr(self._node, "_index")
        return None if name == "_index" else _storable(name, self.columns())

    def index(self, start: int, stop: int) -> NDArray[np.object_]:
        """Index names start to stop."""
        parts = []
        for low in range(start - start % TEXT_SLICE, stop, TEXT_SLICE):
            # The last stretch is kept: blocks of cells are shorter than the chunks of their names.
            if self._kept is None or self._kept[0] != low:
                self._kept = low, self._names(low, low + TEXT_SLICE)
            parts.append(self._kept[1][max(start - low, 0) : stop - low])
        return np.concatenate(parts) if parts else np.empty(0, object)

    def _names(self, start: int, stop: int) -> NDArray[np.object_]:
        what = f"the index of {self._name}"
        node, mask = self._index, None
        with reading(what):
            if hasattr(node, "keys"):
                if stored_attr(node, "encoding-type") == "categorical":
                    named = pd.Series(self._values(node, what)).iloc[start:stop]
                    return np.array([str(n) for n in named], dtype=object)
                node, mask = _nullable(node, what)
            parts = list(_text_slices(node, what, mask, start, stop))
        return np.array([str(n) for part in parts for n in part], dtype=object)


def _length(node: Any, what: str) -> int | None:
    """Entries of a column; None for an encoding that `StoredFrame` does not know."""
    if hasattr(node, "keys"):
        key = next((key for key in ("codes", "values") if key in node), None)
        if key is None:
            return None
        node = stored_array(node, key, what)
    return int(require_array(node, what).shape[0])


def _nullable(node: Any, what: str) -> tuple[Any, Any]:
    """Values, and the mask of those that are missing."""
    values, mask = (stored_array(node, key, what) for key in ("values", "mask"))
    if mask.shape != values.shape:
        raise damaged(what, f"mask has shape {mask.shape} and values {values.shape}")
    if mask.dtype.kind not in "biu":
        raise damaged(what, f"mask holds values of type {mask.dtype}")
    return values, mask


def _whole(node: Any, what: str) -> NDArray[Any]:
    """All entries, by our own decoders where they can: HDF5 does not see a chunk that is short."""
    size = int(require_array(node, what).shape[0])
    # On this thread, which may itself be one of those that share work.
    values = fetch(gatherable(node, Threads(1)), 0, size, what)
    return values.astype(np.dtype(node.dtype).newbyteorder("="), copy=False)


def _text_slices(
    node: Any, what: str, mask: Any = None, start: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.object_]]:
    """Read strings `TEXT_SLICE` at a time, None where `mask` is set."""
    stop = int(node.shape[0]) if stop is None else min(stop, int(node.shape[0]))
    for low in range(start, stop, TEXT_SLICE):
        high = min(low + TEXT_SLICE, stop)
        text = as_text(fetch(node, low, high, what))
        if mask is not None:
            text[fetch(mask, low, high, what).astype(bool)] = None
        yield text


def _categorical(codes: NDArray[Any], categories: Any, ordered: bool) -> pd.Categorical:
    """Codes and categories as stored; the codes keep their narrow type."""
    if isinstance(categories, pd.Categorical):  # text, which `_values` factorises (and sorts)
        categories = categories.astype(object)
    return pd.Categorical.from_codes(codes, categories=pd.Index(categories), ordered=ordered)
