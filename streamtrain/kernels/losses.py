"""Losses of linear classifiers: a score and a label in, a loss or its slope out.

They are scikit-learn's, with y = 1 for a cell of the class and 0 for another; where theirs is a
regression's, it is on labels of 1 and -1.
"""

from __future__ import annotations

import math

from streamtrain.kernels.jit import jit

(
    LOG, HINGE, MODIFIED_HUBER, SQUARED_HINGE, PERCEPTRON, SQUARED_ERROR, HUBER,
    EPSILON_INSENSITIVE, SQUARED_EPSILON_INSENSITIVE,
) = range(9)  # fmt: skip
STEEPEST = 1e12  # scikit-learn's limit of a slope; only squares come near it


@jit
def gradient(loss, epsilon, y, score):
    """Slope of the loss at `score`."""
    if loss == LOG:  # exact where the probability rounds to 0 or 1
        if score > -37:
            e = math.exp(-score)
            return ((1 - y) - y * e) / (1 + e)
        return math.exp(score) - y
    sign = 2 * y - 1
    margin = sign * score
    if loss == HINGE:
        return -sign if margin <= 1 else 0.0
    if loss == PERCEPTRON:
        return -sign if margin <= 0 else 0.0
    if loss == MODIFIED_HUBER:
        if margin >= 1:
            return 0.0
        return -2 * (1 - margin) * sign if margin >= -1 else -4 * sign
    if loss == SQUARED_HINGE:
        slope = -2 * (1 - margin) * sign if margin < 1 else 0.0
        return min(max(slope, -STEEPEST), STEEPEST)
    residual = score - sign
    if loss == SQUARED_ERROR:
        return min(max(residual, -STEEPEST), STEEPEST)
    if loss == HUBER:
        return min(max(residual, -epsilon), epsilon)
    if abs(residual) <= epsilon:
        return 0.0
    side = 1.0 if residual > 0 else -1.0
    if loss == EPSILON_INSENSITIVE:
        return side
    return min(max(2 * (residual - side * epsilon), -STEEPEST), STEEPEST)


@jit
def loss_value(loss, epsilon, y, score):
    """The loss whose slope `gradient` is."""
    if loss == LOG:
        return max(score, 0.0) + math.log1p(math.exp(-abs(score))) - y * score
    margin = (2 * y - 1) * score
    if loss == HINGE:
        return max(0.0, 1 - margin)
    if loss == PERCEPTRON:
        return max(0.0, -margin)
    if loss == MODIFIED_HUBER:
        return max(0.0, 1 - margin) ** 2 if margin >= -1 else -4 * margin
    if loss == SQUARED_HINGE:
        return max(0.0, 1 - margin) ** 2
    off = abs(1 - margin)  # |score - sign|
    if loss == SQUARED_ERROR:
        return 0.5 * off * off
    if loss == HUBER:
        return 0.5 * off * off if off <= epsilon else epsilon * (off - 0.5 * epsilon)
    off = max(0.0, off - epsilon)
    return off if loss == EPSILON_INSENSITIVE else off * off
