"""Coefficients of a first round in, the genes for a second out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError


def top_genes(coef: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Positions of the genes that are among the `n` of largest |coefficient| in any row, ascending.

    Of equals the first counts, where NumPy's argpartition takes any.

    Parameters
    ----------
    coef
        Shape (columns, genes).
    """
    largest = np.argsort(-np.abs(coef), axis=1, kind="stable")[:, :n]
    return np.unique(largest)


def check_enough(name: str, n_genes: int, n: int) -> None:
    """Refuse a selection that would keep every gene, before a round is spent on it."""
    if n_genes <= n:
        raise InputError(
            f"{name}: feature_selection keeps the top_genes={n:,} of each cell type, and there are "
            f"only {n_genes:,} genes: lower top_genes, or leave out feature_selection"
        )
