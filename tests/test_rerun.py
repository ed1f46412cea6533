"""A model's own file of its command: what it says, and that it gives the same model to the bit."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import streamtrain
from streamtrain import InputError, Model
from streamtrain.config import Settings
from streamtrain.provenance import asked
from streamtrain.rerun import _toml, to_toml
from tests import atlas, stores
from tests.commands import call

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "mouse_bm_paul15.h5ad"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rerun")
    stores.write(atlas.make(), path, "h5ad")
    return path


@pytest.fixture(autouse=True)
def here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("atlas.h5ad").symlink_to(folder / "atlas.h5ad")
    return tmp_path


def again(capsys, model, table="train"):
    """The model that the command of the file of `model` gives, and the file's table."""
    code, text, err = call(capsys, "config", model)
    assert (code, err) == (0, "")
    Path("run.toml").write_text(text, encoding="utf-8")
    words = "--config", "run.toml", "--out", "again.zarr", "--quiet", "--overwrite"
    assert call(capsys, "train", *words) == (0, "", "")
    return Model.load("again.zarr"), tomllib.loads(text)[table]


def assert_same(one, other):
    assert set(one.dataset.variables) == set(other.dataset.variables)
    for name, variable in one.dataset.variables.items():
        np.testing.assert_array_equal(variable.values, other.dataset[name].values, err_msg=name)
    assert one.calibration == other.calibration
    assert one.settings | {"recipe": None} == other.settings
    assert one.provenance.get("held_out") == other.provenance.get("held_out")
    assert one.provenance.get("cross_validation") == other.provenance.get("cross_validation")


SGD = ("--use-sgd", "--mini-batch", "--batch-size", 100, "--batch-number", 4, "--epochs", 3)
RECIPE = ("--recipe", "atlas", "--folds", 3, "--batch-size", 50, "--batch-number", 2)
RAW = ("--layer", "counts", "--normalize", "log1p", "--gene-key", "feature_name")
WAYS = {
    "optimum": ("--c", 0.5),
    "no penalty": ("--penalty", "none", "--max-iter", 50, "--tol", 0.1),
    "SGD": (*SGD, "--average", 300, "--class-weight.B", 2.5, "--class-weight.T CD4", 1),
    "whole epochs": ("--use-sgd", "--tol", "none", "--max-iter", 4),
    "steps": (*SGD, "--step", "auto", "--average", "true", "--batch-key", "donor", "--quotas.B", 9),
    "recipe": (*RECIPE, "--epochs", 4, "--validation-groups", "donor"),
    "cells": (*SGD, "--where", 'donor != "D1"', "--holdout", "donor=D0"),
    "drawn": (*SGD, "--test-fraction", 0.3, "--group", "donor", "--random-state", 5),
    "features": (*SGD, "--feature-selection", "--top-genes", 9, *RAW),
    "texts": ("--source", 'a "study"\n\x7f 細胞', "--details", "none", "--memory", "1GB"),
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_config__gives_the_same_model(capsys, options):
    code, _, _ = call(
        capsys, "train", "atlas.h5ad", "--labels", "cell_type", "--out", "m.zarr", *options
    )
    assert code == 0
    model = Model.load("m.zarr")
    found, table = again(capsys, "m.zarr")
    assert_same(model, found)
    defaults = vars(Settings())
    settings = {k: v for k, v in table.items() if k in defaults and k != "source"}
    assert {k: v for k, v in settings.items() if v == defaults[k]} == {}
    assert table["source"] == ["atlas.h5ad"]
    # And what is said of the second is what is said of the first.
    lines = [to_toml(m, "it").partition("[train]")[2] for m in (model, found)]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="needs the shared data")
@pytest.mark.parametrize(
    "options",
    [
        ("--max-iter", 200),
        SGD,
        ("--recipe", "quick-look", "--holdout", "batch=1"),
        (*RECIPE, "--calibrate", "--validation-groups", "batch", "--where", "batch != '2'"),
    ],
    ids=["optimum", "SGD", "quick-look", "folds"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_config__gives_the_same_model_of_real_cells(capsys, options):
    groups = ad.read_h5ad(REAL, backed="r").obs["batch"].astype(str).unique()
    options = [str(word).replace("batch=1", f"batch={groups[0]}") for word in options]
    code, _, _ = call(
        capsys, "train", REAL, "--labels", "cell_type", "--normalize", "log1p", "--out", "m.zarr",
        *options,
    )  # fmt: skip
    assert code == 0
    found, _ = again(capsys, "m.zarr")
    assert_same(Model.load("m.zarr"), found)


def test_config__several_files_labels_and_models(capsys, folder):
    """A list of files, labels in a file, a model to go on from, under the names as given."""
    adata = atlas.make()
    adata[:300].write_h5ad("a.h5ad")
    adata[300:].write_h5ad("b.h5ad")
    words = ("--labels", "cell_type", "--join", "outer", *SGD)
    assert call(capsys, "train", "a.h5ad", "b.h5ad", *words, "--out", "m.zarr", "--quiet")[0] == 0
    found, table = again(capsys, "m.zarr")
    assert_same(Model.load("m.zarr"), found)
    assert table["source"] == ["a.h5ad", "b.h5ad"]
    Path("labels.txt").write_text("\n".join(adata.obs["cell_type"]))
    words = ("--labels", "labels.txt", "--init", "m.zarr", *SGD)
    assert call(capsys, "train", "atlas.h5ad", *words, "--out", "n.zarr", "--quiet")[0] == 0
    found, table = again(capsys, "n.zarr")
    assert_same(Model.load("n.zarr"), found)
    assert (table["labels"], table["init"]) == ("labels.txt", "m.zarr")


def test_config__of_cross_validation_with_several_columns(capsys):
    words = ("--labels", "cell_type", "--labels", "donor", "--alpha", 1e-4, "--alpha", 0.1)
    words += ("--folds", 2, *SGD, "--quiet", "--overwrite")
    assert call(capsys, "cross-validate", "atlas.h5ad", *words, "--out", "r.csv")[0] == 0
    code, text, _ = call(capsys, "config", "r.donor.zarr")
    assert code == 0
    Path("run.toml").write_text(text)
    assert "streamtrain cross-validate --config FILE --out ranking.csv" in text
    assert tomllib.loads(text)["cross-validate"]["labels"] == ["cell_type", "donor"]
    words = ("--config", "run.toml", "--out", "s.csv", "--quiet")
    assert call(capsys, "cross-validate", *words) == (0, "", "")
    for name in ("cell_type", "donor"):
        assert_same(Model.load(f"r.{name}.zarr"), Model.load(f"s.{name}.zarr"))


IN_MEMORY = {
    "source": ({}, lambda a: (a, "cell_type"), "in memory: AnnData of cells"),
    "labels": (
        {},
        lambda a: ("atlas.h5ad", a.obs["cell_type"].tolist()),
        "in memory: list of labels",
    ),
    "sampling_weight": (
        {"sampling_weight": np.ones(600)},
        lambda _: ("atlas.h5ad", "cell_type"),
        "in memory: a number a cell",
    ),
}


@pytest.mark.parametrize("key", IN_MEMORY)
def test_config__of_values_in_memory_says_so_and_is_refused(capsys, key):
    more, inputs, told = IN_MEMORY[key]
    model = streamtrain.train(
        *inputs(atlas.make()), use_SGD=True, mini_batch=True, batch_size=100, epochs=1,
        progress=False, **more,
    )  # fmt: skip
    model.save("m.zarr")
    code, text, _ = call(capsys, "config", "m.zarr")
    assert code == 0
    value = tomllib.loads(text)["train"][key]
    assert value in (told, [told])
    if key != "sampling_weight":
        assert f"# Write {key} to a file, and name it below: it was in memory." in text
    Path("run.toml").write_text(text)
    words = "train", "--config", "run.toml", "--out", "again.zarr"
    code, _, err = call(capsys, *words)
    assert code == 2
    assert f"run.toml: {key} was given {told}, which a file cannot hold: write it to a file" in err
    if key == "source":  # what the command line gives the file need not have
        assert call(capsys, words[0], "atlas.h5ad", *words[1:], "--quiet")[0] == 0
        np.testing.assert_array_equal(Model.load("again.zarr").coef_, model.coef_)


def test_config__of_a_model_as_warm_start_is_refused(capsys):
    quick = {"tol": 0.1, "progress": False}
    before = streamtrain.train("atlas.h5ad", "cell_type", **quick)
    streamtrain.train("atlas.h5ad", "cell_type", warm_start=before, **quick).save("m.zarr")
    _, text, _ = call(capsys, "config", "m.zarr")
    Path("run.toml").write_text(text)
    code, _, err = call(capsys, "train", "--config", "run.toml", "--out", "again.zarr")
    assert code == 2
    assert "run.toml: warm_start was given in memory: a Model, which a file cannot hold" in err


def test_train__keeps_a_model_whose_atlas_moved_meanwhile(monkeypatch):
    module = importlib.import_module("streamtrain.train")
    made_from = module.made_from

    def moved(*arguments):
        Path("atlas.h5ad").unlink()
        return made_from(*arguments)

    monkeypatch.setattr(module, "made_from", moved)
    model = streamtrain.train(
        "atlas.h5ad", "cell_type", use_SGD=True, mini_batch=True, batch_size=100, progress=False
    )
    assert model.provenance["sources"] == [{"name": "atlas.h5ad", "n_obs": 600, "n_vars": 120}]


def test_config__keeps_no_credentials():
    options = {
        "aws_region": "eu-west-1", "endpoint": "https://user:word@host", "endpoint_url": "http://h",
        "timeout": "?x=word",
        "access_key_id": "AKIA", "aws_secret_access_key": "s3cret", "token": "t0ken",
        "skip_signature": True, "azure_storage_account_key": "k3y", "google_service_account": "f",
    }  # fmt: skip
    from streamtrain.decode.address import located

    X = located("https://user:word@host/a.h5ad?sig=s3cret", {})
    kept = asked(X, ["cell_type"], None, options, Settings())
    assert kept["storage_options"] == {
        "aws_region": "eu-west-1", "endpoint_url": "http://h", "skip_signature": "true",
    }  # fmt: skip
    assert kept["source"] == ["https://host/a.h5ad"]
    words = json.dumps(kept)
    for secret in ("word", "AKIA", "s3cret", "t0ken", "k3y"):
        assert secret not in words


@pytest.mark.parametrize("how", ["subset", "convert", "celltypist"])
def test_config__of_a_model_that_no_command_gave_is_refused(capsys, how):
    model = streamtrain.train("atlas.h5ad", "cell_type", tol=0.1, progress=False)
    if how == "subset":
        model.subset(["B", "NK"]).save("m.zarr")
    elif how == "convert":
        Path("map.csv").write_text("".join(f"GENE{i},NEW{i}\n" for i in range(120)))
        model.convert("map.csv", unique_only=False).save("m.zarr")
    else:
        model.to_celltypist("m.pkl")
        Model.from_celltypist("m.pkl").save("m.zarr")
    code, out, err = call(capsys, "config", "m.zarr")
    assert (code, out) == (2, "")
    assert "m.zarr does not know the command that trained it" in err
    with pytest.raises(InputError, match="train it anew"):
        to_toml(Model.load("m.zarr"), "m")


@pytest.mark.parametrize(
    "change",
    [{"run": {}}, {"run": "train"}, {"run": {"source": [], "labels": "x", "settings": 3}}],
    ids=str,
)
def test_config__of_a_record_of_another_form_is_refused(change):
    model = streamtrain.train("atlas.h5ad", "cell_type", tol=0.1, progress=False)
    other = Model(model.dataset.assign_attrs(provenance=model.provenance | change))
    with pytest.raises(InputError, match="does not know the command"):
        to_toml(other, "m.zarr")
    told = model.provenance | {"trained": "now\n[predict]\nout = 'x'\x00"}
    text = to_toml(Model(model.dataset.assign_attrs(provenance=told)), "a\nb\x7f")
    assert list(tomllib.loads(text)) == ["train"]


@pytest.mark.parametrize(
    "value",
    [
        "a\"b'\\\n\t\x7f\x01 é 細胞 😀",
        1,
        1e-5,
        0.1,
        1e300,
        True,
        [1, "a", [2.5]],
        {"a b.c": 1, "é": 2},
    ],
    ids=repr,
)
def test_toml__round_trip(value):
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


def test_config__prints_alone(here):
    """Nothing beside the file on standard output, so that it can go to one."""
    streamtrain.train("atlas.h5ad", "cell_type", tol=0.1, progress=False).save("m.zarr")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "streamtrain", "config", "m.zarr"],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert done.stderr == ""
    assert tomllib.loads(done.stdout)["train"]["tol"] == 0.1
