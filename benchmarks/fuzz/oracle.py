"""The path of a mutant enters, and what came of reading it leaves: refused, read, or a finding.

What streamtrain reads without an error must be what anndata reads, or where anndata refuses what
h5py or zarr and scipy read; a model's arrays what xarray or a restricted unpickler gives.
"""

from __future__ import annotations

import io
import pickle
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr
import zarr
from anndata.io import read_elem
from anndata.utils import make_index_unique

from benchmarks.fuzz import seeds
from benchmarks.fuzz.seeds import Seed
from streamtrain import InputError, Model, frozen, open_source, predict, train
from streamtrain.celltypist_import import _ADMITTED
from streamtrain.sources.columns import as_text

_MISSING = re.compile(r"^(None|<NA>)(?=(-\d+)*$)")  # numbered where genes have it
_BLOCK = 4096  # bytes: a few blocks each mutant
Stage = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """What should not be: how, where in streamtrain or in the file, and words."""

    how: str
    where: str
    words: str


@dataclass
class Judged:
    """What came of one mutant."""

    outcome: str = "refused"
    findings: list[Finding] = field(default_factory=list)
    words: str = ""


class _Refused:
    """In place of what was refused in words."""

    def __init__(self, error: BaseException) -> None:
        self.words = f"{type(error).__name__}: {error}"


def judge(path: Path, seed: Seed, deep: bool, signed: bool, stage: Stage) -> Judged:
    """Read a mutant and say what came of it.

    Parameters
    ----------
    path, seed
        Where it lies, and what was changed: its name and form.
    deep
        Whether it is used, too: trained on, or scored with.
    signed
        Whether its checksum was made to match.
    stage
        Told when only the reference reads.
    """
    judged = Judged()
    ask: dict[str, Callable[[], Judged]] = {
        "model": lambda: _model(path, deep, signed, stage),
        "pickle": lambda: _pickle(path, deep, stage),
        "state": lambda: _state(path, signed),
    }
    try:
        return ask.get(seed.form, lambda: _atlas(path, seed, deep, stage))()
    except Exception as error:  # whatever gets here is told
        _note(judged, error)
    return judged


def _note(judged: Judged, error: BaseException) -> None:
    """Tell a refusal in words from anything else."""
    judged.words = judged.words or f"{type(error).__name__}: {error}"
    if isinstance(error, InputError | OSError) and str(error):
        return
    judged.outcome = "finding"
    text = "".join(traceback.format_exception(error))
    judged.findings.append(Finding(f"raised {type(error).__name__}", _where(error), text))


def _where(error: BaseException) -> str:
    """Innermost place of ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/streamtrain/" in f.filename]
    if not frames:
        return "?"
    return f"{frames[-1].filename.rpartition('/streamtrain/')[2]}:{frames[-1].name}"


def _asked(judged: Judged, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # told by `_note`
        _note(judged, error)
        return _Refused(error)


# Atlases


def read_atlas(path: Path, judged: Judged) -> dict[str, Any]:
    """All that streamtrain reads, by part; `_Refused` where it does not."""
    with closing(open_source(path, progress=False)) as source:
        n = source.n_obs
        found = {
            "X": _asked(judged, lambda: _matrix(source)),
            "genes": _words(source.genes),
            "cells": _asked(judged, lambda: _words(source.obs_names(0, n))),
        }
        columns = _asked(judged, source.obs_columns)
        for name in [] if isinstance(columns, _Refused) else columns:
            found[f"obs/{name}"] = _asked(judged, partial(_column_of, source, name))
    return found


def _column_of(source: Any, name: str) -> list[Any]:
    return _plain(source.obs(name))


def _matrix(source: Any) -> Any:
    """All cells in order, and again in part by number: both must be alike."""
    shape = (source.n_obs, source.n_vars)
    parts = [_csr(source.read(a, b)) for a, b in source.blocks(_BLOCK)]
    read = sp.vstack([*parts, sp.csr_matrix((0, shape[1]))], format="csr") if parts else None
    if read is None:
        return sp.csr_matrix(shape)
    rows = np.arange(0, shape[0], max(3, shape[0] // 50))
    taken = _csr(source.take(rows))
    if difference(taken, read[rows]):
        raise AssertionError("cells taken are not the cells read")
    return read


def _csr(rows: Any) -> sp.csr_matrix:
    parts = rows.data, rows.indices, rows.indptr
    return sp.csr_matrix(parts, shape=(rows.n_obs, rows.n_vars), copy=True)


def difference(ours: Any, theirs: Any) -> str:
    """Word where two parts differ; empty for nowhere."""
    if not _sparse(ours):
        if len(ours) != len(theirs):
            return f"{len(ours)} and {len(theirs)} values"
        differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not _same(a, b)]
        i = differ[0] if differ else -1
        return f"value {i} is {ours[i]!r} and {theirs[i]!r}"[:300] if differ else ""
    if ours.shape != theirs.shape:
        return f"shapes {ours.shape} and {theirs.shape}"
    a, b = _canonical(ours), _canonical(theirs)
    for name in ("indptr", "indices"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            return f"{name} differ"
    with np.errstate(all="ignore"):
        theirs_too = b.data.astype(ours.dtype, copy=False)
        same = np.array_equal(a.data.astype(ours.dtype), theirs_too, equal_nan=True)
        if not same and b.nnz < theirs.nnz:  # sums in another order
            same = np.allclose(a.data, b.data, rtol=1e-4, equal_nan=True)
    return "" if same else "values differ"


def _canonical(matrix: Any) -> Any:
    out = sp.csr_matrix(matrix, copy=True)
    if len(out.indices) and not (out.indices.min() >= 0 and out.indices.max() < out.shape[1]):
        raise ValueError("gene positions out of range")
    if out.dtype.kind in "biu":
        out = out.astype(np.int64 if out.dtype != np.uint64 else np.uint64)
    with np.errstate(all="ignore"):
        out.has_canonical_format = out.has_sorted_indices = False
        out.sum_duplicates()
    out.eliminate_zeros()
    return out


def _sparse(value: Any) -> bool:
    return bool(sp.issparse(value))


def _same(a: Any, b: Any) -> bool:
    return bool(a is b or a == b or (a is None and b != b) or (b is None and a != a))


def _plain(values: Any) -> list[Any]:
    """Values of a column, None where missing."""
    series = pd.Series(values)
    missing = series.isna().to_numpy()
    held = series.astype(object).to_numpy()
    return [
        None if gone else value.decode() if isinstance(value, bytes) else value
        for value, gone in zip(held, missing, strict=True)
    ]


class _Reference:
    """An atlas as anndata reads it, else as h5py or zarr and scipy do."""

    def __init__(self, path: Path, form: str) -> None:
        if form == "h5ad":
            self.root: Any = h5py.File(path, "r")
        elif form == "zip":
            self.root = zarr.open(zarr.storage.ZipStore(path, mode="r"), mode="r")
        else:
            self.root = zarr.open(path, mode="r")

    def close(self) -> None:
        """Close the file."""
        close = getattr(self.root, "close", None) or self.root.store.close
        close()

    def parts(self, name: str) -> Iterator[Any]:
        """One part as each reader gives it that can."""
        for way in (self._anndata, self._plainly):
            try:
                found = way(name)
            except Exception:  # noqa: S112 - it refuses, in its own way
                continue
            yield found

    def _anndata(self, name: str) -> Any:
        if name == "X":
            return _checked(read_elem(self.root["X"]))
        if name in ("genes", "cells"):
            node = self.root["var" if name == "genes" else "obs"]
            return _names(read_elem(node[node.attrs["_index"]]), name)
        node = self.root["obs"][name.removeprefix("obs/")]
        if "categories" in node.attrs:
            raise TypeError("categories beside the codes, which is for the frame to know")
        return _plain(read_elem(node))

    def _plainly(self, name: str) -> Any:
        if name == "X":
            return _checked(_scipy(self.root["X"]))
        if name in ("genes", "cells"):
            node = self.root["var" if name == "genes" else "obs"]
            return _names(as_text(_index(node)), name)
        return _plain(_column(self.root, name.removeprefix("obs/")))


def _names(values: Any, part: str) -> list[str]:
    names = _words(values)
    index = pd.Index(names, dtype=object)
    return names if part == "cells" or index.is_unique else list(make_index_unique(index))


def _words(values: Any) -> list[str]:
    """Names as texts; each library has its own word for a missing one."""
    names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    return [_MISSING.sub("nan", name) for name in names]


def _checked(matrix: Any) -> Any:
    """A matrix whose offsets can be trusted; scipy looks at little."""
    if not _sparse(matrix):
        if np.ndim(matrix) != 2:
            raise ValueError("no matrix")
        values = np.asarray(matrix)
        return sp.csr_matrix(values.astype(values.dtype.newbyteorder("=")))
    if matrix.indptr[0] != 0 or matrix.indptr[-1] != len(matrix.data):
        raise ValueError("offsets")
    n = matrix.shape[1 if matrix.format == "csr" else 0]
    if (np.diff(matrix.indptr) < 0).any() or len(matrix.indices) != len(matrix.data):
        raise ValueError("offsets")
    if len(matrix.indices) and not (matrix.indices.min() >= 0 and matrix.indices.max() < n):
        raise ValueError("positions out of range")
    if matrix.dtype.kind in "biu":  # sums that wrap are not what is stored
        matrix = matrix.astype(np.int64 if matrix.dtype != np.uint64 else np.uint64)
    return matrix.tocsr()


def _scipy(node: Any) -> Any:
    if not hasattr(node, "keys"):
        return node[...]
    kind = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format"))
    kind = kind.decode() if isinstance(kind, bytes) else kind
    shape = node.attrs["shape"] if "shape" in node.attrs else node.attrs["h5sparse_shape"]
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix}[str(kind).removesuffix("_matrix")]
    parts = [np.asarray(node[name][...]) for name in ("data", "indices", "indptr")]
    parts[0] = parts[0].astype(parts[0].dtype.newbyteorder("="))
    if parts[0].dtype == np.float16:
        parts[0] = parts[0].astype(np.float32)
    if parts[1].min(initial=0) < 0 or parts[2].min() < 0:
        raise ValueError("below zero")
    parts[1:] = [part.astype(np.int64) for part in parts[1:]]
    return make(tuple(parts), shape=tuple(int(n) for n in shape))


def _index(node: Any) -> Any:
    if not hasattr(node, "keys"):  # a compound dataset
        return node[node.dtype.names[0]]
    key = node.attrs.get("_index", "_index" if "_index" in node else "index")
    held = node[key]
    if "codes" in held if hasattr(held, "keys") else False:
        return np.asarray(as_text(held["categories"][...]))[held["codes"][...]]
    return held[...] if not hasattr(held, "keys") else held["values"][...]


def _column(root: Any, name: str) -> Any:
    obs = root["obs"]
    if not hasattr(obs, "keys"):
        values, key = obs[name], f"uns/{name}_categories"
        if key not in root:
            return as_text(values) if values.dtype.kind in "OS" else values
        return _coded(values, root[key][...])
    node = obs[name]
    if "categories" in node.attrs and "__categories" in obs:
        return _coded(node[...], obs[node.attrs["categories"]][...])
    if not hasattr(node, "keys"):
        values = node[...]
        return as_text(values) if values.dtype.kind in "OSUT" else values
    if "codes" in node:
        return _coded(node["codes"][...], node["categories"][...])
    values = np.asarray(node["values"][...]).astype(object)
    if values.size and isinstance(values[0], bytes | str):
        values = as_text(values)
    values[np.asarray(node["mask"][...]).astype(bool)] = None
    return values


def _coded(codes: Any, categories: Any) -> Any:
    if categories.dtype.kind in "OSUT":
        categories = as_text(categories)
    if codes.min(initial=0) < -1 or codes.max(initial=-1) >= len(categories):
        raise ValueError("codes")
    table = np.array([*categories, None], dtype=object)
    return table[codes.astype(np.int64)]


def read_plainly(path: Path, form: str) -> None:
    """Read all that a file holds, without streamtrain, to see whether its library gets through."""
    with closing(_Reference(path, form)) as reference:
        for name in ("X", "genes", "cells"):
            with suppress(Exception):
                list(reference.parts(name))
        nodes: list[Any] = []
        if form == "h5ad":
            reference.root.visititems(lambda _, node: nodes.append(node))
        else:
            nodes += [node for _, node in reference.root.members(max_depth=None)]
        for node in nodes:
            with suppress(Exception):
                dict(node.attrs)
                if hasattr(node, "shape"):
                    node[...]


def _atlas(path: Path, seed: Seed, deep: bool, stage: Stage) -> Judged:
    judged = Judged()
    ours = _asked(judged, lambda: read_atlas(path, judged))
    if isinstance(ours, _Refused):
        return judged
    if deep:
        _asked(judged, lambda: _used(path))
    read = {name: part for name, part in ours.items() if not isinstance(part, _Refused)}
    stage("reference")
    alone = _compare(judged, path, seed, read)
    if judged.outcome != "finding":
        whole = "read alone" if alone else "read alike"
        judged.outcome = "refused in part" if len(read) < len(ours) else whole
    return judged


@cache
def _sound(name: str) -> dict[str, Any]:
    """What is read of a seed."""
    with tempfile.TemporaryDirectory(prefix="streamtrain-fuzz-") as folder:
        return read_atlas(seeds.seed(name).write(Path(folder), "sound"), Judged())


def _compare(judged: Judged, path: Path, seed: Seed, read: dict[str, Any]) -> bool:
    """Note where others read something else; whether ours alone reads what the seed holds."""
    try:
        reference = _Reference(path, seed.form)
    except Exception as error:
        judged.outcome = "finding"
        judged.findings.append(Finding("only ours opens it", path.suffix, str(error)))
        return False
    alone = False
    with closing(reference):
        for name, part in read.items():
            readers = reference.parts(name)
            theirs = next(readers, None)
            told = "" if theirs is None else _told(part, theirs)
            if theirs is not None and not told:
                continue
            sound = _sound(seed.name)
            others = theirs is None or any(not _told(part, other) for other in readers)
            if others and name in sound and not _told(part, sound[name]):
                alone = True  # it is right: what was damaged is not needed
                continue
            how = "other data" if told else "only ours reads it"
            judged.outcome = "finding"
            judged.findings.append(Finding(how, name, told))
    return alone


def _told(ours: Any, theirs: Any) -> str:
    try:
        return difference(ours, theirs)
    except Exception as error:  # of types that cannot be compared
        return f"{type(error).__name__}: {error}"


def _used(path: Path) -> None:
    """Train on it and score it."""
    options: dict[str, Any] = {"use_SGD": True, "max_iter": 3, "tol": None, "progress": False}
    options["check_expression"] = False  # the seeds hold no counts
    options["memory"] = "200MB"  # not a share of the machine, which the bound would refuse
    train(path, "cell_type", **options)
    predict(seeds.model(), path, progress=False)


# Models


@cache
def _cells() -> ad.AnnData:
    return seeds.atlas()


def _loaded(judged: Judged, path: Path, deep: bool) -> Any:
    """A model, once it was of use; or `_Refused`."""
    model = _asked(judged, lambda: Model.load(path))
    if not isinstance(model, _Refused):
        _asked(judged, lambda: _use_model(model, deep))
    return model


def _model(path: Path, deep: bool, signed: bool, stage: Stage) -> Judged:
    judged = Judged()
    model = _loaded(judged, path, deep)
    if isinstance(model, _Refused):
        return judged
    stage("reference")
    with xr.open_zarr(path, chunks=None, consolidated=True, decode_cf=False) as opened:
        theirs = opened.load()
    before = seeds.model(averaged=True).dataset
    for name in before.variables:
        if not _alike(model.dataset, theirs, name):
            judged.findings.append(Finding("other data", f"model {name}", "not as xarray reads"))
        if not signed and not _alike(model.dataset, before, name):
            judged.findings.append(Finding("other data", f"model {name}", "not as before"))
    judged.outcome = "finding" if judged.findings else "read alike"
    return judged


def _alike(ours: Any, theirs: Any, name: Any) -> bool:
    if name not in ours or name not in theirs:
        return (name in ours) == (name in theirs)
    a, b = ours[name].to_numpy(), theirs[name].to_numpy()
    if b.dtype.kind in "OUST":
        return bool(a.tolist() == b.astype(object).tolist())
    return bool(np.array_equal(a, b, equal_nan=True))


def _use_model(model: Model, deep: bool) -> None:
    if not (repr(model) and model.features.tolist()):
        raise AssertionError("a model without words")
    if deep:
        predict(model, _cells(), progress=False)


class _Unpickler(pickle.Unpickler):
    """The names that CellTypist's pickles have, made by those who wrote them, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return getattr(import_module(module), name)


def _pickle(path: Path, deep: bool, stage: Stage) -> Judged:
    judged = Judged()
    model = _loaded(judged, path, deep)
    if isinstance(model, _Refused):
        return judged
    stage("reference")
    try:
        held = _Unpickler(io.BytesIO(_unframed(path.read_bytes()))).load()
        kept, scaler = held["Model"], held["Scaler_"]
        pairs = {
            "coef": (model.coef_, kept.coef_), "intercept": (model.intercept_, kept.intercept_),
            "mean": (model.dataset["mean"].to_numpy(), scaler.mean_),
            "scale": (model.dataset["scale"].to_numpy(), scaler.scale_),
            "var": (model.dataset["var"].to_numpy(), scaler.var_),
            "cell types": (model.classes_, np.array([str(c) for c in kept.classes_], object)),
            "genes": (model.features, np.array([str(c) for c in kept.features], object)),
        }  # fmt: skip
    except Exception:  # of what we do not read, as a generator's state
        judged.outcome = "read alone"
        return judged
    for name, (ours, theirs) in pairs.items():
        if not (ours.shape == np.shape(theirs) and (ours == theirs).all()):
            judged.findings.append(Finding("other data", f"pickle {name}", "not as unpickled"))
    judged.outcome = "finding" if judged.findings else "read alike"
    return judged


def _unframed(raw: bytes) -> bytes:
    """Leave out how long a frame is, which tells only how to read ahead."""
    import pickletools

    starts = [(opcode.name, at or 0) for opcode, _, at in pickletools.genops(raw)]
    frames = [at for name, at in starts if name == "FRAME"]
    return b"".join(raw[a:b] for a, b in zip(
        [0, *(at + 9 for at in frames)], [*frames, len(raw)], strict=True
    ))  # fmt: skip


def _state(path: Path, signed: bool) -> Judged:
    judged = Judged()
    try:
        frozen.read(path)
    except frozen.DamagedError as error:
        judged.words = str(error)
        return judged
    sound = path.read_bytes() == seeds.seed("state").files[""]
    if not (signed or sound):
        judged.findings.append(Finding("other data", "state", "not as before, and not refused"))
    judged.outcome = "finding" if judged.findings else "read alike"
    return judged
