"""One smooth problem's loss and slope in, the next point to try out: L-BFGS, asked and told.

The caller evaluates, so that many problems can share one pass over the data.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import lbfgs as kernel

Vector = NDArray[np.float64]

MEMORY = 10  # pairs of steps and changes of slope that are kept, as SciPy's default
_DESCENT, _CURVATURE = 1e-4, 0.9  # Wolfe's conditions on a step, as Nocedal and Wright put them
_FLAT = 10  # steps without a fall after which the numbers' precision is the limit
_TRIALS = 40  # points tried along a direction before it is given up


class LBFGS:
    """Minimise f(x) + sum(l1 |x|), f smooth and convex, by limited-memory BFGS.

    Nocedal and Wright, *Numerical Optimization*, algorithms 7.4 and 7.5; the step is bracketed and
    interpolated until it meets Wolfe's conditions. With `l1` the slope is that of steepest descent
    and steps stay in their orthant: OWL-QN (Andrew and Gao, ICML 2007).

    Parameters
    ----------
    x
        Where to start, shape (n,).
    value, slope
        f and its gradient there.
    l1
        Weight of each |x|, shape (n,), or None.

    Attributes
    ----------
    x, value
        Best point so far and the whole objective there.
    slope
        Gradient of f at x; with `l1` the subgradient of the objective that is nearest to zero.
    n_iter, n_eval
        Steps taken, and points evaluated, the first included.
    stuck
        Whether no step along the steepest descent lowers the objective any more: as far as the
        numbers' precision goes, x is the minimum.
    """

    def __init__(self, x: Vector, value: float, slope: Vector, l1: Vector | None = None) -> None:
        self.l1 = l1
        self.n_iter, self.n_eval, self.stuck = 0, 1, False
        # Rings of steps, changes of slope and their inner products; the oldest is replaced.
        self._steps, self._changes = np.empty((MEMORY, len(x))), np.empty((MEMORY, len(x)))
        self._curvature = np.empty(MEMORY)
        self._oldest = self._kept = 0
        self._direction = np.empty(len(x))
        self._flat = 0  # steps in a row that lowered nothing
        self._stand(x, value, slope)

    def _stand(self, x: Vector, value: float, smooth: Vector) -> None:
        self.x, self._smooth = x, smooth
        self.value = value if self.l1 is None else value + kernel.dot(self.l1, np.abs(x))
        self.slope = smooth if self.l1 is None else _nearest_subgradient(x, smooth, self.l1)
        self._aim()

    def _aim(self) -> None:
        """Choose the direction from here, and the first step along it."""
        kernel.direction(
            self._steps, self._changes, self._curvature, self._oldest, self._kept, self.slope,
            self._direction,
        )  # fmt: skip
        if self.l1 is not None:
            self._direction[self._direction * self.slope >= 0] = 0.0
            self._orthant = np.where(self.x != 0, np.sign(self.x), -np.sign(self.slope))
        self._along = kernel.dot(self.slope, self._direction)
        norm = math.sqrt(kernel.dot(self._direction, self._direction))
        self._step = 1.0 if self._kept else min(1.0, 1 / norm if norm else 1.0)
        self._tries = 0
        # Steps that are too short and too long, with objective and slope along the direction.
        self._short = (0.0, self.value, self._along)
        self._long: float | None = None
        if self._along >= 0:
            self._give_up()

    def trial(self) -> Vector:
        """Give the point to evaluate next, shape (n,)."""
        point = self.x + self._step * self._direction
        if self.l1 is not None:
            point[np.sign(point) != self._orthant] = 0.0
        return point

    def tell(self, value: float, slope: Vector) -> bool:
        """Take f and its gradient at `trial()`; tells whether a step was taken."""
        self.n_eval += 1
        self._tries += 1
        point = self.trial()
        whole = value if self.l1 is None else value + kernel.dot(self.l1, np.abs(point))
        # With l1 the step bends at the orthant's faces, so descent is measured on what it moved.
        moved = point - self.x if self.l1 is not None else None
        promised = self._step * self._along if moved is None else kernel.dot(self.slope, moved)
        along = kernel.dot(slope, self._direction)
        noise = 4 * np.finfo(np.float64).eps * abs(self.value)
        if not whole <= self.value + _DESCENT * promised + noise:  # NaN is too long as well
            self._long = self._step
            at, there, its = self._short
            self._step = _interpolate(at, there, its, self._step, whole, along)
        elif self.l1 is None and along < _CURVATURE * self._along:
            self._short = (self._step, whole, along)
            self._step = 4 * self._step if self._long is None else (self._step + self._long) / 2
        else:
            self.move(point, value, slope)
            return True
        if self._tries >= _TRIALS:
            self._give_up()
        return False

    def move(self, point: Vector, value: float, slope: Vector) -> None:
        """Go to a point, with f and its gradient there."""
        before = self.value
        s, y = point - self.x, slope - self._smooth
        curvature = kernel.dot(s, y)
        if curvature > np.finfo(np.float64).eps * kernel.dot(y, y):
            place = (self._oldest + self._kept) % MEMORY
            self._steps[place], self._changes[place] = s, y
            self._curvature[place] = curvature
            if self._kept < MEMORY:
                self._kept += 1
            else:
                self._oldest = (self._oldest + 1) % MEMORY
        self.n_iter += 1
        self._stand(point, value, slope)
        self._flat = 0 if self.value < before else self._flat + 1
        if self._flat == _FLAT:
            self.stuck = True

    def _give_up(self) -> None:
        """Forget the curvature and try along the steepest descent; if that was it, stop."""
        if not self._kept:
            self.stuck = True
            return
        self._kept = 0
        self._aim()


def _nearest_subgradient(x: Vector, slope: Vector, l1: Vector) -> Vector:
    at_zero = np.sign(slope) * np.maximum(np.abs(slope) - l1, 0.0)
    return np.where(x != 0, slope + l1 * np.sign(x), at_zero)


def _interpolate(a: float, fa: float, ga: float, b: float, fb: float, gb: float) -> float:
    """Minimum of the cubic through two points with slopes, kept off the ends by a tenth."""
    middle = (a + b) / 2
    if not (math.isfinite(fb) and math.isfinite(gb)):
        return a + (b - a) / 10
    d1 = ga + gb - 3 * (fa - fb) / (a - b)
    square = d1 * d1 - ga * gb
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), b - a)
    below = gb - ga + 2 * d2
    t = b - (b - a) * (gb + d2 - d1) / below if below else middle
    margin = (b - a) / 10
    return min(max(t, a + margin), b - margin)
