"""Cells on scratch and settings to choose from in; how each did on held-out cells, the best out.

All trials, a model for each setting and fold, are trained side by side on the mini-batches that
training takes anyway, each without the cells of its fold: one reading, whatever their number.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
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


# Settings, how they did, and their scores of the judged cells, where these are kept.
Tried = tuple[Settings, Trial, NDArray[np.float32] | None]


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


def search(run: Trials, *, progress: bool, keep: Keep | None = None) -> Search:
    """Try the settings that a run leaves to choose, as many side by side as there is room for.

    `keep` is called after each mini-batch, with None: there is no going on from there.
    """
    config = run.config
    log_search(config, run.folds, run.judged)

    def found() -> Iterator[Tried]:
        waiting, together = trials_of(config), run.together()
        for start in range(0, len(waiting), together):
            part = waiting[start : start + together]
            trials, scores = run.of_settings(part, progress=progress, keep=keep)
            yield from zip(part, trials, scores, strict=True)
            del scores  # beside which the next ones would stand

    return conclude(config, run.judged, found())


def log_search(config: Settings, folds: Folds, judged: Judged) -> None:
    """Say what is about to be tried."""
    logger.info(
        "cross-validating %d settings in %d folds (%s), judged by %d cells",
        len(trials_of(config)), folds.n, folds.by or "cells of each type", len(judged.at),
    )  # fmt: skip


def conclude(config: Settings, judged: Judged, tried: Iterable[Tried]) -> Search:
    """Choose of the trials, and calibrate by the scores of the chosen one."""
    done: list[tuple[Settings, Trial]] = []
    scores: NDArray[np.float32] | None = None  # of the trial chosen so far
    at = -1
    for settings, trial, own in tried:
        done.append((settings, trial))
        best = _chosen([trial for _, trial in done])
        # No view, which would keep the scores of all; those of earlier ones are let go.
        scores = own.copy() if best == len(done) - 1 and own is not None else scores
        at = best
    ranked = sorted(done, key=lambda pair: -pair[1].value)
    settings, chosen_trial = done[at]
    chosen = replace(settings, epochs=len(chosen_trial.macro_f1))
    for row in (trial.row() for _, trial in ranked):
        logger.info(
            "alpha %g, step %s: macro-F1 %.3f, sd %.3f over the folds, in %d epochs",
            row["alpha"], row["step"], row["macro_f1"], row["sd"], row["epochs"],
        )  # fmt: skip
    calibration = None
    if config.calibrate and scores is not None:
        calibration = Calibration.fit(scores, judged.codes, judged.weight)
        logger.info("%s", calibration)
    return Search(chosen, [trial for _, trial in ranked], chosen_trial, calibration)


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
    drawn
        Cells of each class that the models of each fold have taken.
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
    drawn: NDArray[np.int64]

    @classmethod
    def of(
        cls, config: Settings, stored: Stored, scaler: Scaler, whole: Scaler, folds: Folds,
        judged: Judged, room: float, threads: Threads,
    ) -> Trials:  # fmt: skip
        """For the cells as they are kept."""
        outside = folds.outside(stored.cells.codes, judged.n_classes)
        return cls(
            config, stored, scaler, whole, _there(whole, stored.device), folds, judged, outside,
            room, threads, np.zeros_like(outside),
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
        self, configs: list[Settings], *, progress: bool, keep: Keep | None = None
    ) -> tuple[list[Trial], NDArray[np.float32]]:
        """Train these side by side, each until its macro-F1 rises no more.

        Each ends by itself, whichever others it is trained with: on a CPU to the bit, while a GPU
        sums products of another width in another order. The scores of the judged cells
        are those at its end, shape (trials, m, n_classes).
        """
        stored, folds, lately = self.stored, self.folds, self.config.n_iter_no_change
        plan = plan_epochs(self.config, stored.drawn, None)
        cells = gathered(plan, lambda at: stored.spill.gather(stored.record(at)))
        scaler = on_device(self.scaler, stored.device)
        served = scaled_batches(self.config, cells, stored.cells.codes, scaler)
        shape = len(configs), len(self.judged.at), len(stored.cells.classes)
        scores = np.empty(shape, np.float32)
        self.drawn[:] = 0
        found: list[list[list[float]]] = [[] for _ in configs]
        going = list(range(len(configs)))
        solver: SGD | DeviceSGD | None = None
        seen = 0
        with stage("Cross-validating", plan.epochs * plan.epoch_size, show=progress) as bar:
            for batch in served:
                solver = solver or self._solver(configs, batch)
                taken = folds.of[batch.at] != np.arange(folds.n)[:, None]
                solver.partial_fit(batch.cells, taken=np.tile(taken, (len(configs), 1)))
                for fold, mine in enumerate(taken):
                    self.drawn[fold] += np.bincount(batch.codes[mine], minlength=shape[2])
                seen += batch.cells.n_obs
                bar.update(batch.cells.n_obs)
                if keep is not None:
                    keep(None)
                if seen % plan.epoch_size:
                    continue
                self._score(solver, going, scores)
                for trial in going:
                    f1 = [self._macro_f1(scores[trial], f) for f in range(folds.n)]
                    found[trial].append(f1)
                ended = [trial for trial in going if _rises_no_more(found[trial], lately)]
                going = [trial for trial in going if trial not in ended]
                if not going:
                    break
                solver.freeze(np.flatnonzero(np.isin(solver.model // folds.n, ended)))
        trials = [
            Trial(config.alpha, config.step, np.array(f1), lately)  # type: ignore[arg-type]
            for config, f1 in zip(configs, found, strict=True)
        ]
        return trials, scores

    def _solver(self, configs: list[Settings], first: Batch) -> SGD | DeviceSGD:
        square = first.cells.mean_square()

        def of_folds(configs: list[Settings]) -> list[Schedule]:
            return [schedule_of(c, square) for c in configs for _ in range(self.folds.n)]

        return make_sgd(
            self.config, of_folds(configs), self.stored, self.scaler, None, self.threads,
            blocks_of=of_folds(trials_of(self.config)),
        )  # fmt: skip

    def _score(self, solver: SGD | DeviceSGD, trials: list[int], out: NDArray[np.float32]) -> None:
        """Score the judged cells, each by the models that left out its fold.

        Minus infinity is the score of a class that a model saw no cell of.
        """
        for fold in range(self.folds.n):
            mine = np.flatnonzero(self.judged.fold == fold)
            one = self.stored.device is not None  # beside the models that train there
            most = 1 if one else _SCORING * self.room / self._model_bytes
            for some in _parts(trials, most):
                score = self._scorer([self._state(solver, trial, fold) for trial in some])
                for at, rows in self._cells(mine):
                    for trial, scores in zip(some, score(rows), strict=True):
                        out[trial, at] = np.where(self.outside[fold] > 0, scores, -np.inf)

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

    def _state(self, solver: SGD | DeviceSGD, trial: int, fold: int) -> State:
        state = solver.state(trial * self.folds.n + fold)
        if not self.config.correct_prior:
            return state
        return with_prior(state, self.outside[fold], self.drawn[fold])

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
