"""A source, labels and settings in; what a model was made from, in words and sums, out."""

from __future__ import annotations

import os
import platform
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import BLOCK
from streamtrain.cells import Cells, Labels
from streamtrain.config import IN_MEMORY, Settings
from streamtrain.decode.address import Address
from streamtrain.model import Model
from streamtrain.model_store import arrays_checksum
from streamtrain.rows import Rows
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource
from streamtrain.sources.store import StoreSource
from streamtrain.streaming import sweep
from streamtrain.targets import Target

# Settings that leave the model as it is.
FREE = ("memory", "n_jobs", "scratch", "verbose", "date", "details", "url", "source", "version")
# Names of what is known by its content.
_NAMES = "recipe", "gene_list", "warm_start", "init", "sampling_weight"
# How settings name what they were given as values.
_UNNAMED = {"a Model": "a Model", "given as values": "a number a cell"}
# Storage options that say where, not who; with or without the prefix of a cloud.
_PREFIX = re.compile("^(aws|azure|google)_")
_HARMLESS = (
    "region", "default_region", "endpoint", "endpoint_url", "allow_http", "skip_signature",
    "virtual_hosted_style_request", "request_payer", "timeout", "connect_timeout",
)  # fmt: skip
_SAMPLE = 256  # cells by which a file on a server is known again


def made_from(labels: Labels, source: Source, cells: Cells, config: Settings) -> dict[str, Any]:
    """What a model was made from, and with."""
    return {
        "sources": [_origin(name, part) for name, part in _by_file(source)],
        "labels": str(labels) if isinstance(labels, (str, os.PathLike)) else "given as values",
        "n_cells": cells.n_obs,
        "trained": datetime.now().isoformat(timespec="seconds"),
        "random_state": config.random_state,
        "device": "gpu" if config.on_gpu else "cpu",
        "python": platform.python_version(),
        "packages": {p: version(p) for p in ("streamtrain", "anndata", "numba", "numpy")},
    }


def asked(
    X: Any,
    labels: Sequence[Labels | None],
    genes: Any,
    storage_options: Mapping[str, Any] | None,
    config: Settings,
) -> dict[str, Any]:
    """What a run was asked for, as plain values, so that it can be asked for once more.

    Parameters
    ----------
    X
        As given, addresses as `Address`, whose names have no credentials.
    labels
        Each column of labels; a single one stands alone.
    storage_options
        Of which those are kept that are no secret.
    config
        As asked for, before cross-validation chose.
    """
    columns = [_told(column, "labels") for column in labels]
    several = isinstance(X, list | tuple) and all(_is_place(each) for each in X)
    return {
        "source": [_told(each, "cells") for each in (X if several else [X])],
        "labels": columns[0] if len(columns) == 1 else columns,
        "genes": None if genes is None else _told(genes, "names"),
        "storage_options": {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in (storage_options or {}).items()
            if _PREFIX.sub("", str(key).lower()) in _HARMLESS and not {"@", "?"} & set(str(value))
        },
        "settings": {
            name: f"{IN_MEMORY}{_UNNAMED[value]}" if _is_unnamed(value) else value
            for name, value in asdict(config).items()
        },
    }


def beside(request: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What a run was asked for, of its settings those alone that the model's own do not tell."""
    known = {field.name: field.default for field in fields(Settings)} | settings
    told = {name: value for name, value in request["settings"].items() if value != known[name]}
    return request | {"settings": told}


def _is_unnamed(value: Any) -> bool:
    return isinstance(value, str) and value in _UNNAMED


def _is_place(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike, Address))


def _told(value: Any, what: str) -> str:
    """A path, an address or the name of a column as it is, and of values what they are."""
    if _is_place(value):
        return str(value)
    return f"{IN_MEMORY}{type(value).__name__} of {what}"


def identity(
    config: Settings,
    source: Source,
    targets: Sequence[Target],
    genes: NDArray[np.bool_] | None,
    models: Sequence[Model | None],
) -> dict[str, Any]:
    """What a run is known by, as plain values: the same make the same model.

    Files are known by their sizes and the time of their last change, those on a server by some of
    their cells.

    Parameters
    ----------
    genes
        Which genes of the source are asked for, shape (n_vars,); None for all.
    models
        Those that training goes on from.
    """
    cells = targets[0].cells
    return {
        **{name: version(name) for name in ("streamtrain", "numpy", "numba")},
        **{k: value for k, value in config.to_dict().items() if k not in (*FREE, *_NAMES)},
        "data": [_known(part) for _, part in _by_file(source)],
        "genes": _crc(source.genes, genes),
        "cells": [cells.n_obs, _crc(cells.rows, cells.weight, cells.batch_key)],
        "labels": [
            _crc(
                target.cells.classes, target.cells.codes, target.held_out,
                None if target.folds is None else target.folds.of,
            )
            for target in targets
        ],
        "models to go on from": [None if m is None else arrays_checksum(m.dataset) for m in models],
    }  # fmt: skip


def _known(source: Source) -> list[Any]:
    shape = [source.n_obs, source.n_vars]
    path = getattr(source, "path", None)
    if isinstance(path, Path):
        return [*shape, *_stored(path)]
    if isinstance(source, StoreSource):  # on a server
        some = np.unique(np.linspace(0, max(0, source.n_obs - 1), _SAMPLE).astype(np.int64))
        parts: Iterable[Rows] = [source.take(some)]
    else:
        parts = (rows for _, rows in sweep(source, None, BLOCK))
    total = 0
    for rows in parts:
        total = _extended(total, rows.data, rows.indices, rows.indptr)
    return [*shape, f"{total:08x}"]


def _crc(*arrays: Any) -> str:
    """Checksum of arrays, of numbers or texts, or None."""
    return f"{_extended(0, *arrays):08x}"


def _extended(total: int, *arrays: Any) -> int:
    for array in arrays:
        if array is None:
            part = b"none"
        elif array.dtype == object:
            part = "\0".join(map(str, array)).encode()
        else:
            part = np.ascontiguousarray(array).tobytes()
        total = google_crc32c.extend(total, part)
    return total


def _by_file(source: Source) -> Iterable[tuple[str, Source]]:
    one = [(source.name, source)]
    return source.by_file() if isinstance(source, CollectionSource) else one


def _origin(name: str, source: Source) -> dict[str, Any]:
    origin = {"name": name, "n_obs": source.n_obs, "n_vars": source.n_vars}
    path = getattr(source, "path", None)
    if path is not None:
        with suppress(FileNotFoundError):  # moved since it was read: the model counts
            origin["bytes"] = _stored(path)[0]
    return origin


def _stored(path: Path) -> tuple[int, int]:
    """Size of a file, or of all files in a folder, and the last change in it, in nanoseconds."""
    size = changed = 0
    for each in path.rglob("*") if path.is_dir() else [path]:
        found = each.stat()
        size += found.st_size if stat.S_ISREG(found.st_mode) else 0
        changed = max(changed, found.st_mtime_ns)
    return size, changed
