"""Gene names: a var frame and perhaps a column of it enter, unique names leave."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.sources.columns import Frame
from streamtrain.sources.lines import read_lines

logger = logging.getLogger(__name__)

IGNORED = "%s names its genes itself: %s is ignored"
Genes = str | os.PathLike[str] | Iterable[str]


def gene_names(var: Frame, gene_key: str | None, name: str) -> NDArray[np.object_]:
    """Read gene names from var's index, or from its column `gene_key`, and make them unique.

    Where the column has no name for a gene, the index's name stands in.
    """
    names = var.index(0, len(var))
    if gene_key is not None:
        column = var.column(gene_key)
        missing = column.isna().to_numpy()
        if missing.any():
            logger.warning(
                "%s: var column %r names no gene in %d of %d places; the index's names stand there",
                name,
                gene_key,
                missing.sum(),
                len(missing),
            )
        found = column.astype(object).to_numpy()
        names = np.array(
            [str(n) if gap else str(f) for f, n, gap in zip(found, names, missing, strict=True)],
            dtype=object,
        )
    return unique_names(names, name)


def unique_names(names: NDArray[np.object_], name: str) -> NDArray[np.object_]:
    """Make gene names unique as AnnData would: repeats are numbered."""
    index = pd.Index(names, dtype=object)
    repeats = int(index.duplicated().sum())
    if not repeats:
        return names
    from anndata.utils import make_index_unique

    logger.warning(
        "%s: %d gene names repeat an earlier one (first %r); they are numbered, -1, -2, ...",
        name,
        repeats,
        index[index.duplicated()][0],
    )
    return np.array(make_index_unique(index), dtype=object)


def name_list(genes: Genes) -> list[str]:
    """Names as str, from a list-like or the path of a text file with one a line.

    Raises
    ------
    InputError
        Where the path is no text file in UTF-8.
    """
    if not isinstance(genes, str | os.PathLike):
        return [str(gene) for gene in genes]
    if not Path(genes).expanduser().is_file():
        raise InputError(
            f"genes={str(genes)!r} is one string, and there is no such file: pass a list of names, "
            "or the path of a text file with one a line"
        )
    return list(read_lines(genes, "genes"))


def given_names(genes: Genes | None, n_vars: int, name: str) -> NDArray[np.object_]:
    """Check the `genes` that a matrix without var must come with.

    Raises
    ------
    InputError
        Where they are missing or not as many as the columns.
    """
    if genes is None:
        raise InputError(
            f"{name} has no gene names: pass genes= (--genes FILE), one name for each gene"
        )
    names = np.array(name_list(genes), dtype=object)
    if len(names) != n_vars:
        raise InputError(
            f"genes has {len(names)} names, and {name} has {n_vars} columns (genes): pass one name "
            "for each"
        )
    return unique_names(names, name)
