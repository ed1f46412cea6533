"""The SGD engine as a scikit-learn estimator."""

from streamtrain.estimator.classifier import SparseSGDClassifier

__all__ = ["SparseSGDClassifier"]
