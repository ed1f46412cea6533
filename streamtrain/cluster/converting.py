"""A conversion that is laid out enters; its cells, written and checked by workers, leave."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import release_freed
from streamtrain.cluster.conversion_tasks import (
    RUN,
    Job,
    Part,
    Range,
    Written,
    check_cells,
    count_entries,
    scatter_cells,
    write_shards,
)
from streamtrain.cluster.workers import Workers
from streamtrain.conversion import Conversion
from streamtrain.errors import InputError
from streamtrain.partial import GrowingFile
from streamtrain.progress import counted
from streamtrain.sharded import CellFiles
from streamtrain.shuffle import MOST

logger = logging.getLogger(__name__)

_LEAST, _TASKS = 4096, 2048  # cells of a task at least, and tasks of a stage at most
_ENTRIES = 1 << 23  # that a task writes at least, in whole shards
_BUCKET = 8192  # places of a bucket at least: about those of a shard, so that little else is read
_SLICE = 1 << 20  # cells whose lengths are held at a time


def distribute(
    conversion: Conversion, client: Any, memory: int | str | None, n_jobs: int | None
) -> None:
    """Have workers write the cells of a conversion that is laid out, and check them.

    In storage order, the offsets of the source tell which cells a shard holds, or one reading more
    where they do not. Shuffled, each range of cells becomes a file (a run) of its cells by place.
    Each task then writes some shards, from all cells that have entries there. What a task writes
    lies aside until its result is taken, so that one that runs twice, or is left from an earlier
    run, does no harm.

    Parameters
    ----------
    client
        A dask.distributed Client.
    memory, n_jobs
        Of each worker, as in `convert`.

    Raises
    ------
    InputError
        If a worker cannot read the source or does not find the partial output.
    OSError
        If what was written reads back as something else.
    """
    with Workers(client) as workers:
        stages, name = _Stages(conversion, workers, memory, n_jobs), conversion.cells.source.name
        if conversion.settings["shuffle"]:
            done = stages.write(stages.scatter())
        else:
            done = stages.write(stages.lengths(by_reading=False))
            if not done:
                logger.info("%s: cells repeat genes, and are read to count their entries", name)
                done = stages.write(stages.lengths(by_reading=True))
        if not done:
            raise InputError(f"{name} was changed while it was read: run again once it is complete")
        release_freed()
        stages.check()


class _Stages:
    """The stages of a conversion that workers do."""

    def __init__(
        self, conversion: Conversion, workers: Workers, memory: int | str | None, n_jobs: int | None
    ) -> None:
        self.conversion, self.workers = conversion, workers
        self.folder, self.store = conversion.partial.folder, conversion.partial.store
        cells, settings = conversion.cells, conversion.settings
        step = max(_LEAST, -(-cells.n_obs // _TASKS))
        self.ranges = [(a, min(a + step, cells.n_obs)) for a in range(0, cells.n_obs, step)]
        self.places: NDArray[Any] = np.empty(0, np.uint32)
        if cells.rows is not None:
            self._keep("rows", cells.rows)
        if settings["shuffle"]:
            self.places = conversion.places()
            self._keep("places", self.places)
        job = Job(
            run=workers.run, source=cells.source, folder=self.folder, store=self.store,
            runs=conversion.buckets_folder if settings["shuffle"] else None,
            n_runs=len(self.ranges), n_obs=cells.n_obs,
            n_buckets=min(max(1, cells.n_obs // _BUCKET), MOST), selected=cells.rows is not None,
            place=self.places.dtype.str, codec=settings["compression"], memory=memory,
            n_jobs=n_jobs,
        )  # fmt: skip
        self.job = workers.share(job)

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        """Write what the workers shall read of each cell."""
        with closing(GrowingFile(self.folder / name, values.dtype, 0)) as file:
            file.append(values)
            file.sync()

    def _each(
        self, stage: str, name: str, task: Callable[..., Any], given: tuple[Any, ...],
        items: list[Any], starts: list[int],
    ) -> Iterator[tuple[Any, Any]]:  # fmt: skip
        """Have a task done for each item; yield them with what it gave, in order.

        `starts` are the cells that each begins with, of which progress is shown.
        """
        submit = partial(self.workers.submit, name, task, self.job, *given, alone=True)
        found = self.workers.in_order(partial(submit, item) for item in items)
        pairs = zip(starts, zip(items, found, strict=True), strict=True)
        cells = self.conversion.cells
        for _, pair in counted(pairs, stage, cells.n_obs, show=cells.progress):
            yield pair

    def _of_ranges(
        self, stage: str, name: str, task: Callable[..., Any], *given: Any
    ) -> Iterator[tuple[Range, Any]]:
        starts = [start for start, _ in self.ranges]
        return self._each(stage, name, task, given, self.ranges, starts)

    def lengths(self, *, by_reading: bool) -> Iterator[NDArray[np.uint32]]:
        """Entries of each cell, piece by piece."""
        results = self._of_ranges("Counting", "count-entries", count_entries, by_reading)
        return (found for _, found in results)

    def scatter(self) -> Iterator[NDArray[np.uint32]]:
        """Make the runs; the same by place."""
        runs, lengths = self.conversion.buckets_folder, np.empty(len(self.places), np.uint32)
        results = self._of_ranges("Shuffling", "scatter-cells", scatter_cells, runs)
        for i, ((start, stop), (name, found)) in enumerate(results):
            (runs / name).rename(runs / RUN.format(i))
            lengths[self.places[start:stop]] = found
        yield lengths

    def write(self, lengths: Iterator[NDArray[np.uint32]]) -> bool:
        """Write all but the columns of obs and var; False where cells have fewer entries."""
        for name in ("data", "indices"):  # what was written by other lengths
            shutil.rmtree(self.store / "X" / name / "c", ignore_errors=True)
        with closing(CellFiles(self.folder, self.store, {})) as cells:
            for piece in lengths:
                cells.files["lengths"].append(piece)
            arrays = {name: cells.root[f"X/{name}"] for name in ("data", "indices")}
            nnz, parts = cut_shards(cells.files["lengths"], arrays["data"].shards[0])
            stage = "Writing" if self.conversion.settings["shuffle"] else "Converting"
            starts = [part.own for part in parts]
            for part, found in self._each(stage, "write-shards", write_shards, (), parts, starts):
                if found is None:
                    return False
                self._take(cells, arrays, part, found)
            cells.finish_cells(nnz)
            cells.files["sums"].sync()
        return True

    def _take(self, cells: CellFiles, arrays: dict[str, Any], part: Part, found: Written) -> None:
        """Put shards in their place, and keep the names and checksums that come with them."""
        folder = self.folder / found.folder
        for name, array in arrays.items():
            for shard in range(part.shard, part.shard + -(-part.entries // array.shards[0])):
                key = array.metadata.encode_chunk_key((shard,))
                target = Path(self.store, array.path, key)
                target.parent.mkdir(exist_ok=True)
                (folder / name / key).rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        cells.append_names(found.text, found.lengths, found.sums)

    def check(self) -> None:
        """Read all back."""
        start = time.monotonic()
        results = self._of_ranges("Checking", "check-cells", check_cells)
        different = next((found for _, found in results if found is not None), None)
        self.conversion.verify(lambda _: different, start)


def cut_shards(lengths: GrowingFile, shard: int) -> tuple[int, list[Part]]:
    """Cut the entries of cells into parts of whole shards.

    Parameters
    ----------
    lengths
        Entries of each cell.
    shard
        Entries of a shard.

    Returns
    -------
    nnz, parts
        Number of entries, and one part at least.
    """
    nnz = sum(int(offsets[-1] - offsets[0]) for _, offsets in _offsets(lengths))
    size = shard * max(-(-_ENTRIES // shard), -(-nnz // (shard * _TASKS)))
    # Of each edge its entry, the last cell that begins before, where that begins and ends.
    edges = [(0, -1, 0, 0)]
    for start, offsets in _offsets(lengths):
        entries = np.arange(size * (offsets[0] // size + 1), min(offsets[-1] + 1, nnz), size)
        cells = np.searchsorted(offsets[:-1], entries) - 1
        columns = (entries, start + cells, offsets[cells], offsets[cells + 1])
        edges += zip(*(column.tolist() for column in columns), strict=True)
    edges.append((nnz, lengths.length - 1, nnz, nnz))
    return nnz, [
        Part(low // shard, max(cell, 0), last + 1, cell + 1, low - begin, high - low, end - begin)
        for (low, cell, begin, _), (high, last, _, end) in pairwise(edges)
    ]


def _offsets(lengths: GrowingFile) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """First cell of each slice, and where its cells begin and the last one ends."""
    end = 0
    for start in range(0, lengths.length, _SLICE):
        ends = end + np.cumsum(lengths[start : start + _SLICE], dtype=np.int64)
        yield start, np.concatenate([[end], ends])
        end = int(ends[-1])
