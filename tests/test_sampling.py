"""Epoch plans: the kernel against plain Python, the draws against their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from streamtrain.kernels import sampling as kernel
from streamtrain.sampling import Plan, uniforms


def plan(codes, n_classes=None, **options):
    codes = np.asarray(codes, np.int32)
    options = {
        "batch_size": 10, "batch_number": 100, "epochs": 2,
        "balance": False, "shuffle": True, "seed": 0,
    } | options  # fmt: skip
    return Plan(codes, int(codes.max()) + 1 if n_classes is None else n_classes, **options)


def skewed(sizes):
    """Codes of classes of these sizes, mixed."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(7).permutation(codes).astype(np.int32)


def draw_in_python(groups, uniforms, n):
    """Successive sampling by the class's remaining mass, then evenly within the class."""
    groups = [list(group) for group in groups]
    sizes = [len(group) for group in groups]
    out = []
    for u, v in uniforms[:n]:
        mass = [len(group) / size for group, size in zip(groups, sizes, strict=True)]
        total = 0.0
        for m in mass:  # not sum(), which compensates from Python 3.12 on
            total += m
        reached, chosen = 0.0, None
        for k, m in enumerate(mass):
            if m > 0:
                chosen = k
                reached += m
                if reached > u * total:
                    break
        group = groups[chosen]
        j = int(v * len(group))
        out.append(group[j])
        group[j] = group[-1]  # the last takes the place of the drawn
        group.pop()
    return out


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    coarse=st.booleans(),  # eighths fall on the borders between classes
)
def test_draw__equals_python(sizes, part, seed, coarse):
    codes = skewed(sizes)
    n = len(codes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = np.empty(n, np.uint32)
    kernel.group_by_class(codes, starts, order)
    groups = [np.flatnonzero(codes == k).tolist() for k in range(len(sizes))]
    assert order.tolist() == [i for group in groups for i in group]
    out = np.empty(round(part * n), np.int64)
    numbers = np.random.default_rng(seed).random((n, 2))
    if coarse:
        numbers = np.floor(numbers * 8) / 8
    before = order.copy()
    kernel.draw(order, starts, numbers, out)
    assert out.tolist() == draw_in_python(groups, numbers, len(out))
    np.testing.assert_array_equal(order, before)


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_draw__extreme_uniforms(u):
    """The ends of [0, 1) stay within the classes that have cells left."""
    starts = np.array([0, 1, 4, 6])
    order = np.arange(6, dtype=np.uint32)
    out = np.empty(6, np.int64)
    kernel.draw(order, starts, np.full((6, 2), u), out)
    assert sorted(out) == list(range(6))
    assert out[0] == (0 if u == 0 else 5)


def test_uniforms__are_the_raw_philox_stream():
    raw = np.random.Philox(np.random.SeedSequence((3, 1, 4))).random_raw(1000)
    found = uniforms(3, 1, 4, 1000)
    assert found.tolist() == [(int(r) >> 11) / 2**53 for r in raw]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_uniforms__streams_differ():
    streams = [uniforms(s, p, e, 5).tolist() for s in (0, 1) for p in (0, 1) for e in (0, 1)]
    assert len({tuple(s) for s in streams}) == 8


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    batch_size=st.integers(1, 40),
    batch_number=st.integers(1, 10),
    balance=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_plan__an_epoch_draws_without_repeats(
    sizes, batch_size, batch_number, balance, shuffle, seed
):
    codes = skewed(sizes)
    p = plan(
        codes, batch_size=batch_size, batch_number=batch_number, balance=balance,
        shuffle=shuffle, seed=seed, epochs=3,
    )  # fmt: skip
    assert p.epoch_size == min(batch_size * batch_number, len(codes))
    drawn = [p.epoch(e) for e in range(3)]
    for order in drawn:
        assert order.dtype == np.int64
        assert len(order) == len(set(order.tolist())) == p.epoch_size
        assert order.min() >= 0
        assert order.max() < len(codes)
    assert set(np.flatnonzero(p.ever_drawn()).tolist()) == set(np.concatenate(drawn).tolist())
    # Asking in another order, or again, changes nothing.
    for e in (2, 0):
        np.testing.assert_array_equal(p.epoch(e), drawn[e])


def test_plan__seeds_and_epochs():
    codes = skewed([30, 70])
    for balance in (False, True):
        p = plan(codes, batch_number=5, balance=balance)
        np.testing.assert_array_equal(
            p.epoch(1), plan(codes, batch_number=5, balance=balance).epoch(1)
        )
        assert p.epoch(0).tolist() != p.epoch(1).tolist()
        other = plan(codes, batch_number=5, balance=balance, seed=1)
        assert p.epoch(0).tolist() != other.epoch(0).tolist()


def test_plan__known_answer():
    """Frozen: a change here changes every model that a seed gives."""
    codes = np.array([0, 1, 1, 2, 0, 2, 2, 2, 1, 2, 2, 0])
    even = plan(codes, batch_size=4, batch_number=2, seed=42)
    assert even.epoch(0).tolist() == [7, 5, 1, 9, 3, 6, 4, 8]
    assert even.epoch(1).tolist() == [10, 3, 2, 7, 1, 5, 0, 4]
    balanced = plan(codes, batch_size=4, batch_number=2, seed=42, balance=True)
    assert balanced.epoch(0).tolist() == [2, 4, 0, 8, 6, 9, 1, 7]
    still = plan(codes, batch_size=4, batch_number=2, seed=42, balance=True, shuffle=False)
    assert still.epoch(0).tolist() == [0, 8, 4, 2, 9, 1, 7, 6]


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("batch_size", [7, 50, 1000])
def test_plan__shuffle_stays_within_batches(batch_size, balance):
    codes = skewed([20, 5, 80])
    shuffled, still = (
        plan(codes, batch_size=batch_size, batch_number=14, balance=balance, shuffle=s)
        for s in (True, False)
    )
    for e in range(2):
        a, b = shuffled.epoch(e), still.epoch(e)
        assert a.tolist() != b.tolist()
        for start in range(0, len(a), batch_size):
            batch = slice(start, start + batch_size)
            assert sorted(a[batch]) == sorted(b[batch])


def test_plan__shuffle_is_even():
    """Where the first cell of a batch of 5 goes: 5 places, 4,000 shuffles."""
    places = np.zeros(5)
    for seed in range(4000):
        a, b = (
            plan(np.zeros(20), batch_size=5, batch_number=1, shuffle=s, seed=seed).epoch(0)
            for s in (True, False)
        )
        places[a.tolist().index(b[0])] += 1
    assert stats.chisquare(places).pvalue > 1e-3


def test_plan__uniform_draws_are_even():
    """Chi-square at 1e-3: how often each of 40 cells is drawn, first, and next to the first."""
    drawn, first, pairs = np.zeros(40), np.zeros(40), np.zeros((4, 4))
    for seed in range(6000):
        order = plan(np.zeros(40), batch_number=1, batch_size=8, shuffle=False, seed=seed).epoch(0)
        drawn[order] += 1
        first[order[0]] += 1
        pairs[order[0] % 4, order[1] % 4] += 1
    # Drawn without replacement, counts vary by (1 - 8/40) less than multinomial ones.
    statistic = ((drawn - 1200) ** 2 / 1200).sum() / (1 - 8 / 40)
    assert stats.chi2.sf(statistic, 39) > 1e-3
    assert stats.chisquare(first).pvalue > 1e-3
    same = (40 / 4) * (40 / 4 - 1) / (40 * 39)
    expected = np.full((4, 4), 100 / (40 * 39)) + np.eye(4) * (same - 100 / (40 * 39))
    assert stats.chisquare(pairs.ravel(), 6000 * expected.ravel()).pvalue > 1e-3


def choice(codes, n_draws, seed):
    """CellTypist's draw."""
    sizes = np.bincount(codes)
    p = 1 / (len(sizes) * sizes[codes])
    return np.random.RandomState(seed).choice(len(codes), n_draws, replace=False, p=p)


@pytest.mark.parametrize("first", [5, 20, 45])
def test_plan__balanced_draws_as_numpy_choice(first):
    """Chi-square at 1e-3 over 3,000 seeds: class counts among the first draws of 60."""
    sizes = [3, 12, 45, 60]
    codes = skewed(sizes)
    ours, theirs = np.zeros((2, 3000, 4))
    for seed in range(3000):
        p = plan(codes, batch_size=60, batch_number=1, balance=True, shuffle=False, seed=seed)
        ours[seed] = np.bincount(codes[p.epoch(0)[:first]], minlength=4)
        theirs[seed] = np.bincount(codes[choice(codes, 60, seed)[:first]], minlength=4)
    for k in range(4):
        values, both = np.unique(np.concatenate([ours[:, k], theirs[:, k]]), return_counts=True)
        common = values[both >= 20]
        table = [
            [np.sum(x[:, k] == v) for v in common] + [np.sum(~np.isin(x[:, k], common))]
            for x in (ours, theirs)
        ]
        table = np.array(table)[:, np.sum(table, axis=0) > 0]
        if table.shape[1] > 1:
            assert stats.chi2_contingency(table).pvalue > 1e-3
    # The mean counts too, to 4 standard errors of their difference.
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 4 * error + 1e-12).all()


def test_plan__balanced_within_a_class_is_even():
    codes = skewed([10, 200])
    drawn = np.zeros(210)
    for seed in range(3000):
        p = plan(codes, batch_size=8, batch_number=1, balance=True, shuffle=False, seed=seed)
        drawn[p.epoch(0)[:1]] += 1
    assert stats.binomtest(int(drawn[codes == 0].sum()), 3000, 0.5).pvalue > 1e-3
    assert stats.chisquare(drawn[codes == 0]).pvalue > 1e-3
    assert stats.chisquare(drawn[codes == 1]).pvalue > 1e-3


def test_plan__rare_classes_run_out_first():
    codes = skewed([10, 50, 2000])
    p = plan(codes, batch_size=100, batch_number=100, balance=True)
    order = codes[p.epoch(0)]
    assert np.bincount(order, minlength=3).tolist() == [10, 50, 2000]  # the epoch takes all
    assert set(order[:20]) == {0, 1, 2}
    assert set(order[500:]) == {2}
    assert max(np.flatnonzero(order == 0)) < 200  # 1/3 of the mass, half later


def test_plan__takes_every_cell():
    codes = skewed([3, 4])
    p = plan(codes, batch_size=2, batch_number=100)
    assert p.epoch_size == 7
    assert sorted(p.epoch(1)) == list(range(7))
    assert p.ever_drawn().tolist() == [True] * 7


def test_plan__one_cell():
    p = plan([0], batch_size=1, batch_number=3, balance=True)
    assert p.epoch(0).tolist() == [0]
