"""Models that mean harm are refused in words, in a second, and nothing of theirs is run."""

import ast
import bz2
import copyreg
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import joblib
import numcodecs
import numpy as np
import pytest
import xarray as xr

import streamtrain
from streamtrain import Model, model_store
from streamtrain.errors import InputError
from tests import atlas, stores
from tests.test_celltypist_import import NDARRAY, Reduced, content, named, numpy_array
from tests.test_model import arrays, make

PACKAGE = Path(streamtrain.__file__).parent
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.putenv", "pickle.find_class"}
RUNS |= {"subprocess.Popen", "ctypes.dlopen", "socket.connect"}
ran: list[str] | None = None


def _watch(event, _):
    if ran is not None and event in RUNS:
        ran.append(event)


sys.addaudithook(_watch)  # for good: it does nothing outside of `harmless`


@pytest.fixture
def harmless(tmp_path, monkeypatch):
    """Call a reader of a hostile file: gives the message that it must end in."""
    monkeypatch.chdir(tmp_path)

    def call(read, path):
        global ran
        before = sorted(tmp_path.rglob("*"))
        begin, ran = time.perf_counter(), []
        try:
            with pytest.raises(InputError) as refused:
                read(path)
            assert ran == []
            assert time.perf_counter() - begin < 1
            tracemalloc.start()  # which takes its time, too
            with pytest.raises(InputError):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 30e6
        finally:
            ran = None
            tracemalloc.stop()
        assert sorted(tmp_path.rglob("*")) == before
        message = str(refused.value)
        assert len(message) < 1000
        return message

    return call


# Pickles


def text(word):
    return b"\x8c" + bytes([len(word.encode())]) + word.encode()


def call(module, name, *args):
    return b"\x80\x04" + named(module, name) + b"".join(map(text, args)) + b"\x85R."


def within(opcodes):
    """A sound model in whose description these opcodes stand for a text."""
    data = pickle.dumps(content())
    assert data.count(text("v1")) == 1
    return data.replace(text("v1"), opcodes)


def laughs(empty, double):
    """60 values, each twice the one before: 2**60 in all."""
    steps = [b"h" + bytes([i]) + double(b"h" + bytes([i])) for i in range(60)]
    values = b"".join(step + b"q" + bytes([i + 1]) for i, step in enumerate(steps))
    return b"(" + empty + b"q\0" + values + b"t"


def with_dtype(state):
    held = content()
    dtype = Reduced(np.dtype, ("f8", False, True), state)
    args = (np.ndarray, (0,), b"b")
    state = (1, (4, 6), dtype, False, bytes(8 * 24))
    held["Model"].coef_ = Reduced(np._core.multiarray._reconstruct, args, state)
    return pickle.dumps(held)


def changed(owner, **attributes):
    held = content()
    vars(held[owner]).update(attributes)
    return pickle.dumps(held)


def long_names():
    held = content()
    n, name = 10**5, "x" * 10**6
    held["Model"].coef_ = np.zeros((4, n), np.float16)
    for part in ("mean_", "var_", "scale_"):
        setattr(held["Scaler_"], part, np.ones(n, np.float16))
    held["Model"].features = np.array([name] * n, dtype=object)
    return pickle.dumps(held)


class Sub(np.ndarray):
    pass


def subclass():
    """As NumPy pickles arrays of a subclass, here of one that a file would name."""
    data = pickle.dumps(np.zeros(4).view(Sub))
    return within(data[2:-1].replace(b"\x95" + data[3:11], b""))


def joblib_dump(compress):
    file = io.BytesIO()
    joblib.dump({"Model": np.zeros(10**6)}, file, compress=compress)
    return file.getvalue()


EXTENSION = 0xF0
SYSTEM, EVAL = (named("posix", "system"), named("builtins", "eval"))
BEGINS = "not as one of protocol 3 to 5"
UNNAMED = "must hold texts and numbers alone"
OPCODE = "which no such file needs"
PICKLES = {
    "os.system": (lambda: call("posix", "system", "touch ran"), "asks for 'posix.system'"),
    "popen": (lambda: call("subprocess", "Popen", "touch ran"), "asks for 'subprocess.Popen'"),
    "eval": (lambda: call("builtins", "eval", "open('ran', 'w')"), "asks for 'builtins.eval'"),
    "python 2": (lambda: call("__builtin__", "eval", "1"), "asks for '__builtin__.eval'"),
    "getattr": (lambda: call("builtins", "getattr", "x"), "asks for 'builtins.getattr'"),
    "old numpy": (lambda: call("numpy.core", "os", "x"), "asks for 'numpy.core.os'"),
    "numpy": (lambda: call("numpy._core.multiarray", "os.system", "x"), "multiarray.os.system'"),
    "f2py": (lambda: call("numpy.f2py.os", "system", "touch ran"), "asks for 'numpy.f2py.os.sys"),
    "dotted": (lambda: call("numpy", "f2py.os.system", "touch ran"), "asks for 'numpy.f2py.os.sy"),
    "sklearn": (lambda: call("sklearn.utils", "os.system", "x"), "asks for 'sklearn.utils.os"),
    "space": (lambda: b"\x80\x03cnumpy ndarray\nos\n)R.", "asks for 'numpy.ndarray os'"),
    "computed": (
        lambda: b"\x80\x04" + text("po") + text("six") + b"\x86" + text("system") + b"\x93.",
        "a name that is no text",
    ),
    "memo": (
        lambda: b"\x80\x04" + text("posix") + b"q\x05" + text("system") + b"q\x06]h\x05h\x06\x93.",
        "asks for 'posix.system'",
    ),
    "long name": (lambda: b"\x80\x03c" + b"x" * 10**6 + b"\ny\n.", "asks for 'xxx"),
    "setstate": (lambda: within(NDARRAY + b")R}" + text("__setstate__") + EVAL + b"sb"), "eval'"),
    "state": (lambda: within(NDARRAY + b")R" + text("touch ran") + b"b"), UNNAMED),
    "state of a list": (lambda: within(b"]}b"), "BUILD of a list"),
    "reduced": (lambda: within(NDARRAY + b")R)R"), "REDUCE of a Node"),
    "arguments": (lambda: within(NDARRAY + b"]R"), "REDUCE of a Name"),
    "newobj_ex": (lambda: within(NDARRAY + b")}\x92"), f"the opcode NEWOBJ_EX, {OPCODE}"),
    "inst": (lambda: b"\x80\x03(S'touch ran'\niposix\nsystem\n.", "the opcode STRING"),
    "inst alone": (lambda: b"\x80\x03(iposix\nsystem\n.", "the opcode INST"),
    "obj": (lambda: b"\x80\x03(" + NDARRAY + b"o.", "the opcode OBJ"),
    "extension": (lambda: b"\x80\x04\x82" + bytes([EXTENSION]) + b")R.", "the opcode EXT1"),
    "extension 4": (lambda: b"\x80\x04\x84\0\0\0\1)R.", "the opcode EXT4"),
    "persistent": (lambda: b"\x80\x04Pposix\n.", "the opcode PERSID"),
    "protocol 0": (lambda: b"cposix\nsystem\n(S'touch ran'\ntR.", BEGINS),
    "protocol 1": (lambda: pickle.dumps(Reduced(os.system, ("touch ran",)), 1), BEGINS),
    "protocol 2": (lambda: pickle.dumps(content(), 2), BEGINS),
    "protocol 0 inside": (lambda: b"\x80\x03I9\n.", "the opcode INT"),
    "long text number": (lambda: b"\x80\x03L" + b"9" * 10**6 + b"L\n.", "not a pickle, or damaged"),
    "tuples": (lambda: within(laughs(b")", lambda other: other + b"\x86")), UNNAMED),
    "lists": (
        lambda: within(laughs(b"]", lambda other: b"]q\xff(" + other * 2 + b"e")),
        UNNAMED,
    ),
    "dicts": (lambda: b"\x80\x04" + laughs(b"}", lambda o: o + b"\x86") + b".", "has no Model"),
    "cycle": (lambda: within(b"]q\xf0h\xf0a"), UNNAMED),
    "cycle of a dict": (lambda: b"\x80\x04}q\0X\5\0\0\0Modelh\0s.", "has no Model"),
    "names in themselves": (
        lambda: pickle.dumps(content(features="list")).replace(text("GÈNE-0"), b"]q\xf0h\xf0a"),
        "it holds a list where a text or number belongs",
    ),
    "deep tuples": (lambda: within(b")" + b"\x85" * 30_000), UNNAMED),
    "deep lists": (lambda: within(b"]" * 10**4 + b"a" * (10**4 - 1)), UNNAMED),
    "deep calls": (lambda: within(NDARRAY * 3000 + b")" + b"R\x85" * 2999 + b"R"), UNNAMED),
    "marks": (lambda: b"\x80\x04" + b"(" * 30_000 + b".", "not a pickle, or damaged"),
    "long integer": (lambda: within(b"\x8a\xff" + b"\x7f" * 255), UNNAMED),
    "integer of 2 GB": (lambda: within(b"\x8b" + struct.pack("<i", 2**31 - 1)), "not a pickle"),
    "negative length": (lambda: within(b"\x8b" + struct.pack("<i", -1)), "not a pickle"),
    "text of 2**63": (lambda: within(b"\x8d" + struct.pack("<Q", 2**63)), "not a pickle"),
    "text of 2**64": (lambda: within(b"\x8d" + b"\xff" * 8), "not a pickle"),
    "bytes of 2**62": (lambda: within(b"\x8e" + struct.pack("<Q", 2**62)), "not a pickle"),
    "place": (lambda: within(b"r\xff\xff\xff\xffj\xfe\xff\xff\xff"), "not a pickle"),
    "protocol 9": (lambda: b"\x80\x09N.", BEGINS),
    "subclass": (subclass, "asks for 'tests.test_hostile.Sub'"),
    "payload": (
        lambda: changed("Model", features=np.array([*"abcde", Reduced(eval, ("1",))], object)),
        "asks for 'builtins.eval'",
    ),
    "metadata": (
        lambda: with_dtype((4, "<", None, None, None, -1, -1, 0, ({"a": Reduced(eval, ("1",))},))),
        "asks for 'builtins.eval'",
    ),
    "overlapping fields": (
        lambda: changed("Model", coef_=numpy_array((24,), "V8", bytes(192))),
        "a type other than numbers or texts",
    ),
    "shape": (
        lambda: changed("Model", coef_=numpy_array((2**40, 2**40), "f8", bytes(8))),
        "not have the values that its shape and type ask for",
    ),
    "shape of a subclass": (
        lambda: changed("Model", coef_=numpy_array((True, 24), "f8", bytes(192))),
        "a shape other than",
    ),
    "two axes of names": (
        lambda: changed("Model", features=np.array([["a", "b"]] * 6)),
        r"its features has the shape (6, 2), not (n,)",
    ),
    "no axis": (lambda: changed("Scaler_", scale_=np.array(1.0)), "scale has shape ()"),
    "overflow": (
        lambda: changed("Scaler_", scale_=np.full(6, 1e300), var_=None),
        "var holds NaN or infinity",
    ),
    "infinite steps": (lambda: changed("Model", t_=float("inf")), "t must be a number"),
    "no name": (
        lambda: changed("Model", classes_=np.array(["", "a", "b", "c"])),
        "a cell type has an empty name",
    ),
    "one long name, often": (long_names, "occurs more than once"),
    "joblib": (lambda: joblib_dump(0), "NumpyArrayWrapper', which no such file needs"),
    "joblib, zlib": (lambda: joblib_dump(("zlib", 9)), BEGINS),
    "zlib": (lambda: zlib.compress(bytes(10**8)), BEGINS),
    "gzip": (lambda: gzip.compress(pickle.dumps(content())), BEGINS),
    "bzip2": (lambda: bz2.compress(pickle.dumps(content())), BEGINS),
    "zip": (lambda: b"PK\3\4" + bytes(100), BEGINS),
    "bytes behind": (lambda: pickle.dumps(content()) + b"cposix\n", "7 bytes behind its end"),
    "two": (lambda: pickle.dumps(content()) * 2, "bytes behind its end"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickle__refused(tmp_path, harmless, case):
    build, message = PICKLES[case]
    copyreg.add_extension("posix", "system", EXTENSION)
    try:
        (tmp_path / "m.pkl").write_bytes(build())
        told = harmless(Model.load, tmp_path / "m.pkl")
    finally:
        copyreg.remove_extension("posix", "system", EXTENSION)
    assert "m.pkl' is not a usable CellTypist model: " in told
    assert message in told, told


def test_pickle__would_run(tmp_path, monkeypatch):
    """What the table holds does run where it is unpickled; and the fixture sees it."""
    global ran
    monkeypatch.chdir(tmp_path)
    ran = []
    try:
        pickle.loads(PICKLES["os.system"][0]())  # noqa: S301 - what it shows
        assert ran == ["pickle.find_class", "os.system"]
    finally:
        ran = None
    assert (tmp_path / "ran").exists()


# Models of our own


def edit(change, name=model_store.model_layout.METADATA):
    def do(path):
        held = json.loads((path / name).read_text())
        change(held)
        (path / name).write_text(json.dumps(held))

    return do


def array(name, **changes):
    return edit(lambda held: held["metadata"][f"{name}/.zarray"].update(changes))


def unpickled(name, **changes):
    def do(path):
        array(name, **changes)(path)
        chunk = path / name / ("0.0" if name == "coef" else "0")
        chunk.write_bytes(pickle.dumps(Reduced(os.system, ("touch ran",))))

    return do


def head(name, at, value):
    def do(path):
        data = bytearray((path / name).read_bytes())
        data[at : at + len(value)] = value
        (path / name).write_bytes(data)

    return do


def zstd(claims):
    """A frame that claims a size, in a model compressed by zstd."""

    def do(path):
        array("coef", compressor={"id": "zstd", "level": 0})(path)
        frame = bytes(numcodecs.Zstd().encode(bytes(480)))
        assert frame[4] >> 6 == 1
        if claims is None:
            frame = frame[:4] + bytes([frame[4] & 0x1F]) + frame[5:]  # no size, a window
        else:
            frame = frame[:4] + b"\xe0" + struct.pack("<Q", claims) + frame[7:]
        (path / "coef" / "0.0").write_bytes(frame)

    return do


def many_names(path):
    codec = numcodecs.get_codec(json.loads((path / "gene/.zarray").read_text())["compressor"])
    raw = bytes(codec.decode((path / "gene/0").read_bytes()))
    (path / "gene/0").write_bytes(codec.encode((2**27).to_bytes(4, "little") + raw[4:]))


def outside(path):
    (path.parent / "secret").write_bytes((path / "mean" / "0").read_bytes())
    (path / "scale" / "0").unlink()
    (path / "scale" / "0").symlink_to(path.parent / "secret")


def pipe(path):
    (path / "coef" / "0.0").unlink()
    os.mkfifo(path / "coef" / "0.0")


def elsewhere(path):
    edit(lambda held: held["metadata"].update({"../x/.zarray": held["metadata"]["mean/.zarray"]}))(
        path
    )


PICKLE = {"id": "pickle", "protocol": 5}
FOLDERS = {
    "pickle": (unpickled("coef", compressor=PICKLE), "coef has the codec 'pickle'"),
    "pickle of numbers": (unpickled("coef", compressor=None, filters=[PICKLE]), "coef has filters"),
    "pickle of names": (
        unpickled("gene", compressor=None, filters=[{"id": "vlen-utf8"}, PICKLE]),
        "gene has filters",
    ),
    "pickle under names": (unpickled("gene", compressor=PICKLE), "gene has the codec 'pickle'"),
    "objects": (array("coef", dtype="|O"), "coef has filters, None"),
    "fields": (array("coef", dtype=[["a", "<f8"]]), "coef has the type"),
    "dates": (array("coef", dtype="<M8[ns]"), "coef has the type '<M8[ns]'"),
    "no codec": (array("coef", compressor={"id": "nope"}), "coef has the codec 'nope'"),
    "no codec's name": (array("coef", compressor={}), ".zmetadata (KeyError: 'id')"),
    "codec": (array("coef", compressor="blosc"), ".zmetadata (TypeError"),
    "up": (elsewhere, ".zmetadata names '../x/.zarray'"),
    "absolute": (
        edit(lambda held: held["metadata"].update({"/etc/.zarray": {}})),
        ".zmetadata names '/etc/.zarray'",
    ),
    "separator": (array("coef", dimension_separator="/"), "coef is laid out otherwise"),
    "shape": (array("coef", shape=[10**6, 10**6]), "its arrays claim 8 TB"),
    "chunks": (array("coef", chunks=[10**6, 10**6]), "its arrays claim 8 TB"),
    "no chunks": (array("coef", chunks=[0, 0]), "coef has the shape [5, 12] in chunks of [0, 0]"),
    "negative": (array("coef", shape=[-1, 12]), "coef has the shape [-1, 12]"),
    "axes": (array("coef", shape=[1] * 64, chunks=[1] * 64), "coef has the shape"),
    "no shape": (array("coef", shape=None), ".zmetadata (TypeError"),
    "blosc bomb": (head("coef/0.0", 4, struct.pack("<I", 2**31 - 1)), "coef/0.0 decodes to 2147"),
    "blosc of names": (head("gene/0", 4, struct.pack("<I", 2**30)), "gene/0 decodes to 10737"),
    "behind the end": (head("coef/0.0", 12, struct.pack("<I", 2**20)), "coef/0.0 is cut short"),
    "zstd bomb": (zstd(2**40), "coef/0.0 decodes to 1099511627776 bytes, and 480 are due"),
    "zstd without size": (zstd(None), "coef/0.0 is cut short, or was"),
    "many names": (many_names, "gene/0 claims more names than it has bytes for"),
    "pipe": (pipe, "coef/0.0 is no file"),
    "link": (outside, "its content does not match its checksum"),
    "deep": (lambda p: (p / ".zattrs").write_text("[" * 10**5), "nested too deeply"),
    "deep metadata": (lambda p: (p / ".zmetadata").write_text("[" * 10**5), "nested too deeply"),
    "large metadata": (lambda p: os.truncate(p / ".zmetadata", 2**40), "over 268435456 bytes"),
    "no metadata": (lambda p: (p / ".zmetadata").write_text("[]"), ".zmetadata (TypeError"),
    "provenance": (
        edit(lambda held: held["provenance"].update(source="mine"), ".zattrs"),
        "its content does not match its checksum",
    ),
    "no checksum": (
        edit(lambda held: held.pop("checksum"), ".zattrs"),
        "its content does not match its checksum",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder__refused(tmp_path, harmless, monkeypatch, case):
    # As before numcodecs 0.16.6: whatever names the codec is unpickled.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True)
    spoil, message = FOLDERS[case]
    path = tmp_path / "m.zarr"
    make(provenance={"source": "theirs"}).save(path)
    Model.load(path)
    spoil(path)
    told = harmless(Model.load, path)
    assert "m.zarr' is damaged: " in told
    assert "restore it from a copy, or train again" in told
    assert message in told, told


VALUES = {
    "NaN": (lambda d: d.assign(coef=d["coef"] * np.nan), "coef holds NaN or infinity"),
    "scale": (lambda d: d.assign(scale=d["scale"] * 0), "scale must be above 0 for every gene"),
    "integers": (lambda d: d.assign(mean=d["mean"].astype(int)), "mean must be float, not int64"),
    "axes": (lambda d: d.assign(mean=("cell_type", np.ones(5))), "mean has dimensions"),
    "no array": (lambda d: d.drop_vars("var"), "a model needs var: the dataset has none"),
    "genes": (lambda d: d.assign_coords(gene=["a"] * 12), "gene 'a' occurs more than once"),
    "types": (lambda d: d.assign_coords(cell_type=[*"abcd", ""]), "has an empty name"),
    "steps": (lambda d: d.assign_attrs(t=0), "t must be a number of at least 1"),
    "centring": (lambda d: d.assign_attrs(with_mean="no"), "with_mean must be True or False"),
    "settings": (lambda d: d.assign_attrs(settings=[1]), "settings must be a dict, not [1]"),
    "calibration": (lambda d: d.assign_attrs(calibration={"x": 1}), "calibration must be a dict"),
}


@pytest.mark.parametrize("case", VALUES)
def test_folder__refused_for_its_values(tmp_path, harmless, case):
    """Whose checksum is right."""
    change, message = VALUES[case]
    dataset = change(make().dataset)
    for dim in ("cell_type", "gene"):
        dataset = dataset.assign_coords({dim: dataset[dim].astype(object)})
    model_store.write(dataset, tmp_path / "m.zarr", overwrite=False)
    told = harmless(Model.load, tmp_path / "m.zarr")
    assert "m.zarr' is damaged: " in told
    assert message in told, told


def test_folder__of_other_codecs(tmp_path):
    """zarr's own default is a matter of its configuration."""
    stored = make().dataset
    for codec in (None, numcodecs.Zstd(), numcodecs.Zstd(19), numcodecs.Blosc("zstd")):
        shutil.rmtree(tmp_path / "m.zarr", ignore_errors=True)
        attrs = {"format": "streamtrain model", "format_version": 2}
        written = stored.assign_attrs(attrs, checksum=model_store.checksum(stored))
        encoding = {str(k): {"compressors": codec, "_FillValue": None} for k in stored.data_vars}
        written.to_zarr(tmp_path / "m.zarr", zarr_format=2, consolidated=True, encoding=encoding)
        metadata = json.loads((tmp_path / "m.zarr" / ".zmetadata").read_text())["metadata"]
        used = metadata["coef/.zarray"]["compressor"]
        assert (used and used["id"]) == (codec and codec.codec_id)
        xr.testing.assert_identical(Model.load(tmp_path / "m.zarr").dataset, stored)


@pytest.mark.parametrize("n", [1, 255, 256, 65791, 65792, 10**6])
def test_folder__sizes_in_zstd(n):
    from streamtrain.model_layout import _zstd_size

    for level in (1, 19):
        for values in (bytes(n), np.random.default_rng(0).bytes(n)):
            assert _zstd_size(bytes(numcodecs.Zstd(level).encode(values))[:18]) == n


def test_folder__another_format_beside(tmp_path):
    """A group of zarr 3 in the same folder is not looked at."""
    make().save(tmp_path / "m.zarr")
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"format": "mine"}}
    (tmp_path / "m.zarr" / "zarr.json").write_text(json.dumps(group))
    xr.testing.assert_identical(Model.load(tmp_path / "m.zarr").dataset, make().dataset)


def test_folder__of_version_1(tmp_path):
    """Whose checksum is of the arrays alone."""
    path, model = tmp_path / "m.zarr", make(provenance={"a": [1, 2.5, None]})
    model.save(path)
    former = {"format_version": 1, "checksum": model_store.arrays_checksum(model.dataset)}
    edit(lambda held: held.update(former), ".zattrs")(path)
    xr.testing.assert_identical(Model.load(path).dataset, model.dataset)
    (path / "scale" / "0").unlink()
    with pytest.raises(InputError, match="does not match its checksum"):
        Model.load(path)


def test_checksum__names_a_model():
    one = make().dataset
    assert model_store.checksum(one) == model_store.checksum(make().dataset)
    others = [
        Model.build(**arrays(seed=1)).dataset,
        make(settings={"alpha": 1}).dataset,
        make(provenance={"source": "s"}).dataset,
        make(calibration={"temperature": 1.0, "offset": 0.0}).dataset,
    ]
    assert len({model_store.checksum(d) for d in (one, *others)}) == 5
    assert len({model_store.arrays_checksum(d) for d in (one, *others)}) == 2


# Atlases


def test_atlas__with_a_pickle(tmp_path, harmless, monkeypatch):
    """zarr 2 lets any array name the codec, also where numcodecs was told to unpickle."""
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True)
    path = stores.write(atlas.make(), tmp_path, "zarr2")
    streamtrain.open_source(path)  # numba's cache of compiled code is of pickles
    names = path / "var" / json.loads((path / "var" / ".zattrs").read_text())["_index"]
    metadata = json.loads((names / ".zarray").read_text())
    metadata.update(compressor=None, filters=[{"id": "vlen-utf8"}, PICKLE])
    (names / ".zarray").write_text(json.dumps(metadata))
    (path / ".zmetadata").unlink(missing_ok=True)
    (names / "0").write_bytes(pickle.dumps(Reduced(os.system, ("touch ran",))))
    told = harmless(streamtrain.open_source, path)
    assert "/.zarray names the codec 'pickle', by which a file can run any code" in told


# The package


MODULES = {"dill", "cloudpickle", "marshal", "pty", "shelve", "subprocess", "yaml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "system", "popen", "Unpickler", "read_pickle"),
    *("execv", "execve", "spawnv", "posix_spawn", "fork"),
}
LOADS = {"load", "loads"}  # but of JSON, TOML and models
SAFE_LOADS = {"json", "tomllib", "cls", "Model", "models.Model", "opened"}


def dangers(tree):
    """All in a module that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
            of = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
            regular = name == "compile" and of == "re"
            if (name in CALLS and not regular) or (name in LOADS and of not in SAFE_LOADS):
                yield ast.unparse(called)
            yield from (k.arg for k in node.keywords if k.arg in ("shell", "allow_pickle"))
        elif isinstance(node, ast.Attribute) and node.attr == "Unpickler":
            yield ast.unparse(node)


def test_package__runs_nothing_that_a_file_holds():
    found = {
        path.relative_to(PACKAGE).as_posix(): words
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "kernels"  # which import numba and numpy alone
        if (words := list(dangers(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(f)", "pickle.loads(b)", "class A(pickle.Unpickler): pass",
        "np.load(f)", "f(allow_pickle=True)", "joblib.load(f)", "import yaml", "eval(x)",
        "exec(x)", "compile(x, '', 'exec')", "from subprocess import run", "run(x, shell=True)",
        "os.system(x)", "pd.read_pickle(x)", "import marshal", "load(f)",
    ],
)  # fmt: skip
def test_package__the_check_sees(code):
    assert list(dangers(ast.parse(code)))
