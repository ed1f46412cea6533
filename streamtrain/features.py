"""Gene names and moments in; the genes of a model, their places in the cells and scaling out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.scaling import RunningMoments, Scaler, places, standard_deviation


@dataclass(frozen=True, slots=True)
class Features:
    """The genes of a model.

    Attributes
    ----------
    names
        Shape (genes,).
    at
        Their positions in the source, -1 for those that it lacks, shape (genes,).
    moments
        Of these genes, over the cells that the model is scaled by.
    share
        Share of the source's cells in which each is not zero, shape (genes,).
    """

    names: NDArray[np.object_]
    at: NDArray[np.int64]
    moments: RunningMoments
    share: NDArray[np.float64]

    @classmethod
    def expressed(cls, genes: NDArray[np.object_], moments: RunningMoments) -> Features:
        """The genes of a source that any of its cells expresses."""
        at = np.flatnonzero(moments.nonzero)
        own = moments.take(at)
        return cls(genes[at], at, own, own.nonzero / moments.n)

    def take(self, which: NDArray[np.int64]) -> Features:
        """Some of the genes, by their place among these."""
        return Features(
            self.names[which], self.at[which], self.moments.take(which), self.share[which]
        )

    @property
    def scale(self) -> NDArray[np.float64]:
        """Divisors of the scaling, shape (genes,)."""
        return standard_deviation(self.moments)

    def scaler(
        self, at: NDArray[np.int64], n_vars: int, *, with_mean: bool, dtype: Any, apart: bool
    ) -> Scaler:
        """Scale cells of `n_vars` genes in which these stand `at`.

        Genes that the cells lack (-1) are zero once scaled, as in prediction.
        """
        mean = np.where(at < 0, 0.0, self.moments.mean)
        return Scaler(
            mean, self.scale, places(at, n_vars), with_mean=with_mean, dtype=dtype,
            share=self.share, apart=apart,
        )  # fmt: skip
