"""Predictions as columns of obs: a copy or the file itself, in each format, and killed half-way."""

import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

import streamtrain
from streamtrain import InputError
from streamtrain.obs_columns import ObsFile
from tests import atlas, stores

QUIET = {"progress": False}
FORMS = ("h5ad", "zarr2", "zarr3")
NEW = ["predicted_labels", "conf_score"]


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(
        atlas.make(), "cell_type", **atlas.MINI, batch_size=100, epochs=1, **QUIET
    )


def read(path):
    return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


def files(path):
    """Bytes of every file, or of an .h5ad every dataset, but what names or holds columns of obs."""
    if not path.is_dir():
        found = {}

        def keep(name, node):
            if isinstance(node, h5py.Dataset) and not name.startswith("obs/"):
                values = node[()]
                found[name] = values.tobytes() if values.dtype.kind in "fiu" else values.tolist()

        with h5py.File(path) as file:
            file.visititems(keep)
        return found
    names = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    return {n: p.read_bytes() for n, p in names.items() if "/" in n and not n.startswith("obs/")}


def assert_only_obs_differs(a, b):
    """Both as read."""
    assert (a.X != b.X).nnz == 0
    assert (a.layers["counts"] != b.layers["counts"]).nnz == 0
    pd.testing.assert_frame_equal(a.var, b.var)
    pd.testing.assert_frame_equal(a.obs, b.obs[a.obs.columns])


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_obs__has_the_predictions(tmp_path, model, form, in_place):
    path = stores.write(atlas.make(seed=4), tmp_path, form)
    before, stored = read(path), files(path)
    target = path if in_place else tmp_path / f"copy{path.suffix}"
    frame = streamtrain.predict(model, path, **QUIET)
    where = {"in_place": True} if in_place else {"out": target}
    assert streamtrain.predict(model, path, **where, **QUIET) is None
    after = read(target)
    assert_only_obs_differs(before, after)
    assert after.obs.columns.tolist() == [*before.obs.columns, *NEW]
    labels = frame["predicted_labels"].astype(str)
    assert after.obs["predicted_labels"].astype(str).tolist() == labels.tolist()
    np.testing.assert_array_equal(after.obs["conf_score"], frame["conf_score"])
    assert "X/data" in stored or "X/data/c/0" in stored or "X/data/0" in stored
    assert files(target) == stored
    assert not list(tmp_path.rglob(".*.partial"))
    if not in_place:
        assert read(path).obs.columns.tolist() == before.obs.columns.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_obs__selected_cells_prefix_and_replaced_columns(tmp_path, model, form):
    adata = atlas.make(seed=4)
    path = stores.write(adata, tmp_path, form)
    options = {
        "in_place": True, "prefix": "ct_", "majority_voting": True, "over_clustering": "donor",
        "probabilities": True,
    }  # fmt: skip
    streamtrain.predict(model, path, where="donor != 'D2'", **options, **QUIET)
    obs = read(path).obs
    names = ["predicted_labels", "over_clustering", "majority_voting", "conf_score"]
    added = [f"ct_{name}" for name in [*names, *model.cell_types]]
    assert obs.columns.tolist() == [*adata.obs.columns, *added]
    chosen = (adata.obs["donor"] != "D2").to_numpy()
    for name in added:
        assert (obs[name].notna() == chosen).all(), name
    assert obs["ct_over_clustering"].cat.categories.tolist() == ["D0", "D1", "D3"]
    frame = streamtrain.predict(model, adata, probabilities=True, **QUIET)
    np.testing.assert_array_equal(obs.loc[chosen, added[4:]], frame.loc[chosen, model.cell_types])
    with pytest.raises(InputError, match=r"has a column 'ct_.*--overwrite.* or a prefix"):
        streamtrain.predict(model, path, **options, **QUIET)
    mode = {"mode": "prob match", "p_thres": 0.9}
    streamtrain.predict(model, path, overwrite=True, **mode, **options, **QUIET)
    again = read(path).obs
    joined = streamtrain.predict(model, adata, **mode, **QUIET)["predicted_labels"]
    assert again["ct_predicted_labels"].tolist() == joined.tolist()
    assert again["ct_predicted_labels"].dtype == joined.dtype
    assert sorted(again.columns) == sorted(obs.columns)
    assert again[added].notna().all().all()
    if form != "h5ad":  # consolidated metadata and the nodes themselves agree
        for consolidated in (True, False):
            root = zarr.open_group(path, mode="r", use_consolidated=consolidated)
            pd.testing.assert_frame_equal(
                ad.io.read_elem(root["obs"]), again, check_names=False, check_column_type=False
            )


def test_obs__of_a_read_only_atlas_and_its_permissions(tmp_path, model):
    for form in ("h5ad", "zarr3"):
        path = stores.write(atlas.make(), tmp_path, form)
        for node in [path, *path.rglob("*")] if path.is_dir() else [path]:
            node.chmod(0o555 if node.is_dir() else 0o440)
        out = tmp_path / f"copy{path.suffix}"
        streamtrain.predict(model, path, out=out, **QUIET)
        assert read(out).obs.columns.tolist()[-2:] == NEW
    path = tmp_path / "atlas.h5ad"
    path.chmod(0o664)
    streamtrain.predict(model, path, in_place=True, **QUIET)
    assert path.stat().st_mode & 0o777 == 0o664


def test_obs__zarr_without_consolidated_metadata(tmp_path, model):
    path = stores.write(atlas.make(), tmp_path, "zarr2")
    (path / ".zmetadata").unlink()
    streamtrain.predict(model, path, in_place=True, **QUIET)
    assert read(path).obs.columns.tolist()[-2:] == NEW
    assert not (path / ".zmetadata").exists()


def legacy(path):
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["encoding-version"] = "0.1.0"
        del file["obs"].attrs["encoding-type"]


def renamed_index(path):
    with h5py.File(path, "r+") as file:
        file["obs"].move("_index", "conf_score")
        file["obs"].attrs["_index"] = "conf_score"


BAD = {
    "table": (
        None,
        {"out": "copy.zarr"},
        "is an .h5ad file and its copy another: .* '.*copy.zarr'",
    ),
    "itself": (None, {"out": "atlas.h5ad", "overwrite": True}, "is the input itself: .*in_place"),
    "exists": (None, {"out": "there.h5ad"}, "exists: pass overwrite=True"),
    "old": (legacy, {"in_place": True}, "older form of anndata, to which no columns can be added"),
    "index": (renamed_index, {"in_place": True}, "'conf_score' is the index of obs"),
    "slash": (None, {"in_place": True, "prefix": "a/"}, "'a/predicted_labels' cannot be the name"),
    "zip": (None, {"in_place": True, "X": "atlas.zip"}, "and '.*atlas.zip' is neither"),
}


@pytest.mark.parametrize(("change", "options", "message"), BAD.values(), ids=BAD.keys())
def test_obs__bad_input(tmp_path, model, monkeypatch, change, options, message):
    monkeypatch.chdir(tmp_path)
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    for name in ("there.h5ad", "atlas.zip"):
        Path(name).write_bytes(b"PK")
    if change is not None:
        change(path)
    content = path.read_bytes()
    options = dict(options)
    X = options.pop("X", "atlas.h5ad")
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, X, **options, **QUIET)
    assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["atlas.h5ad", "atlas.zip", "there.h5ad"]


def test_obs__names_that_lead_elsewhere(tmp_path):
    file = ObsFile(stores.write(atlas.make(), tmp_path, "zarr3"), None, overwrite=True)
    for name in ("", ".", "..", "../X", "a\0b"):
        with pytest.raises(InputError, match="cannot be the name of an obs column"):
            file.check([name])


def test_obs__names_as_long_as_a_file_may_have(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "zarr3")
    file = ObsFile(path, None, overwrite=True)
    longest = "ü" * 118 + "x"
    file.check([longest])
    file.write(iter([(longest, np.arange(600.0))]))
    assert read(path).obs.columns[-1] == longest
    with pytest.raises(InputError, match="too long for a column in a zarr folder, of 237 bytes"):
        file.check([longest + "x"])


def test_obs__no_room_for_a_copy(tmp_path, monkeypatch):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"a copy of .*atlas.h5ad needs .* has 10 bytes free"):
        ObsFile(path, None, overwrite=False)


@pytest.mark.parametrize("form", FORMS)
def test_obs__a_failure_leaves_the_file_as_it_was(tmp_path, form):
    path = stores.write(atlas.make(), tmp_path, form)
    before = read(path).obs

    def columns():
        yield "cell_type", np.arange(600.0)
        yield "new", np.arange(600.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ObsFile(path, None, overwrite=True).write(columns())
    pd.testing.assert_frame_equal(read(path).obs, before)
    assert not list(tmp_path.rglob(".*.partial"))


# Adds columns, one of them in place of another, and stops for good at a chosen moment.
STOPS = """
import sys, time
import numpy as np
from streamtrain import atomic, obs_columns
path, moment = sys.argv[1:]
consolidate = obs_columns.zarr.consolidate_metadata
def stop(*_, **__):
    print("here", flush=True)
    time.sleep(600)
def columns():
    yield "cell_type", np.arange(600.0)
    yield "new", np.arange(600.0)
    if moment == "writing":
        stop()
if moment == "renaming":  # all is written, and of a zarr folder the first column is renamed
    real, done = atomic._rename, []
    folder = path.endswith(".zarr")
    def rename(partial, target, check):
        if folder and target.parent.name == "obs" and target.name in ("cell_type", "new"):
            done.append(target)
        if len(done) == 2 or not folder:
            stop()
        return real(partial, target, check)
    atomic._rename = rename
if moment == "naming":  # obs names the columns, the consolidated metadata does not
    obs_columns.zarr.consolidate_metadata = lambda store: (
        stop() if (store.root / "obs" / "new").exists() else consolidate(store)
    )
obs_columns.ObsFile(path, None, overwrite=True).write(columns())
"""


@pytest.mark.parametrize(
    ("form", "moment"),
    [("h5ad", "renaming"), ("zarr2", "naming"), ("zarr3", "writing"), ("zarr3", "renaming")],
)
def test_obs__killed_half_way(tmp_path, form, moment, caplog):
    path = stores.write(atlas.make(), tmp_path, form)
    before = read(path)
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", STOPS, path, moment], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    after = read(path)
    # A column to be replaced may have left a zarr folder, but once all was written; never half.
    gone = ["cell_type"] if moment in ("renaming", "naming") and form != "h5ad" else []
    expected = before.obs.drop(columns=gone)
    pd.testing.assert_frame_equal(after.obs, expected)
    assert (after.X != before.X).nnz == 0
    left = sorted(tmp_path.rglob(".*.partial"))
    assert left or moment == "naming"
    ObsFile(path, None, overwrite=True).write(iter([("cell_type", np.arange(600.0))]))
    assert read(path).obs["cell_type"].tolist() == list(range(600))
    for partial in left:
        assert f"{partial} was left by a run that was killed" in caplog.text
    for metadata in (path / "zarr.json", path / ".zmetadata"):
        if metadata.exists():
            assert ".partial" not in metadata.read_text()
    if form != "h5ad":
        ObsFile(path, tmp_path / "copy.zarr", overwrite=False).write(iter([]))
        assert not list((tmp_path / "copy.zarr").rglob(".*.partial"))


@pytest.mark.parametrize("form", ["h5ad", "zarr3"])
def test_obs__in_place_leaves_a_read_only_atlas(tmp_path, monkeypatch, form):
    path = stores.write(atlas.make(), tmp_path, form)
    # The superuser, as in CI, may write to all.
    monkeypatch.setattr("os.access", lambda place, _: Path(place) != path)
    with pytest.raises(InputError, match="is read-only, so no columns are added to it"):
        ObsFile(path, None, overwrite=True)
    ObsFile(path, tmp_path / f"copy{path.suffix}", overwrite=False)


def test_obs__in_place_parts_no_hard_links(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    (tmp_path / "other.h5ad").hardlink_to(path)
    with pytest.raises(InputError, match="has 2 names"):
        ObsFile(path, None, overwrite=True)


def test_obs__in_place_keeps_the_owner(tmp_path, monkeypatch):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    given = []
    monkeypatch.setattr("os.chown", lambda _, *owner: given.append(owner))
    ObsFile(path, None, overwrite=True).write(iter([("new", np.arange(600.0))]))
    assert given == [(path.stat().st_uid, path.stat().st_gid)]

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr("os.chown", refused)
    ObsFile(path, None, overwrite=True).write(iter([("more", np.arange(600.0))]))
    assert read(path).obs.columns[-2:].tolist() == ["new", "more"]


@pytest.mark.parametrize("form", ["h5ad", "zarr3"])
def test_obs__the_clusters_that_were_read_stay(tmp_path, model, form):
    adata = atlas.make()
    adata.obs["over_clustering"] = pd.Categorical(["a", "b", "c"] * 200)
    path = stores.write(adata, tmp_path, form)
    streamtrain.predict(
        model, path, in_place=True, majority_voting=True, over_clustering="over_clustering",
        where="donor == 'D1'", **QUIET,
    )  # fmt: skip
    obs = read(path).obs
    assert obs["over_clustering"].tolist() == ["a", "b", "c"] * 200
    assert obs["majority_voting"].notna().tolist() == (adata.obs["donor"] == "D1").tolist()


def test_obs__a_copy_follows_links(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "zarr3")
    (path / "layers").rename(tmp_path / "elsewhere")
    (path / "layers").symlink_to(tmp_path / "elsewhere")
    before, out = read(path), tmp_path / "copy.zarr"
    ObsFile(path, out, overwrite=False).write(iter([("new", np.arange(600.0))]))
    assert not (out / "layers").is_symlink()
    assert_only_obs_differs(before, read(out))
    (tmp_path / "elsewhere" / "loop").symlink_to(path)
    with pytest.raises(InputError, match="is a link to a folder that it lies in"):
        ObsFile(path, out, overwrite=True)
