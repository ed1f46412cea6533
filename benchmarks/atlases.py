"""Sizes in, synthetic atlases on disk out, each made once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamtrain
from benchmarks.contenders.delivery import fingerprints
from benchmarks.environments import alone, cache_folder
from benchmarks.measuring import ROOT, Contender, run
from streamtrain.errors import InputError
from streamtrain.sources import open_source

logger = logging.getLogger("benchmarks")

LABEL, DONOR = "cell_type", "donor_id"
FORMATS = {  # how an atlas may lie on disk: suffix and compression
    "h5ad": (".h5ad", "none"),
    "h5ad-gzip": (".h5ad", "gzip"),
    "zarr": (".zarr", "blosc"),
}
_SIMULATOR = ("simulate", "synthetic", "writing", "kernels/simulate")
_COLLECTIONS = {"collection": {}, "collection-grouped": {"groupby": LABEL}}
_COLLECTION = Contender("annbatch", "benchmarks.contenders.annbatch:write_collection", "annbatch")


def atlas(
    kind: str, *, cells: int, genes: int, cell_types: int, donors: int, seed: int = 0
) -> Path:
    """Find or make an atlas; the same cells in each of `FORMATS`, and in the collections.

    "collection" is what annbatch's own converter makes of it: shuffled, sharded zarr, and
    "collection-grouped" that, sorted by cell type within each of its data sets.
    """
    name = f"{cells}x{genes}-{cell_types}types-{donors}donors-seed{seed}-{_simulator()}"
    shape = {"cells": cells, "genes": genes, "cell_types": cell_types, "donors": donors}
    if kind in _COLLECTIONS:
        suffix = f"{kind.removeprefix('collection')}.collection"
    else:
        suffix = "-{1}{0}".format(*FORMATS[kind])
    path = cache_folder() / f"{name}{suffix}"
    with alone(path.name):
        if path.exists():
            return path
        logger.info("making %s", path)
        if kind not in _COLLECTIONS:
            return streamtrain.simulate(
                path, n_obs=cells, n_vars=genes, n_types=cell_types, n_donors=donors, seed=seed,
                compression=FORMATS[kind][1], progress=False,
            )  # fmt: skip
        source, partial = atlas("h5ad", **shape, seed=seed), path.with_suffix(".partial")
        job = {"store": str(source), "out": str(partial), **_COLLECTIONS[kind]}
        took, _ = run(_COLLECTION, job, limit_s=3600)
        logger.info("annbatch's conversion took %.1f s and %.1f GB", took["seconds"],
                    took["peak_rss"] / 1e9)  # fmt: skip
        partial.rename(path)
    return path


def real(name: str, data: str) -> str:
    """Find real cells: `name`.h5ad in the folder `data`, relative to the repository.

    Raises
    ------
    InputError
        There is no such file.
    """
    folder = (ROOT / data).resolve()
    path = folder / f"{name}.h5ad"
    if not path.exists():
        raise InputError(
            f"the suite needs {path.name} in {folder}: an AnnData with raw counts in X and "
            "cell types, donors or batches in obs; pass --set data=FOLDER for another folder, or "
            "--set size=smoke for simulated cells"
        )
    return str(path)


def truth(path: Path) -> dict[str, NDArray[Any]]:
    """What an atlas holds: `fingerprints` and label code of each cell, and the sums over all."""
    # Not beside the path, which may lie in a collection: its loaders take whatever is in there.
    kept = cache_folder() / f"{path.parent.name}-{path.name}.truth.npz"
    if not kept.exists():
        with closing(open_source(path)) as source:
            labels = source.obs(LABEL).cat.codes.to_numpy(np.int64)
            prints, entries, total = [], 0, 0.0
            for start, stop in source.blocks(64 * 10**6):
                rows = source.read(start, stop)
                prints.append(fingerprints(rows.data, rows.indices, rows.indptr, source.n_vars))
                entries += len(rows.data)
                total += float(rows.data.sum(dtype=np.float64))
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        found: dict[str, Any] = {"prints": np.concatenate(prints), "labels": labels}
        np.savez(partial, **found, entries=entries, total=total)
        partial.rename(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return dict(arrays)


def _simulator() -> str:
    """Mark of the code that makes atlases: other code, other cells."""
    package = Path(streamtrain.__file__).parent
    files = [package / f"{name}.py" for name in _SIMULATOR]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:8]
