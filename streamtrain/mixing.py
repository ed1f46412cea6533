"""An epoch's cells in training order in, how mixed and how balanced its batches are out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import mixing as kernel


@dataclass(frozen=True, slots=True)
class Mixing:
    """How mixed the batches of an epoch are.

    Attributes
    ----------
    n_drawn
        Cells that the epoch takes, those that repeat counted each time.
    n_distinct
        Different cells among them.
    class_spread
        Standard deviation over mean of a batch's class counts, every class counted, mean over the
        batches: 0 where each batch is balanced, sqrt(n_classes - 1) where each holds one class.
    class_entropy
        Shannon entropy of a batch's class shares in bits, mean over the batches: log2(n_classes)
        where each is balanced, 0 where each holds one class.
    neighbours
        Share of the cells of a batch whose next cell in the store is in the same batch: near 1
        where batches are read in runs. A cell that repeats in a batch counts once.
    chance
        The same share expected of batches of as many distinct cells drawn evenly from all.
    """

    n_drawn: int
    n_distinct: int
    class_spread: float
    class_entropy: float
    neighbours: float
    chance: float

    def __str__(self) -> str:
        """Words of one line."""
        return (
            f"{self.n_drawn:,} cells drawn, {self.n_distinct:,} distinct; in a batch: "
            f"std/mean of class counts {self.class_spread:.2f}, class entropy "
            f"{self.class_entropy:.2f} bits, neighbours in the store {self.neighbours:.1%} "
            f"(by chance {self.chance:.1%})"
        )


def mixing(
    positions: NDArray[Any],
    codes: NDArray[np.int32],
    n_classes: int,
    batch_size: int,
    rows: NDArray[np.int64] | None = None,
) -> Mixing:
    """Measure how mixed the batches of an epoch are.

    One pass over the draws, in any order, with two bits for each cell that could be drawn.

    Parameters
    ----------
    positions
        Cells in training order, shape (n_drawn,), not negative, one at least.
    codes
        Class of each cell that could be drawn, in storage order, shape (n_obs,).
    n_classes
        Number of classes.
    batch_size
        Cells of a batch; the last may have fewer.
    rows
        Row of each cell in the store, ascending, shape (n_obs,). Without them the next cell in the
        store is the next of those that could be drawn.
    """
    n_obs = len(codes)
    seen, marks = np.zeros((2, -(-n_obs // 8)), np.uint8)
    totals = np.zeros(6)
    given = np.empty(0, np.int64) if rows is None else rows
    kernel.tally(
        positions, codes, batch_size, given, seen, marks, np.zeros(n_classes, np.int64), totals
    )
    distinct, spread, entropy, in_batches, followed, pairs = totals.tolist()
    n_batches = -(-len(positions) // batch_size)
    adjacent = n_obs - 1 if rows is None else kernel.n_adjacent(rows)
    # m of n cells drawn evenly hold both of an adjacent pair m (m - 1) / (n (n - 1)) times.
    expected = adjacent * pairs / max(1, n_obs * (n_obs - 1))
    return Mixing(
        len(positions),
        int(distinct),
        spread / n_batches,
        entropy / n_batches,
        followed / in_batches,
        expected / in_batches,
    )
