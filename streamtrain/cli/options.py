"""Options that several commands have, each with its help once; what commands do with them."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from cyclopts import Parameter

from streamtrain import logs
from streamtrain.config import with_recipe

P = ParamSpec("P")
R = TypeVar("R")


def whole(_: Any, tokens: Any) -> int:
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


Whole = Annotated[int, Parameter(converter=whole)]
WholeOrNone = Annotated[int | None, Parameter(converter=whole)]
AsJson = Annotated[bool, Parameter(name="--json", negative="")]
Overwrite = Annotated[bool, Parameter(help="Replace outputs that exist.")]
GenesFile = Annotated[
    Path | None,
    Parameter(help="Text file with one gene name a line, where SOURCE has none (.mtx)."),
]
Adapt = Annotated[
    Literal["none", "genes", "auto"],
    Parameter(
        help="For cells unlike those of training, of another chemistry or with fewer genes: "
        '"genes" scales each gene by its mean and standard deviation in SOURCE (in each file by '
        'itself), which harms where SOURCE is made up of other cell types; "auto" does so only '
        "where predictions then tell more of the cells, and says what it did. Reads SOURCE once "
        'more, "auto" also 4,096 cells spread over each file.'
    ),
]
Transposed = Annotated[bool, Parameter(help="The text table is genes x cells.")]
StorageOptions = Annotated[
    dict[str, str] | None,
    Parameter(
        help="Of a server: --storage-options.region eu-west-1, endpoint, skip_signature and so on. "
        "Credentials belong into the environment (AWS_ACCESS_KEY_ID and so on), not here where "
        "others on the machine see them."
    ),
]


@dataclass(frozen=True)
class FromFile:
    """Where options stand that are not given.

    Parameters
    ----------
    config
        TOML file with a table for each command, [train] or [predict], which has the command's
        options and inputs: out = "model.zarr", batch_size = 500 (or batch-size), several values as
        a list, and "none" for no value where a number or a choice is due. The input SOURCE is
        source; the option --source of train is "--source". What the command line gives wins; then
        the file; then the recipe that either names; then the defaults. Paths are relative to the
        current folder, as on the command line.
    """

    config: Path | None = None


@dataclass(frozen=True)
class Running(FromFile):
    """What is said while a command works.

    Parameters
    ----------
    quiet
        Print nothing but warnings and errors, and of evaluate the scores.
    log_json
        Write progress and messages to standard error as JSON, one object a line.
    """

    quiet: bool = False
    log_json: bool = False

    def begin(self) -> None:
        """Set up what is said, until the command ends."""
        logs.begin(quiet=self.quiet, log_json=self.log_json)


@dataclass(frozen=True)
class Matrix:
    """Which numbers to read.

    Parameters
    ----------
    layer
        Matrix to read: "raw" for raw/X, or the name of a layer. The default is X.
    gene_key
        Column of var that holds the gene names. The default is the index of var.
    transpose_input
        The text table is genes x cells.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data".
    """

    layer: str | None = None
    gene_key: str | None = None
    transpose_input: Transposed = False
    where: str | None = None


@dataclass(frozen=True)
class Expression(Matrix):
    """Which numbers to read, and what they are.

    Parameters
    ----------
    normalize
        "log1p" for raw counts. Text, .mtx and 10x are taken as counts.
    check_expression
        Require values in the range of log1p expression normalised to 10,000.
    """

    normalize: Literal["log1p"] | None = None
    check_expression: bool = True


@dataclass(frozen=True)
class Resources:
    """What a command may take.

    Parameters
    ----------
    memory
        Bytes to stay within: "2GB". The default is a quarter of the free memory.
    scratch
        Folder on a local disk. The default is the system's temporary folder; of convert the one
        of the output.
    n_jobs
        Threads. The default takes all CPUs; the output is the same for any number.
    """

    memory: str | None = None
    scratch: str | None = None
    n_jobs: WholeOrNone = None


@dataclass(frozen=True)
class Scoring(Resources):
    """What scoring cells may take.

    Parameters
    ----------
    device
        "gpu" scores cells on the GPU; it needs CuPy.
    gpu_memory
        Bytes of it to stay within: "20GB". The default is nine tenths of what is free there.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    gpu_memory: str | None = None


@dataclass(frozen=True)
class Judging:
    """Which labelled cells are called, and what counts as right.

    Parameters
    ----------
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
    """

    mode: Literal["best match", "prob match"] = "best match"
    p_thres: float = 0.5
    top_k: Whole = 3
    parents: Path | None = None
    held_out: bool | None = None
    holdout: str | None = None
    test_fraction: float | None = None
    group: str | None = None
    random_state: Whole = 0
    drop_unlabeled: bool = False


@dataclass(frozen=True)
class Cluster:
    """Which workers do the work, with the same result.

    Parameters
    ----------
    scheduler
        Have the workers of a dask cluster share the work: the address of its scheduler,
        tcp://host:8786 or tls://host:8786, or the file that dask scheduler --scheduler-file
        FILE.json writes. They read SOURCE by themselves, under the path given here; memory, n-jobs
        and scratch are of each. Needs pip install 'streamtrain[cluster]' on every machine.
    workers
        The same by so many processes that are started on this machine, and end with the command.
        They share out its CPUs, or have n-jobs threads each.
    """

    scheduler: str | None = None
    workers: WholeOrNone = None

    def client(self, settings: dict[str, Any]) -> AbstractContextManager[Any]:
        """A client where one is asked for, else None; dask is not imported then."""
        from streamtrain.cluster.connect import connected

        settings = with_recipe(settings)
        memory, n_jobs = settings.get("memory"), settings.get("n_jobs")
        return connected(self.scheduler, self.workers, memory=memory, n_jobs=n_jobs)


FromFileOption = Annotated[FromFile, Parameter(name="*")]
RunningOptions = Annotated[Running, Parameter(name="*")]
MatrixOptions = Annotated[Matrix, Parameter(name="*")]
ExpressionOptions = Annotated[Expression, Parameter(name="*")]
ResourceOptions = Annotated[Resources, Parameter(name="*")]
ScoringOptions = Annotated[Scoring, Parameter(name="*")]
JudgingOptions = Annotated[Judging, Parameter(name="*")]
ClusterOptions = Annotated[Cluster, Parameter(name="*")]


def one(source: list[str]) -> str | list[str]:
    """A single path as such, since a list of paths is a collection."""
    return source[0] if len(source) == 1 else source


def leaving_logs(command: Callable[P, R]) -> Callable[P, R]:
    """Leave the logs of Python as they were before the command.

    As a program may call several, and have set up logs of its own.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        loggers = [logging.getLogger(name) for name in (None, "streamtrain")]
        before = [(log.level, log.propagate, log.handlers[:]) for log in loggers]
        captured = warnings.showwarning.__module__ == "logging"
        try:
            return command(*args, **kwargs)
        finally:
            for log, (level, propagate, handlers) in zip(loggers, before, strict=True):
                log.setLevel(level)
                log.propagate, log.handlers = propagate, handlers
            logging.captureWarnings(captured)

    return run
