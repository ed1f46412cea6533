"""convert(client=): workers in processes of their own write the bytes that one process writes."""

import errno
import importlib
import os
import signal

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain import conversion, partial, sharded
from streamtrain.cluster import converting
from streamtrain.cluster.workers import Workers
from streamtrain.errors import InputError
from streamtrain.partial import GrowingFile
from tests import stores
from tests.cluster import workers

pytestmark = pytest.mark.slow  # a minute together

SMALL = {"chunk_size": 7, "shard_size": 28, "progress": False, "memory": "300MB"}


def convert(X, out, **options):
    return streamtrain.convert(X, out, **(SMALL | options))


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def replaced(name, value):
    """Replace a global name, such as `os.fsync`, and give what it was."""
    module, _, name = name.rpartition(".")
    found = importlib.import_module(module)
    former = getattr(found, name)
    setattr(found, name, value)
    return former


def nothing(*_):
    """What waits for no disk, and collects no garbage."""


QUICK = ("os.fsync", "streamtrain.cluster.turns.release_freed")


@pytest.fixture(scope="module")
def client():
    with workers(2) as client:
        for name in QUICK:
            client.run(replaced, name, nothing)
        yield client


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """A task for a few cells, or for one shard; several buckets."""
    for name, value in (("_LEAST", 16), ("_ENTRIES", 1), ("_BUCKET", 20)):
        monkeypatch.setattr(converting, name, value)
    monkeypatch.setattr(converting, "release_freed", nothing)
    monkeypatch.setattr(conversion, "release_freed", nothing)
    monkeypatch.setattr(os, "fsync", nothing)


@pytest.fixture
def source(tmp_path):
    return stores.write(stores.make_anndata(n_obs=45), tmp_path, "h5ad")


def assert_same(client, X, folder, **options):
    """Both write the same, and leave nothing else."""
    before = {path.name for path in folder.iterdir()}
    alone = tree(convert(X, folder / "alone.zarr", overwrite=True, **options))
    found = tree(convert(X, folder / "workers.zarr", overwrite=True, client=client, **options))
    assert found.keys() == alone.keys()
    assert [name for name in alone if found[name] != alone[name]] == []
    assert {p.name for p in folder.iterdir()} == before | {"alone.zarr", "workers.zarr"}
    return found


@pytest.mark.parametrize(
    ("form", "kind", "mixed"),
    [
        ("h5ad", "csr", False),
        ("sharded", "csr", True),
        ("zarr3", "dense", False),
        ("h5ad", "csc", False),
        ("zarr2", "csc", True),
    ],
)
def test_convert__same_bytes(tmp_path, client, form, kind, mixed):
    source = stores.write(stores.make_anndata(kind, n_obs=45), tmp_path, form)
    found = assert_same(client, source, tmp_path, shuffle=mixed, random_state=3)
    assert sum(name.startswith("X/data/c/") for name in found) > 4


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"where": "cell_type in ['T0', 'T2'] and n_genes > 4", "index_dtype": "uint16"},
        {"chunk_size": 1, "shard_size": 2, "layer": "raw"},  # cells span several tasks
        {"chunk_size": 1000, "shard_size": 3000, "compression": "zstd", "gene_key": "symbol"},
    ],
)
def test_convert__same_bytes_with_options(tmp_path, client, source, options, mixed):
    assert_same(client, source, tmp_path, shuffle=mixed, **options)


@pytest.mark.parametrize(("join", "mixed"), [("outer", False), ("inner", False), ("inner", True)])
def test_convert__several_files(tmp_path, client, join, mixed):
    paths = []
    for i in range(3):
        adata = stores.make_anndata("dense" if i == 1 else "csr", n_obs=20 + i)
        adata.var_names = [f"g{(5 * j) % 11 + i}" for j in range(11)]
        adata.obs_names = [f"zelle-é-{i}-{k}" for k in range(adata.n_obs)]
        paths.append(tmp_path / f"{i}.h5ad")
        adata.write_h5ad(paths[-1])
    assert_same(client, paths, tmp_path, shuffle=mixed, join=join, where="flag")


@pytest.mark.parametrize("mixed", [False, True])
def test_convert__cells_that_repeat_genes(tmp_path, client, mixed, caplog):
    """Their offsets count more entries than come: the first plan is wrong, and is dropped."""
    rng, n = np.random.default_rng(0), 60
    indices, lengths = rng.integers(0, 9, 6 * n), np.full(n, 6)
    lengths[[4, 40]], lengths[5] = 0, 18
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = np.arange(1, 6 * n + 1, dtype="f4")
    ad.AnnData(sp.csr_matrix((data, indices, indptr), (n, 20))).write_h5ad(tmp_path / "a.h5ad")
    with caplog.at_level("INFO", "streamtrain"):
        assert_same(client, tmp_path / "a.h5ad", tmp_path, shuffle=mixed)
    assert ("cells repeat genes, and are read to count" in caplog.text) == (not mixed)


@pytest.mark.parametrize(("n", "mixed"), [(1, True), (40, False)])
def test_convert__no_entries(tmp_path, client, n, mixed):
    ad.AnnData(sp.csr_matrix((n, 3), dtype="f4")).write_h5ad(tmp_path / "a.h5ad")
    assert_same(client, tmp_path / "a.h5ad", tmp_path, shuffle=mixed)


@pytest.mark.parametrize("mixed", [False, True])
def test_convert__little_room(tmp_path, client, source, mixed, in_workers):
    """Blocks and windows of a cell or two."""
    in_workers("streamtrain.cluster.conversion_tasks.room_for", _little)
    (tmp_path / "scratch").mkdir()
    assert_same(client, source, tmp_path, shuffle=mixed, scratch=tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())


def _little(*_, **__):
    return 600


@pytest.fixture
def in_workers(client):
    """Replaces a global name in the workers."""
    former = {}

    def replace(name, value):
        former[name] = next(iter(client.run(replaced, name, value).values()))

    yield replace
    for name, value in former.items():
        client.run(replaced, name, value)


@pytest.mark.parametrize(("n", "threads"), [(1, 2), (3, 1)])
def test_convert__any_number_of_workers(tmp_path, source, n, threads):
    with workers(n, threads) as client:
        for mixed in (False, True):
            assert_same(client, source, tmp_path, shuffle=mixed)


@pytest.mark.parametrize("mixed", [False, True])
def test_convert__workers_are_killed(tmp_path, mixed, monkeypatch):
    """One in each stage, while it has tasks."""
    source = stores.write(stores.make_anndata(n_obs=150), tmp_path, "h5ad")
    taken, killed, real = {}, [], Workers.result

    def result(self, task):
        found = real(self, task)
        taken[task.name] = taken.get(task.name, 0) + 1
        if taken[task.name] == 2:
            pid = min(client.run(os.getpid).values())
            killed.append((task.name, pid))
            os.kill(pid, signal.SIGKILL)
        return found

    with workers(2) as client:
        alone = tree(convert(source, tmp_path / "alone.zarr", shuffle=mixed))
        monkeypatch.setattr(Workers, "result", result)
        found = tree(convert(source, tmp_path / "a.zarr", shuffle=mixed, client=client))
    assert found == alone
    first = "scatter-cells" if mixed else "count-entries"
    assert [name for name, _ in killed] == [first, "write-shards", "check-cells"]
    assert {path.name for path in tmp_path.iterdir()} == {"atlas.h5ad", "alone.zarr", "a.zarr"}


def plain_parts(lengths, shard, per_task):
    """Which cells each part has entries of, which begin in it, and where its entries lie."""
    entries = [cell for cell, n in enumerate(lengths) for _ in range(n)]
    size = shard * per_task
    starts = np.concatenate([[0], np.cumsum(lengths)])
    parts = []
    for k in range(max(1, -(-len(entries) // size))):
        mine = entries[k * size : (k + 1) * size]
        last = (k + 1) * size >= len(entries)
        begin = [
            cell
            for cell in range(len(lengths))
            if k * size <= starts[cell] and (last or starts[cell] < (k + 1) * size)
        ]
        parts.append((mine, begin))
    return parts


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(1, 20),
    st.integers(1, 50),
)  # fmt: skip
def test_cut_shards__plain(tmp_path_factory, lengths, shard, least, step):
    file = GrowingFile(tmp_path_factory.mktemp("cut") / "lengths", np.uint32, 0)
    file.append(np.array(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converting, "_ENTRIES", least)
        patch.setattr(converting, "_SLICE", step)
        nnz, parts = converting.cut_shards(file, shard)
    file.close()
    assert nnz == sum(lengths)
    expected = plain_parts(lengths, shard, -(-least // shard))
    assert len(parts) == len(expected)
    at = 0
    for part, (mine, begin) in zip(parts, expected, strict=True):
        assert part.shard * shard == at
        at += part.entries
        cells = [c for c in range(part.first, part.stop) for _ in range(lengths[c])]
        assert part.total == len(cells)
        assert cells[part.skip : part.skip + part.entries] == mine
        assert list(range(part.own, part.stop)) == begin
        assert part.own - part.first in (0, 1)
    assert at == nnz


def test_cut_shards__few_tasks_for_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "_TASKS", 10)
    file = GrowingFile(tmp_path / "lengths", np.uint32, 0)
    file.append(np.full(1000, 7))
    assert len(converting.cut_shards(file, 1)[1]) == 10
    file.close()


def test_convert__a_worker_without_the_folder(tmp_path, client, source, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    real = converting.Job
    monkeypatch.setattr(converting, "Job", lambda **k: real(**(k | {"folder": elsewhere})))
    with pytest.raises(
        InputError, match=r"the worker at tcp://.* finds no .*elsewhere: put it on a file system"
    ):
        convert(source, tmp_path / "a.zarr", client=client)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_convert__what_workers_cannot_read(tmp_path, client, source):
    for X in (stores.make_anndata(), [source, stores.make_anndata()]):
        with pytest.raises(InputError, match=r"on a cluster each worker reads the cells by itself"):
            convert(X, tmp_path / "a.zarr", client=client)
    with pytest.raises(InputError, match=r"client must be a dask.distributed Client; got a str"):
        convert(source, tmp_path / "a.zarr", client="tcp://127.0.0.1:1")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("mixed", [False, True])
def test_convert__a_damaged_source(tmp_path, client, mixed):
    source = stores.write(stores.make_anndata(n_obs=45), tmp_path, "sharded")
    file = sorted((source / "X/indices/c").iterdir())[2]
    file.write_bytes(b"\xff" * len(file.read_bytes()))
    with pytest.raises(InputError, match="is damaged: it cannot be read"):
        convert(source, tmp_path / "a.zarr", client=client, shuffle=mixed)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_convert__full_disk(tmp_path, client, source, in_workers):
    in_workers("os.pwrite", _full)
    with pytest.raises(InputError, match=r"the disk of .* is full .*free some space there"):
        convert(source, tmp_path / "a.zarr", client=client, shuffle=True)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("what", "different"),
    [
        *((what, r"cell \d+ is different") for what in ("X/data", "obs/_index")),
        ("obs/cell_type/codes", "a column of obs or var is different"),
        (None, "it cannot be read: "),
    ],
)
def test_convert__what_reads_back_otherwise_is_not_kept(
    tmp_path, client, source, monkeypatch, what, different
):
    real = sharded.CellFiles.finish_cells

    def spoil(self, nnz):
        real(self, nnz)
        if what is None:
            path = tmp_path / ".a.zarr.partial/store.zarr/X/data/c"
            next(path.iterdir()).write_bytes(b"?" * 90)
        else:
            array = self.root[what]
            array[9:11] = array[9:11][::-1]

    monkeypatch.setattr(sharded.CellFiles, "finish_cells", spoil)
    with pytest.raises(OSError, match=rf"reads back as something else \({different}"):
        convert(source, tmp_path / "a.zarr", client=client)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


class StopError(Exception):
    pass


def stop(*_):
    raise StopError


def test_convert__does_not_go_on_from_one_process(tmp_path, client, source, monkeypatch, caplog):
    alone = tree(convert(source, tmp_path / "alone.zarr", shuffle=True))
    with monkeypatch.context() as patch:
        patch.setattr(sharded.ShardedAnnData, "finish", stop)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr", shuffle=True)
    assert (tmp_path / ".a.zarr.partial/journal.json").exists()
    with caplog.at_level("INFO", "streamtrain"):
        found = convert(source, tmp_path / "a.zarr", shuffle=True, client=client)
    assert "going on" not in caplog.text
    assert tree(found) == alone


@pytest.mark.parametrize("again", [False, True])
def test_convert__begins_anew_after_a_kill(tmp_path, client, source, again, monkeypatch, caplog):
    """A process that is killed deletes nothing."""
    alone = tree(convert(source, tmp_path / "alone.zarr", shuffle=True))
    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "discard", lambda _: None)
        patch.setattr(sharded.CellFiles, "finish_cells", stop)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr", shuffle=True, client=client)
    left = tmp_path / ".a.zarr.partial"
    assert list((left / "buckets").iterdir())
    with caplog.at_level("INFO", "streamtrain"):
        found = convert(source, tmp_path / "a.zarr", shuffle=True, client=client if again else None)
    assert "going on" not in caplog.text
    assert tree(found) == alone
    assert not left.exists()


def test_convert__a_source_that_changes_meanwhile(tmp_path, client, source, monkeypatch):
    real = conversion.Conversion.verify
    monkeypatch.setattr(
        conversion.Conversion, "verify", lambda *a: (real(*a), os.utime(source, ns=(1, 1)))
    )
    with pytest.raises(InputError, match=r"was changed while it was read: run again"):
        convert(source, tmp_path / "a.zarr", client=client)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
