"""Stores for tests: matrices whose values encode their position, written in every layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FORMATS = ("h5ad", "zarr2", "zarr3", "sharded")
KINDS = ("csr", "csc", "dense")


def positions(n_obs: int, n_vars: int, density: float = 0.3, seed: int = 0, offset: float = 0):
    """Dense float32: row + col / 10,000 + offset at random places, cells 0 and 3 empty."""
    rng = np.random.default_rng(seed)
    rows, cols = np.indices((n_obs, n_vars))
    values = rows + (cols + 1) / 10_000 + offset
    dense = np.where(rng.random((n_obs, n_vars)) < density, values, 0).astype(np.float32)
    dense[[i for i in (0, 3) if n_obs > 4]] = 0
    return dense


def of_kind(dense, kind: str):
    return {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind](dense)


def make_anndata(kind: str = "csr", n_obs: int = 23, n_vars: int = 11) -> ad.AnnData:
    """AnnData with X, layers/counts (+100) and raw (+200, three genes more)."""
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"T{i % 3}" for i in range(n_obs)]),
            "n_genes": np.arange(n_obs),
            "flag": np.arange(n_obs) % 2 == 0,
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(
        {"symbol": [f"S{j}" for j in range(n_vars)]}, index=[f"g{j}" for j in range(n_vars)]
    )
    adata = ad.AnnData(of_kind(positions(n_obs, n_vars), kind), obs=obs, var=var)
    adata.layers["counts"] = of_kind(positions(n_obs, n_vars, seed=1, offset=100), kind)
    raw_var = pd.DataFrame(index=[f"r{j}" for j in range(n_vars + 3)])
    raw = of_kind(positions(n_obs, n_vars + 3, seed=2, offset=200), kind)
    adata.raw = ad.AnnData(raw, obs=obs[[]], var=raw_var)
    return adata


def write(adata: ad.AnnData, folder: Path, form: str) -> Path:
    """Write an AnnData; "sharded" is zarr v3 whose matrices are then rewritten with shards."""
    if form == "h5ad":
        path = folder / "atlas.h5ad"
        adata.write_h5ad(path, compression="gzip")
        return path
    path = folder / f"atlas_{form}.zarr"
    before = ad.settings.zarr_write_format
    ad.settings.zarr_write_format = 2 if form == "zarr2" else 3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr warns of consolidated metadata in v3
            adata.write_zarr(path)
            if form == "sharded":
                _shard(path)
    finally:
        ad.settings.zarr_write_format = before
    return path


def _shard(path: Path) -> None:
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for key in ("X", "layers/counts", "raw/X"):
        if key not in root:
            continue
        node = root[key]
        names = ["data", "indices", "indptr"] if isinstance(node, zarr.Group) else [None]
        for name in names:
            array = node if name is None else node[name]
            values, attrs = array[...], dict(array.attrs)
            chunks = tuple(max(4, size // 8) for size in values.shape)
            # Two chunks of rows a shard, and all columns.
            shards = tuple(
                chunk * -(-size // chunk) if i else 2 * chunk
                for i, (size, chunk) in enumerate(zip(values.shape, chunks, strict=True))
            )
            new = root.create_array(
                key if name is None else f"{key}/{name}",
                data=values,
                chunks=chunks,
                shards=shards,
                attributes=attrs,
                overwrite=True,
            )
            assert new.shards == shards
    zarr.consolidate_metadata(path)


def to_dense(rows) -> np.ndarray:
    """Rows as a dense array; no entry may appear twice."""
    out = np.zeros((rows.n_obs, rows.n_vars), rows.data.dtype)
    for i in range(rows.n_obs):
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        assert np.all(np.diff(rows.indices[part]) > 0)
        out[i, rows.indices[part]] = rows.data[part]
    return out


def read_all(source, nbytes: int) -> np.ndarray:
    """The matrix through its blocks, which must follow each other and cover all cells."""
    parts, at = [], 0
    for start, stop in source.blocks(nbytes):
        assert start == at
        assert stop > start
        rows = source.read(start, stop)
        assert rows.n_obs == stop - start
        assert rows.indices.dtype == np.int32
        assert rows.indptr.dtype == np.int64
        assert rows.data.dtype == source.dtype
        assert rows.nbytes <= nbytes or rows.n_obs == 1
        parts.append(to_dense(rows))
        at = stop
    assert at == source.n_obs
    return np.concatenate(parts) if parts else np.zeros((0, source.n_vars), source.dtype)
