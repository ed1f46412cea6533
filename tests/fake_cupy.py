"""NumPy as if it were CuPy: arrays of a device, streams, events and kernels, without a GPU.

What is computed is done at once, and a copy as late as may be: when an event after it is waited
for. Use of memory while a copy from or to it may be under way is an error, whether or not the copy
was early enough here; so is an array of the host among those of the device.
"""

import ctypes
import threading
import weakref
from collections import Counter, deque
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np

from tests.cuda_on_cpu import Module


class Cupy:
    """The module; `seed` draws the order of a kernel's threads.

    Attributes
    ----------
    waits
        How often the host waited for what is computed.
    faults
        Memory that was given back too early.
    """

    def __init__(self, seed=0):
        self.waits, self.faults = 0, []
        self.lock, self.host = threading.RLock(), Counter()
        self.buffers, self.made, self.pinned = {}, {}, {}
        self.null, self.local = Stream(self), threading.local()
        self.cuda = SimpleNamespace(
            Stream=lambda **_: Stream(self),
            Device=lambda _: nullcontext(),
            runtime=SimpleNamespace(getDevice=lambda: 0),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Event=lambda **_: Event(self),
            get_current_stream=lambda: self.present,
            alloc_pinned_memory=self.alloc_pinned_memory,
            cublas=Cublas(self),
        )
        self.RawModule = partial(_Module, self, seed=seed)
        self.pool = Pool()
        self.get_default_memory_pool = self.get_default_pinned_memory_pool = lambda: self.pool

    @property
    def present(self):
        """Stream of this thread."""
        return getattr(self.local, "stream", self.null)

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found

        def run(*args, **kwargs):
            if name not in ("array", "asarray"):
                self.use(*args)
            made = found(*args, **kwargs)
            if any(made is arg for arg in args):  # asarray of the host's: a copy
                made = made.copy("K")
            if name.startswith("empty") and made.size:
                made.reshape(-1).view(np.uint8)[:] = 255  # NaN
                self.track(made)
            return self.wrap(made)

        return run

    def wrap(self, made):
        """What was computed, on the device, where sums are arrays too."""
        if isinstance(made, np.ndarray | np.generic):
            made = np.asarray(made).view(Array)
            made.xp, made.stream = self, self.present
        return made

    def use(self, *args):
        """Tell the device to compute with these."""
        with self.lock:
            now = self.present.tick()
            for arg in args:
                if type(arg) is np.ndarray:
                    raise TypeError("Unsupported type <class 'numpy.ndarray'>")
                if isinstance(arg, Array):
                    self.use_at(arg.ctypes.data, now)

    def use_at(self, address, now):
        """Use memory, when what was told by `now` is done."""
        for buffer in self.overlapping(address, self.buffers):
            if not buffer.written <= now:
                raise AssertionError("an array is used before its copy is waited for")
            buffer.used = now
        for buffer in self.overlapping(address, self.made):
            if not buffer.used <= now:
                raise AssertionError("an array is used beside another stream's use of it")
            buffer.used = now

    def track(self, made):
        """Watch memory that kernels write to, which streams must use one after the other."""
        start = made.ctypes.data
        self.made[start] = _Buffer(made.nbytes)
        weakref.finalize(made, self.made.pop, start, None).atexit = False

    def overlapping(self, at, buffers):
        return [
            buffer for start, buffer in list(buffers.items()) if start <= at < start + buffer.nbytes
        ]

    def wait(self):
        """Let the host wait for all that is computed."""
        with self.lock:
            self.waits += 1
            self.host |= self.present.clock

    def alloc_pinned_memory(self, nbytes):
        memory = _Pinned(b"\xff" * nbytes)
        start = np.frombuffer(memory, np.uint8).ctypes.data
        self.pinned[start] = Counter()
        weakref.finalize(memory, self.free_pinned, start).atexit = False
        return memory

    def free_pinned(self, start):
        """Give memory back to whoever asks next; a copy that nobody waits for may be spoilt."""
        with self.lock:
            copied = self.pinned.pop(start)
            if copied <= self.null.clock and not copied <= self.host:
                self.faults.append("pinned memory is given back while a copy may be under way")

    def free(self, start, stream):
        """Give memory back to the stream for which it was allocated, and which may use it next."""
        with self.lock:
            buffer = self.buffers.pop(start)
            if not buffer.written <= stream.clock | self.host:
                self.faults.append("memory is given back while a copy to it may be under way")


class Cublas:
    """Products of matrices by their addresses, columns first."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1

    def __init__(self, xp):
        self.xp, self.streams = xp, {}
        self.sgemm, self.dgemm = partial(self._gemm, "f4"), partial(self._gemm, "f8")

    def create(self):
        self.streams[len(self.streams)] = None
        return len(self.streams) - 1

    def destroy(self, handle):
        del self.streams[handle]

    def _gemm(self, kind, handle, of_a, of_b, m, n, k, alpha, a, at_a, b, at_b, beta, c, at_c):
        with self.xp.lock:
            stream = self.xp.present
            if self.streams[handle] not in (None, stream):
                raise AssertionError("a workspace of cuBLAS is shared by two streams")
            self.streams[handle] = stream
            now = stream.tick()
            for address in (a, b, c):
                self.xp.use_at(address, now)
        a = _columns(kind, a, at_a, (k, m) if of_a else (m, k))
        b = _columns(kind, b, at_b, (n, k) if of_b else (k, n))
        c = _columns(kind, c, at_c, (m, n))
        alpha, beta = (_columns(kind, scalar, 1, (1, 1))[0, 0] for scalar in (alpha, beta))
        made = alpha * ((a.T if of_a else a) @ (b.T if of_b else b))
        c[:] = made + (beta * c if beta else 0)


def _columns(kind, address, step, shape):
    """A matrix in memory, its columns `step` numbers apart."""
    if step < shape[0]:
        raise ValueError("columns overlap")
    memory = (ctypes.c_char * (np.dtype(kind).itemsize * step * shape[1])).from_address(address)
    return np.frombuffer(memory, kind).reshape(shape[1], step).T[: shape[0]]


class OutOfMemoryError(MemoryError):
    """CuPy's own."""


class Pool:
    """A pool that holds nothing, and remembers its limits."""

    def __init__(self):
        self.limits = [0]

    def get_limit(self):
        return self.limits[-1]

    def set_limit(self, size):
        self.limits.append(size)

    def used_bytes(self):
        return 500

    def free_all_blocks(self):
        pass


class _Pinned(bytearray):
    """Memory of the host, which can have weak references."""


class _Buffer:
    """Memory that is copied to, and what was done by the last copy and the last use."""

    def __init__(self, nbytes):
        self.nbytes, self.written, self.used = nbytes, Counter(), Counter()


class Stream:
    """`clock` counts, of each stream, what is done before whatever comes next here."""

    def __init__(self, xp):
        self.xp, self.clock = xp, Counter()
        self.told, self.copies = 0, deque()

    def tick(self):
        self.clock |= self.xp.host
        self.clock[id(self)] += 1
        return self.clock.copy()

    def __enter__(self):
        before = self.xp.local.__dict__.setdefault("before", [])
        before.append(self.xp.present)
        self.xp.local.stream = self

    def __exit__(self, *_):
        self.xp.local.stream = self.xp.local.before.pop()

    def wait_event(self, event):
        with self.xp.lock:
            event.carry_out()
            self.clock |= event.clock


class Event:
    def __init__(self, xp):
        self.xp, self.clock, self.stream, self.told = xp, Counter(), None, 0

    def record(self, stream=None):
        with self.xp.lock:
            self.stream = stream or self.xp.present
            self.clock, self.told = self.stream.tick(), self.stream.told

    def carry_out(self):
        """Make the copies before it."""
        while self.stream and self.stream.copies and self.stream.copies[0][0] <= self.told:
            self.stream.copies.popleft()[1]()

    def synchronize(self):
        with self.xp.lock:
            self.carry_out()
            self.xp.host |= self.clock


class Array(np.ndarray):
    """CuPy's ndarray."""

    def __array_finalize__(self, other):
        self.xp, self.stream = getattr(other, "xp", None), getattr(other, "stream", None)

    def __array_ufunc__(self, ufunc, method, *args, out=(), **kwargs):
        self.xp.use(*args, *out)
        if out:
            kwargs["out"] = tuple(one.view(np.ndarray) for one in out)
        plain = (one.view(np.ndarray) if isinstance(one, Array) else one for one in args)
        made = getattr(ufunc, method)(*plain, **kwargs)
        return out[0] if out else self.xp.wrap(made)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(np.asarray(one).dtype == np.bool_ for one in keys):
            self.xp.wait()  # how many they are
        found = super().__getitem__(key)
        return found if isinstance(found, Array) else self.xp.wrap(found)

    def __setitem__(self, key, value):
        self.xp.use(self, value)
        super().__setitem__(key, value)

    def get(self):
        self.xp.use(self)
        self.xp.wait()
        return np.array(self)

    def item(self, *args):
        return self.get().item(*args)

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __index__(self):
        return self.get().__index__()

    def __bool__(self):
        return bool(self.get())

    @property
    def data(self):
        return SimpleNamespace(copy_from_host_async=self._copy, ptr=self.ctypes.data)

    def _copy(self, address, nbytes, stream):
        xp, start = self.xp, self.ctypes.data
        memory = weakref.ref(self if self.base is None else self.base)
        with xp.lock:
            if start not in xp.buffers:
                xp.buffers[start] = _Buffer(self.nbytes)
                weakref.finalize(memory(), xp.free, start, self.stream).atexit = False
            buffer, now = xp.buffers[start], stream.tick()
            if not (buffer.used <= now and buffer.written <= now):
                raise AssertionError("an array is copied to before what used it is done")
            if not xp.pinned[address] <= xp.host:
                raise AssertionError("pinned memory is written to before the copy from it is done")
            buffer.written = xp.pinned[address] = now
            stream.told += 1
            stream.copies.append((stream.told, lambda: memory() is not None and move()))

        def move():
            ctypes.memmove(start, address, nbytes)


class _Module(Module):
    def __init__(self, xp, **options):
        super().__init__(**options)
        self.xp = xp

    def get_function(self, name):
        kernel = super().get_function(name)

        def launch(grid, block, args, **options):
            self.xp.use(*args)
            kernel(grid, block, args, **options)

        return launch
