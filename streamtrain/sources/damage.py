"""Reads of stored arrays: a slice enters, and an array or one InputError naming the file leaves."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from deflate import DeflateError
from isal import isal_zlib
from numpy.typing import NDArray

from streamtrain.decode.zarr import watch_texts
from streamtrain.errors import InputError

_FIXED = {h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING}
_SAME_SIZE = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}  # but for a sum of 4 bytes
ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub errs
# What h5py, zarr and their codecs raise on bytes that they cannot decode: h5py OSError, KeyError
# and RuntimeError; zarr KeyError, TypeError and ValueError (checksum, reshape, JSON, metadata);
# OverflowError, of sizes beyond 64 bits; blosc RuntimeError and SystemError, zstd RuntimeError;
# gzip EOFError, zlib.error, ISA-L's own and libdeflate's.
READ_ERRORS = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    EOFError,
    OverflowError,
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


def stored_array(group: Any, key: str, name: str) -> Any:
    """Find an array of one dimension in an HDF5 or zarr group; refuse what else stands there."""
    return require_array(group[key], f"{key} of {name}")


def require_array(node: Any, name: str) -> Any:
    """Give a node back if it is an array of one dimension: no group, HDF5 type or single value."""
    shape = getattr(node, "shape", None)
    if shape is None or len(shape) != 1 or shape[0] >= 2**63:
        what = f"is a {type(node).__name__}" if shape is None else f"has shape {tuple(shape)}"
        raise damaged(name, f"it {what}, where an array of one dimension is due")
    return node


def require_whole_chunks(node: Any, name: str) -> None:
    """Refuse an HDF5 dataset with a chunk that is stored plain, and has not the bytes it should.

    HDF5 hands out what lies in memory behind such a chunk. Of texts in zarr a chunk is refused when
    it is read, if it claims more of them than it can hold.
    """
    if hasattr(node, "store_path"):
        watch_texts(node)
    if not isinstance(node, h5py.Dataset) or not node.chunks:
        return
    kind = node.id.get_type()
    size = kind.get_size()
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        size = 8 + node.file.id.get_create_plist().get_sizes()[0]  # a length, an address, a number
    elif kind.get_class() not in _FIXED:
        return
    due = math.prod(node.chunks) * size
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]

    def check(info: Any) -> None:
        used = [f for i, f in enumerate(filters) if not info.filter_mask >> i & 1]
        nbytes = due + 4 * used.count(h5py.h5z.FILTER_FLETCHER32)
        if not set(used) - _SAME_SIZE and info.size != nbytes:
            at = info.chunk_offset
            raise damaged(name, f"its chunk at {at} has {info.size} bytes where {nbytes} are due")

    node.id.chunk_iter(check)


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
