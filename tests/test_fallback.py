"""The fallback against scikit-learn's SGDClassifier on the same dense cells in the same order."""

import logging

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier

from streamtrain.errors import InputError
from streamtrain.solvers import fallback
from streamtrain.solvers.fallback import Fallback, check, is_native
from streamtrain.threads import Threads
from tests.test_sgd import case, relative

OPTIONS = {
    "squared_hinge": {"loss": "squared_hinge"},
    "perceptron": {"loss": "perceptron", "fit_intercept": False},
    "squared_error": {"loss": "squared_error"},
    "huber": {"loss": "huber", "epsilon": 0.3},
    "epsilon_insensitive": {"loss": "epsilon_insensitive", "epsilon": 0.2},
    "squared_epsilon_insensitive": {"loss": "squared_epsilon_insensitive"},
    "pa1": {"loss": "hinge", "learning_rate": "pa1"},
    "pa2": {"loss": "hinge", "learning_rate": "pa2"},
}


@pytest.mark.parametrize(("n_classes", "how"), [(2, "centred"), (3, "dense"), (3, "sparse")])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_fallback__equals_sklearn(n_classes, options, how, monkeypatch):
    """Within 1e-9: only the scaled values round otherwise. A piece holds 90 cells."""
    monkeypatch.setattr(fallback, "_PIECE", 90 * 60 * 8)
    batches, Z, codes, ours_only = case(400, 60, n_classes, how)
    options = {"learning_rate": "constant", "eta0": 1e-3} | options
    weight = 0.5 + np.arange(n_classes)
    theirs = SGDClassifier(shuffle=False, class_weight=dict(enumerate(weight)), **options)
    theirs.partial_fit(Z, codes, classes=range(n_classes))
    state = None
    with Threads(1) as threads:
        for batch in batches:  # each from the state of the one before
            solver = Fallback(
                n_classes, ours_only["shift"], options, class_weight=weight,
                sparse=how == "sparse", dtype=np.float64, threads=threads, state=state,
            )  # fmt: skip
            state = solver.partial_fit(batch).state()
    assert relative(state.coef, theirs.coef_) < 1e-9
    assert state.coef.shape == theirs.coef_.shape
    np.testing.assert_allclose(state.intercept, theirs.intercept_, rtol=1e-9, atol=1e-12)
    assert state.t == theirs.t_ == 401


def test_fallback__says_that_it_is_slow_and_takes_float32(caplog):
    batches, _, _, options = case(200, 60, 3, "centred")
    with Threads(2) as threads, caplog.at_level(logging.WARNING):
        solver = Fallback(3, options["shift"], {"loss": "squared_hinge"}, threads=threads)
        state = solver.partial_fit(batches[0]).state()
    assert [r.message for r in caplog.records] == [
        "scikit-learn's own SGD trains, on dense cells and many times slower, for "
        "loss='squared_hinge'"
    ]
    assert state.coef.dtype == np.float32
    assert np.isfinite(state.coef).all()
    assert state.coef.any()


def test_fallback__overflow():
    batches, _, _, options = case(200, 60, 3, "centred")
    steep = {"loss": "squared_error", "learning_rate": "constant", "eta0": 1e297}
    with (
        Threads(1) as threads,
        pytest.raises(InputError, match=r"the weights overflowed: lower the step \(eta0\)"),
    ):
        Fallback(3, options["shift"], steep, threads=threads).partial_fit(batches[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": True}, "scikit-learn's SGD takes no 'average' here"),
        ({"epsilom": 1}, "did you mean 'epsilon'?"),
        ({"loss": "squared"}, "does not take these settings: The 'loss' parameter"),
        ({"loss": "log_loss", "learning_rate": "pa9"}, "'learning_rate' parameter"),
        ({"loss": "squared_hinge", "epsilon": "wide"}, "does not take these settings"),
    ],
)
def test_check__refuses(options, message):
    with pytest.raises(InputError) as caught:
        check(options)
    assert message in str(caught.value)


def test_is_native():
    assert is_native("log_loss", "adaptive")
    assert not is_native("squared_hinge", "optimal")
    assert not is_native("hinge", "pa1")


def test_nbytes__a_piece_is_bounded():
    assert Fallback.nbytes(30_000, 2, np.float64, 1000) == 2 * 30_000 * 8 + 1000 * 30_000 * 8
    assert Fallback.nbytes(30_000, 2, np.float64, 10**6) == 2 * 30_000 * 8 + 256 * 10**6
