"""Streamed prediction against the rules written out densely, and its outputs."""

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import expit, softmax
from threadpoolctl import threadpool_limits

import streamtrain
from streamtrain import InputError, Model, annotating, querying
from tests import atlas, stores

QUIET = {"progress": False}
SMALL = atlas.MINI | QUIET | {"batch_size": 100, "epochs": 2}
VOTED = ["predicted_labels", "over_clustering", "majority_voting", "conf_score"]


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(atlas.make(), "cell_type", batch_number=4, dtype="float64", **SMALL)


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
    model = streamtrain.train(
        atlas.make(n_types=2), "cell_type", **atlas.MINI, batch_size=100, **QUIET
    )
    adata = query(n_types=2)
    table = streamtrain.predict(model, adata, **QUIET)
    assert (
        table["predicted_labels"].tolist()
        == model.cell_types[by_hand(model, adata).argmax(1)].tolist()
    )


def test_predict__without_centring():
    model = streamtrain.train(atlas.make(), "cell_type", with_mean=False, **SMALL)
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


@pytest.mark.parametrize("n_types", [2, 5])
def test_predict__calibrated(n_types):
    """Probabilities are the softmax over the temperature; labels and scores stay."""
    adata = query(n_types=n_types)
    options = SMALL | {"dtype": "float64", "folds": 3, "step": 2.0, "average": True}
    plain = streamtrain.train(atlas.make(n_types=n_types), "cell_type", **options)
    options["calibrate"] = True
    model = streamtrain.train(atlas.make(n_types=n_types), "cell_type", **options)
    scores, types = by_hand(model, adata), list(model.cell_types)
    assert model.calibration.temperature != 1
    expected = softmax(scores / model.calibration.temperature, axis=1)
    found = streamtrain.predict(model, adata, probabilities=True, **QUIET)
    np.testing.assert_allclose(found[types], expected, atol=1e-9)
    np.testing.assert_allclose(found[types].sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found["conf_score"], expected.max(axis=1), atol=1e-9)
    before = streamtrain.predict(plain, adata, scores=True, **QUIET)
    after = streamtrain.predict(model, adata, scores=True, **QUIET)
    assert before["predicted_labels"].tolist() == after["predicted_labels"].tolist()
    assert found["predicted_labels"].tolist() == after["predicted_labels"].tolist()
    pd.testing.assert_frame_equal(before[types], after[types])
    several = streamtrain.predict(model, adata, mode="prob match", p_thres=0.3, **QUIET)
    joined = ["|".join(model.cell_types[p > 0.3]) or "Unassigned" for p in expected]
    assert several["predicted_labels"].tolist() == joined


def test_predict__counts(model):
    adata = atlas.make(seed=4)
    normalised = streamtrain.predict(model, adata, **QUIET)
    raw = streamtrain.predict(model, adata, layer="counts", normalize="log1p", **QUIET)
    assert (normalised["predicted_labels"] == raw["predicted_labels"]).mean() > 0.995


def test_predict__whatever_threads_blas_has():
    """On a cluster's workers it has one."""
    rng = np.random.default_rng(0)
    weights, genes = rng.normal(size=(300, 4000)), [f"g{j}" for j in range(4000)]
    model = Model.build(
        coef=weights, intercept=np.zeros(300), cell_types=[f"t{k}" for k in range(300)],
        genes=genes, mean=rng.random(4000), var=np.ones(4000), scale=np.ones(4000),
    )  # fmt: skip
    adata = ad.AnnData(sp.random(9, 4000, 0.1, "csr", rng=rng), var=pd.DataFrame(index=genes))
    tables = []
    for n in (1, 2):
        with threadpool_limits(n):
            tables.append(
                streamtrain.predict(model, adata, scores=True, check_expression=False, **QUIET)
            )
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_predict__cells_of_a_block_are_bounded(model, monkeypatch):
    """A budget for few cells at a time gives the same table."""
    seen = []
    real = annotating.annotate
    monkeypatch.setattr(
        annotating,
        "annotate",
        lambda scores, *more: seen.append(len(scores)) or real(scores, *more),
    )
    monkeypatch.setattr(querying, "blocks_within", lambda *_: (10**6, 37))
    found = streamtrain.predict(model, query(), **QUIET)
    assert max(seen) == 37
    monkeypatch.undo()
    pd.testing.assert_frame_equal(found, streamtrain.predict(model, query(), **QUIET))


def test_predict__a_type_named_like_a_column():
    adata = atlas.make(n_types=2)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B": "cell"})
    model = streamtrain.train(adata, "cell_type", **SMALL)
    with pytest.raises(InputError, match="cell type 'cell' has the name of another column"):
        streamtrain.predict(model, adata, probabilities=True, **QUIET)
    assert len(streamtrain.predict(model, adata, **QUIET)) == 600


@pytest.mark.parametrize("kind", stores.KINDS)
def test_predict__files_agree_with_the_frame(tmp_path, model, kind, monkeypatch):

    monkeypatch.setattr(annotating, "BLOCK", 3000)  # several blocks
    adata = query()
    frame = streamtrain.predict(model, adata, probabilities=True, **QUIET)
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    path = stores.write(adata, tmp_path, "h5ad")
    readers = {"p.parquet": pd.read_parquet, "p.csv": pd.read_csv, "p.csv.gz": pd.read_csv}
    for name, read in readers.items():
        out = tmp_path / name
        assert streamtrain.predict(model, path, probabilities=True, out=out, **QUIET) is None
        table = read(out).set_index("cell")
        assert table.index.tolist() == frame.index.tolist()
        assert table["predicted_labels"].tolist() == frame["predicted_labels"].tolist()
        # CSV writes 17 digits; scores do not depend on the block.
        np.testing.assert_allclose(table.iloc[:, 1:], frame.iloc[:, 1:], rtol=1e-12)


def test_predict__scores(model):
    adata = query()
    table = streamtrain.predict(model, adata, scores=True, **QUIET)
    # 1e-9: float64 in both, another order of sums.
    np.testing.assert_allclose(table[list(model.cell_types)], by_hand(model, adata), rtol=1e-9)
    np.testing.assert_allclose(table["conf_score"], expit(table[model.cell_types]).max(axis=1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model):
    celltypist = pytest.importorskip("celltypist", reason="the test extra brings celltypist")
    path = tmp_path_factory.mktemp("celltypist") / "m.pkl"
    model.to_celltypist(path)
    return lambda adata, **options: celltypist.annotate(adata.copy(), model=str(path), **options)


def clusters(n=600, seed=3):
    """Small clusters that mix types, with ties; the first is nearly all of the cells."""
    return np.random.default_rng(seed).integers(0, 80, n) * (np.arange(n) > 200)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # scanpy's, of igraph
@pytest.mark.parametrize("min_prop", [0, 0.6])
@pytest.mark.parametrize("mode", ["best match", "prob match"])
def test_predict__as_celltypist(model, exported, mode, min_prop):
    adata = query()
    adata.obs["leiden"] = pd.Categorical(clusters().astype(str))
    options = {
        "mode": mode, "p_thres": 0.3, "majority_voting": True, "over_clustering": "leiden",
        "min_prop": min_prop,
    }  # fmt: skip
    theirs = exported(adata, **options)
    ours = streamtrain.predict(model, adata, **options, **QUIET)
    assert ours.columns.tolist() == VOTED
    assert ours.index.tolist() == theirs.predicted_labels.index.tolist()
    for name in VOTED[:3]:
        found, expected = ours[name].astype(str), theirs.predicted_labels[name].astype(str)
        assert found.tolist() == expected.tolist(), name
    # 1e-9: both in float64, another order of sums.
    theirs.adata.obs = theirs.adata.obs.drop(columns="leiden")
    expected = theirs.to_adata().obs["conf_score"]
    np.testing.assert_allclose(ours["conf_score"], expected, rtol=0, atol=1e-9)
    assert ("Heterogeneous" in ours["majority_voting"].tolist()) == (min_prop > 0)
    assert ours["majority_voting"].dtype == theirs.predicted_labels["majority_voting"].dtype


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_predict__as_celltypist_on_real_cells(tmp_path):
    celltypist = pytest.importorskip("celltypist", reason="the test extra brings celltypist")
    path = stores.DATA / "pbmc3k.h5ad"
    if not path.exists():
        pytest.skip(f"needs {path}")
    adata = ad.read_h5ad(path)[:600]
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 10].copy()
    adata.X = sp.csr_matrix(atlas.log1p_10k(adata.X.toarray().astype(np.float64)))
    model = streamtrain.train(
        adata,
        "cell_type",
        **atlas.MINI,
        batch_size=100,
        batch_number=5,
        epochs=2,
        dtype="float64",
        **QUIET,
    )
    model.to_celltypist(tmp_path / "m.pkl")
    options = {
        "mode": "prob match", "majority_voting": True, "over_clustering": clusters().tolist(),
        "min_prop": 0.3,
    }  # fmt: skip
    theirs = celltypist.annotate(adata.copy(), model=str(tmp_path / "m.pkl"), **options)
    ours = streamtrain.predict(model, adata, probabilities=True, **options, **QUIET)
    for name in VOTED[:3]:
        expected = theirs.predicted_labels[name].astype(str).tolist()
        assert ours[name].astype(str).tolist() == expected
    # 1e-9: both in float64, another order of sums.
    np.testing.assert_allclose(
        ours[list(model.cell_types)], theirs.probability_matrix, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("form", ["column", "list", "file"])
def test_predict__clusters_in_any_form(tmp_path, model, form):
    adata = query()
    given = clusters()
    adata.obs["leiden"] = given
    (tmp_path / "clusters.txt").write_text("\n".join(map(str, given)) + "\n")
    chosen = {"column": "leiden", "list": given.tolist(), "file": tmp_path / "clusters.txt"}[form]
    table = streamtrain.predict(
        model, adata, majority_voting=True, over_clustering=chosen, **QUIET
    )  # fmt: skip
    assert table["over_clustering"].astype(int).tolist() == given.tolist()
    top = table.groupby(given)["predicted_labels"].agg(lambda g: g.value_counts().max())
    same = table["predicted_labels"].astype(str) == table["majority_voting"].astype(str)
    assert same.groupby(given).sum().tolist() == top.tolist()


@pytest.mark.parametrize("mode", ["best match", "prob match"])
def test_predict__voted_files_agree_with_the_frame(tmp_path, model, mode, monkeypatch):
    monkeypatch.setattr(querying, "blocks_within", lambda *_: (3000, 37))
    adata = query()
    adata.obs["leiden"] = clusters()
    options = {
        "majority_voting": True, "over_clustering": "leiden", "probabilities": True, "mode": mode,
        "where": "donor != 'D2'", "min_prop": 0.4,
    }  # fmt: skip
    frame = streamtrain.predict(model, adata, **options, **QUIET)
    assert frame.columns.tolist() == [*VOTED, *model.cell_types]
    for name, read in (("p.parquet", pd.read_parquet), ("p.csv", pd.read_csv)):
        streamtrain.predict(model, adata, out=tmp_path / name, **options, **QUIET)
        table = read(tmp_path / name).set_index("cell")
        assert table.columns.tolist() == frame.columns.tolist()
        assert table.index.tolist() == frame.index.tolist()
        for column in VOTED[:3]:
            assert table[column].tolist() == frame[column].tolist()
        # CSV writes 17 digits.
        np.testing.assert_allclose(table.iloc[:, 3:], frame.iloc[:, 3:], rtol=1e-12)


def test_predict__names_of_genes_and_cells_from_files(tmp_path, model):
    adata = query()
    (tmp_path / "genes.txt").write_text("\n".join(adata.var_names))
    (tmp_path / "cells.txt").write_text("\n".join(f"c{i}" for i in range(600)))
    table = streamtrain.predict(
        model, adata.X, tmp_path / "genes.txt", cells=tmp_path / "cells.txt", **QUIET
    )
    expected = streamtrain.predict(model, adata, **QUIET)
    assert table.index.tolist() == [f"c{i}" for i in range(600)]
    pd.testing.assert_frame_equal(table.reset_index(drop=True), expected.reset_index(drop=True))


def test_predict__text_tables_are_counts(tmp_path, model, text):
    adata, path = text
    pd.read_csv(path, index_col=0).T.to_csv(tmp_path / "genes.tsv.gz", sep="\t")
    expected = streamtrain.predict(model, adata, layer="counts", normalize="log1p", **QUIET)
    for name, transposed in (("cells.csv", False), ("genes.tsv.gz", True)):
        found = streamtrain.predict(model, tmp_path / name, transpose_input=transposed, **QUIET)
        pd.testing.assert_frame_equal(found, expected)


@pytest.fixture
def text(tmp_path):
    """A text table of counts; returns the AnnData as well."""
    adata = atlas.make(seed=4)
    counts = adata.layers["counts"].toarray().astype(int)
    table = pd.DataFrame(counts, index=adata.obs_names, columns=adata.var_names)
    table.to_csv(tmp_path / "cells.csv")
    return adata, tmp_path / "cells.csv"


def test_predict__text_that_is_log1p_is_warned_of_as_in_training(tmp_path, model, caplog):
    adata = atlas.make(seed=4)
    adata.to_df().to_csv(tmp_path / "cells.csv")
    assert len(streamtrain.predict(model, tmp_path / "cells.csv", **QUIET)) == 600
    assert "600 of 600 cells hold values that are no integers" in caplog.text
    with pytest.raises(InputError, match="normalised to 10,000 already"):
        streamtrain.predict(model, tmp_path / "cells.csv", normalize="log1p", **QUIET)


@pytest.mark.parametrize("what", ["genes", "cells", "over_clustering"])
def test_predict__names_a_missing_file_before_text_is_parsed(text, model, monkeypatch, what):
    def opened(*_, **__):
        raise AssertionError

    monkeypatch.setattr(querying, "open_expression", opened)
    voting = {"majority_voting": True} if what == "over_clustering" else {}
    with pytest.raises(InputError, match=f"{what} must be .*; there is no file 'no.txt'"):
        streamtrain.predict(model, text[1], **{what: "no.txt"}, **voting, **QUIET)


def test_predict__never_replaces_what_it_reads(text, model):
    adata, path = text
    folder = path.parent
    (folder / "link.csv").symlink_to(path)
    (folder / "clusters.csv").write_text("a\n" * 600)
    (folder / "names.csv").write_text("\n".join(adata.obs_names))
    store = stores.write(adata, folder, "zarr3")
    model.save(folder / "model.zarr")
    options = {"overwrite": True, "majority_voting": True, **QUIET}
    given = {"over_clustering": folder / "clusters.csv", "cells": folder / "names.csv"}
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for X, out, what in (
        (path, path, "X"), (folder / "link.csv", path, "X"), (path, folder / "link.csv", "X"),
        (path, folder / "clusters.csv", "over_clustering"), (path, folder / "names.csv", "cells"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"is what {what} names, and would replace it"):
            streamtrain.predict(folder / "model.zarr", X, out=out, **given, **options)
    with pytest.raises(InputError, match="is no AnnData, and not overwritten by one"):
        streamtrain.predict(model, store, out=folder / "model.zarr", overwrite=True)
    with pytest.raises(InputError, match="is what genes names"):
        streamtrain.predict(
            model, adata.X, folder / "names.csv", out=folder / "names.csv", **options
        )
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_predict__unchecked_takes_x_as_it_is(model):
    adata = query()
    adata.raw = adata.copy()
    adata.X = adata.X * 3  # above 9.22
    found = streamtrain.predict(model, adata, check_expression=False, scores=True, **QUIET)
    np.testing.assert_allclose(found[list(model.cell_types)], by_hand(model, adata), rtol=1e-9)
    adata.raw = None
    again = streamtrain.predict(model, adata, check_expression=False, scores=True, **QUIET)
    pd.testing.assert_frame_equal(again, found)


def test_predict__takes_raw_where_x_is_scaled(model):
    adata = query()
    expected = streamtrain.predict(model, adata, **QUIET)
    adata.raw = adata.copy()
    adata.X = adata.X.toarray() - 1
    pd.testing.assert_frame_equal(streamtrain.predict(model, adata, **QUIET), expected)


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
    "suffix": (atlas.make, {"out": "p.txt"}, "must end in .parquet, .csv, .csv.gz, .h5ad or .zarr"),
    "two outputs": (atlas.make, {"out": "p.csv", "in_place": True}, "either out .* or in_place"),
    "in place": (atlas.make, {"in_place": True}, "X is a AnnData: assign the DataFrame"),
    "copy": (atlas.make, {"out": "p.h5ad"}, "X is a AnnData: assign the DataFrame"),
    "prefix": (atlas.make, {"prefix": "x_"}, "prefix='x_' is for obs columns"),
    "share": (atlas.make, {"min_prop": 1.5}, "min_prop must be a share"),
    "no voting": (atlas.make, {"over_clustering": "donor"}, "pass majority_voting=True"),
    "two details": (atlas.make, {"probabilities": True, "scores": True}, "choose one"),
    "cell names": (atlas.make, {"cells": ["a", "b"]}, "one name for each cell; got 2 for 600"),
    "no clusters": (
        atlas.make,
        {"majority_voting": True, "over_clustering": "donors"},
        "no obs column 'donors' and there is no such file: did you mean 'donor'",
    ),
    "folder": (atlas.make, {"out": "/nonexistent/p.csv"}, "/nonexistent"),
    "memory": (atlas.make, {"memory": "1MB"}, "too small"),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD.keys())
def test_predict__bad_input(model, make, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, make(), **QUIET, **options)


def test_predict__nothing_half_written(tmp_path, model, monkeypatch):

    monkeypatch.setattr(annotating, "BLOCK", 3000)
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


def test_predict__says_what_it_ignores(model, caplog):
    adata = query()
    adata.obs["clusters"] = np.arange(len(adata)) % 9
    streamtrain.predict(model, adata, p_thres=0.9, min_prop=0.5, progress=False)
    assert "p_thres is ignored: it is for mode='prob match'" in caplog.messages
    assert "min_prop is ignored: it is for majority_voting=True" in caplog.messages
    caplog.clear()
    voting = {"majority_voting": True, "over_clustering": "clusters", "mode": "prob match"}
    streamtrain.predict(model, adata, p_thres=0.9, min_prop=0.5, progress=False, **voting)
    assert "ignored" not in caplog.text
