"""Sums of expression, or a model, enter; a figure of the genes that mark each type leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamtrain.config import require_number
from streamtrain.errors import InputError, some
from streamtrain.plot.figures import (
    BOTH_WAYS,
    INK,
    RULE,
    SHADES,
    colour_bar,
    inches_of,
    label_columns,
    label_rows,
    legend,
    name_axes,
    new_figure,
    plain,
    short,
    similar_order,
    type_size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from streamtrain.model import Model
    from streamtrain.report.expression import MarkerExpression

MOST_GENES = 150  # of a figure
_LEAST = 3.2  # inches of the axes: what the legend above them takes


def per_type(n_types: int, markers: int) -> int:
    """How many genes of each type a figure has room for, one at least and `markers` at most."""
    return max(1, min(markers, MOST_GENES // n_types))


def marker_genes(model: Model, types: NDArray[Any], markers: int) -> list[str]:
    """Name the top markers of some of a model's types, in their order, each gene once."""
    n = per_type(len(types), markers)
    return list(dict.fromkeys(str(g) for t in types for g in model.extract_top_markers(t, n)))


def markers_dotplot(expression: MarkerExpression, ax: Axes | None = None) -> Axes:
    """Draw how the cells of each type express marker genes.

    The area of a dot is the share of the type's cells that express the gene, its colour the mean
    expression over all of them, as a share of the gene's highest. Types that express the genes
    alike stand side by side; each gene stands with the type that expresses it most.

    Parameters
    ----------
    expression
        What `marker_expression` gave.
    ax
        Where to draw; by default a figure of its own, sized to types and genes.

    Raises
    ------
    InputError
        There is no gene.
    """
    if expression.share.empty:
        raise InputError(
            f"none of the {len(expression.absent)} marker genes is among those of the cells, such "
            f"as {some(expression.absent)}: gene names may stand in another column of var"
        )
    share, mean = (table.to_numpy() for table in (expression.share, expression.mean))
    scaled = mean / np.maximum(np.nanmax(mean, axis=0, initial=0), 1e-12)
    filled = np.nan_to_num(scaled)
    rows = similar_order(_unlike(filled))
    columns = _diagonal(filled[rows])
    names = [short(str(name)) for name in expression.share.index[rows]]
    genes = [short(str(name)) for name in expression.share.columns[columns]]
    axes = _grid(names, genes) if ax is None else ax
    room = _points_of_a_cell(axes, len(names), len(genes))
    y, x = (each.ravel() for each in np.indices((len(rows), len(columns))))
    sizes, colours = (t[np.ix_(rows, columns)].ravel() for t in (share, scaled))
    there = np.nan_to_num(sizes) > 0
    dots = axes.scatter(
        x[there], y[there], sizes[there] * room**2, colours[there], cmap=SHADES, vmin=-0.15,
        vmax=1, edgecolors="#8aa0b8", linewidths=0.3, rasterized=True,
    )  # fmt: skip
    _frame(axes, names, genes)
    for percent in (10, 50, 100):
        axes.scatter(
            [], [], percent / 100 * room**2, color="#9ca3af", label=f"{percent} % of cells"
        )
    legend(axes)
    bar = colour_bar(axes, dots, "mean expression, scaled")
    bar.ax.set_ylim(0, 1)
    return axes


def markers_heatmap(model: Model, ax: Axes | None = None, *, markers: int = 5) -> Axes:
    """Draw the coefficients of each type's top genes: what raises its score, and what lowers it.

    Parameters
    ----------
    model
        The classifier.
    ax
        Where to draw; by default a figure of its own, sized to types and genes.
    markers
        Genes of each type, as many as there is room for.

    Raises
    ------
    InputError
        `markers` is no whole number of at least 1.
    """
    from matplotlib.colors import TwoSlopeNorm

    require_number("markers", markers, 1, whole=True)
    coef = model.dataset["coef"].to_numpy().astype(np.float64)
    rows = similar_order(_unlike(coef))
    types = model.cell_types[rows]
    genes = marker_genes(model, types, markers)
    place = {gene: i for i, gene in enumerate(model.features)}
    values = coef[rows][:, [place[gene] for gene in genes]]
    most = float(np.abs(values).max()) or 1.0
    names, labels = [short(str(t)) for t in types], [short(gene) for gene in genes]
    axes = _grid(names, labels) if ax is None else ax
    image = axes.imshow(
        values, cmap=BOTH_WAYS, norm=TwoSlopeNorm(0, -most, most), aspect="auto",
        interpolation="none",
    )  # fmt: skip
    _frame(axes, names, labels)
    colour_bar(axes, image, "coefficient")
    return axes


def _unlike(values: NDArray[Any]) -> NDArray[Any]:
    """How little rows correlate, from 0 to 2, shape (rows, rows)."""
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    unit = centred / np.where(length > 0, length, 1)
    return np.asarray(np.clip(1 - unit @ unit.T, 0, 2))


def _diagonal(values: NDArray[Any]) -> list[int]:
    """Order columns by the row of their highest value."""
    return [int(i) for i in np.argsort(values.argmax(axis=0), kind="stable")]


def _grid(types: list[str], genes: list[str]) -> Axes:
    most = max(len(types), len(genes))
    cell = float(np.clip(8.5 / most, 0.15, 0.3))
    wide = max(cell * len(genes), _LEAST) + inches_of(types, len(types)) + 1.2
    tall = cell * len(types) + inches_of(genes, len(genes)) + 0.7
    return new_figure(wide, max(tall, inches_of(genes, len(genes)) + 2)).add_subplot()


def _points_of_a_cell(axes: Axes, n_rows: int, n_columns: int) -> float:
    """Diameter of the largest dot: what the axes have for a cell, before they are laid out."""
    from matplotlib.transforms import Bbox

    inside: Bbox = axes.get_position()
    wide, tall = axes.figure.get_size_inches()  # type: ignore[union-attr]
    cell = min(wide * inside.width / n_columns, tall * inside.height / n_rows)
    return float(np.clip(72 * cell * 0.9, 3, 15))


def _frame(axes: Axes, types: list[str], genes: list[str]) -> None:
    label_rows(axes, types)
    label_columns(axes, genes, type_size(len(genes)))
    axes.set_xlim(-0.6, len(genes) - 0.4)
    plain(axes)
    axes.tick_params(axis="y", labelsize=type_size(len(types)))
    axes.tick_params(axis="x", labelsize=type_size(len(genes)))
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
    name_axes(axes, "gene", "")
    axes.xaxis.label.set_color(INK)
