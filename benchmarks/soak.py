"""Trainings killed at random moments, which then go on, in; whether all end alike out.

    python -m benchmarks.soak --minutes 60 --out benchmarks/results

Each way of training is done once by a process that nothing stops, then by one that gets SIGKILL at
a random moment, and another in its place with `resume`, and so on until one ends. Its model must be
the first one's, to the bit. What came of it is written as a table, soak.md, after every training.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from streamtrain import Model, simulate

_MINI = {"use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 20}
WAYS: dict[str, dict[str, Any]] = {
    "SGD, mini-batches, averaged": _MINI | {"epochs": 400, "average": True},
    "SGD, early stopping": _MINI | {"epochs": 300, "early_stopping": True,
                                    "n_iter_no_change": 300},
    "SGD, whole epochs": {"use_SGD": True, "max_iter": 150, "tol": None},
    "SGD, L1": {"use_SGD": True, "max_iter": 60, "tol": None, "penalty": "l1"},
    "logistic regression": {"max_iter": 3_000, "tol": 1e-9},
    "copies": _MINI | {"epochs": 300, "replicas": 4},
    "search among settings": _MINI | {"epochs": 60, "folds": 3, "alpha": [1e-4, 1e-3],
                                      "n_iter_no_change": 60, "calibrate": True, "average": True},
    "selected genes": {"feature_selection": True, "top_genes": 60, "max_iter": 400, "tol": 1e-7},
}  # fmt: skip
_CHILD = """
import json, sys, warnings
import streamtrain
warnings.simplefilter("ignore")
store, out, settings = sys.argv[1:4]
given = json.loads(settings)
streamtrain.train(store, "cell_type", progress=False, normalize="log1p", **given).save(
    out, overwrite=True  # a kill may come after this
)
"""
_LONGEST = 3.0  # seconds from start to kill, at most; the libraries alone take one or two
_EVERY = 0.2  # seconds between states, so that many kills fall into one being written


@dataclass
class Told:
    """What came of one way: trainings that ended, kills, what they fell on, models that differ."""

    ended: int = 0
    kills: int = 0
    differ: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def row(self, way: str) -> str:
        """A line of the table."""
        fell = ", ".join(f"{name} {n}" for name, n in sorted(self.found.items()))
        return f"| {way} | {self.ended} | {self.kills} | {fell} | {self.differ} |"


def start(store: Path, out: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A process that trains."""
    command = [sys.executable, "-c", _CHILD, str(store), str(out), json.dumps(settings)]
    return subprocess.Popen(command)  # noqa: S603 - our own words


def same(one: Model, other: Model) -> bool:
    """Whether all arrays of two models are alike, to the bit."""
    names = set(one.dataset.variables)
    return names == set(other.dataset.variables) and all(
        np.array_equal(one.dataset[n].to_numpy(), other.dataset[n].to_numpy()) for n in names
    )


def fallen_on(folder: Path) -> str:
    """What a kill fell on, by what it left."""
    if not (folder / "run.json").exists():
        return "start"
    if list(folder.glob("*.new")):
        return "a state being written"
    return "training" if list(folder.glob("*.state")) else "reading"


def killed(
    store: Path, folder: Path, settings: dict[str, Any], rng: random.Random, told: Told
) -> Model:
    """Train, with kills at random moments until a process ends by itself."""
    out, run = folder / "model.zarr", folder / "run"
    options = settings | {"checkpoint": str(run), "resume": True, "checkpoint_every": _EVERY}
    longest = _LONGEST
    while True:
        process = start(store, out, options | {"n_jobs": rng.choice([1, 2])})
        try:
            process.wait(rng.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            told.kills += 1
            what = fallen_on(run)
            told.found[what] = told.found.get(what, 0) + 1
            longest *= 1.05  # or it might never end
            continue
        if process.returncode:
            raise RuntimeError(f"{settings}: a training ended with {process.returncode}")
        return Model.load(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 if a model differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True, help="folder for soak.md")
    parser.add_argument("--cells", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng, told = random.Random(given.seed), {way: Told() for way in WAYS}  # noqa: S311
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streamtrain-soak-") as name:
        base = Path(name)
        store = simulate(
            base / "atlas.zarr", n_obs=given.cells, n_vars=2_000, n_types=20, n_donors=4,
            progress=False,
        )  # fmt: skip
        expected: dict[str, Model] = {}
        for way, settings in cycle(WAYS.items()):
            if way not in expected:
                if start(Path(store), base / f"{way}.zarr", settings).wait():
                    raise RuntimeError(f"{way}: training failed")
                expected[way] = Model.load(base / f"{way}.zarr")
            folder = Path(tempfile.mkdtemp(dir=base))
            one = told[way]
            found = killed(Path(store), folder, settings, rng, one)
            one.ended += 1
            one.differ += not same(found, expected[way])
            shutil.rmtree(folder)
            _write(given.out, told, time.monotonic() - began)
            if time.monotonic() - began > 60 * given.minutes:
                break
    return int(any(one.differ for one in told.values()))


def _write(out: Path, told: dict[str, Told], seconds: float) -> None:
    total, differ = sum(t.kills for t in told.values()), sum(t.differ for t in told.values())
    lines = [
        "# soak", "",
        f"`python -m benchmarks.soak`: {total} kills (SIGKILL) in {seconds / 60:.0f} minutes, "
        f"{sum(t.ended for t in told.values())} trainings, of which {differ} differ from the one "
        "that nothing stopped.", "",
        "| way | trainings | kills | that fell on | models that differ |",
        "|---|--:|--:|---|--:|",
        *(one.row(way) for way, one in told.items()), "",
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.md").write_text("\n".join(lines), encoding="utf-8")
    print(lines[2], flush=True)


if __name__ == "__main__":
    sys.exit(main())
