"""A file on a server enters; one that libraries can seek in leaves: h5py reads metadata so."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from streamtrain.decode.files import Bytes
from streamtrain.decode.remote import RemoteFiles

_BLOCK = 1 << 16  # bytes of a file read at least: as quick as fewer, a request takes 10 to 100 ms
_AHEAD = 64  # blocks read at once where reads follow each other: 4 MB
_CACHE = 256  # blocks kept: 16 MB


class RemoteFile(io.RawIOBase):
    """A file on a server for libraries that want one to seek in; blocks read last are kept.

    Parameters
    ----------
    files
        The file, under the name "".
    size
        Its bytes.
    """

    def __init__(self, files: RemoteFiles, size: int) -> None:
        self.files, self._size, self._at = files, size, 0
        self._blocks: OrderedDict[int, Bytes] = OrderedDict()
        self._next, self._ahead = -1, 1  # block after the last that was fetched, and how many
        _opened[repr(self)] = self

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the file goes."""
        out = np.frombuffer(buffer, np.uint8)
        n = max(0, min(len(out), self._size - self._at))
        done = 0
        while done < n:
            i, offset = divmod(self._at + done, _BLOCK)
            part = self._block(i)[offset : offset + n - done]
            out[done : done + len(part)] = part
            done += len(part)
        self._at += n
        return n

    def _block(self, i: int) -> Bytes:
        if i in self._blocks:
            self._blocks.move_to_end(i)
            return self._blocks[i]
        # Nodes of an index lie all over the file, columns in one piece: each should cost few bytes.
        self._ahead = min(2 * self._ahead, _AHEAD) if i == self._next else 1
        stop = min((i + self._ahead) * _BLOCK, self._size)
        raw = self.files.read("", i * _BLOCK, stop)
        for j in range(-(-len(raw) // _BLOCK)):
            # A copy: a view would keep all that came with it.
            self._blocks[i + j] = raw[j * _BLOCK : (j + 1) * _BLOCK].copy()
        self._next = i + self._ahead
        while len(self._blocks) > _CACHE:
            self._blocks.popitem(last=False)
        return self._blocks[i]


_opened: WeakValueDictionary[str, RemoteFile] = WeakValueDictionary()


def remote_file(name: str) -> RemoteFile | None:
    """Find the open file that h5py calls `name`; it does not give its file object back."""
    return _opened.get(name)
