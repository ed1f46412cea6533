"""Over-clustering against scanpy and CellTypist, its parts against their dense forms."""

import importlib
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.neighbors import KNeighborsTransformer, kneighbors_graph

import streamtrain
from streamtrain import InputError, overcluster
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass
from streamtrain.spill import Spill
from streamtrain.threads import Threads
from tests import atlas, stores

REASON = "over-clustering needs scanpy and igraph"
sc = pytest.importorskip("scanpy", reason=REASON)
pytest.importorskip("igraph", reason=REASON)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(
        atlas.make(), "cell_type", **atlas.MINI, batch_size=100, epochs=1, **QUIET
    )


@pytest.fixture(scope="module")
def adata():
    """Cells with a graph of neighbours."""
    adata = atlas.make(seed=4)
    graph = kneighbors_graph(adata.X, 10)
    adata.obsp["connectivities"] = graph.maximum(graph.T).tocsr()
    adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {}}
    return adata


def rows_of(matrix):
    m = sp.csr_matrix(matrix)
    return Rows(m.data, m.indices, m.indptr.astype(np.int64), m.shape[1])


def moments(matrix):
    with Threads(1) as threads:
        taken = MomentsPass(matrix.shape[1], threads)
        taken.update(rows_of(matrix))
        return taken.result()


@pytest.mark.parametrize("n_top", [10, 40, 2500])
def test_variable_genes__are_scanpys(monkeypatch, n_top):
    monkeypatch.setattr(overcluster, "N_TOP_GENES", n_top)
    adata = atlas.make(n_vars=300, dtype=np.float64)
    found = overcluster.variable_genes(moments(np.expm1(adata.X.toarray())))
    sc.pp.filter_genes(adata, min_cells=5)
    names = atlas.make(n_vars=300).var_names[found]
    sc.pp.highly_variable_genes(adata, n_top_genes=min(n_top, adata.n_vars))
    assert names.tolist() == adata.var_names[adata.var["highly_variable"]].tolist()


def test_variable_genes__none():
    with pytest.raises(InputError, match="needs genes that vary, and only 0 are in 5 cells"):
        overcluster.variable_genes(moments(np.zeros((10, 4))))


def test_components__are_those_of_the_dense_scaled_matrix(monkeypatch):
    monkeypatch.setattr(overcluster, "_DENSE", 50)
    adata = atlas.make(dtype=np.float64)
    pieces = [(i, rows_of(adata.X[i : i + 70])) for i in range(0, 600, 70)]
    with Threads(1) as threads, Spill(120, np.float32, None) as spill:
        found = overcluster._components(120, lambda: iter(pieces), spill, threads, show=False)
    genes = overcluster.variable_genes(moments(np.expm1(adata.X.toarray())))
    x = adata.X.toarray()[:, genes]
    z = np.minimum((x - x.mean(0)) / x.std(0), 10)
    u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    assert found.shape == (600, 50)
    # float32 on scratch; components of nearly equal variance may turn into each other.
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), s[:50], rtol=1e-4)
    np.testing.assert_allclose(np.abs(found[:, :4]), np.abs(u * s)[:, :4], atol=1e-3)


@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr3"])
def test_over_cluster__on_a_stored_graph_is_celltypists(tmp_path, model, adata, place):
    celltypist = pytest.importorskip("celltypist", reason="the test extra brings celltypist")
    X = adata if place == "memory" else stores.write(adata, tmp_path, place)
    ours = streamtrain.predict(model, X, majority_voting=True, **QUIET)
    model.to_celltypist(tmp_path / "m.pkl")
    theirs = celltypist.annotate(
        adata.copy(), model=str(tmp_path / "m.pkl"), majority_voting=True
    ).predicted_labels
    for name in ("over_clustering", "majority_voting"):
        assert ours[name].astype(str).tolist() == theirs[name].astype(str).tolist()
    assert ours["over_clustering"].nunique() > 10


def test_over_cluster__where_takes_its_part_of_the_graph(model, adata):
    chosen = (adata.obs["donor"] != "D1").to_numpy()
    part = streamtrain.predict(model, adata, majority_voting=True, where="donor != 'D1'", **QUIET)[
        "over_clustering"
    ]
    graph = adata.obsp["connectivities"][chosen][:, chosen]
    expected = overcluster._leiden(sp.csr_matrix(graph))
    assert part.cat.codes.tolist() == expected.codes.tolist()


class Approximate(KNeighborsTransformer):
    """pynndescent's search with its result's type; it takes a minute to compile."""

    def __init__(self, n_neighbors, random_state, n_trees, n_iters):
        super().__init__(n_neighbors=n_neighbors)
        self.random_state, self.n_trees, self.n_iters = random_state, n_trees, n_iters

    def fit_transform(self, X, y=None):
        return sp.csr_array(super().fit_transform(X, y))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["expression", "X_pca", "many cells"])
def test_over_cluster__clusters_hold_one_type(model, kind, monkeypatch):
    """Of the true types, as the clusters are many and small."""
    cells = atlas.make(seed=4)
    if kind == "X_pca":
        u, s, _ = np.linalg.svd(cells.X.toarray(), full_matrices=False)
        cells.obsm["X_pca"] = (u * s)[:, 1:61]  # the first is the mean
    if kind == "many cells":
        monkeypatch.setattr(overcluster, "_EXACT", 600)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("umap")  # which scanpy asks, and which needs the real one
        stub = SimpleNamespace(PyNNDescentTransformer=Approximate)
        monkeypatch.setitem(sys.modules, "pynndescent", stub)
    table = streamtrain.predict(model, cells, majority_voting=True, **QUIET)
    share = pd.crosstab(table["over_clustering"], cells.obs["cell_type"].to_numpy())
    assert 10 < len(share) < 200
    assert share.max(axis=1).sum() / 600 > 0.9


def test_over_cluster__of_text(tmp_path, model):
    cells = atlas.make(seed=4)
    counts = cells.layers["counts"].toarray().astype(int)
    pd.DataFrame(counts, cells.obs_names, cells.var_names).to_csv(tmp_path / "cells.csv")
    table = streamtrain.predict(model, tmp_path / "cells.csv", majority_voting=True, **QUIET)
    cells.X = cells.layers["counts"]
    expected = streamtrain.predict(model, cells, normalize="log1p", majority_voting=True, **QUIET)
    pd.testing.assert_frame_equal(table, expected)


def test_resolution__is_celltypists():
    cells = [4_999, 5_000, 19_999, 20_000, 40_000, 100_000, 199_999, 200_000]
    assert [overcluster.resolution(n) for n in cells] == [5, 10, 10, 15, 20, 25, 25, 30]


@pytest.mark.parametrize(
    ("n_obs", "memory", "message"),
    [
        (50, 10**9, "50 cells are too few to over-cluster"),
        (10**6, 10**9, "over-clustering 1,000,000 cells holds their graph, 3.15 GB, and memory is"),
    ],
)
def test_check__refuses_early(n_obs, memory, message):
    overcluster.check(51, 10**9)
    with pytest.raises(InputError, match=message):
        overcluster.check(n_obs, memory)


def test_check__names_what_to_install(monkeypatch):
    monkeypatch.setattr(overcluster, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install scanpy igraph, or pass over_clu"):
        overcluster.check(10**4, 10**9)
