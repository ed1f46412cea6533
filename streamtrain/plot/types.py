"""A model or an evaluation enters; a figure with a row for each cell type leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamtrain.errors import InputError
from streamtrain.plot.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    inches_of,
    label_rows,
    legend,
    name_axes,
    new_figure,
    plain,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from streamtrain.evaluate import Evaluation
    from streamtrain.model import Model

_NEAR = (1, 1.5, 2, 3, 5, 7)  # ticks of a decade, where there is hardly more than one


def class_balance(model: Model, ax: Axes | None = None) -> Axes:
    """Draw how many cells of each type training had and, where SGD drew them, how many it took.

    Types stand by their cells, the most first. The axis is logarithmic.

    Parameters
    ----------
    model
        One that knows its cells of each type.
    ax
        Where to draw; by default a figure of its own, sized to the number of types.

    Raises
    ------
    InputError
        The model does not know them, as CellTypist's.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    data = model.dataset
    if "n_cells" not in data:
        raise InputError(
            "the model does not say how many cells of each type it was trained on, as CellTypist's "
            "do not: pass one that streamtrain trained"
        )
    order = np.argsort(-data["n_cells"].to_numpy(), kind="stable")
    names = [short(str(name)) for name in model.cell_types[order]]
    held = data["n_cells"].to_numpy()[order]
    drawn = data["n_drawn"].to_numpy()[order] if "n_drawn" in data else None
    axes = _rows(names) if ax is None else ax
    places = np.arange(len(names))
    if drawn is not None:
        axes.hlines(places, held, drawn, color="#9ca3af", linewidth=1)
        axes.plot(drawn, places, "o", color=BLUE, markersize=4.5, label="cells drawn by SGD")
    axes.plot(held, places, "D", color=ORANGE, markersize=4, label="cells in the atlas")
    every = held if drawn is None else np.concatenate([held, drawn])
    if every.min() > 0:
        axes.set_xscale("log")
        if every.max() < 1000 * every.min():
            near = every.max() < 20 * every.min()
            axes.xaxis.set_major_locator(LogLocator(subs=_NEAR if near else (1, 2, 5)))
    else:
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(-0.1, None)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    label_rows(axes, names)
    plain(axes, grid="both")
    _keep_type(axes, names)
    name_axes(axes, "cells", "")
    legend(axes)
    return axes


def f1_by_type(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw the F1 of each cell type, the best first, on a line from its precision to its recall.

    Parameters
    ----------
    evaluation
        What `evaluate` or `evaluate_model` gave.
    ax
        Where to draw; by default a figure of its own, sized to the number of types.
    """
    table = evaluation.per_type
    table = table.iloc[np.argsort(-table["f1"].to_numpy(), kind="stable")]
    precision, recall, f1 = (table[name].to_numpy() for name in ("precision", "recall", "f1"))
    named = [f"{short(str(name))}  ({n:,})" for name, n in table["support"].items()]
    axes = _rows(named) if ax is None else ax
    places = np.arange(len(named))
    axes.axvline(evaluation.macro_f1, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.hlines(places, precision, recall, color="#9ca3af", linewidth=1)
    axes.plot(
        precision, places, "|", color=INK, markersize=6, label="precision", markeredgewidth=1.2
    )
    axes.plot(
        recall, places, "o", markerfacecolor="white", markersize=4.5, label="recall", color=GREY
    )
    axes.plot(f1, places, "o", color=BLUE, markersize=4.5, label="F1")
    axes.set_xlim(-0.02, 1.02)
    label_rows(axes, named)
    plain(axes, grid="both")
    _keep_type(axes, named)
    name_axes(axes, f"macro F1 {evaluation.macro_f1:.3f} (dashed)", "cell type (cells)")
    legend(axes)
    return axes


def _rows(names: Sequence[str]) -> Axes:
    """Make axes in a figure with a line for each name."""
    line = float(np.clip(6 / len(names), 0.16, 0.26))
    n = len(names)
    return new_figure(4.2 + inches_of(names, n), max(line * n + 0.9, 1.9)).add_subplot()


def _keep_type(axes: Axes, names: Sequence[str]) -> None:
    """Names of rows in their own size; `plain` gives all labels one."""
    from streamtrain.plot.figures import type_size

    axes.tick_params(axis="y", labelsize=type_size(len(names)))
