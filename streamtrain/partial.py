"""An output that takes long enters; a hidden folder in which it grows, and goes on after a kill."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from streamtrain.atomic import disk_full, put_in_place, remove, replace_file
from streamtrain.errors import InputError

logger = logging.getLogger(__name__)

State = dict[str, Any]  # plain values, as JSON holds them
_JOURNAL, LOCK = "journal.json", "lock"


class Partial:
    """The folder `.NAME.partial` beside an output, with a journal of what in it is complete.

    A context manager. Left by an exception it stays, if anything was committed, so that the same
    call goes on from the last commit; after `finish` it is gone. A process that is killed leaves
    the same.

    Parameters
    ----------
    target
        The output, a zarr store.
    settings
        What the output is made from and how, as plain values: the journal of other settings is
        not gone on with. None for what cannot be compared: then nothing is gone on with.

    Raises
    ------
    InputError
        If another process writes the same output.
    """

    def __init__(self, target: Path, settings: State | None) -> None:
        self.folder = target.parent / f".{target.name}.partial"
        self.store = self.folder / "store.zarr"
        self.state: State = {}
        self._target, self._settings = target, settings
        self._beside: Path | None = None
        self._scratch: str | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self._lock = locked(
            self.folder,
            f"another process writes {self._target}: wait for it, or choose another output",
            str(self._target.parent),
            "an output",
        )
        found = self._read()
        if found is not None and found["settings"] and self._settings is not None:
            former = found["settings"]
            differ = sorted(
                k for k in former | self._settings if former.get(k) != self._settings.get(k)
            )
            # The store is gone where a process was killed once it had put it in its place.
            if not differ and self.store.is_dir():
                self.state = found["state"]
                return self
            if differ:
                logger.warning(
                    "%s was begun with other settings (%s): it is begun anew",
                    self._target, ", ".join(differ),
                )  # fmt: skip
        self._remove_former(found)
        self.clear()
        return self

    def _remove_former(self, found: State | None) -> None:
        """Delete what a former run left in another folder."""
        scratch = None if found is None else found.get("scratch")
        if isinstance(scratch, str) and (former := self._on_scratch(scratch)).is_dir():
            logger.warning("%s, left by a former run, is deleted", former)
            remove(former)

    def _on_scratch(self, scratch: str) -> Path:
        key = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(scratch, f".streamtrain-{key}")

    def clear(self) -> None:
        """Begin anew, in an empty folder."""
        self.state = {}
        for path in self.folder.iterdir():
            if path.name != LOCK:
                remove(path)
        if self._beside is not None:
            remove(self._beside)
            _make(self._beside)

    def _read(self) -> State | None:
        try:
            found = json.loads((self.folder / _JOURNAL).read_text(encoding="utf-8"))
            return found if {"settings", "state"} <= set(found) else None
        except (OSError, ValueError, TypeError):
            return None

    def beside(self, scratch: str | None) -> Path:
        """Make a folder in `scratch`, or in this one, that goes when this one goes."""
        folder = self.folder / "buckets" if scratch is None else self._on_scratch(scratch)
        if not self.state:
            remove(folder)
        _make(folder)
        self._beside, self._scratch = folder, scratch
        return folder

    def commit(self, **state: Any) -> None:
        """Record what is complete, once it is on the disk: a call goes on from here."""
        self.state |= state
        text = json.dumps(
            {"settings": self._settings, "state": self.state, "scratch": self._scratch}
        )
        with disk_full(self.folder):
            replace_file(self.folder / _JOURNAL, lambda new: new.write_text(text, encoding="utf-8"))

    def finish(self, overwrite: bool) -> None:
        """Put the store in its place, and delete all else."""
        put_in_place(self.store, self._target, overwrite)
        # What a process left that was killed while it deleted the output before that.
        name = glob.escape(self._target.name)
        for old in self._target.parent.glob(f".{name}.{'[0-9a-f]' * 8}.old"):
            remove(old)
        self.discard()

    def discard(self) -> None:
        """Delete everything, so that the next call begins anew."""
        self.state = {}
        if self._beside is not None:
            remove(self._beside)
        remove(self.folder)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is not None and self.state and self._settings is not None:
                elsewhere = self._scratch is not None and f" and {self._beside}"
                logger.warning(
                    "what is done so far stays in %s%s: run the same again to go on from there, or "
                    "delete it", self.folder, elsewhere or "",
                )  # fmt: skip
            elif failed is not None:
                self.discard()
        finally:
            os.close(self._lock)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"scratch must be a folder that can be written; {folder.parent}: {error.strerror}"
        ) from error


class GrowingFile:
    """A file of values of one type that grows at its end; what was not committed is cut off.

    Parameters
    ----------
    path
        The file.
    dtype
        Of the values.
    length
        Values to keep of those that are there.
    """

    def __init__(self, path: Path, dtype: Any, length: int) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self._handle, length * self.dtype.itemsize)

    def append(self, values: NDArray[Any]) -> None:
        """Write values after those already there."""
        write_all(
            self._handle,
            values.astype(self.dtype, copy=False),
            self.length * self.dtype.itemsize,
            self.path,
        )
        self.length += len(values)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(self.length)
        return read_exactly(
            self._handle, stop - start, self.dtype, start * self.dtype.itemsize, self.path
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.length * int(self.dtype.itemsize)

    def sync(self) -> None:
        """Have the system write it to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def locked(folder: Path, busy: str, what: str, other: str) -> int:
    """Take the lock of a folder, and keep it as long as the file is open.

    Parameters
    ----------
    busy
        What to say where another process has it.
    what, other
        What to call the folder, and what to choose on another disk, where there are no locks.
    """
    while True:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (folder / LOCK).stat()):
                return lock
        except FileNotFoundError:  # another process has just cleared the folder
            folder.mkdir(exist_ok=True)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(busy) from error
            raise InputError(
                f"{what} is on a disk without file locks ({error.strerror}): choose {other} on "
                "another disk"
            ) from error
        os.close(lock)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file for reading."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def write_all(handle: int, values: Any, offset: int, path: Path) -> int:
    """Write a buffer of any type to a file at `offset`, and return where it ends."""
    view = memoryview(values).cast("B") if len(values) else memoryview(b"")
    with disk_full(path):
        while len(view):
            done = os.pwrite(handle, view, offset)
            view, offset = view[done:], offset + done
    return offset


def read_exactly(handle: int, n: int, dtype: Any, offset: int, path: Path) -> NDArray[Any]:
    """Read `n` values of a type from a file at `offset`.

    Raises
    ------
    OSError
        If the file ends before.
    """
    out: NDArray[Any] = np.empty(max(0, n), dtype)
    view = out.view(np.uint8).data
    while len(view):
        done = os.preadv(handle, [view], offset)
        if done == 0:
            raise OSError(f"{path} ended early: something else wrote to it; begin anew without it")
        view, offset = view[done:], offset + done
    return out
