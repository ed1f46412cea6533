"""Figures: what they show, how many types and which names they take, and their colours."""

import re
import sys
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from streamtrain import InputError, Model, plot
from streamtrain.evaluate import evaluate
from streamtrain.plot import curves, figures, markers
from streamtrain.report.expression import MarkerExpression
from tests.test_evaluate import PREDICTED, TRUTH

HISTORY = {
    "epoch": [1, 2, 3],
    "n_cells": [100, 100, 50],
    "loss": [9.0, 0.5, 0.2],
    "macro_f1": [None, 0.5, 0.75],
    "seconds": [2.0, 1.0, 0.0],
}


def model_of(n_types=4, *, history=None, drawn=None, cells=True, names=None, n_genes=30):
    rng = np.random.default_rng(n_types)
    names = names or [f"type {i}" for i in range(n_types)]
    coef = rng.normal(0, 1, (n_types, n_genes))
    model = Model.build(
        coef=coef if n_types > 2 else np.stack([-coef[0], coef[0]]),
        intercept=np.zeros(n_types), cell_types=names, genes=[f"G{i}" for i in range(n_genes)],
        mean=np.zeros(n_genes), var=np.ones(n_genes), scale=np.ones(n_genes),
        n_cells=np.arange(10, 10 + n_types) if cells else None,
        provenance={} if history is None else {"history": history},
    )  # fmt: skip
    if drawn is None:
        return model
    return Model(model.dataset.assign(n_drawn=("cell_type", np.array(drawn))))


class Calibrated:
    """What figures read of a ModelEvaluation."""

    def __init__(self, n_cells, probability, accuracy):
        edges = np.linspace(0, 1, len(n_cells) + 1)
        self.calibration = pd.DataFrame(
            {"above": edges[:-1], "up_to": edges[1:], "n_cells": n_cells,
             "probability": probability, "accuracy": accuracy}
        )  # fmt: skip


CALLS = Calibrated([3, 0, 10, 40], [0.2, np.nan, 0.6, 0.9], [1 / 3, np.nan, 0.7, 0.95])


def expression_of(share, mean):
    share = np.array(share, float)
    rows = pd.Index([f"type {i}" for i in range(len(share))], dtype=object)
    columns = pd.Index([f"G{j}" for j in range(share.shape[1])], dtype=object)
    tables = (pd.DataFrame(t, index=rows, columns=columns) for t in (share, np.array(mean, float)))
    return MarkerExpression(*tables, pd.Series(9, index=rows), ["other"])


def row_names(axes):
    return [t.get_text() for t in axes.get_yticklabels()]


def offsets(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_xydata()


def drawn_texts(axes):
    return [t.get_text() for t in axes.texts]


def test_confusion_matrix__shares_labels_counts():
    e = evaluate(TRUTH, PREDICTED)
    axes = plot.confusion_matrix(e)
    rows = [t.get_text().split("  (")[0] for t in axes.get_yticklabels()]
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert sorted(rows) == ["B", "NK", "T"]
    assert columns == [*rows, "??"]
    assert "T  (5)" in [t.get_text() for t in axes.get_yticklabels()]
    counts = e.confusion.loc[rows, columns].to_numpy()
    share = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(axes.images[0].get_array(), share)
    assert drawn_texts(axes) == [str(n) for n in counts.ravel() if n]
    assert "true cell type" in axes.get_ylabel()
    assert axes.get_xlabel() == "predicted cell type"


def test_confusion_matrix__confused_types_are_neighbours():
    # Pairs (0, 5), (1, 6), ... are taken for each other, so each must end side by side.
    truth = [f"{i}" for i in range(10) for _ in range(4)]
    predicted = [f"{j}" for i in range(10) for j in (i, i, i, (i + 5) % 10)]
    axes = plot.confusion_matrix(evaluate(truth, predicted))
    order = [int(t.get_text().split()[0]) for t in axes.get_yticklabels()]
    assert sorted(order) == list(range(10))
    assert all(abs(order.index(i) - order.index(i + 5)) == 1 for i in range(5))


@pytest.mark.parametrize("n_types", [1, 2, 15, 16, 60])
def test_confusion_matrix__any_number_of_types(n_types):
    names = [f"type {i:02}" for i in range(n_types)]
    axes = plot.confusion_matrix(evaluate(names * 2, names + names[::-1]))
    assert len(axes.get_yticklabels()) == n_types
    assert bool(drawn_texts(axes)) == (n_types <= 15)


def test_confusion_matrix__draws_on_given_axes():
    figure = mpl.figure.Figure()
    axes = figure.add_subplot()
    assert plot.confusion_matrix(evaluate(TRUTH, PREDICTED), axes) is axes
    assert axes.images


def test_save_figure(tmp_path):
    figure = plot.confusion_matrix(evaluate(TRUTH, PREDICTED)).figure
    for name, head in (("f.png", b"\x89PNG"), ("f.PDF", b"%PDF"), ("f.svg", b"<?xml")):
        plot.save_figure(figure, tmp_path / name, dpi=50)
        assert (tmp_path / name).read_bytes().startswith(head)
    before = (tmp_path / "f.png").read_bytes()
    with pytest.raises(InputError, match="exists"):
        plot.save_figure(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes() == before
    plot.save_figure(figure.axes[0], tmp_path / "f.png", overwrite=True, dpi=70)
    assert (tmp_path / "f.png").read_bytes() != before
    with pytest.raises(InputError, match=r"end it in one of .*\.pdf, .*\.png"):
        plot.save_figure(figure, tmp_path / "f.h5ad")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("size", "dpi"), [((9, 8), 50), ((90, 80), 11.8), ((2, 400), 12.5)])
def test_save_figure__dots_do_not_grow_with_types(tmp_path, monkeypatch, size, dpi):
    monkeypatch.setattr(figures, "_MOST_DOTS", 10**6)
    monkeypatch.setattr(figures, "_LONGEST_SIDE", 5000)
    figure = figures.new_figure(*size)
    figure.set_layout_engine("none")
    figure.add_axes((0, 0, 1, 1)).set(xticks=[], yticks=[])
    plot.save_figure(figure, tmp_path / "f.png", dpi=50)
    tall, wide, _ = mpl.image.imread(tmp_path / "f.png").shape
    assert (wide / size[0], tall / size[1]) == pytest.approx((dpi, dpi), rel=0.15)


def test_plot__leaves_pyplot_alone(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot.confusion_matrix(evaluate(TRUTH, PREDICTED))
    assert "matplotlib.pyplot" not in sys.modules


def test_training_curve__draws_each_quantity():
    model = model_of(history=HISTORY)
    axes = plot.training_curve(model)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 9], [2, 0.5], [3, 0.2]])
    assert axes.get_yscale() == "log"  # of 9 to 0.2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "mean loss")
    assert axes.texts[0].get_text() == "0.2"
    axes = plot.training_curve(model, quantity="macro_f1")
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[2, 0.5], [3, 0.75]])
    given = mpl.figure.Figure().add_subplot()
    assert plot.training_curve(model, given, quantity="speed") is given
    np.testing.assert_array_equal(given.lines[0].get_xydata(), [[1, 50], [2, 100]])  # 0 s: unknown


def test_training_curve__of_one_pass():
    axes = plot.training_curve(
        model_of(history={"pass": [1], "n_cells": [9], "objective": [2], "seconds": [0]})
    )
    assert axes.get_xlabel() == "pass"
    assert len(axes.lines[0].get_xydata()) == 1


def test_history_of__none():
    assert curves.history_of(model_of()) is None
    with pytest.raises(InputError, match="has no history of its training, as CellTypist's"):
        plot.training_curve(model_of())
    with pytest.raises(InputError, match="history has no 'los': did you mean 'loss'"):
        plot.training_curve(model_of(history=HISTORY), quantity="los")


def test_class_balance__cells_and_draws():
    axes = plot.class_balance(model_of(drawn=[7, 0, 9, 100]))
    assert row_names(axes) == ["type 3", "type 2", "type 1", "type 0"]
    assert offsets(axes, "cells in the atlas")[:, 0].tolist() == [13, 12, 11, 10]
    assert offsets(axes, "cells drawn by SGD")[:, 0].tolist() == [100, 9, 0, 7]
    assert axes.get_xscale() == "symlog"  # which shows what was never drawn
    alone = plot.class_balance(model_of())
    assert alone.get_xscale() == "log"
    assert [t.get_text() for t in alone.get_legend().get_texts()] == ["cells in the atlas"]
    with pytest.raises(InputError, match="does not say how many cells of each type"):
        plot.class_balance(model_of(cells=False))


def test_f1_by_type__scores_in_order():
    found = evaluate(TRUTH, PREDICTED)
    axes = plot.f1_by_type(found)
    assert row_names(axes) == ["B  (4)", "T  (5)", "NK  (1)"]
    ordered = found.per_type.loc[["B", "T", "NK"]]
    for label, name in (("F1", "f1"), ("precision", "precision"), ("recall", "recall")):
        drawn = offsets(axes, label)
        np.testing.assert_allclose(drawn[:, 0], ordered[name])
        assert drawn[:, 1].tolist() == [0, 1, 2]
    assert axes.get_ylim() == (2.6, -0.6)  # the first on top
    assert f"{found.macro_f1:.3f}" in axes.get_xlabel()


def test_calibration_curve__bins_with_cells():
    axes = plot.calibration_curve(CALLS)
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.2, 1 / 3], [0.6, 0.7], [0.9, 0.95]])
    assert [t.get_text() for t in axes.texts] == ["3", "10", "40"]
    (low, high) = curves._wilson(np.array([0.7, 0.0]), np.array([10, 5]))
    np.testing.assert_allclose(low, [0.3968, 0], atol=1e-4)  # statsmodels' "wilson"
    np.testing.assert_allclose(high, [0.8922, 0.4345], atol=1e-4)


def test_probability_histogram__right_and_wrong():
    calls = curves.calls_by_probability(CALLS)
    assert calls["right"].tolist() == [1, 0, 7, 38]
    assert calls["wrong"].tolist() == [2, 0, 3, 2]
    axes = plot.probability_histogram(CALLS)
    drawn = {p.get_label(): p.get_data() for p in axes.patches if "calls" in p.get_label()}
    assert list(drawn) == ["46 right calls", "7 wrong calls"]
    np.testing.assert_allclose(drawn["7 wrong calls"].values, np.array([2, 0, 3, 2]) / 7 * 100)
    np.testing.assert_allclose(drawn["7 wrong calls"].edges, [0, 0.25, 0.5, 0.75, 1])


def test_probability_histogram__without_wrong_calls():
    axes = plot.probability_histogram(Calibrated([0, 4], [np.nan, 0.8], [np.nan, 1]))
    assert "0 wrong calls" in [t.get_text() for t in axes.get_legend().get_texts()]


@pytest.mark.parametrize("n_types", [1, 3])
@pytest.mark.parametrize("n_genes", [1, 2, 5])
def test_markers_dotplot__of_few_genes_has_room(n_types, n_genes):
    """Without a warning that the axes are squeezed to nothing."""
    values = np.full((n_types, n_genes), 0.5)
    figures.svg_of(plot.markers_dotplot(expression_of(values, values)).figure)


def test_markers_dotplot__areas_and_colours():
    share = [[1, 0.5, 0], [0.25, 0, 1], [0.5, 0.5, np.nan]]
    mean = [[2, 4, 0], [1, 0, 3], [0.5, 1, np.nan]]
    axes = plot.markers_dotplot(expression_of(share, mean))
    rows = [int(name.split()[1]) for name in row_names(axes)]
    columns = [int(t.get_text()[1:]) for t in axes.get_xticklabels()]
    dots = axes.collections[0]
    scaled = np.array(mean) / [2, 4, 3]
    drawn = {}
    biggest = dots.get_sizes().max()
    for (x, y), size, colour in zip(
        dots.get_offsets(), dots.get_sizes(), dots.get_array(), strict=True
    ):
        drawn[rows[int(y)], columns[int(x)]] = size / biggest, colour
    assert drawn == {
        (i, j): (pytest.approx(share[i][j]), pytest.approx(scaled[i, j]))
        for i in range(3) for j in range(3) if np.nan_to_num(share[i][j]) > 0
    }  # fmt: skip
    # A gene stands with the type that has most of it.
    assert [rows.index(int(np.nanargmax(scaled[:, j]))) for j in columns] == sorted(
        rows.index(int(np.nanargmax(scaled[:, j]))) for j in columns
    )
    with pytest.raises(InputError, match="none of the 1 marker genes is among those of the cells"):
        plot.markers_dotplot(expression_of(np.zeros((2, 0)), np.zeros((2, 0))))


def test_markers_heatmap__coefficients_of_the_top_genes():
    model = model_of(5)
    axes = plot.markers_heatmap(model, markers=2)
    types, genes = row_names(axes), [t.get_text() for t in axes.get_xticklabels()]
    wanted = [g for t in types for g in model.extract_top_markers(t, 2)]
    assert genes == list(dict.fromkeys(wanted))
    coef = model.dataset["coef"].sel(cell_type=types, gene=genes).to_numpy()
    np.testing.assert_array_equal(axes.images[0].get_array(), coef)
    norm = axes.images[0].norm
    assert norm.vmin == -norm.vmax == -np.abs(coef).max()
    with pytest.raises(InputError, match="markers must be a whole number of at least 1"):
        plot.markers_heatmap(model, markers=0)


@pytest.mark.parametrize(("n_types", "n"), [(2, 5), (30, 5), (40, 3), (150, 1), (400, 1)])
def test_per_type__room_for_genes(n_types, n):
    assert markers.per_type(n_types, 5) == n


ODD = ["<b>&amp;", "$x$ and $y", "\u7d30\u80de", "long " * 40, "a\nb\0c", r"\alpha_{", "%d #1"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures__take_any_name(tmp_path, suffix):
    model = model_of(len(ODD), names=ODD)
    found = evaluate(ODD * 2, ODD + ODD[::-1])
    expression = expression_of(np.eye(7), np.eye(7))
    expression = replace(expression, share=expression.share.set_axis(ODD).set_axis(ODD, axis=1))
    drawn = [
        plot.confusion_matrix(found), plot.f1_by_type(found), plot.class_balance(model),
        plot.markers_heatmap(model), plot.markers_dotplot(expression),
    ]  # fmt: skip
    for i, axes in enumerate(drawn):
        plot.save_figure(axes.figure, tmp_path / f"{i}.{suffix}", dpi=40)
    svg = figures.svg_of(drawn[1].figure)
    for words in ("&lt;b&gt;&amp;amp;  (2)", "$x$ and $y  (2)", "\u7d30\u80de  (2)", "%d #1  (2)"):
        assert words in svg
    assert f"{('long ' * 40)[:59]}…  (2)" in svg


def test_figures__leave_out_letters_that_xml_has_not():
    names = ["one\ufffe", "two\udc80", "three\uffff"]
    svg = figures.svg_of(plot.f1_by_type(evaluate(names, names)).figure)
    assert "three" in "".join(ET.fromstring(svg.encode()).itertext())  # noqa: S314 - we wrote it


@pytest.mark.parametrize("n_types", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_figures__names_fit(n_types):
    """The longest names end inside of the figure, however many there are."""
    names = [f"{i:03} {'effector memory T cell, ' * 3}"[:60] for i in range(n_types)]
    found = evaluate(names, names)
    model = model_of(n_types, names=names)
    for axes in (plot.f1_by_type(found), plot.class_balance(model), plot.confusion_matrix(found)):
        figure = axes.figure
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        inside = axes.get_window_extent()
        assert inside.width > 0.15 * width
        assert inside.height > 0.15 * height
        columns = axes.get_xticklabels() if axes.images else []  # of numbers some are outside
        for label in [*axes.get_yticklabels(), *columns]:
            box = label.get_window_extent()
            assert box.x0 >= -1
            assert box.y0 >= -1
        tall = axes.get_yticklabels()[0].get_window_extent().height
        assert inside.height / n_types > 0.9 * tall  # no name on another


def test_svg_of__the_same_for_the_same_figure():
    one, other = (figures.svg_of(plot.f1_by_type(evaluate(TRUTH, PREDICTED)).figure) for _ in "ab")
    assert one == other
    assert re.search(r"\d{4}-\d{2}-\d{2}T", one) is None
    texts = re.findall(r"<text[^>]*>", one)
    assert len(texts) > 9
    assert all("'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans'" in text for text in texts)


# Colours, as those see them who lack a cone: Machado et al. 2009, severity 1.

LACKING = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}  # fmt: skip
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colours, lacking):
    """CIELAB (n, 3) of colours as seen without a cone."""
    rgb = np.array([mpl.colors.to_rgb(c) for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(LACKING[lacking]), 0, 1)
    ratio = seen @ np.transpose(XYZ) / [0.9505, 1.0, 1.089]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.column_stack([116 * f[:, 1] - 16, (f[:, :2] - f[:, 1:]) * (500, 200)])


@pytest.mark.parametrize("lacking", LACKING)
def test_colours__are_told_apart(lacking):
    both = mpl.colormaps[figures.BOTH_WAYS]
    for one, other in ((figures.BLUE, figures.ORANGE), (both(0.15), both(0.85))):
        a, b = lab([one, other], lacking)
        assert np.linalg.norm(a - b) > 40
        assert np.linalg.norm(a - lab(["white"], lacking)[0]) > 20
    shades = lab(mpl.colormaps[figures.SHADES](np.linspace(0, 1, 9)), lacking)
    assert (np.diff(shades[:, 0]) < -3).all()  # in grey, too: each is darker than the one before


def test_colours__the_simulation_knows_red_from_green():
    red, green = "#d62728", "#2ca02c"
    distance = [np.linalg.norm(np.diff(lab([red, green], kind), axis=0)) for kind in LACKING]
    assert distance[1] < distance[3] / 3


def test_plot__warns_of_nothing_else():
    """Other warnings than those of missing letters are passed on."""
    with pytest.warns(UserWarning, match="another"), figures._any_letters():
        warnings.warn("another", stacklevel=1)
