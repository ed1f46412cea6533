"""Reading: every cell once, in storage order or in random blocks, from files people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.atlases import atlas, truth
from benchmarks.contenders import windows
from benchmarks.environments import UnavailableError
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, DISK, PEAK, RATE, READ, View, bars
from streamtrain.errors import InputError, near

OURS = Contender("streamtrain", "benchmarks.contenders.streamtrain:read")
ANNBATCH = Contender("annbatch", "benchmarks.contenders.annbatch:read", "annbatch")
ANNBATCH_PLAIN = Contender(
    "annbatch, without zarrs", "benchmarks.contenders.annbatch:read", "annbatch", {"zarrs": False}
)
SCDATASET = Contender("scDataset", "benchmarks.contenders.scdataset:read", "scdataset")
ANNDATA = Contender("anndata, backed", "benchmarks.contenders.anndata:read")
H5PY = Contender("h5py", "benchmarks.contenders.h5py:read")

VIEW = View((RATE, CPU, PEAK, READ, DISK), "rate", bars)
ORDERS = ("sequential", "random")
_NEIGHBOURS = 0.1  # share that may stay neighbours; chance leaves one a window or so

READERS = {
    "collection": (OURS, ANNBATCH, ANNBATCH_PLAIN, SCDATASET, ANNDATA),
    "zarr": (OURS, ANNBATCH, SCDATASET, ANNDATA),
    "h5ad": (OURS, SCDATASET, ANNDATA, H5PY),
    "h5ad-gzip": (OURS, SCDATASET, ANNDATA, H5PY),
}


def cases(settings: dict[str, Any]) -> list[Case]:
    """Stores x orders x page cache warm and cold."""
    for key, known in (("stores", READERS), ("orders", ORDERS), ("cache", ("warm", "cold"))):
        for value in settings[key]:
            if value not in known:
                raise InputError(f"{key}: there is no {value!r}: {near(str(value), known)}")
    if settings["window"] < settings["block"]:
        raise InputError(
            f"window must hold a block of {settings['block']} cells; got {settings['window']}"
        )
    return [
        _case(settings, *chosen)
        for chosen in product(settings["stores"], settings["orders"], settings["cache"])
    ]


def _case(settings: dict[str, Any], kind: str, order: str, cache: str) -> Case:
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    name, about = f"{kind}, {order}, {cache}", {"store": kind, "order": order}
    job = {k: settings[k] for k in ("batch_size", "block", "window")}
    job |= {"n_types": shape["cell_types"], "order": order, "seed": 0}
    try:
        store, small = (
            str(atlas(kind, cells=settings[k], **shape)) for k in ("cells", "warm_up_cells")
        )
    except UnavailableError as error:
        return Case(name, job, READERS[kind], about=about, skipped=str(error))
    return Case(
        name,
        job | {"store": store},
        READERS[kind],
        warm_up=job | {"store": small},
        verify={"verify": True},
        cold=cache == "cold",
        files=(store,),
        about=about,
        reference=(
            atlas("h5ad", cells=settings["cells"], **shape),  # the same cells
            Path(windows.single({"store": store})),
        ),
    )


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every contender delivered each cell once with its label, in the order that was asked for.

    At random, few neighbours in the store may still be neighbours: as blocks are read whole, those
    that were not mixed within their window would nearly all be.
    """
    if case.skipped:
        return
    whole, stored = map(truth, case.reference)
    expected = _pairs(whole)
    if not np.array_equal(_sorted(_pairs(stored)), _sorted(expected)):
        raise WrongWorkError(f"{case.name}: the store holds other cells than the atlas")
    row = {pair: i for i, pair in enumerate(map(tuple, _pairs(stored).T.tolist()))}
    for name, (found, *_) in evidence.items():
        if not np.array_equal(_sorted(_pairs(found)), _sorted(expected)):
            raise WrongWorkError(f"{case.name}: {name} delivered other cells than the atlas holds")
        rows = np.array([row[pair] for pair in map(tuple, _pairs(found).T.tolist())])
        kept = float((np.diff(rows) == 1).mean())
        if case.about["order"] == "sequential" and kept < 1:
            raise WrongWorkError(f"{case.name}: {name} did not deliver in storage order")
        if case.about["order"] == "random" and kept > _NEIGHBOURS:
            raise WrongWorkError(f"{case.name}: {name} left {kept:.0%} of neighbours together")
    sums = {
        "cells": float(len(whole["labels"])),
        "entries": float(whole["entries"]),
        "total": float(whole["total"]),
    }
    for name, lines in done.items():
        for line in lines:
            for key, value in sums.items():
                if line[key] != value:
                    raise WrongWorkError(
                        f"{case.name}: {name} delivered {line[key]:,} {key} of {value:,.0f}"
                    )
            _cached(case, line)


def _cached(case: Case, line: dict[str, Any]) -> None:
    """Refuse figures that the page cache makes untrue, where the system tells of the disk."""
    size = sum(f.stat().st_size for f in _files(Path(case.job["store"])))
    read = line.get("bytes_from_disk", size if case.cold else 0)
    if case.cold and read < size / 2:
        raise WrongWorkError(
            f"{case.name}: {line['contender']} read {read:,.0f} bytes from the disk, where the "
            f"store has {size:,}: the page cache was not empty"
        )
    if not case.cold and read > size / 20:
        raise WrongWorkError(
            f"{case.name}: {line['contender']} read {read:,.0f} bytes from the disk: the store of "
            f"{size:,} is not in the page cache; use fewer cells"
        )


def _files(path: Path) -> list[Path]:
    return [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]


def _pairs(cells: Mapping[str, Any]) -> Any:
    """Fingerprint and label of each cell, shape (2, n_obs)."""
    return np.stack([cells["prints"], cells["labels"].astype(np.uint64)])


def _sorted(pairs: Any) -> Any:
    return pairs[:, np.lexsort(pairs)]
