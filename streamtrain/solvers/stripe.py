"""What SGD keeps of the columns that fill a cache line, and what its kernels read of a batch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamtrain.kernels.lanes import LINE, lanes_of


class Cells(NamedTuple):
    """Scaled cells as kernels take them: sparse and dense genes, with n_obs in front.

    `dots` are the products of the shift and the sparse entries, `weight` the factors of a cell's
    step, `judged` whether its loss is summed, `lengths` the squared lengths of centred cells where
    they are needed, and `gram[i, j]` is the product of the dense genes of cell i and of the j-th
    cell of its block.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    dots: NDArray[np.float64]
    dense: NDArray[Any]
    codes: NDArray[np.int32]
    weight: NDArray[np.float64]
    judged: NDArray[np.bool_]
    lengths: NDArray[np.float64]
    gram: NDArray[Any]


class Steps(NamedTuple):
    """Sizes of the steps, by group of columns and cell, and where blocks of cells begin and end.

    Each has shape (groups, n_obs), but for `alpha`, the penalty's, (groups,), and `edges`;
    `largest` are the cells of the largest block. Where a group has not `taken` a cell, eta and levy
    are 0, the decay is 1, and the cell is not `averaged`.
    """

    taken: NDArray[np.bool_]
    eta: NDArray[np.float64]
    decay: NDArray[np.float64]
    levy: NDArray[np.float64]
    averaged: NDArray[np.bool_]
    alpha: NDArray[np.float64]
    edges: NDArray[np.int64]
    largest: int


class Options(NamedTuple):
    """What all columns share: codes of the kernels, and numbers."""

    loss: int
    epsilon: float
    intercept_rate: float
    passive: int
    norms: int
    l1_share: float


class Columns(NamedTuple):
    """What training keeps of some columns (one-vs-rest classifiers): the last axis is theirs.

    The weights U and the sum A of averaged weights have the weights' dtype, shape (genes, columns),
    as has `paid`, the L1 penalty that each weight has paid. The others have shape (columns,) and
    are float64: q = W'm, the intercepts b and their sum ab, the L1 penalty `owed` by a weight that
    paid it all, the norms |W|^2 and |W|_1 as of the last step, the sums of `loss` and `penalty`
    before each step, the factors of a step for the class's own cells and for the others, and of
    U under an L1 penalty the `scale` a and its sum `total`, by which W = a U and the sum of the
    averaged weights is A + total U. `label` is the class of each column, `group` its row in
    `Steps`. A has no rows without averaging, nor has `paid` without an L1 penalty.
    """

    U: NDArray[Any]
    A: NDArray[Any]
    paid: NDArray[Any]
    q: NDArray[np.float64]
    b: NDArray[np.float64]
    ab: NDArray[np.float64]
    owed: NDArray[np.float64]
    square: NDArray[np.float64]
    absolute: NDArray[np.float64]
    loss: NDArray[np.float64]
    penalty: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    scale: NDArray[np.float64]
    total: NDArray[np.float64]
    label: NDArray[np.int32]
    group: NDArray[np.int64]


_IDLE = {"scale": 1, "label": -1}  # of columns that only fill a line; all else is 0


class Work(NamedTuple):
    """Arrays that a kernel works in, beginning with a cache line each.

    `D` and `AD` take the weights of the dense genes and their sums, shape (dense genes, columns);
    `rows` holds three for each cell of a block; `lanes` and `numbers` a few, of the weights' dtype
    and of float64; `line` two lines whatever the number of columns; `flat` zeros, (dense genes,).
    """

    D: NDArray[Any]
    AD: NDArray[Any]
    rows: NDArray[Any]
    lanes: NDArray[Any]
    numbers: NDArray[np.float64]
    line: NDArray[Any]
    flat: NDArray[np.float64]

    @staticmethod
    def of(w: Columns, n_dense: int, largest: int) -> Work:
        """For a stripe, a number of dense genes, and the cells of the largest block."""
        dtype, width = w.U.dtype, len(w.b)
        return Work(
            zeros((n_dense, width), dtype),
            zeros((n_dense if len(w.A) else 0, width), dtype),
            zeros((3 * largest, width), dtype),
            zeros((11, width), dtype),
            zeros((12, width), np.float64),
            zeros((2, lanes_of(dtype)), dtype),
            np.zeros(n_dense),
        )


def zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros, of which the first begins a cache line.

    Rows of a line that begin within another take two: SGD is then a fifth slower.
    """
    n = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.zeros(n + LINE, np.uint8)
    start = -space.ctypes.data % LINE
    aligned: NDArray[Any] = space[start : start + n].view(dtype).reshape(shape)
    return aligned


class Stripe:
    """Columns that are stepped together; `w` has `width` of them, of which the last may be idle."""

    def __init__(self, columns: NDArray[np.int64], w: Columns) -> None:
        self.columns, self.w = columns, w

    @property
    def width(self) -> int:
        """Columns of the arrays, idle ones included."""
        return len(self.w.b)

    def copy(self) -> Stripe:
        """The same with arrays of its own, which begin with a cache line."""
        arrays = [zeros(array.shape, array.dtype) for array in self.w]
        for new, old in zip(arrays, self.w, strict=True):
            new[...] = old
        return Stripe(self.columns, Columns(*arrays))


def restripe(stripes: list[Stripe], keep: NDArray[np.bool_], width: int) -> list[Stripe]:
    """Stripes of the columns to `keep` (n_columns,), `width` each; idle ones fill up the last."""
    places = [np.flatnonzero(keep[s.columns]) for s in stripes]
    columns = np.concatenate([s.columns[at] for s, at in zip(stripes, places, strict=True)])
    stripe = np.repeat(np.arange(len(stripes)), [len(at) for at in places])
    place = np.concatenate(places)
    found = []
    for start in range(0, len(columns), width):
        at = columns[start : start + width]
        of, there = stripe[start : start + width], place[start : start + width]
        # Of the stripes that hold these alone: of 12,000 columns, all stripes took 200 s.
        parts = [(stripes[i].w, there[of == i]) for i in np.unique(of).tolist()]
        arrays = []
        for field in range(len(Columns._fields)):
            held = [w[field][..., own] for w, own in parts]
            joined = zeros((*held[0].shape[:-1], width), held[0].dtype)
            joined[..., len(at) :] = _IDLE.get(Columns._fields[field], 0)
            np.concatenate(held, axis=-1, out=joined[..., : len(at)])
            arrays.append(joined)
        found.append(Stripe(at, Columns(*arrays)))
    return found
