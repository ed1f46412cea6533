"""Keywords of train(), predict() and annotate() as type checkers see them: names and types."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from streamtrain.adapt import Adapt
    from streamtrain.cells import Labels
    from streamtrain.expression import Normalize
    from streamtrain.model import Model
    from streamtrain.predict import Mode, Names


class TrainGiven(TypedDict, total=False):
    """Keywords of `train` and `cross_validate`, each documented in `streamtrain.Settings`.

    Where a setting is kept as text or list, what is given may be wider: a path, a model, any
    iterable.
    """

    recipe: str | os.PathLike[str] | None
    transpose_input: bool
    with_mean: bool
    check_expression: bool
    C: float
    solver: Literal["lbfgs", "liblinear", "newton-cg", "sag", "saga"] | None
    max_iter: int | None
    n_jobs: int | None
    use_SGD: bool
    alpha: Iterable[float] | float
    step: Iterable[float | Literal["auto"]] | float | Literal["auto"] | None
    use_GPU: bool
    device: Literal["cpu", "gpu"]
    gpu_memory: int | str | None
    mini_batch: bool
    batch_number: int
    batch_size: int
    epochs: int
    balance_cell_type: bool
    replace: bool
    quotas: Mapping[str, int] | Literal["equal"] | None
    correct_prior: bool
    batch_key: str | None
    sampling_weight: str | os.PathLike[str] | ArrayLike | None
    replicas: int
    gene_dropout: float
    gene_list: str | os.PathLike[str] | Iterable[str] | None
    folds: int | None
    calibrate: bool
    feature_selection: bool
    top_genes: int
    normalize: Literal["log1p"] | None
    layer: str | None
    gene_key: str | None
    join: str | os.PathLike[str] | Iterable[str]
    where: str | None
    holdout: str | None
    test_fraction: float | None
    group: str | None
    drop_unlabeled: bool
    memory: int | str | None
    scratch: str | os.PathLike[str] | None
    random_state: int | None
    shuffle: bool
    tol: float | Literal["auto"] | None
    n_iter_no_change: int
    early_stopping: bool
    validation_fraction: float
    validation_groups: str | None
    penalty: Literal["l2", "l1", "elasticnet"] | None
    l1_ratio: float | None
    class_weight: Mapping[str, float] | Literal["balanced"] | None
    loss: Literal[
        "log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron", "squared_error",
        "huber", "epsilon_insensitive", "squared_epsilon_insensitive",
    ]  # fmt: skip
    epsilon: float
    average: bool | int
    learning_rate: Literal["optimal", "constant", "invscaling", "adaptive", "pa1", "pa2"]
    eta0: float
    power_t: float
    fit_intercept: bool
    intercept_scaling: float
    dual: bool
    warm_start: Model | str | os.PathLike[str] | None
    init: Model | str | os.PathLike[str] | None
    verbose: int
    dtype: Literal["float32", "float64"]
    date: str | datetime.date
    details: str
    url: str
    source: str
    version: str


class AnnotateGiven(TypedDict, total=False):
    """Keywords of `annotate`, documented there and in `predict`, but for `inplace` and `copy`."""

    mode: Mode
    p_thres: float
    majority_voting: bool
    over_clustering: Labels | None
    min_prop: float
    probabilities: bool
    scores: bool
    adapt: Adapt
    prefix: str
    normalize: Normalize
    check_expression: bool
    layer: str | None
    gene_key: str | None
    memory: int | str | None
    scratch: str | None
    n_jobs: int | None
    device: Literal["cpu", "gpu"]
    gpu_memory: int | str | None
    progress: bool


class PredictGiven(AnnotateGiven, total=False):
    """Keywords of `predict`, documented there, but for `out` and `in_place`."""

    overwrite: bool
    cells: Names
    transpose_input: bool
    where: str | None
    client: Any
    storage_options: Mapping[str, Any] | None
