"""Schedules, and the cells that each model takes, in; sizes of the steps of each group out.

What SGD knows of its columns beside their weights: which model and class each is of, how many steps
it has taken, and from which on its weights are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import sgd as kernel
from streamtrain.solvers.schedule import SLOWER, Schedule
from streamtrain.solvers.stripe import Steps

# Columns; their weights, (genes, columns or more), intercepts, and the sums of both.
Weights = tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class State:
    """All that training needs to continue.

    Attributes
    ----------
    coef, intercept
        Present weights, shape (columns, genes) and (columns,); one column for two classes.
    average_coef, average_intercept
        Means of the weights over the averaged steps, or None.
    t
        Steps taken plus one, scikit-learn's ``t_``, shape (columns,), float64; or one for all.
    n_averaged
        Steps in the averages, shape (columns,), int64; None where they began with the first.
    """

    coef: NDArray[Any]
    intercept: NDArray[np.float64]
    average_coef: NDArray[Any] | None = None
    average_intercept: NDArray[np.float64] | None = None
    t: float | NDArray[np.float64] = 1.0
    n_averaged: NDArray[np.int64] | None = None

    @classmethod
    def zeros(cls, n_columns: int, n_genes: int, dtype: Any) -> State:
        """Nothing learned yet."""
        return cls(np.zeros((n_columns, n_genes), dtype), np.zeros(n_columns))

    def columns(self, which: range) -> State:
        """Some of the columns, sharing memory with these."""
        part = slice(which.start, which.stop)
        arrays = {
            name: values[part]
            for name in self.__dataclass_fields__
            if isinstance(values := getattr(self, name), np.ndarray)
        }
        return replace(self, **arrays)

    @classmethod
    def joined(cls, parts: Sequence[State]) -> State:
        """Columns of several, one after the other."""
        if any(part.n_averaged is not None for part in parts):  # elsewhere weights stand in
            none = [np.zeros(len(part.coef), np.int64) for part in parts]
            parts = [
                part if part.n_averaged is not None
                else replace(
                    part, average_coef=part.coef, average_intercept=part.intercept, n_averaged=n
                )
                for part, n in zip(parts, none, strict=True)
            ]  # fmt: skip

        def all_of(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate([np.atleast_1d(f) for f in found])

        return cls(*(all_of(name) for name in cls.__dataclass_fields__))

    @property
    def scoring(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Coefficients and intercepts that score cells: the averages where there are some."""
        if self.average_coef is None or self.average_intercept is None:
            return self.coef, self.intercept
        return self.average_coef, self.average_intercept


class Counters:
    """Columns of several models: their classes, steps and averages.

    Parameters
    ----------
    n_classes
        Two classes make one column, more make one each.
    schedules
        Of each model.
    average
        0, or the step from which weights are averaged.
    state
        Where to continue from, all models' columns.
    class_weight, blocks_of, share
        As of `SGD`.

    Attributes
    ----------
    model, label
        Which model each column is of, and of which class, shape (n_columns,).
    positive, negative
        Factors of a column's steps for cells of its class and for others, shape (n_columns,).
    t
        Steps taken plus one, shape (n_columns,), float64.
    n_averaged
        Steps in each average, shape (n_columns,), int64.
    group
        Row of each active column in `Steps`, shape (n_columns,), int64; 0 for others.
    """

    def __init__(
        self,
        n_classes: int,
        schedules: Sequence[Schedule],
        average: int,
        state: State,
        class_weight: ArrayLike | None,
        blocks_of: Sequence[Schedule],
        share: range | None = None,
    ) -> None:
        self._schedules, self._blocks_of, n_models = schedules, blocks_of, len(schedules)
        self._averages = bool(average)
        two = n_classes == 2
        every = 1 if two else n_classes
        own = np.arange(every) if share is None else np.array(share)
        n = len(own) * n_models
        self.model = np.repeat(np.arange(n_models), len(own))
        # With two classes the one column stands for the second.
        self.label = np.tile(own + two, n_models).astype(np.int32)
        weight = np.ones(n_classes) if class_weight is None else np.asarray(class_weight, float)
        weight = np.broadcast_to(weight, (n_models, n_classes))
        self.positive = weight[self.model, self.label]
        self.negative = weight[self.model, 0] if two else np.ones(n)
        t = np.array(np.broadcast_to(state.t, every * n_models), float).reshape(n_models, every)
        self.t, self._least = t[:, own].ravel(), t.min(axis=1)
        self._slowed = np.zeros(n, np.int64)
        self.n_averaged = np.zeros(n, np.int64)
        # Steps taken before averaging count in no average.
        self._average_from = np.full(n, max(1, average))
        if average and state.average_coef is None:
            self._average_from = np.maximum(self._average_from, self.t.astype(np.int64))
        elif average:
            since = np.maximum(0, self.t.astype(np.int64) - self._average_from)
            before = state.n_averaged
            if before is not None:
                before = before.reshape(n_models, every)[:, own].ravel()
            self.n_averaged[:] = since if before is None else before
        self.regroup(np.arange(n))

    def regroup(self, active: NDArray[np.int64]) -> None:
        """Find the groups of the `active` columns, and keep a column of each.

        Columns of one model that have taken as many steps are a group: they share step sizes.
        """
        self._active = active
        self.group = np.zeros(len(self.model), np.int64)
        keys = np.stack([self.model, self.t, self._slowed, self._average_from])
        _, first, group = np.unique(keys[:, active], axis=1, return_index=True, return_inverse=True)
        self.group[active] = group.ravel()
        self._groups = [int(active[at]) for at in first]

    def slow(self, columns: NDArray[np.int64]) -> None:
        """Divide the step of these columns by `SLOWER`; they then need new groups."""
        self._slowed[columns] += 1

    def steps(self, taken: NDArray[np.bool_], moves: NDArray[np.bool_], size: int) -> Steps:
        """Step sizes of the next cells: those that each model has `taken`, (models, n).

        Of these the cells that `moves` marks, (n,), count as steps of an average.
        """
        of_group = taken[self.model[self._groups]]
        eta, averaged = np.zeros(of_group.shape), np.zeros(of_group.shape, bool)
        decay, levy = np.ones(of_group.shape), np.zeros(of_group.shape)
        alpha = np.zeros(len(of_group))
        for g, (column, own) in enumerate(zip(self._groups, of_group, strict=True)):
            schedule, t = self._schedules[self.model[column]], self.t[column]
            n = np.count_nonzero(own)
            eta[g, own] = schedule.steps(t, n) / SLOWER ** self._slowed[column]
            decay[g, own] = schedule.decays(eta[g, own])
            levy[g] = schedule.l1_share * schedule.alpha * eta[g]
            counted = own & moves
            before: NDArray[np.int64] = np.cumsum(counted) - counted
            averaged[g] = counted & (t + before >= self._average_from[column])
            alpha[g] = 0.0 if schedule.penalty is None else schedule.alpha
        others = np.ones((len(self._blocks_of), taken.shape[1]))
        t_of = cycle(zip(taken, self._least.tolist(), strict=True))
        for row, schedule, (own, t) in zip(others, self._blocks_of, t_of, strict=False):
            row[own] = schedule.decays(schedule.steps(t, int(np.count_nonzero(own))))
        edges = kernel.block_edges(np.concatenate([decay, others]), size)
        largest = int(np.diff(edges).max())
        return Steps(of_group, eta, decay, levy, averaged, alpha, edges, largest)

    def rates(self) -> NDArray[np.float64]:
        """Size of each active column's last step, shape (n_columns,); NaN of others."""
        found = np.full(len(self.model), np.nan)
        for g, column in enumerate(self._groups):
            mine = self._active[self.group[self._active] == g]
            last = self._schedules[self.model[column]].steps(self.t[column] - 1, 1)[0]
            found[mine] = last / SLOWER ** self._slowed[column]
        return found

    def state(self, model: int, parts: Iterable[Weights], n_genes: int, dtype: Any) -> State:
        """Put together what a solver has of one model, some columns at a time."""
        mine = np.flatnonzero(self.model == model)
        coef, intercept = np.empty((len(mine), n_genes), dtype), np.empty(len(mine))
        n_averaged = self.n_averaged[mine]
        averaged = self._averages and bool(n_averaged.any())
        average_coef = np.empty_like(coef) if averaged else None
        average_intercept = np.empty_like(intercept) if averaged else None
        for columns, U, b, A, ab in parts:
            own = np.flatnonzero(self.model[columns] == model)
            if not len(own):
                continue
            at = columns[own] - mine[0]
            coef[at], intercept[at] = U[:, own].T, b[own]
            if average_coef is not None and average_intercept is not None:
                n = n_averaged[at]
                # A column frozen before averaging began has none: its weights stand in.
                some, over = n > 0, np.maximum(n, 1)
                average_coef[at] = np.where(some[:, None], A[:, own].T / over[:, None], coef[at])
                average_intercept[at] = np.where(some, ab[own] / over, b[own])
        return State(
            coef, intercept, average_coef, average_intercept, self.t[mine],
            n_averaged if averaged else None,
        )  # fmt: skip

    def count(self, taken: NDArray[np.bool_], steps: Steps | None) -> None:
        """Count the steps of a piece; None for no columns that went on."""
        if steps is not None and self._averages:
            n = steps.averaged.sum(axis=1)
            self.n_averaged[self._active] += n[self.group[self._active]]
        # As scikit-learn counts, with or without columns that go on.
        n_taken = np.count_nonzero(taken, axis=1)
        self.t += n_taken[self.model]
        self._least += n_taken


def judged_cells(seen: int, n: int, every: int) -> NDArray[np.bool_]:
    """Mark every so-manyth of the next n cells, after so many of an epoch; shape (n,)."""
    judged = np.zeros(n, bool)
    if every:
        judged[-seen % every :: every] = True
    return judged


def overflow(schedules: Sequence[Schedule]) -> InputError:
    """Say that weights overflowed, and what to do."""
    used = [f"learning_rate={s.learning_rate!r}, eta0={s.eta0}, alpha={s.alpha}" for s in schedules]
    return InputError(
        "the weights overflowed: lower the step (step, or eta0), the largest of several, or raise "
        f"alpha; {'; '.join(dict.fromkeys(used))}"
    )
