"""How mixed batches are: against sets in plain Python, chance against draws, and known ends."""

import math
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.mixing import mixing


def in_python(positions, codes, n_classes, batch_size, rows):
    """The definitions, word by word."""
    spreads, entropies, followed, in_batches = [], [], 0, 0
    for start in range(0, len(positions), batch_size):
        batch = positions[start : start + batch_size]
        counts = [sum(codes[i] == k for i in batch) for k in range(n_classes)]
        spreads.append(pstdev(counts) / fmean(counts))
        shares = [c / len(batch) for c in counts if c]
        entropies.append(-sum(p * math.log2(p) for p in shares))
        stored = {rows[i] for i in batch}
        followed += sum(row + 1 in stored for row in stored)
        in_batches += len(stored)
    return len(set(positions)), fmean(spreads), fmean(entropies), followed / in_batches


@settings(max_examples=60, deadline=None)
@given(
    n_obs=st.integers(1, 40), n_drawn=st.integers(1, 60), n_classes=st.integers(1, 5),
    batch_size=st.integers(1, 25), seed=st.integers(0, 2**32), gaps=st.booleans(),
)  # fmt: skip
def test_mixing__equals_python(n_obs, n_drawn, n_classes, batch_size, seed, gaps):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n_obs).astype(np.int32)
    rows = np.sort(rng.choice(60, n_obs, replace=False)) if gaps else None
    positions = rng.integers(0, n_obs, n_drawn).astype(np.uint32)
    found = mixing(positions, codes, n_classes, batch_size, rows)
    stored = list(range(n_obs)) if rows is None else rows.tolist()
    distinct, spread, entropy, neighbours = in_python(
        positions.tolist(), codes.tolist(), n_classes, batch_size, stored
    )
    assert (found.n_drawn, found.n_distinct) == (n_drawn, distinct)
    assert found.class_spread == pytest.approx(spread)
    assert found.class_entropy == pytest.approx(entropy)
    assert found.neighbours == pytest.approx(neighbours)


@pytest.mark.parametrize("gaps", [False, True])
def test_mixing__chance_is_that_of_even_draws(gaps):
    """Within 5 percent over 2,000 batches of 30 of 100 cells."""
    rng = np.random.default_rng(1)
    positions = np.concatenate([rng.choice(100, 30, replace=False) for _ in range(2000)])
    rows = np.sort(rng.choice(200, 100, replace=False)) if gaps else None
    found = mixing(positions, np.zeros(100, np.int32), 1, 30, rows)
    assert found.neighbours == pytest.approx(found.chance, rel=0.05)
    assert found.chance == pytest.approx(29 / 100 if rows is None else found.neighbours, rel=0.05)


def test_mixing__stored_order_and_balance():
    codes = np.repeat(np.arange(4, dtype=np.int32), 25)
    runs = mixing(np.arange(100), codes, 4, 25)
    assert (runs.n_drawn, runs.n_distinct) == (100, 100)
    assert runs.class_spread == pytest.approx(math.sqrt(3))
    assert runs.class_entropy == 0
    assert runs.neighbours == 24 / 25
    strides = mixing(np.arange(100).reshape(25, 4, order="F").ravel(), codes, 4, 4)
    assert strides.class_spread == strides.neighbours == 0
    assert strides.class_entropy == 2
    assert str(runs) == (
        "100 cells drawn, 100 distinct; in a batch: std/mean of class counts 1.73, class entropy "
        "0.00 bits, neighbours in the store 96.0% (by chance 24.0%)"
    )


def test_mixing__one_cell():
    found = mixing(np.zeros(3, np.uint32), np.zeros(1, np.int32), 1, 2)
    assert (found.n_drawn, found.n_distinct, found.neighbours, found.chance) == (3, 1, 0, 0)
