"""A part of a conversion enters as a task; lengths, a run, shards or what differs leaves."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from streamtrain.budget import release_freed
from streamtrain.cluster.turns import kept, opened, turn
from streamtrain.conversion import block_bytes, first_different, room_for
from streamtrain.named import PER_CELL, NamedCells
from streamtrain.partial import opened as open_descriptor
from streamtrain.partial import read_exactly
from streamtrain.sharded import Named
from streamtrain.shards import ShardWriter
from streamtrain.shuffle import bucket_width, index_type, run_stretches, window, write_run
from streamtrain.sources import Source, open_source
from streamtrain.sources.damage import READ_ERRORS
from streamtrain.streaming import ahead, sweep
from streamtrain.threads import Threads, spans

RUN = "{}.run"
_SLICE = 1 << 20  # cells of the source whose lengths are asked for at once

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a conversion need.

    Attributes
    ----------
    run
        Of `Workers`.
    source
        Where the cells are, as `streamtrain.cluster.workers.check` lets pass.
    folder
        The partial output, on a file system that every worker has. Files in it hold, by cell, the
        row numbers of those selected (rows, int64), where not all are; their places, where they
        are shuffled; and in the end their checksums (sums, uint64).
    store
        The AnnData in it.
    runs, n_runs
        Folder of the runs of a shuffle, or None, and their number.
    n_obs, n_buckets
        Number of cells, and into how many buckets a run parts them.
    selected
        Whether there is a file of rows.
    place
        Type of a place.
    codec
        Of X.
    memory, n_jobs
        Of each worker.
    """

    run: str
    source: Any
    folder: Path
    store: Path
    runs: Path | None
    n_runs: int
    n_obs: int
    n_buckets: int
    selected: bool
    place: str
    codec: str
    memory: int | str | None
    n_jobs: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive shards, and the cells that have entries there.

    Attributes
    ----------
    shard
        The first of them.
    first, stop
        The cells, by their place in the output.
    own
        The first cell that begins here; the one before, if it is there, began in a shard before.
    skip, entries
        Entries of these cells that go to shards before, and that go to these.
    total
        Entries of these cells.
    """

    shard: int
    first: int
    stop: int
    own: int
    skip: int
    entries: int
    total: int


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_shards` wrote.

    Attributes
    ----------
    folder
        Name of the folder in the partial output with the files, as `array/key`.
    text, lengths, sums
        Names of the cells that begin there in UTF-8, one after the other, uint8; and of each cell
        the bytes of the name, int64, and the checksum, uint64.
    """

    folder: str
    text: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    sums: NDArray[np.uint64]


def count_entries(job: Job, by_reading: bool, cells: Range) -> NDArray[np.uint32]:
    """Count the entries of each cell of a range.

    The offsets of the source tell, where a gene that a cell repeats counts each time; or else the
    cells are read.
    """
    with _at_work(job, "count_entries") as (room, threads):
        source, rows = _source(job, threads), _rows(job, cells)
        if not by_reading and (found := _stored_lengths(source, rows)) is not None:
            return found
        blocks = sweep(source, rows, block_bytes(room))
        return np.concatenate([np.diff(block.indptr) for _, block in blocks]).astype(np.uint32)


def scatter_cells(job: Job, runs: Path, cells: Range) -> tuple[str, NDArray[np.uint32]]:
    """Write a range of cells as a run, aside; gives its name and the cells' lengths."""
    with _at_work(job, "scatter_cells") as (room, threads):
        places = _values(job.folder / "places", job.place, cells)
        lengths = np.empty(len(places), np.uint32)

        def blocks() -> Iterator[tuple[Named, NDArray[np.int64]]]:
            for start, block in _cells(job, cells, threads).stream(0, room // 6, ""):
                part = slice(start, start + block.rows.n_obs)
                lengths[part] = np.diff(block.rows.indptr)
                yield block, places[part].astype(np.int64)

        path = runs / secrets.token_hex(8)
        write_run(path, blocks(), job.n_obs, job.source.n_vars, job.n_buckets)
        return path.name, lengths


def write_shards(job: Job, part: Part) -> Written | None:
    """Write the shards of a part, aside; None if the cells have fewer entries than it says."""
    with _at_work(job, "write_shards") as (room, threads):
        folder = job.folder / secrets.token_hex(8)
        names, at = [], 0
        with _writers(job, part.shard, folder, threads) as (data, indices):
            for block in _blocks(job, part, room, threads):
                ours = np.clip(np.array([part.skip, part.skip + part.entries]) - at, 0, None)
                data.append(block.rows.data[slice(*ours)])
                indices.append(block.rows.indices[slice(*ours)])
                names.append((block.text, np.diff(block.ends, prepend=0), block.sums))
                at += len(block.rows.data)
            if at != part.total:
                return None
            data.finish()
            indices.finish()
    text, lengths, sums = (np.concatenate(column) for column in zip(*names, strict=True))
    before = part.own - part.first
    return Written(folder.name, text[lengths[:before].sum() :], lengths[before:], sums[before:])


def check_cells(job: Job, cells: Range) -> str | None:
    """Word what in a range of the written cells differs from what was read from the source."""
    with _at_work(job, "check_cells") as (room, threads):
        sums = _values(job.folder / "sums", np.uint64, cells)
        try:
            written = opened(
                job.run, "written", threads, lambda own: open_source(job.store, threads=own)
            )
            found = NamedCells(written, np.arange(*cells), threads, progress=False)
            return first_different(found, cells[0], sums, room)
        except READ_ERRORS as error:
            return f"it cannot be read: {error}"


@contextmanager
def _at_work(job: Job, task: str) -> Iterator[tuple[int, Threads]]:
    """Wait for this worker's other tasks; give the bytes for cells and the threads."""
    with turn(job.memory, job.n_jobs) as (budget, threads):
        kept(job.run, task, lambda _: release_freed())  # what the stage before has left, once
        for folder in (job.folder, job.runs):
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        yield room_for(budget, job.n_obs, shuffle=False), threads


def _source(job: Job, threads: Threads) -> Source:
    return opened(job.run, "source", threads, job.source.with_threads)


def _values(path: Path, dtype: Any, cells: Range) -> NDArray[Any]:
    """Values of a range of cells from a file of them all."""
    start, stop = cells
    kind = np.dtype(dtype)
    with open_descriptor(path) as handle:
        return read_exactly(handle, stop - start, kind, start * kind.itemsize, path)


def _rows(job: Job, cells: Range) -> NDArray[np.int64]:
    """Row numbers in the source of a range of cells."""
    return _values(job.folder / "rows", np.int64, cells) if job.selected else np.arange(*cells)


def _cells(job: Job, cells: Range, threads: Threads) -> NamedCells:
    return NamedCells(_source(job, threads), _rows(job, cells), threads, progress=False)


def _stored_lengths(source: Any, rows: NDArray[np.int64]) -> NDArray[np.uint32] | None:
    """Entries of each cell by the offsets; None where they do not tell."""
    edges = np.arange(rows[0], rows[-1] + 1, _SLICE)
    found = []
    for part in np.split(rows, np.searchsorted(rows, edges[1:])):
        if len(part):
            lengths = source.lengths(int(part[0]), int(part[-1]) + 1)
            if lengths is None:
                return None
            found.append(lengths[part - part[0]].astype(np.uint32))
    return np.concatenate(found)


@contextmanager
def _writers(
    job: Job, shard: int, folder: Path, threads: Threads
) -> Iterator[tuple[ShardWriter, ShardWriter]]:
    """Writers of data and indices from a shard on, into a folder that is made here."""
    folder.mkdir()
    x: Any = zarr.open_group(job.store / "X", mode="r", use_consolidated=False)
    with ThreadPoolExecutor(threads.n, "streamtrain-encode") as pool, ExitStack() as stack:

        def writer(name: str) -> ShardWriter:
            (folder / name).mkdir()
            nothing, begin = np.empty(0, x[name].dtype), {"shard": shard}
            made = ShardWriter(
                x[name], job.codec, pool, 2 * threads.n, begin, nothing, folder / name
            )
            return stack.enter_context(closing(made))

        yield writer("data"), writer("indices")


def _blocks(job: Job, part: Part, room: int, threads: Threads) -> Iterator[Named]:
    """The cells of a part in order."""
    if job.runs is not None:
        return ahead(_windows(job, job.runs, part, room // 3))
    blocks = _cells(job, (part.first, part.stop), threads).stream(0, block_bytes(room), "")
    return (block for _, block in blocks)


def _windows(job: Job, runs: Path, part: Part, nbytes: int) -> Iterator[Named]:
    """The cells of a part by place, from all runs, about `nbytes` of them at a time."""
    n_vars, dtype = job.source.n_vars, job.source.dtype
    entry = index_type(n_vars).itemsize + dtype.itemsize
    n, width = part.stop - part.first, bucket_width(job.n_obs, job.n_buckets)
    for a, b in spans(n, -(-(part.total * entry + n * PER_CELL) // nbytes)):
        lo, hi = part.first + a, part.first + b
        buckets = lo // width, (hi - 1) // width
        stretches = (
            stretch
            for i in range(job.n_runs)
            for stretch in run_stretches(runs / RUN.format(i), *buckets, job.n_buckets)
        )
        yield window(stretches, lo, hi, n_vars, dtype, runs)
