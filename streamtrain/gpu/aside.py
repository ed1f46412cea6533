"""Cells on a device in; their dense tiles and products with each other out, ahead of the steps.

These need no weights. So they are made on a stream of their own while the steps of the block before
are found, which keep few of a card's processors busy.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from streamtrain.gpu.cells import TILE, DeviceCells
from streamtrain.gpu.device import Device
from streamtrain.gpu.products import Products

_SLOTS = 2  # one is made while the other is worked on


class Slot:
    """Memory of a tile, (cells, genes), and its products, (cells, cells), and how far it is."""

    def __init__(self, device: Device, n_genes: int, dtype: Any) -> None:
        xp = device.xp
        self._tile, self._gram = xp.empty((TILE, n_genes), dtype), xp.empty(TILE * TILE, dtype)
        self.made, self._done = device.event(), device.event()
        self._done.record()  # what used the memory before
        self.n = 0

    def begin(self, n: int) -> None:
        """Take `n` cells, when those before are done with."""
        self._done.wait()
        if n != self.n:
            self.n, self.tile, self.gram = n, self._tile[:n], self._gram[: n * n].reshape(n, n)
            self.by_gene = self.tile.T

    def release(self) -> None:
        """Let the memory be used again, once what the device has been told so far is done."""
        self._done.record()


class Aside:
    """Makes tiles and their products, one after the other.

    Parameters
    ----------
    device
        Where.
    n_genes, dtype
        Of the tiles.
    """

    def __init__(self, device: Device, n_genes: int, dtype: Any) -> None:
        self._stream = None if device.xp is np else device.xp.cuda.Stream(non_blocking=True)
        self._product = Products(device.xp)
        self._slots = deque(Slot(device, n_genes, dtype) for _ in range(_SLOTS))

    def begin(self, cells: DeviceCells) -> None:
        """Wait for cells before tiles of them are made."""
        with self._there():
            cells.wait()

    def __call__(self, cells: DeviceCells, start: int, stop: int) -> Slot:
        """Begin to make those of some cells, at most `TILE`; what comes next waits for them."""
        self._slots.rotate()
        slot = self._slots[0]
        with self._there():
            slot.begin(stop - start)
            cells.tile(start, stop, slot.tile)
            self._product(slot.tile, slot.by_gene, slot.gram)
            slot.made.record()
        slot.made.wait()
        return slot

    def _there(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else self._stream
