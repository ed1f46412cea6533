"""celltypist.train and ours, side by side: every row of the table, by how it is compared."""

import re
import warnings
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning

import streamtrain
from streamtrain.celltypist_export import classifier
from streamtrain.config import Settings
from streamtrain.threads import Threads
from tests.parity import child, inputs
from tests.parity.table import ROWS

pytestmark = pytest.mark.slow  # celltypist trains on every row

QUIET = {"progress": False, "dtype": "float64"}
TIGHT = {"tol": 1e-8, "max_iter": 20_000}


def rows(compare):
    """Run a test for the rows that are compared so."""
    return pytest.mark.parametrize("row", [r for r in ROWS if r.compare == compare], ids=str)


def train(row, folder, **more):
    """Our model of the row."""
    given = child.arguments(vars(row), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few epochs are on purpose
        return streamtrain.train(**given, **row.options | QUIET | more)


def close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def same_scaling(model, theirs, tolerance):
    """Types, genes and their scaling."""
    assert model.cell_types.tolist() == theirs.classes.tolist()
    assert model.features.tolist() == theirs.features.tolist()
    for name in ("mean", "var", "scale"):
        np.testing.assert_allclose(model.dataset[name], getattr(theirs, name), rtol=tolerance)


def same_estimator(model, theirs):
    """What the export holds."""
    made = classifier(model)
    assert type(made).__name__ == theirs.estimator
    for name in ("C", "alpha", "loss", "fit_intercept", "learning_rate"):
        assert made.get_params().get(name) == theirs.params.get(name)


def annotated(model, folder):
    """Labels and probabilities of the query."""
    table = streamtrain.predict(
        model, folder / "query.h5ad", probabilities=True, n_jobs=1, progress=False
    )
    return table["predicted_labels"].astype(str).to_numpy(), table[list(model.cell_types)]


def same_annotation(theirs, folder):
    """CellTypist's pickled model annotates here as there, sums of float64 in another order."""
    if hasattr(theirs, "probability"):
        labels, found = annotated(streamtrain.Model.load(theirs.pickle), folder)
        assert labels.tolist() == theirs.predicted_labels.tolist()
        np.testing.assert_allclose(found, theirs.probability, rtol=0, atol=1e-9)


def objective(coef, intercept, Z, codes, options):
    """scikit-learn's objective of each class against the rest, shape (columns,), float64."""
    columns = [1] if len(coef) == 1 else range(len(coef))
    C = np.inf if options.get("penalty", "l2") is None else options.get("C", 1.0)
    ratio = {"l1": 1.0, "elasticnet": options.get("l1_ratio")}.get(options.get("penalty"), 0.0)
    found = []
    for k, w, b in zip(columns, coef.astype(np.float64), intercept, strict=True):
        y = codes == k
        score = Z @ w + b
        weight = cell_weights(options.get("class_weight"), options.get("solver"), codes, y)
        if options.get("solver") == "liblinear":  # which penalises the intercept
            w = np.append(w, b / options.get("intercept_scaling", 1.0))
        penalty = (1 - ratio) * w @ w / 2 + ratio * np.abs(w).sum()
        found.append(weight @ (np.logaddexp(0, score) - y * score) + penalty / C)
    return np.array(found)


def cell_weights(spec, solver, codes, y):
    """Weight of each cell in the problem of one class, scikit-learn's."""
    if spec is None:
        return np.ones(len(codes))
    counts = np.bincount(codes)
    if isinstance(spec, dict):
        names = np.unique(inputs.cells("atlas").obs["cell_type"].astype(str))
        own = np.array([spec.get(name, 1.0) for name in names])[codes]
    elif solver == "liblinear":
        own = (len(codes) / (len(counts) * counts))[codes]
    else:
        return len(y) / (2 * np.where(y, y.sum(), (~y).sum()))
    if solver == "liblinear" and len(counts) > 2:  # weighs a problem's own class alone
        return np.where(y, own, 1.0)
    return own


def scores(Z, coef, intercept):
    found = Z @ coef.T + intercept
    return np.column_stack([-found, found]) if found.shape[1] == 1 else found


@rows("optimum")
def test_optimum(row, theirs, folder):
    """At the default tol nearer to the optimum; at a small one the same coefficients."""
    model, other = train(row, folder), theirs[""]
    # float32: what scanpy reads; float64 sums run in another order.
    same_scaling(model, other, 1e-12 if row.in_float64 else 2e-5)
    same_estimator(model, other)
    Z, _, codes = inputs.scaled(row.cells, row.options.get("with_mean", True))
    ours = objective(model.coef_, model.intercept_, Z, codes, row.options)
    assert (
        ours <= objective(other.coef, other.intercept, Z, codes, row.options) * (1 + 1e-6)
    ).all()
    assert model.certificate["converged"].all()
    labels = [
        scores(Z, m, b).argmax(axis=1)
        for m, b in ((model.coef_, model.intercept_), (other.coef, other.intercept))
    ]
    differ = np.count_nonzero(labels[0] != labels[1])
    if hasattr(other, "predicted_labels"):
        differ += np.count_nonzero(annotated(model, folder)[0] != other.predicted_labels)
    assert differ == 0, "of 240 cells, and 120 others"
    if "tight" not in theirs:
        return
    model, other = train(row, folder, **TIGHT), theirs["tight"]
    # Both within about 1e-8 of the minimum, relatively: its root for the weights.
    close(model.coef_, other.coef, 1e-4)
    close(model.intercept_, other.intercept, 1e-4)
    if hasattr(other, "probability"):
        found = annotated(model, folder)
        np.testing.assert_allclose(found[1], other.probability, rtol=0, atol=1e-4)
    same_annotation(other, folder)


@rows("steps")
def test_steps(row, theirs, folder):
    """The same cells in the same order: equal to rounding."""
    model, other = train(row, folder), theirs[""]
    # float64 sums in another order, over the steps.
    same_scaling(model, other, 1e-12)
    same_estimator(model, other)
    if row.kind == "better":
        assert np.linalg.norm(model.intercept_ - other.intercept) > 1e-3
        return
    close(model.coef_, other.coef, row.tolerance)
    close(model.intercept_, other.intercept, row.tolerance)
    assert model.dataset.attrs["t"] == other.t
    if hasattr(other, "probability"):
        labels, probability = annotated(model, folder)
        assert labels.tolist() == other.predicted_labels.tolist()
        np.testing.assert_allclose(probability, other.probability, rtol=0, atol=1e-6)
    same_annotation(other, folder)
    draws(row, other)


def draws(row, other):
    """CellTypist asked NumPy for the cells that we plan to take."""
    options, n = row.options, 240
    if not options.get("mini_batch"):
        return
    assert len(other.draws) == options["epochs"] * (1 + options.get("feature_selection", False))
    counts = np.unique(inputs.scaled(row.cells)[2], return_counts=True)[1]
    for draw in other.draws:
        size = min(n, options["batch_number"] * options["batch_size"])
        assert (draw["n"], draw["size"], draw["replace"]) == (n, size, False)
        assert ("p" in draw) == options.get("balance_cell_type", False)
        if "p" in draw:
            codes = inputs.scaled(row.cells)[2]
            np.testing.assert_allclose(draw["p"], 1 / (counts[codes] * len(counts)), rtol=1e-12)


@rows("noise")
def test_noise(row, theirs, folder):
    """Macro-F1 on other cells over five seeds: within three standard errors of the difference."""
    truth = inputs.cells("query").obs["cell_type"].astype(str)
    ours = [
        streamtrain.evaluate(truth, annotated(train(row, folder, random_state=s), folder)[0])
        for s in range(len(theirs))
    ]
    other = [streamtrain.evaluate(truth, t.predicted_labels) for t in theirs.values()]
    a, b = ([e.macro_f1 for e in found] for found in (ours, other))
    noise = 3 * np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))
    assert np.mean(a) >= np.mean(b) - noise
    assert np.mean(b) > 0.6  # there is something to learn
    assert len(set(a + b)) > 1  # and noise


def outcome(row, folder):
    """How our training went, worded as child.py words CellTypist's."""
    given = child.arguments(vars(row), folder)
    model, words = child.observe(
        lambda: streamtrain.train(**given, **row.options | QUIET), "streamtrain"
    )
    if model is None:
        return words
    words += child.named(model.cell_types, model.features)
    for mode in ("best match", "prob match"):
        query = folder / "query.h5ad"
        annotate = partial(streamtrain.predict, model, query, mode=mode, progress=False)
        words += child.told(mode, child.observe(annotate, "streamtrain")[1])
    return words


@rows("outcome")
def test_outcome(row, theirs, folder):
    """Error, warning or result of both are as the table says."""
    assert re.search(row.theirs, theirs[""].outcome), theirs[""].outcome
    words = outcome(row, folder)
    assert re.search(row.ours, words), words


@rows("labels")
def test_labels(row, theirs, folder):
    """CellTypist annotates with our exported model as predict() does."""
    other = theirs[""]
    assert "gave" in other.outcome, other.outcome
    names = {"gene_file": "genes", "cell_file": "cells"}
    options = {names.get(k, k): v for k, v in child.options(vars(row), folder).items()}
    X = child.arguments(vars(row), folder)["X"]
    ours = streamtrain.predict(folder / row.model, X, probabilities=True, progress=False, **options)
    types = streamtrain.Model.load(folder / row.model).cell_types
    for name in ("predicted_labels", "over_clustering", "majority_voting"):
        assert (name in ours) == hasattr(other, name)
        if name in ours:
            expected = getattr(other, name)
            cut = max(map(len, expected)) if row.kind == "better" else None
            assert [label[:cut] for label in ours[name].astype(str)] == expected.tolist()
    # Both sum in float64; scanpy holds tables in float32.
    tolerance = 1e-9 if row.cells.endswith(".h5ad") else 1e-5
    np.testing.assert_allclose(ours[list(types)], other.probability, rtol=0, atol=tolerance)


@rows("jobs")
def test_jobs(row, theirs):
    assert theirs[""].params["n_jobs"] is None  # one
    with Threads(Settings().n_jobs) as default, Threads(-1) as every:
        assert default.n == every.n


@rows("limits")
def test_limits(row, theirs):
    for name, n in inputs.LARGE.items():
        assert theirs[name].params["max_iter"] == Settings().most_passes(n)
        assert Settings().most_passes(n - 1) != Settings().most_passes(n)


@rows("seeds")
def test_seeds(row, theirs, folder):
    one, other = (train(row, folder) for _ in range(2))
    np.testing.assert_array_equal(one.coef_, other.coef_)
    assert not np.array_equal(*(t.coef for t in theirs.values()))


@rows("texts")
def test_texts(row, theirs, folder):
    ours, other = train(row, folder).description, theirs[""].description
    if "date" not in row.options:
        ours["date"], other["date"] = (datetime.fromisoformat(d["date"]) for d in (ours, other))
        assert abs(ours.pop("date") - other.pop("date")) < timedelta(hours=1)
    assert list(ours.items()) == list(other.items())


@rows("selection")
def test_selection(row, theirs, folder):
    """The first round's cells come in another order: genes as like as those of two seeds."""
    model = train(row, folder)
    chosen = [set(t.features) for t in theirs.values()]
    alike = [len(a & b) / len(a | b) for i, a in enumerate(chosen) for b in chosen[:i]]
    ours = [len(set(model.features) & c) / len(set(model.features) | c) for c in chosen]
    assert np.mean(ours) >= min(alike)
    Z, genes, codes = inputs.scaled(row.cells)
    for other in theirs.values():  # the second round: our optimum on the genes that it chose
        at = pd.Index(genes).get_indexer(other.features)
        second = streamtrain.train(
            inputs.cells("atlas")[:, other.features].copy(), "cell_type", check_expression=False,
            **QUIET,
        )  # fmt: skip
        same_scaling(second, other, 1e-12)
        fits = [
            objective(m, b, Z[:, at], codes, {})
            for m, b in ((second.coef_, second.intercept_), (other.coef, other.intercept))
        ]
        assert (fits[0] <= fits[1] * (1 + 1e-6)).all()
