"""Runs that are killed, stopped or damaged on the way, and go on to the same bits."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError, cli, first_pass, frozen, journal
from streamtrain.gpu.device import Device
from streamtrain.journal import Journal, StoppedError
from streamtrain.solvers.logistic import Logistic
from streamtrain.trials import Trials
from tests import atlas
from tests.killed import KilledError, killed_after
from tests.models import assert_same

MINI = atlas.MINI | {"batch_size": 100, "batch_number": 4, "epochs": 3}
WAYS = {
    "mini-batches": MINI,
    "averaged": MINI | {"average": True, "dtype": "float64"},
    "gene_dropout": MINI | {"gene_dropout": 0.3, "step": "auto"},
    "early stopping": MINI | {"epochs": 6, "early_stopping": True},
    "correct_prior": MINI | {"balance_cell_type": True, "replace": True, "correct_prior": True,
                             "average": True},
    "whole epochs": {"use_SGD": True, "max_iter": 6},
    "adaptive": {"use_SGD": True, "max_iter": 25, "learning_rate": "adaptive", "eta0": 0.01,
                 "tol": 0.1, "n_iter_no_change": 2},
    "l1": {"use_SGD": True, "max_iter": 6, "penalty": "l1", "average": True},
    "optimum": {"max_iter": 30},
    "optimum, l1": {"penalty": "l1", "solver": "saga", "max_iter": 30},
    "copies": MINI | {"batch_size": 50, "batch_number": 6, "replicas": 3},
    "selected": {"feature_selection": True, "top_genes": 10, "max_iter": 8},
    "folds": MINI | {"folds": 2, "alpha": [1e-4, 1e-2], "calibrate": True},
}  # fmt: skip
ON_DEVICE = {
    name: WAYS[name] | {"device": "gpu"}
    for name in ("averaged", "gene_dropout", "early stopping", "whole epochs", "adaptive",
                 "optimum", "copies", "folds")
}  # fmt: skip


@pytest.fixture(scope="module")
def adata():
    return atlas.make(900, n_types=5)


@pytest.fixture(scope="module")
def path(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "atlas.h5ad"
    adata.write_h5ad(path)
    return path


def train(X, folder=None, labels="cell_type", **options):
    if folder is not None:
        options = {"checkpoint": folder, "resume": True} | options
    return streamtrain.train(X, labels, progress=False, **options)


def states(folder):
    return sorted(folder.glob("*.state"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "way",
    [*WAYS.values(), *ON_DEVICE.values()],
    ids=[*WAYS, *(f"{name}, on a device" for name in ON_DEVICE)],
)
def test_resume__to_the_bit(adata, way, tmp_path, monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np))  # NumPy in CuPy's place
    expected, folder, kills = train(adata, **way), tmp_path / "run", 0
    monkeypatch.setattr(first_pass, "BLOCK", 40_000)  # several in the first pass
    while True:
        with monkeypatch.context() as patch:
            killed_after(patch, 1 + kills % 3)
            try:
                found = train(adata, folder, checkpoint_every=1e-9, **way)
                break
            except KilledError:
                kills += 1
        assert len(states(folder)) <= 2
    assert kills >= 4
    assert_same(found, expected)
    assert_same(train(adata, folder, **way), expected)  # which was ended


def test_resume__trials_in_turns(adata, tmp_path, monkeypatch):
    """Two of three settings had room side by side, then one, then all that are left."""
    way = WAYS["folds"] | {"alpha": [1e-4, 1e-2, 1.0]}
    expected, folder = train(adata, **way), tmp_path / "run"
    for n, together in ((5, 2), (4, 1), (18, 3)):
        with monkeypatch.context() as patch:
            patch.setattr(Trials, "together", lambda _, n=together: n)
            begun(adata, folder, monkeypatch, n=n, **way)
    assert_same(train(adata, folder, **way), expected)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_resume__optimum_with_less_memory(adata, tmp_path, monkeypatch):
    """Of five types under way together there is room for two."""
    way, folder = WAYS["optimum"], tmp_path / "run"
    expected, most = train(adata, **way), []
    with monkeypatch.context() as patch:
        killed_after(patch, 4)
        with pytest.raises(KilledError):
            train(adata, folder, checkpoint_every=1e-9, **way)
    evaluate = Logistic._evaluate

    def noted(self, sums, problems, *given):
        most.append(len(problems))
        return evaluate(self, sums, problems, *given)

    monkeypatch.setattr(Logistic, "_evaluate", noted)
    two = lambda n_genes, cells, _: 2 * Logistic.nbytes(n_genes, cells.n_obs)  # noqa: E731
    monkeypatch.setattr("streamtrain.optimum.vectors_bytes", two)
    assert_same(train(adata, folder, **way), expected)
    assert max(most) == 2


# Of other threads, memory and scratch: the model does not know of them.
def test_resume__elsewhere(path, tmp_path, monkeypatch):
    expected, folder = train(path, **MINI), tmp_path / "run"
    begun(path, folder, monkeypatch, n_jobs=1, memory="300MB")
    found = train(path, folder, n_jobs=2, memory="500MB", scratch=str(tmp_path), **MINI)
    assert_same(found, expected)


SCRIPT = """
import sys, warnings
import streamtrain
warnings.simplefilter("ignore")
path, folder, out = sys.argv[1:4]
model = streamtrain.train(path, "cell_type", progress=False, checkpoint=folder, resume=True,
                          checkpoint_every=0.02, use_SGD=True, mini_batch=True, batch_size=50,
                          batch_number=17, epochs=600, average=True, n_jobs=1)
model.save(out)
"""


@pytest.mark.slow
def test_resume__killed_at_any_moment(path, tmp_path):
    """Seven times, each a moment after a state of its own was kept; then it ends in peace."""
    options = {"use_SGD": True, "mini_batch": True, "batch_size": 50, "batch_number": 17}
    expected = train(path, epochs=600, average=True, **options)
    rng, folder, out = random.Random(0), tmp_path / "run", tmp_path / "model.zarr"  # noqa: S311
    command, kills = [sys.executable, "-c", SCRIPT, path, folder, out], 0
    while not out.exists():
        before = states(folder)
        process = subprocess.Popen(command)  # noqa: S603
        if kills < 7:
            in_time(lambda: set(states(folder)) - set(before) or process.poll() is not None)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert_same(streamtrain.Model.load(out), expected)
    assert kills == 7


def in_time(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cli__stopped_by_a_signal_goes_on(number, path, tmp_path):
    folder, out = tmp_path / "run", tmp_path / "model.zarr"
    sizes = ["--batch-size", "50", "--batch-number", "17", "--epochs", "300"]
    command = [
        sys.executable, "-m", "streamtrain", "train", path, "--labels", "cell_type", "--out", out,
        "--checkpoint", folder, "--quiet", "--use-sgd", "--mini-batch", *sizes,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603
    # Once the cells are read.
    in_time(lambda: process.poll() is not None or (folder.exists() and states(folder)))
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.search(rf"stopped by {number.name}; the run so far is in .*run.*--resume", words)
    assert not out.exists()
    assert states(folder)
    again = [*command, "--resume"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert not folder.exists()  # which the command cleared away, once the model was there
    mini = {"use_SGD": True, "mini_batch": True, "batch_size": 50, "batch_number": 17}
    assert_same(streamtrain.Model.load(out), train(path, epochs=300, **mini))


def test_stop__is_an_interrupt_of_python_too(adata, tmp_path, monkeypatch):
    tick = Journal.tick

    def interrupted(self, name, state):
        os.kill(os.getpid(), signal.SIGINT)
        tick(self, name, state)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "tick", interrupted)
        with pytest.raises(StoppedError, match="stopped by SIGINT"):
            train(adata, tmp_path / "run", **MINI)
    assert issubclass(StoppedError, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(train(adata, tmp_path / "run", **MINI), train(adata, **MINI))


def test_stop__what_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        with Journal(tmp_path / "run", resume=False) as journal:
            os.kill(os.getpid(), signal.SIGHUP)
            journal.stage("one", lambda _: 1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stop__twice_is_at_once(tmp_path):
    def twice():
        with Journal(tmp_path / "run", resume=False):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt) as found:
        twice()
    assert not isinstance(found.value, StoppedError)


def test_stop__a_signal_that_no_stage_saw_is_not_lost(tmp_path):
    journal = Journal(tmp_path / "run", resume=False)

    def once():
        with journal:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        once()


def begun(X, folder, monkeypatch, n=4, **options):
    with monkeypatch.context() as patch:
        killed_after(patch, n)
        with pytest.raises(KilledError):
            train(X, folder, checkpoint_every=1e-9, **(MINI | options))


def spoil(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_damage__the_state_before_is_taken(adata, tmp_path, monkeypatch, caplog):
    expected = train(adata, **MINI)
    for n_spoilt in (1, 2):  # of none the run begins anew
        folder = tmp_path / f"run {n_spoilt}"
        begun(adata, folder, monkeypatch)
        for file in states(folder)[-n_spoilt:]:
            spoil(file)
        found = train(adata, folder, **MINI)
        assert caplog.text.count("its checksum is off; the state before it is taken") == n_spoilt
        caplog.clear()
        assert_same(found, expected)


def test_damage__half_a_state(adata, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    last = states(folder)[-1]
    os.truncate(last, last.stat().st_size // 3)
    (folder / "000099.state.new").write_bytes(b"half")  # as a kill leaves it
    assert_same(train(adata, folder, **MINI), train(adata, **MINI))


@pytest.mark.parametrize("how", ["spoilt", "short", "gone"])
def test_damage__of_the_cells_is_refused(adata, how, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    file = folder / "cells.values"
    if how == "spoilt":
        spoil(file)
    elif how == "short":
        os.truncate(file, 8)
    else:
        file.unlink()
    with pytest.raises(InputError, match=r"cells\.values is not what was written .* delete the fo"):
        train(adata, folder, **MINI)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 4}, r"holds a run by epochs=3, not 4: give the same, or choose another folder"),
        ({"alpha": 0.1, "random_state": 5}, r"alpha=0.0001, not 0.1; random_state=0, not 5"),
        ({"labels": "donor"}, r"labels=\['[0-9a-f]{8}'\], not "),
        ({"where": "donor != 'D0'"}, r"where=None, not .*cells=\[900, "),
        ({"device": "gpu"}, r"holds a run by device='cpu', not 'gpu': give the same"),
    ],
)
def test_begin__another_run_is_refused(options, message, adata, tmp_path, monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np))
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    with pytest.raises(InputError, match=message):
        train(adata, folder, **(MINI | options))


def test_begin__other_data_is_refused(adata, tmp_path, monkeypatch):
    path, folder = tmp_path / "atlas.h5ad", tmp_path / "run"
    adata.write_h5ad(path)
    begun(path, folder, monkeypatch)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"data=\[\[900, \d+, \d+, \d+\]\], not "):
        train(path, folder, **MINI)
    other = adata.copy()
    other.X.data[-1] += 1  # one value
    begun(adata, tmp_path / "memory", monkeypatch)
    with pytest.raises(InputError, match=r"data=\[\[900, \d+, '[0-9a-f]{8}'\]\], not "):
        train(other, tmp_path / "memory", check_expression=False, **MINI)


def test_begin__what_stands_in_files_and_columns(adata, tmp_path, monkeypatch):
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(adata.var_names[:20]))
    begun(adata, tmp_path / "genes", monkeypatch, gene_list=str(genes))
    genes.write_text("\n".join(adata.var_names[1:21]))
    with pytest.raises(InputError, match=r"holds a run by genes='\w+', not '\w+': give"):
        train(adata, tmp_path / "genes", gene_list=str(genes), **MINI)
    one, other = (tmp_path / f"{name}.h5ad" for name in "ab")
    adata[:450].write_h5ad(one)
    adata[450:].write_h5ad(other)
    begun([one, other], tmp_path / "files", monkeypatch)
    with pytest.raises(InputError, match=r"holds a run by data="):
        train([other, one], tmp_path / "files", **MINI)
    folds = WAYS["folds"] | {"validation_groups": "donor"}
    begun(adata, tmp_path / "folds", monkeypatch, n=2, **folds)
    changed = adata.copy()
    changed.obs["donor"] = np.random.default_rng(0).permutation(changed.obs["donor"].to_numpy())
    with pytest.raises(InputError, match=r"holds a run by labels="):
        train(changed, tmp_path / "folds", **folds)


def test_begin__numbers_of_numpy(adata, tmp_path):
    way = MINI | {"epochs": np.int64(3), "alpha": np.float32(1e-3), "random_state": np.int32(3)}
    assert_same(train(adata, tmp_path / "run", **way), train(adata, **way))


def test_begin__paths_texts_and_types_of_numpy(adata, tmp_path):
    folds = WAYS["folds"] | {"scratch": tmp_path, "dtype": np.dtype("float32"),
                             "where": np.str_("donor != 'D0'"), "date": pd.Timestamp("2026-11-26"),
                             "batch_size": np.int32(100)}  # fmt: skip
    found = train(adata, tmp_path / "run", **folds)
    assert_same(found, train(adata, **folds))
    assert found.settings["scratch"] == str(tmp_path)
    assert found.settings["date"] == "2026-11-26 00:00:00"


def test_resume__search_of_another_process(adata, tmp_path, monkeypatch):
    folds, folder = WAYS["folds"], tmp_path / "run"
    begun(adata, folder, monkeypatch, n=3, n_jobs=1, details="old", memory="300MB", **folds)
    found = train(adata, folder, n_jobs=2, details="new", **folds)
    assert found.settings["details"] == "new"
    assert (found.settings["n_jobs"], found.settings["memory"]) == (2, None)


def test_resume__checks_the_memory_once_more(adata, tmp_path, monkeypatch):
    wide = MINI | {"batch_size": 899, "batch_number": 1}
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch, n=2, **wide)
    monkeypatch.setattr("streamtrain.rounds.needed_room", lambda *_: 10**15)
    with pytest.raises(InputError, match="memory is too small for batches of 899 cells"):
        train(adata, folder, **wide)


def test_resume__of_a_kill_at_the_very_start(adata, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.new").write_text("{")
    (tmp_path / "run" / "lock").write_text("")
    assert_same(train(adata, tmp_path / "run", **MINI), train(adata, **MINI))


def test_clear__leaves_what_is_not_ours(adata, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    (folder / "slurm.log").write_text("mine")
    with Journal(folder, resume=True):
        journal.clear(folder)  # which another has
        assert states(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    journal.clear(link)
    assert [p.name for p in folder.iterdir()] == ["slurm.log"]
    (folder / "slurm.log").unlink()
    begun(adata, folder, monkeypatch)
    journal.clear(folder)
    assert not folder.exists()


def test_cli__outputs_and_checkpoint_apart(path, tmp_path, capsys):
    out = tmp_path / "run" / "model.zarr"
    (tmp_path / "run").mkdir()
    command = ["train", str(path), "--labels", "cell_type", "--out", str(out)]
    for folder in (tmp_path / "run", out, out / "within"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, "--checkpoint", str(folder)])
        assert stop.value.code == 2
        assert "must not be in each other" in capsys.readouterr().err


def test_folder__without_locks(adata, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(InputError, match=r"on a disk without file locks \(No locks available\)"):
        train(adata, tmp_path / "run", **MINI)


def test_settings__that_cannot_be_resumed(adata, tmp_path):
    with pytest.raises(InputError, match="random_state=None cannot be resumed"):
        train(adata, tmp_path / "run", random_state=None, **MINI)
    with pytest.raises(InputError, match="checkpoint_every is of a run that is kept: pass check"):
        train(adata, checkpoint_every=5, **MINI)
    with pytest.raises(InputError, match="positive number of seconds; got '10'"):
        train(adata, tmp_path / "run", checkpoint_every="10", **MINI)


def test_damage__is_not_kept_in_place_of_what_is_good(adata, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    good, bad = states(folder)
    spoil(bad)
    begun(adata, folder, monkeypatch, n=1)
    assert good in states(folder)
    assert bad not in states(folder)


def test_kept__a_full_disk(adata, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(InputError, match=r"the disk of checkpoint='.*run' is full"):
            train(adata, tmp_path / "run", **MINI)
    assert_same(train(adata, tmp_path / "run", **MINI), train(adata, **MINI))


def test_begin__a_damaged_run(adata, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    for text in ("{", "[]"):
        (folder / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json is damaged.*: delete its folder"):
            train(adata, folder, **MINI)


def test_folder__that_cannot_be_taken(adata, tmp_path, monkeypatch):
    def refused(folder, message, **options):
        with pytest.raises(InputError, match=message):
            train(adata, folder, **(MINI | options))

    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file: choose another path")
    refused(tmp_path / "no" / "run", "'.*/no' does not exist, create it")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    refused(tmp_path / "mine", r"holds something else than a run \('thesis.tex'\)")
    begun(adata, tmp_path / "run", monkeypatch)
    refused(tmp_path / "run", r"holds a run: go on from it by resume=True \(--res", resume=False)
    with Journal(tmp_path / "run", resume=True):
        for resume in (False, True):
            message = "another process trains in checkpoint="
            refused(tmp_path / "run", message, resume=resume)
    refused(tmp_path / "other", "checkpoint_every must be a positive number", checkpoint_every=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "run"]


def test_resume__needs_a_folder(adata):
    with pytest.raises(InputError, match=r"pass checkpoint=FOLDER \(--checkpoint\), too"):
        train(adata, resume=True)


# Nothing that a run lacks stops a preemptible job which always says --resume.
def test_resume__of_nothing_begins(adata, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert_same(train(adata, folder, **MINI), train(adata, **MINI))


def test_save__a_full_disk(adata, tmp_path, monkeypatch):
    def full(path, value):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    begun(adata, folder, monkeypatch)
    before = states(folder)
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "write", full)
        with pytest.raises(InputError, match=r"the disk of .*run is full"):
            train(adata, folder, **MINI)
    assert states(folder) == before
    assert not list(folder.glob("*.new"))
    assert_same(train(adata, folder, **MINI), train(adata, **MINI))
    assert journal.EVERY == 600
