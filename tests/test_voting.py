"""Majority voting against CellTypist's own, and the forms that clusters come in."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain import InputError, open_source
from streamtrain.voting import Clusters, given_clusters, majority
from tests import atlas

LABELS = ["T", "B", "B|T", "NK"]  # in no order of text


def crosstab(labels, clusters, min_prop):
    """CellTypist's Classifier.majority_vote."""
    votes = pd.crosstab(pd.Series(labels, dtype="category"), np.array(clusters))
    winner = votes.idxmax(axis=0).astype(str)
    share = (votes / votes.sum(axis=0).values).max(axis=0)
    winner[share < min_prop] = "Heterogeneous"
    return winner[np.array(clusters)].tolist()


@given(
    cells=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40),
    min_prop=st.sampled_from([0, 1 / 3, 0.5, 0.6, 1]),
    cut=st.integers(0, 40),
)
def test_majority__is_celltypists(cells, min_prop, cut):
    codes, numbers = np.array(cells, np.int32).T
    found, names = pd.factorize(numbers, sort=True)
    clusters = Clusters(found.astype(np.int32), pd.Index(names))
    pieces = [codes[:cut], codes[cut:]]
    winner = majority(clusters, pieces, LABELS, min_prop)
    labels = [LABELS[code] for code in codes]
    assert list(winner[clusters.codes]) == crosstab(labels, numbers, min_prop)


def test_majority__joined_labels_by_the_thousand():
    """Every cell another label: as many pairs as cells, no table of clusters x labels."""
    n = 100_000
    clusters = Clusters(np.arange(n, dtype=np.int32) // 2, pd.RangeIndex(n // 2))
    labels = [f"{i:06d}" for i in range(n)]
    winner = majority(clusters, [np.arange(n, dtype=np.int32)], labels, 0)
    assert list(winner) == labels[::2]


@pytest.fixture
def source():
    adata = atlas.make()
    adata.obs["gap"] = pd.Categorical(["x", *["y"] * 599]).set_categories(["y", "z"])
    with_names = open_source(adata)
    yield with_names
    with_names.close()


def test_given_clusters__keeps_numbers_and_drops_what_is_not_selected(source):
    rows = np.arange(100, 110)
    found = given_clusters(source, "n", rows)
    assert found.names.tolist() == rows.tolist()
    assert found.codes.tolist() == list(range(10))
    assert found.codes.dtype == np.int32
    assert given_clusters(source, "gap", np.arange(5, 9)).names.tolist() == ["y"]


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ("gap", "one cluster for each cell, and 1 of 600 have none"),
        ([1, 2], "one cluster for each cell; got 2 for 600"),
        ("leiden", "has no obs column 'leiden' and there is no such file"),
        ([1, "1"] * 300, "clusters that differ as text, and '1' stands for two or more"),
        (np.zeros((600, 2)), r"over_clustering must be a list .* shape \(600, 2\)"),
        (
            pd.Series(range(600), index=[f"cell-{i}" for i in range(600)][::-1]),
            "over_clustering name the cells .* in another order",
        ),
    ],
)
def test_given_clusters__bad_input(source, clusters, message):
    with pytest.raises(InputError, match=message):
        given_clusters(source, clusters, None)
