"""Tiles and points in, logistic loss and slope out, by sparse products of CuPy (or SciPy)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.tiles import Block, Tiles

_KEEP = 0.6  # share of the free GPU memory for cells that stay there from pass to pass


class Arrays:
    """The array and sparse modules of a device, and how to move arrays to and from it."""

    def __init__(self, xp: Any, sparse: Any, room: float) -> None:
        self.xp, self.sparse, self.room = xp, sparse, room

    @classmethod
    def gpu(cls) -> Arrays:
        """CuPy on the present device.

        Raises
        ------
        InputError
            If CuPy is missing or finds no GPU.
        """
        try:
            import cupy
            import cupyx.scipy.sparse as sparse

            free, _ = cupy.cuda.runtime.memGetInfo()
        except ImportError as error:
            raise InputError(
                "use_GPU=True needs CuPy: pip install 'streamtrain[gpu-cuda12]' (or gpu-cuda13), "
                "or leave out use_GPU"
            ) from error
        except Exception as error:  # CuPy's own errors, of a missing driver or device
            raise InputError(
                f"use_GPU=True finds no GPU that works: {error}; leave out use_GPU"
            ) from error
        return cls(cupy, sparse, _KEEP * free)

    def to_host(self, array: Any) -> NDArray[Any]:
        """The array in this process's memory."""
        host: NDArray[Any] = array.get() if hasattr(array, "get") else np.asarray(array)
        return host


class DeviceCells:
    """Tiles as sparse matrices on the device, kept there as far as they fit."""

    def __init__(self, arrays: Arrays, n_genes: int) -> None:
        self._arrays, self._n_genes = arrays, n_genes
        self._kept: dict[int, Any] = {}
        self._held = 0

    def matrix(self, number: int, block: Block) -> tuple[Any, Any]:
        """The cells of a block x genes, as CSR in float64, and their codes."""
        found = self._kept.get(number)
        if found is not None:
            return found  # type: ignore[no-any-return]
        xp = self._arrays.xp
        starts = np.cumsum(block.tile_cells) - block.tile_cells
        ends = np.cumsum(block.tile_genes)
        sums = np.concatenate([[0], np.cumsum(block.counts, dtype=np.int64)])
        entries = np.diff(sums[np.concatenate([[0], ends])])  # of each tile
        rows = np.repeat(starts, entries).astype(np.int32) + block.cells
        columns = np.repeat(block.genes.astype(np.int32), block.counts)
        values = xp.asarray(block.values.astype(np.float64))
        X = self._arrays.sparse.coo_matrix(
            (values, (xp.asarray(rows), xp.asarray(columns))),
            shape=(len(block.codes), self._n_genes),
        ).tocsr()
        made = X, xp.asarray(block.codes)
        size = 12 * len(values) + 8 * len(block.codes)
        if self._held + size <= self._arrays.room:
            self._kept[number] = made
            self._held += size
        return made


class DeviceSums:
    """`solvers.logistic.Sums` on the device; float64.

    Parameters
    ----------
    arrays
        The device.
    tiles
        The scaled cells.
    weights, classes
        Weight of a cell by its class in each column's problem, shape (n_classes, columns), and the
        class that each column stands for, shape (columns,).
    """

    def __init__(
        self,
        arrays: Arrays,
        tiles: Tiles,
        weights: NDArray[np.float64],
        classes: NDArray[np.int64],
    ) -> None:
        self._arrays, self._tiles = arrays, tiles
        self._cells = DeviceCells(arrays, tiles.n_genes)
        self._weights, self._classes = arrays.xp.asarray(weights), arrays.xp.asarray(classes)

    def __call__(
        self,
        columns: NDArray[np.int64],
        W: NDArray[np.float64],
        constant: NDArray[np.float64],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], ...]:
        """Sum over all cells, as the kernel of `kernels.tiles` does."""
        xp = self._arrays.xp
        W_, constant_, columns_ = xp.asarray(W), xp.asarray(constant), xp.asarray(columns)
        classes, weights = self._classes[columns_], self._weights[:, columns_]
        loss, total, bend = (xp.zeros(len(columns)) for _ in range(3))
        slope = xp.zeros(W.shape)
        for number, block in enumerate(self._tiles):
            X, codes = self._cells.matrix(number, block)
            score = X @ W_ + constant_
            y = (codes[:, None] == classes[None, :]).astype(np.float64)
            e = xp.exp(-xp.abs(score))
            weight = weights[codes]
            loss += (weight * (xp.log1p(e) + xp.maximum(score, 0.0) - y * score)).sum(axis=0)
            p = xp.where(score >= 0, 1.0, e) / (1.0 + e)
            residual = weight * (p - y)
            bend += (weight * p * (1.0 - p)).sum(axis=0)
            total += residual.sum(axis=0)
            slope += X.T @ residual
            report(len(block.codes))
        to_host = self._arrays.to_host
        return to_host(loss), to_host(slope), to_host(total), to_host(bend)
