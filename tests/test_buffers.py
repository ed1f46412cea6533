"""Arrays of memory that is used again: never while anything refers to it."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from streamtrain import buffers

N = 1 << 20


@pytest.fixture(autouse=True)
def fresh():
    buffers.clear()
    yield
    buffers.clear()


def place(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int64, "i4"])
def test_empty__is_an_array(dtype):
    for n in (0, 1, N):
        array = buffers.empty(n, dtype)
        assert (array.shape, array.dtype) == ((n,), np.dtype(dtype))
        array[:] = 7
        assert array.flags.writeable
        assert (array == 7).all()


def test_empty__memory_comes_back_once_nothing_refers_to_it():
    array = buffers.empty(N, np.float32)
    before, view = place(array), array[5:9].reshape(2, 2)
    view[:] = 3
    del array
    other = buffers.empty(N, np.float32)
    assert place(other) != before  # the view is alive
    other[:] = 0
    assert view.tolist() == [[3, 3], [3, 3]]
    del view
    again = buffers.empty(N - 5, np.int32)  # another type, a little less
    assert place(again) == before


def test_empty__sizes_that_differ_much_are_not_shared():
    large = place(buffers.empty(40 * N, np.uint8))
    assert place(buffers.empty(2 * N, np.uint8)) != large
    small = buffers.empty(2 * N, np.uint8)
    del small
    buffers.empty(4 * N, np.uint8)  # what is free and too small goes
    assert all(len(b) >= 4 * N for b in buffers._free)


def test_empty__many_threads():
    wrong = []

    def work(number):
        for _ in range(200):
            array = buffers.empty(N, np.uint8)
            array[::4096] = number
            gc.collect(0)
            if (array[::4096] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(buffers._free) <= 4


def test_empty__garbage_that_is_collected_within_it():
    """A lease in a reference cycle may end while the lock is held, in the same thread."""
    cycle = []
    cycle.append((buffers.empty(N, np.uint8), cycle))
    del cycle
    with buffers._lock:
        gc.collect()
    assert len(buffers._free) == 1


def test_empty__silent_at_the_end_of_the_process():
    code = "from streamtrain import buffers; kept = buffers.empty(1 << 22, 'u1')"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
