"""Names of files in a store enter, ranges of their bytes leave; read from any thread at once."""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.threads import Threads

Bytes = NDArray[np.uint8]
METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")  # not of chunks

_OPEN = 64  # files kept open: a shard is read many times, a chunk file of its own once


class Files(Protocol):
    """Files of one store, or a single file under the name ""."""

    gap: int  # bytes that cost less to read in passing than another request
    name: str

    @property
    def threads(self) -> Threads | None:
        """Threads of their own, where reading is waiting; None: those of the run."""
        ...

    def read(self, key: str, start: int, stop: int) -> Bytes:
        """Bytes start to stop, all of them or OSError."""
        ...

    def tail(self, key: str, nbytes: int) -> Bytes | None:
        """The last bytes; None where there is no such file."""
        ...

    def whole(self, key: str) -> Bytes | None:
        """All bytes; None where there is no such file."""
        ...

    def close(self) -> None:
        """Give up connections and open files; a later read opens anew."""
        ...


def changed(name: str) -> InputError:
    """Word the error for what is not as it was when it was opened: two versions must not mix."""
    return InputError(
        f"{name} has changed since it was opened, and must stay as it is while it is read: run "
        "again from the beginning once it is complete"
    )


class _Handle:
    """A file descriptor that closes when its last reader lets go of it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _differ(then: os.stat_result, now: os.stat_result) -> bool:
    """Whether a file is another, or was written to: what is known of its layout is then wrong."""
    return not os.path.samestat(then, now) or _version(then) != _version(now)


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


class Opened:
    """Files as they were when a source was opened, to be compared with what is there later.

    Parameters
    ----------
    name
        What messages call the source.
    """

    def __init__(self, name: str) -> None:
        self.name, self.since = name, time.time_ns()
        self.tags: dict[str, str] = {}  # versions of files on a server that are read in parts
        self._files: dict[Path, tuple[int, int]] = {}

    def note(self, files: Iterable[Path]) -> None:
        """Remember those of the files that are there, as they are the first time.

        The first time all of them tell the time, folders too: the clock of the disk's server may
        be ahead of ours.
        """
        first = not self._files
        for file in files:
            try:
                found = file.stat()
            except OSError:
                continue
            if first:
                self.since = max(self.since, found.st_ctime_ns)
            if not stat.S_ISDIR(found.st_mode):
                self._files.setdefault(file.absolute(), _version(found))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"host": gethostname()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        here = state.pop("host") == gethostname()
        self.__dict__.update(state)
        if here:
            return
        # Another machine may have a copy of its own: by its sizes it is the same.
        others, self._files = self._files, {}
        self.note(path.parent for path in others)
        for file, version in others.items():
            with suppress(OSError):
                found = file.stat()
                self.since = max(self.since, found.st_ctime_ns)
                if found.st_size == version[0]:
                    self._files[file] = _version(found)
            self._files.setdefault(file, version)

    def require_same(self) -> None:
        """Refuse that one of the files noted is gone, or is another.

        Raises
        ------
        InputError
            With the file.
        """
        for file, version in self._files.items():
            try:
                now = _version(file.stat())
            except OSError as error:
                raise InputError(
                    f"{file} cannot be found any more ({error.strerror}), and {self.name} must "
                    "stay as it is while it is read: restore it, and run again from the beginning"
                ) from error
            if now != version:
                raise changed(str(file))

    def is_later(self, found: os.stat_result) -> bool:
        """Whether a file was written, or a folder's list changed, after the opening.

        By both times of a file: one that was unpacked may be of the future, and one whose rights
        were changed has another second time, but neither was written to.
        """
        return min(found.st_mtime_ns, found.st_ctime_ns) > self.since


class LocalFiles:
    """Files below a folder, or one file, by pread.

    Parameters
    ----------
    root
        The folder or file.
    found
        What is known of the one file: it is refused where another has taken its place.
    opened
        When the folder was opened: files are refused that were written, or went, later.
    """

    gap = 64 * 1024  # a read costs about as much as 64 KB
    threads = None

    def __init__(
        self,
        root: str | os.PathLike[str],
        found: os.stat_result | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.name, self._found, self._opened = str(root), found, opened
        self._root = Path(root).absolute()
        self._handles: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_handles", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _handles=OrderedDict(), _lock=Lock())

    def _open(self, key: str) -> _Handle:
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                handle = _Handle(os.fspath(self._root / key))
                self._require_same(key, os.fstat(handle.fd))
                self._handles[key] = handle
                if len(self._handles) > _OPEN:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(key)
            return handle

    def _named(self, key: str) -> str:
        return f"{self.name}/{key}" if key else self.name

    def _require_same(self, key: str, now: os.stat_result) -> None:
        differs = self._found is not None and _differ(self._found, now)
        if differs or (self._opened is not None and self._opened.is_later(now)):
            raise changed(self._named(key))

    def require_same(self, key: str) -> None:
        """Refuse a file that was written to since the opening, or went since.

        Raises
        ------
        InputError
            Where it was. What was never there passes: a writer leaves out chunks of zeros alone.
        """
        file = self._root / key
        while True:
            try:
                now = file.stat()
                break
            except OSError:  # the folder that it went from has changed
                if key.endswith(METADATA):
                    return  # zarr looks for those of other versions; ours were noted
                if file == self._root:
                    raise InputError(
                        f"{self.name} cannot be found any more: restore it, and run again from "
                        "the beginning"
                    ) from None
                file = file.parent
        if file == self._root / key:
            self._require_same(key, now)
        elif self._opened is not None and self._opened.is_later(now):
            raise InputError(
                f"{self._named(key)} is missing, and {file} has changed since it was opened: "
                "restore the file, and run again from the beginning"
            )

    def read(self, key: str, start: int, stop: int) -> Bytes:
        """Bytes start to stop, all of them or OSError."""
        handle = self._open(key)
        size = os.fstat(handle.fd).st_size
        if not 0 <= start <= stop <= size:  # before memory is taken for what is not there
            name = key or self._root.name
            raise OSError(f"{name} has {size} bytes, and those from {start} to {stop} are due")
        return self._pread(handle, key, start, stop)

    def _pread(self, handle: _Handle, key: str, start: int, stop: int) -> Bytes:
        out = np.empty(stop - start, np.uint8)
        view, offset = out.data, start
        while len(view):
            done = os.preadv(handle.fd, [view], offset)
            if done == 0:
                raise OSError(f"{key or self._root.name} ends at byte {offset}, before {stop}")
            view, offset = view[done:], offset + done
        self._require_same(key, os.fstat(handle.fd))  # after: it may change while it is read
        return out

    def tail(self, key: str, nbytes: int) -> Bytes | None:
        """The last bytes; None where there is no such file."""
        try:
            handle = self._open(key)
        except FileNotFoundError:
            self.require_same(key)
            return None
        size = os.fstat(handle.fd).st_size
        return self._pread(handle, key, max(0, size - nbytes), size)

    def whole(self, key: str) -> Bytes | None:
        """All bytes; None where there is no such file."""
        try:
            handle = _Handle(os.fspath(self._root / key))  # read once: not kept open
        except FileNotFoundError:
            self.require_same(key)
            return None
        return self._pread(handle, key, 0, os.fstat(handle.fd).st_size)

    def close(self) -> None:
        """Close the files; a later read opens them anew."""
        with self._lock:
            self._handles.clear()
