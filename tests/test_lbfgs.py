"""L-BFGS against minima that are known, and its kernels against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from streamtrain.kernels import lbfgs as kernel
from streamtrain.solvers.lbfgs import LBFGS


def run(fun, x, l1=None, most=900):
    search = LBFGS(x, *fun(x), l1)
    while np.abs(search.slope).max() > 1e-6 and not search.stuck and search.n_eval < most:
        search.tell(*fun(search.trial()))
    return search


def rosenbrock(x):
    """Not convex, and curved: a hard path to (1, 1)."""
    a, b = 1 - x[0], x[1] - x[0] ** 2
    return a**2 + 100 * b**2, np.array([-2 * a - 400 * x[0] * b, 200 * b])


def quadratic(seed, n=30):
    rng = np.random.default_rng(seed)
    M = rng.normal(size=(n, n)) * np.logspace(-1, 0.5, n)
    H, c = M.T @ M + 0.1 * np.eye(n), rng.normal(size=n)
    return H, c, lambda x: (0.5 * x @ H @ x - c @ x, H @ x - c)


def test_lbfgs__finds_the_minimum_of_rosenbrocks_valley():
    search = run(rosenbrock, np.array([-1.2, 1.0]))
    np.testing.assert_allclose(search.x, 1.0, atol=1e-5)
    assert search.n_eval < 60


@pytest.mark.parametrize("seed", range(3))
def test_lbfgs__finds_the_minimum_of_a_quadratic(seed):
    H, c, fun = quadratic(seed)
    search = run(fun, np.zeros(len(c)))
    exact = np.linalg.solve(H, c)
    # The slope is below 1e-6 (6e-6 in norm) and the least eigenvalue 0.1.
    np.testing.assert_allclose(search.x, exact, rtol=0, atol=6e-5)
    assert search.value == pytest.approx(-0.5 * c @ exact, rel=1e-12)


def test_lbfgs__evaluates_about_as_often_as_scipys():
    _, c, fun = quadratic(5)
    ours = run(fun, np.zeros(len(c)))
    options = {"gtol": 1e-6, "ftol": 0, "maxls": 50}
    theirs = minimize(fun, np.zeros(len(c)), jac=True, method="L-BFGS-B", options=options)
    assert ours.n_eval < 1.5 * theirs.nfev


@pytest.mark.parametrize("seed", range(3))
def test_lbfgs__l1_meets_the_optimality_conditions(seed):
    _, c, fun = quadratic(seed)
    l1 = np.full(len(c), 1.0)
    l1[-1] = 0.0
    search = run(fun, np.zeros(len(c)), l1, most=5000)
    slope, zero = fun(search.x)[1], search.x == 0
    assert 1 < zero.sum() < len(c)
    assert (np.abs(slope[zero]) <= l1[zero] + 1e-6).all()
    np.testing.assert_allclose(slope[~zero], -(l1 * np.sign(search.x))[~zero], rtol=0, atol=1e-6)
    assert search.value == pytest.approx(fun(search.x)[0] + l1 @ np.abs(search.x), rel=1e-12)


def test_lbfgs__shortens_steps_into_what_is_not_finite():
    def barrier(x):
        if x[0] <= 0:
            return np.inf, np.array([np.nan])
        return x[0] - np.log(x[0]), np.array([1 - 1 / x[0]])

    assert run(barrier, np.array([30.0])).x[0] == pytest.approx(1.0, abs=1e-6)


def test_lbfgs__is_stuck_where_nothing_falls():
    search = LBFGS(np.ones(3), 0.0, np.ones(3))
    while not search.stuck:
        search.tell(1.0, np.ones(3))  # every other point is worse
        assert search.n_eval < 100
    np.testing.assert_array_equal(search.x, 1.0)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), seed=st.integers(0, 99))
def test_dot__is_the_inner_product(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    # 1e-13: the same products, summed in another order.
    assert kernel.dot(a, b) == pytest.approx(float(a @ b), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(("kept", "oldest"), [(0, 0), (2, 0), (4, 0), (4, 3)])
def test_direction__is_that_of_the_bfgs_matrix(kept, oldest):
    """The two loops against the dense inverse Hessian that BFGS builds from the same pairs."""
    rng = np.random.default_rng(1)
    n, memory = 6, 4
    steps = rng.normal(size=(memory, n))
    changes = steps + 0.3 * rng.normal(size=(memory, n))
    curvature = (steps * changes).sum(axis=1)
    assert (curvature > 0).all()
    slope, out = rng.normal(size=n), np.empty(n)
    kernel.direction(steps, changes, curvature, oldest, kept, slope, out)
    order = [(oldest + j) % memory for j in range(kept)]
    H = np.eye(n)
    if kept:
        y = changes[order[-1]]
        H *= curvature[order[-1]] / (y @ y)
    for r in order:
        V = np.eye(n) - np.outer(changes[r], steps[r]) / curvature[r]
        H = V.T @ H @ V + np.outer(steps[r], steps[r]) / curvature[r]
    np.testing.assert_allclose(out, -H @ slope, rtol=1e-10, atol=1e-12)
