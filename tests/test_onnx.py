"""The ONNX graph, run by onnxruntime, against predict(): labels, probabilities and scores."""

import json
import sys

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import streamtrain
from streamtrain import InputError, Model, onnx_export
from tests import atlas
from tests.stores import DATA

onnx = pytest.importorskip("onnx", reason="the test extra brings onnx")
ort = pytest.importorskip("onnxruntime", reason="the test extra brings onnxruntime")

QUIET = {"progress": False}
SMALL = atlas.MINI | QUIET | {"batch_size": 100, "epochs": 1}
CALIBRATION = {"temperature": 30.0, "offset": -1.0}


def exported(model, path, **options):
    """Write the graph, have onnx check it, and open it."""
    model.to_onnx(path, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def dense(adata, genes):
    """The input: a column for each gene, NaN where the cells lack it."""
    at = adata.var_names.get_indexer(genes)
    X = adata.X[:, np.maximum(at, 0)].toarray().astype(np.float32)
    X[:, at < 0] = np.nan
    return X


def assert_as_predicted(model, session, adata, inputs=None, **options):
    """Labels are the same; the outputs in float32 differ by their rounding alone."""
    inputs = inputs or {"X": dense(adata, model.features)}
    wanted = ["label", "probabilities", "scores"]
    label, *found = session.run(wanted, inputs)
    types = list(model.cell_types)
    for kind, values in zip(wanted[1:], found, strict=True):
        table = streamtrain.predict(model, adata, **{kind: True}, **options, **QUIET)
        assert label.tolist() == table["predicted_labels"].astype(str).tolist()
        assert values.dtype == np.float32
        expected = table[types].to_numpy()
        # Half a step of float32, relatively; and where a score is a small difference of terms as
        # large as `size`, what their order in float64 makes of it.
        size = np.abs(expected).max() if kind == "scores" else 1
        np.testing.assert_allclose(values, expected, rtol=2**-23, atol=1e-9 * size)


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("n_types", [2, 5, 120])
def test_graph__as_predicted(tmp_path, n_types, with_mean, calibration):
    """Other cells than those of training, which lack some genes and have others."""
    cells = atlas.make(1500 if n_types > 5 else 600, n_types=n_types)
    model = streamtrain.train(cells, "cell_type", with_mean=with_mean, **SMALL)
    model = Model(model.dataset.assign_attrs(calibration=calibration))
    query = atlas.make(seed=9, n_types=n_types)
    query.var_names = ["Unknown", *query.var_names[1:]]
    query = query[:, ::-1][:, 5:].copy()
    session = exported(model, tmp_path / "model.onnx")
    assert np.isnan(dense(query, model.features)).any()
    assert_as_predicted(model, session, query)


def test_graph__of_counts(tmp_path):
    """Normalised inside, by the counts of all genes; a cell without counts is one of zeros."""
    cells = atlas.make()
    model = streamtrain.train(cells[:, 20:], "cell_type", check_expression=False, **SMALL)
    counts = atlas.make(seed=3)
    counts.X = counts.layers["counts"].toarray()
    counts.X[5] = 0
    total = counts.X.sum(1, keepdims=True)
    counts.X = sp.csr_matrix(counts.X)
    session = exported(model, tmp_path / "model.onnx", normalize=True)
    inputs = {"X": dense(counts, model.features), "total": total.astype(np.float32)}
    assert total[5] == 0
    assert_as_predicted(model, session, counts, inputs, normalize="log1p")


def test_graph__clips_above_and_not_below(tmp_path):
    model = Model.build(
        coef=[[1.0, 2.0]], intercept=[0.5], cell_types=["a", "b"], genes=["g", "h"],
        mean=[1.0, 1.0], var=[0.01, 0.01], scale=[0.1, 0.1],
    )  # fmt: skip
    session = exported(model, tmp_path / "model.onnx")
    X = np.array([[9.0, 1.0], [0.0, 1.0], [1.0, np.nan], [-4.0, 1.0]], np.float32)
    label, scores = session.run(["label", "scores"], {"X": X})
    np.testing.assert_allclose(scores[:, 1], [10.5, -9.5, 0.5, -49.5], rtol=1e-6)
    assert label.tolist() == ["b", "a", "b", "a"]


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [None, CALIBRATION])
@pytest.mark.parametrize("name", ["pbmc3k", "mouse_bm_paul15"])
def test_graph__real_cells(tmp_path, name, calibration):
    path = DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"needs {path}")
    import scanpy as sc

    cells = ad.read_h5ad(path)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    model = streamtrain.train(cells, "cell_type", **atlas.MINI, epochs=1, **QUIET)
    model = Model(model.dataset.assign_attrs(calibration=calibration))
    assert_as_predicted(model, exported(model, tmp_path / "model.onnx"), cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["98_f_model_0", "RIRA_Immune_v2"])
def test_graph__models_of_the_field(tmp_path, name):
    path, data = DATA / "models" / f"{name}.pkl", DATA / "pbmc3k.h5ad"
    if not (path.exists() and data.exists()):
        pytest.skip(f"needs {path} and {data}")
    import scanpy as sc

    cells = ad.read_h5ad(data)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    model = Model.load(path)
    assert_as_predicted(model, exported(model, tmp_path / "model.onnx"), cells)


def test_file__tells_what_it_takes(tmp_path):
    model = streamtrain.train(atlas.make(), "cell_type", details="of a test", **SMALL)
    model = Model(model.dataset.assign_attrs(calibration=CALIBRATION))
    session = exported(model, tmp_path / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["genes"]) == list(model.features)
    assert json.loads(told["cell_types"]) == list(model.cell_types)
    assert json.loads(told["calibration"]) == CALIBRATION
    assert json.loads(told["description"])["details"] == "of a test"
    assert told["streamtrain_version"] == streamtrain.__version__
    assert told["normalize"] == (
        "X: log1p of counts normalised to 10,000 per cell, over all genes of the cell; NaN for "
        "genes that are lacking"
    )
    (x,) = session.get_inputs()
    assert (x.name, x.type, x.shape) == ("X", "tensor(float)", ["cells", len(model.features)])
    shapes = {out.name: (out.type, out.shape) for out in session.get_outputs()}
    assert shapes == {
        "label": ("tensor(string)", ["cells"]),
        "probabilities": ("tensor(float)", ["cells", 5]),
        "scores": ("tensor(float)", ["cells", 5]),
    }
    loaded = onnx.load(tmp_path / "model.onnx")
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 15)]
    model.to_onnx(tmp_path / "counts.onnx", normalize=np.bool_(True))
    told = ort.InferenceSession(tmp_path / "counts.onnx").get_modelmeta().custom_metadata_map
    assert told["normalize"].startswith("X: raw counts; `total` has the counts of all genes")


def test_file__of_words_that_are_no_utf8(tmp_path):
    details = "caf\udce9"  # as a shell in Latin-1 gives them
    model = streamtrain.train(atlas.make(), "cell_type", details=details, **SMALL)
    told = exported(model, tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(told["description"])["details"] == details


def test_file__holds_weights_in_the_models_precision(tmp_path):
    """Float32 takes half the file, and is made float64 where it is used."""
    sizes = {}
    for dtype in ("float32", "float64"):
        model = streamtrain.train(atlas.make(), "cell_type", dtype=dtype, **SMALL)
        model.to_onnx(tmp_path / f"{dtype}.onnx")
        sizes[dtype] = (tmp_path / f"{dtype}.onnx").stat().st_size
    assert sizes["float64"] - sizes["float32"] > 3.5 * model.dataset["coef"].size


def test_file__refused(tmp_path, monkeypatch):
    model = streamtrain.train(atlas.make(), "cell_type", **SMALL)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists: pass overwrite=True"):
        model.to_onnx(path)
    with pytest.raises(InputError, match="normalize must be True or False; got 'log1p'"):
        model.to_onnx(path, normalize="log1p", overwrite=True)
    with pytest.raises(InputError, match=r"is an ONNX graph, from which no model is read: load"):
        Model.load(path)
    with monkeypatch.context() as changed:
        changed.setattr(onnx_export, "_MOST", 1000)
        with pytest.raises(InputError, match=r"an ONNX file holds 2 GiB at most, and the model"):
            model.to_onnx(path, overwrite=True)
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "onnx", None)
        with pytest.raises(InputError, match=r"by the package onnx: pip install 'streamtrain\[onn"):
            model.to_onnx(path, overwrite=True)
    assert path.read_bytes() == b"mine"
    model.to_onnx(path, overwrite=True)
    first = path.read_bytes()
    model.to_onnx(path, overwrite=True)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
