"""A fitted linear classifier of scaled features and new samples in; scores and labels out."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from joblib import effective_n_jobs
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from streamtrain.estimator.samples import Samples
from streamtrain.estimator.standardised import Standard
from streamtrain.kernels import predict as kernel
from streamtrain.threads import Threads


def _has_probabilities(estimator: LinearScores) -> bool:
    if estimator.loss not in ("log_loss", "modified_huber"):
        raise AttributeError(f"probability estimates are not available for loss={estimator.loss!r}")
    return True


class LinearScores(ClassifierMixin, BaseEstimator):
    """What a linear classifier of scaled features can do once it is fitted.

    It scores sparse samples at the cost of their stored entries, whatever they are centred by.
    """

    loss: str
    n_jobs: int | None
    coef_: Any
    intercept_: NDArray[np.float64]
    classes_: NDArray[Any]
    _standard: Standard  # of the last training, whatever parameters are set since

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Score samples: above 0 a class would be predicted against the rest.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Scores; for two classes those of ``classes_[1]`` alone.
        """
        check_is_fitted(self)
        samples = Samples(validate_data(self, X, accept_sparse="csr", reset=False))
        scaler = self._standard.scaler(np.float64, outright=False)
        coef = self._dense_coef().astype(np.float64)
        constant = self.intercept_ - coef @ scaler.shift
        weights = np.ascontiguousarray(coef.T)
        scores = np.empty((samples.n_obs, len(coef)))
        start = 0
        with Threads(effective_n_jobs(self.n_jobs)) as threads:
            for rows, _ in samples.batches():
                cells, out = scaler(rows).rows, scores[start : start + rows.n_obs]
                given = cells.data, cells.indices, cells.indptr, weights, constant
                threads.share(rows.n_obs, partial(kernel.scores, *given, out=out))
                start += rows.n_obs
        return scores[:, 0] if len(coef) == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of each sample.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels.
        """
        scores = self.decision_function(X)
        found = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[found]
        return labels

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probability of each class, for the losses "log_loss" and "modified_huber".

        The sigmoid of the score, or (clip(score, -1, 1) + 1) / 2 for "modified_huber"; of several
        classes each is divided by their sum.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, classes in the order of ``classes_``.
        """
        scores = self.decision_function(X)
        share = expit(scores) if self.loss == "log_loss" else (np.clip(scores, -1, 1) + 1) / 2
        if share.ndim == 1:
            return np.column_stack([1 - share, share])
        share[~share.any(axis=1)] = 1  # none at all: each as likely
        shares: NDArray[np.float64] = share / share.sum(axis=1, keepdims=True)
        return shares

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Logarithms, minus infinity for 0.
        """
        logarithms: NDArray[np.float64] = np.log(self.predict_proba(X))
        return logarithms

    def sparsify(self) -> Self:
        """Make ``coef_`` a CSR matrix, which takes less memory where most weights are 0.

        Returns
        -------
        self : estimator
            The estimator; it predicts and trains as before.
        """
        check_is_fitted(self)
        self.coef_ = sp.csr_matrix(self.coef_)
        return self

    def densify(self) -> Self:
        """Make ``coef_`` an array again.

        Returns
        -------
        self : estimator
            The estimator.
        """
        check_is_fitted(self)
        self.coef_ = self._dense_coef()
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _dense_coef(self) -> NDArray[Any]:
        coef: Any = self.coef_
        dense: NDArray[Any] = coef if isinstance(coef, np.ndarray) else coef.toarray()
        return dense
