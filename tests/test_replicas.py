"""Copies of a model, averaged after each epoch, against scikit-learn's, averaged by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

import streamtrain
from streamtrain import InputError
from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.descent import plan_epochs
from streamtrain.replicas import fit_replicas
from tests import atlas
from tests.models import assert_same

QUIET = {"progress": False}
# Gentle steps: those of "optimal" saturate, and magnify what is rounded.
GENTLE = {"learning_rate": "constant", "eta0": 0.003}
MINI = atlas.MINI | {"batch_size": 50, "batch_number": 7, "epochs": 4} | GENTLE


def by_hand(adata, options, n_types):
    """Coefficients and intercepts of scikit-learn's steps in `replicas` copies."""
    config = Settings(**options)
    codes = pd.Categorical(adata.obs["cell_type"].astype(str))
    names = codes.categories.to_numpy(object)
    plan = plan_epochs(config, Cells(None, codes.codes.astype(np.int32), names), None)
    X = StandardScaler().fit_transform(adata.X.toarray()[:, adata.X.toarray().any(axis=0)])
    X, columns = np.minimum(X, 10), 1 if n_types == 2 else n_types
    coef, intercept, t = np.zeros((columns, X.shape[1])), np.zeros(columns), 1.0
    for epoch in range(config.epochs):
        cells = plan.epoch(epoch)
        batches = [
            cells[i : i + config.batch_size] for i in range(0, len(cells), config.batch_size)
        ]
        found, steps = [], []
        for number in range(config.replicas):
            model = SGDClassifier(
                loss="log_loss", alpha=config.alpha, shuffle=False, eta0=config.eta0,
                learning_rate=config.learning_rate, power_t=config.power_t,
            )  # fmt: skip
            model.partial_fit(X[:1], codes.codes[:1], classes=np.arange(n_types))
            model.coef_[:], model.intercept_[:], model.t_ = coef, intercept, t
            for batch in batches[number :: config.replicas]:
                model.partial_fit(X[batch], codes.codes[batch])
            found.append((model.coef_, model.intercept_))
            steps.append(sum(map(len, batches[number :: config.replicas])))
        coef, intercept = (
            np.average(part, axis=0, weights=steps) for part in zip(*found, strict=True)
        )
        t += max(steps)
    return coef, intercept


@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize(
    "more",
    [
        {"replicas": 2},
        {"replicas": 3, "learning_rate": "invscaling", "eta0": 0.01},
        {"replicas": 7},
    ],
)
def test_replicas__are_scikit_learns_averaged(n_types, more):
    adata = atlas.make(600, n_types=n_types, dtype=np.float64)
    options = MINI | {"dtype": "float64"} | more
    model = streamtrain.train(adata, "cell_type", **options, **QUIET)
    coef, intercept = by_hand(adata, options, n_types)
    np.testing.assert_allclose(model.coef_[-len(coef) :], coef, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(model.intercept_[-len(coef) :], intercept, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "more",
    [
        {"average": 300},
        {"gene_dropout": 0.3, "balance_cell_type": True, "average": True, "correct_prior": True},
        {"step": "auto"},
    ],
)
def test_replicas__one_is_training_as_ever(more, monkeypatch):
    adata, options = atlas.make(), MINI | {"dtype": "float64"} | more
    if "step" in more:
        options = {k: v for k, v in options.items() if k not in GENTLE}
    plain = streamtrain.train(adata, "cell_type", **options, **QUIET)

    def fit(config, stored, scaler, start, room, threads, *, progress, **_):
        return fit_replicas(config, stored, scaler, start, threads, progress=progress)

    monkeypatch.setattr("streamtrain.local.fit", fit)
    found = streamtrain.train(adata, "cell_type", **options, **QUIET)
    for name in found.dataset:  # averages end with an epoch, and begin again from what they were
        a, b = (model.dataset[name].to_numpy() for model in (found, plain))
        if a.dtype == float:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_replicas__same_model_for_any_threads_and_memory(tmp_path):
    adata = atlas.make()
    options = atlas.MINI | {"batch_size": 50, "batch_number": 7, "epochs": 3, "step": "auto"}
    options |= {"replicas": 3, "average": True, "gene_dropout": 0.2}
    one, other = (
        streamtrain.train(adata, "cell_type", **options, **more, **QUIET)
        for more in ({"n_jobs": 1}, {"n_jobs": 3, "memory": "300MB", "scratch": str(tmp_path)})
    )
    assert_same(one, other)


def test_replicas__more_than_an_epoch_has_batches():
    """Of 120 cells there are three batches for five copies."""
    adata = atlas.make(120, dtype=np.float64)
    options = MINI | {"replicas": 5, "dtype": "float64"}
    model = streamtrain.train(adata, "cell_type", **options, **QUIET)
    coef, _ = by_hand(adata, options | {"replicas": 3}, 5)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"replicas": 8}, "replicas=8 copies need a mini-batch each .* batch_number=7: raise it"),
        ({"replicas": 2, "early_stopping": True}, "early_stopping judges the epochs of one"),
        ({"replicas": 2, "folds": 3}, "folds tries settings of one: leave one out"),
        ({"replicas": 2, "mini_batch": False}, "replicas is for use_SGD=True with mini_batch"),
        ({"replicas": 0}, "replicas must be a whole number of at least 1"),
    ],
)
def test_replicas__bad_input(more, message):
    with pytest.raises(InputError, match=message):
        streamtrain.train(atlas.make(), "cell_type", **MINI | more)
