"""Names of losses and schedules, as scikit-learn's, in; codes of the kernels and step sizes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import losses
from streamtrain.kernels.sgd import PASSIVE_1, PASSIVE_2

LearningRate = Literal["optimal", "constant", "invscaling", "adaptive", "pa1", "pa2"]
Penalty = Literal["l2", "l1", "elasticnet"]
Loss = Literal[
    "log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron", "squared_error", "huber",
    "epsilon_insensitive", "squared_epsilon_insensitive",
]  # fmt: skip
LOSSES: dict[str, int] = {
    "log_loss": losses.LOG,
    "hinge": losses.HINGE,
    "modified_huber": losses.MODIFIED_HUBER,
    "squared_hinge": losses.SQUARED_HINGE,
    "perceptron": losses.PERCEPTRON,
    "squared_error": losses.SQUARED_ERROR,
    "huber": losses.HUBER,
    "epsilon_insensitive": losses.EPSILON_INSENSITIVE,
    "squared_epsilon_insensitive": losses.SQUARED_EPSILON_INSENSITIVE,
}
PASSIVE: dict[str, int] = {"pa1": PASSIVE_1, "pa2": PASSIVE_2}
SPARSE_INTERCEPT_RATE = 0.01  # of the intercept's step on sparse input, scikit-learn's
SLOWER = 5  # divides the step of an "adaptive" class that stops improving, scikit-learn's


@dataclass(frozen=True, slots=True)
class Schedule:
    """Step size and penalty of each step, as scikit-learn's.

    "optimal" is 1 / (alpha (t0 + t - 1)) with t0 = 1 / (alpha sqrt(1 / sqrt(alpha))), Bottou's
    heuristic; "constant" eta0; "invscaling" eta0 / t^power_t; "adaptive" eta0 until `SGD.slow`;
    "pa1" and "pa2" are the passive-aggressive steps of Crammer et al. (2006), whose C is eta0.
    The penalty is alpha times |W|^2 / 2 ("l2"), |W|_1 ("l1"), their mean weighted by l1_ratio
    ("elasticnet"), or none.
    """

    learning_rate: LearningRate = "optimal"
    alpha: float = 1e-4
    eta0: float = 0.01
    power_t: float = 0.5
    penalty: Penalty | None = "l2"
    l1_ratio: float = 0.15

    @property
    def l1_share(self) -> float:
        """Share of alpha in the L1 penalty."""
        return {"l1": 1.0, "elasticnet": self.l1_ratio}.get(self.penalty or "", 0.0)

    def steps(self, t: float, n: int) -> NDArray[np.float64]:
        """Step sizes of the steps t, t + 1, ..., t + n - 1."""
        count = t + np.arange(n, dtype=np.float64)
        if self.learning_rate == "optimal":
            t0 = 1 / (math.sqrt(1 / math.sqrt(self.alpha)) * self.alpha)
            return 1 / (self.alpha * (t0 + count - 1))
        if self.learning_rate == "invscaling":
            return self.eta0 / np.power(count, self.power_t)
        return np.full(n, self.eta0)

    def decays(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors of the weights before each step."""
        if self.penalty is None:
            return np.ones(len(steps))
        return np.maximum(0.0, 1.0 - (1.0 - self.l1_share) * steps * self.alpha)
