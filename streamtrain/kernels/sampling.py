"""Draws without replacement, by class mass and then within the class, and permutations."""

from __future__ import annotations

import numpy as np

from streamtrain.kernels.jit import jit


@jit
def group_by_class(codes, starts, order):
    """Write the cells grouped by class, in ascending order within each, into `order`."""
    place = starts[:-1].copy()
    for i in range(len(codes)):
        order[place[codes[i]]] = i
        place[codes[i]] += 1


@jit
def draw(order, starts, uniforms, out):
    """Draw len(out) cells by successive sampling with weight 1 / (size of the cell's class).

    `order` holds the cells grouped by class at `starts`; it is permuted while drawing and restored
    before returning. `uniforms` are two numbers in [0, 1) for each draw. Equal weights within a
    class make it exact to draw the class by its remaining mass and then a cell of it evenly.
    """
    n_classes = len(starts) - 1
    left = starts[1:] - starts[:-1]
    swapped = np.empty((len(out), 2), np.int64)
    for d in range(len(out)):
        chosen = 0
        if n_classes > 1:
            mass = 0.0
            for k in range(n_classes):
                mass += left[k] / (starts[k + 1] - starts[k])
            target = uniforms[d, 0] * mass
            reached = 0.0
            for k in range(n_classes):
                if left[k] == 0:
                    continue
                chosen = k  # the last class with cells left, should rounding overrun the mass
                reached += left[k] / (starts[k + 1] - starts[k])
                if reached > target:
                    break
        j = starts[chosen] + np.int64(uniforms[d, 1] * left[chosen])
        left[chosen] -= 1
        last = starts[chosen] + left[chosen]
        out[d] = order[j]
        order[j], order[last] = order[last], order[j]
        swapped[d, 0], swapped[d, 1] = j, last
    for d in range(len(out) - 1, -1, -1):
        j, last = swapped[d, 0], swapped[d, 1]
        order[j], order[last] = order[last], order[j]


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
