"""An evaluation enters; the sections on how well the model calls cells leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from streamtrain.plot.confusion import confusion_matrix
from streamtrain.plot.curves import (
    calibration_curve,
    calls_by_probability,
    probability_histogram,
)
from streamtrain.plot.types import f1_by_type
from streamtrain.report.page import Picture, Section, paragraph, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from streamtrain.evaluate_model import ModelEvaluation

_MOST = 20  # confusions that are listed


def figure_of(axes: Axes) -> Figure:
    """The figure that axes are of."""
    return cast("Figure", axes.figure)


def scores(evaluation: ModelEvaluation) -> Section:
    """The summary, scores by size, and types that the model lacks."""
    section = Section("scores", "Scores")
    section.add(paragraph(cells_taken(evaluation)))
    summary = evaluation.summary
    section.add(table("Scores, and the cells that they are over", *_rows(summary, "score")))
    section.add(
        table(
            "Mean F1 by the number of cells that a type has here",
            ["cells of the type", "types", "cells", "macro F1"],
            _records(evaluation.by_size),
        )
    )
    if len(evaluation.unknown):
        section.add(
            paragraph(
                f"The model does not have {len(evaluation.unknown)} of the "
                f"{len(evaluation.per_type)} cell types here; their cells cannot be called right."
            ),
            table(
                "Cell types that the model does not have",
                ["cell type", "cells"],
                _records(evaluation.unknown.to_frame()),
            ),
        )
    return section


def per_type(evaluation: ModelEvaluation) -> Section:
    """F1 of each type."""
    section = Section("types", "Each cell type")
    ordered = evaluation.per_type.sort_values("f1", ascending=False, kind="stable")
    lowest = ordered["f1"].iloc[:-4:-1]
    worst = ", ".join(f"{n!s} ({f1:.2f})" for n, f1 in zip(lowest.index, lowest, strict=True))
    section.draw(
        Picture(
            "f1_by_type",
            figure_of(f1_by_type(evaluation)),
            f"F1, precision and recall of {len(ordered)} cell types. Macro F1 is "
            f"{evaluation.macro_f1:.3f}; the lowest F1 have {worst}.",
            "F1 of each cell type with its number of cells here. Precision is the share of cells "
            "called so that are of the type; recall the share of the type's cells called so.",
        )
    )
    if ordered["known"].all():
        ordered = ordered.drop(columns="known")
    names = {"f1": "F1", "support": "cells", "known": "in the model", "ontology_f1": "ontology F1"}
    section.add(
        table(
            "Scores of each cell type, the best first",
            *_rows(ordered.rename(columns=names), "cell type"),
            fold=True,
        )
    )
    return section


def confusions(evaluation: ModelEvaluation) -> Section:
    """Which types are taken for which."""
    section = Section("confusions", "Confusions")
    found = frequent_confusions(evaluation)
    first = "no cell is called wrong"
    if len(found):
        row = found.iloc[0]
        first = (
            f"the most frequent confusion is {row['true type']} called {row['called']}, of "
            f"{row['cells']:,} cells"
        )
    section.draw(
        Picture(
            "confusion_matrix",
            figure_of(confusion_matrix(evaluation)),
            f"Confusion matrix of {len(evaluation.per_type)} cell types: accuracy "
            f"{evaluation.accuracy:.3f}; {first}.",
            "Rows are the true types, columns the calls. Types that are confused stand side by "
            "side. Colour follows the square root of the share of the row, so that a confusion of "
            "a few per cent shows.",
        )
    )
    if len(found):
        listed = [
            [row[0], row[1], int(row[2]), f"{row[3]:.1f}"]
            for row in found.iloc[:_MOST].to_numpy(object).tolist()
        ]
        section.add(
            table(
                f"The most frequent confusions, {len(listed)} of {len(found):,}",
                ["true type", "called", "cells", "% of the type's cells"],
                listed,
            )
        )
    return section


def frequent_confusions(evaluation: ModelEvaluation) -> pd.DataFrame:
    """Pairs of true type and call that differ, by their cells, the most first.

    Returns
    -------
    DataFrame
        Columns `true type`, `called`, `cells`, and `percent` of the true type's cells.
    """
    counts = evaluation.confusion.to_numpy().copy()
    support = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    rows, columns = np.nonzero(counts)
    order = np.argsort(-counts[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    return pd.DataFrame(
        {
            "true type": evaluation.confusion.index.to_numpy()[rows],
            "called": evaluation.confusion.columns.to_numpy()[columns],
            "cells": counts[rows, columns],
            "percent": 100 * counts[rows, columns] / support[rows],
        }
    )


def calibration(evaluation: ModelEvaluation) -> Section:
    """How far probabilities can be believed."""
    section = Section("calibration", "Calibration")
    error = calibration_error(evaluation)
    section.add(
        paragraph(
            "The probability of a call and how often such calls are right differ by "
            f"{100 * error:.1f} percentage points on average (expected calibration error, over "
            f"{len(evaluation.calibration)} bins)."
        )
    )
    calls = calls_by_probability(evaluation).sum()
    section.draw(
        Picture(
            "calibration_curve",
            figure_of(calibration_curve(evaluation)),
            "Share of calls that are right against their probability, in bins; the expected "
            f"calibration error is {error:.3f}.",
            "Points below the diagonal: calls are less often right than their probability says. "
            "Lines are 95 % intervals.",
        ),
        Picture(
            "probability_histogram",
            figure_of(probability_histogram(evaluation)),
            f"Histogram of the probability of {calls['right']:,} right and {calls['wrong']:,} "
            "wrong calls, each in per cent of its own number.",
            "The further the two lie apart, the better a threshold tells wrong calls from right "
            "ones.",
        ),
    )
    curve = evaluation.calibration[evaluation.calibration["n_cells"] > 0]
    section.add(
        table(
            "Calls by their probability",
            ["above", "up to", "cells", "mean probability", "share right"],
            curve.astype({"n_cells": object}).to_numpy(object).tolist(),
            fold=True,
        )
    )
    return section


def calibration_error(evaluation: ModelEvaluation) -> float:
    """The expected calibration error over all cells."""
    return float(evaluation.summary["all cells"]["calibration error"])


def cells_taken(evaluation: ModelEvaluation) -> str:
    """Word which cells the scores are of, and whether training had seen them."""
    cells = evaluation.cells
    words = f"{evaluation.n_cells:,} cells of {cells['source']}, labelled by {cells['labels']}"
    groups = cells["groups"]
    if groups is not None:
        values = ", ".join(map(str, groups["values"]))
        words += f"; of {groups['column']} {values} alone"
    elif cells["where"] is not None:
        words += f"; where {cells['where']}"
    seen = {
        True: "All of them were held out of training.",
        False: "Not all of them were held out of training: the scores flatter.",
        None: "The model does not say that they were held out of training; scores of cells that a "
        "model has seen flatter.",
    }
    return f"{words}. {seen[cells['held_out']]}"


def _rows(frame: pd.DataFrame, index: str) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table, its index first."""
    return [index, *map(str, frame.columns)], _records(frame)


def _records(frame: pd.DataFrame) -> list[list[Any]]:
    columns = [frame.index.tolist(), *(frame[name].tolist() for name in frame.columns)]
    return [list(row) for row in zip(*columns, strict=True)]
