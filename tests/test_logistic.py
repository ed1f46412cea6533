"""Logistic regression to its optimum, against scikit-learn on the same cells made dense."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from streamtrain.errors import InputError
from streamtrain.kernels import tiles as kernel
from streamtrain.rows import Rows
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import (
    Logistic,
    Penalty,
    TileSums,
    column_classes,
    problem_weights,
)
from streamtrain.threads import Threads
from streamtrain.tiles import Tiles

NAMES = np.array(["a", "b", "c", "d"], dtype=object)


def problem(n_classes=4, n_obs=300, n_genes=25, centred=True, seed=0):
    """Sparse rows x', the shift m, and z = x' - m dense, with classes of unequal size."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(
        n_classes, n_obs, p=np.arange(1, n_classes + 1) / (n_classes * (n_classes + 1) / 2)
    )
    codes[:n_classes] = np.arange(n_classes)
    rate = rng.gamma(1.0, 1.0, (n_classes, n_genes))
    dense = rng.poisson(rate[codes]) / 1.7
    X = sp.csr_matrix(dense)
    shift = dense.mean(axis=0) if centred else np.zeros(n_genes)
    rows = Rows(X.data, X.indices, X.indptr.astype(np.int64), n_genes, codes.astype(np.int32))
    return rows, shift, dense - shift


def solve(rows, shift, n_classes, *, spec=None, n_jobs=1, tiles_memory=1e9, sums=None, **options):
    counts = np.bincount(rows.codes, minlength=n_classes)
    weights = problem_weights(spec, NAMES[:n_classes], counts)
    options = {
        "penalty": Penalty(), "tol": 1e-8, "max_iter": 5000, "fit_intercept": True,
    } | options  # fmt: skip
    with Threads(n_jobs) as threads, Tiles(rows.n_vars, np.float64, tiles_memory, None) as tiles:
        for start in range(0, rows.n_obs, 130):
            tiles.append(rows.slice(start, min(start + 130, rows.n_obs)))
        solver = Logistic(shift, weights, counts, threads=threads, **options)
        make = sums or (lambda tiles: TileSums(tiles, weights, threads))
        return solver.fit(make(tiles), lambda *_: None)


def sklearns(Z, codes, n_classes, spec=None, **options):
    """One scikit-learn classifier for each column, to a much smaller tolerance than its default."""
    options = {"tol": 1e-9, "max_iter": 20_000} | options
    weight = None
    if isinstance(spec, dict):
        weight = np.array([spec.get(n, 1.0) for n in NAMES[:n_classes]])[codes]
    found = []
    for k in column_classes(n_classes):
        balanced = "balanced" if spec == "balanced" else None
        model = LogisticRegression(class_weight=balanced, **options)
        found.append(model.fit(Z, codes == k, sample_weight=weight))
    return np.array([m.coef_[0] for m in found]), np.array([m.intercept_[0] for m in found])


# Ours is within 1e-10 of the minimum relatively, theirs about; coefficients differ by its root.
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("options", [{}, {"C": 0.05}, {"fit_intercept": False}], ids=str)
def test_logistic__reaches_scikit_learns_optimum(n_classes, centred, options):
    rows, shift, Z = problem(n_classes, centred=centred, n_obs=900)
    C, intercept = options.get("C", 1.0), options.get("fit_intercept", True)
    ours = solve(rows, shift, n_classes, penalty=Penalty(C), fit_intercept=intercept)
    coef, bias = sklearns(Z, rows.codes, n_classes, **options)
    np.testing.assert_allclose(ours.coef, coef, rtol=0, atol=1e-4 * np.abs(coef).max())
    np.testing.assert_allclose(ours.intercept, bias, rtol=0, atol=1e-4 * np.abs(coef).max())
    assert ours.certificate["converged"].all()


def test_logistic__without_penalty():
    """Few genes and much noise: a minimum exists. No bound can be given without a penalty."""
    rows, shift, Z = problem(n_obs=1500, n_genes=3)
    ours = solve(rows, shift, 4, penalty=Penalty(np.inf), tol=1e-9)
    coef, _ = sklearns(Z, rows.codes, 4, C=np.inf)
    np.testing.assert_allclose(ours.coef, coef, rtol=0, atol=1e-4 * np.abs(coef).max())
    assert np.isinf(ours.certificate["suboptimality"]).all()


@pytest.mark.parametrize("spec", ["balanced", {"a": 5.0, "c": 0.5}], ids=str)
@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic__weights_classes_as_scikit_learn(spec, n_classes):
    rows, shift, Z = problem(n_classes)
    spec = (
        spec if isinstance(spec, str) else {n: w for n, w in spec.items() if n in NAMES[:n_classes]}
    )
    ours = solve(rows, shift, n_classes, spec=spec)
    coef, bias = sklearns(Z, rows.codes, n_classes, spec=spec)
    np.testing.assert_allclose(ours.coef, coef, rtol=0, atol=1e-4 * np.abs(coef).max())
    np.testing.assert_allclose(ours.intercept, bias, rtol=0, atol=1e-4 * np.abs(coef).max())


@pytest.mark.parametrize("scaling", [1.0, 3.0])
def test_logistic__liblinear_penalises_the_intercept(scaling):
    rows, shift, Z = problem()
    ours = solve(rows, shift, 4, penalty=Penalty(0.1, intercept_scaling=scaling))
    coef, bias = sklearns(Z, rows.codes, 4, solver="liblinear", C=0.1, intercept_scaling=scaling)
    np.testing.assert_allclose(ours.coef, coef, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.intercept, bias, rtol=0, atol=1e-4)
    free = solve(rows, shift, 4, penalty=Penalty(0.1))
    assert np.abs(free.intercept - ours.intercept).max() > 0.01


@pytest.mark.parametrize(("ratio", "solver"), [(1.0, "saga"), (0.4, "saga"), (1.0, "liblinear")])
def test_logistic__l1(ratio, solver):
    rows, shift, Z = problem()
    scaling = 1.0 if solver == "liblinear" else None
    ours = solve(rows, shift, 4, penalty=Penalty(0.1, ratio, scaling), tol=1e-7)
    options = {"C": 0.1, "solver": solver, "l1_ratio": ratio, "random_state": 0}
    coef, bias = sklearns(Z, rows.codes, 4, **options)
    np.testing.assert_allclose(ours.coef, coef, rtol=0, atol=1e-3 * np.abs(coef).max())
    np.testing.assert_allclose(ours.intercept, bias, rtol=0, atol=1e-3)
    assert 0 < np.count_nonzero(ours.coef == 0) < ours.coef.size


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("C", [1e-5, 1e-3, 1.0, 10.0])
@pytest.mark.parametrize("scaling", [None, 1.0, 100.0])
def test_certificate__bounds_the_distance_to_the_minimum(C, scaling, centred):
    """Also where the intercept, which bends the objective least of all, is what is left."""
    rows, shift, _ = problem(centred=centred)
    penalty = Penalty(C, intercept_scaling=scaling)
    best = solve(rows, shift, 4, penalty=penalty, tol=1e-10).certificate["objective"]
    for tol in (0.1, 1e-2, 1e-4, 1e-6):
        found = solve(rows, shift, 4, penalty=penalty, tol=tol).certificate
        assert found["converged"].all()
        gap = found["objective"] - best
        assert (gap <= found["suboptimality"] + 1e-14).all()  # 1e-14: rounding of an objective
        assert (found["suboptimality"] <= 0.01 * tol * found["objective"]).all()
        assert (found["n_passes"] > found["n_iter"]).all()


def test_certificate__ends_where_the_intercept_cannot_be_told_from_noise():
    rows, shift, _ = problem()
    weights = problem_weights(None, NAMES, np.bincount(rows.codes))
    signs = itertools.cycle((1.0, -1.0))

    def noisy(tiles):
        exact = TileSums(tiles, weights, threads)

        def sums(*given):
            loss, slope, total, bend = exact(*given)
            return loss, slope, total + 1e-6 * rows.n_obs * next(signs), bend

        return sums

    with Threads(1) as threads:
        found = solve(rows, shift, 4, tol=1e-2, sums=noisy)
    assert (found.certificate["n_passes"] < 200).all()


def test_certificate__objective_is_that_of_the_weights():
    rows, shift, Z = problem()
    found = solve(rows, shift, 4, penalty=Penalty(0.3, 0.5), tol=1e-4)
    for k in range(4):
        score, y = Z @ found.coef[k] + found.intercept[k], rows.codes == k
        loss = np.logaddexp(0, score) - y * score
        w, n = found.coef[k], len(y)
        penalty = (0.25 * w @ w + 0.5 * np.abs(w).sum()) / (0.3 * n)
        assert found.certificate["objective"][k] == pytest.approx(loss.mean() + penalty, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_logistic__is_the_same_to_the_bit(ratio):
    """For any number of threads, any budget of solver and tiles."""
    rows, shift, _ = problem()
    found = [
        solve(
            rows,
            shift,
            4,
            penalty=Penalty(1.0, ratio),
            tol=1e-4,
            n_jobs=n,
            memory=m,
            tiles_memory=t,
        )
        for n, m, t in [
            (1, np.inf, 1e9),
            (3, np.inf, 0),
            (2, 0, 10_000),
            (2, 3 * Logistic.nbytes(25, 600), 0),
        ]
    ]
    for one, other in itertools.pairwise(found):
        np.testing.assert_array_equal(one.coef, other.coef)
        np.testing.assert_array_equal(one.intercept, other.intercept)


def test_logistic__starts_where_it_is_told():
    rows, shift, _ = problem()
    cold = solve(rows, shift, 4, tol=1e-6)
    warm = solve(rows, shift, 4, tol=1e-6, start=State(cold.coef, cold.intercept))
    assert (warm.certificate["n_passes"] == 1).all()
    np.testing.assert_array_equal(warm.coef, cold.coef)


def test_logistic__says_which_classes_did_not_converge():
    rows, shift, _ = problem()
    found = solve(rows, shift, 4, max_iter=3)
    assert not found.certificate["converged"].any()
    assert (found.certificate["n_iter"] == 3).all()


def test_problem_weights__unknown_type():
    with pytest.raises(InputError, match="class_weight names 'z', which is no cell type"):
        problem_weights({"z": 1.0}, NAMES, np.ones(4, np.int64))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_kernel__sums_as_plain_numpy(n_classes):
    rows, _, _ = problem(n_classes)
    X = np.zeros((rows.n_obs, rows.n_vars))
    X[np.repeat(np.arange(rows.n_obs), np.diff(rows.indptr)), rows.indices] = rows.data
    rng = np.random.default_rng(3)
    columns = column_classes(n_classes)
    W, constant = 3 * rng.normal(size=(rows.n_vars, len(columns))), rng.normal(size=len(columns))
    constant[0] = 800.0  # exp would overflow
    weights = rng.random((n_classes, len(columns)))
    score, y = X @ W + constant, rows.codes[:, None] == columns
    loss = (weights[rows.codes] * (np.logaddexp(0, score) - y * score)).sum(axis=0)
    residual = weights[rows.codes] * (expit(score) - y)
    bend = (weights[rows.codes] * expit(score) * expit(-score)).sum(axis=0)
    with Threads(2) as threads, Tiles(rows.n_vars, np.float64, 1e9, None) as tiles:
        tiles.append(rows)
        seen = []
        found = TileSums(tiles, weights, threads)(np.arange(len(columns)), W, constant, seen.append)
    # 1e-12: float64 sums in another order.
    plain = loss, X.T @ residual, residual.sum(axis=0), bend
    for ours, numpys in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, numpys, rtol=1e-12, atol=1e-12)
    assert sum(seen) == rows.n_obs


def test_by_gene__orders_by_gene_then_cell():
    rows, _, _ = problem(n_obs=7, n_genes=5)
    first, n = np.empty(6, np.int64), len(rows.data)
    counts, genes = np.empty(5, np.int32), np.empty(5, np.int32)
    cells, values = np.empty(n, np.uint8), np.empty(n)
    found = kernel.by_gene(
        rows.data, rows.indices, rows.indptr, 0, 7, 5, first, counts, genes, cells, values
    )
    X = sp.csr_matrix((rows.data, rows.indices, rows.indptr), (7, 5)).tocsc()
    assert genes[:found].tolist() == np.flatnonzero(np.diff(X.indptr)).tolist()
    assert counts[:found].tolist() == np.diff(X.indptr)[genes[:found]].tolist()
    np.testing.assert_array_equal(cells, X.indices)
    np.testing.assert_array_equal(values, X.data)
