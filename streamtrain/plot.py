"""An evaluation enters; a figure leaves, drawn without a display or pyplot's global state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamtrain import atomic
from streamtrain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from streamtrain.evaluate import Evaluation

_ANNOTATED = 15  # more types than this, and the counts are too small to read
_INK, _GREY = "#1a1a2e", "#6b7280"


def confusion_matrix(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Draw which cell types are taken for which: rows are the truth and sum to 100 %.

    Types that are confused stand side by side (leaf order of average linkage on the confusion);
    labels that occur only as predictions come last, behind a line. Colour follows the square root,
    so that a confusion of a few per cent shows, in one hue from light to dark.

    Parameters
    ----------
    evaluation
        What `evaluate` gave.
    ax
        Where to draw; by default a figure of its own, sized to the number of types.

    Returns
    -------
    Axes
        The axes; `.figure` is the figure, for `save_figure`.
    """
    from matplotlib.colors import PowerNorm

    table = evaluation.confusion
    order = _similar_order(table.to_numpy()[:, : len(table)])
    rows = [table.index[i] for i in order]
    table = table.loc[rows, rows + list(table.columns[len(rows) :])]
    counts = table.to_numpy()
    share = counts / counts.sum(axis=1, keepdims=True)  # a row is a type of the truth: never empty

    axes = _new_axes(rows, table.columns.tolist()) if ax is None else ax
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal")
    _label(axes, table.columns.tolist(), rows, counts.sum(axis=1))
    if len(rows) < counts.shape[1]:
        axes.axvline(len(rows) - 0.5, color=_GREY, linewidth=1)
    if max(counts.shape) <= _ANNOTATED:
        _annotate(axes, counts, share)
    axes.set_title(
        f"accuracy {evaluation.accuracy:.3f}    macro F1 {evaluation.macro_f1:.3f}"
        f"    {evaluation.n_cells:,} cells",
        loc="left",
        fontsize=9,
        color=_GREY,
        pad=8,
    )
    _colour_bar(axes, image)
    return axes


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, overwrite: bool = False, dpi: float = 200
) -> None:
    """Write a figure to `path`, whole or not at all, in the format that its suffix names.

    Parameters
    ----------
    figure
        The figure, such as `confusion_matrix(...).figure`.
    path
        Where the picture shall stand: .png, .pdf, .svg and what else matplotlib writes.
    overwrite
        Whether a file that stands there is replaced.
    dpi
        Dots per inch, for formats made of dots.

    Raises
    ------
    InputError
        The suffix names no format, or the path cannot be written or exists.
    """
    suffix = Path(path).suffix.lower().lstrip(".")
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(
            f"cannot tell a picture format from {str(path)!r}: end it in one of "
            + ", ".join(f".{k}" for k in sorted(known))
        )
    with atomic.replacing(path, overwrite, folder=False) as partial:
        figure.savefig(partial, format=suffix, dpi=dpi, bbox_inches="tight", facecolor="white")


def _similar_order(counts: NDArray[Any]) -> list[int]:
    """Order types so that those taken for each other are neighbours, from counts (types, types)."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return list(range(len(counts)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return [int(i) for i in leaves_list(tree)]


def _new_axes(rows: list[str], columns: list[str]) -> Axes:
    """Make axes in a figure that leaves room for the longest names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(len(rows), len(columns))
    cell = float(np.clip(9 / most, 0.19, 0.55))  # inches; 0.19 fits 7 pt type
    letter = _type_size(most) / 72 * 0.62  # inches, a little over the mean width
    left = letter * (max(map(len, rows)) + 10) + 1.4  # the support, the axis label, the colour bar
    below = letter * max(map(len, columns)) + 1
    figure = Figure((cell * len(columns) + left, cell * len(rows) + below), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _type_size(n_labels: int) -> int:
    return 9 if n_labels <= 25 else 7


def _label(axes: Axes, columns: list[str], rows: list[str], support: NDArray[Any]) -> None:
    size = _type_size(max(len(columns), len(rows)))
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    named = [f"{name}  ({n:,})" for name, n in zip(rows, support, strict=True)]
    axes.set_yticks(range(len(rows)), named, fontsize=size)
    axes.set_xlabel("predicted cell type", color=_INK, labelpad=8)
    axes.set_ylabel("true cell type (cells)", color=_INK, labelpad=8)
    axes.tick_params(length=0, colors=_INK)
    axes.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color("#d1d5db")


def _annotate(axes: Axes, counts: NDArray[Any], share: NDArray[Any]) -> None:
    for (row, column), n in np.ndenumerate(counts):
        if n:
            colour = "white" if share[row, column] > 0.3 else _INK
            axes.text(column, row, f"{n:,}", ha="center", va="center", fontsize=7, color=colour)


def _colour_bar(axes: Axes, image: Any) -> None:
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    percent = [0, 1, 5, 10, 25, 50, 100]
    bar.set_ticks([p / 100 for p in percent], labels=[str(p) for p in percent])
    bar.set_label("% of the true type's cells", color=_INK, fontsize=9)
    bar.ax.tick_params(length=0, labelsize=8, colors=_INK)
    bar.outline.set_visible(False)
