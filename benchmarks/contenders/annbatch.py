"""annbatch: its loader on its own collection and on a plain zarr AnnData, and its converter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
import zarr
from annbatch import DatasetCollection, Loader
from anndata.io import read_elem, sparse_dataset

from benchmarks.contenders.delivery import Delivery

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def write_collection(job: dict[str, Any]) -> Iterator[Any]:
    """Convert `store` to a shuffled collection at `out`, with annbatch's own settings."""
    yield
    collection = DatasetCollection(zarr.open_group(job["out"], mode="w"))
    collection.add_adatas([job["store"]], rng=np.random.default_rng(0))
    yield {}


def loader(job: dict[str, Any], **options: Any) -> Any:
    """Loader over a job's store, decoding by zarrs unless the job says otherwise."""
    if job.get("zarrs", True):
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    group = zarr.open_group(job["store"], mode="r")

    def obs_and_x(g: Any) -> anndata.AnnData:
        obs = read_elem(g["obs"])[["cell_type"]]
        return anndata.AnnData(X=sparse_dataset(g["X"]), obs=obs)

    if job["store"].endswith(".collection"):
        return Loader(**options).use_collection(DatasetCollection(group), load_adata=obs_and_x)
    return Loader(**options).add_adata(obs_and_x(group))


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once, in order or in random blocks."""
    delivery = Delivery(job)
    random = job["order"] == "random"
    yield
    batches = loader(
        job, batch_size=job["batch_size"], chunk_size=job["block"],
        preload_nchunks=job["window"] // job["block"], shuffle=random,
        rng=np.random.default_rng(job["seed"]) if random else None,
    )  # fmt: skip
    for batch in batches:
        delivery.take(batch["X"], batch["obs"]["cell_type"].cat.codes.to_numpy())
    yield delivery.counts()
    yield delivery.evidence()
