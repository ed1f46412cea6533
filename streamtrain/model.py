"""Trained arrays or a stored model enter; an xarray Dataset, zarr or a CellTypist pickle leave."""

from __future__ import annotations

import os
import pickle
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from streamtrain import (
    atomic,
    celltypist_import,
    history,
    markers,
    model_edit,
    model_store,
    onnx_export,
)
from streamtrain.calibration import Calibration
from streamtrain.celltypist_export import classifier, standard_scaler
from streamtrain.errors import InputError, absent, some
from streamtrain.model_edit import Collapse, GeneMap
from streamtrain.model_schema import (
    CERTIFICATE,
    DIMS,
    attributes,
    certified,
    check_values,
    check_variables,
    counted,
    for_each,
    names,
    sklearn_rows,
    two_rows,
)
from streamtrain.model_store import check_output

__all__ = ["Model", "check_output"]


class Model:
    """A one-vs-rest logistic classifier with the scaling of its genes.

    A cell with log1p-normalised expression x scores Z @ coef.T + intercept for each cell type, with
    Z = min((x - mean)/scale, 10), and without `- mean` where `with_mean` is False. A type's
    probability is the sigmoid of its score, of the type against the rest; where the model is
    calibrated it is the softmax of the scores over a temperature.

    Parameters
    ----------
    dataset
        Variables, all float unless said: `coef` (cell_type, gene), `intercept` (cell_type,),
        `mean`, `scale`, `var` (gene,). Two cell types have two rows, [-w, w] and [-b, b].
        Optional: `coef_last` and `intercept_last`, the state that training continues from where
        `coef` is its running average, and `n_averaged` (cell_type,), integers, the steps in it; `t`
        (cell_type,), where types took different numbers of steps; integers `n_cells` (cell_type,)
        and `n_obs` (gene,), the cells that mean and var are of; `n_drawn` (cell_type,), integers,
        the cells that SGD took in all, each as often as it was drawn; and what a solver of the
        global optimum certifies, each (cell_type,): `gradient_norm`; `suboptimality`, the most by
        which the objective exceeds its minimum (inf where no bound is known); `n_iter`, integers;
        `converged`, bools.
        Coordinates: `cell_type` and `gene`, unique strings, those of cell types not empty.
        Attributes: `calibration`, where it is calibrated, a dict of the fields of `Calibration`;
        `with_mean` (bool); `t` (scikit-learn's `t_`: samples seen + 1, of the type that
        saw most); and the dicts `settings`, `provenance` and `description`, made JSON-compatible
        here (a value that JSON has no form for becomes its text).

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
        t: ArrayLike = 1.0,
        n_cells: ArrayLike | None = None,
        n_obs: ArrayLike | None = None,
        coef_last: ArrayLike | None = None,
        intercept_last: ArrayLike | None = None,
        n_averaged: ArrayLike | None = None,
        n_drawn: ArrayLike | None = None,
        certificate: Mapping[str, ArrayLike] | None = None,
        calibration: Mapping[str, float] | None = None,
        settings: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> Model:
        """Make a model from arrays.

        Parameters
        ----------
        coef, intercept, coef_last, intercept_last
            As in `Model`, or for two cell types scikit-learn's single row: (1, genes) and (1,).
        certificate
            What is known of each type's solution, any of `objective`, `gradient_norm`,
            `suboptimality`, `n_iter`, `n_passes` and `converged`; for two cell types one value
            each, which stands for both.
        t, n_averaged
            As in `Model`, or one number for all types.
        n_obs
            As in `Model`, or one number for all genes.
        cell_types, genes
            Names, in the order of the rows and columns of `coef`.
        mean, var, scale, with_mean, n_cells, n_drawn, calibration, settings, provenance
            As in `Model`.
        description
            As in `Model`, of which any key may be left out.

        Raises
        ------
        InputError
            As `Model`, or the lengths do not match.
        """
        coords = {"cell_type": list(cell_types), "gene": list(genes)}
        most, of_types = counted(t)
        arrays = {
            "coef": two_rows(coef),
            "intercept": two_rows(intercept),
            "mean": mean,
            "scale": scale,
            "var": var,
            "coef_last": None if coef_last is None else two_rows(coef_last),
            "intercept_last": None if intercept_last is None else two_rows(intercept_last),
            "n_cells": n_cells,
            "n_drawn": n_drawn,
            "n_obs": for_each(n_obs, coords["gene"]),
            "t": of_types,
            "n_averaged": for_each(n_averaged, coords["cell_type"]),
            **certified(certificate or {}, intercept),
        }
        # Copies: scikit-learn and our solvers go on updating their arrays in place.
        variables = {k: (DIMS[k], np.array(v)) for k, v in arrays.items() if v is not None}
        for name, (dims, values) in variables.items():
            shape = tuple(len(coords[d]) for d in dims)
            if values.shape != shape:
                raise InputError(f"{name} has shape {values.shape}, not {shape} = {dims}")
        attrs = {
            "with_mean": with_mean,
            "t": most,
            "calibration": calibration,
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

    @property
    def calibration(self) -> Calibration | None:
        """How its scores become calibrated probabilities; None where they are plain sigmoids."""
        found = self.dataset.attrs.get("calibration")
        return None if found is None else Calibration(**found)

    @property
    def certificate(self) -> pd.DataFrame | None:
        """What the solver certified, a row for each cell type; None where it did not."""
        found = [name for name in CERTIFICATE if name in self.dataset]
        return self.dataset[found].to_dataframe() if found else None

    @property
    def history(self) -> pd.DataFrame | None:
        """How training went, a row for each epoch of SGD or pass of logistic regression, from 1.

        As far as the way of training knows them, float64 but for `n_cells`: `n_cells` that were
        taken; the mean `loss` over cells and one-vs-rest classifiers, each cell's before its step,
        without the penalty (over mini-batches, of the first cell of an epoch and every 16th after
        it); the mean `objective` over cell types, penalty included; the `learning_rate` of the
        last step; `accuracy` on the cells held out for early stopping; `macro_f1` in
        cross-validation with these settings, the mean over the folds; and `seconds`, which the
        seed does not determine. Where classifiers differ it is their mean; one that has ended
        counts with its last value. Of more than 1,000 epochs the first, the last and evenly spaced
        ones are there. It stands in `provenance`; None where it does not, as in CellTypist's
        models.
        """
        found = self.dataset.attrs["provenance"].get("history")
        return None if found is None else history.frame(found)

    def __repr__(self) -> str:
        types, genes = self.cell_types, self.features
        what = "streamtrain model" if self.calibration is None else "calibrated streamtrain model"
        lines = [f"{what} with {len(types)} cell types and {len(genes)} features"]
        notes = {k: self.description[k] for k in ("date", "details", "source", "version")}
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        notes |= {"cell types": some(types), "features": some(genes)}
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
            `cell_type` is unknown, or `top_n` is no whole number of at least 1.
        """
        return markers.names(self.dataset, cell_type, top_n, only_positive=only_positive)

    def markers(
        self,
        top_n: int = 10,
        cell_types: str | Iterable[str] | None = None,
        only_positive: bool = True,
    ) -> pd.DataFrame:
        """Table the genes that drive each cell type's score most, as `extract_top_markers` ranks.

        Parameters
        ----------
        top_n
            How many genes of each type; all of them where there are fewer.
        cell_types
            Of `cell_types`, in the order wished for; None for all.
        only_positive
            Whether to rank by coefficient, those of 0 and below left out; otherwise by its absolute
            value.

        Returns
        -------
        DataFrame
            A row for each type and gene: `cell_type`, `rank` (from 1), `gene`, `coef` (on scaled
            expression), and `mean` and `std` of the gene's expression over the cells of training.

        Raises
        ------
        InputError
            A type is unknown, or `top_n` is no whole number of at least 1.
        """
        return markers.table(self.dataset, top_n, cell_types, only_positive=only_positive)

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
        model_store.write(self.dataset, path, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model: the store that `save` wrote, or a pickle of CellTypist.

        Where another process replaces it meanwhile, the new one is read.

        Parameters
        ----------
        path
            The store, a folder; or the pickle, a file (see `from_celltypist`).

        Raises
        ------
        FileNotFoundError
            Nothing stands at `path`.
        InputError
            It is not a model, is damaged, or needs a newer streamtrain.
        """
        if not isinstance(path, (str, os.PathLike)) or str(path) == "":
            raise InputError(f"a model must be named by its path; got {path!r}")
        if atomic.is_address(path):
            raise InputError(
                f"model {str(path)!r} is on a server, and models are read from a disk: download it"
            )
        return atomic.steady(Path(path).expanduser(), lambda: cls._load(path))

    @classmethod
    def _load(cls, path: str | os.PathLike[str]) -> Model:
        folder = Path(path).expanduser()
        if not folder.exists():
            raise absent(folder, "model")
        if folder.suffix.lower() == ".onnx":
            raise InputError(
                f"{str(path)!r} is an ONNX graph, from which no model is read: load the model that "
                "it was written of"
            )
        if not folder.is_dir():
            return cls.from_celltypist(path)
        dataset = model_store.read(path)
        try:
            return cls(dataset)
        except InputError as error:
            raise model_store.damaged(path, str(error)) from error

    @classmethod
    def from_celltypist(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model that CellTypist wrote, whichever scikit-learn and NumPy wrote it.

        Nothing in the pickle is run: it is parsed, and one that asks for anything which such a
        model does not hold is refused. `settings` has the estimator's parameters under the names
        that `train` has for them; `provenance` the file, the class of the estimator and the
        scikit-learn that wrote it. Scores get a sigmoid for each type, as CellTypist gives them,
        also where the estimator was fitted with a softmax. Whole numbers as names become texts.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        FileNotFoundError
            Nothing stands at `path`.
        InputError
            It is no model of CellTypist, asks for something else, or breaks a rule of `Model`.
        """
        try:
            return cls.build(**celltypist_import.arguments(path))
        except InputError as error:
            raise InputError(f"{str(path)!r} is not a usable CellTypist model: {error}") from error

    def to_celltypist(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the pickle that CellTypist loads, under exactly the name given.

        Where `settings` has use_SGD=False the classifier is a LogisticRegression; else an
        SGDClassifier, which continues with `partial_fit` on scaled data of the coefficients' dtype.
        Settings that scikit-learn has a name and a valid value for are set on it.

        CellTypist gives every type a sigmoid. Of a calibrated model the weights are divided by the
        calibration's `temperature` and its `offset` is added to the intercepts, so that its
        `conf_score` is right on average (of two types both probabilities are as `predict` gives
        them). SGD cannot go on from such weights: the file holds neither its steps nor the last
        weights of an average. Go on from the model as `save` writes it.

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
            "Model": classifier(self),
            "Scaler_": standard_scaler(self.dataset),
            "description": self.description,
        }
        with (
            atomic.replacing(path, overwrite, folder=False) as partial,
            partial.open("wb") as file,
        ):
            # Protocol 5 names numpy._core.numeric, which numpy 1.26 lacks; 4 does not.
            pickle.dump(exported, file, protocol=4)

    def to_onnx(
        self, path: str | os.PathLike[str], *, normalize: bool = False, overwrite: bool = False
    ) -> None:
        """Write an ONNX graph, by which cells are annotated outside Python: C++, Java, JavaScript.

        Its input `X`, float32 (cells, genes), is log1p expression normalised to 10,000 per cell,
        its genes those of `features` in their order. A gene that the cells lack is NaN, and then
        contributes nothing, as in `predict`. Outputs: `label`, texts (cells,); `probabilities` and
        `scores`, float32 (cells, types), types in the order of `cell_types`. Scaling, clipping and
        calibration are inside and in float64: of the same float32 expression labels are those of
        `predict`, and scores and probabilities within rounding to float32. X is dense, so give some
        thousand cells at a time. The metadata have `genes`, `cell_types`, `calibration` and
        `description` as JSON, `normalize` in words, and `streamtrain_version`.

        The graph is of opset 15 (onnxruntime 1.10 or newer) and standard operators. Needs
        pip install 'streamtrain[onnx]'.

        Parameters
        ----------
        path
            Where the file shall stand; such files end in `.onnx`.
        normalize
            Take raw counts as `X`, and a second input `total`, float32 (cells, 1), the counts of
            all genes of each cell, also those that the model lacks; they are normalised inside.
        overwrite
            Whether a file that stands there is replaced.

        Raises
        ------
        InputError
            The path cannot be written or exists, the package onnx is missing, or the model is
            larger than the 2 GiB of an ONNX file.
        """
        onnx_export.write(self.dataset, path, normalize=normalize, overwrite=overwrite)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Do as `to_celltypist`, under CellTypist's name for it.

        Differs: the name is taken as given, where CellTypist turns `m.v1.2` into `m.v1.pkl`, and a
        file that stands there stays unless `overwrite`.

        Parameters
        ----------
        path, overwrite
            As of `to_celltypist`.
        """
        self.to_celltypist(path, overwrite=overwrite)

    def convert(
        self,
        map_file: GeneMap | None = None,
        sep: str = ",",
        convert_from: int | None = None,
        convert_to: int | None = None,
        unique_only: bool = True,
        collapse: Collapse = "average",
        random_state: int = 0,
    ) -> Model:
        """Rename the genes by a table: to another species, to Ensembl ids; others are left out.

        As CellTypist's, to the bit. Differs: gives a new model, where CellTypist changes its own;
        the map must be given; and "random" takes mean, variance and scale of the gene whose
        coefficients it took, where CellTypist draws a gene for each of the four.

        Parameters
        ----------
        map_file
            Pairs of names: a text file of two columns, a DataFrame of two, or a dict. A header
            does no harm, nor does a pair that lacks a name. CellTypist's own are in
            `celltypist/data/samples` of its package.
        sep
            What separates the columns of a file.
        convert_from, convert_to
            Column, 0 or 1, with the names that the model has, and that it shall get. By default
            it has those of the column with more of its genes.
        unique_only
            Use only genes that stand in one pair alone.
        collapse
            Without `unique_only`, what a new gene that several old ones map to gets: their
            "average" weights and scaling, or those of one of them, "random".
        random_state
            Seed of "random".

        Returns
        -------
        Model
            Without certificate, which holds for these weights alone, and dated now.

        Raises
        ------
        InputError
            The table has not two columns, or no gene of the model; or an argument is out of range.
        """
        dataset = model_edit.convert(
            self.dataset, map_file, sep=sep, convert_from=convert_from, convert_to=convert_to,
            unique_only=unique_only, collapse=collapse, random_state=random_state,
        )  # fmt: skip
        return Model(dataset)

    def subset(
        self,
        keep_cell_types: str | Iterable[str] | None = None,
        exclude_cell_types: str | Iterable[str] | None = None,
    ) -> Model:
        """Leave out cell types; training anew on the cells of the others is better.

        As CellTypist's. Differs: gives a new model, where CellTypist changes its own; and two
        types that remain of more get the rows -w and w, w = (w1 - w0) / 2, where CellTypist leaves
        w0 and w1. The difference of the two scores, and so the better type, is the same; the two
        probabilities add up to 1, as in any model of two types. No certificate holds then.

        Parameters
        ----------
        keep_cell_types, exclude_cell_types
            Names of types; one of the two arguments is enough.

        Returns
        -------
        Model
            Types in the order that they had, dated now.

        Raises
        ------
        InputError
            A name is unknown, is both kept and excluded, or fewer than two types remain.
        """
        return Model(model_edit.subset(self.dataset, keep_cell_types, exclude_cell_types))
