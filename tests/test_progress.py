"""Progress on a terminal, in a log, and as JSON."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
import warnings

import pytest
from sklearn.exceptions import ConvergenceWarning

import streamtrain
from streamtrain import logs, progress
from streamtrain.progress import counted, stage
from tests import atlas

LINE = r"Reading: 100% 1\.00k/1\.00k \[00:0\d<00:00, .* ?cells/s, [\d.]+ [MG]B\]"


@pytest.fixture
def as_json(monkeypatch):
    monkeypatch.setattr(logs, "_json", True)


def test_stage__short_ones_are_silent(capsys):
    with stage("Reading", 10, show=True) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [True, False])
def test_stage__a_log_gets_a_last_line(capsys, monkeypatch, show):
    monkeypatch.setattr(progress, "_DELAY", 0)
    with stage("Reading", 1000, show=show) as bar:
        bar.update(1000)
    found = capsys.readouterr().err
    if show:
        assert re.fullmatch(LINE + "\n", found), found
    else:
        assert found == ""


def test_stage__a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    """Also while nothing arrives."""
    monkeypatch.setattr(progress, "_DELAY", 0.05)
    monkeypatch.setattr(progress, "_EVERY", 0.05)
    found = ""
    with stage("Reading", 1000, show=True) as bar:
        bar.update(250)
        until = time.monotonic() + 30
        while found.count("\n") < 2:
            found += capsys.readouterr().err
            assert time.monotonic() < until
            time.sleep(0.01)
    for line in found.splitlines():
        assert re.match(r"Reading:  25% 250/1\.00k \[00:\d\d<00:\d\d", line), line


def test_stage__of_no_known_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0)
    with stage("Training", None, show=True) as bar:
        bar.update(40)
    found = capsys.readouterr().err
    assert re.fullmatch(r"Training: 40\.0 cells \[00:00, .*cells/s, .*B\]\n", found), found


def test_stage__ends_with_its_work(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_DELAY", 0)
    with pytest.raises(ZeroDivisionError), stage("Reading", 10, show=True):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [1000, None])
def test_stage__as_json(as_json, capsys, monkeypatch, total):
    monkeypatch.setattr(progress, "_DELAY", 0)
    with stage("Reading", total, show=True) as bar:
        bar.update(250)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert list(found) == [
        "time", "level", "stage", "done", "total", "unit", "per_second", "seconds", "seconds_left",
        "memory",
    ]  # fmt: skip
    assert (found["stage"], found["done"], found["total"]) == ("Reading", 250, total)
    assert (found["level"], found["unit"]) == ("INFO", "cells")
    assert found["memory"] > 10**7
    if total is None:
        assert found["seconds_left"] is None
    else:
        assert found["seconds_left"] == pytest.approx(750 / found["per_second"], rel=0.1, abs=0.01)


def test_counted__passes_items_on_and_counts_to_the_end(monkeypatch):
    bars = []
    real = progress.counter
    monkeypatch.setattr(progress, "counter", lambda **more: bars.append(real(**more)) or bars[-1])
    items = [(0, "a"), (4, "b"), (9, "c")]
    seen = [(item, bars[0].n) for item in counted(items, "Reading", 12, show=True)]
    assert seen == [((0, "a"), 0), ((4, "b"), 4), ((9, "c"), 9)]
    assert bars[0].n == 12


MOVING = """
import logging, time
from streamtrain import logs, progress
progress._DELAY = 0.2
logs.begin()
with progress.stage("Reading", 1000, show=True) as bar:
    bar.update(250)
    time.sleep(0.5)
    logging.getLogger("streamtrain.x").info("a message")
    bar.update(250)
    time.sleep(1)
"""


def test_stage__moves_on_a_terminal_and_steps_aside_for_messages():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", MOVING], stderr=theirs)  # noqa: S603
    os.close(theirs)
    words = ""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        words += part.decode()
    os.close(ours)
    assert process.wait() == 0
    assert re.search(r"Reading:  50%\|.*500/1\.00k \[.*cells/s, [\d.]+ MB\]", words), words
    assert "\ra message\r\n" in words  # on a line of its own, the bar cleared


SPOKEN = """
import logging, sys, warnings
from streamtrain import logs
logs.begin(quiet="quiet" in sys.argv, log_json=True)
logging.getLogger("streamtrain.train").info("%d cells", 3)
logging.getLogger("streamtrain.train").warning("few cells")
warnings.warn("not converged")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("elsewhere").exception("a fault")
logs.failed("no such file")
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_begin__as_json(quiet):
    command = [sys.executable, "-c", SPOKEN, *(["quiet"] if quiet else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    found = [json.loads(line) for line in done.stderr.splitlines()]
    said = [(f["level"], f["logger"], f["message"]) for f in found]
    if not quiet:
        assert said.pop(0) == ("INFO", "streamtrain.train", "3 cells")
    assert said[0] == ("WARNING", "streamtrain.train", "few cells")
    assert said[1][:2] == ("WARNING", "py.warnings")
    assert "UserWarning: not converged" in said[1][2]
    assert said[2:] == [
        ("ERROR", "elsewhere", "a fault"), ("ERROR", "streamtrain", "no such file")
    ]  # fmt: skip
    assert "ZeroDivisionError" in found[-2]["traceback"]
    assert all(f["time"][:4].isdigit() for f in found)


def test_begin__leaves_what_an_application_set_up():
    words = "import logging; logging.basicConfig(format='mine: %(message)s'); "
    words += "from streamtrain import logs; logs.begin(); "
    words += "logging.getLogger('streamtrain').info('x'); logs.failed('y')"
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr == "mine: x\nstreamtrain: y\n"


def stages(words):
    """Names of the stages that ended, in order."""
    return re.findall(r"^([A-Z][\w ]+): ", words, re.MULTILINE)


def test_stages__of_whole_runs(tmp_path, capsys, monkeypatch):
    """Whatever takes longer with the number of cells is a stage."""
    monkeypatch.setattr(progress, "_DELAY", 0)
    adata = atlas.make()
    adata.X = adata.X.tocsc()
    adata.write_h5ad(path := tmp_path / "atlas.h5ad")
    chosen = {"feature_selection": True, "top_genes": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = streamtrain.train(path, "cell_type", **chosen)
    found = capsys.readouterr().err
    assert stages(found) == [
        "Transposing", "Reading", "Training", "Selecting genes", "Scaling", "Training"
    ]  # fmt: skip
    assert re.search(
        r"^Training: [\d.k]+ cells \[.*, \d of 5 cell types done, [\d.]+ [MG]B", found, re.MULTILINE
    )
    streamtrain.predict(model, path, out=tmp_path / "copy.h5ad")
    assert stages(capsys.readouterr().err) == ["Transposing", "Predicting", "Copying"]
    streamtrain.predict(model, path, progress=False)
    assert capsys.readouterr().err == ""
