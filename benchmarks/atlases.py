"""Sizes in, synthetic atlases on disk out, each made once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import streamtrain
from benchmarks.contenders.delivery import fingerprints
from benchmarks.environments import cache_folder
from benchmarks.measuring import Contender, run
from streamtrain.sources import open_source

logger = logging.getLogger("benchmarks")

LABEL, DONOR = "cell_type", "donor_id"
FORMATS = {  # how an atlas may lie on disk: suffix and compression
    "h5ad": (".h5ad", "none"),
    "h5ad-gzip": (".h5ad", "gzip"),
    "zarr": (".zarr", "blosc"),
    "zarr-zstd": (".zarr", "zstd"),
}
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
    if kind in _COLLECTIONS:
        path = cache_folder() / f"{name}{kind.removeprefix('collection')}.collection"
        if not path.exists():
            source = atlas(
                "h5ad", cells=cells, genes=genes, cell_types=cell_types, donors=donors, seed=seed
            )
            logger.info("writing annbatch's collection: %s", path)
            partial = path.with_suffix(".partial")
            job = {"store": str(source), "out": str(partial), **_COLLECTIONS[kind]}
            run(_COLLECTION, job, limit_s=3600)
            partial.rename(path)
        return path
    suffix, compression = FORMATS[kind]
    path = cache_folder() / f"{name}-{compression}{suffix}"
    if not path.exists():
        logger.info("simulating %s", path)
        streamtrain.simulate(
            path, n_obs=cells, n_vars=genes, n_types=cell_types, n_donors=donors, seed=seed,
            compression=compression, progress=False,
        )  # fmt: skip
    return path


def truth(path: Path) -> dict[str, NDArray[Any]]:
    """What an atlas holds: `fingerprints` and label code of each cell, and the sums over all."""
    kept = path.with_name(f"{path.name}.truth.npz")
    if not kept.exists():
        with closing(open_source(path)) as source:
            labels = source.obs(LABEL).cat.codes.to_numpy(np.int64)
            prints, entries, total = [], 0, 0.0
            for start, stop in source.blocks(64 * 10**6):
                rows = source.read(start, stop)
                prints.append(fingerprints(rows.data, rows.indices, rows.indptr, source.n_vars))
                entries += len(rows.data)
                total += float(rows.data.sum(dtype=np.float64))
        np.savez(
            kept, prints=np.concatenate(prints), labels=labels, entries=entries, total=total
        )  # fmt: skip
    with np.load(kept, allow_pickle=False) as arrays:
        return dict(arrays)


def _simulator() -> str:
    """Mark of the code that makes atlases: other code, other cells."""
    package = Path(streamtrain.__file__).parent
    files = [package / f"{name}.py" for name in ("simulate", "synthetic", "kernels/simulate")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:8]
