"""Which cells are used and how their labels become codes."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from streamtrain.cells import labelled_cells, name_cell, select_rows
from streamtrain.errors import InputError
from streamtrain.sources import open_source

TYPES = ["T cell", "B cell, naive", "NK", "T cell", "NK", "B cell, naive", "T cell", "NK"]
N = len(TYPES)


def source(**columns):
    obs = pd.DataFrame(
        {"cell_type": TYPES, "n": np.arange(N), "flag": np.arange(N) % 2 == 0} | columns,
        index=[f"c{i}" for i in range(N)],
    )
    var = pd.DataFrame(index=["g0", "g1"])
    return open_source(ad.AnnData(sp.csr_matrix(np.ones((N, 2), np.float32)), obs, var))


def cells_of(labels, *, where=None, drop=False, **columns):
    return labelled_cells(source(**columns), labels, where=where, drop_unlabeled=drop)


def assert_cells(found, names, rows=None):
    """The labels come back, by number of the row."""
    assert found.classes[found.codes].tolist() == [str(n) for n in names]
    assert found.codes.dtype == np.int32
    assert all(isinstance(name, str) for name in found.classes)
    assert len(set(found.classes)) == len(found.classes) == len(set(names))
    assert found.n_obs == len(names)
    assert (found.rows is None) == (rows is None)
    if rows is not None:
        assert found.rows.tolist() == rows


def test_labels__obs_column():
    found = cells_of("cell_type")
    assert_cells(found, TYPES)
    assert found.classes.tolist() == ["B cell, naive", "NK", "T cell"]


FORMS = {
    "list": list,
    "tuple": tuple,
    "ndarray of text": np.array,
    "ndarray of objects": lambda t: np.array(t, dtype=object),
    "Index": pd.Index,
    "CategoricalIndex": pd.CategoricalIndex,
    "Series": pd.Series,
    "Series, by position whatever its index": lambda t: pd.Series(t, index=range(100, 100 - N, -1)),
    "Series of strings": lambda t: pd.Series(t, dtype="string"),
    "categorical with a type that does not occur": lambda t: pd.Series(
        pd.Categorical(t, categories=["none", "T cell", "NK", "B cell, naive"])
    ),
    "ordered categorical": lambda t: pd.Series(
        pd.Categorical(t, categories=["T cell", "NK", "B cell, naive"], ordered=True)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels__list_likes(form):
    found = cells_of(FORMS[form](TYPES))
    assert_cells(found, TYPES)
    assert found.classes.tolist() == ["B cell, naive", "NK", "T cell"]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_labels__file(tmp_path, start, newline, end):
    path = tmp_path / "labels.csv"
    path.write_bytes(start + (newline.join(TYPES) + end.replace("\n", newline)).encode())
    for labels in (path, str(path)):
        assert_cells(cells_of(labels), TYPES)


def test_labels__file_line_stays_whole(tmp_path):
    """Only a newline ends a label: no comma, tab, quote or exotic separator does."""
    odd = ["a,b", 'a "b", c', "a\tb", "a\x0bb", "a\u2028b", "a\x85b", " a", "µ"]
    (tmp_path / "labels.txt").write_text("\n".join(odd), encoding="utf-8")
    assert_cells(cells_of(tmp_path / "labels.txt"), odd)


def test_labels__file_blank_line_is_missing(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a\n\nb\nb\na\n\nb\na\n")
    with pytest.raises(InputError, match="2 of 8 cells have no label in "):
        cells_of(path)
    assert_cells(cells_of(path, drop=True), list("abbaba"), [0, 2, 3, 4, 6, 7])


def test_labels__file_of_another_encoding(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("Müller\n".encode("latin-1") * N)
    with pytest.raises(InputError, match=r"labels must be a text file in UTF-8; .*labels\.txt"):
        cells_of(path)


def test_labels__a_column_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell_type").write_text("x\ny\n")
    assert_cells(cells_of("cell_type"), TYPES)


@pytest.mark.parametrize("form", [list, np.array, pd.Series])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 10, 2, 9, 2, 100, 2], ["2", "9", "10", "100"]),
        ([True, False, False, True, True, True, False, True], ["False", "True"]),
        ([1.0, 10.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0], ["1", "2", "10"]),
        (["10", "9", "10", "2", "9", "2", "100", "2"], ["10", "100", "2", "9"]),
    ],
)
def test_labels__sorted_as_their_values(values, names, form):
    found = cells_of(form(values))
    assert_cells(found, [int(v) if isinstance(v, float) else v for v in values])
    assert found.classes.tolist() == names
    assert cells_of("leiden", leiden=values).classes.tolist() == names


def test_labels__categorical_of_numbers():
    values = [10, 9, 10, 2, 9, 2, 100, 2]
    assert cells_of(pd.Series(values).astype("category")).classes.tolist() == [
        "2",
        "9",
        "10",
        "100",
    ]


MISSING = {
    "nan": np.nan,
    "None": None,
    "NA": pd.NA,
    "NaT": pd.NaT,
}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("form", [list, tuple, pd.Series, lambda t: np.array(t, dtype=object)])
def test_labels__missing(form, missing):
    values = [MISSING[missing] if i in (1, 6) else t for i, t in enumerate(TYPES)]
    words = (
        r"AnnData: 2 of 8 cells have no label in labels; "
        r"pass drop_unlabeled=True \(--drop-unlabeled\)"
    )
    with pytest.raises(InputError, match=words):
        cells_of(form(values))
    kept = [0, 2, 3, 4, 5, 7]
    assert_cells(cells_of(form(values), drop=True), [TYPES[i] for i in kept], kept)


def test_labels__missing_in_a_column():
    column = pd.Categorical([None if i == 3 else t for i, t in enumerate(TYPES)])
    with pytest.raises(
        InputError, match="1 of 8 cells have no label in 'cell_type'; pass drop_unl"
    ):
        cells_of("cell_type", cell_type=column)
    kept = [0, 1, 2, 4, 5, 6, 7]
    found = cells_of("cell_type", cell_type=column, drop=True)
    assert_cells(found, [TYPES[i] for i in kept], kept)


def test_labels__drop_unlabeled_drops_none_where_all_are():
    assert_cells(cells_of("cell_type", drop=True), TYPES)


def test_labels__text_that_reads_like_missing_is_a_label():
    values = ["nan", "None", "-", "NA", "nan", "a", "b", "c"]
    assert_cells(cells_of(values), values)


@pytest.mark.parametrize("n", [0, 7, 9])
@pytest.mark.parametrize("form", [list, np.array, pd.Series, "file"])
def test_labels__wrong_length(tmp_path, form, n):
    values = (TYPES * 2)[:n]
    if form == "file":
        (tmp_path / "l.txt").write_text("\n".join(values))
        labels = tmp_path / "l.txt"
    else:
        labels = form(values)
    words = f"there must be one label for each cell; got {n} labels for 8 cells of AnnData"
    with pytest.raises(InputError, match=words):
        cells_of(labels)
    with pytest.raises(InputError, match=words):  # of all cells, not of those selected
        cells_of(labels, where="n < 7")


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (np.array([["a", "b"]] * N), "(8, 2)"),
        ([["a"]] * N, "(8, 1)"),
        (pd.DataFrame({"a": TYPES}), "(8, 1)"),
    ],
    ids=["array", "nested list", "DataFrame"],
)
def test_labels__wrong_shape(labels, shape):
    words = f"labels must be a list of one label a cell; got shape {shape}"
    with pytest.raises(InputError, match=re.escape(words)):
        cells_of(labels)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "celltype",
            "no obs column 'celltype' and there is no such file: did you mean 'cell_type'",
        ),
        ("zzz.csv", "there is no such file: there are 'cell_type', 'n', 'flag'"),
        ("", "no obs column '' and there is no such file"),
    ],
)
def test_labels__no_such_column(name, words):
    with pytest.raises(InputError, match=words):
        cells_of(name)


def test_labels__one_class():
    with pytest.raises(InputError) as caught:
        cells_of(["x"] * N)
    assert str(caught.value) == (
        "AnnData: training needs two cell types at least; labels holds only 'x': name "
        "another column"
    )
    with pytest.raises(
        InputError, match="'cell_type' holds only 'T cell' among the cells that wher"
    ):
        cells_of("cell_type", where="n in [0, 3, 6]")
    with pytest.raises(InputError, match="none of 8 cells has a label in labels"):
        cells_of([None] * N, drop=True)


def test_labels__equal_as_text():
    with pytest.raises(InputError, match="labels must differ as text, and '1' stands for two"):
        cells_of(np.array([1, "1", "2"] * 2 + [1, 1], dtype=object))


def test_labels__that_no_file_can_store():
    for name, wrong in (("B\0", "NUL"), ("B\udc80", "lone surrogates")):
        with pytest.raises(InputError, match=f"must be text without {wrong}, which"):
            cells_of([name, "T"] * 4)


def test_where__selects_by_position_in_the_source():
    found = cells_of("cell_type", where="n >= 2 and flag")
    assert_cells(found, [TYPES[i] for i in (2, 4, 6)], [2, 4, 6])
    assert found.classes.tolist() == ["NK", "T cell"]  # a type none of them has is none
    found = cells_of(list(range(10, 10 + N)), where="n >= 2 and flag")
    assert_cells(found, [12, 14, 16], [2, 4, 6])


def test_where__selects_all():
    assert_cells(cells_of("cell_type", where="n >= 0"), TYPES)


def test_where__selects_none():
    words = "AnnData: where='n > 99' selects none of 8 cells"
    with pytest.raises(InputError, match=words):
        cells_of("cell_type", where="n > 99")
    with pytest.raises(InputError, match=words):
        select_rows(source(), "n > 99")


def test_where__no_such_column():
    with pytest.raises(InputError, match="did you mean 'cell_type'"):
        cells_of("cell_type", where="celltype == 'NK'")


def test_where__with_missing_labels():
    values = [None if i in (1, 4, 6) else t for i, t in enumerate(TYPES)]
    # Only the selected cells need a label.
    assert_cells(cells_of(values, where="n in [0, 2, 3]"), ["T cell", "NK", "T cell"], [0, 2, 3])
    with pytest.raises(InputError, match="2 of 5 cells have no label"):
        cells_of(values, where="n >= 3")
    found = cells_of(values, where="n >= 3", drop=True)
    assert_cells(found, [TYPES[i] for i in (3, 5, 7)], [3, 5, 7])
    found = cells_of(values, where="n >= 0", drop=True)
    assert_cells(found, [TYPES[i] for i in (0, 2, 3, 5, 7)], [0, 2, 3, 5, 7])


def test_select_rows__ascending():
    assert select_rows(source(), None) is None
    assert select_rows(source(), "n >= 0") is None
    found = select_rows(source(), "not flag")
    assert found.tolist() == [1, 3, 5, 7]
    assert found.dtype == np.int64


def test_name_cell__by_place_in_the_stream():
    s = source()
    assert name_cell(s, None, 3) == "cell 3 ('c3')"
    assert name_cell(s, np.array([2, 5, 7]), 1) == "cell 5 ('c5')"


@pytest.mark.parametrize("kind", [list, np.array, lambda v: pd.Series(v).astype("category")])
def test_labels__empty_text_is_missing(kind):
    labels = kind(["", *TYPES[1:7], ""])
    with pytest.raises(InputError, match="2 of 8 cells have no label in labels"):
        cells_of(labels)
    assert_cells(cells_of(labels, drop=True), TYPES[1:7], rows=list(range(1, 7)))


def test_labels__series_goes_by_position_unless_it_names_the_cells_in_another_order():
    named = pd.Series(TYPES, index=[f"c{i}" for i in range(N)])
    with pytest.raises(InputError, match="name the cells of AnnData in another order"):
        cells_of(named.iloc[::-1])
    assert_cells(cells_of(named), TYPES)
    assert_cells(cells_of(named.iloc[::-1].reset_index(drop=True)), TYPES[::-1])


def test_labels__series_of_other_cells(caplog):
    """Cells in another place are refused, even if not all are there; unknown ones warned of."""
    moved = pd.Series(TYPES, index=["x", *(f"c{i}" for i in range(N - 1))])
    for index in (moved.index, moved.index.astype("category"), moved.index.astype("string")):
        with pytest.raises(InputError, match="name the cells of AnnData in another order"):
            cells_of(moved.set_axis(index))
    for odd in (
        pd.MultiIndex.from_product([["a"], range(N)]),
        pd.Index([*moved.index[:-1], pd.NA]),
    ):
        assert_cells(cells_of(moved.set_axis(odd)), TYPES)
    assert caplog.text == ""
    assert_cells(cells_of(pd.Series(TYPES, index=[f"x{i}" for i in range(N)])), TYPES)
    assert "name other cells than AnnData: cell 0 is 'c0' there and 'x0' here" in caplog.text
    caplog.clear()
    unnamed = open_source(sp.csr_matrix(np.ones((N, 2), np.float32)), genes=["a", "b"])
    labels = pd.Series(TYPES, index=[f"x{i}" for i in range(N)])
    labelled_cells(unnamed, labels, where=None, drop_unlabeled=False)
    assert caplog.text == ""


def test_labels__fractions_are_no_cell_types():
    with pytest.raises(InputError, match="labels holds 2 different fractions: name another col"):
        cells_of([0.5, 0.25] * 4)


def test_labels__names_like_missing_are_warned_of(caplog):
    assert_cells(cells_of(["nan", *TYPES[1:]]), ["nan", *TYPES[1:]])
    assert "'nan' is trained as a cell type like any other" in caplog.text
