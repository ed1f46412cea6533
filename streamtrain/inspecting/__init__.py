"""A path enters; what is there, a model or data, and what can be done with it, leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamtrain.errors import InputError
from streamtrain.inspecting.data import DataInspection, inspect_data
from streamtrain.inspecting.model import Inspection, inspect_model

if TYPE_CHECKING:
    from streamtrain.decode.address import Address
    from streamtrain.sources.genes import Genes

__all__ = ["DataInspection", "Inspection", "inspect"]

_METADATA = (".zattrs", "zarr.json")
_MODEL = b"streamtrain model"
_PICKLE = b"\x80"


def inspect(
    path: str | os.PathLike[str] | Address | Sequence[str | os.PathLike[str] | Address],
    labels: str | None = None,
    *,
    genes: Genes | None = None,
    transpose_input: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Inspection | DataInspection:
    """Say what a model or an atlas is, and how to train on the atlas.

    A model is read and verified. Of an atlas metadata, obs and some hundred cells spread over each
    file are read, never the matrix: seconds, whatever its size. Text alone is parsed whole.

    Parameters
    ----------
    path
        A saved model (a folder), or a pickle of CellTypist, in which nothing is run; or data, as
        `streamtrain.train` takes them from disk or a server: an .h5ad file, a zarr AnnData, text,
        a 10x folder, several AnnData as one.
    labels
        Of data: column of obs with the cell types, or a text file with one a line. The default is
        the column that most likely has them.
    genes, transpose_input, storage_options
        Of data, as of `streamtrain.train`.

    Returns
    -------
    Inspection or DataInspection
        Print it, or take its attributes.

    Raises
    ------
    FileNotFoundError
        Nothing stands at `path`.
    InputError
        It is neither a model nor data, or damaged; or there is no such column of labels.

    Examples
    --------
    >>> import streamtrain
    >>> print(streamtrain.inspect("atlas.h5ad", "cell_type"))  # doctest: +SKIP
    >>> print(streamtrain.inspect("model.zarr"))  # doctest: +SKIP
    """
    if isinstance(path, str | os.PathLike) and _is_model(Path(path).expanduser()):
        if labels is not None:
            raise InputError(f"labels are of data, and {str(path)!r} is a model: leave them out")
        return inspect_model(path)
    return inspect_data(
        path, labels, genes=genes, transpose_input=transpose_input, storage_options=storage_options
    )


def _is_model(path: Path) -> bool:
    """Whether a model stands there, a damaged one too."""
    if path.is_dir():
        found = (path / name for name in _METADATA)
        return (path / "coef").is_dir() or any(
            _MODEL in file.read_bytes() for file in found if file.is_file()
        )
    if not path.is_file():
        return False
    if path.suffix == ".pkl":
        return True
    with path.open("rb") as opened:
        return opened.read(1) == _PICKLE
