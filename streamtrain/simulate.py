"""Settings enter; a synthetic single-cell atlas on disk leaves, written in constant memory."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.atomic import check_atlas_output, replacing
from streamtrain.budget import format_bytes
from streamtrain.errors import InputError, near
from streamtrain.kernels import simulate as kernels
from streamtrain.progress import stage
from streamtrain.synthetic import (
    DEPTH_SD,
    MIXED,
    MIXED_POWER,
    SHAPE,
    Floats,
    Model,
    n_runs,
    runs,
)
from streamtrain.threads import n_threads
from streamtrain.writing import CELL_BYTES, COMPRESSION, ENTRY_BYTES, GrowingAnnData

_OPTIONS = {
    "n_obs": "--cells",
    "n_vars": "--genes",
    "n_types": "--cell-types",
    "n_donors": "--donors",
    "genes_per_cell": "--genes-per-cell",
    "seed": "--seed",
}
# Cells generated at a time: of 100 types ten a type share its table in the cache. 512 cost 2 us a
# cell more; 2,048 took 180 MB more.
_BLOCK_SIZE = 1_024


def simulate(
    path: str | os.PathLike[str],
    *,
    n_obs: int = 20_000,
    n_vars: int = 2_000,
    n_types: int = 12,
    n_donors: int = 6,
    genes_per_cell: int = 2_500,
    seed: int = 0,
    compression: str = "auto",
    overwrite: bool = False,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a synthetic atlas of raw counts, ordered by donor.

    Counts are negative binomial around profiles that share programs along a tree of types, times
    donor and sequencing-run factors; some cells lie between a type and its sibling. X and obs
    are streamed: memory is set by n_types x n_vars and n_jobs, and cells add a few bytes each
    (the type codes of one donor; indptr once, below 2^31 entries). The same settings give the
    same data on one machine, whatever `n_jobs`.

    Parameters
    ----------
    path
        File `.h5ad` or folder `.zarr` (zarr v3).
    n_obs, n_vars, n_types, n_donors
        Numbers of cells, genes (100 at least), cell types (2 at least) and donors. One type in
        eight, at least one, is rare: from 20 to 80 cells, where `n_obs` allows.
    genes_per_cell
        Mean number of detected genes a cell; at most a quarter of `n_vars` is used.
    seed
        Seed of every draw.
    compression
        For `.zarr` "blosc" (lz4 with bitshuffle), "none" or "zstd"; for `.h5ad` "none", "lzf" or
        "gzip". "auto" is the first of these.
    overwrite
        Whether an existing atlas is replaced.
    n_jobs
        Threads; None and -1 take every CPU this process may use.
    progress
        Show progress on standard error where it takes more than two seconds.

    Returns
    -------
    Path
        The atlas. obs: `cell_type`, `donor_id`, `batch`, `is_primary_data`; var: `feature_id`;
        uns["simulate"]: the settings.

    Raises
    ------
    InputError
        A setting is out of range or no whole number, `path` exists or cannot be written, or its
        disk has less free than the atlas will take.
    """
    path = Path(path)
    n_jobs = n_threads(n_jobs)
    kind, codec = _format(path, compression)
    settings = {
        "n_obs": n_obs,
        "n_vars": n_vars,
        "n_types": n_types,
        "n_donors": n_donors,
        "genes_per_cell": genes_per_cell,
        "seed": seed,
    }
    settings = _whole(settings)
    _check(settings)
    settings["genes_per_cell"] = min(settings["genes_per_cell"], settings["n_vars"] // 4)
    folder = check_atlas_output(path, overwrite, folder=kind == ".zarr").parent
    _require_space(folder, kind, codec, settings["n_obs"], settings["genes_per_cell"])
    with (
        replacing(path, overwrite, folder=kind == ".zarr") as partial,
        ThreadPoolExecutor(n_jobs, "streamtrain") as pool,
        _create(partial, kind, codec, settings, pool, n_jobs) as atlas,
        stage("Simulating", settings["n_obs"], show=progress) as bar,
    ):
        for block in _blocks(Model.draw(**settings), pool, n_jobs):
            _append(atlas, block, settings["n_donors"])
            bar.update(len(block.types))
    return path


def _format(path: Path, compression: str) -> tuple[str, str]:
    """Check the path and the compression; return the suffix and the compression to use."""
    kind = path.suffix
    if kind not in COMPRESSION:
        raise InputError(
            f"the path must end in {' or '.join(COMPRESSION)} and is {str(path)!r}: rename it"
        )
    if compression != "auto" and compression not in COMPRESSION[kind]:
        raise InputError(
            f"compression {compression!r} is not one of a {kind} atlas: "
            + near(compression, ("auto", *COMPRESSION[kind]))
        )
    return kind, COMPRESSION[kind][0] if compression == "auto" else compression


def _whole(settings: dict[str, int]) -> dict[str, int]:
    """Refuse what is no integer, such as 1e6; return Python's own, since numpy's overflow."""
    for name, value in settings.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(
                f"{name} must be a whole number and is {value!r}: pass an int ({_OPTIONS[name]})"
            )
    return {name: int(value) for name, value in settings.items()}


def _check(settings: dict[str, int]) -> None:
    n_obs = settings["n_obs"]
    least = {"n_types": 2, "n_donors": 1, "n_vars": 100, "genes_per_cell": 1, "seed": 0}
    most = {"n_vars": 2**31 - 1, "seed": 2**63 - 1}
    for name, value in settings.items():
        if value < least.get(name, 1):
            raise InputError(
                f"{name} must be at least {least.get(name, 1)} and is {value}: raise it "
                f"({_OPTIONS[name]})"
            )
        if value > most.get(name, value):
            raise InputError(
                f"{name} must be at most {most[name]:,} and is {value:,}: lower it "
                f"({_OPTIONS[name]})"
            )
    for name in ("n_types", "n_donors"):
        if settings[name] > min(n_obs, 32_767):
            raise InputError(
                f"{name} must be at most n_obs = {n_obs} and 32,767 and is {settings[name]}: "
                f"raise n_obs ({_OPTIONS['n_obs']}) or lower {name} ({_OPTIONS[name]})"
            )


def _require_space(folder: Path, kind: str, codec: str, n_obs: int, genes_per_cell: int) -> None:
    """Refuse to begin an atlas that will not fit: an hour later the disk would be full."""
    free = shutil.disk_usage(folder).free

    def needed(codec: str) -> float:
        return n_obs * (genes_per_cell * ENTRY_BYTES[codec] + CELL_BYTES[kind])

    if needed(codec) <= free:
        return
    best = min(COMPRESSION[kind], key=needed)
    remedy = "write to a larger disk (--out) or lower n_obs (--cells)"
    if needed(best) <= free:
        remedy = (
            f"write to a larger disk (--out) or pass compression={best!r} (--compression), "
            f"which takes {format_bytes(needed(best))}"
        )
    raise InputError(
        f"a {kind} atlas of {n_obs:,} cells x {genes_per_cell:,} detected genes with compression "
        f"{codec!r} takes about {format_bytes(needed(codec))}, and {folder} has "
        f"{format_bytes(free)} free: {remedy}"
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Cells that stand together in the file: counts as rows, and the obs codes."""

    start: int
    donor: int
    run: int
    types: NDArray[np.int16]
    indptr: NDArray[np.int64]
    data: Floats
    indices: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Tables:
    """Alias tables, levels of odds and mean numbers of bursts of each type in one segment."""

    alias: NDArray[np.uint32]
    levels: NDArray[np.uint8]
    rates: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The laws of burst sizes at each level, and their means."""

    laws: tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]
    mean: NDArray[np.float64]


@cache
def _sizes() -> _Sizes:
    n = kernels.N_LEVELS
    once, sizes = np.empty(n, np.uint32), np.empty((n, kernels.N_SIZES), np.uint32)
    tails, mean = np.empty((n, 3)), np.empty(n)
    kernels.size_tables(once, sizes, tails, mean)
    return _Sizes((once, sizes, tails), mean)


def _blocks(model: Model, pool: ThreadPoolExecutor, n_jobs: int) -> Iterator[_Block]:
    """Generate the cells in order, `n_jobs` blocks at a time and one ahead of the writer."""
    waiting: deque[Future[_Block]] = deque()
    n_donors, start = len(model.n_cells), 0
    try:
        for donor in range(n_donors):
            for run, part in runs(donor, n_donors, model.types(donor)):
                tables = _tables(model, donor, run, part, pool)
                for at in range(0, len(part), _BLOCK_SIZE):
                    codes = part[at : at + _BLOCK_SIZE]
                    waiting.append(pool.submit(_block, model, tables, start, donor, run, codes))
                    start += len(codes)
                    if len(waiting) > n_jobs:
                        yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # a failing writer must not wait for blocks that nobody will read
        for block in waiting:
            block.cancel()


def _tables(
    model: Model, donor: int, run: int, types: NDArray[np.int16], pool: ThreadPoolExecutor
) -> _Tables:
    """Build the tables of the types among `types` and of their siblings."""
    n_types, n_vars = model.log_mean.shape
    alias = np.empty((n_types, n_vars, 2), np.uint32)
    levels = np.empty((n_types, n_vars), np.uint8)
    rates = np.zeros(n_types)
    effect = model.effect(donor, run)
    present = np.unique(types)
    needed = np.union1d(present, model.partner[present])

    def build(t: int) -> float:
        return _table(model.log_mean[t] + effect, alias[t], levels[t])

    rates[needed] = list(pool.map(build, needed))
    return _Tables(alias, levels, rates)


def _table(log_mean: Floats, alias: NDArray[np.uint32], levels: NDArray[np.uint8]) -> float:
    """Write a type's alias table and the level of each gene; return its mean number of bursts."""
    low = kernels.LEVEL_LOW + np.log(SHAPE)
    level = np.rint((log_mean - np.float32(low)) / np.float32(kernels.LEVEL_STEP))
    levels[:] = np.clip(level, 0, kernels.N_LEVELS - 1)
    return float(kernels.alias_table(np.exp(log_mean) / _sizes().mean[levels], alias))


def _block(
    model: Model, tables: _Tables, start: int, donor: int, run: int, types: NDArray[np.int16]
) -> _Block:
    own, other = np.empty((2, len(types)), np.int64)
    partner, seed = model.partner, np.uint64(model.seed)
    kernels.cell_bursts(
        seed, start, types, partner, tables.rates, DEPTH_SD, MIXED, MIXED_POWER, own, other
    )
    capacity = int(np.minimum(own + other, model.log_mean.shape[1]).sum())
    drawn, genes = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    spans = np.empty((len(types), 2), np.int64)
    order = np.argsort(types, kind="stable")
    kernels.cell_counts(
        seed, start, types, order, partner, own, other, tables.alias, tables.levels,
        _sizes().laws, spans, drawn, genes,
    )  # fmt: skip
    indptr = np.zeros(len(types) + 1, np.int64)
    np.cumsum(spans[:, 1] - spans[:, 0], out=indptr[1:])
    data, indices = np.empty(indptr[-1], np.float32), np.empty(indptr[-1], np.int32)
    kernels.in_order(spans, drawn, data)
    kernels.in_order(spans, genes, indices)
    return _Block(start, donor, run, types, indptr, data, indices)


def _create(
    path: Path, kind: str, codec: str, settings: dict[str, int], pool: Any, n_jobs: int
) -> GrowingAnnData:
    categories = {
        "cell_type": _names("type", settings["n_types"]),
        "donor_id": _names("donor", settings["n_donors"]),
        "batch": _names("run", n_runs(settings["n_donors"])),
    }
    columns = {k: pd.Categorical([], categories=v) for k, v in categories.items()}
    obs = pd.DataFrame(
        columns | {"is_primary_data": np.empty(0, bool)}, index=pd.Index([], dtype=str)
    )
    uns = {"simulate": {**settings, "generator": "streamtrain.simulate"}}
    var, n_obs = _var(settings["n_vars"]), settings["n_obs"]
    return GrowingAnnData(
        path, kind, codec, obs=obs, var=var, uns=uns, n_obs=n_obs, pool=pool, n_jobs=n_jobs
    )


def _append(atlas: GrowingAnnData, block: _Block, n_donors: int) -> None:
    n = len(block.types)
    # The last donor's second run stands for cells that another atlas published first.
    last = (n_donors - 1, n_donors % n_runs(n_donors))
    obs = {
        "cell_type": block.types,
        "donor_id": np.full(n, block.donor, np.int16),
        "batch": np.full(n, block.run, np.int16),
        "is_primary_data": np.full(n, (block.donor, block.run) != last),
    }
    names = [f"cell_{i:08d}" for i in range(block.start, block.start + n)]
    atlas.append(block.data, block.indices, block.indptr, names, obs)


def _names(prefix: str, n: int) -> list[str]:
    return [f"{prefix}_{i:0{len(str(n - 1))}d}" for i in range(n)]


def _var(n_vars: int) -> pd.DataFrame:
    """Invented symbols and Ensembl-like ids (ENSG9..., which Ensembl does not reach)."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    symbols = [
        f"{letters[i // 676 % 26]}{letters[i // 26 % 26]}{letters[i % 26]}{i // 17_576 + 1}"
        for i in range(n_vars)
    ]
    ids = [f"ENSG9{i:010d}" for i in range(n_vars)]
    return pd.DataFrame({"feature_id": ids}, index=symbols)
