"""What is made ahead of the steps, and products as cuBLAS makes them, on a fake GPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.gpu import aside, device
from streamtrain.gpu.device import Device, copy
from streamtrain.gpu.products import Products
from streamtrain.threads import Threads
from tests.fake_cupy import Cupy
from tests.test_gpu_kernels import trained

sizes = st.integers(1, 7)


@settings(max_examples=60, deadline=None)
@given(
    sizes, sizes, sizes, st.sampled_from([np.float32, np.float64]), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from([np, Cupy()]),
)  # fmt: skip
def test_products__are_numpys(m, k, n, dtype, of_a, of_b, add, xp):
    rng = np.random.default_rng([m, k, n])
    a, b = rng.normal(size=(k, m) if of_a else (m, k)), rng.normal(size=(n, k) if of_b else (k, n))
    a, b, out = (xp.array(one.astype(dtype)) for one in (a, b, rng.normal(size=(m, n))))
    a, b = a.T if of_a else a, b.T if of_b else b
    expected = np.asarray(a) @ np.asarray(b) + add * np.asarray(out)
    Products(xp)(a, b, out, add=add)
    within = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(np.asarray(out), expected, rtol=within, atol=within)


def test_products__do_not_read_what_they_write_over():
    a, out = np.ones((2, 3)), np.full((2, 2), np.nan)
    for xp in (np, Cupy()):
        written = xp.array(out)
        Products(xp)(xp.array(a), xp.array(a).T, written)
        np.testing.assert_array_equal(np.asarray(written), 3)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ((device.Event, "wait"), "beside another stream's use of it"),
        ((aside.Slot, "release"), "beside another stream's use of it"),
    ],
    ids=["wait", "release"],
)
def test_aside__a_missing_wait_is_found(left_out, message, monkeypatch):
    monkeypatch.setattr(*left_out, lambda _: None)
    with pytest.raises(AssertionError, match=message):
        trained(Device(Cupy()))


def test_aside__a_workspace_of_two_streams_is_found(monkeypatch):
    one = Products(xp := Cupy())
    monkeypatch.setattr(aside, "Products", lambda _: one)
    monkeypatch.setattr("streamtrain.gpu.sgd.Products", lambda _: one)
    with pytest.raises(AssertionError, match="shared by two streams"):
        trained(Device(xp))


@pytest.mark.parametrize("n", [0, 1, 2**21 - 1, 5 * 2**20 + 3])
def test_copy__by_threads(n):
    array, out = np.random.default_rng(n).integers(0, 255, n, dtype=np.uint8), np.empty(n, np.uint8)
    with Threads(3) as threads:
        copy(array, out, threads)
    np.testing.assert_array_equal(out, array)
    copy(array[::-1], out)
    np.testing.assert_array_equal(out, array[::-1])
