"""Normalised cells in, their scores under a model out, as a device makes them."""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray

from streamtrain.gpu.cells import TILE, DeviceScaler
from streamtrain.gpu.device import Device
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler

_PIECE = 16 * 10**6  # bytes of cells, and of their scores, sent at a time


class DeviceScores:
    """Scores z'W + intercept of cells, by dense tiles in float64.

    Parameters
    ----------
    device
        Where.
    weights, intercept
        Of the model, shape (genes, n_classes) and (n_classes,).

    Raises
    ------
    InputError
        If the model does not fit there.
    """

    def __init__(
        self, device: Device, weights: NDArray[np.float64], intercept: NDArray[np.float64]
    ) -> None:
        n_genes, n_classes = weights.shape
        device.require(
            nbytes(n_genes, n_classes),
            f"a model of {n_classes} types and {n_genes:,} genes",
            "raise gpu_memory (--gpu-memory), or leave out device",
        )  # fmt: skip
        self._device = device
        self._weights, self._intercept = map(device.asarray, (weights, intercept))

    def scaled(self, scaler: Scaler) -> DeviceScores:
        """The same weights, for cells that are scaled so."""
        other = copy(self)
        other._scale = DeviceScaler(scaler, self._device, np.float64)
        return other

    _scale: DeviceScaler

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes)."""
        found = np.empty((rows.n_obs, len(self._intercept)))
        step = max(1, int(_PIECE * rows.n_obs / max(1, 12 * len(rows.data) + found.nbytes)))
        for start in range(0, rows.n_obs, step):
            piece = rows.slice(start, min(start + step, rows.n_obs))
            found[start : start + step] = self._piece(piece)
        return found

    def _piece(self, rows: Rows) -> NDArray[np.float64]:
        xp, cells = self._device.xp, self._scale(rows)
        found = xp.empty((rows.n_obs, len(self._intercept)))
        for start in range(0, rows.n_obs, TILE):
            stop = min(start + TILE, rows.n_obs)
            found[start:stop] = cells.tile(start, stop) @ self._weights
        cells.release()
        found += self._intercept
        return self._device.to_host(found)


def nbytes(n_genes: int, n_classes: int) -> int:
    """Bytes on the device of a model, two tiles, and cells under way with their scores."""
    return 8 * (n_genes * n_classes + 2 * TILE * (n_genes + n_classes)) + 3 * _PIECE
