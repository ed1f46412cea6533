"""Sizes and names enter, and axes of one look leave; a figure enters, and a picture leaves."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from streamtrain import atomic
from streamtrain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK, GREY, RULE = "#1a1a2e", "#6b7280", "#d1d5db"
# Okabe and Ito (2008): told apart by any eye, and in grey.
BLUE, ORANGE = "#0072B2", "#E69F00"
SHADES, BOTH_WAYS = "Blues", "PuOr_r"  # colour maps: of shares, and of what has a sign

_LONGEST = 60  # letters of a name
_LARGE = 20_000  # letters of a picture in base64
_MOST_DOTS, _LONGEST_SIDE = 32 * 10**6, 65_000  # 50 bytes each; matplotlib draws 2**16 a side


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches, apart from pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def type_size(n_labels: int) -> int:
    """Points of the type that so many names in a row are set in."""
    return 9 if n_labels <= 25 else 7


def inches_of(names: Iterable[str], n_labels: int) -> float:
    """Inches that the longest of some names takes, a little over."""
    return type_size(n_labels) / 72 * 0.62 * max(map(len, names))


def short(name: str) -> str:
    """A name on one line, of 60 letters at most, all of which XML has."""
    name = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", " ", name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name rows 0, 1, ... from the top, as they are; a dollar sign begins no formula."""
    size = type_size(len(names))
    axes.set_yticks(range(len(names)), list(names), fontsize=size, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)


def label_columns(axes: Axes, names: Sequence[str], size: int) -> None:
    """Name columns 0, 1, ..., upright."""
    # By their ends: readers whose letters are narrower see them at the axes, too.
    axes.set_xticks(
        range(len(names)), list(names), rotation=90, fontsize=size, parse_math=False, ha="right",
        va="center", rotation_mode="anchor",
    )  # fmt: skip


def plain(axes: Axes, *, grid: str | None = None) -> None:
    """Leave of a frame what is read: two thin lines, and the grid of "x", "y" or "both"."""
    axes.tick_params(which="both", length=0, colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    if grid is not None:
        axes.grid(axis=grid, color="#e5e7eb", linewidth=0.6)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Say what the axes are of."""
    axes.set_xlabel(x, color=INK, fontsize=9, labelpad=6)
    axes.set_ylabel(y, color=INK, fontsize=9, labelpad=6)


def legend(axes: Axes, **options: Any) -> None:
    """Explain what is drawn above the axes, on a line."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8,
        labelcolor=INK, borderaxespad=0.2, handletextpad=0.5, columnspacing=1.4, **options,
    )  # fmt: skip


def colour_bar(axes: Axes, drawn: Any, label: str) -> Any:
    """Explain the colours beside the axes."""
    bar: Any = axes.figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(label, color=INK, fontsize=9)
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)  # as shapes they have seams in some viewers
    return bar


def similar_order(distance: NDArray[Any]) -> list[int]:
    """Order what is alike side by side: leaves of average linkage, distances (n, n)."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(distance) < 3:
        return list(range(len(distance)))
    distance = np.array(distance)
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return [int(i) for i in leaves_list(tree)]


def save_figure(
    figure: Figure | Axes,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    dpi: float = 200,
) -> None:
    """Write a figure to `path`, whole or not at all, in the format that its suffix names.

    Parameters
    ----------
    figure
        The figure, such as `confusion_matrix(...).figure`; or axes of it.
    path
        Where the picture shall stand: .png, .pdf, .svg and what else matplotlib writes.
    overwrite
        Whether a file that stands there is replaced.
    dpi
        Dots per inch, for formats made of dots; fewer where they would be more than 32 million.

    Raises
    ------
    InputError
        The suffix names no format, or the path cannot be written or exists.
    """
    figure = cast("Figure", figure.figure)  # which a figure has, too
    suffix = Path(path).suffix.lower().lstrip(".")
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(
            f"cannot tell a picture format from {str(path)!r}: end it in one of "
            + ", ".join(f".{k}" for k in sorted(known))
        )
    wide, tall = figure.get_size_inches()
    dpi = min(dpi, (_MOST_DOTS / (wide * tall)) ** 0.5, _LONGEST_SIDE / max(wide, tall))
    with atomic.replacing(path, overwrite, folder=False) as partial, _any_letters():
        figure.savefig(partial, format=suffix, dpi=dpi, bbox_inches="tight", facecolor="white")


def svg_of(figure: Figure) -> str:
    """Give a figure as SVG whose texts are texts, the same for the same figure."""
    import matplotlib as mpl

    written = io.StringIO()
    dpi = min(200, 2000 / max(figure.get_size_inches()))  # of dots and colour bars alone
    fixed: Any = {"svg.fonttype": "none", "svg.hashsalt": "streamtrain"}
    with mpl.rc_context(fixed), _any_letters():
        figure.savefig(
            written, format="svg", dpi=dpi, bbox_inches="tight", pad_inches=0.03,
            metadata={"Date": None, "Creator": None},
        )  # fmt: skip
    # Laid out by DejaVu, the widest, which not all readers have.
    ours = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
    named = r"(font(?:-family)?:[^;'\"]*)'DejaVu Sans'[^;\"]*"
    svg = re.sub(named, rf"\g<1>{ours}", written.getvalue())
    return re.sub(r"(?<=data:image/png;base64,)[^\"]+", _fewer_colours, svg)


def _fewer_colours(match: re.Match[str]) -> str:
    """A PNG in base64 of 64 colours, a sixth as large, where it is one of many dots."""
    from PIL import Image

    if len(match[0]) < _LARGE:
        return match[0]
    made = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(match[0]))) as image:
        octree = Image.Quantize.FASTOCTREE  # the one that keeps what is transparent
        image.quantize(64, method=octree).save(made, "PNG", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


@contextmanager
def _any_letters() -> Iterator[None]:
    """Draw names in letters that the font lacks: as SVG they are there, else as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield
