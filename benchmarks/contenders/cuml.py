"""cuML's logistic regression: L-BFGS over all classes at once, on sparse cells on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy
import cupyx.scipy.sparse
from cuml.linear_model import LogisticRegression

from benchmarks.contenders.gpu import Gradients, expression
from benchmarks.simulated import Genes
from streamtrain.threads import Threads

_ITERATIONS = 20


def gradient(job: dict[str, Any]) -> Iterator[Any]:
    """Fit for a few iterations, each of which counts as a pass; its line search may take more.

    It takes float32, has a softmax over the classes in place of one against the rest, and does not
    centre: the cells are those that our passes read, the work is other work.
    """
    with Threads(job["n_jobs"]) as threads:
        rows = expression(job)
        rule = Genes.of(rows, threads).scaler("float32")
    cells = Gradients(rows, rule, job["classes"]).matrix().astype("float32")
    X = cupyx.scipy.sparse.csr_matrix(cells)
    y = cupy.asarray(rows.codes, dtype="float32")
    LogisticRegression(max_iter=1).fit(X, y)
    model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-12)
    yield
    model.fit(X, y)
    cupy.cuda.Device().synchronize()
    yield {"cells": rows.n_obs * int(cupy.asarray(model.n_iter_).max())}
