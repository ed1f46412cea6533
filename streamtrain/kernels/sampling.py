"""Cells grouped into strata, draws: first of a stratum, then of a cell in it; permutations.

Cells of a stratum lie in `order` from starts[s] to starts[s + 1]; no stratum is empty. The strata
of class k are first[k] to first[k + 1].
"""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit

BLOCK = 32  # weights summed at a time: a quarter of a byte a cell to search


@jit
def count(codes, batch_keys, weights, sizes):
    """Add the cells of positive weight to `sizes`, by class and experimental batch."""
    for i in range(len(codes)):
        if weights[i] > 0:
            sizes[codes[i], batch_keys[i]] += 1


@jit
def group(codes, batch_keys, weights, place, order):
    """Write the cells of positive weight by stratum, ascending in each, into `order`.

    `place` holds where each class and batch begins, and is overwritten.
    """
    for i in range(len(codes)):
        if weights[i] > 0:
            order[place[codes[i], batch_keys[i]]] = i
            place[codes[i], batch_keys[i]] += 1


@jit
def by_mass(starts, first, left, shares, mass, uniforms, out):
    """Choose strata by the mass that they have left, each taking one of its cells along.

    `left` are cells of each stratum, `shares` their share of its size, and `mass` the mean of these
    over the strata of each class, by which the class is chosen: all three are kept up to date. One
    uniform for each draw.
    """
    for d in range(len(out)):
        if len(left) == 1:
            out[d] = 0
            continue
        total = 0.0
        for k in range(len(mass)):
            total += mass[k]
        target = uniforms[d] * total
        chosen, reached, before = 0, 0.0, 0.0
        for k in range(len(mass)):
            if mass[k] == 0:
                continue
            chosen = k  # the last class with cells left, should rounding overrun the mass
            before = reached
            reached += mass[k]
            if reached > target:
                break
        n_strata = first[chosen + 1] - first[chosen]
        s = first[chosen]
        if n_strata > 1:
            inside, reached = (target - before) * n_strata, 0.0
            for t in range(first[chosen], first[chosen + 1]):
                if left[t] == 0:
                    continue
                s = t
                reached += shares[t]
                if reached > inside:
                    break
        left[s] -= 1
        shares[s] = left[s] / (starts[s + 1] - starts[s])
        total = 0.0
        for t in range(first[chosen], first[chosen + 1]):
            total += shares[t]
        mass[chosen] = total / n_strata
        out[d] = s


@jit
def take(order, starts, left, strata, uniforms, places, out):
    """Draw a cell of each of `strata` evenly among those left, or among all once none is left.

    `order` is permuted within the strata, and `left` kept up to date. `places` gets what
    `put_back` needs, unless it is empty. One uniform for each draw.
    """
    for d in range(len(out)):
        s = strata[d]
        if left[s] == 0:
            left[s] = starts[s + 1] - starts[s]
        j = starts[s] + np.int64(uniforms[d] * left[s])
        left[s] -= 1
        last = starts[s] + left[s]
        out[d] = order[j]
        order[j], order[last] = order[last], order[j]
        if len(places) > 0:
            places[d] = j


@jit
def put_back(order, starts, left, places):
    """Undo in `order` what `take` did, last draw first; `left` is overwritten."""
    for d in range(len(places) - 1, -1, -1):
        j = places[d]
        s = np.searchsorted(starts, j, side="right") - 1
        last = starts[s] + left[s]
        order[j], order[last] = order[last], order[j]
        left[s] += 1
        if left[s] == starts[s + 1] - starts[s]:  # a permutation began here
            left[s] = 0


@jit
def sum_blocks(order, starts, blocks, weights, upper):
    """Write the weight of each stratum up to the end of each block of its cells into `upper`.

    The blocks of stratum s are blocks[s] to blocks[s + 1].
    """
    for s in range(len(starts) - 1):
        total = 0.0
        for b in range(blocks[s], blocks[s + 1]):
            begin = starts[s] + (b - blocks[s]) * BLOCK
            for i in range(begin, min(begin + BLOCK, starts[s + 1])):
                total += weights[order[i]]
            upper[b] = total


@jit
def by_weight(order, starts, blocks, weights, upper, strata, uniforms, out):
    """Draw a cell of each of `strata` by weight: the first whose running sum exceeds a share.

    Sums run as in `sum_blocks`, so this is a search in the running sum of the whole stratum.
    """
    for d in range(len(out)):
        s = strata[d]
        target = uniforms[d] * upper[blocks[s + 1] - 1]
        low, high = blocks[s], blocks[s + 1] - 1  # the last, should rounding reach the sum
        while low < high:
            middle = (low + high) // 2
            if upper[middle] > target:
                high = middle
            else:
                low = middle + 1
        reached = upper[low - 1] if low > blocks[s] else 0.0
        begin = starts[s] + (low - blocks[s]) * BLOCK
        for i in range(begin, min(begin + BLOCK, starts[s + 1])):
            out[d] = order[i]  # the last stays, should rounding reach the sum
            reached += weights[order[i]]
            if reached > target:
                break


@jit
def total(codes, batch_keys, weights, sums):
    """Add the weights of the cells to `sums`, by class and experimental batch."""
    for i in range(len(codes)):
        sums[codes[i], batch_keys[i]] += weights[i]


@jit
def race(codes, batch_keys, weights, scale, begin, uniforms, limit, keys, cells):
    """Give the cells from `begin` on their times of arrival, and keep those up to `limit`.

    A cell arrives at -log(1 - u) / (weight * scale of its class and batch), u its uniform: in order
    of arrival, cells are drawn successively by weight (Efraimidis and Spirakis 2006, whose keys
    these are but for the sign). Returns how many were written into `keys` and `cells`.
    """
    found = 0
    for i in range(len(uniforms)):
        cell = begin + i
        weight = weights[cell] * scale[codes[cell], batch_keys[cell]]
        # -log(1 - u) is at least u: most cells of a large store need no logarithm.
        if weight == 0 or uniforms[i] > 1.000001 * limit * weight:
            continue
        key = -np.log1p(-uniforms[i]) / weight
        if key <= limit:
            keys[found] = key
            cells[found] = cell
            found += 1
    return found


@jit
def permute(order, stop, uniforms):
    """Carry a Fisher-Yates shuffle (Durstenfeld 1964) on: place the cells `stop` - 1 downwards.

    One place of `order` is settled by each of the numbers in [0, 1). Their 53 random bits leave
    each of n cells a chance within n / 2^53 of even.
    """
    for k in range(len(uniforms)):
        i = stop - 1 - k
        j = np.int64(uniforms[k] * (i + 1))
        order[i], order[j] = order[j], order[i]
