"""Cells of a run that may outlive its process in; files of its folder, checked, out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from streamtrain.atomic import fsync
from streamtrain.errors import InputError
from streamtrain.journal import CELLS
from streamtrain.parts import Opened, Part, Written, files_of, types_of
from streamtrain.rows import Rows
from streamtrain.scratch import Folder
from streamtrain.spill import Spill
from streamtrain.threads import Threads

_PIECE = 1 << 24  # bytes read at a time


@dataclass
class Kept:
    """Cells of a run, appended to files; `under_way` says how far, once all of it is on the disk.

    Parameters
    ----------
    folder
        Of the run.
    n_vars, dtype
        Genes, and the type of the values.
    before
        What `under_way` said, to go on from; None to begin.
    """

    folder: Path
    n_vars: int
    dtype: Any
    before: list[Any] | None = None

    def __post_init__(self) -> None:
        self._path = self.folder / CELLS
        self._n_obs, self._entries, self._sums = self.before or [0, 0, [0, 0, 0]]
        self._files = Written(
            self._path, self.n_vars, self.dtype, "", n_obs=self._n_obs, entries=self._entries
        )

    def append(self, rows: Rows) -> None:
        """Write cells after those already there."""
        try:
            part = self._files.append([rows])
        except InputError as error:
            raise InputError(
                f"the disk of checkpoint={str(self.folder)!r} is full: free some space there and "
                "resume, or choose a folder on a larger disk"
            ) from error
        self._n_obs, self._entries = part.first + part.n_obs, part.start + part.entries
        arrays = rows.data, rows.indices, np.diff(rows.indptr)
        kinds = types_of(self.n_vars, self.dtype)
        self._sums = [
            google_crc32c.extend(total, np.ascontiguousarray(array, kind).tobytes())
            for total, array, kind in zip(self._sums, arrays, kinds, strict=True)
        ]

    def under_way(self) -> list[Any]:
        """How many cells and entries, and the checksums of the files."""
        if self._n_obs:
            for file in files_of(self._path):
                fsync(file)
        return [self._n_obs, self._entries, self._sums]

    def spill(self, scratch: Folder, threads: Threads) -> Spill:
        """The cells, to gather from.

        Raises
        ------
        InputError
            Where they are not what was written.
        """
        files = Opened(self.n_vars, self.dtype)
        if not self._n_obs:
            return files.spill([], scratch, threads)
        kinds = types_of(self.n_vars, self.dtype)
        counts = self._entries, self._entries, self._n_obs
        written = zip(files_of(self._path), kinds, counts, self._sums, strict=True)
        for file, kind, n, total in written:
            if _checksum(file, n * np.dtype(kind).itemsize) != total:
                raise InputError(
                    f"{file} is not what was written there (its checksum is off): delete the "
                    f"folder {str(self.folder)!r}, and train from the beginning"
                )
        part = Part(self._path, 0, self._n_obs, 0, self._entries, "")
        return files.spill([part], scratch, threads)


def _checksum(file: Path, nbytes: int) -> int | None:
    """CRC-32C of the first bytes of a file; None where it has fewer, or is gone."""
    total = 0
    try:
        with file.open("rb") as opened:
            while nbytes:
                part = opened.read(min(_PIECE, nbytes))
                if not part:
                    return None
                total = google_crc32c.extend(total, part)
                nbytes -= len(part)
    except OSError:
        return None
    return total
