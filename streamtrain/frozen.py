"""Objects of a training under way in, a checked file of plain values and arrays out, and back.

Nothing in a file is code: names of classes are looked up in `_CLASSES`, arrays are of numbers, and
all else is what JSON holds. A file ends with the CRC-32C of all before, and is read only if whole.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Keep = Callable[[Callable[[], Any] | None], None]  # takes what gives the state at a moment
_MAGIC = b"streamtrain checkpoint 1\n"
_ALIGNED = 64  # bytes at whose multiples arrays begin
_NUMBERS = "biuf"  # kinds of dtypes
_PIECE = 1 << 24  # bytes checked at a time
# Which classes a file may name, and where they are.
_CLASSES = {
    "Columns": "solvers.stripe", "Options": "solvers.stripe", "Stripe": "solvers.stripe",
    "SGD": "solvers.sgd", "Counters": "solvers.counters", "State": "solvers.counters",
    "Schedule": "solvers.schedule", "Stopping": "solvers.stopping", "Descent": "descent",
    "LBFGS": "solvers.lbfgs", "Problem": "solvers.logistic", "Ended": "solvers.logistic",
    "Progress": "solvers.logistic", "Fitted": "stored", "PairwiseSum": "pairwise",
    "RunningMoments": "scaling", "Search": "trials", "Trial": "trials", "Tried": "trials",
    "Trying": "trials", "DeviceSGD": "gpu.sgd", "DeviceColumns": "gpu.sgd",
    "Curve": "history", "Settings": "config", "Calibration": "calibration", "Replica": "replicas",
}  # fmt: skip


class DamagedError(Exception):
    """A file that is not what was written."""


def write(path: Path, value: Any) -> None:
    """Write a value to a new file.

    Parameters
    ----------
    value
        None, numbers, strings, arrays of numbers or of strings, dtypes, and lists, tuples,
        deques, ranges, dicts and objects of `_CLASSES` of such.
    """
    arrays: list[NDArray[Any]] = []
    tree = _Frozen(arrays)(value)
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    of_arrays = [
        [array.dtype.str, array.shape, start] for array, start in zip(arrays, starts, strict=True)
    ]
    header = json.dumps({"tree": tree, "arrays": of_arrays}).encode()
    begin = len(_MAGIC) + 8 + len(header)
    total = 0
    with path.open("xb") as file:

        def put(part: Any) -> None:
            nonlocal total
            total = google_crc32c.extend(total, bytes(part))
            file.write(part)

        put(_MAGIC)
        put(len(header).to_bytes(8, "little"))
        put(header)
        put(bytes(-begin % _ALIGNED))
        for array in arrays:
            raw = array.reshape(-1).view(np.uint8)
            for start in range(0, len(raw), _PIECE):
                put(raw[start : start + _PIECE])
            put(bytes(-array.nbytes % _ALIGNED))
        file.write(total.to_bytes(4, "little"))


def read(path: Path) -> Any:
    """Give what was written to a file.

    Raises
    ------
    DamagedError
        Where it is not whole, or was changed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _check(file, size)
        file.seek(len(_MAGIC))
        n = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(n, size)))
            begin = -(-file.tell() // _ALIGNED) * _ALIGNED
            arrays = [_array(file, begin, size - 4, *given) for given in header["arrays"]]
            return _Thawed(arrays)(header["tree"])
        except (
            ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError,
            OverflowError,
        ) as error:  # fmt: skip
            raise DamagedError(f"{path}: {error}") from error


def _check(file: Any, size: int) -> None:
    """Refuse a file that is not ours, or whose sum is off."""
    if file.read(len(_MAGIC)) != _MAGIC or size < len(_MAGIC) + 12:
        raise DamagedError(f"{file.name}: no checkpoint of this version")
    file.seek(0)
    total, left = 0, size - 4
    while left:
        part = file.read(min(_PIECE, left))
        if not part:
            break
        total = google_crc32c.extend(total, part)
        left -= len(part)
    if left or file.read(4) != total.to_bytes(4, "little"):
        raise DamagedError(f"{file.name}: its checksum is off")


def _array(
    file: Any, begin: int, end: int, kind: str, shape: list[int], start: int
) -> NDArray[Any]:
    dtype = np.dtype(kind)
    if dtype.kind not in _NUMBERS or min(shape, default=0) < 0 or start < 0:
        raise ValueError(f"an array of {dtype}, {shape}, at {start}")
    if begin + start + math.prod(shape) * dtype.itemsize > end:
        raise ValueError("an array ends behind the file")
    file.seek(begin + start)
    out = np.empty(shape, dtype)
    if file.readinto(out.reshape(-1).view(np.uint8)) != out.nbytes:
        raise ValueError("the file ended early")
    return out


class _Frozen:
    """Makes plain values of objects; arrays go to a list, each once."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self._arrays = arrays
        self._places: dict[int, int] = {}  # of arrays, by their address
        self._objects: dict[int, int] = {}  # their numbers, likewise
        self._given: list[Any] = []  # kept, so that none takes the address of one before it

    def __call__(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list):
            return [self(one) for one in value]
        kind, parts = self._parts(value)
        return {kind: parts}

    def _parts(self, value: Any) -> tuple[str, Any]:
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return "scalar", self._array(np.asarray(value))[1]
        if isinstance(value, np.dtype):
            return "dtype", value.str
        if isinstance(value, range):
            return "range", [value.start, value.stop, value.step]
        if isinstance(value, deque):
            return "deque", [value.maxlen, self(list(value))]
        if isinstance(value, dict):
            return "dict", [[self(key), self(one)] for key, one in value.items()]
        name = type(value).__name__
        if name in _CLASSES and type(value) is _class(name):
            if id(value) in self._objects:
                return "same", self._objects[id(value)]
            parts = [[key, self(one)] for key, one in _attributes(value)]
            self._objects[id(value)] = len(self._objects)
            self._given.append(value)
            return name, parts
        if type(value) is tuple:
            return "tuple", [self(one) for one in value]
        raise TypeError(f"{type(value)} has no place in a checkpoint")

    def _array(self, array: NDArray[Any]) -> tuple[str, Any]:
        if array.dtype.kind == "O":
            return "text", [list(array.shape), [str(one) for one in array.ravel()]]
        if array.dtype.kind not in _NUMBERS:
            raise TypeError(f"arrays of {array.dtype} have no place in a checkpoint")
        if id(array) not in self._places:
            self._places[id(array)] = len(self._arrays)
            self._given.append(array)
            self._arrays.append(np.ascontiguousarray(array).reshape(array.shape))
        return "array", self._places[id(array)]


class _Thawed:
    """Makes objects of what `_Frozen` made."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self._arrays = arrays
        self._objects: list[Any] = []

    def __call__(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self(one) for one in tree]
        if not isinstance(tree, dict):
            return tree
        [(kind, parts)] = tree.items()
        if kind in _CLASSES:
            self._objects.append(_made(_class(kind), {key: self(one) for key, one in parts}))
            return self._objects[-1]
        makers: dict[str, Any] = {
            "same": lambda: self._objects[parts],
            "array": lambda: self._arrays[parts],
            "scalar": lambda: self._arrays[parts][()],
            "text": lambda: np.array(parts[1], object).reshape(parts[0]),
            "dtype": lambda: np.dtype(parts),
            "range": lambda: range(*parts),
            "deque": lambda: deque(self(parts[1]), parts[0]),
            "dict": lambda: {self(key): self(one) for key, one in parts},
            "tuple": lambda: tuple(self(one) for one in parts),
        }
        return makers[kind]()


@cache
def _class(name: str) -> type:
    found: type = getattr(import_module(f"streamtrain.{_CLASSES[name]}"), name)
    return found


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object consists of, by name."""
    if isinstance(value, tuple):  # a NamedTuple
        yield from zip(type(value)._fields, value, strict=True)  # type: ignore[attr-defined]
    elif is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        state = value.__getstate__()
        yield from state.items()


def _made(cls: type, attributes: dict[str, Any]) -> Any:
    """An object of these attributes."""
    if issubclass(cls, tuple) or is_dataclass(cls):
        return cls(**attributes)
    made = cls.__new__(cls)
    made.__dict__.update(attributes)
    return made
