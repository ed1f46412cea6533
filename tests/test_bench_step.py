"""The step suite: the cells it makes, what it times, and the work its check refuses."""

import time

import numpy as np
import pytest

from benchmarks import settings, simulated
from benchmarks.contenders import ceilings, steps
from benchmarks.measuring import Case, WrongWorkError
from benchmarks.suites import step
from streamtrain.kernels import lanes
from tests import atlas

NAMES = (step.OURS.name, step.DENSE.name)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    cells = atlas.make(200, 60)
    cells.X = cells.layers.pop("counts")
    path = tmp_path_factory.mktemp("step") / "a.h5ad"
    cells.write_h5ad(path)
    return {
        "store": str(path), "density": 0.0, "genes": 50, "classes": 5, "cells": 200,
        "batch_size": 70, "at_least_s": 1e-9, "n_jobs": 1, "dtype": "float64", "centred": True,
        "average": False, "alphas": [1e-4], "scaling": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": 2},
        {"centred": False},
        {"scaling": True, "batch_size": 1},
        {"average": True, "batch_size": 200},
        {"density": 0.1},
        {"density": 0.6, "classes": 3},
        {"density": 1.0, "centred": False},
    ],
    ids=str,
)
def test_contenders__same_weights(job, options):
    job = job | options
    done, evidence = {}, {}
    for name, contender in zip(NAMES, (steps.ours, steps.sklearn), strict=True):
        _, line, found = contender(job)
        assert line["cells"] == 200
        done[name] = [line | {"cells_per_s": line["cells"] / line["seconds"]}]
        evidence[name] = [found]
    case = Case("case", job, (step.OURS, step.DENSE), about={"group": "classes"})
    step.check(case, evidence, done)
    mine, theirs = (done[name][0] for name in NAMES)
    assert mine["entries_a_cell"] == theirs["entries_a_cell"]
    assert 0 < mine["difference_coef"] < 1e-6  # two ways of summing
    assert 0 < mine["difference_coef_early"] < 1e-6
    if job["density"]:  # no gene is expressed more than another
        assert mine["sparse_a_cell"] == (job["density"] < 0.5) * mine["entries_a_cell"]
    else:
        assert 0 < mine["sparse_a_cell"] < mine["entries_a_cell"]
    assert "rows_per_s" not in theirs


@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_uniform(density):
    rows = simulated.uniform(400, 300, density, 3)
    cell = np.repeat(np.arange(400), np.diff(rows.indptr))
    X = np.zeros((400, 300))
    X[cell, rows.indices] = rows.data
    assert np.count_nonzero(X) == len(rows.data)  # no place twice
    share = np.count_nonzero(X, axis=0) / 400
    sd = np.sqrt(density * (1 - density) / 400)
    assert np.abs(share - density).max() <= 5 * sd
    assert np.abs((X[-20:] != 0).mean() - density) <= 5 * sd / np.sqrt(300 / 20)  # to the end
    assert (np.bincount(rows.codes, minlength=3) > 100).all()
    again = simulated.uniform(400, 300, density, 3)
    assert np.array_equal(again.data, rows.data)


def test_timed__steps_alone_of_whole_models():
    def new():
        time.sleep(0.05)
        return []

    def take(model, batch):
        time.sleep(0.002)
        model.append(batch)

    job = {"at_least_s": 0.02, "cells": 30}
    start = time.perf_counter()
    model, found = steps._timed(job, new, [1, 2, 3], take)
    models = found["cells"] / 30
    assert model == [1, 2, 3]
    assert models == int(models) > 1
    assert 0.02 <= found["seconds"] <= time.perf_counter() - start - 0.05 * models


def as_found(rng, n=200):
    found = {"coef": rng.normal(size=(3, 50)), "intercept": rng.normal(size=3),
             "steps": np.full(3, n)}  # fmt: skip
    return found | {f"{key}_early": value for key, value in found.items()}


def checked(ours, *, dtype="float64", classes=3, group="classes", who=None, **options):
    job = {"cells": 200, "classes": classes, "dtype": dtype, "alphas": [1e-4]} | options
    case = Case("case", job, who or (step.OURS, step.DENSE), about={"group": group})
    line = {"cells_per_s": 1000.0, "entries_a_cell": 100.0, "sparse_a_cell": 40.0}
    theirs = as_found(np.random.default_rng(0))
    names = [contender.name for contender in case.contenders]
    done = {names[0]: [dict(line)], names[1]: [line | {"cells_per_s": 500.0}]}
    step.check(case, dict(zip(names, ([ours], [theirs]), strict=True)), done)
    return [done[name][0] for name in names]


def test_check__figures():
    same = as_found(np.random.default_rng(0))
    line, theirs = checked(same | {"coef": same["coef"] * (1 + 1e-9)})
    assert line["difference_coef"] == pytest.approx(1e-9, rel=1e-3)
    assert line["difference_coef_early"] == 0
    assert line["gflops"] == pytest.approx(4e-9 * 100 * 3 * 1000)
    assert theirs["gflops"] == pytest.approx(4e-9 * 100 * 3 * 500)
    assert checked(same, classes=2)[0]["gflops"] == pytest.approx(4e-9 * 100 * 1000)
    for dtype, classes, rows in (("float64", 9, 2), ("float32", 16, 1), ("float32", 17, 2)):
        line = checked(same, dtype=dtype, classes=classes)[0]
        assert line["rows_per_s"] == pytest.approx(40 * 1000 * rows)


@pytest.mark.parametrize(
    ("key", "factor", "dtype", "right"),
    [
        ("coef", 1 + 1e-5, "float64", False),
        ("coef", 1.7, "float32", True),
        ("coef", 1.9, "float32", False),
        ("coef", np.nan, "float32", False),
        ("coef_early", 1 + 1e-5, "float64", False),
        ("coef_early", 1.005, "float32", True),
        ("coef_early", 1.02, "float32", False),
        ("intercept", 1 + 1e-5, "float64", False),
        ("intercept", 2, "float32", True),
        ("intercept_early", 1.02, "float32", False),
    ],
)
def test_check__weights(key, factor, dtype, right):
    ours = as_found(np.random.default_rng(0))
    ours[key] = ours[key] * factor
    if right:
        checked(ours, dtype=dtype)
        return
    with pytest.raises(WrongWorkError, match=f"{key} of streamtrain differs from"):
        checked(ours, dtype=dtype)


def test_check__steps():
    with pytest.raises(WrongWorkError, match="streamtrain took 199 steps of 200"):
        checked(as_found(np.random.default_rng(0), n=199))


def test_check__a_step_left_out_early_is_seen(job, monkeypatch):
    job = job | {"dtype": "float32"}
    case = Case("case", job, (step.OURS, step.DENSE), about={"group": "classes"})
    _, line, theirs = steps.sklearn(job)
    cut = steps._cut
    less = [(1, steps.EARLY)]
    monkeypatch.setattr(steps, "_cut", lambda n, size: less if n == steps.EARLY else cut(n, size))
    _, _, ours = steps.ours(job)
    done = {name: [line | {"cells_per_s": 1.0}] for name in NAMES}
    with pytest.raises(WrongWorkError, match="coef_early of streamtrain differs"):
        step.check(case, dict(zip(NAMES, ([ours], [theirs]), strict=True)), done)


def test_check__models_at_once():
    rng = np.random.default_rng(0)
    alphas = [1e-4, 1e-3]
    several = step.Contender("streamtrain, 2 alphas", "x:y", options={"alphas": alphas})
    found = as_found(rng) | {"coef_alone": 0, "intercept_alone": 0}
    line = {"cells_per_s": 1000.0, "entries_a_cell": 100.0}

    def check(found):
        job = {"cells": 200, "classes": 3, "dtype": "float32", "alphas": [1e-4]}
        case = Case("case", job, (step.ONE, several), about={"group": "alphas"})
        done = {step.ONE.name: [line | {"cells_per_s": x} for x in (900.0, 1100.0, 1000.0)],
                several.name: [line | {"cells_per_s": 500.0}]}  # fmt: skip
        step.check(case, {step.ONE.name: [found] * 3, several.name: [found]}, done)
        return done[several.name][0]

    found |= {f"{key}_alone": found[key].copy() for key in ("coef", "intercept")}
    checked = check(found)
    assert checked["times_one"] == 2
    assert checked["gflops"] == pytest.approx(4e-9 * 100 * 6 * 500)
    for key in ("coef", "intercept"):
        other = found | {key: np.nextafter(found[key], 9)}
        with pytest.raises(WrongWorkError, match=f"{key} of streamtrain, 2 alphas are not those"):
            check(other)


def test_contenders__models_at_once(job):
    _, _, found = steps.ours(job | {"alphas": [1e-4, 1e-2], "dtype": "float32"})
    assert found["coef"].shape[0] == found["coef_alone"].shape[0] == 10
    assert np.array_equal(found["coef"], found["coef_alone"])
    assert not np.array_equal(found["coef"][:5], found["coef"][5:])
    assert (found["steps"] == 200).all()


def test_cases(monkeypatch):
    monkeypatch.setattr(step, "atlas", lambda *_, cells, **__: f"{cells} cells")
    cases = step.cases(settings.load("step"))
    assert len({case.name for case in cases}) == len(cases)
    sparse = [case for case in cases if step.SPARSE in case.contenders]
    assert len(sparse) == 10
    for case in cases[1:]:
        assert case.job["store"] == "10000 cells"
        assert (case in sparse) == (not case.job["centred"])
        averaged = case.about["group"] == "averaged"
        assert case.job["average"] == averaged == ("averaged" in case.name)
        if averaged:  # in one call, see `_by_classes`
            assert case.job["batch_size"] == case.job["cells"]


@pytest.mark.parametrize("n", [16, 1])
def test_meet__against_numpy(n):
    rng = np.random.default_rng(0)
    panel = rng.normal(size=(40, n)).astype(np.float32)
    at = np.concatenate([np.sort(rng.choice(40, 10, replace=False)) for _ in range(3)])
    x = rng.normal(size=30).astype(np.float32)
    due = panel.astype(np.float64)
    for start in (0, 10, 20):
        rows, entries = at[start : start + 10], x[start : start + 10]
        due[rows] += np.outer(entries, entries @ due[rows])
    found = panel.ravel().copy()
    ceilings._meet(found, at.astype(np.int32), x, 10, (0,) * n)
    np.testing.assert_allclose(found.reshape(40, n), due, rtol=1e-4, atol=1e-4)


def test_ceilings__rows():
    assert ceilings._aligned(32).ctypes.data % lanes.LINE == 0
    _, found = ceilings.rows({"lanes": 16, "n_jobs": 1, "genes": 100, "rounds": 1})
    assert found["gbytes"] == pytest.approx(found["rows_per_s"] * 192e-9)
