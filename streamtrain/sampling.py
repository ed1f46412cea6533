"""Epoch plans: which cells each epoch takes, in which order. Pure functions; nothing is read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import sampling as kernel

_DRAW, _SHUFFLE, HOLD_OUT, _PERMUTE = 0, 1, 2, 3  # purposes of a random stream
_PIECE = 1 << 20  # random numbers held at a time


def uniforms(seed: int, purpose: int, epoch: int, n: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) from a Philox stream of their own; 53 random bits each.

    The raw stream of a bit generator is fixed across NumPy releases, where Generator's methods
    are not: same seed, same model.
    """
    return _next(_stream(seed, purpose, epoch), n)


def _stream(seed: int, purpose: int, epoch: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence((seed, purpose, epoch)))


def _next(stream: np.random.Philox, n: int) -> NDArray[np.float64]:
    raw = stream.random_raw(n)
    numbers: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def permutation(n: int, seed: int) -> NDArray[Any]:
    """Draw one of all orders of n cells, each as likely as any other.

    Returns
    -------
    array
        Which cell comes first, second, ..., shape (n,): 4 bytes a cell below 2^32 cells.
    """
    order: NDArray[Any] = np.arange(n, dtype=np.uint32 if n < 2**32 else np.int64)
    stream = _stream(seed, _PERMUTE, 0)
    for stop in range(n, 0, -_PIECE):
        kernel.permute(order, stop, _next(stream, min(_PIECE, stop)))
    return order


class Plan:
    """The cells of every epoch, as positions among the labelled cells.

    Each epoch draws min(batch_number * batch_size, n) of the n cells without replacement: evenly,
    or, to balance the classes, by successive sampling with weight 1 / (classes * cells of the
    class), which is how CellTypist balances. Rare classes run out first, so late batches of an
    epoch that takes most cells hold the common classes alone.

    Parameters
    ----------
    codes
        Class of each cell, shape (n,), integer in [0, n_classes).
    n_classes
        Number of classes, each with a cell at least.
    batch_size, batch_number, epochs
        As CellTypist's.
    balance
        Whether to balance the classes.
    shuffle
        Whether to shuffle the cells within each batch.
    as_stored
        Draw nothing: every epoch takes all cells in their order.
    seed
        Of all draws.
    """

    def __init__(
        self,
        codes: NDArray[np.int32],
        n_classes: int,
        *,
        batch_size: int,
        batch_number: int,
        epochs: int,
        balance: bool,
        shuffle: bool,
        seed: int,
        as_stored: bool = False,
    ) -> None:
        self.n_obs = len(codes)
        self.batch_size = batch_size
        self.epochs = epochs
        self.epoch_size = min(batch_number * batch_size, self.n_obs)  # cells that an epoch takes
        self.shuffle, self.as_stored = shuffle, as_stored
        self.seed = seed
        sizes = np.bincount(codes, minlength=n_classes) if balance else np.array([self.n_obs])
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._order = np.arange(self.n_obs, dtype=np.uint32)  # 4 bytes a cell
        if balance:
            kernel.group_by_class(codes, self._starts, self._order)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions of the cells of an epoch in training order, shape (epoch_size,)."""
        if self.as_stored:
            return np.arange(self.epoch_size)
        out = np.empty(self.epoch_size, np.int64)
        pairs = uniforms(self.seed, _DRAW, epoch, 2 * self.epoch_size).reshape(-1, 2)
        kernel.draw(self._order, self._starts, pairs, out)
        if self.shuffle:
            keys = uniforms(self.seed, _SHUFFLE, epoch, self.epoch_size)
            for start in range(0, len(out), self.batch_size):
                batch = slice(start, start + self.batch_size)
                out[batch] = out[batch][np.argsort(keys[batch], kind="stable")]
        return out

    def ever_drawn(self) -> NDArray[np.bool_]:
        """Mark the cells that any epoch takes, shape (n,)."""
        drawn = np.zeros(self.n_obs, bool)
        for epoch in range(self.epochs):
            if self.epoch_size == self.n_obs:
                drawn[:] = True
                break
            drawn[self.epoch(epoch)] = True
        return drawn
