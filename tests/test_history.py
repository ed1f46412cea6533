"""The curve that training leaves in a model, against plain sums, and the cells that it took."""

import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

import streamtrain
from streamtrain import InputError, Model, descent, history
from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.descent import JUDGED, plan_epochs
from streamtrain.history import MOST, Curve, of_epochs, spacing
from streamtrain.solvers.logistic import Logistic
from streamtrain.solvers.schedule import Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads
from tests import atlas
from tests.models import assert_same
from tests.test_model import make
from tests.test_sgd import case

QUIET = {"progress": False}
EXACT = {"dtype": "float64", "learning_rate": "invscaling", "eta0": 0.01}
MINI = atlas.MINI | EXACT | {"batch_size": 70, "batch_number": 5, "epochs": 3}
WHOLE = {"use_SGD": True, "max_iter": 4, "tol": None} | EXACT
ONE_OF = {
    "log_loss": (lambda y, s: np.log1p(np.exp(-y * s)), lambda y, s: -y / (1 + np.exp(y * s))),
    "squared_hinge": (
        lambda y, s: np.maximum(0, 1 - y * s) ** 2, lambda y, s: -2 * y * np.maximum(0, 1 - y * s),
    ),
}  # fmt: skip


def scaled(adata):
    """Cells as training takes them, their codes, and the types' names."""
    X = adata.X.toarray().astype(np.float64)
    Z = np.minimum(StandardScaler().fit_transform(X[:, X.any(axis=0)]), 10)
    codes = pd.Categorical(adata.obs["cell_type"].astype(str))
    return Z, codes.codes.astype(np.int32), codes.categories.to_numpy(object)


def descended(Z, codes, order, config, weights, t, every):
    """Steps of SGD on the cells of an epoch: weights, and each column's losses of some cells."""
    loss, slope = ONE_OF[config.loss]
    W, b = weights[0].copy(), weights[1].copy()
    label, sums = np.arange(len(b)) + (len(b) == 1), []
    for i, cell in enumerate(order):
        y = np.where(codes[cell] == label, 1.0, -1.0)
        score = W @ Z[cell] + b
        if i % every == 0:
            sums.append(loss(y, score))
        eta = config.eta0 / (t + i) ** config.power_t
        step = eta * slope(y, score)
        W = W * (1 - eta * config.alpha) - step[:, None] * Z[cell]
        b = b - step
    return (W, b), sums


@pytest.mark.parametrize("loss", ONE_OF)
@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize(("way", "every"), [(MINI, JUDGED), (WHOLE, 1)], ids=["mini", "whole"])
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_loss__is_a_plain_mean(way, every, n_types, loss):
    adata = atlas.make(n_types=n_types, dtype=np.float64)
    options = way | {"loss": loss}
    found = streamtrain.train(adata, "cell_type", **options, **QUIET).history
    (Z, codes, names), config = scaled(adata), Settings(**options)
    plan = plan_epochs(config, Cells(None, codes, names), None)
    columns, t = 1 if n_types == 2 else n_types, 1
    weights, expected, rates = (np.zeros((columns, Z.shape[1])), np.zeros(columns)), [], []
    for epoch in range(plan.epochs):
        order = plan.epoch(epoch)
        weights, sums = descended(Z, codes, order, config, weights, t, every)
        t += len(order)
        expected.append(np.mean(sums))
        rates.append(config.eta0 / (t - 1) ** config.power_t)
    assert found.index.name == "epoch"
    assert found.index.tolist() == list(range(1, plan.epochs + 1))
    assert found.columns.tolist() == ["n_cells", "loss", "learning_rate", "seconds"]
    assert (found["n_cells"] == plan.epoch_size).all()
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-9)
    np.testing.assert_allclose(found["learning_rate"], rates, rtol=1e-12)
    assert (found["seconds"] > 0).all()


def test_loss__of_copies_is_that_of_all_their_cells():
    adata = atlas.make(dtype=np.float64)
    options = MINI | {"epochs": 1, "replicas": 2}
    found = streamtrain.train(adata, "cell_type", **options, **QUIET)
    (Z, codes, names), config = scaled(adata), Settings(**options)
    order = plan_epochs(config, Cells(None, codes, names), None).epoch(0)
    batches = [order[start : start + 70] for start in range(0, len(order), 70)]
    none = np.zeros((5, Z.shape[1])), np.zeros(5)
    sums = [
        loss
        for first in range(2)
        for loss in descended(
            Z, codes, np.concatenate(batches[first::2]), config, none, 1, JUDGED
        )[1]
    ]  # fmt: skip
    assert found.history["loss"].tolist() == pytest.approx([np.mean(sums)], rel=1e-9)
    assert found.history["n_cells"].tolist() == [350]
    assert found.history["learning_rate"].tolist() == pytest.approx([0.01 / 210**0.5])
    assert found.dataset["n_drawn"].values.tolist() == np.bincount(codes[order]).tolist()


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_judged__leaves_the_weights_as_they_are(n_classes, penalty, average):
    batches, *_, given = case(1300, 90, n_classes, "centred", 1100, apart=penalty == "l2")
    schedule = Schedule("constant", 1e-3, 1e-3, penalty=penalty)
    solvers = []
    for judged in (0, 1, 3):
        with Threads(1) as threads:
            options = {"judged": judged, "average": average, "threads": threads} | given
            solver = SGD(n_classes, schedule=schedule, **options)
            for batch in batches:
                solver.partial_fit(batch)
            solvers.append(solver)
    nothing, every, some = (solver.end_epoch()[0] for solver in solvers)
    assert (nothing == 0).all()
    np.testing.assert_allclose(some / 434, every / 1300, rtol=0.3)
    first, *others = (solver.state() for solver in solvers)
    for other in others:
        for name in ("coef", "intercept", "average_coef"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name))


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"balance_cell_type": True, "replace": True},
        {"quotas": "equal"},
        {"early_stopping": True, "n_iter_no_change": 9},
    ],
    ids=str,
)
def test_n_drawn__counts_the_plan(more, monkeypatch):
    adata, plans = atlas.make(), []

    def planned(*given):
        plans.append((plan_epochs(*given), given))
        return plans[-1][0]

    monkeypatch.setattr(descent, "plan_epochs", planned)
    model = streamtrain.train(adata, "cell_type", **MINI, **more, **QUIET)
    plan, (_, cells, held_out) = plans[-1]
    codes = cells.codes if held_out is None else cells.codes[~held_out]
    drawn = np.concatenate([codes[plan.epoch(epoch)] for epoch in range(3)])
    np.testing.assert_array_equal(model.dataset["n_drawn"], np.bincount(drawn))
    assert model.history["n_cells"].sum() == len(drawn)


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_accuracy__is_that_of_the_held_out_cells(monkeypatch):
    told, accuracy = [], descent._accuracy
    monkeypatch.setattr(
        descent, "_accuracy", lambda *given: told.append(accuracy(*given)) or told[-1]
    )
    options = WHOLE | {"early_stopping": True, "tol": 0.01, "max_iter": 9, "n_iter_no_change": 2}
    model = streamtrain.train(atlas.make(), "cell_type", **options, **QUIET)
    n_iter = model.certificate["n_iter"]
    assert n_iter.min() < n_iter.max() == len(model.history)  # some end before others
    # A column that has ended keeps its weights, and its share.
    np.testing.assert_allclose(model.history["accuracy"], np.mean(told, axis=1), rtol=1e-12)
    assert np.isfinite(model.history).all(axis=None)


def test_optimum__objective_of_each_pass():
    model = streamtrain.train(atlas.make(), "cell_type", **QUIET)
    found, certificate = model.history, model.certificate
    assert found.index.name == "pass"
    assert found.columns.tolist() == ["n_cells", "objective", "seconds"]
    assert len(found) == certificate["n_passes"].max()
    assert (found["n_cells"] == 600).all()
    assert found["objective"].iloc[-1] == pytest.approx(certificate["objective"].mean())
    assert found["objective"].is_monotonic_decreasing
    # At first no weights, and the intercepts at the types' odds.
    _, codes, _ = scaled(atlas.make())
    p = np.bincount(codes) / 600
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert found["objective"].iloc[0] == pytest.approx(entropy, rel=1e-6)
    assert "n_drawn" not in model.dataset


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize(
    "way", [{}, {"penalty": "l1", "max_iter": 9}, MINI, WHOLE, MINI | {"replicas": 3}], ids=str
)
def test_history__for_any_threads_and_memory(way, tmp_path, monkeypatch):
    adata, options = atlas.make(), {"scratch": str(tmp_path)} | way | QUIET
    one = streamtrain.train(adata, "cell_type", n_jobs=1, **options)

    class Cramped(Logistic):
        def __init__(self, *given, **options):
            super().__init__(*given, **options | {"memory": 0})

    monkeypatch.setattr("streamtrain.optimum.Logistic", Cramped)
    monkeypatch.setattr(sys.modules["streamtrain.first_pass"], "READING_RESERVE", 0)
    other = streamtrain.train(adata, "cell_type", n_jobs=3, memory="40MB", **options)
    assert one.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))
    assert_same(one, other)


def test_macro_f1__is_the_chosen_settings():
    options = MINI | {"folds": 3, "epochs": 8, "n_iter_no_change": 2, "alpha": [1e-4, 10.0]}
    model = streamtrain.train(atlas.make(), "cell_type", **options, **QUIET)
    [chosen] = [row for row in model.provenance["cross_validation"] if row["chosen"]]
    assert len(model.history) == chosen["epochs"]
    assert model.history["macro_f1"].iloc[-2:].mean() == pytest.approx(chosen["macro_f1"])


def test_history__of_the_second_round():
    options = MINI | {"feature_selection": True, "top_genes": 5}
    model = streamtrain.train(atlas.make(), "cell_type", **options, **QUIET)
    assert len(model.history) == 3
    optimum = streamtrain.train(
        atlas.make(), "cell_type", feature_selection=True, top_genes=5, **QUIET
    )
    assert optimum.history.index.name == "pass"
    assert "n_drawn" not in optimum.dataset


def test_history__of_a_model_that_goes_on():
    first = streamtrain.train(atlas.make(), "cell_type", **MINI, **QUIET)
    for option in ("init", "warm_start"):
        second = streamtrain.train(
            atlas.make(seed=1), "cell_type", **{option: first}, **MINI, **QUIET
        )
        assert len(second.history) == 3
        assert second.dataset["n_drawn"].sum() == second.history["n_cells"].sum()
        assert second.history["loss"].iloc[0] < first.history["loss"].iloc[0]
    assert [len(first.history), "history" in second.provenance] == [3, True]
    once_more = streamtrain.train(atlas.make(), "cell_type", init=first, **MINI, **QUIET)
    assert "history" not in once_more.provenance["init"][0]


# Curve


def whole(n, ends, seed=0):
    """A value of each column in each epoch, up to the one in which the column ends."""
    values = np.random.default_rng(seed).random((n, len(ends)))
    values[np.arange(n)[:, None] >= np.array(ends)] = np.nan
    return values


@pytest.mark.parametrize("n", [1, MOST, MOST + 1, 2 * MOST + 1, 5003])
def test_curve__keeps_the_first_the_last_and_evenly_spaced_ones(n):
    curve, values = Curve(["loss"]), whole(n, [n, n])
    for i, value in enumerate(values):
        curve.seconds = i
        curve.add(10 + i, value)
    found = of_epochs([curve])
    step = spacing(n)
    assert found["epoch"] == sorted({*range(1, n + 1, step), n})
    assert len(found["epoch"]) <= MOST + 1
    assert n <= MOST or len(found["epoch"]) > MOST / 2
    at = np.array(found["epoch"]) - 1
    np.testing.assert_allclose(found["loss"], values[at].mean(axis=1))
    assert found["n_cells"] == (10 + at).tolist()
    assert found["seconds"] == at.tolist()


@pytest.mark.parametrize("ends", [[30, 7, 11, 30, 2], [4100, 1700, 999, 3001, 1002]])
def test_curve__shares_are_as_one(ends):
    values, edges = whole(max(ends), ends), [(0, 1), (1, 3), (3, 5)]

    def curve(first, stop):
        found = Curve(["loss", "learning_rate"])
        for row in values[: max(ends[first:stop]), first:stop]:
            found = found.copy()
            found.add(5, row, 2 * row)
        return found

    one = of_epochs([curve(0, 5)])
    assert one == of_epochs([curve(*edge) for edge in edges])
    last = [values[end - 1, column] for column, end in enumerate(ends)]
    assert one["loss"][-1] == pytest.approx(np.mean(last))


def test_curve__without_numbers_that_json_has_not():
    curve = Curve(["loss"])
    curve.add(1, np.array([np.inf, 1.0]))
    curve.add(1, np.array([2.0, 1.0]))
    found = make(provenance={"history": of_epochs([curve])}).history
    np.testing.assert_array_equal(found["loss"], [np.nan, 1.5])


# Model


def test_model__history_is_stored(tmp_path):
    model = streamtrain.train(atlas.make(), "cell_type", **MINI, **QUIET)
    model.save(tmp_path / "m.zarr")
    again = Model.load(tmp_path / "m.zarr")
    assert again.history.equals(model.history)
    assert again.dataset["n_drawn"].dtype.kind == "i"
    assert_same(again, model)
    assert make().history is None


def test_model__n_drawn_of_some_types_and_other_genes():
    model = streamtrain.train(atlas.make(), "cell_type", **MINI, **QUIET)
    drawn = model.dataset["n_drawn"].to_series()
    for kept in (["B", "NK", "T CD4"], ["B", "NK"]):
        some = model.subset(keep_cell_types=kept)
        assert some.dataset["n_drawn"].to_series().equals(drawn[kept])
        assert some.history.equals(model.history)
    renamed = model.convert({gene: f"new {gene}" for gene in model.features})
    assert renamed.dataset["n_drawn"].to_series().equals(drawn)


@pytest.mark.parametrize(
    "curve",
    [
        "text", {}, {"loss": [1.0]}, {"epoch": [1], "pass": [1]}, {"epoch": []}, {"epoch": 3},
        {"epoch": [1, 2], "loss": [1.0]}, {"epoch": [1], "loss": ["low"]},
        {"epoch": [None]}, {"epoch": [1.0]}, {"pass": [1], "seconds": [10**400]},
    ],
    ids=str,
)  # fmt: skip
def test_model__a_history_that_is_none(curve):
    with pytest.raises(InputError) as raised:
        make(provenance={"history": curve})
    assert str(raised.value) == (
        "provenance: history must be a dict of lists of numbers, as many each as its epoch or "
        f"pass has whole ones; got {curve!r:.80}"
    )


def test_frame__leaves_out_what_it_does_not_know():
    found = history.frame({"seconds": [1], "epoch": [4], "loss": [2], "mood": [3]})
    assert found.to_dict("list") == {"loss": [2.0], "seconds": [1.0]}
    assert found.index.tolist() == [4]
