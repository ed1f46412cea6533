"""A model enters, and the curve of its training leaves; an evaluation, and how sure its calls are.

The probabilities are those of the best match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from streamtrain.errors import InputError, near
from streamtrain.plot.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RULE,
    legend,
    name_axes,
    new_figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from streamtrain.evaluate_model import ModelEvaluation
    from streamtrain.model import Model

# What a history may hold, and how it is called.
QUANTITIES = {
    "loss": "mean loss",
    "objective": "objective",
    "macro_f1": "macro F1, held out",
    "accuracy": "accuracy, held out",
    "learning_rate": "learning rate",
    "speed": "cells per second",
}
_FEW = 40  # points that are marked
_SPREAD = 30  # from so large a ratio on a logarithmic axis


def history_of(model: Model) -> pd.DataFrame | None:
    """What a model says of each epoch or pass of its training; None where it does not.

    Returns
    -------
    DataFrame
        Index `epoch` or `pass`; what is known of `QUANTITIES`, speed being `n_cells / seconds`.
    """
    history = model.history
    if history is None:
        return None
    if {"n_cells", "seconds"} <= set(history):
        seconds = history["seconds"].to_numpy(np.float64)
        history["speed"] = history["n_cells"] / np.where(seconds > 0, seconds, np.nan)
    known = [name for name in QUANTITIES if name in history and history[name].notna().any()]
    return history[known].astype(np.float64) if known else None


def training_curve(model: Model, ax: Axes | None = None, *, quantity: str | None = None) -> Axes:
    """Draw how training went, over its epochs or passes.

    Parameters
    ----------
    model
        A model that has a history.
    ax
        Where to draw; by default a figure of its own.
    quantity
        "loss", "objective", "macro_f1", "accuracy", "learning_rate" or "speed" (cells per second);
        by default the first of these that is known.

    Raises
    ------
    InputError
        The model has no history, or none of this quantity.
    """
    from matplotlib.ticker import MaxNLocator

    history = history_of(model)
    if history is None:
        raise InputError(
            "the model has no history of its training, as CellTypist's and older ones have none: "
            "pass one that streamtrain trained"
        )
    if quantity is None:
        quantity = str(history.columns[0])
    if quantity not in history:
        raise InputError(
            f"the model's history has no {quantity!r}: {near(str(quantity), map(str, history))}"
        )
    values = history[quantity].dropna()
    axes = new_figure(4.6, 2.7).add_subplot() if ax is None else ax
    marker = "o" if len(values) <= _FEW else ""
    axes.plot(values.index, values, color=BLUE, linewidth=1.5, marker=marker, markersize=3.5)
    least, most = values.min(), values.max()
    if least > 0 and most > _SPREAD * least:
        axes.set_yscale("log")
    elif quantity == "speed":
        axes.set_ylim(0, 1.15 * most)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes, grid="y")
    name_axes(axes, str(history.index.name), QUANTITIES[quantity])
    axes.annotate(
        _worded(float(values.iloc[-1])), (values.index[-1], values.iloc[-1]), (0, 6), fontsize=8,
        textcoords="offset points", ha="right", color=INK, fontweight="bold",
    )  # fmt: skip
    return axes


def _worded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def calibration_curve(evaluation: ModelEvaluation, ax: Axes | None = None) -> Axes:
    """Draw how often calls are right beside their probability: on the diagonal it is the same.

    Points are bins of equal width, with 95 % intervals (Wilson 1927) and their cells above. Both
    coordinates are means over the cells of the bin.

    Parameters
    ----------
    evaluation
        What `evaluate_model` gave.
    ax
        Where to draw; by default a figure of its own.
    """
    curve = evaluation.calibration
    curve = curve[curve["n_cells"] > 0]
    n = curve["n_cells"].to_numpy()
    p, right = (curve[name].to_numpy() for name in ("probability", "accuracy"))
    axes = new_figure(4.6, 4.4).add_subplot() if ax is None else ax
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    low, high = _wilson(right, n)
    axes.vlines(p, low, high, color=BLUE, linewidth=1.2, alpha=0.6)
    axes.plot(p, right, color=BLUE, linewidth=1.2, marker="o", markersize=5)
    for x, cells in zip(p, n, strict=True):
        axes.text(
            x, 1.04, f"{cells:,}", rotation=90, ha="center", va="bottom", fontsize=7, color=GREY
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    plain(axes, grid="both")
    name_axes(axes, "probability of the call (above: cells)", "share of calls that are right")
    return axes


def _wilson(
    share: NDArray[np.float64], n: NDArray[Any], z: float = 1.96
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of a share of `n`: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)."""
    middle = share + z**2 / (2 * n)
    reach = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)


def calls_by_probability(evaluation: ModelEvaluation) -> pd.DataFrame:
    """Count right and wrong calls in each bin of probability; index: its ends, a MultiIndex."""
    curve = evaluation.calibration.set_index(["above", "up_to"])
    n = curve["n_cells"].to_numpy()
    right = np.rint(n * np.nan_to_num(curve["accuracy"].to_numpy())).astype(np.int64)
    return pd.DataFrame({"right": right, "wrong": n - right}, index=curve.index)


def probability_histogram(evaluation: ModelEvaluation, ax: Axes | None = None) -> Axes:
    """Draw how probable right calls are, and wrong ones, each as per cent of its own number.

    Parameters
    ----------
    evaluation
        What `evaluate_model` gave.
    ax
        Where to draw; by default a figure of its own.
    """
    calls = calls_by_probability(evaluation)
    edges = [*calls.index.get_level_values("above"), 1.0]
    axes = new_figure(4.6, 4.4).add_subplot() if ax is None else ax
    looks = {"right": (BLUE, "-", 0.18), "wrong": (ORANGE, (0, (3, 1)), 0.22)}
    for name, (colour, line, alpha) in looks.items():
        n = int(calls[name].sum())
        share = 100 * calls[name].to_numpy() / max(n, 1)
        axes.stairs(share, edges, fill=True, color=colour, alpha=alpha)
        axes.stairs(
            share, edges, color=colour, linewidth=1.6, linestyle=line, label=f"{n:,} {name} calls"
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, None)
    plain(axes, grid="y")
    axes.spines["left"].set_color(RULE)
    name_axes(axes, "probability of the call", "% of these calls")
    legend(axes)
    return axes
