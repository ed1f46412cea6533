"""Arrays on local scratch: values in, slices out; nameless files, gone however the process ends."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.kernels import csr
from streamtrain.kernels import scratch as kernel

logger = logging.getLogger(__name__)

Folder = str | os.PathLike[str] | None


@dataclass
class Room:
    """What parsing text, or sorting a matrix by cell, may use.

    Attributes
    ----------
    memory
        Bytes to hold at a time.
    scratch
        Folder for the result; the system's temporary one if None.
    progress
        Show progress on standard error; a copy in another process, which is not asked, shows none.
    """

    memory: int = 256 << 20
    scratch: Folder = None
    progress: bool = False
    _files: list[ScratchArray] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": [], "progress": False}

    def array(self, dtype: Any) -> ScratchArray:
        """Make an array on scratch that `close` gives up."""
        self._files.append(ScratchArray(self.scratch, dtype))
        return self._files[-1]

    def close(self) -> None:
        """Give the scratch back."""
        while self._files:
            self._files.pop().close()


def place_of(folder: Folder) -> str:
    """The folder for scratch: as given, or the system's temporary one, but on a disk.

    Where the temporary folder lies in memory, as /tmp does on several systems, /var/tmp stands in
    unless TMPDIR asks for it.
    """
    if folder is not None:
        place = os.path.expanduser(folder)  # noqa: PTH111 - str or PathLike, kept as it came
    else:
        place = tempfile.gettempdir()
        if _in_memory(place) and "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK):  # noqa: S108
            place = "/var/tmp"  # noqa: S108 - files there are nameless
    if _in_memory(place):
        _warn_of_memory(place)
    return place


@cache
def _warn_of_memory(place: str) -> None:  # once a folder
    logger.warning("scratch in %s lies in memory and counts beside the budget", place)


def _in_memory(place: str) -> bool:
    """Whether a folder is on a file system that lives in memory."""
    real = os.path.realpath(place)
    mounts = [
        (part.mountpoint, part.fstype)
        for part in psutil.disk_partitions(all=True)
        if real == part.mountpoint or real.startswith(part.mountpoint.rstrip("/") + "/")
    ]
    return max(mounts, key=lambda m: len(m[0]), default=("", ""))[1] in ("tmpfs", "ramfs")


def free_disk(folder: Folder) -> int:
    """Bytes that scratch may take.

    Raises
    ------
    InputError
        If `folder` (None: the system's temporary one) is no folder.
    """
    place = place_of(folder)
    try:
        os.scandir(place).close()  # disk_usage takes a file, too
        return int(shutil.disk_usage(place).free)
    except OSError as error:
        raise _unusable(place, error) from error


def require_free(
    folder: Folder, nbytes: float, purpose: str, remedy: str = "scratch=FOLDER (--scratch)"
) -> None:
    """Refuse to begin what will not fit.

    Raises
    ------
    InputError
        If `folder` (None: the system's temporary one) is no folder or has less than `nbytes` free.
    """
    place, free = place_of(folder), free_disk(folder)
    if free < nbytes:
        raise InputError(
            f"{purpose} needs {format_bytes(nbytes)} of scratch, and {place} has "
            f"{format_bytes(free)} free: pass {remedy} on a larger disk"
        )


def _unusable(place: object, error: OSError) -> InputError:
    return InputError(f"scratch must be a folder that can be written; {place}: {error.strerror}")


class ScratchArray:
    """A growing one-dimensional array in a file, read by slices, or by cells in any order.

    No memory map: pages of one count as resident memory, and around one cell a system may map 2 MB.

    Parameters
    ----------
    folder
        Where; the system's temporary folder if None.
    dtype
        Of the values.

    Attributes
    ----------
    place
        The folder.
    """

    def __init__(self, folder: Folder, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.place = place_of(folder)
        try:
            self._file: Any = tempfile.TemporaryFile(dir=self.place, buffering=0)  # noqa: SIM115 - see close
        except OSError as error:
            raise _unusable(self.place, error) from error
        self._close = weakref.finalize(self, self._file.close)

    @classmethod
    def named(cls, path: Path, dtype: Any) -> Self:
        """One in a file that others can open, with what is there already; the caller deletes it."""
        path.touch()
        return cls._in_file(path, dtype, "r+b")

    @classmethod
    def opened(cls, path: Path, dtype: Any) -> Self:
        """What stands in a file, to read."""
        return cls._in_file(path, dtype, "rb")

    @classmethod
    def _in_file(cls, path: Path, dtype: Any, mode: str) -> Self:
        array = cls.__new__(cls)
        array.dtype, array.place = np.dtype(dtype), str(path.parent)
        array._file = path.open(mode, buffering=0)
        array._close = weakref.finalize(array, array._file.close)
        return array

    @property
    def shape(self) -> tuple[int]:
        """Number of values, as an array gives it."""
        return (self.nbytes // self.dtype.itemsize,)

    @property
    def nbytes(self) -> int:
        """Bytes on scratch."""
        return os.fstat(self.fileno()).st_size

    def fileno(self) -> int:
        """Descriptor of the file."""
        number: int = self._file.fileno()
        return number

    def append(self, values: NDArray[Any]) -> None:
        """Write values after those already there."""
        self.write(values, self.shape[0])

    def write(self, values: NDArray[Any], start: int) -> None:
        """Write values from position `start` on.

        Raises
        ------
        InputError
            If the disk is full.
        """
        view = np.ascontiguousarray(values, self.dtype).data.cast("B")
        offset = start * self.dtype.itemsize
        try:
            while len(view):
                done = os.pwrite(self.fileno(), view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InputError(
                f"the scratch folder {self.place} is full after {format_bytes(self.nbytes)}: pass "
                "scratch=FOLDER (--scratch) on a larger disk"
            ) from error

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        out = np.empty(max(0, stop - start), self.dtype)
        view, offset = out.data.cast("B"), start * self.dtype.itemsize
        while len(view):
            done = os.preadv(self.fileno(), [view], offset)
            if done == 0:
                raise OSError(f"{self.place}: scratch file ended early")
            view, offset = view[done:], offset + done
        return out

    def take(
        self,
        offsets: NDArray[np.int64],
        cells: NDArray[np.int64],
        indptr: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        """Read the values of `cells`, which start at `offsets`, into `out` at `indptr`."""
        ScratchPieces([(self, 0, self.shape[0])], self.dtype).take(offsets, cells, indptr, out)

    def close(self) -> None:
        """Give the space back."""
        self._close()


class ScratchPieces:
    """Stretches of several scratch arrays, read as one array in which they follow each other.

    Parameters
    ----------
    pieces
        Each an array, its first value and the number of its values.
    dtype
        Of all.
    """

    def __init__(self, pieces: Sequence[tuple[ScratchArray, int, int]], dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._arrays = [array for array, _, _ in pieces]
        self._starts = np.array([start for _, start, _ in pieces], np.int64)
        edges = np.cumsum([0, *(n for _, _, n in pieces)], dtype=np.int64)
        self._edges, self._n = edges[:-1], int(edges[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the stretches."""
        return int(self._n * self.dtype.itemsize)

    def take(
        self,
        offsets: NDArray[np.int64],
        cells: NDArray[np.int64],
        indptr: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        """Read the values of `cells`, which start at `offsets`, into `out` at `indptr`.

        Raises
        ------
        OSError
            Where a file ended early, or is gone.
        """
        files = np.array([array.fileno() for array in self._arrays], np.intc)
        stage = np.empty(int(np.diff(indptr).max(initial=0)), self.dtype)
        if not kernel.pick(files, self._edges, self._starts, offsets, cells, indptr, stage, out):
            raise OSError(f"{self._arrays[0].place}: scratch file ended early")

    def close(self) -> None:
        """Close the arrays."""
        for array in self._arrays:
            array.close()


class MemoryArray:
    """A growing one-dimensional array in memory, of as many bytes as are written.

    Parameters
    ----------
    most
        Values that it may hold. Untouched pages take no memory, so it is made for all of them.
    dtype
        Of the values.
    """

    def __init__(self, most: int, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._all, self._n = np.empty(most, self.dtype), 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self._n * self.dtype.itemsize)

    def append(self, values: NDArray[Any]) -> None:
        """Write values after those already there."""
        self._all[self._n : self._n + len(values)] = values
        self._n += len(values)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        return self._all[: self._n][part]

    def take(
        self,
        offsets: NDArray[np.int64],
        cells: NDArray[np.int64],
        indptr: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        """Copy the values of `cells`, which start at `offsets`, into `out` at `indptr`."""
        csr.take_values(self._all, offsets, cells, indptr, out)

    def close(self) -> None:
        """Give the memory back."""
        self._all, self._n = np.empty(0, self.dtype), 0
