"""A Model enters; the scikit-learn objects that CellTypist's pickle holds leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from streamtrain.config import LOSSES
from streamtrain.model_schema import MIRRORED, n_averaged, n_obs, sklearn_rows, steps

if TYPE_CHECKING:
    from streamtrain.model import Model

_SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")


def classifier(model: Model) -> Any:
    """Make the scikit-learn classifier of a model, with copies of its arrays."""
    data, settings = _calibrated(model), model.settings
    rows = {k: sklearn_rows(data[k].to_numpy()).copy() for k in (*MIRRORED, "n_iter") if k in data}
    logistic = settings.get("use_SGD") is False
    made = _logistic_regression(settings) if logistic else _sgd_classifier(settings)
    made.coef_, made.intercept_ = rows["coef"], rows["intercept"]
    made.classes_, made.features = model.classes_, model.features
    made.n_features_in_ = len(model.features)
    if logistic:
        if "n_iter" in rows:
            made.n_iter_ = rows["n_iter"].astype(np.int32)
        return made
    made.t_, made.n_iter_ = data.attrs["t"], int(rows["n_iter"].max()) if "n_iter" in rows else 1
    if "coef_last" in rows:  # scikit-learn's names for the running average and what it averages
        # One counter for all types: that of the type with most steps. Averaged is from step n.
        most = int(steps(data).argmax())
        made.average = max(1, int(made.t_) - int(n_averaged(data)[most]))
        made._average_coef, made._average_intercept = rows["coef"], rows["intercept"]
        made._standard_coef = rows["coef_last"]
        made._standard_intercept = rows["intercept_last"]
    return made


def _calibrated(model: Model) -> xr.Dataset:
    """Fold a calibration into the weights, which then are none that SGD would go on from."""
    data, calibration = model.dataset, model.calibration
    if calibration is None:
        return data
    slope, offset = 1 / calibration.temperature, calibration.offset
    if data.sizes["cell_type"] == 2:  # a sigmoid of s says what the softmax of -s and s does
        slope, offset = 2 / calibration.temperature, 0.0
    intercept = slope * data["intercept"] + offset
    folded = {"coef": slope * data["coef"], "intercept": intercept.astype(data["intercept"].dtype)}
    state = ("coef_last", "intercept_last", "n_averaged", "t")
    return data.drop_vars(state, errors="ignore").assign(folded).assign_attrs(t=1.0)


def _logistic_regression(settings: Mapping[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression

    accepted = {
        "C": _positive,
        "tol": _positive,
        "max_iter": _whole,
        "solver": _SOLVERS.__contains__,
        "fit_intercept": _bool,
        "random_state": _whole,
    }
    made = LogisticRegression(**_accepted(settings, accepted))
    made.multi_class = "ovr"  # scikit-learn 1.7 reads it, 1.8 has no such parameter
    return made


def _sgd_classifier(settings: Mapping[str, Any]) -> Any:
    from sklearn.linear_model import SGDClassifier

    accepted = {  # what `partial_fit` reads
        "loss": LOSSES.__contains__,
        "penalty": ("l2", "l1", "elasticnet").__contains__,
        "learning_rate": ("optimal", "constant", "invscaling", "adaptive").__contains__,
        "alpha": _positive,
        "eta0": _positive,
        "power_t": _positive,
        "l1_ratio": lambda value: _number(value) and 0 <= value <= 1,
        "fit_intercept": _bool,
        "shuffle": _bool,
        "random_state": _whole,
    }
    return SGDClassifier(**{"loss": "log_loss"} | _accepted(settings, accepted))


def _accepted(
    settings: Mapping[str, Any], accepted: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any]:
    """Keep what scikit-learn accepts: ours may hold "auto" or new names."""
    return {k: settings[k] for k, check in accepted.items() if k in settings and check(settings[k])}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def standard_scaler(dataset: xr.Dataset) -> Any:
    """Make the scikit-learn scaler; like a fitted one it keeps `mean_` with with_mean=False."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=dataset.attrs["with_mean"])
    for name in ("mean", "var", "scale"):
        setattr(scaler, f"{name}_", np.array(dataset[name].to_numpy()))
    scaler.n_features_in_ = dataset.sizes["gene"]
    seen = n_obs(dataset)
    if seen is not None:  # a number, or where genes differ one for each
        scaler.n_samples_seen_ = seen[0] if (seen == seen[0]).all() else seen
    return scaler
