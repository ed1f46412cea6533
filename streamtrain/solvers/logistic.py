"""Logistic regression to its optimum: tiles in, weights per class and a certificate out.

The objective of a class against the rest is scikit-learn's, divided by the cells' weights: mean
loss + lambda (1 - r) / 2 |w|^2 + lambda r |w|_1 with lambda = 1 / (C sum of weights) and r the
share of l1. All classes share each pass over the cells; each has its own steps and its own end.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.frozen import Keep
from streamtrain.history import History, of_passes
from streamtrain.kernels import tiles as kernel
from streamtrain.kernels.lbfgs import dot
from streamtrain.pairwise import PairwiseSum, stretch_of
from streamtrain.solvers.class_weight import class_weights
from streamtrain.solvers.counters import State
from streamtrain.solvers.lbfgs import LBFGS, MEMORY
from streamtrain.threads import Threads
from streamtrain.tiles import Block, Tiles

# Suboptimality, relative to the objective, per unit of tol: 1e-6 for scikit-learn's default 1e-4.
# scikit-learn's rule alone (largest slope below tol) stops 15% to 1000% above the minimum on real
# cells, after a third of the passes.
RELATIVE = 0.01
_POLISHES = 20  # Newton steps of an intercept; each squares what it lacks, down to rounding
_LAST = 6  # objectives by whose fall a class without l2 penalty is judged


@dataclass(frozen=True, slots=True)
class Penalty:
    """What the weights cost: lambda = 1 / (C sum of weights), the share of it that is l1.

    Attributes
    ----------
    C
        Inverse strength; infinite for no penalty.
    l1_ratio
        0 for l2, 1 for l1.
    intercept_scaling
        None where the intercept is free; else the value s of liblinear's constant feature, whose
        penalised weight is intercept / s.
    """

    C: float = 1.0
    l1_ratio: float = 0.0
    intercept_scaling: float | None = None


@dataclass(frozen=True, slots=True)
class Solution:
    """Weights and what is known of them.

    Attributes
    ----------
    coef, intercept
        Shape (columns, genes) and (columns,), float64; one column for two classes.
    certificate
        Per column: `gradient_norm`, Euclidean, of the objective; `suboptimality`, an upper bound
        of objective - minimum (infinite without l2 penalty); `objective`; `n_iter`, steps;
        `n_passes`, times the cells were read; `converged`.
    history
        What each pass came to.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    certificate: dict[str, NDArray[Any]]
    history: History


def problem_weights(
    spec: Mapping[str, float] | Literal["balanced"] | None,
    classes: NDArray[np.object_],
    counts: NDArray[np.int64],
    liblinear: bool = False,
) -> NDArray[np.float64]:
    """Weight of a cell by its class in each column's problem, shape (n_classes, columns).

    As scikit-learn weights one class against the rest: a dict gives a cell its own class's weight
    in every problem; "balanced" gives n / (2 n_class) to a problem's class and n / (2 n_rest) to
    the rest. Of more than two classes liblinear weighs a problem's class alone, by the dict or by
    n / (classes n_class).
    """
    columns = column_classes(len(classes))
    if liblinear and len(columns) > 1:
        return np.where(np.eye(len(classes)), class_weights(spec, classes, counts), 1.0)
    if spec != "balanced":
        return np.repeat(class_weights(spec, classes, counts)[:, None], len(columns), axis=1)
    n = counts.sum()
    weights = np.repeat(n / (2 * (n - counts[columns]))[None, :], len(classes), axis=0)
    weights[columns, np.arange(len(columns))] = n / (2 * counts[columns])
    return weights


def column_classes(n_classes: int) -> NDArray[np.int64]:
    """Class that each column stands for: the second of two, else each its own."""
    return np.array([1]) if n_classes == 2 else np.arange(n_classes)


@dataclass(frozen=True, slots=True)
class Ended:
    """What a class reached; the fields of `Solution.certificate`, and `objectives` on the way."""

    x: NDArray[np.float64]
    objective: float
    gradient_norm: float
    suboptimality: float
    n_iter: int
    n_passes: int
    converged: bool
    objectives: list[float]


class Problem:
    """One class against the rest: its penalty, its point and whether it has ended."""

    def __init__(
        self, column: int, weight: float, penalty: Penalty, n_genes: int, fit_intercept: bool
    ) -> None:
        self.column, self.weight, self.fit_intercept = column, weight, fit_intercept
        strength = 1 / (penalty.C * weight)
        self.l2 = (1 - penalty.l1_ratio) * strength
        free = penalty.intercept_scaling is None
        scale = 1.0 if penalty.intercept_scaling is None else penalty.intercept_scaling
        self.l2_intercept = 0.0 if free else self.l2 / scale**2
        self.l1: NDArray[np.float64] | None = None
        if penalty.l1_ratio > 0:
            self.l1 = np.full(n_genes + 1, penalty.l1_ratio * strength)
            self.l1[-1] = 0.0 if free else self.l1[-1] / scale
        self.search: LBFGS | None = None
        self.converged = False
        self.objectives: list[float] = []  # after each pass
        self._flat = False  # whether every slope is below tol
        self._bend = 0.0  # curvature of the mean loss along the intercept
        self._polished: NDArray[np.float64] | None = None
        self._polishes = 0
        self._values: deque[float] = deque(maxlen=_LAST)

    def take(
        self, x: NDArray[np.float64], loss: float, slope: NDArray[np.float64], bend: float
    ) -> bool:
        """Take mean loss, its slope and the intercept's curvature at x, the point asked for.

        Tells whether a step was made.
        """
        value = loss + self.l2 / 2 * dot(x[:-1], x[:-1]) + self.l2_intercept / 2 * x[-1] ** 2
        slope[:-1] += self.l2 * x[:-1]
        slope[-1] = slope[-1] + self.l2_intercept * x[-1] if self.fit_intercept else 0.0
        self._bend = bend
        if self.search is None:
            self.search = LBFGS(x, value, slope, self.l1)
            return True
        if self._polished is not None:
            self._polished = None
            self.search.n_eval += 1
            self.search.move(x, value, slope)
            return True
        return self.search.tell(value, slope)

    @property
    def point(self) -> NDArray[np.float64]:
        """The point to evaluate next."""
        if self.search is None:
            raise RuntimeError("the first point is the caller's")
        return self.search.trial() if self._polished is None else self._polished

    @property
    def bound(self) -> float:
        """Upper bound of objective - minimum.

        With a free intercept at its best, the objective is strongly convex in the weights, by
        lambda: |slope of the weights|^2 / (2 lambda). `judge` brings it to its best by Newton's
        steps; for what it lacks, with slope g and curvature h, g^2 / h is added: along it the
        curvature falls by no more than exp(-step), which gives that for |g| < h / 2. A penalised
        intercept, as liblinear's, counts as one more weight.
        """
        if self.search is None or self.l2 == 0:
            return math.inf
        slope, last = self.search.slope[:-1], float(self.search.slope[-1])
        of_weights = float(dot(slope, slope)) / (2 * self.l2)
        if not self.fit_intercept:
            return of_weights
        if self.l2_intercept:
            return of_weights + last**2 / (2 * self.l2_intercept)
        return of_weights + last**2 / self._bend if 2 * abs(last) < self._bend else math.inf

    @property
    def _intercept_is_off(self) -> bool:
        """Whether a free intercept still matters to the bound.

        Its slope moves that of the weights by at most itself times the largest |z| of a cell, about
        10 sqrt(genes).
        """
        if self.search is None or not self.fit_intercept or self.l2_intercept:
            return False
        slope, last = self.search.slope[:-1], float(self.search.slope[-1])
        share = 1e-3 * math.sqrt(dot(slope, slope) / len(slope))
        return abs(last) > max(share, 1e-15)

    def over(self, max_iter: int) -> bool:
        """Whether nothing is left to do."""
        search = self.search
        if search is None or self._polished is not None:
            return False
        if search.stuck and self.l2 == 0:  # nothing else tells that it fell no more
            self.converged = self._flat
        return self.converged or search.stuck or search.n_iter >= max_iter

    def end(self) -> Ended:
        """Give what was reached, and let go of the search."""
        search, bound = self.search, self.bound
        if search is None:
            raise RuntimeError("a problem ends after its first pass")
        self.search = None
        norm = math.sqrt(dot(search.slope, search.slope))
        return Ended(
            search.x, search.value, norm, bound, search.n_iter, search.n_eval, self.converged,
            self.objectives,
        )  # fmt: skip

    def note(self) -> None:
        """Note the objective that was reached after a pass."""
        if self.search is not None:
            self.objectives.append(float(self.search.value))

    def judge(self, tol: float) -> None:
        """Decide after a step whether this is the optimum."""
        if self.search is None:
            return
        value = self.search.value
        self._values.append(value)
        self._flat = bool(np.abs(self.search.slope).max() <= tol)
        if not self._flat:
            return
        if self.l2 == 0:
            fell = self._values[0] - value if len(self._values) == _LAST else math.inf
            self.converged = fell <= RELATIVE * tol * value
            return
        close = self.bound <= RELATIVE * tol * value
        can = self._intercept_is_off and self._bend > 0 and self._polishes < _POLISHES
        if can and (close or self.bound == math.inf):
            self._polishes += 1
            self._polished = self.search.x.copy()
            self._polished[-1] -= self.search.slope[-1] / self._bend
        else:
            self.converged = close


@dataclass(slots=True)
class Progress:
    """How far the classes are.

    Attributes
    ----------
    ended
        What is reached, by column.
    active
        Those under way.
    seconds
        Spent on each pass of the classes, of all groups.
    """

    ended: dict[int, Ended]
    active: list[Problem]
    seconds: list[float] = field(default_factory=list)


class Logistic:
    """One-vs-rest logistic regression by L-BFGS, all classes sharing each pass.

    A class ends when its largest slope is below `tol`, scikit-learn's rule, and its certificate
    below `RELATIVE` * tol of its objective. What is reached is then the optimum for practical
    purposes, whichever solver's name was asked for.

    Parameters
    ----------
    shift
        m of z = x' - m, shape (genes,); zero without centring.
    weights
        Of `problem_weights`, shape (n_classes, columns).
    counts
        Cells of each class, shape (n_classes,).
    penalty, tol, max_iter, fit_intercept
        As scikit-learn's LogisticRegression.
    threads
        They share the classes; their number does not change the result.
    memory
        Bytes for the solver's vectors. Where they do not suffice for all classes at once, the
        classes take turns in groups: more passes, the same weights.
    start
        Weights to begin from.
    """

    def __init__(
        self,
        shift: NDArray[np.float64],
        weights: NDArray[np.float64],
        counts: NDArray[np.int64],
        *,
        penalty: Penalty,
        tol: float,
        max_iter: int,
        fit_intercept: bool,
        threads: Threads,
        memory: float = math.inf,
        start: State | None = None,
    ) -> None:
        self._shift = np.asarray(shift, np.float64)
        self._weights, self._counts = weights, counts
        self._classes = column_classes(len(counts))
        self._penalty, self._tol, self._max_iter = penalty, tol, max_iter
        self._fit_intercept = fit_intercept
        self._threads = threads
        self._start = start
        size = self.nbytes(len(self._shift), int(counts.sum()))
        self._group = len(self._classes)
        if self._group * size > memory:
            self._group = max(1, int(memory // size))

    @staticmethod
    def nbytes(n_genes: int, n_obs: int) -> int:
        """Bytes of one class's vectors while it is being solved, over so many cells."""
        waiting = (n_obs // stretch_of(n_obs)).bit_length()  # slopes of stretches
        return (2 * MEMORY + 12 + waiting) * 8 * (n_genes + 1)

    def fit(
        self,
        sums: Sums,
        report: Callable[[int, int], None],
        before: Progress | None = None,
        keep: Keep | None = None,
    ) -> Solution:
        """Solve every class.

        Parameters
        ----------
        sums
            What passes over the cells.
        report
            Called with the cells read since the last call and the number of classes that have
            ended.
        before
            Where to go on from.
        keep
            Called after each pass with what gives the `Progress` then.
        """
        run = Progress({}, []) if before is None else before
        del run.active[self._group :]  # for which there is no room any more: they begin anew
        while len(run.ended) < len(self._classes):
            if not run.active:
                left = [k for k in range(len(self._classes)) if k not in run.ended]
                run.active = [self._problem(column) for column in left[: self._group]]
            self._solve(sums, run, report, keep)
        ended = [run.ended[column] for column in sorted(run.ended)]
        names = ("gradient_norm", "suboptimality", "objective", "n_iter", "n_passes", "converged")
        certificate = {name: np.array([getattr(e, name) for e in ended]) for name in names}
        x = np.array([e.x for e in ended])
        n_cells = int(self._counts.sum())
        history = of_passes([e.objectives for e in ended], run.seconds, n_cells)
        return Solution(x[:, :-1], x[:, -1], certificate, history)

    def _solve(
        self,
        sums: Sums,
        run: Progress,
        report: Callable[[int, int], None],
        keep: Keep | None,
    ) -> None:
        """Solve the active classes of a run."""
        while run.active:
            began, active = time.perf_counter(), run.active
            points = [self._first(p) if p.search is None else p.point for p in active]
            done = len(run.ended)
            loss, slope, bend = self._evaluate(sums, active, points, partial(_told, report, done))
            todo = list(zip(active, points, loss.tolist(), slope, bend.tolist(), strict=True))
            self._threads.each(lambda item: self._advance(*item), todo)
            number = len(active[0].objectives)  # all of a group are as far
            run.seconds += [0.0] * (number - len(run.seconds))
            run.seconds[number - 1] += time.perf_counter() - began
            # The vectors of a problem that has ended make room.
            run.ended |= {p.column: p.end() for p in active if p.over(self._max_iter)}
            run.active = [p for p in active if p.column not in run.ended]
            if keep is not None:
                keep(lambda: run)

    def _evaluate(
        self,
        sums: Sums,
        problems: list[Problem],
        points: list[NDArray[np.float64]],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean loss, its slope (n, genes + 1) and the intercept's curvature at each point."""
        columns = np.array([p.column for p in problems])
        weight = np.array([p.weight for p in problems])
        W = np.ascontiguousarray(np.array([x[:-1] for x in points]).T)
        # One by one: a product with the matrix would sum in an order that depends on its width.
        constant = np.array([x[-1] - dot(self._shift, x[:-1]) for x in points])
        loss, slope, total, bend = sums(columns, W, constant, report)
        slope -= np.outer(self._shift, total)
        gradient = np.hstack([slope.T, total[:, None]])
        gradient /= weight[:, None]
        return loss / weight, gradient, bend / weight

    def _problem(self, column: int) -> Problem:
        weight = float((self._weights[:, column] * self._counts).sum())
        return Problem(column, weight, self._penalty, len(self._shift), self._fit_intercept)

    def _first(self, problem: Problem) -> NDArray[np.float64]:
        """Where to start: given weights, or none and the log odds of the class."""
        column = problem.column
        if self._start is not None:
            intercept = self._start.intercept[column] if self._fit_intercept else 0.0
            return np.append(self._start.coef[column].astype(np.float64), intercept)
        x = np.zeros(len(self._shift) + 1)
        if self._fit_intercept and self._penalty.intercept_scaling is None:
            of = self._classes[column]
            inside = self._weights[of, column] * self._counts[of]
            x[-1] = math.log(inside / (problem.weight - inside))
        return x

    def _advance(
        self,
        problem: Problem,
        x: NDArray[np.float64],
        loss: float,
        slope: NDArray[np.float64],
        bend: float,
    ) -> None:
        stepped = problem.take(x, loss, slope, bend)
        problem.note()
        if stepped:
            problem.judge(self._tol)


class Sums(Protocol):
    """One pass over the cells."""

    def __call__(
        self,
        columns: NDArray[np.int64],
        W: NDArray[np.float64],
        constant: NDArray[np.float64],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], ...]:
        """Sum the weighted loss, its slope by x' W, residuals and curvatures, over all cells.

        Parameters
        ----------
        columns
            Problems to evaluate, shape (n,).
        W, constant
            Scores are x' W + constant; shape (genes, n) and (n,).
        report
            Called with numbers of cells as they are read.

        Returns
        -------
        loss, slope, total, bend
            Shape (n,), (genes, n), (n,), (n,); float64.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """What `Sums` sums; two of them add up."""

    loss: NDArray[np.float64]
    slope: NDArray[np.float64]
    total: NDArray[np.float64]
    bend: NDArray[np.float64]

    @classmethod
    def empty(cls, n_genes: int, n_columns: int) -> Pass:
        """Of no cells."""
        loss, total, bend = np.zeros((3, n_columns))
        return cls(loss, np.zeros((n_genes, n_columns)), total, bend)

    def __add__(self, other: Pass) -> Pass:
        return Pass(*(a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)))

    def arrays(self) -> tuple[NDArray[np.float64], ...]:
        """As `Sums` gives them."""
        return self.loss, self.slope, self.total, self.bend


class TileSums:
    """`Sums` on the CPU. Threads share the cells for the scores and the genes for the slope.

    A cell's scores and a gene's sum are each made by one thread in a fixed order, so neither the
    number of threads nor the cut into tiles changes the result. Stretches of cells add up two by
    two, as on a cluster, which so gives the same bits.

    Parameters
    ----------
    tiles
        The scaled cells, none of whose blocks lie in two stretches.
    weights
        Of `problem_weights`.
    threads
        Who works.
    stretch
        Cells of a stretch; None for one alone.
    """

    def __init__(
        self, tiles: Tiles, weights: NDArray[np.float64], threads: Threads,
        stretch: int | None = None,
    ) -> None:  # fmt: skip
        self._tiles, self._weights, self._threads = tiles, weights, threads
        self._classes = column_classes(len(weights))
        self._stretch = stretch or max(1, tiles.n_obs)

    def __call__(
        self,
        columns: NDArray[np.int64],
        W: NDArray[np.float64],
        constant: NDArray[np.float64],
        report: Callable[[int], None],
    ) -> tuple[NDArray[np.float64], ...]:
        """Sum over all cells; see `Sums`."""
        of, weights = self._classes[columns], np.ascontiguousarray(self._weights[:, columns])
        sums: PairwiseSum[Pass] = PairwiseSum()
        one, at = Pass.empty(*W.shape), 0
        for block in self._tiles:
            if at and at % self._stretch == 0:
                sums.add(one, at // self._stretch - 1)
                one = Pass.empty(*W.shape)
            parts = np.empty((3, len(block.codes), len(columns)))
            self._threads.share(
                len(block.tile_cells),
                partial(_residuals, block, of, weights, W, constant, *parts),
            )
            self._threads.share(len(W), partial(_slopes, block, parts[1], one.slope))
            for part, into in zip(parts, (one.loss, one.total, one.bend), strict=True):
                kernel.add_rows(part, into)
            at += len(block.codes)
            report(len(block.codes))
        sums.add(one, max(0, at - 1) // self._stretch)
        return sums.total(one).arrays()


def _residuals(block: Block, *rest: Any) -> None:
    *given, first, stop = rest
    kernel.residuals(first, stop, *block.arrays(), *given)


def _slopes(
    block: Block, residual: NDArray[np.float64], slope: NDArray[np.float64], first: int, stop: int
) -> None:
    kernel.slopes(
        first, stop, block.tile_cells, block.tile_genes, block.counts, block.genes, block.cells,
        block.values, residual, slope,
    )  # fmt: skip


def _told(report: Callable[[int, int], None], ended: int, n: int) -> None:
    report(n, ended)
