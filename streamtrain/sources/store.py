"""AnnData on disk or on a server: an .h5ad file or a zarr folder enters, a Source leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.decode.address import Address
from streamtrain.decode.arrays import gatherable
from streamtrain.decode.files import METADATA, Opened
from streamtrain.decode.seekable import remote_file
from streamtrain.errors import InputError, absent, near, require_readable
from streamtrain.rows import Rows
from streamtrain.scratch import Room
from streamtrain.sources.columns import StoredFrame, table
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.damage import (
    READ_ERRORS,
    damaged,
    reading,
    require_whole_chunks,
    stored_array,
    stored_attr,
)
from streamtrain.sources.genes import gene_names
from streamtrain.sources.matrix import CsrMatrix, DenseMatrix, Matrix
from streamtrain.sources.opened import MatrixSource, require_length
from streamtrain.threads import Threads

OTHERS = ("layers", "obsm", "varm", "obsp", "varp", "uns")
NOT_ANNDATA = "write one with AnnData.write_h5ad or AnnData.write_zarr"
# How what is in the files of other tools becomes one.
_CONVERTED = {
    ".loom": "anndata.io.read_loom(PATH).write_h5ad(OUT)",
    ".h5mu": "mudata.read_h5mu(PATH).mod['rna'].write_h5ad(OUT)",
    ".h5": "scanpy.read_10x_h5(PATH).write_h5ad(OUT)",
    ".rds": "zellkonverter::writeH5AD(as.SingleCellExperiment(readRDS(PATH)), OUT) in R",
}


class StoreSource(MatrixSource):
    """Cells of an AnnData on disk or on a server.

    A copy that was pickled, and one that was closed, opens the file again at its next read.

    Parameters
    ----------
    path
        .h5ad file, zarr folder or zipped zarr; or the address of one of the former.
    layer
        None for X, "raw", or the name of a layer.
    gene_key
        var column with the gene names (default: var's index).
    room
        Within which a matrix stored by gene is transposed.
    threads
        They decode; None for all CPUs.
    """

    def __init__(
        self,
        path: str | Path | Address,
        layer: str | None = None,
        gene_key: str | None = None,
        room: Room | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._path, self._layer = path if isinstance(path, Address) else Path(path), layer
        self._room, self._threads = room, threads
        self.name, self.matrix = str(path), matrix_key(layer)
        self._opened = Opened(self.name)
        self._open()
        try:
            matrix, obs = self._parts()
            var = self._var()
            require_length(self.name, "var", "genes", len(var), matrix.shape[1])
            genes = gene_names(var, gene_key, self.name)
            super().__init__(self.name, matrix, obs, genes)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path | None:
        """Where it lies on disk; None on a server."""
        return self._path if isinstance(self._path, Path) else None

    def __getstate__(self) -> dict[str, Any]:
        path = self._path.absolute() if isinstance(self._path, Path) else self._path
        closed = dict.fromkeys(("_root", "_matrix", "_obs", "_threads"))
        return {**self.__dict__, **closed, "_path": path}

    def _open(self) -> None:
        if isinstance(self._path, Path):
            self._opened.note(_files_of(self._path, self.matrix))
            self._opened.require_same()
        self._root = open_root(self._path, self.name, self._opened)
        try:
            self._matrix = stored_matrix(
                self._root, self._layer, self.name, self._room, self._threads
            )
            with reading(self.name):
                self._obs = StoredFrame(self._root["obs"], f"obs of {self.name}", self._root)
        except BaseException:
            close_root(self._root)
            raise

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        rows = super().read(start, stop)
        self._opened.require_same()  # after, so that what was read is of the files as opened
        return rows

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, row numbers ascending and distinct."""
        taken = super().take(rows, compact=compact)
        self._opened.require_same()
        return taken

    def _var(self) -> StoredFrame:
        key = "raw/var" if matrix_key(self._layer) == "raw/X" else "var"
        with reading(self.name):
            return StoredFrame(self._root[key], f"{key} of {self.name}", self._root)

    def var(self) -> pd.DataFrame:
        """The columns of var, under the gene names."""
        self._parts()
        return table(self._var(), self.genes)

    def left_out(self) -> list[str]:
        """Names of what else the AnnData holds beside obs, var and this matrix."""
        self._parts()
        with reading(self.name):
            groups = [f"{g}/{k}" for g in OTHERS if g in self._root for k in self._root[g]]
            groups += [key for key in ("X", "raw/X") if key in self._root]
        return [key for key in groups if key != matrix_key(self._layer)]

    def close(self) -> None:
        """Close the file and delete scratch, if any."""
        super().close()
        close_root(self._root)
        self._root = self._matrix = self._obs = None


def _files_of(path: Path, matrix: str) -> list[Path]:
    """The files whose change tells that the data are others: of a folder, those of metadata.

    And the folders that they and the chunks are in.
    """
    if not path.is_dir():
        return [path]
    arrays = [f"{matrix}{part}" for part in ("", "/data", "/indices", "/indptr")]
    folders = [path / folder for folder in ("", *arrays, *(f"{array}/c" for array in arrays))]
    return [*folders, *(folder / name for folder in folders for name in METADATA)]


def open_root(path: Path | Address, name: str, opened: Opened | None = None) -> Any:
    """Open the root group of an AnnData for reading.

    Parameters
    ----------
    opened
        When it was opened first; None for now.

    Raises
    ------
    FileNotFoundError
        Where there is no such path.
    InputError
        Where it is no AnnData, or damaged.
    """
    if isinstance(path, Address):
        from streamtrain.sources.remote import open_remote

        root = open_remote(path, opened)
    else:
        if not path.exists():
            raise absent(path)
        require_readable(path)
        zarr = path.is_dir() or path.name.endswith(".zip")
        since = opened or Opened(name)
        root = _open_zarr(path, name, since) if zarr else _open_hdf5(path, name)
    try:
        with reading(name):
            missing = [key for key in ("obs", "var") if key not in root]
    except BaseException:
        close_root(root)
        raise
    if missing:
        model = stored_attr(root, "format") == "streamtrain model"
        close_root(root)
        if model:
            raise InputError(
                f"{name} is not an AnnData: it is a model that streamtrain saved; name the cells "
                "there, and a model where one is asked for"
            )
        raise InputError(f"{name} is not an AnnData: it has no {missing[0]}; {converted(name)}")
    return root


def converted(name: str) -> str:
    """Word how an AnnData is made of a file of that name."""
    how = _CONVERTED.get(Path(name).suffix.lower())
    return f"write one with {how}" if how else NOT_ANNDATA


def close_root(root: Any) -> None:
    """Close an HDF5 file or a zarr store."""
    if isinstance(root, h5py.File):
        remote = remote_file(root.filename) if root and root.driver == "fileobj" else None
        root.close()
        if remote is not None:
            remote.files.close()
    elif root is not None:
        root.store.close()


def _open_hdf5(path: Path, name: str) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not h5py.is_hdf5(path):
            empty = ": it is empty (0 bytes)" if path.stat().st_size == 0 else ""
            raise InputError(f"{name} is not an .h5ad (HDF5) file{empty}; {NOT_ANNDATA}") from error
        raise InputError(
            f"{name} cannot be opened: it is damaged, cut short or still being written ({error}); "
            "restore it from a copy or write it anew"
        ) from error


def _open_zarr(path: Path, name: str, opened: Opened) -> Any:
    import zarr

    from streamtrain.sources.zarr_stores import open_zarr

    if path.is_dir() and not any((path / key).exists() for key in ("zarr.json", ".zgroup")):
        kind = "a zarr array" if (path / ".zarray").exists() else "a folder without zarr metadata"
        raise InputError(
            f"{name} is not an AnnData: it is {kind}, and holds no .h5ad files or zarr stores; "
            f"{NOT_ANNDATA}"
        )
    try:
        root = open_zarr(path, opened)
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(
            f"{name} cannot be opened as zarr ({type(error).__name__}: {error}); {NOT_ANNDATA}"
        ) from error
    if not isinstance(root, zarr.Group):
        raise InputError(f"{name} is not an AnnData: it is a zarr array; {NOT_ANNDATA}")
    return root


def matrix_key(layer: str | None) -> str:
    """Path of a matrix within an AnnData: X, raw/X or layers/NAME."""
    if layer in (None, "X"):
        return "X"
    if layer in ("raw", "raw/X"):
        return "raw/X"
    return f"layers/{str(layer).removeprefix('layers/')}"


def no_matrix(
    layer: str | None, layers: list[str], has_x: bool, has_raw: bool, name: str
) -> InputError:
    """Word the error for a matrix that an AnnData does not have."""
    key = matrix_key(layer)
    if key.startswith("layers/"):
        wanted = key.removeprefix("layers/")
        return InputError(f"{name} has no layer {wanted!r}: {near(wanted, layers)}")
    others = [f"layer={other!r}" for other in (["raw"] if has_raw else []) + layers]
    if key == "raw/X":
        others = ["layer=None (X)"] if has_x else others
    remedy = "choose " + " or ".join(others) if others else "and it has no other matrix"
    return InputError(f"{name} has no {key}: {remedy}")


def stored_matrix(
    root: Any,
    layer: str | None,
    name: str,
    room: Room | None = None,
    threads: Threads | None = None,
) -> Matrix:
    """Find X, a layer or raw/X in an open AnnData, by row."""
    key = matrix_key(layer)
    with reading(name):
        if key not in root:
            layers = sorted(root["layers"].keys()) if "layers" in root else []
            raise no_matrix(layer, layers, "X" in root, "raw/X" in root, name)
        return node_matrix(root[key], f"{key} of {name}", room, threads)


def node_matrix(
    node: Any,
    name: str,
    room: Room | None = None,
    threads: Threads | None = None,
) -> Matrix:
    """Read a stored matrix by the encoding that its attributes tell."""
    encoding = stored_attr(node, "encoding-type") or stored_attr(node, "h5sparse_format")
    if not hasattr(node, "keys"):
        shape = getattr(node, "shape", None)
        if shape is None or max(shape, default=0) >= 2**63:
            raise damaged(name, f"it is a {type(node).__name__} of shape {shape}")
        require_whole_chunks(node, name)
        return DenseMatrix(node, name)
    kind = str(encoding).removesuffix("_matrix")
    if kind not in ("csr", "csc"):
        raise InputError(
            f"{name} is encoded as {encoding!r}, and must be an array, csr_matrix or csc_matrix: "
            "convert it and write it anew"
        )
    with reading(name):
        shape = _shape(node, name)
        arrays = {key: stored_array(node, key, name) for key in ("data", "indices", "indptr")}
        # A chunk that is missing would be zeros: values, genes (or cells) and offsets of 0. That
        # is true for certain only where there can be no others.
        n_minor, entries = shape[int(kind == "csr")], arrays["data"].shape != (0,)
        complete = {"data": True, "indices": n_minor > 1, "indptr": entries}
        data, indices, indptr = (
            gatherable(array, threads, complete[key]) for key, array in arrays.items()
        )
    if kind == "csr":
        return CsrMatrix(data, indices, indptr, shape, name, threads)
    return CscMatrix(data, indices, indptr, shape, name, room, threads=threads)


def _shape(node: Any, name: str) -> tuple[int, int]:
    """Cells and genes of a sparse matrix."""
    told = node.attrs["shape"] if "shape" in node.attrs else node.attrs["h5sparse_shape"]
    shape = np.asarray(told)
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 0:
        raise damaged(name, f"its shape is {told!r}, where two whole numbers are due")
    return int(shape[0]), int(shape[1])
