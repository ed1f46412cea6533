"""The SGD solver against scikit-learn's dense partial_fit on the same cells in the same order."""

import numpy as np
import pytest
import scipy.sparse as sp
from numba.core.errors import TypingError
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

from streamtrain.errors import InputError
from streamtrain.kernels import losses, sgd_dense
from streamtrain.kernels import sgd as kernel
from streamtrain.kernels.lanes import lanes_of
from streamtrain.rows import Rows
from streamtrain.scaling import Scaled, Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import LOSSES, SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads


def expression(n_obs, n_vars, n_classes, seed=0):
    """Log-normalised counts in which each class over-expresses genes of its own."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n_obs).astype(np.int32)
    rate = rng.gamma(0.3, 2.0, n_vars) * np.exp(rng.normal(0, 0.7, (n_classes, n_vars)))[codes]
    counts = rng.poisson(rate).astype(np.float64)
    counts[:, 0] = rng.integers(1, 4, n_obs)  # no empty cell
    counts[:, counts.sum(0) == 0] = np.eye(n_obs, 1)  # every gene is expressed somewhere
    counts[np.arange(n_classes), 1 + np.arange(n_classes)] += 500  # scaled values above 10
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), codes


def scaled_dense(X, with_mean):
    scaler = StandardScaler(with_mean=with_mean).fit(X)
    scaler.share = (X != 0).mean(axis=0)
    Z = scaler.transform(X)
    assert (Z > 10).any(), "the case must exercise the clip"
    Z[Z > 10] = 10
    return scaler, Z


def as_batch(X, codes, scaler, with_mean, dtype, apart=False):
    csr = sp.csr_matrix(X)
    rows = Rows(csr.data, csr.indices, csr.indptr.astype(np.int64), X.shape[1], codes)
    every = np.arange(X.shape[1], dtype=np.int32)
    return Scaler(
        scaler.mean_, scaler.scale_, every, with_mean=with_mean, dtype=dtype, share=scaler.share,
        apart=apart,
    )(rows)  # fmt: skip


def take(batch, index):
    """Some cells of a batch."""
    rows = batch.rows.take(index)
    return Scaled(rows, batch.dots[index], batch.dense[index], batch.dense_at, batch.shift)


def shift_of(scaler):
    """m of z = x' - m, 0 for the genes that most cells express and Scaler centres outright."""
    return np.where(scaler.share > 0.5, 0, scaler.mean_ / scaler.scale_)


def ours(batches, n_classes, shift, *, n_threads=1, state=None, dtype=np.float64, **options):
    fields = Schedule.__dataclass_fields__
    schedule = Schedule(**{k: options.pop(k) for k in fields if k in options})
    with Threads(n_threads) as threads:
        solver = SGD(
            n_classes, shift, schedule, dtype=dtype, threads=threads,
            state=state, **options,
        )  # fmt: skip
        for batch in batches:
            solver.partial_fit(batch)
        return solver.state()


def case(n_obs, n_vars, n_classes, how, size=200, apart=False):
    """Scaled batches of `size` cells, all dense or sparse for scikit-learn, codes, SGD's options.

    `how` is "centred", "dense" (without centring) or "sparse" (likewise, a sparse matrix). Genes
    that most cells express come `apart` or not.
    """
    X, codes = expression(n_obs, n_vars, n_classes)
    scaler, Z = scaled_dense(X, how == "centred")
    slices = [slice(start, start + size) for start in range(0, n_obs, size)]
    batches = [
        as_batch(X[s], codes[s], scaler, how == "centred", np.float64, apart) for s in slices
    ]
    options = {"shift": shift_of(scaler) if how == "centred" else np.zeros(n_vars)}
    if how == "sparse":
        Z = sp.csr_matrix(Z)
        options |= {"sparse": True, "intercept_rate": SPARSE_INTERCEPT_RATE}
    return batches, Z, codes, options


def relative(a, b):
    return np.linalg.norm(np.ravel(a) - np.ravel(b)) / np.linalg.norm(b)


OPTIONS = {
    "celltypist's defaults": {},
    "averaged": {"average": True},
    "averaged from step 700": {"average": 700},
    "constant step": {"learning_rate": "constant", "eta0": 0.001},
    "constant step, averaged": {"learning_rate": "constant", "eta0": 0.001, "average": True},
    "inverse scaling": {"learning_rate": "invscaling", "eta0": 0.01},
    "strong penalty": {"alpha": 0.1},
    "a decay of zero at the first step": {"alpha": 1.0},
}


# 1e-6: both sum in float64, in another order; saturated steps magnify the difference, 3e-7 seen.
# 19 classes take three stripes, of which the last has idle columns.
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize(("n_classes", "apart"), [(2, True), (2, False), (7, False), (19, True)])
def test_sgd__equals_sklearn(n_classes, apart, with_mean, options):
    X, codes = expression(1500, 300, n_classes)
    scaler, Z = scaled_dense(X, with_mean)
    theirs = SGDClassifier(loss="log_loss", shuffle=False, **options)
    shift = shift_of(scaler) if with_mean else np.zeros(300)
    slices = [slice(start, start + 400) for start in range(0, 1500, 400)]
    # Averaging, scikit-learn 1.9 forgets the intercept's last value from one call to the next, so
    # it gets all cells in one call; without shuffling the iterates are the same.
    for s in [slice(None)] if "average" in options else slices:
        theirs.partial_fit(Z[s], codes[s], classes=np.arange(n_classes))
    batches = [as_batch(X[s], codes[s], scaler, with_mean, np.float64, apart) for s in slices]
    assert batches[0].dense.any() == apart
    state = ours(batches, n_classes, shift, **options)
    averaged = state.average_coef is not None
    assert averaged == bool(options.get("average"))
    coef = state.average_coef if averaged else state.coef
    intercept = state.average_intercept if averaged else state.intercept
    assert relative(coef, theirs.coef_) < 1e-6
    assert relative(intercept, theirs.intercept_) < 1e-6
    assert set(state.t) == {theirs.t_}
    if averaged:
        assert relative(state.coef, theirs._standard_coef) < 1e-6


def test_sgd__sparse_input_without_centring_slows_the_intercept():
    X, codes = expression(800, 200, 3)
    scaler, Z = scaled_dense(X, with_mean=False)
    theirs = SGDClassifier(loss="log_loss", shuffle=False)
    theirs.partial_fit(sp.csr_matrix(Z), codes, classes=np.arange(3))
    batch = as_batch(X, codes, scaler, False, np.float64)
    state = ours([batch], 3, np.zeros(200), intercept_rate=SPARSE_INTERCEPT_RATE)
    assert relative(state.coef, theirs.coef_) < 1e-6
    assert relative(state.intercept, theirs.intercept_) < 1e-6


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_sgd__continues_from_its_state(n_classes, average):
    X, codes = expression(1000, 150, n_classes)
    scaler, Z = scaled_dense(X, True)
    shift = shift_of(scaler)
    theirs = SGDClassifier(loss="log_loss", shuffle=False, average=average)
    theirs.partial_fit(Z, codes, classes=np.arange(n_classes))
    state = None
    for s in (slice(0, 300), slice(300, 1000)):
        batch = as_batch(X[s], codes[s], scaler, True, np.float64)
        state = ours([batch], n_classes, shift, average=average, state=state)
    coef = state.average_coef if average else state.coef
    intercept = state.average_intercept if average else state.intercept
    assert relative(coef, theirs.coef_) < 1e-6
    assert relative(intercept, theirs.intercept_) < 1e-6
    assert set(state.t) == {theirs.t_} == {1001}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sgd__threads_change_nothing(dtype):
    X, codes = expression(500, 120, 40)
    scaler, _ = scaled_dense(X, True)
    batch = as_batch(X, codes, scaler, True, dtype, apart=True)
    shift = shift_of(scaler)
    one, three = (ours([batch], 40, shift, n_threads=n, dtype=dtype, average=True) for n in (1, 3))
    np.testing.assert_array_equal(one.coef, three.coef)
    np.testing.assert_array_equal(one.average_coef, three.average_coef)
    np.testing.assert_array_equal(one.intercept, three.intercept)


@pytest.mark.parametrize("apart", [True, False])
def test_sgd__long_decay_folds(apart):
    """A decay that falls below the fold's threshold leaves the iterates as they are."""
    X, codes = expression(1200, 100, 3)
    scaler, Z = scaled_dense(X, True)
    options = {"learning_rate": "constant", "eta0": 0.01, "alpha": 3.0}  # 0.97 ** 1200 = 1e-16
    theirs = SGDClassifier(loss="log_loss", shuffle=False, average=True, **options)
    theirs.partial_fit(Z, codes, classes=np.arange(3))
    batch = as_batch(X, codes, scaler, True, np.float64, apart)
    state = ours([batch], 3, shift_of(scaler), average=True, **options)
    assert relative(state.coef, theirs._standard_coef) < 1e-6
    assert relative(state.average_coef, theirs.coef_) < 1e-6


@pytest.mark.parametrize("apart", [True, False])
def test_sgd__float32_is_near_float64(apart):
    """Within 1e-4 after 500 gentle steps; float32 rounds each step by 6e-8 of the weights."""
    X, codes = expression(500, 200, 4)
    scaler, _ = scaled_dense(X, True)
    shift = shift_of(scaler)
    options = {"learning_rate": "constant", "eta0": 0.001}
    exact, short = (
        ours([as_batch(X, codes, scaler, True, t, apart)], 4, shift, dtype=t, **options)
        for t in (np.float64, np.float32)
    )
    assert short.coef.dtype == np.float32
    assert relative(short.coef, exact.coef) < 1e-4


def test_sgd__averages_keep_their_digits_in_float32():
    """Within 1e-3 where weights decay by a tenth a step; a sum that follows the decay lost 2e-2."""
    X, codes = expression(1000, 60, 2)
    scaler, _ = scaled_dense(X, True)
    options = {"learning_rate": "constant", "eta0": 0.01, "alpha": 10.0, "average": True}
    exact, short = (
        ours([as_batch(X, codes, scaler, True, t)], 2, shift_of(scaler), dtype=t, **options)
        for t in (np.float64, np.float32)
    )
    assert relative(short.average_coef, exact.average_coef) < 1e-3


def test_sgd__sample_weights_of_other_cells():
    batches, _, _, options = case(400, 60, 3, "centred", 50)
    with Threads(1) as threads, pytest.raises(ValueError, match="50 cells need as many weights"):
        SGD(3, schedule=Schedule(), threads=threads, **options).partial_fit(batches[0], np.ones(3))


def test_lanes__refuse_what_is_not_contiguous():
    """They know no strides, and would read other numbers."""
    with pytest.raises(TypingError, match="lanes are of C-contiguous arrays"):
        sgd_dense.gram(np.ones((4, 6)).T, 0, 6, np.zeros((6, 6)), (0,) * 8)


def test_sgd__overflow():
    X, codes = expression(300, 50, 3)
    scaler, _ = scaled_dense(X, True)
    batch = as_batch(X, codes, scaler, True, np.float64)
    with pytest.raises(InputError, match="the weights overflowed: lower the step"):
        ours([batch], 3, shift_of(scaler), learning_rate="constant", eta0=1e308)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("everywhere", [False, True])
def test_sgd__long_runs_keep_their_digits(everywhere, apart):
    """1e-8 after 3,000 of CellTypist's large steps, also where every gene is far from 0.

    The part of the weights along the mean must be folded in now and then, and genes with a large
    mean be centred outright; without the second the difference is 6e-7 here.
    """
    X, codes = expression(3000, 300, 5)
    X = np.log1p(np.expm1(X) + 20) if everywhere else X
    scaler = StandardScaler().fit(X)
    scaler.share = (X != 0).mean(axis=0)
    Z = np.minimum(scaler.transform(X), 10)
    theirs = SGDClassifier(loss="log_loss", shuffle=False)
    theirs.partial_fit(Z, codes, classes=np.arange(5))
    batch = as_batch(X, codes, scaler, True, np.float64, apart)
    state = ours([batch], 5, shift_of(scaler))
    assert relative(state.coef, theirs.coef_) < 1e-8


PENALTIES = {
    "l2": {"penalty": "l2"},
    "l1": {"penalty": "l1", "alpha": 0.01},
    "elasticnet": {"penalty": "elasticnet", "alpha": 0.1, "l1_ratio": 0.4},
    "none": {"penalty": None},
}


def equals_sklearn(options, n_classes, how, *, size=200, **also):
    """Compare coefficients and intercepts, within 1e-9, and return the state.

    1e-9: steps of these sizes keep the rounding small; CellTypist's, ten times theirs, magnify it,
    scikit-learn's own too (the last bit of one value changes its coefficients by 1e-2).
    """
    apart = options["penalty"] in ("l2", None)
    batches, Z, codes, ours_only = case(400, 60, n_classes, how, size, apart)
    options = {"class_weight": {k: 0.5 + k for k in range(n_classes)}} | options
    theirs = SGDClassifier(shuffle=False, **options)
    for start in range(0, 400, size):
        s = slice(start, start + size)
        theirs.partial_fit(Z[s], codes[s], classes=range(n_classes))
    options["class_weight"] = list(options["class_weight"].values())
    state = ours(batches, n_classes, n_threads=2, **options, **ours_only, **also)
    coef = state.coef if state.average_coef is None else state.average_coef
    intercept = state.intercept if state.average_coef is None else state.average_intercept
    assert relative(coef, theirs.coef_) < 1e-9
    assert relative(intercept, theirs.intercept_) < 1e-9
    return state


@pytest.mark.parametrize("average", [False, 150])
@pytest.mark.parametrize("how", ["centred", "dense", "sparse"])
@pytest.mark.parametrize("options", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("loss", ["log_loss", "hinge", "modified_huber"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_sgd__losses_penalties_and_class_weights_equal_sklearn(
    n_classes, loss, options, how, average
):
    options = options | {"learning_rate": "invscaling", "eta0": 0.01, "average": average}
    # scikit-learn 1.9 loses the intercept between averaged calls: there is one.
    state = equals_sklearn(options | {"loss": loss}, n_classes, how, size=400 if average else 200)
    if options["penalty"] == "l1" and not average:
        assert (state.coef == 0).any(), "the case must exercise the clip at 0"


@pytest.mark.parametrize("how", ["centred", "sparse"])
@pytest.mark.parametrize("average", [False, True])
def test_sgd__l1_remembers_what_was_paid_over_a_large_batch(how, average):
    """Of more cells than are taken at a time."""
    batches, Z, codes, ours_only = case(1500, 60, 3, how, 1500)
    options = PENALTIES["l1"] | {"learning_rate": "constant", "eta0": 1e-3, "average": average}
    theirs = SGDClassifier("log_loss", shuffle=False, **options)
    theirs.partial_fit(Z, codes, classes=range(3))
    state = ours(batches, 3, **options, **ours_only)
    assert relative(state.average_coef if average else state.coef, theirs.coef_) < 1e-9


STEPS = {
    "squared_hinge": {"loss": "squared_hinge"},
    "perceptron": {"loss": "perceptron"},
    "squared_error": {"loss": "squared_error"},
    "huber": {"loss": "huber", "epsilon": 0.3},
    "epsilon_insensitive": {"loss": "epsilon_insensitive", "epsilon": 0.2},
    "squared_epsilon_insensitive": {"loss": "squared_epsilon_insensitive"},
    "pa1": {"loss": "hinge", "learning_rate": "pa1", "eta0": 0.01},
    "pa2": {"loss": "hinge", "learning_rate": "pa2", "eta0": 0.01},
}


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("n_classes", "how"), [(2, "centred"), (3, "dense"), (3, "sparse")])
def test_sgd__other_losses_and_steps_equal_sklearn(n_classes, how, options, penalty):
    options = {"learning_rate": "constant", "eta0": 1e-3} | options
    equals_sklearn(options | {"penalty": penalty}, n_classes, how)


@pytest.mark.parametrize("average", [False, True, 10])
@pytest.mark.parametrize("rate", ["pa1", "pa2"])
def test_sgd__passive_steps_pass_over_empty_cells(rate, average):
    """A cell without entries has no length to divide by; scikit-learn skips it under pa1."""
    X = np.insert(expression(100, 30, 2)[0], np.arange(0, 60, 3), 0, axis=0)
    codes = np.arange(120) % 2
    options = {"loss": "hinge", "learning_rate": rate, "eta0": 0.1, "average": average}
    theirs = SGDClassifier(shuffle=False, **options).partial_fit(
        sp.csr_matrix(X), codes, classes=[0, 1]
    )
    scaler = StandardScaler(with_mean=False).fit(X)
    scaler.mean_, scaler.scale_, scaler.share = np.zeros(30), np.ones(30), np.zeros(30)
    batch = as_batch(X, codes.astype(np.int32), scaler, False, np.float64)
    rate_of = {"sparse": True, "intercept_rate": SPARSE_INTERCEPT_RATE}
    state = ours([batch], 2, np.zeros(30), **options, **rate_of)
    coef, intercept = state.coef, state.intercept
    if average:
        coef, intercept = state.average_coef, state.average_intercept
    assert relative(coef, theirs.coef_) < 1e-9
    np.testing.assert_allclose(intercept, theirs.intercept_, rtol=1e-9)


@pytest.mark.parametrize("how", ["centred", "sparse"])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_sgd__sample_weights_equal_sklearn(n_classes, penalty, how):
    batches, Z, codes, options = case(400, 60, n_classes, how, 400, apart=penalty == "l2")
    weight = np.random.default_rng(1).choice([0, 0.5, 2], 400)
    gentle = {"learning_rate": "constant", "eta0": 1e-3, "penalty": penalty}
    theirs = SGDClassifier("log_loss", shuffle=False, **gentle)
    theirs.partial_fit(Z, codes, classes=range(n_classes), sample_weight=weight)
    with Threads(1) as threads:
        solver = SGD(
            n_classes, schedule=Schedule(**gentle), dtype=float, threads=threads, **options
        )
        state = solver.partial_fit(batches[0], weight).state()
    assert relative(state.coef, theirs.coef_) < 1e-9
    assert relative(state.intercept, theirs.intercept_) < 1e-9


MODELS = [
    Schedule("constant", 1e-2, 1e-3),
    Schedule("optimal", 1e-1),
    Schedule("invscaling", 1e-3, 1e-2, 0.3),
]


@pytest.mark.parametrize("average", [False, 150])
@pytest.mark.parametrize("n_classes", [2, 7])
def test_sgd__models_side_by_side_are_those_trained_alone(n_classes, average):
    """To the bit: the columns of a stripe do not touch. Their class weights differ, too."""
    batches, _, _, options = case(400, 60, n_classes, "centred", apart=True)
    options |= {"average": average, "dtype": float}
    weights = 0.5 + np.arange(3 * n_classes).reshape(3, n_classes) % 5

    def train(schedule, weight):
        with Threads(2) as threads:
            solver = SGD(
                n_classes, schedule=schedule, class_weight=weight, threads=threads, **options
            )
            for batch in batches:
                solver.partial_fit(batch)
            return solver

    together = train(MODELS, weights)
    assert together.n_columns == 3 * len(train(MODELS[0], weights[0]).state().coef)
    for m, schedule in enumerate(MODELS):
        alone, one = train(schedule, weights[m]).state(), together.state(m)
        # One column alone goes gene by gene, and sums in another order.
        exact = {"rtol": 1e-9, "atol": 1e-12} if n_classes == 2 else {"rtol": 0, "atol": 0}
        for name in ("coef", "intercept", "average_coef", "average_intercept", "t", "n_averaged"):
            if getattr(alone, name) is None:
                assert not average
                assert getattr(one, name) is None
            else:
                np.testing.assert_allclose(getattr(one, name), getattr(alone, name), **exact)


def test_sgd__models_share_the_penalty():
    with Threads(1) as threads, pytest.raises(ValueError, match="share the penalty"):
        SGD(3, np.zeros(4), [Schedule(), Schedule(penalty="l1")], threads=threads)


@pytest.mark.parametrize("average", [False, True])
def test_sgd__columns_go_on_from_their_own_steps(average):
    """Half of the columns have taken 200 steps before; each goes on as if it were alone."""
    batches, _, _, options = case(400, 60, 6, "centred", apart=True)
    options |= {"average": average, "dtype": float, "schedule": Schedule()}
    with Threads(2) as threads:
        begun, fresh, both = (SGD(6, threads=threads, **options) for _ in range(3))
        begun.partial_fit(batches[0])
        start = begun.state()
        old = np.arange(6) % 2 == 0
        zero = start.coef * 0
        mixed = State(
            np.where(old[:, None], start.coef, zero),
            np.where(old, start.intercept, 0),
            np.where(old[:, None], start.average_coef, zero) if average else None,
            np.where(old, start.average_intercept, 0) if average else None,
            np.where(old, start.t, 1.0),
            np.where(old, start.n_averaged, 0) if average else None,
        )
        begun.partial_fit(batches[1])
        fresh.partial_fit(batches[1])
        both = SGD(6, threads=threads, state=mixed, **options).partial_fit(batches[1])
        old_alone, new_alone, found = begun.state(), fresh.state(), both.state()
    assert found.t.tolist() == [401, 201] * 3
    for name in ("coef", "intercept") + ("average_coef", "average_intercept") * average:
        expected = np.where(
            old.reshape(-1, *[1] * (getattr(found, name).ndim - 1)),
            getattr(old_alone, name),
            getattr(new_alone, name),
        )
        # An average is stored as a mean and summed anew.
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient__is_the_slope_of_the_loss(loss):
    """Within 1e-6: a central difference of 1e-5, off the kinks, which are at tenths."""
    code = LOSSES[loss]
    for score in np.linspace(-5.05, 5.05, 102):
        for y in (0.0, 1.0):
            up, down = (losses.loss_value(code, 0.3, y, score + h) for h in (1e-5, -1e-5))
            assert abs((up - down) / 2e-5 - losses.gradient(code, 0.3, y, score)) < 1e-6


@pytest.mark.parametrize("loss", ["squared_hinge", "squared_error", "squared_epsilon_insensitive"])
def test_gradient__has_scikit_learns_limit(loss):
    assert losses.gradient(LOSSES[loss], 0.1, 0.0, 1e30) == 1e12
    assert losses.gradient(LOSSES[loss], 0.1, 1.0, -1e30) == -1e12


def test_loss_value__far_scores():
    """Neither overflow nor lost digits."""
    log = LOSSES["log_loss"]
    assert losses.loss_value(log, 0.1, 1.0, -800.0) == 800
    assert losses.loss_value(log, 0.1, 0.0, 800.0) == 800
    assert losses.loss_value(log, 0.1, 0.0, -30.0) == pytest.approx(np.exp(-30), rel=1e-12)
    assert losses.gradient(log, 0.1, 0.0, -800.0) == 0
    assert losses.gradient(log, 0.1, 1.0, -800.0) == -1


@pytest.mark.parametrize(("penalty", "apart"), [("l2", True), ("l2", False), ("l1", False)])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_sgd__scores(n_classes, penalty, apart):
    """Those of the present weights on dense cells; 1e-12, sums in another order."""
    batches, Z, codes, options = case(400, 60, n_classes, "centred", apart=apart)
    schedule = Schedule("constant", penalty=penalty)
    with Threads(2) as threads:
        solver = SGD(
            n_classes, options["shift"], schedule, average=True, dtype=np.float64, threads=threads
        )
        for batch in batches:
            solver.partial_fit(batch)
        found = np.concatenate([solver.scores(batch) for batch in batches])
        correct = sum(solver.n_correct(batch) for batch in batches)
        state = solver.state()
    expected = Z @ state.coef.T + state.intercept
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    positive = np.arange(4) if n_classes == 4 else np.array([1])
    expected = ((expected > 0) == (codes[:, None] == positive)).sum(axis=0)
    np.testing.assert_array_equal(correct, expected)


@pytest.mark.parametrize("loss", ["hinge", "modified_huber"])
def test_sgd__overflow_that_leaves_the_intercept(loss):
    """A loss that is flat at NaN stops moving the intercept, while weights are infinite."""
    batches, _, _, options = case(200, 60, 3, "sparse")
    with pytest.raises(InputError, match="the weights overflowed: lower the step"):
        ours(batches, 3, loss=loss, learning_rate="constant", eta0=1e308, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_obs", "n_genes"), [(1, 1), (3, 40), (9, 7), (66, 2100)])
def test_gram(n_obs, n_genes, dtype):
    """Against NumPy; within the rounding of sums of so many products."""
    Z = np.random.default_rng(0).normal(size=(n_obs + 2, n_genes)).astype(dtype)
    out = np.full((n_obs + 2, n_obs), np.nan, dtype)
    sgd_dense.gram(Z, 1, n_obs + 1, out, (0,) * lanes_of(dtype))
    exact = Z[1 : n_obs + 1].astype(float) @ Z[1 : n_obs + 1].astype(float).T
    below = np.tril(np.ones((n_obs, n_obs), bool), -1)
    error = np.abs(out[1 : n_obs + 1] - exact)[below]
    assert (error <= 4 * n_genes * np.finfo(dtype).eps).all()
    assert np.isnan(out[[0, -1]]).all(), "rows of other blocks stay"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_obs", "n_genes"), [(1, 1), (5, 3), (11, 130)])
def test_dense_scores__and_add(n_obs, n_genes, dtype):
    rng, n = np.random.default_rng(0), lanes_of(dtype)
    Z = rng.normal(size=(n_obs + 3, n_genes)).astype(dtype)
    D, V = (rng.normal(size=(m, n)).astype(dtype) for m in (n_genes, n_obs))
    L = np.full((n_obs + 1, n), np.nan, dtype)
    sgd_dense.dense_scores(Z, 2, 2 + n_obs, D, L, (0,) * n)
    within = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-12}
    np.testing.assert_allclose(L[:n_obs], Z[2 : 2 + n_obs] @ D, **within)
    assert np.isnan(L[n_obs:]).all()
    expected = D + Z[2 : 2 + n_obs].T @ V
    sgd_dense.dense_add(Z, 2, 2 + n_obs, V, D, (0,) * n)
    np.testing.assert_allclose(D, expected, **within)


def test_block_edges():
    """At most four cells; cut where the decay of a group falls too low, but at a block's first."""
    decay = np.ones((2, 12))
    assert kernel.block_edges(decay, 5).tolist() == [0, 5, 10, 12]
    decay[1, 2] = 0  # ends the block before it, and begins the next
    decay[0, 5:8] = 0.05  # the third is one too many
    assert kernel.block_edges(decay, 5).tolist() == [0, 2, 7, 12]
    assert kernel.block_edges(np.zeros((1, 3)), 5).tolist() == [0, 1, 2, 3]
