"""Sizes in, cells in memory and the rule that scales them out, without a disk or zarr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, Scaler, places, standard_deviation
from streamtrain.threads import Threads


def uniform(n_obs: int, n_vars: int, density: float, n_classes: int) -> Rows:
    """Cells of which each entry is non-zero with probability `density`, labelled at random.

    Of no gene more than of another, so that the weights they meet are in no cache.
    """
    rng = np.random.default_rng(0)
    most = n_obs * n_vars
    expected = density * most
    # From one non-zero entry to the next; six standard deviations more than are expected.
    gaps = rng.geometric(density, int(expected + 6 * expected**0.5) + 1)
    at = np.cumsum(gaps) - 1
    at = at[: np.searchsorted(at, most)]
    return Rows(
        rng.standard_gamma(2, len(at), dtype=np.float32),
        (at % n_vars).astype(np.int32),
        np.searchsorted(at, np.arange(n_obs + 1) * n_vars).astype(np.int64),
        n_vars,
        rng.integers(0, n_classes, n_obs).astype(np.int32),
    )


def by_class(n_obs: int, n_vars: int, n_classes: int, seed: int = 0) -> Rows:
    """Cells whose counts are around profiles of their classes; some genes are in most cells.

    Made dense first: for thousands of cells.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n_obs).astype(np.int32)
    rate = rng.gamma(0.15, 1.0, n_vars) * rng.lognormal(0.0, 0.7, (n_classes, n_vars))
    counts = rng.poisson(rate[codes])
    cell, gene = np.nonzero(counts)
    ends = np.bincount(cell, minlength=n_obs).cumsum()
    return Rows(
        np.log1p(counts[cell, gene]).astype(np.float32), gene.astype(np.int32),
        np.append(0, ends).astype(np.int64), n_vars, codes,
    )  # fmt: skip


@dataclass(frozen=True)
class Genes:
    """Mean, standard deviation and share of the cells of each gene that is expressed, (genes,).

    `at` is its position among all `n_vars`.
    """

    at: NDArray[np.int64]
    n_vars: int
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, threads: Threads) -> Genes:
        """Those of some cells."""
        moments = MomentsPass(rows.n_vars, threads)
        moments.update(rows)
        found = moments.result()
        at = np.flatnonzero(found.nonzero)
        share = found.nonzero[at] / found.n
        return cls(at, rows.n_vars, found.mean[at], standard_deviation(found)[at], share)

    def scaler(self, dtype: Any, *, centred: bool = True, apart: bool = False) -> Scaler:
        """The rule of these genes; `apart` as of `Scaler`."""
        return Scaler(
            self.mean, self.scale, places(self.at, self.n_vars), with_mean=centred, dtype=dtype,
            share=self.share, apart=apart,
        )  # fmt: skip
