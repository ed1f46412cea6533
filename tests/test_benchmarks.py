"""The benchmark harness: what it measures, what it refuses to report, and what it makes of it."""

import json
import os
import re
from contextlib import closing

import numpy as np
import psutil
import pytest

import streamtrain
from benchmarks import environments, measuring, report, settings
from benchmarks.contenders import training, windows
from benchmarks.contenders.delivery import Delivery, fingerprints
from benchmarks.measuring import Case, Contender, FailedError, TimeLimitError, WrongWorkError
from benchmarks.suites import read, scale, train
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
    with pytest.raises(FailedError, match=r"ended with status 1: (.|\n)*no cells in a\.h5ad"):
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


def test_measure__who_gives_no_time_is_a_record_and_the_others_go_on(monkeypatch):
    def none(_name):
        raise environments.UnavailableError("needs Python 4")

    real = environments.interpreter
    monkeypatch.setattr(measuring, "interpreter", lambda e: none(e) if e else real(e))
    other = Contender("other", "x:y", "python4")
    who = (contender("endless"), other, contender("failing"), contender("honest"))
    case = Case("case", JOB | {"file": "a.h5ad"}, who)
    lines = list(measuring.measure([case], counted, repeats=2, limit_s=1))
    assert [(x["contender"], x["repeat"]) for x in lines] == [
        ("endless", 0), ("other", 0), ("failing", 0), ("honest", 0), ("honest", 1),
    ]  # fmt: skip
    endless, other, failing, *honest = lines
    assert endless["over_s"] == 1
    assert other["skipped"] == "needs Python 4"
    assert "no cells in a.h5ad" in failing["failed"]
    assert all("seconds" in x for x in honest)


@pytest.mark.parametrize("case", [
    Case("case", JOB, (contender("honest"),), cold=True),
    Case("case", JOB, (contender("honest"),), skipped="the page cache cannot be dropped"),
])  # fmt: skip
def test_measure__cases_that_nobody_can_do(monkeypatch, case):
    monkeypatch.setattr(measuring, "can_drop_page_cache", lambda: False)
    (line,) = measuring.measure([case], counted, repeats=2, limit_s=60)
    assert line["machine"]
    assert line["job"] == JOB
    assert "page cache cannot be dropped" in line["skipped"]


def test_measure__reads_files_before_a_warm_run(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "chunk").write_bytes(b"x")
    read_first = []
    monkeypatch.setattr(measuring, "_into_page_cache", read_first.append)
    case = Case("case", JOB, (contender("honest"),), files=(str(tmp_path / "store"),))
    list(measuring.measure([case], counted, repeats=2, limit_s=60))
    assert read_first == [tmp_path / "store"] * 2


@pytest.mark.skipif(not measuring.can_drop_page_cache(), reason="only Linux's root can")
def test_run__cold_reads_come_from_the_disk(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(8 * 10**6))
    job = {"bytes": 10**6, "file": str(file)}
    warm, _ = measuring.run(contender("hungry"), job, limit_s=60, files=[str(file)])
    cold, _ = measuring.run(contender("hungry"), job, limit_s=60, cold=True)
    if not cold["bytes_from_disk"]:
        pytest.skip("this file system keeps files in memory")
    assert warm["bytes_from_disk"] < 4e6 < 8e6 <= cold["bytes_from_disk"]


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
        ("read", ["cells=many"], r"cells must be like \d+, .* got 'many'"),
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
def delivered(monkeypatch, tmp_path):
    """A delivery of forty cells in order, its counts, and a store that holds them."""
    X = np.random.default_rng(0).poisson(2.0, (40, 9))
    codes = np.arange(40) % 4
    delivery = Delivery({"n_types": 4, "verify": True})
    for start in range(0, 40, 15):
        delivery.take(Csr(X[start : start + 15]), codes[start : start + 15])
    evidence, counts = delivery.evidence(), delivery.counts()
    assert evidence["classes"].tolist() == [[4, 4, 4, 3], [4, 4, 3, 4], [2, 2, 3, 3]]
    assert counts == {"cells": 40, "entries": np.count_nonzero(X), "total": X.sum()}
    truth = {"prints": evidence["prints"], "labels": codes, "entries": counts["entries"],
             "total": counts["total"]}  # fmt: skip
    monkeypatch.setattr(read, "truth", lambda _path: truth)
    (tmp_path / "store").write_bytes(b"x" * 1000)
    return evidence, counts


def reading(order, tmp_path, *, cold=False):
    job, about = {"store": str(tmp_path / "store")}, {"order": order, "store": "h5ad"}
    return Case("case", job, (), about=about, reference=(1, 2), cold=cold)


def mixed(evidence):
    order = np.random.default_rng(2).permutation(40)
    return evidence | {k: evidence[k][order] for k in ("prints", "labels")}


def line_of(counts, **found):
    return {"contender": "a"} | counts | found


def test_read_check__right_work(delivered, tmp_path):
    evidence, counts = delivered
    done = {"a": [line_of(counts, bytes_from_disk=0)]}
    read.check(reading("sequential", tmp_path), {"a": [evidence]}, done)
    read.check(reading("random", tmp_path), {"a": [mixed(evidence)]}, done)
    done = {"a": [line_of(counts, bytes_from_disk=1000)]}
    read.check(reading("random", tmp_path, cold=True), {"a": [mixed(evidence)]}, done)


def change(evidence, name, at, value):
    values = evidence[name].copy()
    values[at] = value
    return evidence | {name: values}


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_read_check__wrong_work(delivered, tmp_path, order):
    evidence, counts = delivered
    good = evidence if order == "sequential" else mixed(evidence)
    twice = change(good, "prints", 0, good["prints"][1])
    mislabelled = change(good, "labels", 0, (good["labels"][0] + 1) % 4)
    fewer = good | {k: good[k][:-1] for k in ("prints", "labels")}
    case, done = reading(order, tmp_path), {"a": [line_of(counts)]}
    for wrong in (twice, mislabelled, fewer):
        with pytest.raises(WrongWorkError, match="a delivered other cells than the atlas holds"):
            read.check(case, {"a": [wrong]}, done)
    for key in counts:
        less = line_of(counts) | {key: counts[key] - 1}
        with pytest.raises(WrongWorkError, match=f"a delivered .* {key} of"):
            read.check(case, {"a": [good]}, {"a": [line_of(counts), less]})


def test_read_check__order(delivered, tmp_path):
    evidence, _ = delivered
    for block in (40, 10, 4):  # unmixed blocks
        starts = np.arange(0, 40, block)[::-1, None]
        order = (starts + np.arange(block)).ravel()
        blocks = evidence | {k: evidence[k][order] for k in ("prints", "labels")}
        with pytest.raises(WrongWorkError, match=r"a left \d+% of neighbours together"):
            read.check(reading("random", tmp_path), {"a": [blocks]}, {})
    with pytest.raises(WrongWorkError, match="a did not deliver in storage order"):
        read.check(reading("sequential", tmp_path), {"a": [mixed(evidence)]}, {})


@pytest.mark.parametrize(
    ("cold", "bytes_from_disk", "text"),
    [(False, 100, "not in the page cache"), (True, 100, "the page cache was not empty")],
)
def test_read_check__page_cache(delivered, tmp_path, cold, bytes_from_disk, text):
    evidence, counts = delivered
    case = reading("sequential", tmp_path, cold=cold)
    done = {"a": [line_of(counts, bytes_from_disk=bytes_from_disk)]}
    with pytest.raises(WrongWorkError, match=text):
        read.check(case, {"a": [evidence]}, done)


def test_windows_single__a_collection_with_other_files_in_it(tmp_path):
    collection = tmp_path / "a.collection"
    (collection / "dataset_0").mkdir(parents=True)
    (collection / "dataset_0.truth.npz").touch()
    assert windows.single({"store": str(collection)}) == str(collection / "dataset_0")
    (collection / "dataset_1").mkdir()
    with pytest.raises(ValueError, match="holds 2 data sets, and this reader takes one"):
        windows.single({"store": str(collection)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An atlas, a model of it in the contenders' form, and our own predictions by it."""
    path = tmp_path_factory.mktemp("bench") / "a.h5ad"
    streamtrain.simulate(path, n_obs=1_200, n_vars=200, n_types=3, n_donors=4, progress=False)
    job = {"store": str(path), "held_out": ["donor_3"], "memory": "500MB", "repeat": 0,
           "settings": {"batch_size": 100, "batch_number": 5, "epochs": 2}}  # fmt: skip
    _, found, evidence = training.ours(job)
    assert len(evidence["genes"]) > 150
    return path, job, found, evidence


def test_train_predict__as_streamtrain_itself(trained):
    path, job, _, evidence = trained
    model = streamtrain.train(
        path, "cell_type", normalize="log1p", memory="500MB", progress=False,
        where="donor_id != 'donor_3'", use_SGD=True, mini_batch=True, **job["settings"],
    )  # fmt: skip
    # The scores as they are, to which a wrong clip or a gene out of place would show.
    expected = streamtrain.predict(model, path, normalize="log1p", progress=False)
    with closing(streamtrain.open_source(path)) as source:
        everything = np.ones(source.n_obs, bool)
        found = train.predict(evidence, source, everything)
        assert (found == expected["predicted_labels"].to_numpy()).all()
        clipped = evidence | {"scale": evidence["scale"] * 3}
        assert (train.predict(clipped, source, everything) != found).any()


def test_train_check(trained):
    path, job, found, evidence = trained
    case = Case("case", job | {"at_most": 500}, (), reference=path)

    def check(line, evidence=evidence, name="streamtrain"):
        record = {"contender": name, "seconds": 2.0} | line
        train.check(case, {name: [evidence]}, {name: [record]})
        return record

    line = check(found)
    assert line["steps_per_s"] == 500  # two epochs of five batches of a hundred, in two seconds
    assert 0.3 < line["macro_f1"] <= 1
    with pytest.raises(WrongWorkError, match=r"streamtrain trained with 999 steps, not 1,000"):
        check(found | {"steps": 999})
    with pytest.raises(WrongWorkError, match=r"CellTypist trained with .* cells, not 500"):
        check(found, name="CellTypist")
    worse = evidence | {"coef": -evidence["coef"]}
    both = {"streamtrain": [evidence], "other": [worse]}
    records = {n: [{"contender": n, "seconds": 2.0} | found] for n in both}
    with pytest.raises(WrongWorkError, match=r"other reached a macro-F1 of .* that is no model"):
        train.check(case, both, records)


def test_scale_check():
    job = {"settings": {"batch_size": 10, "batch_number": 2, "epochs": 3}, "memory": "1GB"}
    case = Case("case", job, (), about={"cells": 100, "cell_types": 3})
    good = {"coef": np.ones((3, 5)), "genes": np.arange(5)}

    def check(evidence=good, **line):
        record = {"contender": "streamtrain", "cells": 100, "steps": 60, "seconds": 2.0,
                  "base_rss": 2e8, "peak_rss": 9e8} | line  # fmt: skip
        scale.check(case, {"streamtrain": [evidence]}, {"streamtrain": [record]})
        return record

    assert check()["memory_above_base"] == 7e8
    with pytest.raises(WrongWorkError, match=r"held 1,100,000,000.0 bytes over .* memory=1GB"):
        check(peak_rss=1.3e9)
    with pytest.raises(WrongWorkError, match="trained with 59 steps, not 60"):
        check(steps=59)
    for wrong in (np.ones((2, 5)), np.zeros((3, 5)), np.full((3, 5), np.nan)):
        with pytest.raises(WrongWorkError, match="gave no weights for some of the 3 cell types"):
            check(good | {"coef": wrong})


@pytest.fixture
def lines():
    common = {"suite": "read", "set": ["size=smoke"], "commit": "abc", "cache": "warm"}
    common["machine"] = {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}
    run = {"cpu_seconds": 1.0, "peak_rss": 5e6, "bytes_read": 2e6, "bytes_from_disk": 0}
    run["seconds"] = 1.0

    def line(case, contender, **found):
        return common | {"case": case, "contender": contender} | found

    return [
        line("one", "peer", skipped="no Python"),
        *(line("one", "streamtrain", cells_per_s=x, **run) for x in (3e4, 1e4, 2e4)),
        *(line("one", "h5py", cells_per_s=x, **run) for x in (4e4, 4e4)),
        line("one", "h5py", failed="status -9\nmore"),
        line("two", "streamtrain", over_s=60.0),
        line("two", "h5py", cells_per_s=5.0, **run, versions={"h5py": "3"}),
    ]  # fmt: skip


def test_report__table_and_picture(tmp_path, lines):
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    table = report.write(tmp_path, "read").splitlines()
    assert table[2].startswith("`python -m benchmarks read --set size=smoke` at commit abc on CPU")
    assert "h5py 3." in table[2]
    assert table[4] == (
        "| case | contender | cells/s | ours / theirs | CPU s | peak RSS, MB | read calls, MB "
        "| from disk, MB |"
    )
    assert table[6:] == [
        "| one | peer | no Python |  |  |  |  |  |",
        "| one | streamtrain | 20,000 [10,000 - 30,000] |  | 1.0 | 5 | 2 | 0 |",
        "| one | h5py | 40,000 [40,000 - 40,000]; then status -9 | 0.50 | 1.0 | 5 | 2 | 0 |",
        "| two | streamtrain | stopped after 60 s |  |  |  |  |  |",
        "| two | h5py | 5 |  | 1.0 | 5 | 2 | 0 |",
    ]
    assert (tmp_path / "read.md").read_text().splitlines() == table
    assert (tmp_path / "read.png").read_bytes().startswith(b"\x89PNG")


def test_report__nothing_timed(tmp_path, lines):
    (tmp_path / "read.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "| one | peer | no Python |" in report.write(tmp_path, "read")


def test_report__ratio_of_times():
    view = report.View((report.SECONDS,), "time", report.bars)
    runs = [
        {"case": "x", "contender": n, "seconds": s} for n, s in (("streamtrain", 2.0), ("p", 30))
    ]
    assert report.ratio(runs, "x", "p", view) == "15"
    assert report.ratio(runs, "x", "streamtrain", view) == ""
    runs[0]["steps"], runs[1]["steps"] = 10, 5
    view = report.View((report.SECONDS,), "time a step", report.bars)
    assert report.ratio(runs, "x", "p", view) == "30"
