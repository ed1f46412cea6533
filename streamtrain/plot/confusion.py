"""An evaluation enters; the figure of its confusion matrix leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamtrain.plot.figures import (
    GREY,
    INK,
    RULE,
    SHADES,
    colour_bar,
    inches_of,
    label_columns,
    new_figure,
    short,
    similar_order,
    type_size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from streamtrain.evaluate import Evaluation

_ANNOTATED = 15  # more types than this, and the counts are too small to read


def confusion_matrix(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw which cell types are taken for which: rows are the truth and sum to 100 %.

    Types that are confused stand side by side (leaf order of average linkage on the confusion);
    labels that occur only as predictions come last, behind a line. Colour follows the square root,
    so that a confusion of a few per cent shows, in one hue from light to dark.

    Parameters
    ----------
    evaluation
        What `evaluate` or `evaluate_model` gave.
    ax
        Where to draw; by default a figure of its own, sized to the number of types.

    Returns
    -------
    Axes
        The axes; `.figure` is the figure, for `save_figure`.
    """
    from matplotlib.colors import PowerNorm

    table = evaluation.confusion
    order = _confused_order(table.to_numpy()[:, : len(table)])
    rows = [short(str(table.index[i])) for i in order]
    table = table.iloc[order, [*order, *range(len(rows), table.shape[1])]]
    columns = [short(str(name)) for name in table.columns]
    counts = table.to_numpy()
    share = counts / counts.sum(axis=1, keepdims=True)  # a row is a type of the truth: never empty

    axes = _new_axes(rows, columns) if ax is None else ax
    image = axes.imshow(
        share, cmap=SHADES, norm=PowerNorm(0.5, 0, 1), aspect="equal", interpolation="none"
    )
    _label(axes, columns, rows, counts.sum(axis=1))
    if len(rows) < counts.shape[1]:
        axes.axvline(len(rows) - 0.5, color=GREY, linewidth=1)
    if max(counts.shape) <= _ANNOTATED:
        _annotate(axes, counts, share)
    axes.set_title(
        f"accuracy {evaluation.accuracy:.3f}, macro F1 {evaluation.macro_f1:.3f}, "
        f"{evaluation.n_cells:,} cells",
        loc="left",
        fontsize=9,
        color=GREY,
        pad=8,
    )
    percent = [0, 1, 5, 10, 25, 50, 100]
    bar = colour_bar(axes, image, "% of the true type's cells")
    bar.set_ticks([p / 100 for p in percent], labels=[str(p) for p in percent])
    return axes


def _confused_order(counts: NDArray[Any]) -> list[int]:
    """Order types so that those taken for each other are neighbours, from counts (types, types)."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return similar_order(1 - (share + share.T) / 2)


def _new_axes(rows: list[str], columns: list[str]) -> Axes:
    """Make axes in a figure that leaves room for the longest names."""
    most = max(len(rows), len(columns))
    cell = float(np.clip(6.5 / most, 0.165, 0.5))  # inches; 0.165 fits 7 pt type
    left = inches_of(rows, most) + inches_of(["x" * 10], most) + 1.4  # with support
    below = inches_of(columns, most) + 1
    return new_figure(cell * len(columns) + left, cell * len(rows) + below).add_subplot()


def _label(axes: Axes, columns: list[str], rows: list[str], support: NDArray[Any]) -> None:
    size = type_size(max(len(columns), len(rows)))
    label_columns(axes, columns, size)
    named = [f"{name}  ({n:,})" for name, n in zip(rows, support, strict=True)]
    axes.set_yticks(range(len(rows)), named, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted cell type", color=INK, labelpad=8)
    axes.set_ylabel("true cell type (cells)", color=INK, labelpad=8)
    axes.tick_params(length=0, colors=INK)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(RULE)


def _annotate(axes: Axes, counts: NDArray[Any], share: NDArray[Any]) -> None:
    for (row, column), n in np.ndenumerate(counts):
        if n:
            colour = "white" if share[row, column] > 0.3 else INK
            axes.text(column, row, f"{n:,}", ha="center", va="center", fontsize=7, color=colour)
