"""predict(): a Model and cells on disk in, one predicted type a cell out; streamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain import overcluster
from streamtrain.adapt import Adapt
from streamtrain.annotating import Detail
from streamtrain.annotations import (
    TABLES,
    Calls,
    Frame,
    Kept,
    Layout,
    ObsOutput,
    Output,
    TableFile,
)
from streamtrain.budget import parse_bytes
from streamtrain.cells import Labels, require_file, select_rows
from streamtrain.decode.address import Address
from streamtrain.errors import InputError
from streamtrain.expression import Normalize
from streamtrain.given import PredictGiven
from streamtrain.model import Model
from streamtrain.obs_columns import ObsFile
from streamtrain.overcluster import over_cluster
from streamtrain.querying import (
    adapted,
    check_rule,
    device_of,
    files_of,
    keep_inputs,
    model_of,
    opened,
    passes_of,
    query_of,
)
from streamtrain.sources import is_text
from streamtrain.sources.base import Source
from streamtrain.sources.lines import read_lines
from streamtrain.sources.members import Members
from streamtrain.voting import given_clusters, majority

logger = logging.getLogger(__name__)

Mode = Literal["best match", "prob match"]
Names = Sequence[str] | NDArray[Any] | str | os.PathLike[str] | None
COPIES = (".h5ad", ".zarr")
LABELLED = ("predicted_labels", "conf_score")
VOTED = ("predicted_labels", "over_clustering", "majority_voting", "conf_score")


@overload
def predict(
    model: Model | str | os.PathLike[str],
    X: Any,
    genes: Names = ...,
    *,
    out: None = ...,
    in_place: Literal[False] = ...,
    **options: Unpack[PredictGiven],
) -> pd.DataFrame: ...
@overload
def predict(
    model: Model | str | os.PathLike[str],
    X: Any,
    genes: Names = ...,
    *,
    out: str | os.PathLike[str] | None = ...,
    in_place: bool = ...,
    **options: Unpack[PredictGiven],
) -> pd.DataFrame | None: ...
def predict(
    model: Model | str | os.PathLike[str],
    X: Any,
    genes: Names = None,
    *,
    mode: Mode = "best match",
    p_thres: float = 0.5,
    majority_voting: bool = False,
    over_clustering: Labels | None = None,
    min_prop: float = 0,
    probabilities: bool = False,
    scores: bool = False,
    adapt: Adapt = "none",
    out: str | os.PathLike[str] | None = None,
    in_place: bool = False,
    prefix: str = "",
    overwrite: bool = False,
    normalize: Normalize = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    cells: Names = None,
    transpose_input: bool = False,
    where: str | None = None,
    memory: int | str | None = None,
    scratch: str | None = None,
    n_jobs: int | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    gpu_memory: int | str | None = None,
    client: Any = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> pd.DataFrame | None:
    """Annotate cells with a model, by CellTypist's rules, without holding them in memory.

    Parameters
    ----------
    model
        A `Model`, or the path of a saved one.
    X, genes
        Cells x genes, as in `train`; gene names also as the path of a text file with one a line.
        Cells of several files are annotated as each file alone would be.
    mode
        "best match" gives each cell the type of the highest score; "prob match" every type with a
        probability above `p_thres`, joined by "|", or "Unassigned".
    p_thres
        Probability that "prob match" asks for.
    majority_voting
        Also give each cell the label that most cells of its cluster have; of equally frequent
        ones the first in the order of text. (CellTypist does not vote on 50 cells or fewer.)
    over_clustering
        The clusters, many and small, for `majority_voting`: name of an obs column, path of a text
        file with one a line, or a list-like, of all cells of X. None makes them by Leiden, on the
        graph in ``obsp["connectivities"]`` or of principal components, either of X or computed;
        this needs scanpy and igraph, and about 3 kB a cell. They differ from those of
        CellTypist, except on a stored graph.
    min_prop
        Clusters in which the most frequent label has a smaller share are "Heterogeneous".
    probabilities
        Add a column for each type with its probability: of the type against the rest, or, where the
        model is calibrated, of all types, adding up to 1.
    scores
        Add a column for each type with its decision score, instead.
    adapt
        For cells unlike those of training, of another chemistry or with fewer genes. "genes" scales
        each gene by its mean and standard deviation over the cells of X (of each file by itself),
        in place of the model's: much better where these differ for technical reasons, worse where
        they do because X is made up of other cell types. "auto" leaves the cells as they are
        unless predictions then tell more of them, and says what it did, with a warning where it
        adapts: half-way to their mean and to the geometric mean of both standard deviations, or
        wholly where predictions then tell still more. Both read X once more, "auto" also 4,096
        cells spread over each file.
    out
        Write to this file instead of returning a DataFrame: .parquet, .csv or .csv.gz, one row a
        cell; or, where X is the path of such a file, .h5ad or .zarr: a copy of it whose obs has the
        columns as well. Cells that `where` leaves out are missing there.
    in_place
        Add the columns to obs of X itself, an .h5ad file or a zarr folder. The file is never left
        half-written: an .h5ad is copied beside itself first, which takes its size on disk.
    prefix
        Of the names of obs columns.
    overwrite
        Replace `out`, or columns of obs, if they exist; but never the column that
        `over_clustering` names.
    normalize
        "log1p" for raw counts. Text tables are taken as counts.
    check_expression
        Require values in the range of log1p expression normalised to 10,000, and warn of cells
        that are not. Of text tables fractions are warned of, and no more, as in `train`.
    layer, gene_key, where, memory, scratch, n_jobs, device, gpu_memory
        As in `train`.
    client
        A dask.distributed Client, whose workers then predict ranges of the cells, each within
        `memory` and on `n_jobs` of its own threads; what they find is written here. X is a path or
        address of .h5ad or zarr that all of them can open. The result is the same, to the bit.
        Clusters that majority voting makes are made here, as is the choice of "auto".
    cells
        Names of the cells, where X has none: a list, or a text file with one a line.
    transpose_input
        Whether a text table is genes x cells.
    progress
        Show progress on standard error if it takes more than two seconds.
    storage_options
        As in `train`.

    Returns
    -------
    DataFrame or None
        Indexed by cell name: `predicted_labels`; with `majority_voting` also `over_clustering` and
        `majority_voting`; and `conf_score`, the highest probability. None with `out` or `in_place`.
        With `adapt`, what it did stands in `attrs["adapt"]`, a dict for each file: whether it
        `adapted`, the `way` (0.5 half-way, 1 wholly), the `evidence` and the `reason` in words.

    Raises
    ------
    InputError
        If model or cells cannot be used, or `out` or a column exists.
    FileNotFoundError
        If X or the model does not exist.
    """
    check_rule(
        mode, p_thres, adapt, normalize, majority_voting=majority_voting,
        probabilities=probabilities, scores=scores, in_place=in_place, overwrite=overwrite,
        check_expression=check_expression, transpose_input=transpose_input,
    )  # fmt: skip
    if not isinstance(min_prop, Real) or not 0 <= min_prop <= 1:
        raise InputError(f"min_prop must be a share from 0 to 1; got {min_prop!r}")
    if min_prop and not majority_voting:
        logger.warning("min_prop is ignored: it is for majority_voting=True")
    if over_clustering is not None and not majority_voting:
        raise InputError(
            "over_clustering is for majority voting: pass majority_voting=True (--majority-voting)"
        )
    if probabilities and scores:
        raise InputError(
            "probabilities and scores both add a column for each cell type: choose one"
        )
    on = device_of(device, gpu_memory, client)
    X = files_of(X, storage_options)
    file = _file(X, out, in_place, prefix, overwrite, progress)
    inputs = {
        "X": X, "model": model, "genes": genes, "cells": cells, "over_clustering": over_clustering,
    }  # fmt: skip
    if out is not None:
        keep_inputs(out, inputs)
    for what in ("genes", "cells", *(["over_clustering"] if is_text(X) else [])):
        require_file(inputs[what], what)
    model = model_of(model)
    detail: Detail = "probabilities" if probabilities else "scores" if scores else None
    details = [] if detail is None else list(model.cell_types)
    columns = [*(VOTED if majority_voting else LABELLED), *details]
    taken = sorted({"cell", *VOTED} & set(details))
    if taken:
        raise InputError(
            f"probabilities=True and scores=True add a column for each cell type, and the cell "
            f"type {taken[0]!r} has the name of another column: leave them out"
        )
    budget = parse_bytes(memory)
    with ExitStack() as stack:
        source, threads = stack.enter_context(
            opened(
                X, genes, normalize=normalize, check_expression=check_expression, layer=layer,
                gene_key=gene_key, transpose_input=transpose_input, budget=budget, scratch=scratch,
                n_jobs=n_jobs, device=on, client=client, progress=progress,
            )
        )  # fmt: skip
        rows = select_rows(source, where)
        n_obs = source.n_obs if rows is None else len(rows)
        if n_obs == 0:
            raise InputError(f"{source.name} has no cells: name another file")
        output: Output
        if isinstance(file, ObsFile):
            named = isinstance(over_clustering, str) and over_clustering in source.obs_columns()
            kept_column = str(over_clustering) if named else None
            output = ObsOutput(file, prefix, source.n_obs, rows, scratch, kept_column)
        else:
            output = file or Frame()
        output.check(columns)
        clusters = None
        if majority_voting and over_clustering is not None:
            clusters = given_clusters(source, over_clustering, rows)
        elif majority_voting:
            overcluster.check(n_obs, budget)
        query, beside = query_of(
            model, source, rows, p_thres=p_thres if mode == "prob match" else None, detail=detail,
            adapt=adapt, normalize=normalize, check_expression=check_expression, budget=budget,
            threads=threads, device=on, progress=progress,
        )  # fmt: skip
        layout = Layout(
            labels=list(model.cell_types) if query.joined is None else query.joined.names,
            fixed=query.joined is None,
            details=details,
            names=_names(source, rows, cells),
        )
        passes = stack.enter_context(passes_of(query, client, memory, n_jobs, beside))
        calls: Iterable[Calls]
        calls, decisions = adapted(query, passes, adapt)
        if majority_voting:
            calls = kept = Kept(calls, n_obs, 1 + len(details), scratch)
            layout.clusters = clusters or over_cluster(
                None if source.is_table or isinstance(X, Members) else X, rows, source.n_vars,
                lambda: query.expressed("Reading"),
                threads=threads, scratch=scratch, show=progress,
            )  # fmt: skip
            layout.majority = majority(layout.clusters, kept.pieces(), layout.labels, min_prop)
        table = output.write(layout, calls)
        if table is not None and decisions:
            table.attrs["adapt"] = decisions
        return table


def _file(
    X: Any,
    out: str | os.PathLike[str] | None,
    in_place: bool,
    prefix: str,
    overwrite: bool,
    progress: bool,
) -> TableFile | ObsFile | None:
    """Open what is written to, checking first that it can be; None for a DataFrame."""
    if in_place and out is not None:
        raise InputError("choose either out (--out) or in_place (--in-place), not both")
    table = out is not None and str(out).lower().endswith(TABLES)
    copy = out is not None and Path(out).suffix.lower() in COPIES
    if out is not None and not (table or copy):
        raise InputError(f"out must end in {', '.join(TABLES)}, .h5ad or .zarr; got {str(out)!r}")
    if prefix and not (copy or in_place):
        raise InputError(
            f"prefix={prefix!r} is for obs columns: pass in_place=True, or out=COPY.h5ad or .zarr"
        )
    if out is not None and table:
        return TableFile(out, overwrite)
    if not (copy or in_place):
        return None
    if isinstance(X, Address):
        raise InputError(
            f"no columns can be added to {X.name}, on a server: write to .parquet or .csv instead"
        )
    if isinstance(X, Members):
        raise InputError(
            f"obs columns are added to one .h5ad file or zarr folder, and {X.name} is several: "
            "predict each by itself, or write to .parquet or .csv"
        )
    if not isinstance(X, (str, os.PathLike)):
        raise InputError(
            "obs columns are added to an .h5ad file or a zarr folder, and X is a "
            f"{type(X).__name__}: assign the DataFrame that predict() returns"
        )
    return ObsFile(X, out, overwrite, progress)


def _names(
    source: Source,
    rows: NDArray[np.int64] | None,
    given: Names,
) -> Callable[[int, int], NDArray[np.object_]]:
    """Give a function to the names of the selected cells start to stop."""
    found = source.obs_names
    if given is not None:
        lines = read_lines(given, "cells") if isinstance(given, (str, os.PathLike)) else given
        names: NDArray[np.object_] = np.array([str(name) for name in lines], dtype=object)
        if len(names) != source.n_obs:
            raise InputError(
                f"cells must hold one name for each cell; got {len(names):,} for "
                f"{source.n_obs:,} cells of {source.name}: give "
                "one a cell, in their order"
            )
        found = lambda start, stop: names[start:stop]  # noqa: E731

    def selected(start: int, stop: int) -> NDArray[np.object_]:
        if rows is None:
            return found(start, stop)
        wanted = rows[start:stop]
        first = int(wanted[0])
        return found(first, int(wanted[-1]) + 1)[wanted - first]

    return selected
