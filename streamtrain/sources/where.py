"""Choice of cells: an expression over obs columns enters, one boolean per cell leaves.

An expression compares columns with values, or with each other: `tissue == 'lung'`,
`200 <= n_genes < 6000`, `donor not in ['D1', 'D2']`; a True/False column stands alone; `and`,
`or`, `not` (or `&`, `|`, `~`) and parentheses join conditions; a name with spaces or dots goes
between backticks.

A missing value fulfils no `==`, `in`, `<`, `<=`, `>` or `>=`, and is not True. `!=`, `not in`
and `not` negate plainly, so it fulfils `tissue != 'lung'` just as `not tissue == 'lung'`.
"""

from __future__ import annotations

import ast
import logging
import operator
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, near

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

ALLOWED = (
    "allowed are obs columns, text, numbers, lists, == != < <= > >=, in, not in, and, or, not, "
    "& | ~ and parentheses, e.g. tissue == 'lung' and n_genes >= 200"
)
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
SWAPPED = {
    operator.lt: operator.gt,
    operator.le: operator.ge,
    operator.gt: operator.lt,
    operator.ge: operator.le,
}
QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`""")


def where(expr: str, column: Callable[[str], pd.Series[Any]], columns: list[str]) -> Mask:
    """Evaluate an expression over obs columns; nothing in it is executed.

    Parameters
    ----------
    expr
        The expression; see the module.
    column
        Reads one column. Only columns that the expression names are read, each once.
    columns
        Names of all columns.

    Returns
    -------
    ndarray
        True for the cells that fulfil it, shape (n_obs,).

    Raises
    ------
    InputError
        For anything but such an expression, an unknown column, or types that do not compare.
    """
    return _Walk(expr, column, columns).mask


class _Walk:
    """One evaluation: the columns read so far, and where each node's text stands."""

    def __init__(
        self, expr: str, column: Callable[[str], pd.Series[Any]], columns: list[str]
    ) -> None:
        self._expr, self._column, self._columns = expr, column, columns
        self._read: dict[str, pd.Series[Any]] = {}
        # Python reads identifiers in Unicode's NFKC form, obs need not be written in it.
        self._names = {unicodedata.normalize("NFKC", name): name for name in columns}
        self._names.update({name: name for name in columns})
        stem = "_column"
        while stem in expr:
            stem += "_"

        def replace(match: re.Match[str]) -> str:
            if match[2] is None:
                return match[0]
            placeholder = f"{stem}{len(self._names)}"
            self._names[placeholder] = match[2]
            return placeholder

        self._text = QUOTED.sub(replace, expr).strip()
        try:
            body = ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = error.msg if isinstance(error, SyntaxError) else error
            raise self._refuse(f"cannot be read ({why})") from error
        try:
            self.mask = self._condition(body)
        except RecursionError as error:
            raise self._refuse("is nested too deeply") from error

    def _refuse(self, why: str) -> InputError:
        return InputError(f"where={self._expr!r:.200} {why:.200}: {ALLOWED}")

    def _source(self, node: ast.expr) -> str:
        text = ast.get_source_segment(self._text, node) or ""
        for placeholder in re.findall(r"_column_*\d+", text):
            text = text.replace(placeholder, f"`{self._names.get(placeholder, placeholder)}`")
        return text

    def _condition(self, node: ast.expr) -> Mask:
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self._condition(value) for value in values]
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return join.reduce(parts)  # type: ignore[no-any-return]
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as bit, right=right):
                both = self._condition(left), self._condition(right)
                return both[0] & both[1] if isinstance(bit, ast.BitAnd) else both[0] | both[1]
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return ~self._condition(operand)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                pairs = zip(sides[:-1], ops, sides[1:], strict=True)
                return np.logical_and.reduce([self._compare(*pair) for pair in pairs])  # type: ignore[no-any-return]
            case ast.Name():
                return self._flag(node)
        if isinstance(node, ast.Constant | ast.List | ast.Tuple | ast.Set):
            raise self._refuse(f"has {self._source(node)!r} where a condition is due")
        raise self._refuse(f"holds {self._source(node)!r}{self._hint(node)}")

    def _hint(self, node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f" (put a name with dots between backticks, `{self._source(node)}`)"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            return " (& and | bind tighter than ==: put parentheses around each comparison)"
        return ""

    def _series(self, node: ast.Name) -> pd.Series[Any]:
        name = self._names.get(node.id, node.id)
        if name not in self._columns:
            raise InputError(
                f"where={self._expr!r}: obs has no column {name!r}: {near(name, self._columns)}"
            )
        if name not in self._read:
            self._read[name] = self._column(name)
        return self._read[name]

    def _flag(self, node: ast.Name) -> Mask:
        series = self._series(node)
        if _kind(series) != "boolean":
            raise InputError(
                f"where={self._expr!r}: column {series.name!r} holds {_kind(series)}, not "
                f"True/False: compare it, e.g. {self._source(node)} == {_example(series)!r}"
            )
        return _by_category(series, lambda values: _present(values, lambda v: v.astype(bool)))

    def _value(self, node: ast.expr) -> Any:
        """Return a constant, or None where the node is none."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        return None

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        if isinstance(op, ast.In | ast.NotIn):
            found = self._within(left, right)
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in COMPARE:
            raise self._refuse("uses 'is'" if isinstance(op, ast.Is | ast.IsNot) else "fails")
        if isinstance(op, ast.NotEq):
            return ~self._compare(left, ast.Eq(), right)
        compare = COMPARE[type(op)]
        if isinstance(left, ast.Name) and isinstance(right, ast.Name):
            return self._two_columns(self._series(left), compare, self._series(right))
        if isinstance(right, ast.Name):
            left, right, compare = right, left, SWAPPED.get(compare, compare)
        if not isinstance(left, ast.Name):
            bad = left if self._value(left) is None else right
            if self._value(bad) is not None:
                raise self._refuse("compares two values and no column")
            raise self._refuse(f"holds {self._source(bad)!r}{self._hint(bad)}")
        value = self._value(right)
        if value is None:
            raise self._refuse(f"holds {self._source(right)!r}{self._hint(right)}")
        return self._with_value(self._series(left), compare, value)

    def _within(self, left: ast.expr, right: ast.expr) -> Mask:
        if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._refuse("uses 'in' otherwise than COLUMN in ['A', 'B']")
        series = self._series(left)
        found = np.zeros(len(series), bool)
        for item in right.elts:
            value = self._value(item)
            if value is None:
                raise self._refuse(f"has {self._source(item)!r} in a list")
            found |= self._with_value(series, operator.eq, value)
        return found

    def _with_value(self, series: pd.Series[Any], compare: Callable[..., Any], value: Any) -> Mask:
        kind = _kind(series)
        given = {bool: "boolean", str: "text"}.get(type(value), "numbers")
        if kind != given:
            raise InputError(
                f"where={self._expr!r}: column {series.name!r} holds {kind} and {value!r} is of "
                f"another kind: compare it with a value such as {_example(series)!r}"
            )
        if kind == "text":
            return self._text_value(series, compare, value)
        return _by_category(series, lambda values: _present(values, lambda v: compare(v, value)))

    def _text_value(self, series: pd.Series[Any], compare: Callable[..., Any], value: str) -> Mask:
        codes, names = series.cat.codes.to_numpy(), list(series.cat.categories)
        known = value in names
        if compare is not operator.eq:
            if not series.cat.ordered or not known:
                raise InputError(
                    f"where={self._expr!r}: column {series.name!r} holds text, which has no order "
                    f"relative to {value!r}: use ==, !=, in or not in"
                )
        elif not known:
            logger.warning(
                "where: column %r never holds %r: %s", series.name, value, near(value, names)
            )
            return np.zeros(len(series), bool)
        return np.asarray((codes >= 0) & compare(codes, names.index(value)))

    def _two_columns(
        self, left: pd.Series[Any], compare: Callable[..., Any], right: pd.Series[Any]
    ) -> Mask:
        kinds = _kind(left), _kind(right)
        if kinds[0] != kinds[1] or (kinds[0] == "text" and compare is not operator.eq):
            raise InputError(
                f"where={self._expr!r}: columns {left.name!r} ({kinds[0]}) and {right.name!r} "
                f"({kinds[1]}) do not compare so: both must hold numbers, or text under == or !="
            )
        if kinds[0] == "text":
            place = left.cat.categories.get_indexer(right.cat.categories)
            codes = left.cat.codes.to_numpy()
            return np.asarray((codes >= 0) & (codes == np.append(place, -1)[right.cat.codes]))
        present = ~(left.isna() | right.isna()).to_numpy()
        out = np.zeros(len(left), bool)
        out[present] = compare(_numbers(left)[present], _numbers(right)[present])
        return out


def _kind(series: pd.Series[Any]) -> str:
    """Tell what a column holds: text, numbers, boolean, or the name of its type."""
    dtype: Any = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
        if pd.api.types.is_string_dtype(dtype):
            return "text"
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    return "numbers" if pd.api.types.is_numeric_dtype(dtype) else str(dtype)


def _example(series: pd.Series[Any]) -> Any:
    """Pick a value of the column, for a message."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        found = list(series.cat.categories[:1])
    else:
        found = list(series.dropna().iloc[:1])
    return getattr(found[0], "item", lambda: found[0])() if found else "A"


def _by_category(series: pd.Series[Any], test: Callable[[pd.Series[Any]], Mask]) -> Mask:
    """Apply a test to a column; to its categories if it has them. Missing fulfils nothing."""
    if not isinstance(series.dtype, pd.CategoricalDtype):
        return test(series)
    passed = np.append(test(pd.Series(series.cat.categories)), False)  # code -1 takes the last
    return np.asarray(passed[series.cat.codes.to_numpy()])


def _present(series: pd.Series[Any], test: Callable[[NDArray[Any]], Any]) -> Mask:
    """Apply a test to the values that are not missing."""
    present = ~series.isna().to_numpy()
    out = np.zeros(len(series), bool)
    out[present] = test(_numbers(series)[present])
    return out


def _numbers(series: pd.Series[Any]) -> NDArray[Any]:
    """Values as numpy numbers, zero where a nullable type misses one."""
    if isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    if isinstance(series.dtype, pd.CategoricalDtype):
        return np.append(series.cat.categories, 0)[series.cat.codes]  # -1, missing, takes the 0
    return series.to_numpy(dtype=getattr(series.dtype, "numpy_dtype", None), na_value=0)
