"""streamtrain evaluate: a model and labelled cells in, how well it calls them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from streamtrain.cli.options import (
    Adapt,
    AsJson,
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
    Whole,
    one,
)


def command(
    model: str,
    source: list[str],
    /,
    *,
    labels: str,
    mode: Literal["best match", "prob match"] = "best match",
    p_thres: float = 0.5,
    top_k: Whole = 3,
    parents: Path | None = None,
    held_out: bool | None = None,
    holdout: str | None = None,
    test_fraction: float | None = None,
    group: str | None = None,
    random_state: Whole = 0,
    drop_unlabeled: bool = False,
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
    mode
        As of streamtrain predict; with "prob match" cells with several types, or none, are wrong.
    p_thres
        Probability that "prob match" asks for.
    top_k
        Also give the share of cells whose type is among so many of highest score.
    parents
        CSV file with the columns child and parent; a type may have several parents.
    held_out
        Take the cells that training held out, and no others. The default does so where SOURCE is
        the atlas that MODEL was trained on, and MODEL names some; --no-held-out takes all cells.
    holdout
        Take the cells of some groups alone: donor_id=D3,D7.
    test_fraction
        Take groups drawn at random until they have about this share of the cells; the same ones as
        streamtrain train, of the same cells and seed.
    group
        Column of obs that has these groups.
    random_state
        Seed of the draw.
    drop_unlabeled
        Leave out cells without a label. By default they are an error.
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
            model, one(source), labels, genes, mode=mode, p_thres=p_thres, top_k=top_k,
            parents=parents, held_out=held_out, holdout=holdout, test_fraction=test_fraction,
            group=group, random_state=random_state, drop_unlabeled=drop_unlabeled, out=out,
            overwrite=overwrite, adapt=adapt, **vars(expression), **vars(scoring),
            progress=not running.quiet, storage_options=storage_options, client=client,
        )  # fmt: skip
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)
