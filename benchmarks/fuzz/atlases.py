"""A sound .h5ad file or zarr store enters; the same with one thing of the format wrong leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import zarr

from benchmarks.fuzz.changes import PATHS, changed_bytes, changed_json, changed_values
from benchmarks.fuzz.seeds import FOLDER, Files, Seed

Change = Callable[[Seed, Random, Path], tuple[Seed, str]]
_TOLD = ("encoding-type", "encoding-version", "shape", "_index", "column-order", "ordered")
_META = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


def h5ad_bytes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Damage the file anywhere."""
    raw, what = changed_bytes(seed.files[""], rng)
    return replace(seed, files={"": raw}), what


def _hdf5(change: Callable[[Any, Random], str]) -> Change:
    """Let HDF5 itself write what is wrong."""

    def apply(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:
        path = seed.write(folder, "changed")
        try:
            with h5py.File(path, "r+") as file:
                what = change(file, rng)
            return replace(seed, files={"": path.read_bytes()}), what
        finally:
            path.unlink()

    return apply


def _nodes(file: Any, kind: type) -> list[Any]:
    found: list[Any] = [file] if kind is h5py.Group else []
    file.visititems(lambda _, node: found.append(node) if isinstance(node, kind) else None)
    return found


def _attribute(file: Any, rng: Random) -> str:
    node = rng.choice(_nodes(file, h5py.Group) + _nodes(file, h5py.Dataset))
    keys = list(node.attrs)
    key = rng.choice(keys) if keys and rng.random() < 0.8 else rng.choice(_TOLD)
    values: tuple[Any, ...] = (
        0, -1, 2**40, 2**62, np.int8(3), np.uint64(2**63), 1.5, np.nan, True, "", "csr_matrix",
        "csc_matrix", "array", "dataframe", "categorical", "nullable-integer", "string-array",
        "no encoding", b"\xff\xfe", b"csr_matrix", *PATHS[:2], "x" * 30_000, np.array([], "i8"),
        np.array([3, 4]), np.array([60, 2**40]), np.array([2**40, 24]), np.array([-60, 24]),
        np.array([60.5, 24]), np.array([[60, 24]]), np.array([60, 24], ">i2"), np.array(["a", "é"],
        object), np.array([b"cell_type"]), h5py.Empty("f4"), h5py.Empty("S1"), file.ref,
        np.array([60, 24, 1]), np.array([True, False]), np.array([60, 24], "u8"),
    )  # fmt: skip
    how = rng.choice(("set", "set", "set", "delete", "move"))
    if how != "set" and key in node.attrs:
        held = node.attrs[key]
        del node.attrs[key]
        if how == "move":
            node.attrs[rng.choice(_TOLD)] = held
        return f"{how} attribute {key} of {node.name}"
    value = values[rng.randrange(len(values))]
    node.attrs[key] = value
    return f"attribute {key} of {node.name} is {str(value)[:60]!r}"


def _array(file: Any, rng: Random) -> str:
    node = rng.choice(_nodes(file, h5py.Dataset))
    name, attrs = node.name, dict(node.attrs)
    if node.shape is None or node.dtype.kind == "V":
        return _attribute(file, rng)
    values, what = changed_values(node[...], rng)
    if values.shape == node.shape and values.dtype == node.dtype and rng.random() < 0.7:
        node[...] = values
        return f"{name}: {what}"
    options: dict[str, Any] = {}
    if values.size and values.ndim and rng.random() < 0.6:
        options["chunks"] = tuple(rng.choice([1, 7, n]) or 1 for n in values.shape)
        options |= rng.choice((
            {}, {"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True},
            {"fletcher32": True}, {"scaleoffset": 0 if values.dtype.kind in "iu" else None},
            {"maxshape": (None,) * values.ndim},
        ))  # fmt: skip
    del file[name]
    if values.dtype.kind == "O":
        options["dtype"] = h5py.string_dtype()
    file.create_dataset(name, data=values, **options).attrs.update(attrs)
    return f"{name}, written anew as {options}: {what}"


def _link(file: Any, rng: Random) -> str:
    names: list[str] = []
    file.visit(names.append)
    name, other = rng.choice(names), rng.choice(names)
    how = rng.choice(("delete", "soft", "external", "hard", "move", "swap", "group", "value",
                      "references", "empty", "virtual", "type"))  # fmt: skip
    nested = name.startswith(other) or other.startswith(name)
    if how == "swap" and not nested:
        file.move(name, "x")
        file.move(other, name)
        file.move("x", other)
        return f"{name} and {other} change places"
    if how == "move":
        to = rng.choice(("x", f"{name} ", name.upper(), f"{name}/".strip("/") + "é"))
        if to not in file:
            file.move(name, to)
        return f"{name} is now {to}"
    if how == "hard":
        held = file[rng.choice(("/", other))]
        del file[name]
        file[name] = held
        return f"{name} is {held.name}"
    del file[name]
    if how == "soft":
        file[name] = h5py.SoftLink(rng.choice((f"/{name}", f"/{other}", "/", "/nothing", "..")))
    elif how == "external":
        to = rng.choice(("changed.h5ad", "../x.h5ad", "/etc/hostname", ".", "no.h5ad"))
        file[name] = h5py.ExternalLink(to, rng.choice((f"/{name}", f"/{other}", "/")))
    elif how == "group":
        file.create_group(name)
    elif how == "value":
        file[name] = rng.choice((3, 1.5, "text"))
    elif how == "references":
        file.create_dataset(name, data=np.array([file.ref] * 3, h5py.ref_dtype))
    elif how == "empty":
        file[name] = h5py.Empty("f4")
    elif how == "virtual":
        layout = h5py.VirtualLayout((60,), "f4")
        layout[:30] = h5py.VirtualSource("no.h5ad", "x", (30,))
        file.create_virtual_dataset(name, layout)
    elif how == "type":
        file[name] = np.dtype("f8")
    return f"{name} is replaced: {how}"


def _raw_chunk(file: Any, rng: Random) -> str:
    """Write bytes where HDF5 expects an encoded chunk."""
    chunked = [d for d in _nodes(file, h5py.Dataset) if d.chunks and d.id.get_num_chunks() > 0]
    if not chunked:
        return _array(file, rng)
    node = rng.choice(chunked)
    infos = [node.id.get_chunk_info(i) for i in range(node.id.get_num_chunks())]
    info, other = rng.choice(infos), rng.choice(infos)
    mask, raw = node.id.read_direct_chunk(other.chunk_offset)
    mask = rng.choice((mask, mask, 0, 1, 2, 7, 2**31))
    if rng.random() < 0.6:
        raw, what = changed_bytes(raw, rng)
    else:
        what = f"that at {other.chunk_offset}"
    node.id.write_direct_chunk(info.chunk_offset, raw, mask)
    return f"{node.name}: chunk at {info.chunk_offset} is {what}, mask {mask}"


def _resized(file: Any, rng: Random) -> str:
    """A dataset that claims more or fewer entries than its chunks hold."""
    numbers = [d for d in _nodes(file, h5py.Dataset) if d.dtype.kind in "iufO" and d.ndim]
    node = rng.choice(numbers)
    name, values, attrs = node.name, node[...], dict(node.attrs)
    del file[name]
    options = {"dtype": h5py.string_dtype()} if values.dtype.kind == "O" else {}
    made = file.create_dataset(
        name, data=values, chunks=True, maxshape=(None,) * values.ndim, **options
    )
    made.attrs.update(attrs)
    n = rng.choice((0, 1, len(values) - 1, len(values) + 1, 2 * len(values), 2**20, 2**36, 2**50))
    made.resize(n, axis=0)
    return f"{name} has {n} rows in place of {len(values)}"


def zarr_bytes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Damage, lose, empty or exchange the file of a chunk."""
    files = dict(seed.files)
    chunks = [name for name in files if Path(name).name not in _META]
    # Mostly of the matrix: it has few of the files.
    inner = [name for name in chunks if name.startswith("X")]
    pool = inner if inner and rng.random() < 0.5 else chunks
    name, other = rng.choice(pool), rng.choice(pool)
    match rng.choice(("bytes", "bytes", "bytes", "lose", "empty", "copy", "swap", "folder")):
        case "bytes":
            files[name], what = changed_bytes(files[name], rng)
        case "lose":
            del files[name]
            what = "lost"
        case "empty":
            files[name], what = b"", "empty"
        case "copy":
            files[name], what = files[other], f"a copy of {other}"
        case "swap":
            files[name], files[other] = files[other], files[name]
            what = f"exchanged with {other}"
        case _:
            files[name], what = FOLDER, "a folder"
    return replace(seed, files=files), f"{name}: {what}"


def zarr_metadata(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Change the JSON that tells what the store holds."""
    files = dict(seed.files)
    told = [name for name in files if Path(name).name in _META]
    name, other = rng.choice(told), rng.choice(told)
    how = rng.choice(("json",) * 8 + ("lose", "copy", "bytes", "folder"))
    if how == "json":
        files[name], what = changed_json(files[name], rng)
    elif how == "bytes":
        files[name], what = changed_bytes(files[name], rng)
    elif how == "lose":
        del files[name]
        what = "lost"
    elif how == "copy":
        files[name], what = files[other], f"a copy of {other}"
    else:
        files[name], what = FOLDER, "a folder"
    return replace(seed, files=files), f"{name}: {what}"


def zarr_arrays(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:
    """Let zarr itself write an array that is wrong."""
    name = rng.choice(_arrays_of(seed.files))
    path = seed.write(folder, "changed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that are not in the specification
        node: Any = zarr.open_array(path / name, mode="r+")
        values, what = changed_values(np.asarray(node[...]), rng)
        if values.shape == node.shape and values.dtype == node.dtype:
            node[...] = values
        elif values.dtype.kind in "biufcOTS":
            attrs, chunks = dict(node.attrs), tuple(max(1, n) for n in values.shape)
            if values.dtype.kind == "O":
                values = values.astype(np.dtypes.StringDType())
            zarr.create_array(
                path / name, data=values, attributes=attrs, overwrite=True,
                zarr_format=node.metadata.zarr_format, chunks=chunks,
            )  # fmt: skip
    files = {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()
    }
    return replace(seed, files=files), f"{name}: {what}"


def _arrays_of(files: Files) -> list[str]:
    return [
        str(Path(name).parent) for name, raw in files.items()
        if name.endswith(".zarray") or (name.endswith("zarr.json") and b'"array"' in raw[:9000]
                                        and b'"node_type": "array"' in raw)
        if Path(name).parent != Path()
    ]  # fmt: skip


def zip_bytes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:
    """Damage a packed store, or one of the files in it."""
    if rng.random() < 0.5:
        packed = seed.packed()
        raw, what = changed_bytes(packed.files[""], rng)
        return replace(packed, files={"": raw}), f"packed, {what}"
    change = rng.choice((zarr_bytes, zarr_metadata))
    changed, what = change(seed, rng, folder)
    files = {name: raw for name, raw in changed.files.items() if raw is not FOLDER}
    return replace(changed, files=files).packed(), f"{what}, packed"


HDF5: dict[str, Change] = {
    "h5ad bytes": h5ad_bytes,
    "h5ad attributes": _hdf5(_attribute),
    "h5ad arrays": _hdf5(_array),
    "h5ad links": _hdf5(_link),
    "h5ad chunks": _hdf5(_raw_chunk),
    "h5ad lengths": _hdf5(_resized),
}
ZARR: dict[str, Change] = {
    "zarr chunks": zarr_bytes,
    "zarr metadata": zarr_metadata,
    "zarr arrays": zarr_arrays,
    "zarr zip": zip_bytes,
}
