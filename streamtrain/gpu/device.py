"""Arrays of the host in; the same on a device, and back: CuPy's on a GPU, or NumPy's as a stand-in.

All code of this package is written over `Device.xp`, so that the CPU runs it too, with NumPy. What
has no array expression is a CUDA kernel of `kernels.cu`, beside a numba kernel for NumPy.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import format_bytes, parse_bytes
from streamtrain.errors import InputError
from streamtrain.threads import Threads, spans

_SHARE = 0.9  # of the free memory, the rest being for cuBLAS and other processes
_ALIGNED = 256  # bytes at whose multiples arrays of one upload begin
_PIECE = 2**21  # bytes that a thread is asked to copy, for which it takes 250 us
_COPY = 2  # threads: batches came at 446,000 cells a second by two, at 360,000 by 16
_REMEDY = "raise gpu_memory (--gpu-memory), or leave out device"
THREADS = 256  # of a block of threads


class Sent:
    """Arrays on their way to the device.

    Attributes
    ----------
    arrays
        On the device; to be read after `wait`, and not after `release`.
    """

    def __init__(
        self, arrays: list[Any], slot: _Slot | None = None, uploads: _Uploads | None = None
    ) -> None:
        self.arrays, self._slot, self._uploads = arrays, slot, uploads

    def wait(self) -> list[Any]:
        """Let the present stream of the device wait for them, not the host."""
        if self._slot is not None:
            self._slot.wait()
        return self.arrays

    def release(self) -> None:
        """Let their memory be used again, once what the device has been told so far is done."""
        slot, self._slot, self.arrays = self._slot, None, []
        if slot is not None and self._uploads is not None:
            slot.release()
            self._uploads.give_back(slot)


class Device:
    """A device's arrays, its memory, and the way there and back.

    Parameters
    ----------
    xp
        numpy or cupy.
    room
        Bytes that may be used there.
    """

    def __init__(self, xp: Any, room: float = math.inf) -> None:
        self.xp, self.room = xp, room
        self._here = None if xp is np else _Here(xp)
        # Cells, and what is small and must not wait behind them.
        self._uploads = None if self._here is None else (_Uploads(self._here), _Uploads(self._here))

    @classmethod
    def gpu(cls, memory: int | str | None = None) -> Device:
        """CuPy on the present GPU.

        Parameters
        ----------
        memory
            Bytes of it that may be used, or text such as "20GB"; None for nine tenths of what is
            free.

        Raises
        ------
        InputError
            If CuPy is missing or finds no GPU, or there is less memory.
        """
        try:
            import cupy

            _free(cupy)  # what trainings before this one have left
            free, _ = cupy.cuda.runtime.memGetInfo()
        except ImportError as error:
            raise InputError(
                "device='gpu' (use_GPU=True) needs CuPy: pip install 'streamtrain[gpu-cuda12]' (or "
                "gpu-cuda13), or leave out device"
            ) from error
        except Exception as error:  # CuPy's own errors, of a missing driver or device
            raise InputError(
                f"device='gpu' (use_GPU=True) finds no GPU that works: {error}; leave out device"
            ) from error
        room = _SHARE * free if memory is None else parse_bytes(memory, "gpu_memory")
        if room > _SHARE * free:
            raise InputError(
                f"gpu_memory is {format_bytes(room)}, and of the {format_bytes(free)} that are "
                f"free on the GPU {format_bytes(_SHARE * free)} may be used: lower it, or end what "
                "else runs there"
            )
        return cls(cupy, room)

    @contextmanager
    def within(self, threads: Threads) -> Iterator[None]:
        """Keep CuPy to the room meanwhile, and give back what it then holds unused.

        Parameters
        ----------
        threads
            Two share what is copied to pinned memory: more copy faster, by turns with what tells
            the device of its work, in Python.

        Raises
        ------
        InputError
            If more is asked for.
        """
        if self._uploads is None:
            yield
            return
        for uploads in self._uploads:
            uploads.threads = threads
        pool = self.xp.get_default_memory_pool()
        before = pool.get_limit()
        pool.set_limit(size=int(pool.used_bytes() + self.room))
        try:
            yield
        except self.xp.cuda.memory.OutOfMemoryError as error:
            raise InputError(
                f"the {format_bytes(self.room)} of GPU memory do not suffice: {error}; raise "
                "gpu_memory (--gpu-memory), lower batch_size, or leave out device"
            ) from error
        finally:
            for uploads in self._uploads:
                uploads.threads = None
            pool.set_limit(size=before)
            _free(self.xp)

    def send(self, *arrays: NDArray[Any], small: bool = False) -> Sent:
        """Begin to copy arrays to the device, through pinned memory, beside what it computes.

        Any thread may; `small` ones do not wait for others.
        """
        if self._uploads is None:
            return Sent(list(arrays))
        return self._uploads[small].send(arrays)

    def asarray(self, array: NDArray[Any]) -> Any:
        """Copy an array to the device, in any thread, before what it is told next."""
        if self.xp is np:
            return array
        with self.here():
            return self.xp.asarray(array)

    def to_host(self, array: Any) -> NDArray[Any]:
        """Copy an array to this process's memory, when all before is done."""
        host: NDArray[Any] = array if self._here is None else array.get()
        return host

    def event(self) -> Event:
        """A mark in what the device is told."""
        return Event(self.xp)

    def here(self) -> AbstractContextManager[Any]:
        """Tell the card and the stream that compute, in any thread."""
        return nullcontext() if self._here is None else self._here

    def require(self, nbytes: float, what: str, remedy: str = _REMEDY) -> None:
        """Refuse what does not fit.

        Raises
        ------
        InputError
            If it takes more than the room.
        """
        if nbytes > self.room:
            raise InputError(
                f"{what} takes {format_bytes(nbytes)} of GPU memory, and there are "
                f"{format_bytes(self.room)}: {remedy}"
            )

    def launch(self, name: str, dtype: Any, blocks: int, *args: Any, shared: int = 0) -> None:
        """Run a CUDA kernel by blocks of `THREADS` threads, on arrays and NumPy scalars."""
        if blocks:
            kernel = _kernel(self.xp, np.dtype(dtype), name)
            kernel((blocks,), (THREADS,), args, shared_mem=shared)


def _free(xp: Any) -> None:
    """Give back what CuPy holds unused, of the device's memory and of the host's pinned one."""
    xp.get_default_memory_pool().free_all_blocks()
    xp.get_default_pinned_memory_pool().free_all_blocks()


@cache
def _kernel(xp: Any, dtype: np.dtype[Any], name: str) -> Any:  # its name takes 16 us to find
    return _module(xp, dtype.name).get_function(name)


@cache
def _module(xp: Any, dtype: str) -> Any:
    real = {"float32": "float", "float64": "double"}[dtype]
    options = ("-std=c++14", f"-DREAL={real}", f"-DTHREADS={THREADS}")
    return xp.RawModule(code=source(), options=options)


def source() -> str:
    """Text of the CUDA kernels."""
    return files("streamtrain.gpu").joinpath("kernels.cu").read_text(encoding="utf-8")


class Event:
    """A mark in what the present stream of a device is told, for which others can wait."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._event = None if xp is np else xp.cuda.Event(disable_timing=True)

    def record(self) -> None:
        """Set the mark."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Let what the present stream is told from now on wait for what came before the mark."""
        if self._event is not None:
            self._xp.cuda.get_current_stream().wait_event(self._event)


class _Here:
    """The card and the stream that compute, which CuPy keeps for each thread by itself."""

    def __init__(self, xp: Any) -> None:
        self.xp, self.stream = xp, xp.cuda.get_current_stream()
        self._card = xp.cuda.runtime.getDevice()
        self._entered = threading.local()

    def __enter__(self) -> None:
        card = self._entered.card = self.xp.cuda.Device(self._card)
        card.__enter__()
        self.stream.__enter__()

    def __exit__(self, *error: object) -> None:
        self.stream.__exit__(*error)
        self._entered.card.__exit__(*error)


class _Slot:
    """A pinned buffer of the host, one of the device, and what must be done before each is reused.

    A buffer of the device is allocated for the stream that copies, in whose order CuPy gives memory
    away again: so a copy that nobody waited for is done before. The first copy waits for all that
    the device was told of, which may have used the same memory.
    """

    def __init__(self, here: _Here, nbytes: int, stream: Any) -> None:
        xp = here.xp
        self._xp, self._computes, self.nbytes = xp, here.stream, nbytes
        memory = xp.cuda.alloc_pinned_memory(nbytes)
        self._pinned = np.frombuffer(memory, np.uint8, nbytes)
        with stream:
            self._device = xp.empty(nbytes, np.uint8)
        self._copied, self._done = (xp.cuda.Event(disable_timing=True) for _ in range(2))
        self._done.record(self._computes)

    def fill(
        self, arrays: tuple[NDArray[Any], ...], stream: Any, threads: Threads | None
    ) -> list[Any]:
        self._copied.synchronize()  # of the copy before, long ago; a new event has happened
        starts, end = places(arrays)
        for start, array in zip(starts, arrays, strict=True):
            copy(array, self._pinned[start : start + array.nbytes], threads)
        stream.wait_event(self._done)
        self._device.data.copy_from_host_async(self._pinned.ctypes.data, end, stream)
        self._copied.record(stream)
        return [
            self._device[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def wait(self) -> None:
        self._xp.cuda.get_current_stream().wait_event(self._copied)

    def __del__(self) -> None:
        # For its copy: CuPy gives pinned memory at once to whoever next asks for as much.
        with suppress(Exception):  # at the end of the process there may be no device any more
            self._copied.synchronize()

    def release(self) -> None:
        self._done.record(self._computes)


class _Uploads:
    """Copies to the device, on a stream of their own, from buffers that are used again."""

    def __init__(self, here: _Here) -> None:
        self._here, self._stream = here, here.xp.cuda.Stream(non_blocking=True)
        self._free: deque[_Slot] = deque()
        self.threads: Threads | None = None
        self._lock = threading.Lock()

    def send(self, arrays: tuple[NDArray[Any], ...]) -> Sent:
        _, needed = places(arrays)
        with self._lock:
            slot = next((slot for slot in self._free if slot.nbytes >= needed), None)
            if slot is not None:
                self._free.remove(slot)
            elif self._free:
                self._free.popleft()  # too small: a larger one takes its place
        with self._here:
            if slot is None:
                nbytes = max(needed + needed // 4, _ALIGNED)
                slot = _Slot(self._here, nbytes, self._stream)
            return Sent(slot.fill(arrays, self._stream, self.threads), slot, self)

    def give_back(self, slot: _Slot) -> None:
        """Take a slot that was released, for arrays to come."""
        with self._lock:
            self._free.append(slot)


def places(arrays: tuple[NDArray[Any], ...]) -> tuple[list[int], int]:
    """Where in one buffer each of the arrays begins, and where the last one ends."""
    starts, end = [], 0
    for array in arrays:
        starts.append(-(-end // _ALIGNED) * _ALIGNED)
        end = starts[-1] + array.nbytes
    return starts, end


def copy(array: NDArray[Any], out: NDArray[np.uint8], threads: Threads | None = None) -> None:
    """Copy the bytes of an array, in C order."""
    given = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    n = 1 if threads is None else min(threads.n, _COPY, len(out) // _PIECE)
    if threads is None or n < 2:
        out[:] = given
        return

    def part(span: tuple[int, int]) -> None:
        out[slice(*span)] = given[slice(*span)]

    threads.each(part, spans(len(out), n))
