"""A model's dataset enters and is stored as zarr; it leaves again, with the checksum stored."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from streamtrain import atomic, model_layout
from streamtrain.errors import InputError, absent

FORMAT = "streamtrain model"
FORMAT_VERSION = 2  # since 2 the checksum is of the attributes, too


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
    # --overwrite on a mistyped path must not cost an atlas.
    with suppress(FileNotFoundError):
        try:
            atomic.steady(target, lambda: header(target))
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


def read(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what `write` stored, whole, and close the store.

    Parameters
    ----------
    path
        The store, a folder.

    Returns
    -------
    Dataset
        As stored: its checksum is right, its values may not be a model's.

    Raises
    ------
    FileNotFoundError
        Nothing stands at `path`.
    InputError
        It is not a streamtrain model, is damaged, or needs a newer streamtrain.
    """
    folder = Path(path).expanduser()
    version = header(folder).get("format_version")
    if not isinstance(version, int):
        raise damaged(path, f"its format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise InputError(
            f"model {str(path)!r} has format version {version}, this streamtrain reads up to "
            f"{FORMAT_VERSION}: upgrade streamtrain"
        )
    try:
        model_layout.check(folder)
    except (ValueError, OSError) as error:
        raise damaged(path, str(error)) from error
    try:
        with xr.open_zarr(
            folder, chunks=None, consolidated=True, decode_cf=False, zarr_format=2
        ) as opened:
            dataset: xr.Dataset = opened.load()
        _, version, told = (
            dataset.attrs.pop(key, None) for key in ("format", "format_version", "checksum")
        )
        found = checksum(dataset) if version > 1 else arrays_checksum(dataset)
    except Exception as error:  # a broken store can fail in any layer: zarr, codec, xarray
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if found != told:
        raise damaged(path, "its content does not match its checksum")
    return dataset


def damaged(path: str | os.PathLike[str], why: str) -> InputError:
    """Word the error of a store that is not as it was written."""
    return InputError(
        f"model {str(path)!r} is damaged: {why}; restore it from a copy, or train again"
    )


def checksum(dataset: xr.Dataset) -> str:
    """SHA-256 of a model: of every array and attribute, in an order that no writer changes."""
    attrs = json.dumps(dataset.attrs, sort_keys=True)
    return hashlib.sha256(f"{arrays_checksum(dataset)}\n{attrs}".encode()).hexdigest()


def arrays_checksum(dataset: xr.Dataset) -> str:
    """Hash every array with its name, dims, shape and type: zarr reads a lost chunk as zeros."""
    digest = hashlib.sha256()
    for key in ("with_mean", "t"):
        digest.update(f"{key}={dataset.attrs[key]!r}\n".encode())
    for name in sorted(str(v) for v in dataset.variables):
        variable = dataset[name]
        values = np.ascontiguousarray(variable.to_numpy())
        if values.dtype.kind in "OT":  # texts: as a model has them, as zarr gives them
            values = np.frombuffer("\0".join(values).encode(), np.uint8)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {variable.dims} {variable.shape} {little.dtype.str}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def header(path: Path) -> dict[str, Any]:
    """Read the attributes of the store at `path`, if a streamtrain model's."""
    found: dict[str, Any] | None
    try:
        found = model_layout.read_json(path / ".zattrs")
    except (FileNotFoundError, NotADirectoryError):
        if not path.exists():
            raise absent(path, "model") from None
        found = None
    except (OSError, ValueError) as error:
        raise damaged(path, f".zattrs: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(
            f"{str(path)!r} is not a streamtrain model: it must be a folder that save() wrote, or "
            "a .pkl file of CellTypist"
        )
    return found
