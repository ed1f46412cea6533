"""CellTypist runs beside the tests: all cases in one process of each environment, once a session.

Logistic regression needs scikit-learn below 1.8, and so an environment of its own. SGD is compared
on the scikit-learn that is installed here, as its stopping rule changed in 1.8.
"""

import gc
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import streamtrain
from benchmarks.environments import UnavailableError, interpreter
from streamtrain.sampling import Plan
from tests.parity import inputs
from tests.parity.run import Run
from tests.parity.table import ROWS

OLD, HERE = "old", "here"  # scikit-learn below 1.8, and the one of the tests
TIGHT = {"tol": 1e-9, "max_iter": 20_000}
QUICK = {"use_SGD": True, "mini_batch": True, "epochs": 1, "batch_number": 1}
SEEDS = range(5)


def environment(row):
    """Which scikit-learn the row's cases run on: logistic regression alone needs the old."""
    logistic = ("optimum", "selection", "labels", "texts", "jobs")
    is_sgd = row.options.get("use_SGD") or row.compare not in (*logistic, "outcome")
    return HERE if is_sgd else OLD


def variants(row):
    """What CellTypist is asked to do for a row: by name, what changes."""
    if row.compare == "optimum" and row.in_float64 and row.labels == "column:cell_type":
        return {"": {}, "tight": {"options": row.options | TIGHT}}
    if row.compare in ("noise", "seeds"):
        return {seed: {"seed": seed} for seed in (SEEDS if row.compare == "noise" else SEEDS[:2])}
    if row.compare == "selection":
        return {seed: {"options": row.options | {"random_state": seed}} for seed in SEEDS[:3]}
    if row.compare == "limits":
        return {x: {"X": f"path:{x}.h5ad", "options": QUICK, "modes": []} for x in inputs.LARGE}
    return {"": {"modes": ["best match", "prob match"]} if row.compare == "outcome" else {}}


def _draws(row):
    """The cells of each epoch as we plan them, where CellTypist must take the same."""
    options = row.options
    if row.compare != "steps" or not options.get("mini_batch"):
        return None
    codes = inputs.scaled(row.cells)[2].astype(np.int32)
    names = ("batch_size", "batch_number", "epochs", "shuffle")
    plan = Plan(
        codes, codes.max() + 1, balance=options.get("balance_cell_type", False),
        seed=options.get("random_state", 0), **{name: options[name] for name in names},
    )  # fmt: skip
    return [plan.epoch(e).tolist() for e in range(plan.epochs)]


def cases(row):
    """The row's cases as child.py reads them."""
    base = {
        "X": row.X, "labels": row.labels, "genes": row.genes, "options": row.options, "seed": 0,
        "draws": _draws(row), "modes": ["best match"],
    }  # fmt: skip
    if row.compare == "labels":
        base["model"] = row.model
    return [
        base | {"id": f"{row.compare} {row}/{name}"} | more for name, more in variants(row).items()
    ]


def python(name):
    """Interpreter of an environment, or why there is none."""
    if name == HERE:
        found = importlib.util.find_spec("celltypist")
        return Path(sys.executable) if found else "celltypist is not installed here"
    try:
        return interpreter("celltypist")
    except UnavailableError as error:
        return str(error)


def _export(folder):
    """Models of ours for CellTypist to annotate with."""
    for name, options in {
        "logistic": {}, "two": {"X": "two"}, "uncentred": {"with_mean": False},
        "sgd": {"use_SGD": True, "mini_batch": True, "batch_size": 50},
    }.items():  # fmt: skip
        X = folder / f"{options.pop('X', 'atlas')}.h5ad"
        model = streamtrain.train(X, "cell_type", progress=False, dtype="float64", **options)
        model.to_celltypist(folder / f"{name}.pkl")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder with every input."""
    folder = tmp_path_factory.mktemp("parity")
    inputs.write(folder)
    _export(folder)
    gc.freeze()  # train() collects garbage, which with the test session's imports takes 0.2 s
    yield folder
    gc.unfreeze()


@pytest.fixture(scope="session")
def celltypist(folder):
    """CellTypist at work on every case, by environment."""
    wanted = {OLD: [], HERE: []}
    for row in ROWS:
        wanted[environment(row)] += cases(row)
    runs = {name: Run(folder, name, python(name), wanted[name]) for name in wanted}
    yield runs
    for run in runs.values():
        run.stop()


@pytest.fixture
def theirs(celltypist, row):
    """What CellTypist did for the row, by variant."""
    done = celltypist[environment(row)].done()
    return {name: done[f"{row.compare} {row}/{name}"] for name in variants(row)}
