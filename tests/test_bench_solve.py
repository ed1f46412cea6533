"""The solve suite: how it judges a model, against plain arithmetic, and the work it refuses."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks import settings
from benchmarks.contenders import training
from benchmarks.contenders.split import everything
from benchmarks.measuring import Case, WrongWorkError
from benchmarks.suites import solve
from streamtrain.errors import InputError
from tests import atlas

OURS, THEIRS = solve.OURS.name, solve.THEIRS[0].name


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    cells = atlas.make()
    cells.X = cells.layers.pop("counts")
    path = tmp_path_factory.mktemp("solve") / "a.h5ad"
    cells.write_h5ad(path)
    return {"label": "cell_type", "files": [str(path)]}


@pytest.fixture(scope="module")
def ours(job):
    """What our contender did, and its evidence."""
    _, line, evidence = training.solve(job)
    return line, evidence


@pytest.fixture(scope="module")
def theirs(job, ours):
    """scikit-learn's work on the same cells: one class against the rest, its defaults."""
    cells = everything(job).train
    X, evidence = scaled(cells), ours[1]
    labels = cells.obs["cell_type"].to_numpy()
    fits = [LogisticRegression().fit(X, labels == name) for name in evidence["classes"]]
    weights = {
        "coef": np.concatenate([fit.coef_ for fit in fits]),
        "intercept": np.concatenate([fit.intercept_ for fit in fits]),
    }
    return ours[0] | {"iterations": 20}, evidence | weights


def scaled(cells):
    X = cells.X.toarray().astype(np.float64)
    return np.minimum(StandardScaler().fit_transform(X[:, X.any(axis=0)]), 10)


def objective(x, X, inside):
    loss = metrics.log_loss(inside, expit(X @ x[:-1] + x[-1]))
    return loss + x[:-1] @ x[:-1] / (2 * len(X))


@pytest.mark.parametrize("n_types", [2, 3])
def test_reached__as_by_plain_arithmetic(job, monkeypatch, n_types):
    monkeypatch.setattr(solve, "_BLOCK", 37)
    cells = everything(job).train[:100, :9].copy()
    names = np.array(["T", "B", "NK"])[np.arange(100) % n_types]
    cells.obs["cell_type"] = names
    problem, X = solve.Problem(cells), scaled(cells)
    types = sorted(set(names))
    assert list(problem.types) == types
    columns = types if n_types > 2 else ["T"]
    rng = np.random.default_rng(0)
    models = [
        {"coef": rng.normal(size=(len(columns), X.shape[1])),
         "intercept": rng.normal(size=len(columns))}
        for _ in range(2)
    ]  # fmt: skip
    for model, found in zip(models, problem.reached(models), strict=True):
        points = [np.append(w, b) for w, b in zip(model["coef"], model["intercept"], strict=True)]
        by_hand = [(x, X, names == name) for x, name in zip(points, columns, strict=True)]
        expected = [objective(*one) for one in by_hand]
        np.testing.assert_allclose(found.objective, expected, rtol=1e-12)
        # Finite differences: the square root of float64's rounding.
        slopes = [approx_fprime(x, objective, 1e-7, *rest) for x, *rest in by_hand]
        assert found.slope == pytest.approx(np.abs(slopes).max(), rel=1e-5)
        scores = X @ model["coef"].T + model["intercept"]
        best = scores.argmax(axis=1) if n_types > 2 else (scores[:, 0] > 0).astype(int)
        np.testing.assert_array_equal(found.labels, best)


def test_everything__is_the_training_half(job):
    found = everything(job)
    assert (found.train.n_obs, found.query.n_obs) == (600, 0)
    assert found.digest == everything(job).digest


def run_check(job, **work):
    """Check one run of each contender; `work` is (line, evidence) by the contender's name."""
    done = {name: [{"contender": name} | line] for name, (line, _) in work.items()}
    evidence = {name: [found] for name, (_, found) in work.items()}
    solve.check(Case("case", job, ()), evidence, done)
    return {name: lines[0] for name, lines in done.items()}


def test_check__right_work(job, ours, theirs):
    lines = run_check(job, **{OURS: ours, THEIRS: theirs})
    mine, other = lines[OURS], lines[THEIRS]
    assert mine["n_cells"] == 600
    assert mine["n_types"] == len(mine["objective"]) == 5
    assert mine["above_least"] < 1e-6 < 1e-3 < other["above_least"]
    assert mine["slope"] < other["slope"] < 1e-4
    assert mine["agree"] == 1 >= other["agree"] >= 0.999
    assert mine["passes"] > mine["iterations"] > 0
    assert "agree" not in run_check(job, **{THEIRS: theirs})[THEIRS]  # ours was stopped, say
    assert run_check(job) == {}


def test_check__objective_above_theirs(job, ours, theirs):
    # Each in the other's place: theirs stops earlier, as its rule allows.
    with pytest.raises(WrongWorkError, match=r"case: the objective of .* is .* above CellTypist"):
        run_check(job, **{OURS: theirs, THEIRS: ours})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coef": lambda w: w * 1.1}, r"stopped at a slope of .* before scikit-learn's rule"),
        ({"intercept": lambda b: b + 0.1}, r"stopped at a slope of"),
        ({"coef": lambda w: w[:, :-1]}, r"weights of shape \(5, \d+\), not \(5, \d+\)"),
        ({"coef": lambda w: w * np.nan}, "weights that are not finite"),
        ({"classes": lambda names: names[::-1]}, "other classes"),
        ({"genes": lambda names: np.roll(names, 1)}, "other genes"),
        ({"mean": lambda m: m + 1e-6}, "another mean"),
        ({"scale": lambda s: s * 1.001}, "another scale"),
    ],
)
def test_check__wrong_work(job, ours, theirs, change, message):
    line, found = theirs
    wrong = found | {name: turn(found[name]) for name, turn in change.items()}
    with pytest.raises(WrongWorkError, match=f"case: CellTypist logistic .*{message}"):
        run_check(job, **{OURS: ours, THEIRS: (line, wrong)})


def test_check__other_cells(job, ours):
    line, found = ours
    with pytest.raises(WrongWorkError, match="streamtrain had other cells"):
        run_check(job, **{OURS: (line | {"digest": "others"}, found)})


def test_check__other_labels(job, ours, theirs, monkeypatch):
    monkeypatch.setattr(solve, "SLOPE", np.inf)
    line, found = theirs
    wrong = found | {"coef": -found["coef"]}
    with pytest.raises(WrongWorkError, match=r"gives \d+.\d\d% of the cells another label than"):
        run_check(job, **{OURS: ours, THEIRS: (line, wrong)})


def test_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(solve, "atlas", lambda *_, cells, **__: tmp_path / f"{cells}.h5ad")
    smoke = settings.load("solve", ["size=smoke"])
    (case,) = solve.cases(smoke)
    assert case.job["files"] == [str(tmp_path / "1500.h5ad")]
    assert case.warm_up["files"] == [str(tmp_path / "500.h5ad")]
    assert [one.name for one in case.contenders] == [OURS, *(c.name for c in solve.THEIRS)]
    with pytest.raises(InputError, match=r"needs lung.h5ad in .*--set data=FOLDER"):
        solve.cases(smoke | {"sets": ["lung"], "data": str(tmp_path)})
