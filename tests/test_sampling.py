"""Epoch plans: the kernel against plain Python, the draws against their laws."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from streamtrain import InputError, strata
from streamtrain.kernels import sampling as kernel
from streamtrain.quotas import Quotas
from streamtrain.sampling import Plan, Stream, dropped_genes, uniforms
from streamtrain.strata import Strata


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


def grouped(codes, n_classes, batch_key, weight):
    """Cells of each stratum by class, ascending; cells of weight 0 are left out."""
    classes = [{} for _ in range(n_classes)]
    for i, k in enumerate(codes):
        if weight is None or weight[i] > 0:
            classes[k].setdefault(0 if batch_key is None else batch_key[i], []).append(i)
    return [[strata[b] for b in sorted(strata)] for strata in classes]


def running(values):
    """Running sums, one addition at a time: sum() compensates from Python 3.12 on."""
    sums, total = [], 0.0
    for value in values:
        total += value
        sums.append(total)
    return sums


def first_above(values, target):
    """First of the positive values whose running sum exceeds the target, or the last of them."""
    sums = running(values)
    positive = [i for i, value in enumerate(values) if value > 0]
    return next((i for i in positive if sums[i] > target), positive[-1])


def quotas_in_python(quotas, n_classes, batch_size, batch):
    """Classes of a batch: those not named share the rest, what cannot be shared in turn."""
    sharing = [k for k in range(n_classes) if k not in quotas]
    rest = batch_size - sum(quotas.values())
    counts = [quotas.get(k, rest // len(sharing) if sharing else 0) for k in range(n_classes)]
    extra = rest % len(sharing) if sharing else 0
    for turn in range(batch * extra, (batch + 1) * extra):
        counts[sharing[turn % len(sharing)]] += 1
    return [k for k in range(n_classes) for _ in range(counts[k])]


def race_in_python(classes, weight, numbers):
    """Successive sampling of all cells by weight, each class and stratum of it alike in sum."""
    arrivals = [
        (-math.log1p(-numbers[i]) / (weight[i] / (running(total)[-1] * len(strata))), i)
        for strata in classes for stratum in strata for total in [[weight[j] for j in stratum]]
        for i in stratum
    ]  # fmt: skip
    return [i for _, i in sorted(arrivals)]


def epoch_in_python(
    codes, n_classes, epoch, *, batch_size, batch_number, seed, balance, replace, quotas, batch_key,
    weight,
):  # fmt: skip
    """An epoch before it is shuffled, a draw at a time; `quotas` by class code."""
    if not balance and quotas is None:
        codes, n_classes = [0] * len(codes), 1
    classes = grouped(codes, n_classes, batch_key, weight)
    n = batch_number * batch_size
    if not replace and quotas is None:
        n = min(n, len(codes))
    if weight is not None and not replace:
        return race_in_python(classes, weight, uniforms(seed, 0, epoch, len(codes)))[:n]
    left = [[len(stratum) for stratum in strata] for strata in classes]
    wanted = []
    for b in range(epoch * batch_number, (epoch + 1) * batch_number):
        wanted += [] if quotas is None else quotas_in_python(quotas, n_classes, batch_size, b)
    out = []
    for d, (u, v) in enumerate(uniforms(seed, 0, epoch, 2 * n).reshape(-1, 2).tolist()):
        if quotas is not None:
            k = wanted[d]
            s = int(u * len(classes[k]))
        elif replace:  # the class evenly, and a stratum of it evenly
            k = int(u * n_classes)
            s = int((u * n_classes - k) * len(classes[k]))
        else:  # by the share of its cells that a stratum has left
            shares = [
                [n_left / len(stratum) for n_left, stratum in zip(*both, strict=True)]
                for both in zip(left, classes, strict=True)
            ]
            mass = [running(strata)[-1] / len(strata) for strata in shares]
            target = u * running(mass)[-1]
            k = first_above(mass, target)
            before = running([0.0, *mass])[k]
            s = first_above(shares[k], (target - before) * len(classes[k]))
        stratum = classes[k][s]
        if weight is not None:
            of_cells = [weight[i] for i in stratum]
            out.append(stratum[first_above(of_cells, v * running(of_cells)[-1])])
        elif replace:
            out.append(stratum[int(v * len(stratum))])
        else:
            left[k][s] = left[k][s] or len(stratum)  # a new permutation
            j = int(v * left[k][s])
            left[k][s] -= 1
            out.append(stratum[j])
            last = left[k][s]
            stratum[j], stratum[last] = stratum[last], stratum[j]
    return out


@st.composite
def plans(draw):
    """Codes of classes, and every kind of option for them."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    codes = skewed(sizes)
    kind = draw(st.sampled_from(["even", "balance", "quotas"]))
    replace = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch_size = draw(st.integers(1, 20))
    quotas = None
    if kind == "quotas":
        named = draw(st.sets(st.integers(0, len(sizes) - 1), max_size=len(sizes) - 1))
        quotas = dict.fromkeys(sorted(named), draw(st.integers(1, 3)))
        batch_size += sum(quotas.values())
    weight = None
    if draw(st.booleans()) and (kind != "quotas" or replace):
        weight = rng.lognormal(0, 2, len(codes))
        weight[rng.random(len(codes)) < 0.3] = 0
        weight[np.unique(codes, return_index=True)[1]] = 1
        batch_size = batch_size if replace else min(batch_size, np.count_nonzero(weight))
    options = {
        "batch_size": batch_size, "quotas": quotas,
        "batch_number": draw(st.integers(1, 8)) if weight is None or replace else 1,
        "seed": draw(st.integers(0, 2**32)), "balance": kind == "balance", "replace": replace,
        "batch_key": rng.integers(0, 4, len(codes)).astype(np.uint16)
        if kind != "even" and draw(st.booleans()) else None,
        "weight": weight,
    }  # fmt: skip
    return codes, len(sizes), options


@settings(max_examples=150, deadline=None)
@given(made=plans(), chunk=st.sampled_from([1, 7, 1 << 16]))
def test_plan__equals_python(made, chunk):
    codes, n_classes, options = made
    ours = dict(options)
    if options["quotas"] is not None:
        named = {f"type {k}": n for k, n in options["quotas"].items()}
        names = [f"type {k}" for k in range(n_classes)]
        ours["quotas"] = Quotas.of(named, names, options["batch_size"])
    with mock.patch.object(strata, "CHUNK", chunk):
        p = plan(codes, n_classes, shuffle=False, **ours)
        for e in (0, 1, 0):
            expected = epoch_in_python(codes, n_classes, e, **options)
            assert len(expected) == p.epoch_size
            assert p.epoch(e).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    part=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_by_mass__equals_python_at_the_borders(sizes, part, seed):
    """Eighths as uniforms fall on the borders between classes."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    out = np.empty(round(part * starts[-1]), np.int64)
    numbers = np.floor(np.random.default_rng(seed).random(len(out)) * 8) / 8
    ones = np.ones((2, len(sizes)))
    kernel.by_mass(starts, np.arange(len(sizes) + 1), np.diff(starts), *ones, numbers, out)
    left = list(sizes)
    for u, s in zip(numbers.tolist(), out.tolist(), strict=True):
        mass = [n / size for n, size in zip(left, sizes, strict=True)]
        assert s == first_above(mass, u * running(mass)[-1])
        left[s] -= 1


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_draws__extreme_uniforms(u):
    """The ends of [0, 1) stay within the strata that have cells left, and within a stratum."""
    starts, first = np.array([0, 1, 4, 6]), np.array([0, 2, 3])
    numbers, strata = np.full(6, u), np.empty(6, np.int64)
    left, ones = np.diff(starts), np.ones(3)
    kernel.by_mass(starts, first, left, ones, np.ones(2), numbers, strata)
    assert sorted(strata) == [0, 1, 1, 1, 2, 2]
    assert strata[0] == (0 if u == 0 else 2)
    order, out = np.arange(6, dtype=np.uint32), np.empty(6, np.int64)
    kernel.take(order, starts, np.diff(starts), strata, numbers, np.empty(0, np.uint32), out)
    assert sorted(out) == list(range(6))
    weights, upper = np.array([1.0, 0.1, 0.2, 0.3, 1e-30, 5.0]), np.empty(3)
    order, blocks = np.arange(6, dtype=np.uint32), np.arange(4)
    kernel.sum_blocks(order, starts, blocks, weights, upper)
    three, ends = np.arange(3), np.empty(3, np.int64)
    kernel.by_weight(order, starts, blocks, weights, upper, three, numbers[:3], ends)
    assert ends.tolist() == ([0, 1, 4] if u == 0 else [0, 3, 5])
    group = Strata(order, starts, first)
    assert group.evenly(numbers, None).tolist() == [0 if u == 0 else 2] * 6
    assert group.evenly(numbers, np.zeros(6, np.int64)).tolist() == [0 if u == 0 else 1] * 6


def test_by_weight__equals_a_search_in_the_running_sum():
    """Over many blocks of cells."""
    rng = np.random.default_rng(3)
    weight = rng.lognormal(0, 2, 5000)
    p = plan(np.zeros(5000), weight=weight, replace=True, shuffle=False, batch_number=50)
    sums = np.cumsum(weight)
    numbers = uniforms(0, 0, 1, 1000)[1::2]
    assert p.epoch(1).tolist() == np.searchsorted(sums, numbers * sums[-1], "right").tolist()


def test_uniforms__are_the_raw_philox_stream():
    raw = np.random.Philox(np.random.SeedSequence((3, 1, 4))).random_raw(1000)
    found = uniforms(3, 1, 4, 1000)
    assert found.tolist() == [(int(r) >> 11) / 2**53 for r in raw]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(0, 30), max_size=8))
def test_stream__parts_are_the_whole(parts):
    stream = Stream(3, 1, 4)
    assert [u for n in parts for u in stream(n)] == uniforms(3, 1, 4, sum(parts)).tolist()


def test_uniforms__streams_differ():
    streams = [uniforms(s, p, e, 5).tolist() for s in (0, 1) for p in (0, 1) for e in (0, 1)]
    assert len({tuple(s) for s in streams}) == 8


def test_dropped_genes():
    """The known answer is frozen: a change here changes every model that a seed gives."""
    found = np.stack([dropped_genes(2000, 0.3, 5, batch) for batch in range(50)])
    assert np.flatnonzero(found[2, :12]).tolist() == [2, 3, 7, 8, 9]
    share = 5 * np.sqrt(0.3 * 0.7 / 1e5)  # five standard deviations
    assert abs(found.mean() - 0.3) < share
    assert np.abs(found.mean(axis=0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 50)
    assert len(np.unique(found, axis=0)) == 50
    np.testing.assert_array_equal(dropped_genes(700, 0.3, 5, 2), found[2, :700])
    assert (dropped_genes(2000, 0.3, 6, 0) != found[0]).any()
    assert not dropped_genes(2000, 0.0, 5, 0).any()


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
        assert order.dtype == np.uint32
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


CODES, KEYS = np.array([0, 1, 1, 1, 2, 2, 1]), np.array([1, 0, 0, 1, 1, 1, 2], np.uint16)
WEIGHT = np.array([3.0, 1.0, 0.0, 2.0, 0.5, 1.5, 4.0])
# Chance of each cell to be drawn first, worked out by hand.
LAWS = {
    "even": ({}, [1 / 7] * 7),
    "balanced": ({"balance": True}, [1 / 3, *[1 / 12] * 3, 1 / 6, 1 / 6, 1 / 12]),
    "batches": (
        {"balance": True, "batch_key": KEYS}, [1 / 3, 1 / 18, 1 / 18, 1 / 9, 1 / 6, 1 / 6, 1 / 9]
    ),
    "weights": ({"weight": WEIGHT}, [3 / 12, 1 / 12, 0, 2 / 12, 0.5 / 12, 1.5 / 12, 4 / 12]),
    "weights, balanced": (
        {"weight": WEIGHT, "balance": True},
        [1 / 3, 1 / 21, 0, 2 / 21, 1 / 12, 1 / 4, 4 / 21],
    ),
    "weights, batches": (
        {"weight": WEIGHT, "balance": True, "batch_key": KEYS},
        [1 / 3, 1 / 9, 0, 1 / 9, 1 / 12, 1 / 4, 1 / 9],
    ),
}  # fmt: skip


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(("options", "chances"), LAWS.values(), ids=LAWS.keys())
def test_plan__first_two_draws_obey_their_law(options, chances, replace):
    """Chi-square at 1e-3 over 8,000 epochs."""
    assert sum(chances) == pytest.approx(1)
    p = plan(CODES, batch_size=2, batch_number=1, shuffle=False, replace=replace, **options)
    pairs = np.zeros((7, 7))
    for e in range(8000):
        a, b = p.epoch(e)
        pairs[a, b] += 1
    expected = np.zeros((7, 7))
    for a, b in itertools.product(range(7), repeat=2):
        again = replace or a != b
        expected[a, b] = again * chances[a] * chances[b] / (1 if replace else 1 - chances[a])
    possible = expected > 0
    assert pairs[~possible].sum() == 0
    assert stats.chisquare(pairs[possible], 8000 * expected[possible]).pvalue > 1e-3


def test_plan__quotas_hold_in_every_batch_and_rotate():
    """12 cells over 5 classes: 2 each, and 2 more in turn."""
    quotas = Quotas.of("equal", list("abcde"), 12)
    p = plan(skewed([1, 3, 10, 40, 400]), batch_size=12, batch_number=5, quotas=quotas, epochs=3)
    counts = [
        np.bincount(skewed([1, 3, 10, 40, 400])[batch], minlength=5)
        for e in range(3) for batch in p.epoch(e).reshape(5, 12)
    ]  # fmt: skip
    assert counts[0].tolist() == [3, 3, 2, 2, 2]
    assert counts[1].tolist() == [2, 2, 3, 3, 2]
    assert counts[2].tolist() == [3, 2, 2, 2, 3]
    assert np.sum(counts, axis=0).tolist() == [36] * 5
    assert not p.ever_drawn().all()


def test_plan__quotas_repeat_rare_cells_evenly():
    codes = skewed([7, 2000])
    p = plan(codes, batch_size=50, batch_number=20, quotas=Quotas.of({"b": 20}, ["a", "b"], 50))
    times = np.bincount(p.epoch(0), minlength=2007)
    assert sorted(times[codes == 0]) == [85] * 2 + [86] * 5  # 600 = 7 * 85 + 5
    assert times[codes == 1].max() == 1
    assert times[codes == 1].sum() == 400


def test_plan__quotas_pass_through_random_permutations():
    """Chi-square at 1e-3: each of the 6 orders of a class of 3, in the first two passes."""
    p = plan([0, 0, 0, 1], batch_size=7, batch_number=1, shuffle=False,
             quotas=Quotas.of({"a": 6}, ["a", "b"], 7))  # fmt: skip
    orders = {order: k for k, order in enumerate(itertools.permutations(range(3)))}
    table = np.zeros((6, 6))
    for e in range(6000):
        a = p.epoch(e).tolist()
        table[orders[tuple(a[:3])], orders[tuple(a[3:6])]] += 1
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_plan__quotas_choose_the_batch_evenly():
    """By binomial tests at 1e-3: class 1 has one cell of batch 0 and 99 of batch 3."""
    codes, keys = np.array([0] + [1] * 100), np.array([0, 0] + [3] * 99, np.uint16)
    for replace in (False, True):
        p = plan(codes, batch_size=20, batch_number=100, batch_key=keys, replace=replace,
                 quotas=Quotas.of("equal", ["a", "b"], 20))  # fmt: skip
        drawn = p.epoch(0)
        assert (drawn == 0).sum() == 1000
        assert stats.binomtest(int((drawn == 1).sum()), 1000, 0.5).pvalue > 1e-3


def test_plan__balanced_over_batches_as_numpy_choice():
    """Counts of each stratum among the first 20 of 60 draws, to 4 standard errors."""
    codes, keys = np.arange(120) % 3, (np.arange(120) ** 2 // 700).astype(np.uint16)
    strata = np.unique(codes * 100 + keys, return_inverse=True)[1]
    n_keys = [len(np.unique(keys[codes == k])) for k in range(3)]
    chances = 1 / (3 * np.take(n_keys, codes) * np.bincount(strata)[strata])
    p = plan(codes, batch_size=60, batch_number=1, balance=True, batch_key=keys, shuffle=False)
    ours, theirs = np.zeros((2, 2000, strata.max() + 1))
    rng = np.random.default_rng(0)
    for e in range(2000):
        chosen = rng.choice(120, 60, replace=False, p=chances)
        ours[e] = np.bincount(strata[p.epoch(e)[:20]], minlength=ours.shape[1])
        theirs[e] = np.bincount(strata[chosen[:20]], minlength=ours.shape[1])
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 4 * error + 1e-12).all()


def test_plan__known_answers_of_other_kinds():
    """Frozen, as above."""
    options = {"batch_size": 4, "batch_number": 2, "seed": 42}
    found = {
        "replace": plan(CODES, replace=True, **options),
        "balance": plan(CODES, replace=True, balance=True, batch_key=KEYS, **options),
        "batches": plan(CODES, balance=True, batch_key=KEYS, **options),
        "quotas": plan(CODES, quotas=Quotas.of("equal", list("abc"), 4), **options),
        "weight": plan(CODES, weight=WEIGHT, **options | {"batch_size": 3}),
        "both": plan(CODES, weight=WEIGHT, replace=True, **options),
    }
    assert {name: p.epoch(1).tolist() for name, p in found.items()} == {
        "replace": [6, 1, 1, 5, 1, 6, 0, 5],
        "balance": [6, 0, 1, 0, 1, 3, 0, 0],
        "batches": [5, 0, 3, 2, 6, 4, 1],
        "quotas": [6, 0, 4, 5, 0, 3, 0, 4],
        "weight": [0, 6, 5, 3, 4, 1],
        "both": [6, 1, 1, 6, 1, 6, 0, 6],
    }


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_plan__draws_leave_nothing_behind(replace, weighted):
    """Epochs are pure: few draws are undone in place, many are made in a copy."""
    codes = skewed([5, 50])
    weight = np.linspace(1, 2, 55) if weighted else None
    for batch_number in (1, 3, 30):
        p = plan(codes, balance=True, replace=replace, weight=weight, batch_number=batch_number)
        before = None if p._race else p._strata.order.copy()
        first = p.epoch(0)
        assert p._race or p._strata.order.tolist() == before.tolist()
        p.epoch(1)
        np.testing.assert_array_equal(p.epoch(0), first)


def test_plan__with_replacement_takes_more_than_there_are():
    p = plan(np.zeros(30), batch_size=10, batch_number=9, replace=True, epochs=1)
    assert p.epoch_size == len(p.epoch(0)) == 90
    assert set(np.flatnonzero(p.ever_drawn())) == set(p.epoch(0))
    assert len(set(p.epoch(0))) < 30


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"D": 2}, "quotas names 'D', which is no cell type: there are 'a', 'b', 'c'"),
        ({"a": 10}, "quotas take 10 of batch_size=10 cells and name 1 of 3 cell types"),
        ({"a": 1, "b": 1, "c": 1}, "quotas take 3 of batch_size=10 cells and name 3 of 3"),
        ({"a": 11}, "quotas take 11 of batch_size=10 cells"),
    ],
    ids=str,
)
def test_quotas__refuse(spec, words):
    with pytest.raises(InputError, match=words):
        Quotas.of(spec, list("abc"), 10)


def test_quotas__more_classes_than_cells_take_turns():
    quotas = Quotas.of("equal", list("abcde"), 2)
    assert [quotas.classes(b).tolist() for b in range(3)] == [[0, 1], [2, 3], [0, 4]]


def test_strata__of_no_cells():
    empty = Strata.of(0, np.empty(0, np.int32), 2, np.empty(0, np.uint16), None)
    assert empty.sizes.tolist() == []
    assert empty.first.tolist() == [0, 0, 0]
