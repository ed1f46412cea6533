"""streamtrain simulate: sizes in, an atlas of synthetic counts out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from streamtrain.cli.options import Overwrite, Running, RunningOptions, Whole, WholeOrNone


def command(
    *,
    out: Path,
    cells: Whole = 20_000,
    genes: Whole = 2_000,
    cell_types: Whole = 12,
    donors: Whole = 6,
    genes_per_cell: Whole = 2_500,
    seed: Whole = 0,
    compression: Literal["auto", "none", "blosc", "zstd", "lzf", "gzip"] = "auto",
    n_jobs: WholeOrNone = None,
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
) -> None:
    """Write a synthetic atlas of raw counts, to try a pipeline or to measure one.

    Example: streamtrain simulate --cells 1000000 --genes 30000 --cell-types 100 --donors 40 --out
    atlas.zarr

    Counts are negative binomial; cell types share programs along a tree, so that siblings are
    hard to tell apart; some have fewer than 100 cells; donors and sequencing runs shift every
    gene. Calibrated so that a classifier reaches a macro-F1 of 0.7 to 0.9 on donors that it has not
    seen, with 20,000 cells, 2,000 genes, 12 types and 6 donors (seeds 0 to 2), and with 100,000 and
    400,000 cells, 30,000 genes, 100 types and 40 donors. Other settings and seeds may be easier or
    harder (seed 5 of the first: 0.63). Cells are stored donor after donor. Memory does not grow
    with their number, and the same settings give the same data.

    Parameters
    ----------
    out
        The atlas, .zarr or .h5ad. Its obs has cell_type, donor_id, batch and is_primary_data.
    cells
        Number of cells.
    genes
        Number of genes.
    cell_types
        Number of cell types; one in eight, at least one, is rare.
    donors
        Number of donors.
    genes_per_cell
        Mean number of genes detected in a cell; at most a quarter of the genes.
    seed
        Seed of every draw.
    compression
        For .zarr blosc (the default), none or zstd; for .h5ad none (the default), lzf or gzip.
    n_jobs
        Threads. The default takes all CPUs.
    """
    running.begin()
    from streamtrain.simulate import simulate as run

    run(
        out, n_obs=cells, n_vars=genes, n_types=cell_types, n_donors=donors,
        genes_per_cell=genes_per_cell, seed=seed, compression=compression, n_jobs=n_jobs,
        overwrite=overwrite, progress=not running.quiet,
    )  # fmt: skip
    if not running.quiet:
        print(f"saved as {out}")
