"""convert: what comes out is what went in, in the order asked for, whatever happens on the way."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import permutations
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import streamtrain
import streamtrain.convert
from streamtrain import atomic, conversion, partial, sampling, sharded, shards, shuffle, writing
from streamtrain.errors import InputError
from streamtrain.kernels import checksum
from streamtrain.sampling import permutation
from streamtrain.streaming import sweep
from tests import stores
from tests.test_cli import call

module = sys.modules["streamtrain.convert"]
SMALL = {"chunk_size": 7, "shard_size": 28, "progress": False}


def convert(X, out, **options):
    return streamtrain.convert(X, out, **(SMALL | options))


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def dense(adata):
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def assert_same(found, adata, order=slice(None)):
    """`found` holds the cells `order` of `adata`, as CSR."""
    expected = adata[order]
    assert found.X.format == "csr"
    assert found.X.has_canonical_format
    assert found.X.dtype == expected.X.dtype
    np.testing.assert_array_equal(dense(found), dense(expected))
    pd.testing.assert_frame_equal(found.obs, adata.obs.iloc[order])  # a view drops categories
    pd.testing.assert_frame_equal(found.var, adata.var)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Neither wait for the disk nor collect garbage: half the time of small conversions."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(module, "release_freed", lambda: None)
    monkeypatch.setattr(conversion, "release_freed", lambda: None)


@pytest.fixture
def little_room(monkeypatch):
    """Blocks and windows of a few cells."""

    def set_room(room=3_000, most=shuffle.MOST):
        monkeypatch.setattr(module, "room_for", lambda *_: room)
        monkeypatch.setattr(conversion, "MOST", most)

    return set_room


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *(("h5ad", k) for k in stores.KINDS),
        ("zarr2", "csr"),
        ("zarr3", "csr"),
        ("sharded", "dense"),
    ],
)
def test_convert__round_trip(tmp_path, form, kind):
    adata = stores.make_anndata(kind)
    source = stores.write(adata, tmp_path, form)
    before = tree(tmp_path)
    assert_same(ad.read_zarr(convert(source, tmp_path / "a.zarr")), adata)
    convert(source, tmp_path / "b.zarr", shuffle=True, random_state=5)
    assert_same(ad.read_zarr(tmp_path / "b.zarr"), adata, permutation(23, 5))
    after = {k: v for k, v in tree(tmp_path).items() if not k.startswith(("a.zarr", "b.zarr"))}
    assert after == before, "nothing else is left behind, and the source is as it was"


def columns(n):
    missing = np.arange(n) % 4 == 1
    text = pd.Series([f"t{i % 3}" for i in range(n)], dtype=object)
    text[missing] = None
    floats = np.arange(n) / 3
    floats[missing] = np.nan
    return {
        "category": pd.Categorical(text, categories=["t2", "t0", "t1", "unused"]),
        "ordered": pd.Categorical([f"{i % 3}" for i in range(n)], ["2", "0", "1"], ordered=True),
        "numbers": pd.Categorical(np.arange(n) % 3 + 0.5),
        "whole": np.arange(n, dtype=np.int16),
        "fraction": floats.astype(np.float32),
        "flag": np.arange(n) % 2 == 0,
        "nullable": pd.array(np.ma.masked_array(np.arange(n), missing).tolist(), "Int64"),
        "maybe": pd.array([None if m else bool(i % 2) for i, m in enumerate(missing)], "boolean"),
        "text": text.astype("category"),
        "unique": np.array([f"barcode é {i:03d}" for i in range(n)], object),
    }


@pytest.mark.parametrize(
    ("form", "names"), [("memory", 1 << 16), ("h5ad", 4), ("zarr3", 300)]
)  # one chunk, and several in shards
def test_convert__columns_of_obs_and_var(tmp_path, monkeypatch, form, names):
    monkeypatch.setattr(sharded, "_NAMES", names)
    adata = stores.make_anndata(n_obs=300)
    adata.obs_names = [f"Zelle \N{GREEK SMALL LETTER ALPHA}{i}" for i in range(300)]
    adata.obs = pd.DataFrame(columns(300), index=adata.obs_names.rename("barcode"))
    adata.var = pd.DataFrame(columns(11), index=adata.var_names.rename("gene id"))
    source = adata if form == "memory" else stores.write(adata, tmp_path, form)
    found = ad.read_zarr(convert(source, tmp_path / "a.zarr", shuffle=True))
    assert_same(found, adata, permutation(300, 0))
    shards = zarr.open_group(tmp_path / "a.zarr")["obs/barcode"].shards
    assert shards == ((16,) if names == 4 else None)


@pytest.mark.parametrize("dtype", ["float64", "uint8", "int16", "uint32", "int64"])
def test_convert__values_keep_their_type(tmp_path, dtype):
    X = sp.csr_matrix(stores.positions(20, 9) * 3).astype(dtype)
    adata = ad.AnnData(X, stores.make_anndata(n_obs=20).obs)
    found = ad.read_zarr(convert(adata, tmp_path / "a.zarr", shuffle=True))
    assert found.X.dtype == dtype
    np.testing.assert_array_equal(dense(found), X[permutation(20, 0)].toarray())


def test_convert__nan_and_stored_zeros_stay(tmp_path):
    X = sp.csr_matrix((np.array([np.nan, 0.0, -0.0, 5.0], "f4"), [1, 0, 2, 3], [0, 1, 4]), (2, 4))
    found = ad.read_zarr(convert(ad.AnnData(X), tmp_path / "a.zarr")).X
    assert found.data.tobytes() == X.data.tobytes()
    assert found.indices.tolist() == X.indices.tolist()


@pytest.mark.parametrize("shape", [(1, 1), (5, 3)])
@pytest.mark.parametrize("mixed", [False, True])
def test_convert__no_entries(tmp_path, shape, mixed):
    found = ad.read_zarr(
        convert(ad.AnnData(sp.csr_matrix(shape, dtype="f4")), tmp_path / "a.zarr", shuffle=mixed)
    )
    assert found.X.nnz == 0
    assert found.shape == shape


def test_convert__layers_raw_and_gene_key(tmp_path, caplog):
    adata = stores.make_anndata()
    adata.obsm["X_pca"] = np.zeros((23, 2))
    source = stores.write(adata, tmp_path, "h5ad")
    found = ad.read_zarr(convert(source, tmp_path / "a.zarr", layer="counts", gene_key="symbol"))
    np.testing.assert_array_equal(dense(found), adata.layers["counts"].toarray())
    assert found.var_names.tolist() == adata.var["symbol"].tolist()
    assert found.var["var_names"].tolist() == adata.var_names.tolist()
    assert "left out of the output: obsm/X_pca, X, raw/X" in caplog.text
    caplog.clear()
    for X in (source, adata):
        found = ad.read_zarr(convert(X, tmp_path / "a.zarr", layer="raw", overwrite=True))
        np.testing.assert_array_equal(dense(found), adata.raw.X.toarray())
        assert found.var_names.tolist() == adata.raw.var_names.tolist()
        assert "left out of the output: layers/counts, obsm/X_pca, X\n" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("mixed", [False, True])
def test_convert__selected_cells(tmp_path, mixed, little_room):
    little_room()
    adata = stores.make_anndata()
    source = stores.write(adata, tmp_path, "h5ad")
    where = "cell_type in ['T0', 'T2'] and n_genes > 4"
    convert(source, tmp_path / "a.zarr", where=where, shuffle=mixed)
    part = adata[(adata.obs.cell_type != "T1") & (adata.obs.n_genes > 4)]
    expected = part[permutation(part.n_obs, 0)] if mixed else part
    found = ad.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(dense(found), dense(expected))
    assert found.obs_names.equals(expected.obs_names)
    assert found.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()


def test_convert__view_in_memory(tmp_path):
    adata = stores.make_anndata()
    found = ad.read_zarr(convert(adata[[4, 2, 9], 3:8], tmp_path / "a.zarr"))
    np.testing.assert_array_equal(dense(found), dense(adata)[[4, 2, 9], 3:8])
    pd.testing.assert_frame_equal(found.var, adata.var.iloc[3:8])
    assert found.obs_names.tolist() == ["cell4", "cell2", "cell9"]


@pytest.mark.slow
def test_convert__text_table(tmp_path):
    frame = pd.DataFrame(stores.positions(6, 4), [f"c{i}" for i in range(6)], list("abcd"))
    frame.to_csv(tmp_path / "t.csv")
    found = ad.read_zarr(convert(tmp_path / "t.csv", tmp_path / "a.zarr", shuffle=True))
    expected = frame.iloc[permutation(6, 0)]
    np.testing.assert_allclose(dense(found), expected)
    assert found.obs_names.tolist() == expected.index.tolist()
    assert found.var_names.tolist() == list("abcd")


@pytest.mark.parametrize(
    ("codec", "index_dtype"),
    [*((codec, "int32") for codec in writing.COMPRESSION[".zarr"]), ("blosc", "uint16")],
)
def test_convert__shards_are_zarrs(tmp_path, codec, index_dtype):
    adata = stores.make_anndata()
    options = {"compression": codec, "index_dtype": index_dtype}
    convert(adata, tmp_path / "a.zarr", **options)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for name, dtype in (("data", "float32"), ("indices", index_dtype)):
        ours = root["X"][name]
        assert (ours.chunks, ours.shards, ours.dtype) == ((7,), (28,), dtype)
        theirs = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=ours.shape, dtype=dtype, chunks=(7,), shards=(28,),
            compressors=ours.compressors or None,
        )  # fmt: skip
        theirs[:] = ours[:]
        for path in sorted((tmp_path / f"{name}.zarr/c").iterdir()):
            mine = (tmp_path / "a.zarr/X" / name / "c" / path.name).read_bytes()
            assert sorted(mine[:-68]) == sorted(path.read_bytes()[:-68])  # zarr may order chunks
            assert len(mine) == len(path.read_bytes())
    assert root["X/indptr"].dtype == np.int32
    assert_same(ad.read_zarr(tmp_path / "a.zarr"), adata)


@pytest.mark.parametrize("index_dtype", ["int32", "uint16"])
def test_convert__anndata_reads_parts(tmp_path, index_dtype):
    adata = stores.make_anndata()
    path = convert(adata, tmp_path / "a.zarr", index_dtype=index_dtype)
    matrix = ad.io.sparse_dataset(zarr.open_group(path)["X"])
    np.testing.assert_array_equal(matrix[3:9].toarray(), dense(adata)[3:9])
    np.testing.assert_array_equal(matrix[[7, 2, 5]].toarray(), dense(adata)[[7, 2, 5]])
    with closing(streamtrain.open_source(path)) as source:
        np.testing.assert_array_equal(stores.read_all(source, 400), dense(adata))


def test_convert__scanpy_works_on_it(tmp_path):
    sc = pytest.importorskip("scanpy", reason="scanpy is not installed")
    full = stores.make_anndata()
    full = full[full.X.sum(1).A1 > 0].copy()
    convert(full, tmp_path / "a.zarr", index_dtype="uint16", shuffle=True)
    adata = ad.read_zarr(tmp_path / "a.zarr")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(np.expm1(adata.X.toarray()).sum(1), 1e4, rtol=1e-4)


def plain_permutation(n, numbers):
    order = list(range(n))
    for i, u in zip(range(n - 1, -1, -1), numbers, strict=True):
        j = int(u * (i + 1))
        order[i], order[j] = order[j], order[i]
    return order


@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_permutation__plain(monkeypatch, n):
    numbers = sampling.uniforms(7, sampling._PERMUTE, 0, n)
    assert permutation(n, 7).tolist() == plain_permutation(n, numbers)
    monkeypatch.setattr(sampling, "_PIECE", 3)
    assert permutation(n, 7).tolist() == plain_permutation(n, numbers)
    assert permutation(n, 7).dtype == np.uint32


def test_permutation__every_order_is_as_likely():
    draws = 12_000
    seen = Counter(tuple(permutation(4, seed).tolist()) for seed in range(draws))
    expected = draws / 24
    assert set(seen) == set(permutations(range(4)))
    # Chi-square of 23 degrees of freedom; its 99.9th percentile.
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 49.7


def test_permutation__distant_cells_mix():
    """Where the first tenth of the cells goes does not depend on its place in storage."""
    place = np.empty(20_000, int)
    place[permutation(20_000, 1)] = np.arange(20_000)
    counts = np.bincount(place[:2_000] * 10 // 20_000, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # 9 degrees of freedom, 99.9th percentile
    assert (permutation(20_000, 1) != permutation(20_000, 2)).any()


def plain_sum(values, genes, name):
    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    step = 0x9E3779B97F4A7C15
    total = sum(
        mix(int(v) ^ ((int(g) + 1) * step % 2**64)) for v, g in zip(values, genes, strict=True)
    )
    state = 0
    for byte in name:
        state = mix(((state ^ byte) + step) % 2**64)
    return (total + state) % 2**64


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64"])
def test_checksum__plain(dtype):
    X = sp.csr_matrix(stores.positions(12, 30) * 5).astype(dtype)
    names = [b"", b"a", b"\xff\x00cell", *(b"cell%d" % i for i in range(9))]
    bits, out = X.data.view(f"u{X.data.itemsize}"), np.zeros(12, np.uint64)
    for lo, hi in ((0, 5), (5, 12)):
        checksum.cell_sums(bits, X.indices, X.indptr, lo, hi, out)
    text = np.frombuffer(b"".join(names), np.uint8)
    checksum.add_name_sums(text, np.cumsum([len(n) for n in names]), out)
    expected = [
        plain_sum(bits[part], X.indices[part], name)
        for name, part in zip(names, map(slice, X.indptr[:-1], X.indptr[1:]), strict=True)
    ]
    assert out.tolist() == expected


def test_convert__same_bytes_for_any_budget_and_threads(tmp_path, little_room, monkeypatch):
    adata = stores.make_anndata(n_obs=90)
    source = stores.write(adata, tmp_path, "sharded")
    whole = tree(convert(source, tmp_path / "one.zarr", shuffle=True, n_jobs=1))
    (tmp_path / "scratch").mkdir()
    made = []
    real = shuffle.Buckets.append
    monkeypatch.setattr(
        shuffle.Buckets,
        "append",
        lambda self, cells, at: (made.append(len(self.sizes)), real(self, cells, at)),
    )
    rooms = [(9_000, 1_024, 13), (40_000, 1_024, 3), (9_000, 2, 2)]
    for i, (room, most, buckets) in enumerate(rooms):
        little_room(room, most)
        out = tmp_path / f"{i}.zarr"
        scratch = str(tmp_path / "scratch") if i == 1 else None
        convert(source, out, shuffle=True, n_jobs=1 + i, scratch=scratch)
        assert tree(out) == whole
        assert made[-1] == buckets
    assert not list((tmp_path / "scratch").iterdir())
    assert_same(ad.read_zarr(tmp_path / "0.zarr"), adata, permutation(90, 0))
    plain = tree(convert(source, tmp_path / "plain.zarr"))
    little_room(500)
    assert tree(convert(source, tmp_path / "plain2.zarr", n_jobs=3)) == plain


STAGES = {
    "scatter": (shuffle.Buckets, "append"),
    "write": (sharded.ShardedAnnData, "append"),
    "commit": (sharded.ShardedAnnData, "commit"),
    "names": (sharded.ShardedAnnData, "_write_names"),
    "verify": (conversion.Conversion, "verify"),
    "shard": (shards.ShardWriter, "_end_shard"),
}


def killed_at(source, out, where, count, mixed):
    """Convert, but kill this process at the end of the count-th call."""
    conversion._EVERY = 0
    module.room_for = lambda *_: 3_000
    kind, name = STAGES[where]
    real, left = getattr(kind, name), [count]

    def last(*arguments, **keywords):
        done = real(*arguments, **keywords)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(kind, name, last)
    convert(source, out, shuffle=mixed)


def kill(*arguments):
    """The same in another process, forked from one that has imported all but has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=killed_at, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.mark.parametrize(
    ("mixed", "kills"),
    [
        (True, [("scatter", 9), ("write", 4)]),
        pytest.param(
            True,
            [("scatter", 3), ("shard", 5), ("shard", 13), ("names", 1)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            False,
            [("write", 3), ("commit", 2), ("shard", 9), ("verify", 1)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_convert__goes_on_after_a_kill(tmp_path, monkeypatch, mixed, kills, caplog):
    source = stores.write(stores.make_anndata(n_obs=150), tmp_path, "h5ad")
    whole = tree(convert(source, tmp_path / "whole.zarr", shuffle=mixed))
    out = tmp_path / "out.zarr"
    journal = tmp_path / ".out.zarr.partial/journal.json"
    done = []
    for where, count in kills:
        assert kill(source, out, where, count, mixed) == -signal.SIGKILL
        assert not out.exists()
        state = json.loads(journal.read_text())["state"]
        done.append(state["swept"] + state["written"].get("n_obs", 0))
    assert done == sorted(done)
    assert done[0] > 0, "the first kill lost something, but not all"
    monkeypatch.setattr(module, "room_for", lambda *_: 9_000)  # another budget changes nothing
    caplog.set_level(logging.INFO, "streamtrain")
    assert tree(convert(source, out, shuffle=mixed)) == whole
    assert "going on with what stands in" in caplog.text
    assert not journal.parent.exists()


@pytest.mark.parametrize("rows", [None, np.array([0, 3, 4, 5, 9, 14, 15, 16, 21])])
@pytest.mark.parametrize("nbytes", [100, 10**6])
def test_sweep__from_a_cell_on(rows, nbytes):
    with closing(streamtrain.open_source(stores.make_anndata())) as source:
        whole = stores.to_dense(source.read(0, 23))[slice(None) if rows is None else rows]
        for start in (0, 1, 5, len(whole) - 1):
            at = start
            for position, block in sweep(source, rows, nbytes, start=start):
                assert position == at
                at += block.n_obs
                np.testing.assert_array_equal(stores.to_dense(block), whole[position:at])
            assert at == len(whole)


class StopError(Exception):
    pass


def stop_at(monkeypatch, kind, name, count, error=StopError):
    """Fail at the count-th call."""
    real, left = getattr(kind, name), [count]

    def failing(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(kind, name, failing)


@pytest.fixture
def begun(tmp_path, monkeypatch, little_room):
    """A conversion that stopped half-way through the sweep."""
    little_room()
    source = stores.write(stores.make_anndata(n_obs=60), tmp_path, "h5ad")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_EVERY", 0)
        stop_at(patch, shuffle.Buckets, "append", 6)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr", shuffle=True)
    assert (tmp_path / ".a.zarr.partial").is_dir()
    return source


def test_convert__an_error_keeps_what_is_done(tmp_path, begun, monkeypatch, caplog):
    calls = []
    real = shuffle.Buckets.append
    monkeypatch.setattr(
        shuffle.Buckets, "append", lambda self, cells, at: (calls.append(at), real(self, cells, at))
    )
    convert(begun, tmp_path / "a.zarr", shuffle=True)
    again = len(calls)
    convert(begun, tmp_path / "b.zarr", shuffle=True)
    assert again == len(calls) - again - 5, "five blocks were not swept again"
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.mark.parametrize("change", ["source", "settings", "transpose", "journal", "bucket"])
def test_convert__begins_anew(tmp_path, begun, caplog, change):
    options = {"shuffle": True}
    if change == "source":
        os.utime(begun, ns=(1, 1))
    elif change == "settings":
        options["random_state"] = 3
    elif change == "transpose":
        options["transpose_input"] = True
    elif change == "journal":
        (tmp_path / ".a.zarr.partial/journal.json").write_text("{")
    else:
        next((tmp_path / ".a.zarr.partial/buckets").iterdir()).unlink()
    caplog.clear()
    convert(begun, tmp_path / "a.zarr", **options)
    assert "going on" not in caplog.text
    word = {"source": "files", "settings": "random_state", "transpose": "transpose_input"}.get(
        change
    )
    assert (f"begun with other settings ({word}): it is begun anew" in caplog.text) == bool(word)
    assert ("are missing: it is begun anew" in caplog.text) == (change == "bucket")
    adata = ad.read_h5ad(begun)
    order = permutation(60, options.get("random_state", 0))
    assert_same(ad.read_zarr(tmp_path / "a.zarr"), adata, order)


def test_convert__scratch_elsewhere_goes_with_it(tmp_path, monkeypatch, little_room):
    little_room()
    monkeypatch.setattr(conversion, "_EVERY", 0)
    source = stores.write(stores.make_anndata(n_obs=60), tmp_path, "h5ad")
    (tmp_path / "scratch").mkdir()
    options = {"shuffle": True, "scratch": str(tmp_path / "scratch")}
    with monkeypatch.context() as patch:
        stop_at(patch, shuffle.Buckets, "append", 6)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr", **options)
    (buckets,) = (tmp_path / "scratch").iterdir()
    assert list(buckets.iterdir())
    convert(source, tmp_path / "a.zarr", **options)
    assert not list((tmp_path / "scratch").iterdir())
    assert not (tmp_path / ".a.zarr.partial").exists()


def test_convert__cells_in_memory_are_begun_anew(tmp_path, monkeypatch, little_room):
    little_room()
    monkeypatch.setattr(conversion, "_EVERY", 0)
    with monkeypatch.context() as patch:
        stop_at(patch, shuffle.Buckets, "append", 3)
        with pytest.raises(StopError):
            convert(stores.make_anndata(), tmp_path / "a.zarr", shuffle=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_convert__full_disk(tmp_path, begun, monkeypatch, error, caplog):
    with monkeypatch.context() as patch:
        stop_at(patch, partial.os, "pwrite", 30, OSError(error, os.strerror(error)))
        with pytest.raises(InputError, match=r"the disk of .* is full .*free some space there"):
            convert(begun, tmp_path / "a.zarr", shuffle=True)
    assert not (tmp_path / "a.zarr").exists()
    assert "run the same again to go on from there" in caplog.text
    convert(begun, tmp_path / "a.zarr", shuffle=True)
    assert_same(ad.read_zarr(tmp_path / "a.zarr"), ad.read_h5ad(begun), permutation(60, 0))


def test_convert__too_little_space_to_begin(tmp_path, monkeypatch):
    source = stores.write(stores.make_anndata(), tmp_path, "h5ad")
    before = tree(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    text = r"^23 cells of 3 entries, while they are shuffled, takes about .* has 100 bytes free: "
    with pytest.raises(
        InputError, match=text + r"choose a larger disk by out \(--out\), or shuffle"
    ):
        convert(source, tmp_path / "a.zarr", shuffle=True)
    with pytest.raises(InputError, match=r"free: choose a larger disk by out \(--out\)\n"):
        convert(source, tmp_path / "a.zarr")
    with pytest.raises(
        InputError, match=r"^shuffling 23 cells .* by scratch=FOLDER \(--scratch\)\n"
    ):
        convert(source, tmp_path / "a.zarr", shuffle=True, scratch=str(tmp_path))
    with pytest.raises(InputError, match=r"scratch must be a folder .*none: No such file"):
        convert(source, tmp_path / "a.zarr", shuffle=True, scratch=str(tmp_path / "none"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("what", "different"),
    [
        *((what, r"cell \d+") for what in ("X/data", "X/indices", "obs/_index")),
        *((what, "a column of obs or var") for what in ("obs/cell_type/codes", "var/symbol")),
    ],
)
def test_convert__what_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch, what, different):
    adata = stores.make_anndata()
    real = sharded.ShardedAnnData.finish

    def spoil(self) -> None:
        real(self)
        array = self.root[what]
        array[9:11] = array[9:11][::-1]

    monkeypatch.setattr(sharded.ShardedAnnData, "finish", spoil)
    with pytest.raises(
        OSError, match=rf"reads back as something else \({different} is different\)"
    ):
        convert(adata, tmp_path / "a.zarr", shuffle=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("length", "what"), [(23, "obs column 'cell_type'"), (11, "var column 'symbol'")]
)
def test_convert__a_column_that_reads_back_otherwise(tmp_path, monkeypatch, length, what):
    real = sharded.read_elem

    def spoiled(node):
        found = real(node)
        return found if len(found) != length else found.iloc[::-1] if length == 11 else found[::-1]

    monkeypatch.setattr(sharded, "read_elem", spoiled)
    with pytest.raises(OSError, match=f"{what} .* reads back as something else"):
        convert(stores.make_anndata(), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_convert__a_bucket_that_lacks_cells(tmp_path, begun):
    journal = tmp_path / ".a.zarr.partial/journal.json"
    found = json.loads(journal.read_text())
    found["state"] |= {"swept": 60}
    journal.write_text(json.dumps(found))
    (journal.parent / "buckets/0.bucket").touch()
    with pytest.raises(OSError, match=r"0\.bucket lacks cells: something else wrote to it"):
        convert(begun, tmp_path / "a.zarr", shuffle=True)


def test_convert__one_process_at_a_time(tmp_path, begun):
    with (tmp_path / ".a.zarr.partial/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process writes"):
            convert(begun, tmp_path / "a.zarr", shuffle=True)
    convert(begun, tmp_path / "a.zarr", shuffle=True)


def test_convert__overwrites_only_when_asked_and_done(tmp_path, monkeypatch):
    adata = stores.make_anndata()
    convert(adata, tmp_path / "a.zarr")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="exists: pass overwrite=True"):
        convert(adata, tmp_path / "a.zarr")
    with monkeypatch.context() as patch:
        stop_at(patch, sharded.ShardedAnnData, "append", 1)
        with pytest.raises(StopError):
            convert(adata, tmp_path / "a.zarr", overwrite=True, shuffle=True)
    assert {k: v for k, v in tree(tmp_path).items() if k.startswith("a.zarr")} == before
    convert(adata, tmp_path / "a.zarr", overwrite=True, shuffle=True)
    assert_same(ad.read_zarr(tmp_path / "a.zarr"), adata, permutation(23, 0))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shard_size": 30}, r"shard_size must be a multiple of chunk_size; got 30 and 7"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1; got 0"),
        ({"shard_size": 28.0}, "shard_size must be a whole number of at least 1; got 28.0"),
        ({"random_state": -1}, "random_state must be a whole number of at least 0; got -1"),
        ({"shuffle": 1}, "shuffle must be True or False; got 1"),
        ({"compression": "gzip"}, "compression='gzip' is not known"),
        ({"index_dtype": "int16"}, "index_dtype='int16' is not known: did you mean"),
        ({"where": "n_genes > 100"}, "selects none of 23 cells"),
        ({"layer": "count"}, "did you mean 'counts'"),
        ({"memory": "1MB"}, r"memory=1 MB is too small for 23 cells: at least 128 MB"),
    ],
)
def test_convert__bad_settings(tmp_path, options, text):
    with pytest.raises(InputError, match=text):
        convert(stores.make_anndata(), tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_convert__bad_paths(tmp_path):
    source = stores.write(stores.make_anndata(), tmp_path, "zarr3")
    with pytest.raises(InputError, match=r"must end in \.zarr"):
        convert(source, tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="would take the place of what is read"):
        convert(source, source, overwrite=True)
    with pytest.raises(InputError, match="would take the place of what is read"):
        convert(str(source), source / "a.zarr")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.h5ad", tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        (
            "when",
            pd.date_range("2020", periods=23),
            "obs column 'when' of AnnData has type datetime",
        ),
        ("wide", np.zeros(23, np.longdouble), "obs column 'wide' of AnnData has type float128"),
        ("thin", pd.arrays.SparseArray(np.arange(23)), "'thin' of AnnData has type Sparse"),
        ("cut", pd.cut(np.arange(23), 3), "'cut' of AnnData has categories of type interval"),
        ("a/b", np.arange(23), "obs column 'a/b' of AnnData: AnnData on disk has no place for"),
    ],
)
def test_convert__columns_that_cannot_be_stored(tmp_path, column, values, text):
    adata = stores.make_anndata()
    adata.obs[column] = values
    with pytest.raises(InputError, match=text):
        convert(adata, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_convert__too_many_genes_for_uint16(tmp_path):
    wide = sp.csr_matrix((np.ones(1, "f4"), [70_000], [0, 1]), (1, 70_001))
    with pytest.raises(InputError, match=r"at most 65,536 genes, and AnnData has 70,001"):
        convert(ad.AnnData(wide), tmp_path / "a.zarr", index_dtype="uint16")
    found = ad.read_zarr(convert(ad.AnnData(wide), tmp_path / "a.zarr", shuffle=True))
    assert found.X.indices.tolist() == [70_000]


def test_convert__tells_how_it_was_made(tmp_path):
    convert(stores.make_anndata(), tmp_path / "a.zarr", shuffle=True, random_state=4)
    made = ad.read_zarr(tmp_path / "a.zarr").uns["convert"]
    assert made == {"shuffle": True, "random_state": 4, "generator": "streamtrain.convert"}


def test_cli__convert(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO, "streamtrain")
    adata = stores.make_anndata()
    source = stores.write(adata, tmp_path, "h5ad")
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(
        capsys, "convert", source.name, "--out", "a.zarr", "--shuffle", "--random-state", 2,
        "--where", "flag", "--memory", "1GB", "--n-jobs", 1, "--chunk-size", 7,
        "--shard-size", 28,
    )  # fmt: skip
    assert (code, out) == (0, "saved as a.zarr\n")
    assert "12 cells read back and found the same" in caplog.text
    expected = adata[adata.obs["flag"].to_numpy()]
    found = ad.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(dense(found), dense(expected[permutation(12, 2)]))
    code, out, err = call(capsys, "convert", source.name, "--out", "a.zarr", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("streamtrain: 'a.zarr' exists: pass overwrite=True (--overwrite)")
    code, _, err = call(capsys, "convert", source.name, "--out", "s3://bucket/a.zarr")
    assert code == 2
    assert err.startswith("streamtrain: the output must be on a disk, and is 's3:/bucket")


def test_convert__killed_while_the_former_output_is_deleted(tmp_path, monkeypatch):
    adata = stores.make_anndata()
    source = stores.write(adata, tmp_path, "h5ad")
    out = convert(source, tmp_path / "a.zarr")
    real = atomic.shutil.rmtree

    def rmtree(path, *arguments, **keywords):
        if path.suffix == ".old":
            raise StopError
        real(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", rmtree)
        with pytest.raises(StopError):
            convert(source, out, overwrite=True, shuffle=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".old")]
    convert(source, out, overwrite=True, shuffle=True)
    assert_same(ad.read_zarr(out), adata, permutation(23, 0))
    assert {p.name for p in tmp_path.iterdir()} == {source.name, "a.zarr"}


def test_shards__go_on_where_no_value_waits(tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = root.create_array(
        "data", shape=(0,), dtype="f4", chunks=(7,), shards=(28,), compressors=None
    )
    with ThreadPoolExecutor(1) as pool:
        writer = shards.ShardWriter(array, "none", pool, 2, {}, np.empty(0, "f4"))
        writer.append(np.arange(14))
        state, tail = writer.commit()
        writer.close()
        assert len(tail) == 0
        writer = shards.ShardWriter(array, "none", pool, 2, state, tail)
        writer.finish()
        writer.close()
    array.resize((writer.length,))
    assert root["data"][:].tolist() == list(range(14))


def test_convert__what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch):
    source = stores.write(stores.make_anndata(), tmp_path, "h5ad")
    real = sharded.ShardedAnnData.finish

    def spoil(self):
        real(self)
        next((tmp_path / ".a.zarr.partial/store.zarr/X/data/c").iterdir()).write_bytes(b"?" * 90)

    monkeypatch.setattr(sharded.ShardedAnnData, "finish", spoil)
    with pytest.raises(OSError, match=r"\(it cannot be read: .*nothing was kept"):
        convert(source, tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("file", ["store.zarr/X/data/c/0", "lengths"])
def test_convert__files_that_were_cut_short(tmp_path, monkeypatch, little_room, caplog, file):
    little_room()
    adata = stores.make_anndata(n_obs=60)
    source = stores.write(adata, tmp_path, "h5ad")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_EVERY", 0)
        stop_at(patch, sharded.ShardedAnnData, "append", 5)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr")
    path = tmp_path / ".a.zarr.partial" / file
    os.truncate(path, path.stat().st_size - 8)
    convert(source, tmp_path / "a.zarr")
    assert "are missing or cut short: it is begun anew" in caplog.text
    assert_same(ad.read_zarr(tmp_path / "a.zarr"), adata)


@pytest.mark.parametrize("form", ["memory", "h5ad", "zarr3", "list"])
def test_convert__text_of_its_own_for_each_cell(tmp_path, monkeypatch, form):
    adata = stores.make_anndata()
    adata.obs["barcode"] = [f"b{i}" for i in range(23)]
    adata.obs["often"] = [f"b{i % 9}" for i in range(23)]
    source = adata if form in ("memory", "list") else stores.write(adata, tmp_path, form)
    monkeypatch.setattr(conversion, "_TEXT", 10**10)
    with pytest.raises(
        InputError, match=r"obs column 'barcode' .* text of its own for each of (23|46) cells"
    ):
        convert([stores.make_anndata(), adata] if form == "list" else source, tmp_path / "a.zarr")
    del adata.obs["barcode"]
    convert(adata, tmp_path / "a.zarr")


def test_convert__another_scratch_folder(tmp_path, monkeypatch, little_room, caplog):
    little_room()
    source = stores.write(stores.make_anndata(n_obs=60), tmp_path, "h5ad")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_EVERY", 0)
        stop_at(patch, shuffle.Buckets, "append", 6)
        with pytest.raises(StopError):
            convert(source, tmp_path / "a.zarr", shuffle=True, scratch=tmp_path / "one")
    (left,) = (tmp_path / "one").iterdir()
    assert f"stays in {tmp_path / '.a.zarr.partial'} and {left}:" in caplog.text
    convert(source, tmp_path / "a.zarr", shuffle=True, scratch=tmp_path / "two")
    assert f"{left}, left by a former run, is deleted" in caplog.text
    assert not list((tmp_path / "one").iterdir())
    assert not list((tmp_path / "two").iterdir())


def test_convert__several_files(tmp_path, caplog):
    first, second = stores.make_anndata(), stores.make_anndata()
    second.var_names = [f"g{j + 3}" for j in range(11)]
    second.var["symbol"] = [f"S{j + 3}" for j in range(11)]
    for i, adata in enumerate((first, second)):
        adata.var["mean"] = np.arange(11) * (i + 1.0)
        adata.obs_names = pd.Index([f"p{i}c{k}" for k in range(23)], name="barcode")
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
    caplog.set_level(logging.INFO, "streamtrain")
    path = convert([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "a.zarr")
    found = ad.read_zarr(path)
    assert found.var["symbol"].to_dict() == {f"g{j}": f"S{j}" for j in range(14)}
    assert list(found.var) == ["symbol"]
    assert found.obs.index.name == "barcode"
    assert "left out of the output: layers/counts, raw/X, var/mean (files differ)" in caplog.text
    assert f"{tmp_path / '1.h5ad'}: 23 cells, 11 genes of which 11 are taken, X: " in caplog.text


def test_convert__files_of_different_kinds(tmp_path, caplog):
    first, second = stores.make_anndata(), stores.make_anndata()
    second.X.data[:] = 3
    convert([first, second], tmp_path / "a.zarr")
    assert "files hold values of different kinds (" in caplog.text
    assert "; counts in 'AnnData 1')" in caplog.text
    caplog.clear()
    convert([second, second.copy()], tmp_path / "b.zarr")
    assert "different kinds" not in caplog.text


def test_convert__a_source_that_changes_meanwhile(tmp_path, monkeypatch):
    source = stores.write(stores.make_anndata(), tmp_path, "h5ad")
    real = conversion.Conversion.write
    monkeypatch.setattr(
        conversion.Conversion, "write", lambda self: (real(self), os.utime(source, ns=(1, 1)))
    )
    with pytest.raises(InputError, match=r"was changed while it was read: run again"):
        convert(source, tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_convert__reads_back_on_its_own_threads(tmp_path, monkeypatch):
    threads, real = [], conversion.open_source
    monkeypatch.setattr(
        conversion,
        "open_source",
        lambda *a, **k: (threads.append(k["threads"].n), real(*a, **k))[1],
    )
    convert(stores.make_anndata(), tmp_path / "a.zarr", n_jobs=3)
    assert threads == [3]


def test_convert__bytes_and_flags(tmp_path):
    adata = ad.AnnData(sp.csr_matrix(stores.positions(23, 11) > 0))
    adata.obs["raw"] = [b"a", *[b"b"] * 22]
    found = ad.read_zarr(convert(adata, tmp_path / "a.zarr"))
    assert found.X.dtype == np.uint8
    np.testing.assert_array_equal(dense(found), dense(adata))
    assert found.obs["raw"].tolist() == ["a", *["b"] * 22]
