"""An AnnData and what a model says of its cells enter; tables, columns and files of it leave."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.atomic import check_output, replacing
from streamtrain.errors import InputError, absent, near

if TYPE_CHECKING:
    from anndata import AnnData

By = Literal["predicted_labels", "majority_voting"]
_OPTIONS = {"decision_matrix": "scores", "probability_matrix": "probabilities"}
_SHEETS = {
    "predicted_labels": "Predicted Labels", "decision_matrix": "Decision Matrix",
    "probability_matrix": "Probability Matrix",
}  # fmt: skip
_MOST_ROWS, _MOST_COLUMNS = 2**20 - 1, 2**14 - 1  # of a sheet of Excel, names aside


def check_writable(adata: AnnData) -> None:
    """Refuse what anndata would write nothing into."""
    if adata.is_view and adata.isbacked:
        raise InputError(
            "adata is a view of a backed AnnData, into which anndata writes nothing: pass "
            "inplace=False, or adata.to_memory()"
        )


def check_clusters(given: str | None, columns: Iterable[str], prefix: str) -> None:
    """Refuse columns of which one would replace that of the clusters."""
    if given in [prefix + name for name in columns]:
        raise InputError(
            f"the column {given!r} of obs, which over_clustering names, would be replaced: pass "
            "another prefix"
        )


class AnnotationResult:
    """What `annotate` found, under the names that CellTypist's result has.

    Parameters
    ----------
    adata
        The cells.
    labels
        A row for each cell, named as it is in `adata`: `predicted_labels` and, with majority
        voting, `over_clustering` and `majority_voting`; categorical.
    conf_score
        The highest probability of each cell, shape (n_obs,), float64.
    scores, probabilities
        Shape (n_obs, n_types), float64, a column for each cell type; None where not asked for.
    given
        Column of obs that the clusters were read from, which `to_adata` leaves as it is.

    Attributes
    ----------
    predicted_labels
        `labels`.
    conf_score
        As given.
    adata
        As given; `to_adata` puts columns into it.
    """

    def __init__(
        self,
        adata: AnnData,
        labels: pd.DataFrame,
        conf_score: NDArray[np.float64],
        scores: pd.DataFrame | None = None,
        probabilities: pd.DataFrame | None = None,
        given: str | None = None,
    ) -> None:
        self.adata, self.predicted_labels, self.conf_score = adata, labels, conf_score
        self._matrices = {"decision_matrix": scores, "probability_matrix": probabilities}
        self._given = given

    @property
    def cell_count(self) -> int:
        """Number of cells."""
        return len(self.predicted_labels)

    @property
    def decision_matrix(self) -> pd.DataFrame:
        """Scores, cells x types; an InputError where `scores` was not asked for."""
        return self._matrix("decision_matrix")

    @property
    def probability_matrix(self) -> pd.DataFrame:
        """Probabilities, cells x types; an InputError where `probabilities` was not asked for."""
        return self._matrix("probability_matrix")

    def _matrix(self, name: str) -> pd.DataFrame:
        found = self._matrices[name]
        if found is None:
            raise InputError(
                f"{name} takes 8 bytes for each cell and type, and was not kept: pass "
                f"{_OPTIONS[name]}=True to annotate()"
            )
        return found

    def _tables(self) -> dict[str, pd.DataFrame]:
        """The labels, and those matrices that are kept."""
        kept = {name: matrix for name, matrix in self._matrices.items() if matrix is not None}
        return {"predicted_labels": self.predicted_labels} | kept

    def to_adata(
        self,
        insert_labels: bool = True,
        insert_conf: bool = True,
        insert_conf_by: By = "predicted_labels",
        insert_decision: bool = False,
        insert_prob: bool = False,
        prefix: str = "",
    ) -> AnnData:
        """Put columns into obs of `adata`, as CellTypist's does; what has their name is replaced.

        Parameters
        ----------
        insert_labels
            The columns of `predicted_labels`.
        insert_conf
            `conf_score`.
        insert_conf_by
            Of which label it is the probability: the predicted one, or that of majority voting,
            which needs `probabilities`. Where such a label is no single type ("Heterogeneous",
            "Unassigned"), the highest probability stands.
        insert_decision, insert_prob
            A column for each type with its score, or its probability, which goes before. Of many
            types annotate() makes one table of all, in obsm, which is easier to find.
        prefix
            Of the names.

        Returns
        -------
        AnnData
            `adata` itself.

        Raises
        ------
        InputError
            If a matrix was not asked for, there was no majority voting, `adata` has other cells by
            now or is a view of a backed one, or the column of the clusters would be replaced.
        """
        if self.adata.n_obs != self.cell_count:
            raise InputError(
                f"adata has {self.adata.n_obs:,} cells by now, and {self.cell_count:,} were "
                "annotated: annotate() it again"
            )
        check_writable(self.adata)
        columns: dict[str, Any] = {}
        if insert_labels:
            columns |= {str(k): labels.array for k, labels in self.predicted_labels.items()}
            if prefix + "over_clustering" == self._given:
                del columns["over_clustering"]
        if insert_conf:
            columns["conf_score"] = self._confidence(insert_conf_by)
        if insert_prob or insert_decision:
            matrix = self.probability_matrix if insert_prob else self.decision_matrix
            columns |= {name: matrix[name].to_numpy() for name in matrix.columns}
        check_clusters(self._given, columns, prefix)
        for name, values in columns.items():  # by position: names of cells may come twice
            self.adata.obs[prefix + name] = values
        return self.adata

    def _confidence(self, by: By) -> NDArray[np.float64]:
        if by not in ("predicted_labels", "majority_voting"):
            raise InputError(
                f"insert_conf_by must be 'predicted_labels' or 'majority_voting'; got {by!r}"
            )
        if by == "predicted_labels":
            return self.conf_score
        labels, matrix = self._voted(by), self.probability_matrix
        at = matrix.columns.get_indexer(pd.Index(labels.cat.categories))[labels.cat.codes]
        own = matrix.to_numpy()[np.arange(self.cell_count), at]
        return np.where(at >= 0, own, self.conf_score)

    def _voted(self, by: str) -> pd.Series[Any]:
        if by == "majority_voting" and by not in self.predicted_labels:
            raise InputError("there is no majority_voting: pass majority_voting=True to annotate()")
        if by not in self.predicted_labels:
            raise InputError(f"no labels {by!r}: {near(by, self.predicted_labels.columns)}")
        return self.predicted_labels[by]

    def summary_frequency(self, by: str = "predicted_labels") -> pd.DataFrame:
        """Count the cells of each label.

        Parameters
        ----------
        by
            A column of `predicted_labels`.

        Returns
        -------
        DataFrame
            Columns `celltype` and `counts`, the most frequent first.

        Raises
        ------
        InputError
            If there is no such column.
        """
        counts = self._voted(by).astype(str).value_counts().sort_index()
        counts = counts.sort_values(ascending=False, kind="stable")
        return pd.DataFrame({"celltype": counts.index.to_numpy(), "counts": counts.to_numpy()})

    def to_table(
        self,
        folder: str | os.PathLike[str],
        prefix: str = "",
        xlsx: bool = False,
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the labels, and the matrices that were asked for, under CellTypist's names.

        Parameters
        ----------
        folder
            Which exists.
        prefix
            Of the names of the files: `predicted_labels.csv`, `decision_matrix.csv` and
            `probability_matrix.csv`.
        xlsx
            Write one file instead, `annotation_result.xlsx`, with a sheet for each.
        overwrite
            Replace files that stand there.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        InputError
            If a file exists or cannot be written, or there are too many cells or types for Excel.
        """
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise absent(place, "folder")
        if xlsx:
            self._to_excel(place / f"{prefix}annotation_result.xlsx", overwrite)
            return
        files = {place / f"{prefix}{name}.csv": table for name, table in self._tables().items()}
        for file in files:
            check_output(file, overwrite, folder=False)
        for file, table in files.items():
            with replacing(file, overwrite, folder=False) as partial:
                table.to_csv(partial)

    def _to_excel(self, file: Path, overwrite: bool) -> None:
        tables = self._tables()
        columns = max(table.shape[1] for table in tables.values())
        if self.cell_count > _MOST_ROWS or columns > _MOST_COLUMNS:
            raise InputError(
                f"a sheet of Excel holds {_MOST_ROWS:,} cells and {_MOST_COLUMNS:,} types; there "
                f"are {self.cell_count:,} and {columns:,}: leave xlsx out"
            )
        if find_spec("openpyxl") is None:
            raise InputError("xlsx=True needs openpyxl: pip install openpyxl, or leave it out")
        # A handle, as the name of what `replacing` gives does not end in .xlsx.
        with (
            replacing(file, overwrite, folder=False) as partial,
            partial.open("wb") as handle,
            pd.ExcelWriter(handle, engine="openpyxl") as writer,
        ):
            for name, table in tables.items():
                table.to_excel(writer, sheet_name=_SHEETS[name])

    def __repr__(self) -> str:
        lines = [f"streamtrain annotation of {self.cell_count:,} cells"]
        labels = ", ".join(map(str, self.predicted_labels.columns))
        lines.append(f"predicted_labels: {labels}")
        for name, matrix in self._matrices.items():
            kept = None if matrix is None else f"{matrix.shape[1]:,} cell types"
            lines.append(f"{name}: {kept or f'not kept ({_OPTIONS[name]}=True)'}")
        return "\n    ".join(lines)

    def _repr_html_(self) -> str:
        by = "majority_voting" if "majority_voting" in self.predicted_labels else "predicted_labels"
        found = self.summary_frequency(by)
        labels = self.predicted_labels[by].astype(str).to_numpy()
        confidence = pd.Series(self.conf_score).groupby(labels).mean()
        table = pd.DataFrame(
            {
                by: found["celltype"],
                "cells": found["counts"].map("{:,}".format),
                "share": (found["counts"] / self.cell_count).map("{:.1%}".format),
                "mean conf_score": found["celltype"].map(confidence).map("{:.3f}".format),
            }
        )
        head = html.escape(repr(self).partition("\n")[0])
        return f"<p>{head}</p>{table.to_html(index=False, max_rows=60)}"
