"""A source, labels and settings in; what a model was made from, in words and sums, out."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import BLOCK
from streamtrain.cells import Cells, Labels
from streamtrain.config import Settings
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
    return origin if path is None else origin | {"bytes": _stored(path)[0]}


def _stored(path: Path) -> tuple[int, int]:
    """Size of a file, or of all files in a folder, and the last change in it, in nanoseconds."""
    size = changed = 0
    for each in path.rglob("*") if path.is_dir() else [path]:
        found = each.stat()
        size += found.st_size if stat.S_ISREG(found.st_mode) else 0
        changed = max(changed, found.st_mtime_ns)
    return size, changed
