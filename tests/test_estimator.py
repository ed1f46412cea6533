"""SparseSGDClassifier against scikit-learn's own checks, and its SGD on dense scaled data."""

import doctest
import inspect
import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.utils._test_common.instance_generator import PER_ESTIMATOR_XFAIL_CHECKS
from sklearn.utils.estimator_checks import check_estimator

import streamtrain
import streamtrain.estimator.classifier
from streamtrain import SparseSGDClassifier
from streamtrain.errors import InputError

GENTLE = {
    "loss": "log_loss", "shuffle": False, "learning_rate": "constant", "eta0": 1e-3, "max_iter": 8,
}  # fmt: skip
SHORT = GENTLE | {"tol": None}
NAMES = np.array(["alpha", "beta", "delta", "gamma", "zeta"])


def samples(n_classes, n_obs=400, n_vars=30, seed=0):
    """Sparse values of either sign, some features in most samples, and labels by name."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n_obs)
    X = rng.normal(rng.normal(0, 1, (n_classes, n_vars))[codes], 2)
    X[rng.random(X.shape) < np.linspace(0.1, 0.9, n_vars)] = 0
    X[:, 5], X[:, 7] = 3, 0  # constant
    X[:, 9] += 1e3
    return X, NAMES[codes]


def relative(a, b):
    return np.linalg.norm(np.ravel(a) - np.ravel(b)) / np.linalg.norm(b)


def compare(ours, theirs, within=1e-9):
    """Gentle steps keep the rounding small; the sums are in another order."""
    assert relative(ours.coef_, theirs.coef_) < within
    assert relative(ours.intercept_, theirs.intercept_) < within
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"with_mean": False, "with_std": False}], ids=str)
@pytest.mark.filterwarnings("ignore:.* still improved")
def test_check_estimator__as_sgdclassifier(options):
    """No check is excused that SGDClassifier passes: the list of those it fails is its own."""
    check_estimator(
        SparseSGDClassifier(**options),
        expected_failed_checks=PER_ESTIMATOR_XFAIL_CHECKS[SGDClassifier],
        on_skip=None,
    )


def test_parameters__are_sgdclassifiers():
    ours = {p.name: p for p in inspect.signature(SparseSGDClassifier).parameters.values()}
    theirs = inspect.signature(SGDClassifier).parameters
    assert list(ours) == [*theirs, "with_mean", "with_std", "max_value"]
    other = {name for name in theirs if ours[name].default != theirs[name].default}
    assert other == {"loss"}
    assert inspect.signature(SparseSGDClassifier.fit).parameters.keys() == (
        inspect.signature(SGDClassifier.fit).parameters.keys()
    )


CASES = {
    "log loss": {},
    "hinge, no penalty": {"loss": "hinge", "penalty": None},
    "modified huber, l1": {"loss": "modified_huber", "penalty": "l1", "alpha": 0.02},
    "squared hinge, elasticnet": {"loss": "squared_hinge", "penalty": "elasticnet", "alpha": 0.02},
    "perceptron": {"loss": "perceptron"},
    "squared error": {"loss": "squared_error", "eta0": 1e-5},
    "huber": {"loss": "huber", "epsilon": 0.3},
    "epsilon insensitive": {"loss": "epsilon_insensitive", "epsilon": 0.3},
    "squared epsilon insensitive": {"loss": "squared_epsilon_insensitive", "eta0": 1e-5},
    "inverse scaling": {"learning_rate": "invscaling", "power_t": 0.3},
    "adaptive": {"learning_rate": "adaptive", "eta0": 0.01, "n_iter_no_change": 1, "tol": 0.1},
    "optimal": {"learning_rate": "optimal", "alpha": 1.0},
    "pa1": {"learning_rate": "pa1", "loss": "hinge"},
    "pa2": {"learning_rate": "pa2", "loss": "hinge"},
    "averaged": {"average": True},
    "averaged late": {"average": 700},
    "balanced": {"class_weight": "balanced"},
    "class weights": {"class_weight": {"alpha": 3.0, "beta": 0.2}},
    "no intercept": {"fit_intercept": False, "penalty": "l2"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.filterwarnings("ignore:Maximum number of iteration")
@pytest.mark.filterwarnings("ignore:.* still improved")
def test_fit__equals_sklearn(n_classes, options):
    X, y = samples(n_classes)
    options = GENTLE | options
    Z = StandardScaler().fit_transform(X)
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    theirs = SGDClassifier(**options).fit(Z, y, sample_weight=weight)
    ours = SparseSGDClassifier(**options).fit(sp.csr_array(X), y, sample_weight=weight)
    if options.get("fit_intercept", True):
        compare(ours, theirs)
    else:
        assert relative(ours.coef_, theirs.coef_) < 1e-9
        assert (ours.intercept_ == 0).all()
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(Z), atol=1e-9)
    np.testing.assert_array_equal(ours.predict(sp.csc_array(X)), theirs.predict(Z))


def test_fit__scales_as_standard_scaler():
    X, y = samples(3)
    theirs = StandardScaler().fit(X)
    ours = SparseSGDClassifier(max_iter=2, tol=None).fit(sp.csr_array(X), y)
    for name in ("mean_", "var_", "scale_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10)
    assert ours.n_samples_seen_ == theirs.n_samples_seen_ == 400
    ours.set_params(with_std=False).fit(X, y)
    assert ours.mean_ is not None
    assert ours.var_ is ours.scale_ is None
    ours.set_params(with_mean=False).fit(X, y)
    assert ours.mean_ is ours.var_ is ours.scale_ is None
    assert ours.n_samples_seen_ == 400


@pytest.mark.parametrize("options", [{}, {"penalty": "l1", "alpha": 0.02}], ids=str)
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("with_std", [False, True])
def test_fit__without_centring(is_sparse, with_std, options):
    """scikit-learn slows the intercept of sparse input, and there pays L1 by stored entries."""
    X, y = samples(3)
    options = SHORT | options
    Z = StandardScaler(with_mean=False, with_std=with_std).fit_transform(X)
    X, Z = (sp.csr_matrix(X), sp.csr_matrix(Z)) if is_sparse else (X, Z)
    theirs = SGDClassifier(**options).fit(Z, y)
    ours = SparseSGDClassifier(**options, with_mean=False, with_std=with_std).fit(X, y)
    compare(ours, theirs)


@pytest.mark.parametrize("with_mean", [True, False])
def test_fit__upper_bound(with_mean):
    """It touches zeros too where a mean lies far below them."""
    X, y = samples(3)
    X[:, 11] = np.where(np.arange(400) % 100 == 3, 0, -7)  # zeros become 10
    Z = StandardScaler(with_mean=with_mean).fit_transform(X)
    assert (Z[X == 0] > 2).any() == with_mean
    assert (Z > 2).sum() > 100
    options = SHORT
    theirs = SGDClassifier(**options).fit(np.minimum(Z, 2), y)
    ours = SparseSGDClassifier(**options, with_mean=with_mean, max_value=2).fit(X, y)
    compare(ours, theirs)
    expected = theirs.decision_function(np.minimum(Z, 2))
    np.testing.assert_allclose(ours.decision_function(sp.csr_array(X)), expected, atol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("loss", ["hinge", "log_loss"])
def test_fit__early_stopping_equals_sklearn(monkeypatch, n_classes, loss):
    """Without a decay: scikit-learn scores weights that still lack theirs, which ours do not.

    For log_loss scikit-learn 1.9 takes labels as 0 and 1, but scores them against -1 and 1, so that
    no sample of the other classes is ever right.
    """
    make = SGDClassifier._make_validation_score_cb

    def corrected(self, mask, X, y, weight, classes=None):
        return make(self, mask, X, y, weight, np.unique(y))

    monkeypatch.setattr(SGDClassifier, "_make_validation_score_cb", corrected)
    X, y = samples(n_classes)
    options = {
        "loss": loss, "shuffle": False, "early_stopping": True, "validation_fraction": 0.2,
        "n_iter_no_change": 2, "penalty": None, "random_state": 3, "learning_rate": "constant",
        "eta0": 1e-3,
    }  # fmt: skip
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    theirs = SGDClassifier(**options).fit(StandardScaler().fit_transform(X), y, None, None, weight)
    ours = SparseSGDClassifier(**options).fit(sp.csr_array(X), y, None, None, weight)
    assert 1 < ours.n_iter_ < 100
    compare(ours, theirs)


def moved(theirs, before, after):
    """Put the weights of an SGDClassifier under another StandardScaler: the same function of X."""
    theirs.intercept_ = theirs.intercept_ + theirs.coef_ @ (
        (after.mean_ - before.mean_) / before.scale_
    )
    theirs.coef_ = theirs.coef_ * (after.scale_ / before.scale_)


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "hinge", "penalty": "elasticnet", "alpha": 0.02}, {"learning_rate": "optimal"}],
    ids=str,
)
@pytest.mark.parametrize("n_classes", [2, 4])
def test_partial_fit__moments_grow(n_classes, options):
    X, y = samples(n_classes, 900)
    options = {"loss": "log_loss", "shuffle": False, "alpha": 0.1} | GENTLE | options
    theirs, ours = SGDClassifier(**options), SparseSGDClassifier(**options)
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    scaler = StandardScaler()
    for part in (slice(0, 300), slice(300, 301), slice(301, 900)):
        before = pickle.loads(pickle.dumps(scaler))  # noqa: S301
        scaler.partial_fit(X[part])
        if part.start:
            moved(theirs, before, scaler)
        theirs.partial_fit(scaler.transform(X[part]), y[part], NAMES[:n_classes], weight[part])
        ours.partial_fit(sp.csr_array(X[part]), y[part], NAMES[:n_classes], weight[part])
        compare(ours, theirs, 1e-8)
        np.testing.assert_allclose(ours.mean_, scaler.mean_, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours.scale_, scaler.scale_, rtol=1e-9)
    assert ours.n_samples_seen_ == 900


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("n_classes", [2, 4])
def test_partial_fit__without_scaling_equals_sklearn(n_classes, options):
    X, y = samples(n_classes, 900)
    X[:, 9] -= 1e3
    options = GENTLE | options
    if options.get("class_weight") == "balanced":
        options = options | {"class_weight": {"alpha": 2.0}}
    theirs = SGDClassifier(**options)
    ours = SparseSGDClassifier(**options, with_mean=False, with_std=False)
    # Averaging, scikit-learn 1.9 forgets the intercept's last value from one call to the next.
    cuts = [0, 900] if "average" in options else [0, 300, 301, 900]
    for start, stop in pairwise(cuts):
        for model in (theirs, ours):
            model.partial_fit(X[start:stop], y[start:stop], NAMES[:n_classes])
    if options.get("fit_intercept", True):
        compare(ours, theirs)
    else:
        assert relative(ours.coef_, theirs.coef_) < 1e-9
        assert (ours.intercept_ == 0).all()


def test_partial_fit__averages_across_calls():
    X, y = samples(3, 900)
    options = GENTLE | {"average": 100, "with_mean": False, "with_std": False}
    once, thrice = (SparseSGDClassifier(**options) for _ in range(2))
    once.partial_fit(X, y, NAMES[:3])
    for part in (slice(0, 300), slice(300, 301), slice(301, 900)):
        thrice.partial_fit(X[part], y[part], NAMES[:3])
    compare(thrice, once)


def test_partial_fit__goes_on_after_fit():
    X, y = samples(3, 600)
    options = SHORT
    scaler = StandardScaler().fit(X[:400])
    theirs = SGDClassifier(**options).fit(scaler.transform(X[:400]), y[:400])
    ours = SparseSGDClassifier(**options).fit(X[:400], y[:400])
    before = pickle.loads(pickle.dumps(scaler))  # noqa: S301
    scaler.partial_fit(X[400:])
    moved(theirs, before, scaler)
    theirs.partial_fit(scaler.transform(X[400:]), y[400:])
    ours.partial_fit(X[400:], y[400:])
    compare(ours, theirs, 1e-8)


def test_partial_fit__says_the_same_of_x_when_moments_move():
    """Steps of weight next to nothing, so only mean and deviation change; averages move alike."""
    X, y = samples(4, 600)
    last = SparseSGDClassifier(penalty=None, **GENTLE)
    averaged = clone(last).set_params(average=True)
    scores = []
    for model in (last, averaged):
        scores.append(model.partial_fit(X[:300], y[:300], NAMES[:4]).decision_function(X))
        mean = model.mean_
        model.partial_fit(X[300:] * 3 + 1, y[300:], sample_weight=np.full(300, 1e-300))
        assert not np.allclose(model.mean_, mean)
    tolerance = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(last.decision_function(X), scores[0], **tolerance)
    # 300 steps as averaged before, and 300 that stood still.
    np.testing.assert_allclose(averaged.decision_function(X), sum(scores) / 2, **tolerance)


def containers():
    X, _ = samples(3)
    csr = sp.csr_array(X)
    wide = sp.csr_array((csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)))
    assert wide.indices.dtype == np.int64
    shuffled = csr.copy()
    for i in range(400):
        row = slice(*csr.indptr[i : i + 2])
        shuffled.indices[row], shuffled.data[row] = csr.indices[row][::-1], csr.data[row][::-1]
    doubled = sp.csr_array((np.repeat(csr.data / 2, 2), np.repeat(csr.indices, 2), 2 * csr.indptr))
    assert doubled.nnz == 2 * csr.nnz
    return {
        "csr array": csr, "csr matrix": sp.csr_matrix(X), "int64 indices": wide,
        "unsorted": shuffled, "repeated": doubled, "csc": sp.csc_array(X), "coo": sp.coo_array(X),
        "lil": sp.lil_array(X), "fortran": np.asfortranarray(X), "list": X.tolist(),
        "strided": np.repeat(X, 2, axis=1)[:, ::2], "frame": pd.DataFrame(X),
        "sparse frame": pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(X)),
    }  # fmt: skip


@pytest.mark.parametrize("name", containers())
def test_fit__takes_any_container_and_leaves_it(name):
    X, y = samples(3)
    given = containers()[name]
    before = pickle.dumps(given)
    options = SHORT | {"shuffle": True, "random_state": 0}
    expected = SparseSGDClassifier(**options).fit(X, y)
    found = SparseSGDClassifier(**options).fit(given, y)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.decision_function(given), expected.decision_function(X), atol=1e-9
    )
    after = pickle.loads(before)  # noqa: S301
    for part in ("data", "indices", "indptr", "row", "col"):
        if sp.issparse(given) and given.format != "lil" and hasattr(given, part):
            np.testing.assert_array_equal(getattr(given, part), getattr(after, part))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint16, np.int64, bool])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_fit__takes_any_numbers(dtype, is_sparse):
    if dtype is np.float16 and is_sparse:
        pytest.skip("SciPy has no such matrix")
    X, y = samples(3)
    X = np.clip(X - 1e3 * (np.arange(30) == 9), 0, 100).astype(dtype)
    options = SHORT | {"shuffle": False}
    expected = SparseSGDClassifier(**options).fit(X.astype(np.float64), y)
    found = SparseSGDClassifier(**options).fit(sp.csr_array(X) if is_sparse else X, y)
    assert found.coef_.dtype == (np.float32 if dtype is np.float32 else np.float64)
    assert relative(found.coef_, expected.coef_) < (1e-4 if dtype is np.float32 else 1e-12)


def test_fit__names_damage():
    X = sp.csr_array(np.eye(3))
    y = np.array([0, 1, 0])
    X.indices = np.array([0, 2**32 + 1, 2])  # would wrap to 1
    with pytest.raises(InputError, match="X is damaged: row 1 has an index outside 0 to 2"):
        SparseSGDClassifier().fit(X, y)
    X = sp.csr_array(np.eye(3))
    X.indptr = np.array([0, 2, 1, 3])
    with pytest.raises(InputError, match="X is damaged: its offsets"):
        SparseSGDClassifier().fit(X, y)


@pytest.mark.parametrize("kind", ["sparse", "csr of int64", "dense"])
def test_memory__nothing_of_the_size_of_x(kind):
    """Sparse: 13 MB, 160 MB as dense; dense: 64 MB. A batch is 4 MB at most, some times over."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        X, most = rng.normal(size=(32_000, 250)), 16e6
    else:
        X = sp.random_array((20_000, 1000), density=0.05, rng=rng, format="csr")
        if kind != "sparse":
            X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
        most = 6e6
    y = rng.integers(0, 3, X.shape[0])
    model = SparseSGDClassifier(max_iter=2, tol=None)
    model.fit(X[:600], y[:600]).predict(X[:600])  # compiled, imported
    tracemalloc.start()
    try:
        model.fit(X, y)
        model.partial_fit(X, y)
        model.predict_proba(X)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shuffle", [False, True])
def test_fit__threads_change_nothing(shuffle):
    X, y = samples(5)
    options = SHORT | {"shuffle": shuffle, "random_state": 7}
    one, three = (SparseSGDClassifier(n_jobs=n, **options).fit(X, y) for n in (1, 3))
    np.testing.assert_array_equal(one.coef_, three.coef_)
    np.testing.assert_array_equal(one.decision_function(X), three.decision_function(X))


def test_fit__shuffles_by_its_seed():
    X, y = samples(3)
    options = SHORT | {"shuffle": True}

    def coef(random_state):
        return SparseSGDClassifier(random_state=random_state, **options).fit(X, y).coef_

    np.testing.assert_array_equal(coef(1), coef(1))
    assert (coef(1) != coef(2)).any()
    np.testing.assert_array_equal(coef(np.random.RandomState(5)), coef(np.random.RandomState(5)))
    random = np.random.RandomState(5)
    assert (coef(random) != coef(random)).any(), "its state goes on"


def test_fit__is_train_on_the_same_cells():
    """The file trainer's model for the same seed: float32, so within its rounding."""
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(np.log1p(rng.poisson(0.5, (500, 40))).astype(np.float32))
    y = rng.choice(NAMES[:3], 500)
    model = streamtrain.train(
        X, y, [f"g{i}" for i in range(40)], check_expression=False, use_SGD=True,
        max_iter=3, tol=None, random_state=5, learning_rate="constant", eta0=1e-3,
    )  # fmt: skip
    ours = SparseSGDClassifier(
        max_iter=3, tol=None, random_state=5, learning_rate="constant", eta0=1e-3, max_value=10
    ).fit(X, y)
    np.testing.assert_allclose(ours.coef_, model.dataset["coef"].to_numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["log_loss", "modified_huber"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_predict_proba__equals_sklearn(n_classes, loss):
    X, y = samples(n_classes)
    options = {"loss": loss, "shuffle": False} | SHORT | {"eta0": 0.02}
    Z = StandardScaler().fit_transform(X)
    theirs = SGDClassifier(**options).fit(Z, y)
    ours = SparseSGDClassifier(**options).fit(X, y)
    expected = theirs.predict_proba(Z)
    found = ours.predict_proba(sp.csr_array(X))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(ours.predict_log_proba(X), np.log(ours.predict_proba(X)))
    if n_classes == 4:
        for model in (ours, theirs):  # all below -1: hard zeros for modified_huber, rounding else
            model.intercept_ = np.full(4, -1e4)
        found, expected = ours.predict_proba(X), theirs.predict_proba(Z)
        np.testing.assert_array_equal(found, expected)
        assert (found == 0.25).all()


def test_predict_proba__not_of_other_losses():
    model = SparseSGDClassifier("hinge")
    for name in ("predict_proba", "predict_log_proba"):
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as error:
            getattr(model, name)
        assert "not available for loss='hinge'" in str(error.value.__cause__)


def test_sparsify__scores_and_trains_as_before():
    X, y = samples(3)
    model = SparseSGDClassifier(penalty="l1", alpha=0.05, **SHORT).fit(X, y)
    scores = model.decision_function(X)
    thin = pickle.loads(pickle.dumps(model)).sparsify()  # noqa: S301
    assert sp.issparse(thin.coef_)
    assert 0 < thin.coef_.nnz < model.coef_.size
    np.testing.assert_array_equal(thin.decision_function(X), scores)
    for each in (model, thin):
        each.partial_fit(X, y)
    np.testing.assert_array_equal(thin.coef_, model.coef_)
    np.testing.assert_array_equal(thin.sparsify().densify().coef_, model.coef_)


def test_warm_start__continues():
    X, y = samples(3)
    options = SHORT | {"max_iter": 3}
    Z = StandardScaler().fit_transform(X)
    theirs = SGDClassifier(**options, warm_start=True)
    ours = SparseSGDClassifier(**options, warm_start=True)
    for _ in range(3):
        theirs.fit(Z, y)
        ours.fit(X, y)
        compare(ours, theirs)
    with pytest.raises(InputError, match=r"continue from coef_ of shape \(3, 30\), .* \(4, 30\)"):
        ours.fit(*samples(4))
    cold = SparseSGDClassifier(**options).fit(X, y)
    again = clone(cold).fit(X, y, coef_init=cold.coef_, intercept_init=cold.intercept_)
    theirs = SGDClassifier(**options).fit(Z, y, cold.coef_, cold.intercept_)
    compare(again, theirs)
    with pytest.raises(InputError, match=r"coef_init must have the shape \(3, 30\); got \(30,\)"):
        cold.fit(X, y, coef_init=cold.coef_[0])


def test_warm_start__on_other_data_says_the_same_of_x():
    X, y = samples(2)
    options = SHORT | {"penalty": None}
    model = SparseSGDClassifier(warm_start=True, **options).fit(X, y)
    before = model.decision_function(X)
    model.fit(3 * X + 1, y, sample_weight=np.full(400, 1e-300))
    np.testing.assert_allclose(model.decision_function(X), before, rtol=1e-6)


def test_fit__warns_of_classes_that_go_on():
    X, y = samples(3)
    with pytest.warns(ConvergenceWarning, match="3 of 3 classes still improved after 2 epochs"):
        SparseSGDClassifier(max_iter=2, random_state=0).fit(X, y)


def test_pipeline_and_grid_search():
    X, y = samples(3)
    flow = make_pipeline(MaxAbsScaler(), SparseSGDClassifier(random_state=0, tol=1e-2))
    search = GridSearchCV(
        flow, {"sparsesgdclassifier__alpha": [1e-1, 1e2]}, cv=3, scoring="neg_log_loss"
    )
    search.fit(sp.csr_matrix(X), y)
    assert search.best_params_ == {"sparsesgdclassifier__alpha": 0.1}
    assert search.score(sp.csr_matrix(X), y) > -0.55
    assert (search.predict(X) == y).mean() > 0.8


def test_metadata_routing__of_sample_weight():
    X, y = samples(2)
    weight = np.where(y == "alpha", 1.0, 1e-3)
    options = SHORT
    expected = SparseSGDClassifier(**options).fit(X, y, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        model = SparseSGDClassifier(**options).set_fit_request(sample_weight=True)
        flow = make_pipeline(model).fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(flow[-1].coef_, expected.coef_)


def test_incremental__of_dask_ml():
    """Blocks of sparse rows one after the other, as by partial_fit itself."""
    wrappers = pytest.importorskip("dask_ml.wrappers")
    import dask.array as da

    X, y = samples(3)
    model = SparseSGDClassifier(**GENTLE)
    rows = da.from_array(X, chunks=(100, 30)).map_blocks(sp.csr_array)
    labels = da.from_array(y, chunks=100)
    wrapped = wrappers.Incremental(model, shuffle_blocks=False, scoring="accuracy")
    wrapped.fit(rows, labels, classes=NAMES[:3])
    model = clone(model)
    for start in range(0, 400, 100):
        model.partial_fit(X[start : start + 100], y[start : start + 100], NAMES[:3])
    np.testing.assert_allclose(wrapped.coef_, model.coef_, rtol=1e-9)
    np.testing.assert_array_equal(wrapped.predict(rows).compute(), model.predict(X))


def test_pickle__goes_on_alike():
    X, y = samples(3, 600)
    model = SparseSGDClassifier(average=50, **GENTLE).partial_fit(X[:300], y[:300], NAMES[:3])
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301
    for each in (model, copy):
        each.partial_fit(X[300:], y[300:])
    np.testing.assert_array_equal(copy.coef_, model.coef_)
    np.testing.assert_array_equal(copy.decision_function(X), model.decision_function(X))


def test_feature_names__are_kept_and_checked():
    X, y = samples(3)
    frame = pd.DataFrame(X, columns=[f"g{i}" for i in range(30)])
    model = SparseSGDClassifier(max_iter=2, tol=None).fit(frame, y)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[frame.columns[::-1]])


def test_partial_fit__an_error_leaves_the_estimator():
    X, y = samples(3)
    model = SparseSGDClassifier(**GENTLE).partial_fit(X, y, NAMES[:3])
    before = pickle.dumps(vars(model))
    model.set_params(eta0=1e308)
    with pytest.raises(InputError, match="the weights overflowed"):
        model.partial_fit(X * 2, y)
    assert pickle.dumps(vars(model.set_params(eta0=1e-3))) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "log"}, "loss must be one of 'log_loss', .*; got 'log'"),
        ({"penalty": "l3"}, "penalty must be one of 'l2', 'l1', 'elasticnet', None; got 'l3'"),
        ({"learning_rate": np.ones(2)}, "learning_rate must be one of 'optimal'"),
        ({"with_mean": "no"}, "with_mean must be True or False; got 'no'"),
        ({"alpha": -1}, "alpha must be a number of at least 0; got -1"),
        ({"alpha": 0}, "alpha must be above 0, as learning_rate='optimal'"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1; got 0"),
        ({"eta0": 0}, "eta0 must be a number above 0; got 0"),
        ({"tol": -1}, "tol must be a number of at least 0"),
        ({"max_value": 0}, "max_value must be a number above 0"),
        ({"penalty": "elasticnet", "l1_ratio": None}, "l1_ratio must be a number"),
        ({"validation_fraction": 1}, "validation_fraction must be a number above 0 and at most"),
        ({"learning_rate": "pa1"}, "learning_rate='pa1' is for loss='hinge'; got 'log_loss'"),
        ({"class_weight": "even"}, "class_weight must be one of 'balanced', None; got 'even'"),
    ],
    ids=str,
)
def test_parameters__out_of_range(options, message):
    for method in ("fit", "partial_fit"):
        with pytest.raises(InputError, match=message):
            getattr(SparseSGDClassifier(**options), method)([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize(
    ("options", "y", "classes", "message"),
    [
        ({}, [0, 1], None, "classes must be passed on the first call to partial_fit"),
        ({}, [0, 1], [1], "y must hold two classes at least; got 1 class, '1'"),
        ({}, [0, 2], [0, 1], "y holds '2', beside the classes .* named: '0', '1'"),
        ({"early_stopping": True}, [0, 1], [0, 1], "early_stopping must be False with partial_fit"),
        ({"class_weight": "balanced"}, [0, 1], [0, 1], "'balanced' is not supported by partial_f"),
    ],
)
def test_partial_fit__errors(options, y, classes, message):
    with pytest.raises(InputError, match=message):
        SparseSGDClassifier(**options).partial_fit([[0.0], [1.0]], y, classes)


def test_partial_fit__other_classes_than_before():
    model = SparseSGDClassifier().partial_fit([[0.0], [1.0]], ["a", "b"], ["a", "b"])
    with pytest.raises(InputError, match="first call to partial_fit, 'a', 'b'; got 'a', 'c'"):
        model.partial_fit([[0.0]], ["a"], ["a", "c"])
    with pytest.raises(InputError, match="y holds 'c'"):
        model.partial_fit([[0.0]], ["c"])


def test_fit__held_out_samples_need_weight():
    X, y = samples(2)
    model = SparseSGDClassifier(early_stopping=True, random_state=0)
    weight = np.zeros(400)
    weight[0] = 1
    with pytest.raises(InputError, match="sample_weight is 0 for all samples that are held out"):
        model.fit(X, y, sample_weight=weight)


def test_docstring__example():
    found = doctest.testmod(streamtrain.estimator.classifier, raise_on_error=True)
    assert found.attempted > 5


def test_fit__an_error_leaves_the_estimator():
    """Also where its X had other features, which scikit-learn's checks take note of first."""
    X, y = samples(3)
    model = SparseSGDClassifier(random_state=0, max_iter=5, tol=None).fit(X, y)
    before = model.decision_function(X)
    with pytest.raises(InputError, match="y must hold two classes at least"):
        model.fit(np.ones((40, 3)), np.zeros(40))
    np.testing.assert_array_equal(model.decision_function(X), before)
    assert model.n_features_in_ == X.shape[1]


def test_set_params__says_nothing_of_what_is_fitted():
    X, y = samples(3)
    model = SparseSGDClassifier(random_state=0, max_iter=5, tol=None).fit(X, y)
    before = model.decision_function(X)
    model.set_params(with_mean=False, with_std=False, max_value=1.0)
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_partial_fit__needs_the_moments_of_all_samples():
    X, y = samples(3)
    model = SparseSGDClassifier(with_mean=False, with_std=False).partial_fit(X, y, np.unique(y))
    with pytest.raises(InputError, match="not taken so far: set both to False as before, or call"):
        model.set_params(with_mean=True).partial_fit(X, y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"random_state": -1}, "random_state must be .*; got -1"),
        ({"n_jobs": 0}, "n_jobs must be a whole number but 0, or None; got 0"),
        ({"n_jobs": "a"}, "n_jobs must be a whole number but 0, or None; got 'a'"),
    ],
)
def test_fit__refuses_seeds_and_threads(given, message):
    X, y = samples(3)
    with pytest.raises(InputError, match=message):
        SparseSGDClassifier(**given).fit(X, y)


def test_fit__refuses_weights_that_are_no_numbers():
    X, y = samples(2)
    with pytest.raises(InputError, match="coef_init must be finite numbers"):
        SparseSGDClassifier().fit(X, y, coef_init=np.full(X.shape[1], np.nan))
