"""Planned cells enter in storage order and leave in any order; in memory, or on local scratch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.buffers import empty
from streamtrain.kernels import csr
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.scaling import places
from streamtrain.scratch import Folder, MemoryArray, ScratchArray, ScratchPieces
from streamtrain.threads import Threads, every_cpu

_SELECT = 32 * 10**6  # bytes of cells read at a time to select genes
_COUNTS = np.iinfo(np.uint16).max


class Spill:
    """A flat array of gene positions and one of values, and where each cell starts.

    The atlas is decompressed once, whatever the number of epochs. Cells stay in memory as long as
    they fit in `memory`, else all of them go to scratch, where the operating system's page cache
    decides what stays. Gene positions take two bytes where the genes allow, and so do counts.

    Parameters
    ----------
    n_vars
        Number of genes.
    dtype
        Of the values.
    scratch
        Folder on a local disk; the system's temporary folder if None.
    memory
        Bytes of cells that may be held.
    counts
        Keep the values in two bytes as long as they are whole numbers up to 65,535.
    threads
        They share the gathering; None for all CPUs.
    """

    def __init__(
        self,
        n_vars: int,
        dtype: Any,
        scratch: Folder,
        *,
        memory: float = 0,
        counts: bool = False,
        threads: Threads | None = None,
    ) -> None:
        self.n_vars, self.dtype = n_vars, np.dtype(dtype)
        self._scratch, self._memory, self._threads = scratch, memory, threads or every_cpu()
        self._types = (
            np.dtype(np.uint16) if counts else self.dtype,
            np.dtype(np.uint16 if n_vars <= 2**16 else np.int32),
        )
        # Of one kind; only `MemoryArray`s and `ScratchArray`s grow.
        self._arrays: list[Any] = []
        self._make(in_memory=memory > 0)
        self._lengths: list[NDArray[np.uint32]] = []
        self._offsets = np.zeros(1, np.int64)

    @classmethod
    def of(
        cls,
        arrays: tuple[ScratchPieces, ScratchPieces],
        lengths: NDArray[np.uint32],
        n_vars: int,
        scratch: Folder,
        *,
        threads: Threads | None = None,
    ) -> Spill:
        """A finished one of values and gene positions that stand elsewhere already.

        Parameters
        ----------
        arrays
            The values, and the gene positions; closed with it.
        lengths
            Entries of each cell, shape (n_obs,).
        n_vars, scratch, threads
            As of `Spill`; scratch is for `select`.
        """
        spill = cls(n_vars, arrays[0].dtype, scratch, threads=threads)
        spill.close()
        spill._arrays, spill._lengths = list(arrays), [lengths]
        spill.finish()
        return spill

    def _make(self, *, in_memory: bool) -> None:
        most = int(self._memory) // self.entry_bytes
        make: Any = MemoryArray if in_memory else ScratchArray
        where = most if in_memory else self._scratch
        self._arrays = [make(where, kind) for kind in self._types]

    @property
    def n_obs(self) -> int:
        """Cells kept, once finished."""
        return len(self._offsets) - 1

    @property
    def entry_bytes(self) -> int:
        """Bytes of one stored entry."""
        return sum(kind.itemsize for kind in self._types)

    @property
    def entries(self) -> float:
        """Entries of a cell, on average."""
        return self.nbytes / self.entry_bytes / max(1, self.n_obs)

    @property
    def nbytes(self) -> int:
        """Bytes in memory or on scratch."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.nbytes if self.in_memory else 0

    @property
    def in_memory(self) -> bool:
        """Whether the cells are held in memory."""
        return bool(self._arrays) and isinstance(self._arrays[0], MemoryArray)

    def append(self, rows: Rows) -> None:
        """Write cells after those already there."""
        whole = rows.data.dtype == np.uint16
        if self._types[0] != self.dtype and not (whole or csr.all_counts(rows.data, _COUNTS)):
            self._move((self.dtype, self._types[1]), in_memory=self.in_memory)
        more = len(rows.data) * self.entry_bytes
        if self.in_memory and self.nbytes + more > self._memory:
            self.to_scratch()
        self._lengths.append(np.diff(rows.indptr).astype(np.uint32))
        for array, values in zip(self._arrays, (rows.data, rows.indices), strict=True):
            array.append(values)

    def append_all(self, blocks: Iterable[Rows]) -> None:
        """Write all cells, and finish."""
        for rows in blocks:
            self.append(rows)
        self.finish()

    def to_scratch(self) -> None:
        """Keep no cells in memory."""
        if self.in_memory:
            self._move(self._types, in_memory=False)

    def _move(self, types: tuple[Any, Any], *, in_memory: bool) -> None:
        """Copy what is there into arrays of other types, or out of memory."""
        before, self._types = self._arrays, types
        n = before[0].nbytes // before[0].dtype.itemsize
        self._make(in_memory=in_memory and n * self.entry_bytes <= self._memory)
        step = _SELECT // self.entry_bytes
        for old, new in zip(before, self._arrays, strict=True):
            for start in range(0, n, step):
                new.append(old[start : min(start + step, n)].astype(new.dtype, copy=False))
            old.close()

    def finish(self) -> None:
        """End the writing: cells can be gathered from now on."""
        lengths = np.concatenate([np.zeros(1, np.uint32), *self._lengths])
        self._lengths.clear()
        self._offsets = np.cumsum(lengths, dtype=np.int64)

    def gather(self, cells: NDArray[np.int64], genes: Any = None) -> Rows:
        """Give `cells`, numbered as appended, in any order, repeats allowed.

        Gene positions come as they are kept, or as the type `genes`.
        """
        indptr = csr.take_indptr(self._offsets, cells)
        data = empty(indptr[-1], self.dtype)
        indices = empty(indptr[-1], genes or self._types[1])

        def take(start: int, stop: int) -> None:
            for array, out in zip(self._arrays, (data, indices), strict=True):
                array.take(self._offsets, cells[start:stop], indptr[start : stop + 1], out)

        self._threads.share(len(cells), take)
        return Rows(data, indices, indptr, self.n_vars)

    def select(self, genes: NDArray[np.int64], *, progress: bool = False) -> Spill:
        """Write the cells anew with these genes alone, at their places in `genes`."""
        fewer = Spill(
            len(genes), self.dtype, self._scratch, memory=self._memory * self.in_memory,
            threads=self._threads,
        )  # fmt: skip
        position = places(genes, self.n_vars)
        step = max(1, int(_SELECT / (self.nbytes / max(1, self.n_obs) + 8)))
        parts = range(0, self.n_obs, step)
        rows_of = ((s, self.gather(np.arange(s, min(s + step, self.n_obs)))) for s in parts)
        for _, rows in counted(rows_of, "Selecting genes", self.n_obs, show=progress):
            data, indices = np.empty_like(rows.data), np.empty(len(rows.data), np.int32)
            indptr = csr.select_genes(rows.data, rows.indices, rows.indptr, position, data, indices)
            n = indptr[-1]
            fewer.append(Rows(data[:n], indices[:n], indptr, len(genes)))
        fewer.finish()
        return fewer

    def close(self) -> None:
        """Give memory and scratch back."""
        while self._arrays:
            self._arrays.pop().close()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
