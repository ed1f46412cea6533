"""CellTypist: training as people run it, from a file or from cells in memory, and annotation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import anndata
import celltypist
import numpy as np
import scanpy as sc

from benchmarks.contenders.sklearn import weights
from benchmarks.contenders.split import TYPE, everything, split

warnings.filterwarnings("ignore")
celltypist.logger.set_level(logging.ERROR)


def quality(job: dict[str, Any]) -> Iterator[Any]:
    """Train on one half of a split and annotate the other; `train` has what train() is told."""
    halves = split(job)
    counts = halves.counts()
    options = dict(job["train"])
    if options.get("use_SGD"):
        options |= {key: job[key] for key in ("batch_size", "epochs")}
    np.random.seed(job["repeat"])  # noqa: NPY002 - CellTypist draws from NumPy's global generator
    yield
    model = celltypist.train(halves.train, TYPE, n_jobs=-1, random_state=job["repeat"], **options)
    if options.get("use_SGD"):
        counts["steps"] = int(model.classifier.t_) - 1
    yield counts
    found = celltypist.annotate(halves.query, model=model)
    table = found.probability_matrix
    yield halves.evidence(table.columns, found.predicted_labels["predicted_labels"], table)


def train(job: dict[str, Any]) -> Iterator[Any]:
    """Train on all cells but the held-out donors', or on `at_most` of them drawn at random."""
    np.random.seed(job["repeat"])  # noqa: NPY002 - CellTypist draws from NumPy's global generator
    yield
    adata = anndata.read_h5ad(job["h5ad"], backed="r")
    kept = np.flatnonzero(~adata.obs["donor_id"].isin(job["held_out"]))
    rng = np.random.default_rng(job["repeat"])
    if len(kept) > job["at_most"]:
        kept = np.sort(rng.choice(kept, job["at_most"], replace=False))
    adata = adata[kept].to_memory()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    model = celltypist.train(
        adata, "cell_type", use_SGD=True, mini_batch=True, n_jobs=-1, random_state=job["repeat"],
        **job["settings"],
    )  # fmt: skip
    yield {"cells": len(kept), "steps": int(model.classifier.t_) - 1}
    yield weights(model.classifier, model.scaler, model.classifier.features)


def solve(job: dict[str, Any]) -> Iterator[Any]:
    """Train on cells in memory by logistic regression."""
    cells = everything(job)
    yield
    model = celltypist.train(cells.train, TYPE, solver="lbfgs", with_mean=True, n_jobs=-1)
    yield {"digest": cells.digest, "iterations": int(model.classifier.n_iter_.max())}
    yield weights(model.classifier, model.scaler, model.classifier.features)
