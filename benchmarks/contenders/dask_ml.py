"""dask-ml as its documentation has it: dense blocks of cells that workers hold, and two estimators.

It scales dense cells. `Incremental` hands SGDClassifier block after block; LogisticRegression is of
two classes (it takes more without a word, and fits their numbers), so one is fitted for each type.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

from benchmarks.contenders.cluster import above, everywhere, held, workers
from streamtrain import open_source

warnings.filterwarnings("ignore")
# None has types, and mypy asks for those of dask-ml.
dask: Any = import_module("dask")
da: Any = import_module("dask.array")
distributed: Any = import_module("distributed")
linear_model: Any = import_module("dask_ml.linear_model")
preprocessing: Any = import_module("dask_ml.preprocessing")
wrappers: Any = import_module("dask_ml.wrappers")
_SMALL = {"max_iter": 1, "epochs": 1, "held_out": []}


def incremental(job: dict[str, Any]) -> Iterator[Any]:
    """Steps of SGD over blocks of `batch_size` cells, in another order in each epoch."""
    yield from _by_workers(job, _incremental)


def logistic(job: dict[str, Any]) -> Iterator[Any]:
    """One class against the rest by L-BFGS, at most `max_iter` steps each."""
    yield from _by_workers(job, _logistic)


def _by_workers(job: dict[str, Any], fit: Any) -> Iterator[Any]:
    with workers(job["workers"], job["threads"]) as client:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        fit(job | _SMALL | {"store": job["small"]})
        before = everywhere(client, held)
        yield
        found, weights = fit(job)
        yield found | above(client, before)
        yield weights


def _cells(job: dict[str, Any], size: int) -> tuple[Any, Any, NDArray[Any], dict[str, Any]]:
    """Scaled cells and codes of their types, in blocks that workers hold; what scaled them."""
    with closing(open_source(job["store"])) as source:
        n_vars, genes = source.n_vars, np.asarray(source.genes, str)
        kept = ~source.obs("donor_id").isin(job["held_out"]).to_numpy()
        types = source.obs("cell_type").to_numpy().astype(str)
        classes, codes = np.unique(types, return_inverse=True)
    parts = []
    for rows in np.array_split(np.flatnonzero(kept), max(1, round(kept.sum() / size))):
        block = dask.delayed(_dense)(job["store"], rows)
        parts.append(da.from_delayed(block, (len(rows), n_vars), np.float64))
    X = da.concatenate(parts).persist()
    expressed = (X != 0).any(axis=0).compute()  # its LogisticRegression refuses the others
    X = X[:, expressed]
    scaler = preprocessing.StandardScaler()
    X = da.minimum(scaler.fit_transform(X), 10).persist()
    y = da.from_array(codes[kept], chunks=(X.chunks[0],)).persist()
    distributed.wait([X, y])
    about = {
        "mean": np.asarray(scaler.mean_), "scale": np.asarray(scaler.scale_),
        "genes": genes[expressed], "classes": classes,
    }  # fmt: skip
    return X, y, classes, about


def _dense(store: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-normalised cells."""
    with closing(open_source(store)) as source:
        first, last = int(rows[0]), int(rows[-1]) + 1
        cells = source.read(first, last).take(rows - first)
    X = np.zeros((cells.n_obs, cells.n_vars))
    X[np.repeat(np.arange(cells.n_obs), np.diff(cells.indptr)), cells.indices] = cells.data
    X *= 1e4 / X.sum(axis=1, keepdims=True)
    return np.log1p(X, out=X)


def _incremental(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    X, y, classes, about = _cells(job, job["batch_size"])
    solver = SGDClassifier(loss="log_loss", alpha=1e-4, shuffle=False)
    model = wrappers.Incremental(solver, random_state=job["repeat"])
    for _ in range(job["epochs"]):
        model.partial_fit(X, y, classes=np.arange(len(classes)))
    fitted = model.estimator_
    found = {"cells": len(y), "steps": int(fitted.t_) - 1}
    return found, about | {"coef": fitted.coef_, "intercept": fitted.intercept_}


def _logistic(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    n = job["workers"] * job["threads"]
    X, y, classes, about = _cells(job, -(-job["cells"] // n))  # a block for each thread
    fits = []
    for code in range(len(classes)):
        one = linear_model.LogisticRegression(solver="lbfgs", C=1.0, max_iter=job["max_iter"])
        fits.append(one.fit(X, y == code))
    found = {"cells": len(y)}
    return found, about | {
        "coef": np.array([fit.coef_ for fit in fits]),
        "intercept": np.array([fit.intercept_ for fit in fits]),
    }
