"""Planned cells on local scratch: appended once in storage order, gathered in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import csr
from streamtrain.rows import Rows
from streamtrain.scaling import places
from streamtrain.scratch import Folder, ScratchArray

# Cells closer than this on scratch are fetched by one read: a read costs about as much as 64 KB.
_GAP = 64 * 1024
_SELECT = 32 * 10**6  # bytes of cells read at a time to select genes
_READ = 2**20  # entries that one read of a dense stretch fetches, about


class Spill:
    """A flat file of gene positions and one of values, and where each cell starts.

    The atlas is decompressed once, whatever the number of epochs; from then on the operating
    system's page cache decides what stays in memory, so the process itself holds only the window
    it gathers. Gene positions take two bytes where the genes allow.

    Parameters
    ----------
    n_vars
        Number of genes.
    dtype
        Of the values.
    scratch
        Folder on a local disk; the system's temporary folder if None.
    """

    def __init__(self, n_vars: int, dtype: Any, scratch: Folder) -> None:
        self.n_vars, self._scratch = n_vars, scratch
        types = (dtype, np.uint16 if n_vars <= 2**16 else np.int32)
        self._files = [ScratchArray(scratch, t) for t in types]
        self._lengths: list[NDArray[np.uint32]] = []
        self._offsets = np.zeros(1, np.int64)

    @property
    def n_obs(self) -> int:
        """Cells on scratch, once finished."""
        return len(self._offsets) - 1

    @property
    def entry_bytes(self) -> int:
        """Bytes of one stored entry."""
        return sum(f.dtype.itemsize for f in self._files)

    @property
    def nbytes(self) -> int:
        """Bytes on scratch."""
        return sum(f.nbytes for f in self._files)

    def append(self, rows: Rows) -> None:
        """Write cells after those already there."""
        self._lengths.append(np.diff(rows.indptr).astype(np.uint32))
        for file, values in zip(self._files, (rows.data, rows.indices), strict=True):
            file.append(values)

    def finish(self) -> None:
        """End the writing: cells can be gathered from now on."""
        lengths = np.concatenate([np.zeros(1, np.uint32), *self._lengths])
        self._lengths.clear()
        self._offsets = np.cumsum(lengths, dtype=np.int64)

    def entries(self, cells: NDArray[np.int64]) -> int:
        """Stored entries of `cells`."""
        return int((self._offsets[cells + 1] - self._offsets[cells]).sum())

    def gather(self, cells: NDArray[np.int64]) -> Rows:
        """Read `cells`, numbered as appended, in any order, repeats allowed; in file order."""
        indptr = csr.take_indptr(self._offsets, cells)
        out = [np.empty(indptr[-1], f.dtype) for f in self._files]
        order = np.argsort(cells, kind="stable")
        starts, stops = self._offsets[cells[order]], self._offsets[cells[order] + 1]
        gap = _GAP // self.entry_bytes
        cuts = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
        for run in np.split(np.arange(len(order)), cuts) if len(order) else ():
            span = int(stops[run[-1]] - starts[run[0]])
            for part in np.array_split(run, min(len(run), 1 + span // _READ)):
                self._place(order[part], starts[part], stops[part], indptr, out)
        return Rows(out[0], out[1], indptr, self.n_vars)

    def _place(
        self,
        places: NDArray[np.int64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        indptr: NDArray[np.int64],
        out: list[NDArray[Any]],
    ) -> None:
        """Read one stretch of both files and copy its cells to their `places`."""
        lo, hi = int(starts[0]), int(stops[-1])
        for file, values in zip(self._files, out, strict=True):
            raw = file[lo:hi]
            csr.place(raw, starts - lo, stops - lo, places, indptr, values)

    def select(self, genes: NDArray[np.int64]) -> Spill:
        """Write the cells anew with these genes alone, at their places in `genes`."""
        fewer = Spill(len(genes), self._files[0].dtype, self._scratch)
        position = places(genes, self.n_vars)
        step = max(1, int(_SELECT / (self.nbytes / max(1, self.n_obs) + 8)))
        for start in range(0, self.n_obs, step):
            rows = self.gather(np.arange(start, min(start + step, self.n_obs)))
            data, indices = np.empty_like(rows.data), np.empty(len(rows.data), np.int32)
            indptr = csr.select_genes(rows.data, rows.indices, rows.indptr, position, data, indices)
            n = indptr[-1]
            fewer.append(Rows(data[:n], indices[:n], indptr, len(genes)))
        fewer.finish()
        return fewer

    def close(self) -> None:
        """Delete the scratch files."""
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
