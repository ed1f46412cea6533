"""The folder of a stored model enters; what its files say leaves, before any is decoded.

zarr would look up whatever codec a model names, allocate whatever size it claims, and follow its
names out of the folder.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import get_codec

from streamtrain.budget import format_bytes, free_memory
from streamtrain.decode.codecs import has_room_for_texts

METADATA = ".zmetadata"
_KEY = re.compile(r"\.zattrs|\.zgroup|([A-Za-z]\w*)/\.z(?:array|attrs)", re.ASCII)
_TYPE = re.compile(r"[<>|][fiu](?:[1248]|16)|\|b1")
_TEXTS = [{"id": "vlen-utf8"}]
_MOST_METADATA = 2**28  # bytes; a report of cross-validation takes thousands
_MOST_NAMES = 2**28  # bytes of the names in a chunk; 60,000 genes take 1e6
_SIZE_AT = {"blosc": 16, "zstd": 18}  # within how many bytes a chunk tells its decoded size


def read_json(file: Path) -> Any:
    """Read a file of metadata.

    Raises
    ------
    ValueError
        It is no JSON, or larger than that of any model.
    """
    if file.is_file() and file.stat().st_size > _MOST_METADATA:
        raise ValueError(f"{file.name} has over {_MOST_METADATA} bytes")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file.name} is nested too deeply") from error


def check(folder: Path) -> None:
    """Check that a folder has arrays of `write`'s kinds alone, within the memory there is.

    Parameters
    ----------
    folder
        Of the model.

    Raises
    ------
    ValueError
        The message names the array.
    """
    try:
        metadata = read_json(folder / METADATA)["metadata"]
        arrays = {}
        for key, value in metadata.items():
            found = _KEY.fullmatch(key)
            if found is None:
                raise ValueError(f"{METADATA} names {key[:200]!r}, which is not in a model")
            if key.endswith("/.zarray"):
                arrays[found[1]] = value
        sizes = [_claimed(name, array) for name, array in arrays.items()]
        _require_memory(sum(sizes))
        for name, array in arrays.items():
            _check_chunks(folder / name, array)
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{METADATA} ({type(error).__name__}: {error})") from error


def _require_memory(claimed: int) -> None:
    free = free_memory()
    if claimed > free:
        raise ValueError(
            f"its arrays claim {format_bytes(claimed)}, and {format_bytes(free)} of memory are free"
        )


def _itemsize(array: dict[str, Any]) -> int:
    return 8 if array["dtype"] == "|O" else np.dtype(array["dtype"]).itemsize


def _claimed(name: str, array: dict[str, Any]) -> int:
    """Bytes of an array in memory, once its metadata are of the kinds that `write` makes."""
    shape, chunks, kind = array["shape"], array["chunks"], array["dtype"]
    of_texts = kind == "|O"
    if not of_texts and not (isinstance(kind, str) and _TYPE.fullmatch(kind)):
        raise ValueError(f"{name} has the type {str(kind)[:99]!r}, which is not in a model")
    if array.get("filters") != (_TEXTS if of_texts else None):
        raise ValueError(f"{name} has filters, {str(array.get('filters'))[:99]}, not of a model")
    compressor = array["compressor"]
    if compressor is not None and compressor["id"] not in _SIZE_AT:
        raise ValueError(f"{name} has the codec {str(compressor['id'])[:99]!r}, not of a model")
    if array.get("dimension_separator", ".") != "." or array["zarr_format"] != 2:
        raise ValueError(f"{name} is laid out otherwise than a model")
    whole = all(type(n) is int and n >= 0 for n in (*shape, *chunks)) and 0 not in chunks
    if not whole or len(shape) != len(chunks) or len(shape) > 2:
        raise ValueError(f"{name} has the shape {str(shape)[:99]} in chunks of {str(chunks)[:99]}")
    return int(math.prod(map(max, shape, chunks))) * _itemsize(array)


def _check_chunks(folder: Path, array: dict[str, Any]) -> None:
    """Check the size that each chunk decodes to; one of zeros may be absent."""
    due = math.prod(array["chunks"]) * _itemsize(array)
    if not folder.is_dir():
        raise ValueError(f"its array {folder.name} is missing")
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        name = f"{folder.name}/{path.name}"
        if not path.is_file():
            raise ValueError(f"{name} is no file")
        told = _decoded_size(path, array["compressor"])
        fits = 0 < told <= _MOST_NAMES if array["dtype"] == "|O" else told == due
        if told < 0:
            raise ValueError(f"{name} is cut short, or was changed")
        if array["dtype"] == "|O" and fits:
            _check_texts(path, name, array["compressor"])
        if not fits:
            raise ValueError(f"{name} decodes to {told} bytes, and {due} are due")


def _check_texts(path: Path, name: str, compressor: dict[str, Any] | None) -> None:
    """Refuse a chunk that claims more names than it can hold: room is made for them first."""
    raw = path.read_bytes()
    try:
        raw = raw if compressor is None else get_codec(compressor).decode(raw)
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from error
    if not has_room_for_texts(raw):
        raise ValueError(f"{name} claims more names than it has bytes for")


def _decoded_size(path: Path, compressor: dict[str, Any] | None) -> int:
    """Size of a chunk once decoded, as its first bytes tell; -1 where they do not."""
    size = path.stat().st_size
    if compressor is None:
        return size
    kind = compressor["id"]
    with path.open("rb") as file:
        head = file.read(_SIZE_AT[kind])
    if kind == "blosc":  # which reads as far as its header tells, also behind the end
        whole = int.from_bytes(head[12:16], "little") == size
        return int.from_bytes(head[4:8], "little") if whole else -1
    return _zstd_size(head)


def _zstd_size(head: bytes) -> int:
    """Content size in the header of a zstd frame (RFC 8878, 3.1.1.1); -1 where it has none."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return -1
    single = head[4] >> 5 & 1
    width = (single, 2, 4, 8)[head[4] >> 6]
    at = 6 - single + (0, 1, 2, 4)[head[4] & 3]
    if not width:
        return -1
    return int.from_bytes(head[at : at + width], "little") + 256 * (width == 2)
