"""The path of a CellTypist pickle enters; the arguments of `Model.build` leave."""

from __future__ import annotations

import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError, absent
from streamtrain.pickled import Node, parse

_LOSSES = (
    *("Log", "Hinge", "SquaredHinge", "ModifiedHuber", "SquaredLoss", "Huber"),
    *("EpsilonInsensitive", "SquaredEpsilonInsensitive"),
    *("CyHalfBinomialLoss", "CyHalfSquaredError", "CyHuberLoss"),
)
# All that CellTypist's pickles name, over NumPy 1 and 2, pandas 1 to 3 and scikit-learn 0.22 to
# 1.9: (module, name) -> our word. What has the word "unread" stands in them but holds nothing that
# a model needs.
_ADMITTED = {
    ("sklearn.linear_model._stochastic_gradient", "SGDClassifier"): "SGDClassifier",
    ("sklearn.linear_model._logistic", "LogisticRegression"): "LogisticRegression",
    ("sklearn.preprocessing._data", "StandardScaler"): "StandardScaler",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("pandas.core.indexes.base", "_new_Index"): "index",
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): "strings",
    ("pyarrow.lib", "_restore_array"): "arrow",
    ("pyarrow.lib", "type_for_alias"): "arrow type",
    ("pyarrow.lib", "py_buffer"): "arrow buffer",
    ("builtins", "bytearray"): "bytes",
    **{
        (f"numpy.{core}.{module}", name): word
        for core in ("core", "_core")
        for module, name, word in (
            ("multiarray", "_reconstruct", "array"),
            ("multiarray", "scalar", "scalar"),
            ("numeric", "_frombuffer", "buffer"),
        )
    },
    **{
        (module, name): "arrow strings"
        for module in ("pandas.arrays", "pandas.core.arrays.string_arrow")
        for name in ("ArrowStringArray", "ArrowStringArrayNumpySemantics")
    },
    **{
        (module, loss): "unread"
        for module in ("sklearn.linear_model._sgd_fast", "sklearn._loss._loss", "_loss")
        for loss in _LOSSES
    },
    ("pandas", "Index"): "unread",
    ("pandas.core.indexes.base", "Index"): "unread",
    ("pandas", "StringDtype"): "unread",
    ("pandas.core.arrays.string_", "StringDtype"): "unread",
    ("pandas.arrays", "StringArray"): "unread",
    ("pandas.core.arrays.string_", "StringArray"): "unread",
    ("pandas.core.arrays.string_", "StringArrayNumpySemantics"): "unread",
    ("pandas", "NA"): "unread",
    ("pandas._libs.missing", "NA"): "unread",
    ("numpy.random._pickle", "__randomstate_ctor"): "unread",
    ("numpy.random._pickle", "__bit_generator_ctor"): "unread",
    ("numpy.random._mt19937", "MT19937"): "unread",
}
# Parameters of each estimator that `train` has under the same name.
_SHARED = (
    "class_weight",
    "fit_intercept",
    "l1_ratio",
    "max_iter",
    "penalty",
    "random_state",
    "tol",
)
_SETTINGS = {
    "SGDClassifier": (
        *("alpha", "average", "early_stopping", "eta0", "learning_rate", "loss"),
        *("n_iter_no_change", "power_t", "shuffle", *_SHARED),
    ),
    "LogisticRegression": ("C", "solver", *_SHARED),
}
_NUMBER = re.compile(r"f[248]|[iu][1248]|b1")
_DTYPE = re.compile(rf"{_NUMBER.pattern}|U[1-9]\d{{0,5}}|O8?")
_LARGEST = 16 * 2**30  # bytes; coefficients of 5000 types and 60,000 genes take 2.4e9
_LONGEST = 10**6  # characters of a description: a file may refer to one long text many times


def arguments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the pickle of a CellTypist model without running anything in it.

    Neither scikit-learn nor CellTypist is needed, and any scikit-learn's objects are read: they
    are looked into, not made.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Arguments of `Model.build`.

    Raises
    ------
    FileNotFoundError
        Nothing stands at `path`.
    InputError
        It is no such pickle, or asks for something that such a pickle does not need.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise absent(Path(path), "model")
    if not file.is_file():
        raise InputError("it is not a file, as CellTypist's models are")
    held = parse(_content(file), _ADMITTED)
    if not (isinstance(held, dict) and {"Model", "Scaler_", "description"} <= held.keys()):
        raise InputError("it has no Model, Scaler_ and description, as CellTypist's models have")
    classifier = _attributes(held["Model"], tuple(_SETTINGS))
    estimator = held["Model"].word
    scaler = _attributes(held["Scaler_"], ("StandardScaler",))
    provenance = {
        "celltypist pickle": file.name,
        "estimator": estimator,
        "scikit-learn": classifier.get("_sklearn_version"),
        "n_cells": scaler.get("n_samples_seen_"),
    }
    return {
        **_weights(classifier),
        **_scaling(scaler),
        "cell_types": _names(_required(classifier, "classes_"), "classes_"),
        "genes": _names(_required(classifier, "features"), "features"),
        "t": _plain(classifier.get("t_", 1.0)),
        "settings": {"use_SGD": estimator == "SGDClassifier"} | _settings(classifier, estimator),
        "provenance": {
            k: _plain(v) for k, v in provenance.items() if v is not None and _is_plain(v)
        },
        "description": _description(held["description"]),
    }


def _content(file: Path) -> bytes:
    """Bytes of the file, unless it cannot be a model: then it may be too large to read."""
    with file.open("rb") as opened:
        first = opened.read(8)
        if first == b"\x89HDF\r\n\x1a\n":
            raise InputError("it is an HDF5 file, as atlases are: give the model first, then X")
        if first[:1] != b"\x80" or first[1:2] not in (b"\3", b"\4", b"\5"):
            raise InputError(
                f"not a pickle, or damaged: it begins with {first!r}, not as one of protocol 3 to "
                "5; get the file once more"
            )
        size = file.stat().st_size
        if size > _LARGEST:
            raise InputError(f"it has {size} bytes: a model has at most {_LARGEST}")
        opened.seek(0)
        return opened.read()


def _attributes(node: Any, words: tuple[str, ...]) -> dict[str, Any]:
    """Attributes of one of the scikit-learn objects called `words`."""
    found = _kind(node)
    if found not in words:
        raise InputError(f"it holds a {found} where CellTypist has {' or '.join(words)}")
    if not isinstance(node.state, dict):
        raise InputError(f"its {found} has no attributes")
    return node.state


def _required(attributes: dict[str, Any], name: str) -> NDArray[Any]:
    if attributes.get(name) is None:
        raise InputError(f"it has no {name}: CellTypist could not use it either")
    return _array(attributes[name], name)


def _floats(attributes: dict[str, Any], name: str) -> NDArray[np.floating[Any]]:
    found = _required(attributes, name)
    if found.dtype.kind != "f":
        raise InputError(f"its {name} must be float, not {found.dtype}")
    return found


def _weights(classifier: dict[str, Any]) -> dict[str, Any]:
    """Coefficients and intercepts, and what `partial_fit` of an averaged SGD goes on from."""
    found: dict[str, Any] = {k: _floats(classifier, f"{k}_") for k in ("coef", "intercept")}
    if classifier.get("average") and classifier.get("_standard_coef") is not None:
        coef = _floats(classifier, "_standard_coef")
        found["coef_last"] = np.atleast_2d(coef)  # two types have (genes,) in scikit-learn
        found["intercept_last"] = _floats(classifier, "_standard_intercept")
    n_iter = classifier.get("n_iter_")  # SGD has a plain number, a softmax one for all types
    if isinstance(n_iter, Node) and n_iter.word != "scalar":
        n_iter = _array(n_iter, "n_iter_")
        if n_iter.shape == found["intercept"].shape and n_iter.dtype.kind in "iu":
            found["certificate"] = {"n_iter": n_iter}
    return found


def _scaling(scaler: dict[str, Any]) -> dict[str, Any]:
    """Mean, variance and scale by scikit-learn's rules for what a scaler may lack."""
    with_mean = _plain(scaler.get("with_mean", True))
    scale = _floats(scaler, "scale_")
    lacks_mean = scaler.get("mean_") is None and with_mean is False
    lacks_var = scaler.get("var_") is None
    return {
        "mean": np.zeros_like(scale) if lacks_mean else _floats(scaler, "mean_"),
        "var": _square(scale) if lacks_var else _floats(scaler, "var_"),
        "scale": scale,
        "with_mean": with_mean,
        "n_obs": None if lacks_mean else _n_seen(scaler.get("n_samples_seen_"), scale.size),
    }


def _square(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    with np.errstate(over="ignore"):  # infinity is refused later
        return values**2


def _n_seen(held: Any, n_genes: int) -> NDArray[np.int64] | None:
    """Cells that the scaling is of, or of each gene; None where it does not say."""
    if held is None:
        return None
    seen = np.asarray(_plain(held)) if _is_plain(held) else _array(held, "n_samples_seen_")
    # scikit-learn sums weights, in float; of a model of selected genes it may have one for each.
    usable = seen.dtype.kind in "iuf" and seen.shape in ((), (n_genes,))
    whole = usable and bool((seen >= 1).all() and (seen < 2**53).all())
    return seen.astype(np.int64) if whole else None


def _settings(classifier: dict[str, Any], estimator: str) -> dict[str, Any]:
    known = {k: classifier[k] for k in _SETTINGS[estimator] if k in classifier}
    found = {k: _plain(v) for k, v in known.items() if _is_plain(v)}
    if found.get("loss") == "log":  # its name before scikit-learn 1.1
        found["loss"] = "log_loss"
    return {k: v for k, v in found.items() if v != "deprecated"}


def _description(held: Any) -> dict[str, Any]:
    if not isinstance(held, dict):
        raise InputError(f"its description is a {type(held).__name__}, not a dict")
    for key, value in held.items():
        if not (isinstance(key, str) and _is_plain(value)):
            raise InputError("its description must hold texts and numbers alone")
    if sum(len(v) for v in held.values() if isinstance(v, str)) > _LONGEST:
        raise InputError(f"its description has more than {_LONGEST} characters")
    return {k: _plain(v) for k, v in held.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(
        value, Node
    ):  # NumPy's numbers alone: each reference to a text would make it anew
        number = value.word == "scalar" and len(value.args) == 2
        return number and _NUMBER.fullmatch(_code(value.args[0])) is not None
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, str | float | None)


def _plain(value: Any) -> Any:
    """A text, number, bool or None; NumPy's scalars as Python's."""
    if not _is_plain(value):
        raise InputError(f"it holds a {_kind(value)} where a text or number belongs")
    if not isinstance(value, Node):
        return value
    dtype, stored = value.args
    return _filled(dtype, stored, (), "C", "scalar").item()


def _kind(value: Any) -> str:
    return value.word if isinstance(value, Node) else type(value).__name__


def _names(values: NDArray[Any], what: str) -> list[Any]:
    """Names as texts; whole numbers, as clusters have, become texts."""
    if values.ndim != 1:
        raise InputError(f"its {what} has the shape {values.shape}, not (n,)")
    try:
        listed: list[Any] = values.tolist()
        # Each once: a file may refer to one long text many times.
        for name in set(listed):
            str(name).encode()  # fixed-width texts too may hold lone surrogates
    except (ValueError, SystemError) as error:  # the latter for what is no code point
        raise InputError(f"its {what} holds what is no text ({error})") from error
    return [str(v) for v in listed] if values.dtype.kind in "iu" else listed


def _array(node: Any, what: str) -> NDArray[Any]:
    """The array that `node` describes, in native byte order."""
    try:
        if isinstance(node, list):
            return np.array([_plain(v) for v in node], dtype=object)
        match node.word:
            case "array":
                _, shape, dtype, fortran, values = node.state
                return _filled(dtype, values, shape, "F" if fortran else "C", what)
            case "buffer":
                values, dtype, shape, order = node.args
                return _filled(dtype, values, shape, order, what)
            case "index":
                return _array(node.args[1]["data"], what)
            case "strings":
                return _array(node.state[1], what)
            case "arrow strings":
                return _arrow(*node.state["_pa_array"].args[0])
    except InputError:
        raise
    # An attribute, item or size that the node should have and has not.
    except (
        LookupError,
        AttributeError,
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as e:
        raise InputError(f"its {what} could not be read ({type(e).__name__}: {e})") from e
    raise InputError(f"its {what} is a {node.word}, not an array")


def _filled(dtype: Any, values: Any, shape: Any, order: str, what: str) -> NDArray[Any]:
    """Make an array from its stored values, which alone decide how much is allocated."""
    kind = _dtype(dtype, what)
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 2:
        raise InputError(f"its {what} has a shape other than (n,) or (n, m)")
    size = math.prod(shape)
    if kind.kind == "O" and isinstance(values, list) and len(values) == size:
        found = np.empty(size, dtype=object)
        found[:] = [_plain(v) for v in values]
    elif isinstance(values, bytes | bytearray) and len(values) == size * kind.itemsize:
        found = np.ndarray(size, kind, buffer=values).astype(kind.newbyteorder("="))
    else:
        raise InputError(f"its {what} does not have the values that its shape and type ask for")
    return found.reshape(shape, order="F" if order == "F" else "C")


def _dtype(node: Any, what: str) -> np.dtype[Any]:
    code = _code(node)
    if not _DTYPE.fullmatch(code):
        raise InputError(f"its {what} has a type other than numbers or texts")
    big = isinstance(node.state, tuple) and node.state[1:2] == (">",)
    return np.dtype(code).newbyteorder(">" if big else "<")


def _code(node: Any) -> str:
    """NumPy's code of the type that `node` describes, or no text."""
    code = node.args[0] if isinstance(node, Node) and node.word == "dtype" and node.args else ""
    return code if isinstance(code, str) else ""


def _arrow(
    kind: Node, n: int, n_null: int, first: int, buffers: list[Any], *_: Any
) -> NDArray[np.object_]:
    """Texts of an Arrow array, as pandas 3 keeps them: where each ends, and all in UTF-8."""
    ends, text = (
        b.args[0].args[0] if isinstance(b.args[0], Node) else b.args[0] for b in buffers[1:]
    )
    width = ("<i4", "<i8")[("string", "large_string").index(kind.args[0])]
    at = np.frombuffer(ends, width)[first : first + n + 1]
    # Texts that overlap could explode. A difference of two ends could overflow.
    if n_null or len(at) != n + 1 or at[0] < 0 or (at[1:] < at[:-1]).any():
        raise ValueError("missing or overlapping texts")
    places = at.tolist()
    return np.array([bytes(text[a:b]).decode() for a, b in pairwise(places)], dtype=object)
