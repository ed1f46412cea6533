"""Models that take some of a batch's cells, against each trained alone on only its own cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.solvers.schedule import Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads
from tests.test_sgd import case, take

FOLDS, N_OBS, SIZE = 3, 600, 200
FIELDS = ("coef", "intercept", "average_coef", "average_intercept", "t", "n_averaged")


def train(batches, n_classes, schedules, options, taken=None, n_threads=2):
    """The state of each model."""
    with Threads(n_threads) as threads:
        solver = SGD(n_classes, schedule=schedules, dtype=float, threads=threads, **options)
        first = 0
        for batch in batches:
            n = batch.rows.n_obs
            part = None if taken is None else taken[:, first : first + n]
            solver.partial_fit(batch, taken=part)
            first += n
        return [solver.state(model) for model in range(len(schedules))]


def alone(batches, n_classes, schedule, options, own):
    parts = np.split(own, np.cumsum([batch.rows.n_obs for batch in batches])[:-1])
    kept = [take(b, np.flatnonzero(part)) for b, part in zip(batches, parts, strict=True)]
    return train(kept, n_classes, [schedule], options)[0]


def assert_near(found, expected, within):
    """Equal where `within` is 0, as are counts in any case; else within that of the norm."""
    for name in FIELDS:
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is None:
            continue
        assert np.asarray(a).dtype == np.asarray(b).dtype, name
        if within == 0 or name in ("t", "n_averaged"):
            np.testing.assert_array_equal(a, b, name)
        else:
            assert np.linalg.norm(a - b) <= within * np.linalg.norm(b), name


def folds(seed=0):
    """Each model leaves out a fold; the first takes nothing of the second batch."""
    fold = np.random.default_rng(seed).integers(0, FOLDS, N_OBS)
    fold[SIZE : 2 * SIZE][fold[SIZE : 2 * SIZE] == 1] = 0
    fold[SIZE : SIZE + 150] = 0
    taken = fold != np.arange(FOLDS)[:, None]
    taken[0, SIZE : 2 * SIZE] = False
    return taken


STEPS = {
    "optimal": {"learning_rate": "optimal"},
    "constant": {"learning_rate": "constant", "eta0": 1e-3},
    "invscaling": {"learning_rate": "invscaling", "eta0": 1e-2, "power_t": 0.3},
    "no penalty": {"learning_rate": "constant", "eta0": 1e-3, "penalty": None},
    "l1": {"learning_rate": "invscaling", "eta0": 1e-2, "penalty": "l1"},
    "elasticnet": {"learning_rate": "constant", "eta0": 1e-3, "penalty": "elasticnet"},
}


# 1e-9: blocks of cells end at other cells than alone, where sums are rounded and begun anew;
# 1e-6 with the large steps of "optimal", which magnify it. Sparse, a batch is one block, and the
# numbers are the same to the bit; but that one column alone is summed in another order.
@pytest.mark.parametrize("average", [False, True, 150])
@pytest.mark.parametrize(("how", "apart"), [("centred", True), ("centred", False), ("sparse", 0)])
@pytest.mark.parametrize("n_classes", [2, 7])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
def test_taken__folds_and_alphas_are_models_trained_alone(steps, n_classes, how, apart, average):
    l1 = steps.get("penalty") in ("l1", "elasticnet")
    batches, _, _, options = case(N_OBS, 60, n_classes, how, SIZE, apart=apart and not l1)
    options["average"] = average
    schedules = [Schedule(alpha=alpha, **steps) for alpha in (1e-1, 1e-3) for _ in range(FOLDS)]
    taken = np.tile(folds(), (2, 1))
    found = train(batches, n_classes, schedules, options, taken)
    within = 0.0 if how == "sparse" and (n_classes > 2 or l1) else 1e-9
    within = 1e-6 if within and steps["learning_rate"] == "optimal" else within
    for schedule, own, state in zip(schedules, taken, found, strict=True):
        assert state.t.tolist() == [1 + own.sum()] * len(state.t)
        assert_near(state, alone(batches, n_classes, schedule, options, own), within)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shares=st.tuples(*[st.sampled_from([0, 0.02, 0.3, 0.8, 1])] * 3),
    n_classes=st.sampled_from([2, 3, 9]),
    apart=st.booleans(),
    average=st.sampled_from([False, True, 7]),
    rate=st.sampled_from(["constant", "invscaling", "pa1", "pa2"]),
)
def test_taken__any_cells(seed, shares, n_classes, apart, average, rate):
    """Also with an alpha whose decay is 0, which ends a block at each cell that is taken."""
    batches, _, _, options = case(160, 30, n_classes, "centred", 60, apart)
    loss = "hinge" if rate.startswith("pa") else "log_loss"
    options |= {"average": average, "loss": loss}
    taken = np.random.default_rng(seed).random((3, 160)) < np.array(shares)[:, None]
    schedules = [Schedule(rate, alpha, 0.02) for alpha in (1e-1, 1e-3, 50.0)]
    found = train(batches, n_classes, schedules, options, taken)
    for schedule, own, state in zip(schedules, taken, found, strict=True):
        assert_near(state, alone(batches, n_classes, schedule, options, own), 1e-9)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_taken__all_is_none(penalty):
    batches, _, _, options = case(N_OBS, 60, 4, "centred", SIZE, apart=penalty == "l2")
    schedules = [Schedule(penalty=penalty), Schedule(alpha=1e-2, penalty=penalty)]
    options["average"] = True
    every = np.ones((2, N_OBS), bool)
    for a, b in zip(
        train(batches, 4, schedules, options),
        train(batches, 4, schedules, options, every, n_threads=1),
        strict=True,
    ):
        assert_near(a, b, 0)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("average", [False, True])
def test_taken__nothing_leaves_the_weights(penalty, average):
    batches, _, _, options = case(400, 60, 4, "centred", SIZE, apart=penalty == "l2")
    schedule, options["average"] = [Schedule(penalty=penalty)], average
    [before] = train(batches[:1], 4, schedule, options)
    taken = np.arange(400)[None] < SIZE
    [after] = train(batches, 4, schedule, options, taken)
    assert_near(after, before, 0)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_taken__a_batch_of_several_pieces(penalty):
    """The solver takes a thousand cells at a time; L1 remembers what was paid over the batch."""
    batches, _, _, options = case(2500, 30, 3, "sparse", 2500, apart=False)
    taken = np.random.default_rng(0).random((2, 2500)) < 0.5
    schedules = [Schedule("constant", 1e-2, 1e-3, penalty=penalty)] * 2
    options["average"] = 30
    found = train(batches, 3, schedules, options, taken)
    for own, state in zip(taken, found, strict=True):
        within = 1e-9  # pieces end at other cells than alone
        assert_near(state, alone(batches, 3, schedules[0], options, own), within)


@pytest.mark.parametrize(
    ("taken", "epochs"),
    [
        (np.ones((2, 50), bool), False),
        (np.ones((1, 49), bool), False),
        (np.ones((1, 50)), False),
        (np.ones((1, 50), bool), True),
    ],
)
def test_taken__refused(taken, epochs):
    batches, _, _, options = case(400, 60, 3, "centred", 50)
    with Threads(1) as threads, pytest.raises(ValueError, match=r"is bool, \(1, 50\), and not for"):
        SGD(3, schedule=Schedule(), epochs=epochs, threads=threads, **options).partial_fit(
            batches[0], taken=taken
        )
