"""The quality suite: its split, its scores against scikit-learn, and the work its check refuses."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn import metrics

import streamtrain
from benchmarks import comparison, settings
from benchmarks.comparison import BALANCED, LOGISTIC, RECIPE, SGD
from benchmarks.contenders import training
from benchmarks.contenders.split import Split, split
from benchmarks.measuring import Case, WrongWorkError
from benchmarks.questions import CONDITIONS, DONORS, KINDS, PAIRS, QUESTIONS, STUDIES, chosen
from benchmarks.suites import quality
from streamtrain.errors import InputError
from tests import atlas

TYPES = np.array(["B", "NK", "T"])
TRUTH = np.array(["T", "B", "B", "T", "NK", "B"])
ANSWER = quality.Answer("cells", TYPES, TRUTH)


def found(**changes):
    """Evidence with classes in an order of their own; cells 0 and 5 are called wrong."""
    probabilities = np.array(  # of T, B, NK
        [
            [0.3, 0.5, 0.1],
            [0.2, 0.9, 0.0],
            [0.0, 1.0, 0.0],
            [0.8, 0.7, 0.1],
            [1e-60, 1e-250, 1e-30],
            [0.0, 0.0, 0.0],
        ]
    )
    work = {
        "truth": TRUTH, "classes": np.array(["T", "B", "NK"]),
        "predicted": np.array([1, 1, 1, 0, 2, 2]), "probabilities": probabilities,
    }  # fmt: skip
    return work | changes


def check(work, digest="cells"):
    line = {"digest": digest}
    quality.check(Case("case", {}, (), reference=ANSWER), {"peer": [work]}, {"peer": [line]})
    return line


def test_scores__by_hand():
    got = quality.scores(found(), TRUTH)
    # B: 2 of 3 called right, 1 of 3 called B is no B. NK: 1 of 1, 1 of 2. T: 1 of 2, 1 of 1.
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    share = [0.3 / 0.9, 0.9 / 1.1, 1.0, 0.8 / 1.6, 1.0, 1 / 3]  # the last: all 0, so even
    assert got["log_loss"] == pytest.approx(-np.log(share).mean())
    assert got["confidence"] == pytest.approx((0.5 + 0.9 + 1.0 + 0.8 + 0.0 + 0.0) / 6)
    assert got["hopeless"] == pytest.approx(2 / 6)
    # Bins of 1/15: 0.5, 0.8, {0.9} and {1.0} alone, and the two confidences of 0 together.
    assert got["calibration_error"] == pytest.approx((0.5 + 0.2 + 0.1 + 0.0 + 1.0) / 6)


def test_scores__equal_scikit_learn():
    rng = np.random.default_rng(0)
    types = np.array([f"type {i:02}" for i in range(12)])
    true = rng.integers(0, 9, 500)  # three types occur in no query cell
    probabilities = rng.dirichlet(np.full(12, 0.3), 500)
    probabilities[np.arange(500), true] += rng.random(500)
    predicted = probabilities.argmax(axis=1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = rng.permutation(12)
    work = {
        "classes": types[order], "predicted": np.argsort(order)[predicted],
        "probabilities": probabilities[:, order],
    }  # fmt: skip
    got = quality.scores(work, types[true])
    assert set(predicted) > set(true), "the case must predict types that the truth lacks"
    shown = {"labels": np.unique(true), "average": "macro", "zero_division": 0}
    assert got["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, **shown))
    assert got["balanced_accuracy"] == pytest.approx(metrics.recall_score(true, predicted, **shown))
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    expected = metrics.log_loss(true, probabilities, labels=np.arange(12))
    assert got["log_loss"] == pytest.approx(expected)


def test_scores__log_loss_of_a_type_held_impossible():
    work = found(probabilities=np.tile([1.0, 0.0, 0.0], (6, 1)))
    expected = -np.log(1e-15) * 4 / 6  # two cells of six are T
    assert quality.scores(work, TRUTH)["log_loss"] == pytest.approx(expected)


def test_calibration_error__bins():
    confidence = np.array([0.01, 0.05, 0.95, 0.99, 1.0])
    right = np.array([False, True, True, False, True])
    expected = (abs(1 - 0.06) + abs(2 - (0.95 + 0.99 + 1.0))) / 5
    assert quality.calibration_error(confidence, right) == pytest.approx(expected)
    assert quality.calibration_error(np.array([0.25, 0.25]), np.array([True, False])) == 0.25


def test_check__right_work_gets_its_scores():
    line = check(found())
    assert line == {"digest": "cells"} | quality.scores(found(), TRUTH)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (found(predicted=np.array([1, 1, 1, 0, 2])), "predicted 5 cells"),
        (found(probabilities=np.ones((5, 3))), r"shape \(5, 3\); there are 6 and 3 types"),
        (found(probabilities=np.ones((6, 2))), r"shape \(6, 2\)"),
        (found(probabilities=np.full((6, 3), np.nan)), "not between 0 and 1"),
        (found(probabilities=np.full((6, 3), 1.01)), "not between 0 and 1"),
        (found(probabilities=np.full((6, 3), -0.01)), "not between 0 and 1"),
        (found(predicted=np.array([1, 1, 1, 0, 2, -1])), "no type of the training cells"),
        (found(classes=np.array(["T", "B", "ILC"])), "other classes"),
        (found(classes=np.array(["T", "B", "B"])), "other classes"),
        (found(truth=TRUTH[::-1]), "other labels"),
    ],
)
def test_check__wrong_work(work, message):
    with pytest.raises(WrongWorkError, match=f"case: peer .*{message}"):
        check(work)


def adapted(**changes):
    """The same, with five right of six once adapted."""
    work = {"auto_adapted": np.array(True), "auto_predicted": np.array([0, 1, 1, 0, 2, 2])}
    return found(auto_classes=np.array(["T", "B", "NK"]),
                 auto_probabilities=np.full((6, 3), 0.5), **work) | changes  # fmt: skip


def test_check__adapted_work_gets_scores_of_its_own():
    line = check(adapted())
    assert (line["accuracy"], line["auto_accuracy"]) == pytest.approx((4 / 6, 5 / 6))
    assert line["auto_log_loss"] == pytest.approx(np.log(3))
    assert line["auto_adapted"] is True
    assert len(line) == 2 + 2 * len(quality.scores(found(), TRUTH))
    with pytest.raises(WrongWorkError, match=r"shape \(6, 2\)"):
        check(adapted(auto_probabilities=np.ones((6, 2))))


def test_check__other_cells():
    with pytest.raises(WrongWorkError, match="other cells"):
        check(found(), digest="others")


def test_check__run_without_predictions():
    case = Case("case", {}, (), reference=ANSWER)
    with pytest.raises(WrongWorkError, match="predicted in 1 of its runs; there are 2"):
        quality.check(case, {"peer": [found()]}, {"peer": [{"digest": "cells"}] * 2})


def store(path, genes, labels, donors, first=0):
    """Write counts that tell where they stand: cell i has 10 i + j of gene j."""
    counts = np.arange(first, first + len(labels))[:, None] * 10.0 + np.arange(1, len(genes) + 1)
    obs = pd.DataFrame({"kind": labels, "donor": donors}, [f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=genes)
    anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, var).write_h5ad(path)
    return str(path)


def test_split__halves(tmp_path):
    labels = ["B", "T", "Other", "B", "T", "Rare", "Other", "B"]
    path = store(tmp_path / "a.h5ad", ["g", "h", "i"], labels, list("xxxxyyyy"))
    job = {"files": [path], "label": "kind", "group": "donor", "held_out": ["y"], "drop": ["Other"]}
    halves = split(job)
    assert list(halves.train.obs["cell_type"]) == ["B", "T", "B"]
    assert list(halves.types) == ["B", "T"]
    assert list(halves.truth) == ["T", "B"]  # the rare type occurs in no training cell
    assert halves.unseen == 1
    counts = np.array([[41, 42, 43], [71, 72, 73]])
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(halves.query.X.toarray(), expected, rtol=1e-6)
    assert halves.query.X.dtype == np.float32
    assert split(job).digest == halves.digest
    assert split(job | {"held_out": ["x"]}).digest != halves.digest
    assert split(job | {"drop": []}).digest != halves.digest


def test_split__studies_share_genes(tmp_path):
    files = [
        store(tmp_path / "a.h5ad", ["g", "h", "i"], ["B", "T"], ["x", "x"]),
        store(tmp_path / "b.h5ad", ["i", "k", "g"], ["T", "B"], ["x", "x"], first=2),
    ]
    job = {"files": files, "label": "kind", "group": "study", "held_out": ["b"], "drop": []}
    halves = split(job)
    assert list(halves.query.var_names) == ["g", "i"]
    per_10k = np.expm1(halves.query.X.toarray())
    np.testing.assert_allclose(per_10k[0], np.array([23, 21]) / 44 * 1e4, rtol=1e-5)


def test_split__quarter_of_the_groups_is_drawn_once(tmp_path):
    donors = [f"d{i % 8}" for i in range(40)]
    path = store(tmp_path / "a.h5ad", ["g", "h"], ["B", "T"] * 20, donors)
    job = {"files": [path], "label": "kind", "group": "donor", "held_out": [], "drop": []}
    halves = split(job)
    assert len(halves.held_out) == 2
    assert halves.query.n_obs == 10
    assert split(job | {"held_out": halves.held_out}).digest == halves.digest


def test_split__inner_groups(tmp_path):
    path = store(tmp_path / "a.h5ad", ["g", "h"], ["B", "T", "Other", "B"], list("xyzz"))
    job = {"files": [path], "label": "kind", "group": "donor", "held_out": ["y"], "drop": ["Other"]}
    halves = split(job | {"inner": "donor"})
    assert halves.train.obs["group"].tolist() == ["x", "z"]
    assert "group" not in halves.query.obs
    assert "group" not in split(job | {"inner": None}).train.obs
    assert halves.digest == split(job).digest


def test_split__inner_groups_of_files_trained_on_alone(tmp_path):
    files = [
        store(tmp_path / "a.h5ad", ["g"], ["B", "T"], ["x", "y"]),
        store(tmp_path / "b.h5ad", ["g"], ["T", "B"], ["x", "x"]),
    ]
    other = anndata.read_h5ad(files[1])
    del other.obs["donor"]
    other.write_h5ad(files[1])
    job = {"files": files, "label": "kind", "group": "study", "drop": [], "inner": "donor"}
    assert split(job | {"held_out": ["b"]}).train.obs["group"].tolist() == ["x", "y"]
    with pytest.raises(KeyError, match="donor"):
        split(job | {"held_out": ["a"]})


def test_split__some_groups_to_learn_from(tmp_path):
    labels = ["B", "T", "B", "T", "B", "Rare"]
    path = store(tmp_path / "a.h5ad", ["g", "h"], labels, list("xxyyzz"))
    job = {"files": [path], "label": "kind", "group": "donor", "held_out": ["y"], "drop": []}
    halves = split(job | {"trained_on": ["x"]})
    assert halves.train.obs["cell_type"].tolist() == ["B", "T"]
    assert halves.truth.tolist() == ["B", "T"]
    assert list(split(job).types) == ["B", "Rare", "T"]


def test_evidence__label_that_is_no_class():
    obs = pd.DataFrame({"cell_type": ["B", "T"]}, ["a", "b"])
    cells = anndata.AnnData(sp.csr_matrix((2, 1), dtype=np.float32), obs)
    halves = Split(cells, cells, "digest", ["x"], 0)
    evidence = halves.evidence(["B", "T"], ["T", "Unassigned"], [[0.1, 0.9], [1e-250, 0.0]])
    assert evidence["predicted"].tolist() == [1, -1]
    assert evidence["probabilities"][1, 0] == 1e-250
    assert all(array.dtype != object for array in evidence.values())


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    cells = atlas.make()
    cells.X = cells.layers.pop("counts")
    path = tmp_path_factory.mktemp("quality") / "a.h5ad"
    cells.write_h5ad(path)
    return {
        "files": [str(path)], "label": "cell_type", "group": "donor", "held_out": [], "drop": [],
        "inner": "donor", "epochs": 2, "batch_size": 100, "repeat": 3, "train": atlas.MINI,
    }  # fmt: skip


def case_of(job):
    halves = split(job)
    answer = quality.Answer(halves.digest, halves.types, halves.truth)
    return Case("case", job, (), reference=answer)


def test_contender__ours_does_the_work(job):
    case = case_of(job)
    _, counts, evidence = training.quality(job)
    quality.check(case, {"ours": [evidence]}, {"ours": [counts]})
    assert counts["steps"] == 2 * 450
    with pytest.raises(WrongWorkError, match="ours took 899 steps, not 900"):
        quality.check(case, {"ours": [evidence]}, {"ours": [counts | {"steps": 899}]})
    assert counts["n_train"] + counts["n_query"] == 600
    assert counts["accuracy"] > 0.9
    _, counts, evidence = training.quality(job | {"train": {}})
    assert "steps" not in counts
    quality.check(case, {"logistic": [evidence]}, {"logistic": [counts]})
    assert counts["accuracy"] > 0.9


@pytest.mark.parametrize("inner", ["donor", None])
def test_contender__recipe_may_hold_out_groups_and_adapts_once_more(job, monkeypatch, inner):
    told = []

    def train(cells, *args, recipe, validation_groups=None, **options):
        told.append((recipe, validation_groups))
        assert (validation_groups is None) == ("group" not in cells.obs)
        return streamtrain.train(cells, *args, epochs=2, batch_size=100, **atlas.MINI, **options)

    def predict(*args, adapt="none", **options):
        table = streamtrain.predict(*args, adapt=adapt, **options)
        if adapt == "auto":
            (decision,) = table.attrs["adapt"].values()
            assert decision["adapted"] is False  # too few cells
            decision["adapted"] = True
            table["predicted_labels"] = "B"
        return table

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "predict", predict)
    (recipe,) = (one for one in quality.SEEDED if one.name == comparison.RECIPE)
    job = job | {"inner": inner} | recipe.options
    _, counts, evidence = training.quality(job)
    quality.check(case_of(job), {"ours": [evidence]}, {"ours": [counts]})
    assert told == [("atlas", "group" if inner else None)]
    assert counts["accuracy"] > 0.9 > counts["auto_accuracy"] > 0
    assert counts["auto_adapted"] is True
    assert "adapted" not in counts


def test_cases__files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "atlas", lambda *_, **__: tmp_path / "small.h5ad")
    chosen = settings.load("quality", [f"data='{tmp_path}'", "sets=['lung']"])
    with pytest.raises(InputError, match=r"needs lung_ts.h5ad in .*--set data=FOLDER"):
        quality.cases(chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets=['lungs']", "no 'lungs': did you mean 'lung'"),
        ("contenders=['CellTypist SDG']", "no 'CellTypist SDG': did you mean 'CellTypist SGD'"),
    ],
)
def test_cases__unknown(text, message, monkeypatch):
    monkeypatch.setattr(quality, "atlas", lambda *_, **__: "small.h5ad")
    with pytest.raises(InputError, match=message):
        quality.cases(settings.load("quality", [text]))


def test_cases__who_answers_what(job, monkeypatch):
    def read(asked):
        return split(job | {"trained_on": asked["trained_on"] and ["D1", "D2"]})

    monkeypatch.setattr(quality, "atlas", lambda *_, **__: "small.h5ad")
    monkeypatch.setattr(quality, "real", lambda name, _: name)
    monkeypatch.setattr(quality, "split", read)
    names = ["lung", "pancreas, Tosti to Muraro"]
    lung, logistic, pair = quality.cases(settings.load("quality", [f"sets={names}"]))
    assert [one.name for one in lung.contenders] == [RECIPE, SGD, BALANCED]
    assert [one.name for one in logistic.contenders] == [LOGISTIC]
    assert (lung.repeats, logistic.repeats) == (None, 1)
    assert [one.name for one in pair.contenders] == [RECIPE]
    assert (lung.about["kind"], pair.about["kind"]) == ("donors", "pairs")
    assert lung.job["batch_size"] == 200  # there are 450 cells to train on
    assert lung.depends == logistic.depends != pair.depends
    fewer = [f"sets={names}", "contenders=['CellTypist logistic']", "epochs=2"]
    (only,) = quality.cases(settings.load("quality", fewer))
    assert only.depends == lung.depends | {"epochs": 2}


def test_questions__as_many_as_the_data_allow():
    kinds = [question.kind for question in chosen([]).values()]
    assert [kinds.count(kind) for kind in KINDS] == [8, 3, 4 + 4 * 3, 4 * 3]
    splits = {(q.files, q.held_out, q.trained_on, q.group) for q in QUESTIONS.values()}
    assert len(splits) == len(QUESTIONS)


def test_questions__chosen():
    assert list(chosen(["lung", "bone marrow, mouse"])) == ["bone marrow, mouse", "lung"]
    assert list(chosen(["simulated"])) == ["simulated"]
    some = chosen([CONDITIONS, "lung"])
    assert [q.kind for q in some.values()] == [CONDITIONS, DONORS, CONDITIONS, CONDITIONS]
    assert len(chosen([STUDIES, PAIRS])) == 16 + 12
    pair = QUESTIONS["pancreas, Tosti to Muraro"]
    assert (pair.trained_on, pair.held_out) == (("Tosti et al. 2021",), ("Muraro et al. 2016",))
    far = QUESTIONS["PBMC, IFN-beta to 3k"]
    assert (far.files, far.held_out) == (("pbmc_kang_ifnb", "pbmc3k"), ("pbmc3k",))
    assert (far.label, far.inner) == ("cell_type_coarse", "donor")
