"""The way to a device and back: by NumPy, and with a CuPy whose copies happen at once."""

import ctypes
import sys
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.gpu.device import Device, places
from streamtrain.threads import Threads
from tests.fake_cupy import Cupy, OutOfMemoryError, Pool


class Copied(np.ndarray):
    """Memory of a device that takes copies as CuPy's does."""

    @property
    def data(self):
        def copy(start, nbytes, stream):
            assert isinstance(stream, Stream)
            ctypes.memmove(self.ctypes.data, start, nbytes)

        return SimpleNamespace(copy_from_host_async=copy)


class Event:
    """An event on a stream, as CuPy has them."""

    def __init__(self, disable_timing):
        assert disable_timing

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


class Stream:
    """A stream that does everything at once."""

    def __init__(self, non_blocking=True):
        assert non_blocking

    def wait_event(self, event):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def fake_cupy(free=10**9, error=None):
    """What `Device` asks of CuPy, and the sizes of the pinned buffers that it made."""
    made = []

    def pinned(nbytes):
        made.append(nbytes)
        return bytearray(nbytes)

    def info():
        if error is not None:
            raise error
        return free, 2 * free

    cuda = SimpleNamespace(
        runtime=SimpleNamespace(memGetInfo=info, getDevice=lambda: 0), Event=Event, Stream=Stream,
        Device=lambda _: nullcontext(),
        get_current_stream=Stream, alloc_pinned_memory=pinned,
    )  # fmt: skip
    pool = Pool()
    return SimpleNamespace(
        cuda=cuda,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
        empty=lambda n, dtype: np.full(n, 255, dtype).view(Copied),
        made=made,
    )


def test_gpu__without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        InputError, match=r"device='gpu' \(use_GPU=True\) needs CuPy: pip install 'streamtrain\["
    ):
        Device.gpu()


def test_gpu__without_a_driver(monkeypatch):
    error = RuntimeError("cudaErrorInsufficientDriver")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(error=error))
    with pytest.raises(InputError, match=r"finds no GPU that works: cudaErrorInsu.* leave out dev"):
        Device.gpu()


def test_gpu__memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(free=10**10))
    assert Device.gpu().room == 0.9 * 10**10
    assert Device.gpu("2GB").room == 2 * 10**9
    assert Device.gpu(9 * 10**9).room == 9 * 10**9
    with pytest.raises(
        InputError, match=r"gpu_memory is 9.5 GB, .* 10 GB .* 9 GB may be .*: lower"
    ):
        Device.gpu("9.5GB")


def test_require__more_than_the_room():
    device = Device(np, 1000)
    device.require(1000, "this", "do that")
    with pytest.raises(InputError, match=r"this takes .* GPU memory, and there are .*: do that"):
        device.require(1001, "this", "do that")


@given(st.lists(st.tuples(st.integers(0, 700), st.sampled_from(["u1", "u2", "f8"])), max_size=6))
def test_places__are_aligned_and_apart(shapes):
    arrays = tuple(np.empty(n, kind) for n, kind in shapes)
    starts, end = places(arrays)
    assert all(start % 256 == 0 for start in starts)
    ends = [start + array.nbytes for start, array in zip(starts, arrays, strict=True)]
    assert ends[-1:] == ([end] if arrays else [])
    for (_, stop), (start, _) in pairwise(zip(starts, ends, strict=True)):
        assert stop <= start < stop + 256


@pytest.mark.parametrize("xp", [np, fake_cupy()], ids=["numpy", "cupy"])
def test_send__gives_the_arrays_as_they_are(xp):
    sent = Device(xp).send(
        np.arange(5, dtype=np.uint16), np.arange(12.0).reshape(3, 4)[:, ::2], np.empty(0, np.int64)
    )
    found = sent.wait()
    assert [(a.dtype, a.shape) for a in found] == [
        (np.uint16, (5,)), (np.float64, (3, 2)), (np.int64, (0,)),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0], range(5))
    np.testing.assert_array_equal(found[1], [[0, 2], [4, 6], [8, 10]])
    sent.release()
    sent.release()  # a second time means nothing
    assert sent.arrays == []


def test_send__uses_released_memory_again():
    xp = fake_cupy()
    device = Device(xp)
    one, two = device.send(np.full(1000, 1.0)), device.send(np.full(1000, 2.0))
    assert len(xp.made) == 2
    np.testing.assert_array_equal(one.wait()[0], 1.0)
    one.release()
    three = device.send(np.full(1100, 3.0))  # a quarter more has room
    assert len(xp.made) == 2
    np.testing.assert_array_equal(two.wait()[0], 2.0)
    np.testing.assert_array_equal(three.wait()[0], 3.0)
    three.release()
    device.send(np.full(5000, 4.0))  # a larger one takes the small one's place
    assert len(xp.made) == 3
    two.release()
    device.send(np.full(1000, 5.0))
    assert len(xp.made) == 3


def test_within__keeps_the_pool_to_the_room():
    xp = Cupy()
    with Device(xp, room=1000).within(Threads(1)):
        assert xp.pool.get_limit() == 1500
    assert xp.pool.limits == [0, 1500, 0]
    with (
        pytest.raises(
            InputError, match=r"the 1 kB of GPU memory do not suffice: 9 bytes; raise gpu"
        ),
        Device(xp, room=1000).within(Threads(1)),
    ):
        raise OutOfMemoryError("9 bytes")
    assert xp.pool.get_limit() == 0
    with Device(np).within(Threads(1)):
        pass
