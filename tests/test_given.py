"""What type checkers see is what the functions take; and a user's script under mypy --strict."""

import importlib
import inspect
import os
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import streamtrain
from streamtrain import Settings, adapt, cells, expression
from streamtrain.given import AnnotateGiven, PredictGiven, TrainGiven

# The attribute of this name is the function.
predicting = importlib.import_module("streamtrain.predict")
NAMES = {
    "Model": streamtrain.Model,
    "Adapt": adapt.Adapt,
    "Labels": cells.Labels,
    "Normalize": expression.Normalize,
    "Mode": predicting.Mode,
    "Names": predicting.Names,
    "AnnData": type("AnnData", (), {}),
}


def hints(owner):
    return typing.get_type_hints(owner, localns=NAMES)


def members(hint):
    """The types of a union."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return set(typing.get_args(hint)) if union else {hint}


def kinds(hint):
    """Those types, where a list is the same as any iterable, and a dict as any mapping."""
    found = set()
    for one in members(hint):
        origin = typing.get_origin(one)
        if origin in (list, typing.get_origin(typing.Iterable[str])):
            found.add("iterable")
        elif origin in (dict, typing.get_origin(typing.Mapping[str, str])):
            found.add(("mapping", typing.get_args(one)))
        else:
            found.add(one)
    return found


# Settings that take more than a model keeps of them.
MORE = {
    "recipe", "scratch", "sampling_weight", "gene_list", "join", "random_state", "warm_start",
    "init", "date",
}  # fmt: skip


def test_settings__names_and_types():
    given, kept = hints(TrainGiven), hints(Settings)
    assert list(given) == list(kept)
    for name, hint in given.items():
        if name in MORE:
            assert kinds(hint) > kinds(kept[name]), name
        else:
            assert kinds(hint) == kinds(kept[name]), name


@pytest.mark.parametrize(
    ("function", "given", "own"),
    [
        (streamtrain.annotate, AnnotateGiven, {"adata", "model", "inplace", "copy"}),
        (streamtrain.predict, PredictGiven, {"model", "X", "genes", "out", "in_place"}),
    ],
)
def test_keywords__names_and_types(function, given, own):
    taken = hints(function)
    taken.pop("return")
    assert own < set(taken)
    assert hints(given) == {k: v for k, v in taken.items() if k not in own}


def test_signature__has_the_settings():
    """At run time, as help() and notebooks show it."""
    for function in (streamtrain.train, streamtrain.cross_validate):
        shown = inspect.signature(function).parameters
        assert set(hints(TrainGiven)) <= set(shown)


SCRIPT = """
from pathlib import Path
from typing import assert_type

import numpy as np
import pandas as pd

import streamtrain

model = streamtrain.train(
    Path("atlas.h5ad"), "cell_type", recipe="atlas", alpha=[0.1, 1.0], folds=5, memory="2GB",
    normalize="log1p", class_weight={"B": 2.0}, gene_list=Path("panel.txt"), batch_size=500,
)
assert_type(model, streamtrain.Model)
assert_type(model.markers(5), pd.DataFrame)
model.to_onnx("model.onnx", normalize=True, overwrite=True)
again = streamtrain.train("new.h5ad", np.array(["B", "T"]), use_SGD=True, init=model)
assert_type(streamtrain.cross_validate("a.h5ad", "t", step=["auto", 2]).models["t"], type(model))
assert_type(streamtrain.predict(model, "new.h5ad", scores=True), pd.DataFrame)
streamtrain.predict("model.zarr", "new.h5ad", out=Path("p.parquet"), mode="prob match")
assert_type(streamtrain.evaluate(["a"], ["a"]).macro_f1, float)
result = streamtrain.annotate(None, model, probabilities=True)
assert_type(result, streamtrain.AnnotationResult)
assert_type(result.probability_matrix, pd.DataFrame)
assert_type(result.cell_count, int)
settings = streamtrain.Settings(epochs=3)
assert_type(settings.epochs, int)

streamtrain.train("a.h5ad", "t", use_sgd=True)  # type: ignore[call-arg]
streamtrain.train("a.h5ad", "t", epochs="ten")  # type: ignore[arg-type]
streamtrain.train("a.h5ad", "t", solver="newton")  # type: ignore[arg-type]
streamtrain.predict(model, "a.h5ad", mode="best")  # type: ignore[call-overload]
streamtrain.annotate(None, model, layr="counts")  # type: ignore[call-overload]
result.probability_matrx  # type: ignore[attr-defined]
"""


@pytest.mark.slow
def test_script__of_a_user_passes_strict(tmp_path):
    """Without this project's own settings of mypy; what is wrong in it is found."""
    script = SCRIPT.replace("type(model)", "streamtrain.Model")
    (tmp_path / "script.py").write_text(script)
    package = Path(streamtrain.__file__).parent
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
            "script.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(package.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.stdout == "Success: no issues found in 1 source file\n"
    assert done.returncode == 0
