"""predict(device="gpu"), the device being NumPy's, against the CPU's predictions."""

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain import InputError
from streamtrain.gpu import scores
from streamtrain.gpu.device import Device
from tests import atlas, stores

QUIET = {"progress": False}
SGD = {"use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 5, "epochs": 2}


@pytest.fixture(autouse=True)
def _numpy(monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np))


@pytest.fixture(scope="module")
def model():
    return streamtrain.train(atlas.make(900), "cell_type", average=True, **SGD, **QUIET)


# Sums of float64 in another order.
@pytest.mark.parametrize("kind", stores.KINDS)
@pytest.mark.parametrize("adapt", ["none", "genes"])
def test_predict__equals_the_cpu(model, kind, adapt):
    adata = atlas.make(700, seed=3)[:, ::-1][:, 7:].copy()  # another order, genes missing
    adata.X = stores.of_kind(adata.X.toarray(), kind)
    options = {"scores": True, "adapt": adapt, **QUIET}
    found, expected = (
        streamtrain.predict(model, adata, device=where, **options) for where in ("gpu", "cpu")
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10, atol=1e-10)


def test_predict__in_pieces(model, monkeypatch):
    adata = atlas.make(700, seed=3)
    sent = []
    send = Device.send
    monkeypatch.setattr(scores, "_PIECE", 10**5)
    monkeypatch.setattr(
        Device, "send", lambda self, *a, **k: sent.append(sum(x.nbytes for x in a)) or
        send(self, *a, **k)
    )  # fmt: skip
    found, expected = (
        streamtrain.predict(model, adata, device=where, scores=True, **QUIET)
        for where in ("gpu", "cpu")
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10, atol=1e-10)
    assert len(sent) > 1
    assert max(sent) < 1.2e5  # cells are not all alike


def test_predict__two_types_not_centred():
    adata = atlas.make(600, n_types=2)
    model = streamtrain.train(adata, "cell_type", with_mean=False, **SGD, **QUIET)
    found, expected = (
        streamtrain.predict(model, adata, device=where, probabilities=True, **QUIET)
        for where in ("gpu", "cpu")
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10, atol=1e-12)


def test_predict__files_of_their_own(model, tmp_path):
    adatas = [atlas.make(400, seed=3), atlas.make(300, seed=4)[:, 20:].copy()]
    paths = [tmp_path / f"{i}.h5ad" for i in range(2)]
    for adata, path in zip(adatas, paths, strict=True):
        adata.write_h5ad(path)
    found, expected = (
        streamtrain.predict(model, paths, device=where, scores=True, **QUIET)
        for where in ("gpu", "cpu")
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "device must be 'cpu' or 'gpu'; got 'cuda'"),
        ({"gpu_memory": "2GB"}, "gpu_memory is for device='gpu'"),
    ],
)
def test_predict__bad_device(model, options, message):
    with pytest.raises(InputError, match=message):
        streamtrain.predict(model, atlas.make(100), **options, **QUIET)


def test_predict__model_does_not_fit(model, monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np, 1e5))
    with pytest.raises(InputError, match=r"a model of 5 types .* GPU memory, .*gpu-memory"):
        streamtrain.predict(model, atlas.make(100), device="gpu", **QUIET)
