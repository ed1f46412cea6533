"""What a model's dataset must hold: names, dimensions, types and values, each checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from streamtrain import history
from streamtrain.calibration import Calibration
from streamtrain.errors import InputError, near

DIMS = {
    "coef": ("cell_type", "gene"),
    "intercept": ("cell_type",),
    "mean": ("gene",),
    "scale": ("gene",),
    "var": ("gene",),
    "coef_last": ("cell_type", "gene"),
    "intercept_last": ("cell_type",),
    "n_cells": ("cell_type",),
    "n_obs": ("gene",),
    "t": ("cell_type",),
    "n_averaged": ("cell_type",),
    "n_drawn": ("cell_type",),
    "objective": ("cell_type",),
    "gradient_norm": ("cell_type",),
    "suboptimality": ("cell_type",),
    "n_iter": ("cell_type",),
    "n_passes": ("cell_type",),
    "converged": ("cell_type",),
}
MIRRORED = ("coef", "intercept", "coef_last", "intercept_last")
CERTIFICATE = {
    "objective": np.dtype(np.float64),
    "gradient_norm": np.dtype(np.float64),
    "suboptimality": np.dtype(np.float64),
    "n_iter": np.dtype(np.int64),
    "n_passes": np.dtype(np.int64),
    "converged": np.dtype(np.bool_),
}
_REQUIRED = ("coef", "intercept", "mean", "scale", "var")
_INTEGERS = ("n_cells", "n_obs", "n_averaged", "n_drawn", "n_iter", "n_passes")
_LEAST = {"t": 1, "n_obs": 1, "n_cells": 0, "n_averaged": 0, "n_drawn": 0}
_KINDS = dict.fromkeys(_INTEGERS, ("iu", "integer"))
_KINDS["converged"] = ("b", "bool")
_DESCRIPTION = ("date", "details", "url", "source", "version")


def two_rows(values: ArrayLike) -> NDArray[Any]:
    """Give a single row its mirror image before it: [w] -> [-w, w]."""
    array = np.asarray(values)
    return np.concatenate([-array, array]) if array.ndim and len(array) == 1 else array


def sklearn_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Scikit-learn's form of weights: the second row alone of two."""
    return values[1:] if len(values) == 2 else values


def steps(dataset: xr.Dataset) -> NDArray[np.float64]:
    """SGD's steps of each cell type plus one, shape (cell types,)."""
    if "t" in dataset:
        return dataset["t"].to_numpy()
    return np.full(dataset.sizes["cell_type"], float(dataset.attrs["t"]))


def n_averaged(dataset: xr.Dataset) -> NDArray[np.int64]:
    """Steps in each cell type's average, shape (cell types,)."""
    if "n_averaged" in dataset:
        return dataset["n_averaged"].to_numpy().astype(np.int64)
    # Of scikit-learn, and of models before 0.2: all since the step that was asked for.
    first = int(dataset.attrs["settings"].get("average") or 1)
    return np.maximum(steps(dataset).astype(np.int64) - first, 0)


def n_obs(dataset: xr.Dataset) -> NDArray[np.int64] | None:
    """Cells that each gene's mean and variance are of, shape (genes,); None where unknown."""
    if "n_obs" in dataset:
        return dataset["n_obs"].to_numpy().astype(np.int64)
    if "n_cells" not in dataset:
        return None
    return np.full(dataset.sizes["gene"], int(dataset["n_cells"].sum()))


def check_variables(dataset: xr.Dataset) -> None:
    """Check that every variable, coordinate and attribute is there, with its dims and type."""
    missing = [v for v in _REQUIRED if v not in dataset.data_vars]
    missing += [c for c in ("cell_type", "gene") if c not in dataset.coords]
    missing += [a for a in ("with_mean", "t") if a not in dataset.attrs]
    if missing:
        raise InputError(f"a model needs {', '.join(missing)}: the dataset has none")
    if ("coef_last" in dataset) != ("intercept_last" in dataset):
        raise InputError("coef_last and intercept_last must come together: one is missing")
    for name, dims in DIMS.items():
        if name not in dataset:
            continue
        if dataset[name].dims != dims:
            raise InputError(f"{name} has dimensions {dataset[name].dims}, not {dims}")
        kinds, wanted = _KINDS.get(name, ("f", "float"))
        if dataset[name].dtype.kind not in kinds:
            raise InputError(f"{name} must be {wanted}, not {dataset[name].dtype}")


def check_values(dataset: xr.Dataset) -> None:
    """Check that the numbers can be those of a model."""
    for name in (n for n in DIMS if n in dataset):
        values = dataset[name].to_numpy()
        if name in CERTIFICATE:
            if not (values >= 0).all():  # infinity: no bound is known
                raise InputError(f"{name} must be at least 0 for every cell type, and not NaN")
        elif not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinity: training diverged or input was broken")
        elif name in _LEAST and not (values >= _LEAST[name]).all():
            raise InputError(f"{name} must be at least {_LEAST[name]}; its least is {values.min()}")
    if not (dataset["scale"].to_numpy() > 0).all():
        raise InputError("scale must be above 0 for every gene (1 for a constant one)")
    if dataset.sizes["cell_type"] != 2:
        return
    for name in (n for n in MIRRORED if n in dataset):
        rows = dataset[name].to_numpy()
        if not np.array_equal(rows[0], -rows[1]):
            raise InputError(f"{name} of two cell types must have rows -w and w")


def names(dataset: xr.Dataset, dim: str) -> NDArray[np.object_]:
    """Names along `dim` as Python strings, shape (n,), object: the one form kept in a model."""
    names: NDArray[np.object_] = dataset[dim].to_numpy().astype(object)
    what = dim.replace("_", " ")
    wrong = [n for n in names if not isinstance(n, str)]
    if wrong:
        raise InputError(f"every {what} must be a string, not {wrong[0]!r}")
    if dim == "cell_type" and "" in names:
        raise InputError("a cell type has an empty name: an empty label stands for a missing one")
    least = 2 if dim == "cell_type" else 1
    if len(names) < least:
        raise InputError(f"a model needs at least {least} {what}s, not {len(names)}")
    seen: set[str] = set()
    twice = [n for n in names if n in seen or seen.add(n)]  # type: ignore[func-returns-value]
    if twice:
        raise InputError(f"{what} {twice[0][:99]!r} occurs more than once: names must be unique")
    return np.array([str(n) for n in names], dtype=object)


def attributes(attrs: Mapping[Any, Any], n_types: int) -> dict[str, Any]:
    """Attributes as they come back from a store, `description` with all of CellTypist's keys."""
    plain: dict[str, Any] = {str(k): _plain(v) for k, v in attrs.items()}
    for key in ("settings", "provenance", "description"):
        if not isinstance(plain.setdefault(key, {}), dict):
            raise InputError(f"{key} must be a dict, not {plain[key]!r}")
    if plain["provenance"].get("history") is not None:
        history.check(plain["provenance"]["history"])
    if not isinstance(plain["with_mean"], bool):
        raise InputError(f"with_mean must be True or False, not {plain['with_mean']!r}")
    if not isinstance(plain["t"], int | float) or not 1 <= plain["t"] < math.inf:
        raise InputError(f"t must be a number of at least 1 (samples seen + 1), not {plain['t']!r}")
    plain["t"] = float(plain["t"])
    if plain.get("calibration") is None:
        plain.pop("calibration", None)
    else:
        plain["calibration"] = _calibration(plain["calibration"])
    blank = dict.fromkeys(_DESCRIPTION, "")
    plain["description"] = blank | plain["description"] | {"number_celltypes": n_types}
    return plain


def _calibration(given: Any) -> dict[str, float]:
    """A calibration as it comes back from a store, checked."""
    wanted = [field.name for field in fields(Calibration)]
    if not isinstance(given, dict) or sorted(given) != sorted(wanted):
        raise InputError(f"calibration must be a dict of {', '.join(wanted)}; got {given!r}")
    for name, value in given.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (name != "offset" and value <= 0):
            raise InputError(f"calibration: {name} must be a number, and above 0 but for offset")
    return {name: float(given[name]) for name in wanted}


def _plain(value: Any) -> Any:
    """Word `value` in JSON's types; never fails, since it runs after hours of training."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def counted(t: Any) -> tuple[Any, NDArray[Any] | None]:
    """The largest of the types' counts of steps, and all of them where they differ."""
    if np.ndim(t) == 0:
        return t, None
    counts = np.asarray(t)
    return counts.max().item(), None if (counts == counts[0]).all() else counts


def for_each(value: ArrayLike | None, names: list[str]) -> NDArray[Any] | None:
    """One value for each of `names`, where one may stand for all."""
    if value is None or np.size(value) != 1:
        return None if value is None else np.asarray(value)
    return np.full(len(names), np.asarray(value).item())


def certified(given: Mapping[str, ArrayLike], intercept: ArrayLike) -> dict[str, NDArray[Any]]:
    """Certified values in their types; of two cell types, one value for both."""
    two_types = two_rows(intercept).shape == (2,)
    found = {}
    for name, values in given.items():
        if name not in CERTIFICATE:
            raise InputError(f"a certificate has no {name!r}: {near(name, CERTIFICATE)}")
        array = np.asarray(values)
        if array.dtype.kind == CERTIFICATE[name].kind:
            array = array.astype(CERTIFICATE[name])
        found[name] = np.repeat(array, 2) if two_types and array.shape == (1,) else array
    return found
