"""Names of genes enter; what kind of names they are, and of which species, leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from streamtrain.errors import InputError
from streamtrain.sources.columns import Frame

SYMBOLS, IDS, TRANSCRIPTS, NUMBERED, OTHER = (
    "symbols", "Ensembl gene ids", "Ensembl transcript ids", "numbered", "other",
)  # fmt: skip
NAMES = (SYMBOLS, IDS)  # by which genes of two data sets can be matched
_ENSEMBL = re.compile(r"(?:[^E].*_)?ENS([A-Z]{3,4})?([GT])\d{11}(?:\.\d+)?")
# Ids of other databases that Ensembl takes over.
_OTHERS = {
    r"WBGene\d{8}": "worm (WormBase)",
    r"FBgn\d{7}": "fly (FlyBase)",
    r"AT[1-5CM]G\d{5}": "Arabidopsis",
    r"Y[A-P][LR]\d{3}[CW](?:-[A-Z])?": "yeast",
}
_SPECIES = {
    "": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "MMU": "rhesus macaque",
    "MFA": "crab-eating macaque", "PTR": "chimpanzee", "GGO": "gorilla", "CJA": "marmoset",
    "MIC": "mouse lemur", "SSC": "pig", "BTA": "cow", "OAR": "sheep", "ECA": "horse", "CAF": "dog",
    "FCA": "cat", "OCU": "rabbit", "GAL": "chicken", "XET": "frog", "MPUG": "ferret",
}  # fmt: skip
_NUMBERED = re.compile(r"(?:gene|g|feature|var|x|v)?[-_. ]?\d+(?:\.0)?", re.IGNORECASE)
_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-_/@:()']*")
_MOST = 0.5  # share of the names that tells


@dataclass(frozen=True, slots=True)
class GeneReport:
    """Names of the genes of a matrix.

    Attributes
    ----------
    n
        How many.
    kind
        "symbols", "Ensembl gene ids", "Ensembl transcript ids", "numbered" or "other".
    species
        By the ids, or by how symbols are written; empty where that does not tell.
    repeated
        Names that repeat an earlier one.
    first
        The first few.
    columns
        Columns of var that hold symbols or ids, with what `kind` says of each: for --gene-key.
    """

    n: int
    kind: str
    species: str
    repeated: int
    first: list[str]
    columns: dict[str, str]


def inspect_genes(var: Frame) -> GeneReport:
    """Look at the index of var, and at its columns of text."""
    names = var.index(0, len(var))
    kind, species = kind_of_names(names)
    columns: dict[str, str] = {}
    for column in var.columns():
        try:
            values: Any = var.column(column)
        except InputError:  # of a kind that cannot be read, and is no name either
            continue
        found = _named(values)
        if found is not None and not np.array_equal(values.astype(object), names):
            columns[column] = found
    repeated = int(pd.Index(names, dtype=object).duplicated().sum())
    return GeneReport(len(names), kind, species, repeated, names[:3].tolist(), columns)


def _named(values: pd.Series[Any]) -> str | None:
    """What names a column of var holds; None for none. Biotypes and the like repeat."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return None
    names = values.cat.categories
    if names.dtype.kind != "O" or 2 * len(names) < len(values):
        return None
    kind, _ = kind_of_names(names)
    return kind if kind in NAMES else None


def kind_of_names(names: Iterable[Any]) -> tuple[str, str]:
    """Kind of names of genes, and the species where they tell it."""
    texts = [str(name) for name in names]
    least = max(1, _MOST * len(texts))
    ids = Counter((m[2], m[1] or "") for m in map(_ENSEMBL.fullmatch, texts) if m)
    if ids.total() >= least:
        prefixes = sorted({p for (_, p), n in ids.items() if n > 0.01 * len(texts)})
        words = " and ".join(_SPECIES.get(p, f"ENS{p}") for p in prefixes)
        genes = sum(n for (letter, _), n in ids.items() if letter == "G")
        return (IDS if 2 * genes >= ids.total() else TRANSCRIPTS), words
    for pattern, word in _OTHERS.items():
        if sum(bool(re.fullmatch(pattern, text)) for text in texts) >= least:
            return IDS, word
    if sum(bool(_NUMBERED.fullmatch(text)) for text in texts) >= least:
        return NUMBERED, ""
    symbols = [text for text in texts if _SYMBOL.fullmatch(text)]
    if not texts or len(symbols) < least:
        return OTHER, ""
    letters = [s for s in symbols if sum(map(str.isalpha, s)) > 1]
    upper = np.mean([s.upper() == s for s in letters]) if letters else 0
    title = np.mean([s[0].isupper() and s[1:] == s[1:].lower() for s in letters]) if letters else 0
    species = "human" if upper > 0.7 else "mouse or rat" if title > 0.5 else ""
    return SYMBOLS, species and f"written as of {species}"
