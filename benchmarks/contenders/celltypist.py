"""CellTypist: its own training on normalised cells in memory, and its own annotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import celltypist
import numpy as np

from benchmarks.contenders.split import TYPE, split


def quality(job: dict[str, Any]) -> Iterator[Any]:
    """Train on one half of a split and annotate the other; `train` has what train() is told."""
    halves = split(job)
    counts = halves.counts()
    options = dict(job["train"])
    if options.get("use_SGD"):
        options |= {key: job[key] for key in ("batch_size", "epochs")}
    np.random.seed(job["repeat"])  # noqa: NPY002 - CellTypist draws from NumPy's global generator
    yield
    model = celltypist.train(halves.train, TYPE, random_state=job["repeat"], **options)
    yield counts
    found = celltypist.annotate(halves.query, model=model)
    table = found.probability_matrix
    yield halves.evidence(table.columns, found.predicted_labels["predicted_labels"], table)
