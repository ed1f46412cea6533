"""The ways to train other than mini-batches: logistic, whole epochs, two rounds, continued."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler

import streamtrain
from streamtrain import InputError
from streamtrain.cells import labelled_cells
from streamtrain.config import Settings
from streamtrain.holdout import hold_out
from streamtrain.rounds import fixed_bytes
from streamtrain.sampling import Plan
from streamtrain.solvers.logistic import Logistic
from streamtrain.sources import open_source
from streamtrain.tiles import Tiles
from tests import atlas, stores
from tests.test_train import equal

QUIET = {"progress": False}
MINI = {"use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 4, "epochs": 2}


def scaled(adata, with_mean=True):
    """celltypist.train's dense matrix, and the codes of its cells."""
    X = adata.X.toarray().astype(np.float64)
    Z = StandardScaler(with_mean=with_mean).fit_transform(X[:, X.sum(axis=0) != 0])
    return np.minimum(Z, 10), pd.Categorical(adata.obs["cell_type"].astype(str)).codes


def close(ours, theirs, tolerance):
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("more", [{}, {"C": 0.1}, {"fit_intercept": False}], ids=str)
def test_logistic__is_the_default_and_celltypists_optimum(n_types, with_mean, more):
    adata = atlas.make(n_types=n_types, dtype=np.float64)
    options = {"dtype": "float64", "tol": 1e-7, "with_mean": with_mean} | more | QUIET
    model = streamtrain.train(adata, "cell_type", **options)
    Z, codes = scaled(adata, with_mean)
    columns = [1] if n_types == 2 else range(n_types)
    options = {"C": 1.0, "tol": 1e-9, "max_iter": 20_000} | more
    theirs = [LogisticRegression(**options).fit(Z, codes == k) for k in columns]
    # Both are within 1e-9 of the minimum, relatively: its root for the weights.
    close(model.coef_, np.array([t.coef_[0] for t in theirs]), 1e-4)
    close(model.intercept_, np.array([t.intercept_[0] for t in theirs]), 1e-4)
    assert model.certificate["converged"].all()


@pytest.mark.parametrize("solver", [None, "lbfgs", "newton-cg", "sag", "saga"])
def test_logistic__solvers_share_one_optimum(solver):
    adata = atlas.make()
    reference = streamtrain.train(adata, "cell_type", **QUIET)
    equal(streamtrain.train(adata, "cell_type", solver=solver, **QUIET), reference)


def test_logistic__liblinears_is_another():
    adata = atlas.make(dtype=np.float64)
    options = {"dtype": "float64", "tol": 1e-7, "solver": "liblinear"}
    model = streamtrain.train(adata, "cell_type", **options, **QUIET)
    Z, codes = scaled(adata)
    options = {"solver": "liblinear", "tol": 1e-9, "max_iter": 20_000}
    theirs = [LogisticRegression(**options).fit(Z, codes == k) for k in range(5)]
    close(model.coef_, np.array([t.coef_[0] for t in theirs]), 1e-4)
    close(model.intercept_, np.array([t.intercept_[0] for t in theirs]), 1e-4)


@pytest.mark.parametrize(
    "more", [{}, {"penalty": "l1"}, {"feature_selection": True, "top_genes": 12}], ids=str
)
def test_logistic__same_model_for_any_budget_threads_and_store(tmp_path, more, monkeypatch):
    adata = atlas.make()
    reference = streamtrain.train(adata, "cell_type", n_jobs=1, **more, **QUIET)
    path = stores.write(adata, tmp_path, "zarr")
    fixed = fixed_bytes(Settings(**more), 120, 5, 600)
    monkeypatch.setattr(sys.modules["streamtrain.first_pass"], "READING_RESERVE", 0)
    for memory, n_jobs in ((fixed + 20 * 10**6, 2), ("1GB", 3)):
        options = more | QUIET | {"memory": memory, "n_jobs": n_jobs}
        equal(streamtrain.train(path, "cell_type", **options), reference)


def test_logistic__same_model_on_scratch_and_with_types_in_turn(monkeypatch):
    adata = atlas.make()
    reference = streamtrain.train(adata, "cell_type", **QUIET)
    asked = []

    class Cramped(Logistic):
        def __init__(self, *given, memory, **options):
            asked.append(memory)
            super().__init__(*given, memory=0, **options)

    monkeypatch.setattr("streamtrain.optimum.Logistic", Cramped)
    monkeypatch.setattr("streamtrain.optimum.Tiles", lambda n, dtype, _, s: Tiles(n, dtype, 0, s))
    equal(streamtrain.train(adata, "cell_type", **QUIET), reference)
    assert len(asked) == 1


def test_logistic__no_penalty_in_either_spelling():
    adata = atlas.make(n_obs=2000)[:, :4]
    options = {"check_expression": False} | QUIET
    equal(
        streamtrain.train(adata, "cell_type", C=np.inf, **options),
        streamtrain.train(adata, "cell_type", penalty=None, **options),
    )


def test_logistic__warns_of_what_did_not_converge():
    with pytest.warns(
        ConvergenceWarning,
        match="5 of 5 cell types did not converge after 2 iterations: raise max_iter, or tol; 'B'",
    ) as seen:
        model = streamtrain.train(atlas.make(), "cell_type", max_iter=2, **QUIET)
    assert seen[0].filename == __file__
    assert not model.certificate["converged"].any()
    assert (model.certificate["n_iter"] == 2).all()


@pytest.mark.parametrize("way", [{}, {"use_SGD": True, "max_iter": 30, "tol": 0.1}], ids=str)
def test_verbose__logs_each_pass_or_epoch(way, caplog):
    caplog.set_level("INFO", "streamtrain")
    streamtrain.train(atlas.make(), "cell_type", verbose=1, **way, **QUIET)
    words = "epoch %d: %d cell types go on" if way else "pass %d: %d of %d cell types done"
    logged = [r.args for r in caplog.records if r.msg == words]
    assert [args[0] for args in logged] == list(range(1, len(logged) + 1))
    assert len(logged) > 1


@pytest.mark.parametrize(
    "more",
    [
        {"max_iter": 3},
        {"max_iter": 3, "class_weight": "balanced", "loss": "modified_huber", "alpha": 0.01},
        {"learning_rate": "constant", "eta0": 0.001, "tol": 1e-2, "n_iter_no_change": 2},
        {"learning_rate": "adaptive", "eta0": 0.001, "tol": 1e-3},
        {"penalty": "l1", "alpha": 0.01, "learning_rate": "constant", "eta0": 0.001},
        {"loss": "hinge", "average": True, "learning_rate": "constant", "eta0": 0.001},
    ],
    ids=str,
)
def test_epochs__are_scikit_learns_fit(more):
    """Cells in stored order (shuffle=False), each class until its objective falls no further."""
    adata = atlas.make(n_obs=300, dtype=np.float64)
    adata.X = adata.X.toarray()
    Z, codes = scaled(stores_csr(adata))
    options = {"shuffle": False, "max_iter": 60} | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = streamtrain.train(
            adata, "cell_type", use_SGD=True, dtype="float64", **options, **QUIET
        )
        theirs = SGDClassifier(**{"loss": "log_loss"} | options).fit(Z, codes)
    # "optimal" begins with large steps that magnify rounding: few epochs of it, and less is asked.
    tolerance = 1e-9 if "eta0" in more else 1e-6
    close(model.coef_, theirs.coef_, tolerance)
    close(model.intercept_, theirs.intercept_, tolerance)


def stores_csr(adata):
    import scipy.sparse as sp

    copy = adata.copy()
    copy.X = sp.csr_matrix(copy.X)
    return copy


def test_epochs__same_model_for_any_budget_and_threads(tmp_path, monkeypatch):
    adata = atlas.make()
    options = {"use_SGD": True, "max_iter": 7, "tol": None} | QUIET
    reference = streamtrain.train(adata, "cell_type", n_jobs=1, **options)
    path = stores.write(adata, tmp_path, "h5ad")
    monkeypatch.setattr(sys.modules["streamtrain.local"], "_KEPT", 1e-6)  # cells go to scratch
    equal(streamtrain.train(path, "cell_type", n_jobs=3, **options), reference)
    other = streamtrain.train(adata, "cell_type", random_state=1, **options)
    assert not np.array_equal(other.coef_, reference.coef_)


def test_epochs__warn_of_classes_that_go_on():
    options = {"use_SGD": True, "max_iter": 2} | QUIET
    with pytest.warns(
        ConvergenceWarning, match="5 of 5 cell types did not converge after 2 epochs: ra"
    ):
        streamtrain.train(atlas.make(), "cell_type", **options)


@pytest.mark.parametrize("way", [{"max_iter": 40}, MINI | {"epochs": 40}], ids=["epochs", "mini"])
@pytest.mark.parametrize("groups", [None, "donor"])
def test_early_stopping__stops_early_and_trains_on_the_others_alone(way, groups):
    adata = atlas.make()
    options = {"use_SGD": True, "early_stopping": True, "validation_groups": groups} | way | QUIET
    source = open_source(adata)
    cells = labelled_cells(source, "cell_type", where=None, drop_unlabeled=False)
    held = hold_out(source, cells, fraction=0.1, groups=groups, seed=0)
    assert 0.08 < held.mean() < 0.3
    if groups:
        donors = adata.obs["donor"].to_numpy()
        assert not set(donors[held]) & set(donors[~held])
    model = streamtrain.train(adata, "cell_type", tol=0.01, **options)
    assert model.certificate["converged"].all()
    assert (model.certificate["n_iter"] < 40).all()
    steps = 400 if "epochs" in way else (~held).sum()
    assert (model.dataset.attrs["t"] - 1) % steps == 0
    # What the held-out cells are called changes nothing but when to stop.
    options |= {"tol": None, "max_iter": 2} if "max_iter" in way else {"tol": None, "epochs": 2}
    reference = streamtrain.train(adata, "cell_type", **options)
    if groups:
        adata.obs["cell_type"] = np.where(held, "B", adata.obs["cell_type"].astype(str))
        equal(streamtrain.train(adata, "cell_type", **options), reference)


def test_hold_out__takes_groups_that_fit(caplog):
    adata = atlas.make()
    source = open_source(adata)
    cells = labelled_cells(source, "cell_type", where=None, drop_unlabeled=False)
    adata.obs["lab"] = np.repeat(["a", "b", "c"], [480, 60, 60])
    for seed in range(5):
        held = hold_out(source, cells, fraction=0.1, groups="lab", seed=seed)
        assert held.sum() == 60
    assert not caplog.records
    held = hold_out(source, cells, fraction=0.02, groups="lab", seed=0)
    assert held.sum() == 60
    assert "the smallest group that can be held out has 60 of 600 cells" in caplog.text
    with pytest.raises(InputError, match="has 600 groups for 600 cells: name a column of donors"):
        hold_out(source, cells, fraction=0.1, groups="n", seed=0)


def test_hold_out__leaves_every_class_and_takes_whole_groups():
    adata = atlas.make()
    adata.obs["group"] = np.where(adata.obs["cell_type"] == "NK", "NK", adata.obs["donor"])
    source = open_source(adata)
    cells = labelled_cells(source, "cell_type", where=None, drop_unlabeled=False)
    for seed in range(5):
        held = hold_out(source, cells, fraction=0.5, groups="group", seed=seed)
        groups = adata.obs["group"].to_numpy()
        assert not set(groups[held]) & set(groups[~held])
        assert "NK" in groups[~held]
        assert set(cells.codes[~held]) == set(range(5))
        assert held.mean() > 0.2
        assert (hold_out(source, cells, fraction=0.5, groups="group", seed=seed) == held).all()
    few = hold_out(source, cells, fraction=0.2, groups=None, seed=0)
    share = np.bincount(cells.codes[few]) / np.bincount(cells.codes)
    assert ((share > 0.15) & (share < 0.25)).all()
    with pytest.raises(InputError, match="holds out no cell: raise it"):
        hold_out(source, cells, fraction=1e-6, groups=None, seed=0)


@pytest.mark.parametrize("way", [{}, MINI, {"mini_batch": True} | dict(list(MINI.items())[2:])])
def test_selection__keeps_the_genes_that_weigh_most_in_a_first_round(way):
    adata = atlas.make()
    model = streamtrain.train(
        adata, "cell_type", feature_selection=True, top_genes=8, **way, **QUIET
    )
    mini = {k: v for k, v in way.items() if k != "use_SGD"}
    first = streamtrain.train(adata, "cell_type", use_SGD=True, **mini, **QUIET)
    largest = np.argpartition(np.abs(first.coef_), -8, axis=1)[:, -8:]
    genes = first.features[np.unique(largest)]
    assert model.features.tolist() == genes.tolist()
    # The second round is a training on those genes of the same normalised cells.
    second = way if way.get("use_SGD") else {}
    options = {"check_expression": False} | second | QUIET
    equal(streamtrain.train(adata[:, genes], "cell_type", **options), model)


def test_warm_start__continues_where_a_model_stands(tmp_path):
    adata = atlas.make()
    model = streamtrain.train(adata, "cell_type", **QUIET)
    again = streamtrain.train(adata, "cell_type", warm_start=model, **QUIET)
    # float32 weights are not quite the optimum that the solver left.
    assert (again.certificate["n_passes"] <= 4).all()
    close(again.coef_, model.coef_, 1e-3)
    model.save(tmp_path / "model.zarr")
    from_disk = streamtrain.train(adata, "cell_type", warm_start=tmp_path / "model.zarr", **QUIET)
    equal(from_disk, again)
    assert from_disk.settings["warm_start"] == str(tmp_path / "model.zarr")


def test_warm_start__sgd_goes_on_with_its_steps():
    """Two epochs, and two more from there, are four in one go, where the plan is the same."""
    adata = atlas.make()
    options = {"use_SGD": True, "shuffle": False, "tol": None, "average": True} | QUIET
    two = streamtrain.train(adata, "cell_type", max_iter=2, **options)
    four = streamtrain.train(adata, "cell_type", max_iter=4, **options)
    resumed = streamtrain.train(adata, "cell_type", max_iter=2, warm_start=two, **options)
    assert resumed.dataset.attrs["t"] == four.dataset.attrs["t"]
    # float32: the average is stored once between.
    close(resumed.coef_, four.coef_, 1e-4)


def test_warm_start__average_begins_where_it_is_asked_for():
    adata = atlas.make()
    options = {"use_SGD": True, "shuffle": False, "tol": None, "max_iter": 2} | QUIET
    plain = streamtrain.train(adata, "cell_type", **options)
    last = streamtrain.train(adata, "cell_type", warm_start=plain, **options)
    averaged = streamtrain.train(adata, "cell_type", warm_start=plain, average=True, **options)
    np.testing.assert_array_equal(averaged.dataset["coef_last"], last.dataset["coef"])
    norms = [np.linalg.norm(m.coef_) for m in (plain, averaged, last)]
    assert 0.9 * min(norms[0], norms[2]) < norms[1] < 1.1 * max(norms[0], norms[2])


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("way", [{"penalty": "l1", "max_iter": 3}, {"max_iter": 3}, MINI], ids=str)
def test_warm_start__same_model_for_any_threads(way, with_mean):
    adata = atlas.make()
    options = {"use_SGD": True, "with_mean": with_mean} | way | QUIET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = streamtrain.train(adata, "cell_type", **options)
        models = [
            streamtrain.train(adata, "cell_type", warm_start=start, n_jobs=n, **options)
            for n in (1, 2, 5)
        ]
    equal(models[0], models[1])
    equal(models[0], models[2])


def test_warm_start__without_intercepts():
    adata = atlas.make()
    start = streamtrain.train(adata, "cell_type", **QUIET)
    for way in ({}, MINI):
        options = {"warm_start": start, "fit_intercept": False} | way | QUIET
        assert (streamtrain.train(adata, "cell_type", **options).intercept_ == 0).all()


def test_warm_start__other_genes_types_and_scaling(monkeypatch):
    """The first scores of the new solver are the old model's, where both know gene and type."""
    adata = atlas.make(n_types=4)
    old = streamtrain.train(adata[:, :90], "cell_type", check_expression=False, **QUIET)
    new = atlas.make(n_types=5, seed=4)
    options = {"check_expression": False, "max_iter": 1} | QUIET
    with pytest.warns(ConvergenceWarning):
        model = streamtrain.train(new[:, 20:], "cell_type", warm_start=old, **options)
    with pytest.warns(ConvergenceWarning):
        cold = streamtrain.train(new[:, 20:], "cell_type", **options)
    shared = [t for t in model.cell_types if t in set(old.cell_types)]
    assert len(shared) == 4
    objective = [m.certificate["objective"][shared].mean() for m in (model, cold)]
    assert objective[0] < 0.5 * objective[1]
    monkeypatch.setattr(sys.modules["streamtrain.local"], "first_pass", None)  # nothing is read
    with pytest.raises(InputError, match="the model shares no gene with these cells"):
        streamtrain.train(new[:, 90:], "cell_type", warm_start=old, **options)


def test_plan__as_stored():
    plan = Plan(
        np.zeros(7, np.int32), 1, batch_size=3, batch_number=3, epochs=2, balance=False,
        shuffle=False, as_stored=True, seed=0,
    )  # fmt: skip
    assert plan.epoch(1).tolist() == list(range(7))
