"""What was found in data enters; what to know of it, and the command to train on it, leave."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamtrain.decode.address import Address
from streamtrain.inspecting.genes import NAMES, GeneReport
from streamtrain.inspecting.matrices import FRACTIONS
from streamtrain.sources.base import Source

if TYPE_CHECKING:
    from streamtrain.inspecting.data import ClassReport, FileReport

RARE = 10  # cells below which a class can hardly be learnt, or judged
_NO_TYPE = re.compile(
    r"nan|na|none|null|unknown.*|unassigned|unclassified|undefined|undetermined|doublets?|"
    r"low.?quality.*|filtered|other|artifact|exclude[d]?",
    re.IGNORECASE,
)


def is_no_type(name: str) -> bool:
    """Whether a label says that the cell has none, or is none."""
    return _NO_TYPE.fullmatch(name.strip()) is not None


def notes_on(
    matrix: str, genes: GeneReport, settings: Mapping[str, Any], files: Sequence[FileReport]
) -> list[str]:
    """What to know of the matrix, its genes and how they are used."""
    notes = []
    if matrix == "":
        notes.append(
            "no matrix can be trained on: values must be raw counts, or log1p of counts normalised "
            "to 10,000 a cell, in the same matrix of every file"
        )
    if settings.get("check_expression") is False:
        notes.append(
            "train takes these values as they are (--no-check-expression); a model for CellTypist "
            "needs log1p of 10,000: raw counts, if there are any elsewhere, with --normalize log1p"
        )
    if matrix and settings.get("normalize") and any(
        m.kind == FRACTIONS for f in files for m in f.matrices if m.key == matrix
    ):  # fmt: skip
        notes.append("values are no raw counts: --normalize log1p takes them as if they were")
    symbols = [c for c, kind in genes.columns.items() if kind == NAMES[0]]
    if genes.kind == NAMES[1] and symbols:
        notes.append(
            f"--gene-key {shlex.quote(symbols[0])} trains on symbols, as CellTypist's models have"
        )
    if genes.kind not in NAMES and not genes.columns:
        notes.append("a model is matched with other data by the names of genes: see to them first")
    if any(m.encoding == "csc" for f in files for m in f.matrices if m.key == matrix):
        notes.append(
            "the matrix is stored by gene: each run transposes it through scratch; streamtrain "
            "convert does so once"
        )
    return notes


def doubts(source: Source, labels: str | None, classes: Sequence[ClassReport]) -> list[str]:
    """Which classes to leave out, and how."""
    notes = []
    rare = [c for c in classes if c.n_cells < RARE]
    if rare:
        n, cells = len(rare), sum(c.n_cells for c in rare)
        words = "class is" if n == 1 else "classes are"
        notes.append(
            f"{n:,} {words} too rare, below {RARE} cells ({cells:,} together): join them with "
            "others, or leave them out with --where"
        )
    odd = [c.name for c in classes if is_no_type(c.name)]
    if odd and labels in source.obs_columns():
        column = labels if str(labels).isidentifier() else f"`{labels}`"
        expression = f"{column} not in {odd!r}" if len(odd) > 1 else f"{column} != {odd[0]!r}"
        plain = re.search(r'["$`\\]|!(?!=)', expression) is None
        quoted = f'"{expression}"' if plain else shlex.quote(expression)
        notes.append(f"--where {quoted} leaves out what is no cell type")
    return notes


def given_name(X: Any) -> str:
    """A path or an address, as it was given."""
    return X.name if isinstance(X, Address) else str(X)


def command_of(
    X: Any, labels: str | None, settings: Mapping[str, Any], genes: Any, transposed: bool
) -> list[str]:
    """Arguments of the command that trains on X, into a folder that is not there yet."""
    paths = [given_name(part) for part in (X if isinstance(X, list | tuple) else [X])]
    out, number = "model.zarr", 1
    while Path(out).exists():
        out, number = f"model-{number}.zarr", number + 1
    words = ["streamtrain", "train"]
    words += [f"./{path}" if path.startswith("-") else path for path in paths]
    words += ["--labels", labels or "COLUMN"]
    if isinstance(genes, str | os.PathLike):
        words += ["--genes", str(genes)]
    if transposed:
        words.append("--transpose-input")
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return [*words, "--out", out]
