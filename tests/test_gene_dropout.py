"""Batches that lack some genes, against scikit-learn on cells where z is 0 for them."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import SGDClassifier

from streamtrain.sampling import dropped_genes
from streamtrain.scaling import Scaler
from streamtrain.solvers.schedule import SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads
from tests.test_scaling import rows_of
from tests.test_sgd import expression, relative, scaled_dense
from tests.test_sgd_taken import FIELDS

N_OBS, N_VARS, SIZE = 600, 60, 150
GENTLE = {"learning_rate": "constant", "eta0": 1e-3}


class Case:
    """Cells in batches that each lack their own genes; `how` is as in `test_sgd.case`."""

    def __init__(self, n_classes, how, *, apart=True, share=0.4, seed=0):
        X, self.codes = expression(N_OBS, N_VARS, n_classes)
        with_mean, self.n_classes = how == "centred", n_classes
        moments, self.Z = scaled_dense(X, with_mean)
        self.scaler = Scaler(
            moments.mean_, moments.scale_, np.arange(N_VARS, dtype=np.int32), with_mean=with_mean,
            dtype=float, share=moments.share, apart=apart,
        )  # fmt: skip
        starts = range(0, N_OBS, SIZE)
        self.cuts = [slice(start, start + SIZE) for start in starts]
        self.stored = [rows_of(X[s]).with_codes(self.codes[s]) for s in self.cuts]
        self.dropped = [dropped_genes(N_VARS, share, seed, b) for b in range(len(starts))]
        self.lacking = self.Z.copy()
        for s, mask in zip(self.cuts, self.dropped, strict=True):
            self.lacking[s, mask] = 0
        if how == "sparse":
            self.lacking = sp.csr_matrix(self.lacking)
            self.lacking.eliminate_zeros()
        self.options = {
            "sparse": how == "sparse",
            "intercept_rate": SPARSE_INTERCEPT_RATE if how == "sparse" else 1.0,
        }

    def solver(self, threads, schedule, **options):
        return SGD(
            self.n_classes, self.scaler.shift, schedule, dtype=float, threads=threads,
            **self.options, **options,
        )  # fmt: skip

    def batches(self):
        for rows, mask in zip(self.stored, self.dropped, strict=True):
            yield self.scaler.without(mask)(rows)


PENALTIES = {
    "l2": {"penalty": "l2", "alpha": 1e-2},
    "none": {"penalty": None},
    "l1": {"penalty": "l1", "alpha": 0.01},
}


# 1e-9: both sum in float64, in another order.
@pytest.mark.parametrize(
    ("name", "average"),
    # Averaged, scikit-learn loses the intercept between calls, and in one L1 pays over batches.
    [*itertools.product(PENALTIES, [False]), *itertools.product(["l2", "none"], [True, 200])],
)
@pytest.mark.parametrize("how", ["centred", "dense", "sparse"])
@pytest.mark.parametrize(("n_classes", "apart"), [(2, True), (2, False), (7, True), (7, False)])
def test_dropout__equals_sklearn(n_classes, apart, how, name, average):
    case = Case(n_classes, how, apart=apart and name != "l1")
    options = GENTLE | PENALTIES[name]
    theirs = SGDClassifier("log_loss", shuffle=False, average=average, **options)
    for s in [slice(None)] if average else case.cuts:
        theirs.partial_fit(case.lacking[s], case.codes[s], classes=range(n_classes))
    with Threads(2) as threads:
        solver = case.solver(threads, Schedule(**options), average=average)
        for batch in case.batches():
            solver.partial_fit(batch)
        state = solver.state()
        # Other cells, which lack nothing, are scored by the weights of all genes.
        whole = case.scaler(case.stored[0])
        np.testing.assert_allclose(
            solver.scores(whole), case.Z[:SIZE] @ state.coef.T + state.intercept, atol=1e-10
        )
        lacking = case.scaler.without(case.dropped[1])(case.stored[1])
        z = np.where(case.dropped[1], 0, case.Z[case.cuts[1]])
        np.testing.assert_allclose(
            solver.scores(lacking), z @ state.coef.T + state.intercept, atol=1e-10
        )
    assert relative(state.average_coef if average else state.coef, theirs.coef_) < 1e-9
    intercept = state.average_intercept if average else state.intercept
    assert relative(intercept, theirs.intercept_) < 1e-9


@pytest.mark.parametrize("rate", ["pa1", "pa2"])
def test_dropout__lengths_are_of_the_genes_that_are_left(rate):
    case = Case(3, "centred")
    options = {"learning_rate": rate, "eta0": 0.01}
    theirs = SGDClassifier("hinge", shuffle=False, **options)
    theirs.partial_fit(case.lacking, case.codes, classes=range(3))
    with Threads(1) as threads:
        solver = case.solver(threads, Schedule(**options), loss="hinge")
        for batch in case.batches():
            solver.partial_fit(batch)
    assert relative(solver.state().coef, theirs.coef_) < 1e-9


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())
def test_dropout__columns_that_stop(penalty):
    """A frozen column is scored as any other, whatever its last batch lacked."""
    case = Case(4, "centred", apart=penalty["penalty"] != "l1")
    with Threads(1) as threads:
        solver = case.solver(threads, Schedule(**(GENTLE | penalty)), epochs=True)
        for batch in case.batches():
            solver.partial_fit(batch)
            solver.freeze(np.arange(1))
        coef = solver.state().coef
        found = solver.scores(case.scaler(case.stored[0]))
    np.testing.assert_allclose(found, case.Z[:SIZE] @ coef.T + solver.state().intercept, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout__of_nothing_changes_no_bit(dtype):
    case, states = Case(7, "centred", share=0.0), []
    assert not np.any(case.dropped)
    case.scaler.dtype = np.dtype(dtype)
    for batches in (case.batches(), map(case.scaler, case.stored)):
        with Threads(1) as threads:
            solver = SGD(
                7, case.scaler.shift, Schedule(), average=True, dtype=dtype, threads=threads
            )
            for batch in batches:
                solver.partial_fit(batch)
            states.append(solver.state())
    for name in FIELDS:
        np.testing.assert_array_equal(*(getattr(state, name) for state in states))


@pytest.mark.parametrize("n_classes", [2, 5])
def test_dropout__of_cells_that_each_model_takes(n_classes):
    """Within 1e-9 of the model alone on its own cells: blocks end elsewhere."""
    case = Case(n_classes, "centred")
    taken = np.random.default_rng(0).random((2, N_OBS)) < 0.6
    with Threads(2) as threads:
        both = case.solver(threads, [Schedule(**GENTLE)] * 2, average=True)
        for s, batch in zip(case.cuts, case.batches(), strict=True):
            both.partial_fit(batch, taken=taken[:, s])
        for model, own in enumerate(taken):
            alone = case.solver(threads, Schedule(**GENTLE), average=True)
            for s, rows, mask in zip(case.cuts, case.stored, case.dropped, strict=True):
                alone.partial_fit(case.scaler.without(mask)(rows.take(np.flatnonzero(own[s]))))
            found, expected = both.state(model), alone.state()
            assert relative(found.coef, expected.coef) < 1e-9
            assert relative(found.average_coef, expected.average_coef) < 1e-9
