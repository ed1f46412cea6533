"""Reads of stored arrays: a slice enters, and an array or one InputError naming the file leaves."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from deflate import DeflateError
from isal import isal_zlib
from numpy.typing import NDArray

from streamtrain.errors import InputError

ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub errs
# What h5py, zarr and their codecs raise on bytes that they cannot decode: h5py OSError, KeyError
# and RuntimeError; zarr KeyError, TypeError and ValueError (checksum, reshape, JSON, metadata);
# blosc RuntimeError and SystemError, zstd RuntimeError; gzip EOFError, zlib.error, ISA-L's own
# and libdeflate's.
READ_ERRORS = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    EOFError,
    SystemError,
    zlib.error,
    ISAL_ERROR,
    DeflateError,
    zipfile.BadZipFile,
)


def damaged(name: str, what: object) -> InputError:
    """Word the error for a file or matrix whose parts contradict each other."""
    return InputError(f"{name} is damaged: {what}; restore it from a copy or write it anew")


@contextmanager
def within_memory(name: str) -> Iterator[None]:
    """Word the error of a memory that is too small for what is read of `name`."""
    try:
        yield
    except MemoryError as error:  # zstd believes the size that a damaged chunk claims
        raise InputError(
            f"{name} cannot be read: more memory is asked for than there is; a chunk is damaged "
            "(restore it from a copy), or memory is short (lower memory, --memory, so that less "
            "is read at a time, or close other programs)"
        ) from error


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Translate what the storage libraries raise while `name` is read into InputError."""
    try:
        with within_memory(name):
            yield
    except InputError:
        raise
    except READ_ERRORS as error:
        what = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise damaged(name, f"it cannot be read ({type(error).__name__}: {what})") from error


def fetch(array: Any, start: int, stop: int, name: str) -> NDArray[Any]:
    """Read `array[start:stop]` of anything sliceable as numpy, and check that all of it came."""
    with reading(name):
        values = np.asarray(array[start:stop])
    if len(values) != stop - start:
        raise damaged(name, f"of its rows {start} to {stop} only {len(values)} could be read")
    return values


def stored_attr(node: Any, key: str, default: Any = None) -> Any:
    """Read one attribute of an HDF5 or zarr node, bytes decoded."""
    value = node.attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else value


def plain_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """Give the type in which values of `dtype` are handed on.

    That is `dtype` itself unless numba cannot take it: foreign byte order, float16 (becomes
    float32), long double (float64) and bool (uint8).

    Raises
    ------
    InputError
        Where `dtype` holds no real numbers.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds values of type {dtype}, and expression must be real numbers: "
            "convert it, e.g. with X.astype('float32')"
        )
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize == 2 else np.float64)
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native
