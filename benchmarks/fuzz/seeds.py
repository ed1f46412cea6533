"""A name enters, and the files of a small sound atlas or model leave, always the same bytes."""

from __future__ import annotations

import io
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from numpy.typing import NDArray
from zarr.core.buffer import cpu

from streamtrain import Model, frozen
from streamtrain.pairwise import PairwiseSum
from streamtrain.scaling import RunningMoments
from streamtrain.solvers.counters import State
from streamtrain.solvers.lbfgs import LBFGS
from streamtrain.solvers.schedule import Schedule

Files = dict[str, bytes]  # by their paths below the folder
N_OBS, N_VARS, N_TYPES = 60, 24, 3


@dataclass(frozen=True)
class Seed:
    """Files in memory, and how they lie on disk.

    Attributes
    ----------
    name
        Of the seed.
    form
        h5ad, zarr, zip, model, pickle or state.
    files
        One under the name "" where it is no folder.
    """

    name: str
    form: str
    files: Files

    def write(self, folder: Path, stem: str) -> Path:
        """Write it below `folder`."""
        ending = {"h5ad": ".h5ad", "zip": ".zarr.zip", "pickle": ".pkl", "state": ".state"}
        path = folder / (stem + ending.get(self.form, ".zarr"))
        for name, content in self.files.items():
            file = path / name if name else path
            if content is FOLDER:
                file.mkdir(parents=True, exist_ok=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return path

    def packed(self) -> Seed:
        """One file of a zip, with the dates that zip knows least of."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            for name, content in self.files.items():
                file.writestr(zipfile.ZipInfo(name), content)
        return replace(self, form="zip", files={"": out.getvalue()})


FOLDER = b"<a folder in place of a file>"


def _collect(path: Path) -> Files:
    if path.is_file():
        return {"": path.read_bytes()}
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def matrix(kind: str = "csr", dtype: str = "float32") -> Any:
    """Expression of cells, about a third of it above zero; the last gene is silent."""
    rng = np.random.default_rng(0)
    dense = np.log1p(rng.poisson(0.4, (N_OBS, N_VARS))).astype(dtype)
    if np.dtype(dtype).kind in "iu":
        dense = rng.poisson(0.4, (N_OBS, N_VARS)).astype(dtype)
    dense[np.arange(N_OBS), np.arange(N_OBS) % N_TYPES] += 2
    dense[[0, 5]], dense[:, -1] = 0, 0
    makers: dict[str, Any] = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
    return makers[kind](dense)


def atlas(kind: str = "csr", dtype: str = "float32") -> ad.AnnData:
    """Cells with columns of every kind that is read."""
    numbers = np.arange(N_OBS)
    kinds = [f"T{i % N_TYPES}" for i in numbers]
    some = [None if i % 7 == 3 else i for i in numbers]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(kinds),
            "text": [f"é{i % 50}" for i in numbers],
            "maybe": pd.array(some, dtype="Int64"),
            "flag": pd.array([None if i is None else i % 2 == 0 for i in some], dtype="boolean"),
            "score": numbers / 7,
        },
        index=[f"cell{i}" for i in numbers],
    )
    obs["text"] = obs["text"].astype(object)
    genes = pd.DataFrame(index=[f"g{j}" for j in range(N_VARS)])
    return ad.AnnData(matrix(kind, dtype), obs=obs, var=genes)


def _h5ad(kind: str, dtype: str = "float32", **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "seed.h5ad"
        atlas(kind, dtype).write_h5ad(path, **options)
        with h5py.File(path, "r+") as file:  # several chunks of each array
            for name in ("data", "indices", "indptr") if kind != "dense" else ("",):
                _chunk(file, f"X/{name}".rstrip("/"), options.get("compression"))
        return path

    return make


def _chunk(file: Any, name: str, compression: Any) -> None:
    values, attrs = file[name][:], dict(file[name].attrs)
    del file[name]
    size: tuple[int, ...] = (-(-len(values) // 4),) if values.ndim == 1 else (16, N_VARS)
    chunked: dict[str, Any] = {"chunks": size, "compression": compression} if compression else {}
    if compression == "gzip":
        chunked |= {"shuffle": True, "fletcher32": True}
    file.create_dataset(name, data=values, **chunked).attrs.update(attrs)


def _legacy(folder: Path) -> Path:
    """As anndata before 0.7 wrote: tables as compound datasets, categories in uns."""
    path, cells, genes = folder / "seed.h5ad", atlas().obs_names, atlas().var_names
    with h5py.File(path, "w") as file:
        obs = np.zeros(N_OBS, [("index", "S8"), ("cell_type", "i1"), ("score", "f4")])
        obs["index"], obs["cell_type"] = cells.to_numpy(), np.arange(N_OBS) % N_TYPES
        obs["score"] = np.arange(N_OBS) / 3
        file["obs"] = obs
        file["var"] = np.array([(g.encode(),) for g in genes], [("index", "S8")])
        file["uns/cell_type_categories"] = np.array([b"T0", b"T1", b"T2"])
        held = matrix()
        group = file.create_group("X")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = np.array(held.shape)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(held, name)
    return path


def _references(folder: Path) -> Path:
    """As anndata 0.7 wrote: categories beside the codes, found by an object reference."""
    path = _h5ad("csr")(folder)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        codes, names = obs["cell_type/codes"][:], obs["cell_type/categories"][:]
        del obs["cell_type"]
        obs["__categories/cell_type"] = names
        obs["__categories/cell_type"].attrs["ordered"] = False
        obs["cell_type"] = codes
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
        for node in (obs, file["var"]):
            node.attrs["encoding-version"] = "0.1.0"
    return path


@cache
def _tables(version: Literal[2, 3]) -> Files:
    """Root, obs and var of an atlas in zarr, without a matrix."""
    store = zarr.storage.MemoryStore()
    root = zarr.open_group(store, mode="w", zarr_format=version)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    held = atlas()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts in format 3
        for name in ("obs", "var"):
            write_elem(root, name, getattr(held, name))
    return _content(store)


def _content(store: Any) -> Files:
    return {name: held.to_bytes() for name, held in sorted(store._store_dict.items())}


def _zarr(
    kind: str, version: Literal[2, 3], consolidated: bool, dtype: str = "float32", **options: Any
) -> Callable[[Path], Files]:
    def make(folder: Path) -> Files:  # noqa: ARG001
        held: dict[str, Any] = {
            name: cpu.Buffer.from_bytes(raw) for name, raw in _tables(version).items()
        }
        store = zarr.storage.MemoryStore(held)
        root = zarr.open_group(store, mode="r+")
        X = matrix(kind, dtype)
        told = {"encoding-type": "array" if kind == "dense" else f"{kind}_matrix"}
        told["encoding-version"] = "0.2.0" if kind == "dense" else "0.1.0"
        if kind == "dense":
            _array(root, "X", X, options).attrs.update(told)
        else:
            group = root.create_group("X", attributes=told | {"shape": list(X.shape)})
            for name in ("data", "indices", "indptr"):
                _array(group, name, getattr(X, name), options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of consolidated metadata in format 3
            if consolidated:
                zarr.consolidate_metadata(store)
        return _content(store)

    return make


def _array(group: Any, name: str, values: NDArray[Any], options: dict[str, Any]) -> Any:
    chunks = (-(-len(values) // 4),) if values.ndim == 1 else (16, N_VARS)
    more = dict(options)
    if more.pop("sharded", False):
        more["shards"] = (2 * chunks[0], *chunks[1:])
    return group.create_array(name, data=values, chunks=chunks, **more)


def model(averaged: bool = False) -> Model:
    """A model of the atlas's genes, its numbers drawn."""
    rng = np.random.default_rng(1)
    coef, genes = rng.normal(size=(N_TYPES, N_VARS)), atlas().var_names.to_numpy(object)
    more: dict[str, Any] = {}
    if averaged:
        more = {"coef_last": coef + 1, "intercept_last": np.zeros(N_TYPES), "t": 50.0}
    return Model.build(
        coef=coef, intercept=rng.normal(size=N_TYPES), mean=np.full(N_VARS, 0.2),
        scale=np.full(N_VARS, 0.5), var=np.full(N_VARS, 0.25),
        cell_types=[f"T{i}" for i in range(N_TYPES)], genes=list(genes), with_mean=True,
        settings={"use_SGD": averaged, "average": averaged},
        description={"date": "2026-01-01", "source": "seed"}, **more,
    )  # fmt: skip


def _model(folder: Path) -> Path:
    model(averaged=True).save(folder / "seed.zarr")
    return folder / "seed.zarr"


def _pickle(folder: Path, protocol: int, estimator: str) -> Path:
    """As CellTypist writes."""
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.preprocessing import StandardScaler

    X = matrix("dense")
    labels = np.array([f"T{i % N_TYPES}" for i in range(N_OBS)], dtype=object)
    scaler = StandardScaler().fit(X)
    kinds: dict[str, Any] = {"SGD": SGDClassifier, "logistic": LogisticRegression}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few iterations are enough
        fitted = kinds[estimator](max_iter=20, random_state=0).fit(scaler.transform(X), labels)
    fitted.features = atlas().var_names.to_numpy(object)
    held = {"Model": fitted, "Scaler_": scaler, "description": {"date": "d", "source": "s"}}
    (folder / "seed.pkl").write_bytes(pickle.dumps(held, protocol))
    return folder / "seed.pkl"


def state_value() -> list[Any]:
    """Objects that a checkpoint holds."""
    sums: PairwiseSum[RunningMoments] = PairwiseSum()
    for number in (0, 1, 2, 6):
        sums.add(RunningMoments(number, *np.random.default_rng(number).random((3, 4))), number)
    search = LBFGS(np.ones(3), 1.0, np.arange(3.0), None)
    schedule = Schedule("constant", 1e-3, 0.5)
    state = State(np.ones((2, 3), np.float32), np.zeros(2), t=np.full(2, 7.0))
    names: NDArray[np.object_] = np.array(["a", "b c", "\0"], object)
    return [sums, search, schedule, state, names, {"step": 3, "of": (1, None, range(4))}, schedule]


def _state(folder: Path) -> Path:
    frozen.write(folder / "seed.state", state_value())
    return folder / "seed.state"


_ZSTD: dict[str, Any] = {"compressors": zarr.codecs.ZstdCodec(checksum=True)}
_MAKERS: dict[str, tuple[str, Callable[[Path], Path | Files]]] = {
    "h5ad csr": ("h5ad", _h5ad("csr")),
    "h5ad csr gzip": ("h5ad", _h5ad("csr", compression="gzip")),
    "h5ad csr lzf": ("h5ad", _h5ad("csr", "int32", compression="lzf")),
    "h5ad csc": ("h5ad", _h5ad("csc", "float64")),
    "h5ad csc gzip": ("h5ad", _h5ad("csc", compression="gzip")),
    "h5ad dense": ("h5ad", _h5ad("dense")),
    "h5ad dense gzip": ("h5ad", _h5ad("dense", compression="gzip")),
    "h5ad 0.6": ("h5ad", _legacy),
    "h5ad 0.7": ("h5ad", _references),
    "zarr2 csr blosc": (
        "zarr", _zarr("csr", 2, True, compressors=numcodecs.Blosc("lz4", 5, 1)),
    ),
    "zarr2 csr none": ("zarr", _zarr("csr", 2, False, "int64", compressors=None)),
    "zarr2 csc zlib": ("zarr", _zarr("csc", 2, False, compressors=numcodecs.Zlib())),
    "zarr2 dense": ("zarr", _zarr("dense", 2, False, compressors=numcodecs.LZ4())),
    "zarr3 csr zstd": ("zarr", _zarr("csr", 3, True, **_ZSTD)),
    "zarr3 csr none": ("zarr", _zarr("csr", 3, False, compressors=None)),
    "zarr3 csc gzip": ("zarr", _zarr("csc", 3, False, compressors=zarr.codecs.GzipCodec())),
    "zarr3 dense blosc": (
        "zarr", _zarr("dense", 3, False, compressors=zarr.codecs.BloscCodec()),
    ),
    "zarr3 csr sharded": ("zarr", _zarr("csr", 3, False, sharded=True, **_ZSTD)),
    "zarr3 dense sharded": ("zarr", _zarr("dense", 3, True, sharded=True, **_ZSTD)),
    "model": ("model", _model),
    "pickle 3 SGD": ("pickle", lambda folder: _pickle(folder, 3, "SGD")),
    "pickle 4 logistic": ("pickle", lambda folder: _pickle(folder, 4, "logistic")),
    "pickle 5 SGD": ("pickle", lambda folder: _pickle(folder, 5, "SGD")),
    "state": ("state", _state),
}  # fmt: skip
NAMES = {
    form: [name for name, (other, _) in _MAKERS.items() if other == form]
    for form in ("h5ad", "zarr", "model", "pickle", "state")
}


@cache
def seed(name: str) -> Seed:
    """Make a seed, once in a process."""
    form, make = _MAKERS[name]
    with tempfile.TemporaryDirectory(prefix="streamtrain-fuzz-") as folder:
        made = make(Path(folder))
        return Seed(name, form, made if isinstance(made, dict) else _collect(made))
