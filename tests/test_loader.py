"""Loader: its batches against plain drawing, whatever the strategy, format, threads and memory."""

import logging
import re
import subprocess
import sys
from typing import get_args

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from streamtrain import Loader, simulate
from streamtrain import loader as module
from streamtrain.batches import planned
from streamtrain.errors import InputError
from streamtrain.ordered import PlanOrder
from streamtrain.sampling import BLOCKS, MIX, Plan, uniforms
from streamtrain.sources import open_source
from streamtrain.strategies import Means, Name, choose
from tests import atlas, stores

QUIET = {"progress": False, "memory": "2GB"}
STRATEGIES = get_args(Name)


@pytest.fixture(scope="module")
def adata():
    made = atlas.make(n_obs=300)
    made.X = made.layers["counts"].copy()
    return made


@pytest.fixture(scope="module")
def path(adata, tmp_path_factory):
    return stores.write(adata, tmp_path_factory.mktemp("loader"), "sharded")


def listed(loader):
    return [(b.epoch, b.obs.tolist(), b.codes.tolist(), b.X.toarray()) for b in loader]


def equal(found, expected):
    assert [f[:3] for f in found] == [e[:3] for e in expected]
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f[3], e[3])


def drawn(adata, rows=None, **options):
    """What a plan draws, from the matrix in memory."""
    names = np.unique(adata.obs["cell_type"].astype(str))
    codes = np.searchsorted(names, adata.obs["cell_type"].astype(str)).astype(np.int32)
    rows = np.arange(adata.n_obs) if rows is None else rows
    codes, X = codes[rows], adata.X[rows].toarray()
    plan = Plan(codes, len(names), shuffle=True, **options)
    for epoch in range(plan.epochs):
        order = plan.epoch(epoch)
        for start in range(0, len(order), plan.batch_size):
            cells = order[start : start + plan.batch_size]
            yield epoch, rows[cells].tolist(), codes[cells].tolist(), X[cells]


WAYS = {
    "even": {"balance": False},
    "balanced": {"balance": True, "batch_number": 4},
    "with replacement": {"balance": True, "replace": True, "batch_number": 9},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_drawn__every_strategy_gives_the_plan(adata, path, way, strategy):
    options = {"batch_size": 40, "epochs": 3, "batch_number": None} | way
    plan = options | {"seed": 7, "batch_number": options["batch_number"] or 8}
    expected = list(drawn(adata, **plan))
    with Loader(path, "cell_type", strategy=strategy, random_state=7, **options, **QUIET) as loader:
        assert loader.classes_.tolist() == sorted(set(adata.obs["cell_type"]))
        assert (loader.n_obs, loader.n_vars) == adata.shape
        assert loader.genes.tolist() == list(adata.var_names)
        equal(listed(loader), expected)
        equal(listed(loader), expected)  # each iteration begins anew
        assert loader.strategy_.name == strategy
        assert len(loader.mixing_) == 3
        assert loader.mixing_[0].n_drawn == sum(len(e[1]) for e in expected if e[0] == 0)


@pytest.mark.parametrize("form", stores.FORMATS)
@pytest.mark.parametrize("kind", stores.KINDS)
def test_drawn__every_layout_and_number_of_threads(tmp_path, adata, kind, form):
    copy = adata.copy()
    copy.X = stores.of_kind(adata.X.toarray(), kind)
    path = stores.write(copy, tmp_path, form)
    expected = list(drawn(adata, batch_size=64, batch_number=5, epochs=2, balance=True, seed=0))
    for n_jobs, strategy in ((1, "memory"), (2, "sweeps"), (8, "scratch")):
        with Loader(
            path, "cell_type", batch_size=64, epochs=2, balance=True, n_jobs=n_jobs,
            strategy=strategy, **QUIET,
        ) as loader:  # fmt: skip
            equal(listed(loader), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_drawn__small_windows_and_blocks(adata, path, monkeypatch, strategy):
    """Little memory cuts reading and windows otherwise; the batches stay."""
    monkeypatch.setattr(module, "BLOCK", 3_000)
    monkeypatch.setattr(module, "READING_RESERVE", 0)
    monkeypatch.setattr(module, "free_memory", lambda: 200_000)  # page cache
    options = {"batch_size": 20, "epochs": 2, "balance": True, "replace": True, "batch_number": 12}
    expected = list(drawn(adata, seed=0, **options))
    needed = 300 * 32 + 9_000 + 3 * 20 * 60 * 8 * 1.2
    kept = 300 * 250 if strategy == "memory" else 20 * 60 * 12
    with Loader(
        path, "cell_type", strategy=strategy, memory=int(needed + kept), progress=False, **options
    ) as loader:
        equal(listed(loader), expected)
        if strategy in ("plan order", "sweeps"):
            assert 1 <= loader.strategy_.window < 24  # of the 24 batches


def test_drawn__where_and_without_labels(adata, path):
    rows = np.flatnonzero(adata.obs["donor"] != "D1")
    expected = list(
        drawn(adata, rows, batch_size=50, batch_number=5, epochs=1, balance=False, seed=0)
    )
    with Loader(path, "cell_type", where="donor != 'D1'", batch_size=50, **QUIET) as loader:
        equal(listed(loader), expected)
    with Loader(path, where="donor != 'D1'", batch_size=50, **QUIET) as loader:
        found = list(loader)
        assert loader.classes_.tolist() == []
    assert all(batch.codes is None for batch in found)
    assert [b.obs.tolist() for b in found] == [e[1] for e in expected]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_drawn__normalised(adata, path, strategy):
    with Loader(
        path, "cell_type", batch_size=50, normalize="log1p", strategy=strategy, **QUIET
    ) as loader:
        for batch in loader:
            assert batch.X.dtype == np.float32
            expected = atlas.log1p_10k(adata.X[batch.obs].toarray().astype(np.float64))
            np.testing.assert_allclose(batch.X.toarray(), expected, rtol=1e-6)


def test_drawn__quotas_batches_and_weights(adata, path):
    adata = adata.copy()
    weight = np.arange(300) % 3
    options = {"batch_size": 25, "batch_number": 6} | QUIET
    with Loader(path, "cell_type", quotas="equal", **options) as loader:
        for batch in loader:
            assert np.bincount(batch.codes).tolist() == [5] * 5
    with Loader(path, sampling_weight=weight, **options) as loader:
        assert all((batch.obs % 3 > 0).all() for batch in loader)
    with Loader(path, "cell_type", balance=True, batch_key="donor", replace=True, **options) as it:
        assert len(list(it)) == 6


def in_blocks(n, epochs, batch, block, window, seed):
    """Row numbers of every batch, in plain Python."""
    for epoch in range(epochs):
        keys = uniforms(seed, BLOCKS, epoch, -(-n // block)).tolist()
        keys[-1] = 1 if n % block else keys[-1]
        order = sorted(range(len(keys)), key=lambda k: keys[k])
        mixing, taken = uniforms(seed, MIX, epoch, n).tolist(), 0
        for first in range(0, len(order), window // block):
            blocks = sorted(order[first : first + window // block])
            cells = [i for b in blocks for i in range(b * block, min((b + 1) * block, n))]
            marks = mixing[taken : taken + len(cells)]
            taken += len(cells)
            cells = [cells[k] for k in sorted(range(len(cells)), key=lambda k: marks[k])]
            for start in range(0, len(cells), batch):
                yield epoch, cells[start : start + batch]


@pytest.mark.parametrize("shape", [(20, 4, 60), (30, 30, 30), (300, 1, 300), (7, 14, 700)], ids=str)
def test_blocks__as_python(adata, path, shape):
    batch, block, window = shape
    expected = list(in_blocks(300, 2, batch, block, window, 3))
    for n_jobs in (1, 3):
        with Loader(
            path, "cell_type", order="blocks", batch_size=batch, block_size=block, window=window,
            epochs=2, random_state=3, n_jobs=n_jobs, **QUIET,
        ) as loader:  # fmt: skip
            found = listed(loader)
        assert [(f[0], f[1]) for f in found] == expected
        for _, rows, _, X in found:
            np.testing.assert_array_equal(X, adata.X[rows].toarray())
        assert loader.strategy_ is None
        assert [m.n_distinct for m in loader.mixing_] == [300, 300]


def test_stored__as_it_lies(adata, path):
    with Loader(path, "cell_type", order="stored", batch_size=70, **QUIET) as loader:
        found = listed(loader)
    assert [len(f[1]) for f in found] == [70, 70, 70, 70, 20]
    assert [i for f in found for i in f[1]] == list(range(300))
    np.testing.assert_array_equal(np.concatenate([f[3] for f in found]), adata.X.toarray())


def test_loader__values_keep_their_type(tmp_path, adata):
    """Counts take two bytes on the way alone; fractions and large counts come as they are."""
    for dtype, factor in ((np.float32, 1), (np.int32, 100_000), (np.float64, 0.5), (np.uint8, 1)):
        copy = adata.copy()
        dense = np.minimum(adata.X.toarray(), 200) * factor
        copy.X = sp.csr_matrix(dense.astype(dtype))
        path = stores.write(copy, tmp_path, "zarr3")
        for options in ({}, {"order": "blocks", "window": 64, "block_size": 8}):
            with Loader(path, batch_size=64, **options, **QUIET) as loader:
                for batch in loader:
                    assert batch.X.dtype == dtype
                    assert batch.X.indices.dtype == np.int32
                    np.testing.assert_array_equal(batch.X.toarray(), copy.X[batch.obs].toarray())


def test_loader__counts_that_end_half_way(tmp_path, adata):
    """The first cells look like counts, and later ones are not."""
    copy = adata.copy()
    copy.X = copy.X.astype(np.float32)
    copy.X.data[copy.X.indptr[280] :] += 0.25
    path = stores.write(copy, tmp_path, "h5ad")
    for options in ({"strategy": s} for s in STRATEGIES):
        with Loader(path, batch_size=64, **options, **QUIET) as loader:
            for batch in loader:
                np.testing.assert_array_equal(batch.X.toarray(), copy.X[batch.obs].toarray())


def test_loader__a_batch_is_the_callers(path):
    """Buffers are used again, but none that anything refers to."""
    with Loader(path, "cell_type", batch_size=30, epochs=4, **QUIET) as loader:
        kept = [(b.obs, b.X, b.X.toarray()) for b in loader]
    for obs, X, then in kept:
        np.testing.assert_array_equal(X.toarray(), then, err_msg=str(obs))


def test_loader__closed_early_and_errors(path):
    loader = Loader(path, "cell_type", batch_size=30, epochs=4, **QUIET)
    batches = iter(loader)
    next(batches)
    batches.close()
    assert loader.actual_ is not None
    loader.close()


def test_loader__classes_of_no_weight_are_refused(adata, path):
    weight = (adata.obs["cell_type"] != "NK").to_numpy().astype(float)
    with pytest.raises(InputError, match="sampling_weight is 0 in every cell of 'NK'"):
        Loader(path, "cell_type", balance=True, replace=True, sampling_weight=weight, **QUIET)


def test_loader__one_class(tmp_path, adata):
    adata = adata[adata.obs["cell_type"] == "NK"].copy()
    path = stores.write(adata, tmp_path, "zarr3")
    with Loader(path, "cell_type", batch_size=16, balance=True, **QUIET) as loader:
        assert sum(len(batch.obs) for batch in loader) == adata.n_obs
        assert loader.classes_.tolist() == ["NK"]


def test_loader__closed(path):
    """Never told as damage of the file, which it is not."""
    with Loader(path, "cell_type", batch_size=30, **QUIET) as loader:
        batches = iter(loader)
        next(batches)
    with pytest.raises(ValueError, match="the Loader was closed while it was iterated over"):
        list(batches)
    with pytest.raises(ValueError, match="the Loader is closed: make another"):
        next(iter(loader))
    loader.close()


def test_loader__two_iterators(adata, path):
    """Side by side: each gives the whole plan, and its own report."""
    expected = list(drawn(adata, batch_size=60, batch_number=5, epochs=2, balance=False, seed=0))
    with Loader(path, "cell_type", batch_size=60, epochs=2, **QUIET) as loader:
        pairs = list(zip(listed_lazily(loader), listed_lazily(loader), strict=True))
        assert len(loader.mixing_) == 2
    for side in (0, 1):
        equal([pair[side] for pair in pairs], expected)


def listed_lazily(loader):
    return ((b.epoch, b.obs.tolist(), b.codes.tolist(), b.X.toarray()) for b in loader)


FORKED = """
import os, signal, sys
from streamtrain import Loader
with Loader(sys.argv[1], "cell_type", batch_size=30, progress=False, memory="1GB") as loader:
    due = [batch.obs.tolist() for batch in loader]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if [batch.obs.tolist() for batch in loader] == due else 1)
    print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others do not start workers by fork")
def test_loader__goes_on_in_a_forked_child(path):
    """As torch's workers start: none of the parent's threads are there."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "ignore", "-c", FORKED, str(path)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loader__a_bad_cell_is_told_whatever_the_strategy(tmp_path, adata, strategy):
    copy = adata.copy()
    copy.X = copy.X.astype(np.float32)
    copy.X.data[copy.X.indptr[150]] = np.nan
    path = stores.write(copy, tmp_path, "h5ad")
    options = {"strategy": strategy, "batch_size": 30, "normalize": "log1p"}
    with (
        Loader(path, **options, **QUIET) as loader,
        pytest.raises(InputError, match=r"gene .* in cell 150 \('cell-150'\) is not finite"),
    ):
        list(loader)


def test_loader__file_that_was_replaced(tmp_path, adata):
    (tmp_path / "new").mkdir()
    path, new = (stores.write(adata, f, "h5ad") for f in (tmp_path, tmp_path / "new"))
    with Loader(path, batch_size=30, **QUIET) as loader:
        loader._job.source._parts()[0].close()  # as after a pause: files are opened again
        new.replace(path)
        with pytest.raises(InputError, match="has changed since it was opened"):
            list(loader)


def test_blocks__only_the_last_batch_is_short(adata, path):
    with Loader(
        path, "cell_type", order="blocks", batch_size=32, block_size=8, window=64, epochs=3, **QUIET
    ) as loader:
        sizes = [(b.epoch, len(b.obs)) for b in loader]
    assert sizes == [(e, n) for e in range(3) for n in [32] * 9 + [12]]


def test_loader__chunks_larger_than_a_piece_are_decoded_once(tmp_path, adata, monkeypatch):
    """With one cell left out, so that cells are taken; each chunk holds many pieces."""
    path = tmp_path / "large.h5ad"
    with h5py.File(path, "w") as file:
        copy = adata.copy()
        copy.X = sp.csr_matrix(copy.X)
    copy.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            values = file["X"][name][:]
            del file["X"][name]
            chunk = (len(values) // 2,)
            file["X"].create_dataset(name, data=values, chunks=chunk, compression="gzip")
    monkeypatch.setattr(module, "BLOCK", 2_000)
    for where in (None, "n != 7"):
        with Loader(path, batch_size=20, where=where, **QUIET) as loader:
            list(loader)
        assert loader.actual_.decoded == pytest.approx(loader.strategy_.decoded, rel=0.3)


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_loader__bytes_of_a_collection(tmp_path, adata, join):
    paths = []
    for i, genes in enumerate((slice(0, 100), slice(20, 120))):
        (tmp_path / str(i)).mkdir()
        paths.append(stores.write(adata[:, genes].copy(), tmp_path / str(i), "zarr3"))
    with Loader(paths, "cell_type", batch_size=50, join=join, **QUIET) as loader:
        assert sum(len(batch.obs) for batch in loader) == 600
    assert loader.actual_.decoded == pytest.approx(loader.strategy_.decoded, rel=0.25)
    assert loader.actual_.held == pytest.approx(loader.strategy_.held, rel=0.4)


BAD = {
    "order": ({"order": "any"}, "order must be 'drawn', 'blocks' or 'stored'; got 'any'"),
    "strategy": ({"strategy": "fast"}, "strategy must be one of 'auto', 'memory', 'sweeps'"),
    "balance of blocks": ({"order": "blocks", "balance": True}, "balance is for order='drawn'"),
    "no labels": ({"labels": None, "balance": True}, "balance needs labels: name an obs column"),
    "window": ({"order": "blocks", "window": 100, "batch_size": 64}, "window must hold whole"),
    "memory": ({"memory": "100MB", "batch_size": 10**6}, "memory is too small for batch_size=1,"),
    "both": ({"balance": True, "quotas": "equal"}, "quotas set the cells of each type"),
    "normalize": ({"normalize": "log2p"}, "normalize must be 'log1p' or None; got 'log2p'"),
    "scratch": ({"scratch": "/nonexistent"}, "scratch must be a folder"),
    "quotas word": ({"quotas": "even"}, "quotas must be one of 'equal', None; got 'even'"),
    "quotas number": ({"quotas": {"NK": 2.5}}, "quotas['NK'] must be a whole number of at least 1"),
    "quotas with weights": (
        {"quotas": "equal", "sampling_weight": "n"},
        "quotas with sampling_weight draw with replacement",
    ),
    "batch_key alone": ({"batch_key": "donor"}, "batch_key is for balance=True or quotas"),
    "a class without weight": (
        {"balance": True, "replace": True, "sampling_weight": np.arange(300) < 0},
        "the weights of sampling_weight are all zero",
    ),
    "too few weights": (
        {"sampling_weight": np.arange(300) < 50, "batch_size": 40, "batch_number": 4},
        "sampling_weight is above 0 in 50 cells, and an epoch draws 160",
    ),
    "strategy that does not fit": (
        {"strategy": "memory", "memory": "150MB", "batch_number": 10**6, "replace": True},
        "memory",
    ),
    "batch_size": ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
    "epochs": ({"epochs": 1.5}, "epochs must be a whole number of at least 1; got 1.5"),
    "column": ({"labels": "cell_typo"}, "cell_type"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_loader__bad_input(path, options, message):
    given = {"labels": "cell_type", "progress": False} | options
    with pytest.raises(InputError, match=re.escape(message)):
        Loader(path, given.pop("labels"), **given)


def test_plan_order__blocks_without_drawn_cells():
    plan = Plan(
        np.zeros(9, np.int32), 1, batch_size=3, batch_number=2, epochs=1, balance=False,
        shuffle=True, seed=0,
    )  # fmt: skip
    source = open_source(sp.csr_matrix(np.eye(9, dtype=np.float32)), genes=list("abcdefghi"))
    order = PlanOrder(plan, 1, 9, np.float32, None)
    for cell in range(9):
        order.append(source.read(cell, cell + 1), np.array([cell]))
        order.append(source.read(0, 0), np.empty(0, np.int64))
    order.finish()
    assert [rows.indices.tolist() for _, _, rows in order.serve()] == [
        cells.tolist() for _, cells in planned(plan)
    ]


def test_plan_order__scratch_goes_window_by_window():
    codes = np.zeros(100, np.int32)
    plan = Plan(
        codes, 1, batch_size=10, batch_number=10, epochs=1, balance=False, shuffle=True, seed=0
    )
    X = sp.random(100, 20, 0.3, "csr", np.float32, random_state=0)
    source = open_source(X, genes=[f"g{j}" for j in range(20)])
    order = PlanOrder(plan, 2, 20, np.float32, None)
    for start in (0, 37, 90):
        stop = {0: 37, 37: 90, 90: 100}[start]
        order.append(source.read(start, stop), np.arange(start, stop))
    order.finish()
    assert order.nbytes == 6 * X.nnz
    left = []
    for _, cells, rows in order.serve():
        left.append(order.nbytes)
        dense = sp.csr_matrix((rows.data, rows.indices, rows.indptr), (10, 20)).toarray()
        np.testing.assert_array_equal(dense, X[cells].toarray())
    assert left[0] > left[-1] == 0
    order.close()


def planner(path, means, wanted="auto", **options):
    with Loader(path, "cell_type", **{"batch_size": 20, "epochs": 4} | options | QUIET) as loader:
        plan, job = loader._plan, loader._job
        drawn = np.flatnonzero(plan.ever_drawn())
        return choose(plan, job.source, job.row, drawn, job.cell_bytes, means, wanted), job


def test_choose__what_fits_and_costs_least(path):
    plenty, none = 10**9, 10**4
    distinct = 300 * planner(path, Means(plenty, plenty, plenty))[1].cell_bytes
    for means, name in (
        (Means(plenty, plenty, plenty), "memory"),
        (Means(distinct, plenty, plenty), "memory"),
        (Means(distinct - 1, plenty, plenty), "scratch"),
        (Means(distinct - 1, distinct - 1, plenty), "sweeps"),
    ):
        assert planner(path, means)[0].name == name, means
    # Beyond the page cache, in order beats cell by cell.
    beyond = Means(distinct - 1, plenty, none)
    ordered, scattered = (planner(path, beyond, name)[0] for name in ("plan order", "scratch"))
    assert ordered.seconds < scattered.seconds
    within = Means(distinct - 1, plenty, plenty)
    ordered, scattered = (planner(path, within, name)[0] for name in ("plan order", "scratch"))
    assert ordered.seconds > scattered.seconds
    with pytest.raises(InputError, match="too little for any strategy: 300 cells of"):
        planner(path, Means(none / 10, none / 10, none))
    with pytest.raises(InputError, match="too little for strategy='memory'"):
        planner(path, Means(distinct - 1, plenty, plenty), "memory")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", ["h5ad", "zarr2", "sharded"])
def test_choose__predicts_the_bytes(tmp_path, adata, caplog, strategy, form):
    """Within a quarter: cells are taken as equally long, and chunks as whole."""
    path = stores.write(adata, tmp_path, form)
    with (
        caplog.at_level(logging.INFO, "streamtrain"),
        Loader(path, "cell_type", batch_size=50, epochs=2, strategy=strategy, **QUIET) as loader,
    ):
        list(loader)
    for what in ("decoded", "written", "read", "held"):
        said, done = getattr(loader.strategy_, what), getattr(loader.actual_, what)
        if strategy in ("sweeps", "plan order") and what == "held":
            continue  # room for two windows, of which there are not as many
        assert done == pytest.approx(said, rel=0.25), what
    assert f"cells come by {strategy} (" in caplog.text
    assert f"cells came by {strategy} (" in caplog.text
    assert "epoch 2: 300 cells drawn, 300 distinct" in caplog.text


PEAK = """
import re, sys
from pathlib import Path
from streamtrain import Loader
status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
small, large, *ways = sys.argv[1:]
def peak(source, memory, options):
    marks.write_text("5")  # the high-water mark begins again here
    with Loader(source, "cell_type", batch_size=512, memory=memory, progress=False, **options) as l:
        cells = sum(batch.cells.n_obs for batch in l)
    return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024, cells
ways = [(memory, dict([option.split("=")])) for memory, option in (w.split(" ", 1) for w in ways)]
for _, options in ways:
    base, _ = peak(small, "1GB", options)  # libraries, and kernels as they are loaded
for memory, options in ways:
    found, cells = peak(large, memory, options)
    print(found - base, cells)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RSS is counted in other ways elsewhere")
def test_loader__stays_in_the_budget(tmp_path):
    """Cells of 190 MB as kept, 380 MB as delivered, by every way."""
    small, large = tmp_path / "small.zarr", tmp_path / "large.h5ad"
    simulate(small, n_obs=2000, n_vars=3000, n_types=4, progress=False)
    simulate(
        large, n_obs=80_000, n_vars=3000, n_types=60, n_donors=4, compression="gzip", progress=False
    )
    ways = {
        "strategy=scratch": 160, "strategy=plan order": 160, "strategy=sweeps": 160,
        "order=stored": 160, "order=blocks": 260, "strategy=memory": 450,
    }  # fmt: skip
    given = [f"{memory}MB {way}" for way, memory in ways.items()]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PEAK, str(small), str(large), *given],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    for (way, memory), (peak, cells) in zip(ways.items(), lines, strict=True):
        assert cells == 80_000
        assert peak < memory * 1e6, way
