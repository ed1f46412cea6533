"""Bytes, numbers and JSON enter; the same with one thing wrong leave, and words for it."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

INTEGERS = (
    0, 1, -1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**33, 2**40,
    2**53, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
FLOATS = (np.nan, np.inf, -np.inf, -1.0, 1e38, -1e38, 1e-45, 1e300, 0.5, 0.0)
DTYPES = (
    "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "?", ">i4", ">f4", ">u8",
    "c8", "S5",
)  # fmt: skip
PATHS = ("../x", "/etc/hostname", "", ".", "..", "a/b", "X", "\x00", "é" * 300, "__categories")
DEEP = "@nested@"
_NESTING = 20_000


def changed_bytes(raw: bytes, rng: Random) -> tuple[bytes, str]:
    """Damage bytes as a disk, a network or an interrupted copy does."""
    if not raw:
        return b"\x00", "a byte in an empty file"
    at = rng.randrange(len(raw))
    if rng.random() < 0.5:  # much of HDF5 is padding
        at = next((i for i in range(at, len(raw)) if raw[i]), at)
    out, size = bytearray(raw), min(len(raw) - at, rng.choice([1, 4, 8, 64, 512, 4096]))
    match rng.choice(("bit", "bit", "byte", "byte", "word", "word", "cut", "zero", "copy", "swap",
                      "drop", "repeat", "end")):  # fmt: skip
        case "bit":
            out[at] ^= 1 << rng.randrange(8)
            what = f"a bit of byte {at}"
        case "byte":
            out[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            what = f"byte {at} is {out[at]}"
        case "word":
            width, value = rng.choice([2, 4, 8]), rng.choice(INTEGERS)
            out[at : at + width] = (value % 256**width).to_bytes(width, rng.choice(["little"]))
            what = f"{width} bytes at {at} are {value}"
        case "cut":
            del out[at:]
            what = f"cut at {at}"
        case "zero":
            out[at : at + size] = bytes(size)
            what = f"{size} bytes at {at} are zero"
        case "copy":
            other = rng.randrange(len(raw))
            out[at : at + size] = raw[other : other + size]
            what = f"{size} bytes at {at} are those at {other}"
        case "swap":
            other = rng.randrange(len(raw))
            part = raw[other : other + size]
            out[other : other + len(part)], out[at : at + len(part)] = (
                raw[at : at + len(part)],
                part,
            )
            what = f"{size} bytes at {at} and {other} change places"
        case "drop":
            del out[at : at + size]
            what = f"{size} bytes at {at} are missing"
        case "repeat":
            out[at:at] = raw[at : at + size]
            what = f"{size} bytes at {at} stand twice"
        case _:
            out += bytes(rng.randrange(256) for _ in range(size))
            what = f"{size} bytes more at the end"
    return bytes(out), what


def changed_values(values: NDArray[Any], rng: Random) -> tuple[NDArray[Any], str]:
    """Change one thing of an array: an entry, their order, their number, the shape, the type."""
    out = values.copy()
    if values.ndim == 0 or values.size == 0:
        return np.zeros(3, np.int32), "an array in place of a value"
    flat = out.reshape(-1)
    i, j = rng.randrange(out.size), rng.randrange(out.size)
    match rng.choice(("set", "set", "set", "set", "order", "order", "length", "shape", "dtype")):
        case "set":
            for k in {i, j} if rng.random() < 0.3 else {i}:
                flat[k] = entry(values, rng)
            return out, f"entry {i} is {flat[i]!r}"
        case "order":
            how = rng.choice(("swap", "reverse", "repeat", "ascend", "same"))
            lo, hi = min(i, j), max(i, j) + 1
            if how == "swap":
                flat[i], flat[j] = values.reshape(-1)[j], values.reshape(-1)[i]
            elif how == "reverse":
                flat[lo:hi] = flat[lo:hi][::-1].copy()
            elif how == "repeat":
                flat[(i + 1) % out.size] = flat[i]
            elif how == "ascend":
                flat[:] = np.sort(flat)
            else:
                flat[:] = flat[i]
            return out, f"{how} {i} {j}"
        case "length":
            ends = (out[:-1], out[1:], np.concatenate([out, out[-1:]]), np.concatenate([out, out]),
                    out[:0], out[:1])  # fmt: skip
            found = ends[rng.randrange(len(ends))]
            return found, f"length {len(found)} in place of {len(out)}"
        case "shape":
            shapes: tuple[Any, ...] = ((-1, 1), (1, -1), (-1,), (out.size, 1, 1))
            shape = rng.choice(shapes)
            return out.reshape(shape), f"shape {shape}"
        case _:
            kind = rng.choice(DTYPES)
            try:
                with np.errstate(all="ignore"):
                    return out.astype(kind), f"type {kind}"
            except (ValueError, TypeError, UnicodeEncodeError):  # texts as numbers
                return np.arange(len(out)).astype(kind), f"numbers of type {kind}"


def entry(values: NDArray[Any], rng: Random) -> Any:
    """A value that an array of this type can hold, and should not."""
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        near = (values.size, values.size + 1, int(values.max()) + 1, -1, -2)
        value = rng.choice(INTEGERS + near)
        return min(max(value, int(limits.min)), int(limits.max))
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.dtype.type(rng.choice(FLOATS))
    if values.dtype.kind == "b":
        return rng.random() < 0.5
    if values.dtype.kind in "OS":
        return rng.choice((b"", b"\xff\xfe", b"T0", b"cell1", b"nan", b"x" * 5000, b"g1"))
    if values.dtype.kind in "UT":
        return rng.choice(("", "T0", "cell1", "nan", "x" * 5000, "g1"))
    return values.reshape(-1)[0]


def changed_json(raw: bytes, rng: Random) -> tuple[bytes, str]:
    """Change one value or key of a JSON text."""
    try:
        tree = json.loads(raw)
    except ValueError:
        return changed_bytes(raw, rng)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if not places:
        return json.dumps(weird(rng)).encode(), "another value"
    node, key = places[rng.randrange(len(places))]
    how = rng.choice(("set", "set", "set", "number", "delete", "rename", "swap", "add"))
    before = node[key]
    if how == "delete":
        del node[key]
    elif how == "rename" and isinstance(node, dict):
        node[rng.choice((*PATHS, str(key).upper()))] = node.pop(key)
    elif how == "swap":
        other, there = places[rng.randrange(len(places))]
        value = other[there]
        if not (_holds(before, other) or _holds(value, node)):  # or it would hold itself
            node[key], other[there] = value, before
    elif how == "add":
        if isinstance(node, dict):
            node["more"] = weird(rng)
        else:
            node.append(weird(rng))
    elif how == "number" and isinstance(before, int | float):
        node[key] = rng.choice((*INTEGERS, before + 1, before - 1, before * 2, 10**30, 1.5))
    else:
        node[key] = weird(rng)
    text = json.dumps(tree)
    text = text.replace(f'"{DEEP}"', "[" * _NESTING + "]" * _NESTING)
    return text.encode(), f"{how} {key!r}, which was {str(before)[:60]!r}"


def _holds(value: Any, node: Any) -> bool:
    if value is node:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds(one, node) for one in inner)


def weird(rng: Random) -> Any:
    """A value of JSON that seldom belongs where it is put."""
    return rng.choice((
        None, True, False, 0, -1, 1, 2**31, 2**33, 2**53, 2**63, 2**64, 10**30, 1.5, 1e308,
        float("nan"), float("inf"), *PATHS, [], {}, [[]], [0], [-1], [2**40], {"name": "zstd"},
        {"name": "bytes", "configuration": {"endian": "big"}}, {"id": "zlib", "level": 1},
        {"id": "blosc"}, {"id": "pickle"}, {"id": "no codec"}, {"name": "gzip"}, "<f8", ">f4",
        "|O", "|b1", "<i4", "float16", "int64", "string", "gzip", "zstd", "bytes", "C", "F", "/",
        "csr_matrix", "csc_matrix", "array", "dataframe", "categorical", "string-array", DEEP,
    ))  # fmt: skip
