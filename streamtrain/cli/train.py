"""streamtrain train: atlases and settings in, a model out."""

from __future__ import annotations

from pathlib import Path

from streamtrain.cli.options import (
    Cluster,
    ClusterOptions,
    GenesFile,
    Overwrite,
    Running,
    RunningOptions,
    StorageOptions,
    one,
)
from streamtrain.cli.settings import Given, SettingsGiven
from streamtrain.errors import InputError


def command(
    source: list[str],
    /,
    *,
    labels: str,
    out: Path,
    celltypist: Path | None = None,
    genes: GenesFile = None,
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    checkpoint: Path | None = None,
    checkpoint_every: float = 600.0,
    resume: bool = False,
    storage_options: StorageOptions = None,
    settings: SettingsGiven = Given(),
) -> None:
    """Train a classifier on the cells of SOURCE and save it.

    Examples: streamtrain train atlas.h5ad --labels cell_type --out model.zarr

    streamtrain train atlas.h5ad --labels cell_type --recipe atlas --validation-groups donor_id
    --out model.zarr

    streamtrain train atlas.h5ad --labels cell_type --holdout donor_id=D3,D7 --out model.zarr

    streamtrain train lung.h5ad gut.zarr --join outer --labels cell_type --out model.zarr

    streamtrain train atlas.zarr --labels cell_type --scheduler tcp://head:8786 --out model.zarr

    streamtrain train --config run.toml --out model.zarr

    Parameters
    ----------
    source
        AnnData on disk, an .h5ad file or a zarr folder; or raw counts, which are normalised: a
        text table (.csv, .txt, .tsv, .tab), a Matrix Market file (.mtx), gzipped or not, or a 10x
        folder. Several AnnData as one: their paths, a quoted pattern ("atlases/*.h5ad"), a folder
        of them, or a collection that annbatch wrote. They may lie on a server:
        s3://, gs://, az://, https://.
    labels
        Column of obs with the cell types, or a text file with one label a line.
    out
        Folder for the model, ending in .zarr by custom.
    celltypist
        Also write the model for CellTypist, to this .pkl file.
    checkpoint
        Folder in which the run is kept while it goes on, to be resumed after a kill, or after
        Ctrl-C or SIGTERM, on which it is saved first, or where the scheduler is lost. It takes the
        cells as scratch does (workers keep theirs), and is deleted once the model is saved.
    checkpoint_every
        Seconds from one state of the run to the next.
    resume
        Go on from the folder of checkpoint, if it holds a run: the same command with --resume.
    """
    running.begin()
    from streamtrain.journal import clear
    from streamtrain.train import train as run

    _check_outputs(out, celltypist, checkpoint, overwrite)
    with cluster.client(settings.given) as client:
        model = run(
            one(source), labels, genes, progress=not running.quiet,
            storage_options=storage_options, client=client, checkpoint=checkpoint,
            checkpoint_every=checkpoint_every, resume=resume, **settings.given,
        )  # fmt: skip
        model.save(out, overwrite=overwrite)
    if celltypist is not None:
        model.to_celltypist(celltypist, overwrite=overwrite)
    if checkpoint is not None:
        clear(checkpoint)
    if not running.quiet:
        print(model)
        print(f"saved as {out}" + (f" and for CellTypist as {celltypist}" if celltypist else ""))


def _check_outputs(
    out: Path, celltypist: Path | None, checkpoint: Path | None, overwrite: bool
) -> None:
    """Refuse outputs that cannot be written, before anything is read."""
    from streamtrain import atomic, model

    model.check_output(out, overwrite)
    if celltypist is not None:
        atomic.check_output(celltypist, overwrite, folder=False)
        if celltypist.suffix != ".pkl":
            raise InputError(f"--celltypist must end in .pkl; got {str(celltypist)!r}")
        if celltypist.resolve() == out.resolve():
            raise InputError(f"--out and --celltypist must differ; got {str(out)!r} for both")
    if out.suffix in (".pkl", ".h5ad", ".onnx"):
        other = (
            "streamtrain convert-model writes the graph of a saved model"
            if out.suffix == ".onnx"
            else "for a file that CellTypist reads pass --celltypist FILE.pkl, too"
        )
        raise InputError(
            f"--out is the folder of the model, .zarr by custom; got {str(out)!r}: {other}"
        )
    if checkpoint is not None:
        kept = checkpoint.expanduser().resolve()
        for path in (out, celltypist):
            written = path and path.expanduser().resolve()
            if written and (written.is_relative_to(kept) or kept.is_relative_to(written)):
                raise InputError(
                    f"--checkpoint {str(checkpoint)!r} and the output {str(path)!r} must not be in "
                    "each other: choose another folder"
                )
