"""Adapting to the query's own expression against the rules written out densely."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import streamtrain
from streamtrain import InputError, Model, adapt, annotating, cli, querying
from streamtrain.rows import Rows
from streamtrain.scaling import RunningMoments
from streamtrain.scoring import Part, Scaling, Scorer, shared_genes
from streamtrain.threads import Threads
from tests import atlas, stores

QUIET = {"progress": False}
TRAIN = {
    "use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 10, "epochs": 2,
    "balance_cell_type": True, "average": True, "learning_rate": "constant", "eta0": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(atlas.make(1500), "cell_type", **TRAIN, **QUIET)


def query(seed=5, shift=0.0, types=None, n_obs=1500):
    """Cells of all or some types; `shift` is the spread of the genes' log capture rates."""
    adata = atlas.make(n_obs, seed=seed)
    counts = adata.layers["counts"].toarray().astype(np.float64)
    if shift:
        rng = np.random.default_rng(seed)
        rate = np.exp(rng.normal(0, shift, counts.shape[1]))
        counts = rng.poisson(counts * rate / rate.mean()).astype(np.float64)
        counts[:, 0] += 1  # no cell is empty
    kept = np.full(n_obs, True) if types is None else adata.obs["cell_type"].isin(types).to_numpy()
    adata.X = sp.csr_matrix(atlas.log1p_10k(counts).astype(np.float32))
    return adata[kept].copy()


def macro_f1(adata, table):
    truth = adata.obs["cell_type"].astype(str)
    return streamtrain.evaluate(truth, table["predicted_labels"].astype(str)).macro_f1


def decision(table):
    (found,) = table.attrs["adapt"].values()
    return found


def standardised(X, coef, intercept, trained, share=1.0, of_mean=1.0, centre=True):
    """Scores of cells scaled by moments between their own and the trained."""
    X = X.astype(np.float64)
    scores = np.tile(intercept, (len(X), 1))
    for j, (mean, scale) in enumerate(zip(*trained, strict=True)):
        sd = X[:, j].std() ** share * scale ** (1 - share) if X[:, j].std() > 0 else scale
        middle = (1 - of_mean) * mean + of_mean * X[:, j].mean()
        z = (X[:, j] - centre * middle) / sd
        scores += np.outer(np.minimum(z, 10), coef[:, j])
    return scores


def by_hand(model, adata, share=1.0, of_mean=1.0):
    shared = [g for g in model.features if g in set(adata.var_names)]
    data = model.dataset.sel(gene=shared)
    trained = data["mean"].to_numpy(), data["scale"].to_numpy()
    return standardised(
        adata[:, shared].X.toarray(), data["coef"].to_numpy(), data["intercept"].to_numpy(),
        trained, share, of_mean, data.attrs["with_mean"],
    )  # fmt: skip


def fewer_genes(adata):
    """In another order, some gone, one silent and one the same in all cells."""
    adata = adata[:, ::-1][:, 5:].copy()
    X = adata.X.toarray()
    X[:, 3], X[:, 8] = 0, 1.7
    adata.X = sp.csr_matrix(X)
    return adata


@pytest.mark.parametrize("kind", stores.KINDS)
def test_genes__equals_standardising_by_hand(model, kind):
    adata = fewer_genes(query(shift=1))
    expected = by_hand(model, adata)
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    table = streamtrain.predict(model, adata, adapt="genes", scores=True, **QUIET)
    np.testing.assert_allclose(table[list(model.cell_types)], expected, rtol=1e-9, atol=1e-9)
    found = decision(table)
    assert found["adapted"]
    assert found["n_obs"] == 1500
    assert found["evidence"] is None
    assert found["way"] == 1
    plain = streamtrain.predict(model, adata, scores=True, **QUIET)
    assert plain.attrs == {}
    assert not np.allclose(plain[list(model.cell_types)], expected, atol=0.1)


def test_genes__clips_at_ten(model):
    adata = query()
    X = adata.X.toarray()
    X[:, 7] = 0
    X[0, 7] = 9  # of 1,500 cells, so 39 standard deviations
    adata.X = sp.csr_matrix(X)
    columns = {"GENE7": 1.0, "GENE0": 0.0}
    weights = np.array([list(columns.values())])
    one = Model.build(
        coef=weights, intercept=[0.0], cell_types=["a", "b"], genes=list(columns),
        mean=[0.0, 0.0], var=[1.0, 1.0], scale=[1.0, 1.0],
    )  # fmt: skip
    table = streamtrain.predict(one, adata, adapt="genes", scores=True, **QUIET)
    np.testing.assert_allclose(table[["a", "b"]], by_hand(one, adata), rtol=1e-9)
    assert table["b"].max() == table["b"].iloc[0] == pytest.approx(10)


def test_genes__without_centring_divides_alone():
    model = streamtrain.train(atlas.make(1500), "cell_type", with_mean=False, **TRAIN, **QUIET)
    adata = fewer_genes(query(shift=1))
    table = streamtrain.predict(model, adata, adapt="genes", scores=True, **QUIET)
    expected = by_hand(model, adata)
    np.testing.assert_allclose(table[list(model.cell_types)], expected, rtol=1e-9, atol=1e-9)
    assert "standard deviation (no gene is centred)" in decision(table)["reason"]
    table = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    assert not decision(table)["adapted"]
    assert "does not centre genes" in decision(table)["reason"]


@pytest.mark.parametrize("of_mean", [1, 0.25])
def test_own_scaling__share_of_each_moment(model, of_mean):
    X = query(shift=1).X.toarray().astype(np.float64)
    at = np.r_[np.full(4, -1), np.arange(4, 119)]
    n_features = len(model.features)
    at = np.resize(at, n_features)
    moments = RunningMoments(
        len(X), np.count_nonzero(X, axis=0), X.mean(0), ((X - X.mean(0)) ** 2).sum(0)
    )
    part = Part("X", at, 0, len(X))
    trained = model.dataset["mean"].to_numpy(), model.dataset["scale"].to_numpy()
    found = adapt.own_scaling(model, part, moments, of_mean, 0.5)
    for j in range(n_features):
        if at[j] < 0:
            assert (found.mean[j], found.scale[j]) == (trained[0][j], trained[1][j])
            continue
        own = X[:, at[j]]
        middle = (1 - of_mean) * trained[0][j] + of_mean * own.mean()
        assert found.mean[j] == pytest.approx(middle, abs=1e-12)
        sd = np.sqrt(own.std() * trained[1][j]) if own.std() else trained[1][j]
        assert found.scale[j] == pytest.approx(sd, rel=1e-9)


def information(scores, unit):
    """Entropy of the mean prediction less the mean entropy, cell by cell."""
    n_obs, n_types = scores.shape
    mean, entropy = np.zeros(n_types), 0.0
    for cell in scores:
        weights = [np.exp(2 * (score - max(cell)) / unit) for score in cell]
        p = np.array(weights) / sum(weights)
        mean += p / n_obs
        entropy -= sum(q * np.log(q) for q in p if q > 0) / n_obs
    return -sum(q * np.log(q) for q in mean if q > 0) - entropy


@pytest.mark.parametrize("size", [0.01, 1, 1e3])
def test_evidence__against_plain_python(size):
    rng = np.random.default_rng(3)
    before = size * rng.normal(size=(40, 6))
    after = size * rng.normal(size=(40, 6)) + np.where(
        np.eye(6)[np.arange(40) % 6] > 0, 3 * size, 0
    )
    unit = np.mean([cell.std() for cell in after])
    leads = []
    for scores in (before, after):
        ordered = np.sort(scores, axis=1)
        leads.append(np.mean((ordered[:, -1] - ordered[:, -2]) / scores.std(axis=1)))
    found = adapt.Evidence.of(before.copy(), after.copy())
    expected = [information(before, unit), information(after, unit)]
    np.testing.assert_allclose(found.information, expected, rtol=1e-9)
    np.testing.assert_allclose(found.margin, leads, rtol=1e-9)
    gain = expected[1] - expected[0] + 0.5 * (leads[1] - leads[0])
    assert found.value == pytest.approx(gain, rel=1e-9)
    assert found.value > 0.5


def test_information__of_sure_and_of_same_predictions():
    sure = 1e4 * np.eye(4)
    assert adapt.information(sure, 1.0) == pytest.approx(np.log(4))
    assert adapt.information(np.tile(sure[:1], (9, 1)), 1.0) == pytest.approx(0)
    assert adapt.information(np.zeros((9, 4)), 1.0) == pytest.approx(0)


def test_evidence__of_scores_that_are_all_the_same():
    assert adapt.Evidence.of(np.zeros((5, 3)), np.zeros((5, 3))).value == 0
    two = np.array([[-1.0, 1.0], [2.0, -2.0], [0.0, 0.0]])
    assert adapt.margin(two) == pytest.approx(4 / 3)  # of two types a lead is always 2


@pytest.mark.parametrize("seed", [5, 6])
def test_auto__gains_under_a_technical_shift(model, seed, caplog):
    adata = query(seed, shift=2)
    plain = streamtrain.predict(model, adata, **QUIET)
    with caplog.at_level(logging.INFO, "streamtrain"):
        table = streamtrain.predict(model, adata, adapt="auto", scores=True, **QUIET)
    assert macro_f1(adata, table) > macro_f1(adata, plain) + 0.05
    assert decision(table)["adapted"]
    assert decision(table)["evidence"] > 0.1
    assert decision(table)["way"] == 1
    assert "AnnData: adapted: scaled half-way to its own expression, predictions" in caplog.text
    expected = by_hand(model, adata, share=0.5)
    np.testing.assert_allclose(table[list(model.cell_types)], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "types", [None, ["T CD4", "T CD8"], ["B", "Monocyte, classical"]], ids=["same", "T", "B"]
)
def test_auto__stays_off_where_only_the_composition_differs(model, types, caplog):
    adata = query(types=types)
    plain = streamtrain.predict(model, adata, **QUIET)
    with caplog.at_level(logging.INFO, "streamtrain"):
        table = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    pd.testing.assert_frame_equal(table, plain)
    assert not decision(table)["adapted"]
    assert decision(table)["evidence"] < 0.05
    assert "AnnData: not adapted: scaled half-way to its own expression, predictions" in caplog.text
    if types is not None:
        moved = streamtrain.predict(model, adata, adapt="genes", **QUIET)
        assert macro_f1(adata, moved) < macro_f1(adata, plain) - 0.05


@pytest.mark.parametrize("cell_type", ["B", "NK", "T CD4", "T CD8", "Monocyte, classical"])
def test_auto__stays_off_for_cells_of_one_type(model, cell_type):
    adata = query(types=[cell_type], n_obs=8000)
    table = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    found = decision(table)
    assert found["evidence"] < 0.05
    assert not found["adapted"]
    assert (table["predicted_labels"] == cell_type).mean() > 0.99


def test_auto__half_way_where_the_rest_tells_no_more(model, monkeypatch, caplog):
    adata = query(shift=2)
    of = adapt.Evidence.of
    first = []

    def less_the_second_time(before, after):
        first.append(of(before, after))
        return first[0] if len(first) == 1 else of(after, before)

    monkeypatch.setattr(adapt.Evidence, "of", less_the_second_time)
    with caplog.at_level(logging.INFO, "streamtrain"):
        table = streamtrain.predict(model, adata, adapt="auto", scores=True, **QUIET)
    assert decision(table)["way"] == 0.5
    assert "it does not go all the way, at" in caplog.text
    expected = by_hand(model, adata, share=0.25, of_mean=0.5)
    np.testing.assert_allclose(table[list(model.cell_types)], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["genes", "auto"])
def test_adapt__same_however_it_is_read(tmp_path, model, how, monkeypatch):
    adata = query(shift=2)
    paths = [stores.write(adata, tmp_path, form) for form in ("h5ad", "sharded")]
    monkeypatch.setattr(adapt, "SAMPLE", 350)
    expected = streamtrain.predict(model, adata, adapt=how, scores=True, **QUIET)
    assert decision(expected)["adapted"]
    monkeypatch.setattr(querying, "blocks_within", lambda *_: (10**5, 37))
    for X, n_jobs in ((adata, 1), (paths[0], 2), (paths[1], 3)):
        found = streamtrain.predict(model, X, adapt=how, scores=True, n_jobs=n_jobs, **QUIET)
        pd.testing.assert_frame_equal(found, expected)
        assert decision(found) == decision(expected)


def test_adapt__counts_are_normalised_first(model):
    adata = query()
    found = streamtrain.predict(
        model, adata, adapt="genes", layer="counts", normalize="log1p", scores=True, **QUIET
    )
    types = list(model.cell_types)
    expected = streamtrain.predict(model, adata, adapt="genes", scores=True, **QUIET)
    np.testing.assert_allclose(found[types], expected[types], atol=1e-4)  # float32 of log1p


@pytest.mark.parametrize(
    ("shift", "how", "told"), [(2, "auto", 1), (0, "auto", 0), (2, "genes", 0)]
)
def test_auto__adapts_with_a_warning(model, shift, how, told, caplog):
    with caplog.at_level(logging.WARNING, "streamtrain"):
        streamtrain.predict(model, query(shift=shift), adapt=how, **QUIET)
    assert caplog.text.count("AnnData: adapted: ") == told


def test_scorer__rescaled_shares_the_weights(model):
    adata = query(shift=1)
    at = shared_genes(model, adata.var_names.to_numpy(object), "X")
    X = adata.X
    rows = Rows(X.data, X.indices, X.indptr.astype(np.int64), X.shape[1])
    other = Scaling(np.full(len(at), 0.3), np.full(len(at), 0.7))
    with Threads(1) as threads:
        first = Scorer(model, at, X.shape[1], threads)
        before, second = first(rows), first.rescaled(other)
        expected = Scorer(model, at, X.shape[1], threads, other)(rows)
        np.testing.assert_array_equal(second(rows), expected)
        np.testing.assert_array_equal(first(rows), before)
    assert second._weights is first._weights


def test_adapt__warns_once_of_cells_that_do_not_sum(model, caplog):
    streamtrain.predict(model, query()[:, 20:].copy(), adapt="genes", **QUIET)
    assert caplog.text.count("do not sum to 10,000") == 1


@pytest.mark.parametrize("how", ["genes", "auto"])
def test_adapt__each_file_as_alone(tmp_path, model, how):
    shifted, same = query(shift=2), fewer_genes(query(seed=8))
    few = query(seed=9, n_obs=80)
    adatas = [shifted, same, few]
    paths = [tmp_path / f"{name}.h5ad" for name in ("shifted", "same", "few")]
    for adata, path in zip(adatas, paths, strict=True):
        adata.write_h5ad(path)
    options = {"adapt": how, "scores": True, "where": "donor != 'D2'", **QUIET}
    alone = [streamtrain.predict(model, path, **options) for path in paths]
    found = streamtrain.predict(model, [str(path) for path in paths], **options)
    columns = list(model.cell_types)
    np.testing.assert_allclose(
        found[columns], np.concatenate([t[columns] for t in alone]), rtol=1e-9, atol=1e-9
    )
    decisions = found.attrs["adapt"]
    assert list(decisions) == [str(path) for path in paths]
    for path, table in zip(paths, alone, strict=True):
        own = decision(table)
        both = own.pop("evidence"), decisions[str(path)].pop("evidence")
        assert (both[0] or 0) == pytest.approx(both[1] or 0, rel=1e-9)
        assert own == decisions[str(path)]
    adapted = [d["adapted"] for d in decisions.values()]
    assert adapted == ([True] * 3 if how == "genes" else [True, False, False])


def test_adapt__a_file_of_which_no_cell_is_selected(tmp_path, model):
    adatas = [query(shift=2), query(seed=8)]
    for i, adata in enumerate(adatas):
        adata.obs["study"] = pd.Categorical([f"s{i}"] * len(adata))
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
    paths = [str(tmp_path / f"{i}.h5ad") for i in range(2)]
    for i in range(2):
        found = streamtrain.predict(model, paths, adapt="auto", where=f"study == 's{i}'", **QUIET)
        assert list(found.attrs["adapt"]) == [paths[i]]
        assert len(found) == 1500


def test_auto__few_cells_are_left_as_they_are(model, monkeypatch):
    adata = query(shift=2, n_obs=299)

    def read(*_):
        raise AssertionError("nothing needs to be read for it")

    monkeypatch.setattr(annotating, "MomentsPass", read)
    table = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    found = decision(table)
    assert found == {
        "adapted": False, "reason": "it takes 300 cells, and there are 299", "n_obs": 299,
        "evidence": None, "way": 0.0,
    }  # fmt: skip
    pd.testing.assert_frame_equal(table, streamtrain.predict(model, adata, **QUIET))


def test_adapt__majority_voting_and_prob_match(model):
    adata = query(shift=2)
    adata.obs["cluster"] = pd.Categorical(adata.obs["cell_type"].astype(str))
    table = streamtrain.predict(
        model, adata, adapt="auto", mode="prob match", majority_voting=True,
        over_clustering="cluster", **QUIET,
    )  # fmt: skip
    probability = 1 / (1 + np.exp(-by_hand(model, adata, share=0.5)))
    expected = ["|".join(model.cell_types[p > 0.5]) or "Unassigned" for p in probability]
    assert table["predicted_labels"].tolist() == expected
    assert decision(table)["adapted"]


def test_adapt__celltypist_pickle(tmp_path, model):
    adata = query(shift=2)
    model.to_celltypist(tmp_path / "m.pkl")
    found = streamtrain.predict(tmp_path / "m.pkl", adata, adapt="auto", **QUIET)
    assert decision(found)["adapted"]
    expected = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    assert found["predicted_labels"].tolist() == expected["predicted_labels"].tolist()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (query, {"adapt": "gene"}, "adapt must be 'none', 'genes' or 'auto'; got 'gene'"),
        (query, {"adapt": None}, "adapt must be .*; got None"),
        (
            lambda: query(n_obs=49),
            {"adapt": "genes"},
            r"AnnData: adapt='genes' takes .* 50 cells at least, and there are 49: .*--adapt",
        ),
        (query, {"adapt": "auto", "memory": "20MB"}, "too small for this model"),
    ],
)
def test_adapt__bad_input(model, make, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, make(), **options, **QUIET)


def test_adapt__obs_of_a_copy(tmp_path, model):
    adata = query(shift=2)
    adata.write_h5ad(tmp_path / "q.h5ad")
    out = tmp_path / "out.h5ad"
    assert streamtrain.predict(model, tmp_path / "q.h5ad", adapt="auto", out=out, **QUIET) is None
    expected = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    labels = ad.read_h5ad(out).obs["predicted_labels"]
    assert labels.tolist() == expected["predicted_labels"].tolist()


def test_adapt__command_line(tmp_path, model, caplog):
    adata = query(shift=2)
    adata.write_h5ad(tmp_path / "q.h5ad")
    model.save(tmp_path / "m.zarr")
    out = tmp_path / "p.csv"
    words = ["predict", str(tmp_path / "m.zarr"), str(tmp_path / "q.h5ad"), "--out", str(out)]
    with caplog.at_level(logging.INFO, "streamtrain"), pytest.raises(SystemExit) as done:
        cli.main([*words, "--adapt", "auto"])
    assert done.value.code == 0
    assert "q.h5ad: adapted: scaled half-way to its own expression" in caplog.text
    expected = streamtrain.predict(model, adata, adapt="auto", **QUIET)
    assert pd.read_csv(out)["predicted_labels"].tolist() == expected["predicted_labels"].tolist()
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--adapt", "never"])
    assert done.value.code != 0


PAIR = [stores.DATA / f"{name}.h5ad" for name in ("pbmc3k", "pbmc_kang_ifnb", "pbmc_zheng_facs")]


@pytest.mark.skipif(not all(path.exists() for path in PAIR), reason="needs shared/data")
@pytest.mark.parametrize(("path", "adapted"), [(PAIR[1], True), (PAIR[2], False)])
def test_auto__on_other_studies_of_blood(path, adapted):
    """Another chemistry with half the genes; and sorted cells, of another composition."""
    options = TRAIN | {"batch_size": 500, "batch_number": 20, "eta0": 1e-4} | QUIET
    trained = streamtrain.train(
        PAIR[0], "cell_type_coarse", normalize="log1p", where="cell_type_coarse != 'Other'",
        **options,
    )  # fmt: skip
    known = f"cell_type_coarse in {[str(name) for name in trained.cell_types]}"
    query = {"normalize": "log1p", "where": known, **QUIET}
    found = streamtrain.predict(trained, path, adapt="auto", **query)
    assert decision(found)["adapted"] == adapted
    truth = ad.read_h5ad(path, backed="r").obs["cell_type_coarse"].astype(str)[found.index]
    plain = streamtrain.predict(trained, path, **query)
    scores = [
        streamtrain.evaluate(truth, t["predicted_labels"].astype(str)).macro_f1
        for t in (plain, found)
    ]
    assert scores[1] >= scores[0] + (0.02 if adapted else 0)
