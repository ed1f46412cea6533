"""Loader: cells on disk in, mini-batches out in an order drawn beforehand, inside a byte budget."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain import buffers
from streamtrain.batches import Served
from streamtrain.budget import (
    BLOCK,
    READING_RESERVE,
    format_bytes,
    free_memory,
    parse_bytes,
)
from streamtrain.cells import Cells, Labels, expression_of, labelled_cells, select_rows
from streamtrain.config import check_quotas, require_number
from streamtrain.errors import InputError
from streamtrain.kernels import csr
from streamtrain.mixing import Mixing, mixing
from streamtrain.quotas import Quotas
from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.sampling_columns import batch_keys, check_weights, sampling_weights
from streamtrain.scratch import free_disk
from streamtrain.serving import Job, in_blocks, serve
from streamtrain.sources import open_source
from streamtrain.sources.base import Source
from streamtrain.sources.genes import Genes
from streamtrain.sources.matrix import COUNTS
from streamtrain.strategies import Means, Name, Strategy, choose
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

# Stretches of cells that tell how long cells are and whether they hold counts, and cells of each.
_STARTS, _PEEKED = 4, 16
_DRAW = 56  # bytes of a draw of an epoch: its place in this and the next, and while it is measured


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """One mini-batch.

    Attributes
    ----------
    epoch
        Counted from 0.
    obs
        Row numbers of the cells in the source, shape (n,), int64.
    codes
        Position of each cell's label among the loader's `classes`, shape (n,), int32; None without
        labels.
    cells
        Their expression.
    """

    epoch: int
    obs: NDArray[np.int64]
    codes: NDArray[np.int32] | None
    cells: Rows

    @property
    def X(self) -> sp.csr_matrix:  # noqa: N802 - AnnData's name
        """Expression, shape (n, n_vars)."""
        rows = self.cells
        return sp.csr_matrix(
            (rows.data, rows.indices, rows.indptr), shape=(rows.n_obs, rows.n_vars), copy=False
        )


class Loader:
    """Mini-batches of cells from disk, drawn as a plan says, inside a byte budget.

    Iterate over it for `LoadedBatch` items; each iteration begins anew. Close it when done, or use
    it as a context manager.

    Parameters
    ----------
    X, genes, layer, gene_key, join, storage_options
        As of `open_source`.
    labels
        Name of the obs column with the classes, one label a cell, or None for none.
    batch_size, batch_number, epochs
        Cells of a batch, batches of an epoch (None: as many as hold every cell), and epochs.
    order
        "drawn": exactly the cells, in exactly the order, that the plan draws: the same for any
        memory, number of threads, file format and chunk layout. "blocks": every cell once an epoch,
        in random runs of `block_size` neighbours, mixed within a window of `window` cells: as fast
        as the store can be read, and the order depends on `block_size` and `window`, though not on
        threads or memory. "stored": every cell as it lies.
    balance, replace, quotas, batch_key, sampling_weight
        As `train`'s (balance: its balance_cell_type); for order="drawn".
    block_size, window
        Of order="blocks", in cells.
    where, drop_unlabeled, normalize
        As `train`'s. Without `normalize`, values come as they are stored.
    memory, scratch
        Bytes to stay within (default: a quarter of what is free), and the folder for scratch.
    strategy
        How the cells of order="drawn" come: "auto" takes the one that costs least of "memory",
        "scratch", "plan order" and "sweeps" (see `streamtrain.strategies.Strategy`). The batches
        are the same.
    n_jobs
        Threads; None and -1 take every CPU.
    random_state
        Seed of every draw.
    progress
        Show progress on standard error while cells are decoded.

    Attributes
    ----------
    classes_
        Names of the classes, shape (n_classes,).
    genes
        Gene names, shape (n_vars,).
    n_obs, n_vars
        Cells that are drawn from, and genes.
    strategy_
        How the last iteration's cells came, and bytes as predicted; None for other orders.
    actual_
        The same with the bytes that were decoded, written and read, and seconds.
    mixing_
        How mixed each epoch's batches are, as far as the last iteration came.

    Raises
    ------
    InputError
        If the input or an option cannot be used; the message says what to do.
    """

    def __init__(
        self,
        X: Any,
        labels: Labels | None = None,
        genes: Any = None,
        *,
        batch_size: int = 4096,
        batch_number: int | None = None,
        epochs: int = 1,
        order: Literal["drawn", "blocks", "stored"] = "drawn",
        balance: bool = False,
        replace: bool = False,
        quotas: dict[str, int] | Literal["equal"] | None = None,
        batch_key: str | None = None,
        sampling_weight: Labels | None = None,
        block_size: int = 64,
        window: int = 16_384,
        layer: str | None = None,
        gene_key: str | None = None,
        join: Genes = "inner",
        storage_options: Mapping[str, Any] | None = None,
        where: str | None = None,
        drop_unlabeled: bool = False,
        normalize: Literal["log1p"] | None = None,
        memory: int | str | None = None,
        scratch: str | None = None,
        strategy: str = "auto",
        n_jobs: int | None = None,
        random_state: int = 0,
        progress: bool = True,
    ) -> None:
        options = {
            "balance": balance, "replace": replace, "quotas": quotas is not None,
            "batch_key": batch_key is not None, "sampling_weight": sampling_weight is not None,
            "batch_number": batch_number is not None, "strategy": strategy != "auto",
        }  # fmt: skip
        _check(order, options, labels is not None, strategy)
        sizes = {
            "batch_size": batch_size, "epochs": epochs, "block_size": block_size, "window": window,
            "batch_number": 1 if batch_number is None else batch_number,
        }  # fmt: skip
        for name, number in sizes.items():
            require_number(name, number, 1, whole=True)
        require_number("random_state", random_state, 0, whole=True)
        if normalize not in ("log1p", None):
            raise InputError(f"normalize must be 'log1p' or None; got {normalize!r}")
        if quotas is not None:
            check_quotas(
                quotas, batch_size, balance=balance, weighted=sampling_weight is not None,
                replace=replace,
            )  # fmt: skip
        disk = free_disk(scratch)  # refuses what is no folder
        if order == "blocks" and (window % block_size or window % batch_size):
            raise InputError(
                f"window must hold whole blocks and whole batches; got window={window:,}, "
                f"block_size={block_size:,} and batch_size={batch_size:,}"
            )
        budget = parse_bytes(memory)
        with ExitStack() as stack:
            threads = stack.enter_context(Threads(n_jobs))
            source = stack.enter_context(
                closing(
                    open_source(
                        X, layer=layer, gene_key=gene_key, genes=genes, join=join,
                        memory=budget // 4, scratch=scratch, progress=progress,
                        storage_options=storage_options, threads=threads,
                    )
                )
            )  # fmt: skip
            cells = _cells(source, labels, where, drop_unlabeled, batch_key, sampling_weight)
            if cells.n_obs == 0:
                raise InputError(f"{source.name} has no cells: name another file")
            self._plan: Plan | None = None
            if order == "drawn":
                quota = None if quotas is None else Quotas.of(quotas, cells.classes, batch_size)
                if cells.weight is not None:
                    drawn = min((batch_number or cells.n_obs) * batch_size, cells.n_obs)
                    check_weights(
                        cells.weight, cells.codes, cells.classes,
                        by_class=balance or quotas is not None,
                        n_draws=None if replace else drawn,
                    )  # fmt: skip
                self._plan = Plan(
                    cells.codes, max(1, len(cells.classes)), batch_size=batch_size,
                    batch_number=batch_number or -(-cells.n_obs // batch_size), epochs=epochs,
                    balance=balance, shuffle=True, seed=random_state, replace=replace,
                    quotas=quota, batch_key=cells.batch_key, weight=cells.weight,
                )  # fmt: skip
            draws = cells.n_obs if self._plan is None else self._plan.epoch_size
            room = budget - _DRAW * draws
            job = _job(source, cells, normalize, room, scratch, threads, progress)
            self._job = _fitting(job, batch_size, window if order == "blocks" else 0)
            self.strategy_: Strategy | None = None
            if self._plan is not None:
                self.strategy_ = self._choose(self._plan, disk, strategy)
            self._open = stack.pop_all()
        self._closed = False
        self._blocks = epochs, batch_size, block_size * (order == "blocks"), window, random_state
        self._labelled = labels is not None
        self._cells = cells
        self.classes_, self.n_obs = cells.classes, cells.n_obs
        self.genes, self.n_vars = source.genes, source.n_vars
        self.actual_: Strategy | None = None
        self.mixing_: list[Mixing] = []

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Batches in order; the next is made while the caller works on the present one."""
        if self._closed:
            raise ValueError("the Loader is closed: make another")
        job, codes = self._job, self._cells.codes if self._labelled else None
        done = {"written": 0.0, "read": 0.0, "held": 0.0}
        before, began = job.source.decoded, time.perf_counter()
        if self._plan is None or self.strategy_ is None:
            served = in_blocks(job, *self._blocks)
        else:
            served = serve(job, self._plan, self.strategy_, done)
        try:
            for epoch, cells, rows in self._reported(served):
                of = None if codes is None else codes[cells]
                yield LoadedBatch(epoch, job.row(cells), of, rows)
                if self._closed:
                    raise ValueError("the Loader was closed while it was iterated over")
        finally:
            if self.strategy_ is not None and not self._closed:
                self.actual_ = replace(
                    self.strategy_,
                    decoded=job.source.decoded - before,
                    written=done["written"],
                    read=done["read"],
                    held=done["held"],
                    seconds=time.perf_counter() - began,
                )
                logger.info("cells came by %s", self.actual_)

    def _choose(self, plan: Plan, disk: int, wanted: str) -> Strategy:
        job = self._job
        means = Means(job.room, disk, free_memory() - job.room)
        drawn = np.flatnonzero(plan.ever_drawn())
        return choose(plan, job.source, job.row, drawn, job.cell_bytes, means, wanted)

    def _reported(self, served: Served) -> Served:
        """Pass batches on; measure how mixed those of each epoch were."""
        cells_of: list[NDArray[np.int64]] = []
        self.mixing_ = found = []
        last = 0

        def measure() -> None:
            mixed = mixing(
                np.concatenate(cells_of), self._cells.codes, max(1, len(self.classes_)),
                self._blocks[1], self._job.rows,
            )  # fmt: skip
            logger.info("epoch %d: %s", last + 1, mixed)
            found.append(mixed)
            cells_of.clear()

        for epoch, cells, rows in served:
            if epoch != last:
                measure()
                last = epoch
            cells_of.append(cells)
            yield epoch, cells, rows
        if cells_of:
            measure()

    def close(self) -> None:
        """Close the file, and give threads, scratch and memory back."""
        self._closed = True
        self._open.close()
        buffers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(order: str, options: dict[str, bool], labelled: bool, strategy: str) -> None:
    if order not in ("drawn", "blocks", "stored"):
        raise InputError(f"order must be 'drawn', 'blocks' or 'stored'; got {order!r}")
    given = [name for name, value in options.items() if value]
    if order != "drawn" and given:
        raise InputError(f"{given[0]} is for order='drawn': leave it out, or pass that")
    for name in ("balance", "quotas", "batch_key"):
        if options[name] and not labelled:
            raise InputError(f"{name} needs labels: name an obs column, or pass one label a cell")
    if strategy not in ("auto", *get_args(Name)):
        names = ", ".join(map(repr, ("auto", *get_args(Name))))
        raise InputError(f"strategy must be one of {names}; got {strategy!r}")
    if options["batch_key"] and not (options["balance"] or options["quotas"]):
        raise InputError("batch_key is for balance=True or quotas: leave it out, or pass one")


def _cells(
    source: Source,
    labels: Labels | None,
    where: str | None,
    drop_unlabeled: bool,
    batch_key: str | None,
    weight: Labels | None,
) -> Cells:
    if labels is None:
        rows = select_rows(source, where)
        n = source.n_obs if rows is None else len(rows)
        cells = Cells(rows, np.zeros(n, np.int32), np.empty(0, object))
    else:
        cells = labelled_cells(source, labels, where=where, drop_unlabeled=drop_unlabeled, least=1)
    if batch_key is not None:
        cells = replace(cells, batch_key=batch_keys(source, cells, batch_key))
    if weight is not None:
        cells = replace(cells, weight=sampling_weights(source, cells, weight))
    return cells


def _fitting(job: Job, batch_size: int, window: int) -> Job:
    """Leave room for the batches: one with the caller, the next, and the one being made."""
    batches = 3 * batch_size * job.served_bytes
    room = job.room - batches
    # Two windows are alive, and the kept cells of two batches.
    needed = 2 * max(window, batch_size) * job.cell_bytes
    if room < needed:
        what = f"window={window:,} and " if window else ""
        raise InputError(
            f"memory is too small for {what}batch_size={batch_size:,} cells of "
            f"{format_bytes(job.served_bytes)}: {format_bytes(needed - room)} more are needed; "
            "raise memory (--memory), or lower batch_size"
        )
    return replace(job, room=room)


def _job(
    source: Source,
    cells: Cells,
    normalize: Literal["log1p"] | None,
    budget: int,
    scratch: str | None,
    threads: Threads,
    progress: bool,
) -> Job:
    """Look at the first cells, and divide the budget.

    Taken already: a cell's label, order, rank, mark, row number and index, and what reading leaves
    behind.
    """
    n, block = source.n_obs, max(1, min(BLOCK, budget // 16))
    starts = np.linspace(0, max(0, n - _PEEKED), min(_STARTS, n)).astype(np.int64)
    peek = source.take(np.unique((starts[:, None] + np.arange(min(_PEEKED, n))).ravel()))
    for _ in source.blocks(block):  # warns of chunks that are larger
        break
    dtype = source.dtype if normalize is None else np.dtype(np.float32)
    counts = normalize is None and csr.all_counts(peek.data, COUNTS - 1)
    entry = (2 if counts else dtype.itemsize) + (2 if source.n_vars <= COUNTS else 4)
    entries = max(len(peek.data) / max(1, peek.n_obs), 1)
    if source.is_sparse:
        entries = max(source.cell_entries(), 1)

    def express(rows: Rows, wanted: NDArray[np.int64]) -> Rows:
        # For values as they are the check of each is enough, and the naming of one that fails.
        if normalize is None and (rows.data.dtype.kind != "f" or csr.all_finite(rows.data)):
            return rows
        make = expression_of(
            source, wanted, normalize=normalize, check=None, dtype=dtype, threads=threads
        )
        return make(rows, 0)

    room = budget - 32 * cells.n_obs - READING_RESERVE - 3 * block
    return Job(
        source, cells.rows, cells.n_obs, cells.codes, express, dtype, counts, block,
        entry * entries + 4, room, entries * (dtype.itemsize + 4) + 8, scratch, threads, progress,
    )  # fmt: skip
