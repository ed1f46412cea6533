"""SGD as a GPU runs it, by NumPy, against the solver of the CPU on the same cells."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.gpu.cells import DeviceScaler
from streamtrain.gpu.device import Device
from streamtrain.gpu.sgd import DeviceSGD
from streamtrain.kernels import blocks as kernel
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler
from streamtrain.solvers import sgd
from streamtrain.solvers.schedule import LOSSES, Schedule
from streamtrain.threads import Threads
from tests.test_sgd import expression, scaled_dense
from tests.test_sgd_taken import assert_near

N_OBS, SIZE = 700, 300
HOST = Device(np)


def problem(n_classes, with_mean=True, dtype=np.float64, n_genes=60, genes=np.uint16):
    """Batches of stored cells and their scaler, with genes that the model has not."""
    X, codes = expression(N_OBS, n_genes, n_classes)
    scaler, _ = scaled_dense(X, with_mean)
    rng = np.random.default_rng(1)
    order = rng.permutation(n_genes + 5)  # places of the source's genes among the model's
    wide = np.hstack([X, rng.random((N_OBS, 5))])[:, order]
    position = np.where(order < n_genes, order, -1).astype(np.int32)
    csr = sp.csr_matrix(wide.astype(dtype))
    rows = Rows(
        csr.data, csr.indices.astype(genes), csr.indptr.astype(np.int64), csr.shape[1], codes
    )
    rule = Scaler(
        scaler.mean_, scaler.scale_, position, with_mean=with_mean, dtype=dtype,
        share=scaler.share, apart=True,
    )  # fmt: skip
    return [rows.slice(i, min(i + SIZE, N_OBS)) for i in range(0, N_OBS, SIZE)], rule


def train(batches, rule, schedules, n_classes, *, device, state=None, taken=None, **options):
    """The solver after all batches."""
    dtype = rule.dtype
    with Threads(1) as threads:
        if device is None:
            scale = rule
            solver = sgd.SGD(
                n_classes, rule.shift, schedules, dtype=dtype, threads=threads, state=state,
                **options,
            )  # fmt: skip
        else:
            scale = DeviceScaler(rule, device)
            solver = DeviceSGD(
                device, n_classes, len(rule.shift), schedules, dtype=dtype, state=state, **options
            )
        first = 0
        for rows in batches:
            part = None if taken is None else taken[:, first : first + rows.n_obs]
            solver.partial_fit(scale(rows), taken=part)
            first += rows.n_obs
        return solver


SCHEDULES = {
    "constant": {"learning_rate": "constant", "eta0": 1e-3},
    "invscaling": {"learning_rate": "invscaling", "eta0": 1e-2, "power_t": 0.3},
    "no penalty": {"learning_rate": "constant", "eta0": 1e-3, "penalty": None},
    "strong": {"learning_rate": "constant", "eta0": 1e-2, "alpha": 30.0},
    "a decay of zero at the first step": {"alpha": 1.0},
}


# 1e-9: sums in another order. The first steps of "optimal" are thousands of times as large, and
# magnify rounding.
@pytest.mark.parametrize("average", [False, True, 150])
@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("n_classes", [2, 7])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_sgd__equals_the_cpu(schedule, n_classes, with_mean, average):
    batches, rule = problem(n_classes, with_mean)
    given = batches, rule, [Schedule(**schedule)], n_classes
    found, expected = (
        train(*given, device=device, average=average).state() for device in (HOST, None)
    )
    assert_near(found, expected, 1e-9)


def test_sgd__celltypists_steps_in_float64():
    batches, rule = problem(7)
    given = batches, rule, [Schedule()], 7
    found, expected = (train(*given, device=d, average=True).state() for d in (HOST, None))
    assert_near(found, expected, 1e-6)


# As the CPU's float32 of float64: 1e-4 of the norm, where steps are small.
@pytest.mark.parametrize("genes", [np.uint16, np.int32, np.int64])
def test_sgd__float32(genes):
    schedules = [Schedule("constant", 1e-2, 1e-3)]
    batches, rule = problem(5, dtype=np.float32, genes=genes)
    found = train(batches, rule, schedules, 5, device=HOST, average=True).state()
    exact = train(*problem(5), schedules, 5, device=None, average=True).state()
    assert found.coef.dtype == np.float32
    for name in ("coef", "average_coef"):
        a, b = getattr(found, name), getattr(exact, name)
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("epochs", [False, True])
def test_sgd__every_loss(loss, epochs):
    batches, rule = problem(4)
    weights = np.array([1.0, 0.5, 2.0, 3.0])
    given = batches, rule, [Schedule("constant", 1e-2, 1e-4)], 4
    options = {"loss": loss, "epochs": epochs, "class_weight": weights, "intercept_rate": 0.3}
    found, expected = (train(*given, device=d, **options) for d in (HOST, None))
    assert_near(found.state(), expected.state(), 1e-9)
    if epochs:
        for a, b in zip(found.end_epoch(), expected.end_epoch(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
            assert (a > 0).all()
        assert (found.end_epoch()[0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shares=st.tuples(*[st.sampled_from([0, 0.02, 0.3, 0.8, 1])] * 3),
    n_classes=st.sampled_from([2, 3, 9]),
    average=st.sampled_from([False, True, 70]),
    rate=st.sampled_from(["constant", "invscaling"]),
)
def test_sgd__models_that_take_some_of_the_cells(seed, shares, n_classes, average, rate):
    batches, rule = problem(n_classes)
    taken = np.random.default_rng(seed).random((3, N_OBS)) < np.array(shares)[:, None]
    schedules = [Schedule(rate, alpha, 0.02) for alpha in (1e-1, 1e-3, 50.0)]
    given = batches, rule, schedules, n_classes
    found, expected = (train(*given, device=d, taken=taken, average=average) for d in (HOST, None))
    for model in range(3):
        assert_near(found.state(model), expected.state(model), 1e-9)


@pytest.mark.parametrize("average", [True, 500])
def test_sgd__freezes_slows_and_goes_on(average):
    batches, rule = problem(6)
    schedules = [Schedule("adaptive", 1e-2, 1e-2), Schedule("adaptive", 1e-1, 1e-2)]
    solvers = []
    for device in (HOST, None):
        options = {"device": device, "average": average}
        solver = train(batches, rule, schedules, 6, **options)
        solver.slow(np.array([3, 8]))
        solver.freeze(np.array([1, 7, 11]))
        scale = rule if device is None else DeviceScaler(rule, device)
        for rows in batches:
            solver.partial_fit(scale(rows))
        solver.freeze(np.arange(6))
        solver.partial_fit(scale(batches[0]))
        np.testing.assert_array_equal(solver.n_correct(scale(batches[1])).shape, (12,))
        solvers.append(solver)
    a, b = solvers
    assert a.t_ == b.t_
    scores = [
        s.scores(scale(batches[1])) for s, scale in ((a, DeviceScaler(rule, HOST)), (b, rule))
    ]
    np.testing.assert_allclose(*scores, rtol=1e-8, atol=1e-8)
    for model in range(2):
        assert_near(a.state(model), b.state(model), 1e-9)
    again = [
        train(batches, rule, schedules[:1], 6, device=d, average=average, state=b.state(0)).state()
        for d in (HOST, None)
    ]
    assert_near(*again, 1e-9)
    a.freeze(np.arange(12))
    before = a.state(1)
    a.partial_fit(DeviceScaler(rule, HOST)(batches[0]))
    np.testing.assert_array_equal(a.state(1).coef, before.coef)


def test_tile__is_the_scaled_cells():
    batches, rule = problem(3)
    cells = DeviceScaler(rule, HOST)(batches[0])
    scaled = rule(batches[0])
    Z = (
        sp.csr_matrix(
            (scaled.rows.data, scaled.rows.indices, scaled.rows.indptr), (SIZE, 60)
        ).toarray()
        - scaled.shift
    )
    Z[:, scaled.dense_at] = scaled.dense
    np.testing.assert_allclose(cells.tile(20, 50), Z[20:50], rtol=1e-12, atol=1e-14)
    assert cells.mean_square() == pytest.approx((Z**2).sum(axis=1).mean(), rel=1e-9)
    assert scaled.mean_square() == pytest.approx(cells.mean_square(), rel=1e-9)
    dropped = np.arange(60) % 3 == 0
    Z[:, dropped] = 0
    without = DeviceScaler(rule, HOST).without(dropped)(batches[0])
    np.testing.assert_allclose(without.tile(0, SIZE), Z, rtol=1e-12, atol=1e-14)


def test_later__is_what_the_steps_of_a_block_come_to():
    rng = np.random.default_rng(0)
    decay, averaged = rng.random((2, 9)), rng.random((2, 9)) < 0.6
    edges = np.array([0, 4, 5, 9])
    after, tail = np.empty((2, 9)), np.empty((2, 9))
    kernel.later(decay, averaged, edges, after, tail)
    for g in range(2):
        for i in range(9):
            end = edges[np.searchsorted(edges, i, side="right")]
            products = [np.prod(decay[g, i + 1 : j + 1]) for j in range(i, end)]
            assert after[g, i] == pytest.approx(products[-1])
            assert tail[g, i] == pytest.approx(np.dot(products, averaged[g, i:end]))


def test_sgd__overflow_is_found():
    batches, rule = problem(3, dtype=np.float32)
    with np.errstate(all="ignore"):
        solver = train(batches, rule, [Schedule("constant", 1e-9, 1e60)], 3, device=HOST)
    with pytest.raises(InputError, match=r"the weights overflowed: lower the step .*eta0=1e\+60"):
        solver.state()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(penalty="l1"), "penalty='l1' visits every gene .* leave out device"),
        (Schedule(penalty="elasticnet"), "penalty='elasticnet' visits"),
        (Schedule("pa1"), "learning_rate='pa1' is for the CPU alone"),
    ],
)
def test_sgd__refuses_what_it_cannot(schedule, message):
    with pytest.raises(InputError, match=message):
        DeviceSGD(HOST, 3, 10, schedule)


def test_sgd__memory_of_the_device():
    with pytest.raises(InputError, match=r"SGD of 400 columns x 30,000 genes takes .* GPU memory"):
        DeviceSGD(Device(np, room=1e8), 400, 30_000, Schedule())
