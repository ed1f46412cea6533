"""Whole trainings: against CellTypist's steps done densely, and against each other."""

import importlib
import logging
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

import streamtrain
from streamtrain import InputError
from streamtrain.cells import labelled_cells
from streamtrain.quotas import Quotas
from streamtrain.sampling import Plan, dropped_genes
from streamtrain.scaling import RunningMoments, standard_deviation
from streamtrain.sources import open_source
from tests import atlas, stores

importlib.import_module("streamtrain.train")  # into sys.modules: the attribute is the function
SMALL = atlas.MINI | {"batch_size": 100, "batch_number": 4, "epochs": 3, "progress": False}


def equal(a, b):
    """Both models are the same to the bit."""
    for name in ("coef", "intercept", "mean", "var", "scale"):
        np.testing.assert_array_equal(a.dataset[name], b.dataset[name], err_msg=name)
    assert a.features.tolist() == b.features.tolist()
    assert a.cell_types.tolist() == b.cell_types.tolist()


def celltypist_by_hand(X, codes, n_classes, options, sparse=False, draws=None):
    """celltypist.train's steps on a dense matrix, with the cells that our plan draws.

    `draws` are options of the plan alone.
    """
    expressed = X.sum(axis=0) != 0
    scaler = StandardScaler(with_mean=options.get("with_mean", True))
    Z = scaler.fit_transform(X[:, expressed])
    Z[Z > 10] = 10
    plan = Plan(
        codes.astype(np.int32), n_classes, batch_size=options["batch_size"],
        batch_number=options["batch_number"], epochs=options["epochs"],
        balance=options.get("balance_cell_type", False), shuffle=options.get("shuffle", True),
        seed=options.get("random_state", 0), **draws or {},
    )  # fmt: skip
    own = ("alpha", "learning_rate", "eta0", "power_t", "fit_intercept")
    classifier = SGDClassifier(
        loss="log_loss", shuffle=False, **{k: options[k] for k in own if k in options}
    )
    if sparse:
        Z = sp.csr_matrix(Z)
    for epoch in range(plan.epochs):
        order = plan.epoch(epoch)
        for start in range(0, len(order), plan.batch_size):
            batch = order[start : start + plan.batch_size]
            classifier.partial_fit(Z[batch], codes[batch], classes=np.arange(n_classes))
    return scaler, classifier, expressed


# 1e-6 relative in float64: sums run in another order, and saturated steps magnify the difference.
@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"balance_cell_type": True, "random_state": 3},
        {"alpha": 0.01},
        {"learning_rate": "constant", "eta0": 0.003},
        {"learning_rate": "invscaling", "eta0": 0.01, "power_t": 0.25},
        {"fit_intercept": False},
    ],
    ids=str,
)
def test_train__equals_celltypists_steps(n_types, with_mean, more):
    adata = atlas.make(n_types=n_types, dtype=np.float64)
    adata.X = adata.X.toarray()  # dense, so that scikit-learn and we both step the intercept fully
    options = SMALL | more | {"with_mean": with_mean, "shuffle": False}
    model = streamtrain.train(adata, "cell_type", dtype="float64", **options)
    codes = pd.Categorical(adata.obs["cell_type"].astype(str)).codes
    scaler, classifier, expressed = celltypist_by_hand(adata.X, codes, n_types, options)
    assert not expressed.all()
    assert model.features.tolist() == adata.var_names[expressed].tolist()
    assert model.cell_types.tolist() == sorted(adata.obs["cell_type"].unique())
    for ours, theirs in (
        (model.coef_, classifier.coef_),
        (model.intercept_, classifier.intercept_),
    ):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    # 1e-12: float64 moments of the same values, merged in another order.
    np.testing.assert_allclose(model.dataset["var"], scaler.var_, rtol=1e-12)
    np.testing.assert_allclose(model.dataset["scale"], scaler.scale_, rtol=1e-12)
    np.testing.assert_allclose(model.dataset["mean"], adata.X[:, expressed].mean(0), rtol=1e-12)
    assert model.dataset.attrs["t"] == classifier.t_


def drawing():
    """An atlas whose donors mix and whose cells have weights, some zero; codes of its types."""
    adata = atlas.make(dtype=np.float64)
    adata.X = adata.X.toarray()
    rng = np.random.default_rng(2)
    adata.obs["donor"] = pd.Categorical(
        rng.choice(["D0", "D1", "D2", None], 600, p=[0.6, 0.2, 0.1, 0.1])
    )
    adata.obs["weight"] = np.where(rng.random(600) < 0.2, 0, rng.lognormal(0, 1, 600))
    return adata, pd.Categorical(adata.obs["cell_type"].astype(str)).codes.astype(np.int32)


# Settings, and the plan's options that they stand for; `donor` and `weight` are filled in.
DRAWS = [
    ({"replace": True, "batch_number": 8}, {"replace": True}),
    ({"replace": True, "balance_cell_type": True}, {"replace": True}),
    ({"quotas": "equal", "batch_number": 8}, {"quotas": Quotas.of("equal", list("abcde"), 100)}),
    (
        {"quotas": {"B": 7, "T CD4": 33}, "replace": True},
        {"quotas": Quotas(np.array([7, 20, 20, 33, 20]), np.empty(0, int), 0), "replace": True},
    ),
    ({"batch_key": "donor", "balance_cell_type": True}, {"batch_key": "donor"}),
    (
        {"batch_key": "donor", "quotas": "equal"},
        {"batch_key": "donor", "quotas": Quotas.of("equal", list("abcde"), 100)},
    ),
    ({"sampling_weight": "weight"}, {"weight": "weight"}),
    (
        {"sampling_weight": "weight", "replace": True, "balance_cell_type": True},
        {"weight": "weight", "replace": True},
    ),
]


@pytest.mark.parametrize(("more", "draws"), DRAWS, ids=[str(more) for more, _ in DRAWS])
def test_train__takes_the_cells_of_the_plan(more, draws, caplog):
    caplog.set_level("INFO", "streamtrain")
    adata, codes = drawing()
    # Small steps, which do not magnify rounding, however often a cell repeats.
    rate = {"learning_rate": "constant", "eta0": 0.003}
    options = SMALL | rate | more
    model = streamtrain.train(adata, "cell_type", dtype="float64", **options)
    donors = adata.obs["donor"].cat.codes.to_numpy()
    columns = {
        "donor": np.where(donors < 0, 3, donors).astype(np.uint16),  # a missing one is one more
        "weight": adata.obs["weight"].to_numpy(),
    }
    plan = {name: columns[v] if isinstance(v, str) else v for name, v in draws.items()}
    _, classifier, _ = celltypist_by_hand(adata.X, codes, 5, options, draws=plan)
    for ours, theirs in (
        (model.coef_, classifier.coef_),
        (model.intercept_, classifier.intercept_),
    ):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    assert {name: model.settings[name] for name in more} == more
    logged = [r.getMessage() for r in caplog.records if "cells drawn" in r.msg % r.args]
    drawn = options["batch_number"] * 100
    assert [words.split(",")[0] for words in logged] == [
        f"epoch {e}: {drawn} cells drawn" for e in (1, 2, 3)
    ]


def test_train__weights_and_batches_follow_the_cells():
    """Cells that are left out, or held out, take theirs along; an array is as good as a column."""
    adata, _ = drawing()
    draws = {"batch_key": "donor", "balance_cell_type": True, "sampling_weight": "weight"}
    draws |= {"replace": True, "early_stopping": True, "tol": None}
    part = adata[adata.obs["n"] >= 100].copy()
    reference = streamtrain.train(part, "cell_type", **SMALL | draws)
    equal(streamtrain.train(adata, "cell_type", where="n >= 100", **SMALL | draws), reference)
    draws["sampling_weight"] = part.obs["weight"].to_numpy()
    model = streamtrain.train(part, "cell_type", **SMALL | draws)
    equal(model, reference)
    assert model.settings["sampling_weight"] == "given as values"
    draws["sampling_weight"] = [f"{w}" for w in part.obs["weight"]]  # text, as from a file
    equal(streamtrain.train(part, "cell_type", **SMALL | draws), reference)
    del draws["sampling_weight"]
    other = streamtrain.train(part, "cell_type", **SMALL | draws)
    assert not np.array_equal(other.coef_, reference.coef_)


def weighing(**changes):
    """An atlas with obs column w: 1 but for the rows, or the type, given."""
    adata = atlas.make()
    adata.obs["w"] = 1.0
    for rows, value in changes.items():
        chosen = adata.obs["cell_type"] == "NK" if rows == "NK" else adata.obs["n"] >= int(rows[1:])
        adata.obs.loc[chosen, "w"] = value
    return adata


UNDRAWABLE = {
    "unknown type": (atlas.make, {"quotas": {"b": 2}}, "quotas names 'b', which is no cell type"),
    "no such batch": (
        atlas.make,
        {"quotas": "equal", "batch_key": "donr"},
        "no obs column 'donr' and there is no such file: did you mean 'donor'",
    ),
    "batch of one": (
        atlas.make,
        {"quotas": "equal", "batch_key": "n"},
        "batch_key='n' has 600 values for 600 cells: name a column of donors",
    ),
    "negative": (
        lambda: weighing(_590=-1.0),
        {"sampling_weight": "w"},
        r"finite numbers of at least 0; cell 590 \('cell-590'\) has -1.0 and 10 cells have such",
    ),
    "missing": (lambda: weighing(_599=np.nan), {"sampling_weight": "w"}, "has nan and 1 cells"),
    "infinite": (lambda: weighing(_0=np.inf), {"sampling_weight": "w"}, "has inf and 600 cells"),
    "text": (atlas.make, {"sampling_weight": "donor"}, r"cell 0 \('cell-0'\) has D0 and 600 cells"),
    "zero": (lambda: weighing(_0=0.0), {"sampling_weight": "w"}, "are all zero: name another"),
    "huge": (lambda: weighing(_0=1e308), {"sampling_weight": "w"}, "are too large to add up"),
    "too few": (
        lambda: weighing(_300=0.0),
        {"sampling_weight": "w"},
        "is above 0 in 300 cells, and an epoch draws 400 without replacement: pass replace=True",
    ),
    "a type of none": (
        lambda: weighing(NK=0.0),
        {"sampling_weight": "w", "balance_cell_type": True, "replace": True},
        "sampling_weight is 0 in every cell of 'NK': raise it there, or leave out such types",
    ),
    "more draws than memory": (
        atlas.make,
        {"replace": True, "batch_number": 10**7, "memory": "1GB"},
        "memory=1 GB is too small for 5 cell types .* at least 40.* GB is needed, as an epoch "
        "draws 1,000,000,000: raise it .--memory., or lower batch_number",
    ),
    "too short": (
        atlas.make,
        {"sampling_weight": np.ones(3)},
        "sampling_weight must have one value for each cell; got 3 for 600 cells",
    ),
    "to select genes": (
        atlas.make,
        {"use_SGD": False, "feature_selection": True, "top_genes": 9, "quotas": {"b": 2}},
        "quotas names 'b', which is no cell type",
    ),
}


@pytest.mark.parametrize(("make", "options", "message"), UNDRAWABLE.values(), ids=UNDRAWABLE.keys())
def test_train__what_cannot_be_drawn_is_refused_before_reading(make, options, message, monkeypatch):
    monkeypatch.setattr(sys.modules["streamtrain.local"], "first_pass", None)
    with pytest.raises(InputError, match=message):
        streamtrain.train(make(), "cell_type", **SMALL | options)


def test_train__sparse_without_centring_equals_celltypists_steps():
    """scikit-learn steps the intercept by a hundredth on sparse input, and so do we."""
    adata = atlas.make(dtype=np.float64)
    options = SMALL | {"with_mean": False, "shuffle": False}
    model = streamtrain.train(adata, "cell_type", dtype="float64", **options)
    codes = pd.Categorical(adata.obs["cell_type"].astype(str)).codes
    _, classifier, _ = celltypist_by_hand(adata.X.toarray(), codes, 5, options, sparse=True)
    for ours, theirs in (
        (model.coef_, classifier.coef_),
        (model.intercept_, classifier.intercept_),
    ):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


@pytest.mark.parametrize("form", stores.FORMATS)
@pytest.mark.parametrize("kind", stores.KINDS)
def test_train__same_model_from_any_store(tmp_path, form, kind):
    adata = atlas.make()
    reference = streamtrain.train(adata, "cell_type", **SMALL)
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    path = stores.write(adata, tmp_path, form)
    equal(streamtrain.train(path, "cell_type", **SMALL), reference)


BUDGETS = {
    "one thread": {"n_jobs": 1},
    "three threads": {"n_jobs": 3},
    "120 MB": {"memory": "120MB"},
    "1 GB": {"memory": 10**9},
}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
def test_train__same_model_on_any_budget(budget):
    adata = atlas.make(n_obs=3000, n_vars=300)
    options = SMALL | {"batch_size": 500, "balance_cell_type": True, "average": True}
    equal(
        streamtrain.train(adata, "cell_type", **options, **budget),
        streamtrain.train(adata, "cell_type", **options),
    )


def test_train__same_model_for_any_block(tmp_path, monkeypatch):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    reference = streamtrain.train(path, "cell_type", **SMALL)
    module = sys.modules["streamtrain.local"]
    monkeypatch.setattr(sys.modules["streamtrain.first_pass"], "BLOCK", 2000)
    monkeypatch.setattr(module, "_KEPT", 1e-6)  # cells go to scratch
    equal(streamtrain.train(path, "cell_type", **SMALL), reference)


def test_train__seed():
    adata = atlas.make()
    a, b, c = (streamtrain.train(adata, "cell_type", random_state=s, **SMALL) for s in (1, 1, 2))
    equal(a, b)
    assert not np.array_equal(a.coef_, c.coef_)


def test_train__in_memory_inputs_agree():
    adata = atlas.make()
    reference = streamtrain.train(adata, "cell_type", **SMALL)
    dense, genes = adata.X.toarray(), adata.var_names
    labels = adata.obs["cell_type"]
    import dask.array as da

    for X in (
        adata.X, sp.csr_array(adata.X), adata.X.tocsc(), sp.csc_array(adata.X), dense,
        da.from_array(dense, chunks=(100, 50)),
    ):  # fmt: skip
        equal(streamtrain.train(X, labels, genes, **SMALL), reference)
    frame = pd.DataFrame(dense, columns=genes)
    equal(streamtrain.train(frame, list(labels), **SMALL), reference)


def test_train__backed_anndata_with_new_labels(tmp_path):
    import anndata as ad

    adata = atlas.make()
    path = stores.write(adata, tmp_path, "h5ad")
    backed = ad.read_h5ad(path, backed="r")
    backed.obs["mine"] = backed.obs["cell_type"].astype(str).str.lower()
    model = streamtrain.train(backed, "mine", **SMALL)
    reference = streamtrain.train(adata, "cell_type", **SMALL)
    np.testing.assert_array_equal(model.coef_, reference.coef_)
    backed.file.close()


def test_train__counts_are_normalised_while_reading():
    adata = atlas.make()
    log1p = streamtrain.train(adata, "cell_type", **SMALL)
    raw = streamtrain.train(adata, "cell_type", layer="counts", normalize="log1p", **SMALL)
    # Both round log1p to float32 once: from float64 in both, so to the last bit but for the sum.
    np.testing.assert_allclose(raw.dataset["mean"], log1p.dataset["mean"], rtol=1e-6)
    np.testing.assert_allclose(raw.coef_, log1p.coef_, rtol=1e-2, atol=1e-2)


def test_train__where_and_gene_key():
    adata = atlas.make()
    some = streamtrain.train(
        adata, "cell_type", where="donor != 'D1' and n >= 5", gene_key="feature_name", **SMALL
    )
    chosen = adata[(adata.obs["donor"] != "D1") & (adata.obs["n"] >= 5)].copy()
    chosen.var_names = chosen.var["feature_name"]
    equal(some, streamtrain.train(chosen, "cell_type", **SMALL))
    assert some.provenance["n_cells"] == chosen.n_obs


def test_train__unlabelled_cells():
    adata = atlas.make()
    adata.obs.loc[adata.obs_names[3:10], "cell_type"] = np.nan
    with pytest.raises(InputError, match="7 of 600 cells have no label in 'cell_type'; pass drop"):
        streamtrain.train(adata, "cell_type", **SMALL)
    dropped = streamtrain.train(adata, "cell_type", drop_unlabeled=True, **SMALL)
    labelled = adata[adata.obs["cell_type"].notna()].copy()
    equal(dropped, streamtrain.train(labelled, "cell_type", **SMALL))


def test_train__duplicate_genes_are_made_unique(caplog):
    adata = atlas.make()
    names = adata.var_names.to_numpy().copy()
    names[5] = names[4]
    adata.var_names = names
    with caplog.at_level(logging.WARNING):
        model = streamtrain.train(adata, "cell_type", **SMALL)
    assert f"{names[4]}-1" in model.features
    assert "1 " in caplog.text


def test_train__average_keeps_the_last_weights():
    adata = atlas.make()
    plain = streamtrain.train(adata, "cell_type", **SMALL)
    averaged = streamtrain.train(adata, "cell_type", average=True, **SMALL)
    np.testing.assert_array_equal(averaged.dataset["coef_last"], plain.dataset["coef"])
    assert not np.array_equal(averaged.coef_, plain.coef_)
    assert "coef_last" not in plain.dataset


def test_train__model_says_what_made_it(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    model = streamtrain.train(path, "cell_type", details="for a test", **SMALL)
    assert model.settings["batch_size"] == 100
    assert model.settings["random_state"] == 0
    assert model.description["details"] == "for a test"
    assert model.description["number_celltypes"] == 5
    (source,) = model.provenance["sources"]
    assert source["name"] == str(path)
    assert source["n_obs"] == 600
    assert source["bytes"] == path.stat().st_size
    assert model.provenance["labels"] == "cell_type"
    assert model.provenance["packages"]["numpy"] == np.__version__
    assert int(model.dataset["n_cells"].sum()) == 600


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_train__scratch_is_given_back(tmp_path):
    """Nameless files hold the space for as long as they are open."""
    open_there = []

    def look(_):
        files = [p for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
        links = [os.readlink(p) for p in files]  # noqa: PTH115 - the links name deleted files
        open_there.append(sum(link.startswith(str(tmp_path)) for link in links))
        return real(_)

    real = standard_deviation
    module = sys.modules["streamtrain.train"]
    adata = atlas.make()
    adata.X = adata.X.tocsc()
    source = open_source(adata, scratch=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamtrain.features.standard_deviation", look)
        patch.setattr(sys.modules["streamtrain.local"], "_KEPT", 1e-6)  # to scratch, too
        patch.setattr(module, "open_source", lambda *_, **__: source)  # kept beyond the run
        streamtrain.train(adata, "cell_type", scratch=str(tmp_path), **SMALL)
    look(RunningMoments.empty(1))
    assert open_there[0] >= 5  # the transposed matrix and the drawn cells
    assert open_there[-1] == 0
    assert list(tmp_path.iterdir()) == []


def test_train__input_is_not_modified(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    before = path.read_bytes()
    streamtrain.train(path, "cell_type", **SMALL)
    assert path.read_bytes() == before


def spoil(**changes):
    """An atlas with some values of X replaced: {value at (cell 40, its second gene)}."""
    adata = atlas.make()
    adata.X.data[adata.X.indptr[40] + 1] = changes["value"]
    return adata


def relabel(values, column="cell_type"):
    adata = atlas.make()
    adata.obs[column] = values
    return adata


def odd_first():
    adata = atlas.make()
    adata.X.data[: adata.X.indptr[1]] *= 1.01
    return adata


def another_sum():
    adata = atlas.make()
    adata.X.data = np.log1p(np.expm1(adata.X.data) / 3)
    return adata


def soft_counts(n_obs=600):
    """Counts corrected to fractions; one cell happens to look log1p-normalised to 10,000."""
    adata = atlas.make(n_obs=n_obs)
    counts = adata.layers["counts"].astype(np.float64)
    counts.data *= 0.93
    counts.data[counts.indptr[50] : counts.indptr[51]] = adata.X.data[
        adata.X.indptr[50] : adata.X.indptr[51]
    ]
    adata.X = counts
    return adata


@pytest.mark.parametrize("block", [10**3, 10**7])
def test_train__fractional_counts_are_no_logarithms(monkeypatch, caplog, block):
    monkeypatch.setattr(sys.modules["streamtrain.first_pass"], "BLOCK", block)
    model = streamtrain.train(soft_counts(), "cell_type", normalize="log1p", **SMALL)
    assert np.isfinite(model.coef_).all()
    assert "600 of 600 cells hold values that are no integers" in caplog.text


def test_train__budgets_are_checked_at_the_first_block(monkeypatch):
    """Before the pass, which may take hours: the scratch that the drawn cells will take."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    module = sys.modules["streamtrain.local"]
    monkeypatch.setattr(
        sys.modules["streamtrain.first_pass"], "MomentsPass", lambda *_: SimpleNamespace()
    )  # would fail if used
    monkeypatch.setattr(module, "_KEPT", 1e-6)  # so that cells do not stay in memory
    with pytest.raises(InputError, match=r"training needs .* of scratch, and .* has 10 bytes free"):
        streamtrain.train(atlas.make(), "cell_type", **SMALL)


BAD = {
    "NaN": (lambda: spoil(value=np.nan), {}, r"gene 'GENE\d+' in cell 40 \('cell-40'\) is not fin"),
    "infinite": (lambda: spoil(value=np.inf), {}, r"cell 40 \('cell-40'\) is not finite \(inf\)"),
    "negative": (
        lambda: spoil(value=-1),
        {},
        r"gene 'GENE\d+' in cell 40 \('cell-40'\) is negative",
    ),
    "one cell off": (
        lambda: spoil(value=9.0),
        {},
        r"is not 10,000 in 1 cells of 600 \(cell 40 \('cell-40'\): ",
    ),
    "counts as log1p": (atlas.make, {"layer": "counts"}, "integers: for raw counts pass normalize"),
    "log1p as counts, an odd cell first": (
        odd_first,
        {"normalize": "log1p"},
        "599 of 600 cells are log1p-norm",
    ),
    "log1p of another sum as counts": (
        another_sum,
        {"normalize": "log1p"},
        "hold fractions and none a value above 9.22, as after a logarithm",
    ),
    "log1p as counts": (
        atlas.make,
        {"normalize": "log1p"},
        "600 of 600 cells are log1p-normalised to 10,000 already",
    ),
    "no such column": (atlas.make, {"labels": "celltype"}, "did you mean 'cell_type'"),
    "one class": (
        lambda: relabel("B"),
        {},
        "needs two cell types at least; 'cell_type' holds only",
    ),
    "all missing": (
        lambda: relabel(np.nan),
        {"drop_unlabeled": True},
        "none of 600 cells has a label in 'cell_type'",
    ),
    "labels too few": (atlas.make, {"labels": ["a", "b"]}, "got 2 labels for 600 cells"),
    "batch too large": (atlas.make, {"batch_size": 600}, "got 600 cells and batch_size=600: lower"),
    "no such layer": (atlas.make, {"layer": "count"}, "did you mean 'counts'"),
    "no such gene key": (atlas.make, {"gene_key": "feature"}, "did you mean 'feature_name'"),
    "nobody selected": (atlas.make, {"where": "n > 600"}, "selects none of 600 cells"),
    "memory too small": (atlas.make, {"memory": "1MB"}, "is too small .* at least .* is needed"),
    "batch above memory": (
        lambda: atlas.make(6000, 1000),
        {"memory": "115MB", "batch_size": 5500},
        "too small for batches of 5,500 cells",
    ),
    "too few genes to select": (
        atlas.make,
        {"feature_selection": True},
        "keeps the top_genes=300 of each cell type, and there are only 120 genes",
    ),
    "averaged optimum": (atlas.make, {"use_SGD": False, "average": True}, "average is for use_SGD"),
    "unknown type weighs": (atlas.make, {"class_weight": {"b": 2}}, "names 'b', which is no cell"),
    "one group": (
        lambda: relabel("D0", column="donor"),
        {"early_stopping": True, "validation_groups": "donor"},
        "none of its 1 groups can be held out",
    ),
    "no model": (atlas.make, {"warm_start": 3}, "warm_start must be a Model or the path of one"),
    "no labels": (atlas.make, {"labels": None}, "needs both X and labels"),
    "scratch missing": (atlas.make, {"scratch": "/nonexistent"}, "scratch must be a folder"),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD.keys())
def test_train__bad_input(make, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.train(make(), **({"labels": "cell_type"} | SMALL | options))


def test_train__unknown_keyword():
    with pytest.raises(TypeError, match=r"no argument 'batchsize': did you mean 'batch_size'"):
        streamtrain.train(atlas.make(), "cell_type", batchsize=3)


def test_train__missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"atlas\.h5ad"):
        streamtrain.train(tmp_path / "atlas.h5ad", "cell_type")


def test_train__check_can_be_switched_off():
    adata = atlas.make()
    adata.X = adata.X * 2
    model = streamtrain.train(adata, "cell_type", check_expression=False, **SMALL)
    assert np.isfinite(model.coef_).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("n_types", [2, 5])
def test_train__celltypist_loads_and_agrees(tmp_path, n_types):
    """The export annotates in CellTypist as the model does here."""
    celltypist = pytest.importorskip("celltypist")
    adata = atlas.make(n_types=n_types)
    model = streamtrain.train(adata, "cell_type", **SMALL)
    model.to_celltypist(tmp_path / "m.pkl")
    query = atlas.make(seed=5, n_types=n_types)[:, 10:].copy()  # some of the model's genes lack
    theirs = celltypist.annotate(query, model=str(tmp_path / "m.pkl"))
    ours = streamtrain.predict(model, query, probabilities=True, progress=False)
    assert ours["predicted_labels"].astype(str).tolist() == (
        theirs.predicted_labels["predicted_labels"].astype(str).tolist()
    )
    # 1e-4: float32 weights; both sum in float64.
    np.testing.assert_allclose(
        ours[list(model.cell_types)], theirs.probability_matrix, rtol=0, atol=1e-4
    )


def test_labelled_cells__codes_follow_sorted_names():
    adata = atlas.make()
    cells = labelled_cells(open_source(adata), "cell_type", where=None, drop_unlabeled=False)
    assert cells.classes[cells.codes].tolist() == adata.obs["cell_type"].astype(str).tolist()
    assert cells.classes.tolist() == sorted(cells.classes)
    assert pickle.loads(pickle.dumps(cells)).n_obs == 600  # noqa: S301 - our own bytes


def test_train__plan_order_where_blocks_hold_no_drawn_cell(monkeypatch):
    adata = atlas.make()
    adata.obs["w"] = (np.arange(600) >= 200).astype(float)
    options = SMALL | {"epochs": 2, "batch_number": 4, "batch_size": 50, "sampling_weight": "w"}
    reference = streamtrain.train(adata, "cell_type", **options)
    monkeypatch.setattr(sys.modules["streamtrain.local"], "_KEPT", 1e-6)
    for name, value in (("BLOCK", 5_000), ("free_memory", lambda: 50_000)):
        monkeypatch.setattr(sys.modules["streamtrain.first_pass"], name, value)
    equal(streamtrain.train(adata, "cell_type", **options), reference)


def test_train__scratch_in_plan_order(monkeypatch, caplog):
    """Where the page cache would not hold the drawn cells; the model is the same."""
    adata, options = atlas.make(), SMALL | {"epochs": 3, "batch_number": 4, "batch_size": 50}
    module = sys.modules["streamtrain.local"]
    for way in ({}, {"balance_cell_type": True}, {"quotas": "equal"}, {"where": "donor != 'D1'"}):
        reference = streamtrain.train(adata, "cell_type", **options, **way)
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "streamtrain"):
            patch.setattr(module, "_KEPT", 1e-6)
            patch.setattr(sys.modules["streamtrain.first_pass"], "free_memory", lambda: 50_000)
            model = streamtrain.train(adata, "cell_type", **options, **way)
        assert "of drawn cells go to scratch in plan order" in caplog.text
        caplog.clear()
        equal(model, reference)


MINI_ALONE = ("batch_size", "batch_number", "epochs")


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({}, 100),
        ({"mini_batch": False, "max_iter": 2, "tol": None}, 256),
        ({"gene_dropout": 0.5}, 100),
    ],
    ids=str,
)
@pytest.mark.parametrize("step", ["auto", 2.5])
def test_train__step_is_over_the_mean_squared_length(step, more, first, with_mean):
    """Of the first mini-batch, or the first cells where there are none."""
    adata = atlas.make(dtype=np.float64)
    options = SMALL | more | {"with_mean": with_mean, "dtype": "float64"}
    if not options["mini_batch"]:
        options = {k: v for k, v in options.items() if k not in MINI_ALONE}
    model = streamtrain.train(adata, "cell_type", step=step, **options)
    X = adata.X.toarray()
    X = X[:, X.sum(axis=0) > 0]
    Z = np.minimum(StandardScaler(with_mean=with_mean).fit_transform(X), 10)
    codes = pd.Categorical(adata.obs["cell_type"].astype(str)).codes.astype(np.int32)
    plan = Plan(
        codes, 5, batch_size=first, batch_number=3, epochs=1, balance=False,
        shuffle=options["mini_batch"], seed=0,
    )  # fmt: skip
    if "gene_dropout" in more:
        Z[:, dropped_genes(Z.shape[1], 0.5, 0, 0)] = 0
    expected = (1 if step == "auto" else step) / (Z[plan.epoch(0)[:first]] ** 2).sum(axis=1).mean()
    kept = model.settings
    assert kept["eta0"] == pytest.approx(expected, rel=1e-9)
    assert (kept["step"], kept["learning_rate"]) == (step, "constant")
    constant = {"learning_rate": "constant", "eta0": kept["eta0"]}
    equal(model, streamtrain.train(adata, "cell_type", **options, **constant))


def test_train__gene_list(tmp_path, caplog):
    """As on cells of these genes alone, in the order of the cells' genes.

    Within 1e-6: sums over the genes of a cell run past those that are left out.
    """
    adata = atlas.make()
    names = [f"GENE{i}" for i in (50, 3, 7, 80, 0, 12, 99)]  # 7 is not expressed
    kept = [name for name in adata.var_names if name in names]
    these = adata[:, kept].copy()
    expected = streamtrain.train(these, "cell_type", check_expression=False, **SMALL)
    assert len(expected.features) == 6
    path = tmp_path / "genes.txt"
    path.write_text("\n".join([*names, "", "OTHER"]))
    for given in (names, tuple(names), np.array(names), path, str(path)):
        model = streamtrain.train(adata, "cell_type", gene_list=given, **SMALL)
        assert model.features.tolist() == expected.features.tolist()
        np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-6)
        np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-6)
        np.testing.assert_array_equal(model.dataset["scale"], expected.dataset["scale"])
    assert "1 of 8 genes of gene_list are not there: 'OTHER'" in caplog.text
    caplog.clear()
    streamtrain.train(adata, "cell_type", gene_list=names, **SMALL)
    assert "gene_list" not in caplog.text


GENES = {
    "no file": ("none.txt", "gene_list must be a list or a text file with one a line; there is no"),
    "no gene": (["A", "B"], r"none of its genes is in gene_list; it has names such as 'GENE0', .* "
                "the list 'A', 'B'"),
    "none": ([], "none of its genes is in gene_list"),
    "not expressed": (["GENE7"], "no cell expresses any of the genes of gene_list that it has"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), GENES.values(), ids=GENES.keys())
def test_train__gene_list_of_no_use(given, message):
    with pytest.raises(InputError, match=message):
        streamtrain.train(atlas.make(), "cell_type", gene_list=given, **SMALL)


def test_train__recipe_names_columns_and_models(tmp_path):
    """What a recipe says is done, not only kept in the settings."""
    adata = atlas.make()
    adata.obs["w"] = np.arange(600) % 3 + 0.5
    streamtrain.train(adata, "cell_type", **SMALL).save(tmp_path / "before.zarr")
    given = {"sampling_weight": "w", "warm_start": str(tmp_path / "before.zarr")}
    recipe = tmp_path / "r.toml"
    recipe.write_text("".join(f"{name} = {value!r}\n" for name, value in given.items()))
    model = streamtrain.train(adata, "cell_type", recipe=recipe, **SMALL)
    equal(model, streamtrain.train(adata, "cell_type", **given, **SMALL))
    other = streamtrain.train(adata, "cell_type", **SMALL)
    assert (model.coef_ != other.coef_).any()
    assert model.settings["recipe"] == str(recipe)


@pytest.mark.parametrize("way", ["warm_start", "init"])
def test_train__goes_on_from_a_calibrated_model(way, caplog):
    adata = atlas.make()
    caplog.set_level(logging.INFO, "streamtrain")
    options = SMALL | {"folds": 2, "calibrate": True, "average": True, "step": "auto"}
    calibrated = streamtrain.train(adata, "cell_type", **options)
    plain = streamtrain.train(adata, "cell_type", **options | {"calibrate": False})
    equal(calibrated, plain)
    assert calibrated.calibration is not None
    assert plain.calibration is None
    more = SMALL | {"average": True, "step": "auto"}
    caplog.clear()
    model = streamtrain.train(adata, "cell_type", **more, **{way: calibrated})
    assert f"{way}: its calibration is left out: new weights need a new one" in caplog.text
    assert model.calibration is None
    caplog.clear()
    equal(model, streamtrain.train(adata, "cell_type", **more, **{way: plain}))
    assert "calibration" not in caplog.text


@pytest.mark.parametrize("n_types", [2, 4])
def test_train__correct_prior(n_types):
    """Averaged intercepts move by the log odds of a type among the cells and in the draws."""
    adata = atlas.make()
    kept = adata.obs["cell_type"].cat.categories[:n_types]
    adata = adata[adata.obs["cell_type"].isin(kept)].copy()
    options = SMALL | {"balance_cell_type": True, "replace": True, "average": True}
    model, shifted = (
        streamtrain.train(adata, "cell_type", correct_prior=c, **options) for c in (False, True)
    )
    for name in ("coef", "coef_last", "intercept_last"):
        np.testing.assert_array_equal(shifted.dataset[name], model.dataset[name], err_msg=name)
    source = open_source(adata)
    cells = labelled_cells(source, "cell_type", where=None, drop_unlabeled=False)
    sizes = {k: SMALL[k] for k in ("batch_size", "batch_number", "epochs")}
    plan = Plan(
        cells.codes, n_types, balance=True, shuffle=True, seed=0, replace=True, **sizes
    )  # fmt: skip
    drawn = cells.codes[np.concatenate([plan.epoch(e) for e in range(plan.epochs)])]

    def log_odds(codes):
        share = (np.bincount(codes, minlength=n_types) + 0.5) / (len(codes) + 1)
        return np.log(share / (1 - share))

    gain = shifted.dataset["intercept"] - model.dataset["intercept"]
    np.testing.assert_allclose(gain, log_odds(cells.codes) - log_odds(drawn), atol=1e-9)
    assert np.abs(gain).max() > 0.1  # not in vain


def test_train__correct_prior_of_no_use():
    adata, options = atlas.make(), SMALL | {"correct_prior": True}
    with pytest.raises(InputError, match=r"correct_prior is for .*mini_batch=True, and average"):
        streamtrain.train(adata, "cell_type", **options)
    shifted = streamtrain.train(adata, "cell_type", average=True, **options)
    with pytest.raises(
        InputError, match=r"shifted afterwards \(correct_prior=True\): train the fir"
    ):
        streamtrain.train(adata, "cell_type", init=shifted, average=True, **SMALL)


def test_train__none_beside_a_recipe_that_has_a_model(tmp_path):
    (tmp_path / "own.toml").write_text('use_SGD = true\nmax_iter = 2\nwarm_start = "/none.zarr"\n')
    with pytest.warns(match="did not converge"):
        model = streamtrain.train(
            atlas.make(), "cell_type", recipe=tmp_path / "own.toml", warm_start=None, progress=False
        )
    assert model.settings["warm_start"] is None


def test_train__step_over_cells_without_expression():
    adata = atlas.make()
    matrix = adata.X.tolil()
    matrix[:, 5] = 0
    matrix[0, 5] = 1
    adata.X = matrix.tocsr()
    options = {"gene_list": ["GENE5"], "with_mean": False, "step": 1.0, "check_expression": False}
    with pytest.raises(InputError, match="cells of the first mini-batch, which express none of"):
        streamtrain.train(adata, "cell_type", **SMALL | options)


def test_train__settings_of_a_model_can_be_given_again():
    """With a step, they also say what it came to."""
    adata = atlas.make()
    model = streamtrain.train(adata, "cell_type", step=0.5, **SMALL)
    assert model.settings["learning_rate"] == "constant"
    equal(streamtrain.train(adata, "cell_type", progress=False, **model.settings), model)
