"""streamtrain evaluate: a model and labelled cells in, how well it calls them out."""

from __future__ import annotations

import json
from pathlib import Path

from streamtrain.cli.options import (
    Adapt,
    AsJson,
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
    one,
)


def command(
    model: str,
    source: list[str],
    /,
    *,
    labels: str,
    judging: JudgingOptions = Judging(),
    out: Path | None = None,
    as_json: AsJson = False,
    adapt: Adapt = "none",
    genes: GenesFile = None,
    expression: ExpressionOptions = Expression(),
    scoring: ScoringOptions = Scoring(),
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    storage_options: StorageOptions = None,
) -> None:
    """Call the labelled cells of SOURCE by MODEL, and score the calls.

    Examples: hold donors out of training, then evaluate on them, which the model knows:

    streamtrain train atlas.h5ad --labels cell_type --holdout donor_id=D3,D7 --out model.zarr

    streamtrain evaluate model.zarr atlas.h5ad --labels cell_type

    A fifth of the cells, whole donors drawn at random:

    streamtrain train atlas.h5ad --labels cell_type --test-fraction 0.2 --group donor_id
    --out model.zarr

    Another study, whose labels are coarser or finer, with a table of the columns child,parent:

    streamtrain evaluate model.zarr other.h5ad --labels cell_type --parents ontology.csv
    --out scores.json

    Printed are precision, recall and F1 of each cell type, F1 by size, the calibration curve and a
    summary. Cells of types that the model does not have count as wrong; the column "known types"
    leaves them out. In the column "ontology" a call that descends from the true type is right, and
    "coarser" is the share of cells called by an ancestor of theirs.

    Parameters
    ----------
    model
        A saved model, or one of CellTypist's (.pkl).
    source
        As of streamtrain predict.
    labels
        Column of obs with the true cell types, or a text file with one label a line.
    out
        Also write the scores: .json has everything, .csv each cell type, and a folder (no ending)
        everything and each table.
    as_json
        Print everything as JSON.
    """
    running.begin()
    from streamtrain.evaluate_model import evaluate_model as run

    with cluster.client(vars(scoring)) as client:
        found = run(
            model, one(source), labels, genes, **vars(judging), out=out,
            overwrite=overwrite, adapt=adapt, **vars(expression), **vars(scoring),
            progress=not running.quiet, storage_options=storage_options, client=client,
        )  # fmt: skip
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)
