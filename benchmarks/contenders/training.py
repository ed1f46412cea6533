"""Training in this environment: ours, and scikit-learn's pieces put together by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks.contenders import windows
from benchmarks.contenders.split import GROUP, TYPE, Split, everything, split
from streamtrain import Model, open_source, predict, train


def ours(job: dict[str, Any]) -> Iterator[Any]:
    """Train on mini-batches from the file, within a memory budget."""
    yield
    names = ", ".join(map(repr, job["held_out"]))
    model = train(
        job["store"], "cell_type", normalize="log1p", memory=job["memory"], progress=False,
        where=f"donor_id not in [{names}]" if names else None, random_state=job["repeat"],
        use_SGD=True, mini_batch=True, **job["settings"],
    )  # fmt: skip
    yield {"cells": model.provenance["n_cells"], "steps": int(model.dataset.attrs["t"]) - 1}
    yield weights_of(model)


def by_hand(job: dict[str, Any]) -> Iterator[Any]:
    """Two loops over blocks of cells: StandardScaler's partial_fit, then SGDClassifier's.

    Blocks are read in random order and mixed in windows; each batch is densified. All cells of an
    epoch are taken, up to the number of steps that mini-batch training takes.
    """
    from sklearn.linear_model import SGDClassifier
    from sklearn.preprocessing import StandardScaler

    yield
    size, epochs = job["settings"]["batch_size"], job["settings"]["epochs"]
    with closing(open_source(job["store"])) as source:
        labels = source.obs("cell_type").astype(str).to_numpy()
        kept = ~source.obs("donor_id").isin(job["held_out"]).to_numpy()

        def dense(start: int, stop: int) -> np.ndarray[Any, Any]:
            rows = source.read(start, stop)
            X = np.zeros((stop - start, source.n_vars), np.float32)
            X[np.repeat(np.arange(stop - start), np.diff(rows.indptr)), rows.indices] = rows.data
            X = X[kept[start:stop]]
            X *= 1e4 / X.sum(axis=1, keepdims=True)
            return np.log1p(X, out=X)

        scaler = StandardScaler()
        for start in range(0, source.n_obs, size):
            if kept[start : start + size].any():
                scaler.partial_fit(dense(start, min(start + size, source.n_obs)))
        classes = np.unique(labels[kept])
        solver = SGDClassifier(
            loss="log_loss", alpha=1e-4, n_jobs=-1, shuffle=False, random_state=job["repeat"]
        )
        n_cells = int(kept.sum())
        most = min(job["settings"]["batch_number"] * size, n_cells)
        for epoch in range(epochs):
            left = most
            order = {"seed": [job["repeat"], epoch], "block": 64, "window": 4 * size}
            for blocks, cells, shuffled in windows.random(source.n_obs, order):
                X = scaler.transform(np.concatenate([dense(*block) for block in blocks]))
                np.minimum(X, 10, out=X)
                y = labels[cells][kept[cells]]
                mixed = shuffled[kept[cells][shuffled]]
                place = np.cumsum(kept[cells]) - 1
                for start in range(0, len(mixed), size):
                    batch = place[mixed[start : start + size]][:left]
                    if len(batch):
                        solver.partial_fit(X[batch], y[batch], classes=classes)
                    left -= len(batch)
                if left == 0:
                    break
        genes = np.asarray(source.genes, str)
    yield {"cells": n_cells, "steps": int(solver.t_) - 1}
    yield {
        "coef": solver.coef_,
        "intercept": solver.intercept_,
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "genes": genes,
        "classes": classes.astype(str),
    }


def quality(job: dict[str, Any]) -> Iterator[Any]:
    """Train on one half of a split and annotate the other; `train` has what train() is told.

    A recipe may hold out groups of the training half. For each mode in `adapt` the same model
    annotates once more; what it then finds is named by the mode.
    """
    halves = split(job)
    counts = halves.counts()
    options = dict(job["train"])
    if options.get("use_SGD"):
        options |= {key: job[key] for key in ("batch_size", "epochs")}
    if "recipe" in options and job["inner"]:
        options["validation_groups"] = GROUP
    yield
    model = train(halves.train, TYPE, random_state=job["repeat"], progress=False, **options)
    if options.get("use_SGD"):
        counts["steps"] = int(model.dataset.attrs["t"]) - 1
    for trial in model.provenance.get("cross_validation", []):
        if trial["chosen"]:
            counts["chosen"] = {key: trial[key] for key in ("alpha", "step", "epochs")}
    yield counts
    evidence = _annotated(model, halves)
    for mode in job.get("adapt", ()):
        again = _annotated(model, halves, adapt=mode)
        evidence |= {f"{mode}_{key}": again[key] for key in again.keys() - {"truth"}}
    yield evidence


def _annotated(model: Model, halves: Split, **options: Any) -> dict[str, Any]:
    """Evidence of a model; with `adapted`, where predict() says whether it adapted."""
    table: Any = predict(model, halves.query, probabilities=True, progress=False, **options)
    probabilities = table.drop(columns=["predicted_labels", "conf_score"])
    found = halves.evidence(probabilities.columns, table["predicted_labels"], probabilities)
    told = [decision["adapted"] for decision in table.attrs.get("adapt", {}).values()]
    return found | ({"adapted": np.array(any(told))} if told else {})


def solve(job: dict[str, Any]) -> Iterator[Any]:
    """Train on cells in memory by the defaults: logistic regression to its optimum."""
    cells = everything(job)
    yield
    model = train(cells.train, TYPE, progress=False)
    data = model.dataset
    yield {
        "digest": cells.digest,
        "iterations": int(data["n_iter"].max()),
        "passes": int(data["n_passes"].max()),
    }
    yield weights_of(model)


def weights_of(model: Model) -> dict[str, Any]:
    """Weights, scaling and names of a model, as arrays that pass between processes."""
    data = model.dataset
    return {
        "coef": data["coef"].to_numpy(),
        "intercept": data["intercept"].to_numpy(),
        "mean": data["mean"].to_numpy(),
        "scale": data["scale"].to_numpy(),
        "genes": data["gene"].to_numpy().astype(str),
        "classes": data["cell_type"].to_numpy().astype(str),
    }
