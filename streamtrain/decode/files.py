"""Names of files in a store enter, ranges of their bytes leave; read from any thread at once."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.threads import Threads

Bytes = NDArray[np.uint8]

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


class _Handle:
    """A file descriptor that closes when its last reader lets go of it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def _differ(then: os.stat_result, now: os.stat_result) -> bool:
    """Whether a file is another, or was written to: what is known of its layout is then wrong."""
    return not os.path.samestat(then, now) or (then.st_size, then.st_mtime_ns) != (
        now.st_size, now.st_mtime_ns,
    )  # fmt: skip


class LocalFiles:
    """Files below a folder, or one file, by pread.

    Parameters
    ----------
    root
        The folder or file.
    found
        What is known of the one file: it is refused where another has taken its place.
    """

    gap = 64 * 1024  # a read costs about as much as 64 KB
    threads = None

    def __init__(self, root: str | os.PathLike[str], found: os.stat_result | None = None) -> None:
        self.name, self._found = str(root), found
        self._root = Path(root).absolute()
        self._handles: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "_root": self._root, "_found": self._found}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _handles=OrderedDict(), _lock=Lock())

    def _open(self, key: str) -> _Handle:
        with self._lock:
            handle = self._handles.get(key)
            if handle is None:
                handle = _Handle(os.fspath(self._root / key))
                now = os.fstat(handle.fd)
                if self._found is not None and _differ(self._found, now):
                    raise OSError(f"{self.name} has changed since it was opened")
                self._handles[key] = handle
                if len(self._handles) > _OPEN:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(key)
            return handle

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
        return out

    def tail(self, key: str, nbytes: int) -> Bytes | None:
        """The last bytes; None where there is no such file."""
        try:
            handle = self._open(key)
        except FileNotFoundError:
            return None
        size = os.fstat(handle.fd).st_size
        return self._pread(handle, key, max(0, size - nbytes), size)

    def whole(self, key: str) -> Bytes | None:
        """All bytes; None where there is no such file."""
        try:
            handle = _Handle(os.fspath(self._root / key))  # read once: not kept open
        except FileNotFoundError:
            return None
        return self._pread(handle, key, 0, os.fstat(handle.fd).st_size)

    def close(self) -> None:
        """Close the files; a later read opens them anew."""
        with self._lock:
            self._handles.clear()
