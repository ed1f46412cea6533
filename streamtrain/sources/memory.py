"""Cells in memory: AnnData, scipy, numpy, pandas or dask objects enter, a Source leaves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.scratch import Room
from streamtrain.sources.columns import MemoryFrame, table
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.derived import SlicedMatrix, SubsetMatrix
from streamtrain.sources.genes import IGNORED, Genes, gene_names, given_names
from streamtrain.sources.matrix import CsrMatrix, DenseMatrix, Matrix
from streamtrain.sources.opened import MatrixSource
from streamtrain.sources.store import (
    OTHERS,
    close_root,
    matrix_key,
    no_matrix,
    node_matrix,
    open_root,
    stored_matrix,
)
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)


def is_a(value: object, package: str, name: str) -> bool:
    """Tell whether `value` is of a class of `package`, without importing it."""
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == package
        for kind in type(value).__mro__
    )


class _FrameValues:
    """A DataFrame's values, sliceable by rows, or by columns where these are the cells."""

    def __init__(self, frame: pd.DataFrame, name: str, transpose: bool = False) -> None:
        types = {getattr(t, "numpy_dtype", getattr(t, "subtype", t)) for t in frame.dtypes}
        for column, kind in zip(frame.columns, frame.dtypes, strict=True):
            if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)):
                raise InputError(
                    f"column {column!r} of {name} has type {kind}, and every column must be a "
                    f"{'cell' if transpose else 'gene'} with numbers: drop it"
                )
        self._frame, self._transpose = frame, transpose
        self.shape = frame.shape[::-1] if transpose else frame.shape
        self.dtype = np.result_type(*types) if types else np.dtype(np.float64)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        if self._transpose:
            return self._frame.iloc[:, part].to_numpy(dtype=self.dtype).T
        return self._frame.iloc[part].to_numpy(dtype=self.dtype)


def as_matrix(
    X: Any,
    name: str,
    room: Room | None = None,
    transpose: bool = False,
    threads: Threads | None = None,
) -> Matrix:
    """Wrap any supported matrix, transposed as a view.

    Raises
    ------
    InputError
        For any other type.
    """
    if isinstance(X, pd.DataFrame):
        return DenseMatrix(_FrameValues(X, name, transpose), name)
    on_disk = isinstance(X, h5py.Dataset) or is_a(X, "zarr", "Array")
    if transpose and on_disk:
        raise InputError(f"transpose is for arrays in memory: pass dask.array.from_array({name})")
    if transpose and hasattr(X, "T"):
        X = X.T
    if bool(sp.issparse(X)) and X.format in ("csr", "csc"):
        # scipy allows spare room behind the last entry
        nnz = int(X.indptr[-1])
        parts = X.data[:nnz], X.indices[:nnz], X.indptr
        if X.format == "csr":
            return CsrMatrix(*parts, X.shape, name, threads)
        return CscMatrix(*parts, X.shape, name, room, threads=threads)
    if isinstance(X, np.ndarray) and not isinstance(X, np.ma.MaskedArray):
        return DenseMatrix(np.asarray(X), name)
    if on_disk:
        return DenseMatrix(X, name)
    if is_a(X, "anndata", "BaseCompressedSparseDataset"):
        return node_matrix(X.group, name, room, threads)
    if is_a(X, "dask", "Array"):
        return SlicedMatrix(X, name)
    raise InputError(
        f"X is a {type(X).__module__}.{type(X).__name__}, and must be a path, an AnnData, a scipy "
        "csr or csc matrix, a numpy array, a DataFrame or a dask array: convert it"
    )


def array_source(
    X: Any,
    genes: Genes | None = None,
    room: Room | None = None,
    transpose: bool = False,
    threads: Threads | None = None,
) -> MatrixSource:
    """Make a Source of a matrix without obs; a DataFrame names its cells and genes itself."""
    name = type(X).__name__
    matrix = as_matrix(X, name, room, transpose, threads)
    cells: Any = pd.RangeIndex(matrix.shape[0])
    if isinstance(X, pd.DataFrame):
        if genes is not None:
            logger.warning(IGNORED, name, "genes")
        cells, genes = (X.columns, X.index) if transpose else (X.index, X.columns)
    names = given_names(genes, matrix.shape[1], name)
    obs = MemoryFrame(pd.DataFrame(index=cells), f"obs of {name}")
    return MatrixSource(name, matrix, obs, names)


class AnnDataSource(MatrixSource):
    """Cells of an AnnData object, in memory or backed; a view reads only its own cells.

    obs is the object's, so columns added after it was opened count. A pickled copy of a backed one
    reads the file by itself.
    """

    def __init__(
        self,
        adata: Any,
        layer: str | None = None,
        gene_key: str | None = None,
        room: Room | None = None,
        threads: Threads | None = None,
    ) -> None:
        name = "AnnData" if adata.filename is None else f"AnnData({str(adata.filename)!r})"
        self._options, self.matrix = (layer, room), matrix_key(layer)
        parent = adata._adata_ref if adata.is_view else adata
        matrix, self._file = _anndata_matrix(parent, layer, name, room, threads)
        raw = self.matrix == "raw/X"
        self._subset: tuple[NDArray[np.int64], NDArray[np.int64] | None] | None = None
        if adata.is_view:
            # A view's own X would copy its cells (and, backed, load the whole matrix).
            obs_index = np.arange(parent.n_obs)[adata._oidx]
            var_index = None if raw else np.arange(parent.n_vars)[adata._vidx]
            self._subset = obs_index, var_index
            matrix = SubsetMatrix(matrix, *self._subset)
        # A view's obs and var are of a class that holds on to the whole AnnData, pickled or not.
        frame = parent.raw.var if raw else pd.DataFrame(adata.var) if adata.is_view else adata.var
        self._var = MemoryFrame(frame, f"var of {name}")
        genes = gene_names(self._var, gene_key, name)
        groups = [f"{g}/{k}" for g in OTHERS for k in getattr(parent, g)]
        groups += ["X"] * (parent.X is not None) + ["raw/X"] * (parent.raw is not None)
        self._left_out = [key for key in groups if key != matrix_key(layer)]
        obs = pd.DataFrame(adata.obs) if adata.is_view else adata.obs
        super().__init__(name, matrix, MemoryFrame(obs, f"obs of {name}"), genes)
        self._root: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_root": None}
        return state if self._file is None else {**state, "_matrix": None}

    def var(self) -> pd.DataFrame:
        """The columns of var, under the gene names."""
        return table(self._var, self.genes)

    def left_out(self) -> list[str]:
        """Names of what else the AnnData holds beside obs, var and this matrix."""
        return self._left_out

    def _open(self) -> None:
        layer, room = self._options
        if self._file is None:
            return
        self._root = open_root(self._file, self.name)
        matrix = stored_matrix(self._root, layer, self.name, room)
        self._matrix = matrix if self._subset is None else SubsetMatrix(matrix, *self._subset)

    def close(self) -> None:
        """Delete scratch; close the file if it is not the AnnData's own."""
        super().close()
        if self._root is not None:
            close_root(self._root)
            self._root = self._matrix = None


def _anndata_matrix(
    adata: Any,
    layer: str | None,
    name: str,
    room: Room | None,
    threads: Threads | None,
) -> tuple[Matrix, Path | None]:
    """Matrix of an AnnData that is no view, and the file that backs it, if one does."""
    key = matrix_key(layer)
    if key == "X":
        X = adata.X
    elif key == "raw/X":
        X = None if adata.raw is None else adata.raw.X
    else:
        X = adata.layers.get(key.removeprefix("layers/"))
    if X is None:
        layers = [str(k) for k in adata.layers]
        raise no_matrix(layer, layers, adata.X is not None, adata.raw is not None, name)
    backed = isinstance(X, h5py.Dataset) or is_a(X, "anndata", "BaseCompressedSparseDataset")
    path = Path(adata.filename) if backed and adata.filename is not None else None
    return as_matrix(X, f"{key} of {name}", room, threads=threads), path
