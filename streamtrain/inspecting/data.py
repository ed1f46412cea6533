"""The path of data enters; what is in it, and how to train on it, leaves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from streamtrain.budget import parse_bytes
from streamtrain.cells import Cells, labelled_cells
from streamtrain.decode.address import Address, located
from streamtrain.errors import InputError
from streamtrain.holdout import folds_of
from streamtrain.inspecting.advice import (
    RARE,
    command_of,
    doubts,
    given_name,
    is_no_type,
    notes_on,
)
from streamtrain.inspecting.columns import (
    GROUPS,
    LABELS,
    ColumnReport,
    group_rank,
    inspect_columns,
    is_named_label,
    pairs_of,
)
from streamtrain.inspecting.genes import NAMES, GeneReport, inspect_genes, kind_of_names
from streamtrain.inspecting.matrices import (
    AS_COUNTS,
    AS_THEY_ARE,
    FRACTIONS,
    OTHER_LOG,
    OTHER_SUM,
    MatrixReport,
    inspect_matrix,
    kind_of,
    matrix_keys,
    sample,
)
from streamtrain.inspecting.needs import Needs, needs_of
from streamtrain.inspecting.page import page
from streamtrain.sources import is_text, open_source
from streamtrain.sources.base import Source
from streamtrain.sources.columns import StoredFrame
from streamtrain.sources.damage import reading
from streamtrain.sources.forms import values_of
from streamtrain.sources.members import find_members
from streamtrain.sources.store import close_root, open_root

_ROUND = 10**8  # bytes to which memory in a command is rounded up


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file of the data.

    Attributes
    ----------
    name
        Its path or address.
    n_obs
        Its cells.
    nbytes
        On disk, of a file; None for folders and addresses.
    matrices
        Those that it has.
    """

    name: str
    n_obs: int
    nbytes: int | None
    matrices: list[MatrixReport]


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class of the labels.

    Attributes
    ----------
    name
        Of the class.
    n_cells
        Its cells.
    n_groups
        Donors (values of `DataInspection.groups`) that have some; None without such a column.
    note
        Why it cannot be trained or validated well; empty if it can.
    """

    name: str
    n_cells: int
    n_groups: int | None
    note: str


@dataclass(frozen=True, slots=True)
class DataInspection:
    """What is in an atlas, and how to train on it; printed it is a page of text.

    Attributes
    ----------
    path
        As given.
    kind
        "AnnData", "AnnData, several files" or "text".
    n_obs, n_vars
        Cells, and genes of the matrix that training takes.
    files
        Each with its matrices.
    matrix
        Which of them training takes: X, raw/X or layers/NAME; empty where none can be used.
    settings
        What `streamtrain.train` is to be told: layer, normalize, gene_key and so on.
    genes
        Names of the genes.
    columns
        Of obs.
    labels
        Column of the classes, if any.
    guessed
        Whether it was not given, and is the likeliest.
    groups
        Column of donors, or else of samples or batches, to hold out; None for none.
    unlabelled
        Cells without a label.
    classes
        The largest first.
    needs
        What training takes by the recipe and by plain defaults; empty without labels.
    command
        Arguments of the command to run; empty where nothing can be trained on.
    notes
        What else there is to know.
    """

    path: str
    kind: str
    n_obs: int
    n_vars: int
    files: list[FileReport]
    matrix: str
    settings: dict[str, Any]
    genes: GeneReport
    columns: list[ColumnReport]
    labels: str | None
    guessed: bool
    groups: str | None
    unlabelled: int
    classes: list[ClassReport]
    needs: list[Needs]
    command: list[str]
    notes: list[str]

    def __str__(self) -> str:
        return page(self)

    @property
    def shell(self) -> str:
        """The command, quoted for a shell; empty for none."""
        return shlex.join(self.command)


def inspect_data(
    X: Any,
    labels: str | None,
    *,
    genes: Any = None,
    transpose_input: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> DataInspection:
    """Look at data that may be far larger than memory; see `streamtrain.inspect`."""
    if is_text(X):
        return _inspect_text(X, labels, genes, transpose_input)
    where = located(X, storage_options)
    members = find_members(where)
    items = [where] if members is None else members.items
    files, names = [], []
    for item in items:
        file, own = _stored_file(item)
        files.append(file)
        names.append(own)
    matrix, settings = _choose(files)
    key = matrix or files[0].matrices[0].key
    found = names[0]["raw/X" if key == "raw/X" else "X"]
    if found.kind not in NAMES and found.columns:
        columns = sorted(found.columns, key=lambda name: NAMES.index(found.columns[name]))
        settings["gene_key"] = columns[0]
    kind = "AnnData" if len(items) == 1 else "AnnData, several files"
    opened = open_source(
        where, layer=_layer_of(key), gene_key=settings.get("gene_key"), genes=genes,
        transpose=transpose_input, progress=False,
    )  # fmt: skip
    with closing(opened) as source:
        return _report(X, kind, files, matrix, settings, found, source, labels, [])


def _inspect_text(X: Any, labels: str | None, genes: Any, transpose: bool) -> DataInspection:
    notes = []
    with closing(open_source(X, genes=genes, transpose=transpose, progress=False)) as source:
        file = _text_file(source)
        if file.matrices[0].kind not in AS_COUNTS:
            notes.append(
                "text is taken as raw counts and normalised, which these values do not seem to be"
            )
        more = genes, transpose
        names = _names_of(source)
        return _report(X, "text", [file], "X", {}, names, source, labels, notes, *more)


def _stored_file(item: Path | str | Address) -> tuple[FileReport, dict[str, GeneReport]]:
    """Matrices of an AnnData on disk or on a server, and its genes (and those of raw)."""
    if not isinstance(item, str | os.PathLike | Address):
        raise InputError(
            f"inspect looks at files, and this is a {type(item).__name__}: give its path, or write "
            "it to one"
        )
    path = item if isinstance(item, Address) else Path(item).expanduser()
    if isinstance(path, Path) and is_text(path):
        raise InputError(
            f"several files are looked at as one where each is an AnnData, and {path} is text: "
            "inspect it alone"
        )
    name = path.name if isinstance(path, Address) else str(path)
    if isinstance(path, Path) and path.is_file() and not _is_store(path):
        open_source(path, progress=False).close()  # refuses it, and says what can be read
    root = open_root(path, name)
    try:
        with reading(name):
            keys = matrix_keys(root)
            uns = root.get("uns")
            obs = StoredFrame(root["obs"], f"obs of {name}", uns)
        if not keys:
            raise InputError(f"{name} has no matrix, neither X nor layers nor raw/X: write it anew")
        matrices = [inspect_matrix(root, key, name) for key in keys]
        genes = {}
        for key, var in (("X", "var"), ("raw/X", "raw/var")):
            if key == "X" or key in keys:
                with reading(name):
                    frame = StoredFrame(root[var], f"{var} of {name}", uns)
                genes[key] = inspect_genes(frame)
    finally:
        close_root(root)
    nbytes = path.stat().st_size if isinstance(path, Path) and path.is_file() else None
    return FileReport(name, len(obs), nbytes, matrices), genes


def _is_store(path: Path) -> bool:
    return path.suffix.lower() in (".h5ad", ".zip") or h5py.is_hdf5(path)


def _text_file(source: Source) -> FileReport:
    found = values_of(sample(source, source.n_obs))
    kind, words = kind_of(found)
    path = Path(source.name)
    density = found.entries / max(1, source.n_vars)
    entries = int(source.cell_entries() * source.n_obs)
    report = MatrixReport(
        "X", source.n_obs, source.n_vars, "text", str(source.dtype), entries, density, None, None,
        "gzip" if path.suffix == ".gz" else "", None, kind, words,
    )  # fmt: skip
    return FileReport(
        source.name, source.n_obs, path.stat().st_size if path.is_file() else None, [report]
    )


def _names_of(source: Source) -> GeneReport:
    kind, species = kind_of_names(source.genes)
    return GeneReport(source.n_vars, kind, species, 0, source.genes[:3].tolist(), {})


def _layer_of(key: str) -> str | None:
    """What `layer` is to be for a matrix."""
    if key in ("X", "raw/X"):
        return None if key == "X" else "raw"
    name = key.removeprefix("layers/")
    return key if name in ("X", "raw", "raw/X") or name.startswith("layers/") else name


def _choose(files: Sequence[FileReport]) -> tuple[str, dict[str, Any]]:
    """The matrix that training is to take, and the settings for it; empty for none.

    It must be of one form in all files. X comes first, then raw/X, then layers; in each what is
    log1p of 10,000 before counts, and those before what can be used but is odd.
    """
    by_key: dict[str, list[str]] = {m.key: [] for m in files[0].matrices}
    for file in files:
        for matrix in file.matrices:
            if matrix.key in by_key:
                by_key[matrix.key].append(matrix.kind)
    kinds = {key: set(found) for key, found in by_key.items() if len(found) == len(files)}
    counts = set(AS_COUNTS) - {FRACTIONS}
    tried: list[tuple[set[str], dict[str, Any]]] = [
        (set(AS_THEY_ARE), {}),
        (counts, {"normalize": "log1p"}),
    ]
    odd: list[tuple[set[str], dict[str, Any]]] = [
        (set(AS_COUNTS), {"normalize": "log1p"}),
        ({OTHER_SUM, OTHER_LOG}, {"check_expression": False}),
    ]
    in_turn = [(key, *way) for key in kinds for way in tried]
    in_turn += [(key, *way) for way in odd for key in kinds]
    for key, fits, settings in in_turn:
        if kinds[key] <= fits:
            return key, _with_layer(key, settings)
    return "", {}


def _with_layer(key: str, settings: dict[str, Any]) -> dict[str, Any]:
    layer = _layer_of(key)
    return dict(settings) if layer is None else {"layer": layer, **settings}


def _report(
    X: Any,
    kind: str,
    files: list[FileReport],
    matrix: str,
    settings: dict[str, Any],
    genes: GeneReport,
    source: Source,
    labels: str | None,
    notes: list[str],
    gene_file: Any = None,
    transposed: bool = False,
) -> DataInspection:
    columns = inspect_columns(source)
    guessed = labels is None
    named, cells = _labels_of(source, columns, labels)
    group = _group_of(source, cells, columns, named, notes)
    classes: list[ClassReport] = []
    needs: list[Needs] = []
    if cells is not None:
        classes = _classes(source, cells, group)
        if matrix:
            read = next(m for m in files[0].matrices if m.key == matrix)
            entries = _entries(files, matrix)
            needs = needs_of(source, cells, read, entries, group)
    unlabelled = 0 if cells is None else source.n_obs - cells.n_obs
    if unlabelled:
        settings["drop_unlabeled"] = True
    settings |= {"recipe": "atlas"} | ({} if group is None else {"validation_groups": group})
    default = parse_bytes(None)
    if needs and needs[0].memory > default:
        settings["memory"] = f"{-(-needs[0].memory // _ROUND) / 10:g}GB"
        notes.append("--memory is above what the default, a quarter of the free memory, gives here")
    notes += notes_on(matrix, genes, settings, files)
    notes += doubts(source, named, classes)
    command = []
    if matrix:
        command = command_of(X, named, settings, gene_file, transposed)
        if named is None:
            notes.append("put the column of the cell types, or a file of labels, for COLUMN")
    return DataInspection(
        path=given_name(X) if not isinstance(X, list | tuple) else ", ".join(map(given_name, X)),
        kind=kind, n_obs=source.n_obs, n_vars=source.n_vars, files=files, matrix=matrix,
        settings=settings, genes=genes, columns=columns, labels=named,
        guessed=guessed and named is not None, groups=group, unlabelled=unlabelled,
        classes=classes, needs=needs, command=command, notes=notes,
    )  # fmt: skip


def _entries(files: Sequence[FileReport], matrix: str) -> float:
    """Entries of a cell that are not zero, on average."""
    found = [(m.density * m.n_vars, m.n_obs) for f in files for m in f.matrices if m.key == matrix]
    return sum(a * n for a, n in found) / max(1, sum(n for _, n in found))


def _labels_of(
    source: Source, columns: list[ColumnReport], labels: str | None
) -> tuple[str | None, Cells | None]:
    """Cells by the labels that are given, or by the likeliest column that can be used."""
    if labels is not None:
        return labels, labelled_cells(source, labels, where=None, drop_unlabeled=True)
    likely = [c.name for c in columns if c.role == LABELS]
    named = [name for name in likely if is_named_label(name)]
    # Of several columns that are not called so, none is likelier than another.
    for name in named or (likely if len(likely) == 1 else []):
        try:
            return name, labelled_cells(source, name, where=None, drop_unlabeled=True)
        except InputError:
            continue
    return None, None


def _group_of(
    source: Source,
    cells: Cells | None,
    columns: list[ColumnReport],
    labels: str | None,
    notes: list[str],
) -> str | None:
    """Column of donors, or the likeliest after it, by which cells can be held out."""
    groups = [c.name for c in columns if c.role == GROUPS and (c.n_values or 0) > 1]
    # Conditions and techniques are no replicates.
    for name in (g for g in groups if g != labels and group_rank(g) < 4):
        if cells is None:
            return name
        try:
            folds_of(source, cells, n=5, groups=name, seed=0)
        except InputError as error:
            notes.append(f"cells cannot be held out by {name!r}: {error}")
            continue
        return name
    if cells is not None:
        notes.append(
            "no column of donors, samples or batches: settings are chosen on single cells that are "
            "held out, which flatters"
        )
    return None


def _classes(source: Source, cells: Cells, group: str | None) -> list[ClassReport]:
    per_class = None
    if group is not None:
        column = source.obs(group)
        column = column if cells.rows is None else column.iloc[cells.rows]
        pairs = pairs_of(cells.codes, pd.factorize(column)[0])
        per_class = None if pairs is None else pairs.sum(axis=1).tolist()
    counts = cells.counts.tolist()
    found = []
    for k in np.argsort(-cells.counts, kind="stable").tolist():
        name, n_groups = str(cells.classes[k]), None if per_class is None else int(per_class[k])
        notes = []
        if counts[k] < RARE:
            notes.append("too rare")
        if n_groups is not None and n_groups <= 1:
            notes.append("in one, not validated")
        if is_no_type(name):
            notes.append("a cell type?")
        found.append(ClassReport(name, counts[k], n_groups, "; ".join(notes)))
    return found
