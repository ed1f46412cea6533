"""The SGD engine as a scikit-learn estimator: a matrix in memory and labels in, a classifier out.

What scikit-learn checks, names and documents is kept; cells are rows here, and genes features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, Self

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, validate_data

from streamtrain.errors import InputError, some
from streamtrain.estimator.parameters import check_parameters
from streamtrain.estimator.samples import Samples
from streamtrain.estimator.scores import LinearScores
from streamtrain.estimator.standardised import Standard
from streamtrain.estimator.steps import make_solver, plan_orders, split_samples, until_stopped
from streamtrain.solvers.counters import State
from streamtrain.threads import Threads


def _all_or_nothing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Leave the estimator as it was if the method fails; its attributes are only ever replaced."""

    @wraps(method)
    def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return whole


class SparseSGDClassifier(LinearScores):
    """Linear classifiers by SGD on standardised features, which sparse input never densifies.

    It is scikit-learn's ``make_pipeline(StandardScaler(), SGDClassifier())`` in one: with the same
    loss and `shuffle=False`, `fit` gives its coefficients on dense float64 input to rounding. Here
    X may be sparse and is centred all the same, at the cost of its stored entries (but for an L1
    penalty: centred, it costs every feature at each step); all classes share each pass, and
    `n_jobs` threads the classes. Nothing of the size of X is made beside it, once it is CSR or an
    array.

    `partial_fit` learns mean and deviation online: each call takes its batch into those of all
    samples so far, moves the weights to the new scale so that they say the same of X, and then
    takes one step for each sample, in a random order unless `shuffle` is False. Give the first
    call some hundreds of samples, as their deviation sets its steps. Without centring and scaling
    it is ``SGDClassifier.partial_fit``.

    Parameters
    ----------
    loss : str, default="log_loss"
        One of SGDClassifier's. Its default is "hinge"; "log_loss" has probabilities.
    penalty, alpha, l1_ratio, fit_intercept, max_iter, tol, epsilon, learning_rate, eta0, power_t
        As SGDClassifier's, with its defaults.
    early_stopping, validation_fraction, n_iter_no_change, class_weight, warm_start, average
        As SGDClassifier's, with its defaults. Mean and deviation are of all samples, unweighted,
        those held out included. Epochs are judged by the accuracy on those held out for every
        loss, where scikit-learn 1.9 counts one side of "log_loss" alone.
    shuffle : bool, default=True
        Whether each epoch, or call of `partial_fit`, takes its samples in a new order, the same
        for every class.
    verbose : int, default=0
        Above 0, log each epoch.
    n_jobs : int, default=None
        Threads: None for 1 unless joblib's context says more, -1 for all CPUs. The result is the
        same for any number.
    random_state : int, RandomState instance or None, default=None
        Seed of the orders, and of the samples held out for early stopping.
    with_mean : bool, default=True
        Whether to centre. Without, and with sparse X, scikit-learn slows the intercept's steps to
        a hundredth, and so is done here.
    with_std : bool, default=True
        Whether to divide by the standard deviation.
    max_value : float or None, default=None
        Upper bound of the scaled values; CellTypist's and scanpy's is 10.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Weights of the scaled features; float32 if the X that was fitted first is, else float64.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Constants of the decision function.
    classes_ : ndarray of shape (n_classes,)
        Labels.
    n_iter_ : int
        Epochs, the most of any class.
    t_ : float
        Samples seen in training, repeats included, plus one: the counter of the step size.
    mean_, var_, scale_ : ndarray of shape (n_features,) or None
        StandardScaler's: mean, variance and divisor, None where neither of `with_mean` and
        `with_std`, or not `with_std`, needs them.
    n_samples_seen_ : int
        Samples that mean and variance are of.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    streamtrain.train : The same from files larger than memory.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse as sp
    >>> from streamtrain import SparseSGDClassifier
    >>> X = sp.random_array((300, 50), density=0.1, rng=0, format="csr")
    >>> y = np.where(X[:, [3]].toarray()[:, 0] > X[:, [7]].toarray()[:, 0], "three", "other")
    >>> model = SparseSGDClassifier(alpha=0.01, random_state=0).fit(X, y)
    >>> int(np.argmax(model.coef_)), model.predict(X[:3]).shape
    (3, (3,))
    >>> model.predict_proba(X).sum(axis=1).round(6).min().item()
    1.0
    """

    def __init__(
        self,
        loss: str = "log_loss",
        *,
        penalty: str | None = "l2",
        alpha: float = 0.0001,
        l1_ratio: float | None = 0.15,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        verbose: int = 0,
        epsilon: float = 0.1,
        n_jobs: int | None = None,
        random_state: Any = None,
        learning_rate: str = "optimal",
        eta0: float = 0.01,
        power_t: float = 0.5,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        average: bool | int = False,
        with_mean: bool = True,
        with_std: bool = True,
        max_value: float | None = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.verbose = verbose
        self.epsilon = epsilon
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.average = average
        self.with_mean = with_mean
        self.with_std = with_std
        self.max_value = max_value

    @_all_or_nothing
    def fit(
        self,
        X: Any,
        y: Any,
        coef_init: ArrayLike | None = None,
        intercept_init: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Measure the features, then train epoch by epoch until no class improves any more.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples. Sparse X is taken as CSR, of int32 or int64 indices; other formats are
            converted to it first.
        y : array-like of shape (n_samples,)
            Labels.
        coef_init : array-like of the shape of `coef_`, default=None
            Weights of the scaled features to begin with.
        intercept_init : array-like of the shape of `intercept_`, default=None
            Intercepts to begin with.
        sample_weight : array-like of shape (n_samples,), default=None
            Factor of each sample's steps, beside its class's.

        Returns
        -------
        self : SparseSGDClassifier
            The fitted estimator.

        Raises
        ------
        InputError
            A ValueError: for parameters out of range, fewer than two classes, or weights that
            overflow.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If a class still improved after `max_iter` epochs.
        """
        given = self.get_params(deep=False)
        check_parameters(given, whole=True)
        warm = self.warm_start and hasattr(self, "coef_")
        X, y, weight = self._validated(X, y, sample_weight, reset=True)
        classes, codes = np.unique(y, return_inverse=True)
        _check_classes(classes)
        samples = Samples(X, codes.astype(np.int32), weight)
        factors = self._factors(classes, np.bincount(codes))
        split = split_samples(given, samples)
        start = _zeros(len(classes), samples)
        if warm:
            last = State(self._dense_coef().astype(samples.dtype), self.intercept_)
            start = _fitting(last, start)
        coef = _begun("coef_init", coef_init, start.coef)
        intercept = _begun("intercept_init", intercept_init, start.intercept)
        with Threads(effective_n_jobs(self.n_jobs)) as threads:
            standard = self._measure(samples, threads)
            if warm:
                start = self._moved(start, standard)
            start = State(
                start.coef if coef is None else coef,
                start.intercept if intercept is None else intercept,
            )
            scaler = standard.scaler(samples.dtype, outright=True, apart=self._apart(samples))
            solver = make_solver(given, samples, scaler, factors, start, threads, epochs=True)
            stopping = until_stopped(given, solver, scaler, samples, *split)
            state = solver.state()
        n_iter = int(stopping.n_iter_.max())
        self._keep(state, classes, standard, n_iter, samples.n_obs, 1.0 + n_iter * samples.n_obs)
        if self.tol is not None and stopping.active.any():
            warnings.warn(
                f"{stopping.active.sum()} of {len(stopping.active)} classes still improved after "
                f"{n_iter} epochs: raise max_iter, or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    @_all_or_nothing
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Take these samples into mean and deviation, then take one step for each.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that any call will give; needed at the first.
        sample_weight : array-like of shape (n_samples,), default=None
            Factor of each sample's step, beside its class's.

        Returns
        -------
        self : SparseSGDClassifier
            The estimator, which has learnt these samples too.

        Raises
        ------
        InputError
            A ValueError: as by `fit`; also for `classes` missing or other than before, a label
            that is none of them, and parameters that need all samples at once.
        """
        given = self.get_params(deep=False)
        check_parameters(given, whole=False)
        first = not hasattr(self, "classes_")
        X, y, weight = self._validated(X, y, sample_weight, reset=first)
        known = self._known_classes(classes)
        samples = Samples(X, _codes(y, known), weight)
        factors = self._factors(known)
        start = _zeros(len(known), samples)
        if not first:
            last = self._averaging if self.average else None
            last = last or State(self._dense_coef(), self.intercept_)
            start = _fitting(replace(last, t=self.t_), start)
        # An order of its own for each call, as for each epoch.
        order = plan_orders(given, samples.n_obs).epoch(1 if first else int(self.t_))
        with Threads(effective_n_jobs(self.n_jobs)) as threads:
            standard = self._measure(samples, threads, None if first else self._standard)
            if not first:
                start = self._moved(start, standard)
            scaler = standard.scaler(start.coef.dtype, outright=True, apart=self._apart(samples))
            # Only epochs remember from one batch to the next what L1 penalty is paid.
            epochs = self.penalty in ("l1", "elasticnet")
            solver = make_solver(given, samples, scaler, factors, start, threads, epochs=epochs)
            for rows, weights in samples.batches(order):
                solver.partial_fit(scaler(rows), weights)
            state = solver.state()
        seen = samples.n_obs + (0 if first else self.n_samples_seen_)
        t = samples.n_obs + (1.0 if first else self.t_)
        self._keep(state, known, standard, 1, seen, t)
        return self

    def _validated(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Any, Any, Any]:
        X, y = validate_data(self, X, y, accept_sparse="csr", reset=reset)
        check_classification_targets(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        return X, y, sample_weight

    def _known_classes(self, classes: ArrayLike | None) -> NDArray[Any]:
        """Classes of `partial_fit`: those of the first call."""
        known: NDArray[Any] | None = getattr(self, "classes_", None)
        if classes is None:
            if known is None:
                raise InputError("classes must be passed on the first call to partial_fit")
            return known
        given: NDArray[Any] = unique_labels(classes)
        if known is not None and not np.array_equal(known, given):
            raise InputError(
                f"classes must be those of the first call to partial_fit, {some(known)}; got "
                f"{some(given)}"
            )
        _check_classes(given)
        return given

    def _factors(
        self, classes: NDArray[Any], counts: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Factor of the steps of each class's samples, shape (n_classes,)."""
        if counts is not None and self.class_weight == "balanced":
            return np.sum(counts) / (len(classes) * counts)
        weights: NDArray[np.float64] = compute_class_weight(
            self.class_weight, classes=classes, y=classes
        )
        return weights

    def _measure(
        self, samples: Samples, threads: Threads, before: Standard | None = None
    ) -> Standard:
        """Scaling by the moments of these samples and those `before`."""
        moments = samples.moments(threads) if self.with_mean or self.with_std else None
        if moments is not None and before is not None:
            if before.moments is None:
                raise InputError(
                    "with_mean and with_std need the mean and deviation of all samples, which were "
                    "not taken so far: set both to False as before, or call fit"
                )
            moments = before.moments + moments
        return Standard(samples.n_vars, moments, self.with_mean, self.with_std, self.max_value)

    def _apart(self, samples: Samples) -> bool:
        """Whether the solver need not tell stored entries from zeros, nor visits every feature."""
        stored = samples.is_sparse and not self.with_mean
        return self.penalty in ("l2", None) and not stored

    def _moved(self, state: State, standard: Standard) -> State:
        """The fitted weights `state`, for features scaled otherwise."""
        return self._standard.move(state, standard, fit_intercept=self.fit_intercept)

    def _keep(
        self,
        state: State,
        classes: NDArray[Any],
        standard: Standard,
        n_iter: int,
        seen: int,
        t: float,
    ) -> None:
        """Take over what was learnt."""
        moments = standard.moments
        self.classes_, self.n_iter_, self.t_, self.n_samples_seen_ = classes, n_iter, t, seen
        self._standard = standard
        self.mean_ = None if moments is None else moments.mean
        self.var_ = moments.var if moments is not None and self.with_std else None
        self.scale_ = standard.scale if moments is not None and self.with_std else None
        self._averaging = None
        self.coef_, self.intercept_ = state.coef, state.intercept
        if state.average_coef is not None and state.average_intercept is not None:
            self._averaging = state
            self.coef_, self.intercept_ = state.average_coef, state.average_intercept


def _zeros(n_classes: int, samples: Samples) -> State:
    columns = 1 if n_classes == 2 else n_classes
    return State(np.zeros((columns, samples.n_vars), samples.dtype), np.zeros(columns))


def _fitting(state: State, start: State) -> State:
    """Give `state` if it has the shape of `start`."""
    if state.coef.shape != start.coef.shape:
        raise InputError(
            f"warm_start would continue from coef_ of shape {state.coef.shape}, where these "
            f"classes and features need {start.coef.shape}: set warm_start=False"
        )
    return state


def _begun(name: str, given: ArrayLike | None, weights: NDArray[Any]) -> NDArray[Any] | None:
    """What a user gave to begin with, in the shape of `weights`; of one column also flat."""
    if given is None:
        return None
    array = np.array(given, weights.dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite numbers")
    if array.shape != weights.shape and (len(weights) > 1 or array.size != weights.size):
        raise InputError(f"{name} must have the shape {weights.shape}; got {array.shape}")
    return array.reshape(weights.shape)


def _check_classes(classes: NDArray[Any]) -> None:
    if len(classes) < 2:
        raise InputError(f"y must hold two classes at least; got 1 class, {some(classes)}")


def _codes(y: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int32]:
    """Position of each label among the classes, which are sorted."""
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1).astype(np.int32)
    unknown = classes[codes] != y
    if unknown.any():
        raise InputError(
            f"y holds {some(np.unique(y[unknown]))}, beside the classes that the first call to "
            f"partial_fit named: {some(classes, 12)}"
        )
    return codes
