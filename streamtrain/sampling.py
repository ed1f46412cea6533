"""Epoch plans: which cells each epoch takes, in which order. Pure functions; nothing is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError, near
from streamtrain.kernels import sampling as kernel

_DRAW, _SHUFFLE, HOLD_OUT, _, BLOCKS, MIX = range(6)  # purposes of a random stream
_CHUNK = 1 << 16  # uniforms made at a time, about: they stay in the cache


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


@dataclass(frozen=True, slots=True)
class Quotas:
    """Cells of each class in every mini-batch.

    Attributes
    ----------
    fixed
        Cells of each class in every batch, shape (n_classes,).
    sharing
        Classes that get the `rest` as well, in turn from batch to batch, shape (n,).
    rest
        Cells of a batch that `fixed` leaves, fewer than sharing classes.
    """

    fixed: NDArray[np.int64]
    sharing: NDArray[np.int64]
    rest: int

    @classmethod
    def of(
        cls,
        spec: Mapping[str, int] | Literal["equal"],
        classes: Sequence[str] | NDArray[Any],
        batch_size: int,
    ) -> Quotas:
        """Quotas from class names and cells per batch; classes not named share the rest evenly.

        Raises
        ------
        InputError
            For an unknown class, or where the quotas leave cells, or classes, over.
        """
        named = {} if isinstance(spec, str) else {str(name): n for name, n in spec.items()}
        place = {str(name): k for k, name in enumerate(classes)}
        for name in named:
            if name not in place:
                raise InputError(
                    f"quotas names {name!r}, which is no cell type: {near(name, place)}"
                )
        rest = batch_size - sum(named.values())
        sharing = np.array([k for name, k in place.items() if name not in named], np.int64)
        if rest < 0 or (rest == 0) != (len(sharing) == 0):
            raise InputError(
                f"quotas take {batch_size - rest:,} of batch_size={batch_size:,} cells and name "
                f"{len(named)} of {len(place)} cell types, and those not named share what is left: "
                "raise or lower batch_size (--batch-size) or the quotas"
            )
        fixed = np.array([named.get(name, 0) for name in place], np.int64)
        if len(sharing):
            fixed[sharing], rest = divmod(rest, len(sharing))
        return cls(fixed, sharing, rest)

    def classes(self, batch: int) -> NDArray[np.int64]:
        """Class of each cell of a batch, counted over all epochs; ascending, (batch_size,)."""
        counts = self.fixed.copy()
        if self.rest:
            turns = batch * self.rest + np.arange(self.rest)
            counts[self.sharing[turns % len(self.sharing)]] += 1
        return np.repeat(np.arange(len(counts)), counts)


@dataclass(frozen=True, slots=True)
class Strata:
    """Cells of positive weight by stratum: a class, or an experimental batch within a class.

    Attributes
    ----------
    order
        The cells by stratum, ascending in each, shape (n,), uint32: 4 bytes a cell.
    starts
        Where each stratum begins in `order`, and its end, shape (n_strata + 1,).
    first
        First stratum of each class, and their number, shape (n_classes + 1,).
    """

    order: NDArray[np.uint32]
    starts: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        n_obs: int,
        codes: NDArray[np.int32] | None,
        n_classes: int,
        batch_key: NDArray[Any] | None,
        weight: NDArray[np.float64] | None,
    ) -> Strata:
        """Group cells by what is given of their class, batch and weight."""
        if codes is None and batch_key is None and weight is None:
            order = np.arange(n_obs, dtype=np.uint32)
            return cls(order, np.array([0, n_obs]), np.array([0, 1]))
        # What is not given takes no memory: one value in the place of all.
        given = (
            np.broadcast_to(np.int32(0), n_obs) if codes is None else codes,
            np.broadcast_to(np.uint16(0), n_obs) if batch_key is None else batch_key,
            np.broadcast_to(1.0, n_obs) if weight is None else weight,
        )
        n_batches = 1 if batch_key is None or n_obs == 0 else int(batch_key.max()) + 1
        sizes = np.zeros((1 if codes is None else n_classes, n_batches), np.int64)
        kernel.count(*given, sizes)
        ends = np.cumsum(sizes)
        order = np.empty(ends[-1], np.uint32)
        kernel.group(*given, (ends - sizes.ravel()).reshape(sizes.shape), order)
        starts = np.concatenate([[0], ends[sizes.ravel() > 0]])
        first = np.concatenate([[0], np.cumsum(np.count_nonzero(sizes, axis=1))])
        return cls(order, starts, first)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Cells of each stratum, shape (n_strata,)."""
        return np.diff(self.starts)

    def evenly(
        self, uniforms: NDArray[np.float64], classes: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Choose a class evenly, unless `classes` are given, and a stratum of it evenly."""
        if classes is None:
            place = uniforms * (len(self.first) - 1)
            classes = place.astype(np.int64)
            uniforms = place - classes
        first = self.first[classes]
        return first + (uniforms * (self.first[classes + 1] - first)).astype(np.int64)


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
        self._strata = Strata.of(self.n_obs, classes, n_classes, batch_key, weight)
        if weight is not None:
            blocks = -(-self._strata.sizes // kernel.BLOCK)
            self._blocks = np.concatenate([[0], np.cumsum(blocks)])
            self._upper = np.empty(self._blocks[-1])
            strata = self._strata
            kernel.sum_blocks(strata.order, strata.starts, self._blocks, weight, self._upper)

    def epoch(self, epoch: int) -> NDArray[np.uint32]:
        """Positions of the cells of an epoch in training order, shape (epoch_size,)."""
        if self.as_stored:
            return np.arange(self.epoch_size, dtype=np.uint32)
        if self._weight is not None and not self.replace:
            out = self._race(Stream(self.seed, _DRAW, epoch), self._weight)
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
                strata = self._strata.evenly(one, self._classes(epoch, part))
            else:
                strata = np.empty(len(pairs), np.int64)
                kernel.by_mass(starts, first, left, shares, mass, one, strata)
            if self._weight is not None:
                given = self._blocks, self._weight, self._upper
                kernel.by_weight(order, starts, *given, strata, two, out[part])
            elif self.replace:
                begin = starts[strata]
                out[part] = order[begin + (two * (starts[strata + 1] - begin)).astype(np.int64)]
            else:
                kernel.take(mixed, starts, unused, strata, two, places[part], out[part])
        kernel.put_back(order, starts, unused, places)
        return out

    def _chunks(self, stream: Stream) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Parts of an epoch, whole batches each, and two uniforms for each draw."""
        step = -(-_CHUNK // self.batch_size) * self.batch_size
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

    def _race(self, stream: Stream, weight: NDArray[np.float64]) -> NDArray[np.uint32]:
        """Draw without replacement by weight: the cells that arrive first, in that order."""
        strata, n = self._strata, self.epoch_size
        n_strata = np.diff(strata.first)  # of each class
        shares = np.repeat((len(strata.first) - 1) * n_strata, n_strata)
        scale = 1 / (shares * self._upper[self._blocks[1:] - 1])
        room = min(len(strata.order), 2 * n + _CHUNK)
        keys, cells = np.empty(room), np.empty(room, np.uint32)
        found, limit = 0, np.inf
        for begin in range(0, len(strata.order), _CHUNK):
            numbers = stream(min(_CHUNK, len(strata.order) - begin))
            if found + len(numbers) > room:
                best = np.argpartition(keys[:found], n - 1)[:n]
                keys[:n], cells[:n] = keys[best], cells[best]
                found, limit = n, keys[:n].max()
            found += kernel.race(
                strata.order, strata.starts, scale, weight, begin, numbers, limit, keys[found:],
                cells[found:],
            )  # fmt: skip
        return cells[:found][np.argsort(keys[:found], kind="stable")[:n]]
