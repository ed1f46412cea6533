"""Which cells of a source are used, and their labels as codes: `where`, labels and their checks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, near, some
from streamtrain.expression import Expression, Normalize
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource, lacking
from streamtrain.sources.lines import read_lines
from streamtrain.sources.where import where as evaluate_where
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

_LIKE_MISSING = {"nan", "na", "n/a", "<na>", "nat", "none", "null"}

Labels = str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | pd.Series | pd.Index


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells to train on.

    Attributes
    ----------
    rows
        Their row numbers in the source, ascending, shape (n,), or None for all.
    codes
        Class of each, shape (n,), int32.
    classes
        Names of the classes, sorted as their values, shape (n_classes,), str.
    batch_key
        Experimental batch of each to balance over, shape (n,), unsigned integer, or None.
    weight
        Weight of each in drawing, shape (n,), float64, or None.
    """

    rows: NDArray[np.int64] | None
    codes: NDArray[np.int32]
    classes: NDArray[np.object_]
    batch_key: NDArray[Any] | None = None
    weight: NDArray[np.float64] | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.codes)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Cells of each class, shape (n_classes,)."""
        return np.bincount(self.codes, minlength=len(self.classes))


def select_rows(source: Source, where: str | None) -> NDArray[np.int64] | None:
    """Row numbers of the cells that `where` selects, or None for all.

    Raises
    ------
    InputError
        If the expression cannot be understood or selects no cell.
    """
    if where is None:
        return None
    if not isinstance(where, str):
        raise InputError(f"where must be a text such as \"tissue == 'lung'\"; got {where!r}")
    chosen = np.flatnonzero(evaluate_where(where, source.obs, source.obs_columns()))
    if len(chosen) == 0:
        raise InputError(f"{source.name}: where={where!r} selects none of {source.n_obs:,} cells")
    return None if len(chosen) == source.n_obs else chosen


def name_cell(source: Source, rows: NDArray[np.int64] | None, position: int) -> str:
    """Word a cell of the stream: its row number in the source, or in its file, and its name."""
    row = position if rows is None else int(rows[position])
    name = source.obs_names(row, row + 1)[0]
    if isinstance(source, CollectionSource):
        file, row = source.locate(row)
        return f"cell {row} of {source.files[file]} ({name!r})"
    return f"cell {row} ({name!r})"


def expression_of(
    source: Source,
    rows: NDArray[np.int64] | None,
    *,
    normalize: Normalize,
    check: Literal["sum", "range"] | None,
    dtype: Any,
    threads: Threads,
    judges: bool = True,
) -> Expression:
    """Make the normalisation and checks of the cells `rows` of a source, named in its messages.

    A text table holds raw counts unless `normalize` is given, as in CellTypist, which warns of
    others and goes on: it is normalised and not checked.
    """
    table = source.is_table and normalize is None
    return Expression(
        source.name,
        normalize="log1p" if table else normalize,
        check=None if table else check,
        dtype=dtype,
        cell=lambda position: name_cell(source, rows, position),
        gene=lambda position: str(source.genes[position]),
        threads=threads,
        judges=judges,
    )


def labelled_cells(
    source: Source, labels: Labels, *, where: str | None, drop_unlabeled: bool, least: int = 2
) -> Cells:
    """Select cells and turn their labels into codes.

    Parameters
    ----------
    labels
        Name of an obs column, or one label a cell: a list-like, or a text file of one a line.
        An empty text counts as missing.
    least
        Classes that there must be.

    Raises
    ------
    InputError
        If labels are absent, missing for some cells, too few or too many, or all the same.
    """
    if source.n_obs == 0:
        raise InputError(f"{source.name} has no cells: name another file")
    series = per_cell(source, labels, "labels")
    if len(series) != source.n_obs:
        raise InputError(
            f"there must be one label for each cell; got {len(series):,} labels for "
            f"{source.n_obs:,} cells of {source.name}: give one a cell, in their order, or name a "
            "column of obs"
        )
    rows = select_rows(source, where)
    if rows is not None:
        series = series.iloc[rows]
    if not isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype("category")
    values = series.cat.categories
    blank = [v for v in values if isinstance(v, str) and not v.strip()]
    missing = np.asarray(series.isna() | series.isin(blank))
    if missing.any():
        if missing.all():
            raise InputError(
                f"{source.name}: none of {len(missing):,} cells has a label in {_word(labels)}: "
                "name another column"
            )
        if not drop_unlabeled:
            raise InputError(
                f"{source.name}: {int(missing.sum()):,} of {len(missing):,} cells have no label in "
                f"{_word(labels)}{_word_lacking(source, labels)}; pass drop_unlabeled=True "
                "(--drop-unlabeled) to leave them out"
            )
        kept = np.flatnonzero(~missing)
        series = series.iloc[kept]
        rows = kept if rows is None else rows[kept]
    codes, classes = _encode(series, _word(labels))
    odd = [name for name in classes if name.strip().lower() in _LIKE_MISSING]
    if odd:
        logger.warning(
            "%s: %s is trained as a cell type like any other; to leave such cells out, select with "
            "where", source.name, " and ".join(map(repr, odd)),
        )  # fmt: skip
    if len(classes) < least:
        raise InputError(
            f"{source.name}: training needs two cell types at least; {_word(labels)} holds only "
            f"{classes[0]!r}"
            + (f" among the cells that where={where!r} selects" if where else "")
            + ": name another column"
            + (", or select more cells" if where else "")
        )
    return Cells(rows, codes, classes)


def common_rows(each: Sequence[Cells]) -> list[Cells]:
    """Cells by several labels, those alone that all label; classes without such cells go.

    Raises
    ------
    InputError
        If fewer than two classes of any of the labels are left.
    """
    if len(each) == 1 or all(cells.rows is None for cells in each):
        return list(each)
    n = max(cells.n_obs if cells.rows is None else int(cells.rows[-1]) + 1 for cells in each)
    rows_of = [np.arange(n) if cells.rows is None else cells.rows for cells in each]
    rows = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), rows_of)
    found = []
    for cells, own in zip(each, rows_of, strict=True):
        kept = cells.codes[np.searchsorted(own, rows)]
        there = np.flatnonzero(np.bincount(kept, minlength=len(cells.classes)))
        if len(there) < 2:
            raise InputError(
                f"{len(rows):,} cells have a label in each of the {len(each)} columns of labels, "
                f"and one of these holds {some(cells.classes[there])} alone there, where training "
                "needs two cell types at least: train on such columns one by one"
            )
        place = np.zeros(len(cells.classes), np.int32)
        place[there] = np.arange(len(there))
        found.append(Cells(rows, place[kept], cells.classes[there]))
    return found


def per_cell(source: Source, values: Labels, what: str) -> pd.Series[Any]:
    """One value a cell, of all cells: an obs column, the lines of a text file, or as given.

    Parameters
    ----------
    values
        Name of an obs column, path of a text file with one a line (an empty line is missing), or
        a list-like.
    what
        The argument, for messages.

    Raises
    ------
    InputError
        If there is no such column or file, or a list-like names the cells in another order.
    """
    if isinstance(values, (str, os.PathLike)):
        if isinstance(values, str) and values in source.obs_columns():
            return source.obs(values)
        if not Path(values).expanduser().is_file():
            raise InputError(
                f"{source.name} has no obs column {str(values)!r} and there is no such file: "
                f"{near(str(values), source.obs_columns())}"
            )
        # The whole line is the value: CellTypist reads labels as CSV and cuts them at a comma.
        lines = [line or None for line in read_lines(values, what)]
        return pd.Series(lines, dtype=object).astype("category")
    if isinstance(values, pd.Series):
        _check_order(source, values, what)
        return values.reset_index(drop=True)
    if isinstance(values, pd.Index):
        return pd.Series(values)
    shape = np.shape(values)
    if len(shape) != 1:
        if not shape:
            raise InputError(
                f"{what} must be the name of an obs column, the path of a text file with one a "
                f"line, or a list of one a cell; got {values!r}"
            )
        raise InputError(
            f"{what} must be a list of one label a cell; got shape {shape}: pass one column of it"
        )
    # NumPy would write the NaN of a list of text as 'nan', a label like any other.
    return pd.Series(values if isinstance(values, np.ndarray) else list(values))


def require_file(values: Any, what: str) -> None:
    """Refuse a path where no file is, before something large is read.

    Raises
    ------
    InputError
        With `what`, the argument. Anything but a path passes.
    """
    if not isinstance(values, (str, os.PathLike)):
        return
    path = Path(values).expanduser()
    if not path.exists() or path.is_dir():
        raise InputError(
            f"{what} must be a list or a text file with one a line; there is no file "
            f"{str(values)!r}"
        )


def _check_order(source: Source, values: pd.Series[Any], what: str) -> None:
    """Values go by position; refuse a Series that names cells in another order."""
    if values.index.dtype.kind != "O" or len(values) != source.n_obs:
        return
    index = values.index.astype(object)
    if pd.api.types.infer_dtype(index, skipna=False) != "string":
        return
    names = pd.Index(source.obs_names(0, source.n_obs), dtype=object)
    differ = np.flatnonzero(names != index)
    if len(differ) == 0:
        return
    if names[differ].isin(index).any():
        raise InputError(
            f"{what} name the cells of {source.name} in another order: pass them in the order of "
            f"obs_names ({what}.loc[adata.obs_names]), or their values alone"
        )
    if not names.equals(pd.RangeIndex(len(names)).astype(str)):  # cells without names have these
        logger.warning(
            "%s are taken by position, but name other cells than %s: cell %d is %r there and %r "
            "here", what, source.name, differ[0], names[differ[0]], index[differ[0]],
        )  # fmt: skip


def _word(labels: Labels) -> str:
    return repr(str(labels)) if isinstance(labels, (str, os.PathLike)) else "labels"


def _word_lacking(source: Source, labels: Labels) -> str:
    files = lacking(source, labels) if isinstance(labels, str) else []
    return f" (there is no such column in {some(files)})" if files else ""


def _encode(series: pd.Series[Any], what: str) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Codes and names of the values that occur; names sort as the values do (10 after 9)."""
    column = series.cat.remove_unused_categories()
    values = column.cat.categories
    if values.dtype.kind == "f" and not np.equal(np.mod(values, 1), 0).all():
        raise InputError(
            f"labels must name cell types, and {what} holds {len(values):,} different fractions: "
            "name another column"
        )
    if values.dtype.kind == "f":  # whole numbers that pandas keeps as float for a missing one
        values = values.astype(np.int64)
    if len(series) >= 1000 and len(values) > len(series) / 2:
        raise InputError(
            f"labels must name cell types, and {what} holds {len(values):,} different values for "
            f"{len(series):,} cells, the first {str(values[0])!r}: name another column"
        )
    order = np.argsort(np.asarray(values.astype(str) if values.dtype == object else values))
    place = np.empty(len(values), np.int32)
    place[order] = np.arange(len(values), dtype=np.int32)
    names = np.array([str(values[i]) for i in order], dtype=object)
    if len(set(names)) < len(names):
        twice = pd.Series(names)[pd.Series(names).duplicated()].iloc[0]
        raise InputError(
            f"labels must differ as text, and {twice!r} stands for two or more (such as 1 and '1'):"
            " give one type to all"
        )
    for name in names:
        if "\0" in name or name != name.encode(errors="replace").decode():
            wrong = "NUL" if "\0" in name else "lone surrogates"
            raise InputError(
                f"labels must be text without {wrong}, which AnnData cannot store, and {what} "
                f"holds {name!r}: correct it there"
            )
    return place[column.cat.codes.to_numpy()], names
