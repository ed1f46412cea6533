"""Cells as they are stored in; dense tiles of their scaled expression on a device out."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.gpu.device import THREADS, Device, Sent
from streamtrain.kernels import blocks as kernel
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler

TILE = THREADS  # cells, a thread each while they are stepped on; of 30,000 genes 31 MB in float32
_FILL = {np.dtype(kind): f"fill_{np.dtype(kind).name}" for kind in (np.uint16, np.int32)}


@dataclass(slots=True)
class DeviceCells:
    """Cells on their way to a device, and the rule that scales them there.

    Attributes
    ----------
    codes
        Label code of each cell, shape (n_obs,), or None.
    n_obs
        Number of cells.
    """

    scaler: DeviceScaler
    sent: Sent
    codes: NDArray[np.int32] | None
    n_obs: int

    def wait(self) -> None:
        """Let the present stream wait until tiles can be made."""
        self.sent.wait()
        self.scaler.there.wait()

    def tile(self, start: int, stop: int, out: Any = None) -> Any:
        """Scaled expression z of some cells, centred and clipped, (stop - start, genes).

        It is made by the present stream, after `wait`, in `out` if that is given.
        """
        data, indices, indptr, *own = self.sent.arrays
        scaler, xp = self.scaler, self.scaler.device.xp
        place, nothing = own or (scaler.place, scaler.nothing)
        if out is None:
            out = xp.empty((stop - start, scaler.n_genes), scaler.dtype)
        if xp is np:
            some = indptr[start : stop + 1]
            kernel.fill(data, indices, some, place, scaler.rule, nothing, out)
        else:
            scaler.device.launch(
                _FILL[indices.dtype], scaler.dtype, stop - start, data, indices, indptr,
                np.int64(start), place, scaler.rule, nothing, np.int64(scaler.n_genes), out,
            )  # fmt: skip
        return out

    def tiles(self) -> Iterator[tuple[slice, Any]]:
        """Scaled expression of all cells, some at a time, and which they are."""
        self.wait()
        for start in range(0, self.n_obs, TILE):
            stop = min(start + TILE, self.n_obs)
            yield slice(start, stop), self.tile(start, stop)

    def mean_square(self) -> float:
        """Mean squared length |z|² of the cells."""
        xp = self.scaler.device.xp
        total = xp.zeros(())
        for _, tile in self.tiles():
            total += xp.square(tile).sum(dtype=np.float64)
        return float(total) / self.n_obs

    def release(self) -> None:
        """Give the memory of the entries back, when what the device was told of is done."""
        self.sent.release()


class DeviceScaler:
    """Scale cells on a device, as a `Scaler` does.

    The entries are copied as they are kept, with positions of two bytes where the genes allow.

    Parameters
    ----------
    scaler
        The rule.
    device
        Where.
    dtype
        Of the scaled values; None for the scaler's.
    """

    def __init__(self, scaler: Scaler, device: Device, dtype: Any = None) -> None:
        self._scaler, self.device = scaler, device
        self.dtype = np.dtype(dtype or scaler.dtype)
        self.shift = scaler.shift
        self._own: tuple[NDArray[Any], ...] = ()
        rule = scaler.dense()
        self.place, self.rule = (device.asarray(array) for array in (rule.place, rule.rule))
        self.nothing = device.asarray(rule.nothing.astype(self.dtype))
        self.there = device.event()
        with device.here():
            self.there.record()

    @property
    def n_genes(self) -> int:
        """Number of the model's genes."""
        return len(self.shift)

    def without(self, dropped: NDArray[np.bool_]) -> DeviceScaler:
        """Scale as if cells lacked some genes; see `Scaler.without`."""
        other, rule = copy(self), self._scaler.without(dropped).dense()
        # They go with the cells, in the thread that sends these.
        other._own = rule.place, rule.nothing.astype(self.dtype)
        return other

    def __call__(self, rows: Rows) -> DeviceCells:
        """Begin to copy cells, whose genes are the source's."""
        kind = np.uint16 if rows.indices.dtype == np.uint16 else np.int32
        sent = self.device.send(
            rows.data.astype(self.dtype, copy=False), rows.indices.astype(kind, copy=False),
            rows.indptr, *self._own,
        )  # fmt: skip
        return DeviceCells(self, sent, rows.codes, rows.n_obs)
