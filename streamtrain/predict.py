"""predict(): a Model and cells on disk in, one predicted type a cell out; streamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.atomic import check_output, replacing
from streamtrain.budget import BLOCK, READING_RESERVE, format_bytes, parse_bytes
from streamtrain.cells import name_cell, select_rows
from streamtrain.errors import InputError
from streamtrain.expression import Expression, Normalize
from streamtrain.kernels import predict as kernel
from streamtrain.model import Model
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler, places
from streamtrain.sources import open_source
from streamtrain.sources.base import Source
from streamtrain.streaming import sweep
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

Mode = Literal["best match", "prob match"]
UNASSIGNED = "Unassigned"
COLUMNS = ("cell", "predicted_labels", "conf_score")


class Scorer:
    """Scores of cells under a model, by CellTypist's rules.

    The genes that model and source share are scaled by the model's mean and standard deviation
    and clipped at 10; a gene of the model that the source lacks contributes nothing, which is its
    mean. All in float64.

    Parameters
    ----------
    model
        The classifier.
    genes
        Gene names of the source, shape (n_vars,).
    name
        The source, for messages.

    Raises
    ------
    InputError
        If no gene is shared.
    """

    def __init__(
        self, model: Model, genes: NDArray[np.object_], name: str, threads: Threads
    ) -> None:
        at = pd.Index(genes).get_indexer(pd.Index(model.features))
        shared = np.flatnonzero(at >= 0)
        if len(shared) == 0:
            raise InputError(
                f"{name}: none of its {len(genes):,} genes is in the model; it has names such as "
                f"{_some(genes)}, the model {_some(model.features)}: gene names may stand in "
                "another column of var (gene_key, --gene-key)"
            )
        logger.info("%s: %d of the model's %d genes", name, len(shared), len(at))
        if len(shared) < len(at) / 2:
            logger.warning(
                "%s: only %d of the model's %d genes are there; predictions may be poor",
                name, len(shared), len(at),
            )  # fmt: skip
        data = model.dataset
        self._scale = Scaler(
            data["mean"].to_numpy()[shared],
            data["scale"].to_numpy()[shared],
            places(at[shared], len(genes)),
            with_mean=bool(data.attrs["with_mean"]),
            dtype=np.float64,
        )
        coef = data["coef"].to_numpy()[:, shared].astype(np.float64)
        self._weights = np.ascontiguousarray(coef.T)
        self._constant = data["intercept"].to_numpy().astype(np.float64) - coef @ self._scale.shift
        self._threads = threads

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes), of normalised cells."""
        cells = self._scale(rows).rows
        out = np.empty((cells.n_obs, len(self._constant)))
        self._threads.share(
            cells.n_obs,
            lambda lo, hi: kernel.scores(
                cells.data, cells.indices, cells.indptr, self._weights, self._constant, lo, hi, out
            ),
        )
        return out


def predict(
    model: Model | str | os.PathLike[str],
    X: Any,
    genes: Sequence[str] | NDArray[Any] | None = None,
    *,
    mode: Mode = "best match",
    p_thres: float = 0.5,
    probabilities: bool = False,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    normalize: Normalize = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    where: str | None = None,
    memory: int | str | None = None,
    scratch: str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> pd.DataFrame | None:
    """Annotate cells with a model, by CellTypist's rules, without holding them in memory.

    Parameters
    ----------
    model
        A `Model`, or the path of a saved one.
    X, genes
        Cells x genes, as in `train`.
    mode
        "best match" gives each cell the type of the highest score; "prob match" every type with a
        probability above `p_thres`, joined by "|", or "Unassigned".
    p_thres
        Probability that "prob match" asks for.
    probabilities
        Add a column for each type with its probability (of the type against the rest).
    out
        Write to this .parquet or .csv file, block by block, instead of returning a DataFrame.
    overwrite
        Replace `out` if it exists.
    normalize
        "log1p" for raw counts.
    check_expression
        Require values in the range of log1p expression normalised to 10,000, and warn of cells
        that are not.
    layer, gene_key, where, memory, scratch, n_jobs
        As in `train`.
    progress
        Show progress on standard error if it takes more than two seconds.

    Returns
    -------
    DataFrame or None
        Indexed by cell name: `predicted_labels`, and `conf_score`, the highest probability.
        None with `out`.

    Raises
    ------
    InputError
        If model or cells cannot be used, or `out` exists.
    FileNotFoundError
        If a path does not exist.
    """
    if mode not in ("best match", "prob match"):
        raise InputError(f"mode must be 'best match' or 'prob match'; got {mode!r}")
    if not isinstance(p_thres, Real) or not 0 <= p_thres <= 1:
        raise InputError(f"p_thres must be a probability; got {p_thres!r}")
    sink: AbstractContextManager[_Sink] = _open_sink(out, overwrite)
    if not isinstance(model, Model):
        if not isinstance(model, (str, os.PathLike)):
            raise InputError(f"model must be a Model or the path of one; got {model!r}")
        model = Model.load(model)
    taken = sorted(set(COLUMNS) & set(model.cell_types)) if probabilities else []
    if taken:
        raise InputError(
            f"probabilities=True adds a column for each cell type, and the cell type {taken[0]!r} "
            "has the name of another column: leave probabilities out"
        )
    budget = parse_bytes(memory)
    with (
        closing(
            open_source(
                X, layer=layer, gene_key=gene_key, genes=genes,
                memory=budget // 4, scratch=scratch,
            )
        ) as source,
        Threads(n_jobs) as threads,
    ):  # fmt: skip
        rows = select_rows(source, where)
        n_obs = source.n_obs if rows is None else len(rows)
        if n_obs == 0:
            raise InputError(f"{source.name} has no cells")
        scorer = Scorer(model, source.genes, source.name, threads)
        expression = Expression(
            source.name,
            normalize=normalize,
            check="range" if check_expression else None,
            dtype=np.float64,
            cell=lambda position: name_cell(source, rows, position),
            gene=lambda position: str(source.genes[position]),
            threads=threads,
        )
        block, most = _block(budget, model, source, probabilities)
        with sink as table:
            blocks = counted(sweep(source, rows, block, most), "Predicting", n_obs, show=progress)
            for position, stored in blocks:
                scores = scorer(expression(stored, position))
                names = _names(source, rows, position, stored.n_obs)
                table.add(annotate(scores, model.cell_types, names, mode, p_thres, probabilities))
            expression.finish()
        return table.result()


def annotate(
    scores: NDArray[np.float64],
    cell_types: NDArray[np.object_],
    names: NDArray[np.object_],
    mode: Mode,
    p_thres: float,
    probabilities: bool,
) -> pd.DataFrame:
    """Turn scores, shape (n_obs, n_classes), into labels and confidences."""
    with np.errstate(over="ignore"):  # exp(-score) of a hopeless score is inf, its probability 0
        probability = 1 / (1 + np.exp(-scores))
    if mode == "best match":
        labels: Any = pd.Categorical.from_codes(
            scores.argmax(axis=1), categories=pd.Index(cell_types)
        )
    else:
        joined = [
            "|".join(cell_types[row]) if row.any() else UNASSIGNED for row in probability > p_thres
        ]
        labels = np.array(joined, dtype=object)
    table = pd.DataFrame(
        {"predicted_labels": labels, "conf_score": probability.max(axis=1)},
        index=pd.Index(names, name="cell"),
    )
    if probabilities:
        more = pd.DataFrame(probability, columns=list(cell_types), index=table.index)
        table = pd.concat([table, more], axis=1)
    return table


def _names(
    source: Source, rows: NDArray[np.int64] | None, position: int, n: int
) -> NDArray[np.object_]:
    if rows is None:
        return source.obs_names(position, position + n)
    wanted = rows[position : position + n]
    first = int(wanted[0])
    return source.obs_names(first, int(wanted[-1]) + 1)[wanted - first]


def _some(names: NDArray[np.object_]) -> str:
    return ", ".join(repr(str(n)) for n in names[:3])


def _block(budget: int, model: Model, source: Source, probabilities: bool) -> tuple[int, int]:
    """Bytes of a block of stored cells, and the most cells that one may hold.

    Half of what is left beside the weights goes to the cells: alive at a time are two blocks as
    stored and as read, and the normalised and scaled values in float64. The other half goes to
    what a cell gets, however sparse it is: scores and probabilities, a copy for the table and one
    for the file, its name and labels.
    """
    n_classes = len(model.cell_types)
    fixed = 2 * model.dataset["coef"].size * 8 + 12 * 8 * source.n_vars + READING_RESERVE
    least = 8 * 10**6
    if budget < fixed + least:
        raise InputError(
            f"memory={format_bytes(budget)} is too small for this model: at least "
            f"{format_bytes(fixed + least)} are needed"
        )
    room = (budget - fixed) // 2
    per_cell = 8 * n_classes * (8 if probabilities else 4) + 500
    return min(room // 10, BLOCK), max(1, room // per_cell)


class _Sink(Protocol):
    """Where annotated blocks go."""

    def add(self, block: pd.DataFrame) -> None:
        """Take the next cells."""
        ...

    def result(self) -> pd.DataFrame | None:
        """What predict() returns."""
        ...


class _Frame:
    """Keep the blocks and return them as one DataFrame."""

    def __init__(self) -> None:
        self._blocks: list[pd.DataFrame] = []

    def add(self, block: pd.DataFrame) -> None:
        self._blocks.append(block)

    def result(self) -> pd.DataFrame:
        table = pd.concat(self._blocks)
        labels = table["predicted_labels"]
        if labels.dtype == object:  # "prob match": the combinations that occurred
            table["predicted_labels"] = labels.astype("category")
        return table


class _File:
    """Append the blocks to a parquet or CSV file."""

    def __init__(self, path: Path, parquet: bool) -> None:
        self._path, self._parquet = path, parquet
        self._writer: Any = None

    def add(self, block: pd.DataFrame) -> None:
        if not self._parquet:
            block.to_csv(self._path, mode="a", header=self._writer is None)
            self._writer = True
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(block.reset_index(), preserve_index=False)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def result(self) -> None:
        return None

    def close(self) -> None:
        """End the file; nothing may be added after."""
        if self._parquet and self._writer is not None:
            self._writer.close()


def _open_sink(
    out: str | os.PathLike[str] | None, overwrite: bool
) -> AbstractContextManager[_Sink]:
    if out is None:
        return nullcontext(_Frame())
    path = Path(out)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"out must end in .parquet or .csv; got {str(out)!r}")
    check_output(path, overwrite)
    return _file(path, overwrite)


@contextmanager
def _file(path: Path, overwrite: bool) -> Iterator[_Sink]:
    with (
        replacing(path, overwrite) as partial,
        closing(_File(partial, path.suffix.lower() == ".parquet")) as file,
    ):
        yield file
