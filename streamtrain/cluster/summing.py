"""Cells of workers and the weights of a pass in; sums over all cells, for the optimum, out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.cluster.reading import Job, at_work, cells_of
from streamtrain.cluster.turns import kept, let_go
from streamtrain.cluster.workers import Workers
from streamtrain.errors import InputError
from streamtrain.features import Features
from streamtrain.optimum import weights_of
from streamtrain.pairwise import PairwiseSum
from streamtrain.parts import Part
from streamtrain.solvers.logistic import Pass, TileSums
from streamtrain.tiles import Tiles

_TILED = 0.5  # share of the room for scaled cells that are held; what is more lies on scratch


@dataclass(frozen=True, slots=True)
class _Point:
    """What a pass evaluates, sent to each worker once a pass."""

    columns: NDArray[np.int64]
    W: NDArray[np.float64]
    constant: NDArray[np.float64]


class ClusterSums:
    """`Sums` by workers, of which each holds some units of cells and sums over these.

    A unit's cells are summed one after the other, units in a binary tree: the result follows from
    the number of cells alone. A unit stays where it is; that of a worker which is gone, or a share
    of them for one that has joined, is read by another.

    Parameters
    ----------
    workers, job
        The run's.
    given
        What a task takes first: the run, files of each unit and genes, as shared, and the number
        of the target.
    """

    def __init__(self, workers: Workers, job: Job, given: tuple[Any, ...]) -> None:
        self._workers, self._job, self._given = workers, job, given
        self._at: dict[str, list[int]] = {}  # units of each worker
        self._name = f"tiles-{time.monotonic_ns()}"

    def __call__(
        self,
        columns: NDArray[np.int64],
        W: NDArray[np.float64],
        constant: NDArray[np.float64],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], ...]:
        """Sum over all cells; see `Sums`."""
        workers = self._workers
        self._place(workers.addresses())
        point = workers.share(_Point(columns, W, constant))
        tasks = [
            workers.submit("sum-cells", _sum, *self._given, self._name, tuple(units), point, on=on)
            for on, units in self._at.items()
        ]
        found: PairwiseSum[Pass] = workers.result(workers.merged("merge-sums", tasks))
        report(self._job.n_obs)
        return found.total(Pass.empty(*W.shape)).arrays()

    def _place(self, addresses: list[str]) -> None:
        """Have every unit at a worker that is there; each has about as many."""
        n = self._job.n_units
        if not self._at:  # at first with those that have read them
            for unit, part in enumerate(self._given[1].value):
                self._at.setdefault(part.by, []).append(unit)
        placed = {address: self._at.get(address, []) for address in addresses}
        homeless = sorted(set(range(n)) - {unit for units in placed.values() for unit in units})
        most = -(-n // max(1, len(placed)))
        for units in placed.values():
            while len(units) > most:
                homeless.append(units.pop())
        for unit in homeless:
            min(placed.values(), key=len).append(unit)
        self._at = {on: sorted(units) for on, units in placed.items() if units}


def _sum(
    job: Job, parts: list[Part], features: Features, target: int, name: str,
    units: tuple[int, ...], point: _Point,
) -> PairwiseSum[Pass]:  # fmt: skip
    """Sum over some units; their scaled cells stay for the next pass."""
    with at_work(job) as (source, room, threads):
        let_go(job.run, "cells")  # those by which genes were selected
        # Slopes that wait for their neighbours: one for each height of the tree.
        room -= point.W.nbytes * (1 + math.log2(len(units)))
        if room <= 0:
            raise InputError(
                f"memory is too small for the slopes of {len(point.columns)} cell types x "
                f"{len(point.W):,} genes: {format_bytes(-room + 1)} more are needed; raise memory"
            )
        codes = job.targets[target].columns.codes
        weights = weights_of(job.config, job.targets[target].columns)
        n_genes, dtype = len(features.names), job.config.dtype
        stack, held = kept(job.run, name, lambda stack: (stack, dict[int, Tiles]()))
        sums: PairwiseSum[Pass] = PairwiseSum()
        for unit in set(held) - set(units):  # of a worker that has joined
            held.pop(unit).close()
        for unit in units:
            if unit not in held:
                memory = _TILED * room - sum(tiles.held for tiles in held.values())
                tiles = Tiles(n_genes, dtype, max(0.0, memory), job.config.scratch)
                stack.callback(tiles.close)
                scaler = job.scaler(features)
                at = unit * job.unit
                given = source, (1 - _TILED) * room, threads
                for rows in cells_of(job, parts[unit], unit, *given):
                    tiles.append(scaler(rows.with_codes(codes[at : at + rows.n_obs])).rows)
                    at += rows.n_obs
                held[unit] = tiles
            found = TileSums(held[unit], weights, threads)(
                point.columns, point.W, point.constant, lambda _: None
            )
            sums.add(Pass(*found), unit)
        return sums
