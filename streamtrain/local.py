"""A run's cells and settings in; moments, searches and rounds of training by this process out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import BLOCK, release_freed
from streamtrain.config import Settings
from streamtrain.descent import Descent, descend
from streamtrain.features import Features
from streamtrain.first_pass import first_pass
from streamtrain.frozen import Keep
from streamtrain.journal import Journal
from streamtrain.kept import Kept
from streamtrain.ordered import PlanOrder
from streamtrain.pairwise import PairwiseSum
from streamtrain.provenance import FREE
from streamtrain.replicas import Replica, train_replicas
from streamtrain.rounds import check_room, fit, keeps_apart
from streamtrain.scaling import RunningMoments, Scaler
from streamtrain.scratch import require_free
from streamtrain.solvers.counters import State
from streamtrain.sources.base import Source
from streamtrain.spill import Spill
from streamtrain.stored import Fitted, Stored
from streamtrain.targets import Target, recorder
from streamtrain.threads import Threads
from streamtrain.trials import Search, Trials, search

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device

T = TypeVar("T")
_KEPT = 0.5  # share of the room for cells that are kept in memory if all of them fit there


class Place(Protocol):
    """Where a run is done: in this process, or by a cluster."""

    def first_pass(self) -> RunningMoments:
        """Read and check every cell, and keep those that any round takes."""
        ...

    def search(self, target: Target, features: Features) -> Search:
        """Try the settings that are left to choose, for a target with folds."""
        ...

    def select(self, features: Features) -> None:
        """Let go of all genes but these, which later rounds take."""
        ...

    def fit(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """Train once."""
        ...


def with_own(found: Search, config: Settings) -> Search:
    """What was found, perhaps by another process, with what is of this one alone."""
    own = {name: getattr(config, name) for name in (*FREE, "gpu_memory")}
    return replace(found, config=replace(found.config, **own))


class Local:
    """A run in this process; a context manager.

    Parameters
    ----------
    source, targets, config
        The run's.
    taken
        Which cells any round takes, shape (n,); None for all.
    room
        Bytes for cells.
    threads
        They work.
    device
        The GPU that trains; None for the CPU.
    journal
        Where each stage is kept, to go on from; None for nowhere.
    """

    def __init__(
        self,
        source: Source,
        targets: list[Target],
        taken: NDArray[np.bool_] | None,
        config: Settings,
        room: int,
        threads: Threads,
        *,
        device: Device | None = None,
        journal: Journal | None = None,
        progress: bool = False,
    ) -> None:
        self._source, self._targets, self._taken = source, targets, taken
        self._config, self.room, self._threads = config, room, threads
        self._device, self._journal, self._progress = device, journal, progress
        self.kept = room * (_KEPT if config.use_SGD else _KEPT / 2)
        self._stack = ExitStack()
        self._ordered: PlanOrder | None = None
        self.has_selected = False  # whether genes were let go

    def __enter__(self) -> Local:
        spill = Spill(
            self._source.n_vars, self._config.dtype, self._config.scratch, memory=self.kept,
            threads=self._threads,
        )  # fmt: skip
        self.spill = self._stack.enter_context(spill)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def first_pass(self) -> RunningMoments:
        """See `Place`."""
        given = (
            self._source, self._targets, self._taken, self.spill, self._config, self.room,
            self.kept, self._threads, self._progress,
        )  # fmt: skip
        if self._journal is not None:
            return self._first_pass(self._journal, given)
        moments, self._ordered = first_pass(*given)
        if self._ordered is not None:
            self._stack.callback(self._ordered.close)
        if self.spill.nbytes > BLOCK:  # collecting takes 0.1 s, which a small job would notice
            release_freed()
        return moments

    def _first_pass(self, journal: Journal, given: tuple[Any, ...]) -> RunningMoments:
        """The same with the cells in the folder of the journal."""
        cells = journal.folder, self._source.n_vars, self._config.dtype

        def read(before: Any) -> list[Any]:
            files = Kept(*cells, None if before is None else before[-1])
            keep = partial(journal.tick, "reading")
            moments, _ = first_pass(*given, files=files, before=before, keep=keep)
            return [moments, files.under_way()]

        moments, kept = journal.stage("reading", read)
        spill = Kept(*cells, kept).spill(self._config.scratch, self._threads)
        self.hold(spill)
        # Once more, as the memory and the disk may be others than where the cells were read.
        cell, config = spill.nbytes / max(1, spill.n_obs), self._config
        if config.trains_sgd:
            check_room(config, self.room, cell, spill.entry_bytes)
        copies = (not config.use_SGD) + config.feature_selection
        if copies:
            require_free(config.scratch, copies * spill.nbytes, "training")
        found: RunningMoments = moments
        return found

    def hold(self, spill: Spill) -> None:
        """Take its cells in place of those that are here."""
        self.spill.close()
        self.spill = self._stack.enter_context(spill)

    def stored(self, target: Target) -> Stored:
        """The kept cells, as a round takes them."""
        return Stored(
            self.spill, recorder(self._taken), target.columns, target.cells, target.held_out,
            self._source.is_sparse, self._ordered, self._device,
        )  # fmt: skip

    def scaler(self, features: Features, *, apart: bool = True) -> Scaler:
        """Scaling of these genes of the kept cells."""
        at = np.arange(len(features.at)) if self.has_selected else features.at
        return features.scaler(
            at, self.spill.n_vars, with_mean=self._config.with_mean, dtype=self._config.dtype,
            apart=apart and keeps_apart(self._config, self._source.is_sparse),
        )  # fmt: skip

    def trials(self, target: Target, features: Features) -> Trials:
        """What tries settings, for a target with folds."""
        if target.folds is None or target.judged is None:
            raise ValueError("a search needs folds")
        return Trials.of(
            self._config, self.stored(target), self.scaler(features),
            self.scaler(features, apart=False), target.folds, target.judged, self.room,
            self._threads,
        )  # fmt: skip

    def search(self, target: Target, features: Features) -> Search:
        """See `Place`."""

        def find(before: Any = None, keep: Keep | None = None) -> Search:
            trials = self.trials(target, features)
            return search(trials, progress=self._progress, before=before, keep=keep)

        return with_own(self._stage("search", find), self._config)

    def _stage(self, name: str, work: Callable[..., T]) -> T:
        """What a stage gives, kept in the journal if there is one."""
        return work() if self._journal is None else self._journal.next(name, work)

    def select(self, features: Features) -> None:
        """See `Place`."""
        self.hold(self.spill.select(features.at, progress=self._progress))
        self.has_selected = True

    def descend(
        self, config: Settings, target: Target, features: Features, start: State | None, *,
        share: range, before: Descent | None, due: Callable[[], bool],
    ) -> Descent:  # fmt: skip
        """Train some columns by SGD until it is due."""
        given = replace(self.stored(target), share=share), self.scaler(features), start
        return descend(
            config, *given, self.room, self._threads, progress=False, before=before, due=due
        )

    def copies(
        self, config: Settings, target: Target, features: Features, start: State | None, *,
        epoch: int, numbers: range,
    ) -> PairwiseSum[Replica]:  # fmt: skip
        """Train some copies for an epoch."""
        given = self.stored(target), self.scaler(features), start
        return train_replicas(config, *given, self._threads, epoch, numbers)

    def fit(
        self, config: Settings, target: Target, features: Features, start: State | None
    ) -> Fitted:
        """See `Place`."""
        stored = self.stored(target)
        if config.use_SGD != self._config.use_SGD:
            # Of another solver's settings, which a GPU's SGD may not have, by the CPU's.
            stored = replace(stored, device=None)
        given = config, stored, self.scaler(features), start, self.room, self._threads

        def train(before: Any = None, keep: Keep | None = None) -> Fitted:
            return fit(*given, progress=self._progress, before=before, keep=keep)

        return self._stage("round", train)
