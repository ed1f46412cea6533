"""Predicted labels and clusters of cells enter; one label for each cluster leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.cells import Labels, per_cell
from streamtrain.errors import InputError
from streamtrain.sources.base import Source

HETEROGENEOUS = "Heterogeneous"


@dataclass(frozen=True, slots=True)
class Clusters:
    """The cluster of each cell.

    Attributes
    ----------
    codes
        Position of each cell's cluster in `names`, shape (n_obs,), int32.
    names
        Of the clusters, as given: text, whole numbers or booleans.
    """

    codes: NDArray[np.int32]
    names: pd.Index


def given_clusters(
    source: Source, over_clustering: Labels, rows: NDArray[np.int64] | None
) -> Clusters:
    """Read the clusters of the cells `rows` (None: all).

    Parameters
    ----------
    over_clustering
        Name of an obs column, path of a text file of one cluster a line, or a list-like; of all
        cells of the source.

    Raises
    ------
    InputError
        If a cell has no cluster, two have the same name as text, or the number of clusters is not
        that of the cells.
    """
    series = per_cell(source, over_clustering, "over_clustering")
    if len(series) != source.n_obs:
        raise InputError(
            f"over_clustering must hold one cluster for each cell; got {len(series):,} for "
            f"{source.n_obs:,} cells of {source.name}: give one a cell, in their order"
        )
    if rows is not None:
        series = series.iloc[rows]
    column = series.astype("category").cat.remove_unused_categories()
    codes = column.cat.codes.to_numpy().astype(np.int32)
    missing = int(np.count_nonzero(codes < 0))
    if missing:
        raise InputError(
            f"{source.name}: over_clustering must hold one cluster for each cell, and {missing:,} "
            f"of {len(codes):,} have none; name the others with where, or another clustering"
        )
    names = column.cat.categories
    if names.dtype.kind not in "iub":
        names = names.astype(str)
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise InputError(
            f"over_clustering must hold clusters that differ as text, and {twice!r} stands for two "
            "or more (such as 1 and '1'): give one type to all"
        )
    return Clusters(codes, names)


def majority(
    clusters: Clusters,
    codes: Iterable[NDArray[np.int32]],
    labels: Sequence[str],
    min_prop: float,
) -> pd.Categorical:
    """Most frequent label of each cluster, `Heterogeneous` where its share is below `min_prop`.

    Of labels that are equally frequent the first in the order of text wins, as in CellTypist.

    Parameters
    ----------
    codes
        Position of each cell's label in `labels`, in pieces that follow each other.

    Returns
    -------
    Categorical
        Shape (n_clusters,).
    """
    # Only the pairs that occur: "prob match" may join labels in thousands of ways.
    votes: pd.Series[Any] = pd.Series(dtype=np.int64)
    start = 0
    for piece in codes:
        cluster = clusters.codes[start : start + len(piece)].astype(np.int64)
        pairs, counts = np.unique((cluster << 32) + piece, return_counts=True)
        votes = votes.add(pd.Series(counts, index=pairs), fill_value=0)
        start += len(piece)
    pairs = votes.index.to_numpy(np.int64)
    table = pd.DataFrame(
        {
            "cluster": pairs >> 32,
            "label": np.array(labels, dtype=object)[pairs & 0xFFFFFFFF],
            "count": votes.to_numpy(np.float64),
        }
    ).sort_values(["cluster", "count", "label"], ascending=[True, False, True])
    first = table.groupby("cluster").first()
    share = first["count"] / table.groupby("cluster")["count"].sum()
    return pd.Categorical(first["label"].mask(share < min_prop, HETEROGENEOUS))
