"""Trials side by side against models trained alone, step by step, on the cells of other folds."""

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score

import streamtrain
from streamtrain import judged as judged_module
from streamtrain import trials
from streamtrain.calibration import Calibration
from streamtrain.cells import Cells, labelled_cells
from streamtrain.config import Settings
from streamtrain.holdout import Folds, folds_of
from streamtrain.quotas import Quotas
from streamtrain.sampling import Plan, dropped_genes
from streamtrain.sources import open_source
from tests import atlas

ALPHAS, STEPS, FOLDS, EPOCHS = (1e-4, 0.3), (0.5, 8.0), 3, 6
RUN = atlas.MINI | {
    "batch_size": 40, "batch_number": 3, "epochs": EPOCHS, "average": True, "dtype": "float64",
    "alpha": list(ALPHAS), "step": list(STEPS), "folds": FOLDS, "n_iter_no_change": EPOCHS,
    "progress": False,
}  # fmt: skip
PLAN = {"batch_size": 40, "batch_number": 3, "epochs": EPOCHS, "shuffle": True, "seed": 0}


def make():
    """Types that are hard to tell apart, one of them in one donor alone."""
    adata = atlas.make(n_obs=240, n_vars=40, dtype=np.float64)
    rng = np.random.default_rng(3)
    labels = adata.obs["cell_type"].astype(str).to_numpy(copy=True)
    mixed = rng.random(240) < 0.3
    labels[mixed] = rng.permutation(labels[mixed])
    labels[:9] = "odd"  # of D0
    adata.obs["cell_type"] = pd.Categorical(labels)
    adata.obs["w"] = rng.choice([0.5, 1.0, 2.0], 240)
    return adata


@pytest.fixture(scope="module")
def adata():
    return make()


def cells_of(adata, labels="cell_type"):
    return labelled_cells(open_source(adata), labels, where=None, drop_unlabeled=False)


def scaled(adata):
    X = np.asarray(adata.X.todense())
    X = X[:, X.sum(axis=0) > 0]
    return np.minimum((X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1), 10)


def alone(Z, codes, n_classes, left_out, batches, alpha, step, corrects):
    """Averaged SGD, cell by cell, without those left out: weights after each epoch.

    `batches` holds for each epoch the cells and the dropped genes of each batch. The prior is
    `corrects`-ed to the shares of the cells.
    """
    first, without = batches[0][0]
    eta = step / np.mean(np.sum(np.where(without, 0, Z[first]) ** 2, axis=1))
    W, b, sum_W, sum_b, n = np.zeros((n_classes, Z.shape[1])), np.zeros(n_classes), 0, 0, 0
    found, drawn, cells_of = [], np.zeros(n_classes), np.bincount(codes[~left_out], None, n_classes)
    for epoch in batches:
        for cells, without in epoch:
            for i in cells:
                if left_out[i]:
                    continue
                z = np.where(without, 0, Z[i])
                slope = (codes[i] == np.arange(n_classes)) - expit(W @ z + b)
                W = (1 - eta * alpha) * W + eta * np.outer(slope, z)
                b = b + eta * slope
                sum_W, sum_b, n = sum_W + W, sum_b + b, n + 1
                drawn[codes[i]] += 1
        shift = np.zeros(n_classes)
        if corrects:
            odds = [(k + 0.5) / (k.sum() - k + 0.5) for k in (cells_of, drawn)]
            shift = np.where((cells_of > 0) & (drawn > 0), np.log(odds[0] / odds[1]), 0)
        found.append((sum_W / n, sum_b / n + shift))
    return found


def by_hand(adata, plan, folds, weight, *, gene_dropout=0.0, correct_prior=False):
    """Of each setting macro-F1 (epochs, folds), and scores of all cells after each epoch.

    Judged are the cells that have a `weight`.
    """
    Z, cells = scaled(adata), cells_of(adata)
    codes, n_classes = cells.codes, len(cells.classes)
    batches, number = [], itertools.count()
    for epoch in range(EPOCHS):
        order = plan.epoch(epoch)
        parts = np.split(order, range(PLAN["batch_size"], len(order), PLAN["batch_size"]))
        drop = [dropped_genes(Z.shape[1], gene_dropout, 0, next(number)) for _ in parts]
        batches.append(list(zip(parts, drop, strict=True)))
    found = {}
    for alpha, step in itertools.product(ALPHAS, STEPS):
        f1, scores = np.empty((EPOCHS, folds.n)), np.full((EPOCHS, len(codes), n_classes), -np.inf)
        for fold in range(folds.n):
            own = folds.of == fold
            known = np.unique(codes[~own])
            judged = own & np.isin(codes, known) & (weight > 0)
            weights = alone(Z, codes, n_classes, own, batches, alpha, step, correct_prior)
            for epoch, (W, b) in enumerate(weights):
                scores[epoch][np.ix_(own, known)] = Z[own] @ W[known].T + b[known]
                predicted = scores[epoch][judged].argmax(axis=1)
                occurring = np.unique(codes[judged])
                f1[epoch, fold] = f1_score(
                    codes[judged], predicted, labels=occurring, average="macro",
                    sample_weight=weight[judged],
                )  # fmt: skip
        found[alpha, step] = f1, scores
    return found


KEYS = np.array([i * 4 // 240 for i in range(240)], np.uint16)  # the donors
WAYS = {
    "as they come": ({}, {}),
    "donors left out": ({"validation_groups": "donor"}, {}),
    "balanced, with replacement, by donor": (
        {"balance_cell_type": True, "replace": True, "batch_key": "donor"},
        {"balance": True, "replace": True, "batch_key": KEYS},
    ),
    "weighted": ({"sampling_weight": "w", "validation_groups": "donor"}, {"weight": "w"}),
    "quotas": ({"quotas": "equal"}, {"quotas": Quotas.of("equal", list("abcdef"), 40)}),
    "genes dropped": ({"gene_dropout": 0.3}, {}),
    "for the shares of the cells": (
        {"quotas": "equal", "correct_prior": True, "validation_groups": "donor"},
        {"quotas": Quotas.of("equal", list("abcdef"), 40)},
    ),
    "judged by some": ({"validation_groups": "donor", "random_state": 3}, {"seed": 3}),
}


@pytest.mark.parametrize("way", WAYS)
def test_trials__are_models_trained_alone(adata, way, monkeypatch):
    """The scores are rounded to float32: no cell lies so near to a boundary here."""
    more, draws = WAYS[way]
    options = RUN | more | {"calibrate": True}
    if way == "judged by some":
        monkeypatch.setattr(judged_module, "MOST", 150)
    found = streamtrain.cross_validate(adata, "cell_type", **options)
    cells = cells_of(adata)
    groups, seed = more.get("validation_groups"), more.get("random_state", 0)
    folds = folds_of(open_source(adata), cells, n=FOLDS, groups=groups, seed=seed)
    drawing = {"weight": adata.obs["w"].to_numpy()} if "weight" in draws else {}
    plan = Plan(cells.codes, 6, **{"balance": False} | PLAN | draws | drawing)
    judged = judged_module.judged_cells(cells, folds, seed)
    weight = np.bincount(judged.at, judged.weight, 240)
    assert (weight == 1).all() == (way != "judged by some")
    way_of = {name: more[name] for name in ("gene_dropout", "correct_prior") if name in more}
    expected = by_hand(adata, plan, folds, weight, **way_of)
    curves = found.macro_f1.sel(labels="cell_type")
    assert curves.dims == ("trial", "epoch", "fold")
    assert curves["alpha"].values.tolist() == [1e-4, 1e-4, 0.3, 0.3]
    assert curves["step"].values.tolist() == ["0.5", "8.0", "0.5", "8.0"]
    for one, (f1, _) in zip(curves.values, expected.values(), strict=True):
        np.testing.assert_allclose(one, f1, rtol=1e-12)
    assert len(np.unique(curves)) > 30, "the case must tell trials apart"
    values = {setting: f1.mean() for setting, (f1, _) in expected.items()}  # over all epochs
    # The best of those that are clearly better than the first.
    first = expected[ALPHAS[0], STEPS[0]][0].mean(axis=0)
    gains = {setting: f1.mean(axis=0) - first for setting, (f1, _) in expected.items()}
    clear = [s for s, gain in gains.items() if gain.mean() > 2 * gain.std(ddof=1) / FOLDS**0.5]
    best = max(clear or [(ALPHAS[0], STEPS[0])], key=values.get)
    table = found.table
    chosen = table[table["chosen"]]
    assert [*zip(chosen["alpha"], chosen["step"], strict=True)] == [best]
    ranked = [values[setting] for setting in zip(table["alpha"], table["step"], strict=True)]
    np.testing.assert_allclose(table["macro_f1"], ranked, rtol=1e-12)
    assert ranked == sorted(ranked, reverse=True)
    of_folds = np.stack(
        [expected[s][0].mean(axis=0) for s in zip(table["alpha"], table["step"], strict=True)]
    )
    columns = [f"fold_{i + 1}" for i in range(FOLDS)]
    np.testing.assert_allclose(table[columns], of_folds, rtol=1e-12)
    np.testing.assert_allclose(table["sd"], of_folds.std(axis=1, ddof=1), rtol=1e-9)
    assert set(table["epochs"]) == {EPOCHS}
    # Calibrated by the scores of the chosen one at its end.
    [(alpha, step)] = table.loc[table["chosen"], ["alpha", "step"]].to_numpy()
    scores = expected[alpha, step][1][-1]
    theirs = Calibration.fit(scores[judged.at], cells.codes[judged.at], judged.weight)
    ours = found.models["cell_type"].calibration
    for name in ("temperature", "offset"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4), name


@pytest.mark.parametrize("n_types", [2, 4])
def test_trials__without_averages_and_in_float32(n_types):
    """Of two types one column a model; models of float32 differ by little."""
    adata = atlas.make(n_obs=200, n_vars=40, n_types=n_types)
    more = {"average": False, "epochs": 2}
    exact, rough = (
        streamtrain.cross_validate(
            adata, "cell_type", refit=False, **RUN | more | {"dtype": dtype}
        ).macro_f1
        for dtype in ("float64", "float32")
    )
    np.testing.assert_allclose(exact, rough, atol=0.05)
    assert exact.values.max() > 0.7


@pytest.fixture
def ending(adata):
    """How to run trials that end at several epochs, and what comes of it."""
    options = RUN | {"n_iter_no_change": 2, "epochs": 12, "calibrate": True}
    options |= {"alpha": [30.0, 1e-4, 0.3], "validation_groups": "donor"}
    return options, streamtrain.cross_validate(adata, "cell_type", **options)


def same(a, b):
    pd.testing.assert_frame_equal(a.table, b.table)
    np.testing.assert_array_equal(a.macro_f1, b.macro_f1)
    for name, model in a.models.items():
        other = b.models[name]
        assert model.calibration == other.calibration
        np.testing.assert_array_equal(model.coef_, other.coef_)


def test_trials__same_for_any_memory_where_decay_ends_blocks(monkeypatch):
    """A strong penalty ends blocks of cells early, for the trials beside it as well."""
    adata = atlas.make(n_obs=900)
    options = RUN | {"alpha": [1e-3, 1e3], "step": [1.0], "calibrate": True, "dtype": "float32"}
    options |= {"batch_size": 500, "epochs": 6, "n_iter_no_change": 2}
    found = streamtrain.cross_validate(adata, "cell_type", **options)
    monkeypatch.setattr(trials, "models_bytes", lambda *_: 10**18)  # one by one
    same(streamtrain.cross_validate(adata, "cell_type", **options), found)


def test_trials__same_for_any_memory_and_threads(adata, ending, monkeypatch, caplog):
    options, found = ending
    assert found.table["epochs"].nunique() > 1, "the case must end trials at several epochs"
    assert found.table["alpha"][found.table["chosen"]].tolist() == [1e-4], "and choose a later one"
    caplog.set_level(logging.INFO, "streamtrain")
    same(streamtrain.cross_validate(adata, "cell_type", n_jobs=1, **options), found)
    assert "settings at a time" not in caplog.text
    for module, name, value in (
        (trials, "models_bytes", lambda *_: 10**18),  # one by one
        (trials, "_SCORING", 1e-9),  # one model at a time scores ...
        (trials, "sweep_bytes", lambda _: 4000),  # ... few cells at a time
    ):
        monkeypatch.setattr(module, name, value)
    same(streamtrain.cross_validate(adata, "cell_type", n_jobs=2, **options), found)
    assert "1 settings at a time" in caplog.text


def test_trials__each_ends_where_it_rises_no_more(adata, ending):
    """And the others go on: what they give does not depend on it."""
    options, found = ending
    whole = streamtrain.cross_validate(
        adata, "cell_type", refit=False, **options | {"n_iter_no_change": 12}
    )
    for ours, full in zip(found.macro_f1.values[0], whole.macro_f1.values[0], strict=True):
        n = int(np.isfinite(ours[:, 0]).sum())
        np.testing.assert_array_equal(ours[:n], full[:n])
        assert np.isnan(ours[n:]).all()
        means = full.mean(axis=1)
        # Each epoch with the next; neither of the last two pairs beats all before them.
        pairs = (means[:-1] + means[1:]) / 2
        ends = (e for e in range(4, 13) if max(pairs[e - 3 : e - 1]) <= max(pairs[: e - 3]))
        assert n == next(ends, 12)


def test_trials__equal_ones_keep_their_order(monkeypatch):
    """Of trials alike the first is taken, with its own calibration, whichever comes together."""
    adata = atlas.make(n_obs=240, n_vars=120, n_types=3)
    options = RUN | {"step": [1.0, 2.0], "alpha": [1e-6, 1e-5], "calibrate": True, "epochs": 4}
    found = streamtrain.cross_validate(adata, "cell_type", **options)
    assert found.table["macro_f1"].tolist() == [1.0] * 4, "the case must have ties"
    assert found.table[["alpha", "step"]].to_numpy().tolist() == [
        [1e-6, 1.0], [1e-6, 2.0], [1e-5, 1.0], [1e-5, 2.0],
    ]  # fmt: skip
    assert found.table["chosen"].tolist() == [True, False, False, False]
    monkeypatch.setattr(trials, "models_bytes", lambda *_: 10**18)
    same(streamtrain.cross_validate(adata, "cell_type", **options), found)


CHOICES = {
    "the first, by default": ([[5, 5, 5]], 0),
    "not clearly better": ([[5, 5, 5], [9, 5, 5]], 0),
    "clearly better": ([[5, 5, 5], [6, 7, 6]], 1),
    "better wherever the first is worse": ([[1, 5, 9], [2, 6, 10]], 1),
    "the best of those that are": ([[5, 5, 5], [6, 6, 7], [7, 7, 6], [3, 3, 99]], 2),
    "the first of equals": ([[5, 5, 5], [7, 6, 6], [6, 7, 6]], 1),
    "none is": ([[5, 5, 5], [5, 5, 5], [4, 4, 4]], 0),
}


@pytest.mark.parametrize(("folds", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_chosen(folds, expected):
    """By the mean over the last two epochs."""
    runs = [[[99, 99, 99], np.array(f) - 1, np.array(f) + 1] for f in folds]
    found = [trials.Trial(0.1, 1.0, np.array(run, float), 2) for run in runs]
    assert [trial.folds.tolist() for trial in found] == folds
    assert trials._chosen(found) == expected


@pytest.mark.parametrize("n_types", [2, 5])
def test_trials__refit_is_training_with_the_chosen(n_types):
    adata = atlas.make(n_obs=240, n_vars=40, n_types=n_types)
    options = RUN | {"n_iter_no_change": 2, "epochs": 8, "calibrate": True, "dtype": "float32"}
    options["alpha"] = [30.0, 1e-4]  # the first is bad
    found = streamtrain.cross_validate(adata, "cell_type", **options)
    model = found.models["cell_type"]
    [best] = [row for _, row in found.table.iterrows() if row["chosen"]]
    chosen = {name: best[name] for name in ("alpha", "step", "epochs")}
    assert chosen["alpha"] == 1e-4
    assert {name: model.settings[name] for name in chosen} == chosen
    plain = RUN | chosen | {"folds": None, "n_iter_no_change": 5, "dtype": "float32"}
    again = streamtrain.train(adata, "cell_type", **plain)
    for name in ("coef", "intercept", "coef_last", "mean", "scale", "n_averaged"):
        np.testing.assert_array_equal(model.dataset[name], again.dataset[name], err_msg=name)
    assert again.calibration is None
    assert model.dataset.attrs["t"] == again.dataset.attrs["t"]
    assert model.settings["eta0"] == again.settings["eta0"]
    trained = streamtrain.train(adata, "cell_type", **options)
    np.testing.assert_array_equal(trained.coef_, model.coef_)
    assert trained.calibration == model.calibration
    report = model.provenance["cross_validation"]
    assert len(report) == 4
    [folds] = [row["folds"] for row in report if row["chosen"]]
    assert folds == best[["fold_1", "fold_2", "fold_3"]].tolist()
    pd.testing.assert_frame_equal(
        pd.DataFrame(report).drop(columns="folds"),
        found.table.drop(columns=["labels", "fold_1", "fold_2", "fold_3"]),
    )


# What is judged


def cells_with(counts):
    codes = np.repeat(np.arange(len(counts)), counts)
    codes = np.random.default_rng(0).permutation(codes).astype(np.int32)
    return Cells(None, codes, np.array([f"t{k}" for k in range(len(counts))], object))


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=7),
    most=st.integers(7, 200),
    seed=st.integers(0, 99),
)
def test_judged_cells(counts, most, seed):
    """In each fold all of rare types, of the others as many as there is room for, one at least."""
    cells = cells_with(counts)
    folds = Folds((np.arange(cells.n_obs) % 3).astype(np.uint8), 3, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged_module, "MOST", most)
        judged = judged_module.judged_cells(cells, folds, seed)
    assert (np.diff(judged.at) > 0).all()
    np.testing.assert_array_equal(judged.codes, cells.codes[judged.at])
    np.testing.assert_array_equal(judged.fold, folds.of[judged.at])
    there, taken = np.zeros((2, 3, len(counts)), int)
    np.add.at(there, (folds.of, cells.codes), 1)
    np.add.at(taken, (judged.fold, judged.codes), 1)
    np.testing.assert_array_equal(taken, np.minimum(there, taken.max()))
    n = np.count_nonzero(there)
    assert taken.sum() == sum(counts) or most - n < taken.sum() <= max(most, n)
    # The sampled ones stand for those that are not.
    stand_for = np.zeros(there.shape)
    np.add.at(stand_for, (judged.fold, judged.codes), judged.weight)
    np.testing.assert_allclose(stand_for, there)
    assert judged.nbytes == len(judged.at) * (8 + 4 + 1 + 8)
    assert judged.score_bytes == 4 * len(judged.at) * len(counts)


def test_judged_cells__of_a_small_fold():
    """A donor of two cells among 10,000 has them all judged, and its macro-F1 is a number."""
    cells, of = cells_with([6000, 4000]), np.zeros(10_000, np.uint8)
    of[5000:], of[[17, 9000]] = 1, 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged_module, "MOST", 100)
        judged = judged_module.judged_cells(cells, Folds(of, 3, "donor"), seed=0)
    assert judged.at[judged.fold == 2].tolist() == [17, 9000]


def test_judged_cells__are_drawn():
    cells, folds = cells_with([300, 5]), Folds(np.zeros(305, np.uint8), 1, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judged_module, "MOST", 30)
        one, two, again = (judged_module.judged_cells(cells, folds, seed).at for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert len(set(one) & set(two)) < 20


@pytest.mark.parametrize("weighted", [False, True])
def test_macro_f1__as_sklearn(weighted):
    rng = np.random.default_rng(0)
    for n in (1, 5, 300):
        true, predicted = rng.integers(0, 6, (2, n))
        weight = rng.choice([1.0, 3.5], n) if weighted else np.ones(n)
        expected = f1_score(
            true, predicted, labels=np.unique(true), average="macro", sample_weight=weight
        )
        assert judged_module.macro_f1(true, predicted, weight) == pytest.approx(expected, rel=1e-12)


def test_trials_of__every_alpha_with_every_step():
    config = Settings(**{name: value for name, value in RUN.items() if name != "progress"})
    found = trials.trials_of(config)
    assert [(c.alpha, c.step) for c in found] == list(itertools.product(ALPHAS, STEPS))
