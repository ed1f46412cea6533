"""Groups held out of training, and found again by evaluation."""

import logging
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError
from streamtrain.cells import select_rows
from streamtrain.splits import split
from tests import atlas, stores

SMALL = atlas.MINI | {"batch_size": 50, "batch_number": 2, "epochs": 1, "progress": False}


@pytest.fixture
def cells():
    """600 cells of 12 donors of different sizes, and columns with odd names and values."""
    adata = atlas.make()
    rng = np.random.default_rng(4)
    donor = rng.choice(12, 600, p=rng.dirichlet(np.full(12, 3)))
    adata.obs["donor"] = pd.Categorical([f"D{k}" for k in donor])
    adata.obs["number"] = donor * 10
    odd = np.array(["it's, `odd`", 'a "b"', "c,d", "c", None], object)
    adata.obs["study name"] = pd.Categorical(odd[donor % 5])
    adata.obs["with gaps"] = np.where(donor == 3, np.nan, donor)
    adata.obs["primary"] = donor > 5
    return adata


def held_of(adata, where=None, **asked):
    options = {"holdout": None, "fraction": None, "group": None, "seed": 0} | asked
    with closing(streamtrain.open_source(adata)) as source:
        return split(source, where, **options)


def rows_of(adata, where):
    with closing(streamtrain.open_source(adata)) as source:
        return select_rows(source, where).tolist()


NAMED = {
    "donor=D3": ["D3"],
    "donor = D11, D3,D3": ["D11", "D3"],
    "number=30,110": [30, 110],
    "study name=c,d": ["c,d"],
    "study name=c,it's, `odd`,c,d": ["c", "c,d", "it's, `odd`"],
    'study name=a "b"': ['a "b"'],
    "with gaps=11,0": [0, 11],
    "primary=True": [True],
}


@pytest.mark.parametrize(("holdout", "values"), NAMED.items(), ids=NAMED)
def test_split__named_groups(cells, holdout, values):
    held = held_of(cells, holdout=holdout)
    assert sorted(held.values) == values
    inside = cells.obs[holdout.split("=")[0].strip()].isin(values).to_numpy()
    assert (held.n_cells, held.n_rest) == (inside.sum(), (~inside).sum())
    assert rows_of(cells, held.where) == np.flatnonzero(inside).tolist()
    assert rows_of(cells, held.rest) == np.flatnonzero(~inside).tolist()


def test_split__of_the_cells_that_are_selected(cells):
    held = held_of(cells, "n < 300 or primary", holdout="donor=D3,D7")
    chosen = (cells.obs["n"] < 300) | cells.obs["primary"]
    inside = cells.obs["donor"].isin(["D3", "D7"])
    assert rows_of(cells, held.where) == np.flatnonzero(chosen & inside).tolist()
    assert rows_of(cells, held.rest) == np.flatnonzero(chosen & ~inside).tolist()


def test_split__drawn_groups(cells):
    shares, chosen = [], set()
    for seed in range(40):
        held = held_of(cells, fraction=0.3, group="donor", seed=seed)
        again = held_of(cells[::-1].copy(), fraction=0.3, group="donor", seed=seed)
        assert held == again  # whatever order the cells come in
        shares.append(held.n_cells / 600)
        chosen |= set(held.values)
    assert chosen == set(cells.obs["donor"])
    assert len(set(shares)) > 5
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    assert 0.15 < min(shares) < max(shares) < 0.45


@pytest.mark.parametrize("fraction", [1e-6, 0.999])
def test_split__some_are_held_out_and_some_are_left(cells, fraction):
    for seed in range(5):
        held = held_of(cells, fraction=fraction, group="donor", seed=seed)
        assert len(held.values) == (1 if fraction < 0.5 else 11)
    if fraction < 0.5:
        assert held.values == [cells.obs["donor"].value_counts().idxmin()]


def test_split__missing_values_stay(cells):
    held = held_of(cells, fraction=0.999, group="with gaps")
    lacking = cells.obs["with gaps"].isna()
    assert lacking.any()
    assert set(np.flatnonzero(lacking)) <= set(rows_of(cells, held.rest))


REFUSED = {
    "column": ({"holdout": "doner=D3"}, "no obs column 'doner': did you mean 'donor'?"),
    "value": ({"holdout": "donor=D3,D99"}, "never holds 'D99': did you mean"),
    "group": ({"test_fraction": 0.2, "group": "doner"}, "group: .* did you mean 'donor'?"),
    "one group": ({"test_fraction": 0.2, "group": "one"}, "has one group alone, 'x'"),
    "none left": ({"holdout": "one=x"}, "all 600 cells are held out .one x., and none are left"),
    "none there": (
        {"holdout": "donor=D3", "where": "donor == 'D1'"},
        "where=.* selects no cell with 'donor=D3'",
    ),
    "both": ({"holdout": "donor=D3", "group": "donor"}, "leave one out"),
    "no group": ({"test_fraction": 0.2}, "pass it with group"),
    "no fraction": ({"group": "donor"}, "pass it with group"),
    "no share": ({"test_fraction": 1.0, "group": "donor"}, "test_fraction must be a number above"),
    "no values": ({"holdout": "donor"}, "a column of obs and its values"),
    "a list": ({"holdout": ["D3"]}, "a column of obs and its values"),
    "no name": ({"test_fraction": 0.2, "group": 3}, "group must name a column"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_train__refuses_a_split(cells, options, words):
    cells.obs["one"] = pd.Categorical(["x"] * 600)
    with pytest.raises(InputError, match=words):
        streamtrain.train(cells, "cell_type", **SMALL, **options)


def test_train__leaves_out_what_is_held_out(cells, caplog):
    caplog.set_level(logging.INFO, "streamtrain")
    model = streamtrain.train(cells, "cell_type", holdout="number=30,70", **SMALL)
    same = streamtrain.train(cells, "cell_type", where="number not in [30, 70]", **SMALL)
    np.testing.assert_array_equal(model.coef_, same.coef_)
    n_held = int(cells.obs["number"].isin([30, 70]).sum())
    assert f"{n_held} cells are held out: number 30, 70" in caplog.text
    told = {"column": "number", "values": [30, 70], "n_cells": n_held}
    assert model.provenance["held_out"] == told
    assert model.settings["holdout"] == "number=30,70"
    assert model.settings["where"] is None
    assert "held_out" not in same.provenance


def test_train__a_saved_model_names_the_cells_of_the_draw(cells, tmp_path):
    path = stores.write(cells, tmp_path, "h5ad")
    options = {"test_fraction": 0.3, "group": "donor", "random_state": 5, "where": "n >= 100"}
    streamtrain.train(path, "cell_type", **options, **SMALL).save(tmp_path / "m.zarr")
    found = streamtrain.evaluate_model(tmp_path / "m.zarr", path, "cell_type", progress=False)
    drawn = streamtrain.evaluate_model(
        tmp_path / "m.zarr", path, "cell_type", progress=False, **options
    )
    assert found.cells["groups"] == drawn.cells["groups"]
    assert found.cells["held_out"] is drawn.cells["held_out"] is True
    pd.testing.assert_frame_equal(found.confusion, drawn.confusion)
    donors = found.cells["groups"]["values"]
    inside = (cells.obs["n"] >= 100) & cells.obs["donor"].isin(donors)
    assert found.n_cells == inside.sum()


def test_cross_validate__leaves_out_what_is_held_out(cells):
    found = streamtrain.cross_validate(
        cells, ["cell_type"], holdout="donor=D3", folds=2, **SMALL
    ).models["cell_type"]
    assert found.provenance["held_out"]["values"] == ["D3"]
    assert found.provenance["n_cells"] == (cells.obs["donor"] != "D3").sum()


def test_evaluate_model__asks_for_cells_held_out(cells):
    model = streamtrain.train(cells, "cell_type", holdout="donor=D3", **SMALL)
    other = cells[cells.obs["donor"] != "D3"].copy()
    with pytest.raises(InputError, match="has none of the cells that training held out, donor D3"):
        streamtrain.evaluate_model(model, other, "cell_type", held_out=True, progress=False)
    found = streamtrain.evaluate_model(model, other, "cell_type", progress=False)
    assert found.n_cells == other.n_obs
    assert found.cells["held_out"] is None


def test_train__holds_out_a_file(cells, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        stores.write(cells, tmp_path / name, "h5ad").rename(tmp_path / f"{name}.h5ad")
    X = [tmp_path / f"{name}.h5ad" for name in ("a", "b", "c")]
    with closing(streamtrain.open_source(X)) as source:
        file = str(source.obs("file").iloc[700])
    model = streamtrain.train(X, "cell_type", holdout=f"file={file}", **SMALL)
    assert model.provenance["n_cells"] == 1200
    found = streamtrain.evaluate_model(model, X, "cell_type", progress=False)
    alone = streamtrain.evaluate_model(model, X[1], "cell_type", progress=False)
    pd.testing.assert_frame_equal(found.confusion, alone.confusion)
