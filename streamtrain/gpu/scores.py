"""Normalised cells in, their scores under a model out, as a device makes them."""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray

from streamtrain.gpu.cells import TILE, DeviceScaler
from streamtrain.rows import Rows

_PIECE = 16 * 10**6  # bytes of cells, and of their scores, sent at a time


class DeviceScores:
    """Scores z'W + intercept of cells, by dense tiles in float64.

    Parameters
    ----------
    scale
        How cells are scaled, in float64.
    weights, intercept
        Of the model, shape (genes, n_classes) and (n_classes,).

    Raises
    ------
    InputError
        If the model does not fit on the device.
    """

    def __init__(
        self, scale: DeviceScaler, weights: NDArray[np.float64], intercept: NDArray[np.float64]
    ) -> None:
        n_genes, n_classes = weights.shape
        self._device, self._scale = scale.device, scale
        self._device.require(
            nbytes(n_genes, n_classes), f"a model of {n_classes} types and {n_genes:,} genes"
        )
        self._weights, self._intercept = map(self._device.asarray, (weights, intercept))

    def rescaled(self, scale: DeviceScaler) -> DeviceScores:
        """The same weights, for cells that are scaled so."""
        other = copy(self)
        other._scale = scale
        return other

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
        for some, tile in cells.tiles():
            found[some] = tile @ self._weights
        cells.release()
        found += self._intercept
        return self._device.to_host(found)


def nbytes(n_genes: int, n_classes: int) -> int:
    """Bytes on the device of a model, two tiles, and cells under way with their scores."""
    return 8 * (n_genes * n_classes + 2 * TILE * (n_genes + n_classes)) + 3 * _PIECE
