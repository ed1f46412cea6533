"""Objects to files and back, and files that are not what was written."""

import json
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamtrain import frozen
from streamtrain.frozen import DamagedError
from streamtrain.pairwise import PairwiseSum
from streamtrain.scaling import RunningMoments
from streamtrain.solvers.counters import State
from streamtrain.solvers.lbfgs import LBFGS
from streamtrain.solvers.schedule import Schedule

KINDS = st.sampled_from(["?", "u1", "u2", "i4", "i8", "f4", "f8", ">f8"])
ARRAYS = hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.integers())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ARRAYS
    | st.builds(np.float32, st.floats(width=32)) | st.builds(range, st.integers(0, 9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3)
    | st.tuples(inner, inner) | st.builds(deque, st.lists(inner, max_size=3), st.just(5)),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen") / "value"


def there_and_back(path, value):
    path.unlink(missing_ok=True)
    frozen.write(path, value)
    return frozen.read(path)


def same(a, b):
    if isinstance(a, np.ndarray):
        if a.dtype == object:
            return a.shape == b.shape and a.tolist() == b.tolist()
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple | deque):
        return (
            len(a) == len(b) and all(map(same, a, b))
            and getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        )  # fmt: skip
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_write__reads_back_the_same(path, value):
    assert same(there_and_back(path, value), value)


def test_write__objects(path):
    sums = PairwiseSum()
    for number in (0, 1, 2, 6):
        sums.add(RunningMoments(number, *np.random.default_rng(number).random((3, 4))), number)
    search = LBFGS(np.ones(3), 1.0, np.arange(3.0), None)
    schedule = Schedule("constant", 1e-3, 0.5)
    state = State(np.ones((2, 3), np.float32), np.zeros(2), t=np.full(2, 7.0))
    names = np.array(["a", "b c", "\0"], object)
    found = there_and_back(path, [sums, search, schedule, state, names, np.dtype("f4"), schedule])
    assert found[2] == schedule
    assert found[2] is found[6]
    assert found[4].tolist() == names.tolist()
    assert found[5] == np.float32
    assert same(found[3].coef, state.coef)
    assert same(found[1].trial(), search.trial())
    total, expected = found[0].total(), sums.total()
    assert all(same(getattr(total, k), getattr(expected, k)) for k in ("nonzero", "mean", "m2"))


# An array that stands in two places is one array again.
def test_write__an_array_once(path):
    array = np.arange(1000.0)
    one, other = there_and_back(path, [array, array])
    assert one is other
    assert path.stat().st_size < 9000


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.array(["a"]), np.array([1j])])
def test_write__what_has_no_place(path, value):
    path.unlink(missing_ok=True)
    with pytest.raises(TypeError, match="no place in a checkpoint"):
        frozen.write(path, value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_read__any_changed_byte_is_found(path, data):
    path.unlink(missing_ok=True)
    frozen.write(path, {"a": np.arange(40), "b": ["x", 1.5]})
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"no checkpoint of this version|its checksum is off"):
        frozen.read(path)


def signed(header, raw=b""):
    """A file with a right checksum, whatever it says."""
    text = json.dumps(header).encode()
    whole = frozen._MAGIC + len(text).to_bytes(8, "little") + text
    whole += bytes(-len(whole) % 64) + raw
    return whole + frozen.google_crc32c.value(whole).to_bytes(4, "little")


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"tree": 1},
        {"tree": {"os.system": "true"}, "arrays": []},
        {"tree": {"Popen": [["args", "true"]]}, "arrays": []},
        {"tree": {"State": [["coef", 1], ["nothing of a State", 2]]}, "arrays": []},
        {"tree": {"array": 0}, "arrays": []},
        {"tree": {"array": 0}, "arrays": [["<f8", [9], 0]]},
        {"tree": {"array": 0}, "arrays": [["<f8", [-1], 0]]},
        {"tree": {"array": 0}, "arrays": [["<f8", [1], -64]]},
        {"tree": {"array": 0}, "arrays": [["|O", [1], 0]]},
        {"tree": {"array": 0}, "arrays": [["no type", [1], 0]]},
        {"tree": {"same": 3}, "arrays": []},
        {"tree": {"list": [], "tuple": []}, "arrays": []},
        {"tree": {"dict": [[{"dict": []}, 1]]}, "arrays": []},
    ],
    ids=str,
)
def test_read__a_hostile_header(path, header):
    path.write_bytes(signed(header, bytes(64)))
    with pytest.raises(DamagedError):
        frozen.read(path)


def test_read__nesting_without_end(path):
    text = '{"tree": ' + "[" * 100_000 + "]" * 100_000 + ', "arrays": []}'
    whole = frozen._MAGIC + len(text).to_bytes(8, "little") + text.encode()
    whole += frozen.google_crc32c.value(whole).to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(DamagedError):
        frozen.read(path)
