"""The settings of a training run: frozen, each documented and validated here and nowhere else."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from datetime import date
from functools import cache
from numbers import Integral, Real
from textwrap import indent
from types import NoneType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_type_hints

import numpy as np

from streamtrain import recipes
from streamtrain.budget import check_gpu_memory
from streamtrain.errors import InputError, near

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

SOLVERS = ("lbfgs", "liblinear", "newton-cg", "sag", "saga")
LOSSES = (
    "log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron", "squared_error", "huber",
    "epsilon_insensitive", "squared_epsilon_insensitive",
)  # fmt: skip
_RATES = ("optimal", "constant", "invscaling", "adaptive", "pa1", "pa2")
_SGD, _LOGISTIC = "use_SGD=True", "use_SGD=False"
_MINI = "use_SGD=True with mini_batch=True"
_STRATA = f"{_MINI}, and balance_cell_type=True or quotas"
_PASSES = "logistic regression and whole epochs, not mini-batches"
_JUDGED = "SGD over whole epochs, early_stopping=True, or folds"
_STOPS = "logistic regression, SGD over whole epochs, or early_stopping=True"
_LIBLINEAR = "solver='liblinear'"
_FOLDS = "folds, cross-validation"
# Settings that one way of training alone has. CellTypist documents the first as ignored elsewhere,
# and so they are, with a warning; the second it hands to the estimator, which has no such argument.
_IGNORED = {
    "C": _LOGISTIC, "solver": _LOGISTIC, "alpha": _SGD, "mini_batch": _SGD,
    "batch_number": _MINI, "batch_size": _MINI, "epochs": _MINI, "balance_cell_type": _MINI,
    "max_iter": _PASSES, "top_genes": "feature_selection=True", "n_iter_no_change": _JUDGED,
    "tol": _STOPS, "intercept_scaling": _LIBLINEAR,
}  # fmt: skip
_REFUSED = {
    "average": _SGD, "learning_rate": _SGD, "eta0": _SGD, "power_t": _SGD, "loss": _SGD,
    "epsilon": _SGD, "shuffle": _SGD, "early_stopping": _SGD, "n_iter_no_change": _SGD,
    "dual": _LOGISTIC, "intercept_scaling": _LOGISTIC, "replace": _MINI, "quotas": _MINI,
    "batch_key": _STRATA, "sampling_weight": _MINI,
    "validation_fraction": "early_stopping=True",
    "validation_groups": "early_stopping=True, or folds",
    "l1_ratio": "penalty='elasticnet'", "step": _SGD, "folds": _MINI, "calibrate": _FOLDS,
    "gene_dropout": _MINI, "replicas": _MINI, "correct_prior": f"{_MINI}, and average",
}  # fmt: skip
# How a file says that it cannot hold what a run was given.
IN_MEMORY = "in memory: "
_WHERE = ("use_GPU", "device", "gpu_memory")  # what a model does not ask for once more


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    recipe
        Settings to start from, which those given beside it override: "atlas", our own recipe, or
        another that `streamtrain recipes` lists, or the path of a TOML file of settings, in which
        "none" stands for None.
    transpose_input
        The matrix is genes x cells: a text table, or an array in memory. An AnnData never is.
    with_mean
        Subtract each gene's mean when scaling. Costs nothing here: the matrix stays sparse.
    check_expression
        Require log1p expression normalised to 10,000 counts in every cell (or, with normalize,
        raw counts). Switch off to train on the values as they are; where X of an AnnData holds
        negative ones, its raw is taken all the same, as by CellTypist.
    C
        Inverse of the regularization strength of logistic regression. A smaller value can
        generalise better and fit worse; infinity is no penalty.
    solver
        Name of a solver of logistic regression: lbfgs, newton-cg, sag, saga and liblinear. The
        optimum is the same and one solver finds it, but for liblinear's, which penalises the
        intercept as well.
    max_iter
        Most steps of logistic regression, or epochs of SGD without mini-batches. The default is
        1000 below 50,000 cells, 500 below 500,000, else 200.
    n_jobs
        Threads. The default, and -1, takes all CPUs; the model is the same for any number.
    use_SGD
        Train by stochastic gradient descent instead of logistic regression to its optimum.
    alpha
        Regularization strength of SGD. A larger value can generalise better and fit worse. Several
        are chosen from by cross-validation (`folds`).
    step
        Step size of SGD in place of `learning_rate`: constant, this number over the mean squared
        length of the scaled cells of the first mini-batch. "auto" is 1. Several are chosen from by
        cross-validation.
    use_GPU
        Train on the GPU: the same as device="gpu".
    device
        "gpu" trains there, whichever the solver, and needs CuPy: pip install
        'streamtrain[gpu-cuda12]' (or gpu-cuda13). Sums are in another order than on the CPU.
    gpu_memory
        Bytes of the GPU's memory to stay within: a number, or "20GB". The default is nine tenths of
        what is free there.
    mini_batch
        Let SGD draw mini-batches. Otherwise it takes all cells in each epoch, until a cell type's
        loss no longer falls.
    batch_number
        Mini-batches per epoch; fewer where the cells do not fill them.
    batch_size
        Cells per mini-batch. There must be more cells than this.
    epochs
        Epochs, each a fresh draw of batch_number * batch_size cells, without replacement unless
        asked for.
    balance_cell_type
        Draw rare cell types more often: weight 1 / (types * cells of the type). Without replacement
        they run out first, and late mini-batches of an epoch hold the common types alone.
    replace
        Draw mini-batches with replacement: with balance_cell_type the type evenly, then a cell of
        it evenly. An epoch may then draw more cells than there are.
    quotas
        Cells of each type in every mini-batch, in place of balance_cell_type: "equal", or by name,
        those not named sharing what is left evenly; what cannot be shared goes to the types in
        turn. The cells of a type come in random order, and in another one once all have come;
        with replace each is drawn anew. An epoch may draw more cells than there are.
    correct_prior
        Shift the intercepts of a model whose types were drawn more or less often than they occur
        to their shares among the cells, which fits probabilities to such cells at the cost of rare
        types (macro-F1). Calibration does without.
    batch_key
        Column of obs (donor, study) to balance over within each cell type: draw a type evenly, or
        by its quota, then one of the values that occur in it evenly. A missing value is one more.
    sampling_weight
        Column of obs with a weight for each cell, not negative, or one number a cell: draw cells by
        weight; with balance_cell_type, quotas and batch_key, within the type or batch. Without
        replace successively: each draw by the weights of the cells that are left.
    replicas
        Copies of the model to which the mini-batches of an epoch are dealt in turn, and which are
        averaged after it (local SGD). An approximation, for a cluster that has more workers than
        the cell types can be shared out among, some 16 a worker: it then trains as many times as
        fast, each copy taking a share of the steps. The model depends on their number, not on the
        workers.
    gene_dropout
        Share of the genes that each mini-batch goes without, drawn anew for each: a model that
        relies less on single genes, for cells in which some are missing.
    gene_list
        Genes to train on: a list of names, or the path of a text file with one a line. Those that
        no cell expresses are left out, as ever; names that the cells lack are told of.
    folds
        Cross-validate with so many folds over the mini-batches that training takes, the folds of
        all trials side by side, then train on all cells by the best: of several `alpha` and
        `step`, and of the number of epochs. A trial ends when its macro-F1 on held-out cells, the
        mean over `n_iter_no_change` epochs, has not risen for as many, or after `epochs`. The
        first `alpha` and `step` are kept unless others are better by more than two standard errors
        of the difference over the folds.
    calibrate
        Calibrate the probabilities on the held-out cells of the folds: they then add up to 1 over
        the types, and no predicted type changes.
    feature_selection
        Train twice: SGD on all genes first, then the solver asked for on the genes that weigh most.
    top_genes
        Genes to keep of each cell type, by the size of their coefficients; their union is used.
    normalize
        "log1p" normalises raw counts to 10,000 per cell and takes log1p while reading. The
        default takes the values as normalised already.
    layer
        Matrix to read: "raw" for raw/X, or the name of a layer. The default is X.
    gene_key
        Column of var that holds the gene names. The default is the index of var.
    join
        Genes of several files: "inner" for those that every file has; "outer" for those of any,
        which are zero in the cells of a file that lacks them; or a list of names, or the path of a
        text file with one a line. Cells are normalised over all genes of their file.
    where
        Select cells by obs columns: "tissue == 'lung' and is_primary_data". Also in, not in, <,
        <=, >, >=, !=, or, not, parentheses, and `column` in backticks for names with spaces.
    holdout
        Leave out of training the cells of some groups, whole: "donor_id=D3,D7", a column of obs and
        some of its values. The model names them, and evaluation takes them alone.
    test_fraction
        The same with groups of the column `group`, drawn by `random_state` until they have about
        this share of the cells.
    group
        Column of obs that has the groups of `test_fraction`, such as donor_id.
    drop_unlabeled
        Drop cells whose label is missing. By default they are an error.
    memory
        Bytes to stay within, the interpreter itself aside: "2GB", "512MiB" or a number. The
        default is a quarter of the free memory.
    scratch
        Folder on a local disk for the cells that training takes: once, twice where they do not fit
        in memory by gene, and the selected genes once more. The default is the system's temporary
        folder (TMPDIR), or /var/tmp where that lies in memory.
    random_state
        Seed of all draws. Same seed, same model.
    shuffle
        Shuffle the cells within each mini-batch; without mini-batches, in each epoch.
    tol
        When to stop. Logistic regression: the largest slope of a cell type's mean loss and penalty
        is below tol, and the objective is within tol / 100 of its minimum, relatively;
        the default is 1e-4. SGD without mini-batches, and early stopping: an epoch improves by less
        than tol; the default is 1e-3, and None never stops.
    n_iter_no_change
        Epochs without improvement after which SGD, or cross-validation, stops.
    early_stopping
        Judge SGD's epochs by cells that are held out, instead of by the training loss.
    validation_fraction
        Share of the cells that is held out for early stopping.
    validation_groups
        Column of obs (donor, study) whose groups are held out whole, for early stopping and in
        folds. The default holds out cells of each cell type.
    penalty
        "l2", "l1", "elasticnet" or None.
    l1_ratio
        Share of l1 in "elasticnet". SGD's default is 0.15.
    class_weight
        Weight of each cell type by name, or "balanced": inversely by its number of cells.
    loss
        Of SGD: "log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron",
        "squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive".
        CellTypist's probabilities suit "log_loss" alone.
    epsilon
        Of the losses "huber", "epsilon_insensitive" and "squared_epsilon_insensitive".
    average
        Average the weights over the steps: True, or the step from which to average.
    learning_rate
        Step size: "optimal" is 1 / (alpha (t0 + t)) by Bottou's heuristic, as CellTypist's;
        "constant" is eta0; "invscaling" is eta0 / t ** power_t; "adaptive" is eta0, and a fifth
        each time a cell type stops improving; "pa1" and "pa2" are scikit-learn's, for "hinge".
    eta0
        Step size of "constant" and "adaptive", and the first of "invscaling".
    power_t
        Exponent of "invscaling".
    fit_intercept
        Fit an intercept for each cell type.
    intercept_scaling
        Of liblinear: the larger, the less it penalises the intercept.
    dual
        Of liblinear: taken, and changes nothing, as both forms have one optimum.
    warm_start
        Model to start from: a `Model`, or the path of one. Genes and cell types are matched by
        name, and its weights moved to the scale of these cells, which alone are trained on.
    init
        Model of SGD to add these cells to, as if they had come after its own: a `Model`, or the
        path of one. Its cell types stay, new ones are added, and each goes on at its own step.
        Types that have no cells here only learn what they are not: add some cells of each to X.
        The genes are the model's; their mean and variance become those of all cells.
    verbose
        Above 0, log each epoch or pass.
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

    recipe: str | None = None
    transpose_input: bool = False
    with_mean: bool = True
    check_expression: bool = True
    C: float = 1.0
    solver: Literal["lbfgs", "liblinear", "newton-cg", "sag", "saga"] | None = None
    max_iter: int | None = None
    n_jobs: int | None = None
    use_SGD: bool = False  # noqa: N815 - CellTypist's name
    alpha: list[float] | float = 1e-4
    step: list[float | Literal["auto"]] | float | Literal["auto"] | None = None
    use_GPU: bool = False  # noqa: N815 - CellTypist's name
    device: Literal["cpu", "gpu"] = "cpu"
    gpu_memory: int | str | None = None
    mini_batch: bool = False
    batch_number: int = 100
    batch_size: int = 1000
    epochs: int = 10
    balance_cell_type: bool = False
    replace: bool = False
    quotas: dict[str, int] | Literal["equal"] | None = None
    correct_prior: bool = False
    batch_key: str | None = None
    sampling_weight: str | None = None
    replicas: int = 1
    gene_dropout: float = 0.0
    gene_list: str | list[str] | None = None
    folds: int | None = None
    calibrate: bool = False
    feature_selection: bool = False
    top_genes: int = 300
    normalize: Literal["log1p"] | None = None
    layer: str | None = None
    gene_key: str | None = None
    join: str | list[str] = "inner"
    where: str | None = None
    holdout: str | None = None
    test_fraction: float | None = None
    group: str | None = None
    drop_unlabeled: bool = False
    memory: int | str | None = None
    scratch: str | None = None
    random_state: int = 0
    shuffle: bool = True
    tol: float | Literal["auto"] | None = "auto"
    n_iter_no_change: int = 5
    early_stopping: bool = False
    validation_fraction: float = 0.1
    validation_groups: str | None = None
    penalty: Literal["l2", "l1", "elasticnet"] | None = "l2"
    l1_ratio: float | None = None
    class_weight: dict[str, float] | Literal["balanced"] | None = None
    loss: Literal[
        "log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron", "squared_error",
        "huber", "epsilon_insensitive", "squared_epsilon_insensitive",
    ] = "log_loss"  # fmt: skip
    epsilon: float = 0.1
    average: bool | int = False
    learning_rate: Literal["optimal", "constant", "invscaling", "adaptive", "pa1", "pa2"] = (
        "optimal"
    )
    eta0: float = 0.01
    power_t: float = 0.5
    fit_intercept: bool = True
    intercept_scaling: float = 1.0
    dual: bool = False
    warm_start: str | None = None
    init: str | None = None
    verbose: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    date: str = ""
    details: str = ""
    url: str = ""
    source: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is read."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and field.name != "average":
                _choose(field.name, value, (True, False))
        for name in (
            "batch_number", "batch_size", "epochs", "n_iter_no_change", "top_genes", "replicas"
        ):  # fmt: skip
            require_number(name, getattr(self, name), 1, whole=True)
        if self.max_iter is not None:
            require_number("max_iter", self.max_iter, 1, whole=True)
        for name in ("random_state", "average", "verbose"):
            require_number(name, getattr(self, name), 0, whole=True)
        for name in ("power_t", "eta0", "epsilon"):
            require_number(name, getattr(self, name), 0)
        require_number("gene_dropout", self.gene_dropout, 0, most=0.9)
        if self.folds is not None:
            require_number("folds", self.folds, 2, most=20, whole=True)
        require_number("intercept_scaling", self.intercept_scaling, 0, above=True)
        if not (
            isinstance(self.C, float) and math.isinf(self.C) and self.C > 0
        ):  # scikit-learn's word for no penalty
            require_number("C", self.C, 0, above=True)
        _choose("solver", self.solver, (*SOLVERS, None))
        _choose("penalty", self.penalty, ("l2", "l1", "elasticnet", None))
        _choose("loss", self.loss, LOSSES)
        _choose("normalize", self.normalize, ("log1p", None))
        _choose("learning_rate", self.learning_rate, _RATES)
        _choose("dtype", self.dtype, ("float32", "float64"))
        _choose("device", self.device, ("cpu", "gpu"))
        check_gpu_memory(self.gpu_memory, on_gpu=self.on_gpu)
        if self.tol is not None and self.tol != "auto":
            require_number("tol", self.tol, 0)
        if self.l1_ratio is not None:
            require_number("l1_ratio", self.l1_ratio, 0, most=1)
        require_number("validation_fraction", self.validation_fraction, 0, above=True, most=0.999)
        check_split(self.holdout, self.test_fraction, self.group)
        self._check_weights()
        self._check_sampling()
        self._check_steps()
        self._check_ways()

    def _check_weights(self) -> None:
        weights = self.class_weight
        if isinstance(weights, Mapping):
            for name, weight in weights.items():
                require_number(f"class_weight[{name!r}]", weight, 0, above=True)
        else:
            _choose("class_weight", weights, ("balanced", None))

    def _check_sampling(self) -> None:
        for name in ("batch_key", "sampling_weight"):
            column = getattr(self, name)
            if not isinstance(column, (str, type(None))):
                raise InputError(f"{name} must name a column of obs; got {column!r}")
        if not isinstance(self.gene_list, (str, list, type(None))):
            raise InputError(
                "gene_list must be a list of names, or the path of a text file with one a line; "
                f"got {self.gene_list!r}"
            )
        if self.quotas is not None:
            check_quotas(
                self.quotas, self.batch_size, balance=self.balance_cell_type,
                weighted=self.sampling_weight is not None, replace=self.replace,
            )  # fmt: skip

    def _check_steps(self) -> None:
        for alpha in self.alphas:
            require_number("alpha", alpha, 0)
        for step in () if self.step is None else self.steps:
            if step != "auto":
                require_number("step", step, 0, above=True)
        # A model that was trained by `step` says what it came to: its settings can be given again.
        told = self.learning_rate == "constant"
        others = ("power_t",) if told else ("learning_rate", "eta0", "power_t")
        for name in others if self.step is not None else ():
            if getattr(self, name) != _fields()[name].default:
                raise InputError(f"step takes the place of {name}: leave one of them out")
        optimal = self.step is None and self.learning_rate == "optimal"
        if 0 in self.alphas and optimal and self.trains_sgd:
            raise InputError(
                "alpha must be above 0, as learning_rate='optimal' divides by it; for no penalty "
                "pass penalty=None, or learning_rate='constant' and eta0"
            )
        if self.eta0 == 0 and self.learning_rate != "optimal":
            raise InputError(f"eta0 must be above 0 with learning_rate={self.learning_rate!r}")
        if self.learning_rate in ("pa1", "pa2") and self.loss != "hinge" and self.trains_sgd:
            raise InputError(
                f"learning_rate={self.learning_rate!r} goes with loss='hinge' alone; got "
                f"loss={self.loss!r}"
            )
        if self.learning_rate == "adaptive" and self.mini_batch and not self.early_stopping:
            raise InputError(
                "learning_rate='adaptive' follows the loss of whole epochs: leave out mini_batch, "
                "or pass early_stopping=True"
            )

    def _elsewhere(self, table: dict[str, str]) -> dict[str, str]:
        """Those settings of `table` that are given although they belong to another way."""
        judged = self.trains_sgd and (not self.mini_batch or self.early_stopping)
        mini = self.trains_sgd and self.mini_batch
        ways = {
            _LOGISTIC: not self.use_SGD,
            _SGD: self.trains_sgd,
            _MINI: mini,
            _STRATA: mini and (self.balance_cell_type or self.quotas is not None),
            _PASSES: not (self.use_SGD and self.mini_batch),
            _JUDGED: judged or self.folds is not None,
            _STOPS: judged or not self.use_SGD,
            _LIBLINEAR: not self.use_SGD and self.solver == "liblinear",
            "feature_selection=True": self.feature_selection,
            "early_stopping=True": self.early_stopping,
            "early_stopping=True, or folds": self.early_stopping or self.folds is not None,
            _FOLDS: self.folds is not None,
            f"{_MINI}, and average": mini and bool(self.average),
            "penalty='elasticnet'": self.penalty == "elasticnet",
        }
        fields = _fields()
        given = (name for name in table if getattr(self, name) != fields[name].default)
        return {name: table[name] for name in given if not ways[table[name]]}

    def warn_of_ignored(self) -> None:
        """Warn of what CellTypist documents as ignored by the way of training asked for."""
        for name, way in self._elsewhere(_IGNORED).items():
            logger.warning("%s is ignored: it is for %s", name, way)

    def _check_ways(self) -> None:
        if self.init is not None:
            self._check_init()
        self._check_folds()
        self._check_replicas()
        for name, way in self._elsewhere(_REFUSED).items():
            raise InputError(f"{name} is for {way}: leave it out, or pass that")
        if self.correct_prior and not self.fit_intercept:
            raise InputError(
                "correct_prior shifts the intercepts, and fit_intercept=False has none: leave one "
                "out"
            )
        if self.penalty == "elasticnet" and self.l1_ratio is None and not self.use_SGD:
            raise InputError("penalty='elasticnet' needs l1_ratio, from 0 (l2) to 1 (l1)")
        if self.tol is None and not self.use_SGD:
            raise InputError("tol=None never stops, which SGD alone can do: pass a number")

    def _check_replicas(self) -> None:
        if self.replicas > self.batch_number:
            raise InputError(
                f"replicas={self.replicas} copies need a mini-batch each in every epoch, and "
                f"batch_number={self.batch_number}: raise it, or lower replicas"
            )
        for name, why in (
            ("early_stopping", "judges the epochs of one"),
            ("folds", "tries settings of one"),
        ):
            if self.replicas > 1 and getattr(self, name):
                raise InputError(
                    f"replicas trains copies of a model, and {name} {why}: leave one out"
                )

    def _check_init(self) -> None:
        if not self.use_SGD:
            raise InputError(
                "init adds cells to a model by SGD: pass use_SGD=True (--use-sgd). Logistic "
                "regression needs all cells at once: pass the old and the new as X, or the model "
                "as warm_start, which only starts from its weights"
            )
        for name, why in (
            ("warm_start", "starts on these cells alone"),
            ("feature_selection", "chooses other genes than the model's"),
            ("gene_list", "names other genes than the model's"),
            ("correct_prior", "goes by the shares of these cells alone"),
        ):
            if getattr(self, name):
                raise InputError(f"init adds cells to a model, and {name} {why}: leave one out")

    def _check_folds(self) -> None:
        if self.folds is None:
            for name, values in (("alpha", self.alphas), ("step", self.steps)):
                if len(values) > 1:
                    raise InputError(
                        f"{name}={list(values)!r} is chosen from by cross-validation: pass folds "
                        "(--folds 5) too, or one value"
                    )
            return
        if self.penalty is None and len(self.alphas) > 1:
            raise InputError(
                f"alpha={list(self.alphas)!r} makes no difference with penalty=None: pass one value"
            )
        for name, why in (
            ("early_stopping", "stops by other held-out cells"),
            ("feature_selection", "would choose genes by the held-out cells too"),
            ("init", "goes on from cells that no fold can leave out"),
            ("warm_start", "starts from weights that the held-out cells may have shaped"),
        ):
            if getattr(self, name):
                raise InputError(f"folds cross-validates, and {name} {why}: leave one out")

    @property
    def alphas(self) -> tuple[float, ...]:
        """Values of `alpha` to choose from."""
        return _several("alpha", self.alpha)

    @property
    def steps(self) -> tuple[float | str | None, ...]:
        """Values of `step` to choose from."""
        return _several("step", self.step)

    @property
    def trains_sgd(self) -> bool:
        """Whether SGD runs at all: as the solver, or to select genes."""
        return self.use_SGD or self.feature_selection

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU trains."""
        return self.use_GPU or self.device == "gpu"

    @property
    def sgd_l1_ratio(self) -> float:
        """`l1_ratio` as SGDClassifier defaults it."""
        return 0.15 if self.l1_ratio is None else self.l1_ratio

    @property
    def stop_tol(self) -> float | None:
        """`tol` as scikit-learn's estimators default it."""
        if self.tol == "auto":
            return 1e-3 if self.use_SGD else 1e-4
        return self.tol

    def most_passes(self, n_obs: int) -> int:
        """`max_iter`, or CellTypist's default for that many cells."""
        if self.max_iter is not None:
            return self.max_iter
        return 1000 if n_obs < 50_000 else 500 if n_obs < 500_000 else 200

    def first_round(self) -> Settings:
        """How genes are selected: by SGD, with these settings otherwise."""
        tol = self.tol if self.use_SGD else "auto"
        return replace(
            self, use_SGD=True, feature_selection=False, top_genes=300, warm_start=None, tol=tol,
            C=1.0, solver=None, dual=False, intercept_scaling=1.0,
        )  # fmt: skip

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> Settings:
        """Settings from keyword arguments.

        Raises
        ------
        TypeError
            For a keyword that does not exist, with the nearest that does.
        InputError
            For a value out of range, or a setting that the way of training asked for has not.
        """
        names = list(_fields())
        for name in keywords:
            if name not in names:
                raise TypeError(f"train() has no argument {name!r}: {near(name, names)}")
        keywords = {name: _plain(value) for name, value in with_recipe(keywords).items()}
        if keywords.get("random_state", 0) is None:  # scikit-learn's word for any seed
            keywords = keywords | {"random_state": secrets.randbits(31)}
        for argument in ("join", "gene_list", "recipe"):
            value = keywords.get(argument)
            if isinstance(value, os.PathLike):
                keywords = keywords | {argument: str(value)}
            elif not isinstance(value, str) and isinstance(value, Iterable):
                keywords = keywords | {argument: [str(name) for name in value]}
        for argument in ("alpha", "step"):
            value = keywords.get(argument)
            if not isinstance(value, str) and isinstance(value, Iterable):
                given = list(value)
                keywords = keywords | {argument: given[0] if len(given) == 1 else given}
        try:
            return cls(**keywords)
        except InputError as error:
            if keywords.get("recipe") is None:
                raise
            raise InputError(f"with what recipe={keywords['recipe']!r} sets: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, to train alike with, on whichever device."""
        return {k: v for k, v in asdict(self).items() if k not in _WHERE}


def _plain(value: Any) -> Any:
    """NumPy's numbers and texts as Python's, paths and dates as texts: models keep settings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, date) else value


def with_recipe(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords, and those that they leave to their recipe.

    Raises
    ------
    InputError
        If there is no such recipe, or the file is no TOML or holds something else.
    """
    recipe = keywords.get("recipe")
    if recipe is None:
        return keywords
    found = recipes.read(recipe, [name for name in _fields() if name != "recipe"])
    return {name: _none(name, value) for name, value in found.items()} | keywords


@cache
def types() -> dict[str, Any]:
    """The type of each setting; to evaluate the annotations takes a millisecond."""
    return get_type_hints(Settings)


def _none(name: str, value: Any) -> Any:
    """None for "none", where a setting may be None and no text: TOML has no word for it."""
    kinds = get_args(types()[name])
    return None if value == "none" and NoneType in kinds and str not in kinds else value


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


def _several(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a setting that takes one or several."""
    if not isinstance(value, list | tuple):
        return (value,)
    if not value or any(a == b for a, b in itertools.combinations(value, 2)):
        raise InputError(f"{name}: values to choose from must differ; got {value!r}")
    return tuple(value)


def _fields() -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(Settings)}


def check_quotas(
    quotas: Any, batch_size: int, *, balance: bool, weighted: bool, replace: bool
) -> None:
    """Refuse quotas that no batch can meet, or that contradict how else cells are drawn.

    Raises
    ------
    InputError
        With the rule, the value and the remedy.
    """
    if isinstance(quotas, Mapping):
        for name, number in quotas.items():
            require_number(f"quotas[{name!r}]", number, 1, whole=True)
        total = sum(quotas.values())
        if total > batch_size:
            raise InputError(
                f"quotas must fit in a mini-batch: they take {total:,} cells of "
                f"batch_size={batch_size:,}; lower them, or raise batch_size"
            )
    else:
        _choose("quotas", quotas, ("equal", None))
    if balance:
        raise InputError(
            "quotas set the cells of each type: leave out balance_cell_type, or the quotas"
        )
    if weighted and not replace:
        raise InputError(
            "quotas with sampling_weight draw with replacement: pass replace=True (--replace) "
            "too, or leave one out"
        )


def check_split(holdout: Any, fraction: Any, group: Any) -> None:
    """Refuse what asks for no split, or for two, before anything is read.

    Raises
    ------
    InputError
        With the rule and the value.
    """
    if fraction is not None:
        require_number("test_fraction", fraction, 0, above=True, most=0.999)
    if not isinstance(group, (str, type(None))):
        raise InputError(f"group must name a column of obs; got {group!r}")
    if holdout is not None and (not isinstance(holdout, str) or "=" not in holdout):
        raise InputError(
            f"holdout must be a column of obs and its values, 'donor_id=D3,D7'; got {holdout!r}"
        )
    if holdout is not None and (fraction is not None or group is not None):
        raise InputError(
            "holdout names the cells that are held out, and test_fraction draws them: leave one out"
        )
    if (fraction is None) != (group is None):
        raise InputError(
            "test_fraction (--test-fraction) holds out whole groups: pass it with group (--group), "
            "a column of obs such as donor_id"
        )


def require_number(
    name: str,
    value: Any,
    least: float,
    *,
    above: bool = False,
    most: float = math.inf,
    whole: bool = False,
) -> None:
    """Refuse a setting that is no number, or out of range.

    Raises
    ------
    InputError
        With the name, the rule and the value.
    """
    number = isinstance(value, Integral if whole else Real)  # NumPy's too
    if isinstance(value, bool) and name not in ("average", "verbose"):
        number = False
    if (
        not number
        or not math.isfinite(value)
        or not least <= value <= most
        or (above and value == least)
    ):
        kind = "a whole number" if whole else "a number"
        words = f"above {least}" if above else f"of at least {least}"
        words += f" and at most {most}" if most < math.inf else ""
        raise InputError(f"{name} must be {kind} {words}; got {value!r}")


def _choose(name: str, value: Any, choices: Iterable[Any]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
