import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from streamtrain.errors import InputError
from streamtrain.evaluate import evaluate

TRUTH = ["B"] * 4 + ["T"] * 5 + ["NK"] * 1
PREDICTED = ["B", "B", "B", "T", *["T", "T", "T", "NK", "??"], "T"]


def test_evaluate__by_hand():
    e = evaluate(TRUTH, PREDICTED)
    assert e.n_cells == 10
    assert e.accuracy == pytest.approx(0.6)
    assert e.per_type.index.tolist() == ["B", "NK", "T"]
    assert e.per_type["precision"].tolist() == pytest.approx([1, 0, 3 / 5])
    assert e.per_type["recall"].tolist() == pytest.approx([3 / 4, 0, 3 / 5])
    assert e.per_type["f1"].tolist() == pytest.approx([6 / 7, 0, 3 / 5])
    assert e.per_type["support"].tolist() == [4, 1, 5]
    assert e.macro_f1 == pytest.approx((6 / 7 + 0 + 3 / 5) / 3)
    assert e.balanced_accuracy == pytest.approx((3 / 4 + 3 / 5) / 3)
    assert e.weighted_f1 == pytest.approx((4 * 6 / 7 + 5 * 3 / 5) / 10)
    assert e.confusion.columns.tolist() == ["B", "NK", "T", "??"]
    assert e.confusion.to_numpy().tolist() == [[3, 0, 1, 0], [0, 0, 1, 0], [0, 1, 3, 1]]


@pytest.mark.parametrize(
    "kind", [list, np.array, pd.Series, pd.Categorical, pd.Index, lambda x: np.array(x, object)]
)
def test_evaluate__as_scikit_learn(kind):
    rng = np.random.default_rng(0)
    names = np.array([f"type {i}" for i in range(12)])
    truth = names[rng.integers(0, 12, 500)]
    predicted = np.where(rng.random(500) < 0.6, truth, names[rng.integers(0, 12, 500)])
    e = evaluate(kind(truth.tolist()), kind(predicted.tolist()))
    assert e.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert e.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    for average in ("macro", "weighted"):
        expected = metrics.f1_score(truth, predicted, average=average)
        assert getattr(e, f"{average}_f1") == pytest.approx(expected)
    report = metrics.classification_report(truth, predicted, output_dict=True)
    for name, row in e.per_type.iterrows():
        theirs = report[name]
        assert row.tolist() == pytest.approx(
            [theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"]]
        )
    np.testing.assert_array_equal(e.confusion, metrics.confusion_matrix(truth, predicted))


def test_evaluate__one_type():
    e = evaluate(["B", "B"], ["B", "B"])
    assert (e.accuracy, e.macro_f1, e.balanced_accuracy) == (1, 1, 1)
    assert e.confusion.shape == (1, 1)


def test_evaluate__refuses():
    with pytest.raises(InputError, match="they have 1 and 2"):
        evaluate(["a"], ["a", "b"])
    with pytest.raises(InputError, match="no cells to evaluate"):
        evaluate([], [])
    with pytest.raises(InputError, match="truth lacks the label of 2 cells"):
        evaluate(np.array(["a", None, np.nan], dtype=object), ["a", "a", "a"])
    with pytest.raises(InputError, match="predicted lacks the label of 1 cells"):
        evaluate(["a"], [None])


def test_to_table():
    assert evaluate(TRUTH, PREDICTED).to_table().splitlines() == [
        "cell type          precision  recall     F1    support",
        "------------------------------------------------------",
        "T                      0.600   0.600  0.600          5",
        "B                      1.000   0.750  0.857          4",
        "NK                     0.000   0.000  0.000          1",
        "------------------------------------------------------",
        "accuracy               0.600",
        "balanced accuracy      0.450",
        "macro F1               0.486",
        "weighted F1            0.643",
        "cells                     10",
    ]
