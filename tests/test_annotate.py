"""annotate(): what goes into an AnnData, and its result beside celltypist.annotate's."""

import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import streamtrain
from streamtrain import AnnotationResult, InputError, Model
from streamtrain import annotation_result as module
from tests import atlas
from tests.stores import DATA

QUIET = {"progress": False}
VOTED = ["predicted_labels", "over_clustering", "majority_voting", "conf_score"]
MATRICES = {"probabilities": True, "scores": True}


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(
        atlas.make(), "cell_type", **atlas.MINI, batch_size=100, epochs=1, dtype="float64", **QUIET
    )


@pytest.fixture
def adata():
    return atlas.make(seed=4)


def same(one, other):
    """Two AnnData hold the same."""
    assert (one.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(one.obs, other.obs)
    assert dict(one.uns) == dict(other.uns)
    assert set(one.obsm) == set(other.obsm)


def test_annotate__adds_to_obs_what_predict_gives(model, adata):
    before, X = adata.copy(), adata.X
    table = streamtrain.predict(model, adata, **QUIET)
    result = streamtrain.annotate(adata, model, **QUIET)
    assert result.adata is adata
    assert adata.X is X
    assert adata.obs.columns.tolist() == [*before.obs.columns, "predicted_labels", "conf_score"]
    labels = table["predicted_labels"].astype(str)
    assert adata.obs["predicted_labels"].astype(str).tolist() == labels.tolist()
    np.testing.assert_array_equal(adata.obs["conf_score"], table["conf_score"])
    added = ["predicted_labels", "conf_score"]
    note = adata.uns.pop("streamtrain")
    adata.obs = adata.obs.drop(columns=added)
    same(adata, before)
    assert note["params"] == {"mode": "best match", "majority_voting": False, "adapt": "none"}
    assert note["model"]["number_celltypes"] == 5
    assert note["model"]["calibrated"] is False
    assert note["version"] == streamtrain.__version__


def test_annotate__categories_are_the_types_that_occur_in_the_models_order(model, adata):
    """Empty ones would stand in scanpy's legends, and fail in rank_genes_groups."""
    wanted = [t for t in reversed(model.cell_types) if t != "NK"]
    order = [*wanted, "NK"]
    reordered = Model(model.dataset.sel(cell_type=order))
    cells = adata[adata.obs["cell_type"] != "NK"].copy()
    found = streamtrain.annotate(cells, reordered, **QUIET).predicted_labels["predicted_labels"]
    cells = cells[(found != "NK").to_numpy()].copy()
    streamtrain.annotate(cells, reordered, **QUIET)
    assert cells.obs["predicted_labels"].cat.categories.tolist() == wanted


@pytest.mark.parametrize("calibration", [None, {"temperature": 30.0, "offset": -1.0}])
def test_annotate__voting_matrices_and_prefix(tmp_path, model, adata, calibration):
    if calibration is not None:
        model = Model(model.dataset.assign_attrs(calibration=calibration))
    options = {"majority_voting": True, "over_clustering": "donor", "min_prop": 0.3} | QUIET
    table = streamtrain.predict(model, adata, probabilities=True, **options)
    scores = streamtrain.predict(model, adata, scores=True, **QUIET)
    types = list(model.cell_types)
    result = streamtrain.annotate(adata, model, prefix="ct_", **MATRICES, **options)
    assert adata.obs.columns[3:].tolist() == [f"ct_{name}" for name in VOTED]
    for name in VOTED[:3]:
        assert adata.obs[f"ct_{name}"].astype(str).tolist() == table[name].astype(str).tolist()
    assert result.predicted_labels.columns.tolist() == VOTED[:3]
    np.testing.assert_array_equal(result.probability_matrix, table[types])
    np.testing.assert_array_equal(result.decision_matrix, scores[types])
    assert set(adata.obsm) == {"ct_probabilities", "ct_scores"}
    np.testing.assert_array_equal(adata.obsm["ct_probabilities"], table[types])
    np.testing.assert_array_equal(adata.obsm["ct_scores"], scores[types])
    assert adata.uns["ct_streamtrain"]["model"]["calibrated"] is (calibration is not None)
    assert adata.uns["ct_streamtrain"]["params"]["over_clustering"] == "donor"
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    again = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert again.obs["ct_predicted_labels"].tolist() == adata.obs["ct_predicted_labels"].tolist()
    assert again.uns["ct_streamtrain"]["cell_types"].tolist() == types
    np.testing.assert_array_equal(again.obsm["ct_scores"], scores[types])
    assert again.uns["ct_streamtrain"]["params"]["min_prop"] == 0.3


def test_annotate__one_matrix_alone(model, adata):
    result = streamtrain.annotate(adata, model, probabilities=True, inplace=False, **QUIET)
    assert result.probability_matrix.shape == (600, 5)
    with pytest.raises(InputError, match=r"decision_matrix .* pass scores=True to annotate\(\)"):
        result.decision_matrix  # noqa: B018
    result = streamtrain.annotate(adata, model, scores=True, inplace=False, **QUIET)
    with pytest.raises(InputError, match=r"pass probabilities=True to annotate\(\)"):
        result.to_adata(insert_prob=True)
    result.to_adata(insert_labels=False, insert_conf=False, insert_decision=True, prefix="s ")
    assert adata.obs.columns[3:].tolist() == [f"s {name}" for name in model.cell_types]


def test_annotate__copy_and_not_in_place_leave_the_input(model, adata):
    before = adata.copy()
    other = streamtrain.annotate(adata, model, copy=True, probabilities=True, **QUIET)
    same(adata, before)
    assert isinstance(other, ad.AnnData)
    assert {"predicted_labels", "conf_score"} <= set(other.obs)
    assert set(other.obsm) == {"probabilities"}
    other.X.data[:] = 0
    same(adata, before)
    result = streamtrain.annotate(adata, model, inplace=False, **QUIET)
    same(adata, before)
    assert result.to_adata() is adata
    assert adata.obs["predicted_labels"].tolist() == other.obs["predicted_labels"].tolist()


def test_annotate__again_replaces(model, adata):
    streamtrain.annotate(adata, model, probabilities=True, **QUIET)
    other = model.subset(["B", "NK"])
    streamtrain.annotate(adata, other, probabilities=True, adapt="genes", **QUIET)
    assert set(adata.obs["predicted_labels"]) == {"B", "NK"}
    assert adata.obsm["probabilities"].shape == (600, 2)
    assert adata.uns["streamtrain"]["cell_types"].tolist() == ["B", "NK"]
    assert adata.uns["streamtrain"]["adapt"]["adapted"] is True
    assert adata.obs.columns.tolist() == ["cell_type", "donor", "n", *VOTED[:1], "conf_score"]


def test_annotate__leaves_the_column_of_the_clusters(model, adata):
    adata.obs["over_clustering"] = adata.obs["donor"].astype(object)
    options = {"majority_voting": True, "over_clustering": "over_clustering"}
    result = streamtrain.annotate(adata, model, **options, **QUIET)
    assert adata.obs["over_clustering"].dtype == object
    assert "over_clustering" in result.predicted_labels
    streamtrain.annotate(adata, model, prefix="ct_", **options, **QUIET)
    assert adata.obs["ct_over_clustering"].tolist() == adata.obs["donor"].tolist()


@pytest.mark.parametrize("name", ["predicted_labels", "majority_voting", "conf_score"])
def test_annotate__clusters_that_a_result_would_replace(model, adata, name):
    adata.obs[name] = adata.obs["donor"]
    before = adata.obs.copy()
    options = {"majority_voting": True, "over_clustering": name} | QUIET
    words = f"the column '{name}' of obs, which over_clustering names, would be replaced"
    with pytest.raises(InputError, match=words):
        streamtrain.annotate(adata, model, **options)
    result = streamtrain.annotate(adata, model, inplace=False, **options)
    with pytest.raises(InputError, match=words):
        result.to_adata()
    pd.testing.assert_frame_equal(adata.obs, before)
    streamtrain.annotate(adata, model, prefix="ct_", **options)
    pd.testing.assert_series_equal(adata.obs[name], before[name])
    assert "ct_" + name in adata.obs


def test_annotate__prob_match_layers_gene_names_and_repeated_cells(model, adata):
    counts = ad.AnnData(adata.layers["counts"] * 0, obs=adata.obs, var=adata.var.copy())
    counts.layers["counts"] = adata.layers["counts"]
    counts.var["id"], counts.var_names = counts.var_names, counts.var["feature_name"]
    counts.obs_names = ["one"] * 600
    options = {"mode": "prob match", "p_thres": 0.9, "normalize": "log1p"} | QUIET
    expected = streamtrain.predict(model, adata, layer="counts", **options)["predicted_labels"]
    streamtrain.annotate(counts, model, layer="counts", gene_key="id", **options)
    assert counts.obs["predicted_labels"].tolist() == expected.tolist()
    note = counts.uns["streamtrain"]["params"]
    assert (note["p_thres"], note["layer"], note["gene_key"]) == (0.9, "counts", "id")


def test_annotate__backed(tmp_path, model, adata):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = (tmp_path / "cells.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    streamtrain.annotate(backed, model, scores=True, **QUIET)
    streamtrain.annotate(adata, model, **QUIET)
    assert backed.isbacked
    assert backed.obs["predicted_labels"].tolist() == adata.obs["predicted_labels"].tolist()
    part = backed[100:200]
    labels = streamtrain.annotate(part, model, inplace=False, **QUIET).predicted_labels
    assert labels["predicted_labels"].tolist() == adata.obs["predicted_labels"][100:200].tolist()
    with pytest.raises(InputError, match="view of a backed AnnData"):
        streamtrain.annotate(part, model, **QUIET)
    result = streamtrain.annotate(part, model, inplace=False, **QUIET)
    with pytest.raises(InputError, match="view of a backed AnnData"):
        result.to_adata()
    with pytest.raises(InputError, match=r"copy=True would load all of '.*cells.h5ad'"):
        streamtrain.annotate(backed, model, copy=True, **QUIET)
    backed.file.close()
    assert (tmp_path / "cells.h5ad").read_bytes() == stored


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_annotate__view_becomes_an_anndata_of_its_own(model, adata):
    part = adata[100:200, ::-1]
    assert part.is_view
    result = streamtrain.annotate(part, model, **QUIET)
    assert not part.is_view
    assert result.adata is part
    assert "predicted_labels" not in adata.obs
    streamtrain.annotate(adata, model, **QUIET)
    expected = adata.obs["predicted_labels"][100:200].tolist()
    assert part.obs["predicted_labels"].tolist() == expected


def test_annotate__neither_copies_x_nor_makes_it_dense(model):
    n_obs, n_vars = 20_000, 2_000
    X = sp.random_array((n_obs, n_vars), density=0.02, format="csr", dtype=np.float32, rng=0)
    names = [*model.features, *(f"other {i}" for i in range(n_vars - len(model.features)))]
    cells = ad.AnnData(X, var=pd.DataFrame(index=names))
    stored, options = cells.X.data.nbytes, {"memory": "300MB", "check_expression": False} | QUIET
    streamtrain.annotate(cells[:100].copy(), model, **options)
    tracemalloc.start()
    streamtrain.annotate(cells, model, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Blocks within the budget, and some bytes a cell; X is 9.6 MB (dense, in float32: 160).
    assert stored == 3_200_000
    assert peak < 60e6


def test_result__of_other_cells_by_now(model, adata):
    result = streamtrain.annotate(adata, model, inplace=False, **QUIET)
    adata._inplace_subset_obs(np.arange(10))
    with pytest.raises(InputError, match=r"adata has 10 cells by now, and 600 were annotated"):
        result.to_adata()


def test_result__confidence_of_the_majority(model, adata):
    options = {"majority_voting": True, "over_clustering": "n", "inplace": False} | QUIET
    adata.obs["n"] = np.arange(600) // 10
    result = streamtrain.annotate(adata, model, min_prop=0.35, probabilities=True, **options)
    voted = result.predicted_labels["majority_voting"]
    assert "Heterogeneous" in set(voted)
    assert len(set(voted)) > 1
    result.to_adata(insert_conf_by="majority_voting")
    rows = zip(result.probability_matrix.iterrows(), voted, strict=True)
    expected = [p[label] if label in p.index else p.max() for (_, p), label in rows]
    np.testing.assert_array_equal(adata.obs["conf_score"], expected)
    with pytest.raises(InputError, match="insert_conf_by must be"):
        result.to_adata(insert_conf_by="over_clustering")
    plain = streamtrain.annotate(adata, model, inplace=False, **QUIET)
    with pytest.raises(InputError, match="there is no majority_voting: pass majority_voting=True"):
        plain.to_adata(insert_conf_by="majority_voting")
    with pytest.raises(InputError, match="no labels 'predicted_label': did you mean 'predicted_"):
        plain.summary_frequency("predicted_label")


def test_result__tables(tmp_path, model, adata):
    result = streamtrain.annotate(adata, model, inplace=False, **MATRICES, **QUIET)
    result.to_table(tmp_path, prefix="a_")
    result.to_table(tmp_path, prefix="a_", xlsx=True)
    sheets = pd.read_excel(tmp_path / "a_annotation_result.xlsx", sheet_name=None, index_col=0)
    names = ["predicted_labels", "decision_matrix", "probability_matrix"]
    for name, sheet in zip(names, sheets, strict=True):
        expected = getattr(result, name).astype(str if name == names[0] else float)
        for found in (
            pd.read_csv(tmp_path / f"a_{name}.csv", index_col=0, float_precision="round_trip"),
            sheets[sheet],
        ):
            pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    assert list(sheets) == ["Predicted Labels", "Decision Matrix", "Probability Matrix"]
    for xlsx in (False, True):
        with pytest.raises(InputError, match="exists: pass overwrite=True"):
            result.to_table(tmp_path, prefix="a_", xlsx=xlsx)
        result.to_table(tmp_path, prefix="a_", xlsx=xlsx, overwrite=True)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        result.to_table(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    streamtrain.annotate(adata, model, **QUIET).to_table(tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["predicted_labels.csv"]


def test_result__too_large_for_excel(tmp_path, model, adata, monkeypatch):
    result = streamtrain.annotate(adata, model, **QUIET)
    monkeypatch.setattr(module, "_MOST_ROWS", 599)
    with pytest.raises(InputError, match=r"a sheet of Excel holds 599 cells .* there are 600 and"):
        result.to_table(tmp_path, xlsx=True)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setattr(module, "_MOST_ROWS", 600)
    with pytest.raises(InputError, match="xlsx=True needs openpyxl: pip install openpyxl"):
        result.to_table(tmp_path, xlsx=True)
    assert not list(tmp_path.iterdir())


def test_result__shown(model, adata):
    result = streamtrain.annotate(adata, model, scores=True, **QUIET)
    assert repr(result).splitlines() == [
        "streamtrain annotation of 600 cells",
        "    predicted_labels: predicted_labels",
        "    decision_matrix: 5 cell types",
        "    probability_matrix: not kept (probabilities=True)",
    ]
    most = result.summary_frequency().iloc[0]
    page = result._repr_html_()
    (row,) = [r for r in page.split("<tr>") if f"<td>{most['celltype']}</td>" in r]
    mean = result.conf_score[adata.obs["predicted_labels"] == most["celltype"]].mean()
    assert f"<td>{most['counts']}</td>" in row
    assert f"<td>{most['counts'] / 600:.1%}</td>" in row
    assert f"<td>{mean:.3f}</td>" in row
    labels = pd.DataFrame({"predicted_labels": pd.Categorical(["<b>x</b>"] * 600)})
    hostile = AnnotationResult(adata, labels, result.conf_score)._repr_html_()
    assert "<b>" not in hostile
    assert "&lt;b&gt;" in hostile


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "settings",
    [{"max_iter": 50}, {"use_SGD": True, "mini_batch": True, "epochs": 1, "batch_size": 400}],
)
def test_result__is_celltypists(tmp_path, settings):
    """Labels, matrices, columns and tables of celltypist.annotate by the exported model."""
    celltypist = pytest.importorskip("celltypist", reason="the test extra brings celltypist")
    path = DATA / "pbmc3k.h5ad"
    if not path.exists():
        pytest.skip(f"needs {path}")
    import scanpy as sc

    cells = ad.read_h5ad(path)[::3].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    cells.obs["cluster"] = [f"c{i % 50}" for i in range(cells.n_obs)]
    with warnings.catch_warnings():  # that 50 steps do not suffice, which does not matter here
        warnings.simplefilter("ignore")
        model = streamtrain.train(cells, "cell_type", dtype="float64", **settings, **QUIET)
    model.to_celltypist(tmp_path / "model.pkl")
    options = {"majority_voting": True, "over_clustering": "cluster", "min_prop": 0.4}
    given = cells.copy()
    theirs = celltypist.annotate(given, model=str(tmp_path / "model.pkl"), **options)
    ours = streamtrain.annotate(cells, model, inplace=False, **MATRICES, **options, **QUIET)
    assert ours.cell_count == theirs.cell_count
    for name in ("predicted_labels", "over_clustering", "majority_voting"):
        expected = theirs.predicted_labels[name].astype(str)
        pd.testing.assert_series_equal(ours.predicted_labels[name].astype(str), expected)
    assert ours.predicted_labels.columns.tolist() == theirs.predicted_labels.columns.tolist()
    # Both sum in float64, in another order; scores of SGD go into the thousands.
    for name in ("decision_matrix", "probability_matrix"):
        one, other = getattr(ours, name), getattr(theirs, name)
        pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-9)
    counts = [r.summary_frequency("majority_voting") for r in (ours, theirs)]
    counts = [c.sort_values(["counts", "celltype"], ignore_index=True) for c in counts]
    pd.testing.assert_frame_equal(*counts)
    for more in (
        {},
        {"insert_prob": True, "prefix": "p_", "insert_conf_by": "majority_voting"},
        {"insert_decision": True, "insert_labels": False, "insert_conf": False},
    ):
        one, other = ours.to_adata(**more), theirs.to_adata(**more)
        assert one.obs.columns.tolist() == other.obs.columns.tolist()
        for name in one.obs.columns:
            if one.obs[name].dtype.kind == "f":
                np.testing.assert_allclose(one.obs[name], other.obs[name], rtol=1e-9, atol=1e-9)
            else:
                assert one.obs[name].astype(str).tolist() == other.obs[name].astype(str).tolist()
    for result, folder in ((ours, tmp_path / "a"), (theirs, tmp_path / "b")):
        folder.mkdir()
        result.to_table(str(folder), prefix="x_")
        result.to_table(str(folder), prefix="x_", xlsx=True)
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "a").iterdir()}
    one, other = (pd.read_csv(tmp_path / f / "x_decision_matrix.csv", index_col=0) for f in "ab")
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_annotate__types_with_a_slash_are_stored(tmp_path, model, adata):
    """CellTypist's models have such: "Macrophage/monocyte"."""
    names = ["B/NK", *model.cell_types[1:]]
    model = Model(model.dataset.assign_coords(cell_type=np.array(names, object)))
    streamtrain.annotate(adata, model, probabilities=True, **QUIET)
    adata.write_h5ad(tmp_path / "annotated.h5ad")
    again = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert again.uns["streamtrain"]["cell_types"].tolist() == names
    np.testing.assert_array_equal(again.obsm["probabilities"], adata.obsm["probabilities"])
