"""What was found in data enters; a page of text for a terminal leaves."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from streamtrain.budget import format_bytes
from streamtrain.inspecting.columns import GROUPS, LABELS, OTHERS, ColumnReport
from streamtrain.inspecting.matrices import STRETCHES, MatrixReport
from streamtrain.inspecting.shown import shown

if TYPE_CHECKING:
    from streamtrain.inspecting.data import DataInspection

WIDTH = 100
_NAME = 36  # characters of a name in a table
_CLASSES = 40  # lines of the table of classes
_FILES = 8  # files that are shown
_ENCODINGS = {"csr": "by cell (CSR)", "csc": "by gene (CSC)", "dense": "dense", "text": "text"}


def page(found: DataInspection) -> str:
    """Lay out what was found."""
    lines: list[str] = []
    for part in (_head, _matrices, _genes, _columns, _classes, _needs, _command):
        rows = list(part(found))
        if rows:
            lines += [*([""] if lines else []), *rows]
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, indent: int = 2, first: int | None = None) -> list[str]:
    before = " " * (indent if first is None else first)
    return textwrap.wrap(
        shown(text, 10**4), WIDTH, initial_indent=before, subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )  # fmt: skip


def _head(found: DataInspection) -> Iterator[str]:
    size = sum(file.nbytes or 0 for file in found.files)
    yield from _wrap(
        f"{found.kind}: {found.path}" + (f", {format_bytes(size)}" if size else ""), 2, 0
    )
    yield f"{found.n_obs:,} cells x {found.n_vars:,} genes" + (
        f", in {len(found.files):,} files" if len(found.files) > 1 else ""
    )


def _matrices(found: DataInspection) -> Iterator[str]:
    yield f"MATRICES  values by cells at {STRETCHES} places; > marks what training takes"
    for file in found.files[:_FILES]:
        if len(found.files) > 1:
            yield from _wrap(f"{file.name}: {file.n_obs:,} cells", 4, 2)
        for matrix in file.matrices:
            yield from _matrix(matrix, taken=matrix.key == found.matrix)
    if len(found.files) > _FILES:
        yield f"  ... and {len(found.files) - _FILES:,} files more (--json shows them)"


def _matrix(matrix: MatrixReport, taken: bool) -> Iterator[str]:
    values = matrix.values + (f" ({matrix.n_vars:,} genes)" if matrix.key == "raw/X" else "")
    yield from _wrap(f"{'>' if taken else ' '} {matrix.key}: {values}", 6, 2)
    dense = matrix.encoding in ("dense", "text")
    share = f"{100 * matrix.density:.3g}%"
    words = [
        f"{_ENCODINGS[matrix.encoding]} {matrix.dtype}",
        f"{share} not zero" if dense else f"{matrix.entries:,} entries ({share})",
    ]
    if matrix.encoding != "text":
        words.append("not chunked" if matrix.chunks is None else f"chunks {_sizes(matrix.chunks)}")
    if matrix.shards is not None:
        words.append(f"shards {_sizes(matrix.shards)}")
    words.append(matrix.codecs or "not packed")
    if matrix.nbytes is not None:
        words.append(f"{format_bytes(matrix.nbytes)} stored")
    yield from _wrap(", ".join(words), 6)


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(f"{n:,}" for n in sizes)


def _genes(found: DataInspection) -> Iterator[str]:
    genes = found.genes
    kind = genes.kind if genes.kind != "other" else "names of no known kind"
    species = f", {genes.species}" if genes.species else ""
    first = ", ".join(shown(name, 30) for name in genes.first)
    repeated = f"; {genes.repeated:,} repeat an earlier one" if genes.repeated else ""
    yield from _wrap(f"GENES  {kind}{species} ({first}, ...){repeated}", 2, 0)
    for column, names in genes.columns.items():
        yield from _wrap(f"var column {column!r}: {names} (--gene-key {shlex.quote(column)})", 4, 2)


def _columns(found: DataInspection) -> Iterator[str]:
    if not found.columns:
        if found.kind == "text":
            yield "CELLS  text has no columns: give the labels as a file of one a line"
        return
    shown_columns = [c for c in found.columns if c.role != OTHERS]
    wide = max((min(_NAME, len(shown(c.name, _NAME))) for c in found.columns), default=0)
    for role, head in (
        (LABELS, "LABELS  columns of obs that may name cell types"),
        (GROUPS, "DONORS, BATCHES  columns of obs that group cells"),
    ):
        rows = [column for column in shown_columns if column.role == role]
        if rows:
            yield head
        for column in rows:
            mark = ">" if column.name in (found.labels, found.groups) else " "
            yield f"  {mark} {_cut(column.name):<{wide}}  {_of_column(column)}"[:WIDTH]
    others = [column for column in found.columns if column.role == OTHERS]
    if others:
        yield from _wrap("OTHERS  " + "; ".join(_in_short(column) for column in others), 2, 0)


def _cut(name: str) -> str:
    text = shown(name, _NAME)
    return text if len(text) <= _NAME else text[: _NAME - 3] + "..."


def _of_column(column: ColumnReport) -> str:
    relation = f", {shown(column.relation, 50)}" if column.relation else ""
    missing = f", {column.missing:,} cells without" if column.missing else ""
    one = "value" if column.n_values == 1 else "values"
    return f"{column.n_values or 0:>6,} {one}{missing}{relation}"


def _in_short(column: ColumnReport) -> str:
    counted = column.n_values is not None and column.kind not in ("True/False",)
    n = f" {column.n_values:,}" if counted else ""
    missing = f", {column.missing:,} missing" if column.missing else ""
    return f"{_cut(column.name)} ({column.kind}{n}{missing})"


def _classes(found: DataInspection) -> Iterator[str]:
    if found.labels is None:
        likely = [c.name for c in found.columns if c.role == LABELS]
        if likely:
            yield "CLASSES  which column has the cell types is not plain: name it with --labels"
        return
    guess = ", the likeliest column: a guess, --labels names another" if found.guessed else ""
    yield from _wrap(f"CLASSES  {len(found.classes):,} in {_cut(found.labels)!r}{guess}", 2, 0)
    if found.unlabelled:
        yield f"  {found.unlabelled:,} cells have no label: --drop-unlabeled leaves them out"
    classes = found.classes
    cut = len(classes) > _CLASSES
    rows = classes[:_CLASSES]
    marked = [c for c in classes[_CLASSES:] if c.note] if cut else []
    wide = max(len(_cut(c.name)) for c in rows)
    groups = "" if found.groups is None else f"  {_cut(found.groups):>12}"
    yield f"  {'':<{wide}}  {'cells':>11}{groups}"
    for row in rows:
        n_groups = "" if row.n_groups is None else f"  {row.n_groups:>12,}"
        note = f"  {row.note}" if row.note else ""
        yield f"  {_cut(row.name):<{wide}}  {row.n_cells:>11,}{n_groups}{note}"[:WIDTH]
    if cut:
        yield f"  ... and {len(classes) - len(rows):,} smaller ones (--json shows them)" + (
            f", {len(marked):,} of them with a doubt" if marked else ""
        )


def _needs(found: DataInspection) -> Iterator[str]:
    if not found.needs:
        return
    yield "TRAINING  takes about, by rates measured on two cores (docs/figures.md)"
    for needs in found.needs:
        words = (
            f"--memory {format_bytes(needs.memory)} at least; keeps {format_bytes(needs.kept)} of "
            f"cells, in memory or on scratch (up to {format_bytes(needs.scratch)}); "
            f"{_time(needs.reading)} to read, {_time(needs.training)} to train"
        )
        yield from _wrap(f"{needs.way:<14}{words}", 16, 2)


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def _command(found: DataInspection) -> Iterator[str]:
    for note in found.notes:
        yield from _wrap(f"- {note}", 2, 0)
    if found.command:
        if found.notes:
            yield ""
        # With what would steer the terminal escaped; `DataInspection.shell` has it as it is.
        yield from (shown(line, 10**4) for line in _folded(found.command))


def _folded(command: list[str]) -> Iterator[str]:
    """The command for a shell, over lines that end in a backslash where it is long."""
    parts: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--") and len(parts[-1]) > 0:
            parts.append([])
        parts[-1].append(word)
    words = [shlex.join(part) for part in parts]
    line = words[0]
    for word in words[1:]:
        if len(line) + len(word) + 3 > WIDTH:
            yield f"{line} \\"
            line = f"    {word}"
        else:
            line = f"{line} {word}"
    yield line
