"""The fuzz harness: mutants are told by their numbers, and what should not be is found."""

import sys
import warnings
from itertools import islice
from random import Random
from subprocess import PIPE, Popen

import h5py
import numpy as np
import pytest

import streamtrain
from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import oracle, seeds, worker
from benchmarks.fuzz.changes import changed_json, changed_values
from streamtrain.errors import InputError
from streamtrain.sources.opened import MatrixSource

KINDS = sorted(set(worker.TURNS))


@pytest.fixture(autouse=True)
def quiet():
    """Other readers warn of what is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judged(path, seed=None):
    return oracle.judge(path, seed or seeds.seed("h5ad csr"), False, False, print)


def hows(found):
    return [finding.how for finding in found.findings]


@pytest.fixture
def sound(tmp_path):
    oracle._sound("h5ad csr")  # is read once, before anything is planted
    return seeds.seed("h5ad csr").write(tmp_path, "sound")


@pytest.mark.parametrize("kind", KINDS)
def test_mutant__is_the_same_each_time(tmp_path, kind):
    number = worker.TURNS.index(kind) + len(worker.TURNS)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(worker.mutant(7, number, tmp_path / name))
    assert made[0] == made[1]
    assert made[0][0].files != seeds.seed(made[0][0].name).files


@pytest.mark.parametrize("name", [name for names in seeds.NAMES.values() for name in names])
def test_seed__reads_alike(tmp_path, name):
    seed = seeds.seed(name)
    assert judged(seed.write(tmp_path, "sound"), seed).outcome == "read alike"
    if seed.form == "zarr":
        packed = seed.packed()
        assert judged(packed.write(tmp_path, "packed"), packed).outcome == "read alike"


def test_mutants__none_is_read_otherwise(tmp_path):
    """A smoke; `python -m benchmarks.fuzz` reads more."""
    found = {}
    for number in range(5 * len(worker.TURNS)):
        one, what = worker.judge(5, number, tmp_path, print)
        if one.findings:
            found[number] = what, one.findings
    assert found == {}


@pytest.mark.slow
def test_campaign__by_workers(tmp_path):
    assert fuzz.run(mutants=300, seed=11, only="zarr", out=tmp_path) == 0
    assert "300 damaged files" in (tmp_path / "fuzz.md").read_text()


# What it must find, planted


def test_judge__other_data(sound, monkeypatch):
    def plus_one(name):
        given = getattr(MatrixSource, name)

        def wrong(self, *args, **more):
            rows = given(self, *args, **more)
            rows.data[:] += 1
            return rows

        monkeypatch.setattr(MatrixSource, name, wrong)

    plus_one("take")
    assert hows(judged(sound)) == ["raised AssertionError"]  # not what was read
    plus_one("read")
    assert hows(judged(sound)) == ["other data"]


def test_judge__labels_and_names(sound, monkeypatch):
    column = MatrixSource.obs
    monkeypatch.setattr(MatrixSource, "obs", lambda self, name: column(self, name)[::-1])
    found = judged(sound)
    assert {finding.where for finding in found.findings} == {
        "obs/cell_type", "obs/text", "obs/maybe", "obs/flag", "obs/score",
    }  # fmt: skip
    assert set(hows(found)) == {"other data"}


def test_judge__read_where_others_refuse(sound, monkeypatch):
    with h5py.File(sound, "r+") as file:
        file["obs/cell_type/codes"][3] = 99
    assert judged(sound).outcome == "refused in part"
    fine = streamtrain.open_source(seeds.seed("h5ad csr").write(sound.parent, "fine"))
    labels = fine.obs("cell_type")[::-1]  # as sound ones they would be right
    fine.close()
    monkeypatch.setattr(MatrixSource, "obs", lambda *_: labels)
    found = judged(sound)
    assert "only ours reads it" in hows(found)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), InputError(""), RecursionError()])
def test_judge__an_exception_without_words(sound, monkeypatch, error):
    def fail(self, *args):
        raise error

    monkeypatch.setattr(MatrixSource, "read", fail)
    assert hows(judged(sound)) == [f"raised {type(error).__name__}"]


def test_judge__files_left_open(tmp_path, monkeypatch):
    kept = []
    opened = oracle.open_source

    def leak(path, **options):
        kept.append(path.open("rb"))
        return opened(path, **options)

    monkeypatch.setattr(oracle, "open_source", leak)
    number = worker.TURNS.index("h5ad attributes")
    found, _ = worker.judge(0, number, tmp_path, print)
    assert "left open" in hows(found)
    kept.pop().close()


def test_judge__memory(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "MOST", -1)
    found, _ = worker.judge(0, 0, tmp_path, print)
    assert "memory" in hows(found)


# A worker that ends

_WORKER = """
import json, os, sys, time
asked = json.loads(sys.stdin.readline())
if asked["plain"]:
    sys.exit({plain})
print(json.dumps({{"stage": "ready"}}), flush=True)
for number in asked["numbers"]:
    if number == 2:
        {how}
    line = {{"number": number, "outcome": "refused", "findings": [], "words": "", "what": ""}}
    print(json.dumps(line), flush=True)
"""


@pytest.mark.parametrize("how", ["os.abort()", "time.sleep(60)", "print(json.dumps({'stage': "
                                 "'reference'}), flush=True); os.abort()"])  # fmt: skip
@pytest.mark.parametrize("plain", [0, 1])
def test_campaign__goes_on_after_a_crash_and_a_hang(monkeypatch, how, plain):
    script = _WORKER.format(plain=plain, how=how)

    def started(seed, numbers, folder, said, plain=False):
        process = Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, stderr=said)  # noqa: S603
        process.stdin.write(fuzz.json.dumps({"numbers": numbers, "plain": plain}).encode() + b"\n")
        process.stdin.close()
        return process

    monkeypatch.setattr(fuzz, "_started", started)
    monkeypatch.setattr(fuzz, "LIMIT", 2.0)
    told = fuzz.campaign(0, [0, 1, 2, 3, 4, 5])
    counts = sum(told.counts.values(), fuzz.Counter())
    assert counts["refused"] == 5
    if plain or "reference" in how:  # the library does so by itself
        assert counts["library ends"] == 1
        assert told.found == []
    else:
        expected = "hang" if "sleep" in how else "crash"
        assert [f["how"] for line in told.found for f in line["findings"]] == [expected]


def test_replay__prints_what_was_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(worker, "quiet", lambda: None)
    assert fuzz.run(replay=2, out=tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith("2, h5ad arrays: h5ad")
    assert [path.name for path in tmp_path.rglob("mutant*")] == ["mutant.h5ad"]


def test_numbers__of_one_kind():
    assert {worker.kind(n) for n in islice(fuzz._numbers("zarr"), 40)} == {
        kind for kind in KINDS if kind.startswith("zarr")
    }
    with pytest.raises(InputError, match="there is no kind 'x5'"):
        fuzz._numbers("x5")


def test_table__counts():
    told = fuzz.Told()
    told.add("h5ad bytes", {"outcome": "refused", "findings": [], "number": 0})
    line = {"how": "crash", "where": "a.py:b", "words": ""}
    told.add("h5ad bytes", {"outcome": "finding", "findings": [line], "number": 8})
    text = fuzz.table(told, 0, 1.0)
    assert "| h5ad bytes | 1 | 0 | 0 | 0 | 0 | 1 |" in text
    assert "| h5ad bytes | crash | a.py:b | 1 | 8 |" in text


def test_changed_json__never_holds_itself():
    raw = b'{"a": {"b": [1, {"c": 2}]}, "d": [[0]]}'
    for seed in range(300):
        text, what = changed_json(raw, Random(seed))  # noqa: S311
        assert text
        assert what


@pytest.mark.parametrize("dtype", ["f4", "i4", "u1", "S3", "O", ">f8"])
def test_changed_values__something_changes(dtype):
    values = np.array([1, 0, 3, 1, 5]).astype(dtype)
    changed = 0
    for seed in range(40):
        found, _ = changed_values(values, Random(seed))  # noqa: S311
        same = found.dtype == values.dtype and found.shape == values.shape
        changed += not (same and found.tolist() == values.tolist())
    assert changed > 25
