"""A device and a job in; the cells a second that no program exceeds there out.

There are two floors of the time that a cell takes: the bytes that must be moved, over the measured
rates of the device's memory and of the way there, and the operations over the measured rate of
matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from streamtrain.gpu.cells import TILE
from streamtrain.gpu.device import Device

_ROUNDS = 5


@dataclass(frozen=True)
class Card:
    """What a device does at best, a second.

    Attributes
    ----------
    name
        As its maker calls it.
    copied
        Bytes read and written by a copy within its memory.
    uploaded
        Bytes copied from pinned memory of the host.
    float32, float64
        Operations of a matrix product, two a multiply-add.
    """

    name: str
    copied: float
    uploaded: float
    float32: float
    float64: float


@dataclass(frozen=True)
class Work:
    """What a cell takes: bytes moved in the device's memory and uploaded, and operations."""

    moved: float
    uploaded: float
    operations: float
    dtype: str


def sgd(n_genes: int, n_columns: int, entries: float, dtype: DTypeLike, average: bool) -> Work:
    """Work of an exact step of SGD by blocks of `TILE` cells.

    Products: scores, of the cells with each other, and the update, with averaging twice as wide.
    A tile is made of its entries, written once and read for each product; the weights are read for
    the scores, and they and their sums read and written at the end of the block.
    """
    item, arrays = np.dtype(dtype).itemsize, 1 + average
    weights, uploaded = item * n_genes * n_columns, entry_bytes(n_genes, item) * entries
    return Work(
        uploaded + 4 * item * n_genes + weights * (1 + 2 * arrays) / TILE,
        uploaded,
        2 * n_genes * (n_columns + TILE + n_columns * arrays),
        np.dtype(dtype).name,
    )  # fmt: skip


def gradient(n_genes: int, n_columns: int, entries: float, dtype: DTypeLike, cells: int) -> Work:
    """Work of one pass of logistic regression over cells that stay on the device.

    Products: scores and slopes, in float64. A tile of `cells` is made of its entries, kept in
    `dtype`, written once and read for each product, as are the weights once and the slopes twice.
    """
    item, weights = np.dtype(np.float64).itemsize, 8 * n_genes * n_columns
    stored = entry_bytes(n_genes, np.dtype(dtype).itemsize) * entries
    return Work(
        stored + 3 * item * n_genes + 3 * weights / cells, 0.0, 4 * n_genes * n_columns, "float64"
    )


def entry_bytes(n_genes: int, item: int) -> int:
    """Bytes of an entry as it is uploaded: its value and its gene's position."""
    return item + (2 if n_genes <= 2**16 else 4)


def figures(work: Work, card: Card, cells_per_s: float) -> dict[str, Any]:
    """Both floors as cells a second, and the share that a rate is of the nearer one.

    The way to the device and its memory are used at the same time, so the slower of them counts.
    """
    moved = max(work.moved / card.copied, work.uploaded / card.uploaded)
    operated = work.operations / getattr(card, work.dtype)
    return {
        "bytes_floor": 1 / moved,
        "operations_floor": 1 / operated,
        "share": cells_per_s * max(moved, operated),
        "card": asdict(card),
    }


def measured(device: Device, megabytes: int, order: int) -> Card:
    """Measure a device: copies of so many megabytes, products of matrices of this order."""
    xp = device.xp
    a = xp.ones(megabytes * 10**6, np.uint8)
    b = xp.empty_like(a)
    copy_s = fastest(device, lambda: xp.copyto(b, a))
    upload_s = fastest(device, _upload(device, a))
    products = {}
    drawn = np.random.default_rng(0).standard_normal(10_007)  # a card is faster on equal numbers
    for dtype in (np.float32, np.float64):
        m = xp.asarray(np.resize(drawn, (order, order)).astype(dtype))
        out = xp.empty_like(m)
        work = _product(xp, m, out)
        products[np.dtype(dtype).name] = 2.0 * order**3 / fastest(device, work)
    return Card(name(device), 2 * a.nbytes / copy_s, a.nbytes / upload_s, **products)


def _product(xp: Any, m: Any, out: Any) -> Callable[[], Any]:
    return lambda: xp.matmul(m, m, out=out)


def _upload(device: Device, there: Any) -> Callable[[], Any]:
    """Copy pinned memory of the host over an array of the device."""
    xp = device.xp
    if xp is np:
        here = np.ones_like(there)
        return lambda: xp.copyto(there, here)
    memory = xp.cuda.alloc_pinned_memory(there.nbytes)
    here = np.frombuffer(memory, np.uint8, there.nbytes)
    here[:] = 1
    stream = xp.cuda.get_current_stream()
    return lambda: there.data.copy_from_host_async(here.ctypes.data, there.nbytes, stream)


def name(device: Device) -> str:
    """What the device is called."""
    if device.xp is np:
        return "NumPy"
    runtime = device.xp.cuda.runtime
    found: str = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return found


def finish(device: Device) -> None:
    """Wait until the device has done all that it was told."""
    if device.xp is not np:
        device.xp.cuda.Device().synchronize()


def fastest(device: Device, work: Callable[[], Any], rounds: int = _ROUNDS) -> float:
    """Fewest seconds of several rounds, the first being for warming up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


class Stopwatch:
    """Seconds from when a device begins with each piece of work until it ends.

    By CUDA's events, which the device passes in the order of its work: its waiting for what the
    piece needs counts, and the host's for the next piece does not. NumPy's work is timed by the
    clock.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[Any, Any]] = []

    def _mark(self) -> Any:
        xp = self._device.xp
        if xp is np:
            return time.perf_counter()
        event = xp.cuda.Event()
        event.record()
        return event

    def __enter__(self) -> Stopwatch:
        self._begun = self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._marks.append((self._begun, self._mark()))

    @property
    def seconds(self) -> float:
        """Their sum, when all is done."""
        finish(self._device)
        xp = self._device.xp
        if xp is np:
            return float(sum(end - begin for begin, end in self._marks))
        return float(sum(1e-3 * xp.cuda.get_elapsed_time(*pair) for pair in self._marks))
