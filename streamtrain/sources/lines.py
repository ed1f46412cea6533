"""Text files by line: a path, gzipped or not, enters; lines, and names kept on scratch, leave."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from isal import igzip
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.errors import InputError, near
from streamtrain.kernels import text as kernel
from streamtrain.scratch import Room
from streamtrain.sources.columns import TEXT_SLICE
from streamtrain.sources.damage import reading

Bytes = NDArray[np.uint8]

BLOCK = 4 << 20  # bytes of text parsed at a time; larger blocks are no faster
SHARE = 10  # a block and what is made of it take at most this many times its bytes
BOM = b"\xef\xbb\xbf"
UTF16 = b"\xff\xfe", b"\xfe\xff"  # its byte order marks
NEWLINE = kernel.NEWLINE


def _binary(path: Path, files: ExitStack) -> tuple[io.RawIOBase | io.BufferedIOBase, io.FileIO]:
    """Open for reading: the bytes of the text, and the file that they come from."""
    raw = files.enter_context(io.FileIO(path))
    if path.suffix.lower() != ".gz":
        return raw, raw
    return files.enter_context(igzip.IGzipFile(fileobj=raw, mode="rb")), raw  # type: ignore[no-untyped-call]


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, whole; a byte order mark is left out.

    Blank lines at the end of the file are left out too.

    Raises
    ------
    InputError
        Where the file is in another encoding, or cannot be read; `what` says what it should hold.
    """
    place = Path(path).expanduser()
    with ExitStack() as files:
        binary, _ = _binary(place, files)
        lines = io.TextIOWrapper(io.BufferedReader(binary), encoding="utf-8-sig")
        with reading(str(path)):
            try:
                blank: list[str] = []
                for line in lines:
                    if not line.strip():
                        blank.append(line.rstrip("\n"))
                        continue
                    yield from blank
                    yield line.rstrip("\n")
                    blank = []
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{what} must be a text file in UTF-8; {str(path)!r}: {error}: convert it"
                ) from error


class LineBlocks:
    """Blocks of whole lines of a file, one at a time in one buffer; a context manager.

    Attributes
    ----------
    text
        The buffer, uint8. It may be written to between `start` and `stop`.
    start, stop
        Where the lines at hand stand in it; the last ends in a newline, and a byte follows.
    number
        Lines of the file before them.
    size, position
        Bytes of the file, and how many were read.
    """

    def __init__(self, path: Path, name: str, memory: int) -> None:
        self.name = name
        self.size = path.stat().st_size
        self.start = self.stop = self.number = 0
        self._most = max(memory // SHARE, 1 << 12)
        self.text: Bytes = np.zeros(min(BLOCK, self._most), np.uint8)
        self._filled = 0  # text[stop:filled] is the beginning of the next line
        self._begins, self._ended = True, False
        self._files = ExitStack()
        self._file, self._raw = _binary(path, self._files)

    @property
    def position(self) -> int:
        """Bytes of the file read, compressed ones where it is."""
        return self._raw.tell()

    def fill(self) -> bool:
        """Read on until there is one more whole line; False at the end of the file.

        Lines that are not yet done stay.

        Raises
        ------
        InputError
            Where the file is damaged, in UTF-16 or without line feeds, or a line does not fit in
            the memory.
        """
        rest = self._filled - self.start
        self.text[:rest] = self.text[self.start : self._filled]
        self.start, self.stop, self._filled = 0, self.stop - self.start, rest
        before = self.stop
        while self.stop == before and not self._ended:
            if self._filled + 2 >= len(self.text):  # a final newline and a byte more must fit
                self._grow()
            with reading(self.name):
                n = self._file.readinto(self.text.data[self._filled : -2])
            if n == 0:
                self._ended = True
                if self._filled > self.stop:
                    self.text[self._filled] = NEWLINE
                    self._filled += 1
                self.stop = self._filled
            else:
                if self._begins and self._filled == 0:
                    self._check_beginning(self.text[:n].tobytes())
                self.stop = kernel.after_last_line(self.text, self.stop, self._filled + n)
                self._filled += n
        if self._begins:
            self._begins = False
            self.start = 3 if self.text[:3].tobytes() == BOM else 0
        return self.stop > before

    def _check_beginning(self, text: bytes) -> None:
        if text.startswith(UTF16):
            raise InputError(
                f"{self.name} must be a text file in UTF-8, and is in UTF-16: convert it"
            )
        if b"\r" in text.split(b"\n", 1)[0].rstrip(b"\r"):
            raise InputError(
                f"{self.name}: lines must end in a line feed (LF or CR LF), and the first ends in "
                "a carriage return (CR) alone: convert the line ends"
            )

    def _grow(self) -> None:
        if len(self.text) >= self._most:
            line = self.number + np.count_nonzero(self.text[: self.stop] == NEWLINE) + 1
            raise InputError(
                f"{self.name}: line {line:,} is longer than "
                f"{format_bytes(len(self.text))}, the most that fits in memory="
                f"{format_bytes(SHARE * self._most)}: raise memory"
            )
        larger = np.zeros(min(2 * len(self.text), self._most), np.uint8)
        larger[: self._filled] = self.text[: self._filled]
        self.text = larger

    def peek(self, count: int = 1) -> list[Bytes]:
        """Copy the next `count` lines that are not blank, or fewer at the end of the file."""
        while True:
            found: list[Bytes] = []
            at = self.start
            while len(found) < count:
                start, at, _ = kernel.next_line(self.text, at, self.stop)
                if at < 0:
                    break
                found.append(self.text[start:at].copy())
            if len(found) == count or not self.fill():
                return found

    def skip(self) -> None:
        """Go past the next line that is not blank, which `peek` gave."""
        _, self.start, n_blank = kernel.next_line(self.text, self.start, self.stop)
        self.number += n_blank + 1

    def done(self, n_lines: int) -> None:
        """Go past all lines at hand, `n_lines` with the blank ones."""
        self.start = self.stop
        self.number += n_lines

    def __enter__(self) -> LineBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


def decode(text: Bytes, ends: NDArray[np.int64], name: str) -> list[str]:
    """Cut UTF-8 text into the names that end at `ends`.

    Raises
    ------
    InputError
        Where it is in another encoding.
    """
    stops = ends.tolist()
    raw = text[: stops[-1] if stops else 0].tobytes()
    try:
        return [raw[a:b].decode() for a, b in zip([0, *stops], stops, strict=False)]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} must be a text file in UTF-8: {error}: convert it") from error


class StoredNames:
    """Names on scratch, the index of a frame without columns.

    Parameters
    ----------
    room
        Where they are kept.
    name
        What messages call the file.
    """

    def __init__(self, room: Room, name: str) -> None:
        self._name = name
        self._text, self._ends = room.array(np.uint8), room.array(np.int64)

    def append(self, text: Bytes, ends: NDArray[np.int64]) -> None:
        """Add the names that end at `ends` in `text`."""
        decode(text, ends, self._name)  # refuse another encoding here rather than in hours
        start = self._text.nbytes
        self._text.append(text[: ends[-1] if len(ends) else 0])
        self._ends.append(ends + start)

    def extend(self, names: Iterable[str]) -> None:
        """Add names one by one."""
        left = iter(names)
        while some := [name.encode() for name in islice(left, TEXT_SLICE)]:
            text = np.frombuffer(b"".join(some), np.uint8)
            self.append(text, np.cumsum([len(name) for name in some]))

    def __len__(self) -> int:
        return self._ends.shape[0]

    def columns(self) -> list[str]:
        """No names: there are no columns."""
        return []

    def column(self, name: str) -> pd.Series[Any]:
        """Refuse: there are no columns."""
        raise InputError(f"{self._name} has no column {name!r}: {near(name, [])}")

    def own_text(self, name: str) -> bool:
        """Refuse: there are no columns."""
        raise InputError(f"{self._name} has no column {name!r}: {near(name, [])}")

    @property
    def index_name(self) -> None:
        """None."""
        return None

    def index(self, start: int, stop: int) -> NDArray[np.object_]:
        """Names start to stop, as str."""
        first = int(self._ends[start - 1 : start][0]) if start else 0
        ends = self._ends[start:stop] - first
        text = self._text[first : first + int(ends[-1]) if len(ends) else first]
        return np.array(decode(text, ends, self._name), dtype=object)
