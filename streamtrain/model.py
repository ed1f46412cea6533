"""Trained arrays enter as one xarray Dataset; a zarr store or a CellTypist pickle leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from streamtrain import atomic
from streamtrain.errors import InputError, near

FORMAT = "streamtrain model"
FORMAT_VERSION = 1

_DIMS = {
    "coef": ("cell_type", "gene"),
    "intercept": ("cell_type",),
    "mean": ("gene",),
    "scale": ("gene",),
    "var": ("gene",),
    "coef_last": ("cell_type", "gene"),
    "intercept_last": ("cell_type",),
    "n_cells": ("cell_type",),
}
_OPTIONAL = ("coef_last", "intercept_last", "n_cells")
_DESCRIPTION = ("date", "details", "url", "source", "version")


class Model:
    """A one-vs-rest logistic classifier with the scaling of its genes.

    A cell with log1p-normalised expression x scores Z @ coef.T + intercept for each cell type, with
    Z = min((x - mean)/scale, 10), and without `- mean` where `with_mean` is False.

    Parameters
    ----------
    dataset
        Variables, all float unless said: `coef` (cell_type, gene), `intercept` (cell_type,),
        `mean`, `scale`, `var` (gene,). Two cell types have two rows, [-w, w] and [-b, b].
        Optional: `coef_last` and `intercept_last`, the state that training continues from where
        `coef` is its running average; `n_cells` (cell_type,), integers.
        Coordinates: `cell_type` and `gene`, unique strings.
        Attributes: `with_mean` (bool); `t` (scikit-learn's `t_`: samples seen + 1); and the dicts
        `settings`, `provenance` and `description`, made JSON-compatible here (a value that JSON has
        no form for becomes its text).

    Raises
    ------
    InputError
        A variable, coordinate or attribute is missing or breaks a rule above.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        _check_variables(dataset)
        names = {dim: _names(dataset, dim) for dim in ("cell_type", "gene")}
        self.dataset = dataset.assign_coords(names).compute().drop_encoding()
        self.dataset.attrs = _attributes(dataset.attrs, len(names["cell_type"]))
        _check_values(self.dataset)

    @classmethod
    def build(
        cls,
        *,
        coef: ArrayLike,
        intercept: ArrayLike,
        cell_types: Iterable[str],
        genes: Iterable[str],
        mean: ArrayLike,
        var: ArrayLike,
        scale: ArrayLike,
        with_mean: bool = True,
        t: float = 1.0,
        n_cells: ArrayLike | None = None,
        coef_last: ArrayLike | None = None,
        intercept_last: ArrayLike | None = None,
        settings: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> Model:
        """Make a model from arrays.

        Parameters
        ----------
        coef, intercept, coef_last, intercept_last
            As in `Model`, or for two cell types scikit-learn's single row: (1, genes) and (1,).
        cell_types, genes
            Names, in the order of the rows and columns of `coef`.
        mean, var, scale, with_mean, t, n_cells, settings, provenance, description
            As in `Model`; `description` may leave out any key.

        Raises
        ------
        InputError
            As `Model`, or the lengths do not match.
        """
        arrays = {
            "coef": _two_rows(coef),
            "intercept": _two_rows(intercept),
            "mean": mean,
            "scale": scale,
            "var": var,
            "coef_last": None if coef_last is None else _two_rows(coef_last),
            "intercept_last": None if intercept_last is None else _two_rows(intercept_last),
            "n_cells": n_cells,
        }
        coords = {"cell_type": list(cell_types), "gene": list(genes)}
        # Copies: scikit-learn and our solvers go on updating their arrays in place.
        variables = {k: (_DIMS[k], np.array(v)) for k, v in arrays.items() if v is not None}
        for name, (dims, values) in variables.items():
            shape = tuple(len(coords[d]) for d in dims)
            if values.shape != shape:
                raise InputError(f"{name} has shape {values.shape}, not {shape} = {dims}")
        attrs = {
            "with_mean": with_mean,
            "t": t,
            "settings": settings or {},
            "provenance": provenance or {},
            "description": description or {},
        }
        objects = {k: (k, np.array(v, dtype=object)) for k, v in coords.items()}
        return cls(xr.Dataset(variables, coords=objects, attrs=attrs))

    @property
    def cell_types(self) -> NDArray[np.object_]:
        """Names of the cell types, shape (cell types,), object."""
        return self.dataset["cell_type"].to_numpy().astype(object)

    @property
    def features(self) -> NDArray[np.object_]:
        """Names of the genes, shape (genes,), object."""
        return self.dataset["gene"].to_numpy().astype(object)

    @property
    def classes_(self) -> NDArray[np.object_]:
        """The cell types, under scikit-learn's name."""
        return self.cell_types

    @property
    def coef_(self) -> NDArray[np.floating[Any]]:
        """Coefficients in scikit-learn's shape: (cell types, genes), or (1, genes) for two."""
        return _sklearn_rows(self.dataset["coef"].to_numpy())

    @property
    def intercept_(self) -> NDArray[np.floating[Any]]:
        """Intercepts in scikit-learn's shape: (cell types,), or (1,) for two."""
        return _sklearn_rows(self.dataset["intercept"].to_numpy())

    @property
    def description(self) -> dict[str, Any]:
        """CellTypist's description: date, details, url, source, version, number_celltypes."""
        return dict(self.dataset.attrs["description"])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was trained with."""
        return dict(self.dataset.attrs["settings"])

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on, by which versions, when."""
        return dict(self.dataset.attrs["provenance"])

    def __repr__(self) -> str:
        types, genes = self.cell_types, self.features
        lines = [f"streamtrain model with {len(types)} cell types and {len(genes)} features"]
        notes = {k: self.description[k] for k in ("date", "details", "source", "version")}
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        notes |= {"cell types": _some(types), "features": _some(genes)}
        notes["settings"] = textwrap.shorten(settings, 300, placeholder=" ...")
        return "\n    ".join(lines + [f"{k}: {v}" for k, v in notes.items() if v != ""])

    def _repr_html_(self) -> str:
        return self.dataset._repr_html_()

    def extract_top_markers(
        self, cell_type: str, top_n: int = 10, only_positive: bool = True
    ) -> NDArray[np.object_]:
        """Name the genes that drive a cell type's score most, as CellTypist ranks them.

        Parameters
        ----------
        cell_type
            One of `cell_types`.
        top_n
            How many genes; all of them where there are fewer.
        only_positive
            Whether to rank by coefficient; otherwise by its absolute value.

        Returns
        -------
        ndarray
            Gene names, shape (top_n,), largest first; equals stand in the order of `features`.

        Raises
        ------
        InputError
            `cell_type` is unknown, or `top_n` is below 1.
        """
        types = self.cell_types
        if cell_type not in types:
            raise InputError(f"no cell type {cell_type!r} in the model: {near(cell_type, types)}")
        if top_n < 1:
            raise InputError(f"top_n must be at least 1, not {top_n}")
        row = self.dataset["coef"].to_numpy()[types == cell_type][0]
        order = np.argsort(-(row if only_positive else np.abs(row)), kind="stable")
        return self.features[order[:top_n]]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to `path`, a zarr store that xarray opens; all of it or nothing.

        Parameters
        ----------
        path
            Where the store (a folder) shall stand.
        overwrite
            Whether a model that stands there is replaced.

        Raises
        ------
        InputError
            The path cannot be written, exists, or holds something other than a streamtrain model.
        """
        check_output(path, overwrite)
        stored = self.dataset.assign_attrs(
            format=FORMAT, format_version=FORMAT_VERSION, checksum=_checksum(self.dataset)
        )
        # A fill value would turn 0 or NaN of ours into a missing value when read elsewhere.
        encoding = {str(name): {"_FillValue": None} for name in stored.data_vars}
        with atomic.replacing(path, overwrite, folder=True) as partial:
            # Format 2: consolidated metadata is not in format 3's specification, and without it
            # (or with it, on the other side) xarray and zarr warn.
            stored.to_zarr(partial, mode="w-", zarr_format=2, consolidated=True, encoding=encoding)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model that `save` wrote, whole, and close the store.

        Parameters
        ----------
        path
            The store.

        Raises
        ------
        FileNotFoundError
            Nothing stands at `path`.
        InputError
            It is not a streamtrain model, is damaged, or needs a newer streamtrain.
        """
        folder = Path(path).expanduser()
        if not folder.exists():
            raise FileNotFoundError(f"no model at {str(path)!r}")
        version = _read_header(folder).get("format_version")
        if not isinstance(version, int):
            raise _damaged(path, f"its format_version is {version!r}")
        if version > FORMAT_VERSION:
            raise InputError(
                f"model {str(path)!r} has format version {version}, this streamtrain reads up to "
                f"{FORMAT_VERSION}: upgrade streamtrain"
            )
        try:
            with xr.open_zarr(folder, chunks=None, consolidated=True, decode_cf=False) as opened:
                dataset = opened.load()
        except Exception as error:  # a broken store can fail in any layer: zarr, codec, xarray
            raise _damaged(path, f"{type(error).__name__}: {error}") from error
        for key in ("format", "format_version"):
            dataset.attrs.pop(key, None)
        checksum = dataset.attrs.pop("checksum", None)
        try:
            model = cls(dataset)
        except InputError as error:
            raise _damaged(path, str(error)) from error
        if checksum != _checksum(model.dataset):
            raise _damaged(path, "its arrays do not match its checksum")
        return model

    def to_celltypist(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the pickle that CellTypist loads, under exactly the name given.

        The classifier is an SGDClassifier with this model's coefficients in their dtype, so it
        continues with `partial_fit` on scaled data of that dtype; settings that scikit-learn has a
        name and a valid value for are set on it.

        Parameters
        ----------
        path
            Where the file shall stand; CellTypist's own end in `.pkl`.
        overwrite
            Whether a file that stands there is replaced.

        Raises
        ------
        InputError
            The path cannot be written or exists.
        """
        atomic.check_output(path, overwrite, folder=False)
        exported = {
            "Model": _sgd_classifier(self),
            "Scaler_": _standard_scaler(self.dataset),
            "description": self.description,
        }
        with (
            atomic.replacing(path, overwrite, folder=False) as partial,
            partial.open("wb") as file,
        ):
            # Protocol 5 names numpy._core.numeric, which numpy 1.26 lacks; 4 does not.
            pickle.dump(exported, file, protocol=4)


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check that `Model.save` may write to `path`, before training.

    Parameters
    ----------
    path, overwrite
        As in `Model.save`.

    Raises
    ------
    InputError
        As `Model.save`.
    """
    target = atomic.check_output(path, overwrite, folder=True)
    if target.exists():  # --overwrite on a mistyped path must not cost an atlas
        _read_header(target)


def _read_header(path: Path) -> dict[str, Any]:
    """Read the attributes of the store at `path`, if a streamtrain model's."""
    try:
        header = json.loads((path / ".zattrs").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        header = None
    except (OSError, ValueError) as error:
        raise _damaged(path, f".zattrs: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is not a streamtrain model (a folder that save() wrote)")
    return header


def _damaged(path: str | os.PathLike[str], why: str) -> InputError:
    return InputError(f"model {str(path)!r} is damaged: {why}; restore it or train again")


def _checksum(dataset: xr.Dataset) -> str:
    """Hash every array with its name, dims, shape and type: zarr reads a lost chunk as zeros."""
    digest = hashlib.sha256()
    for name in sorted(str(v) for v in dataset.variables):
        variable = dataset[name]
        values = np.ascontiguousarray(variable.to_numpy())
        if values.dtype == object:
            values = np.frombuffer("\0".join(values).encode(), np.uint8)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {variable.dims} {variable.shape} {little.dtype.str}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _check_variables(dataset: xr.Dataset) -> None:
    missing = [v for v in _DIMS if v not in dataset.data_vars and v not in _OPTIONAL]
    missing += [c for c in ("cell_type", "gene") if c not in dataset.coords]
    missing += [a for a in ("with_mean", "t") if a not in dataset.attrs]
    if missing:
        raise InputError(f"a model needs {', '.join(missing)}: the dataset has none")
    if ("coef_last" in dataset) != ("intercept_last" in dataset):
        raise InputError("coef_last and intercept_last must come together: one is missing")
    for name, dims in _DIMS.items():
        if name not in dataset:
            continue
        if dataset[name].dims != dims:
            raise InputError(f"{name} has dimensions {dataset[name].dims}, not {dims}")
        kinds, wanted = ("iu", "integer") if name == "n_cells" else ("f", "float")
        if dataset[name].dtype.kind not in kinds:
            raise InputError(f"{name} must be {wanted}, not {dataset[name].dtype}")


def _check_values(dataset: xr.Dataset) -> None:
    for name in _DIMS:
        if name in dataset and not np.isfinite(dataset[name].to_numpy()).all():
            raise InputError(f"{name} holds NaN or infinity: training diverged or input was broken")
    if not (dataset["scale"].to_numpy() > 0).all():
        raise InputError("scale must be above 0 for every gene (1 for a constant one)")
    if dataset.sizes["cell_type"] != 2:
        return
    for name in ("coef", "intercept", "coef_last", "intercept_last"):
        if name not in dataset:
            continue
        rows = dataset[name].to_numpy()
        if not np.array_equal(rows[0], -rows[1]):
            raise InputError(f"{name} of two cell types must have rows -w and w")


def _names(dataset: xr.Dataset, dim: str) -> NDArray[np.object_]:
    """Names along `dim` as Python strings, shape (n,), object: the one form kept in a model."""
    names: NDArray[np.object_] = dataset[dim].to_numpy().astype(object)
    what = dim.replace("_", " ")
    wrong = [n for n in names if not isinstance(n, str)]
    if wrong:
        raise InputError(f"every {what} must be a string, not {wrong[0]!r}")
    least = 2 if dim == "cell_type" else 1
    if len(names) < least:
        raise InputError(f"a model needs at least {least} {what}s, not {len(names)}")
    seen: set[str] = set()
    twice = [n for n in names if n in seen or seen.add(n)]  # type: ignore[func-returns-value]
    if twice:
        raise InputError(f"{what} {twice[0]!r} occurs more than once: names must be unique")
    return np.array([str(n) for n in names], dtype=object)


def _attributes(attrs: Mapping[Any, Any], n_types: int) -> dict[str, Any]:
    """Attributes as they come back from a store, `description` with all of CellTypist's keys."""
    plain: dict[str, Any] = {str(k): _plain(v) for k, v in attrs.items()}
    for key in ("settings", "provenance", "description"):
        if not isinstance(plain.setdefault(key, {}), dict):
            raise InputError(f"{key} must be a dict, not {plain[key]!r}")
    if not isinstance(plain["with_mean"], bool):
        raise InputError(f"with_mean must be True or False, not {plain['with_mean']!r}")
    if not isinstance(plain["t"], int | float) or not plain["t"] >= 1:
        raise InputError(f"t must be a number of at least 1 (samples seen + 1), not {plain['t']!r}")
    plain["t"] = float(plain["t"])
    blank = dict.fromkeys(_DESCRIPTION, "")
    plain["description"] = blank | plain["description"] | {"number_celltypes": n_types}
    return plain


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


def _some(names: NDArray[np.object_]) -> str:
    shown = list(names) if len(names) <= 3 else [*names[:2], "...", names[-1]]
    return ", ".join(shown)


def _two_rows(values: ArrayLike) -> NDArray[Any]:
    """Give a single row its mirror image before it: [w] -> [-w, w]."""
    array = np.asarray(values)
    return np.concatenate([-array, array]) if array.ndim and len(array) == 1 else array


def _sklearn_rows(values: NDArray[Any]) -> NDArray[Any]:
    return values[1:] if len(values) == 2 else values


def _sgd_classifier(model: Model) -> Any:
    """Make the scikit-learn classifier of a model, with copies of its arrays."""
    from sklearn.linear_model import SGDClassifier

    data = model.dataset
    rows = {k: np.array(_sklearn_rows(data[k].to_numpy())) for k in _DIMS if k in data}
    averaged = "coef_last" in rows
    average = int(model.settings.get("average") or True) if averaged else False  # or from step n
    classifier = SGDClassifier(loss="log_loss", average=average, **_sgd_settings(model.settings))
    classifier.coef_, classifier.intercept_ = rows["coef"], rows["intercept"]
    if averaged:  # scikit-learn's own names for the running average and what it averages
        classifier._average_coef, classifier._average_intercept = rows["coef"], rows["intercept"]
        classifier._standard_coef = rows["coef_last"]
        classifier._standard_intercept = rows["intercept_last"]
    classifier.classes_, classifier.features = model.classes_, model.features
    classifier.n_features_in_ = len(model.features)
    classifier.t_, classifier.n_iter_ = data.attrs["t"], 1
    return classifier


def _sgd_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what `partial_fit` reads and scikit-learn accepts: ours may hold "auto" or new names."""
    choices = {
        "penalty": ("l2", "l1", "elasticnet"),
        "learning_rate": ("optimal", "constant", "invscaling", "adaptive"),
    }
    kept = {k: settings[k] for k, allowed in choices.items() if settings.get(k) in allowed}
    for name in ("alpha", "eta0", "power_t", "l1_ratio"):
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            kept[name] = value
    for name, kind in (("fit_intercept", bool), ("shuffle", bool), ("random_state", int)):
        if type(settings.get(name)) is kind:
            kept[name] = settings[name]
    return kept


def _standard_scaler(dataset: xr.Dataset) -> Any:
    """Make the scikit-learn scaler; like a fitted one it keeps `mean_` with with_mean=False."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=dataset.attrs["with_mean"])
    for name in ("mean", "var", "scale"):
        setattr(scaler, f"{name}_", np.array(dataset[name].to_numpy()))
    scaler.n_features_in_ = dataset.sizes["gene"]
    if "n_cells" in dataset:
        scaler.n_samples_seen_ = np.int64(dataset["n_cells"].sum())
    return scaler
