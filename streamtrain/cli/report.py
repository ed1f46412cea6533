"""streamtrain report: a model, and labelled cells, in; a page on it out."""

from __future__ import annotations

from pathlib import Path

from streamtrain.cli.options import (
    Adapt,
    Cluster,
    ClusterOptions,
    Expression,
    ExpressionOptions,
    GenesFile,
    Judging,
    JudgingOptions,
    Overwrite,
    Running,
    RunningOptions,
    Scoring,
    ScoringOptions,
    StorageOptions,
    Whole,
    one,
)


def command(
    model: str,
    source: list[str] | None = None,
    /,
    *,
    out: Path,
    labels: str | None = None,
    markers: Whole = 5,
    figures: Path | None = None,
    title: str | None = None,
    judging: JudgingOptions = Judging(),
    adapt: Adapt = "none",
    genes: GenesFile = None,
    expression: ExpressionOptions = Expression(),
    scoring: ScoringOptions = Scoring(),
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    storage_options: StorageOptions = None,
) -> None:
    """Write a page on MODEL, as HTML in one file: how it was trained, and how well it calls cells.

    Examples: what the model alone tells, which is its training, class balance, coefficients,
    settings and provenance:

    streamtrain report model.zarr --out report.html

    And how it calls labelled cells (those held out of training, where SOURCE is the atlas that it
    is from), with their expression of the marker genes:

    streamtrain report model.zarr atlas.h5ad --labels cell_type --out report.html

    The figures as PNG, too, of which slides are made:

    streamtrain report model.zarr atlas.h5ad --labels cell_type --out report.html --figures figures

    The page needs no network and no JavaScript, and prints on A4. Its numbers are those of
    streamtrain evaluate. Cells are read twice; memory does not grow with them.

    Parameters
    ----------
    model
        A saved model, or one of CellTypist's (.pkl).
    source
        As of streamtrain predict; by default none, for what the model alone tells.
    out
        The page, ending in .html.
    labels
        Column of obs with the true cell types, or a text file with one label a line.
    markers
        Genes of each type, those of the highest coefficients.
    figures
        Folder for the figures as PNG.
    title
        Heading of the page. The default is the name of MODEL.
    """
    running.begin()
    from streamtrain.report import report as run

    with cluster.client(vars(scoring)) as client:
        run(
            model, one(source) if source else None, labels, genes, out=out, markers=markers,
            figures=figures, title=title, **vars(judging),
            overwrite=overwrite, adapt=adapt, **vars(expression), **vars(scoring),
            progress=not running.quiet, storage_options=storage_options, client=client,
        )  # fmt: skip
    if not running.quiet:
        print(f"saved as {out}")
