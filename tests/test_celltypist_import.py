"""CellTypist's pickles: those of every library version are read, hostile ones refused unrun."""

import functools
import os
import pickle
import struct
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler

from streamtrain import Model, cli, pickled, predict
from streamtrain.celltypist_import import _ADMITTED, _array
from streamtrain.errors import InputError
from streamtrain.pickled import Name, Node, parse
from tests.stores import DATA

GENES = [f"GÈNE-{i}" for i in range(6)]
ESTIMATORS = {
    "sgd": lambda: SGDClassifier(loss="log_loss", alpha=0.01, random_state=0),
    "averaged": lambda: SGDClassifier(loss="modified_huber", average=True, random_state=0),
    "random state": lambda: SGDClassifier(random_state=np.random.RandomState(0)),
    "logistic": lambda: LogisticRegression(C=2.0, max_iter=500, random_state=3),
    "newton": lambda: LogisticRegression(solver="newton-cg", tol=1e-3),
}
FEATURES = {
    "object": lambda: np.array(GENES, dtype=object),
    "fixed width": lambda: np.array(GENES),
    "list": lambda: GENES,
    "index": lambda: pd.Index(GENES, dtype=object, name="gene"),
    "strings": lambda: pd.Index(["x", *GENES], dtype=pd.StringDtype("python", na_value=np.nan))[1:],
    "arrow": lambda: pd.Index(["x", *GENES], dtype=pd.StringDtype("pyarrow", na_value=np.nan))[1:],
}
DESCRIPTION = {"date": "2026", "details": "é", "url": "", "source": "s", "version": "v1"}


@functools.cache
def fitted(estimator="sgd", n_types=4, dtype="float64", labels="object", with_mean=True):
    X = np.random.default_rng(0).normal(size=(40, len(GENES))).astype(dtype)
    y = np.array([f"T{i % n_types}" for i in range(40)], dtype=object)
    y = {"object": y, "fixed width": y.astype(str), "integers": np.arange(40) % n_types}[labels]
    scaler = StandardScaler(with_mean=with_mean).fit(X)
    return pickle.dumps([ESTIMATORS[estimator]().fit(scaler.transform(X), y), scaler])


def content(*args, features="object", **options):
    """What CellTypist pickles: classifier, scaler, description."""
    classifier, scaler = pickle.loads(fitted(*args, **options))  # noqa: S301 - our own
    classifier.features = FEATURES[features]()
    return {"Model": classifier, "Scaler_": scaler, "description": dict(DESCRIPTION)}


def read(tmp_path, data, name="m.pkl"):
    (tmp_path / name).write_bytes(data)
    return Model.from_celltypist(tmp_path / name)


def check(model, held):
    """The arrays of `model` are those of the scikit-learn objects, types included."""
    classifier, scaler = held["Model"], held["Scaler_"]
    pairs = [(model.coef_, classifier.coef_), (model.intercept_, classifier.intercept_)]
    pairs += [(model.dataset[k].to_numpy(), getattr(scaler, f"{k}_")) for k in ("mean", "var")]
    pairs += [(model.dataset["scale"].to_numpy(), scaler.scale_)]
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert model.classes_.tolist() == [str(c) for c in classifier.classes_]
    assert model.features.tolist() == list(classifier.features)
    assert model.dataset.attrs["with_mean"] == scaler.with_mean
    assert model.description == DESCRIPTION | {"number_celltypes": len(classifier.classes_)}


def same(a, b):
    """Equal in all that both forms of a model hold."""
    for name in ("coef", "intercept", "mean", "var", "scale", "coef_last", "intercept_last"):
        assert (name in a.dataset) == (name in b.dataset)
        if name in a.dataset:
            assert a.dataset[name].dtype == b.dataset[name].dtype
            np.testing.assert_array_equal(a.dataset[name], b.dataset[name])
    assert a.classes_.tolist() == b.classes_.tolist()
    assert a.features.tolist() == b.features.tolist()
    assert a.description == b.description
    for key in ("with_mean", "t"):
        assert a.dataset.attrs[key] == b.dataset.attrs[key]


def round_trip(model, tmp_path):
    model.to_celltypist(tmp_path / "again.pkl")
    same(Model.load(tmp_path / "again.pkl"), model)


# What is read


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_types", [2, 4])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_read__estimators(tmp_path, estimator, n_types, dtype):
    held = content(estimator, n_types, dtype)
    model = read(tmp_path, pickle.dumps(held))
    check(model, held)
    round_trip(model, tmp_path)
    assert model.provenance == {
        "celltypist pickle": "m.pkl",
        "estimator": type(held["Model"]).__name__,
        "scikit-learn": held["Model"].__getstate__()["_sklearn_version"],
        "n_cells": 40,
    }


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("labels", ["object", "fixed width", "integers"])
def test_read__names(tmp_path, labels, features, protocol):
    held = content(labels=labels, features=features)
    check(read(tmp_path, pickle.dumps(held, protocol)), held)


def test_read__settings_and_state(tmp_path):
    sgd = read(tmp_path, pickle.dumps(content("averaged", 2)))
    expected = {"use_SGD": True, "loss": "modified_huber", "alpha": 1e-4, "average": True}
    assert expected.items() <= sgd.settings.items()
    held = content("averaged", 2)["Model"]
    np.testing.assert_array_equal(sgd.dataset["coef_last"][1], held._standard_coef)
    assert sgd.dataset.attrs["t"] == held.t_
    logistic = read(tmp_path, pickle.dumps(content("logistic")))
    expected = {"use_SGD": False, "C": 2.0, "max_iter": 500, "solver": "lbfgs", "random_state": 3}
    assert expected.items() <= logistic.settings.items()
    assert "penalty" not in logistic.settings  # "deprecated" is no penalty
    held = content()
    held["Model"].loss = "log"
    assert read(tmp_path, pickle.dumps(held)).settings["loss"] == "log_loss"


SPELLINGS = {
    "numpy 1": (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    "scikit-learn 1.3": (
        b"csklearn._loss._loss\nCyHalfBinomialLoss",
        b"csklearn.linear_model._sgd_fast\nLog",
    ),
    "scikit-learn 1.7": (b"csklearn._loss._loss\n", b"c_loss\n"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_read__names_of_other_versions(tmp_path, case):
    held = content()
    data = pickle.dumps(held, 3)  # whose names end at a newline, so that others fit in
    assert SPELLINGS[case][0] in data
    check(read(tmp_path, data.replace(*SPELLINGS[case])), held)


def test_read__other_byte_order_and_layout(tmp_path):
    held = content()
    held["Model"].coef_ = np.asfortranarray(held["Model"].coef_.astype(">f8"))
    for protocol in (4, 5):
        model = read(tmp_path, pickle.dumps(held, protocol))
        np.testing.assert_array_equal(model.coef_, held["Model"].coef_)
        assert model.coef_.dtype.isnative


def test_read__what_a_scaler_may_lack(tmp_path):
    held = content(with_mean=False)
    held["Scaler_"].mean_ = None
    del held["Scaler_"].var_
    model = read(tmp_path, pickle.dumps(held))
    assert not model.dataset["mean"].any()
    np.testing.assert_array_equal(model.dataset["var"], held["Scaler_"].scale_ ** 2)
    assert "n_obs" not in model.dataset  # of no use without the mean
    held = content()
    del held["Scaler_"].with_mean
    assert read(tmp_path, pickle.dumps(held)).dataset.attrs["with_mean"] is True


@pytest.mark.parametrize("seen", [40, 40.0, np.int64(40), np.full(6, 40), np.full(6, 40.0)])
def test_read__cells_that_the_scaling_is_of(tmp_path, seen):
    held = content()
    held["Scaler_"].n_samples_seen_ = seen
    dataset = read(tmp_path, pickle.dumps(held)).dataset
    assert dataset["n_obs"].dtype == np.int64
    assert (dataset["n_obs"] == 40).all()
    for other in (None, 0, -3.5, np.nan, "many", np.full(7, 40)):
        held["Scaler_"].n_samples_seen_ = other
        assert "n_obs" not in read(tmp_path, pickle.dumps(held)).dataset


REAL = sorted(p.name for p in (DATA / "models").glob("*.pkl")) or ["none here"]


@pytest.mark.parametrize("name", REAL)
def test_read__models_of_the_field(tmp_path, name):
    path = DATA / "models" / name
    if not path.exists():
        pytest.skip(f"needs {DATA / 'models'}")
    model = Model.load(path)
    round_trip(model, tmp_path)
    model.save(tmp_path / "again.zarr")
    assert Model.load(tmp_path / "again.zarr").dataset.identical(model.dataset)
    cells = np.zeros((3, len(model.features)), dtype=np.float32)
    cells[1, :9] = cells[2, -9:] = np.log1p(1e4 / 9)
    table = predict(path, cells, genes=model.features, probabilities=True, progress=False)
    data = model.dataset
    z = np.minimum((cells - data["mean"].values) / data["scale"].values, 10)
    scores = z @ data["coef"].values.T.astype(float) + data["intercept"].values
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(table[list(model.classes_)], 1 / (1 + np.exp(-scores)), 1e-6)


# What is refused


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


CALLS = {
    "posix.system": Reduced(os.system, ("touch ran",)),
    "builtins.eval": Reduced(eval, ("open('ran', 'w')",)),
    "builtins.getattr": Reduced(getattr, ("", "join")),
    "numpy.load": Reduced(np.load, ("ran", None, True)),
    "functools.partial": Reduced(functools.partial, (print,)),
    "io.open": Reduced(open, ("ran", "w")),
}


@pytest.mark.parametrize("place", ["whole", "description", "attribute", "array"])
@pytest.mark.parametrize("asked", CALLS)
def test_refuse__calls(tmp_path, monkeypatch, asked, place):
    monkeypatch.chdir(tmp_path)
    held, call = content(), CALLS[asked]
    if place == "description":
        held["description"]["details"] = call
    elif place == "attribute":
        held["Model"].loss = call
    elif place == "array":
        held["Model"].features = np.array([*GENES[1:], call], dtype=object)
    else:
        held = call
    with pytest.raises(InputError, match=f"it asks for '{asked}', which no such file needs"):
        read(tmp_path, pickle.dumps(held))
    assert [p.name for p in tmp_path.iterdir()] == ["m.pkl"]


def named(module, name):
    """Opcodes of protocol 4 that put module.name on the stack."""
    return b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)) + b"\x93"


NAMES = [
    ("copyreg", "__newobj_ex__"),
    ("copyreg", "_reconstructor"),
    ("operator", "attrgetter"),
    ("_codecs", "encode"),
    ("joblib.numpy_pickle", "load"),
    ("numpy", "memmap"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy.f2py", "compile"),
    ("sklearn.linear_model._logistic", "os"),
    # Attributes of what is admitted: protocol 4 would fetch them one by one.
    ("numpy", "core.multiarray.scalar"),
    ("numpy", "ndarray.tofile"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_refuse__names(module, name):
    forms = [b"\x80\x04" + named(module, name) + b")R.", f"\x80\x03c{module}\n{name}\n)R."]
    forms[1] = forms[1].encode("latin1")
    for form in forms:
        with pytest.raises(InputError, match=f"it asks for '{module}.{name}'"):
            parse(form, _ADMITTED)


NDARRAY = named("numpy", "ndarray")
OPCODES = {
    "PERSID": b"\x80\x04Pid\n.",
    "BINPERSID": b"\x80\x04K\x01Q.",
    "EXT1": b"\x80\x04\x82\x01.",
    "INST": b"\x80\x04(ios\nsystem\n.",
    "OBJ": b"\x80\x04(" + NDARRAY + b"o.",
    "NEWOBJ_EX": b"\x80\x04" + NDARRAY + b")}\x92.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "DUP": b"\x80\x04]2.",
    "EMPTY_SET": b"\x80\x04\x8f.",
    "LONG4": b"\x80\x04\x8b\x01\x00\x00\x00\x01.",
}


@pytest.mark.parametrize("opcode", OPCODES)
def test_refuse__opcodes(opcode):
    with pytest.raises(InputError, match=f"the opcode {opcode}, which no such file needs"):
        parse(OPCODES[opcode], _ADMITTED)


BROKEN = {
    "empty": b"",
    "text": b"a,b\n1,2\n",
    "no end": b"\x80\x04N",
    "stack": b"\x80\x04R.",
    "mark": b"\x80\x04u.",
    "memo": b"\x80\x04h\x05.",
    "call of a text": b"\x80\x04\x8c\x01a)R.",
    "state for a class": b"\x80\x04" + NDARRAY + b"}\x8c\x0c__setstate__" + NDARRAY + b"sb.",
    "items for a text": b"\x80\x04\x8c\x01aNa.",
    "key": b"\x80\x04}" + b")" + b"\x85" * 10**5 + b"Ns.",
    "surrogate": b"\x80\x04\x8c\x03\xed\xa0\x80.",
    # Lengths and places that a reader might allocate for.
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"]r" + b"\xff" * 4 + b".",
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuse__no_pickle(tmp_path, case):
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"not a pickle, or damaged|has no Model"):
            read(tmp_path, BROKEN[case])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", [2**61 - 1, -(2**31), 2.0**61, None, (), b"a"])
def test_refuse__keys_of_one_hash(key):
    """Multiples of 2**61 - 1 have the same hash: n of them in a dict take n**2 steps."""
    admitted = {"a": 1, 2**31 - 1: 2, True: 3}
    assert parse(pickle.dumps(admitted), _ADMITTED) == admitted
    with pytest.raises(InputError, match=f"a {type(key).__name__} as key"):
        parse(pickle.dumps({key: 1}), _ADMITTED)


def numpy_array(shape, code, values):
    """An object that pickles as an array of this description."""
    reconstruct = np._core.multiarray._reconstruct
    dtype = Reduced(np.dtype, (code, False, True), (3, "<", None, None, None, -1, -1, 0))
    return Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, values))


ARRAYS = {
    "too few bytes": ((10**12,), "f8", b"\0" * 8),
    "too many bytes": ((1,), "f8", b"\0" * 80),
    "wide texts": ((10**9,), "U999999", b"\0" * 4),
    "no rows of many": ((0, 10**30), "f8", b""),
    "negative": ((-1,), "f8", b"\0" * 8),
    "fields": ((1,), "V8", b"\0" * 8),
    "three axes": ((1, 1, 1), "f8", b"\0" * 8),
    "texts as numbers": ((1,), "O8", b"\0" * 8),
    "missing texts": ((10**12,), "O8", ["a"]),
    "list in a list": ((2,), "O8", [["a"], ["b"]]),
    "no code point": ((1,), "U1", b"\xff" * 4),
    "no number": ((4,), "U1", b"a\0\0\0" * 4),
}


@pytest.mark.parametrize("where", ["coef_", "features"])
@pytest.mark.parametrize("case", ARRAYS)
def test_refuse__arrays(tmp_path, case, where):
    held = content()
    setattr(held["Model"], where, numpy_array(*ARRAYS[case]))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="is not a usable CellTypist model"):
            read(tmp_path, pickle.dumps(held))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_refuse__too_many_opcodes(monkeypatch):
    monkeypatch.setattr(pickled, "_MOST_OPCODES", 100)
    assert parse(b"\x80\x04](" + b"N" * 95 + b"e.", _ADMITTED) == [None] * 95
    with pytest.raises(InputError, match="has over 100 opcodes"):
        parse(b"\x80\x04](" + b"N" * 96 + b"e.", _ADMITTED)


def numpy_scalar(code, value):
    """An object that pickles as a scalar of this description."""
    dtype = Reduced(np.dtype, (code, False, True), (3, "<", None, None, None, -1, -1, 0))
    return Reduced(np._core.multiarray.scalar, (dtype, value))


SCALARS = {
    "wide texts": lambda: [numpy_scalar("U99999", b"a\0\0\0" * 99999)] * 600,
    "no code point": lambda: [numpy_scalar("U1", b"\xff" * 4)],
    "lone surrogate": lambda: [numpy_scalar("U1", b"\0\xd8\0\0")],
    "no value": lambda: [Reduced(np._core.multiarray.scalar, ())],
}


@pytest.mark.parametrize("case", SCALARS)
def test_refuse__scalars(tmp_path, case):
    held = content()
    held["description"] |= {str(i): v for i, v in enumerate(SCALARS[case]())}
    data = pickle.dumps(held)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="must hold texts and numbers alone"):
            read(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_refuse__scalars_in_scalars(tmp_path):
    scalar = named("numpy._core.multiarray", "scalar")
    objects = named("numpy", "dtype") + b"\x8c\x02O8\x85R"
    deep = (scalar + objects + b"]") * 1500 + b"K\x01" + b"a\x86R" * 1500
    with pytest.raises(InputError, match="must hold texts and numbers alone"):
        read(tmp_path, pickle.dumps(content()).replace(b"\x8c\x02v1", deep))


def test_refuse__arrow_type_of_tuples():
    """Which are not hashed: that would run out of C stack."""
    deep = ()
    for _ in range(10**6):
        deep = (deep,)
    buffer = Node("arrow buffer", (b"",))
    held = Node("arrow", ((Node("arrow type", (deep,)), 0, 0, 0, [None, buffer, buffer]),))
    with pytest.raises(InputError, match="features could not be read"):
        _array(Node("arrow strings", (), {"_pa_array": held}), "features")


FIRST = {
    "an atlas": (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as atlases are: give the model first, then X",
    ),
    "text": (b"gene,cell\n", "begins with b'gene,cel', not as one of protocol 3 to 5"),
    "protocol 2": (b"\x80\x02}.", "not as one of protocol 3 to 5"),
    "too large": (b"\x80\x04", f"has {2**40} bytes: a model has at most"),
}


@pytest.mark.parametrize("case", FIRST)
def test_refuse__before_all_is_read(tmp_path, case):
    first, message = FIRST[case]
    path = tmp_path / "m.pkl"
    path.write_bytes(first)
    os.truncate(path, 2**40)  # sparse: takes no disk, but no memory holds it
    with pytest.raises(InputError, match=message):
        Model.load(path)


def overlap(held, *ends):
    """Arrow texts that all reach over the whole buffer."""
    ends = np.array([*ends, 0, 1000] * 50, dtype="<i8").tobytes()
    buffers = [None, Reduced(pa.py_buffer, (ends,)), Reduced(pa.py_buffer, (b"x" * 1000,))]
    kind = Reduced(pa.lib.type_for_alias, ("large_string",))
    array = Reduced(pa.lib._restore_array, ((kind, len(ends) // 8 - 1, 0, 0, buffers, [], None),))
    held["Model"].features = Reduced(pd.arrays.ArrowStringArray, (), {"_pa_array": array})


WRONG = {
    "empty": (lambda h: vars(h["Model"]).clear(), "it has no coef_"),
    "no scaler": (lambda h: h.pop("Scaler_"), "it has no Model, Scaler_ and description"),
    "swapped": (lambda h: h.update(Model=h["Scaler_"]), "holds a StandardScaler where"),
    "description": (lambda h: h.update(description="x"), "description is a str, not a dict"),
    "long": (
        lambda h: h["description"].update(a="é" * 600000, b="é" * 600000),
        "more than 1000000",
    ),
    "nested": (lambda h: h["description"].update(url=[]), "must hold texts and numbers alone"),
    "no features": (lambda h: vars(h["Model"]).pop("features"), "it has no features"),
    "no scale": (lambda h: setattr(h["Scaler_"], "scale_", None), "it has no scale_"),
    "no mean": (lambda h: setattr(h["Scaler_"], "mean_", None), "it has no mean_"),
    "genes": (lambda h: setattr(h["Model"], "features", GENES[1:]), r"coef has shape \(4, 6\)"),
    "types": (lambda h: setattr(h["Model"], "classes_", np.array(["a", "b"])), "coef has shape"),
    "twice": (lambda h: setattr(h["Model"], "features", ["a"] * 6), "gene 'a' occurs more than"),
    "integers": (lambda h: setattr(h["Model"], "coef_", np.ones((4, 6), int)), "must be float"),
    "NaN": (lambda h: setattr(h["Model"], "intercept_", np.full(4, np.nan)), "holds NaN"),
    "t": (lambda h: setattr(h["Model"], "t_", 2**900), "a int where a text or number belongs"),
    "with_mean": (lambda h: setattr(h["Scaler_"], "with_mean", "no"), "with_mean must be True"),
    "overlap": (overlap, "overlapping texts"),
    "overflow": (lambda h: overlap(h, -(2**63), -1), "overlapping texts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuse__models(tmp_path, case):
    change, message = WRONG[case]
    held = content()
    change(held)
    with pytest.raises(InputError, match=message):
        read(tmp_path, pickle.dumps(held))


def test_refuse__an_index_of_itself():
    index = Node("index", (Name("unread"), {}))
    index.args[1]["data"] = index
    with pytest.raises(InputError, match=r"features could not be read \(RecursionError"):
        _array(index, "features")


SMALL = pickle.dumps(content("averaged", features="arrow"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=3))
def test_refuse__any_damage_is_an_input_error(tmp_path_factory, changes):
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # flipped bits of floats may overflow
        try:
            model = Model.from_celltypist(path)
        except InputError:
            return
    assert len(model.features) == len(GENES)


def test_refuse__every_truncation():
    for end in range(0, len(SMALL) - 1, 13):
        with pytest.raises(InputError, match="not a pickle, or damaged"):
            parse(SMALL[:end], _ADMITTED)


def test_refuse__no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        Model.from_celltypist(tmp_path / "none.pkl")
    with pytest.raises(InputError, match="is not a file"):
        Model.from_celltypist(tmp_path)


# convert-model


def test_cli__convert_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = read(tmp_path, pickle.dumps(content()), "old.pkl")
    for old, new in (("old.pkl", "m.zarr"), ("m.zarr", "new.pkl"), ("new.pkl", "other.pkl")):
        cli.app(["convert-model", old, new], result_action="return_value")
        assert f"saved as {new}" in capsys.readouterr().out
        same(Model.load(new), model)
    for arguments, message in (
        (["old.pkl", "new.pkl"], "exists: pass overwrite=True (--overwrite)"),
        (["old.pkl", "m.zarr"], "exists: pass overwrite=True (--overwrite)"),
        (["old.pkl", "new.h5ad"], "must end in .pkl, .onnx or .zarr; got 'new.h5ad'"),
        (["none.pkl", "x.pkl"], "no model at 'none.pkl'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["convert-model", *arguments])
        assert message in capsys.readouterr().err
    cli.app(["convert-model", "m.zarr", "old.pkl", "--overwrite"], result_action="return_value")
    same(Model.load("old.pkl"), model)
