"""The command line: arguments in, calls of the Python API, words out. No logic of its own."""

from __future__ import annotations

import inspect
import json
import logging
import math
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import Field, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import App, Parameter

from streamtrain.config import Settings, with_recipe
from streamtrain.errors import InputError, some

# Heavy modules (numba, xarray, anndata) load inside the commands: --help takes 0.2 s, not 3 s.

app = App(
    name="streamtrain",
    help="Train CellTypist cell-type classifiers from single-cell atlases on disk. With --debug an "
    "error also tells where in streamtrain it was raised.",
    version=lambda: version("streamtrain"),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-join
)


def _by_name(kind: Any, tokens: Any) -> Any:
    """Turn --quotas.NAME 5 --quotas.OTHER 9 into a dict, and --quotas equal into a text."""
    if not isinstance(tokens, dict):
        return tokens[-1].value  # Settings refuses another
    (number,) = (get_args(k)[1] for k in get_args(kind) if get_origin(k) is dict)
    named: dict[str, Any] = {}
    for name, given in tokens.items():
        if isinstance(given, dict):  # a name with a dot in it
            named |= {f"{name}.{rest}": n for rest, n in _by_name(kind, given).items()}
            continue
        try:
            named[name] = number(given[-1].value)
        except ValueError:
            raise ValueError(f"{name!r} needs a number; got {given[-1].value!r}") from None
    return named


def _whole(_: Any, tokens: Any) -> int:
    """Read a whole number, 1e6 too, and refuse 2.7, which cyclopts would round."""
    text = tokens[-1].value
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"a whole number is due; got {text!r}")
    return int(number)


_Whole = Annotated[int, Parameter(converter=_whole)]
_WholeOrNone = Annotated[int | None, Parameter(converter=_whole)]


class _Given:
    """The settings that are given, and no others, so that a recipe can have the rest."""

    def __init__(self, **given: Any) -> None:
        self.given = given


def _parameter(field: Field[Any]) -> inspect.Parameter:
    kind = get_type_hints(Settings)[field.name]
    if field.name in ("quotas", "class_weight"):
        # cyclopts converts no union of a dict and a text by itself.
        kind = Annotated[kind, Parameter(converter=_by_name)]
    elif kind in (int, int | None):
        kind = Annotated[kind, Parameter(converter=_whole)]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind
    )


# What cyclopts reads of a class: its fields and their help are those of Settings.
_Given.__doc__ = Settings.__doc__
_Given.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        *(_parameter(field) for field in fields(Settings)),
    ]
)
_SettingsGiven = Annotated[_Given, Parameter(name="*")]


@app.command
def train(
    source: list[str],
    /,
    *,
    labels: str,
    out: Path,
    celltypist: Path | None = None,
    genes: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    scheduler: str | None = None,
    workers: _WholeOrNone = None,
    checkpoint: Path | None = None,
    checkpoint_every: float = 600.0,
    resume: bool = False,
    storage_options: dict[str, str] | None = None,
    settings: _SettingsGiven = _Given(),  # noqa: B008 - never changed
) -> None:
    """Train a classifier on the cells of SOURCE and save it.

    Examples: streamtrain train atlas.h5ad --labels cell_type --out model.zarr

    streamtrain train atlas.h5ad --labels cell_type --recipe atlas --validation-groups donor_id
    --out model.zarr

    streamtrain train atlas.h5ad --labels cell_type --holdout donor_id=D3,D7 --out model.zarr

    streamtrain train lung.h5ad gut.zarr --join outer --labels cell_type --out model.zarr

    streamtrain train atlas.zarr --labels cell_type --scheduler tcp://head:8786 --out model.zarr

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
    genes
        Text file with one gene name a line, where SOURCE has none (.mtx).
    overwrite
        Replace outputs that exist.
    quiet
        Print nothing but warnings and errors.
    scheduler
        Have the workers of a dask cluster train: the address of its scheduler, tcp://host:8786 or
        tls://host:8786, or the file that dask scheduler --scheduler-file FILE.json writes. They
        read SOURCE by themselves, under the path given here; memory, n-jobs and scratch are of
        each. The model is the same. Needs pip install 'streamtrain[cluster]' on every machine.
    workers
        The same by so many processes that are started on this machine, and end with the command.
        They share out its CPUs, or have n-jobs threads each.
    checkpoint
        Folder in which the run is kept while it goes on, to be resumed after a kill, or after
        Ctrl-C or SIGTERM, on which it is saved first, or where the scheduler is lost. It takes the
        cells as scratch does (workers keep theirs), and is deleted once the model is saved.
    checkpoint_every
        Seconds from one state of the run to the next.
    resume
        Go on from the folder of checkpoint, if it holds a run: the same command with --resume.
    storage_options
        Of a server: --storage-options.region eu-west-1, endpoint, skip_signature and so on.
        Credentials belong into the environment (AWS_*, GOOGLE_*, AZURE_*), not here where
        others on the machine see them.
    """
    _log(quiet)
    from streamtrain import atomic
    from streamtrain import model as models
    from streamtrain.journal import clear
    from streamtrain.train import train as run

    models.check_output(out, overwrite)
    if celltypist is not None:
        atomic.check_output(celltypist, overwrite, folder=False)
        if celltypist.suffix != ".pkl":
            raise InputError(f"--celltypist must end in .pkl; got {str(celltypist)!r}")
        if celltypist.resolve() == out.resolve():
            raise InputError(f"--out and --celltypist must differ; got {str(out)!r} for both")
    if out.suffix in (".pkl", ".h5ad"):
        raise InputError(
            f"--out is the folder of the model, .zarr by custom; got {str(out)!r}: for a file that "
            "CellTypist reads pass --celltypist FILE.pkl, too"
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
    with _cluster(scheduler, workers, settings.given) as client:
        model = run(
            _one(source), labels, genes, progress=not quiet, storage_options=storage_options,
            client=client, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
            resume=resume, **settings.given,
        )  # fmt: skip
        model.save(out, overwrite=overwrite)
    if celltypist is not None:
        model.to_celltypist(celltypist, overwrite=overwrite)
    if checkpoint is not None:
        clear(checkpoint)
    if not quiet:
        print(model)
        print(f"saved as {out}" + (f" and for CellTypist as {celltypist}" if celltypist else ""))


@app.command
def cross_validate(
    source: list[str],
    /,
    *,
    labels: list[str],
    out: Path,
    refit: bool = True,
    genes: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    scheduler: str | None = None,
    workers: _WholeOrNone = None,
    storage_options: dict[str, str] | None = None,
    settings: _SettingsGiven = _Given(),  # noqa: B008 - never changed
) -> None:
    """Rank settings by cross-validation on the cells of SOURCE, and train by the chosen on all.

    Examples: streamtrain cross-validate atlas.h5ad --labels cell_type --validation-groups donor_id
    --alpha 1e-4 --alpha 1e-2 --step 1 --step 3 --out ranking.csv

    streamtrain cross-validate atlas.h5ad --labels cell_type --labels compartment --recipe atlas
    --out ranking.csv

    All settings, folds and columns of labels are trained from one reading. The ranking is by the
    mean macro-F1 on held-out cells.

    Parameters
    ----------
    source
        As of streamtrain train.
    labels
        Columns of obs with cell types, each trained on by itself.
    out
        The ranking, .csv. The model of each column of labels stands beside it, under its name
        and that of the column: ranking.cell_type.zarr.
    refit
        Train the chosen setting of each column on all cells.
    genes
        Text file with one gene name a line, where SOURCE has none (.mtx).
    overwrite
        Replace outputs that exist.
    quiet
        Print nothing but warnings and errors.
    scheduler
        As of streamtrain train; each worker tries a setting at a time.
    workers
        As of streamtrain train.
    storage_options
        As of streamtrain train.
    """
    _log(quiet)
    from streamtrain import atomic
    from streamtrain import model as models
    from streamtrain.cross_validate import cross_validate as run

    if out.suffix != ".csv":
        raise InputError(f"--out must end in .csv; got {str(out)!r}")
    atomic.check_output(out, overwrite, folder=False)
    paths = {name: out.with_name(f"{out.stem}.{Path(name).name}.zarr") for name in labels}
    if len(set(paths.values())) < len(labels):
        raise InputError(f"--labels must differ, in the names of files too; got {some(labels, 9)}")
    for path in paths.values() if refit else ():
        models.check_output(path, overwrite)
    with _cluster(scheduler, workers, settings.given) as client:
        found = run(
            _one(source), labels, genes, refit=refit, progress=not quiet,
            storage_options=storage_options, client=client, **settings.given,
        )  # fmt: skip
    with atomic.replacing(out, overwrite, folder=False) as partial:
        found.table.to_csv(partial, index=False)
    for name, model in found.models.items():
        model.save(paths[name], overwrite=overwrite)
    if not quiet:
        print(found.table.to_string(index=False, float_format="{:.4g}".format))
        print(f"saved as {', '.join(map(str, (out, *paths.values()) if refit else (out,)))}")


@app.command
def predict(
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
    adapt: Literal["none", "genes", "auto"] = "none",
    normalize: Literal["log1p"] | None = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Path | None = None,
    cells: Path | None = None,
    transpose_input: bool = False,
    where: str | None = None,
    memory: str | None = None,
    scratch: str | None = None,
    n_jobs: _WholeOrNone = None,
    device: Literal["cpu", "gpu"] = "cpu",
    gpu_memory: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    scheduler: str | None = None,
    workers: _WholeOrNone = None,
    storage_options: dict[str, str] | None = None,
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
        Add the predictions to obs of SOURCE itself, in place of --out. An .h5ad file is copied
        beside itself first, so that it is never left half-written.
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
    adapt
        For cells unlike those of training, of another chemistry or with fewer genes: "genes" scales
        each gene by its mean and standard deviation in SOURCE (in each file by itself), which
        harms where SOURCE is made up of other cell types; "auto" does so only where predictions
        then tell more of the cells, and says what it did. Reads SOURCE once more, "auto" also
        4,096 cells spread over each file.
    normalize
        "log1p" for raw counts. Text, .mtx and 10x are taken as counts.
    check_expression
        Require values in the range of log1p expression normalised to 10,000.
    layer
        Matrix to read: "raw" for raw/X, or the name of a layer. The default is X.
    gene_key
        Column of var that holds the gene names. The default is the index of var.
    genes
        Text file with the gene names, one a line, for a matrix without them.
    cells
        Text file with the names of the cells, one a line, for a matrix without them.
    transpose_input
        The text table is genes x cells.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data".
    memory
        Bytes to stay within: "2GB". The default is a quarter of the free memory.
    scratch
        Folder on a local disk. The default is the system's temporary folder.
    n_jobs
        Threads. The default takes all CPUs.
    device
        "gpu" scores cells on the GPU; it needs CuPy.
    gpu_memory
        Bytes of it to stay within: "20GB". The default is nine tenths of what is free there.
    overwrite
        Replace the output, or columns of obs, if they exist.
    quiet
        Print nothing but warnings and errors.
    scheduler
        As of streamtrain train: workers annotate some of the cells each, with the same result.
    workers
        As of streamtrain train.
    storage_options
        Of a server: --storage-options.region eu-west-1, endpoint, skip_signature and so on.
        Credentials belong into the environment (AWS_*, GOOGLE_*, AZURE_*), not here where
        others on the machine see them.
    """
    _log(quiet)
    if out is None and not in_place:
        raise InputError("say where the predictions go: --out FILE, or --in-place")
    from streamtrain.predict import predict as run

    with _cluster(scheduler, workers, {"n_jobs": n_jobs, "memory": memory}) as client:
        run(
            model, _one(source), genes, mode=mode, p_thres=p_thres, majority_voting=majority_voting,
            over_clustering=over_clustering, min_prop=min_prop, probabilities=probabilities,
            scores=scores, adapt=adapt, out=out, in_place=in_place, prefix=prefix,
            overwrite=overwrite, normalize=normalize, check_expression=check_expression,
            layer=layer, gene_key=gene_key, cells=cells, transpose_input=transpose_input,
            where=where, memory=memory, scratch=scratch, n_jobs=n_jobs, device=device,
            gpu_memory=gpu_memory, progress=not quiet, storage_options=storage_options,
            client=client,
        )  # fmt: skip
    if not quiet:
        print(f"saved as {out}" if out is not None else f"added to obs of {source[0]}")


@app.command
def evaluate(
    model: str,
    source: list[str],
    /,
    *,
    labels: str,
    mode: Literal["best match", "prob match"] = "best match",
    p_thres: float = 0.5,
    top_k: _Whole = 3,
    parents: Path | None = None,
    held_out: bool | None = None,
    holdout: str | None = None,
    test_fraction: float | None = None,
    group: str | None = None,
    random_state: _Whole = 0,
    drop_unlabeled: bool = False,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    adapt: Literal["none", "genes", "auto"] = "none",
    normalize: Literal["log1p"] | None = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Path | None = None,
    transpose_input: bool = False,
    where: str | None = None,
    memory: str | None = None,
    scratch: str | None = None,
    n_jobs: _WholeOrNone = None,
    device: Literal["cpu", "gpu"] = "cpu",
    gpu_memory: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    scheduler: str | None = None,
    workers: _WholeOrNone = None,
    storage_options: dict[str, str] | None = None,
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
    adapt
        As of streamtrain predict.
    normalize
        "log1p" for raw counts. Text, .mtx and 10x are taken as counts.
    check_expression
        As of streamtrain predict.
    layer
        As of streamtrain predict.
    gene_key
        As of streamtrain predict.
    genes
        As of streamtrain predict.
    transpose_input
        As of streamtrain predict.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data".
    memory
        Bytes to stay within: "2GB". The default is a quarter of the free memory.
    scratch
        As of streamtrain predict.
    n_jobs
        As of streamtrain predict.
    device
        As of streamtrain predict.
    gpu_memory
        As of streamtrain predict.
    overwrite
        Replace the output if it exists.
    quiet
        Print no progress and no notes.
    scheduler
        As of streamtrain train: workers score some of the cells each, with the same result.
    workers
        As of streamtrain train.
    storage_options
        Of a server, as of streamtrain train.
    """
    _log(quiet)
    from streamtrain.evaluate_model import evaluate_model as run

    with _cluster(scheduler, workers, {"n_jobs": n_jobs, "memory": memory}) as client:
        found = run(
            model, _one(source), labels, genes, mode=mode, p_thres=p_thres, top_k=top_k,
            parents=parents, held_out=held_out, holdout=holdout, test_fraction=test_fraction,
            group=group, random_state=random_state, drop_unlabeled=drop_unlabeled, out=out,
            overwrite=overwrite, adapt=adapt, normalize=normalize,
            check_expression=check_expression, layer=layer, gene_key=gene_key,
            transpose_input=transpose_input, where=where, memory=memory, scratch=scratch,
            n_jobs=n_jobs, device=device, gpu_memory=gpu_memory, progress=not quiet,
            storage_options=storage_options, client=client,
        )  # fmt: skip
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)


@app.command
def convert_model(model: str, out: Path, /, *, overwrite: bool = False) -> None:
    """Write MODEL anew, for CellTypist or for streamtrain, by the ending of OUT.

    A .pkl of any scikit-learn becomes one that CellTypist loads today. Nothing in it is run.

    Example: streamtrain convert-model old.pkl new.pkl

    Parameters
    ----------
    model
        A .pkl file of CellTypist, or a saved model (.zarr).
    out
        A .pkl file for CellTypist, or a .zarr folder.
    overwrite
        Replace the output if it exists.
    """
    from streamtrain import atomic
    from streamtrain import model as models

    if out.suffix not in (".pkl", ".zarr"):
        raise InputError(f"the output must end in .pkl or .zarr; got {str(out)!r}")
    if out.suffix == ".pkl":
        atomic.check_output(out, overwrite, folder=False)
        models.Model.load(model).to_celltypist(out, overwrite=overwrite)
    else:
        models.check_output(out, overwrite)
        models.Model.load(model).save(out, overwrite=overwrite)
    print(f"saved as {out}")


@app.command(name="inspect")
def show(
    source: list[str],
    /,
    *,
    labels: str | None = None,
    genes: Path | None = None,
    transpose_input: bool = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    storage_options: dict[str, str] | None = None,
) -> None:
    """Say what is in SOURCE, an atlas or a model: of an atlas also the command to train on it.

    Examples: streamtrain inspect atlas.h5ad

    streamtrain inspect atlas.h5ad --labels cell_type

    streamtrain inspect model.zarr

    Of an atlas, in seconds, whatever its size, as metadata, obs and some hundred cells are read
    (text is parsed whole): its matrices, how they are stored and whether they hold raw counts,
    log1p of 10,000 or else; whether genes have symbols or ids; which columns of obs may name cell
    types, and which donors and batches; the classes, with those that are too rare; what training
    takes of memory, scratch and time; and the command, as it can be run.

    Of a model, which is verified first: its cell types and genes, how and from what it was trained.
    Nothing in a .pkl is run.

    Parameters
    ----------
    source
        What streamtrain train takes: an .h5ad file, a zarr folder, text, a 10x folder, several
        AnnData, or an address. Or a saved model, or one of CellTypist's (.pkl).
    labels
        Column of obs with the cell types, or a text file with one label a line. The default is the
        column that most likely has them.
    genes
        Text file with one gene name a line, where SOURCE has none (.mtx).
    transpose_input
        The text table is genes x cells.
    as_json
        Print all of it as JSON, of a model with the name of every gene.
    storage_options
        Of a server, as of streamtrain train.
    """
    from streamtrain.inspecting import inspect

    log = logging.getLogger("streamtrain")
    level = log.level
    log.setLevel(logging.ERROR)  # the page says what would be warned of
    try:
        found = inspect(
            _one(source), labels, genes=genes, transpose_input=transpose_input,
            storage_options=storage_options,
        )  # fmt: skip
    finally:
        log.setLevel(level)
    print(json.dumps(asdict(found), indent=1) if as_json else found)


@app.command
def simulate(
    *,
    out: Path,
    cells: _Whole = 20_000,
    genes: _Whole = 2_000,
    cell_types: _Whole = 12,
    donors: _Whole = 6,
    genes_per_cell: _Whole = 2_500,
    seed: _Whole = 0,
    compression: Literal["auto", "none", "blosc", "zstd", "lzf", "gzip"] = "auto",
    n_jobs: _WholeOrNone = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Write a synthetic atlas of raw counts, to try a pipeline or to measure one.

    Example: streamtrain simulate --cells 1000000 --genes 30000 --cell-types 100 --donors 40 --out
    atlas.zarr

    Counts are negative binomial; cell types share programs along a tree, so that siblings are
    hard to tell apart; some have fewer than 100 cells; donors and sequencing runs shift every
    gene. Calibrated so that a classifier reaches a macro-F1 of 0.7 to 0.9 on donors that it has not
    seen, with 20,000 cells, 2,000 genes, 12 types and 6 donors (seeds 0 to 2), and with 100,000 and
    400,000 cells, 30,000 genes, 100 types and 40 donors. Other settings and seeds may be easier or
    harder (seed 5 of the first: 0.63). Cells are stored donor after donor. Memory does not grow
    with their number, and the same settings give the same data.

    Parameters
    ----------
    out
        The atlas, .zarr or .h5ad. Its obs has cell_type, donor_id, batch and is_primary_data.
    cells
        Number of cells.
    genes
        Number of genes.
    cell_types
        Number of cell types; one in eight, at least one, is rare.
    donors
        Number of donors.
    genes_per_cell
        Mean number of genes detected in a cell; at most a quarter of the genes.
    seed
        Seed of every draw.
    compression
        For .zarr blosc (the default), none or zstd; for .h5ad none (the default), lzf or gzip.
    n_jobs
        Threads. The default takes all CPUs.
    overwrite
        Replace the output if it exists.
    quiet
        Print nothing but warnings and errors.
    """
    _log(quiet)
    from streamtrain.simulate import simulate as run

    run(
        out, n_obs=cells, n_vars=genes, n_types=cell_types, n_donors=donors,
        genes_per_cell=genes_per_cell, seed=seed, compression=compression, n_jobs=n_jobs,
        overwrite=overwrite, progress=not quiet,
    )  # fmt: skip
    if not quiet:
        print(f"saved as {out}")


@app.command
def convert(
    sources: list[str],
    /,
    *,
    out: Path,
    shuffle: bool = False,
    random_state: _Whole = 0,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Path | None = None,
    join: str = "outer",
    transpose_input: bool = False,
    where: str | None = None,
    compression: Literal["blosc", "zstd", "none"] = "blosc",
    index_dtype: Literal["int32", "uint16"] = "int32",
    chunk_size: _WholeOrNone = None,
    shard_size: _WholeOrNone = None,
    memory: str | None = None,
    scratch: str | None = None,
    n_jobs: _WholeOrNone = None,
    overwrite: bool = False,
    quiet: bool = False,
    scheduler: str | None = None,
    workers: _WholeOrNone = None,
    storage_options: dict[str, str] | None = None,
) -> None:
    """Write the cells of SOURCES as one zarr AnnData that reads fast, shuffled if asked.

    Example: streamtrain convert atlas.h5ad --out atlas.zarr --shuffle

    Values and the columns of obs and var stay as they are (of several files, the columns of var in
    which they do not differ); other layers, obsm and uns are left out. anndata, scanpy and annbatch
    open the output. With --shuffle the cells come in random order, drawn from all orders alike, so
    that reading them in order is reading at random; it takes disk space of the size of the matrix,
    uncompressed, beside the output or in --scratch. Cells, their names, obs and var are read back
    and compared before the output appears. Stopped half-way, even killed, the same
    command goes on where it was; what is done so far stands in .NAME.partial beside the output.

    Parameters
    ----------
    sources
        AnnData on disk, an .h5ad file or a zarr folder; or a text table (.csv, .txt, .tsv, .tab), a
        Matrix Market file (.mtx), gzipped or not, or a 10x folder. Several AnnData are joined; they
        may lie on a server: s3://, gs://, az://, https://.
    out
        Folder for the AnnData, ending in .zarr.
    shuffle
        Shuffle the cells.
    random_state
        Seed of the shuffle. Same seed, same order.
    layer
        Matrix to read: "raw" for raw/X, or the name of a layer. The default is X.
    gene_key
        Column of var that holds the gene names. The default is the index of var.
    genes
        Text file with the gene names, one a line, for a matrix without them.
    join
        Genes of several files: outer (the default, as counts can be normalised only over all genes
        of their cell), inner, or a text file with one gene a line.
    transpose_input
        The text table is genes x cells.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data".
    compression
        blosc (lz4), zstd or none. zstd takes half the space for normalised values, as much for
        counts, and reads at half the speed.
    index_dtype
        Type of the gene positions. uint16 is for up to 65,536 genes and decodes a third faster.
    chunk_size
        Entries of a chunk, which is decoded whole. The default is 131,072, about 50 cells.
    shard_size
        Entries of a file, a multiple of chunk-size. The default is 16,777,216.
    memory
        Bytes to stay within: "2GB". The default is a quarter of the free memory.
    scratch
        Folder on a local disk for shuffling. The default is beside the output.
    n_jobs
        Threads. The default takes all CPUs; the output is the same for any number.
    overwrite
        Replace the output if it exists.
    quiet
        Print nothing but warnings and errors.
    scheduler
        As of streamtrain train: workers write some of the cells each, to the same output.
    workers
        As of streamtrain train.
    storage_options
        Of a server, as of streamtrain train.
    """
    _log(quiet)
    from streamtrain.convert import convert as run

    sizes = {"chunk_size": chunk_size, "shard_size": shard_size}
    with _cluster(scheduler, workers, {"n_jobs": n_jobs, "memory": memory}) as client:
        run(
            _one(sources), out, join=join, storage_options=storage_options, shuffle=shuffle,
            random_state=random_state, layer=layer, gene_key=gene_key, genes=genes,
            transpose_input=transpose_input, where=where, compression=compression,
            index_dtype=index_dtype, memory=memory, scratch=scratch, n_jobs=n_jobs,
            overwrite=overwrite, progress=not quiet, client=client,
            **{name: size for name, size in sizes.items() if size is not None},
        )  # fmt: skip
    if not quiet:
        print(f"saved as {out}")


@app.command
def demo(folder: Path = Path("streamtrain-demo"), *, overwrite: bool = False) -> None:
    """Simulate a small atlas, train on some of its donors, predict the others, show how well.

    Takes about a minute and no network. The folder then holds the atlas, the model (also for
    CellTypist), the predictions and a picture of the confusion matrix.

    Parameters
    ----------
    folder
        Where to write.
    overwrite
        Replace what an earlier demo left there.
    """
    _log(quiet=False)
    from streamtrain.demo import demo as run

    for line in run(folder, overwrite=overwrite):
        print(line, flush=True)


def _one(source: list[str]) -> str | list[str]:
    return source[0] if len(source) == 1 else source


def _cluster(
    scheduler: str | None, workers: int | None, settings: dict[str, Any]
) -> AbstractContextManager[Any]:
    """A client where one is asked for, else None; dask is not imported then."""
    from streamtrain.cluster.connect import connected

    settings = with_recipe(settings)
    memory, n_jobs = settings.get("memory"), settings.get("n_jobs")
    return connected(scheduler, workers, memory=memory, n_jobs=n_jobs)


def _log(quiet: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("streamtrain").setLevel(logging.WARNING if quiet else logging.INFO)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2.

    With --debug among the arguments the line comes after where it was raised.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # As an exception, so that what is half written is removed on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup
            signal.signal(number, _terminate)
    try:
        app([argument for argument in given if argument != "--debug"])
    except (InputError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"streamtrain: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)  # of a StoppedError
        print(f"streamtrain: {error if str(error) else 'interrupted'}", file=sys.stderr)
        sys.exit(128 + number)


def _terminate(number: int, _: object) -> None:
    print("streamtrain: terminated", file=sys.stderr)
    sys.exit(128 + number)
