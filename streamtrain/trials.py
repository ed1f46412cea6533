"""Cells on scratch and settings to choose from in; how each did on held-out cells, the best out.

All trials, a model for each setting and fold, are trained side by side on the mini-batches that
training takes anyway, each without the cells of its fold: one reading, whatever their number.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import Batch, gathered
from streamtrain.budget import format_bytes
from streamtrain.calibration import Calibration
from streamtrain.config import Settings
from streamtrain.descent import (
    batches_on_device,
    make_sgd,
    on_device,
    plan_epochs,
    resumed,
    scaled_batches,
    schedule_of,
    sweep_bytes,
    with_prior,
)
from streamtrain.frozen import Keep
from streamtrain.holdout import Folds
from streamtrain.judged import Judged, macro_f1
from streamtrain.model_schema import two_rows
from streamtrain.progress import stage
from streamtrain.rounds import models_bytes, needed_room
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler
from streamtrain.scoring import linear_scores
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.stored import Stored
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.cells import DeviceScaler
    from streamtrain.gpu.device import Device
    from streamtrain.gpu.sgd import DeviceSGD

logger = logging.getLogger(__name__)

ERRORS = 2  # standard errors by which settings must beat the first ones
_SCORING = 0.1  # share of the room for models that score them


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, which has ended when its macro-F1 rose no more.

    Attributes
    ----------
    alpha, step
        Its settings.
    macro_f1
        On each fold after each epoch, shape (epochs, folds).
    lately
        Epochs over which a mean tells how it does: single ones are chance.
    """

    alpha: float
    step: float | str | None
    macro_f1: NDArray[np.float64]
    lately: int

    @property
    def folds(self) -> NDArray[np.float64]:
        """Macro-F1 on each fold, the mean over the last epochs, shape (folds,)."""
        folds: NDArray[np.float64] = self.macro_f1[-self.lately :].mean(axis=0)
        return folds

    @property
    def value(self) -> float:
        """What trials are ranked by: the mean over the folds."""
        return float(self.folds.mean())

    def row(self) -> dict[str, Any]:
        """What the report says of it."""
        folds = self.folds
        return {
            "alpha": self.alpha,
            "step": self.step,
            "epochs": len(self.macro_f1),
            "macro_f1": self.value,
            "sd": float(folds.std(ddof=1)),
            "folds": [float(f) for f in folds],
        }


@dataclass(slots=True)
class Tried:
    """Trials that have ended, of which one is chosen so far.

    Attributes
    ----------
    done
        Settings, and how they did, in the order in which they were tried.
    at
        Place of the one that is chosen.
    scores
        Its own of the judged cells, shape (m, n_classes); None where they are not kept.
    """

    done: list[tuple[Settings, Trial]] = field(default_factory=list)
    at: int = -1
    scores: NDArray[np.float32] | None = None

    def add(self, settings: Settings, trial: Trial, scores: NDArray[np.float32] | None) -> None:
        """Take one more, and choose anew."""
        self.done.append((settings, trial))
        best = _chosen([trial for _, trial in self.done])
        if best == len(self.done) - 1:
            # No view, which would keep the scores of all.
            self.scores = None if scores is None else scores.copy()
        self.at = best

    def conclude(self, config: Settings, judged: Judged) -> Search:
        """Rank all of them, and calibrate by the scores of the chosen one."""
        ranked = sorted(self.done, key=lambda pair: -pair[1].value)
        settings, chosen_trial = self.done[self.at]
        chosen = replace(settings, epochs=len(chosen_trial.macro_f1))
        for row in (trial.row() for _, trial in ranked):
            logger.info(
                "alpha %g, step %s: macro-F1 %.3f, sd %.3f over the folds, in %d epochs",
                row["alpha"], row["step"], row["macro_f1"], row["sd"], row["epochs"],
            )  # fmt: skip
        calibration = None
        if config.calibrate and self.scores is not None:
            calibration = Calibration.fit(self.scores, judged.codes, judged.weight)
            logger.info("%s", calibration)
        return Search(chosen, [trial for _, trial in ranked], chosen_trial, calibration)


@dataclass(slots=True)
class Trying:
    """Trials side by side between two mini-batches: all that going on takes, to the same bits.

    Attributes
    ----------
    solver
        With the models of all trials and folds.
    drawn
        Cells of each class that the models of each fold have taken, shape (folds, n_classes).
    scores
        Of the judged cells, of each trial when it was last judged, shape (trials, m, n_classes).
    macro_f1
        Of each trial, after each epoch, on each fold.
    going
        Places of the trials that have not ended.
    epoch, batches
        Epochs that are done, and mini-batches of the next one.
    """

    solver: SGD | DeviceSGD
    drawn: NDArray[np.int64]
    scores: NDArray[np.float32]
    macro_f1: list[list[list[float]]]
    going: list[int]
    epoch: int = 0
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Search:
    """What cross-validation found.

    Attributes
    ----------
    config
        The settings with those of the chosen trial, to train on all cells with.
    trials
        All of them, the best first.
    chosen
        The one whose settings they are: see `_chosen`.
    calibration
        Of its scores of held-out cells; None unless asked for.
    """

    config: Settings
    trials: list[Trial]
    chosen: Trial
    calibration: Calibration | None

    def report(self) -> list[dict[str, Any]]:
        """A row for each trial, the best first."""
        return [trial.row() | {"chosen": trial is self.chosen} for trial in self.trials]


def trials_of(config: Settings) -> list[Settings]:
    """Settings of each trial: every alpha with every step."""
    pairs: Any = itertools.product(config.alphas, config.steps)
    return [replace(config, alpha=a, step=s) for a, s in pairs]


def search(
    run: Trials, *, progress: bool, before: list[Any] | None = None, keep: Keep | None = None
) -> Search:
    """Try the settings that a run leaves to choose, as many side by side as there is room for.

    Parameters
    ----------
    before
        Where the same search was, as `keep` was told: trials that had ended, and those under way.
    keep
        Called after each mini-batch with what gives the two then.
    """
    log_search(run.config, run.folds, run.judged)
    tried: Tried
    going: Trying | None
    tried, going = before or (Tried(), None)
    waiting, together = trials_of(run.config), run.together()
    if going is not None and len(going.macro_f1) > together:
        logger.info("%d settings were under way, more than there is room for: they begin anew",
                    len(going.macro_f1))  # fmt: skip
        going = None

    def keep_both(state: Callable[[], Any] | None) -> None:
        if keep is not None and state is not None:
            keep(lambda: [tried, state()])

    while len(tried.done) < len(waiting):
        n = together if going is None else len(going.macro_f1)
        part = waiting[len(tried.done) :][:n]
        done = run.of_settings(part, progress=progress, before=going, keep=keep_both)
        going = None
        for settings, trial, scores in zip(part, *done, strict=True):
            tried.add(settings, trial, scores)
        del done, scores  # beside which the next ones would stand
    return tried.conclude(run.config, run.judged)


def log_search(config: Settings, folds: Folds, judged: Judged) -> None:
    """Say what is about to be tried."""
    logger.info(
        "cross-validating %d settings in %d folds (%s), judged by %d cells",
        len(trials_of(config)), folds.n, folds.by or "cells of each type", len(judged.at),
    )  # fmt: skip


def _there(whole: Scaler, device: Device | None) -> DeviceScaler | None:
    if device is None:
        return None
    from streamtrain.gpu.cells import DeviceScaler

    return DeviceScaler(whole, device, np.float64)


def _on_device(
    config: Settings, stored: Stored, device: Device, n_genes: int, judged: Judged
) -> float:
    """Trials that a GPU has room for side by side."""
    from streamtrain.gpu import scores, sgd

    columns = (1 if judged.n_classes == 2 else judged.n_classes) * (config.folds or 1)
    none, one = (sgd.nbytes(n_genes, n, config.dtype, config.average) for n in (0, columns))
    beside = batches_on_device(config, stored) + scores.nbytes(n_genes, judged.n_classes)
    return (device.room - none - beside) / (one - none)


@dataclass(frozen=True, slots=True)
class Trials:
    """What all trials share.

    Parameters
    ----------
    scaler
        Of the genes to train on.
    whole
        The same, with no genes apart.
    whole_there
        The same in float64 on the GPU that trains.
    outside
        Cells of each class outside of each fold, shape (folds, n_classes).
    room
        Bytes for cells, and for the models of all trials but one.
    """

    config: Settings
    stored: Stored
    scaler: Scaler
    whole: Scaler
    whole_there: DeviceScaler | None
    folds: Folds
    judged: Judged
    outside: NDArray[np.int64]
    room: float
    threads: Threads

    @classmethod
    def of(
        cls, config: Settings, stored: Stored, scaler: Scaler, whole: Scaler, folds: Folds,
        judged: Judged, room: float, threads: Threads,
    ) -> Trials:  # fmt: skip
        """For the cells as they are kept."""
        outside = folds.outside(stored.cells.codes, judged.n_classes)
        return cls(
            config, stored, scaler, whole, _there(whole, stored.device), folds, judged, outside,
            room, threads,
        )  # fmt: skip

    def together(self) -> int:
        """Settings that there is room for side by side."""
        config, stored, spill, room = self.config, self.stored, self.stored.spill, self.room
        n_genes = len(self.scaler.shift)
        each = models_bytes(config, n_genes, self.judged.n_classes) + self.judged.score_bytes
        sizes = spill.nbytes / max(1, spill.n_obs), spill.entry_bytes
        left = room - spill.held - needed_room(config, room, *sizes) - _SCORING * room
        together = 1 + int(max(0, left) / each)
        if stored.device is not None:
            fitting = _on_device(config, stored, stored.device, n_genes, self.judged)
            together = max(1, int(min(together, fitting)))
        if together < len(trials_of(config)):
            logger.info("%d settings at a time, of %s", together, format_bytes(each))
        return together

    def of_settings(
        self, configs: list[Settings], *, progress: bool, before: Trying | None = None,
        keep: Keep | None = None,
    ) -> tuple[list[Trial], NDArray[np.float32]]:  # fmt: skip
        """Train these side by side, each until its macro-F1 rises no more.

        Each ends by itself, whichever others it is trained with: on a CPU to the bit, while a GPU
        sums products of another width in another order. The scores of the judged cells
        are those at its end, shape (trials, m, n_classes).

        Parameters
        ----------
        before
            Where the same trials were; it goes on itself.
        keep
            Called after each mini-batch with what gives the `Trying` then.
        """
        stored, folds, lately = self.stored, self.folds, self.config.n_iter_no_change
        plan = plan_epochs(self.config, stored.drawn, None)
        first, done = (0, 0) if before is None else (before.epoch, before.batches)
        cells = gathered(
            plan, lambda at: stored.spill.gather(stored.record(at)), first=first, done=done
        )
        scaler = on_device(self.scaler, stored.device)
        numbers = first * -(-plan.epoch_size // plan.batch_size) + done
        served = scaled_batches(self.config, cells, stored.cells.codes, scaler, numbers)
        run = before
        if run is not None:
            run.solver = resumed(run.solver, stored.device, self.threads)
        seen = done * plan.batch_size
        total = (plan.epochs - first) * plan.epoch_size - seen
        with stage("Cross-validating", total, show=progress) as bar:
            for batch in served:
                run = run or self._begun(configs, batch)
                taken = folds.of[batch.at] != np.arange(folds.n)[:, None]
                run.solver.partial_fit(batch.cells, taken=np.tile(taken, (len(configs), 1)))
                for fold, mine in enumerate(taken):
                    run.drawn[fold] += np.bincount(batch.codes[mine], minlength=len(run.drawn[0]))
                seen += batch.cells.n_obs
                run.batches += 1
                bar.update(batch.cells.n_obs)
                if seen % plan.epoch_size == 0:
                    run.epoch, run.batches = batch.epoch + 1, 0
                    self._judge(run, lately)
                    if not run.going:
                        break
                if keep is not None:
                    under_way = run
                    keep(lambda under_way=under_way: under_way)  # type: ignore[misc]
        if run is None:
            raise ValueError("there are no epochs")
        trials = [
            Trial(config.alpha, config.step, np.array(f1), lately)  # type: ignore[arg-type]
            for config, f1 in zip(configs, run.macro_f1, strict=True)
        ]
        return trials, run.scores

    def _begun(self, configs: list[Settings], first: Batch) -> Trying:
        """No step taken; `first` is the first batch."""
        shape = len(configs), len(self.judged.at), len(self.stored.cells.classes)
        return Trying(
            self._solver(configs, first), np.zeros_like(self.outside), np.empty(shape, np.float32),
            [[] for _ in configs], list(range(len(configs))),
        )  # fmt: skip

    def _judge(self, run: Trying, lately: int) -> None:
        """At the end of an epoch a trial stops where its macro-F1 rises no more."""
        self._score(run)
        for trial in run.going:
            f1 = [self._macro_f1(run.scores[trial], fold) for fold in range(self.folds.n)]
            run.macro_f1[trial].append(f1)
        ended = [trial for trial in run.going if _rises_no_more(run.macro_f1[trial], lately)]
        run.going = [trial for trial in run.going if trial not in ended]
        if run.going:
            run.solver.freeze(np.flatnonzero(np.isin(run.solver.model // self.folds.n, ended)))

    def _solver(self, configs: list[Settings], first: Batch) -> SGD | DeviceSGD:
        square = first.cells.mean_square()

        def of_folds(configs: list[Settings]) -> list[Schedule]:
            return [schedule_of(c, square) for c in configs for _ in range(self.folds.n)]

        return make_sgd(
            self.config, of_folds(configs), self.stored, self.scaler, None, self.threads,
            blocks_of=of_folds(trials_of(self.config)),
        )  # fmt: skip

    def _score(self, run: Trying) -> None:
        """Score the judged cells, each by the models that left out its fold.

        Minus infinity is the score of a class that a model saw no cell of.
        """
        for fold in range(self.folds.n):
            mine = np.flatnonzero(self.judged.fold == fold)
            one = self.stored.device is not None  # beside the models that train there
            most = 1 if one else _SCORING * self.room / self._model_bytes
            for some in _parts(run.going, most):
                score = self._scorer([self._state(run, trial, fold) for trial in some])
                for at, rows in self._cells(mine):
                    for trial, scores in zip(some, score(rows), strict=True):
                        own = np.where(self.outside[fold] > 0, scores, -np.inf)
                        run.scores[trial, at] = own

    def _scorer(self, states: list[State]) -> Callable[[Rows], list[NDArray[np.float64]]]:
        """What gives the scores of cells, as stored, under each of some models."""
        if self.whole_there is None:
            models = [_weights(state, self.whole.shift) for state in states]

            def score(rows: Rows) -> list[NDArray[np.float64]]:
                scaled = self.whole(rows).rows
                return [linear_scores(scaled, *model, self.threads) for model in models]

            return score
        from streamtrain.gpu.scores import DeviceScores

        # Cells are centred there: 0 in place of the shift.
        models = [_weights(state, 0 * self.whole.shift) for state in states]
        each = [DeviceScores(self.whole_there, *model) for model in models]
        return lambda rows: [scores(rows) for scores in each]

    def _state(self, run: Trying, trial: int, fold: int) -> State:
        state = run.solver.state(trial * self.folds.n + fold)
        if not self.config.correct_prior:
            return state
        return with_prior(state, self.outside[fold], run.drawn[fold])

    @property
    def _model_bytes(self) -> int:
        """Bytes of one model as it scores, and as it is taken from the solver."""
        return 24 * len(self.whole.shift) * len(self.stored.cells.classes)

    def _cells(self, mine: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Judged cells from scratch, some at a time."""
        spill = self.stored.spill
        # As stored, or, should that be more, their scores as they come and as they are kept.
        each = max(spill.nbytes / max(1, spill.n_obs) + 8, 24 * self.judged.n_classes)
        step = max(1, int(sweep_bytes(self.room) / each))
        for start in range(0, len(mine), step):
            at = mine[start : start + step]
            yield at, spill.gather(self.stored.record(self.judged.at[at]))

    def _macro_f1(self, scores: NDArray[np.float32], fold: int) -> float:
        """Macro-F1 on the judged cells of a fold whose class the other folds have."""
        judged = self.judged
        mine = (judged.fold == fold) & (self.outside[fold, judged.codes] > 0)
        return macro_f1(judged.codes[mine], scores[mine].argmax(axis=1), judged.weight[mine])


def _weights(state: State, shift: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights, genes x classes, and constants that score scaled cells."""
    coef, intercept = state.scoring
    # By einsum: BLAS threads spin on and take the CPUs from the steps that follow.
    constant = intercept - np.einsum("kg,g->k", coef, shift)
    return np.ascontiguousarray(two_rows(coef).T, np.float64), two_rows(constant)


def _chosen(trials: list[Trial]) -> int:
    """The best of the trials that beat the first by more than `ERRORS`, or the first.

    The standard error is of the difference over the folds: where they disagree, as studies do, the
    largest mean is often that of one fold.
    """
    folds = np.array([trial.folds for trial in trials])
    gain = folds - folds[0]
    error = gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1])
    better = gain.mean(axis=1) > ERRORS * error
    better[0] = True
    return int(np.where(better, folds.mean(axis=1), -np.inf).argmax())


def _parts(items: list[int], most: float) -> Iterator[list[int]]:
    """Lists of some of the items, one at least each."""
    size = max(1, int(most))
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _rises_no_more(f1: list[list[float]], lately: int) -> bool:
    """Whether the mean over some epochs has been at its largest as many epochs ago, or more."""
    means = np.mean(f1, axis=1)
    if len(means) < 2 * lately:
        return False
    smooth = np.convolve(means, np.full(lately, 1 / lately), "valid")
    return bool(smooth[-lately:].max() <= smooth[:-lately].max())
