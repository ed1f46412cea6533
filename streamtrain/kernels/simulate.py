"""Synthetic counts: gene draws by the alias method, each cell from a random stream of its own.

A negative binomial count of mean mu and shape r is a Poisson number of bursts, of rate
r log(1 + mu / r), whose sizes follow the logarithmic law with p = mu / (mu + r) (Quenouille 1949).
So a cell is a number of bursts, each given a gene by one alias table and then a size: cheaper than
one draw a transcript, for a housekeeping gene's many transcripts are few bursts.

Sizes come from tables too, one for each of 256 levels of the odds mu / r; a gene's rate is set so
that its mean is exact. Between the lowest level and the highest, the rounding moves its shape by
2.5 % at most. Beyond them variance / mean stays what it is at the last level, and the shape is
proportional to the mean: below a mean of 0.013 (at shape 2) the variance is too high by 0.7 % at
most; above 4,600 it grows as the mean, no longer as its square. A logarithm a burst (Kemp's LK)
took 171 us of CPU a cell in all; this takes 45.
"""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

# Typed, since uint64 with a plain int is float64 to numba. SplitMix64: Steele, Lea, Flood 2014.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32, _11 = (np.uint64(n) for n in (27, 30, 31, 32, 11))
_LOW, _ONE, _58 = np.uint64(0xFFFFFFFF), np.uint64(1), np.uint64(58)
# Place of a single set bit, by a de Bruijn product (Leiserson, Prokop, Randall 1998): numba has no
# instruction for it, and scanning every gene's count costs as much as half the draws.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_PLACE = np.zeros(64, np.int64)
for _i in range(64):
    _PLACE[((int(_DE_BRUIJN) << _i) & (2**64 - 1)) >> 58] = _i

N_LEVELS, LEVEL_LOW, LEVEL_STEP = 256, -5.0, 0.05  # of log(mu / r)
N_SIZES = 64  # sizes of two and more that have a column of their own; the last takes the tail
_SIZE_MASK, _6, _38 = np.uint64(N_SIZES - 1), np.uint64(6), np.uint64(38)
_BATCH = 1_024  # bursts drawn at a time: their scratch stays in the first cache


@jit
def mix(z):
    """Scramble 64 bits: the output function of SplitMix64."""
    z = (z ^ (z >> _30)) * _MIX1
    z = (z ^ (z >> _27)) * _MIX2
    return z ^ (z >> _31)


@jit
def stream(seed, cell, purpose):
    """State that the random stream of one cell and purpose starts from."""
    return mix(mix(np.uint64(seed) + _STEP) + np.uint64(cell) * _STEP) ^ mix(np.uint64(purpose))


@jit
def uniform(bits):
    """Turn 53 random bits into a number in [0, 1)."""
    return (bits >> _11) * (1.0 / 9007199254740992.0)


@jit
def alias_table(weights, table):
    """Write the alias table of `weights` (Vose 1991) and return their sum.

    `table`, (n, 2) uint32: the chance of keeping column j, in 1/2^32, and the gene drawn otherwise.
    """
    n = len(weights)
    total = weights.sum()
    left = np.empty(n, np.float64)
    stack = np.empty(n, np.int64)  # columns below 1 from the front, the others from the back
    n_small, large = 0, n
    for j in range(n):
        left[j] = weights[j] * n / total
        if left[j] < 1.0:
            stack[n_small] = j
            n_small += 1
        else:
            large -= 1
            stack[large] = j
    while n_small > 0 and large < n:
        n_small -= 1
        j, k = stack[n_small], stack[large]
        table[j, 0] = np.uint32(left[j] * 4294967295.0)
        table[j, 1] = k
        left[k] -= 1.0 - left[j]
        if left[k] < 1.0:
            large += 1
            stack[n_small] = k
            n_small += 1
    # What rounding leaves over is a full column; its own alias, so the last 1/2^32 stays too.
    for k in stack[:n_small]:
        table[k, 0], table[k, 1] = 4294967295, k
    for k in stack[large:]:
        table[k, 0], table[k, 1] = 4294967295, k
    return total


@jit
def size_tables(once, sizes, tails, mean_size):
    """Write the logarithmic law of each level, from which `draw` takes the sizes of bursts.

    `once`, (N_LEVELS,) uint32: the chance of size 1, in 1/2^32. `sizes`, (N_LEVELS, N_SIZES)
    uint32: alias tables of size 2 and more, 26 bits of chance above 6 of alias. `tails`,
    (N_LEVELS, 3) float64: p, the chance of the last column's size and of that or more.
    `mean_size`, (N_LEVELS,) float64.
    """
    chances = np.empty(N_SIZES)
    table = np.empty((N_SIZES, 2), np.uint32)
    for level in range(N_LEVELS):
        odds = math.exp(LEVEL_LOW + LEVEL_STEP * level)
        p = odds / (1.0 + odds)
        power = p / math.log1p(odds)  # of size k: p^k / (k log(1 / (1 - p)))
        mean_size[level] = odds / math.log1p(odds)
        once[level] = np.uint32(power * 4294967295.0)
        rest = 1.0 - power
        for c in range(N_SIZES):
            power *= p
            chances[c] = power / (c + 2)
            if c < N_SIZES - 1:
                rest -= chances[c]
        tails[level, 0], tails[level, 1] = p, chances[-1]
        tails[level, 2] = max(rest, chances[-1])  # a difference, which may cancel to nothing
        chances[-1] = tails[level, 2]
        alias_table(chances, table)
        for c in range(N_SIZES):
            sizes[level, c] = (table[c, 0] >> 6 << 6) | table[c, 1]


@jit
def tail_size(v, p, chance, tail):
    """Draw a size from the last column on by sequential search (Kemp 1981, algorithm LS)."""
    size = N_SIZES + 1
    v *= tail
    power = chance * size
    while v >= chance and chance > 1e-14:  # falls by p at least, so it ends
        v -= chance
        size += 1
        power *= p
        chance = power / size
    return size


@jit
def cell_bursts(seed, first, types, partner, rates, depth_sd, mixed, power, own, other):
    """Write how many bursts each cell draws of its `own` type and of the `other`, its partner.

    Depth is log-normal with mean 1, cut at 2.5 deviations as quality control would; a share
    mixed * u^power of the cell is its partner type's.
    """
    for i in range(len(types)):
        state = stream(seed, first + i, 1)
        u = np.empty(5)
        for k in range(5):
            state += _STEP
            u[k] = uniform(mix(state))
        normal = math.sqrt(-2.0 * math.log(1.0 - u[0])) * math.cos(2.0 * math.pi * u[1])
        normal = min(max(normal, -2.5), 2.5)
        depth = math.exp(depth_sd * normal - 0.5 * depth_sd * depth_sd)
        share = mixed * u[2] ** power
        own[i] = int(depth * (1.0 - share) * rates[types[i]] + u[3])
        other[i] = int(depth * share * rates[partner[types[i]]] + u[4])


@jit
def draw_genes(bits, n, table, genes):
    """Write the gene that each of the first `n` random numbers draws."""
    width = np.uint64(len(table))
    for i in range(n):
        # One product gives the column (high half) and the coin (low half); other bits the size.
        scaled = (bits[i] >> _32) * width
        column = np.uint32(scaled >> _32)
        other = table[column, 1]  # read in any case: no branch to mispredict
        genes[i] = column if (scaled & _LOW) <= table[column, 0] else other


@jit
def draw_sizes(bits, n, genes, level, once, sizes, tails, large, seen):
    """Add to `seen` what the sizes of `n` bursts have above 1; overwrites `large`.

    Which are above 1 is found without a branch, for one in six is, and mispredicting it cost
    more than the draw.
    """
    n_large = np.int64(0)
    for i in range(n):
        large[n_large] = i
        n_large += np.int64((bits[i] & _LOW) >= once[level[genes[i]]])
    for i in large[:n_large]:
        gene = np.int64(genes[i])
        at = np.int64(level[gene])
        random = mix(bits[i])
        column = np.uint32(random & _SIZE_MASK)
        entry = sizes[at, column]
        more = column if (random >> _38) <= np.uint64(entry >> 6) else entry & np.uint32(63)
        if more < N_SIZES - 1:
            seen[gene] += np.int32(more) + 1
        else:
            v = uniform(mix(random))
            seen[gene] += tail_size(v, tails[at, 0], tails[at, 1], tails[at, 2]) - 1


@jit
def draw(state, n, table, level, laws, scratch, seen, touched):
    """Add `n` bursts to the counts `seen`, mark their genes in `touched`; return the state.

    A batch at a time, in loops of one kind of work each: the reads from tables then overlap
    (6 ns a burst without its size).
    """
    once, sizes, tails = laws
    bits, genes, large = scratch
    for start in range(0, n, _BATCH):
        m = min(_BATCH, n - start)
        for i in range(m):
            bits[i] = mix(state + np.uint64(i + 1) * _STEP)
        state += np.uint64(m) * _STEP
        draw_genes(bits, m, table, genes)
        for i in range(m):
            gene = np.int64(genes[i])
            seen[gene] += 1
            touched[gene >> 6] |= _ONE << np.uint64(gene & 63)
        draw_sizes(bits, m, genes, level, once, sizes, tails, large, seen)
    return state


@jit
def scratch_of_draw():
    """Make the arrays that `draw` overwrites: bits, genes, places of bursts above 1."""
    return np.empty(_BATCH, np.uint64), np.empty(_BATCH, np.uint32), np.empty(_BATCH + 1, np.int64)


@jit
def take_counts(seen, touched, data, indices, k):
    """Move the counts, in the order of the genes, to `data` and `indices` from `k` on; its end."""
    for word in range(len(touched)):
        bits = touched[word]
        touched[word] = 0
        while bits != 0:
            lowest = bits & (~bits + _ONE)
            bits ^= lowest
            j = (word << 6) + _PLACE[(lowest * _DE_BRUIJN) >> _58]
            data[k] = seen[j]
            indices[k] = j
            seen[j] = 0
            k += 1
    return k


@jit
def cell_counts(
    seed, first, types, order, partner, own, other, tables, levels, laws, starts, data, indices
):
    """Write the counts of the cells that begin at `first`, in `order`, one after another.

    `order` is by type, so that a table is in the second cache for all its cells. Cell i's entries
    are those from starts[i, 0] to starts[i, 1]; `starts` has shape (n, 2).
    """
    n_vars = levels.shape[1]
    seen = np.zeros(n_vars, np.int32)
    touched = np.zeros((n_vars + 63) >> 6, np.uint64)
    scratch = scratch_of_draw()
    k = 0
    for i in order:
        a, b = types[i], partner[types[i]]
        state = stream(seed, first + i, 2)
        state = draw(state, own[i], tables[a], levels[a], laws, scratch, seen, touched)
        draw(state, other[i], tables[b], levels[b], laws, scratch, seen, touched)
        starts[i, 0] = k
        k = take_counts(seen, touched, data, indices, k)
        starts[i, 1] = k


@jit
def in_order(starts, values, out):
    """Copy the entries of each cell to `out`, cell after cell."""
    k = 0
    for i in range(len(starts)):
        n = starts[i, 1] - starts[i, 0]
        out[k : k + n] = values[starts[i, 0] : starts[i, 1]]
        k += n
