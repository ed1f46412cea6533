"""Evaluation of a model on labelled cells, against scikit-learn and tables made by hand."""

import itertools
import json
import logging
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn import metrics

import streamtrain
from streamtrain import InputError, Model, querying
from streamtrain.annotations import Calls
from streamtrain.evaluate import evaluate
from streamtrain.lineage import Lineage
from streamtrain.tally import Tally
from tests import atlas, stores
from tests.commands import call

QUIET = {"progress": False}
SMALL = atlas.MINI | QUIET | {"batch_size": 100, "batch_number": 2, "epochs": 1, "alpha": 1.0}
DATA = Path("/work/shared/data/pancreas_4studies.h5ad")


@pytest.fixture(scope="module")
def model():
    """One that errs, and is neither sure of all nor of none."""
    found = streamtrain.train(atlas.make(), "cell_type", dtype="float64", **SMALL)
    dataset = found.dataset.copy(deep=True)
    dataset["coef"] = dataset["coef"] * 3
    dataset["intercept"] = dataset["intercept"] * 3
    return Model(dataset)


@pytest.fixture(scope="module")
def calibrated(model):
    dataset = model.dataset.copy(deep=True)
    dataset.attrs["calibration"] = {"temperature": 1.7, "offset": 0.3}
    return Model(dataset)


@pytest.fixture(scope="module")
def cells():
    adata = atlas.make(seed=9)
    adata.X = adata.X.multiply(np.random.default_rng(0).random(adata.shape) < 0.3).tocsr()
    return adata


UNCHECKED = QUIET | {"check_expression": False}


def scores_of(model, cells):
    table = streamtrain.predict(model, cells, scores=True, **UNCHECKED)
    return table[list(model.cell_types)].to_numpy(), table["predicted_labels"].to_numpy()


def summary(found, over="all cells"):
    return found.summary[over].dropna().to_dict()


@pytest.mark.parametrize("kind", ["h5ad", "memory"])
def test_evaluate_model__as_scikit_learn(tmp_path, calibrated, cells, kind, monkeypatch):
    monkeypatch.setattr(querying, "blocks_within", lambda *_: (10**6, 37))
    X = cells if kind == "memory" else stores.write(cells, tmp_path, kind)
    found = streamtrain.evaluate_model(calibrated, X, "cell_type", top_k=2, **UNCHECKED)
    scores, called = scores_of(calibrated, cells)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    types = list(calibrated.cell_types)
    expected = evaluate(truth, called)
    assert 0.3 < expected.accuracy < 0.95
    pd.testing.assert_frame_equal(found.confusion, expected.confusion)
    pd.testing.assert_frame_equal(found.per_type.drop(columns="known"), expected.per_type)
    p = softmax(scores / 1.7, axis=1)
    assert summary(found) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(truth, called),
            "balanced accuracy": metrics.balanced_accuracy_score(truth, called),
            "macro F1": metrics.f1_score(truth, called, average="macro"),
            "weighted F1": metrics.f1_score(truth, called, average="weighted"),
            "top-2 accuracy": metrics.top_k_accuracy_score(truth, scores, k=2, labels=types),
            "calibration error": by_hand(p.max(axis=1), called == truth)[0],
            "log-loss": metrics.log_loss(truth, p, labels=types),
        }
    )
    assert found.known is None
    assert len(found.unknown) == 0


def by_hand(probability, right):
    """Expected calibration error over 15 bins of equal width, and the cells of each."""
    error, counts = 0, []
    for k in range(15):
        inside = (probability > k / 15) & (probability <= (k + 1) / 15)
        counts.append(int(inside.sum()))
        if inside.any():
            error += inside.mean() * abs(probability[inside].mean() - right[inside].mean())
    return error, counts


def test_evaluate_model__sigmoids(model, cells):
    found = streamtrain.evaluate_model(model, cells, "cell_type", **UNCHECKED)
    scores, called = scores_of(model, cells)
    error, counts = by_hand(expit(scores).max(axis=1), called == cells.obs["cell_type"].to_numpy())
    assert summary(found)["calibration error"] == pytest.approx(error)
    assert found.calibration["n_cells"].tolist() == counts
    assert sum(n > 0 for n in counts) > 4
    assert "log-loss" not in summary(found)  # these probabilities do not add up to 1


def test_evaluate_model__two_types_have_a_log_loss():
    model = streamtrain.train(atlas.make(n_types=2), "cell_type", **SMALL)
    cells = atlas.make(n_types=2, seed=5)
    found = streamtrain.evaluate_model(model, cells, "cell_type", **QUIET)
    table = streamtrain.predict(model, cells, probabilities=True, **QUIET)
    expected = metrics.log_loss(cells.obs["cell_type"], table[["B", "NK"]].clip(1e-300, None))
    assert summary(found)["log-loss"] == pytest.approx(expected, abs=1e-9)


def test_evaluate_model__prob_match(model, cells):
    options = {"mode": "prob match", "p_thres": 0.1}
    found = streamtrain.evaluate_model(model, cells, "cell_type", **options, **UNCHECKED)
    table = streamtrain.predict(model, cells, **options, **UNCHECKED)
    truth, called = cells.obs["cell_type"].astype(str), table["predicted_labels"].astype(str)
    several, none = called.str.contains("|", regex=False), called == "Unassigned"
    assert several.any()
    assert none.any()
    expected = evaluate(truth, called)
    pd.testing.assert_frame_equal(found.per_type.drop(columns="known"), expected.per_type)
    one = ~(several | none)
    assert summary(found) == pytest.approx(
        summary(found)
        | {
            "accuracy": expected.accuracy,
            "unassigned": none.mean(),
            "several types": several.mean(),
            "accuracy of one type": (truth[one] == called[one]).mean(),
        }
    )
    assert found.confusion["several types"].sum() == several.sum()


def calls(codes, scores, confidence):
    values = np.column_stack([confidence, np.array(scores, np.float64)])
    return Calls(0, np.array(codes, np.int32), values)


def test_tally__equal_scores_and_ends_of_bins():
    types = np.array(["A", "B", "C"], object)
    tally = Tally(np.array([0, 1, 2, 2], np.int32), types, types, None, None, 2)
    tally.add(calls([0] * 4, [[1, 1, 1]] * 4, [0.0, 0.2, 0.2 + 1e-15, 1.0]))
    assert tally.within == 2  # A and B come before C
    assert tally.bins[1, :, 0].nonzero()[0].tolist() == [0, 2, 3, 14]
    assert tally.bins[1, 0].tolist() == [1, 0, 1]


def test_tally__types_called_like_what_is_none():
    types = np.array(["A", "Unassigned", "several types"], object)
    joined = ["A|B", "Unassigned"]
    tally = Tally(
        np.array([0, 1, 2], np.int32), types, np.array(["A", "B"], object), None, joined, 1
    )
    assert tally.names == [*types, "B", "several types"]
    tally.add(calls([0, 1, 0], [[1, 0]] * 3, [0.5] * 3))
    joined.append("B")  # with later cells
    tally.add(calls([2], [[0, 1]], [0.5]))
    assert tally.confusion.tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]


@pytest.fixture
def unknown(cells):
    """Cells of which some are of two types that the model does not have."""
    names = cells.obs["cell_type"].astype(str).to_numpy().copy()
    names[:40], names[40:50] = "Platelet", "A new one"
    other = cells.copy()
    other.obs["cell_type"] = names
    return other


def test_evaluate_model__types_unknown_to_the_model(calibrated, unknown):
    found = streamtrain.evaluate_model(calibrated, unknown, "cell_type", **UNCHECKED)
    scores, called = scores_of(calibrated, unknown)
    truth = unknown.obs["cell_type"].to_numpy()
    kept = ~np.isin(truth, ["Platelet", "A new one"])
    assert found.unknown.to_dict() == {"Platelet": 40, "A new one": 10}
    assert found.accuracy == pytest.approx((truth == called).mean())
    pd.testing.assert_frame_equal(
        found.known.per_type, evaluate(truth[kept], called[kept]).per_type
    )
    p = softmax(scores / 1.7, axis=1)
    types = list(calibrated.cell_types)
    of_known = summary(found, "known types")
    expected = {
        "accuracy": (truth == called)[kept].mean(),
        "top-3 accuracy": metrics.top_k_accuracy_score(
            truth[kept], scores[kept], k=3, labels=types
        ),
        "calibration error": by_hand(p[kept].max(axis=1), (truth == called)[kept])[0],
        "log-loss": metrics.log_loss(truth[kept], p[kept], labels=types),
    }
    assert of_known == pytest.approx(of_known | expected)
    assert summary(found)["log-loss"] == of_known["log-loss"]
    assert summary(found)["top-3 accuracy"] == pytest.approx(
        of_known["top-3 accuracy"] * kept.mean()
    )
    words = found.to_table()
    assert (
        "does not have 2 of 7 cell types, of 50 cells: 'Platelet' (40), 'A new one' (10)" in words
    )


def test_evaluate_model__no_type_is_known(model, cells):
    with pytest.raises(InputError, match=r"none of the 4 cell types .* 'D0', .*; it has 'B', "):
        streamtrain.evaluate_model(model, cells, "donor", **UNCHECKED)


def test_evaluate_model__by_size(model, cells):
    found = streamtrain.evaluate_model(model, cells, "cell_type", **UNCHECKED)
    sizes = found.per_type["support"]
    tens = found.per_type[(sizes >= 10) & (sizes < 100)]
    assert found.by_size.loc["10 to 99"].tolist() == pytest.approx(
        [len(tens), tens["support"].sum(), tens["f1"].mean()]
    )
    assert found.by_size["n_cells"].sum() == 600
    assert found.by_size["n_types"].sum() == 5


# Parents

PARENTS = {"T CD4": "T", "T CD8": "T", "T": "lymphocyte", "NK": ["lymphocyte", "cytotoxic"]}


def coarse(cells):
    """Truth of some T cells is T; that of some NK is known as what it is."""
    other = cells.copy()
    names = cells.obs["cell_type"].astype(str)
    other.obs["cell_type"] = names.mask(
        names.str.startswith("T ") & (np.arange(len(names)) % 2 == 0), "T"
    )
    return other


def test_evaluate_model__descendants_are_right(model, cells):
    other = coarse(cells)
    found = streamtrain.evaluate_model(model, other, "cell_type", parents=PARENTS, **UNCHECKED)
    truth = other.obs["cell_type"].to_numpy()
    called = scores_of(model, other)[1]
    finer = (truth == "T") & np.isin(called, ["T CD4", "T CD8"])
    assert finer.any()
    moved = np.where(finer, "T", called)
    expected = evaluate(truth, moved)
    pd.testing.assert_frame_equal(
        found.ontology.per_type.drop(columns="coarser"), expected.per_type
    )
    assert found.accuracy == (truth == called).mean()
    assert summary(found, "ontology")["accuracy"] == (truth == moved).mean()
    assert summary(found, "ontology")["coarser"] == 0


def test_evaluate_model__ancestors_are_coarser(model, cells):
    parents = {"T CD4": "NK", "Mast cell": "T CD4"}  # by it each NK call of these is coarser
    other = cells.copy()
    names = cells.obs["cell_type"].astype(str).to_numpy().copy()
    names[:50] = "Mast cell"
    other.obs["cell_type"] = names
    found = streamtrain.evaluate_model(model, other, "cell_type", parents=parents, **UNCHECKED)
    called = scores_of(model, other)[1]
    coarser = ((names == "T CD4") & (called == "NK")) | (
        (names == "Mast cell") & np.isin(called, ["NK", "T CD4"])
    )
    assert coarser.any()
    assert summary(found, "ontology")["coarser"] == pytest.approx(coarser.mean())
    mast = coarser[names == "Mast cell"].mean()
    assert found.per_type.loc["Mast cell", "coarser"] == pytest.approx(mast)
    finer = (names == "NK") & (called == "T CD4")
    assert summary(found, "ontology")["accuracy"] == pytest.approx(
        ((names == called) | finer).mean()
    )


def test_evaluate_model__unknown_types_with_known_descendants(model, cells):
    other = cells.copy()
    other.obs["cell_type"] = "anything"
    parents = dict.fromkeys(model.cell_types, "anything")
    found = streamtrain.evaluate_model(model, other, "cell_type", parents=parents, **UNCHECKED)
    assert found.accuracy == 0
    assert found.ontology.accuracy == 1


def test_lineage__of_a_file(tmp_path):
    path = tmp_path / "o.csv"
    path.write_bytes('\ufeffid,child,parent\n1,"a, b",c\n2,c,d\n3,d,\n4,c,e\n'.encode())
    lineage = Lineage.of(path)
    frame = pd.DataFrame({"child": ["a, b", "c", "d", "c"], "parent": ["c", "d", None, "e"]})
    for each in (lineage, Lineage.of(frame), Lineage.of({"a, b": "c", "c": ["d", "e"]})):
        found = each.below(["d", "e", "c", "z"], ["a, b", "c", "d", "e"])
        assert found.tolist() == [
            [True, True, False, False],
            [True, True, False, False],
            [True, False, False, False],
            [False] * 4,
        ]


LINEAGES = {
    "a circle": ("child,parent\na,b\nb,c\nc,a\n", r"'\w' -> '\w' -> '\w' -> '\w' \(child -> par"),
    "itself": ("child,parent\na,a\n", "and 'a' -> 'a' "),
    "other columns": ("child,up\na,b\n", "needs the columns child and parent, and has 'child', 'u"),
    "empty": ("", "needs the columns child and parent, and has none"),
    "no pair": ("child,parent\na,\n", "names no parent"),
    "of others": ("child,parent\na,b\n", "none of the cell types that are compared; it has names"),
    "not text": ("child,parent\n\udcff,b\n", "is no CSV file in UTF-8"),
}


@pytest.mark.parametrize(("text", "words"), LINEAGES.values(), ids=LINEAGES.keys())
def test_lineage__refuses(tmp_path, model, cells, text, words):
    path = tmp_path / "o.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=words) as raised:
        streamtrain.evaluate_model(model, cells, "cell_type", parents=path, **UNCHECKED)
    assert str(path) in str(raised.value)


def test_lineage__no_such_file(tmp_path):
    (tmp_path / "ontology.csv").write_text("child,parent\na,b\n")
    path = tmp_path / "ontologi.csv"
    with pytest.raises(FileNotFoundError, match=r"no table of parents.*mean 'ontology.csv'\?"):
        Lineage.of(path)


def test_lineage__a_circle_is_named_from_child_to_parent():
    with pytest.raises(InputError) as raised:
        Lineage.of({"x": "a", "a": "b", "b": "c", "c": "a"})
    circle = re.findall(r"'(\w)'", str(raised.value))
    pairs = set(itertools.pairwise(circle))
    assert pairs == {("a", "b"), ("b", "c"), ("c", "a")}


# Output


def test_save__json_csv_and_folder(tmp_path, calibrated, unknown):
    found = streamtrain.evaluate_model(
        calibrated, unknown, "cell_type", parents=PARENTS, out=tmp_path / "s.json", **UNCHECKED
    )
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept == json.loads(json.dumps(found.to_dict()))
    assert kept["summary"]["all cells"]["accuracy"] == found.accuracy
    assert kept["summary"]["all cells"]["coarser"] is None
    assert sum(n for row in kept["confusion"].values() for n in row.values()) == 600
    found.save(tmp_path / "s.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "s.csv", index_col=0), found.per_type, check_dtype=False
    )
    found.save(tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        "by_size.csv", "calibration.csv", "confusion.csv", "per_type.csv", "scores.json",
        "summary.csv",
    ]  # fmt: skip
    assert json.loads((tmp_path / "all" / "scores.json").read_text()) == kept
    before = sorted(tmp_path.iterdir())
    for name, words in (("s.json", "exists"), ("s.txt", "must end in .json or .csv")):
        with pytest.raises(InputError, match=words):
            streamtrain.evaluate_model("no model", None, "cell_type", out=tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    found.save(tmp_path / "s.json", overwrite=True)
    (tmp_path / "all" / "summary.csv").write_text("old")
    found.save(tmp_path / "all", overwrite=True)
    assert "old" not in (tmp_path / "all" / "summary.csv").read_text()


@pytest.mark.parametrize("mark", ["zarr.json", "notes.txt"])
def test_save__replaces_no_folder_but_its_own(mark, tmp_path, model, cells):
    folder = tmp_path / "atlas"
    folder.mkdir()
    (folder / mark).write_text("{}")
    with pytest.raises(InputError, match=r"not one of ours \(no scores.json\): it is not"):
        streamtrain.evaluate_model(model, cells, "cell_type", out=folder, overwrite=True, **QUIET)
    assert [file.name for file in folder.iterdir()] == [mark]


def test_save__never_replaces_what_is_read(tmp_path, model, cells):
    path = tmp_path / "o.csv"
    path.write_text("child,parent\nB,b\n")
    with pytest.raises(InputError, match="is what parents names, and would replace it"):
        streamtrain.evaluate_model(
            model, cells, "cell_type", parents=path, out=path, overwrite=True, **QUIET
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "best"}, "mode must be 'best match' or 'prob match'"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"held_out": "yes"}, "held_out must be True, False or None"),
        ({"held_out": True}, "the model names no cells that were held out"),
        ({"held_out": True, "holdout": "donor=D1"}, "leave out holdout and test_fraction"),
        ({"holdout": "donor"}, "holdout must be a column of obs and its values"),
        ({"holdout": "donor=D9"}, "never holds 'D9': there are 'D0', 'D1'"),
        ({"holdout": "doner=D1"}, "no obs column 'doner': did you mean 'donor'"),
        ({"test_fraction": 0.2}, "pass it with group"),
        ({"parents": 7}, "parents must be the path of a CSV file"),
        ({"parents": "."}, "parents must be a CSV file, and '.' is a folder"),
    ],
)
def test_evaluate_model__refuses(model, cells, options, words):
    with pytest.raises(InputError, match=words):
        streamtrain.evaluate_model(model, cells, "cell_type", **options, **UNCHECKED)


# The command, and cells held out


def test_cli__train_and_evaluate_on_held_out_donors(tmp_path, capsys, caplog):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    train = ("train", path, "--labels", "cell_type", "--use-sgd", "--mini-batch", "--batch-size", 9)
    out = tmp_path / "m.zarr"
    code, _, err = call(capsys, *train, "--holdout", "donor=D1, D3", "--quiet", "--out", out)
    assert (code, err) == (0, "")
    assert Model.load(out).provenance["n_cells"] == 300
    test = ("evaluate", out, path, "--labels", "cell_type", "--quiet")
    code, words, _ = call(capsys, *test)
    assert code == 0
    assert words.endswith(f"300 cells of {path}: donor D1, D3, held out of training\n")
    code, words, _ = call(capsys, *test, "--json", "--where", "n > 200")
    kept = json.loads(words)
    assert kept["cells"]["n_cells"] == 249
    assert kept["cells"]["held_out"] is True
    _, words, _ = call(capsys, *test, "--no-held-out")
    assert words.endswith(f"600 cells of {path}\n")
    caplog.set_level(logging.INFO, "streamtrain")
    _, words, _ = call(capsys, *test, "--holdout", "donor=D0,D1")
    assert words.endswith(f"300 cells of {path}: donor D0, D1, not all held out of training\n")
    assert "training held out donor D1, D3 alone: scores" in caplog.text
    # Another atlas may call its donors alike.
    (tmp_path / "other").mkdir()
    other = stores.write(atlas.make(500, seed=3), tmp_path / "other", "h5ad")
    _, words, _ = call(capsys, "evaluate", out, other, "--labels", "cell_type", "--quiet")
    assert words.endswith(f"500 cells of {other}\n")
    _, words, _ = call(
        capsys, "evaluate", out, other, "--labels", "cell_type", "--quiet", "--held-out"
    )
    assert words.endswith(f"250 cells of {other}: donor D1, D3, held out of training\n")


@pytest.mark.skipif(not DATA.exists(), reason="shared/data is not here")
def test_evaluate_model__real_donors_held_out(tmp_path):
    options = {"normalize": "log1p"} | QUIET
    model = streamtrain.train(
        DATA, "cell_type", test_fraction=0.25, group="donor", **atlas.MINI, **options,
        batch_size=200, batch_number=12, epochs=3,
    )  # fmt: skip
    held = model.provenance["held_out"]
    assert 0.15 < held["n_cells"] / 3274 < 0.35
    found = streamtrain.evaluate_model(model, DATA, "cell_type", **options)
    assert found.n_cells == held["n_cells"]
    assert found.n_cells + model.provenance["n_cells"] == 3274
    drawn = streamtrain.evaluate_model(
        model, DATA, "cell_type", test_fraction=0.25, group="donor", **options
    )
    assert drawn.cells["groups"] == held
    table = streamtrain.predict(model, DATA, where=drawn.cells["where"], **options)
    truth = ad.read_h5ad(DATA).obs["cell_type"][table.index]
    expected = evaluate(truth, table["predicted_labels"])
    pd.testing.assert_frame_equal(found.confusion, expected.confusion)
    assert found.accuracy > 0.6
