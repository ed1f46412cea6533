"""Cells and cell types added to a model of SGD: against scikit-learn continued by hand."""

import logging
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

import streamtrain
from streamtrain import InputError, Model
from streamtrain.sampling import Plan
from tests import atlas, stores
from tests.test_cli import call
from tests.test_train import equal

SMALL = atlas.MINI | {"batch_size": 100, "batch_number": 4, "epochs": 2, "progress": False}
# Small steps, which do not magnify rounding.
EXACT = SMALL | {"dtype": "float64", "shuffle": False, "learning_rate": "constant", "eta0": 0.003}
NEW, GONE = "NK", "T CD8"  # a type that the old cells lack, and one that the new cells lack


def halves(n_types=5, **kept):
    """Old and new cells: each of another draw, without the types that the other has alone."""
    old, new = atlas.make(800, n_types=n_types), atlas.make(700, n_types=n_types, seed=1)
    old = old[old.obs["cell_type"] != NEW].copy()
    new = new[new.obs["cell_type"] != GONE].copy()
    for adata in (old, new):
        adata.X = adata.X.toarray().astype(np.float64)  # both step the intercept fully
    return old, new


def counts(adata):
    return adata.obs["cell_type"].astype(str).value_counts().to_dict()


def by_hand(model, adata, X, options, seen):
    """Each column of `model` continued by scikit-learn on the scaled dense cells `X`.

    `seen` is the moments' StandardScaler. The order is that of a plan of the new cells alone.
    """
    names = sorted({*model.cell_types, *adata.obs["cell_type"]})
    codes = pd.Categorical(adata.obs["cell_type"].astype(str)).codes.astype(np.int32)
    plan = Plan(
        codes, codes.max() + 1, batch_size=100, batch_number=4, epochs=2, shuffle=False, seed=0,
        balance=options.get("balance_cell_type", False),
    )  # fmt: skip
    order = np.concatenate([plan.epoch(0), plan.epoch(1)])
    own = ("learning_rate", "eta0", "alpha", "fit_intercept")
    own = {k: options[k] for k in own if k in options}
    data, averaged = model.dataset, bool(options.get("average"))
    moved = (seen.mean_ - data["mean"]) / data["scale"] * data.attrs["with_mean"]

    def convert(w, b):
        return (w * seen.scale_ / data["scale"]).to_numpy()[None], np.atleast_1d(b + w @ moved)

    columns = {}
    for name in names:
        sgd = SGDClassifier(loss="log_loss", shuffle=False, average=averaged, **own)
        sgd.classes_, sgd.n_features_in_, sgd.t_ = np.array([0, 1]), X.shape[1], 1.0
        last, average = ((np.zeros((1, X.shape[1])), np.zeros(1)) for _ in range(2))
        if name in model.cell_types:
            row = data.sel(cell_type=name)
            sgd.t_ = float(row["t"] if "t" in data else data.attrs["t"])
            last = average = convert(row["coef"], row["intercept"])  # one array if not averaged
            if averaged:
                last = convert(row["coef_last"], row["intercept_last"])
                sgd.average = int(sgd.t_) - int(row["n_averaged"])
        sgd.coef_, sgd.intercept_ = last
        if averaged:
            sgd._standard_coef, sgd._standard_intercept = last
            sgd._average_coef, sgd._average_intercept = average
        sgd.partial_fit(X[order], (adata.obs["cell_type"] == name).to_numpy()[order].astype(int))
        columns[name] = sgd
    return columns


def check(model, columns):
    assert model.cell_types.tolist() == list(columns)
    for name, theirs in columns.items():
        row = model.dataset.sel(cell_type=name)
        assert np.linalg.norm(row["coef"] - theirs.coef_[0]) <= 1e-9 * np.linalg.norm(theirs.coef_)
        assert float(row["intercept"]) == pytest.approx(theirs.intercept_[0], rel=1e-8)
        assert float(row["t"] if "t" in row else model.dataset.attrs["t"]) == theirs.t_


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"average": True},
        {"balance_cell_type": True, "alpha": 0.01},
        {"learning_rate": "invscaling", "eta0": 0.03},
        {"learning_rate": "optimal", "alpha": 0.1},
        {"fit_intercept": False},
    ],
    ids=str,
)
def test_init__is_sgd_continued_by_hand(more, with_mean):
    old, new = halves()
    options = EXACT | {"with_mean": with_mean} | more
    first = streamtrain.train(old, "cell_type", **options)
    model = streamtrain.train(new, "cell_type", init=first, **options)
    expressed = old.var_names.isin(first.features)
    both = np.concatenate([old.X, new.X])[:, expressed]
    scaler = StandardScaler(with_mean=with_mean).fit(both)
    X = np.minimum(scaler.transform(new.X[:, expressed]), 10)
    check(model, by_hand(first, new, X, options, scaler))
    # 1e-12: float64 moments of the same values, merged in another order.
    for name in ("mean", "var", "scale"):
        theirs = getattr(scaler, f"{name}_")
        np.testing.assert_allclose(model.dataset[name], theirs, rtol=1e-12, err_msg=name)
    assert (model.dataset["n_obs"] == len(both)).all()
    added = pd.Series(counts(old)).add(pd.Series(counts(new)), fill_value=0)
    assert model.dataset["n_cells"].to_series().to_dict() == added.to_dict()


def test_init__again_from_disk_and_in_pieces(tmp_path):
    """A second addition, to a model whose types took different numbers of steps."""
    old, new = halves()
    options = EXACT | {"average": True}
    first = streamtrain.train(old, "cell_type", **options)
    second = streamtrain.train(new, "cell_type", init=first, **options)
    steps = second.dataset["t"].to_series().to_dict()
    assert steps == dict.fromkeys(first.cell_types, 1601.0) | {NEW: 801.0}
    assert (second.dataset["n_averaged"] == second.dataset["t"] - 1).all()
    second.save(tmp_path / "second.zarr")
    third = streamtrain.train(old, "cell_type", init=tmp_path / "second.zarr", **options)
    equal(third, streamtrain.train(old, "cell_type", init=second, **options))
    assert third.dataset["t"].to_series().to_dict() == {k: t + 800 for k, t in steps.items()}
    scaler = StandardScaler().fit(np.concatenate([old.X, new.X, old.X])[:, old.X.any(axis=0)])
    X = np.minimum(scaler.transform(old.X[:, old.X.any(axis=0)]), 10)
    check(third, by_hand(second, old, X, options, scaler))
    np.testing.assert_allclose(third.dataset["var"], scaler.var_, rtol=1e-12)
    runs = third.provenance["init"]
    assert [run["n_cells"] for run in [*runs, third.provenance]] == [len(old), len(new), len(old)]
    assert runs[0]["settings"]["init"] is None
    assert runs[1]["settings"]["init"] == "a Model"
    assert third.settings["init"] == str(tmp_path / "second.zarr")
    assert all(run["sources"][0]["n_vars"] == 120 for run in runs)


@pytest.mark.parametrize("n_types", [2, 3])
def test_init__two_types(n_types):
    """Two types have one column; a third gives each its own."""
    old, new = atlas.make(400, n_types=2), atlas.make(300, n_types=n_types, seed=1)
    for adata in (old, new):
        adata.X = adata.X.toarray().astype(np.float64)
    first = streamtrain.train(old, "cell_type", **EXACT)
    model = streamtrain.train(new, "cell_type", init=first, **EXACT)
    used = old.var_names.isin(first.features)
    scaler = StandardScaler().fit(np.concatenate([old.X, new.X])[:, used])
    X = np.minimum(scaler.transform(new.X[:, used]), 10)
    columns = by_hand(first, new, X, EXACT, scaler)
    check(model, columns)
    assert model.coef_.shape == (1 if n_types == 2 else 3, used.sum())


def panels():
    """New cells whose panel lacks some genes of the old ones, and has others; in another order."""
    old, new = halves()
    rng = np.random.default_rng(0)
    return old[:, :100].copy(), new[:, rng.permutation(np.arange(20, 120))].copy()


@pytest.mark.parametrize("with_mean", [True, False])
def test_init__genes_that_the_new_cells_lack_are_left_as_they_are(with_mean, caplog):
    old, new = panels()
    options = EXACT | {"check_expression": False, "with_mean": with_mean}
    first = streamtrain.train(old, "cell_type", **options)
    with caplog.at_level(logging.INFO, "streamtrain"):
        model = streamtrain.train(new, "cell_type", init=first, **options)
    assert model.features.tolist() == first.features.tolist()
    lacked = ~np.isin(first.features, new.var_names)
    shared = (~lacked).sum()
    assert 70 < shared < 80  # of 80, as some are not expressed
    words = "3 of its 4 cell types are here, and 1 new ones; {} of its {} genes, and {} others"
    assert words.format(shared, len(lacked), 100 - shared) in caplog.text
    n = model.dataset["n_obs"].to_numpy()
    assert n.tolist() == np.where(lacked, len(old), len(old) + len(new)).tolist()
    X_old = old.to_df()[first.features].to_numpy()
    X_new = new.to_df().reindex(columns=first.features).to_numpy()
    scaler = StandardScaler(with_mean=with_mean).fit(np.concatenate([X_old, X_new]))
    for name in ("mean", "var", "scale"):  # scikit-learn leaves out what is missing
        theirs = getattr(scaler, f"{name}_")
        np.testing.assert_allclose(model.dataset[name], theirs, rtol=1e-12, err_msg=name)
    X = np.nan_to_num(np.minimum(scaler.transform(X_new), 10))
    check(model, by_hand(first, new, X, options, scaler))


def test_init__n_obs_counts_the_cells_that_are_scaled_by():
    adata = atlas.make(900)
    adata.obs.loc[adata.obs_names[::7], "cell_type"] = np.nan
    options = SMALL | {"where": "donor != 'D1'", "drop_unlabeled": True, "early_stopping": True}
    options |= {"batch_number": 1, "tol": None}  # few are drawn, and some are held out
    model = streamtrain.train(adata, "cell_type", **options)
    labelled = adata[(adata.obs["donor"] != "D1") & adata.obs["cell_type"].notna()]
    assert (model.dataset["n_obs"] == labelled.n_obs).all()
    assert int(model.dataset["n_cells"].sum()) == labelled.n_obs
    mean = labelled[:, model.features].X.astype(np.float64).mean(axis=0).A1
    np.testing.assert_allclose(model.dataset["mean"], mean, rtol=1e-6)
    some = model.subset(model.cell_types[:3])
    assert (some.dataset["n_obs"] == labelled.n_obs).all()


WAYS = {
    "whole epochs": {"mini_batch": False, "max_iter": 3, "tol": None},
    "until the loss falls no more": {"mini_batch": False, "tol": 0.5},
    "quotas": {"quotas": "equal"},
    "balanced over donors": {"balance_cell_type": True, "batch_key": "donor", "replace": True},
    "weights": {"class_weight": "balanced", "average": True},
    "held out": {"early_stopping": True, "validation_groups": "donor", "tol": None},
    "l1": {"penalty": "l1", "average": 50},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_init__every_way_on_any_threads_and_store(way, tmp_path):
    options = {k: v for k, v in SMALL.items() if way.get("mini_batch", True) or "bat" not in k}
    options = {k: v for k, v in options.items() if k != "epochs" or "batch_size" in options} | way
    old, new = (adata.copy() for adata in halves())
    first = streamtrain.train(old, "cell_type", **options)
    model = streamtrain.train(new, "cell_type", init=first, n_jobs=1, **options)
    path = stores.write(new, tmp_path, "zarr3")
    memory = {"memory": "150MB", "n_jobs": 3}
    equal(streamtrain.train(path, "cell_type", init=first, **memory, **options), model)
    assert model.cell_types.tolist() == sorted(atlas.TYPES)
    predicted = streamtrain.predict(model, new, check_expression=False, progress=False)
    assert (predicted["predicted_labels"] == new.obs["cell_type"].to_numpy()).mean() > 0.5


@pytest.mark.parametrize("average", [False, True])
def test_init__a_model_of_celltypist(tmp_path, average):
    """The pickle has all that is needed but the cells of each type, and one step for all."""
    old, new = halves()
    options = EXACT | {"average": average}
    first = streamtrain.train(old, "cell_type", **options)
    first.to_celltypist(tmp_path / "first.pkl")
    model = streamtrain.train(new, "cell_type", init=tmp_path / "first.pkl", **options)
    equal(model, streamtrain.train(new, "cell_type", init=first, **options))
    assert "n_cells" not in model.dataset
    assert (model.dataset["n_obs"] == old.n_obs + new.n_obs).all()
    assert model.provenance["init"][0]["celltypist pickle"] == "first.pkl"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_init__celltypist_takes_the_grown_model(tmp_path):
    celltypist = pytest.importorskip("celltypist")
    old, new = panels()
    options = SMALL | {"check_expression": False, "average": True}
    first = streamtrain.train(old, "cell_type", **options)
    model = streamtrain.train(new, "cell_type", init=first, **options)
    model.to_celltypist(tmp_path / "m.pkl")
    again = Model.load(tmp_path / "m.pkl")
    np.testing.assert_array_equal(again.dataset["n_obs"], model.dataset["n_obs"])
    assert again.dataset.attrs["t"] == model.dataset.attrs["t"] == 1601
    assert again.settings["average"] == 1
    query = atlas.make(300, seed=5)
    theirs = celltypist.annotate(query, model=str(tmp_path / "m.pkl")).predicted_labels
    ours = streamtrain.predict(model, query, progress=False)["predicted_labels"]
    assert ours.astype(str).tolist() == theirs["predicted_labels"].astype(str).tolist()


def test_init__one_known_type_and_settings_of_another_stream(caplog):
    old, new = halves()
    first = streamtrain.train(old, "cell_type", **SMALL)
    more = {"batch_size": 50, "alpha": 0.01, "average": True}
    only = new[new.obs["cell_type"] == "B"].copy()
    model = streamtrain.train(only, "cell_type", init=first, **SMALL | more)
    assert model.cell_types.tolist() == first.cell_types.tolist()
    assert "trained with alpha=0.0001, average=False, and goes on with alpha=0.01" in caplog.text
    assert "3 of the model's cell types have no cells here ('Monocyte, classical'" in caplog.text
    assert (model.dataset["n_averaged"] == 400).all()  # of these cells alone
    known = first.dataset["n_cells"].to_series()
    assert (model.dataset["n_cells"].to_series() - known).to_dict() == dict.fromkeys(
        known.index, 0
    ) | {"B": only.n_obs}


def logistic(adata):
    return streamtrain.train(adata, "cell_type", tol=0.1, progress=False)


def nameless(adata):
    model = streamtrain.train(adata, "cell_type", **SMALL)
    return Model(model.dataset.drop_vars(["n_obs", "n_cells"]))


REFUSED = {
    "logistic model": (logistic, {}, "counts no steps of SGD, as those of logistic regression"),
    "of unknown cells": (nameless, {}, "does not say how many they were: pass it as warm_start"),
    "not centred": (None, {"with_mean": False}, r"of with_mean=True: pass with_mean=True \(--with"),
    "no model": (None, {"init": 3}, "init must be a Model or the path of one; got 3"),
    "logistic": (
        None,
        {"use_SGD": False},
        r"pass use_SGD=True \(--use-sgd\). Logistic regression needs all cells at once: pass",
    ),
    "selection": (None, {"feature_selection": True}, "feature_selection chooses other genes"),
    "two models": (logistic, {"warm_start": "m.zarr"}, "starts on these cells alone: leave one"),
    "other genes": (None, {"gene_key": "feature_name"}, "shares no gene with these cells"),
    "one new type": (None, {"where": "cell_type == 'NK'"}, "all cells are of one type, 'NK', that"),
    "unknown weight": (None, {"class_weight": {"nk": 2}}, "'nk', which is no cell type: there are"),
}


@pytest.mark.parametrize(("make", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_init__refused_before_reading(make, options, message, monkeypatch, tmp_path):
    old, new = halves()
    monkeypatch.chdir(tmp_path)
    model = (make or (lambda adata: streamtrain.train(adata, "cell_type", **SMALL)))(old)
    model.save("m.zarr")
    monkeypatch.setattr(sys.modules["streamtrain.local"], "first_pass", None)
    with pytest.raises(InputError, match=message):
        streamtrain.train(new, "cell_type", **SMALL | {"init": model} | options)


def test_init__command_line(tmp_path, capsys):
    paths = []
    for name, adata in zip(("old", "new"), halves(), strict=True):
        (tmp_path / name).mkdir()
        paths.append(stores.write(adata, tmp_path / name, "h5ad"))
    small = ("--use-sgd", "--mini-batch", "--batch-size", 100, "--batch-number", 4, "--epochs", 2)
    small += ("--labels", "cell_type", "--quiet", "--out")
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    assert call(capsys, "train", paths[0], *small, first)[0] == 0
    code, _, err = call(capsys, "train", paths[1], *small, second, "--init", first)
    assert code == 0, err
    by_path = streamtrain.train(paths[1], "cell_type", init=first, **SMALL)
    equal(Model.load(second), by_path)
    runs = Model.load(second).provenance
    assert [run["sources"][0]["name"] for run in (*runs["init"], runs)] == [*map(str, paths)]
    code, _, err = call(capsys, "train", paths[1], "--labels", "cell_type", "--out", "x.zarr",
                        "--init", first)  # fmt: skip
    assert code == 2
    assert "init adds cells to a model by SGD: pass use_SGD=True" in err


def test_add__warns_of_another_step(caplog):
    """A `step` is compared as one, whatever number it came to; without it, that number."""
    adata = atlas.make()
    model = streamtrain.train(adata, "cell_type", step="auto", **SMALL)
    eta0 = model.settings["eta0"]
    for more, words in (
        ({"step": "auto"}, None),
        ({"learning_rate": "constant", "eta0": eta0}, None),
        ({"step": 3.0}, "the model was trained with step='auto', and goes on with step=3.0"),
        ({}, "trained with learning_rate='constant', and goes on with learning_rate='optimal'"),
    ):
        caplog.clear()
        streamtrain.train(adata, "cell_type", init=model, **SMALL | more)
        assert ("goes on with" in caplog.text) == bool(words)
        assert (words or "") in caplog.text
