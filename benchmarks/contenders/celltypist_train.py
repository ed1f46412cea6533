"""CellTypist's training as people run it: the file into memory, normalised, trained."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import anndata
import celltypist
import numpy as np
import scanpy as sc

warnings.filterwarnings("ignore")
celltypist.logger.set_level(logging.ERROR)


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
    yield {
        "coef": model.classifier.coef_,
        "intercept": model.classifier.intercept_,
        "mean": model.scaler.mean_,
        "scale": model.scaler.scale_,
        "genes": np.asarray(model.classifier.features, str),
        "classes": np.asarray(model.classifier.classes_, str),
    }
