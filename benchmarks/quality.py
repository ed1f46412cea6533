"""Macro-F1 on held-out groups beside CellTypist's mini-batch SGD: ``python -m benchmarks.quality``.

Both train on the same log-normalised cells in memory with the same settings, five seeds each, and
annotate the same held-out cells; times are of train() alone, in one process, taken in turn.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import streamtrain

GROUPS = {
    "mouse_bm_paul15": "batch",
    "lung_ts": "donor",
    "mouse_mammary_mca": "batch",
    "balf_covid": "donor",
    "pancreas_4studies": "donor",
    "pbmc_kang_ifnb": "donor",
    "pbmc_10x_4k8k": "batch",
    "brain_habib17": "batch",
}


def split(adata: Any, key: str) -> tuple[Any, Any]:
    """Cells of three quarters of the groups, and of the others."""
    groups = adata.obs[key].astype(str)
    names = np.random.default_rng(0).permutation(sorted(groups.unique()))
    held_out = groups.isin(names[: max(1, len(names) // 4)]).to_numpy()
    return adata[~held_out].copy(), adata[held_out].copy()


def compare(train: Any, query: Any, seeds: int, **options: Any) -> dict[str, list[float]]:
    """Macro-F1 and seconds of both, one value a seed."""
    import celltypist

    found: dict[str, list[float]] = {"ours": [], "theirs": [], "our s": [], "their s": []}
    truth = query.obs["cell_type"].astype(str)
    for seed in range(seeds):
        start = time.perf_counter()
        model = streamtrain.train(train, "cell_type", random_state=seed, progress=False, **options)
        found["our s"].append(time.perf_counter() - start)
        labels = streamtrain.predict(model, query, progress=False)["predicted_labels"]
        found["ours"].append(streamtrain.evaluate(truth, labels).macro_f1)

        np.random.seed(seed)  # noqa: NPY002 - CellTypist draws from NumPy's global generator
        start = time.perf_counter()
        other = celltypist.train(
            train.copy(), "cell_type", use_SGD=True, mini_batch=True, random_state=seed, **options
        )
        found["their s"].append(time.perf_counter() - start)
        table = celltypist.annotate(query.copy(), model=other).predicted_labels
        labels = table["predicted_labels"].astype(str)
        found["theirs"].append(streamtrain.evaluate(truth, labels).macro_f1)
    return found


def main() -> None:
    """Parse the command line and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the .h5ad files")
    parser.add_argument("--sets", nargs="+", default=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata
    import celltypist
    import scanpy as sc

    celltypist.logger.set_level(logging.ERROR)
    logging.getLogger("streamtrain").setLevel(logging.ERROR)
    print("| data | cells | balanced | streamtrain | CellTypist | training time, theirs / ours |")
    print("|---|---|---|---|---|---|")
    for name in chosen.sets:
        adata = anndata.read_h5ad(chosen.data / f"{name}.h5ad")
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        train, query = split(adata, GROUPS[name])
        size = 1000 if train.n_obs > 1000 else 200
        for balance in (False, True):
            f = compare(
                train, query, chosen.seeds,
                batch_size=size, epochs=chosen.epochs, balance_cell_type=balance,
            )  # fmt: skip
            print(
                f"| {name} | {train.n_obs:,} | {'yes' if balance else 'no'} "
                f"| {mean(f['ours']):.3f} ± {stdev(f['ours']):.3f} "
                f"| {mean(f['theirs']):.3f} ± {stdev(f['theirs']):.3f} "
                f"| {mean(f['their s']) / mean(f['our s']):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
