"""An open AnnData enters; how its matrices are stored, and what a sample of their cells holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.budget import BLOCK
from streamtrain.expression import MAX_LOG1P, TARGET_SUM, TOLERANCE
from streamtrain.rows import Rows
from streamtrain.sources.base import Source
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.damage import damaged, fetch, reading
from streamtrain.sources.forms import COUNTS, EMPTY, LOG1P, Values, values_of
from streamtrain.sources.matrix import Matrix, from_scipy
from streamtrain.sources.store import node_matrix

STRETCHES, CELLS = 8, 64  # places of the sample, spread evenly, and cells of each
_TRANSPOSED = 4 * 10**6  # entries of a matrix stored by gene that are read whole
_PIECE = 1 << 14  # entries read at each place of a larger one
_ALIKE = 1e-3  # by how much sums that are normalised to one number differ, relatively
_FILES, _SEEN = 20_000, 2_000  # of an array, whose sizes are added up; of more, so many tell
_FILTERS = {32001: "blosc", 32004: "lz4", 32015: "zstd", 32008: "bitshuffle", 32026: "blosc2"}

# What the values of a matrix are. Training takes the first as it is, the next three normalised.
NORMALISED = "normalised, not logged"
FRACTIONS = "fractions"
LOGGED = "log1p, perhaps of 10,000"
OTHER_SUM = "log1p of another sum"
OTHER_LOG = "other logarithm"
NEGATIVE = "negative values"
NOT_FINITE = "not finite"
AS_COUNTS = (COUNTS, NORMALISED, FRACTIONS)
AS_THEY_ARE = (LOG1P, LOGGED)


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One matrix of one file.

    Attributes
    ----------
    key
        Where it is: X, raw/X or layers/NAME.
    n_obs, n_vars
        Its cells and genes.
    encoding
        "csr", "csc" or "dense"; "text" for what is parsed.
    dtype
        Of its values.
    entries
        Stored entries; of a dense matrix all.
    density
        Share of them that is stored, of a dense matrix that is not zero in the sample.
    chunks, shards
        Entries (of a dense matrix cells and genes) of each; None for none.
    codecs
        By which it is packed; empty for none.
    nbytes
        Bytes on disk; None where that is not known.
    kind
        What its values are, by the sample; one of the words of this module.
    values
        The same in a sentence.
    read_seconds
        That reading a cell of the sample took, if it is dense; else None.
    """

    key: str
    n_obs: int
    n_vars: int
    encoding: str
    dtype: str
    entries: int
    density: float
    chunks: tuple[int, ...] | None
    shards: tuple[int, ...] | None
    codecs: str
    nbytes: int | None
    kind: str
    values: str
    read_seconds: float | None = None


def matrix_keys(root: Any) -> list[str]:
    """Where an AnnData has matrices: X, raw/X and the layers."""
    layers = [f"layers/{name}" for name in root["layers"]] if "layers" in root else []
    return [key for key in ("X", "raw/X") if key in root] + sorted(layers)


def inspect_matrix(root: Any, key: str, name: str) -> MatrixReport:
    """Look at one matrix of an open AnnData: its metadata, and a sample of its cells.

    Raises
    ------
    InputError
        Where it is damaged, or of an encoding that cannot be read.
    """
    with reading(name):
        node = root[key]
        matrix = node_matrix(node, f"{key} of {name}")
        sparse = hasattr(node, "keys")
        arrays = [node[part] for part in ("data", "indices", "indptr")] if sparse else [node]
        sizes = [_stored_bytes(array) for array in arrays]
    seconds = None
    kind, values, found = None, "", None
    if isinstance(matrix, CscMatrix) and arrays[0].shape[0] > _TRANSPOSED:
        kind, values = _of_genes(arrays[0], f"{key} of {name}")
    elif isinstance(matrix, CscMatrix):
        found = values_of([_by_cell(arrays, matrix)])
    else:
        start = time.perf_counter()
        cells_read = list(sample(matrix, matrix.shape[0]))
        seconds = (time.perf_counter() - start) / max(1, sum(rows.n_obs for rows in cells_read))
        found = values_of(cells_read)
    if found is not None:
        kind, values = kind_of(found)
    cells = max(1, matrix.shape[0] * matrix.shape[1])
    entries = int(arrays[0].shape[0]) if sparse else cells
    density = entries / cells
    if not sparse and found is not None:
        density = found.entries / max(1, matrix.shape[1])
    encoding = "dense"
    if sparse:
        encoding = "csc" if isinstance(matrix, CscMatrix) else "csr"
    chunks, shards = getattr(arrays[0], "chunks", None), getattr(arrays[0], "shards", None)
    matrix.close()
    return MatrixReport(
        key, *matrix.shape, encoding, str(arrays[0].dtype), entries, density,
        None if chunks is None else tuple(map(int, chunks)),
        None if shards is None else tuple(map(int, shards)),
        _codecs(arrays[0]),
        None if None in sizes else sum(size for size in sizes if size is not None),
        str(kind), values, None if sparse else seconds,
    )  # fmt: skip


def sample(cells: Source | Matrix, n_obs: int) -> Iterator[Rows]:
    """Some hundred cells at places spread over all, the first ones among them."""
    width = min(CELLS, n_obs)
    at = -1
    for place in np.linspace(0, n_obs - width, STRETCHES).astype(int).tolist():
        start, stop = max(place, at), place + width
        for low, high in cells.blocks(BLOCK, start, stop) if start < stop else ():
            yield cells.read(low, high)
        at = stop


def _by_cell(arrays: list[Any], matrix: CscMatrix) -> Rows:
    """A small matrix stored by gene, by cell, as far as the sample would go."""
    data, indices, indptr = (fetch(a, 0, int(a.shape[0]), matrix.name) for a in arrays)
    try:
        by_gene = sp.csc_matrix((data, indices, indptr), shape=matrix.shape)
        by_gene.check_format(full_check=True)  # scipy's loops trust positions and offsets
    except ValueError as error:
        raise damaged(matrix.name, error) from error
    whole = by_gene.tocsr()
    whole.sum_duplicates()
    step = max(1, matrix.shape[0] // (STRETCHES * CELLS))
    return from_scipy(whole[::step])


def _of_genes(data: Any, name: str) -> tuple[str, str]:
    """What entries of a large matrix stored by gene tell, whose cells cannot be added up."""
    n = int(data.shape[0])
    places = np.linspace(0, n - _PIECE, STRETCHES).astype(int).tolist()
    seen = np.concatenate([fetch(data, at, at + _PIECE, name) for at in places])
    rows = Rows(seen, np.empty(0, np.int32), np.array([0, len(seen)], np.int64), 1)
    found = values_of([rows])
    kind, words = kind_of(found)
    if kind in (COUNTS, NEGATIVE, NOT_FINITE):
        return kind, words if kind != COUNTS else f"raw counts up to {found.high:,.0f}"
    if found.high <= MAX_LOG1P:
        return LOGGED, (
            f"fractions up to {found.high:.3g}, as after log1p; the sums of cells, stored by gene, "
            "are not known before training reads them"
        )
    return FRACTIONS, f"fractions up to {found.high:,.6g}"


def kind_of(found: Values) -> tuple[str, str]:
    """Kind of the values of a sample, and a sentence on them."""
    form = found.form
    if form == LOG1P:
        return LOG1P, "log1p of counts normalised to 10,000 a cell, as training requires"
    if form == EMPTY:
        return EMPTY, "no expression: all zeros"
    if form == COUNTS:
        middle, genes = np.median(found.totals), found.entries
        return COUNTS, f"raw counts, {middle:,.0f} a cell (median) in {genes:,.0f} entries"
    if form == "other: not finite":
        return NOT_FINITE, "NaN or infinite values"
    if form == "other: negative values":
        return (
            NEGATIVE,
            f"negative values, {found.low:.3g} to {found.high:.3g}: scaled or corrected",
        )
    if _alike(found.totals):
        return NORMALISED, f"normalised to {np.median(found.totals):,.6g} a cell, without log1p"
    if found.high > 2 * MAX_LOG1P:
        return FRACTIONS, f"fractions up to {found.high:,.6g}: counts that were corrected"
    low, high = float(found.logged.min()), float(found.logged.max())
    if _alike(found.logged):
        middle = np.median(found.logged)
        return OTHER_SUM, f"log1p of counts normalised to {middle:,.6g} a cell, not to 10,000"
    sums = f"expm1 of a cell sums to {low:,.0f} to {high:,.0f}, not to 10,000"
    if high <= TARGET_SUM + TOLERANCE:
        return OTHER_LOG, f"log1p with genes left out since, or of other counts: {sums}"
    return OTHER_LOG, f"fractions up to {found.high:.3g}, a logarithm of another kind: {sums}"


def _alike(sums: NDArray[np.float64]) -> bool:
    """Whether most cells have one sum."""
    middle = np.median(sums)
    near = np.abs(sums - middle) <= _ALIKE * middle
    return len(sums) > 1 and bool(np.count_nonzero(near) > 0.9 * len(sums))


def _codecs(array: Any) -> str:
    """Names of the codecs by which an array is packed."""
    if isinstance(array, h5py.Dataset):
        plist = array.id.get_create_plist()
        return ", ".join(map(_filter, (plist.get_filter(i) for i in range(plist.get_nfilters()))))
    metadata = getattr(array, "metadata", None)
    if metadata is None:
        return ""
    if metadata.zarr_format == 2:
        packed = [*(metadata.filters or ()), metadata.compressor]
        return ", ".join(_configured(c.get_config(), "id") for c in packed if c is not None)
    chain = metadata.to_dict()["codecs"]
    inner = next((c["configuration"]["codecs"] for c in chain if "sharding" in c["name"]), chain)
    named = ({"name": c["name"], **c.get("configuration", {})} for c in inner)
    return ", ".join(_configured(c, "name") for c in named if c["name"] != "bytes")


def _filter(found: tuple[Any, ...]) -> str:
    number, _, values, name = found
    if number == h5py.h5z.FILTER_DEFLATE:
        return f"gzip {values[0]}"
    if number == h5py.h5z.FILTER_SHUFFLE:
        return "shuffle"
    if number == h5py.h5z.FILTER_LZF:
        return "lzf"
    return _FILTERS.get(number, name.decode(errors="replace") if name else f"filter {number}")


def _configured(config: dict[str, Any], key: str) -> str:
    level = config.get("clevel", config.get("level"))
    words = [config[key], config.get("cname"), None if level is None else str(level)]
    return " ".join(word for word in words if word)


def _stored_bytes(array: Any) -> int | None:
    """Bytes of an array on disk; of a zarr array of very many files by some of them."""
    if isinstance(array, h5py.Dataset):
        return int(array.id.get_storage_size())
    from zarr.storage import LocalStore

    store = array.store_path.store
    folder = Path(store.root) / array.path if isinstance(store, LocalStore) else None
    if folder is None:
        return None
    unit = getattr(array, "shards", None) or array.chunks
    grid = [-(-size // step) for size, step in zip(array.shape, unit, strict=True)]
    n_files = int(np.prod(grid))
    if n_files <= _FILES:
        keys: Any = product(*map(range, grid))
        n_seen = n_files
    else:
        n_seen = _SEEN
        some = (np.arange(n_seen) + 0.5) * n_files // n_seen
        keys = np.stack(np.unravel_index(some.astype(np.int64), grid), axis=1)
    found = 0
    for key in keys:
        file = folder / array.metadata.encode_chunk_key(tuple(map(int, key)))
        found += file.stat().st_size if file.exists() else 0
    return int(found * n_files / max(1, n_seen))
