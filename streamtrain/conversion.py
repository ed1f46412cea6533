"""Cells enter; a checked AnnData in a partial folder leaves, by stages that can be gone on with."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.atomic import fsync_tree
from streamtrain.budget import BLOCK, READING_RESERVE, format_bytes, release_freed
from streamtrain.errors import InputError
from streamtrain.named import PER_CELL, NamedCells
from streamtrain.partial import GrowingFile, Partial, State
from streamtrain.progress import counted
from streamtrain.sampling import permutation
from streamtrain.sharded import Named, ShardedAnnData, create, digest
from streamtrain.shuffle import CELL_BYTES, MOST, Buckets, index_type
from streamtrain.sources import open_source
from streamtrain.sources.base import Source
from streamtrain.sources.damage import READ_ERRORS
from streamtrain.streaming import ahead

logger = logging.getLogger(__name__)

_EVERY = 60.0  # seconds from one commit to the next; what a kill loses
_SLICE = 1 << 20  # cells whose places are held at a time beside the permutation
_LEAST = 32 * 10**6  # bytes of cells that must fit in the budget beside what is fixed
_VERIFIED = 16 * 10**6  # bytes of stored cells read back at a time
# Bytes of a text of its own in a column of obs while it is written: 207 of 10 letters.
_TEXT = 240
_NAME, _FILES = 24, 36  # bytes of a name on disk, about, and of a cell's obs, offset, sum, lengths


class Conversion:
    """The stages of one conversion, each of which goes on from what the journal holds.

    Parameters
    ----------
    cells
        What to convert.
    partial
        The folder to do it in.
    settings
        The arguments of `convert`.
    room
        Bytes for cells.
    pool
        Threads that encode.
    """

    def __init__(
        self, cells: NamedCells, partial: Partial, settings: State, room: int, pool: Executor
    ) -> None:
        self.cells, self.partial, self.settings, self.pool = cells, partial, settings, pool
        self.room, self.block, self.window = room, block_bytes(room), room // 3
        self.dtype = cells.source.dtype
        self._committed = time.monotonic()
        if settings["shuffle"]:
            self.buckets_folder = partial.beside(settings["scratch"])
        self._order: NDArray[Any] | None = None

    def _due(self) -> bool:
        return time.monotonic() - self._committed >= _EVERY

    def _commit(self, **state: Any) -> None:
        self.partial.commit(**state)
        self._committed = time.monotonic()

    def lay_out(self) -> None:
        """Check that all will fit, and write obs and var."""
        if self.partial.state and self._intact():
            logger.info("going on with what stands in %s", self.partial.folder)
            return
        cells, settings, source = self.cells, self.settings, self.cells.source
        n_buckets = self._require_space()
        self._require_room_for_text()
        left_out: list[str] = getattr(source, "left_out", list)()
        if left_out:
            logger.warning("%s: left out of the output: %s", source.name, ", ".join(left_out))
        if settings["shuffle"]:
            self._order = permutation(cells.n_obs, settings["random_state"])
        columns = ((c, cells.obs(c, self._order)) for c in source.obs_columns())
        how = {"shuffle": settings["shuffle"], "generator": "streamtrain.convert"}
        if settings["shuffle"]:
            how["random_state"] = settings["random_state"]
        create(
            self.partial.store, source.name, columns, _var(source), {"convert": how}, cells.n_obs,
            {"data": self.dtype, "indices": np.dtype(settings["index_dtype"])},
            settings["compression"], settings["chunk_size"], settings["shard_size"],
            getattr(source, "index_name", None),
        )  # fmt: skip
        fsync_tree(self.partial.store)
        self._commit(n_buckets=n_buckets, swept=0, written={}, columns=digest(self.partial.store))

    def _require_room_for_text(self) -> None:
        """Refuse columns of obs with a text for each cell that would not fit in memory."""
        source = self.cells.source
        own_text: Any = getattr(source, "own_text", None)
        need = _TEXT * source.n_obs
        if own_text is None or need <= self.room:
            return
        for column in source.obs_columns():
            if own_text(column):
                more = need - self.room
                raise InputError(
                    f"obs column {column!r} of {source.name} holds a text of its own for each of "
                    f"{source.n_obs:,} cells, which takes about {format_bytes(need)} while it is "
                    f"written: allow {format_bytes(more)} more (memory, --memory), or drop the "
                    "column"
                )

    def _require_space(self) -> int:
        """Refuse to begin what will not fit; returns into how many buckets the cells go."""
        n, settings = self.cells.n_obs, self.settings
        entries, encoded = self.cells.sizes(settings["compression"], settings["index_dtype"])
        entry = self.dtype.itemsize + index_type(self.cells.source.n_vars).itemsize
        moved = n * (entries * entry + CELL_BYTES + _NAME) if settings["shuffle"] else 0
        final = n * (encoded + _FILES + _NAME)
        what = f"{n:,} cells of {entries:,.0f} entries"
        if settings["scratch"] is not None and moved:
            require(self.buckets_folder, moved, f"shuffling {what}", "scratch=FOLDER (--scratch)")
            moved = 0
        remedy = "out (--out)"
        if moved:
            what = f"{what}, while they are shuffled,"
            remedy += ", or shuffle on another by scratch=FOLDER (--scratch)"
        require(self.partial.folder, final + moved, what, remedy)
        return int(np.clip(-(-n * (entries * entry + PER_CELL) // self.window), 1, MOST))

    def _intact(self) -> bool:
        """Whether all files that are still needed are there; else all is begun anew."""
        written, folder = self.partial.state["written"], self.partial.folder
        if not all(_holds(folder / name, size) for name, size in written.get("files", {}).items()):
            logger.warning("files in %s are missing or cut short: it is begun anew", folder)
        elif self.settings["shuffle"] and not self._buckets().intact(written.get("n_obs", 0)):
            logger.warning("files in %s are missing: it is begun anew", self.buckets_folder)
        else:
            return True
        self.partial.clear()
        return False

    def _buckets(self) -> Buckets:
        state, source = self.partial.state, self.cells.source
        return Buckets(
            self.buckets_folder, self.cells.n_obs, source.n_vars, self.dtype, state["n_buckets"],
            state.get("sizes"),
        )  # fmt: skip

    def places(self) -> NDArray[Any]:
        """Where each cell goes: the inverse of the permutation, which is drawn again if need be."""
        n_obs, order = self.cells.n_obs, self._order
        if order is None:
            order = permutation(n_obs, self.settings["random_state"])
        self._order = None
        place = np.empty_like(order)
        for start in range(0, n_obs, _SLICE):
            part = order[start : start + _SLICE]
            place[part] = np.arange(start, start + len(part))
        return place

    def scatter(self) -> None:
        """Sweep the source once, and append each cell to the bucket of its place."""
        cells, start = self.cells, self.partial.state["swept"]
        if start == cells.n_obs:
            return
        place = self.places()
        buckets = self._buckets()
        for position, block in cells.stream(start, self.block, "Shuffling"):
            start = position + block.rows.n_obs
            buckets.append(block, place[position:start].astype(np.int64))
            if start == cells.n_obs or self._due():
                buckets.sync()
                self._commit(swept=start, sizes=buckets.sizes)

    def _blocks(self, start: int) -> Iterator[tuple[int, Named]]:
        """Cells in the order to be written, from `start` on."""
        if not self.settings["shuffle"]:
            return self.cells.stream(start, self.block, "Converting")
        windows = ahead(_numbered(self._buckets().windows(start, self.window), start))
        return counted(windows, "Writing", self.cells.n_obs, show=self.cells.progress)

    def write(self) -> None:
        """Append the cells to the store in their order, and check it."""
        cells, state = self.cells, self.partial.state["written"]
        store = ShardedAnnData(
            self.partial.folder, self.partial.store, self.settings["compression"], self.pool,
            2 * cells.threads.n, state,
        )  # fmt: skip
        with closing(store):
            if store.n_obs < cells.n_obs:
                for _, block in self._blocks(store.n_obs):
                    store.append(block)
                    if store.n_obs == cells.n_obs or self._due():
                        self._commit(written=store.commit())
                        if self.settings["shuffle"]:
                            self._buckets().delete_before(store.n_obs)
            store.finish()
            release_freed()
            start, sums = time.monotonic(), store.files["sums"]
            self.verify(lambda found: first_different(found, 0, sums, self.room), start)

    def verify(self, differing: Callable[[NamedCells], str | None], start: float) -> None:
        """Compare what was written with what was read from the source.

        Parameters
        ----------
        differing
            Words the first of the written cells that is different.
        start
            When this began, by `time.monotonic`.

        Raises
        ------
        OSError
            If anything is different; then nothing is kept.
        """
        n_obs, cause = self.cells.n_obs, None
        try:
            different = self._difference(differing)
        except READ_ERRORS as error:
            different, cause = f"it cannot be read: {error}", error
        if different is not None:
            self.partial.discard()
            raise OSError(
                f"what was written reads back as something else ({different}): the disk or the "
                "memory of this machine may be faulty; nothing was kept"
            ) from cause
        seconds = time.monotonic() - start
        logger.info("%s cells read back and found the same in %.1f s", f"{n_obs:,}", seconds)

    def _difference(self, differing: Callable[[NamedCells], str | None]) -> str | None:
        """Name what differs.

        The columns of obs and var were compared when they were written: it is enough that their
        files are still the same.
        """
        if digest(self.partial.store) != self.partial.state["columns"]:
            return "a column of obs or var is different"
        threads = self.cells.threads
        with closing(open_source(self.partial.store, threads=threads)) as written:
            found = NamedCells(written, None, threads, self.cells.progress)
            source = self.cells.source
            if found.n_obs != self.cells.n_obs or list(written.genes) != list(source.genes):
                return "its cells or genes are different"
            return differing(found)


def first_different(
    found: NamedCells, before: int, sums: GrowingFile | NDArray[np.uint64], room: int
) -> str | None:
    """Word the first cell that has another checksum than `sums` hold; `before` come before these.

    `room` is the bytes for cells.
    """
    # zarr leaves the chunks that it decoded to the garbage collector: 50 MB took 350.
    nbytes = min(_VERIFIED, block_bytes(room) // 2)
    for position, block in found.stream(0, nbytes, "Checking"):
        expected = sums[position : position + block.rows.n_obs]
        differ = np.flatnonzero(expected != block.sums)
        if len(differ):
            return f"cell {before + position + int(differ[0])} is different"
    return None


def block_bytes(room: int) -> int:
    """Bytes of cells that are read at a time."""
    return min(BLOCK, room // 6)


def room_for(budget: int, n_obs: int, shuffle: bool) -> int:
    """Bytes for cells beside what is fixed."""
    fixed = READING_RESERVE + (8 * n_obs if shuffle else 0)
    if budget < fixed + _LEAST:
        raise InputError(
            f"memory={format_bytes(budget)} is too small for {n_obs:,} cells: at least "
            f"{format_bytes(fixed + _LEAST)} are needed: raise it (--memory)"
        )
    return budget - fixed


def _numbered(windows: Iterator[Named], start: int) -> Iterator[tuple[int, Named]]:
    for window in windows:
        yield start, window
        start += window.rows.n_obs


def require(folder: Path, nbytes: float, what: str, remedy: str) -> None:
    """Refuse to begin what will not fit.

    Raises
    ------
    InputError
        If the disk of `folder` has less than `nbytes` free.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise InputError(
            f"{what} takes about {format_bytes(nbytes)}, and {folder.parent} has "
            f"{format_bytes(free)} free: choose a larger disk by {remedy}"
        )


def _holds(path: Path, nbytes: int) -> bool:
    return path.is_file() and path.stat().st_size >= nbytes


def _var(source: Source) -> pd.DataFrame:
    """Columns of var, where the source has such."""
    columns = getattr(source, "var", None)
    return pd.DataFrame(index=source.genes) if columns is None else columns()
