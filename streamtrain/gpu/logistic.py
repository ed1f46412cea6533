"""Tiles and points in, logistic loss and slope out, on a device, by products of dense tiles.

Scores are x' W + constant and the slope sums x' times residuals, so what a cell has not is zero. A
tile is X' of (genes, cells) in float64, made of its entries there; it is multiplied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.gpu.device import THREADS, Device, Sent
from streamtrain.gpu.products import Products
from streamtrain.kernels import blocks as kernel
from streamtrain.streaming import ahead
from streamtrain.tiles import TILE, Block, Tiles

# Cells of a dense tile: of 30,000 genes 246 MB. It is written once and read twice; the slopes of
# 100 columns, read and written as its product is added, move 7% of those bytes.
CELLS = 4 * TILE
_WARP = 32  # threads
# Two blocks on their way, each a quarter larger than needed and, on the device, which has 8 bytes
# more for each gene of a tile, under twice what it is on the host.
_UPLOADS = 5


@dataclass(slots=True)
class DeviceBlock:
    """A block of tiles on a device.

    Attributes
    ----------
    cuts
        First cell and first run of each dense tile, and behind the last; a run is a gene in a tile
        of the block.
    arrays
        Values and cells of the entries; gene, first cell and first entry of each run; classes.
    """

    device: Device
    cuts: list[tuple[int, int]]
    sent: Sent
    arrays: list[Any]

    @classmethod
    def send(cls, device: Device, block: Block) -> DeviceBlock:
        """Begin to copy a block to the device."""
        cells, runs = (np.append(0, np.cumsum(n)) for n in (block.tile_cells, block.tile_genes))
        n = len(block.tile_cells)
        at = np.append(np.arange(0, n, CELLS // TILE), n)
        sent = device.send(
            block.values, block.cells, block.genes,
            np.repeat(cells[:-1].astype(np.int32), block.tile_genes),
            np.append(0, np.cumsum(block.counts, dtype=np.int64)), block.codes,
        )  # fmt: skip
        cuts = list(zip(cells[at].tolist(), runs[at].tolist(), strict=True))
        return cls(device, cuts, sent, sent.arrays)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.cuts[-1][0]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def dtype(self) -> Any:
        """Of the values, and so of the kernels."""
        return self.arrays[0].dtype

    def tile(self, begin: tuple[int, int], end: tuple[int, int], n_genes: int) -> tuple[Any, Any]:
        """X' of the cells between two cuts, (genes, cells), and their classes."""
        xp = self.device.xp
        values, cells, genes, first, edges, codes = self.arrays
        (start, lo), (stop, hi) = begin, end
        out = xp.zeros((n_genes, stop - start))
        given = values, cells, genes[lo:hi], first[lo:hi], edges[lo : hi + 1]
        if xp is np:
            kernel.spread(*given, start, out)
        else:
            self.device.launch(
                f"spread_{genes.dtype.name}", self.dtype, -(-(hi - lo) * _WARP // THREADS),
                *given, np.int32(start), np.int64(hi - lo), np.int64(stop - start), out,
            )  # fmt: skip
        return out, codes[start:stop]


class DeviceCells:
    """Blocks of tiles on a device: the first ones stay there, the others come on each pass.

    Parameters
    ----------
    tiles
        The scaled cells.
    room
        Bytes for those that stay.
    """

    def __init__(self, device: Device, tiles: Tiles, room: float) -> None:
        self._device, self._tiles, self._room = device, tiles, room
        self._kept: list[DeviceBlock] = []
        self._held, self._full = 0, False

    def __iter__(self) -> Iterator[DeviceBlock]:
        """Every block, in order; each is let go of when the next one is asked for."""
        yield from self._kept
        coming = self._tiles.blocks(len(self._kept))
        for block in ahead(DeviceBlock.send(self._device, one) for one in coming):
            block.sent.wait()
            self._keep(block)
            yield block
            block.sent.release()

    def _keep(self, block: DeviceBlock) -> None:
        """Copy a block out of the memory that it came in, if it fits, as those before it did."""
        self._full = self._full or self._held + block.nbytes > self._room
        if not self._full:
            self._held += block.nbytes
            block.arrays = [array.copy() for array in block.arrays]
            self._kept.append(block)


class DeviceSums:
    """`solvers.logistic.Sums` on a device; float64.

    Parameters
    ----------
    device
        Where.
    tiles
        The scaled cells; they may be appended until the first pass.
    weights, classes
        Weight of a cell by its class in each column's problem, shape (n_classes, columns), and the
        class that each column stands for, shape (columns,).

    Raises
    ------
    InputError
        If the weights and a tile do not fit; on the first pass, if the cells on their way do not.
    """

    def __init__(
        self,
        device: Device,
        tiles: Tiles,
        weights: NDArray[np.float64],
        classes: NDArray[np.int64],
    ) -> None:
        self._device, self._tiles = device, tiles
        self._weights, self._classes = weights, classes.astype(np.int32)
        self._cells: DeviceCells | None = None
        self._product = Products(device.xp)
        self._room()

    def _room(self) -> float:
        """Bytes for cells that stay on the device."""
        n_genes, n_columns = self._tiles.n_genes, len(self._classes)
        needed = nbytes(n_genes, *self._weights.shape) + _UPLOADS * self._tiles.largest
        self._device.require(
            needed, f"logistic regression of {n_columns} columns x {n_genes:,} genes"
        )
        return self._device.room - needed

    def __call__(
        self,
        columns: NDArray[np.int64],
        W: NDArray[np.float64],
        constant: NDArray[np.float64],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], ...]:
        """Sum over all cells; see `Sums`. The device is waited for at the end alone."""
        device, xp = self._device, self._device.xp
        if self._cells is None:
            self._cells = DeviceCells(device, self._tiles, self._room())
        weights = np.ascontiguousarray(self._weights[:, columns])
        sent = device.send(W, self._classes[columns], weights, constant, small=True)
        W_, *of_columns = sent.wait()
        sums, slope = xp.zeros((3, CELLS, len(columns))), xp.zeros(W.shape)
        for block in self._cells:
            for begin, end in pairwise(block.cuts):
                self._add(block, begin, end, W_, of_columns, sums, slope)
            report(block.n_obs)
        sent.release()
        loss, total, bend = device.to_host(sums.sum(axis=1))
        return loss, device.to_host(slope), total, bend

    def _add(
        self,
        block: DeviceBlock,
        begin: tuple[int, int],
        end: tuple[int, int],
        W: Any,
        of_columns: list[Any],
        sums: Any,
        slope: Any,
    ) -> None:
        """Add the sums of the cells between two cuts."""
        device = self._device
        tile, codes = block.tile(begin, end, len(W))
        score = device.xp.empty((tile.shape[1], W.shape[1]))
        self._product(tile.T, W, score)
        given = codes, *of_columns
        if device.xp is np:
            kernel.residuals(*given, score, *sums)
        else:
            device.launch(
                "residuals", block.dtype, -(-score.size // THREADS), *given, np.int64(score.size),
                np.int32(score.shape[1]), score, *sums,
            )  # fmt: skip
        self._product(tile, score, slope, add=True)


def nbytes(n_genes: int, n_classes: int, n_columns: int) -> int:
    """Bytes on the device of weights, slopes, a dense tile and its scores.

    The weights come in a buffer a quarter larger than they are.
    """
    point = 5 * (n_genes + n_classes + 2) * n_columns // 4
    return 8 * (point + n_genes * n_columns + CELLS * (n_genes + 4 * n_columns))
