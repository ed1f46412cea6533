"""scikit-learn's logistic regression alone, of a version that still takes `multi_class`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.contenders.split import TYPE, everything

warnings.filterwarnings("ignore")


def fit(job: dict[str, Any]) -> Iterator[Any]:
    """Fit by lbfgs, one against the rest; before the clock starts, cells are made dense and scaled.

    In float64, which this solver turns other types into.
    """
    cells = everything(job)
    expressed = cells.train.X.getnnz(axis=0) > 0
    X = cells.train.X[:, expressed].astype(np.float64).toarray()
    scaler = StandardScaler(copy=False)
    np.minimum(scaler.fit_transform(X), 10, out=X)
    # max_iter is CellTypist's, below 50,000 cells.
    classifier = LogisticRegression(solver="lbfgs", multi_class="ovr", max_iter=1000, n_jobs=-1)
    yield
    classifier.fit(X, cells.train.obs[TYPE].to_numpy())
    yield {"digest": cells.digest, "iterations": int(classifier.n_iter_.max())}
    yield weights(classifier, scaler, cells.train.var_names[expressed])


def weights(classifier: Any, scaler: Any, genes: Any) -> dict[str, Any]:
    """Weights, scaling and names of a model, as arrays that pass between processes."""
    return {
        "coef": classifier.coef_,
        "intercept": classifier.intercept_,
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "genes": np.asarray(genes, str),
        "classes": np.asarray(classifier.classes_, str),
    }
