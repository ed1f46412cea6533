"""The settings of a training run: frozen, each documented and validated here and nowhere else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from textwrap import indent
from typing import Any, Literal, ParamSpec, TypeVar

from streamtrain.errors import InputError, near

P = ParamSpec("P")
R = TypeVar("R")

# Arguments of celltypist.train and of scikit-learn's estimators that this version does not take:
# their defaults, which change nothing, and what it lacks.
_NOT_YET: dict[str, tuple[Any, str]] = {
    "C": (1.0, "logistic solver"),
    "solver": (None, "logistic solver"),
    "max_iter": (None, "logistic solver, nor SGD without mini-batches"),
    "tol": (1e-3, "logistic solver, nor SGD without mini-batches"),
    "use_GPU": (False, "GPU training"),
    "feature_selection": (False, "feature selection"),
    "top_genes": (300, "feature selection"),
    "transpose_input": (False, "gene-by-cell input"),
    "class_weight": (None, "class weights (balance_cell_type=True balances the batches)"),
    "penalty": ("l2", "penalty other than l2"),
    "l1_ratio": (0.15, "penalty other than l2"),
    "loss": ("log_loss", "loss other than the logistic one"),
    "early_stopping": (False, "early stopping"),
    "n_iter_no_change": (5, "early stopping"),
}


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    use_SGD
        Train by stochastic gradient descent. The only solver of this version.
    mini_batch
        Take mini-batches. The only way of this version.
    alpha
        L2 regularization strength. A larger value can generalise better and fit worse.
    batch_number
        Mini-batches per epoch; fewer where the cells do not fill them.
    batch_size
        Cells per mini-batch. There must be more cells than this.
    epochs
        Epochs, each a fresh draw of batch_number * batch_size cells without replacement.
    balance_cell_type
        Draw rare cell types more often: weight 1 / (types * cells of the type).
    with_mean
        Subtract each gene's mean when scaling. Costs nothing here: the matrix stays sparse.
    check_expression
        Require log1p expression normalised to 10,000 counts in every cell (or, with normalize,
        raw counts). Switch off to train on the values as they are.
    normalize
        "log1p" normalises raw counts to 10,000 per cell and takes log1p while reading. The
        default takes the values as normalised already.
    layer
        Matrix to read: "raw" for raw/X, or the name of a layer. The default is X.
    gene_key
        Column of var that holds the gene names. The default is the index of var.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data". Also in, not in, <,
        <=, >, >=, !=, or, not, parentheses, and `column` in backticks for names with spaces.
    drop_unlabeled
        Drop cells whose label is missing. By default they are an error.
    memory
        Bytes to stay within, the interpreter itself aside: "2GB", "512MiB" or a number. The
        default is a quarter of the free memory.
    scratch
        Folder on a local disk for the drawn cells. The default is the system's temporary folder
        (TMPDIR), or /var/tmp where that lies in memory.
    n_jobs
        Threads. The default, and -1, takes all CPUs; the model is the same for any number.
    random_state
        Seed of all draws. Same seed, same model.
    shuffle
        Shuffle the cells within each mini-batch.
    average
        Average the weights over the steps: True, or the step from which to average.
    learning_rate
        Step size: "optimal" is 1 / (alpha (t0 + t)) by Bottou's heuristic, as CellTypist's;
        "constant" is eta0; "invscaling" is eta0 / t ** power_t.
    eta0
        Step size of "constant", and the first of "invscaling".
    power_t
        Exponent of "invscaling".
    fit_intercept
        Fit an intercept for each cell type.
    dtype
        Precision of weights and scaled values. "float64" equals scikit-learn's float64 to
        rounding; "float32" takes half the memory.
    date
        Free text of the date of the model. The default is the time of training.
    details
        Free text that describes the model.
    url
        Free text of the download address of the model.
    source
        Free text of the source (publication, database) of the model.
    version
        Free text of the version of the model.
    """

    use_SGD: bool = True  # noqa: N815 - CellTypist's name
    mini_batch: bool = True
    alpha: float = 1e-4
    batch_number: int = 100
    batch_size: int = 1000
    epochs: int = 10
    balance_cell_type: bool = False
    with_mean: bool = True
    check_expression: bool = True
    normalize: Literal["log1p"] | None = None
    layer: str | None = None
    gene_key: str | None = None
    where: str | None = None
    drop_unlabeled: bool = False
    memory: int | str | None = None
    scratch: str | None = None
    n_jobs: int | None = None
    random_state: int = 0
    shuffle: bool = True
    average: bool | int = False
    learning_rate: Literal["optimal", "constant", "invscaling"] = "optimal"
    eta0: float = 0.01
    power_t: float = 0.5
    fit_intercept: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    date: str = ""
    details: str = ""
    url: str = ""
    source: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is read."""
        if not (self.use_SGD and self.mini_batch):
            raise InputError(
                "this version trains by mini-batch SGD alone: leave use_SGD and mini_batch True"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and field.name != "average":
                _choose(field.name, value, (True, False))
        for name in ("batch_number", "batch_size", "epochs"):
            _require(name, getattr(self, name), 1, whole=True)
        _require("random_state", self.random_state, 0, whole=True)
        _require("average", self.average, 0, whole=True)
        _require("alpha", self.alpha, 0)
        _require("power_t", self.power_t, 0)
        _require("eta0", self.eta0, 0)
        if self.alpha == 0 and self.learning_rate == "optimal":
            raise InputError(
                "alpha must be above 0, as learning_rate='optimal' divides by it; for no penalty "
                "pass learning_rate='constant' and eta0"
            )
        if self.eta0 == 0 and self.learning_rate != "optimal":
            raise InputError(f"eta0 must be above 0 with learning_rate={self.learning_rate!r}")
        _choose("normalize", self.normalize, ("log1p", None))
        _choose("learning_rate", self.learning_rate, ("optimal", "constant", "invscaling"))
        _choose("dtype", self.dtype, ("float32", "float64"))

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> Settings:
        """Settings from keyword arguments.

        Raises
        ------
        TypeError
            For a keyword that does not exist, with the nearest that does.
        InputError
            For one of CellTypist's that this version does not take, unless at its default, or for
            a value out of range.
        """
        names = [f.name for f in fields(cls)]
        taken = {}
        for name, value in keywords.items():
            default, lacking = _NOT_YET.get(name, (None, None))
            if lacking and value != default:
                raise InputError(f"{name} is not available yet: this version has no {lacking}")
            if not lacking and name not in names:
                raise TypeError(f"train() has no argument {name!r}: {near(name, names)}")
            if not lacking:
                taken[name] = value
        return cls(**taken)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def takes_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Put the fields of `Settings` into the signature and, for {settings}, into the docstring.

    So that help() and completion show them, while they are written in one place.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
        for f in fields(Settings)
    ]
    function.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
    if function.__doc__ and Settings.__doc__:
        text = inspect.getdoc(Settings) or ""
        text = text.split("----------\n", 1)[1]
        function.__doc__ = function.__doc__.replace("{settings}", indent(text, " " * 8).strip())
    return function


def _require(name: str, value: Any, least: float, *, whole: bool = False) -> None:
    number = isinstance(value, Integral if whole else Real)  # NumPy's too
    if isinstance(value, bool) and name != "average":
        number = False
    if not number or not math.isfinite(value) or value < least:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name} must be {kind} of at least {least}; got {value!r}")


def _choose(name: str, value: Any, choices: Iterable[Any]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
