"""Any one-dimensional array that slices enters; one that gives stretches of its entries leaves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.decode.files import LocalFiles
from streamtrain.kernels import decode as kernel

_SLICE = 1 << 24  # bytes that one slice takes at most, unless a chunk is larger


class Sliceable(Protocol):
    """What h5py, zarr and numpy arrays have in common."""

    shape: Any
    dtype: Any

    def __getitem__(self, part: slice) -> Any: ...


class Gatherable(Sliceable, Protocol):
    """A one-dimensional array that gives stretches of its entries, as `StoredArray` does."""

    decoded: int  # bytes so far

    def gather(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        out: NDArray[Any],
        limit: int | None = None,
    ) -> bool:
        """Copy stretches into `out`; tell whether all are whole numbers from 0 to `limit` - 1."""
        ...

    def close(self) -> None:
        """Give up files and what the last read left; a later read opens anew."""
        ...


def as_gatherable(array: Any) -> Gatherable:
    """Leave an array that gives stretches as it is, and read others by slices."""
    return array if hasattr(array, "gather") else SlicedArray(array)


class SlicedArray:
    """Any sliceable array, whose stretches are read by slices."""

    def __init__(self, array: Sliceable) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.chunks = getattr(array, "chunks", None)
        chunk = int(self.chunks[0]) if self.chunks else 1
        self.decoded = 0
        self._piece = chunk * max(1, _SLICE // (chunk * self.dtype.itemsize))

    def __getitem__(self, part: slice) -> Any:
        return self._array[part]

    def gather(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        out: NDArray[Any],
        limit: int | None = None,
    ) -> bool:
        """Copy stretches into `out`; tell whether all are whole numbers from 0 to `limit` - 1."""
        some = stops > starts
        starts, stops = starts[some], stops[some]
        stretch, piece = pieces(starts, stops, self._piece)
        # By pieces, each read once: a slice of everything would take the memory of `out` again.
        starts = np.maximum(starts[stretch], piece * self._piece)
        stops = np.minimum(stops[stretch], (piece + 1) * self._piece)
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        gap = LocalFiles.gap // self.dtype.itemsize
        cuts = np.flatnonzero((np.diff(piece) > 0) | (starts[1:] - stops[:-1] > gap)) + 1
        fine = True
        for lo, hi in pairwise([0, *cuts.tolist(), len(starts)]) if len(starts) else ():
            first, last = int(starts[lo]), int(stops[hi - 1])
            values = plain(np.asarray(self._array[first:last]))
            if len(values) != last - first:
                raise OSError(f"entries {first} to {last}: only {len(values)} could be read")
            self.decoded += values.nbytes
            fine &= put((values, first, starts, stops, offsets, lo, hi), limit, out)
        return fine

    def close(self) -> None:
        """Nothing to give up."""


def put(where: tuple[Any, ...], limit: int | None, out: NDArray[Any]) -> bool:
    """Place values; tell whether all are whole numbers from 0 to `limit` - 1."""
    if limit is None:
        kernel.place(*where, out)
        return True
    whole = where[0].dtype.kind in "iu"
    return bool((kernel.place_below if whole else kernel.place_counts)(*where, limit, out))


def pieces(
    starts: NDArray[np.int64], stops: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut stretches, none of them empty, at the multiples of `n`.

    Returns
    -------
    stretch, multiple
        Of each piece: number of its stretch, and n * multiple is at or before its first entry.
    """
    first = starts // n
    counts = (stops - 1) // n + 1 - first
    begins = np.cumsum(counts) - counts
    stretch = np.repeat(np.arange(len(starts)), counts)
    return stretch, np.arange(len(stretch)) + (first - begins)[stretch]


def plain(values: NDArray[Any]) -> NDArray[Any]:
    """Values as kernels take them: type, byte order and alignment; not to be written."""
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    elif values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        values = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
    values = values.astype(values.dtype.newbyteorder("="), copy=not values.flags.aligned).view()
    values.flags.writeable = False  # all alike: numba compiles kernels for both kinds
    return values
