"""Epochs, stopping and frozen columns against scikit-learn's fit on the same cells in order."""

import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from sklearn.linear_model import SGDClassifier

from streamtrain.solvers.schedule import Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.solvers.stopping import Stopping
from streamtrain.threads import Threads
from tests.test_sgd import case, expression, relative, scaled_dense, take

# Before 1.8 scikit-learn stopped by the loss without the penalty.
BY_LOSS_ALONE = Version(sklearn.__version__) < Version("1.8")
GENTLE = {"learning_rate": "constant", "eta0": 5e-4}


def fit(batches, n_classes, stop, options, *, max_iter=30, n_threads=2, held_out=None):
    """The epochs of scikit-learn's fit; each column's epochs, and the solver."""
    options = dict(options)
    fields = Schedule.__dataclass_fields__
    schedule = Schedule(**{k: options.pop(k) for k in fields if k in options})
    n = sum(batch.rows.n_obs for batch in batches)
    with Threads(n_threads) as threads:
        solver = SGD(
            n_classes, schedule=schedule, epochs=True, dtype=np.float64, threads=threads, **options
        )
        eta0 = schedule.eta0 if schedule.learning_rate == "adaptive" else None
        stopping = Stopping(solver.n_columns, eta0=eta0, **stop)
        for _ in range(max_iter):
            for batch in batches:
                solver.partial_fit(batch)
            loss, penalty = solver.end_epoch()
            gain = -(loss if BY_LOSS_ALONE else loss + penalty) / n
            if held_out is not None:
                gain = solver.n_correct(held_out) / held_out.rows.n_obs
            slower, stopped = stopping.update(gain)
            solver.slow(slower)
            solver.freeze(stopped)
            if not stopping.active.any():
                break
        return stopping.n_iter_, solver.state()


CASES = {
    "constant": GENTLE,
    "two epochs without a gain of 1e-2": GENTLE | {"tol": 1e-2, "n_iter_no_change": 2},
    "never stops": GENTLE | {"tol": None},
    "adaptive": {"learning_rate": "adaptive", "eta0": 2e-3, "n_iter_no_change": 2},
    "adaptive to the end": {
        "learning_rate": "adaptive", "eta0": 1e-5, "n_iter_no_change": 1, "tol": 0.1
    },
    "averaged": GENTLE | {"average": True},
    "averaged late": GENTLE | {"average": 1500, "tol": 1e-2},
    "adaptive, averaged": {"learning_rate": "adaptive", "average": 150, "tol": 1e-2},
    "inverse scaling, hinge": {"learning_rate": "invscaling", "loss": "hinge", "tol": 1e-2},
    "modified huber": GENTLE | {"loss": "modified_huber", "tol": 1e-2},
    "strong l2": GENTLE | {"alpha": 0.1},
    "no penalty": GENTLE | {"penalty": None, "tol": 1e-2},
    "l1": GENTLE | {"penalty": "l1", "alpha": 0.02},
    "l1, averaged": GENTLE | {"penalty": "l1", "alpha": 0.02, "average": True},
    "elasticnet, hinge": GENTLE | {"penalty": "elasticnet", "alpha": 0.05, "loss": "hinge"},
    "elasticnet, adaptive, averaged": {
        "learning_rate": "adaptive", "eta0": 2e-3, "n_iter_no_change": 1, "tol": 1e-2,
        "penalty": "elasticnet", "alpha": 0.05, "l1_ratio": 0.4, "average": True,
    },
}  # fmt: skip


# 1e-9: gentle steps keep the rounding small.
@pytest.mark.parametrize(
    ("n_classes", "how"),
    [(2, "centred"), (5, "centred"), (3, "dense"), (2, "sparse"), (4, "sparse")],
)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.filterwarnings("ignore:Maximum number of iteration")  # so must ours
def test_fit__equals_sklearn(options, n_classes, how):
    batches, Z, codes, ours_only = case(400, 60, n_classes, how)
    theirs = SGDClassifier(shuffle=False, max_iter=60, **({"loss": "log_loss"} | options))
    theirs.fit(Z, codes)
    options = dict(options)
    stop = {k: options.pop(k) for k in ("tol", "n_iter_no_change") if k in options}
    n_iter, state = fit(batches, n_classes, stop, options | ours_only, max_iter=60)
    assert n_iter.max() == theirs.n_iter_
    assert state.t.tolist() == [theirs.t_] * len(state.t)
    averaged = state.average_coef is not None
    coef = state.average_coef if averaged else state.coef
    intercept = state.average_intercept if averaged else state.intercept
    assert relative(coef, theirs.coef_) < 1e-9
    assert relative(intercept, theirs.intercept_) < 1e-9


@pytest.mark.parametrize(
    ("n_classes", "how", "max_iter"),
    [(2, "centred", 99), (4, "centred", 7), (3, "dense", 99), (4, "sparse", 99)],
)
@pytest.mark.filterwarnings("ignore:Maximum number of iteration")
def test_fit__celltypists_large_steps_equal_sklearn(n_classes, how, max_iter):
    """Within 1e-6 where scikit-learn itself repeats.

    After dozens of epochs on several centred classes it does not: of this case the last bits of
    its cells move its coefficients by 6e-2.
    """
    batches, Z, codes, ours_only = case(400, 400, n_classes, how)
    theirs = SGDClassifier("log_loss", shuffle=False, max_iter=max_iter).fit(Z, codes)
    n_iter, state = fit(batches, n_classes, {}, ours_only, max_iter=max_iter)
    assert n_iter.max() == theirs.n_iter_
    assert relative(state.coef, theirs.coef_) < 1e-6
    assert relative(state.intercept, theirs.intercept_) < 1e-6


def test_fit__each_class_stops_by_itself():
    options = {"learning_rate": "adaptive", "eta0": 2e-3, "alpha": 1e-3}
    batches, Z, codes, ours_only = case(400, 60, 4, "centred")
    alone = [
        SGDClassifier("log_loss", shuffle=False, max_iter=99, **options).fit(Z, codes == k)
        for k in range(4)
    ]
    n_iter, _ = fit(batches, 4, {}, options | ours_only, max_iter=99)
    assert n_iter.tolist() == [model.n_iter_ for model in alone]
    assert len(set(n_iter)) > 1, "the case must stop classes at different epochs"


@pytest.mark.parametrize("n_classes", [2, 4])
def test_fit__early_stopping_equals_sklearn(n_classes):
    """Without a decay: scikit-learn scores weights that still lack theirs, which ours do not."""
    X, codes = expression(400, 60, n_classes)
    _, Z = scaled_dense(X, True)
    options = GENTLE | {"penalty": None}
    theirs = SGDClassifier(
        "log_loss", shuffle=False, early_stopping=True, random_state=3, n_iter_no_change=2,
        validation_fraction=0.2, **options,
    ).fit(Z, codes)  # fmt: skip
    # With two classes scikit-learn splits by the column's labels, which are the codes too.
    out = theirs._make_validation_split(codes, np.ones(400, bool))
    batches, _, _, ours_only = case(400, 60, n_classes, "centred", size=400)
    train, held_out = (take(batches[0], np.flatnonzero(mask)) for mask in (~out, out))
    stop = {"n_iter_no_change": 2}
    n_iter, state = fit([train], n_classes, stop, options | ours_only, held_out=held_out)
    assert n_iter.max() == theirs.n_iter_ < 30
    assert relative(state.coef, theirs.coef_) < 1e-9


@pytest.mark.parametrize("how", ["centred", "dense", "sparse"])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
def test_end_epoch__sums(penalty, how):
    """Loss and penalty before each step, by plain SGD on dense cells; 1e-9, rounding of norms.

    On a sparse matrix scikit-learn takes the norms over the genes of the cell before.
    """
    batches, Z, codes, options = case(200, 60, 3, how, size=50)
    schedule = Schedule("constant", 1e-2, 1e-3, penalty=penalty, l1_ratio=0.3)
    share = {"l2": 0, "l1": 1, "elasticnet": 0.3}[penalty]
    Z = Z.toarray() if how == "sparse" else Z
    rate = options.get("intercept_rate", 1)
    W, b, paid, owed = np.zeros((3, 60)), np.zeros(3), np.zeros((3, 60)), 0.0
    sums, squares, absolutes = np.zeros((2, 3)), np.zeros(3), np.zeros(3)
    for z, code in zip(Z, codes, strict=True):
        y, score = np.arange(3) == code, W @ z + b
        sums[0] += np.log1p(np.exp(score)) - y * score
        sums[1] += 1e-2 * ((1 - share) / 2 * squares + share * absolutes)
        step = 1e-3 * (y - 1 / (1 + np.exp(-score)))
        W = W * (1 - 1e-3 * 1e-2 * (1 - share)) + np.outer(step, z)
        b += rate * step
        at = z != 0 if how == "sparse" else np.ones(60, bool)
        squares, absolutes = (W[:, at] ** 2).sum(axis=1), np.abs(W[:, at]).sum(axis=1)
        owed += share * 1e-3 * 1e-2
        clipped = np.where(W > 0, np.maximum(0, W - owed - paid), np.minimum(0, W + owed - paid))
        change = np.where(at & (W != 0) & (share > 0), clipped - W, 0)
        W, paid = W + change, paid + change
    with Threads(1) as threads:
        solver = SGD(3, schedule=schedule, epochs=True, dtype=float, threads=threads, **options)
        for batch in batches:
            solver.partial_fit(batch)
        np.testing.assert_allclose(solver.end_epoch(), sums, rtol=1e-9)
        np.testing.assert_allclose(solver.state().coef, W, rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(solver.end_epoch(), np.zeros((2, 3)))


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_freeze__columns_stay_as_they_are(penalty):
    batches, _, _, options = case(400, 60, 5, "centred")
    schedule = Schedule("constant", penalty=penalty)
    options |= {"schedule": schedule, "average": True, "epochs": True, "dtype": float}
    with Threads(2) as threads:
        stays, goes_on = (SGD(5, threads=threads, **options) for _ in range(2))
        stays.partial_fit(batches[0])
        goes_on.partial_fit(batches[0])
        goes_on.freeze(np.array([0, 3]))
        goes_on.partial_fit(batches[1])
        assert np.isnan(goes_on.end_epoch()[0]).tolist() == [True, False, False, True, False]
        goes_on.freeze(np.array([1, 2, 4]))
        goes_on.partial_fit(batches[0])
        before, after = stays.state(), goes_on.state()
    for name in ("coef", "intercept", "average_coef", "average_intercept"):
        old, new = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(new[[0, 3]], old[[0, 3]])
        assert (new[[1, 2, 4]] != old[[1, 2, 4]]).any()
    assert after.t.tolist() == [601] * 5


def test_freeze__before_averaging_begins():
    """scikit-learn gives weights of zero there; the present ones are of more use."""
    batches, _, _, options = case(400, 60, 3, "centred")
    with Threads(1) as threads:
        solver = SGD(3, schedule=Schedule(), average=300, dtype=float, threads=threads, **options)
        solver.partial_fit(batches[0]).freeze(np.array([1]))
        state = solver.partial_fit(batches[1]).state()
    np.testing.assert_array_equal(state.average_coef[1], state.coef[1])
    assert (state.average_coef[0] != state.coef[0]).any()


@pytest.mark.parametrize("options", [CASES["elasticnet, adaptive, averaged"], {"tol": 0.1}])
def test_fit__threads_change_nothing(options):
    batches, _, _, ours_only = case(400, 60, 7, "centred")
    options = {"average": True} | options | ours_only
    stop = {"tol": options.pop("tol"), "n_iter_no_change": options.pop("n_iter_no_change", 2)}
    (n_iter, one), (same, three) = (fit(batches, 7, stop, options, n_threads=n) for n in (1, 3))
    assert len(set(n_iter)) > 1, "the case must stop classes at different epochs"
    np.testing.assert_array_equal(n_iter, same)
    np.testing.assert_array_equal(one.coef, three.coef)
    np.testing.assert_array_equal(one.average_coef, three.average_coef)
    np.testing.assert_array_equal(one.average_intercept, three.average_intercept)


def test_fit__then_partial_fit():
    """From the state after fit, partial_fit goes on as scikit-learn's, stopped classes too."""
    batches, Z, codes, ours_only = case(400, 60, 4, "centred")
    theirs = SGDClassifier("log_loss", shuffle=False, tol=1e-2, **GENTLE).fit(Z, codes)
    theirs.partial_fit(Z, codes)
    _, state = fit(batches, 4, {"tol": 1e-2}, GENTLE | ours_only, max_iter=99)
    with Threads(2) as threads:
        solver = SGD(
            4, schedule=Schedule(**GENTLE), dtype=float, threads=threads, state=state, **ours_only
        )
        for batch in batches:
            solver.partial_fit(batch)
        state = solver.state()
    assert relative(state.coef, theirs.coef_) < 1e-9
    assert state.t.tolist() == [theirs.t_] * len(state.t)


def one_class(values, tol, n_iter_no_change, eta):
    """scikit-learn's rule for one class: its step after each of its epochs, and if it stopped."""
    best, waited, etas = -np.inf, 0, []
    for value in values:
        waited = waited + 1 if tol is not None and value < best + tol else 0
        best = max(best, value)
        stops = waited >= n_iter_no_change and eta <= 1e-6
        if waited >= n_iter_no_change and not stops:
            eta, waited = eta / 5, 0
        etas.append(eta)
        if stops:
            return etas, True
    return etas, False


@given(
    values=st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=1, max_size=25),
    tol=st.sampled_from([None, 0.0, 1.0, 2.5]),
    n_iter_no_change=st.integers(1, 3),
    eta0=st.sampled_from([None, 1e-6, 1e-4]),
)
def test_stopping__by_column(values, tol, n_iter_no_change, eta0):
    values = np.array(values, float)
    stopping = Stopping(3, tol=tol, n_iter_no_change=n_iter_no_change, eta0=eta0)
    eta, frozen = np.full(3, eta0 or 0.0), np.zeros(3, bool)
    expected = [one_class(column, tol, n_iter_no_change, eta0 or 0.0) for column in values.T]
    for epoch, row in enumerate(values):
        slower, stopped = stopping.update(np.where(frozen, np.nan, row))
        eta[slower] /= 5
        frozen[stopped] = True
        for k, (etas, stops) in enumerate(expected):
            assert frozen[k] == (stops and epoch + 1 >= len(etas))
            assert eta[k] == etas[min(epoch, len(etas) - 1)]
    np.testing.assert_array_equal(stopping.n_iter_, [len(etas) for etas, _ in expected])
    np.testing.assert_array_equal(stopping.active, ~frozen)
