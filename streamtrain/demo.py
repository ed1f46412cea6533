"""A whole run on a synthetic atlas: simulate, train, predict held-out donors, evaluate, draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pandas as pd

from streamtrain.atomic import check_output
from streamtrain.evaluate import evaluate
from streamtrain.plot import confusion_matrix, save_figure
from streamtrain.predict import predict
from streamtrain.simulate import simulate
from streamtrain.sources import open_source
from streamtrain.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def demo(folder: Path, *, overwrite: bool = False, progress: bool = True) -> Iterator[str]:
    """Write atlas, model, predictions and a confusion matrix into `folder`.

    Yields
    ------
    str
        What was done and how well, line by line, as it happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atlas, model_path = folder / "atlas.zarr", folder / "model.zarr"
    pickle, table = folder / "celltypist.pkl", folder / "predictions.parquet"
    picture = folder / "confusion.png"
    for path in (atlas, model_path, pickle, table, picture):
        check_output(path, overwrite)

    yield f"Simulating 20,000 cells x 2,000 genes, 12 cell types, 6 donors: {atlas}"
    simulate(atlas, overwrite=overwrite, progress=progress)
    with closing(open_source(atlas)) as source:
        donor, cell_type = source.obs("donor_id"), source.obs("cell_type")
    donors = sorted(donor.unique())
    held_out = donors[-2:]
    names = ", ".join(map(repr, held_out))

    yield f"Training on {len(donors) - 2} donors (balanced, averaged mini-batch SGD): {model_path}"
    model = train(
        atlas,
        "cell_type",
        where=f"donor_id not in [{names}]",
        normalize="log1p",
        use_SGD=True,
        mini_batch=True,
        balance_cell_type=True,
        average=True,
        batch_size=500,
        progress=progress,
    )
    model.save(model_path, overwrite=overwrite)
    model.to_celltypist(pickle, overwrite=overwrite)

    yield f"Predicting the other two, {' and '.join(held_out)}: {table}"
    where = f"donor_id in [{names}]"
    predict(
        model, atlas, where=where, normalize="log1p", out=table, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    truth = cell_type[donor.isin(held_out)]
    evaluation = evaluate(truth, pd.read_parquet(table)["predicted_labels"])
    figure = cast("Figure", confusion_matrix(evaluation).figure)
    save_figure(figure, picture, overwrite=overwrite)

    yield ""
    yield evaluation.to_table()
    yield ""
    yield f"Confusion matrix: {picture}"
    yield f"The model for CellTypist: celltypist.annotate(adata, model={str(pickle)!r})"
