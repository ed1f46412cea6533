"""Expression, or what an AnnData keeps of its neighbours, enters; many small clusters leave."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.decode.address import Address
from streamtrain.errors import InputError
from streamtrain.progress import counted, stage
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler, places, standard_deviation
from streamtrain.scratch import Folder
from streamtrain.sources.memory import is_a
from streamtrain.sources.store import close_root, open_root
from streamtrain.spill import Spill
from streamtrain.threads import Threads
from streamtrain.voting import Clusters

logger = logging.getLogger(__name__)

Sweep = Callable[[], Iterator[tuple[int, Rows]]]

LEAST = 50  # cells; CellTypist does not over-cluster so few
N_TOP_GENES, MIN_CELLS, N_COMPONENTS, N_NEIGHBORS = 2500, 5, 50, 10  # CellTypist's
# Leiden's resolution by the number of cells below which it is taken, CellTypist's.
RESOLUTION = {5_000: 5, 20_000: 10, 40_000: 15, 100_000: 20, 200_000: 25}
# Bytes a cell of the components (200), their neighbours and igraph's graph: 2,690 measured.
CELL_BYTES = 3_000
_EXACT = 8192  # cells below which scanpy compares each with each
_DENSE = 512  # cells of which the variable genes are dense at a time


def resolution(n_obs: int) -> int:
    """Resolution for so many cells: CellTypist's."""
    return next((value for most, value in RESOLUTION.items() if n_obs < most), 30)


def check(n_obs: int, budget: int) -> None:
    """Refuse early what `over_cluster` cannot do.

    Raises
    ------
    InputError
        Without scanpy and igraph, for 50 cells or fewer, or for more than fit.
    """
    remedy = "or pass over_clustering=COLUMN (--over-clustering), a clustering of your own"
    if any(find_spec(name) is None for name in ("scanpy", "igraph")):
        raise InputError(
            "majority voting without over_clustering makes clusters by scanpy and leiden: "
            f"pip install scanpy igraph, {remedy}"
        )
    if n_obs <= LEAST:
        raise InputError(
            f"{n_obs} cells are too few to over-cluster: leave majority_voting out, {remedy}"
        )
    needed = n_obs * CELL_BYTES + 3 * 8 * N_TOP_GENES**2
    if budget < needed:
        raise InputError(
            f"over-clustering {n_obs:,} cells holds their graph, {format_bytes(needed)}, and "
            f"memory is {format_bytes(budget)}: raise memory, {remedy}"
        )


def over_cluster(
    X: Any,
    rows: NDArray[np.int64] | None,
    n_vars: int,
    sweep: Sweep,
    *,
    threads: Threads,
    scratch: Folder,
    show: bool,
) -> Clusters:
    """Over-cluster cells by Leiden on a graph of neighbours, as CellTypist does.

    A graph in ``obsp["connectivities"]`` is used as it is, else one is made of
    ``obsm["X_pca"]``, else of principal components of the most variable genes. On a stored graph
    clusters equal CellTypist's; otherwise they differ, as its components are of float32 and
    randomised, and ours exact.

    Parameters
    ----------
    X
        What predict() was given; None for text, which keeps no graph.
    rows
        The cells, None for all.
    n_vars
        Number of genes.
    sweep
        Begins a pass over the normalised cells: positions and rows.
    """
    graph = _stored(X, "obsp", "connectivities")
    if graph is not None:
        logger.info("over-clustering on the graph in obsp['connectivities']")
        graph = sp.csr_matrix(graph)
        graph = graph if rows is None else graph[rows][:, rows]
    else:
        pca = _stored(X, "obsm", "X_pca")
        if pca is not None:
            logger.info("over-clustering on obsm['X_pca']")
            pca = np.asarray(pca)[:, :N_COMPONENTS].astype(np.float32)
            pca = pca if rows is None else pca[rows]
        else:
            with Spill(n_vars, np.float32, scratch) as spill:
                pca = _components(n_vars, sweep, spill, threads, show)
        with stage("Finding neighbours", len(pca), show=show) as bar:
            graph = _neighbours(pca)
            bar.update(len(pca))
        del pca
    with stage("Clustering", graph.shape[0], show=show) as bar:
        found = _leiden(graph)
        bar.update(graph.shape[0])
    return found


def _stored(X: Any, group: str, key: str) -> Any:
    """What an AnnData, in memory or on disk, keeps for its cells under a name, or None."""
    if is_a(X, "anndata", "AnnData"):
        return getattr(X, group).get(key)
    if not isinstance(X, (str, os.PathLike, Address)):
        return None
    from anndata.io import read_elem

    root = open_root(X if isinstance(X, Address) else Path(X).expanduser(), str(X))
    try:
        return read_elem(root[group][key]) if group in root and key in root[group] else None
    finally:
        close_root(root)


def variable_genes(counts: RunningMoments) -> NDArray[np.int64]:
    """Positions of the most variable genes, ascending.

    scanpy's rule ("seurat"): the logarithm of variance over mean of the normalised counts, as
    z-score among the genes of like log1p(mean), in 20 bins.

    Parameters
    ----------
    counts
        Moments of expm1 of the expression.
    """
    seen = np.flatnonzero(counts.nonzero >= MIN_CELLS)
    mean, var = counts.mean[seen], counts.m2[seen] / max(counts.n - 1, 1)
    seen, mean, var = seen[var > 0], mean[var > 0], var[var > 0]
    if len(seen) <= 2:
        raise InputError(
            f"over-clustering needs genes that vary, and only {len(seen)} are in {MIN_CELLS} cells "
            "or more: pass over_clustering=COLUMN (--over-clustering)"
        )
    dispersion = pd.Series(np.log(var / mean))
    bins = dispersion.groupby(pd.cut(pd.Series(np.log1p(mean)), bins=20), observed=True)
    # The only gene of a bin gets 1.
    score = ((dispersion - bins.transform("mean")) / bins.transform("std")).fillna(1.0)
    best = np.argsort(-score.to_numpy(), kind="stable")[:N_TOP_GENES]
    return np.sort(seen[best])


def _components(
    n_vars: int, sweep: Sweep, spill: Spill, threads: Threads, show: bool
) -> NDArray[np.float32]:
    """Principal components of the scaled variable genes, shape (n_obs, 50), float32."""
    moments, counts = MomentsPass(n_vars, threads), MomentsPass(n_vars, threads)
    n_obs = 0
    for _, rows in sweep():
        moments.update(rows)
        counts.update(Rows(np.expm1(rows.data), rows.indices, rows.indptr, n_vars))
        n_obs += rows.n_obs
    genes = variable_genes(counts.result())
    found = moments.result()
    scaler = Scaler(
        found.mean[genes], standard_deviation(found)[genes], places(genes, n_vars),
        with_mean=True, dtype=np.float32,
    )  # fmt: skip
    for _, rows in counted(sweep(), "Scaling", n_obs, show=show):
        spill.append(scaler(rows).rows)
    spill.finish()

    def dense() -> Iterator[tuple[int, NDArray[np.float64]]]:
        for start in range(0, n_obs, _DENSE):
            part = spill.gather(np.arange(start, min(n_obs, start + _DENSE)))
            shape = part.n_obs, len(genes)
            matrix = sp.csr_matrix((part.data, part.indices, part.indptr), shape=shape)
            yield start, matrix.toarray().astype(np.float64)

    # The covariance is the same before centring: x' is not centred, and so stays sparse.
    gram, total = np.zeros((len(genes), len(genes))), np.zeros(len(genes))
    for _, x in counted(dense(), "Covariance", n_obs, show=show):
        gram += x.T @ x
        total += x.sum(axis=0)
    gram -= np.outer(total, total / n_obs)
    m = len(genes)
    k = min(N_COMPONENTS, m - 1, n_obs - 1)
    _, axes = scipy.linalg.eigh(gram, subset_by_index=[m - k, m - 1], overwrite_a=True)
    axes = axes[:, ::-1]
    out = np.empty((n_obs, k), np.float32)
    for start, x in dense():
        out[start : start + len(x)] = (x - total / n_obs) @ axes
    return out


def _neighbours(pca: NDArray[np.float32]) -> Any:
    """Weighted graph of the nearest neighbours (UMAP's weights), sparse, n_obs x n_obs."""
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy and the libraries below it
        import scanpy as sc

        n_obs = len(pca)
        adata = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(n_obs).astype(str)))
        adata.obsm["X_pca"] = pca
        nearest = None if n_obs < _EXACT else _nearest(n_obs)
        sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS, use_rep="X_pca", transformer=nearest)
    return adata.obsp["connectivities"]


def _nearest(n_obs: int) -> Any:
    """Search for neighbours as scanpy does, with a result that scanpy can read.

    pynndescent 0.7 gives a csr_array, at which scanpy 1.11 fails.
    """
    from pynndescent import PyNNDescentTransformer  # type: ignore[import-untyped]

    class Nearest(PyNNDescentTransformer):  # type: ignore[misc]
        def fit_transform(self, X: Any, y: Any = None) -> Any:
            return sp.csr_matrix(super().fit_transform(X, y))

    return Nearest(
        n_neighbors=N_NEIGHBORS, random_state=0, n_trees=min(64, 5 + round(n_obs**0.5 / 20)),
        n_iters=max(5, round(np.log2(n_obs))),
    )  # fmt: skip


def _leiden(graph: Any) -> Clusters:
    from anndata import AnnData

    n_obs = graph.shape[0]
    logger.info("Leiden over-clustering of %d cells at resolution %d", n_obs, resolution(n_obs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc

        adata = AnnData(obs=pd.DataFrame(index=pd.RangeIndex(n_obs).astype(str)))
        sc.tl.leiden(
            adata, resolution(n_obs), adjacency=graph, flavor="igraph", n_iterations=2,
            key_added="over_clustering",
        )  # fmt: skip
    found = adata.obs["over_clustering"].cat
    return Clusters(found.codes.to_numpy().astype(np.int32), found.categories)
