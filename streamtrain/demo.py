"""A whole run on a synthetic atlas: simulate, train, predict held-out donors, report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from streamtrain.atomic import check_output
from streamtrain.errors import InputError
from streamtrain.evaluate_model import evaluate_model
from streamtrain.predict import predict
from streamtrain.report import report
from streamtrain.simulate import simulate
from streamtrain.sources import open_source
from streamtrain.train import train


def demo(folder: Path, *, overwrite: bool = False, progress: bool = True) -> Iterator[str]:
    """Write atlas, model, predictions and a report into `folder`.

    Yields
    ------
    str
        What was done and how well, line by line, as it happens.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file, and the demo writes a folder: name another")
    folder.mkdir(parents=True, exist_ok=True)
    atlas, model_path = folder / "atlas.zarr", folder / "model.zarr"
    pickle, table = folder / "celltypist.pkl", folder / "predictions.parquet"
    page = folder / "report.html"
    for path in (atlas, model_path, pickle, table, page):
        check_output(path, overwrite)

    yield f"Simulating 20,000 cells x 2,000 genes, 12 cell types, 6 donors: {atlas}"
    simulate(atlas, overwrite=overwrite, progress=progress)
    with closing(open_source(atlas)) as source:
        donors = sorted(source.obs("donor_id").unique())
    held_out = donors[-2:]

    yield f"Training on {len(donors) - 2} donors (balanced, averaged mini-batch SGD): {model_path}"
    model = train(
        atlas,
        "cell_type",
        holdout=f"donor_id={','.join(held_out)}",
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
    where = f"donor_id in [{', '.join(map(repr, held_out))}]"
    predict(
        model, atlas, where=where, normalize="log1p", out=table, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    evaluation = evaluate_model(model, atlas, "cell_type", normalize="log1p", progress=progress)
    report(
        model_path, atlas, "cell_type", evaluation=evaluation, normalize="log1p", out=page,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip

    yield ""
    yield evaluation.to_table()
    yield ""
    yield f"The report, for a browser: {page}"
    yield f"The model for CellTypist: celltypist.annotate(adata, model={str(pickle.absolute())!r})"
