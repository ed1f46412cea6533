"""Runs of other libraries that are kept: what finds them again, and what their records say."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from benchmarks import keeping, measuring, report
from benchmarks.measuring import Case, Contender


def check(case, evidence, done):
    for name, lines in done.items():
        for line, found in zip(lines, evidence[name], strict=True):
            line["scored"] = len(found["cells"])


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure one contender, in an environment of its own; runs are told apart by `number`."""
    monkeypatch.setenv("STREAMTRAIN_BENCH", str(tmp_path))
    monkeypatch.setattr(measuring, "interpreter", lambda _: Path("/envs/peer-1234/bin/python"))
    numbers = count()

    def work(contender, job, **_):
        cells = {**job, **contender.options}["cells"]
        return {"seconds": 1.0, "number": next(numbers)}, {"cells": np.arange(cells)}

    monkeypatch.setattr(measuring, "run", work)

    def measure(name="case", environment="peer", options=None, depends="cells", **settings):
        who = Contender("peer", "module:function", environment, options or {})
        case = Case(name, {"cells": 7}, (who,), about={"axis": name},
                    depends=depends and {"digest": depends})  # fmt: skip
        settings = {"repeats": 1, "limit_s": 60} | settings
        return list(measuring.measure([case], check, **settings))

    return measure


def test_measure__a_kept_run_is_not_done_again(measure):
    first, second = measure(repeats=2)
    assert (first["number"], second["number"], first["scored"]) == (0, 1, 7)
    assert "kept" not in first
    again, other, new = measure(name="renamed", repeats=3)
    assert again == first | {"case": "renamed", "axis": "renamed", "kept": True}
    assert [other["number"], new["number"]] == [1, 2]
    assert "kept" not in new
    assert json.loads(json.dumps(again)) == again


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"cells": 6}},
        {"depends": "others"},
        {"depends": None},
        {"fresh": True},
        {"environment": None},  # ours
    ],
    ids=str,
)
def test_measure__other_work_is_done(measure, change):
    measure()
    (other,) = measure(**change)
    assert other["number"] == 1
    assert "kept" not in other
    assert other["scored"] == change.get("options", {"cells": 7})["cells"]
    (again,) = measure()
    assert again["number"] == (1 if change == {"fresh": True} else 0)


def test_keep__round_trip(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMTRAIN_BENCH", str(tmp_path))
    path = keeping.place({"digest": "a", "options": {"x": 1, "y": 2}})
    assert path == keeping.place({"options": {"y": 2, "x": 1}, "digest": "a"})
    evidence = {"p": np.array([[1e-250, 0.5]]), "classes": np.array(["B", "T"])}
    keeping.keep(path, {"seconds": 1.5, "job": {"files": ["a"]}}, evidence)
    record, found = keeping.kept(path)
    assert record == {"seconds": 1.5, "job": {"files": ["a"]}}
    assert found.keys() == evidence.keys()
    assert found["p"][0, 0] == 1e-250
    assert found["classes"].tolist() == ["B", "T"]
    assert list(path.parent.iterdir()) == [path]


def test_report__says_how_many_are_kept():
    machine = {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}
    line = {"machine": machine, "commit": "new", "set": [], "started": "2026-11-27T10:00:00+00:00"}
    old = line | {"commit": "old", "kept": True, "started": "2026-11-25T10:00:00+00:00"}
    text = report.head("quality", [old, line, old | {"started": "2026-11-26T01:00:00+00:00"}])[2]
    assert "at commit new on CPU" in text
    assert text.endswith(
        "2 of the 3 runs, of other libraries, are kept ones, done from 2026-11-25 to 2026-11-26."
    )
    assert report.head("quality", [line, old])[2].endswith("kept ones, done on 2026-11-25.")
    assert "kept" not in report.head("quality", [line])[2]


def test_report__names_the_commands_of_all_runs():
    machine = {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}
    line = {"machine": machine, "commit": "one", "set": ["sets=['pairs']"]}
    other = line | {"commit": "two", "set": ["repeats=2"]}
    text = report.head("quality", [line, other, line])[2]
    assert text.startswith(
        """`python -m benchmarks quality --set 'sets=['"'"'pairs'"'"']'` and """
        "`python -m benchmarks quality --set repeats=2` at commit one and two on CPU"
    )
