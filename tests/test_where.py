import logging

import numpy as np
import pandas as pd
import pytest

from streamtrain.errors import InputError
from streamtrain.sources.where import where

N = 12
OBS = pd.DataFrame(
    {
        "tissue": pd.Categorical(["lung", "liver", None, "gut"] * 3),
        "donor": pd.Categorical([f"D{i % 5}" for i in range(N)]),
        "other": pd.Categorical([f"D{i % 3}" for i in range(N)], categories=["D2", "D1", "D0"]),
        "stage": pd.Categorical(
            ["early", "mid", "late"] * 4, categories=["early", "mid", "late"], ordered=True
        ),
        "n_genes": np.arange(N) * 100,
        "score": np.where(np.arange(N) % 4 == 0, np.nan, np.arange(N) / 10),
        "is_primary_data": np.arange(N) % 2 == 0,
        "maybe": pd.array([True, None, False] * 4, dtype="boolean"),
        "age": pd.array([1, None, 3] * 4, dtype="Int64"),
        "leiden": pd.Categorical(np.arange(N) % 3),
        "cell type": pd.Categorical(["doublet", "T `x`"] * 6),
        "a.b": np.arange(N),
        "when": pd.date_range("2020-01-01", periods=N),
        "µm": np.arange(N),
    }
)


def run(expr, read=None):
    def column(name):
        if read is not None:
            read.append(name)
        return OBS[name]

    return where(expr, column, list(OBS.columns))


T = OBS.tissue.astype(object)
CASES = {
    "tissue == 'lung'": T == "lung",
    "'lung' == tissue": T == "lung",
    "tissue == 'lung' and is_primary_data": (T == "lung") & OBS.is_primary_data,
    "n_genes >= 200 and donor not in ['D1','D2']": (OBS.n_genes >= 200)
    & ~OBS.donor.isin(["D1", "D2"]),
    '`cell type` != "doublet"': OBS["cell type"] != "doublet",
    "`cell type` == 'T `x`'": OBS["cell type"] == "T `x`",
    "not is_primary_data": ~OBS.is_primary_data,
    "~is_primary_data | (n_genes < 300)": ~OBS.is_primary_data | (OBS.n_genes < 300),
    "(n_genes > 200) & (n_genes <= 900)": (OBS.n_genes > 200) & (OBS.n_genes <= 900),
    "200 < n_genes <= 900": (OBS.n_genes > 200) & (OBS.n_genes <= 900),
    "500 >= n_genes": OBS.n_genes <= 500,
    "n_genes in (100, 200)": OBS.n_genes.isin([100, 200]),
    "n_genes in []": OBS.n_genes < 0,
    "score > -0.5": OBS.score > -0.5,
    "score != 0.1": OBS.score != 0.1,  # missing fulfils !=
    "not score == 0.1": OBS.score != 0.1,
    "score != score": OBS.score.isna(),
    "tissue != 'lung'": T != "lung",
    "not (tissue == 'lung')": T != "lung",
    "tissue not in {'lung', 'gut'}": ~T.isin(["lung", "gut"]),
    "maybe": OBS.maybe.fillna(False).astype(bool),
    "not maybe": ~OBS.maybe.fillna(False).astype(bool),
    "maybe == False": (OBS.maybe == False).fillna(False).astype(bool),  # noqa: E712
    "age >= 1": (OBS.age >= 1).fillna(False).astype(bool),
    "age < n_genes": (OBS.age < OBS.n_genes).fillna(False).astype(bool),
    "leiden == 1 or leiden > 1": OBS.leiden.astype(int) >= 1,
    "leiden < n_genes": OBS.leiden.astype(int) < OBS.n_genes,
    "stage >= 'mid'": OBS.stage >= "mid",
    "donor == other": OBS.donor.astype(object) == OBS.other.astype(object),
    "donor != other": OBS.donor.astype(object) != OBS.other.astype(object),
    "`a.b` == 3": OBS["a.b"] == 3,
    "µm == 3": OBS["µm"] == 3,
}


@pytest.mark.parametrize("expr", CASES)
def test_where__agrees_with_pandas(expr):
    found = run(expr)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, CASES[expr].to_numpy(dtype=bool))


def test_where__reads_each_needed_column_once():
    read = []
    run("n_genes > 1 and n_genes < 900 and (tissue == 'gut' or tissue == 'lung')", read)
    assert sorted(read) == ["n_genes", "tissue"]


REFUSED = {
    "tisue == 'lung'": "no column 'tisue': did you mean 'tissue'",
    "tissue": "'tissue' holds text, not True/False: compare it, e.g. tissue == 'gut'",
    "n_genes": "holds numbers, not True/False",
    "`cell type`": "e.g. `cell type` == ",
    "not n_genes": "holds numbers",
    "tissue == 1": "'tissue' holds text and 1 is of another kind",
    "n_genes == '1'": "'n_genes' holds numbers and '1' is of another kind",
    "n_genes in ['1']": "another kind",
    "is_primary_data == 1": "another kind",
    "n_genes == True": "another kind",
    "tissue < 'lung'": "holds text, which has no order",
    "stage < 'nope'": "no order relative to 'nope'",
    "tissue < donor": "do not compare",
    "tissue == n_genes": "do not compare",
    "when == 1": "holds datetime64",
    "n_genes == 1 & n_genes == 2": "put parentheses around each comparison",
    "a.b == 3": "between backticks",
    "n_genes + 1 == 2": "allowed are",
    "n_genes == 10 ** 9": "holds '10 \\*\\* 9'",
    "__import__('os').system('true')": "allowed are",
    "n_genes.max() == 1": "allowed are",
    "[x for x in tissue]": "allowed are",
    "(lambda: 1)()": "allowed are",
    "tissue[0] == 'a'": "allowed are",
    "f'{tissue}' == 'a'": "allowed are",
    "tissue == b'lung'": "allowed are",
    "tissue == None": "allowed are",
    "tissue is 'lung'": "uses 'is'",
    "'lung' in tissue": "uses 'in' otherwise",
    "tissue in 'lung'": "uses 'in' otherwise",
    "tissue in ['a', donor]": "'donor' in a list",
    "1 == 1": "no column",
    "True": "where a condition is due",
    "'x'": "where a condition is due",
    "": "cannot be read",
    "tissue == ": "cannot be read",
    "tissue = 'lung'": "cannot be read",
    "n_genes == \0": "cannot be read",
    "`tissue": "cannot be read",
    "import os": "cannot be read",
    "(" * 500 + "flag" + ")" * 500: "cannot be read",
    "not " * 3000 + "is_primary_data": "cannot be read|nested too deeply",
}


@pytest.mark.filterwarnings("ignore:.*is. with:SyntaxWarning")
@pytest.mark.parametrize("expr", REFUSED, ids=lambda expr: expr[:40].replace("\0", "NUL"))
def test_where__refuses(expr):
    with pytest.raises(InputError, match=REFUSED[expr]):
        run(expr)


@pytest.mark.parametrize("expr", ["tissue == 'lungs'", "tissue in ['lungs', 'gut']"])
def test_where__warns_of_a_category_that_does_not_exist(expr, caplog):
    with caplog.at_level(logging.WARNING):
        run(expr)
    assert "never holds 'lungs': did you mean 'lung'?" in caplog.text


def test_where__no_columns_at_all():
    with pytest.raises(InputError, match="there are none"):
        where("a == 1", OBS.get, [])
