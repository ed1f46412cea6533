"""Class, experimental batch and weight of each cell in, cells in groups to draw from out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels import sampling as kernel

CHUNK = 1 << 16  # uniforms made at a time, about: they stay in the cache


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
        given = _columns(n_obs, codes, batch_key, weight)
        sizes = np.zeros(_table(codes, n_classes, batch_key), np.int64)
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


@dataclass(frozen=True, slots=True)
class Race:
    """Cells that are drawn successively by weight, in the order that they arrive in.

    Attributes
    ----------
    columns
        Class, experimental batch and weight of each cell, each of shape (n,).
    scale
        Factor of the weights of a class and batch, shape (n_classes, n_batches), so that all
        batches of a class, and all classes, add up alike.
    """

    columns: tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]
    scale: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        n_obs: int,
        codes: NDArray[np.int32] | None,
        n_classes: int,
        batch_key: NDArray[Any] | None,
        weight: NDArray[np.float64],
    ) -> Race:
        """Balance weights by what is given of class and batch."""
        columns = _columns(n_obs, codes, batch_key, weight)
        sums = np.zeros(_table(codes, n_classes, batch_key))
        kernel.total(*columns, sums)
        there = sums > 0
        shares = len(sums) * np.count_nonzero(there, axis=1)[:, None] * sums
        return cls(columns, np.divide(1, shares, out=np.zeros_like(sums), where=there))

    def first(self, n: int, stream: Callable[[int], NDArray[np.float64]]) -> NDArray[np.uint32]:
        """Draw n cells, no more than there are of positive weight; one uniform for each cell."""
        n_obs = len(self.columns[0])
        room = min(n_obs, 2 * n + CHUNK)
        keys, cells = np.empty(room), np.empty(room, np.uint32)
        found, limit = 0, np.inf
        for begin in range(0, n_obs, CHUNK):
            numbers = stream(min(CHUNK, n_obs - begin))
            if found + len(numbers) > room:
                best = np.argpartition(keys[:found], n - 1)[:n]
                keys[:n], cells[:n] = keys[best], cells[best]
                found, limit = n, keys[:n].max()
            found += kernel.race(
                *self.columns, self.scale, begin, numbers, limit, keys[found:], cells[found:]
            )
        return cells[:found][np.argsort(keys[:found], kind="stable")[:n]]


def _columns(
    n_obs: int,
    codes: NDArray[np.int32] | None,
    batch_key: NDArray[Any] | None,
    weight: NDArray[np.float64] | None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Class, batch and weight of each cell; one value in the place of all takes no memory."""
    return (
        np.broadcast_to(np.int32(0), n_obs) if codes is None else codes,
        np.broadcast_to(np.uint16(0), n_obs) if batch_key is None else batch_key,
        np.broadcast_to(np.float64(1), n_obs) if weight is None else weight,
    )


def _table(
    codes: NDArray[np.int32] | None, n_classes: int, batch_key: NDArray[Any] | None
) -> tuple[int, int]:
    """Shape of a table of classes and batches."""
    n_batches = 1 if batch_key is None else int(batch_key.max(initial=0)) + 1
    return 1 if codes is None else n_classes, n_batches
