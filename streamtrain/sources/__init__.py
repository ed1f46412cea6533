"""Where cells come from: a path or an object in memory enters, a Source leaves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamtrain.errors import InputError
from streamtrain.sources.base import Source

__all__ = ["Source", "open_source"]


def open_source(
    X: Any,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Iterable[str] | None = None,
    memory: int | None = None,
    scratch: str | Path | None = None,
) -> Source:
    """Open cells x genes for reading by row, wherever they are.

    Parameters
    ----------
    X
        Path of an .h5ad file or a zarr AnnData (folder or .zip); an AnnData, backed or not; a scipy
        CSR or CSC matrix or array, a two-dimensional numpy array, a DataFrame with one column per
        gene, or a dask array.
    layer
        Which matrix of an AnnData: None for X, "raw" for raw/X with its own genes, else a layer's
        name.
    gene_key
        Column of an AnnData's var with the gene names (default: var's index).
    genes
        Gene names for a matrix or array, one for each column.
    memory
        Bytes that transposing a matrix stored by gene may hold (default 256 MB).
    scratch
        Folder for that transposition's files (default: the system's temporary one).

    Returns
    -------
    Source
        Close it when done.

    Raises
    ------
    FileNotFoundError
        Where the path does not exist.
    InputError
        Where X is of another type, is damaged, or lacks what the other arguments name.
    """
    from streamtrain.sources import memory as in_memory
    from streamtrain.sources.store import StoreSource

    is_path = isinstance(X, str | os.PathLike)
    is_anndata = in_memory.is_a(X, "anndata", "AnnData")
    if is_path or is_anndata:
        if genes is not None:
            raise InputError(
                "genes= is for a matrix without gene names: name a var column, gene_key="
            )
        if is_path:
            return StoreSource(Path(X).expanduser(), layer, gene_key, memory, scratch)
        return in_memory.AnnDataSource(X, layer, gene_key, memory, scratch)
    for option, value in (("layer", layer), ("gene_key", gene_key)):
        if value is not None:
            raise InputError(f"{option}={value!r} is for an AnnData, and X is a {type(X).__name__}")
    return in_memory.array_source(X, genes, memory, scratch)
