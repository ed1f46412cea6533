"""The benchmark harness: what it measures, what it refuses to report, and what it makes of it."""

import json
import re

import numpy as np
import psutil
import pytest

from benchmarks import environments, measuring, report, settings
from benchmarks.contenders.delivery import Delivery, fingerprints
from benchmarks.measuring import Case, Contender, FailedError, TimeLimitError, WrongWorkError
from benchmarks.suites import read, step
from streamtrain.errors import InputError

JOB = {"cells": 7, "work": 300_000}


def contender(name, **options):
    return Contender(name, f"tests.contenders:{name}", options=options)


def counted(case, evidence, done):
    for name, lines in done.items():
        for line in lines:
            if line["cells"] != case.job["cells"]:
                raise WrongWorkError(f"{name} did {line['cells']} of {case.job['cells']}")
            line["checked"] = bool(evidence[name][0]["checked"])


def test_run__times_the_work_alone_and_takes_evidence():
    found, evidence = measuring.run(contender("honest"), JOB, limit_s=60)
    assert found["cells"] == 7
    assert 0 < found["seconds"] < 0.15  # preparing takes 0.2
    assert found["cells_per_s"] == pytest.approx(7 / found["seconds"])
    assert found["peak_rss"] >= 5e6
    assert found["versions"]["numpy"] == np.__version__
    assert not evidence["checked"]
    np.testing.assert_array_equal(evidence["cells"], np.arange(7))


def test_run__options_override_the_job():
    found, _ = measuring.run(contender("honest", cells=3), JOB, limit_s=60)
    assert found["cells"] == 3


def test_run__memory_cpu_and_reads_of_the_whole_tree(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10**6)
    job = {"bytes": 300 * 10**6, "file": str(file)}
    found, _ = measuring.run(contender("hungry"), job, limit_s=60)
    assert 300e6 < found["peak_rss"] < 600e6
    assert found["cpu_seconds"] > 0.01
    if psutil.LINUX:
        assert found["bytes_read"] >= 10**6


def test_run__failure_gives_the_last_words(tmp_path):
    with pytest.raises(FailedError, match=r"failing ended with status 1(.|\n)*no cells in a\.h5ad"):
        measuring.run(contender("failing"), {"file": "a.h5ad"}, limit_s=60)


def test_run__time_limit_ends_the_whole_tree():
    with pytest.raises(TimeLimitError):
        measuring.run(contender("endless"), {}, limit_s=1.5)
    left = [p for p in psutil.process_iter(["cmdline"])
            if any("mark-of-endless" in word for word in p.info["cmdline"] or ())]  # fmt: skip
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


def test_measure__turns_and_evidence():
    again = Contender("again", "tests.contenders:honest")
    case = Case("case", JOB, (contender("honest"), again), warm_up=JOB, verify={"verify": True},
                about={"axis": "x"})  # fmt: skip
    lines = list(measuring.measure([case], counted, repeats=2, limit_s=60))
    assert [(x["contender"], x["repeat"]) for x in lines] == [
        ("honest", 0), ("again", 0), ("again", 1), ("honest", 1),
    ]  # fmt: skip
    assert [x["seed"] for x in lines] == [0, 0, 1, 1]
    assert all(x["checked"] and x["axis"] == "x" and x["cache"] == "warm" for x in lines)
    assert lines[0]["machine"]["cores"] >= 1
    assert json.loads(json.dumps(lines)) == lines


def test_measure__less_work_is_not_reported():
    case = Case("case", JOB, (contender("honest"), contender("lazy")))
    lines = measuring.measure([case], counted, repeats=1, limit_s=60)
    with pytest.raises(WrongWorkError, match="lazy did 6 of 7"):
        list(lines)


def test_measure__time_limit_and_missing_interpreter_are_records(monkeypatch):
    def none(_name):
        raise environments.UnavailableError("needs Python 4")

    real = environments.interpreter
    monkeypatch.setattr(measuring, "interpreter", lambda e: none(e) if e else real(e))
    case = Case("case", JOB, (contender("endless"), Contender("other", "x:y", "python4")))
    lines = list(measuring.measure([case], counted, repeats=2, limit_s=1.5))
    assert [(x["contender"], x.get("skipped"), x.get("over_s")) for x in lines] == [
        ("other", "needs Python 4", None), ("endless", None, 1.5),
    ]  # fmt: skip


def test_measure__cold_runs_are_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(measuring, "can_drop_page_cache", lambda: False)
    case = Case("case", JOB, (contender("honest"),), cold=True)
    (line,) = measuring.measure([case], counted, repeats=1, limit_s=60)
    assert line["machine"]
    assert "page cache cannot be dropped" in line["skipped"]


def test_interpreter__none_of_the_version(tmp_path, monkeypatch):
    (tmp_path / "future.txt").write_text("# python >=4\nnumpy==3\n")
    monkeypatch.setattr(environments, "_REQUIREMENTS", tmp_path)
    with pytest.raises(environments.UnavailableError, match=r"future needs Python >=4, and none"):
        environments.interpreter("future")


def test_requirements__all_pinned():
    files = list(environments._REQUIREMENTS.glob("*.txt"))
    assert {f.stem for f in files} == {"annbatch", "celltypist", "scdataset"}
    for file in files:
        first, *others = file.read_text().splitlines()
        assert re.fullmatch(r"# python >=3\.\d+,<3\.\d+", first)
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in others)


@pytest.mark.parametrize("suite", settings.suites())
def test_settings__every_suite_has_both_sizes(suite):
    smoke, default = settings.load(suite, ["size=smoke"]), settings.load(suite)
    assert smoke.keys() == default.keys()
    assert {"repeats", "limit_s"} <= smoke.keys()


def test_settings__assignments():
    found = settings.load("read", ["size=smoke", "cells=12", "limit_s=5", 'cache=["cold"]'])
    assert (found["cells"], found["limit_s"], found["cache"]) == (12, 5.0, ["cold"])


@pytest.mark.parametrize(
    ("suite", "text", "match"),
    [
        ("reed", [], "no suite 'reed': did you mean 'read'"),
        ("read", ["size=tiny"], "no size 'tiny': there are 'default', 'smoke'"),
        ("read", ["cels=3"], "no setting 'cels': did you mean 'cells'"),
        ("read", ["cells=many"], "cells must be like 60000, .* got 'many'"),
        ("read", ["cells"], "--set takes key=value; got 'cells'"),
    ],
)
def test_settings__errors(suite, text, match):
    with pytest.raises(InputError, match=match):
        settings.load(suite, text)


class Csr:
    def __init__(self, X):
        rows, self.indices = np.nonzero(X)
        self.data = X[rows, self.indices].astype("f4")
        self.indptr = np.searchsorted(rows, np.arange(len(X) + 1))
        self.shape = X.shape


def test_fingerprints__against_big_integers():
    X = np.random.default_rng(0).poisson(0.5, (20, 30))
    X[3] = 0
    weights = [int(w) for w in np.random.Philox(0).random_raw(30)]
    expected = [sum(int(x) * w for x, w in zip(row, weights, strict=True)) % 2**64 for row in X]
    csr = Csr(X)
    found = fingerprints(csr.data, csr.indices, csr.indptr, 30)
    assert found.tolist() == expected
    assert len(set(expected)) == 20


@pytest.fixture
def delivered(monkeypatch):
    """A delivery of twelve cells in order, and a case whose truth they are."""
    X = np.random.default_rng(0).poisson(2.0, (12, 9))
    codes = np.arange(12) % 4
    delivery = Delivery({"n_types": 4, "verify": True})
    for start in range(0, 12, 5):
        delivery.take(Csr(X[start : start + 5]), codes[start : start + 5])
    evidence, counts = delivery.evidence(), delivery.counts()
    assert evidence["classes"].tolist() == [[2, 1, 1, 1], [1, 2, 1, 1], [0, 0, 1, 1]]
    assert counts == {"cells": 12, "entries": np.count_nonzero(X), "total": X.sum()}
    truth = {"prints": evidence["prints"], "labels": codes, "entries": counts["entries"],
             "total": counts["total"]}  # fmt: skip
    monkeypatch.setattr(read, "truth", lambda _path: truth)
    return evidence, counts


def reading(order, store="h5ad"):
    return Case("case", {}, (), about={"order": order, "store": store})


def shuffled(evidence):
    order = np.random.default_rng(1).permutation(12)
    return evidence | {k: evidence[k][order] for k in ("prints", "labels")}


def test_read_check__right_work(delivered):
    evidence, counts = delivered
    read.check(reading("sequential"), {"a": [evidence]}, {"a": [counts]})
    read.check(reading("random"), {"a": [shuffled(evidence)]}, {"a": [counts]})
    read.check(reading("sequential", "collection"), {"a": [shuffled(evidence)]}, {"a": [counts]})


def change(evidence, name, at, value):
    values = evidence[name].copy()
    values[at] = value
    return evidence | {name: values}


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_read_check__wrong_work(delivered, order):
    evidence, counts = delivered
    good = evidence if order == "sequential" else shuffled(evidence)
    twice = change(good, "prints", 0, good["prints"][1])
    mislabelled = change(good, "labels", 0, (good["labels"][0] + 1) % 4)
    fewer = good | {k: good[k][:-1] for k in ("prints", "labels")}
    for wrong in (twice, mislabelled, fewer):
        with pytest.raises(WrongWorkError, match="a delivered other cells than the atlas holds"):
            read.check(reading(order), {"a": [wrong]}, {"a": [counts]})
    for key in counts:
        less = counts | {key: counts[key] - 1}
        with pytest.raises(WrongWorkError, match=f"a delivered .* {key} of"):
            read.check(reading(order), {"a": [good]}, {"a": [counts, less]})


def test_read_check__order(delivered):
    evidence, counts = delivered
    with pytest.raises(WrongWorkError, match="in storage order"):
        read.check(reading("random"), {"a": [evidence]}, {"a": [counts]})
    with pytest.raises(WrongWorkError, match="other cells"):
        read.check(reading("sequential"), {"a": [shuffled(evidence)]}, {"a": [counts]})


def test_step_check():
    coef = np.random.default_rng(0).normal(size=(3, 50))
    job = {"cells": 10, "dtype": "float64"}
    case = Case("case", job, (), about={"classes": 3})

    def check(ours, cells=10):
        line = {"cells": cells, "entries": 100, "classes": 3, "seconds": 2.0}
        names = (step.OURS.name, step.SKLEARN.name)
        done = {name: [dict(line)] for name in names}
        found = dict(zip(names, ([{"coef": ours}], [{"coef": coef}]), strict=True))
        step.check(case, found, done)
        return done[step.OURS.name][0]

    line = check(coef * (1 + 1e-9))
    assert line["difference"] == pytest.approx(1e-9, rel=1e-3)
    assert line["gflops"] == pytest.approx(4e-9 * 100 * 3 / 2)
    with pytest.raises(WrongWorkError, match=r"weights of streamtrain differ .* more than 1e-06"):
        check(coef * (1 + 1e-5))
    with pytest.raises(WrongWorkError, match="weights of streamtrain"):
        check(np.full_like(coef, np.nan))
    with pytest.raises(WrongWorkError, match="took 9 steps of 10"):
        check(coef, cells=9)


@pytest.fixture
def lines():
    common = {"suite": "read", "set": ["size=smoke"], "commit": "abc", "cache": "warm"}
    common["machine"] = {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}
    run = {"cpu_seconds": 1.0, "peak_rss": 5e6, "bytes_read": 2e6, "seconds": 1.0}

    def line(case, contender, **found):
        return common | {"case": case, "contender": contender} | found

    return [
        line("one", "peer", skipped="no Python"),
        *(line("one", "streamtrain", cells_per_s=x, **run) for x in (3e4, 1e4, 2e4)),
        *(line("one", "h5py", cells_per_s=x, **run) for x in (4e4, 4e4)),
        line("two", "streamtrain", over_s=60.0),
        line("two", "h5py", cells_per_s=5.0, **run, versions={"h5py": "3"}),
    ]  # fmt: skip


def test_report__table_and_picture(tmp_path, lines):
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    table = report.write(tmp_path, "read").splitlines()
    assert table[2].startswith("`python -m benchmarks read --set size=smoke` at commit abc on CPU")
    assert "h5py 3." in table[2]
    assert table[4] == (
        "| case | contender | cells/s | ours / theirs | CPU s | peak RSS, MB | read, MB |"
    )
    assert table[6:] == [
        "| one | peer | no Python |  |  |  |  |",
        "| one | streamtrain | 20,000 [10,000 - 30,000] |  | 1.0 | 5 | 2 |",
        "| one | h5py | 40,000 [40,000 - 40,000] | 0.50 | 1.0 | 5 | 2 |",
        "| two | streamtrain | stopped after 60 s |  |  |  |  |",
        "| two | h5py | 5 |  | 1.0 | 5 | 2 |",
    ]
    assert (tmp_path / "read.md").read_text().splitlines() == table
    assert (tmp_path / "read.png").read_bytes().startswith(b"\x89PNG")


def test_report__ratio_of_times(lines):
    view = report.View((report.SECONDS,), "time", report.bars)
    runs = [
        {"case": "x", "contender": n, "seconds": s} for n, s in (("streamtrain", 2.0), ("p", 30))
    ]
    assert report.ratio(runs, "x", "p", view) == "15"
    assert report.ratio(runs, "x", "streamtrain", view) == ""
