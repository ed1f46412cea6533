"""What a model says of itself, as text, attributes and JSON."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

import streamtrain
from streamtrain import InputError, Inspection, Model, cli, inspect, model_store
from tests import atlas, stores
from tests.test_model import make

N_CELLS = [5, 4, 3, 2, 1000]
REPORT = [
    {"alpha": 1e-4, "macro_f1": 0.96150386, "chosen": True},
    {"alpha": 0.01, "macro_f1": 0.95, "chosen": False},
]


@pytest.fixture
def model(tmp_path):
    made = make(
        n_cells=np.array(N_CELLS),
        calibration={"temperature": 2.0, "offset": 0.5},
        certificate={"converged": [True, True, True, False, True]},
        settings={"use_SGD": True, "mini_batch": True, "alpha": 1e-4, "C": 3.0, "max_iter": None},
        provenance={
            "sources": [{"name": "lung.h5ad", "n_obs": 9000}],
            "n_cells": 1014,
            "packages": {"numpy": "2.1"},
            "cross_validation": REPORT,
        },
        description={"date": "2026-01-02", "details": "of \x1b[31mours\u202e\nline"},
    )
    made.save(tmp_path / "m.zarr")
    return made


def test_inspect__a_stored_model(tmp_path, model):
    found = inspect(tmp_path / "m.zarr")
    checksum = model_store.checksum(model.dataset)
    assert found == Inspection(
        path=str(tmp_path / "m.zarr"), kind="streamtrain model", format_version=2,
        checksum=checksum, verified="content",
        cell_types=dict(zip(model.cell_types, N_CELLS, strict=True)), n_cells=1014,
        genes=model.features.tolist(), solver="SGD over mini-batches", converged=4,
        calibration={"temperature": 2.0, "offset": 0.5}, settings=model.settings,
        provenance=model.provenance, description=model.description,
    )  # fmt: skip
    assert str(found).splitlines() == [
        f"streamtrain model, format version 2: {tmp_path / 'm.zarr'}",
        f"SHA-256: {checksum} (content verified)",
        "date: 2026-01-02",
        r"details: of \x1b[31mours\u202e\nline",
        "solver: SGD over mini-batches, converged for 4 of 5 cell types",
        "calibrated: temperature=2, offset=0.5",
        "settings: use_SGD=True, mini_batch=True, C=3",
        "sources:",
        "    name=lung.h5ad, n_obs=9000",
        "packages: numpy 2.1",
        "cross_validation:",
        "    alpha=0.0001, macro_f1=0.961504, chosen=True",
        "    alpha=0.01, macro_f1=0.95, chosen=False",
        "genes: 12 (GÈNE-0, GÈNE-1, GÈNE-2, ...)",
        "cell types: 5, trained on 1,014 cells",
        "    type 0 αβ⁺          5",
        "    type 1 αβ⁺          4",
        "    type 2 αβ⁺          3",
        "    type 3 αβ⁺          2",
        "    type 4 αβ⁺      1,000",
    ]


@pytest.mark.parametrize(
    ("curve", "told"),
    [
        (
            {
                "epoch": [1, 2, 10], "n_cells": [500] * 3, "loss": [0.0812, None, 0.0339],
                "seconds": [0.25, 0.25, 0.5],
            },
            "10 epochs, loss 0.0812 to 0.0339, 1,500 cells/s",
        ),
        ({"pass": [1, 2], "objective": [0.5, 0.25]}, "2 passes, objective 0.5 to 0.25"),
        ({"epoch": [1], "loss": [0.125], "seconds": [2.0]}, "1 epoch, loss 0.125"),
        ({"pass": [1], "loss": [None]}, "1 pass"),
    ],
)  # fmt: skip
def test_inspect__training(tmp_path, curve, told):
    make(provenance={"history": curve}).save(tmp_path / "m.zarr")
    lines = str(inspect(tmp_path / "m.zarr")).splitlines()
    assert f"training: {told}" in lines
    assert not any(line.startswith("history") for line in lines)


def test_inspect__what_is_not_known(tmp_path):
    make(2).save(tmp_path / "m.zarr")
    found = inspect(tmp_path / "m.zarr")
    assert (found.n_cells, found.converged, found.calibration) == (None, None, None)
    assert set(found.cell_types.values()) == {None}
    assert str(found).splitlines()[2:] == [
        "solver: logistic regression (lbfgs)",
        "settings: defaults",
        "genes: 12 (GÈNE-0, GÈNE-1, GÈNE-2, ...)",
        "cell types: 2",
        "    type 0 αβ⁺",
        "    type 1 αβ⁺",
    ]


def test_inspect__a_trained_model(tmp_path):
    path = stores.write(atlas.make(), tmp_path, "h5ad")
    streamtrain.train(path, "cell_type", C=2.0, progress=False).save(tmp_path / "m.zarr")
    found = inspect(tmp_path / "m.zarr")
    assert sum(found.cell_types.values()) == found.n_cells == 600
    assert found.converged == 5
    assert "settings: C=2\n" in str(found)
    assert f"sources:\n    name={path}, n_obs=600, n_vars=120, bytes=" in str(found)


def test_inspect__of_version_1(tmp_path, model):
    path = tmp_path / "m.zarr"
    former = {"format_version": 1, "checksum": model_store.arrays_checksum(model.dataset)}
    held = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps(held | former))
    found = inspect(path)
    assert (found.format_version, found.checksum) == tuple(former.values())
    assert found.verified == "arrays"
    assert "(arrays verified)" in str(found)


def test_inspect__celltypist(tmp_path, model):
    path = tmp_path / "m.pkl"
    Model.load(tmp_path / "m.zarr").to_celltypist(path)
    found = inspect(path)
    assert (found.kind, found.format_version) == ("CellTypist model", None)
    assert found.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.verified == "nothing"
    assert list(found.cell_types) == model.cell_types.tolist()
    assert found.genes == model.features.tolist()
    assert found.provenance["estimator"] == "SGDClassifier"
    assert f"SHA-256: {found.checksum} (of the file)" in str(found)


def test_inspect__shortens(tmp_path):
    make(settings={"where": "x" * 10**5}, provenance={"y": list(range(10**5))}).save(
        tmp_path / "m.zarr"
    )
    found = inspect(tmp_path / "m.zarr")
    assert len(found.settings["where"]) == 10**5
    assert len(str(found)) < 2000


def test_inspect__refuses(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"none.zarr does not exist"):
        inspect(tmp_path / "none.zarr")
    with pytest.raises(InputError, match=r"labels are of data, and .*m.zarr' is a model"):
        inspect(tmp_path / "m.zarr", "cell_type")
    (tmp_path / "m.zarr" / "coef" / "0.0").unlink()
    with pytest.raises(InputError, match=r"m.zarr' is damaged: its content does not match"):
        inspect(tmp_path / "m.zarr")


def test_cli__inspect(tmp_path, model, capsys):
    found = inspect(tmp_path / "m.zarr")
    command = ["inspect", str(tmp_path / "m.zarr")]
    cli.app(command, result_action="return_value")
    assert capsys.readouterr().out == f"{found}\n"
    cli.app([*command, "--json"], result_action="return_value")
    assert json.loads(capsys.readouterr().out) == asdict(found)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["inspect", str(tmp_path / "none.zarr")])
    assert "does not exist" in capsys.readouterr().err
