"""Columns of obs enter; which are labels, which donors and batches, and how they nest, leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.sources.base import Source

LABELS, GROUPS, OTHERS = "labels", "groups", "others"
MOST_LABELS = 1000  # values of a column of labels
_NUMBERS = 2_000_000  # cells of whose numbers missing ones are counted
_PAIRS = 1 << 26  # pairs of values that are marked to see how two columns nest
_SLICE = 1 << 20  # cells at a time

# Names of columns, the likeliest first. A name is cut into words at "_", "-", ".", blanks and
# where capitals begin.
_GROUP_NAMES = (
    r"donor|patient|subject|individual|participant|mouse|animal",
    r"sample|specimen|biosample|orig ident|library|channel|well|replicate|pool",
    r"batch|run|lane|plate|experiment",
    r"dataset|study|project|collection|cohort|source|file",
    r"assay|suspension|chemistry|protocol|platform|technology|tech|method|condition",
)
_LABEL_NAMES = (
    r"cell ?type|cell ?types|celltypes|cell ontology class|cell class|cell subtype|cell subclass",
    r"annotation|annotations|annot|ann|label|labels|subclass|author cell",
    r"cluster|clusters|leiden|louvain|class|compartment|lineage|subset|subpop|population|identity",
)
_CLUSTERS = len(_LABEL_NAMES) - 1  # place of names that clusters have, too
_NOT_LABELS = (
    r"sex|gender|disease|tissue|organ|organism|ethnicity|age|development|stage|region|phase|"
    r"doublet|demuxlet|singlet|barcode|treatment|group|time|split|suspension|status|smoking|site"
)
_LESS = r"coarse|broad|ontology|term|original|predicted|prediction|level|lvl|id|old"


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column of obs.

    Attributes
    ----------
    name
        Of the column.
    role
        "labels" for what may name cell types, "groups" for donors, batches and other sets of cells,
        "others".
    kind
        "text", "numbers" or "True/False"; "own text" for a text of its own in each cell; or why it
        cannot be read.
    n_values, missing
        Different values, and cells without one; None where they were not counted.
    relation
        How its values nest with those of another column: "within donor", where each of its values
        occurs with one donor alone; "one for each donor", of labels, which then tell donors apart,
        not cells; "coarser than" or "finer than" the likeliest labels; "the same as" a column but
        for the names of its values. Empty for none.
    """

    name: str
    role: str
    kind: str
    n_values: int | None
    missing: int | None
    relation: str = ""


def inspect_columns(source: Source) -> list[ColumnReport]:
    """Look at each column of obs, one at a time, groups and labels with the likeliest first."""
    found: list[ColumnReport] = []
    codes: dict[str, NDArray[Any]] = {}
    for name in source.obs_columns():
        report, own = _look(source, name)
        found.append(report)
        if own is not None and report.role != OTHERS and (report.n_values or 0) > 1:
            codes[name] = own
    groups = sorted(
        (c for c in found if c.role == GROUPS), key=lambda c: (group_rank(c.name), c.n_values)
    )
    labels = sorted((c for c in found if c.role == LABELS), key=lambda c: label_rank(c.name))
    reports = []
    for column in found:
        if column.name not in codes:
            reports.append(column)
        elif column.role == GROUPS:
            reports.append(replace(column, relation=_among_groups(column, groups, codes)))
        else:
            reports.append(_among_labels(column, groups, labels, codes))
    return sorted(reports, key=_order)


def _order(column: ColumnReport) -> tuple[int, float]:
    rank = {LABELS: label_rank, GROUPS: group_rank}.get(column.role, lambda _: 0.0)(column.name)
    return (LABELS, GROUPS, OTHERS).index(column.role), rank


def _words(name: str) -> str:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[\W_]+", " ", apart).strip().lower()


def _rank(name: str, patterns: tuple[str, ...]) -> float:
    """Place of the first of the patterns that the name has as words; the number of them for none.

    A name of more words than that comes after one of these alone.
    """
    words = _words(name)
    for place, pattern in enumerate(patterns):
        if re.search(rf"\b(?:{pattern})\b", words):
            more = 0 if re.fullmatch(pattern, words) else 0.2
            return place + more + 0.5 * bool(re.search(rf"\b(?:{_LESS})\b", words))
    return float(len(patterns))


def label_rank(name: str) -> float:
    """How likely a column names cell types, by its name: the less the likelier."""
    return _rank(name, _LABEL_NAMES)


def group_rank(name: str) -> float:
    """How likely a column names donors, by its name: the less the likelier."""
    return _rank(name, _GROUP_NAMES)


def is_named_label(name: str) -> bool:
    """Whether a column is called as columns of cell types are, not as clusters are."""
    return label_rank(name) < _CLUSTERS


def _look(source: Source, name: str) -> tuple[ColumnReport, NDArray[Any] | None]:
    """Report of a column, and code of each cell if it is text."""
    own_text = getattr(source, "own_text", lambda _: False)
    try:
        if own_text(name):
            return ColumnReport(name, OTHERS, "own text", None, None), None
        values = source.obs(name)
    except InputError as error:
        return ColumnReport(name, OTHERS, str(error), None, None), None
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return _plain(name, values), None
    codes = values.cat.codes.to_numpy()
    counts = np.bincount(codes[codes >= 0], minlength=1)
    n_values, missing = int(np.count_nonzero(counts)), int(np.count_nonzero(codes < 0))
    role = OTHERS
    if group_rank(name) < len(_GROUP_NAMES) and not is_named_label(name):
        role = GROUPS
    elif 2 <= n_values <= MOST_LABELS and 2 * n_values <= len(codes):
        other = re.search(rf"\b(?:{_NOT_LABELS})\b", _words(name)) and not is_named_label(name)
        role = OTHERS if other else LABELS
    if 2 * n_values > len(codes):
        role = OTHERS  # a name for each cell or two
    text = values.cat.categories.dtype.kind == "O"
    return ColumnReport(name, role, "text" if text else "categories", n_values, missing), codes


def _plain(name: str, values: pd.Series[Any]) -> ColumnReport:
    truth = pd.api.types.is_bool_dtype(values.dtype)
    kind = "True/False" if truth else "numbers"
    if len(values) > _NUMBERS:
        return ColumnReport(name, OTHERS, kind, None, None)
    n_values, missing = int(values.nunique()), int(values.isna().sum())
    groups = group_rank(name) < 3 and not truth and 2 * n_values <= len(values)
    whole = pd.api.types.is_integer_dtype(values.dtype)
    role = GROUPS if groups and whole else OTHERS
    if whole and not groups and 2 <= n_values <= MOST_LABELS and label_rank(name) < _CLUSTERS + 1:
        role = LABELS  # clusters by their numbers
    return ColumnReport(name, role, kind, n_values, missing)


def _among_groups(
    column: ColumnReport, groups: list[ColumnReport], codes: Mapping[str, NDArray[Any]]
) -> str:
    """How a column of groups nests in another: in the narrowest, the likelier donors first."""
    own = codes[column.name]
    for group in sorted((g for g in groups if g.name in codes), key=lambda g: -(g.n_values or 0)):
        other = codes[group.name]
        if group.name == column.name or not _nests(own, other):
            continue
        if not _nests(other, own):
            return f"within {group.name}"
        if groups.index(group) < groups.index(column):
            return f"the same as {group.name}"
    return ""


def _among_labels(
    column: ColumnReport,
    groups: list[ColumnReport],
    labels: list[ColumnReport],
    codes: Mapping[str, NDArray[Any]],
) -> ColumnReport:
    """A column of labels, and how it stands to groups and to the likeliest labels."""
    own, rank = codes[column.name], label_rank(column.name)
    for group in groups:
        if group.name in codes and _nests(codes[group.name], own):
            # What all cells of a donor share is of the donor, unless its name says otherwise.
            role = OTHERS if rank > _CLUSTERS else LABELS
            return replace(column, role=role, relation=f"one for each {group.name}")
    first = labels[0].name
    if column.name == first or first not in codes or label_rank(first) > _CLUSTERS:
        return column
    fine, coarse = _nests(own, codes[first]), _nests(codes[first], own)
    word = {(True, True): "the same as", (True, False): "finer than", (False, True): "coarser than"}
    found = word.get((fine, coarse))
    return column if found is None else replace(column, relation=f"{found} {first}")


def _nests(rows: NDArray[Any], columns: NDArray[Any]) -> bool:
    """Whether each code of `rows` occurs with one of `columns` alone."""
    pairs = _no_pairs(rows, columns)
    if pairs is None:
        return False
    for low in range(0, len(rows), _SLICE):  # most that do not nest show it in the first
        _mark(pairs, rows, columns, low)
        if (pairs.sum(axis=1) > 1).any():
            return False
    return True


def pairs_of(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which codes occur together, shape (rows, columns); None where these are too many."""
    pairs = _no_pairs(rows, columns)
    if pairs is not None:
        for low in range(0, len(rows), _SLICE):
            _mark(pairs, rows, columns, low)
    return pairs


def _no_pairs(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.bool_] | None:
    shape = int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1
    return np.zeros(shape, bool) if shape[0] * shape[1] <= _PAIRS else None


def _mark(pairs: NDArray[np.bool_], rows: NDArray[Any], columns: NDArray[Any], low: int) -> None:
    a, b = rows[low : low + _SLICE], columns[low : low + _SLICE]
    there = (a >= 0) & (b >= 0)
    pairs[a[there], b[there]] = True
