"""The gpu suite and its check script, on NumPy: what they reckon, and what they refuse."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import agreement, floors, gpu_check, measuring, report, settings, simulated
from benchmarks.contenders import gpu
from benchmarks.environments import NoDeviceError
from benchmarks.measuring import Case, Contender, WrongWorkError
from benchmarks.suites import gpu as suite
from streamtrain import simulate
from streamtrain.errors import InputError
from streamtrain.gpu.cells import TILE
from streamtrain.gpu.device import Device, Sent
from streamtrain.gpu.sgd import DeviceSGD
from streamtrain.solvers.counters import State
from streamtrain.threads import Threads

HOST = Device(np)
JOB = {
    "device": "numpy", "density": 0.1, "genes": 80, "cells": 400, "classes": 3, "n_jobs": 1,
    "batch_size": 150, "dtype": "float64", "average": False, "at_least_s": 1e-9, "compared": 350,
    "megabytes": 1, "order": 20,
}  # fmt: skip


@pytest.fixture
def no_gpu(monkeypatch):
    def gpu(memory=None):
        raise InputError("device='gpu' needs CuPy: pip install it (or so), or leave out device")

    monkeypatch.setattr(Device, "gpu", gpu)


def test_by_class__rows_are_the_counts():
    rows = simulated.by_class(300, 50, 4)
    assert np.array_equal(rows.indptr, [0, *np.cumsum(np.diff(rows.indptr))])
    assert (np.diff(rows.indptr) > 0).all()
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        assert (np.diff(rows.indices[start:stop]) > 0).all()
    assert (np.expm1(rows.data).round(4) % 1 == 0).all()
    with Threads(1) as threads:
        share = simulated.Genes.of(rows, threads).share
    assert (share > 0.5).any()
    assert (share < 0.5).any()
    means = [rows.data[np.repeat(rows.codes, np.diff(rows.indptr)) == k].mean() for k in range(4)]
    assert np.ptp(means) > 0.01


def test_work__counted_one_by_one():
    n, k, entries = 1000, 10, 100
    of_sgd = floors.sgd(n, k, entries, np.float32, average=False)
    tile = 4 * n * TILE
    weights = 4 * n * k
    products = n * k * TILE + n * TILE**2 + n * k * TILE  # multiply-adds of a block
    moved = 6 * entries * TILE + 4 * tile + 3 * weights
    assert of_sgd.operations * TILE == 2 * products
    assert of_sgd.moved * TILE == moved
    assert of_sgd.uploaded == 6 * entries
    assert of_sgd.dtype == "float32"
    mean = floors.sgd(n, k, entries, np.float64, average=True)
    assert mean.operations * TILE == 2 * (products + n * k * TILE)
    assert mean.moved * TILE == 10 * entries * TILE + 8 * tile + 10 * weights
    of_pass = floors.gradient(n, k, entries, np.float32, cells=512)
    assert of_pass.operations == 4 * n * k
    assert of_pass.moved * 512 == 6 * entries * 512 + 3 * 8 * n * 512 + 3 * 8 * n * k
    assert (of_pass.uploaded, of_pass.dtype) == (0, "float64")
    assert floors.entry_bytes(2**16 + 1, 4) == 8


@pytest.mark.parametrize(
    ("work", "bytes_floor", "operations_floor"),
    [
        (floors.Work(moved=200, uploaded=1, operations=10, dtype="float32"), 5, 100),
        (floors.Work(moved=200, uploaded=50, operations=10, dtype="float32"), 2, 100),
        (floors.Work(moved=20, uploaded=0, operations=1000, dtype="float64"), 50, 0.5),
    ],
)
def test_figures__share_of_the_nearer_floor(work, bytes_floor, operations_floor):
    card = floors.Card("card", copied=1000.0, uploaded=100.0, float32=1000.0, float64=500.0)
    found = floors.figures(work, card, cells_per_s=0.25)
    assert found["bytes_floor"] == pytest.approx(bytes_floor)
    assert found["operations_floor"] == pytest.approx(operations_floor)
    assert found["share"] == pytest.approx(0.25 / min(bytes_floor, operations_floor))
    assert found["card"]["name"] == "card"


def test_measured__on_numpy():
    card = floors.measured(HOST, megabytes=2, order=64)
    assert card.name == "NumPy"
    assert 1e8 < card.copied < 1e13
    assert 1e8 < card.uploaded < 1e13
    assert 1e7 < card.float64 < 1e14
    assert 1e7 < card.float32 < 1e14


def test_timed__takes_whole_items_until_it_is_long_enough():
    taken, finished = [], []
    items = [SimpleNamespace(n_obs=n) for n in (3, 4, 5)]
    found = gpu.timed(taken.append, items, 1e-9, lambda: finished.append(len(taken)))
    assert (found["cells"], taken, finished) == (3, items[:1], [1])
    assert gpu.timed(taken.append, items, 60.0, lambda: None)["cells"] == 12


def test_scaled__batches_of_the_cells_once_or_without_end():
    rows = simulated.by_class(100, 50, 3)
    with Threads(1) as threads:
        rule = simulated.Genes.of(rows, threads).scaler("float64")
    once = list(gpu.scaled(rows, [0, 10, 70, 100], rule))
    assert [cells.n_obs for cells in once] == [10, 60, 30]
    np.testing.assert_array_equal(np.concatenate([cells.codes for cells in once]), rows.codes)
    endless = gpu.scaled(rows, gpu.cut(100, 40), rule, again=True)
    sizes = [next(endless).n_obs for _ in range(7)]
    assert sizes == [40, 40, 20, 40, 40, 20, 40]


@pytest.mark.parametrize("options", [{}, {"classes": 2, "average": True}, {"dtype": "float32"}])
def test_sgd__same_weights_on_the_device(options):
    _, line, found = gpu.sgd(JOB | options)
    _, other, expected = gpu.sgd(JOB | options | {"device": "cpu"})
    within = 1e-4 if "dtype" in options else 1e-9
    for key in ("coef", "intercept"):
        assert agreement.distance(found[key], expected[key]) <= within, key
    assert (found["steps"] == 350).all()
    assert line["cells"] % 150 in (0, 100)
    rate = line["cells"] / line["seconds"]
    nearer = min(line["bytes_floor"], line["operations_floor"])
    assert line["share"] == pytest.approx(rate / nearer)
    assert "share" not in other


@pytest.mark.parametrize("n_classes", [2, 5])
def test_gradient__same_sums_on_the_device(n_classes):
    job = JOB | {"classes": n_classes, "dtype": "float32"}
    _, line, found = gpu.gradient(job)
    _, _, expected = gpu.gradient(job | {"device": "cpu"})
    assert found.keys() == {"loss", "slope", "total", "bend"}
    for key, values in expected.items():
        assert agreement.distance(found[key], values) <= 1e-12
    assert line["cells"] % 400 == 0
    assert line["share"] > 0


def test_gradients__by_plain_numpy():
    rows = gpu.expression(JOB)
    with Threads(1) as threads:
        rule = simulated.Genes.of(rows, threads).scaler("float64")
        point = gpu.Gradients(rows, rule, 3)
        with point.tiles() as tiles:
            loss, slope, _, _ = point(point.sums(tiles, None, threads))
    X = point.matrix().toarray()
    score = X @ point.W + point.constant
    y = rows.codes[:, None] == np.arange(3)
    np.testing.assert_allclose(loss, (np.logaddexp(0, score) - y * score).sum(axis=0))
    np.testing.assert_allclose(slope, X.T @ (1 / (1 + np.exp(-score)) - y), atol=1e-9)


def test_whole__the_same_model_and_how_busy_the_device_is(tmp_path):
    store = simulate(
        tmp_path / "a.zarr", n_obs=400, n_vars=120, n_types=3, n_donors=2, progress=False
    )
    job = JOB | {
        "store": str(store), "memory": "1GB",
        "settings": {"batch_size": 100, "batch_number": 3, "epochs": 2},
    }  # fmt: skip
    fit = DeviceSGD.partial_fit
    _, line, found = gpu.whole(job)
    _, other, expected = gpu.whole(job | {"device": "cpu"})
    assert line["cells"] == other["cells"] == 600
    assert 0 < line["busy_share"] < 1
    assert "busy_share" not in other
    assert agreement.distance(found["coef"], expected["coef"]) <= 1e-9
    assert DeviceSGD.partial_fit is fit


def test_cases__every_group(monkeypatch):
    monkeypatch.setattr(suite, "atlas", lambda *_, cells, **__: f"{cells} cells")
    cases = suite.cases(settings.load("gpu", ["device=numpy"]))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert names[2] == "SGD, 100 classes, averaged"
    assert cases[2].job["average"]
    assert names[-1] == "whole job, 100,000 cells, 100 classes"
    assert cases[-1].warm_up["store"] == "1000 cells"
    assert [c.needs for c in cases[-2].contenders] == ["", "", "torch", "cuml"]
    with pytest.raises(InputError, match=r"device must be 'gpu', or 'numpy' .* got 'tpu'"):
        suite.cases(settings.load("gpu", ["device=tpu"]))


def test_suite__without_a_gpu_nothing_is_written(no_gpu, tmp_path, monkeypatch, caplog):
    out = tmp_path / "figures"
    with pytest.raises(NoDeviceError, match=r"needs CuPy: pip install it \(or so\); --set device="):
        command.run("gpu", set=("size=smoke",), out=out)
    monkeypatch.setattr(settings, "suites", lambda: ["gpu"])
    with caplog.at_level(logging.WARNING):
        command.run("all", set=("size=smoke",), out=out)
    assert "gpu is left out: suite gpu is for a machine with a GPU" in caplog.text
    assert not out.exists()


def test_measure__a_module_that_is_not_here():
    who = Contender("peer", "tests.contenders:honest", needs="streamtrain_peer")
    (line,) = measuring.measure([Case("case", {}, (who,))], lambda *_: None, repeats=2, limit_s=9)
    assert line["skipped"] == "streamtrain_peer is not installed here"


def check(found, group="SGD", name="streamtrain", **job):
    """Check one run beside the CPU's; returns its line."""
    who = {"SGD": suite.SGD, "gradient": suite.GRADIENT, "whole": suite.WHOLE}[group]
    given = {"cells": 500, "compared": 300, "dtype": "float32"} | job
    case = Case("case", given, who, about={"group": group})
    evidence = {name: [found], "streamtrain, CPU": [evidence_of(group)]}
    done = {name: [{}], "streamtrain, CPU": [{}]}
    suite.check(case, evidence, done)
    return done[name][0]


def evidence_of(group):
    if group == "gradient":
        return {"loss": np.ones(3), "slope": np.ones((4, 3))}
    return {"coef": np.ones((3, 4)), "intercept": np.ones(3), "steps": np.array(300)}


def test_check__right_work():
    near = evidence_of("SGD") | {"coef": np.full((3, 4), 1 + 1e-5)}
    assert check(near)["difference"] == pytest.approx(1e-5)
    assert check(evidence_of("gradient"), "gradient", "torch.sparse")["difference"] == 0
    settings = {"batch_size": 10, "batch_number": 10, "epochs": 3}
    assert check(evidence_of("whole"), "whole", settings=settings)["difference"] == 0
    torch = {"coef": np.ones((3, 4)), "intercept": np.ones(3)}
    assert check(torch, name="PyTorch, a step a batch") == {}
    assert check({}, "gradient", "cuML, softmax") == {}


@pytest.mark.parametrize(
    ("change", "group", "name", "message"),
    [
        (
            {"coef": np.full((3, 4), 1.001)},
            "SGD",
            "streamtrain",
            "differs from the CPU by 1.0e-03",
        ),
        ({"intercept": np.full(3, 2.0)}, "SGD", "streamtrain", "differs from the CPU by 1.0e"),
        ({"slope": np.full((4, 3), 1 + 1e-8)}, "gradient", "streamtrain", "differs from the CPU"),
        ({"loss": np.full(3, 1 + 1e-8)}, "gradient", "torch.sparse", "torch.sparse differs"),
        ({"steps": np.array(299)}, "SGD", "streamtrain", "streamtrain took 299 steps of 300"),
        ({"coef": np.full((3, 4), np.nan)}, "SGD", "PyTorch, a step a batch", "is not finite"),
    ],
)
def test_check__wrong_work(change, group, name, message):
    with pytest.raises(WrongWorkError, match=f"case: .*{message}"):
        check(evidence_of(group) | change, group, name)


def test_report__floors_beside_the_figures(tmp_path):
    card = {"name": "H200", "copied": 4e12, "uploaded": 5e10, "float32": 5e13, "float64": 6e13}
    common = {
        "set": [], "commit": "abc", "group": "SGD", "case": "SGD, 10 classes", "cpu_seconds": 1.0,
        "machine": {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}, "seconds": 1.0,
    }  # fmt: skip
    floor = {"bytes_floor": 2e6, "operations_floor": 4e6, "share": 0.5, "card": card}
    lines = [
        common | {"contender": "streamtrain", "cells_per_s": 1e6, "difference": 1e-6} | floor,
        common | {"contender": "streamtrain, CPU", "cells_per_s": 2e4},
    ]
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report.write(tmp_path, "gpu")
    assert "H200: 4,000 GB/s in its memory, 50.0 GB/s from pinned memory, products at 50.0" in text
    ours, cpu = text.splitlines()[-2:]
    assert ours == (
        "| SGD, 10 classes | streamtrain | 1,000,000 |  | 2,000,000 | 4,000,000 | 50% |  | 1e-06 "
        "| 1.0 |"
    )
    assert cpu == "| SGD, 10 classes | streamtrain, CPU | 20,000 | 50 |  |  |  |  |  | 1.0 |"
    assert suite.card(lines[1:]) == []


def test_torch__same_sums_and_as_many_cells():
    pytest.importorskip("torch")
    from benchmarks.contenders import torch

    _, line, found = torch.gradient(JOB)
    _, _, expected = gpu.gradient(JOB | {"device": "cpu"})
    for key, values in found.items():
        assert agreement.distance(values, expected[key]) <= 1e-12
    assert line["cells"] % 400 == 0
    _, line, found = torch.sgd(JOB)
    assert found["coef"].shape == (3, 80)
    assert (found["coef"] != 0).any()


def test_distance_and_apart():
    assert agreement.distance([3, 4.5], [3, 4]) == pytest.approx(0.1)
    assert agreement.distance([0.0], [0.0]) == 0
    assert agreement.distance([1, 2], [1]) == np.inf
    one = State(np.ones((2, 3)), np.ones(2), t=np.array([5.0, 5.0]))
    assert agreement.apart(one, one) == 0
    later = State(one.coef, one.intercept, t=np.array([5.0, 6.0]))
    averaged = State(one.coef, one.intercept, one.coef, one.intercept, one.t)
    nan = State(one.coef * np.nan, one.intercept, t=one.t)
    assert agreement.apart(one, later) == agreement.apart(averaged, one) == np.inf
    assert not agreement.Check("", agreement.apart(nan, one), 1e9).ok


SIZES = gpu_check.SIZES["numpy"]


def test_slots__an_upload_that_arrives_otherwise():
    class Late(Device):
        sent = 0

        def send(self, *arrays, small=False):  # noqa: ARG002 - as the device's
            self.sent += 1
            arrays = [a.copy() for a in arrays]
            if self.sent == 3:
                arrays[0][-1] += 1
            return Sent(arrays)

    (right,) = agreement.slots(HOST, SIZES)
    (wrong,) = agreement.slots(Late(np), SIZES)
    assert (right.difference, wrong.difference) == (0, 1)
    assert not wrong.ok


def told(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    status = gpu_check.main(["--device", "numpy", "--out", str(out)])
    return status, told(out / "gpu_check.jsonl")


def test_gpu_check__all_of_it_on_numpy(checked):
    status, lines = checked
    assert status == 0
    checks = [line for line in lines if line["kind"] in ("ok", "FAILED")]
    assert all(line["ok"] for line in checks)
    assert {"tiles", "blocks", "SGD", "uploads", "sums", "scores"} <= {c["section"] for c in checks}
    assert max(c["difference"] for c in checks if c["section"] == "SGD") > 0  # two ways of summing
    figures = {line["name"]: line for line in lines if line["kind"] == "figures"}
    for name in ("SGD, 3 classes", "SGD, 3 classes, averaged", "gradient, 3 classes"):
        found = figures[name]
        rate = found["cells"] / found["seconds"]
        assert found["cells_per_s"] == pytest.approx(rate)
        assert found["share"] * found["operations_floor"] >= 0.99 * rate
        assert found["met"] is None
    ours, cpu = figures["SGD, 3 classes"], figures["SGD, 3 classes, CPU, 2 threads"]
    assert cpu["times"] == pytest.approx(ours["cells_per_s"] / cpu["cells_per_s"])
    assert 0 < figures["whole job, 300 cells from zarr"]["busy_share"] < 1
    assert figures["sets in the folder DATA"]["sets"] == 0
    assert [line["section"] for line in lines if line["kind"] == "took"] == [
        name for name, _ in gpu_check.SECTIONS
    ]


def test_gpu_check__targets_of_a_card():
    card = SimpleNamespace(xp=None)
    assert gpu_check._met(card, "SGD, 100 classes", {"cells_per_s": 5e5})
    assert gpu_check._met(card, "gradient", {"share": 0.59}) is False
    assert gpu_check._met(card, "SGD, 10 classes", {}) is None
    assert gpu_check._met(HOST, "gradient", {"share": 0.1}) is None


def run(sections, monkeypatch, tmp_path, *more):
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    status = gpu_check.main(["--device", "numpy", "--out", str(tmp_path), *more])
    return status, told(tmp_path / "gpu_check.jsonl")[1:]


def test_gpu_check__a_wrong_kernel_fails(monkeypatch, tmp_path):
    settle = DeviceSGD._settle

    def wrong(self, *given):
        self._moved[0, -1] *= 1.01
        settle(self, *given)

    monkeypatch.setattr(DeviceSGD, "_settle", wrong)
    status, lines = run((("SGD", agreement.sgd),), monkeypatch, tmp_path)
    assert status == 1
    assert all(line["kind"] == "FAILED" for line in lines[:-1])


def test_gpu_check__errors_end_their_own_section_alone(monkeypatch, tmp_path):
    def failing(device, sizes):
        yield agreement.Check("first", 0.0, 0.0)
        raise ValueError("no such kernel")

    def lacking(device, sizes):
        import streamtrain_peer  # noqa: F401

        yield

    def broken(device, sizes):
        import streamtrain.no_such_module  # noqa: F401

        yield

    sections = (("a", failing), ("b", lacking), ("c", broken), ("d", agreement.tiles))
    status, lines = run(sections, monkeypatch, tmp_path)
    assert status == 1
    assert [line["kind"] for line in lines[:7]] == [
        "ok", "FAILED", "took", "left", "took", "FAILED", "took",
    ]  # fmt: skip
    assert "no such kernel" in lines[1]["error"]
    assert "it needs streamtrain_peer" in lines[3]["name"]
    assert lines[-2]["kind"] == "ok"


def test_gpu_check__what_the_time_does_not_suffice_for(monkeypatch, tmp_path, capsys):
    sections = (("tiles", agreement.tiles), ("blocks", agreement.blocks))
    status, lines = run(sections, monkeypatch, tmp_path, "--seconds", "0")
    assert status == 0
    assert [line["kind"] for line in lines] == ["took", "took"]
    assert "what was left of it is left out" in capsys.readouterr().out


def test_gpu_check__without_a_gpu(no_gpu, tmp_path, capsys):
    gpu.device_of.cache_clear()
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("gpu_check: device='gpu' needs CuPy")
    assert not (tmp_path / "out").exists()


def test_cuml__a_pass_for_each_iteration(monkeypatch):
    class Fit:
        def __init__(self, max_iter, tol=None):  # noqa: ARG002 - as cuML's
            self.n_iter_ = np.array([max_iter])

        def fit(self, X, y):
            assert X.shape[0] == len(y) == 400

    cupy = SimpleNamespace(
        asarray=lambda a, dtype=None: np.asarray(a, dtype),
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(synchronize=lambda: None)),
    )
    sparse = SimpleNamespace(csr_matrix=lambda X: X)
    for name, module in {
        "cupy": cupy, "cupyx": SimpleNamespace(scipy=SimpleNamespace(sparse=sparse)),
        "cupyx.scipy": SimpleNamespace(sparse=sparse), "cupyx.scipy.sparse": sparse,
        "cuml": SimpleNamespace(), "cuml.linear_model": SimpleNamespace(LogisticRegression=Fit),
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "benchmarks.contenders.cuml", raising=False)
    from benchmarks.contenders import cuml

    _, line = cuml.gradient(JOB)
    assert line["cells"] == 400 * 20
