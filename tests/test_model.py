import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse
from scipy.special import expit, softmax

from streamtrain import atomic, celltypist_export, model
from streamtrain.calibration import Calibration
from streamtrain.errors import InputError
from streamtrain.model import Model

GENES = 12


def arrays(n_types=5, dtype=np.float64, n_genes=GENES, seed=0):
    rng = np.random.default_rng(seed)
    rows = 1 if n_types == 2 else n_types
    return {
        "coef": rng.normal(size=(rows, n_genes)).astype(dtype),
        "intercept": rng.normal(size=rows).astype(dtype),
        "cell_types": [f"type {i} αβ⁺" for i in range(n_types)],
        "genes": [f"GÈNE-{i}" for i in range(n_genes)],
        "mean": rng.uniform(0, 2, n_genes).astype(dtype),
        "var": rng.uniform(0.5, 2, n_genes).astype(dtype),
        "scale": rng.uniform(0.5, 2, n_genes).astype(dtype),
    }


def make(n_types=5, dtype=np.float64, **more):
    return Model.build(**(arrays(n_types, dtype) | more))


# Model


def test_build__two_types_have_mirrored_rows():
    given = arrays(2)
    m = Model.build(**given)
    np.testing.assert_array_equal(m.dataset["coef"], np.vstack([-given["coef"], given["coef"]]))
    np.testing.assert_array_equal(m.coef_, given["coef"])
    np.testing.assert_array_equal(m.intercept_, given["intercept"])
    assert m.classes_.tolist() == given["cell_types"]
    assert m.features.tolist() == given["genes"]


def test_build__many_types_keep_their_rows():
    given = arrays(5)
    m = Model.build(**given)
    np.testing.assert_array_equal(m.coef_, given["coef"])
    np.testing.assert_array_equal(m.intercept_, given["intercept"])


BROKEN = {
    "shape": (lambda a: a | {"mean": a["mean"][:-1]}, "mean has shape"),
    "nan": (lambda a: a | {"coef": a["coef"] * np.nan}, "coef holds NaN or infinity"),
    "infinite mean": (lambda a: a | {"mean": a["mean"] + np.inf}, "mean holds NaN or infinity"),
    "scale": (lambda a: a | {"scale": a["scale"] * 0}, "scale must be above 0"),
    "dtype": (lambda a: a | {"coef": a["coef"].astype(int)}, "coef must be float, not int64"),
    "gene twice": (
        lambda a: a | {"genes": ["x", *"yxabcdefghi"]},
        "gene 'x' occurs more than once",
    ),
    "type twice": (lambda a: a | {"cell_types": list("abcda")}, "cell type 'a' occurs more"),
    "not text": (lambda a: a | {"cell_types": [1, 2, 3, 4, 5]}, "every cell type must be a string"),
    "half an average": (lambda a: a | {"coef_last": a["coef"]}, "must come together"),
    "t": (lambda a: a | {"t": 0}, "t must be a number of at least 1"),
    "a type's t": (
        lambda a: a | {"t": [1, 2, 0.5, 3, 4]},
        "t must be at least 1; its least is 0.5",
    ),
    "no cells": (lambda a: a | {"n_obs": 0}, "n_obs must be at least 1; its least is 0"),
    "n_obs": (lambda a: a | {"n_obs": 1.5}, "n_obs must be integer, not float64"),
    "n_averaged": (lambda a: a | {"n_averaged": [1] * 4}, "n_averaged has shape"),
    "with_mean": (lambda a: a | {"with_mean": "yes"}, "with_mean must be True or False"),
    "settings": (lambda a: a | {"settings": [1]}, "settings must be a dict"),
    "one type": (
        lambda a: (
            a | {"cell_types": ["a"], "coef": np.ones((2, GENES))[:0], "intercept": np.ones(0)}
        ),
        "coef has shape",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_build__refuses(case):
    change, message = BROKEN[case]
    with pytest.raises(InputError, match=message):
        Model.build(**change(arrays(5)))


def test_model__refuses_datasets():
    good = make().dataset
    with pytest.raises(InputError, match="needs coef: the dataset has none"):
        Model(good.drop_vars("coef"))
    with pytest.raises(InputError, match="coef has dimensions"):
        Model(good.transpose("gene", "cell_type"))
    with pytest.raises(InputError, match="needs gene: the dataset has none"):
        Model(good.drop_vars("gene"))
    with pytest.raises(InputError, match="at least 2 cell types, not 1"):
        Model(good.isel(cell_type=[0]))
    two = make(2).dataset
    with pytest.raises(InputError, match="coef of two cell types must have rows -w and w"):
        Model(two.assign(coef=two["coef"] + 1))


def test_model__leaves_its_dataset_alone():
    given = make().dataset
    before = given.copy(deep=True)
    Model(given.assign_attrs(settings={"a": (1, 2)}))
    xr.testing.assert_identical(given, before)


def test_attributes__become_plain():
    m = make(
        settings={"path": Path("/x"), "n": np.int32(3), "tol": -np.inf, "shape": (1, 2), 4: None},
        provenance={"sizes": np.arange(2), "nested": {"b": np.True_}},
    )
    assert m.settings == {"path": "/x", "n": 3, "tol": "-inf", "shape": [1, 2], "4": None}
    assert m.provenance == {"sizes": [0, 1], "nested": {"b": True}}
    json.dumps(m.dataset.attrs, allow_nan=False)


def test_repr():
    text = repr(make(description={"date": "2025", "source": "lung"}, settings={"alpha": 0.1}))
    assert text.splitlines() == [
        "streamtrain model with 5 cell types and 12 features",
        "    date: 2025",
        "    source: lung",
        "    cell types: 'type 0 αβ⁺', 'type 1 αβ⁺', 'type 2 αβ⁺', ... (5 in all)",
        "    features: 'GÈNE-0', 'GÈNE-1', 'GÈNE-2', ... (12 in all)",
        "    settings: alpha=0.1",
    ]
    assert "<div>" in make()._repr_html_()


# certificate

CERTIFICATE = {
    "gradient_norm": [1e-6, 2e-6, 0.0],
    "suboptimality": [1e-9, np.inf, 0.0],
    "n_iter": [7, 8, 9],
    "converged": [True, True, False],
}


@pytest.mark.parametrize("n_types", [2, 3])
def test_certificate(tmp_path, n_types):
    given = {k: v[:1] if n_types == 2 else v for k, v in CERTIFICATE.items()}
    m = make(n_types, certificate=given)
    table = m.certificate
    assert table.index.tolist() == m.cell_types.tolist()
    assert table.dtypes.astype(str).to_dict() == {
        "gradient_norm": "float64", "suboptimality": "float64", "n_iter": "int64",
        "converged": "bool",
    }  # fmt: skip
    for name, values in given.items():
        assert table[name].tolist() == (values * 2 if n_types == 2 else values)
    m.save(tmp_path / "m.zarr")
    xr.testing.assert_identical(Model.load(tmp_path / "m.zarr").dataset, m.dataset)
    (tmp_path / "m.zarr" / "converged" / "0").unlink()
    with pytest.raises(InputError, match="does not match its checksum"):
        Model.load(tmp_path / "m.zarr")


def test_certificate__some_or_none():
    assert make().certificate is None
    assert make(3, certificate={"n_iter": [1, 2, 3]}).certificate.columns.tolist() == ["n_iter"]


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({"gradient": [1.0] * 3}, "a certificate has no 'gradient': did you mean 'gradient_norm'"),
        ({"n_iter": [1.0] * 3}, "n_iter must be integer, not float64"),
        ({"converged": [1] * 3}, "converged must be bool, not int64"),
        ({"gradient_norm": [1.0]}, r"gradient_norm has shape \(1,\), not \(3,\)"),
        ({"gradient_norm": [1.0, np.nan, 1.0]}, "gradient_norm must be at least 0"),
        ({"n_iter": [1, -1, 1]}, "n_iter must be at least 0"),
    ],
)
def test_certificate__refuses(certificate, message):
    with pytest.raises(InputError, match=message):
        make(3, certificate=certificate)


# save, load


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_types", [2, 5])
def test_save__load_gives_the_same(tmp_path, n_types, dtype):
    given = arrays(n_types, dtype)
    m = Model.build(
        **given,
        with_mean=False,
        t=1e6 + 1 if n_types == 2 else 1e6 - np.arange(n_types),
        n_cells=np.arange(n_types),
        n_obs=np.arange(1, GENES + 1),
        n_averaged=7,
        coef_last=given["coef"] * 2,
        intercept_last=given["intercept"] * 2,
        settings={"alpha": 1e-4, "average": True, "solver": None},
        provenance={"sources": [{"name": "lung β.h5ad", "cells": 3}]},
        description={"details": "x"},
    )
    m.save(tmp_path / "m.zarr")
    loaded = Model.load(tmp_path / "m.zarr")
    xr.testing.assert_identical(loaded.dataset, m.dataset)
    assert {k: v.dtype for k, v in loaded.dataset.variables.items()} == {
        k: v.dtype for k, v in m.dataset.variables.items()
    }
    assert loaded.description["number_celltypes"] == n_types
    loaded.save(tmp_path / "again.zarr")
    xr.testing.assert_identical(Model.load(tmp_path / "again.zarr").dataset, m.dataset)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.zarr", "m.zarr"]


def test_save__opens_in_xarray_and_zarr(tmp_path):
    import zarr

    m = make()
    m.save(tmp_path / "m.zarr")
    for options in ({}, {"chunks": None}):
        with xr.open_zarr(tmp_path / "m.zarr", **options) as opened:
            np.testing.assert_array_equal(opened["coef"], m.dataset["coef"])
            assert opened["gene"].values.tolist() == m.features.tolist()
            assert opened.attrs["description"] == m.description
    assert zarr.open_group(tmp_path / "m.zarr", mode="r")["gene"][:].tolist() == m.features.tolist()


def test_save__refuses_then_overwrites(tmp_path):
    path = tmp_path / "m.zarr"
    make(5).save(path)
    with pytest.raises(InputError, match=r"exists: pass overwrite=True \(--overwrite\)"):
        make(2).save(path)
    assert len(Model.load(path).cell_types) == 5
    make(2).save(path, overwrite=True)
    assert len(Model.load(path).cell_types) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]


def test_save__keeps_another_zarr(tmp_path):
    atlas = tmp_path / "atlas.zarr"
    xr.Dataset({"X": ("cell", np.ones(3))}).to_zarr(atlas, zarr_format=2)
    for check in (model.check_output, make().save):
        with pytest.raises(InputError, match="not a streamtrain model"):
            check(atlas, overwrite=True)
    assert (atlas / "X").is_dir()


def test_save__failure_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "m.zarr"
    make(5).save(path)
    write = xr.Dataset.to_zarr

    def fail(self, store, **options):
        write(self, store, **options)
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        make(2).save(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]
    assert len(Model.load(path).cell_types) == 5


def edit(name, change):
    def do(path):
        attrs = json.loads((path / name).read_text())
        change(attrs)
        (path / name).write_text(json.dumps(attrs))

    return do


def flip(path):
    chunk = path / "coef" / "0.0"
    data = bytearray(chunk.read_bytes())
    data[-3] ^= 1
    chunk.write_bytes(data)


DAMAGE = {
    "no attributes": (lambda p: (p / ".zattrs").unlink(), "not a streamtrain model"),
    "other zarr": (edit(".zattrs", lambda a: a.pop("format")), "not a streamtrain model"),
    "broken attributes": (lambda p: (p / ".zattrs").write_text("{"), "damaged: .zattrs"),
    "no version": (edit(".zattrs", lambda a: a.pop("format_version")), "format_version is None"),
    "newer": (edit(".zattrs", lambda a: a.update(format_version=99)), "upgrade streamtrain"),
    "lost variable": (lambda p: shutil.rmtree(p / "coef"), "damaged"),
    "lost chunk": (lambda p: (p / "coef" / "0.0").unlink(), "damaged"),
    "lost names": (lambda p: (p / "gene" / "0").unlink(), "damaged"),
    "lost counts": (lambda p: (p / "n_cells" / "0").unlink(), "does not match its checksum"),
    "flipped bit": (flip, "damaged"),
    "short chunk": (lambda p: os.truncate(p / "coef" / "0.0", 20), "damaged"),
    "broken metadata": (lambda p: (p / ".zmetadata").write_text("{"), "damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_load__damaged(tmp_path, case):
    change, message = DAMAGE[case]
    path = tmp_path / "m.zarr"
    make(n_cells=np.arange(5)).save(path)
    change(path)
    with pytest.raises(InputError, match=message):
        Model.load(path)


def test_load__missing_or_not_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        Model.load(tmp_path / "none.zarr")
    with pytest.raises(InputError, match="is not a streamtrain model"):
        Model.load(tmp_path)
    (tmp_path / "m.pkl").write_bytes(b"x")
    with pytest.raises(InputError, match=r"m.pkl' is not a usable CellTypist model: not a pickle"):
        Model.load(tmp_path / "m.pkl")


# atomic


def test_replacing__file(tmp_path):
    path = tmp_path / "f"
    with atomic.replacing(path) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".f.")
        assert partial.name.endswith(".partial")
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"

    def stopped():
        with atomic.replacing(path, overwrite=True) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__target_appears_meanwhile(tmp_path):
    path = tmp_path / "f"

    def overtaken():
        with atomic.replacing(path) as partial:
            partial.write_text("new")
            path.write_text("theirs")

    with pytest.raises(InputError, match="exists"):
        overtaken()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__nothing_written(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.replacing(tmp_path / "f"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_replacing__folder_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "z"
    path.mkdir()
    (path / ".zgroup").touch()
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic.replacing(path, overwrite=True) as partial:
        partial.mkdir()
    assert list(tmp_path.iterdir()) == [path]
    assert (path / ".zgroup").exists()


def others(monkeypatch, path, meddle):
    """Have another process meddle with `path` before the first rename of what is to go there."""
    rename = Path.rename
    left = [meddle]

    def renamed(self, target):
        if left and self.name.endswith(".partial"):
            left.pop()()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)


@pytest.mark.parametrize("overwrite", [False, True])
def test_replacing__another_puts_a_folder_there(tmp_path, monkeypatch, overwrite):
    path = tmp_path / "z"

    def meddle():
        path.mkdir()
        (path / "zarr.json").write_text("theirs")

    others(monkeypatch, path, meddle)

    def write():
        with atomic.replacing(path, overwrite) as partial:
            partial.mkdir()
            (partial / "zarr.json").write_text("ours")

    if overwrite:
        write()
    else:
        with pytest.raises(InputError, match="exists: pass overwrite=True"):
            write()
    assert (path / "zarr.json").read_text() == ("ours" if overwrite else "theirs")
    assert list(tmp_path.iterdir()) == [path]


def test_replacing__another_takes_the_folder_away(tmp_path, monkeypatch):
    """Between our look at it and our renaming it aside."""
    path, rename = tmp_path / "z", Path.rename
    path.mkdir()
    (path / "zarr.json").touch()

    def renamed(self, target):
        if self == path:
            shutil.rmtree(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with atomic.replacing(path, overwrite=True) as partial:
        partial.mkdir()
    assert list(tmp_path.iterdir()) == [path]
    assert list(path.iterdir()) == []


def test_load__replaced_meanwhile(tmp_path, monkeypatch):
    """What was read of both is not taken for damage; damage that stays is."""
    path = tmp_path / "m.zarr"
    make(2).save(path)
    opened, left = xr.open_zarr, [3]

    def meddle(*arguments, **options):
        found = opened(*arguments, **options)
        if left[0]:
            left[0] -= 1
            Model.build(**arrays(5, seed=left[0])).save(path, overwrite=True)
        return found

    monkeypatch.setattr(xr, "open_zarr", meddle)
    xr.testing.assert_identical(Model.load(path).dataset, make(5).dataset)
    assert left == [0]
    flip(path)
    with pytest.raises(InputError, match="damaged"):
        Model.load(path)


def test_replacing__old_folder_stays(tmp_path, monkeypatch):
    path = tmp_path / "z"
    path.mkdir()
    (path / "zarr.json").touch()

    def fail(*_, **__):
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", fail)
    with (
        pytest.warns(UserWarning, match="could not delete the former output"),
        atomic.replacing(path, overwrite=True) as partial,
    ):
        partial.mkdir()
    assert list(path.iterdir()) == []


def test_replacing__follows_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "f")
    with atomic.replacing(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "disk" / "f").read_text() == "new"


def test_check_output__refuses(tmp_path, monkeypatch):
    (tmp_path / "f").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / ".zgroup").touch()
    os.mkfifo(tmp_path / "pipe")
    table = [
        ("none/x", {}, "does not exist"),
        ("f/x", {}, "does not exist"),
        ("f", {}, "exists: pass overwrite"),
        ("home", {}, "exists: pass overwrite"),
        ("home", {"overwrite": True}, "not a zarr store"),
        ("pipe", {"overwrite": True}, "neither a file nor a folder"),
        ("f", {"overwrite": True, "folder": True}, "is a file and would be replaced by a folder"),
        ("z", {"overwrite": True, "folder": False}, "is a folder and would be replaced by a file"),
    ]
    for name, options, message in table:
        with pytest.raises(InputError, match=message):
            atomic.check_output(tmp_path / name, **options)
        with pytest.raises(InputError, match=message), atomic.replacing(tmp_path / name, **options):
            pytest.fail("work was done")
    for name in ("f", "z", "new"):
        assert atomic.check_output(tmp_path / name, overwrite=True) == tmp_path / name
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission to write"):
        atomic.check_output(tmp_path / "new")


# Calibration

CALIBRATED = {"temperature": 0.5, "offset": -0.25}


@pytest.mark.parametrize("n_types", [2, 5])
def test_calibration__is_kept(tmp_path, n_types):
    plain = make(n_types)
    assert plain.calibration is None
    assert "calibration" not in plain.dataset.attrs
    m = make(n_types, calibration={k: np.float32(v) for k, v in CALIBRATED.items()})
    assert m.calibration == Calibration(**CALIBRATED)
    assert repr(m).startswith(f"calibrated streamtrain model with {n_types} cell types")
    assert repr(plain).startswith("streamtrain model with")
    m.save(tmp_path / "m.zarr")
    assert Model.load(tmp_path / "m.zarr").calibration == m.calibration
    with xr.open_zarr(tmp_path / "m.zarr") as dataset:
        assert dataset.attrs["calibration"] == CALIBRATED
    for other in (m.subset(keep_cell_types=m.cell_types[:2]), m.convert({"GÈNE-3": "new"})):
        assert other.calibration == m.calibration


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 1.0}, "calibration must be a dict of temperature, offset; got {"),
        (3, "calibration must be a dict of temperature, offset; got 3"),
        (CALIBRATED | {"slopes": 1.0}, "calibration must be a dict of temperature, offset"),
        *[
            (CALIBRATED | {name: value}, f"calibration: {name} must be a number, and above 0 but")
            for name, value in [
                ("temperature", 0), ("temperature", -1.0), ("offset", "1"), ("temperature", np.nan),
                ("offset", np.inf), ("offset", None),
            ]
        ],
    ],
)  # fmt: skip
def test_calibration__refused(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(calibration=given)


# CellTypist


@pytest.fixture
def celltypist(tmp_path_factory, monkeypatch):
    # It makes ~/.celltypist when imported.
    monkeypatch.setenv("CELLTYPIST_FOLDER", str(tmp_path_factory.mktemp("celltypist")))
    return pytest.importorskip("celltypist")


def log1p_10k(n_cells, genes, seed=1):
    import anndata
    import pandas as pd

    counts = np.random.default_rng(seed).poisson(0.3, (n_cells, len(genes))).astype(float)
    counts[:, 0] += 1
    X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 10_000)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    return anndata.AnnData(sparse.csr_matrix(X), obs=obs, var=pd.DataFrame(index=list(genes)))


def unpickle(path):
    return pickle.loads(path.read_bytes())  # noqa: S301 - the test wrote it


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("n_types", [2, 5])
def test_export__annotates(tmp_path, celltypist, n_types, with_mean):
    coef = arrays(n_types)["coef"]
    # A random row that sums to 0 favours no type; gene 5 is clipped where it is expressed.
    more = {"coef": coef - coef.mean(axis=1, keepdims=True), "intercept": 0 * coef[:, 0]}
    scale = np.where(np.arange(GENES) == 5, 0.01, 5)
    m = make(n_types, with_mean=with_mean, scale=scale, **more)
    path = tmp_path / "exactly.this name"
    m.to_celltypist(path)
    loaded = celltypist.models.Model.load(str(path))
    assert "features: GÈNE-0" in repr(loaded)
    # Other genes, another order: CellTypist drops the genes it lacks.
    adata = log1p_10k(40, [*m.features[::-1][:-2], "other"])
    if not with_mean:  # CellTypist 1.7.1 cannot clip the COO matrix that sparse / scale gives
        adata.X = adata.X.toarray()
    result = celltypist.annotate(adata, model=loaded)

    data = m.dataset.sel(gene=adata.var_names[:-1].to_list())
    x = sparse.csr_matrix(adata.X)[:, :-1].toarray() - (data["mean"].values if with_mean else 0)
    z = np.minimum(x / data["scale"].values, 10)
    assert (z == 10).any()
    scores = z @ data["coef"].values.T + data["intercept"].values
    np.testing.assert_allclose(result.decision_matrix, scores, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.probability_matrix, expit(scores), rtol=0, atol=1e-6)
    labels = result.predicted_labels["predicted_labels"].tolist()
    assert labels == m.cell_types[scores.argmax(axis=1)].tolist()
    assert len(set(labels)) > 1


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("n_types", [2, 5])
def test_export__of_a_calibrated_model(tmp_path, celltypist, n_types, averaged):
    """CellTypist's sigmoids are the calibrated ones; of two types they are the softmax."""
    coef = arrays(n_types)["coef"]
    more = {"coef": coef - coef.mean(axis=1, keepdims=True), "intercept": 0 * coef[:, 0] + 0.1}
    if averaged:
        more |= {"coef_last": coef, "intercept_last": 0 * coef[:, 0], "n_averaged": 50}
    m = make(n_types, t=101.0, calibration=CALIBRATED, scale=np.full(GENES, 5.0), **more)
    m.to_celltypist(tmp_path / "m.pkl")
    loaded = celltypist.models.Model.load(str(tmp_path / "m.pkl"))
    adata = log1p_10k(40, m.features)
    result = celltypist.annotate(adata, model=loaded)
    data = m.dataset
    z = (adata.X.toarray() - data["mean"].values) / data["scale"].values
    scores = z @ data["coef"].values.T + data["intercept"].values
    expected = expit(scores / 0.5 - 0.25) if n_types > 2 else softmax(scores / 0.5, axis=1)
    np.testing.assert_allclose(result.probability_matrix, expected, rtol=0, atol=1e-6)
    labels = result.predicted_labels["predicted_labels"].tolist()
    assert labels == m.cell_types[scores.argmax(axis=1)].tolist()
    assert len(set(labels)) > 1
    # No state to go on from: the weights are none of SGD's.
    sgd = loaded.classifier
    assert sgd.t_ == 1
    assert not sgd.average
    assert not hasattr(sgd, "_standard_coef") or sgd._standard_coef is None
    again = Model.load(tmp_path / "m.pkl")
    assert again.calibration is None
    assert "coef_last" not in again.dataset
    np.testing.assert_array_equal(m.coef_, make(n_types, **more).coef_)  # the model's stay


@pytest.mark.parametrize("only_positive", [True, False])
@pytest.mark.parametrize("n_types", [2, 5])
def test_extract_top_markers__as_celltypist(tmp_path, celltypist, n_types, only_positive):
    m = make(n_types)
    m.to_celltypist(tmp_path / "m.pkl")
    loaded = celltypist.models.Model.load(str(tmp_path / "m.pkl"))
    for cell_type in m.cell_types:
        args = (cell_type, 7, only_positive)
        assert m.extract_top_markers(*args).tolist() == loaded.extract_top_markers(*args).tolist()


def test_export__names_only_public_classes(tmp_path):
    given = arrays(5)
    last = {"coef_last": given["coef"], "intercept_last": given["intercept"]}
    m = Model.build(**given, **last, n_cells=np.full(5, 10))
    m.to_celltypist(tmp_path / "m.pkl")
    found = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(f"{module}.{name}")
            return super().find_class(module, name)

    with (tmp_path / "m.pkl").open("rb") as file:
        Recorder(file).load()
    assert found == {
        "sklearn.linear_model._stochastic_gradient.SGDClassifier",
        "sklearn.preprocessing._data.StandardScaler",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy._core.multiarray._reconstruct",  # numpy 1.26 has it too; _core.numeric it has not
        "numpy._core.multiarray.scalar",
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_types", [2, 4])
@pytest.mark.parametrize("average", [False, True, 20])
def test_export__continues_as_sklearn(tmp_path, n_types, average, dtype):
    from sklearn.linear_model import SGDClassifier

    settings = {"alpha": 1e-3, "shuffle": False, "eta0": "auto", "average": average}
    given = arrays(n_types, dtype)
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(60, GENES)).astype(dtype)
    y = np.array(given["cell_types"], dtype=object)[rng.permutation(60) % n_types]
    whole = SGDClassifier(loss="log_loss", alpha=1e-3, shuffle=False, average=average)
    whole.partial_fit(Z, y, classes=given["cell_types"])
    last = {}
    if average:
        last = {
            "coef_last": np.atleast_2d(whole._standard_coef),
            "intercept_last": whole._standard_intercept,
        }
    m = Model.build(
        **given | {"coef": whole.coef_, "intercept": whole.intercept_} | last,
        t=whole.t_,
        settings=settings,
    )
    m.to_celltypist(tmp_path / "m.pkl")
    half = unpickle(tmp_path / "m.pkl")["Model"]
    before = m.coef_.copy()
    half.partial_fit(Z, y)
    whole.partial_fit(Z, y)
    np.testing.assert_allclose(half.coef_, whole.coef_, rtol=1e-6)
    np.testing.assert_allclose(half.intercept_, whole.intercept_, rtol=1e-6)
    np.testing.assert_array_equal(half.predict(Z), whole.predict(Z))
    np.testing.assert_array_equal(m.coef_, before)  # the export trains on copies


def test_export__averages_over_as_many_steps(tmp_path):
    """One counter for all types: that of the one with most steps, and those in its average."""
    given = arrays(3)
    last = {"coef_last": given["coef"], "intercept_last": given["intercept"]}
    m = Model.build(**given, **last, t=[5.0, 901.0, 7.0], n_averaged=[4, 600, 6])
    assert m.dataset.attrs["t"] == 901
    m.to_celltypist(tmp_path / "m.pkl")
    sgd = unpickle(tmp_path / "m.pkl")["Model"]
    assert (sgd.t_, sgd.average) == (901, 301)  # t_ - average steps are in it


@pytest.mark.parametrize("with_mean", [True, False])
def test_export__scaler_is_a_fitted_one(tmp_path, with_mean):
    from sklearn.preprocessing import StandardScaler

    X = np.random.default_rng(0).normal(size=(30, GENES))
    fitted = StandardScaler(with_mean=with_mean).fit(X)
    m = make(
        mean=fitted.mean_,
        var=fitted.var_,
        scale=fitted.scale_,
        with_mean=with_mean,
        n_cells=[6] * 5,
    )
    m.to_celltypist(tmp_path / "m.pkl")
    scaler = unpickle(tmp_path / "m.pkl")["Scaler_"]
    assert vars(scaler).keys() >= {"mean_", "var_", "scale_", "n_samples_seen_", "n_features_in_"}
    np.testing.assert_array_equal(scaler.transform(X), fitted.transform(X))
    np.testing.assert_array_equal(scaler.partial_fit(X).var_, fitted.partial_fit(X).var_)


def test_export__settings_scikit_learn_would_refuse():
    from sklearn.linear_model import SGDClassifier

    settings = {
        "alpha": 0,
        "eta0": "auto",
        "learning_rate": "cosine",
        "penalty": None,
        "l1_ratio": True,
        "random_state": 0,
        "shuffle": False,
        "fit_intercept": 1,
        "epochs": 3,
    }
    made = celltypist_export.classifier(make(settings=settings)).get_params()
    assert made == SGDClassifier(loss="log_loss", random_state=0, shuffle=False).get_params()


@pytest.mark.parametrize("n_types", [2, 4])
def test_export__logistic_regression(tmp_path, n_types):
    settings = {
        "use_SGD": False,
        "C": 0.5,
        "solver": None,
        "max_iter": 300,
        "tol": 1e-5,
        "alpha": 1,
    }
    n_iter = np.arange(5, 5 + (1 if n_types == 2 else n_types))
    m = make(n_types, settings=settings, certificate={"n_iter": n_iter})
    m.write(tmp_path / "m.v1.2")
    made = unpickle(tmp_path / "m.v1.2")["Model"]
    assert type(made).__name__ == "LogisticRegression"
    assert made.get_params()["C"] == 0.5
    assert (made.solver, made.max_iter, made.tol) == ("lbfgs", 300, 1e-5)
    assert made.n_features_in_ == GENES
    np.testing.assert_array_equal(made.n_iter_, n_iter)
    Z = np.random.default_rng(0).normal(size=(20, GENES))
    scores = (Z @ m.dataset["coef"].values.T + m.dataset["intercept"].values)[
        :, -made.coef_.shape[0] :
    ]
    np.testing.assert_allclose(made.decision_function(Z), scores.squeeze(), rtol=1e-12)
    loaded = Model.load(tmp_path / "m.v1.2")
    np.testing.assert_array_equal(loaded.dataset["n_iter"], m.dataset["n_iter"])
    np.testing.assert_array_equal(loaded.coef_, m.coef_)


def test_export__overwrite(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_text("old")
    with pytest.raises(InputError, match="exists"):
        make().to_celltypist(path)
    assert path.read_text() == "old"
    make().to_celltypist(path, overwrite=True)
    assert set(unpickle(path)) == {"Model", "Scaler_", "description"}


def test_extract_top_markers__ties_and_errors():
    coef = np.zeros((3, GENES))
    coef[0, [4, 7]] = 1
    coef[0, 2] = -2
    m = make(3, coef=coef)
    first = m.cell_types[0]
    assert m.extract_top_markers(first, 4).tolist() == ["GÈNE-4", "GÈNE-7", "GÈNE-0", "GÈNE-1"]
    assert m.extract_top_markers(first, 2, only_positive=False).tolist() == ["GÈNE-2", "GÈNE-4"]
    assert len(m.extract_top_markers(first, 99)) == GENES
    with pytest.raises(InputError, match=r"no cell type 'type 0'.* did you mean 'type 0 αβ⁺'"):
        m.extract_top_markers("type 0")
    for top_n in (0, 1.5, True, "3"):
        with pytest.raises(InputError, match=f"whole number of at least 1; got {top_n!r}"):
            m.extract_top_markers(first, top_n)


# convert, subset


def maps(genes):
    """A table with a header, 1:1, 1:n, n:1 and n:m pairs, a repeated pair, a gap and strangers."""
    rows = [("human", "mouse"), *[(g, g.title()) for g in genes[:7]]]
    rows += [
        (genes[7], "A1"),
        (genes[7], "A2"),
        (genes[8], "B"),
        (genes[9], "B"),
        (genes[10], "A1"),
    ]
    rows += [(genes[k], "many") for k in range(len(genes))]
    rows += [(genes[0], genes[0].title()), (genes[11], None), ("OTHER", "Other"), ("OTHER", "A2")]
    return rows


@pytest.fixture
def theirs(tmp_path, celltypist):
    """CellTypist's form of a model of ours."""

    def load(m):
        m.write(tmp_path / "theirs.pkl", overwrite=True)
        return celltypist.models.Model.load(str(tmp_path / "theirs.pkl"))

    return load


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize("unique_only", [True, False])
@pytest.mark.parametrize("swapped", [False, True])
def test_convert__as_celltypist(tmp_path, theirs, n_types, dtype, unique_only, swapped):
    m = make(n_types, dtype)
    table = pd.DataFrame(maps(m.features))
    if unique_only:
        table = table[table[1] != "many"]
    table = table[table.columns[::-1]] if swapped else table
    table.to_csv(tmp_path / "map.tsv", sep="\t", header=False, index=False)
    other = theirs(m)
    before = m.dataset.copy(deep=True)
    ours = m.convert(tmp_path / "map.tsv", sep="\t", unique_only=unique_only)
    other.convert(str(tmp_path / "map.tsv"), sep="\t", unique_only=unique_only)
    assert ours.features.tolist() == list(other.features)
    np.testing.assert_array_equal(ours.coef_, other.classifier.coef_)
    assert ours.coef_.dtype == dtype
    for name in ("mean", "var", "scale"):
        np.testing.assert_array_equal(ours.dataset[name], getattr(other.scaler, f"{name}_"))
    assert ours.description["date"][:10] == other.description["date"][:10]
    xr.testing.assert_identical(m.dataset, before)


@pytest.mark.parametrize("n_types", [2, 5])
def test_convert__random(tmp_path, theirs, n_types):
    """Coefficients are CellTypist's; mean, variance and scale are those of the same gene."""
    m = make(n_types)
    table = pd.DataFrame(maps(m.features))
    table.to_csv(tmp_path / "map.csv", header=False, index=False)
    for seed in range(3):
        other = theirs(m)
        other.convert(
            str(tmp_path / "map.csv"), unique_only=False, collapse="random", random_state=seed
        )
        ours = m.convert(table, unique_only=False, collapse="random", random_state=seed)
        np.testing.assert_array_equal(ours.coef_, other.classifier.coef_)
        for place, gene in enumerate(ours.features):
            taken = np.flatnonzero((m.coef_ == ours.coef_[:, [place]]).all(axis=0))
            assert m.features[taken[0]] in table[0][table[1] == gene].tolist()
            for name in ("mean", "var", "scale"):
                assert ours.dataset[name][place] == m.dataset[name][taken[0]]


def test_convert__forms_of_the_map():
    m = make(n_cells=np.arange(5), certificate={"n_iter": np.arange(5)})
    pairs = {g: f"ENSG{i}" for i, g in enumerate(m.features[:4])}
    frame = pd.DataFrame({"symbol": list(pairs), "id": list(pairs.values())})
    for table in (pairs, pd.Series(pairs), frame):
        converted = m.convert(table)
        assert converted.features.tolist() == list(pairs.values())
        np.testing.assert_array_equal(converted.coef_, m.coef_[:, :4])
        np.testing.assert_array_equal(converted.dataset["n_cells"], m.dataset["n_cells"])
        assert converted.certificate is None
        assert converted.convert(frame, convert_to=0).features.tolist() == list(pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "map_file is missing"),
        ({"map_file": ["a", "b"]}, "must be a path, a DataFrame or a dict"),
        ({"map_file": pd.DataFrame({"a": ["x"]})}, "two columns, this one 1\n"),
        ({"map_file": {}}, "gene map is empty"),
        ({"map_file": {"GÈNE-0": "", "": "y", "GÈNE-1": None}}, "gene map is empty"),
        ({"map_file": {"x": "y"}}, r"names no gene of the model: it has names such as 'y'"),
        ({"map_file": {"GÈNE-0": "y", "GÈNE-1": "y"}}, "pass unique_only=False"),
        ({"map_file": {"x": "y"}, "convert_from": 2}, "convert_from must be 0 or 1"),
        ({"map_file": {"x": "y"}, "convert_from": True}, "convert_from must be .* got True"),
        ({"map_file": {"x": "y"}, "convert_to": np.False_}, "convert_to must be .* got .*False"),
        ({"map_file": {"x": "y"}, "random_state": -1}, "random_state must be .* got -1"),
        ({"map_file": {"x": "y"}, "random_state": 2**32}, "random_state must be .* got 42949"),
        ({"map_file": {"x": "y"}, "random_state": 0.5}, "random_state must be .* got 0.5"),
        ({"map_file": {"x": "y"}, "convert_to": 1, "convert_from": 1}, "must differ; both are 1"),
        ({"map_file": {"x": "y"}, "collapse": "sum"}, "'average' or 'random'; got 'sum'"),
    ],
)
def test_convert__refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        make().convert(**arguments)


def test_convert__files(tmp_path):
    with pytest.raises(FileNotFoundError):
        make().convert(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="cannot be read as a table"):
        make().convert(tmp_path / "empty.csv")
    (tmp_path / "map.tsv").write_text("GÈNE-0\ty\n")
    with pytest.raises(InputError, match="two columns, this one 1: check sep, which is ','"):
        make().convert(tmp_path / "map.tsv")


@pytest.mark.parametrize("how", ["keep", "exclude", "both"])
def test_subset__as_celltypist(theirs, how):
    m = make(5, n_cells=np.arange(5), certificate={"n_iter": np.arange(5)})
    types = m.cell_types
    arguments = {
        "keep": {"keep_cell_types": [types[4], types[0], types[2]]},
        "exclude": {"exclude_cell_types": types[[1, 3]]},
        "both": {"keep_cell_types": set(types[[0, 2, 4]]), "exclude_cell_types": types[1]},
    }[how]
    ours, other = m.subset(**arguments), theirs(m)
    other.subset(**{k: list(v) if k[0] == "k" else v for k, v in arguments.items()})
    assert ours.classes_.tolist() == other.classifier.classes_.tolist()
    np.testing.assert_array_equal(ours.coef_, other.classifier.coef_)
    np.testing.assert_array_equal(ours.intercept_, other.classifier.intercept_)
    assert ours.description["number_celltypes"] == other.description["number_celltypes"] == 3
    assert ours.dataset["n_cells"].values.tolist() == [0, 2, 4]
    assert ours.certificate["n_iter"].tolist() == [0, 2, 4]
    assert len(m.cell_types) == 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subset__two_of_more(tmp_path, theirs, dtype):
    """The difference of the scores is what it was, so labels are CellTypist's."""
    m = make(5, dtype, certificate={"n_iter": np.arange(5)}, t=[9.0, 4.0, 5.0, 6.0, 7.0])
    ours = m.subset([m.cell_types[3], m.cell_types[1]])
    assert ours.coef_.shape == (1, GENES)
    assert ours.coef_.dtype == dtype
    assert ours.certificate is None
    assert ours.dataset["t"].values.tolist() == [6, 6]  # one column, and the larger count
    assert ours.dataset.attrs["t"] == 6
    for name in ("coef", "intercept"):
        before, after = m.dataset[name].values[[1, 3]], ours.dataset[name].values
        # A difference of float32 halves exactly and doubles exactly.
        np.testing.assert_array_equal(after[1] - after[0], before[1] - before[0])
    ours.write(tmp_path / "two.pkl")
    loaded = Model.load(tmp_path / "two.pkl")
    np.testing.assert_array_equal(loaded.dataset["coef"], ours.dataset["coef"])
    # All of two types: as they were.
    both = ours.subset(ours.cell_types)
    np.testing.assert_array_equal(both.dataset["coef"], ours.dataset["coef"])
    Z = np.random.default_rng(2).normal(size=(50, GENES))
    other = theirs(m)
    other.subset(list(ours.cell_types))
    labels = other.predict_labels_and_prob(Z)[2]
    assert theirs(ours).predict_labels_and_prob(Z)[2].tolist() == labels.tolist()
    assert len(set(labels)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the cell types to keep"),
        (("type 0 αβ⁺",), "at least two cell types must remain, not 1"),
        ((["type 0", "type 1 αβ⁺"],), "no cell type 'type 0' in the model: did you mean"),
        ((None, [f"type {i} αβ⁺" for i in range(4)]), "at least two cell types must remain, not 1"),
        ((["type 0 αβ⁺", "type 1 αβ⁺"], "type 1 αβ⁺"), "'type 1 αβ⁺' is both kept and excluded"),
    ],
)
def test_subset__refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        make().subset(*arguments)
