"""The parameters of `SparseSGDClassifier` in; the error for the first that is out of range out."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, get_args

import numpy as np

from streamtrain.config import LOSSES, require_number
from streamtrain.errors import InputError
from streamtrain.solvers.schedule import LearningRate, Penalty

_CHOICES: dict[str, tuple[Any, ...]] = {
    "loss": LOSSES,
    "penalty": (*get_args(Penalty), None),
    "learning_rate": get_args(LearningRate),
}
_SWITCHES = (
    "with_mean", "with_std", "fit_intercept", "shuffle", "early_stopping", "warm_start",
)  # fmt: skip


def check_parameters(given: Mapping[str, Any], *, whole: bool) -> None:
    """Refuse values and combinations that cannot be used.

    Parameters
    ----------
    given
        Every parameter by name.
    whole
        Whether all samples are at hand, in `fit`.

    Raises
    ------
    InputError
        With the name, the rule and the value.
    """
    for name in _SWITCHES:
        if not isinstance(given[name], (bool, np.bool_)):
            raise InputError(f"{name} must be True or False; got {given[name]!r}")
    for name, choices in _CHOICES.items():
        _choose(name, given[name], choices)
    for name in ("max_iter", "n_iter_no_change"):
        require_number(name, given[name], 1, whole=True)
    for name in ("average", "verbose"):
        require_number(name, given[name], 0, whole=True)
    for name in ("alpha", "power_t", "epsilon"):
        require_number(name, given[name], 0)
    require_number("eta0", given["eta0"], 0, above=True)
    require_number("validation_fraction", given["validation_fraction"], 0, above=True, most=0.999)
    if given["tol"] is not None:
        require_number("tol", given["tol"], 0)
    if given["max_value"] is not None:
        require_number("max_value", given["max_value"], 0, above=True)
    if given["l1_ratio"] is not None or given["penalty"] == "elasticnet":
        require_number("l1_ratio", given["l1_ratio"], 0, most=1)
    if not isinstance(given["class_weight"], Mapping):
        _choose("class_weight", given["class_weight"], ("balanced", None))
    seed, n_jobs = given["random_state"], given["n_jobs"]
    if isinstance(seed, Integral):
        require_number("random_state", seed, 0, most=2**32 - 1, whole=True)
    if n_jobs is not None and (not isinstance(n_jobs, Integral) or n_jobs == 0):
        raise InputError(f"n_jobs must be a whole number but 0, or None; got {n_jobs!r}")
    _check_combinations(given, whole)


def _check_combinations(given: Mapping[str, Any], whole: bool) -> None:
    rate = given["learning_rate"]
    if given["alpha"] == 0 and rate == "optimal":
        raise InputError(
            "alpha must be above 0, as learning_rate='optimal' divides by it; for no penalty pass "
            "penalty=None, or learning_rate='constant' and eta0"
        )
    if rate in ("pa1", "pa2") and given["loss"] != "hinge":
        raise InputError(f"learning_rate={rate!r} is for loss='hinge'; got {given['loss']!r}")
    if whole:
        return
    if given["early_stopping"]:
        raise InputError("early_stopping must be False with partial_fit, which runs no epochs")
    if isinstance(given["class_weight"], str):
        raise InputError(
            "class_weight='balanced' is not supported by partial_fit, which does not see all "
            "labels: pass a dict, as of sklearn.utils.compute_class_weight"
        )


def _choose(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    # Of their own types, as an array would be compared element by element.
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
