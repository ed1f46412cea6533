"""Sums over a binary tree: the same to the bit from any hands."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.pairwise import PairwiseSum, stretch_of
from streamtrain.scaling import MomentsPass


def halved(values, lo=0, size=None):
    """Halves of the numbers lo to lo + size, a power of two, added; None where there are none."""
    size = size or 1 << max(0, len(values) - 1).bit_length()
    if size == 1:
        return values[lo] if lo < len(values) else None
    a, b = halved(values, lo, size // 2), halved(values, lo + size // 2, size // 2)
    return a if b is None else b if a is None else a + b


VALUES = st.lists(st.floats(-1e9, 1e9, width=64), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(values=VALUES, data=st.data())
def test_pairwise__same_bits_from_any_hands_in_any_order(values, data):
    n_hands = data.draw(st.integers(1, 5))
    hand = data.draw(st.lists(st.integers(0, n_hands - 1), min_size=40, max_size=40))
    hands = [PairwiseSum() for _ in range(n_hands)]
    for number in data.draw(st.permutations(range(len(values)))):
        hands[hand[number]].add(values[number], number)
    total = PairwiseSum()
    for one in data.draw(st.permutations(hands)):
        total.merge(one)
    assert total.total(0.0) == halved(values)


def test_pairwise__merging_leaves_the_other_and_nothing_is_given_back():
    one = PairwiseSum()
    one.add(np.ones(2), 3)
    both = PairwiseSum().merge(one)
    both.add(np.ones(2), 2)
    np.testing.assert_array_equal(one.total(), [1, 1])
    np.testing.assert_array_equal(both.total(), [2, 2])
    assert PairwiseSum().total("nothing") == "nothing"
    with pytest.raises(ValueError, match="nothing to add up"):
        PairwiseSum().total()


def test_pairwise__holds_few():
    sums = PairwiseSum()
    for number in range(1000):
        sums.add(1, number)
        assert len(sums._nodes) <= 10
    assert sums.total(0) == 1000


def test_stretch__is_whole_blocks_of_moments_and_there_are_few():
    for n in (1, 16_384, 16_385, 10**6, 8_388_608, 8_388_609, 10**8, 10**9):
        stretch = stretch_of(n)
        assert stretch % MomentsPass.BLOCK == 0
        assert n / stretch <= 512
        assert stretch == 16_384 or n / stretch > 256
