"""A small labelled atlas for tests: counts and log-normalised expression with real structure."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

MINI = {"use_SGD": True, "mini_batch": True}  # SGD over mini-batches: quick to train
TYPES = ("B", "NK", "T CD4", "T CD8", "Monocyte, classical")


def counts(n_obs=600, n_vars=120, n_types=5, seed=0):
    """Counts in float64 and codes; rare last type, one silent gene, one gene everywhere."""
    rng = np.random.default_rng(seed)
    share = np.array([1.0 / (k + 1) for k in range(n_types)])
    codes = rng.choice(n_types, n_obs, p=share / share.sum())
    codes[:n_types] = np.arange(n_types)
    fixed = np.random.default_rng(99)  # cells differ by seed, cell types do not
    profile = fixed.gamma(0.4, 2.0, n_vars) * np.exp(fixed.normal(0, 0.8, (n_types, n_vars)))
    matrix = rng.poisson(profile[codes] * rng.lognormal(0, 0.3, (n_obs, 1))).astype(np.float64)
    matrix[:, 0] += 1
    matrix[:, 7] = 0
    return matrix, codes


def log1p_10k(matrix):
    return np.log1p(matrix / matrix.sum(1, keepdims=True) * 1e4)


def make(n_obs=600, n_vars=120, n_types=5, seed=0, dtype=np.float32):
    """AnnData: X is log1p-normalised CSR, layers["counts"] raw; obs cell_type, donor, n."""
    matrix, codes = counts(n_obs, n_vars, n_types, seed)
    names = [TYPES[k] if k < len(TYPES) else f"type {k}" for k in range(n_types)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(names)[codes]),
            "donor": pd.Categorical([f"D{i * 4 // n_obs}" for i in range(n_obs)]),
            "n": np.arange(n_obs),
        },
        index=[f"cell-{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(
        {"feature_name": [f"Sym{j}" for j in range(n_vars)]},
        index=[f"GENE{j}" for j in range(n_vars)],
    )
    adata = ad.AnnData(sp.csr_matrix(log1p_10k(matrix).astype(dtype)), obs=obs, var=var)
    adata.layers["counts"] = sp.csr_matrix(matrix.astype(np.float32))
    return adata
