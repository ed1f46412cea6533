"""Ours: training on normalised cells in memory, and annotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streamtrain
from benchmarks.contenders.split import TYPE, split


def quality(job: dict[str, Any]) -> Iterator[Any]:
    """Train on one half of a split and annotate the other; `train` has what train() is told."""
    halves = split(job)
    counts = halves.counts()
    options = {key: job[key] for key in ("batch_size", "epochs")} | job["train"]
    yield
    model = streamtrain.train(
        halves.train, TYPE, random_state=job["repeat"], progress=False, **options
    )
    yield counts
    table: Any = streamtrain.predict(model, halves.query, probabilities=True, progress=False)
    probabilities = table.drop(columns=["predicted_labels", "conf_score"])
    yield halves.evidence(probabilities.columns, table["predicted_labels"], probabilities)
