"""annbatch: its loader on its own collection and on a plain zarr AnnData, and its converter."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
import zarr
from annbatch import DatasetCollection, Loader
from annbatch.samplers import WeightedClassSampler
from anndata.io import read_elem, sparse_dataset

from benchmarks.contenders.delivery import Delivery

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def write_collection(job: dict[str, Any]) -> Iterator[Any]:
    """Convert `store` to a shuffled collection at `out`, with annbatch's own settings.

    With `groupby` each of its data sets is then sorted by that column of obs.
    """
    yield
    collection = DatasetCollection(zarr.open_group(job["out"], mode="w"))
    collection.add_adatas([job["store"]], groupby=job.get("groupby"), rng=np.random.default_rng(0))
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


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw chunks of one class each, classes alike and repeats allowed; mix within windows."""
    delivery = Delivery(job)
    chunk = job["chunk"]
    yield
    start = time.perf_counter()
    collection = DatasetCollection(zarr.open_group(job["store"], mode="r"))
    classes = collection.obs(columns=["cell_type"])["cell_type"].array
    served = ~np.isin(np.arange(len(classes.categories)), _in_short_runs(classes.codes, chunk))
    sampler = WeightedClassSampler(
        chunk, job["window"] // chunk, job["batch_size"], classes=classes,
        num_samples=job["batches"] * job["batch_size"],
        class_weights=None if served.all() else served.astype(float),
        rng=np.random.default_rng(job["seed"]),
    )  # fmt: skip
    for batch in loader(job, batch_sampler=sampler):
        delivery.take(batch["X"], batch["obs"]["cell_type"].cat.codes.to_numpy())
    yield delivery.draws(start, classes_left_out=int((~served).sum()))
    yield delivery.evidence()


def _in_short_runs(codes: Any, chunk: int) -> Any:
    """Classes with a run of fewer cells than `chunk`: annbatch refuses these unless excluded."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    return codes[edges[:-1][np.diff(edges) < chunk]]
