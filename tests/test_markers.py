"""The table of markers against each row sorted by itself."""

import numpy as np
import pandas as pd
import pytest

from streamtrain import InputError, Model

COEF = [[3.0, -5.0, 0.0, 3.0], [-1.0, 2.0, -4.0, 0.5], [0.0, 0.0, 0.0, 0.0]]


@pytest.fixture
def model():
    return Model.build(
        coef=COEF, intercept=np.zeros(3), cell_types=["T", "B", "none"], genes=list("wxyz"),
        mean=[1.0, 2.0, 3.0, 4.0], var=[1.0, 4.0, 9.0, 0.0], scale=[1.0, 2.0, 3.0, 1.0],
    )  # fmt: skip


def test_markers__table(model):
    expected = pd.DataFrame(
        [
            ("T", 1, "w", 3.0, 1.0, 1.0),
            ("T", 2, "z", 3.0, 4.0, 0.0),
            ("B", 1, "x", 2.0, 2.0, 2.0),
            ("B", 2, "z", 0.5, 4.0, 0.0),
        ],
        columns=["cell_type", "rank", "gene", "coef", "mean", "std"],
    )
    pd.testing.assert_frame_equal(model.markers(3), expected)
    pd.testing.assert_frame_equal(model.markers(), expected)
    some = model.markers(1, ["B", "T"])
    assert some[["cell_type", "gene"]].to_numpy().tolist() == [["B", "x"], ["T", "w"]]
    pd.testing.assert_frame_equal(model.markers(2, "T"), expected[:2])
    empty = model.markers(2, "none")
    assert empty.empty
    assert empty.columns.tolist() == expected.columns.tolist()


def test_markers__by_absolute_value_as_extract_top_markers(model):
    found = model.markers(2, only_positive=False)
    assert found["gene"].tolist() == ["x", "w", "y", "x", "w", "x"]
    assert found["coef"].tolist() == [-5.0, 3.0, -4.0, 2.0, 0.0, 0.0]
    for cell_type, genes in found.groupby("cell_type")["gene"]:
        assert genes.tolist() == list(model.extract_top_markers(cell_type, 2, only_positive=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "top_n must be a whole number of at least 1; got 0"),
        ((True,), "top_n must be a whole number of at least 1; got True"),
        ((5, ["B", "Tt"]), "no cell type 'Tt' in the model: did you mean 'T'\\?"),
        ((5, []), "cell_types must name a cell type at least, or be None for all; got none"),
    ],
)
def test_markers__refused(model, arguments, message):
    with pytest.raises(InputError, match=f"(?m)^{message}$"):
        model.markers(*arguments)
