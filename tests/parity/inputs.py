"""The cells of the comparisons: AnnData by file name, and every form in which they are given."""

from __future__ import annotations

import gzip
import warnings
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from sklearn.preprocessing import StandardScaler

from tests import atlas, stores

SIZE = {"n_obs": 240, "n_vars": 80, "n_types": 4, "dtype": np.float64}
TABLES = ("csv", "tsv", "txt", "tab")


def _two():
    return atlas.make(**SIZE | {"n_types": 2})


def _comma():
    """A fifth type, whose name holds a comma."""
    return atlas.make(**SIZE | {"n_types": 5})


def _mixed():
    """Types that no plane parts: a minimum exists without a penalty, and no model is perfect."""
    adata = atlas.make(**SIZE | {"n_vars": 15, "n_types": 3})
    rng = np.random.default_rng(1)
    names = adata.obs["cell_type"].to_numpy(dtype=str)
    swapped = rng.random(len(names)) < 0.4
    names[swapped] = rng.permutation(names[swapped])
    adata.obs["cell_type"] = pd.Categorical(names)
    return adata


def _off():
    """One cell, not the first, is not normalised."""
    adata = atlas.make(**SIZE)
    adata.X.data[adata.X.indptr[40] : adata.X.indptr[41]] *= 1.1
    return adata


def _twice():
    adata = atlas.make(**SIZE)
    adata.X = np.log1p(np.expm1(adata.X) * 2)
    return adata


def _nan():
    adata = atlas.make(**SIZE)
    adata.X.data[adata.X.indptr[40]] = np.nan
    return adata


def _unlabelled():
    adata = atlas.make(**SIZE)
    adata.obs.loc[adata.obs_names[3:10], "cell_type"] = np.nan
    return adata


def _repeated():
    """The fifth gene has the name of the fourth."""
    adata = atlas.make(**SIZE)
    names = adata.var_names.to_numpy().copy()
    names[5] = names[4]
    adata.var_names = names
    return adata


def _query():
    """Other cells; the model's first ten genes lack."""
    adata = atlas.make(**SIZE | {"n_obs": 120, "seed": 5})[:, 10:].copy()
    adata.obs["cluster"] = [f"c{k}" for k in np.random.default_rng(2).integers(0, 12, 120)]
    return adata


def _dense_query():
    adata = _query()
    adata.X = adata.X.toarray()
    return adata


def _large(n):
    X = np.tile(np.log1p([[4000.0, 6000.0], [7000.0, 3000.0]]).astype(np.float32), (n // 2, 1))
    obs = pd.DataFrame({"cell_type": pd.Categorical.from_codes(np.arange(n) % 2, ["B", "NK"])})
    return ad.AnnData(X, obs.set_index(obs.index.astype(str)), pd.DataFrame(index=["a", "b"]))


LARGE = {"cells50000": 50_000, "cells500000": 500_000}
MADE = {
    "atlas": lambda: atlas.make(**SIZE), "two": _two, "comma": _comma, "mixed": _mixed,
    "off": _off, "twice": _twice, "nan": _nan, "unlabelled": _unlabelled, "repeated": _repeated,
    "query": _query, "dense_query": _dense_query,
}  # fmt: skip


@cache
def cells(name: str) -> ad.AnnData:
    """Cells of a file, log1p-normalised; of the files of one atlas in other forms, the atlas."""
    adata = MADE.get(name.partition(".")[0], MADE["atlas"])()
    adata.obs["number"] = pd.Categorical(adata.obs["cell_type"]).codes + 9
    return adata


def scaled(name: str, with_mean: bool = True):
    """CellTypist's dense scaled cells in float64, names of the genes, and codes of the types."""
    adata = cells(name)
    X = adata.X.toarray().astype(np.float64)
    expressed = X.sum(axis=0) != 0
    Z = np.minimum(StandardScaler(with_mean=with_mean).fit_transform(X[:, expressed]), 10)
    return Z, adata.var_names[expressed], pd.Categorical(adata.obs["cell_type"].astype(str)).codes


def write(folder) -> None:
    """Write every input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata's, of the repeated gene
        for name in MADE:
            cells(name).write_h5ad(folder / f"{name}.h5ad")
    adata = cells("atlas")
    for name, n in LARGE.items():
        _large(n).write_h5ad(folder / f"{name}.h5ad")
    labels = adata.obs["cell_type"].astype(str)
    forms = {
        "csc": sp.csc_matrix(adata.X), "dense": adata.X.toarray(),
        "float32": adata.X.astype(np.float32),
    }  # fmt: skip
    for name, X in forms.items():
        ad.AnnData(X, obs=adata.obs, var=adata.var).write_h5ad(folder / f"{name}.h5ad")
    stores.write(ad.AnnData(adata.X, obs=adata.obs, var=adata.var), folder, "zarr2")
    scaled = ad.AnnData(StandardScaler().fit_transform(adata.X.toarray()), adata.obs, adata.var)
    scaled.raw = adata
    scaled = scaled[:, ::2].copy()  # raw has genes of its own
    scaled.write_h5ad(folder / "scaled.h5ad")
    counts = adata.layers["counts"].astype(int)
    frame = pd.DataFrame(counts.toarray(), adata.obs_names, adata.var_names)
    for ending in TABLES:
        frame.to_csv(folder / f"counts.{ending}", sep="," if ending == "csv" else "\t")
    frame.to_csv(folder / "counts.csv.gz")
    frame.T.to_csv(folder / "genes-by-cells.csv")
    (frame * 1.37).to_csv(folder / "fractions.csv")
    for name, matrix in (("counts", counts), ("genes-by-cells", counts.T)):
        scipy.io.mmwrite(folder / f"{name}.mtx", sp.coo_matrix(matrix))
        text = (folder / f"{name}.mtx").read_bytes()
        (folder / f"{name}.mtx.gz").write_bytes(gzip.compress(text))
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    (folder / "genes.txt").write_text("\n".join(adata.var_names) + "\n")
    (folder / "cells.txt").write_text("\n".join(adata.obs_names) + "\n")
    (folder / "clusters.txt").write_text("\n".join(cells("query").obs["cluster"]) + "\n")
    (folder / "comma.txt").write_text("\n".join(cells("comma").obs["cell_type"]) + "\n")
    (folder / "blood.txt").write_text("".join(f"{label}, blood\n" for label in labels))
    (folder / "one.txt").write_text("B\n" * 240)
    (folder / "labels.pdf").write_bytes(b"%PDF")
