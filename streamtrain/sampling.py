"""Epoch plans: which cells each epoch takes, in which order. Pure functions; nothing is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain import strata
from streamtrain.kernels import sampling as kernel
from streamtrain.quotas import Quotas
from streamtrain.strata import Race, Strata

# Purposes of a random stream.
_DRAW, _SHUFFLE, HOLD_OUT, _PERMUTE, BLOCKS, MIX, _DROP_GENES, FOLD, JUDGE = range(9)
_PIECE = 1 << 20  # random numbers held at a time


class Stream:
    """Uniform numbers in [0, 1) from a Philox stream of their own; 53 random bits each.

    The raw stream of a bit generator is fixed across NumPy releases, where Generator's methods
    are not: same seed, same model. In how many calls numbers are taken changes none of them.
    """

    def __init__(self, seed: int, purpose: int, epoch: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence((seed, purpose, epoch)))

    def __call__(self, n: int) -> NDArray[np.float64]:
        """Take the next n numbers, shape (n,)."""
        raw = self._bits.random_raw(n)
        numbers: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return numbers


def uniforms(seed: int, purpose: int, epoch: int, n: int) -> NDArray[np.float64]:
    """Take the first n numbers of a `Stream`, shape (n,)."""
    return Stream(seed, purpose, epoch)(n)


def dropped_genes(n_genes: int, share: float, seed: int, batch: int) -> NDArray[np.bool_]:
    """Mark the genes that a mini-batch drops, shape (n_genes,), each with probability `share`.

    Batches are counted over all epochs.
    """
    return uniforms(seed, _DROP_GENES, batch, n_genes) < share


def permutation(n: int, seed: int) -> NDArray[Any]:
    """Draw one of all orders of n cells, each as likely as any other.

    Returns
    -------
    array
        Which cell comes first, second, ..., shape (n,): 4 bytes a cell below 2^32 cells.
    """
    order: NDArray[Any] = np.arange(n, dtype=np.uint32 if n < 2**32 else np.int64)
    stream = Stream(seed, _PERMUTE, 0)
    for stop in range(n, 0, -_PIECE):
        kernel.permute(order, stop, stream(min(_PIECE, stop)))
    return order


class Plan:
    """The cells of every epoch, as positions among the labelled cells.

    A draw chooses a stratum, then a cell in it. Strata are all cells together; with `balance` or
    `quotas` the classes; with `batch_key` the experimental batches that occur in each class.

    Without replacement an epoch draws min(batch_number * batch_size, n) cells by successive
    sampling: evenly, or, to balance, with weight 1 / (classes * strata of the class * cells of the
    stratum), which, but for `batch_key`, is how CellTypist balances. Rare classes run out first, so
    late batches of an epoch that takes most cells hold the common classes alone.

    With replacement, class, stratum and cell are each chosen evenly. With `quotas` each batch holds
    a set number of cells of each class. Without replacement they then come from a random
    permutation of the stratum, and from a new one once it is exhausted, or the epoch ends: rare
    cells repeat, but evenly. Both draw batch_number * batch_size cells, be there fewer or not.

    A `weight` acts within the stratum, in place of evenly; cells of weight 0 are left out.

    Parameters
    ----------
    codes
        Class of each cell, shape (n,), integer in [0, n_classes).
    n_classes
        Number of classes, each with a cell of positive weight at least.
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
    replace
        Whether to draw with replacement.
    quotas
        Cells of each class in every batch; not with `weight` unless with replacement.
    batch_key
        Experimental batch of each cell, shape (n,), unsigned integer.
    weight
        Of each cell, shape (n,), float64, finite and not negative; without replacement as many
        positive as an epoch draws.
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
        replace: bool = False,
        quotas: Quotas | None = None,
        batch_key: NDArray[Any] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        self.n_obs, self.n_classes = len(codes), n_classes
        self.batch_size, self.batch_number = batch_size, batch_number
        self.epochs = epochs
        self.repeats = replace or quotas is not None  # whether a cell may come twice in an epoch
        size = batch_number * batch_size
        self.epoch_size = size if self.repeats else min(size, self.n_obs)  # cells of an epoch
        self.shuffle, self.as_stored = shuffle, as_stored
        self.seed, self.replace = seed, replace
        self._quotas, self._weight = quotas, weight
        classes = codes if balance or quotas is not None else None
        self._race: Race | None = None
        if weight is not None and not replace:
            self._race = Race.of(self.n_obs, classes, n_classes, batch_key, weight)
            return
        self._strata = Strata.of(self.n_obs, classes, n_classes, batch_key, weight)
        if weight is not None:
            order, starts = self._strata.order, self._strata.starts
            self._blocks = np.concatenate([[0], np.cumsum(-(-np.diff(starts) // kernel.BLOCK))])
            self._upper = np.empty(self._blocks[-1])
            kernel.sum_blocks(order, starts, self._blocks, weight, self._upper)

    def epoch(self, epoch: int) -> NDArray[np.uint32]:
        """Positions of the cells of an epoch in training order, shape (epoch_size,)."""
        if self.as_stored:
            return np.arange(self.epoch_size, dtype=np.uint32)
        if self._race is not None:
            out = self._race.first(self.epoch_size, Stream(self.seed, _DRAW, epoch))
        else:
            out = self._draw(epoch)
        if self.shuffle:
            stream = Stream(self.seed, _SHUFFLE, epoch)
            for start in range(0, len(out), self.batch_size):
                batch = out[start : start + self.batch_size]
                batch[:] = batch[np.argsort(stream(len(batch)), kind="stable")]
        return out

    def ever_drawn(self) -> NDArray[np.bool_]:
        """Mark the cells that any epoch takes, shape (n,)."""
        drawn = np.zeros(self.n_obs, bool)
        for epoch in range(self.epochs):
            if not self.repeats and self.epoch_size == self.n_obs:
                drawn[:] = True
                break
            drawn[self.epoch(epoch)] = True
        return drawn

    def _draw(self, epoch: int) -> NDArray[np.uint32]:
        """Draw the strata, then the cells; two uniforms for each draw."""
        order, starts, first = self._strata.order, self._strata.starts, self._strata.first
        out = np.empty(self.epoch_size, np.uint32)
        left, unused = self._strata.sizes, self._strata.sizes
        shares, mass = np.ones(len(left)), np.ones(len(first) - 1)
        # `take` permutes: for few draws undoing that is cheaper, for many a copy.
        many = 2 * len(out) > len(order)
        places = np.empty(0 if many or self.replace else len(out), np.uint32)
        mixed = order.copy() if many and not self.replace else order
        for part, pairs in self._chunks(Stream(self.seed, _DRAW, epoch)):
            one, two = pairs[:, 0], pairs[:, 1]
            if self.repeats:
                chosen = self._strata.evenly(one, self._classes(epoch, part))
            else:
                chosen = np.empty(len(pairs), np.int64)
                kernel.by_mass(starts, first, left, shares, mass, one, chosen)
            if self._weight is not None:
                given = self._blocks, self._weight, self._upper
                kernel.by_weight(order, starts, *given, chosen, two, out[part])
            elif self.replace:
                begin = starts[chosen]
                out[part] = order[begin + (two * (starts[chosen + 1] - begin)).astype(np.int64)]
            else:
                kernel.take(mixed, starts, unused, chosen, two, places[part], out[part])
        kernel.put_back(order, starts, unused, places)
        return out

    def _chunks(self, stream: Stream) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Parts of an epoch, whole batches each, and two uniforms for each draw."""
        step = -(-strata.CHUNK // self.batch_size) * self.batch_size
        for start in range(0, self.epoch_size, step):
            part = slice(start, min(start + step, self.epoch_size))
            yield part, stream(2 * (part.stop - start)).reshape(-1, 2)

    def _classes(self, epoch: int, part: slice) -> NDArray[np.int64] | None:
        """Classes that the quotas ask for in a part of an epoch."""
        if self._quotas is None:
            return None
        before = epoch * self.batch_number
        batches = range(part.start // self.batch_size, part.stop // self.batch_size)
        return np.concatenate([self._quotas.classes(before + b) for b in batches])
