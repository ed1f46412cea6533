"""streamtrain predict: a model and cells in, cell types out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from streamtrain.cli.options import (
    Adapt,
    Cluster,
    ClusterOptions,
    Expression,
    ExpressionOptions,
    GenesFile,
    Overwrite,
    Running,
    RunningOptions,
    Scoring,
    ScoringOptions,
    StorageOptions,
    one,
)
from streamtrain.errors import InputError


def command(
    model: str,
    source: list[str],
    /,
    *,
    out: Path | None = None,
    in_place: bool = False,
    prefix: str = "",
    mode: Literal["best match", "prob match"] = "best match",
    p_thres: float = 0.5,
    majority_voting: bool = False,
    over_clustering: str | None = None,
    min_prop: float = 0,
    probabilities: bool = False,
    scores: bool = False,
    adapt: Adapt = "none",
    genes: GenesFile = None,
    cells: Path | None = None,
    expression: ExpressionOptions = Expression(),
    scoring: ScoringOptions = Scoring(),
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    storage_options: StorageOptions = None,
) -> None:
    """Annotate the cells of SOURCE with MODEL, in a table or in columns of obs.

    Examples: streamtrain predict model.zarr new.h5ad --out predictions.parquet

    streamtrain predict model.pkl new.h5ad --in-place --majority-voting --over-clustering leiden

    Parameters
    ----------
    model
        A saved model, or one of CellTypist's (.pkl).
    source
        AnnData on disk, an .h5ad file or a zarr folder; or raw counts, which are normalised: a
        text table (.csv, .txt, .tsv, .tab), a Matrix Market file (.mtx), gzipped or not, or a 10x
        folder. Several AnnData are annotated each as by itself: their paths, a quoted pattern
        ("atlases/*.h5ad"), a folder of them, or a collection that annbatch wrote. They may
        lie on a server: s3://, gs://, az://, https://.
    out
        File for the predictions: .parquet, .csv or .csv.gz, one row a cell; or .h5ad or .zarr, if
        SOURCE is such a file: a copy of it whose obs has the predictions as well.
    in_place
        Add the predictions to obs of SOURCE itself, in place of --out; columns that exist are
        replaced with --overwrite. An .h5ad file is copied beside itself first, so that it is never
        left half-written.
    prefix
        Of the names of the columns of obs.
    mode
        "best match" gives each cell the type of the highest score; "prob match" every type whose
        probability exceeds p-thres, joined by "|", or Unassigned.
    p_thres
        Probability that "prob match" asks for.
    majority_voting
        Also give each cell the label that most cells of its cluster have.
    over_clustering
        The clusters for majority voting: a column of obs, or a text file with one a line. The
        default makes them by Leiden (needs scanpy and igraph).
    min_prop
        Clusters in which the most frequent label has a smaller share are Heterogeneous.
    probabilities
        Write the probability of every type as well.
    scores
        Write the decision score of every type as well.
    cells
        Text file with the names of the cells, one a line, for a matrix without them.
    """
    running.begin()
    if out is None and not in_place:
        raise InputError("say where the predictions go: --out FILE, or --in-place")
    from streamtrain.predict import predict as run

    with cluster.client(vars(scoring)) as client:
        run(
            model, one(source), genes, mode=mode, p_thres=p_thres, majority_voting=majority_voting,
            over_clustering=over_clustering, min_prop=min_prop, probabilities=probabilities,
            scores=scores, adapt=adapt, out=out, in_place=in_place, prefix=prefix,
            overwrite=overwrite, cells=cells, **vars(expression), **vars(scoring),
            progress=not running.quiet, storage_options=storage_options, client=client,
        )  # fmt: skip
    if not running.quiet:
        print(f"saved as {out}" if out is not None else f"added to obs of {source[0]}")
