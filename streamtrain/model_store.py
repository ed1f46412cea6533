"""A model's dataset enters and is stored as zarr; it leaves again, with the checksum stored."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from streamtrain import atomic
from streamtrain.errors import InputError

FORMAT = "streamtrain model"
FORMAT_VERSION = 1


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `Model.save` may write to `path`, before training.

    Parameters
    ----------
    path, overwrite
        As in `Model.save`.

    Raises
    ------
    InputError
        As `Model.save`.
    """
    target = atomic.check_output(path, overwrite, folder=True)
    if target.exists():  # --overwrite on a mistyped path must not cost an atlas
        try:
            _read_header(target)
        except InputError as error:
            raise InputError(
                f"{str(path)!r} is not a streamtrain model, and not overwritten by one: choose "
                "another path"
            ) from error


def write(dataset: xr.Dataset, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Write what `Model.save` stores."""
    check_output(path, overwrite)
    stored = dataset.assign_attrs(
        format=FORMAT, format_version=FORMAT_VERSION, checksum=checksum(dataset)
    )
    # A fill value would turn 0 or NaN of ours into a missing value when read elsewhere.
    encoding = {str(name): {"_FillValue": None} for name in stored.data_vars}
    with atomic.replacing(path, overwrite, folder=True) as partial:
        # Format 2: consolidated metadata is not in format 3's specification, and without it
        # (or with it, on the other side) xarray and zarr warn.
        stored.to_zarr(partial, mode="w-", zarr_format=2, consolidated=True, encoding=encoding)


def read(path: str | os.PathLike[str]) -> tuple[xr.Dataset, str | None]:
    """Read what `write` stored, whole, and close the store.

    Parameters
    ----------
    path
        The store, a folder.

    Returns
    -------
    tuple
        The dataset as stored, unchecked, and the `checksum` that it shall have.

    Raises
    ------
    InputError
        It is not a streamtrain model, cannot be read, or needs a newer streamtrain.
    """
    folder = Path(path).expanduser()
    version = _read_header(folder).get("format_version")
    if not isinstance(version, int):
        raise damaged(path, f"its format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"model {str(path)!r} has format version {version}, this streamtrain reads up to "
            f"{FORMAT_VERSION}: upgrade streamtrain"
        )
    try:
        with xr.open_zarr(folder, chunks=None, consolidated=True, decode_cf=False) as opened:
            dataset = opened.load()
    except Exception as error:  # a broken store can fail in any layer: zarr, codec, xarray
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    for key in ("format", "format_version"):
        dataset.attrs.pop(key, None)
    return dataset, dataset.attrs.pop("checksum", None)


def damaged(path: str | os.PathLike[str], why: str) -> InputError:
    """Word the error of a store that is not as it was written."""
    return InputError(f"model {str(path)!r} is damaged: {why}; restore it or train again")


def checksum(dataset: xr.Dataset) -> str:
    """Hash every array with its name, dims, shape and type: zarr reads a lost chunk as zeros."""
    digest = hashlib.sha256()
    for key in ("with_mean", "t"):
        digest.update(f"{key}={dataset.attrs[key]!r}\n".encode())
    for name in sorted(str(v) for v in dataset.variables):
        variable = dataset[name]
        values = np.ascontiguousarray(variable.to_numpy())
        if values.dtype == object:
            values = np.frombuffer("\0".join(values).encode(), np.uint8)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {variable.dims} {variable.shape} {little.dtype.str}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    """Read the attributes of the store at `path`, if a streamtrain model's."""
    try:
        header = json.loads((path / ".zattrs").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        header = None
    except (OSError, ValueError) as error:
        raise damaged(path, f".zattrs: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(
            f"{str(path)!r} is not a streamtrain model: it must be a folder that save() wrote, or "
            "a .pkl file of CellTypist"
        )
    return header
