"""Cells on a device in; their dense tiles and products with each other out, ahead of the steps.

These need no weights. So they are made on a stream of their own while the steps of the block before
are found, which keep few of a card's processors busy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamtrain.gpu.cells import TILE, DeviceCells
from streamtrain.gpu.device import Device
from streamtrain.gpu.products import Products

_SLOTS = 2  # one is made while the other is worked on


@dataclass
class Made:
    """A tile, (cells, genes), and its products, (cells, cells), until `release`."""

    tile: Any
    gram: Any
    _slot: _Slot

    def release(self) -> None:
        """Let its memory be used again, once what the device has been told so far is done."""
        self._slot.done.record()


class _Slot:
    """Memory of a tile and its products, and the events after making and using it."""

    def __init__(self, device: Device, n_genes: int, dtype: Any) -> None:
        xp = device.xp
        self.tile = xp.empty((TILE, n_genes), dtype)
        self.gram = xp.empty(TILE * TILE, dtype)
        self.made, self.done = device.event(), device.event()
        self.done.record()  # what used the memory before


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
        self._device, self._n_genes, self._dtype = device, n_genes, dtype
        self._stream = None if device.xp is np else device.xp.cuda.Stream(non_blocking=True)
        self._products = Products(device.xp)
        self._slots: list[_Slot] = []

    def __call__(self, cells: DeviceCells, start: int, stop: int) -> Made:
        """Begin to make those of some cells, at most `TILE`; what comes next waits for them."""
        if len(self._slots) < _SLOTS:
            self._slots.append(_Slot(self._device, self._n_genes, self._dtype))
        slot = self._slots[0]
        self._slots = [*self._slots[1:], slot]
        n = stop - start
        tile, gram = slot.tile[:n], slot.gram[: n * n].reshape(n, n)
        with self._there():
            slot.done.wait()
            cells.tile(start, stop, tile)
            self._products(tile, tile.T, gram)
            slot.made.record()
        slot.made.wait()
        return Made(tile, gram, slot)

    def _there(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else self._stream
