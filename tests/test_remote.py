"""Stores on a server, over HTTP and S3, against the same on disk."""

import io
import json
import os
import pickle
import shutil
import threading
import time
import warnings
from datetime import timedelta
from itertools import product
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import streamtrain
from streamtrain import InputError, cli, open_source
from streamtrain.decode import remote, seekable
from streamtrain.decode.address import Address, located
from streamtrain.decode.arrays import StoredArray
from streamtrain.decode.remote import RemoteFiles
from streamtrain.decode.seekable import RemoteFile
from tests import atlas, stores
from tests.servers import Failing, serving

FORMS = ("h5ad", "lzf", "flat", "zarr2", "zarr3", "sharded")
KINDS = ("http", "s3")
SECRETS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "hushhush"}
SMALL = atlas.MINI | {"batch_size": 100, "batch_number": 4, "epochs": 2, "progress": False}


def write(adata, folder, form):
    if form in stores.FORMATS:
        return stores.write(adata, folder, form)
    path = folder / f"{form}.h5ad"
    adata.write_h5ad(path, compression="lzf" if form == "lzf" else None)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the bucket "b": every layout, and a small labelled atlas."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "b" / "one two").mkdir(parents=True)
    for form in FORMS:
        write(stores.make_anndata(), folder / "b", form)
    labelled = atlas.make()
    labelled.obsp["connectivities"] = sp.identity(labelled.n_obs, format="csr")
    labelled.write_h5ad(folder / "b/one two/labelled.h5ad")
    stores.write(labelled, folder / "b/one two", "sharded")
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No credentials, and a patience that a test can wait for."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(remote, "PATIENT", (4, timedelta(seconds=10)))
    monkeypatch.setattr(remote, "QUICK", (1, timedelta(seconds=5)))


@pytest.fixture
def server(root):
    with serving(root) as server:
        yield server


def address(server, kind, path):
    """Address of a file of bucket "b", and the options that lead to the server."""
    if kind == "http":
        return f"{server.url}/b/{path}", {}
    options = {
        "s3": {"endpoint": server.url},
        "gs": {"base_url": server.url},
        "az": {"endpoint": server.url, "account_name": "account"},
    }
    return f"{kind}://b/{path}", options[kind]


def file_of(form):
    name = {"h5ad": "atlas.h5ad", "lzf": "lzf.h5ad", "flat": "flat.h5ad"}
    return name.get(form, f"atlas_{form}.zarr")


@pytest.mark.parametrize(
    ("form", "kind"),
    [*product(FORMS, ("http", "s3")), *product(("h5ad", "sharded"), ("gs", "az"))],
)
def test_store__equals_disk(root, server, form, kind):
    url, options = address(server, kind, file_of(form))
    local = open_source(root / "b" / file_of(form))
    source = open_source(url, storage_options=options)
    assert source.name == url
    assert isinstance(source._matrix._data, StoredArray)
    assert source.obs("cell_type").equals(local.obs("cell_type"))
    assert source.genes.tolist() == local.genes.tolist()
    assert source.obs_names(3, 9).tolist() == local.obs_names(3, 9).tolist()
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - written here
    values = stores.read_all(local, 1000)
    for one in (source, copy):
        np.testing.assert_array_equal(stores.read_all(one, 1000), values)
        rows = np.array([1, 2, 7, 20])
        np.testing.assert_array_equal(stores.to_dense(one.take(rows)), values[rows])
        one.close()
    np.testing.assert_array_equal(stores.read_all(source, 1 << 20), values)  # opens again
    source.close()
    local.close()


@pytest.mark.parametrize("layer", ["raw", "counts"])
@pytest.mark.parametrize("form", ["h5ad", "zarr2"])
def test_store__other_matrices(root, server, form, layer):
    url, _ = address(server, "http", file_of(form))
    local, source = (
        open_source(root / "b" / file_of(form), layer=layer),
        open_source(url, layer=layer),
    )
    np.testing.assert_array_equal(stores.read_all(source, 900), stores.read_all(local, 900))
    with pytest.raises(InputError, match="has no layer 'count': did you mean 'counts'"):
        open_source(url, layer="count")
    source.close()
    local.close()


@pytest.mark.parametrize("kind", ["csc", "dense"])
@pytest.mark.parametrize("form", ["h5ad", "sharded"])
def test_store__other_kinds(tmp_path, kind, form):
    path = write(stores.make_anndata(kind), tmp_path, form)
    local = open_source(path)
    with serving(tmp_path) as server:
        source = open_source(f"{server.url}/{path.name}")
        np.testing.assert_array_equal(stores.read_all(source, 900), stores.read_all(local, 900))
        source.close()
    local.close()


def test_close__ends_threads_and_connections(server):
    before = threading.active_count()
    source = open_source(f"{server.url}/b/atlas.h5ad")
    source.read(0, 20)
    assert threading.active_count() > before
    source.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # the server's own thread of the connection
    assert threading.active_count() <= before + 1


def same_model(a, b):
    for name in ("coef", "intercept", "mean", "var", "scale"):
        np.testing.assert_array_equal(a.dataset[name], b.dataset[name], err_msg=name)
    assert a.features.tolist() == b.features.tolist()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("http", "labelled.h5ad"), ("s3", "labelled.h5ad"), ("s3", "atlas_sharded.zarr")],
)
def test_train__same_model_from_a_server(root, server, tmp_path, kind, name):
    url, options = address(server, kind, f"one two/{name}")
    model = streamtrain.train(
        url.replace("://", "://user:pass@") if kind == "http" else url, "cell_type",
        storage_options=options | (SECRETS if kind == "s3" else {}), where="donor != 'D3'", **SMALL,
    )  # fmt: skip
    here = streamtrain.train(root / "b/one two" / name, "cell_type", where="donor != 'D3'", **SMALL)
    same_model(model, here)
    kept = model.dataset.attrs
    assert url in str(kept)
    model.save(tmp_path / "model.zarr")
    text = b"".join(p.read_bytes() for p in (tmp_path / "model.zarr").rglob("*") if p.is_file())
    for secret in ("hushhush", "AKIDEXAMPLE", "user:pass"):
        assert secret not in str(kept)
        assert secret.encode() not in text


@pytest.mark.parametrize("kind", KINDS)
def test_predict__same_from_a_server(root, server, tmp_path, kind):
    local = root / "b/one two/labelled.h5ad"
    url, options = address(server, kind, "one two/labelled.h5ad")
    model = streamtrain.train(local, "cell_type", **SMALL)
    here = streamtrain.predict(model, local, progress=False, probabilities=True)
    found = streamtrain.predict(
        model, url, storage_options=options, progress=False, probabilities=True
    )
    pd.testing.assert_frame_equal(found, here)
    table = tmp_path / "calls.csv"
    streamtrain.predict(model, url, storage_options=options, progress=False, out=table)
    assert len(pd.read_csv(table)) == len(here)
    for more in ({"in_place": True}, {"out": tmp_path / "copy.h5ad"}):
        with pytest.raises(InputError, match=r"no columns can be added to .*on a server: write"):
            streamtrain.predict(model, url, storage_options=options, **more)


def test_overcluster__reads_the_stored_graph(server):
    from streamtrain.overcluster import _stored

    url, options = address(server, "s3", "one two/labelled.h5ad")
    assert _stored(located(url, options), "obsp", "connectivities").nnz == 600
    assert _stored(located(url, options), "obsm", "X_pca") is None


def test_train__several_addresses_and_paths(root, server):
    url, options = address(server, "s3", "one two/labelled.h5ad")
    here = root / "b/one two/atlas_sharded.zarr"
    model = streamtrain.train([url, here], "cell_type", storage_options=options, **SMALL)
    same_model(
        model, streamtrain.train([root / "b/one two/labelled.h5ad", here], "cell_type", **SMALL)
    )
    assert [origin["name"] for origin in model.provenance["sources"]] == [url, str(here)]
    with pytest.raises(InputError, match="is there twice"):
        open_source([url, url], storage_options=options)
    with pytest.raises(InputError, match="is text or packed"):
        open_source([url, "https://host/x.csv"], storage_options=options)
    found = open_source(url, join=["GENE1", "GENE9"], storage_options=options)
    assert found.genes.tolist() == ["GENE1", "GENE9"]
    found.close()


def test_cli__trains_from_a_server(server, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        cli.app(
            ["train", "s3://b/one two/labelled.h5ad", "--labels", "cell_type", "--out",
             str(tmp_path / "model.zarr"), "--storage-options.endpoint", server.url, "--use-sgd",
             "--mini-batch", "--batch-size", "100", "--quiet"]
        )  # fmt: skip
    assert status.value.code in (0, None), capsys.readouterr().err
    assert (tmp_path / "model.zarr").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A million entries in 500 chunks, in HDF5 and in shards of zarr."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    X = sp.random(4000, 1000, 0.25, "csr", np.float32, rng)
    adata = ad.AnnData(X, obs=pd.DataFrame({"n": np.arange(4000)}, index=range(4000)).rename(str))
    adata.write_h5ad(folder / "large.h5ad")
    stores.write(adata, folder, "zarr3").rename(folder / "large.zarr")
    with h5py.File(folder / "new.h5ad", "w") as new, h5py.File(folder / "large.h5ad") as old:
        for key in ("obs", "var"):
            old.copy(key, new)
        group = new.create_group("X")
        group.attrs.update(old["X"].attrs)
        old.copy("X/indptr", group)
        for key in ("data", "indices"):
            group.create_dataset(key, data=old["X"][key], chunks=(4000,), compression="gzip")
    (folder / "new.h5ad").replace(folder / "large.h5ad")
    root = zarr.open_group(folder / "large.zarr", mode="r+", use_consolidated=False)
    for key in ("data", "indices"):
        root["X"].create_array(
            key, data=root["X"][key][:], chunks=(4000,), shards=(200_000,), overwrite=True
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the standard does not know it yet
        zarr.consolidate_metadata(folder / "large.zarr")
    return folder


@pytest.mark.parametrize(("name", "most"), [("large.h5ad", 90), ("large.zarr", 90)])
def test_requests__each_byte_about_once(large, name, most):
    path = large / name
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    local = open_source(path)
    with serving(large) as server:
        source = open_source(f"{server.url}/{name}")
        source.obs("n")
        for start, stop in source.blocks(4 << 20):
            found, due = source.read(start, stop), local.read(start, stop)
            np.testing.assert_array_equal(found.data, due.data)
            np.testing.assert_array_equal(found.indices, due.indices)
        source.close()
        assert server.nbytes <= 1.3 * size
        assert len(server.requests) <= most  # of 500 chunks
    local.close()


@pytest.mark.parametrize("status", [429, 500, 503, 0, -1])
@pytest.mark.parametrize("form", ["h5ad", "sharded"])
def test_faults__are_got_over(root, server, form, status):
    local = open_source(root / "b" / file_of(form))
    server.fault = Failing(status, times=3)
    source = open_source(f"{server.url}/b/{file_of(form)}")
    server.fault = again = Failing(status, times=2)
    np.testing.assert_array_equal(stores.read_all(source, 1000), stores.read_all(local, 1000))
    assert again.seen == 2
    source.close()
    local.close()


@pytest.mark.parametrize(
    ("status", "told"),
    [(503, "in 3 attempts: the server answers 503 Service Unavailable SlowDown; try again later"),
     (429, "in 3 attempts: the server answers 429"), (0, "in 3 attempts"), (-1, "body error")],
)  # fmt: skip
def test_faults__that_last(server, monkeypatch, status, told):
    monkeypatch.setattr(remote, "PATIENT", (2, timedelta(seconds=5)))
    url = f"{server.url}/b/atlas.h5ad"
    source = open_source(url)
    server.clear()
    server.fault = Failing(status, times=1000)
    with pytest.raises(InputError, match=rf"{url} cannot be read.*{told}.*download it"):
        source.read(0, 9)
    # The values and what was begun beside them: nobody asks for ever.
    assert len(server.requests) <= 3 * 16
    with pytest.raises(InputError, match="cannot be read"):
        open_source(url)
    source.close()


def test_faults__a_server_that_hangs(server):
    """A request that takes too long is asked anew."""
    seen = []

    def hang(handler):
        seen.append(handler.path)
        if len(seen) == 1:
            time.sleep(0.6)
        return False

    server.fault = hang
    open_source(f"{server.url}/b/atlas.h5ad", storage_options={"timeout": "200ms"}).close()
    assert len(seen) > 1


def test_denied__is_told_at_once(server):
    server.fault = Failing(403, times=1000)
    for kind, remedy in (("http", "login"), ("s3", "AWS_ACCESS_KEY_ID.*skip_signature=true")):
        server.clear()
        url, options = address(server, kind, "atlas.h5ad")
        with pytest.raises(InputError, match=f"access to {url} is denied .403 .*{remedy}"):
            open_source(url, storage_options=options)
        assert len(server.requests) == 1
        url, options = address(server, kind, "atlas_zarr2.zarr")
        with pytest.raises(InputError, match="is denied"):
            open_source(url, storage_options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_denied__metadata_that_is_missing(root, server, kind):
    """S3 denies what is missing, to who may not list."""
    server.fault = Failing(403, times=1000, matches=lambda target: "zarr.json" in target)
    url, options = address(server, kind, "atlas_zarr2.zarr")
    source = open_source(url, storage_options=options)
    assert source.n_obs == 23
    source.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["none.h5ad", "none.zarr", "none"])
def test_missing__is_told_at_once(server, kind, name):
    url, options = address(server, kind, name)
    with pytest.raises(FileNotFoundError, match=f"{url} does not exist .the server answers 404"):
        open_source(url, storage_options=options)
    assert len(server.requests) <= 3


def test_missing__host():
    start = time.monotonic()
    with pytest.raises(InputError, match="there is no such host; check the address"):
        open_source("https://no-such-host.invalid/atlas.h5ad")
    with pytest.raises(InputError, match="its host does not answer"):
        open_source("http://127.0.0.1:9/atlas.zarr")
    assert time.monotonic() - start < 10


def test_missing__not_an_anndata(server, root):
    (root / "b/page.html").write_text("<html>a page, not a store</html>")
    with pytest.raises(InputError, match=r"neither an .h5ad .HDF5. file nor a zarr store"):
        open_source(f"{server.url}/b/page.html")


def test_ranges__ignored(server):
    server.ranges = False
    with pytest.raises(InputError, match=r"ignores ranges of bytes.*download it"):
        open_source(f"{server.url}/b/atlas.h5ad")
    with pytest.raises(InputError, match="ignores ranges of bytes"):
        open_source(f"{server.url}/b/atlas_sharded.zarr")
    source = open_source(f"{server.url}/b/atlas_zarr3.zarr")  # all of it are whole files
    assert source.read(0, 23).n_obs == 23
    source.close()


def test_ranges__from_the_end_refused(root, server):
    server.suffixes = False
    local = open_source(root / "b/atlas_sharded.zarr")
    source = open_source(f"{server.url}/b/atlas_sharded.zarr")
    np.testing.assert_array_equal(stores.read_all(source, 1000), stores.read_all(local, 1000))
    assert sum(r.status == 501 for r in server.requests) <= 2 * 16  # not asked again
    source.close()
    local.close()


@pytest.mark.parametrize("form", ["h5ad", "sharded"])
def test_ranges__a_file_that_changed(tmp_path, form):
    """Parts of two versions must not mix."""
    (tmp_path / "b").mkdir()
    path = write(stores.make_anndata(), tmp_path / "b", form)
    new = shutil.copytree if path.is_dir() else shutil.copy
    new(path, tmp_path / "new")
    with serving(tmp_path) as server:
        source = open_source(f"{server.url}/b/{path.name}")
        source.read(0, 4)
        source._parts()[0]._data._forget()  # what is left of its one chunk
        if path.is_dir():
            shutil.rmtree(path)
        (tmp_path / "new").replace(path)
        with pytest.raises(InputError, match="has changed on the server since it was opened"):
            source.read(15, 23)
        source.close()


def test_ranges__a_file_that_shrank(tmp_path, root):
    path = tmp_path / "atlas.h5ad"
    shutil.copy(root / "b/atlas.h5ad", path)
    with serving(tmp_path) as server:
        source = open_source(f"{server.url}/atlas.h5ad")
        os.truncate(path, 9000)
        with pytest.raises(InputError, match="has changed on the server since it was opened"):
            source.read(0, 23)
        source.close()


@pytest.mark.parametrize("form", ["zarr2", "zarr3"])
def test_zarr__not_consolidated(root, server, tmp_path, form):
    bare = root / "b" / f"bare_{form}.zarr"
    if not bare.exists():
        shutil.copytree(root / "b" / file_of(form), bare)
        if form == "zarr2":
            (bare / ".zmetadata").unlink()
        else:
            group = zarr.open_group(bare, mode="r", use_consolidated=False)
            plain = dict(group.metadata.to_dict())
            plain.pop("consolidated_metadata", None)
            (bare / "zarr.json").write_text(json.dumps(plain))
    local = open_source(bare)
    values = stores.read_all(local, 1000)
    for kind in KINDS:
        url, options = address(server, kind, bare.name)
        source = open_source(url, storage_options=options)
        np.testing.assert_array_equal(stores.read_all(source, 1000), values)
        assert source.obs("cell_type").equals(local.obs("cell_type"))
        source.close()
        listed = "has no layer 'none': there are 'counts'"
        with pytest.raises(
            InputError, match="zarr.consolidate_metadata" if kind == "http" else listed
        ):
            open_source(url, layer="none", storage_options=options)
    local.close()


def test_address__secrets_are_sent_and_not_shown(server):
    server.query = "X-Amz-Signature=hushhush"
    url = f"{server.url}/b/atlas.h5ad?{server.query}".replace("://", "://user:pass%40word@")
    source = open_source(url)
    shown = f"{source.name} {Address(url)!r} {Address(url)} {Address('s3://b/x', SECRETS)!r}"
    server.fault = Failing(404, times=1000)
    with pytest.raises(InputError) as error:
        source.read(0, 9)
    assert error.value.__cause__ is None or "hush" not in str(error.value.__cause__)
    for secret in ("hush", "pass", "user"):
        assert secret not in shown + str(error.value)
    assert source.name == f"{server.url}/b/atlas.h5ad"
    assert {r.authorization for r in server.requests} == {"Basic dXNlcjpwYXNzQHdvcmQ="}
    source.close()


def test_address__credentials(server, monkeypatch):
    url = "s3://b/atlas.h5ad"
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    open_source(url).close()
    assert {r.authorization for r in server.requests} == {None}  # public data
    server.clear()
    open_source(url, storage_options=SECRETS).close()
    assert all("AKIDEXAMPLE" in r.authorization for r in server.requests)
    server.clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    open_source(url).close()
    assert all("AKIDOTHER" in r.authorization for r in server.requests)
    server.clear()
    open_source(url, storage_options={"skip_signature": "true"}).close()
    assert {r.authorization for r in server.requests} == {None}


def test_address__moved(server):
    server.moved["/b/moved.h5ad"] = f"{server.url}/b/atlas.h5ad"
    source = open_source(f"{server.url}/b/moved.h5ad")
    assert source.read(0, 23).n_obs == 23
    source.close()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://host/x.h5ad", {}, "ftp:// is no kind of address.*s3://, gs://"),
        ("https:///x.h5ad", {}, "names no host: write https://HOST/PATH"),
        ("s3://", {}, "names no bucket"),
        ("https://host/x.csv", {}, "https://host/x.csv is text or packed.*download it"),
        ("https://host/x.csv.gz?key=hush", {}, "https://host/x.csv.gz is text or packed"),
        ("s3://b/x.zarr.zip", {}, "is text or packed"),
        ("s3://b/x.h5ad", {"acess_key_id": "hush"}, "has 'acess_key_id', which s3:// does not"),
        ("https://host/x.h5ad", {"user_agnt": "x"}, "which https:// does not know: did you mean"),
        ("s3://b/x.h5ad", {"virtual_hosted_style_request": "hush"}, "with these storage_options"),
        (Path("https://host/x.h5ad"), {}, "must be passed as text"),
    ],
)
def test_address__refused(url, options, message):
    with pytest.raises(InputError, match=message) as error:
        open_source(url, storage_options=options)
    assert "hush" not in str(error.value)


def test_address__lists():
    found = located(["https://host/x.h5ad", "there/is.h5ad"], {"user_agent": "x"})
    assert found == [Address("https://host/x.h5ad", {"user_agent": "x"}), "there/is.h5ad"]


def test_file__reads_as_one_on_disk(root, server, monkeypatch):
    monkeypatch.setattr(seekable, "_BLOCK", 1000)
    monkeypatch.setattr(seekable, "_CACHE", 70)
    data = (root / "b/one two/labelled.h5ad").read_bytes()
    files = RemoteFiles(Address(f"{server.url}/b/one two/labelled.h5ad"))
    start, size = files.begin("", 8)
    assert (start, size) == (data[:8], len(data))
    here, there = io.BytesIO(data), RemoteFile(files, size)
    rng = np.random.default_rng(0)
    for _ in range(100):
        at, n = int(rng.integers(0, size + 10)), int(rng.integers(0, 30_000))
        whence = int(rng.integers(0, 3))
        offset = [at, 1, -int(rng.integers(0, size))][whence]
        assert here.seek(offset, whence) == there.seek(offset, whence)
        assert here.read(n) == there.read(n)
        assert here.tell() == there.tell()
        assert len(there._blocks) <= 70
    server.clear()
    whole = RemoteFile(files, size)
    assert whole.read() == data
    # Ever more at once: 1, 2, 4, ... 64, 64 blocks.
    assert len(server.requests) <= 7 + -(-size // 64_000)
    files.close()


def test_files__errors_and_edges(server):
    files = RemoteFiles(Address(f"{server.url}/b"))
    assert files.whole("none") is None
    assert files.tail("none", 10) is None
    assert files.tail("page", 0) is None
    assert len(files.read("atlas.h5ad", 5, 5)) == 0
    whole = files.whole("atlas.h5ad")
    np.testing.assert_array_equal(files.tail("atlas.h5ad", 1 << 30), whole)
    np.testing.assert_array_equal(files.tail("atlas.h5ad", 7), whole[-7:])
    with pytest.raises(OSError, match=r"atlas.h5ad ends at byte .*, before"):
        files.read("atlas.h5ad", 0, len(whole) + 1)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        files.read("none", 0, 10)
    files.close()


def test_anndata__in_memory_is_no_address(root):
    adata = ad.read_h5ad(root / "b/atlas.h5ad")
    assert located(adata) is adata
