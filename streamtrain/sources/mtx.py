"""Matrix Market files and 10x folders: parsed once, block by block onto scratch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.errors import InputError, near
from streamtrain.kernels import text as kernel
from streamtrain.progress import stage
from streamtrain.scratch import Room, require_free
from streamtrain.sources.columns import MemoryFrame
from streamtrain.sources.csc import CooMatrix
from streamtrain.sources.genes import IGNORED, given_names, unique_names
from streamtrain.sources.lines import LineBlocks, StoredNames, read_lines
from streamtrain.sources.matrix import CsrMatrix, Matrix
from streamtrain.sources.text import Parsed

logger = logging.getLogger(__name__)

ENTRY = 12  # bytes on scratch: cell, gene, value
GENE_KEYS = {"gene_ids": 0, "gene_symbols": 1}  # columns of a 10x folder's genes, scanpy's names
SUPPORTED = "%%MatrixMarket matrix coordinate, real, integer or pattern, general"


def parse_mtx(path: Path, room: Room, transpose: bool, genes: list[str] | None) -> Parsed:
    """Parse cells x genes, or genes x cells to `transpose`; the entries may come in any order.

    Raises
    ------
    InputError
        Where the file is no such matrix, or `genes` are missing or too few or many.
    """
    with LineBlocks(path, str(path), room.memory) as lines:
        header = _Header(lines, by_gene=transpose)
        if genes is not None and len(genes) == header.n_obs != header.n_vars:
            raise InputError(
                f"genes has {len(genes):,} names, and {lines.name} as many cells and "
                f"{header.n_vars:,} genes: it is stored the other way, change transpose"
            )
        names = given_names(genes, header.n_vars, lines.name)
        places = np.arange(header.n_vars, dtype=np.int32)
        matrix = _parse_entries(lines, header, places, room)
    obs = MemoryFrame(pd.DataFrame(index=pd.RangeIndex(header.n_obs)), f"obs of {path}")
    return Parsed(matrix, obs, names, is_sparse=True)


def find_10x(folder: Path) -> Path | None:
    """Give the matrix of a 10x folder; None where `folder` is none."""
    return _first_of(folder, "matrix.mtx")


def parse_10x(
    folder: Path,
    room: Room,
    transpose: bool,
    genes: list[str] | None,
    gene_key: str | None = None,
) -> Parsed:
    """Parse a 10x folder: genes x cells, their names beside them.

    Features of other kinds than gene expression are left out, as scanpy does. `transpose` and
    `genes` are ignored, as the folder knows better.

    Parameters
    ----------
    gene_key
        "gene_symbols" (the default) or "gene_ids".

    Raises
    ------
    InputError
        Where a file is missing, or one contradicts another.
    """
    for option, given in (("transpose", transpose), ("genes", genes)):
        if given:
            logger.warning(IGNORED, folder, option)
    column = GENE_KEYS.get(gene_key or "gene_symbols")
    if column is None:
        raise InputError(f"{folder} has no gene_key {gene_key!r}: {near(str(gene_key), GENE_KEYS)}")
    features, barcodes = (
        _first_of(folder, *stems) for stems in (("features.tsv", "genes.tsv"), ("barcodes.tsv",))
    )
    matrix_path = find_10x(folder)
    if matrix_path is None or features is None or barcodes is None:
        raise InputError(
            f"{folder} is not a 10x folder: it must hold matrix.mtx, features.tsv or genes.tsv, "
            "and barcodes.tsv, or these with .gz"
        )
    fields = [line.split("\t") for line in read_lines(features, features.name)]
    # A gene without a symbol is called by its id, and one whose line is cut, by what there is.
    names = np.array([row[min(column, len(row) - 1)] or row[0] for row in fields], dtype=object)
    kept = np.array([len(row) < 3 or row[2] == "Gene Expression" for row in fields], bool)
    if not kept.any():
        kept[:] = True
    if not kept.all():
        logger.info("%s: %d features other than genes are left out", folder, np.sum(~kept))
    obs = StoredNames(room, str(barcodes))
    obs.extend(line.split("\t")[0] for line in read_lines(barcodes, barcodes.name))
    with LineBlocks(matrix_path, str(matrix_path), room.memory) as lines:
        header = _Header(lines, by_gene=True)
        for path, found, due in (
            (features, len(names), header.n_vars),
            (barcodes, len(obs), header.n_obs),
        ):
            if found != due:
                raise InputError(
                    f"{path} has {found:,} lines where {matrix_path.name} is of {header.n_vars:,} "
                    f"genes x {header.n_obs:,} cells: take all files from one folder"
                )
        places = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        matrix = _parse_entries(lines, header, places, room)
    return Parsed(matrix, obs, unique_names(names[kept], str(folder)), is_sparse=True)


def _first_of(folder: Path, *stems: str) -> Path | None:
    found = (folder / f"{stem}{end}" for stem in stems for end in (".gz", ""))
    return next((path for path in found if path.is_file()), None)


class _Header:
    """What the first lines of a Matrix Market file say; goes past them."""

    def __init__(self, lines: LineBlocks, by_gene: bool) -> None:
        banner = lines.peek()
        words = banner[0].tobytes().decode(errors="replace").lower().split() if banner else []
        kinds = ("real", "integer", "unsigned-integer", "pattern")
        start = ["%%matrixmarket", "matrix", "coordinate"]
        if words[:3] != start or len(words) != 5 or words[3] not in kinds or words[4] != "general":
            raise InputError(
                f"{lines.name} begins with {' '.join(words)[:80]!r}, and must with {SUPPORTED}: "
                "write it with scipy.io.mmwrite(..., symmetry='general') from a sparse matrix"
            )
        lines.skip()
        while (found := lines.peek()) and found[0][0] == kernel.PERCENT:
            lines.skip()
        sizes = found[0].tobytes().split() if found else []
        if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
            raise InputError(
                f"{lines.name}: line {lines.number + 1} must give the numbers of rows, columns and "
                f"entries, and holds {b' '.join(sizes)[:80].decode(errors='replace')!r}"
            )
        lines.skip()
        self.pattern, self.by_gene = words[3] == "pattern", by_gene
        n_rows, n_cols, self.n_entries = (int(size) for size in sizes)
        self.n_obs, self.n_vars = (n_cols, n_rows) if by_gene else (n_rows, n_cols)
        if max(n_rows, n_cols) >= 2**31:
            raise InputError(f"{lines.name} claims {n_rows:,} x {n_cols:,}: it is damaged")


def _parse_entries(
    lines: LineBlocks, header: _Header, places: NDArray[np.int32], room: Room
) -> Matrix:
    """Parse the lines after the header, the genes moved to `places` (-1: left out)."""
    if 8 * header.n_obs > room.memory:
        raise InputError(
            f"{lines.name} claims {header.n_obs:,} cells, and a count for each does not fit in "
            f"memory={format_bytes(room.memory)}: raise memory, or write the file anew if it has "
            "fewer"
        )
    need = header.n_entries * ENTRY + 8 * (header.n_obs + 1)
    require_free(room.scratch, need, f"parsing {lines.name}")
    files = cells, genes, values = [room.array(t) for t in (np.int32, np.int32, np.float32)]
    counts = np.zeros(header.n_obs, np.int64)
    fault = np.zeros(5, np.int64)
    out: list[NDArray[Any]] = []
    read, last, by_cell = 0, 0, True
    with stage("Parsing", lines.size, "B", show=room.progress) as bar:
        while lines.start < lines.stop or lines.fill():
            if not out or len(out[0]) <= len(lines.text) // 4:
                # An entry takes four bytes at least, as in "1 1".
                out = [np.empty(len(lines.text) // 4 + 1, file.dtype) for file in files]
            n, n_read, n_lines = kernel.parse_entries(
                lines.text, lines.start, lines.stop, header.by_gene, header.pattern, places,
                counts, *out, fault,
            )  # fmt: skip
            if fault[0] != kernel.FINE:
                raise _refuse(fault, lines, header)
            for file, found in zip(files, out, strict=True):
                file.append(found[:n])
            by_cell = by_cell and kernel.ascends(out[0][:n], last)
            last = int(out[0][n - 1]) if n else last
            read += n_read
            lines.done(n_lines)
            bar.update(lines.position - bar.n)
    if read != header.n_entries:
        raise InputError(
            f"{lines.name} holds {read:,} entries where its header says {header.n_entries:,}: it "
            "is cut short or damaged; restore it from a copy or write it anew"
        )
    shape = header.n_obs, int(np.count_nonzero(places >= 0))
    if not by_cell:
        return CooMatrix(values, cells, genes, shape, lines.name, room)
    cells.close()
    offsets = room.array(np.int64)
    offsets.append(np.zeros(1, np.int64))
    offsets.append(np.cumsum(counts, out=counts))
    return CsrMatrix(values, genes, offsets, shape, lines.name)


def _refuse(fault: NDArray[np.int64], lines: LineBlocks, header: _Header) -> InputError:
    """Word the error for the first line that cannot be used."""
    kind, before, _, start, stop = fault.tolist()
    text = lines.text[start:stop].tobytes().decode(errors="replace").strip()
    what = f"{lines.name}: line {lines.number + before + 1:,} ({text[:60]!r})"
    order = "gene and cell" if header.by_gene else "cell and gene"
    if kind == kernel.PLACE:
        return InputError(
            f"{what} lies outside the matrix of {header.n_obs:,} cells x {header.n_vars:,} genes, "
            f"taken as {order} counted from 1: restore the file from a copy or write it anew"
        )
    value = "" if header.pattern else " and a finite number"
    return InputError(f"{what} is no entry, it must hold {order} counted from 1{value}: repair it")
