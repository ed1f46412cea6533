"""A Model enters; the scikit-learn objects that CellTypist's pickle holds leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from streamtrain.model import Model

_WEIGHTS = ("coef", "intercept", "coef_last", "intercept_last")


def sklearn_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Scikit-learn's form of weights: the second row alone of two."""
    return values[1:] if len(values) == 2 else values


def sgd_classifier(model: Model) -> Any:
    """Make the scikit-learn classifier of a model, with copies of its arrays."""
    from sklearn.linear_model import SGDClassifier

    data = model.dataset
    rows = {k: np.array(sklearn_rows(data[k].to_numpy())) for k in _WEIGHTS if k in data}
    averaged = "coef_last" in rows
    average = int(model.settings.get("average") or True) if averaged else False  # or from step n
    classifier = SGDClassifier(loss="log_loss", average=average, **_sgd_settings(model.settings))
    classifier.coef_, classifier.intercept_ = rows["coef"], rows["intercept"]
    if averaged:  # scikit-learn's own names for the running average and what it averages
        classifier._average_coef, classifier._average_intercept = rows["coef"], rows["intercept"]
        classifier._standard_coef = rows["coef_last"]
        classifier._standard_intercept = rows["intercept_last"]
    classifier.classes_, classifier.features = model.classes_, model.features
    classifier.n_features_in_ = len(model.features)
    classifier.t_, classifier.n_iter_ = data.attrs["t"], 1
    return classifier


def _sgd_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what `partial_fit` reads and scikit-learn accepts: ours may hold "auto" or new names."""
    choices = {
        "penalty": ("l2", "l1", "elasticnet"),
        "learning_rate": ("optimal", "constant", "invscaling", "adaptive"),
    }
    kept = {k: settings[k] for k, allowed in choices.items() if settings.get(k) in allowed}
    for name in ("alpha", "eta0", "power_t", "l1_ratio"):
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            kept[name] = value
    for name, kind in (("fit_intercept", bool), ("shuffle", bool), ("random_state", int)):
        if type(settings.get(name)) is kind:
            kept[name] = settings[name]
    return kept


def standard_scaler(dataset: xr.Dataset) -> Any:
    """Make the scikit-learn scaler; like a fitted one it keeps `mean_` with with_mean=False."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=dataset.attrs["with_mean"])
    for name in ("mean", "var", "scale"):
        setattr(scaler, f"{name}_", np.array(dataset[name].to_numpy()))
    scaler.n_features_in_ = dataset.sizes["gene"]
    if "n_cells" in dataset:
        scaler.n_samples_seen_ = np.int64(dataset["n_cells"].sum())
    return scaler
