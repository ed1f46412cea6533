"""Cross-validation from outside: several columns of labels, folds, what is refused, the table."""

import logging
import re
from importlib import import_module

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError, holdout
from streamtrain.cells import Cells, common_rows, labelled_cells
from streamtrain.holdout import folds_of
from streamtrain.sources import open_source
from tests import atlas

RUN = atlas.MINI | {
    "batch_size": 60, "batch_number": 3, "epochs": 3, "average": True, "progress": False
}  # fmt: skip
LOCAL = import_module("streamtrain.local")
TRY = RUN | {"alpha": [1e-3, 0.1], "step": [1.0, 4.0], "folds": 3}


def make(n_obs=300):
    """Besides `cell_type` two other columns of labels, of which one lacks some cells'."""
    adata = atlas.make(n_obs=n_obs, n_vars=60)
    label = adata.obs["cell_type"].astype(str)
    adata.obs["compartment"] = pd.Categorical(np.where(label.str.startswith("T "), "T", "other"))
    fine = label + np.where(np.arange(n_obs) % 2, " a", " b")
    fine[np.arange(n_obs) % 7 == 3] = None
    adata.obs["fine"] = pd.Categorical(fine)
    return adata


@pytest.fixture(scope="module")
def adata():
    return make()


def equal(a, b):
    for name in ("coef", "intercept", "coef_last", "mean", "scale"):
        np.testing.assert_array_equal(a.dataset[name], b.dataset[name], err_msg=name)
    assert a.cell_types.tolist() == b.cell_types.tolist()
    assert a.calibration == b.calibration
    assert a.settings == b.settings


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"validation_groups": "donor", "calibrate": True},
        {"balance_cell_type": True, "replace": True, "batch_key": "donor", "sampling_weight": "n"},
        {"where": "donor != 'D1'", "n_jobs": 1},
    ],
    ids=str,
)
def test_cross_validate__several_columns_are_each_alone(adata, more, monkeypatch):
    """From one reading; to the bit, as each draws its own cells."""
    reads, real = [], LOCAL.first_pass
    monkeypatch.setattr(LOCAL, "first_pass", lambda *a: reads.append(len(a)) or real(*a))
    columns = ["cell_type", "compartment"]
    both = streamtrain.cross_validate(adata, columns, **TRY | more)
    assert len(reads) == 1
    assert list(both.models) == columns
    for column in columns:
        one = streamtrain.cross_validate(adata, column, **TRY | more)
        equal(both.models[column], one.models[column])
        rows = both.table[both.table["labels"] == column].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, one.table)
        np.testing.assert_array_equal(
            both.macro_f1.sel(labels=column), one.macro_f1.sel(labels=column)
        )
        trained = streamtrain.train(adata, column, **TRY | more)
        equal(trained, one.models[column])
        assert both.models[column].provenance["labels"] == column


def test_cross_validate__cells_that_every_column_labels(adata):
    with pytest.raises(InputError, match=r"43 of 300 cells have no label in 'fine'"):
        streamtrain.cross_validate(adata, ["cell_type", "fine"], **TRY)
    both = streamtrain.cross_validate(adata, ["cell_type", "fine"], drop_unlabeled=True, **TRY)
    kept = adata[adata.obs["fine"].notna().to_numpy()].copy()
    for column in ("cell_type", "fine"):
        one = streamtrain.cross_validate(kept, column, drop_unlabeled=True, **TRY)
        equal(both.models[column], one.models[column])


def cells(rows, codes):
    rows = None if rows is None else np.array(rows)
    names = np.array(["a", "b", "c", "d"][: max(codes) + 1], object)
    return Cells(rows, np.array(codes, np.int32), names)


def test_common_rows():
    one, two = (
        cells([0, 2, 3, 5, 9], [0, 1, 2, 3, 1]),
        cells([2, 3, 4, 5, 8, 9], [0, 1, 2, 2, 0, 1]),
    )
    every = cells(None, [3, 0, 1, 1, 0, 2, 0, 1, 1, 2])
    found = common_rows([one, every, two])
    for each in found:
        assert each.rows.tolist() == [2, 3, 5, 9]
        assert each.codes.dtype == np.int32
    assert found[0].classes[found[0].codes].tolist() == ["b", "c", "d", "b"]
    assert found[0].classes.tolist() == ["b", "c", "d"]
    assert found[1].classes[found[1].codes].tolist() == ["b", "b", "c", "c"]
    assert found[2].classes[found[2].codes].tolist() == ["a", "b", "c", "b"]
    assert common_rows([one])[0] is one
    assert common_rows([every, every]) == [every, every]


@pytest.mark.parametrize(
    ("rows", "codes", "words"),
    [
        ([2, 9], [0, 1], "2 cells have a label in each of the 2 columns of labels, and one of"),
        ([2, 9], [0, 1], "these holds 'b' alone there, where training needs two cell types"),
        ([1, 4], [0, 1], "0 cells have a label in each of the 2 columns"),
    ],
)
def test_common_rows__too_few_types(rows, codes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        common_rows([cells([0, 2, 3, 5, 9], [0, 1, 2, 3, 1]), cells(rows, codes)])


def test_cross_validate__table(adata):
    found = streamtrain.cross_validate(adata, ["cell_type", "compartment"], refit=False, **TRY)
    assert found.models == {}
    assert found.table.columns.tolist() == [
        "labels", "alpha", "step", "epochs", "macro_f1", "sd", "chosen",
        "fold_1", "fold_2", "fold_3",
    ]  # fmt: skip
    assert found.table["labels"].tolist() == ["cell_type"] * 4 + ["compartment"] * 4
    assert found.macro_f1.dims == ("labels", "trial", "epoch", "fold")
    assert found.macro_f1["epoch"].values.tolist() == [1, 2, 3]
    assert found.macro_f1["fold"].values.tolist() == [1, 2, 3]
    assert found.macro_f1.sel(labels="compartment").notnull().all()


@pytest.mark.parametrize("form", ["list", "array", "series", "file"])
def test_cross_validate__labels_of_cells(adata, form, tmp_path):
    """As in `train`: a list of them is no list of columns."""
    series = adata.obs["cell_type"].astype(str)
    given = {"list": series.tolist(), "array": series.to_numpy(), "series": series}.get(form)
    if form == "file":
        given = tmp_path / "labels.txt"
        given.write_text("\n".join(series))
    found = streamtrain.cross_validate(adata, given, **TRY)
    name = "labels" if form != "file" else str(given)
    assert set(found.table["labels"]) == {name}
    expected = streamtrain.cross_validate(adata, "cell_type", **TRY)
    equal(found.models[name], expected.models["cell_type"])


def test_cross_validate__five_folds_unless_asked_otherwise(adata, tmp_path):
    """One setting may be all: it is then only judged."""
    run = {k: v for k, v in RUN.items() if k not in atlas.MINI}
    for more in ({}, {"folds": None}):
        found = streamtrain.cross_validate(adata, "cell_type", refit=False, **run | more)
        assert found.table.columns[-1] == "fold_5"
        assert len(found.table) == 1
        assert found.table["step"].tolist() == [None]
    recipe = tmp_path / "own.toml"
    recipe.write_text("folds = 2\nstep = [1, 2]\n")
    found = streamtrain.cross_validate(adata, "cell_type", refit=False, recipe=recipe, **run)
    assert found.table.columns[-1] == "fold_2"
    assert sorted(found.table["step"]) == [1, 2]
    found = streamtrain.cross_validate(
        adata, "cell_type", refit=False, recipe=recipe, folds=3, step="auto", **run
    )
    assert found.table.columns[-1] == "fold_3"
    assert found.table["step"].tolist() == ["auto"]


BAD = {
    "no column": ({"labels": ["cell_type", "celtype"]}, "did you mean 'cell_type'"),
    "twice": ({"labels": ["cell_type", "cell_type"]}, "got 2 labels for 300 cells"),
    "nothing": ({"labels": []}, "got 0 labels for 300 cells"),
    "arrays": (
        {"labels": [np.zeros(300), np.ones(300)]},
        r"label a cell; got shape \(2, 300\)",
    ),
    "none": ({"labels": None}, "needs both X and labels"),
    "one group": (
        {"validation_groups": "one"},
        "validation_groups='one' has one group alone, 'x', and folds hold out whole groups: name",
    ),
    "a group a cell": (
        {"validation_groups": "n"},
        "has 300 groups for 300 cells: name a column of",
    ),
    "no such groups": ({"validation_groups": "donr"}, "donr"),
    "nothing to judge": (
        {"validation_groups": "own"},
        "validation_groups='own': of 2 folds one holds no cell of a type that others have too, so "
        "that nothing can be judged there: ask for fewer folds",
    ),
    "more folds than cells": (
        {"where": "n < 7", "folds": 9, "replace": True},
        "^7 cells: of 9 folds one holds no cell of a type that others have",
    ),
    "logistic": (
        {"use_SGD": False, "step": None, "alpha": 1, "average": False},
        "folds is for use_SGD=True with mini_batch=True",
    ),
    "early": ({"early_stopping": True}, "folds cross-validates, and early_stopping stops by other"),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_cross_validate__bad_input(adata, options, words, monkeypatch):
    """Before anything is read."""
    adata = adata.copy()
    adata.obs["one"] = "x"
    adata.obs["own"] = np.where(adata.obs["compartment"] == "T", "T", "rest")
    monkeypatch.setattr(LOCAL, "first_pass", None)
    with pytest.raises(InputError, match=words):
        streamtrain.cross_validate(adata, **{"labels": "cell_type"} | TRY | options)


# Folds


def source_of(n_obs, **columns):
    adata = atlas.make(n_obs=n_obs, n_vars=20)
    for name, values in columns.items():
        adata.obs[name] = values
    return open_source(adata), labelled_cells(
        open_source(adata), "cell_type", where=None, drop_unlabeled=False
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_folds_of__cells_of_each_type_spread(n):
    source, own = source_of(303)
    folds = folds_of(source, own, n=n, groups=None, seed=0)
    assert (folds.n, folds.by) == (n, None)
    assert np.ptp(np.bincount(folds.of, minlength=n)) <= 1
    for k in range(5):
        assert np.ptp(np.bincount(folds.of[own.codes == k], minlength=n)) <= 1
    again = folds_of(source, own, n=n, groups=None, seed=0)
    np.testing.assert_array_equal(again.of, folds.of)
    assert (folds_of(source, own, n=n, groups=None, seed=1).of != folds.of).any()


def test_folds_of__groups_stay_whole_and_balance():
    sizes = [90, 70, 40, 35, 30, 20, 10, 5]
    rng = np.random.default_rng(0)
    donor = rng.permutation(np.repeat([f"d{i}" for i in range(8)], sizes)).astype(object)
    donor[donor == "d7"] = None  # a missing value is a group like any other
    source, own = source_of(300, donor=pd.Categorical(donor))
    folds = folds_of(source, own, n=3, groups="donor", seed=0)
    assert (folds.n, folds.by) == (3, "donor")
    of_donor = pd.Series(folds.of).groupby(pd.Series(donor).fillna("none")).nunique()
    assert len(of_donor) == 8
    assert (of_donor == 1).all()
    # The largest first, each to the smallest fold: 90, 70, 40 + 35, then 30 to 70, ...
    filled = np.zeros(3, int)
    for size in sizes:
        filled[filled.argmin()] += size
    assert sorted(np.bincount(folds.of)) == sorted(filled)
    again = folds_of(source, own, n=3, groups="donor", seed=0)
    np.testing.assert_array_equal(again.of, folds.of)


def test_folds_of__equal_groups_are_drawn():
    source, own = source_of(300, donor=np.arange(300) % 12)
    found = [folds_of(source, own, n=3, groups="donor", seed=seed).of for seed in range(4)]
    assert len({tuple(of) for of in found}) == 4
    for of in found:
        assert np.bincount(of).tolist() == [100, 100, 100]


def test_folds_of__no_more_folds_than_groups():
    source, own = source_of(300)
    assert folds_of(source, own, n=9, groups="donor", seed=0).n == 4


def test_folds__outside():
    of = np.array([0, 0, 1, 1, 2, 2, 2], np.uint8)
    codes = np.array([0, 1, 0, 1, 2, 2, 1], np.int32)
    found = holdout.Folds(of, 3, None).outside(codes, 4)
    # The third class is in the last fold alone; the fourth in none.
    assert found.tolist() == [[1, 2, 2, 0], [1, 2, 2, 0], [2, 2, 0, 0]]


def test_cross_validate__says_what_it_does(adata, caplog):
    caplog.set_level(logging.INFO, "streamtrain")
    streamtrain.cross_validate(adata, "cell_type", validation_groups="donor", calibrate=True, **TRY)
    assert "cross-validating 4 settings in 3 folds (donor), judged by 300 cells" in caplog.text
    assert len(re.findall(r"alpha \S+, step \S+: macro-F1 0\.\d+, sd 0\.\d+", caplog.text)) == 4
    assert "calibrated by held-out cells: temperature" in caplog.text
    assert "few for mini-batches" not in caplog.text
