"""Tables of text (.csv, .tsv, ...): parsed once, block by block onto scratch; a Source leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import text as kernel
from streamtrain.progress import stage
from streamtrain.scratch import Room, ScratchArray, require_free
from streamtrain.sources.columns import Frame, MemoryFrame
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.genes import IGNORED, Genes, given_names, name_list, unique_names
from streamtrain.sources.lines import Bytes, LineBlocks, StoredNames
from streamtrain.sources.matrix import CsrMatrix, Matrix
from streamtrain.sources.opened import MatrixSource

logger = logging.getLogger(__name__)

COMMA, TAB = ord(","), kernel.TAB
# Bytes on scratch for each value, and while a table of genes x cells is transposed.
ENTRY, TRANSPOSED_ENTRY = 8, 20
# What stands for a missing number; in the first line, such fields alone make no header.
MISSING = {"", "na", "n/a", "nan", "null", "none", "inf", "+inf", "-inf"}
# Headers of a column that names the rows.
ID_NAMES = {
    "barcode", "barcodes", "cell", "cell_id", "cell_ids", "cellid", "cells", "gene", "gene_id",
    "gene_ids", "gene_name", "gene_names", "genes", "id", "ids", "index", "obs_names", "rownames",
    "unnamed: 0", "var_names",
}  # fmt: skip


@dataclass
class Parsed:
    """What a text file holds: its values on scratch, its cells and its genes."""

    matrix: Matrix
    obs: Frame
    genes: NDArray[np.object_]
    is_sparse: bool


Parse = Callable[[Path, Room, bool, list[str] | None], Parsed]


class TextSource(MatrixSource):
    """Cells of a text file, parsed when it is opened.

    A copy that was pickled, and one that was closed, parses the file again at its next read. Values
    are kept as float32, as scanpy reads them: counts are exact up to 2**24.

    Parameters
    ----------
    path
        File, or folder for a parser of folders.
    parse
        Reads it.
    transpose
        The file holds genes x cells.
    genes
        Gene names, for a file without.
    memory, scratch
        Bytes to hold at a time (default 256 MB), and the folder for what was parsed.
    progress
        Show progress on standard error.
    """

    is_table = True

    def __init__(
        self,
        path: Path,
        parse: Parse,
        transpose: bool = False,
        genes: Genes | None = None,
        room: Room | None = None,
    ) -> None:
        self.name = str(path)
        self._path, self._parse, self._transpose = path, parse, transpose
        self._given = None if genes is None else name_list(genes)
        self._room = room or Room()
        parsed = self._read_file()
        super().__init__(self.name, parsed.matrix, parsed.obs, parsed.genes)
        self.is_sparse = parsed.is_sparse

    @property
    def path(self) -> Path:
        """Where it lies on disk."""
        return self._path

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrix": None, "_obs": None}

    def _open(self) -> None:
        parsed = self._read_file()
        self._matrix, self._obs = parsed.matrix, parsed.obs

    def _read_file(self) -> Parsed:
        try:
            return self._parse(self._path, self._room, self._transpose, self._given)
        except BaseException:
            self._room.close()
            raise

    def close(self) -> None:
        """Delete scratch; a later read parses the file again."""
        super().close()
        self._room.close()
        self._matrix = self._obs = None


@dataclass
class _Layout:
    """How a table is laid out, judged by its first lines."""

    delimiter: int
    blanks: bool  # any stretch of blanks parts fields, and is made the delimiter first
    named: bool  # the first field of each row is its name
    n_cols: int  # numbers in a row
    header: StoredNames | None  # names of the columns


def parse_table(path: Path, room: Room, transpose: bool, genes: list[str] | None) -> Parsed:
    """Parse a table of cells x genes, or of genes x cells to `transpose`.

    Raises
    ------
    InputError
        Where the file is no such table; the message names line, column and value.
    """
    name = str(path)
    with LineBlocks(path, name, room.memory) as lines:
        layout = _layout(lines, room)
        rows = StoredNames(room, name) if layout.named else None
        carried, cells = (rows, layout.header) if transpose else (layout.header, rows)
        if carried is None and (genes is None or not transpose):
            given_names(genes, layout.n_cols, name)  # refuse before hours are spent
        values, positions, offsets = _parse_rows(lines, layout, rows, room, transpose)
    shape = (offsets.shape[0] - 1, layout.n_cols)
    matrix: Matrix = CsrMatrix(values, positions, offsets, shape, name)
    if transpose:
        parts = values, positions, offsets, shape[::-1]
        matrix = CscMatrix(*parts, name, room, "stored by gene")
    n_obs, n_vars = matrix.shape
    if carried is None:
        found = given_names(genes, n_vars, name)
    else:
        found = unique_names(carried.index(0, n_vars), name)
        if genes is not None:
            logger.warning(IGNORED, name, "genes")
    obs = MemoryFrame(pd.DataFrame(index=pd.RangeIndex(n_obs)), f"obs of {name}")
    return Parsed(matrix, obs if cells is None else cells, found, is_sparse=False)


@dataclass
class _Line:
    """The fields of a line: their text without quotes, where each ends, who was in quotes."""

    text: Bytes
    ends: NDArray[np.int64]
    first_quoted: bool
    last_quoted: bool

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        i %= len(self)
        start = int(self.ends[i - 1]) if i else 0
        return self.text[start : self.ends[i]].tobytes().decode(errors="replace")


def _split(line: Bytes, delimiter: int, blanks: bool, name: str) -> _Line:
    if blanks:
        line = line[: kernel.squeeze(line, 0, len(line))]
    out = np.empty(len(line), np.uint8)
    ends = np.empty(np.count_nonzero(line == delimiter) + 1, np.int64)
    count = kernel.split(line, delimiter, out, ends)
    if count < 0:
        raise InputError(f"{name}: a quote in its first lines is not closed on its line: close it")
    raw = line.tobytes().rstrip()
    return _Line(out, ends[:count], raw.startswith(b'"'), raw.endswith(b'"'))


def _untrailed(line: Bytes, delimiter: int) -> Bytes:
    """Leave out a line's last character but blanks, the delimiter."""
    stop = int(np.flatnonzero(line == delimiter)[-1])
    return np.append(line[:stop], np.uint8(kernel.NEWLINE))


def _layout(lines: LineBlocks, room: Room) -> _Layout:
    """Judge the first lines as anndata.read_text does, and go past the header.

    The first line is a header if a field after its first is no number (anndata looks at the last),
    and rows have names if the first field of the next line is none. Beyond anndata: where the first
    line holds a tab, tabs alone part fields, so that names may hold blanks; a first field that is
    empty, as pandas writes it, says that there are a header and names, even if the names are
    numbers; and lines may end in a delimiter.
    """
    name, comment = lines.name, None
    while (first := lines.peek()) and first[0][0] == ord("#"):
        comment = first[0]
        lines.skip()
    if not first:
        raise InputError(f"{name} is empty: it must hold a table of numbers")
    is_csv = name.lower().removesuffix(".gz").endswith(".csv")
    delimiter, blanks = (COMMA, False) if is_csv else (TAB, TAB not in first[0])
    texts = (lines.peek(2) * 2)[:2]
    head, row = (_split(text, delimiter, blanks, name) for text in texts)
    if not head[-1] and (len(row) == len(head) - 1 or not row[-1]):  # lines end in a delimiter
        head = _split(_untrailed(texts[0], delimiter), delimiter, blanks, name)
        if not row[-1]:
            row = _split(_untrailed(texts[1], delimiter), delimiter, blanks, name)
    if len(head) < 2:
        raise InputError(
            f"{name}: fields are parted by {'commas' if is_csv else 'tabs or blanks'}, and line "
            f"{lines.number + 1} has a single one ({head[0][:40]!r}): name files with commas .csv, "
            "with tabs .tsv"
        )
    # A number in quotes is a name, unless numbers are in quotes throughout.
    is_text = not kernel.numbers(row.text, row.ends)[0]
    named = is_text or (row.first_quoted and not row.last_quoted)
    words = np.flatnonzero(~kernel.numbers(head.text, head.ends)).tolist()
    is_header = any(head[i].strip().lower() not in MISSING for i in words if i)
    is_header |= head.last_quoted and not row.last_quoted
    if not head[0] or len(head) == len(row) - 1:
        is_header = named = True
    if is_header:
        if len(lines.peek(2)) < 2:
            raise InputError(f"{name} has a header and no rows below it: write the file anew")
        lines.skip()
    elif comment is not None:  # the last comment may be the header
        start = int(np.argmax((comment != ord("#")) & (comment != ord(" "))))
        head = _split(comment[start:], delimiter, blanks, name)
    n_cols = len(row) - named
    skipped = len(head) - n_cols
    if is_header and skipped not in (0, named):
        raise InputError(
            f"{name}: its header has {len(head):,} fields and line {lines.number + 1} has "
            f"{len(row):,}: each number needs a name, and each name a number"
        )
    header = None
    if is_header or (comment is not None and skipped in (0, named)):
        start = int(head.ends[0]) if skipped else 0
        empty = np.flatnonzero(np.diff(head.ends[skipped:], prepend=start) == 0)
        if len(empty):
            raise InputError(
                f"{name}: field {empty[0] + skipped + 1:,} of its header is empty, and only the "
                "first, above the names of the rows, may be: name that column or leave it out"
            )
        header = StoredNames(room, name)
        header.append(head.text[start:], head.ends[skipped:] - start)
    return _Layout(delimiter, blanks, bool(named), n_cols, header)


def _parse_rows(
    lines: LineBlocks, layout: _Layout, rows: StoredNames | None, room: Room, transpose: bool
) -> tuple[ScratchArray, ScratchArray, ScratchArray]:
    """Parse the lines after the header; returns values, positions and offsets of sparse rows."""
    values, positions, offsets = (room.array(t) for t in (np.float32, np.int32, np.int64))
    offsets.append(np.zeros(1, np.int64))
    fault = np.zeros(5, np.int64)
    out: list[NDArray[Any]] = []
    # What the first column, if a header names it, may count its rows from.
    starts = {0, 1} if layout.header is not None and not layout.named else set()
    total = n_rows = 0
    with stage("Parsing", lines.size, "B", show=room.progress) as bar:
        while lines.start < lines.stop or lines.fill():
            text, start, stop = lines.text, lines.start, lines.stop
            if layout.blanks:
                stop = kernel.squeeze(text, start, stop)
            if not out or len(out[0]) <= len(text) // 2:
                out = _buffers(len(text), layout)
            data, indices, indptr, ends, names = out
            count, n_lines = kernel.parse_rows(
                text, start, stop, layout.delimiter, layout.named, layout.n_cols,
                data, indices, indptr, names, ends, fault,
            )  # fmt: skip
            if fault[0] != kernel.FINE:
                row = names[ends[count - 1] if count else 0 : ends[count]]
                raise _refuse(fault, lines, layout, row, transpose)
            n = int(indptr[count])
            if starts:
                column = _first_column(data, indices, indptr[: count + 1])
                starts = {k for k in starts if np.all(column == np.arange(count) + (n_rows + k))}
            n_rows += count
            values.append(data[:n])
            positions.append(indices[:n])
            offsets.append(indptr[1 : count + 1] + total)
            if rows is not None:
                rows.append(names, ends[:count])
            if total == 0:
                need = n * (TRANSPOSED_ENTRY if transpose else ENTRY)
                whole = lines.size / max(1, lines.position)
                require_free(room.scratch, whole * need, f"parsing {lines.name}")
            total += n
            lines.done(n_lines)
            bar.update(lines.position - bar.n)
    if layout.header is not None and not layout.named:
        first = layout.header.index(0, 1)[0]
        if (starts and n_rows > 2) or first.strip().lower() in ID_NAMES:
            logger.warning(
                "%s: its first column, %r, looks like names of rows and is taken as %s: if it "
                "holds names, leave the first field of the header empty",
                lines.name, first, "a cell" if transpose else "a gene",
            )  # fmt: skip
    return values, positions, offsets


def _first_column(
    data: NDArray[np.float32], indices: NDArray[np.int32], indptr: NDArray[np.int64]
) -> NDArray[np.float32]:
    column = np.zeros(len(indptr) - 1, np.float32)
    filled = np.flatnonzero(np.diff(indptr))
    filled = filled[indices[indptr[filled]] == 0]
    column[filled] = data[indptr[filled]]
    return column


def _buffers(nbytes: int, layout: _Layout) -> list[NDArray[Any]]:
    """Arrays for what `nbytes` of text can hold at most: a number takes two bytes, as in `0,`."""
    n_rows = nbytes // max(1, 2 * layout.n_cols) + 1
    return [
        np.empty(nbytes // 2 + 1, np.float32),
        np.empty(nbytes // 2 + 1, np.int32),
        np.empty(n_rows + 1, np.int64),
        np.empty(n_rows, np.int64),
        np.empty(nbytes if layout.named else 1, np.uint8),
    ]


def _refuse(
    fault: NDArray[np.int64], lines: LineBlocks, layout: _Layout, row: Bytes, transpose: bool
) -> InputError:
    """Word the error for the first line that cannot be used; `row` is its name."""
    kind, before, column, start, stop = fault.tolist()
    where = f"line {lines.number + before + 1:,}"
    if kind == kernel.QUOTING:
        return InputError(f"{lines.name}: the quote in {where} is not closed: repair that line")
    if kind == kernel.RAGGED:
        return InputError(
            f"{lines.name}: {where} has {column:,} numbers where {layout.n_cols:,} are due, as in "
            "the first: restore the file from a copy or write it anew"
        )
    gene = ""
    if transpose and layout.named:
        gene = row.tobytes().decode(errors="replace")
    elif not transpose and layout.header is not None and column < layout.n_cols:
        gene = layout.header.index(column, column + 1)[0]
    found = lines.text[start:stop].tobytes().decode(errors="replace").strip()
    return InputError(
        f"{lines.name}: expression must be finite numbers, but {where}, column "
        f"{column + layout.named + 1:,}{f' (gene {gene!r})' if gene else ''}, holds "
        f"{found[:40]!r}: write 0 for what was not measured, or leave out that cell"
    )
