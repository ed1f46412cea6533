"""Logistic regression on real cells: CellTypist at scikit-learn's defaults, and at a small tol."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.preprocessing import StandardScaler

import streamtrain
from tests.parity.conftest import OLD, python
from tests.parity.run import Run
from tests.parity.table import ROWS
from tests.parity.test_parity import objective, same_scaling, scores
from tests.stores import DATA

SETS = ("mouse_bm_paul15", "pancreas_4studies", "worm_neuron_sci")
N_OBS, N_VARS = 1300, 3000
TIGHT = {"tol": 1e-7, "max_iter": 20_000}


def halves(name):
    """Cells to train on and others, log1p-normalised, on the genes that most cells express."""
    counts = ad.read_h5ad(DATA / f"{name}.h5ad")
    order = np.random.default_rng(0).permutation(counts.n_obs)[: 2 * N_OBS]
    genes = np.sort(np.argsort(-counts.X.getnnz(axis=0), kind="stable")[:N_VARS])
    kept = counts[order, genes]
    X = kept.X.toarray().astype(np.float64)
    X = np.log1p(X / np.maximum(X.sum(axis=1, keepdims=True), 1) * 1e4)
    for half in (slice(None, N_OBS), slice(N_OBS, None)):
        full = X[half].any(axis=1)
        part = ad.AnnData(sp.csr_matrix(X[half][full]), var=kept.var[[]])
        part.obs["cell_type"] = kept.obs["cell_type"].astype(str).to_numpy()[half][full]
        yield part


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Folder of the cells, and CellTypist at work on all sets."""
    if missing := [name for name in SETS if not (DATA / f"{name}.h5ad").exists()]:
        pytest.skip(f"needs {', '.join(missing)} in {DATA}")
    folder = tmp_path_factory.mktemp("real")
    cases = []
    for name in SETS:
        for part, adata in zip(("train", "query"), halves(name), strict=True):
            adata.write_h5ad(folder / f"{name}-{part}.h5ad")
        cases += [
            {
                "id": f"{name}/{tol}", "X": f"path:{name}-train.h5ad", "genes": "none",
                "labels": "column:cell_type", "options": options, "seed": 0, "modes": [],
            }
            for tol, options in (("default", {}), ("tight", TIGHT))
        ]  # fmt: skip
    run = Run(folder, "real", python(OLD), cases)
    yield folder, run
    run.stop()


@pytest.mark.slow
@pytest.mark.parametrize("row", [r for r in ROWS if r.compare == "real"], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_real(real, name, row):
    """At the default tol it is the optimum, which CellTypist finds at a small one alone."""
    folder, run = real
    parts = [ad.read_h5ad(folder / f"{name}-{part}.h5ad") for part in ("train", "query")]
    options = {"progress": False, "dtype": "float64"} | row.options
    model = streamtrain.train(parts[0], "cell_type", **options)
    done = run.done()
    theirs, tight = done[f"{name}/default"], done[f"{name}/tight"]
    same_scaling(model, theirs, 1e-9)
    X = [part.X.toarray() for part in parts]
    expressed = X[0].sum(axis=0) != 0
    scaler = StandardScaler().fit(X[0][:, expressed])
    Z = [np.minimum(scaler.transform(x[:, expressed]), 10) for x in X]
    truth = [part.obs["cell_type"].astype(str).to_numpy() for part in parts]
    codes = np.searchsorted(model.cell_types.astype(str), truth[0])
    weights = [(m.coef, m.intercept) for m in (theirs, tight)]
    weights.insert(0, (model.coef_, model.intercept_))
    ours, default, minimum = (objective(*w, Z[0], codes, row.options) for w in weights)
    assert (ours <= default * (1 + 1e-6)).all()
    np.testing.assert_allclose(ours, minimum, rtol=1e-5)  # both within about 1e-6
    above = default / minimum - 1
    assert 0.01 < above.min() < above.max() < 5  # docs/parity.md: 2% to 340%
    labels = [model.cell_types[scores(Z[1], *w).argmax(axis=1)] for w in weights]
    assert np.mean(labels[0] == labels[2]) >= 0.999
    assert 0.85 < np.mean(labels[0] == labels[1]) < 1  # there: up to 11% other labels
    right = [np.mean(found == truth[1]) for found in labels]
    assert right[0] >= right[1]
    trained = [scores(Z[0], *w).argmax(axis=1) for w in weights]
    assert np.mean(trained[0] == trained[1]) >= 0.999
