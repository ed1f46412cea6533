"""Settings enter; a synthetic single-cell atlas on disk leaves, written in constant memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import write_elem
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from streamtrain.atomic import replacing
from streamtrain.errors import InputError, near
from streamtrain.kernels import simulate as kernels
from streamtrain.threads import n_threads

Floats = NDArray[np.float32]

# Calibrated on log1p counts per 10,000, each gene divided by its deviation and cut at 10, training
# on four donors and testing on two. Macro-F1 over the types present in both:
#   10k cells x 2k genes x 12 types, seeds 0, 1, 2: SGDClassifier (log_loss, alpha 1e-3, 20 epochs)
#   0.74, 0.78, 0.75; LogisticRegression(C=0.01) 0.74, 0.77, 0.75; accuracy 0.89 to 0.92.
#   20k cells x 10k genes x 40 types, seed 0: the same SGDClassifier 0.79, accuracy 0.96.
# What is lost is lost on siblings and on the rare types, some of which have F1 0.
GENE_SD = 1.8  # of log mean expression: the top gene of 30,000 has 1,000 times the median's
SHAPE = 2.0  # of the negative binomial: variance = mean + mean^2 / 2 within a type
DEPTH_SD = 0.4
GROUP_GENES, GROUP_SD = 0.05, 1.0  # program of an inner node of the tree: share of genes, log fold
TYPE_GENES, TYPE_SD = 0.02, 1.0  # program of a type, all that parts it from its sibling
DONOR_SD, RUN_SD = 0.25, 0.15  # log factors of each gene
MIXED, MIXED_POWER = 0.7, 4.0  # a cell is its sibling type by the share 0.7 u^4, u uniform
ZIPF = 1.2
RARE_SHARE, RARE_MIN, RARE_MAX = 5e-4, 20, 80  # cells of each rare type; one type in eight is rare

_BLOCK_SIZE = 1_024  # cells generated and written at a time
_H5_CHUNK, _ZARR_CHUNK = 1 << 18, 1 << 20  # entries
_COMPRESSION = {".h5ad": ("none", "lzf", "gzip"), ".zarr": ("none", "zstd", "blosc")}
_NAMES = 1 << 16  # rows of a chunk of obs


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
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a synthetic atlas of raw counts, ordered by donor.

    Counts are negative binomial around profiles that share programs along a tree of types, times
    donor and sequencing-run factors; some cells lie between a type and its sibling. X and obs
    are streamed: memory is set by n_types x n_vars and n_jobs, and cells add a few bytes each
    (the type codes of one donor; indptr once, below 2^31 entries). The same
    settings give the same data on one machine, whatever `n_jobs`.

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
        For `.h5ad` "none", "lzf" or "gzip"; for `.zarr` "none", "zstd" or "blosc" (lz4);
        "auto" is what anndata writes by default, "none" and "zstd".
    overwrite
        Whether an existing atlas is replaced.
    n_jobs
        Threads; None takes every CPU this process may use.
    progress
        Called with the number of cells written so far, after each block.

    Returns
    -------
    Path
        The atlas. obs: `cell_type`, `donor_id`, `batch`, `is_primary_data`; var: `feature_id`;
        uns["simulate"]: the settings.

    Raises
    ------
    InputError
        A setting is out of range, or `path` exists.
    """
    path = Path(path)
    settings = {
        "n_obs": n_obs,
        "n_vars": n_vars,
        "n_types": n_types,
        "n_donors": n_donors,
        "genes_per_cell": genes_per_cell,
        "seed": seed,
    }
    kind, codec = _check(path, compression, settings, n_jobs)
    settings["genes_per_cell"] = min(genes_per_cell, n_vars // 4)
    with replacing(path, overwrite, folder=kind == ".zarr") as partial:
        model = _Model.draw(**settings)
        with _Atlas(partial, kind, codec, settings) as atlas:
            for block in _blocks(model, n_threads(n_jobs)):
                atlas.append(block)
                if progress is not None:
                    progress(block.stop)
    return path


def _check(
    path: Path, compression: str, settings: dict[str, int], n_jobs: int | None
) -> tuple[str, str]:
    """Check the settings; return the suffix and the compression to use."""
    kind = path.suffix
    if kind not in _COMPRESSION:
        raise InputError(
            f"the path must end in {' or '.join(_COMPRESSION)} and is {str(path)!r}: rename it"
        )
    if compression != "auto" and compression not in _COMPRESSION[kind]:
        raise InputError(
            f"compression {compression!r} is not one of a {kind} atlas: "
            + near(compression, ("auto", *_COMPRESSION[kind]))
        )
    n_obs = settings["n_obs"]
    least = {"n_types": 2, "n_donors": 1, "n_vars": 100, "genes_per_cell": 1, "seed": 0}
    for name, value in least.items():
        if settings[name] < value:
            raise InputError(f"{name} must be at least {value} and is {settings[name]}: raise it")
    for name in ("n_types", "n_donors"):
        if not settings[name] <= min(n_obs, 32_767):
            raise InputError(
                f"{name} must be at most n_obs = {n_obs} and 32,767 and is {settings[name]}: "
                f"raise n_obs or lower {name}"
            )
    for name, bound in (("n_vars", 2**31), ("seed", 2**63)):
        if settings[name] >= bound:
            raise InputError(f"{name} must be below {bound} and is {settings[name]}: lower it")
    if n_jobs is not None and n_jobs < 1:
        raise InputError(f"n_jobs must be at least 1 and is {n_jobs}: raise it, or pass None")
    plain = {".h5ad": "none", ".zarr": "zstd"}[kind]
    return kind, plain if compression == "auto" else compression


@dataclass(frozen=True)
class _Model:
    """What the cells are drawn from.

    Attributes
    ----------
    log_mean
        Log mean count of each gene in a cell of mean depth, shape (n_types, n_vars).
    partner
        The sibling in the tree that each type's borderline cells lean to, shape (n_types,).
    n_cells
        Cells of each type from each donor, shape (n_donors, n_types).
    """

    seed: int
    log_mean: Floats
    partner: NDArray[np.int16]
    n_cells: NDArray[np.int64]

    @classmethod
    def draw(
        cls, n_obs: int, n_vars: int, n_types: int, n_donors: int, genes_per_cell: int, seed: int
    ) -> _Model:
        """Draw the profiles and the composition of the donors."""
        rng = np.random.default_rng([seed, 0])
        base = rng.normal(0.0, GENE_SD, n_vars)
        # Housekeeping genes: highly expressed, and part of no program.
        housekeeping = rng.choice(n_vars, max(3, n_vars // 200), replace=False)
        base[housekeeping] = GENE_SD * rng.uniform(2.0, 3.0, len(housekeeping))
        log_mean = np.tile(base.astype(np.float32), (n_types, 1))
        free = np.setdiff1d(np.arange(n_vars), housekeeping)
        partner = _add_programs(log_mean, free, rng)
        log_mean -= np.log(np.exp(log_mean).sum(axis=1, keepdims=True))
        log_mean += rng.normal(0.0, 0.2, (n_types, 1)).astype(np.float32)  # large and small cells
        n_cells = _composition(n_obs, n_types, n_donors, rng)
        share = n_cells.sum(axis=0) / n_obs
        log_mean += np.float32(_log_depth(log_mean, share, genes_per_cell))
        return cls(seed, log_mean, partner, n_cells)

    def types(self, donor: int) -> NDArray[np.int16]:
        """Type of each cell of one donor, in the order of the file."""
        codes = np.repeat(np.arange(len(self.partner), dtype=np.int16), self.n_cells[donor])
        np.random.default_rng([self.seed, 1, donor]).shuffle(codes)
        return codes

    def effect(self, donor: int, run: int) -> Floats:
        """Log factor on each gene of a donor's cells in one sequencing run, shape (n_vars,)."""
        n_vars: int = self.log_mean.shape[1]
        of_donor = np.random.default_rng([self.seed, 2, donor])
        of_run = np.random.default_rng([self.seed, 3, run])
        depth = of_donor.normal(0.0, 0.1) + of_run.normal(0.0, 0.1)
        genes: NDArray[np.float64] = of_donor.normal(depth, DONOR_SD, n_vars)
        genes += of_run.normal(0.0, RUN_SD, n_vars)
        return genes.astype(np.float32)


def _add_programs(log_mean: Floats, free: NDArray[np.int64], rng: np.random.Generator) -> Any:
    """Add the programs of a random binary tree to `log_mean`; return each type's sibling."""
    n_types, n_vars = log_mean.shape
    partner = np.empty(n_types, np.int16)
    groups = [rng.permutation(n_types)]
    while groups:
        group = groups.pop()
        if len(group) < n_types:
            share, sd = (GROUP_GENES, GROUP_SD) if len(group) > 1 else (TYPE_GENES, TYPE_SD)
            genes = rng.choice(free, max(3, int(share * n_vars)), replace=False)
            # Mostly upwards, as markers are.
            log_mean[np.ix_(group, genes)] += rng.normal(sd / 2, sd, len(genes)).astype(np.float32)
        if len(group) > 1:
            at = int(rng.integers(max(1, len(group) // 3), len(group) // 2 + 1))
            left, right = group[:at], group[at:]
            partner[left], partner[right] = right[0], left[0]  # the last split to reach a type wins
            groups += [left, right]
    return partner


def _composition(
    n_obs: int, n_types: int, n_donors: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the number of cells of each type from each donor: Zipf shares, a few types rare."""
    cells = np.zeros((n_donors, n_types), np.int64)
    n_rare = max(1, n_types // 8)
    rare = int(np.clip(RARE_SHARE * n_obs, RARE_MIN, RARE_MAX))
    # A floor of cells in two donors (or one): a type seen in one donor only cannot be tested.
    homes = min(2, n_donors, max(1, n_obs // (2 * n_types)))
    floor = max(1, min(5, n_obs // (4 * n_types)))
    for t in range(n_types):
        cells[rng.choice(n_donors, homes, replace=False), t] = floor
    left = n_obs - int(cells.sum())
    for t in range(n_types - n_rare, n_types):
        more = max(0, min(rare - floor * homes, left // n_types))
        cells[:, t] += rng.multinomial(more, np.full(n_donors, 1.0 / n_donors))
        left -= more
    shares = np.arange(1, n_types - n_rare + 1, dtype=np.float64) ** -ZIPF
    size = rng.lognormal(0.0, 0.3, (n_donors, 1))
    weights = size * shares * rng.lognormal(0.0, 0.5, (n_donors, len(shares)))
    cells[:, : len(shares)] += rng.multinomial(left, (weights / weights.sum()).ravel()).reshape(
        weights.shape
    )
    return cells


def _log_depth(log_mean: Floats, share: NDArray[np.float64], genes_per_cell: int) -> float:
    """Solve for the log transcripts a cell that give `genes_per_cell` detected genes on average."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    depths = np.exp(DEPTH_SD * nodes - DEPTH_SD**2 / 2)
    top = np.argsort(share)[::-1][:16]  # sixteen types tell the mean to a few per cent

    low, high = -5.0, 25.0
    while high - low > 0.01:
        middle = (low + high) / 2
        rates = SHAPE * np.log1p(np.exp(log_mean[top] + np.float32(middle)) / SHAPE)
        seen = np.stack([-np.expm1(-rates * np.float32(d)).sum(axis=1) for d in depths], axis=1)
        detected = seen @ (weights / weights.sum()) @ (share[top] / share[top].sum())
        low, high = (middle, high) if detected < genes_per_cell else (low, middle)
    return low


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

    @property
    def stop(self) -> int:
        """Position after the last cell."""
        return self.start + len(self.types)


@dataclass(frozen=True, slots=True)
class _Tables:
    """Alias tables, burst parameters and mean numbers of bursts of each type in one segment."""

    alias: NDArray[np.uint32]
    burst: Floats
    rates: NDArray[np.float64]


def _blocks(model: _Model, n_jobs: int) -> Iterator[_Block]:
    """Generate the cells in order, `n_jobs` blocks at a time and a few ahead of the writer."""
    waiting: deque[Future[_Block]] = deque()
    with ThreadPoolExecutor(n_jobs) as pool:
        try:
            start = 0
            for donor in range(len(model.n_cells)):
                types = model.types(donor)
                for run, part in _runs(donor, len(model.n_cells), types):
                    tables = _tables(model, donor, run, part, pool)
                    for at in range(0, len(part), _BLOCK_SIZE):
                        codes = part[at : at + _BLOCK_SIZE]
                        block = pool.submit(_block, model, tables, start, donor, run, codes)
                        waiting.append(block)
                        start += len(codes)
                        if len(waiting) > n_jobs + 1:
                            yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # a failing writer must not wait for blocks that nobody will read
            for block in waiting:
                block.cancel()


def _n_runs(n_donors: int) -> int:
    return max(2, n_donors // 2)


def _runs(
    donor: int, n_donors: int, types: NDArray[np.int16]
) -> list[tuple[int, NDArray[np.int16]]]:
    """Split a donor's cells over two sequencing runs, which it shares with other donors."""
    n_runs, half = _n_runs(n_donors), (len(types) + 1) // 2
    parts = [(donor % n_runs, types[:half]), ((donor + 1) % n_runs, types[half:])]
    return [(run, part) for run, part in parts if len(part)]


def _tables(
    model: _Model, donor: int, run: int, types: NDArray[np.int16], pool: ThreadPoolExecutor
) -> _Tables:
    """Build the tables of the types among `types` and of their siblings."""
    n_types, n_vars = model.log_mean.shape
    alias = np.empty((n_types, n_vars, 2), np.uint32)
    burst = np.empty((n_types, n_vars), np.float32)
    rates = np.zeros(n_types)
    effect = model.effect(donor, run)
    present = np.unique(types)
    needed = np.union1d(present, model.partner[present])

    def build(t: int) -> float:
        return float(kernels.type_table(model.log_mean[t], effect, SHAPE, alias[t], burst[t]))

    rates[needed] = list(pool.map(build, needed))
    return _Tables(alias, burst, rates)


def _block(
    model: _Model, tables: _Tables, start: int, donor: int, run: int, types: NDArray[np.int16]
) -> _Block:
    own, other = np.empty((2, len(types)), np.int64)
    partner, seed = model.partner, np.uint64(model.seed)
    kernels.cell_bursts(
        seed, start, types, partner, tables.rates, DEPTH_SD, MIXED, MIXED_POWER, own, other
    )
    capacity = int(np.minimum(own + other, model.log_mean.shape[1]).sum())
    indptr = np.empty(len(types) + 1, np.int64)
    data, indices = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    kernels.cell_counts(
        seed, start, types, partner, own, other, tables.alias, tables.burst, indptr, data, indices
    )
    return _Block(start, donor, run, types, indptr, data[: indptr[-1]], indices[: indptr[-1]])


class _Column:
    """A growing array on disk that takes rows and writes whole chunks."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.chunk = array.chunks[0]
        self.waiting: list[NDArray[Any]] = []
        self.n_waiting = 0

    def append(self, values: NDArray[Any]) -> None:
        self.waiting.append(values)
        self.n_waiting += len(values)
        if self.n_waiting >= self.chunk:
            self._write(self.n_waiting - self.n_waiting % self.chunk)

    def close(self) -> None:
        if self.n_waiting:
            self._write(self.n_waiting)

    def _write(self, n: int) -> None:
        values = np.concatenate(self.waiting)
        end = self.array.shape[0]
        self.array.resize((end + n,))
        self.array[end : end + n] = values[:n]
        # A copy: a view would keep the whole block alive.
        self.waiting, self.n_waiting = [values[n:].copy()], len(values) - n


class _Atlas:
    """AnnData on disk whose X and obs grow block by block."""

    def __init__(self, path: Path, kind: str, codec: str, settings: dict[str, int]) -> None:
        n_types, n_donors = settings["n_types"], settings["n_donors"]
        self.h5 = kind == ".h5ad"
        self.codec = codec
        self.last = (n_donors - 1, n_donors % _n_runs(n_donors))
        self.root: Any = (
            h5py.File(path, "w") if self.h5 else zarr.open_group(path, mode="w", zarr_format=3)
        )
        categories = {
            "cell_type": _names("type", n_types),
            "donor_id": _names("donor", n_donors),
            "batch": _names("run", _n_runs(n_donors)),
        }
        obs = pd.DataFrame(
            {k: pd.Categorical([], categories=v) for k, v in categories.items()}
            | {"is_primary_data": np.empty(0, bool)},
            index=pd.Index([], dtype=str),
        )
        # anndata lays out its own format for no cells; what it made is then only appended to.
        # `shards` is named since anndata warns wherever it is left to decide.
        named = {} if self.h5 else {"shards": None}
        uns = {"simulate": {**settings, "generator": "streamtrain.simulate"}}
        empty = AnnData(obs=obs[[]], var=_var(settings["n_vars"]), uns=uns)
        write_elem(self.root, "/", empty, dataset_kwargs=named)
        grows = {"maxshape": (None,)} if self.h5 else named
        write_elem(self.root, "obs", obs, dataset_kwargs={**grows, "chunks": (_NAMES,)})
        x = self.root.create_group("X")
        shape = [settings["n_obs"], settings["n_vars"]]
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        names = {k: self.root[f"obs/{k}/codes"] for k in categories}
        names |= {k: self.root[f"obs/{k}"] for k in ("_index", "is_primary_data")}
        dtypes = {"data": np.float32, "indices": np.int32, "indptr": np.int64}
        arrays = names | {k: self._create(x, k, dtype) for k, dtype in dtypes.items()}
        self.columns = {k: _Column(array) for k, array in arrays.items()}
        self.columns["indptr"].append(np.zeros(1, np.int64))
        self.nnz = 0

    def _create(self, group: Any, name: str, dtype: type) -> Any:
        if self.h5:
            codec = None if self.codec == "none" else self.codec
            kwargs = {"maxshape": (None,), "chunks": (_H5_CHUNK,), "compression": codec}
            return group.create_dataset(name, shape=(0,), dtype=dtype, **kwargs)
        codecs = {"none": None, "zstd": ZstdCodec(), "blosc": BloscCodec(cname="lz4")}
        return group.create_array(
            name, shape=(0,), dtype=dtype, chunks=(_ZARR_CHUNK,), compressors=codecs[self.codec]
        )

    def append(self, block: _Block) -> None:
        """Append one block of cells."""
        n = len(block.types)
        rows: dict[str, NDArray[Any]] = {
            "data": block.data,
            "indices": block.indices,
            "indptr": block.indptr[1:] + self.nnz,
            "_index": np.array([f"cell_{i:08d}" for i in range(block.start, block.stop)], object),
            "cell_type": block.types,
            "donor_id": np.full(n, block.donor),
            "batch": np.full(n, block.run),
            # The last donor's second run stands for cells that another atlas published first.
            "is_primary_data": np.full(n, (block.donor, block.run) != self.last),
        }
        for name, values in rows.items():
            self.columns[name].append(values)
        self.nnz += len(block.data)

    def _narrow(self) -> None:
        """Store indptr as int32 where it fits: scipy wants one type for indices and indptr."""
        if self.nnz < 2**31:
            values = self.root["X/indptr"][:].astype(np.int32)
            del self.root["X/indptr"]
            array = self._create(self.root["X"], "indptr", np.int32)
            array.resize(values.shape)
            array[:] = values

    def __enter__(self) -> _Atlas:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                for column in self.columns.values():
                    column.close()
                self._narrow()
        finally:
            if self.h5:
                self.root.close()


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
