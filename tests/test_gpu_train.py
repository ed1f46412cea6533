"""train(device="gpu") end to end, the device being NumPy's, against the CPU's model."""

import logging
import sys

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError, descent
from streamtrain.gpu import scores, sgd
from streamtrain.gpu.device import Device
from streamtrain.gpu.sgd import DeviceSGD
from tests import atlas

QUIET = {"progress": False}
SGD = {"use_SGD": True, "dtype": "float64"}
MINI = SGD | {
    "mini_batch": True, "batch_size": 100, "batch_number": 5, "epochs": 3,
    "learning_rate": "constant", "eta0": 0.003,
}  # fmt: skip


@pytest.fixture
def device(monkeypatch):
    """A stand-in for the GPU, which tells what memory it was asked for."""
    asked = []

    def gpu(memory=None):
        asked.append(memory)
        return Device(np)

    monkeypatch.setattr(Device, "gpu", gpu)
    return asked


def assert_ranked_alike(found, expected):
    ranked = [m.provenance["cross_validation"] for m in (found, expected)]
    for a, b in zip(*ranked, strict=True):
        for name in ("alpha", "step", "epochs", "chosen"):
            assert a[name] == b[name]
        np.testing.assert_allclose(a["folds"], b["folds"], rtol=1e-9)


WAYS = {
    "mini-batches": MINI,
    "averaged, balanced": MINI | {"average": True, "balance_cell_type": True, "replace": True},
    "gene dropout": MINI | {"gene_dropout": 0.3, "average": True},
    "not centred": MINI | {"with_mean": False},
    "step": {k: v for k, v in MINI.items() if k not in ("learning_rate", "eta0")} | {"step": 3.0},
    "priors": MINI | {"average": True, "correct_prior": True, "balance_cell_type": True},
    "epochs": SGD | {"learning_rate": "constant", "eta0": 0.001, "max_iter": 8},
    "adaptive": SGD | {"learning_rate": "adaptive", "eta0": 0.01, "max_iter": 8, "tol": 0.05},
    "early stopping": SGD | {
        "early_stopping": True, "learning_rate": "constant", "eta0": 0.001, "max_iter": 8,
        "n_iter_no_change": 2,
    },
    "early stopping, not centred": SGD | {
        "early_stopping": True, "with_mean": False, "learning_rate": "constant", "eta0": 0.001,
        "max_iter": 8,
    },
    "selected genes": MINI | {"feature_selection": True, "top_genes": 20, "eta0": 0.001},
    "class weights": MINI | {"class_weight": "balanced", "loss": "modified_huber"},
}  # fmt: skip


# Sums are in another order: 1e-8 of the norm, as steps are small.
@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_train__equals_the_cpu(device, options, n_types):
    adata = atlas.make(900, n_types=n_types)
    expected = streamtrain.train(adata, "cell_type", **options, **QUIET)
    found = streamtrain.train(adata, "cell_type", device="gpu", **options, **QUIET)
    assert device == [None]
    assert found.features.tolist() == expected.features.tolist()
    for name in expected.dataset:
        a, b = (m.dataset[name].to_numpy() for m in (found, expected))
        if a.dtype.kind == "f":
            assert np.linalg.norm(a - b) <= 1e-8 * np.linalg.norm(b), name
        else:
            np.testing.assert_array_equal(a, b, name)
    curves = [model.history.drop(columns="seconds") for model in (found, expected)]
    pd.testing.assert_frame_equal(*curves, rtol=1e-8)


def test_train__the_recipe(device):
    adata = atlas.make(1500)
    options = {
        "recipe": "atlas", "validation_groups": "donor", "dtype": "float64", "epochs": 10,
        "batch_size": 100, "folds": 3,
    }  # fmt: skip
    expected = streamtrain.train(adata, "cell_type", **options, **QUIET)
    found = streamtrain.train(
        adata, "cell_type", use_GPU=True, gpu_memory="2GB", **options, **QUIET
    )
    assert device == ["2GB"]
    assert_ranked_alike(found, expected)
    calibrations = [m.calibration for m in (found, expected)]
    np.testing.assert_allclose(*(c.temperature for c in calibrations), rtol=1e-6)
    np.testing.assert_allclose(*(c.offset for c in calibrations), rtol=1e-6, atol=1e-9)
    coef = [m.dataset["coef"].to_numpy() for m in (found, expected)]
    np.testing.assert_allclose(*coef, rtol=1e-7, atol=1e-9)


def test_train__trials_in_turns_where_the_device_is_small(monkeypatch, caplog):
    adata = atlas.make(900)
    options = MINI | {"average": True, "folds": 3, "alpha": [1e-3, 1e-2, 1e-1]}
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np))
    expected = streamtrain.train(adata, "cell_type", device="gpu", **options, **QUIET)
    # Room for one trial, of 15 columns, beside what all share.
    monkeypatch.setattr(scores, "_PIECE", 10**5)
    batches = 3 * 1.25 * 100 * 12 * adata.X.nnz / 900
    room = sgd.nbytes(120, 15, np.float64, True) + scores.nbytes(120, 5) + batches
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np, room))
    with caplog.at_level(logging.INFO, "streamtrain"):
        found = streamtrain.train(adata, "cell_type", device="gpu", **options, **QUIET)
    assert "1 settings at a time" in caplog.text
    assert_ranked_alike(found, expected)


def test_train__goes_on_where_sgd_stopped(device):
    first, second = atlas.make(700), atlas.make(700, seed=1)
    base = streamtrain.train(first, "cell_type", average=True, **MINI, **QUIET)
    both = [
        streamtrain.train(
            second, "cell_type", init=base, average=True, device=where, **MINI, **QUIET
        )
        for where in ("cpu", "gpu")
    ]
    for name in ("coef", "coef_last", "intercept", "n_averaged"):
        a, b = (m.dataset[name].to_numpy() for m in both)
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MINI | {"penalty": "l1"}, "penalty='l1' visits every gene"),
        (SGD | {"learning_rate": "pa2", "loss": "hinge"}, "learning_rate='pa2' is for the CPU"),
        (SGD | {"with_mean": False}, "SGD over whole epochs of a sparse matrix, not centred"),
        ({"device": "gpu", "gpu_memory": "lots"}, "gpu_memory must be a size such as '2GB'"),
    ],
)
def test_train__refuses_what_the_device_cannot(device, options, message):
    options = {"device": "gpu", **options}
    with pytest.raises(InputError, match=message):
        streamtrain.train(atlas.make(300), "cell_type", **options, **QUIET)


@pytest.mark.parametrize("options", [{"penalty": "l1", "solver": "saga"}, {"with_mean": False}])
def test_train__genes_for_logistic_regression_are_selected_by_the_cpu(device, options):
    options = {"feature_selection": True, "top_genes": 10, "dtype": "float64", **options}
    adata = atlas.make(600)
    found, expected = (
        streamtrain.train(adata, "cell_type", device=where, **options, **QUIET)
        for where in ("gpu", "cpu")
    )
    assert found.features.tolist() == expected.features.tolist()
    coef = [m.dataset["coef"].to_numpy() for m in (found, expected)]
    np.testing.assert_allclose(*coef, rtol=1e-4, atol=1e-5)
    assert found.settings == expected.settings
    assert (found.provenance["device"], expected.provenance["device"]) == ("gpu", "cpu")


@pytest.mark.parametrize("more", [{}, {"early_stopping": True}])
def test_train__overflow_ends_whole_epochs_at_once(device, more, monkeypatch):
    taken = []
    fit = DeviceSGD.partial_fit
    monkeypatch.setattr(DeviceSGD, "partial_fit", lambda *a, **k: taken.append(1) or fit(*a, **k))
    options = SGD | {"learning_rate": "constant", "eta0": 1e306, "max_iter": 50} | more
    options |= {"penalty": None}
    with np.errstate(all="ignore"), pytest.raises(InputError, match="the weights overflowed"):
        streamtrain.train(atlas.make(600), "cell_type", device="gpu", **options, **QUIET)
    assert len(taken) <= 3


def test_train__in_plan_order_the_budget_has_the_batches(device, monkeypatch):
    options = MINI | {"average": True}
    adata = atlas.make(900)
    plain = streamtrain.train(adata, "cell_type", device="gpu", **options, **QUIET)
    beside = []
    make = descent.batches_on_device
    monkeypatch.setattr(
        descent, "batches_on_device", lambda *a: beside.append(make(*a)) or beside[-1]
    )
    monkeypatch.setattr(sys.modules["streamtrain.first_pass"], "free_memory", lambda: 1000)
    ordered = streamtrain.train(
        adata, "cell_type", device="gpu", memory="300MB", **options, **QUIET
    )
    assert beside[0] > 100 * 20 * 12
    np.testing.assert_array_equal(*(m.dataset["coef"].to_numpy() for m in (plain, ordered)))


def test_train__what_does_not_fit(monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np, 1e5))
    with pytest.raises(InputError, match=r"SGD of 5 columns x [0-9]+ genes takes .*gpu-memory"):
        streamtrain.train(atlas.make(300), "cell_type", device="gpu", **MINI, **QUIET)
