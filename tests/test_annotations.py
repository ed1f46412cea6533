"""Labels that join several types, and calls kept on scratch."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain import InputError
from streamtrain.annotations import Calls, JoinedLabels, Kept


@given(st.data(), st.integers(1, 20))
def test_joined_labels__as_written_out(data, n_types):
    types = np.array([f"t{k}" for k in range(n_types)], dtype=object)
    labels = JoinedLabels(types)
    for _ in range(2):  # labels keep their codes from block to block
        rows = st.lists(st.booleans(), min_size=n_types, max_size=n_types)
        flags = np.array(data.draw(st.lists(rows, min_size=1, max_size=9)), bool)
        codes = labels.codes(flags)
        expected = ["|".join(types[row]) or "Unassigned" for row in flags]
        assert [labels.names[code] for code in codes] == expected
    assert len(set(labels.names)) == len(labels.names)


def test_joined_labels__a_type_that_looks_joined():
    labels = JoinedLabels(np.array(["a", "a|b", "b"], dtype=object))
    codes = labels.codes(np.array([[1, 0, 1], [0, 1, 0]], bool))
    assert labels.names == ["a|b"]
    assert codes.tolist() == [0, 0]


def test_joined_labels__are_numbered_as_they_occur():
    """However the cells are cut, and by whom."""
    flags = np.random.default_rng(0).random((200, 3)) > 0.5
    expected = ["|".join(np.array(["a", "b", "c"])[row]) or "Unassigned" for row in flags]
    types = np.array(["a", "b", "c"], dtype=object)
    for cuts in ([0, 200], [0, 1, 2, 90, 200]):
        one, gathered, codes = JoinedLabels(types), JoinedLabels(types), []
        for start, stop in itertools.pairwise(cuts):
            codes += one.codes(flags[start:stop]).tolist()
            other = JoinedLabels(types)
            found = gathered.recoded(other.codes(flags[start:stop]), other.names)
            assert found.tolist() == codes[start:stop]
        assert [one.names[code] for code in codes] == expected
        assert one.names == gathered.names == list(dict.fromkeys(expected))


def blocks(sizes, n_values):
    start = 0
    for size in sizes:
        cells = np.arange(start, start + size)
        values = cells[:, None] + np.arange(n_values) / 100
        yield Calls(start, cells.astype(np.int32) * 2, values)
        start += size


def test_kept__gives_what_it_took(tmp_path):
    kept = Kept(blocks((3, 1, 4), 3), 8, 3, tmp_path)
    for a, b in zip(kept, blocks((3, 1, 4), 3), strict=True):
        assert a.position == b.position
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(kept.codes(), np.arange(8) * 2)
    np.testing.assert_array_equal(np.concatenate(list(kept.pieces())), kept.codes())
    np.testing.assert_array_equal(kept.value(2), np.arange(8) + 0.02)
    assert list(tmp_path.iterdir()) == []  # nameless


def test_kept__no_room(tmp_path):
    with pytest.raises(InputError, match=r"keeping the predictions needs .* of scratch"):
        Kept([], 10**15, 1, tmp_path)
