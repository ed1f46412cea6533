"""The command line: whole commands in processes of their own, their words and exit codes."""

import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError, Model, cli, logs
from streamtrain.cli.settings import Given
from streamtrain.gpu.device import Device
from tests import atlas, stores
from tests.commands import call
from tests.models import assert_same

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cwd, code=0):
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-W", "error", "-m", "streamtrain", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    stores.write(atlas.make(), path, "h5ad")
    return path


TRAIN = ("--use-sgd", "--mini-batch", "--batch-size", 100, "--batch-number", 4, "--epochs", 2)


def test_cli__train_then_predict(folder):
    done = run(
        "train", "atlas.h5ad", "--labels", "cell_type", "--out", "m.zarr", "--celltypist", "m.pkl",
        "--where", "donor != 'D3'", "--random-state", 7, *TRAIN, cwd=folder,
    )  # fmt: skip
    assert "saved as m.zarr and for CellTypist as m.pkl" in done.stdout
    assert "5 cell types" in done.stderr
    same = streamtrain.train(
        folder / "atlas.h5ad", "cell_type", where="donor != 'D3'", random_state=7, use_SGD=True,
        mini_batch=True, batch_size=100, batch_number=4, epochs=2, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(Model.load(folder / "m.zarr").coef_, same.coef_)
    run("predict", "m.zarr", "atlas.h5ad", "--out", "p.parquet", "--quiet", cwd=folder)
    table = pd.read_parquet(folder / "p.parquet")
    assert table.columns.tolist() == ["cell", "predicted_labels", "conf_score"]
    assert len(table) == 600


def test_cli__settings_by_cell_type(folder, capsys, tmp_path):
    train = ("train", folder / "atlas.h5ad", "--labels", "cell_type", *TRAIN, "--quiet", "--out")
    code, _, err = call(
        capsys, *train, tmp_path / "m.zarr", "--quotas.B", 7, "--quotas.T CD4", 30,
        "--class-weight.NK", 2.5, "--batch-key", "donor",
    )  # fmt: skip
    assert (code, err) == (0, "")
    kept = Model.load(tmp_path / "m.zarr").settings
    assert kept["quotas"] == {"B": 7, "T CD4": 30}
    assert kept["class_weight"] == {"NK": 2.5}
    assert kept["batch_key"] == "donor"
    named = ("--quotas", "equal", "--replace", "--class-weight", "balanced", "--overwrite")
    code, _, err = call(capsys, *train, tmp_path / "m.zarr", *named)
    assert (code, err) == (0, "")
    kept = Model.load(tmp_path / "m.zarr").settings
    assert (kept["quotas"], kept["class_weight"], kept["replace"]) == ("equal", "balanced", True)
    code, out, err = call(capsys, *train, tmp_path / "n.zarr", "--quotas.T.B", "many")
    assert code != 0
    assert "'B' needs a number; got 'many'" in out + err
    code, _, err = call(capsys, *train, tmp_path / "n.zarr", "--quotas.T.B", 5)
    assert code == 2
    assert "quotas names 'T.B', which is no cell type" in err


RECIPE = """
use_SGD = true
mini_batch = true
batch_size = 100
batch_number = 2
epochs = 3
average = true
alpha = [1e-4, 1e-2]
step = [1.0, 3.0]
folds = 2
calibrate = true
"""


def test_cli__recipe_and_what_beats_it(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(RECIPE)
    train = ("train", folder / "atlas.h5ad", "--labels", "cell_type", "--recipe", "own.toml")
    train += ("--quiet", "--overwrite", "--out", "m.zarr")
    assert call(capsys, *train) == (0, "", "")
    model = Model.load("m.zarr")
    kept = model.settings
    assert (kept["recipe"], kept["folds"], kept["average"]) == ("own.toml", 2, True)
    assert model.calibration is not None
    assert len(model.provenance["cross_validation"]) == 4
    given = ("--alpha", "1e-3", "--step", "auto", "--folds", 3, "--no-calibrate")
    assert call(capsys, *train, *given) == (0, "", "")
    model = Model.load("m.zarr")
    [row] = model.provenance["cross_validation"]
    assert (row["alpha"], row["step"], len(row["folds"])) == (1e-3, "auto", 3)
    assert model.calibration is None
    steps = ("--step", "auto", "--step", 2)
    assert call(capsys, *train, "--alpha", 1e-3, "--alpha", 1, *steps)[0] == 0
    report = Model.load("m.zarr").provenance["cross_validation"]
    assert sorted(row["alpha"] for row in report) == [1e-3, 1e-3, 1, 1]
    assert {row["step"] for row in report} == {"auto", 2}
    wrong = ["atals" if word == "own.toml" else word for word in train]
    code, _, err = call(capsys, *wrong)
    assert code == 2
    assert "there is no file 'atals'" in err


def test_cli__atlas(folder, capsys, caplog, tmp_path):
    """Our own recipe, but for fewer cells."""
    code, out, _ = call(
        capsys, "train", folder / "atlas.h5ad", "--labels", "cell_type", "--recipe", "atlas",
        "--validation-groups", "donor", "--folds", 3, "--batch-size", 50, "--batch-number", 2,
        "--epochs", 2, "--out", tmp_path / "m.zarr",
    )  # fmt: skip
    assert code == 0
    assert "in 3 folds (donor)" in caplog.text
    assert "calibrated streamtrain model with 5 cell types" in out
    assert Model.load(tmp_path / "m.zarr").settings["balance_cell_type"] is True


CHOICE = ("--alpha", 1e-4, "--alpha", 0.1, "--folds", 2, *TRAIN, "--average", 1)


def test_cli__cross_validate(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = ("--labels", "cell_type", "--labels", "donor")
    command = ("cross-validate", folder / "atlas.h5ad", *labels, "--out", "rank.csv", *CHOICE)
    code, out, err = call(capsys, *command)
    assert code == 0
    assert "saved as rank.csv, rank.cell_type.zarr, rank.donor.zarr" in out
    assert "macro_f1" in out
    table = pd.read_csv("rank.csv")
    same = streamtrain.cross_validate(
        folder / "atlas.h5ad", ["cell_type", "donor"], alpha=[1e-4, 0.1], folds=2, batch_size=100,
        batch_number=4, epochs=2, average=True, progress=False,
    )  # fmt: skip
    pd.testing.assert_frame_equal(
        table.drop(columns="step"), same.table.drop(columns="step"), check_dtype=False
    )
    for name, model in same.models.items():
        np.testing.assert_array_equal(Model.load(f"rank.{name}.zarr").coef_, model.coef_)
    made = sorted(p.name for p in tmp_path.iterdir())
    assert made == ["rank.cell_type.zarr", "rank.csv", "rank.donor.zarr"]
    code, _, err = call(capsys, *command)
    assert code == 2
    assert "rank.csv" in err
    assert "exists" in err
    Path("rank.csv").unlink()
    code, _, err = call(capsys, *command)
    assert code == 2
    assert "rank.cell_type.zarr" in err
    assert not Path("rank.csv").exists()
    assert call(capsys, *command, "--overwrite", "--quiet") == (0, "", "")
    pd.testing.assert_frame_equal(pd.read_csv("rank.csv"), table)


@pytest.mark.parametrize("read", ["X", "genes", "labels[0]", "gene_list"])
def test_cli__cross_validate_keeps_its_inputs(capsys, tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("kept")
    given = {"X": "table.csv", "labels[0]": "cell_type"} | {read: "mine.csv"}
    more = [w for name in ("genes", "gene_list") if name in given
            for w in (f"--{name.replace('_', '-')}", "mine.csv")]  # fmt: skip
    code, _, err = call(
        capsys, "cross-validate", given["X"], "--labels", given["labels[0]"], *more,
        "--out", "mine.csv", "--overwrite",
    )  # fmt: skip
    assert code == 2
    assert f"out='mine.csv' is what {read} names, and would replace it" in err
    assert Path("mine.csv").read_text() == "kept"


def test_cli__cross_validate_ranks_alone(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(
        capsys, "cross-validate", folder / "atlas.h5ad", "--labels", "cell_type", "--no-refit",
        "--out", "rank.v1.csv", *CHOICE,
    )  # fmt: skip
    assert code == 0
    assert out.endswith("saved as rank.v1.csv\n")
    assert [p.name for p in tmp_path.iterdir()] == ["rank.v1.csv"]


def test_cli__cross_validate_names_models_by_their_columns(folder, capsys, tmp_path, monkeypatch):
    """Also of columns that differ after a dot alone."""
    monkeypatch.chdir(tmp_path)
    adata = atlas.make()
    adata.obs = adata.obs.rename(columns={"cell_type": "celltype.l1", "donor": "celltype.l2"})
    adata.write_h5ad("a.h5ad")
    labels = ("--labels", "celltype.l1", "--labels", "celltype.l2")
    code, _, _ = call(capsys, "cross-validate", "a.h5ad", *labels, "--out", "r.csv", *CHOICE)
    assert code == 0
    types = {n: len(Model.load(f"r.celltype.l{n}.zarr").cell_types) for n in (1, 2)}
    assert types == {1: 5, 2: 4}


WRONG = {
    "suffix": (["--labels", "a", "--out", "r.txt"], "--out must end in .csv; got 'r.txt'"),
    "labels": (
        ["--labels", "x/a.txt", "--labels", "y/a.txt", "--out", "r.csv"],
        "--labels must differ, in the names of files too; got 'x/a.txt', 'y/a.txt'",
    ),
    "model": (["--labels", "a", "--out", "there.csv", "--overwrite"], "there.a.zarr"),
    "setting": (["--labels", "a", "--out", "r.csv", "--early-stopping"], "folds cross-validates"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_cli__cross_validate_refuses_before_reading(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("there.a.zarr").mkdir()
    Path("there.a.zarr", "mine").write_text("no model")
    code, _, err = call(capsys, "cross-validate", "none.h5ad", *arguments)
    assert code == 2
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["there.a.zarr"]


def test_cli__predict_in_place(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    streamtrain.train(folder / "atlas.h5ad", "cell_type", tol=0.1, progress=False).save("m.zarr")
    shutil.copy(folder / "atlas.h5ad", "new.h5ad")
    call(
        capsys, "predict", "m.zarr", "new.h5ad", "--in-place", "--prefix", "ct_",
        "--majority-voting", "--over-clustering", "donor", "--min-prop", 0.9, "--quiet",
    )  # fmt: skip
    obs = ad.read_h5ad("new.h5ad").obs
    assert obs.columns[-3:].tolist() == [
        "ct_over_clustering",
        "ct_majority_voting",
        "ct_conf_score",
    ]
    assert set(obs["ct_majority_voting"]) == {"Heterogeneous"}
    for outputs, message in (((), "--out FILE, or --in-place"), (IN_PLACE_TOO, "not both")):
        code, _, err = call(capsys, "predict", "m.zarr", "new.h5ad", *outputs)
        assert code == 2
        assert message in err


IN_PLACE_TOO = ("--out", "p.csv", "--in-place")


def test_cli__quiet_says_nothing(folder):
    done = run(
        "train", "atlas.h5ad", "--labels", "cell_type", "--out", "q.zarr", "--quiet",
        cwd=folder,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_cli__leaves_the_logs_as_they_were(folder, capsys, tmp_path, quiet):
    """Handlers and levels, also where a command fails."""
    loggers = [logging.getLogger(name) for name in (None, "streamtrain")]
    loggers[1].setLevel(logging.DEBUG)
    before = [(log.level, log.propagate, log.handlers[:]) for log in loggers]
    more = ["--quiet"] if quiet else []
    for labels, code in (("cell_type", 0), ("none", 2)):
        words = ["train", folder / "atlas.h5ad", "--labels", labels, "--tol", 0.1, *more]
        assert call(capsys, *words, "--out", tmp_path / f"{labels}.zarr")[0] == code
        assert [(log.level, log.propagate, log.handlers) for log in loggers] == before
    call(capsys, "inspect", folder / "atlas.h5ad")
    assert [(log.level, log.propagate, log.handlers) for log in loggers] == before
    loggers[1].setLevel(logging.NOTSET)


WORKING = {
    "train": ["a", "--labels", "x", "--out", "m"],
    "cross-validate": ["a", "--labels", "x", "--out", "r.txt"],
    "predict": ["m", "a"],
    "evaluate": ["m", "a", "--labels", "x"],
    "convert": ["a", "--out", "m"],
    "simulate": ["--out", "m"],
    "demo": [],
}


@pytest.mark.parametrize("command", WORKING)
@pytest.mark.parametrize("options", [{}, {"quiet": True}, {"log_json": True}])
def test_cli__commands_of_long_runs_say_what_is_asked_for(capsys, monkeypatch, command, options):
    class BegunError(InputError):
        pass

    def begin(**given):
        raise BegunError(json.dumps(given))

    monkeypatch.setattr(logs, "begin", begin)
    flags = [f"--{name.replace('_', '-')}" for name in options]
    code, _, err = call(capsys, command, *WORKING[command], *flags)
    assert code == 2
    told = json.loads(err.splitlines()[0].removeprefix("streamtrain: "))
    if options == {"log_json": True}:  # the error itself is JSON
        told = json.loads(told["message"])
    assert told == {"quiet": False, "log_json": False} | options


@pytest.mark.filterwarnings("always::sklearn.exceptions.ConvergenceWarning")
def test_cli__log_json_is_json_alone(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_json", False)
    words = ("train", folder / "atlas.h5ad", "--labels", "cell_type", "--out", tmp_path / "m.zarr")
    showed = warnings.showwarning
    code, _, err = call(capsys, *words, "--max-iter", 1, "--log-json")
    assert code == 0
    said = [json.loads(line) for line in err.splitlines()]
    assert {"INFO", "WARNING"} <= {each.get("level") for each in said}
    assert any("ConvergenceWarning" in each.get("message", "") for each in said)
    assert warnings.showwarning is showed
    code, _, err = call(capsys, *words, "--log-json", "--quiet")
    assert code == 2
    (line,) = err.splitlines()
    told = json.loads(line)
    assert told["level"] == "ERROR"
    assert "exists: pass overwrite=True" in told["message"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "--config", "none.toml"), "no file of --config at 'none.toml'"),
        (("predict",), "MODEL requires an argument"),
        (("recipes", "--nope"), "Unknown option"),
    ],
)
def test_cli__log_json_holds_for_what_fails_first(capsys, monkeypatch, words, told):
    monkeypatch.setattr(logs, "_json", False)
    code, out, err = call(capsys, *words, "--log-json")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert told in json.loads(line)["message"]
    code, _, err = call(capsys, "recipes", "nope")
    assert (code, err.partition(":")[0]) == (2, "streamtrain")


@pytest.mark.parametrize("lines", [1, 10_000])
def test_cli__says_nothing_where_the_reader_of_its_output_has_enough(lines):
    script = (
        "from streamtrain import cli, recipes\nimport sys\nsys.stdin.readline()\n"
        f"recipes.text = lambda name: {lines} * (99 * 'x' + '\\n')\n"
        "cli.main(['recipes', 'atlas'])"
    )
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", script], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write("go on\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


def documented(doc):
    """Names that a numpydoc docstring documents."""
    return re.findall(r"^(\w+)$", inspect.getdoc(doc).partition("----------")[2], re.MULTILINE)


@pytest.mark.parametrize("command", sorted(cli._COMMANDS))
def test_cli__an_option_is_documented_once(command):
    """By its command, or where several have it by their group or its type."""
    function = inspect.unwrap(cli._COMMANDS[command].command)
    hints = get_type_hints(function, include_extras=True)
    own, shared = [], []
    for name in inspect.signature(function).parameters:
        (extra,) = getattr(hints[name], "__metadata__", (None,))
        if extra is not None and "*" in extra.name:
            group = hints[name].__origin__
            ancestors = [each for each in group.__mro__[:-1] if each.__doc__]
            shared += [option for each in ancestors for option in documented(each)]
            assert group is Given or {*shared} >= {f.name for f in fields(group)}
        elif extra is not None and extra.help:
            shared.append(name)
        else:
            own.append(name)
    assert documented(function) == own
    # The settings' "source" is a text; the input of that name comes first.
    assert len({*own, *shared} - {"source"}) == len([n for n in own + shared if n != "source"])


def test_cli__every_setting_is_an_option(capsys):
    code, out, _ = call(capsys, "train", "--help")
    assert code == 0
    for name in streamtrain.Settings().to_dict():
        assert f"--{name.lower().replace('_', '-')}" in out


MISTAKES = {
    "no such file": (["train", "none.h5ad", "--labels", "a"], "none.h5ad"),
    "no such column": (["train", "atlas.h5ad", "--labels", "celltype"], "did you mean 'cell_type'"),
    "bad value": (["train", "atlas.h5ad", "--labels", "cell_type", "--alpha", "-1"], "alpha must"),
    "batch": (
        ["train", "atlas.h5ad", "--labels", "cell_type", "--use-sgd", "--mini-batch"],
        "lower batch_size (--batch-size)",
    ),
    "not an anndata": (["train", "text.h5ad", "--labels", "a"], "text.h5ad"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_cli__mistakes_end_in_one_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    Path("text.h5ad").write_text("no HDF5")
    code, out, err = call(capsys, *arguments, "--out", "x.zarr")
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not Path("x.zarr").exists()


def test_cli__existing_output_is_refused_before_reading(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Path("there.zarr").mkdir(exist_ok=True)
    code, _, err = call(capsys, "train", "none.h5ad", "--labels", "a", "--out", "there.zarr")
    assert code == 2
    assert "exists" in err


@pytest.mark.parametrize("option", ["out", "celltypist", "both", "suffix"])
def test_cli__outputs_are_checked_before_reading(folder, capsys, monkeypatch, tmp_path, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / ".zgroup").write_text("{}")
    out, pkl, message = {
        "out": ("store.zarr", "m.pkl", "is not a streamtrain model"),
        "celltypist": ("m.zarr", "store.zarr", "store.zarr"),
        "both": ("same.pkl", "same.pkl", "--out and --celltypist must differ"),
        "suffix": ("m.zarr", "atlas.h5ad", "--celltypist must end in .pkl"),
    }[option]
    code, _, err = call(
        capsys, "train", folder / "none.h5ad", "--labels", "cell_type", "--out", out,
        "--celltypist", pkl, "--overwrite",
    )  # fmt: skip
    assert code == 2
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.zarr"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cli__stopped_by_a_signal_leaves_nothing(folder, tmp_path, number):
    """While a block of predictions is being written."""
    streamtrain.train(folder / "atlas.h5ad", "cell_type", tol=0.1, progress=False).save(
        tmp_path / "m.zarr"
    )
    big = atlas.make(n_obs=30_000, n_vars=120)
    big.write_h5ad(tmp_path / "big.h5ad")
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", SLOW, "predict", "m.zarr", "big.h5ad", "--out", "p.csv"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        # Under nohup, as CI may run, the signal would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        begun = False
        for _ in range(600):
            begun = bool(list(tmp_path.glob(".p.csv*")))
            if begun:
                break
            time.sleep(0.1)
        process.send_signal(number if begun else signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert begun
    assert process.returncode == 128 + number
    assert {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number] in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.h5ad", "m.zarr"]


# The command line with small, slow blocks.
SLOW = """
import time, sys
from streamtrain import annotating, cli, querying
real = annotating.annotate
querying.blocks_within = lambda *_: (10**6, 50)
annotating.annotate = lambda *a: time.sleep(0.1) or real(*a)
cli.main(sys.argv[1:])
"""


def test_cli__help_is_shown_as_it_is_written(capsys):
    """No mark of the text is taken for one of Markdown."""
    _, out, _ = call(capsys, "train", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert "(AWS_ACCESS_KEY_ID and so on), not here" in words


@pytest.mark.parametrize("command", ["train", "predict"])
def test_cli__help_names_every_input(capsys, command):
    _, out, _ = call(capsys, command, "--help")
    words = " ".join(out.replace("│", " ").split())
    for kind in (".h5ad", "zarr", ".csv", ".mtx", "10x folder"):
        assert kind in words


def test_cli__unknown_option_names_the_near_one(capsys):
    code, out, err = call(capsys, "train", "x", "--labels", "a", "--out", "b", "--epoch", "3")
    assert code != 0
    assert "--epochs" in out + err


def test_cli__help_starts_quickly():
    """What takes long is not loaded for it: 0.4 s."""
    code = "import sys, streamtrain.cli as cli\ntry: cli.main(['-h'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # noqa: S603
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "streamtrain.cli" in loaded
    assert loaded & {"numba", "h5py", "zarr", "anndata", "xarray", "sklearn", "dask"} == set()


def test_cli__debug_tells_where(capsys, tmp_path):
    arguments = "train", tmp_path / "no.h5ad", "--labels", "x", "--out", tmp_path / "model.zarr"
    code, _, plain = call(capsys, *arguments)
    assert code == 2
    assert plain.removesuffix("help: streamtrain faq file-missing\n").count("\n") == 1
    code, _, words = call(capsys, *arguments, "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in words
    assert words.endswith(plain)


@pytest.mark.slow
def test_cli__demo(tmp_path):
    done = run("demo", cwd=tmp_path)
    made = sorted(p.name for p in (tmp_path / "streamtrain-demo").iterdir())
    assert made == [
        "atlas.zarr", "celltypist.pkl", "model.zarr", "predictions.parquet", "report.html",
    ]  # fmt: skip
    macro = float(re.search(r"macro F1 +([\d.]+)", done.stdout)[1])
    assert 0.65 < macro < 0.95
    assert "type_00" in done.stdout
    again = run("demo", cwd=tmp_path, code=2)
    assert "exists" in again.stderr


def smaller(words):
    """The words of a command that simulates, for 500 cells, 200 genes and few types and donors."""
    sizes = {"--cells": "500", "--genes": "200", "--cell-types": "4", "--donors": "3"}
    assert set(sizes) < set(words)
    return [sizes.get(before, word) for before, word in zip([None, *words], words, strict=False)]


# The pages that share their files, in the order of reading, and what their commands are.
PAGES = {
    "README.md": "inspect train report train predict recipes config train predict evaluate",
    "docs/training.md": "train train",
    "docs/long-runs.md": "train",
    "docs/gpu.md": "train predict",
    "docs/cluster.md": "train",
    "docs/building-blocks.md": "convert",
    "docs/figures.md": "simulate",
    "docs/models.md": "inspect convert-model convert-model",
}


@pytest.mark.slow
def test_readme__its_examples_run(folder, tmp_path, monkeypatch):
    """The commands and the Python of README and the pages, on a small atlas of those names."""
    adata = atlas.make()
    adata.obs = adata.obs.rename(columns={"donor": "donor_id"})
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B": "B cell"})
    adata.obs["compartment"] = np.where(adata.obs["cell_type"] == "B cell", "immune", "other")
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    adata.obs["leiden"] = pd.Categorical(np.arange(600) % 40)
    adata.write_h5ad(tmp_path / "new.h5ad")
    monkeypatch.chdir(tmp_path)
    try:
        gpu = Device.gpu()
    except streamtrain.InputError:
        gpu = None
    code = ""
    for page, named in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "@@" not in text
        blocks = re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
        code += "".join(block for kind, block in blocks if kind == "python")
        lines = "".join(block for kind, block in blocks if kind == "bash").splitlines()
        commands = [line.split() for line in lines if line.startswith("streamtrain ")]
        told = re.findall(r"`(streamtrain convert-model [^`]+)`", text)
        commands += [line.split() for line in told]
        assert " ".join(words[1] for words in commands) == named, page
        for _, *words in commands:
            if words[0] == "simulate":
                words = smaller(words)
            if "old.pkl" in words:
                Path("model.pkl").rename("old.pkl")
            if "gpu" in words and not gpu:
                assert "device='gpu'" in run(*words, cwd=tmp_path, code=2).stderr
                continue
            words, _, file = " ".join(words).partition(" > ")
            done = run(*words.split(), cwd=tmp_path)
            if file:
                Path(file).write_text(done.stdout)
    Path("old.pkl").rename("model.pkl")
    adata.X = adata.layers["counts"]
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    for made in ("model.zarr", "model.pkl", "report.html"):
        assert Path(made).exists()
    model, again = (streamtrain.Model.load(path) for path in ("model.zarr", "again.zarr"))
    assert_same(again, model)  # of the file that `config` wrote
    os.rename("model.zarr", "first.zarr")  # noqa: PTH104
    Path("model.pkl").unlink()
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own pages
