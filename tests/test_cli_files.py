"""Files of options: what they may hold, what wins over what, and how mistakes in them are told."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import Model, cli
from streamtrain.cli import files
from tests import atlas, stores
from tests.commands import call

SGD = "use_SGD = true\nmini_batch = true\nbatch_size = 100\nbatch_number = 3\nepochs = 2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    stores.write(atlas.make(), path, "h5ad")
    return path


@pytest.fixture(autouse=True)
def here(folder, tmp_path, monkeypatch):
    """An empty folder with the atlas in it."""
    monkeypatch.chdir(tmp_path)
    Path("atlas.h5ad").symlink_to(folder / "atlas.h5ad")
    return tmp_path


def bound(*words):
    """What a command would be called with, all groups of options flattened."""
    _, arguments, _ = cli.app.parse_args([*map(str, words)], exit_on_error=False)
    flat = {}
    for name, value in arguments.arguments.items():
        inner = getattr(value, "given", None) or getattr(value, "__dict__", None)
        flat |= inner if inner and not isinstance(value, Path) else {name: value}
    return flat


def test_config__every_option_of_train(folder, capsys):
    Path("run.toml").write_text(
        '[predict]\nout = "p.parquet"\n'
        '[train]\nsource = "atlas.h5ad"\nlabels = "cell_type"\nout = "m.zarr"\n'
        'celltypist = "m.pkl"\noverwrite = true\ncheckpoint = "kept"\ncheckpoint-every = 60\n'
        f"quiet = true\nwhere = \"donor != 'D3'\"\nalpha = [1e-3, 0.1]\nfolds = 2\n{SGD}"
        'class_weight = {B = 2, "T CD4" = 0.5}\n"--source" = "a study"\n'
    )
    assert call(capsys, "train", "--config", "run.toml") == (0, "", "")
    assert Path("m.pkl").is_file()
    model = Model.load("m.zarr")
    same = streamtrain.train(
        "atlas.h5ad", "cell_type", where="donor != 'D3'", alpha=[1e-3, 0.1], folds=2, use_SGD=True,
        mini_batch=True, batch_size=100, batch_number=3, epochs=2, source="a study",
        class_weight={"B": 2, "T CD4": 0.5}, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(model.coef_, same.coef_)
    assert model.settings == same.settings


def test_config__both_spellings_and_what_wins():
    """Command line > file > recipe that the file names > defaults."""
    Path("own.toml").write_text("batch_size = 50\nbatch-number = 7\nepochs = 9\ntol = 'none'\n")
    Path("c.toml").write_text(
        "[train]\nsource = ['a.h5ad', 'b.h5ad']\nlabels = 'x'\nout = 'm.zarr'\n"
        "recipe = 'own.toml'\nbatch-number = 8\nepochs = 10\nwith_mean = true\nworkers = 3\n"
    )
    found = bound("train", "--config", "c.toml", "--epochs", 11, "--no-with-mean", "--quiet")
    assert found["source"] == ["a.h5ad", "b.h5ad"]
    assert (found["labels"], found["out"], found["quiet"]) == ("x", Path("m.zarr"), True)
    assert found["workers"] == 3
    kept = streamtrain.Settings.from_keywords(
        {k: v for k, v in found.items() if k in streamtrain.Settings().to_dict()}
        | {"use_SGD": True}
    )
    assert (kept.batch_size, kept.batch_number, kept.epochs, kept.tol) == (50, 8, 11, None)
    assert kept.with_mean is False
    assert bound("train", "z.h5ad", "--config", "c.toml")["source"] == ["z.h5ad"]


@pytest.mark.parametrize(
    ("command", "text", "wanted"),
    [
        (
            "cross-validate",
            "source = 'a'\nlabels = ['x', 'y']\nout = 'r.csv'\nrefit = false\nstep = ['auto', 2]",
            {"labels": ["x", "y"], "refit": False, "step": ["auto", 2.0]},
        ),
        (
            "predict",
            "model = 'm'\nsource = 'a'\nmode = 'prob match'\nmin_prop = 1\nmemory = 2000000000",
            {"model": "m", "source": ["a"], "mode": "prob match", "min_prop": 1.0}
            | {"memory": "2000000000"},
        ),
        (
            "evaluate",
            "model = 'm'\nsource = 'a'\nlabels = 'x'\njson = true\nheld-out = false\ntop_k = 5.0",
            {"as_json": True, "held_out": False, "top_k": 5},
        ),
        (
            "convert",
            "sources = ['a', 'b']\nout = 'o.zarr'\nshuffle = true\nchunk_size = 1e5\n"
            "storage_options = {region = 'eu', allow_http = true}",
            {"sources": ["a", "b"], "shuffle": True, "chunk_size": 100_000}
            | {"storage_options": {"region": "eu", "allow_http": "true"}},
        ),
        ("simulate", "out = 'a.zarr'\ncells = 500", {"cells": 500}),
        ("inspect", "source = 'a'\nlabels = 'x'", {"source": ["a"], "labels": "x"}),
        ("demo", "folder = 'there'", {"folder": Path("there")}),
        ("convert-model", "model = 'a.pkl'\nout = 'b.pkl'", {"out": Path("b.pkl")}),
        (
            "train",
            "source = 'a'\nlabels = 'x'\nout = 'm'\ngene_list = ['G']\njoin = ['A', 'B']\nC = inf\n"
            "average = 300\npenalty = 'none'\nlayer = 'none'\ndate = 2026-01-31\n"
            "quotas.T.CD4 = 5\nquotas.'B.x' = 6",
            {"gene_list": ["G"], "join": ["A", "B"], "C": np.inf, "average": 300, "penalty": None}
            | {"layer": "none", "date": "2026-01-31", "quotas": {"T.CD4": 5, "B.x": 6}},
        ),
    ],
)  # fmt: skip
def test_config__values_are_read_as_the_command_line_reads_them(command, text, wanted):
    Path("c.toml").write_text(f"[{command.replace('-', '_')}]\n{text}\n")
    found = bound(command, "--config", "c.toml")
    assert {name: found[name] for name in wanted} == wanted


TRAIN = "[train]\nsource = 'atlas.h5ad'\nlabels = 'cell_type'\nout = 'm.zarr'\n"
WRONG = {
    "no file": (None, "no file of --config at 'c.toml': correct the path"),
    "no TOML": ("[train", "c.toml is no TOML file: Expected ']' at the end of a table"),
    "a recipe": (
        "alpha = 1",
        "c.toml: 'alpha' stands before any table: write it below [train], or pass a file of "
        "settings alone as --recipe",
    ),
    "table": (
        "[trian]\nalpha = 1",
        "c.toml: no command has the name of the table [trian]: did you mean 'train'?",
    ),
    "other table": ("[predict]\nout = 'a'", "c.toml has no table [train]: it has 'predict'"),
    "key": (
        f"{TRAIN}batchsize = 3",
        "c.toml: no option 'batchsize' of train: did you mean 'batch_size'",
    ),
    "key of another": (f"{TRAIN}shuffel = true", "no option 'shuffel' of train: did you mean 'shu"),
    "config in it": (f"{TRAIN}config = 'd.toml'", "no option 'config' of train"),
    "twice": (
        f"{TRAIN}batch_size = 3\nbatch-size = 4",
        "c.toml: batch-size is there twice, spelled in two ways: leave one out",
    ),
    "text for a number": (
        f"{TRAIN}batch_size = 'many'",
        "c.toml: batch_size must be a whole number; got 'many'",
    ),
    "fraction": (f"{TRAIN}epochs = 2.5", "c.toml: epochs must be a whole number; got 2.5"),
    "switch": (f"{TRAIN}quiet = 'maybe'", "c.toml: quiet must be true or false; got 'maybe'"),
    "true for a number": (f"{TRAIN}epochs = true", "epochs must be a whole number; got True"),
    "true for a text": (f"{TRAIN}memory = true", "memory must be a whole number or text or 'none'"),
    "several": (f"{TRAIN}epochs = [1, 2]", "c.toml: epochs must be a whole number; got [1, 2]"),
    "none of several": (
        f"{TRAIN}alpha = []",
        "c.toml: alpha must be a list of numbers or a number; got []",
    ),
    "wrong in a list": (
        f"{TRAIN}alpha = [1, 'x']",
        "c.toml: alpha must be a list of numbers or a number; got [1, 'x']",
    ),
    "list in a list": (f"{TRAIN}alpha = [[1], [2]]", "got [[1], [2]]"),
    "no table": (f"{TRAIN}epochs = {{a = 1}}", "epochs must be a whole number; got {'a': 1}"),
    "wrong in a table": (
        f"{TRAIN}quotas = {{B = 'x'}}",
        "c.toml: quotas must be a table or 'equal' or 'none'; got {'B': 'x'}",
    ),
    "no choice": (
        f"{TRAIN}penalty = 'l3'",
        "c.toml: penalty must be 'l2' or 'l1' or 'elasticnet' or 'none'; got 'l3'",
    ),
    "in memory": (
        f"{TRAIN}warm_start = 'in memory: a Model'",
        "c.toml: warm_start was given in memory: a Model, which a file cannot hold: write it to a "
        "file of its own, and name that as warm_start",
    ),
    "out of range": (f"{TRAIN}alpha = -1", "alpha must be a number of at least 0; got -1.0"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_config__mistakes_end_in_one_line(capsys, text, message):
    if text is not None:
        Path("c.toml").write_text(text)
    code, out, err = call(capsys, "train", "--config", "c.toml")
    assert (code, out) == (2, "")
    line, *more = err.splitlines()
    assert line.startswith("streamtrain: ")
    assert message in line
    assert all(each.startswith("help: ") for each in more)
    assert not Path("m.zarr").exists()


def test_config__what_is_still_missing_is_asked_for(capsys):
    Path("c.toml").write_text("[train]\nlabels = 'x'\nout = 'm.zarr'\n")
    code, out, err = call(capsys, "train", "--config", "c.toml")
    assert code != 0
    assert "SOURCE requires an argument" in out + err


@pytest.mark.parametrize("option", ["--config", "--recipe"])
def test_config__comes_from_a_pipe(capsys, option):
    """As of the shell's <(streamtrain config model.zarr)."""
    own, other = os.pipe()
    os.write(other, b"[train]\nepoch = 3\n" if option == "--config" else b"epoch = 3\n")
    os.close(other)
    words = "train", "atlas.h5ad", "--labels", "cell_type", "--out", "m.zarr"
    code, _, err = call(capsys, *words, option, f"/dev/fd/{own}")
    os.close(own)
    assert code == 2
    assert "'epoch'" in err
    assert "'epochs'" in err


def test_config__a_folder_is_no_file(capsys):
    Path("conf").mkdir()
    code, _, err = call(capsys, "train", "--config", "conf")
    assert code == 2
    assert "no file of --config at 'conf': correct the path" in err


def test_config__predict_and_evaluate_from_one_file(capsys):
    Path("all.toml").write_text(
        f"{TRAIN}{SGD}quiet = true\n"
        "[predict]\nmodel = 'm.zarr'\nsource = 'atlas.h5ad'\nout = 'p.csv'\nquiet = true\n"
        "[evaluate]\nmodel = 'm.zarr'\nsource = 'atlas.h5ad'\nlabels = 'cell_type'\n"
        "out = 's.json'\nquiet = true\n"
    )
    for command in ("train", "predict", "evaluate"):
        code, _, err = call(capsys, command, "--config", "all.toml")
        assert (code, err) == (0, "")
    assert len(pd.read_csv("p.csv")) == 600
    assert Path("s.json").is_file()


def test_config__help_tells_of_it(capsys):
    for command in ("train", "cross-validate", "predict", "evaluate", "convert", "inspect", "demo"):
        _, out, _ = call(capsys, command, "--help")
        words = " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())
        assert "What the command line gives wins; then the file; then the recipe" in words
        assert "Paths are relative to the current folder" in words


@pytest.mark.parametrize("command", sorted(cli._COMMANDS))
def test_config__every_option_has_words_for_what_it_takes(command):
    for argument in cli.app[command].assemble_argument_collection():
        if argument.name != "*":
            assert files._worded(argument.hint)
