"""Synthetic counts: gene draws by the alias method, each cell from a random stream of its own.

A negative binomial count of mean mu and shape r is a Poisson number of bursts, of rate
r log(1 + mu / r), whose sizes follow the logarithmic law with p = mu / (mu + r) (Quenouille 1949).
So a cell is a number of bursts, each given a gene by one alias table and then a size: exact, and
cheaper than one draw a transcript, for a housekeeping gene's many transcripts are few bursts.
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
    small = np.empty(n, np.int64)
    large = np.empty(n, np.int64)
    n_small, n_large = 0, 0
    for j in range(n):
        left[j] = weights[j] * n / total
        if left[j] < 1.0:
            small[n_small] = j
            n_small += 1
        else:
            large[n_large] = j
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        j, k = small[n_small], large[n_large - 1]
        table[j, 0] = np.uint32(left[j] * 4294967295.0)
        table[j, 1] = k
        left[k] -= 1.0 - left[j]
        if left[k] < 1.0:
            n_large -= 1
            small[n_small] = k
            n_small += 1
    # What rounding leaves over is a full column; its own alias, so the last 1/2^32 stays too.
    for k in large[:n_large]:
        table[k, 0], table[k, 1] = 4294967295, k
    for k in small[:n_small]:
        table[k, 0], table[k, 1] = 4294967295, k
    return total


@jit
def type_table(log_mean, effect, shape, table, burst):
    """Write one type's alias table and burst parameters p; return its mean number of bursts.

    The mean count of gene j is exp(log_mean[j] + effect[j]).
    """
    weights = np.empty(len(log_mean), np.float64)
    for j in range(len(log_mean)):
        mean = math.exp(log_mean[j] + effect[j])
        weights[j] = shape * math.log1p(mean / shape)
        burst[j] = mean / (mean + shape)
    return alias_table(weights, table)


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
def burst_size(state, v, p):
    """Draw from the logarithmic law, given its first uniform `v` (Kemp 1981, algorithm LK)."""
    while True:
        if v >= p:
            return state, 1
        state += _STEP
        q = -math.expm1(math.log1p(-p) * uniform(mix(state)))
        if v >= q:
            return state, 1
        if v > q * q:
            return state, 2
        if v > 0.0:
            return state, int(1.0 + math.log(v) / math.log(q))
        state += _STEP
        v = uniform(mix(state))


@jit
def draw(state, n, table, burst, seen, touched):
    """Add `n` bursts to the counts `seen`, mark their genes in `touched`; return the state."""
    width = np.uint64(len(burst))
    for _ in range(n):
        state += _STEP
        bits = mix(state)
        # One product gives the column (high half) and the coin (low half); other bits the size.
        scaled = (bits >> _32) * width
        column = np.int64(scaled >> _32)
        other = np.int64(table[column, 1])  # read in any case: no branch to mispredict
        gene = other if (scaled & _LOW) > table[column, 0] else column
        touched[gene >> 6] |= _ONE << np.uint64(gene & 63)
        v = (bits & _LOW) * (1.0 / 4294967296.0)
        if v >= burst[gene]:
            seen[gene] += 1
        else:
            state, size = burst_size(state, v, np.float64(burst[gene]))
            seen[gene] += size
    return state


@jit
def cell_counts(seed, first, types, partner, own, other, tables, bursts, indptr, data, indices):
    """Write the counts of the cells that begin at `first`, as compressed sparse rows."""
    n_vars = bursts.shape[1]
    seen = np.zeros(n_vars, np.int32)
    touched = np.zeros((n_vars + 63) >> 6, np.uint64)
    k = 0
    indptr[0] = 0
    for i in range(len(types)):
        a, b = types[i], partner[types[i]]
        state = stream(seed, first + i, 2)
        state = draw(state, own[i], tables[a], bursts[a], seen, touched)
        draw(state, other[i], tables[b], bursts[b], seen, touched)
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
        indptr[i + 1] = k
