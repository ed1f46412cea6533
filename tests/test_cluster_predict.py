"""predict(client=) on workers in processes of their own, against the same in one process."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from itertools import islice

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from distributed import Client

import streamtrain
from streamtrain import InputError, querying
from streamtrain.cluster import predicting, turns
from streamtrain.cluster.workers import SchedulerLostError, Workers
from tests import atlas, stores
from tests.cluster import workers

PREDICT = import_module("streamtrain.predict")  # of which the package shows the function
QUIET = {"progress": False}
TRAIN = atlas.MINI | QUIET | {"batch_size": 100, "epochs": 2, "average": True}


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(atlas.make(1500), "cell_type", **TRAIN)


@pytest.fixture(scope="module")
def client():
    with workers(2) as client:
        yield client


@pytest.fixture
def small_tasks(monkeypatch):
    """Tasks of 37 cells."""
    monkeypatch.setattr(querying, "blocks_within", lambda *_: (10**6, 37))


def query(seed=9, n_obs=600):
    """Cells in another order of genes, some of them unknown and some gone."""
    adata = atlas.make(n_obs, seed=seed)
    adata.obs["leiden"] = np.random.default_rng(3).integers(0, 30, n_obs)
    adata.var_names = ["Unknown", *adata.var_names[1:]]
    return adata[:, ::-1][:, 5:].copy()


def shifted(seed=5, n_obs=9000):
    """Cells of another chemistry: their genes are captured at other rates."""
    adata = atlas.make(n_obs, seed=seed)
    rate = np.exp(np.random.default_rng(seed).normal(0, 2, adata.n_vars))
    adata.layers["counts"].data *= np.round(rate + 1)[adata.layers["counts"].indices]
    adata.X = adata.layers["counts"]
    return adata


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return stores.write(query(), tmp_path_factory.mktemp("query"), "h5ad")


def both(model, X, client, **options):
    """By one process and by the workers."""
    return (
        streamtrain.predict(model, X, client=each, **options, **QUIET) for each in (None, client)
    )


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert found.attrs == expected.attrs


VOTED = {"majority_voting": True, "over_clustering": "leiden"}
JOINED = {"mode": "prob match", "p_thres": 0.3}
OPTIONS = {
    "plain": {},
    "probabilities": {"probabilities": True, "n_jobs": 1},
    "scores of some": {"scores": True, "where": "donor != 'D2'", "memory": "400MB"},
    "joined": JOINED,
    "voted": VOTED | JOINED | {"where": "n >= 100"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_predict__equals_one_process(client, model, path, small_tasks, options):
    expected, found = both(model, path, client, **options)
    assert_same(found, expected)


@pytest.mark.parametrize("options", [{}, JOINED | {"adapt": "genes"}])
def test_evaluate_model__equals_one_process(client, model, path, small_tasks, options):
    expected, found = (
        streamtrain.evaluate_model(model, path, "cell_type", client=each, **options, **QUIET)
        for each in (None, client)
    )
    assert found.to_dict() == expected.to_dict()
    assert ("adapt" in json.loads(json.dumps(found.to_dict()))["cells"]) == bool(options)


@pytest.mark.parametrize(
    ("kind", "form"), [("csc", "h5ad"), ("dense", "zarr2"), ("csr", "sharded")]
)
def test_predict__any_store(client, model, tmp_path, small_tasks, kind, form):
    adata = query()
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    expected, found = both(model, stores.write(adata, tmp_path, form), client, scores=True)
    assert_same(found, expected)


def test_predict__calibrated(client, path, small_tasks):
    options = TRAIN | {"folds": 3, "step": 2.0, "calibrate": True}
    model = streamtrain.train(atlas.make(), "cell_type", **options)
    assert model.calibration.temperature != 1
    expected, found = both(model, path, client, probabilities=True)
    assert_same(found, expected)


@pytest.mark.parametrize("how", ["genes", "auto"])
@pytest.mark.parametrize("where", [None, "donor != 'D1'"])
def test_predict__adapted(client, model, tmp_path, how, where):
    """Two files of other genes, three tasks and one, each by itself."""
    paths = [str(tmp_path / f"{name}.h5ad") for name in ("many", "few")]
    shifted().write_h5ad(paths[0])
    query(n_obs=1500).write_h5ad(paths[1])
    options = {"adapt": how, "scores": True, "where": where, "check_expression": False}
    expected, found = both(model, paths, client, **options)
    assert_same(found, expected)
    assert expected.attrs["adapt"][paths[0]]["adapted"]
    plain = streamtrain.predict(model, paths, scores=True, where=where, check_expression=False)
    assert not plain.equals(expected)


@pytest.mark.parametrize("out", ["p.parquet", "p.csv", "p.csv.gz", "p.h5ad", "p.zarr"])
def test_predict__outputs(client, model, tmp_path, small_tasks, out):
    path = stores.write(query(), tmp_path, "zarr3" if out == "p.zarr" else "h5ad")
    read = {"parquet": pd.read_parquet, "h5ad": _obs, "zarr": _obs}
    found = []
    for name, each in (("one", None), ("workers", client)):
        target = tmp_path / f"{name}{out[1:]}"
        options = {"out": target, "probabilities": True, **VOTED, **JOINED, **QUIET}
        if out in ("p.h5ad", "p.zarr"):
            options["prefix"] = "ours_"
        assert streamtrain.predict(model, path, client=each, **options) is None
        found.append(read.get(out.split(".")[1], pd.read_csv)(target))
    assert_same(found[1], found[0])
    assert len(found[0]) == 600


def _obs(path):
    return (ad.read_h5ad if path.suffix == ".h5ad" else ad.read_zarr)(path).obs


def test_predict__in_place(client, model, tmp_path, small_tasks):
    path = stores.write(query(), tmp_path, "h5ad")
    expected, _ = both(model, path, client)
    streamtrain.predict(model, path, in_place=True, client=client, **QUIET)
    assert_same(_obs(path)[list(expected)].rename_axis("cell"), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # scanpy's, of igraph
def test_predict__votes_in_clusters_that_are_made(client, model, path):
    pytest.importorskip("scanpy", reason="over-clustering needs scanpy and igraph")
    pytest.importorskip("igraph", reason="over-clustering needs scanpy and igraph")
    expected, found = both(model, path, client, majority_voting=True)
    assert_same(found, expected)
    assert found["over_clustering"].nunique() > 5


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_predict__any_number_of_workers(model, path, tmp_path, small_tasks, n):
    shifted().write_h5ad(tmp_path / "many.h5ad")
    with workers(n, threads=2) as client:
        assert_same(*reversed([*both(model, path, client, probabilities=True, **JOINED)]))
        options = {"adapt": "auto", "check_expression": False}
        assert_same(*reversed([*both(model, tmp_path / "many.h5ad", client, **options)]))


def test_predict__warns_as_one_process_does(client, model, path, small_tasks, caplog):
    told = []
    for each in (None, client):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "streamtrain"):
            streamtrain.predict(model, path, adapt="genes", client=each, **QUIET)
        told.append(caplog.text)
    assert "of 600 cells do not sum to 10,000" in told[0]
    assert told[0] == told[1]


def nan():
    adata = query()
    adata.X.data[[-1, 5000]] = np.nan
    return adata


def fails(model, path, **options):
    """The message, less what depends on how many cells are read together."""
    with pytest.raises(InputError) as error:
        streamtrain.predict(model, path, **options, **QUIET)
    return str(error.value).split("; such")[0]


@pytest.mark.parametrize(
    ("adata", "options", "message"),
    [
        (nan, {}, "in cell [1-9].* is not finite"),
        (
            lambda: atlas.make(12_000, n_vars=40),
            {"normalize": "log1p"},
            "but 12,000 of 12,000 cells are log1p-normalised",
        ),
        (lambda: query(n_obs=49), {"adapt": "genes"}, "50 cells at least, and there are 49"),
    ],
    ids=["NaN", "log1p as counts", "few"],
)
def test_predict__fails_as_one_process_does(client, model, tmp_path, adata, options, message):
    path = tmp_path / "query.h5ad"
    adata().write_h5ad(path)
    out = {"out": tmp_path / "p.csv", **options}
    expected = fails(model, path, **out)
    assert fails(model, path, client=client, **out) == expected
    assert pd.Series(expected).str.contains(message).all()
    assert list(tmp_path.iterdir()) == [path]


def settled(client):
    """What workers keep once they have done all that they were given."""
    while any(client.processing().values()):
        time.sleep(0.05)
    return set(client.run(lambda: len(turns._kept)).values())


def test_predict__leaves_nothing_with_the_workers(client, model, path, tmp_path, small_tasks):
    nan().write_h5ad(tmp_path / "bad.h5ad")
    for X in (path, tmp_path / "bad.h5ad"):
        try:
            streamtrain.predict(model, X, client=client, **QUIET)
        except InputError:
            assert path != X
        assert settled(client) == {0}


def slow(run, i):
    with turns.turn("1GB", 1):
        if i == 0:
            raise ValueError("the first")
        time.sleep(0.3)
        return turns.kept(run, "i", lambda _: i)


def test_turns__tasks_after_the_end_keep_nothing(client):
    with pytest.raises(ValueError, match="the first"), Workers(client) as run:
        list(run.in_order([partial(run.submit, "slow", slow, run.run, i) for i in range(9)]))
    assert settled(client) == {0}


def test_predict__codes_by_first_occurrence(client, model, path, small_tasks, monkeypatch):
    names = []
    real = PREDICT.Layout
    monkeypatch.setattr(
        PREDICT, "Layout", lambda labels, **more: names.append(labels) or real(labels, **more)
    )
    expected, _ = both(model, path, client, **JOINED)
    assert names[0] == names[1] == expected["predicted_labels"].drop_duplicates().tolist()
    assert len(names[0]) > 5


BAD = {
    "a GPU": (lambda path: path, {"device": "gpu"}, "a cluster works on CPUs: leave out device"),
    "in memory": (lambda path: ad.read_h5ad(path), {}, "each worker reads the cells by itself"),
    "a matrix": (
        lambda path: ad.read_h5ad(path).X,
        {"genes": [f"GENE{j}" for j in range(115)]},
        "each worker reads the cells by itself: pass the path",
    ),
}


@pytest.mark.parametrize(("make", "options", "message"), BAD.values(), ids=BAD)
def test_predict__refuses(client, model, path, make, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, make(path), client=client, **options, **QUIET)


def test_predict__refuses_text(client, model, path, tmp_path):
    ad.read_h5ad(path).to_df().to_csv(tmp_path / "cells.csv")
    with pytest.raises(InputError, match=r"cells.csv: .*streamtrain convert writes one"):
        streamtrain.predict(model, tmp_path / "cells.csv", client=client, **QUIET)


def test_predict__refuses_what_is_no_client(model, path):
    with pytest.raises(InputError, match=r"must be a dask\.distributed Client; got a str"):
        streamtrain.predict(model, path, client="127.0.0.1:8786", **QUIET)


def after(n, act, monkeypatch):
    """Have something happen once `n` tasks are done."""
    real = predicting.counted

    def counted(items, *more, **options):
        items = iter(items)
        yield from real(islice(items, n), *more, **options)
        act()
        yield from real(items, *more, **options)

    monkeypatch.setattr(predicting, "counted", counted)


@pytest.mark.slow
@pytest.mark.parametrize("which", [slice(1), slice(None)], ids=["one", "all"])
def test_predict__workers_are_killed(model, tmp_path, small_tasks, monkeypatch, which):
    path = stores.write(query(), tmp_path, "h5ad")
    with workers(2) as client:

        def kill():
            for pid in list(client.run(os.getpid).values())[which]:
                os.kill(pid, signal.SIGKILL)

        after(4, kill, monkeypatch)
        expected, found = both(model, path, client, scores=True, adapt="genes")
    assert_same(found, expected)


CLUSTER = """
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("out", ["p.parquet", "p.csv", "query.h5ad"])
def test_predict__the_scheduler_is_lost(model, tmp_path, small_tasks, monkeypatch, out):
    path = tmp_path / "query.h5ad"
    query().write_h5ad(path)
    before = path.read_bytes()
    where = {"in_place": True} if out == path.name else {"out": tmp_path / out}
    (tmp_path / "cluster.py").write_text(CLUSTER)
    with subprocess.Popen(  # noqa: S603
        [sys.executable, tmp_path / "cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        address = process.stdout.readline().strip()
        with Client(address, timeout=2) as client:
            client.wait_for_workers(1)
            after(4, process.kill, monkeypatch)
            with pytest.raises(SchedulerLostError, match=f"the scheduler at {address} is lost"):
                streamtrain.predict(model, path, client=client, **where, **QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cluster.py", "query.h5ad"]
    assert path.read_bytes() == before
