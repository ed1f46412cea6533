"""Trained arrays enter as one xarray Dataset; a zarr store or a CellTypist pickle leaves."""

from __future__ import annotations

import hashlib
import json
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
from streamtrain.celltypist_export import sgd_classifier, sklearn_rows, standard_scaler
from streamtrain.errors import InputError, near
from streamtrain.model_schema import DIMS, attributes, check_values, check_variables, names

FORMAT = "streamtrain model"
FORMAT_VERSION = 1


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
        check_variables(dataset)
        coords = {dim: names(dataset, dim) for dim in ("cell_type", "gene")}
        self.dataset = dataset.assign_coords(coords).compute().drop_encoding()
        self.dataset.attrs = attributes(dataset.attrs, len(coords["cell_type"]))
        check_values(self.dataset)

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
        variables = {k: (DIMS[k], np.array(v)) for k, v in arrays.items() if v is not None}
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
        return sklearn_rows(self.dataset["coef"].to_numpy())

    @property
    def intercept_(self) -> NDArray[np.floating[Any]]:
        """Intercepts in scikit-learn's shape: (cell types,), or (1,) for two."""
        return sklearn_rows(self.dataset["intercept"].to_numpy())

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
            "Model": sgd_classifier(self),
            "Scaler_": standard_scaler(self.dataset),
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
    for key in ("with_mean", "t"):
        digest.update(f"{key}={dataset.attrs[key]!r}\n".encode())
    for name in sorted(str(v) for v in dataset.variables):
        variable = dataset[name]
        values = np.ascontiguousarray(variable.to_numpy())
        if values.dtype == object:
            values = np.frombuffer("\0".join(values).encode(), np.uint8)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {variable.dims} {variable.shape} {little.dtype.str}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _some(names: NDArray[np.object_]) -> str:
    shown = list(names) if len(names) <= 3 else [*names[:2], "...", names[-1]]
    return ", ".join(shown)


def _two_rows(values: ArrayLike) -> NDArray[Any]:
    """Give a single row its mirror image before it: [w] -> [-w, w]."""
    array = np.asarray(values)
    return np.concatenate([-array, array]) if array.ndim and len(array) == 1 else array
