"""Against CellTypist itself on real data: as good on held-out donors, and the same annotations."""

import warnings

import anndata as ad
import numpy as np
import pytest

import streamtrain
from tests import atlas
from tests.stores import DATA

celltypist = pytest.importorskip("celltypist", reason="the test extra brings celltypist")
# CellTypist's and scanpy's own deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*igraph.*", "ignore::UserWarning"),
]

# Data, obs column of the groups, and those held out.
SETS = {
    "mouse_mammary_mca": ("batch", 2),
    "mouse_bm_paul15": ("batch", 4),
}


def load(name):
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return ad.read_h5ad(path)


def normalised(adata):
    import scanpy as sc

    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def held_out(adata, key, n):
    groups = adata.obs[key].astype(str)
    test = groups.isin(sorted(groups.unique())[-n:]).to_numpy()
    return adata[~test].copy(), adata[test].copy()


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_quality__at_least_celltypists_own(name, balance):
    """Macro-F1 over three seeds within noise: three standard errors of the difference.

    One epoch instead of ten keeps CellTypist's own training short; docs/figures.md has five epochs,
    on more sets.
    """
    train, query = held_out(normalised(load(name)), *SETS[name])
    options = atlas.MINI | {"batch_size": 500, "epochs": 1, "balance_cell_type": balance}
    ours, theirs = [], []
    for seed in range(3):
        model = streamtrain.train(train, "cell_type", random_state=seed, progress=False, **options)
        labels = streamtrain.predict(model, query, progress=False)["predicted_labels"]
        ours.append(streamtrain.evaluate(query.obs["cell_type"], labels).macro_f1)
        np.random.seed(seed)  # noqa: NPY002 - CellTypist draws from NumPy's global generator
        other = celltypist.train(train.copy(), "cell_type", random_state=seed, **options)
        found = celltypist.annotate(query.copy(), model=other).predicted_labels
        labels = found["predicted_labels"].astype(str)
        theirs.append(streamtrain.evaluate(query.obs["cell_type"], labels).macro_f1)
    noise = 3 * np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 3)
    assert np.mean(ours) >= np.mean(theirs) - noise


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["pbmc3k", "worm_neuron_sci"])
def test_annotate__celltypist_agrees_on_every_cell(tmp_path, name, dtype):
    """CellTypist annotates with the exported pickle as predict() does: labels and probabilities."""
    counts = load(name)
    model = streamtrain.train(
        counts, "cell_type", normalize="log1p", **atlas.MINI, epochs=1, dtype=dtype, progress=False
    )
    model.to_celltypist(tmp_path / "model.pkl")
    query = normalised(counts)
    theirs = celltypist.annotate(query.copy(), model=str(tmp_path / "model.pkl"))
    ours = streamtrain.predict(model, query, probabilities=True, progress=False)
    labels = theirs.predicted_labels["predicted_labels"].astype(str)
    assert ours["predicted_labels"].astype(str).tolist() == labels.tolist()
    # Both sum in float64; with float32 weights scikit-learn sums in float32 where the query is.
    np.testing.assert_allclose(
        ours[list(model.cell_types)],
        theirs.probability_matrix,
        rtol=0,
        atol=1e-6 if dtype == "float64" else 1e-4,
    )


FIELD = sorted(p.name for p in (DATA / "models").glob("*.pkl")) or ["none here"]


@pytest.fixture(scope="module")
def some_cells():
    return normalised(load("pbmc3k")[::80])


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELD)
def test_annotate__models_of_the_field(tmp_path, some_cells, name):
    """CellTypist annotates with our re-export, and with the file itself if it can, as predict()."""
    path = DATA / "models" / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    ours = streamtrain.predict(path, some_cells, probabilities=True, progress=False)
    model = streamtrain.Model.load(path)
    model.to_celltypist(tmp_path / "again.pkl")
    logistic = model.settings["use_SGD"] is False
    for file in [tmp_path / "again.pkl", *[path] * logistic]:
        with warnings.catch_warnings():  # scikit-learn's, of a file that an older one wrote
            warnings.simplefilter("ignore", UserWarning)
            loaded = celltypist.models.Model.load(str(file))
        theirs = celltypist.annotate(some_cells.copy(), model=loaded)
        labels = theirs.predicted_labels["predicted_labels"].astype(str)
        assert ours["predicted_labels"].astype(str).tolist() == labels.tolist()
        # Both sum in float64, in another order.
        np.testing.assert_allclose(
            ours[list(model.classes_)], theirs.probability_matrix, rtol=0, atol=1e-6
        )


LABELLED = sorted(p.stem for p in DATA.glob("*.h5ad")) or ["none here"]


@pytest.mark.parametrize("name", LABELLED)
def test_train__each_real_set_in_counts_and_log1p(tmp_path, name):
    """Every labelled set trains from disk in both forms, and fits its own cells better than chance.

    float32 log1p values differ in the last bit between scanpy's and our normalisation.
    """
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"needs {DATA}")
    options = atlas.MINI | {"batch_size": 200, "batch_number": 10, "epochs": 1, "progress": False}
    raw = streamtrain.train(path, "cell_type", normalize="log1p", **options)
    truth = streamtrain.open_source(path).obs("cell_type")
    table = streamtrain.predict(raw, path, normalize="log1p", progress=False)
    share = streamtrain.evaluate(truth, table["predicted_labels"]).accuracy
    assert share > truth.value_counts(normalize=True).iloc[0]
    if ad.read_h5ad(path, backed="r").n_obs > 4000:
        return  # the log1p file takes long to write
    normalised(ad.read_h5ad(path)).write_h5ad(tmp_path / "log1p.h5ad")
    log1p = streamtrain.train(tmp_path / "log1p.h5ad", "cell_type", **options)
    assert log1p.features.tolist() == raw.features.tolist()
    np.testing.assert_allclose(log1p.dataset["mean"], raw.dataset["mean"], rtol=1e-5)
