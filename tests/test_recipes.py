"""The recipes of settings: what each holds, that it trains, how they are listed and shipped."""

import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import streamtrain
from streamtrain import InputError, Model, recipes
from streamtrain.config import Settings
from tests import atlas, stores
from tests.commands import call
from tests.test_config import celltypists_arguments

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("date", "details", "url", "source", "version")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return stores.write(atlas.make(), tmp_path_factory.mktemp("recipes"), "h5ad")


def held(name):
    return tomllib.loads(recipes.text(name))


@pytest.mark.parametrize("name", recipes.NAMES)
def test_recipe__is_the_file_in_conf_and_its_settings_are_valid(name):
    assert recipes.text(name) == (ROOT / "conf" / f"{name}.toml").read_text(encoding="utf-8")
    kept = Settings.from_keywords({"recipe": name})
    assert {key: getattr(kept, key) for key in held(name)} == held(name)
    what, when = recipes.purpose(name)
    for line in (what, when):
        assert 40 < len(line) < 120
        assert line.endswith((".", ":"))
        assert not line.startswith("#")
    assert when.startswith("Take it")


def test_recipe__conf_has_no_other():
    assert sorted(p.stem for p in (ROOT / "conf").glob("*.toml")) == sorted(recipes.NAMES)


def test_recipe__celltypist_spells_out_its_defaults():
    theirs = {k: v for k, v in celltypists_arguments().items() if k not in TEXTS}
    own = {k: v for k, v in theirs.items() if v is not None and k in vars(Settings())}
    assert len(own) > 12
    assert held("celltypist") == own
    plain = Settings.from_keywords({"recipe": "celltypist"})
    assert plain == Settings(recipe="celltypist")


def test_recipe__those_that_follow_atlas():
    atlas_ = held("atlas")
    assert held("gpu") == atlas_ | {"device": "gpu"}
    cluster = held("cluster")
    assert set(atlas_["alpha"]) < set(cluster["alpha"])
    assert cluster["alpha"][0] == atlas_["alpha"][0]  # which is kept unless another is better
    assert cluster | {"alpha": 0} == atlas_ | {"alpha": 0}
    quick = held("quick-look")
    shared = ("use_SGD", "mini_batch", "balance_cell_type", "replace", "average", "step")
    assert {k: quick[k] for k in shared} == {k: atlas_[k] for k in shared}
    assert quick["alpha"] == atlas_["alpha"][0]


SMALLER = {"batch_size": 50, "batch_number": 2, "epochs": 2, "folds": 2}


@pytest.mark.parametrize("name", [name for name in recipes.NAMES if name != "gpu"])
def test_recipe__trains(path, name):
    own = held(name)
    less = {key: value for key, value in SMALLER.items() if own.get("use_SGD") and key in own}
    model = streamtrain.train(path, "cell_type", recipe=name, **less, progress=False)
    assert model.settings["recipe"] == name
    assert (model.calibration is not None) == own.get("calibrate", False)
    assert len(model.cell_types) == 5


def test_recipe__celltypist_is_training_without_one(path):
    one = streamtrain.train(path, "cell_type", recipe="celltypist", progress=False)
    other = streamtrain.train(path, "cell_type", progress=False)
    assert (one.coef_ == other.coef_).all()


def test_recipe__gpu_is_refused_without_one(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match=r"device='gpu'.*CuPy"):
        streamtrain.train(path, "cell_type", recipe="gpu", progress=False)


def test_recipe__both_spellings(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("use-sgd = true\nmini_batch = true\nbatch-size = 7\nc = 2\ntol = 'none'\n")
    kept = Settings.from_keywords({"recipe": file})
    assert (kept.use_SGD, kept.mini_batch, kept.batch_size, kept.C) == (True, True, 7, 2)
    assert kept.tol is None
    file.write_text("batch-size = 7\nbatch_size = 8\n")
    with pytest.raises(InputError, match="batch_size is there twice, spelled in two ways"):
        Settings.from_keywords({"recipe": file})
    file.write_text("layer = 'none'\n")
    assert Settings.from_keywords({"recipe": file}).layer == "none"


def test_recipes__are_listed_and_printed(capsys, tmp_path, path):
    code, out, err = call(capsys, "recipes")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == list(recipes.NAMES)
    for name in recipes.NAMES:
        assert "\n".join([name, *(f"    {line}" for line in recipes.purpose(name))]) in out
    code, out, err = call(capsys, "recipes", "quick-look")
    assert (code, err) == (0, "")
    assert out == recipes.text("quick-look")
    own = tmp_path / "own.toml"
    own.write_text(out.replace("epochs = 10", "epochs = 1"))
    train = ("train", path, "--labels", "cell_type", "--quiet", "--out", tmp_path / "m.zarr")
    assert call(capsys, *train, "--recipe", own, "--batch-size", 50) == (0, "", "")
    assert Model.load(tmp_path / "m.zarr").settings["epochs"] == 1
    code, out, err = call(capsys, "recipes", "quicklook")
    assert (code, out) == (2, "")
    assert err.startswith("streamtrain: no recipe 'quicklook': did you mean 'quick-look'?\n")


def test_recipes__are_in_the_wheel(tmp_path, monkeypatch):
    build = pytest.importorskip("hatchling.build", reason="needs hatchling, which builds wheels")
    monkeypatch.chdir(ROOT)
    wheel = build.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as packed:
        for name in recipes.NAMES:
            text = packed.read(f"streamtrain/recipes/{name}.toml").decode()
            assert text == recipes.text(name)
        assert "streamtrain/cli/train.py" in packed.namelist()
