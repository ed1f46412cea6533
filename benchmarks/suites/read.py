"""Reading: every cell once, in storage order or in random blocks, from files people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.atlases import atlas, truth
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, PEAK, RATE, READ, View, bars

OURS = Contender("streamtrain", "benchmarks.contenders.streamtrain:read")
ANNBATCH = Contender("annbatch", "benchmarks.contenders.annbatch:read", "annbatch")
ANNBATCH_PLAIN = Contender(
    "annbatch, without zarrs", "benchmarks.contenders.annbatch:read", "annbatch", {"zarrs": False}
)
SCDATASET = Contender(
    "scDataset", "benchmarks.contenders.scdataset:read", "scdataset", {"workers": 2}
)
ANNDATA = Contender("anndata, backed", "benchmarks.contenders.anndata:read")
H5PY = Contender("h5py", "benchmarks.contenders.h5py:read")

VIEW = View((RATE, CPU, PEAK, READ), "rate", bars)

READERS = {
    "collection": (OURS, ANNBATCH, ANNBATCH_PLAIN, SCDATASET, ANNDATA),
    "zarr": (OURS, ANNBATCH, SCDATASET, ANNDATA),
    "h5ad": (OURS, SCDATASET, ANNDATA, H5PY),
    "h5ad-gzip": (OURS, SCDATASET, ANNDATA, H5PY),
}


def cases(settings: dict[str, Any]) -> list[Case]:
    """Stores x orders x page cache warm and cold."""
    shape = {k: settings[k] for k in ("genes", "cell_types", "donors")}
    keys = ("batch_size", "block", "window")

    def job(kind: str, order: str, cells: int) -> dict[str, Any]:
        store = str(atlas(kind, cells=cells, **shape))
        common = {key: settings[key] for key in keys} | {"n_types": shape["cell_types"]}
        return common | {"store": store, "order": order, "seed": 0}

    return [
        Case(
            f"{kind}, {order}, {cache}",
            job(kind, order, settings["cells"]),
            READERS[kind],
            warm_up=job(kind, order, settings["warm_up_cells"]),
            verify={"verify": True},
            cold=cache == "cold",
            about={"store": kind, "order": order},
            reference=atlas("h5ad", cells=settings["cells"], **shape),  # the same cells
        )
        for kind, order, cache in product(settings["stores"], settings["orders"], settings["cache"])
    ]


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """Every contender delivered each cell once with its label; in order where that was asked."""
    whole = truth(case.reference)
    expected = np.stack([whole["prints"], whole["labels"].astype(np.uint64)])
    for name, found in evidence.items():
        cells = np.stack([found[0]["prints"], found[0]["labels"].astype(np.uint64)])
        moved = case.about["store"] == "collection"  # its converter has shuffled the cells
        if case.about["order"] == "random" or moved:
            if cells.shape == expected.shape and not moved and (cells == expected).all():
                raise WrongWorkError(f"{case.name}: {name} delivered in storage order")
            cells, expected_cells = _sorted(cells), _sorted(expected)
        else:
            expected_cells = expected
        if not np.array_equal(cells, expected_cells):
            raise WrongWorkError(f"{case.name}: {name} delivered other cells than the atlas holds")
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


def _sorted(pairs: Any) -> Any:
    return pairs[:, np.lexsort(pairs)]
