"""True and predicted labels enter; scores per cell type, a summary and a confusion table leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from streamtrain.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = Sequence[str] | NDArray[Any] | pd.Series[Any] | pd.Index[Any]
    Names = NDArray[np.object_] | pd.Index[Any] | list[str]


@dataclass(frozen=True, eq=False)  # frames have no truth value, so == could only raise
class Evaluation:
    """How well predicted labels match the truth.

    Attributes
    ----------
    accuracy
        Share of cells predicted right.
    macro_f1
        Mean F1 over the cell types that occur in the truth.
    balanced_accuracy
        Mean recall over the same cell types.
    weighted_f1
        Mean F1 over them, weighted by their cells.
    n_cells
        Number of cells.
    per_type
        Index `cell_type`, those of the truth, sorted; columns `precision`, `recall`, `f1` (0 where
        nothing was predicted) and `support`, the number of cells.
    confusion
        Numbers of cells, truth (rows, as `per_type`) by prediction (columns: the same, then those
        that occur only as predictions, sorted).
    """

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    weighted_f1: float
    n_cells: int
    per_type: pd.DataFrame
    confusion: pd.DataFrame

    def to_table(self) -> str:
        """Word the scores for a terminal: cell types by falling support, then the summary."""
        ordered = self.per_type.sort_values("support", ascending=False, kind="stable")
        names = [str(n) for n in ordered.index]
        summary = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "macro F1": self.macro_f1,
            "weighted F1": self.weighted_f1,
        }
        wide = max(len(n) for n in [*names, *summary, "cell type"])
        head = f"{'cell type':<{wide}}  precision  recall     F1    support"
        lines = [head, "-" * len(head)]
        for name, row in zip(names, ordered.itertuples(index=False), strict=True):
            scores = f"{row.precision:>9.3f}  {row.recall:>6.3f}  {row.f1:>5.3f}"
            lines.append(f"{name:<{wide}}  {scores}  {row.support:>9,}")
        lines.append("-" * len(head))
        lines += [f"{name:<{wide}}  {value:>9.3f}" for name, value in summary.items()]
        lines.append(f"{'cells':<{wide}}  {self.n_cells:>9,}")
        return "\n".join(lines)


def evaluate(truth: Labels, predicted: Labels) -> Evaluation:
    """Compare predicted labels with the truth.

    Parameters
    ----------
    truth, predicted
        One label a cell, shape (cells,). A predicted label that never occurs in the truth counts
        as an error and has no score of its own.

    Returns
    -------
    Evaluation
        The scores, as scikit-learn defines them over the cell types of the truth.

    Raises
    ------
    InputError
        The lengths differ, there are no cells, or a label is missing.
    """
    for what, labels in (("truth", truth), ("predicted", predicted)):
        if isinstance(labels, str) or len(np.shape(labels)) != 1:
            raise InputError(f"{what} must be a list of one label a cell; got {labels!r:.80}")
    n_cells = len(truth)
    if n_cells != len(predicted):
        raise InputError(
            f"truth and predicted need one label a cell each: they have {n_cells} and "
            f"{len(predicted)}: take both from the same cells"
        )
    if n_cells == 0:
        raise InputError("there are no cells to evaluate: truth and predicted are empty: pass some")
    # Codes, because comparing millions of strings for each score is slow.
    true_codes, true_names = _codes(truth, "truth")
    pred_codes, pred_names = _codes(predicted, "predicted")
    names = true_names.append(pred_names.difference(true_names))
    y_true, y_pred = true_codes, names.get_indexer(pred_names)[pred_codes]

    counts = np.bincount(y_true * len(names) + y_pred, minlength=len(true_names) * len(names))
    return from_confusion(counts.reshape(len(true_names), -1), true_names, names)


def from_confusion(counts: NDArray[np.int64], types: Names, names: Names) -> Evaluation:
    """Give the scores of a confusion table.

    Parameters
    ----------
    counts
        Numbers of cells, truth by prediction, shape (n_types, n_names); each type has some.
    types, names
        What the rows and columns are called; the names begin with the types.
    """
    n_types = len(types)
    right, support = counts.diagonal(), counts.sum(axis=1)
    given = counts[:, :n_types].sum(axis=0)
    recall, f1 = right / support, 2 * right / (support + given)
    rows = pd.Index(types, dtype=object, name="cell_type")
    return Evaluation(
        accuracy=float(right.sum() / support.sum()),
        macro_f1=float(f1.mean()),
        balanced_accuracy=float(recall.mean()),
        weighted_f1=float(np.average(f1, weights=support)),
        n_cells=int(support.sum()),
        per_type=pd.DataFrame(
            {
                "precision": right / np.maximum(given, 1),
                "recall": recall,
                "f1": f1,
                "support": support,
            },
            index=rows,
        ),
        confusion=pd.DataFrame(
            counts,
            index=rows.rename("truth"),
            columns=pd.Index(names, dtype=object, name="predicted"),
        ),
    )


def _codes(labels: Labels, what: str) -> tuple[NDArray[np.intp], pd.Index[Any]]:
    """Code labels by their position among the sorted distinct ones, as strings."""
    codes, values = pd.factorize(np.asarray(labels, dtype=object), use_na_sentinel=True)
    missing = int((codes < 0).sum())
    if missing:
        raise InputError(f"{what} lacks the label of {missing} cells: drop those cells first")
    names, position = np.unique([str(v) for v in values], return_inverse=True)
    return position[codes], pd.Index(names.astype(object))
