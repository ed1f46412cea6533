"""Streamed prediction against the rules written out densely, and its outputs."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

import streamtrain
from streamtrain import InputError, Model
from tests import atlas, stores

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(
        atlas.make(), "cell_type", batch_size=100, batch_number=4, epochs=2, dtype="float64",
        **QUIET,
    )  # fmt: skip


def by_hand(model, adata):
    """CellTypist's scores: shared genes scaled and clipped at 10, absent genes left out."""
    shared = [g for g in model.features if g in set(adata.var_names)]
    data = model.dataset.sel(gene=shared)
    X = adata[:, shared].X.toarray().astype(np.float64)
    centre = data["mean"].to_numpy() if data.attrs["with_mean"] else 0
    Z = np.minimum((X - centre) / data["scale"].to_numpy(), 10)
    return Z @ data["coef"].to_numpy().T + data["intercept"].to_numpy()


def query(**more):
    """Other cells, fewer genes, in another order, and one that the model does not know."""
    adata = atlas.make(seed=9, **more)
    names = adata.var_names.tolist()
    adata.var_names = ["Unknown", *names[1:]]
    return adata[:, ::-1][:, 5:].copy()


def test_predict__equals_the_rules(model):
    adata = query()
    table = streamtrain.predict(model, adata, probabilities=True, **QUIET)
    scores = by_hand(model, adata)
    assert table.index.tolist() == adata.obs_names.tolist()
    assert table["predicted_labels"].tolist() == model.cell_types[scores.argmax(1)].tolist()
    # 1e-9: float64 in both, another order of sums.
    np.testing.assert_allclose(table["conf_score"], expit(scores).max(1), atol=1e-9)
    np.testing.assert_allclose(table[list(model.cell_types)], expit(scores), atol=1e-9)


def test_predict__two_types(tmp_path):
    model = streamtrain.train(atlas.make(n_types=2), "cell_type", batch_size=100, **QUIET)
    adata = query(n_types=2)
    table = streamtrain.predict(model, adata, **QUIET)
    assert (
        table["predicted_labels"].tolist()
        == model.cell_types[by_hand(model, adata).argmax(1)].tolist()
    )


def test_predict__without_centring():
    model = streamtrain.train(
        atlas.make(), "cell_type", batch_size=100, with_mean=False, epochs=2, **QUIET
    )
    table = streamtrain.predict(model, query(), **QUIET)
    scores = by_hand(model, query())
    assert table["predicted_labels"].tolist() == model.cell_types[scores.argmax(1)].tolist()


def test_predict__prob_match(model):
    adata = query()
    table = streamtrain.predict(model, adata, mode="prob match", p_thres=0.3, **QUIET)
    probability = expit(by_hand(model, adata))
    expected = ["|".join(model.cell_types[p > 0.3]) or "Unassigned" for p in probability]
    assert table["predicted_labels"].tolist() == expected
    assert {"Unassigned", *model.cell_types} <= set(expected)
    assert any("|" in label for label in expected)


def test_predict__counts(model):
    adata = atlas.make(seed=4)
    normalised = streamtrain.predict(model, adata, **QUIET)
    raw = streamtrain.predict(model, adata, layer="counts", normalize="log1p", **QUIET)
    assert (normalised["predicted_labels"] == raw["predicted_labels"]).mean() > 0.995


def test_predict__cells_of_a_block_are_bounded(model, monkeypatch):
    """A budget for few cells at a time gives the same table."""
    import sys

    seen = []
    module = sys.modules["streamtrain.predict"]
    real = module.annotate
    monkeypatch.setattr(
        module, "annotate", lambda scores, *more: seen.append(len(scores)) or real(scores, *more)
    )
    monkeypatch.setattr(module, "_block", lambda *_: (10**6, 37))
    found = streamtrain.predict(model, query(), **QUIET)
    assert max(seen) == 37
    monkeypatch.undo()
    pd.testing.assert_frame_equal(found, streamtrain.predict(model, query(), **QUIET))


def test_predict__a_type_named_like_a_column():
    adata = atlas.make(n_types=2)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B": "cell"})
    model = streamtrain.train(adata, "cell_type", batch_size=100, epochs=1, **QUIET)
    with pytest.raises(InputError, match="cell type 'cell' has the name of another column"):
        streamtrain.predict(model, adata, probabilities=True, **QUIET)
    assert len(streamtrain.predict(model, adata, **QUIET)) == 600


@pytest.mark.parametrize("kind", stores.KINDS)
def test_predict__files_agree_with_the_frame(tmp_path, model, kind, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["streamtrain.predict"], "BLOCK", 3000)  # several blocks
    adata = query()
    frame = streamtrain.predict(model, adata, probabilities=True, **QUIET)
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    path = stores.write(adata, tmp_path, "h5ad")
    for name, read in (("p.parquet", pd.read_parquet), ("p.csv", pd.read_csv)):
        out = tmp_path / name
        assert streamtrain.predict(model, path, probabilities=True, out=out, **QUIET) is None
        table = read(out).set_index("cell")
        assert table.index.tolist() == frame.index.tolist()
        assert table["predicted_labels"].tolist() == frame["predicted_labels"].tolist()
        # CSV writes 17 digits; scores do not depend on the block.
        np.testing.assert_allclose(table.iloc[:, 1:], frame.iloc[:, 1:], rtol=1e-12)


def test_predict__where(model):
    adata = atlas.make(seed=4)
    some = streamtrain.predict(model, adata, where="donor in ['D1', 'D3']", **QUIET)
    every = streamtrain.predict(model, adata, **QUIET)
    chosen = adata.obs["donor"].isin(["D1", "D3"]).to_numpy()
    pd.testing.assert_frame_equal(some, every[chosen])


def test_predict__saved_model(tmp_path, model):
    model.save(tmp_path / "m.zarr")
    a = streamtrain.predict(tmp_path / "m.zarr", query(), **QUIET)
    pd.testing.assert_frame_equal(a, streamtrain.predict(Model.load(tmp_path / "m.zarr"), query()))


def test_predict__sum_off_warns(model, caplog):
    adata = query()  # lacks genes, so no cell sums to 10,000
    with caplog.at_level(logging.WARNING):
        streamtrain.predict(model, adata, **QUIET)
    assert " of 600 cells do not sum to 10,000" in caplog.text


def test_predict__few_shared_genes_warn(model, caplog):
    with caplog.at_level(logging.WARNING):
        streamtrain.predict(model, atlas.make()[:, :20].copy(), **QUIET)
    assert re.search(r"only \d\d of the model's \d+ genes are there", caplog.text)


def renamed():
    adata = atlas.make()
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    return adata


def nan():
    adata = atlas.make()
    adata.X.data[5] = np.nan
    return adata


BAD = {
    "no shared gene": (renamed, {}, "none of its 120 genes is in the model; .*'ENSG0'.*gene_key"),
    "counts": (atlas.make, {"layer": "counts"}, "no value exceeds 9.22; cell .* normalize='log1p'"),
    "log1p as counts": (atlas.make, {"normalize": "log1p"}, "normalised to 10,000 already"),
    "NaN": (nan, {}, "is not finite"),
    "mode": (atlas.make, {"mode": "best"}, "mode must be 'best match' or 'prob match'"),
    "threshold": (atlas.make, {"p_thres": 2}, "p_thres must be a probability"),
    "suffix": (atlas.make, {"out": "p.txt"}, "must end in .parquet or .csv"),
    "folder": (atlas.make, {"out": "/nonexistent/p.csv"}, "/nonexistent"),
    "memory": (atlas.make, {"memory": "1MB"}, "too small"),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD.keys())
def test_predict__bad_input(model, make, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, make(), **QUIET, **options)


def test_predict__nothing_half_written(tmp_path, model, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["streamtrain.predict"], "BLOCK", 3000)
    adata = atlas.make()
    adata.X.data[-1] = np.nan  # in the last block
    for name in ("p.parquet", "p.csv"):
        with pytest.raises(InputError, match="not finite"):
            streamtrain.predict(model, adata, out=tmp_path / name, **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_predict__existing_output(tmp_path, model):
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        streamtrain.predict(model, query(), out=out, **QUIET)
    assert out.read_text() == "mine"
    streamtrain.predict(model, query(), out=out, overwrite=True, **QUIET)
    assert len(pd.read_csv(out)) == 600
