"""Train CellTypist cell-type classifiers from single-cell atlases on disk, in a byte budget."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamtrain import plot
    from streamtrain.annotate import annotate
    from streamtrain.annotation_result import AnnotationResult
    from streamtrain.config import Settings
    from streamtrain.convert import convert
    from streamtrain.cross_validate import CrossValidation, cross_validate
    from streamtrain.errors import InputError
    from streamtrain.estimator import SparseSGDClassifier
    from streamtrain.evaluate import Evaluation, evaluate
    from streamtrain.evaluate_model import ModelEvaluation, evaluate_model
    from streamtrain.inspecting import DataInspection, Inspection, inspect
    from streamtrain.loader import Loader
    from streamtrain.model import Model
    from streamtrain.predict import predict
    from streamtrain.report import report
    from streamtrain.simulate import simulate
    from streamtrain.sources import open_source
    from streamtrain.train import train

# Where each public name lives; loaded at first use, so that the import itself takes milliseconds.
_HOMES = {
    "AnnotationResult": "annotation_result",
    "CrossValidation": "cross_validate",
    "DataInspection": "inspecting",
    "Evaluation": "evaluate",
    "InputError": "errors",
    "Inspection": "inspecting",
    "Loader": "loader",
    "Model": "model",
    "ModelEvaluation": "evaluate_model",
    "Settings": "config",
    "SparseSGDClassifier": "estimator",
    "annotate": "annotate",
    "convert": "convert",
    "cross_validate": "cross_validate",
    "evaluate": "evaluate",
    "evaluate_model": "evaluate_model",
    "inspect": "inspecting",
    "open_source": "sources",
    "predict": "predict",
    "report": "report",
    "simulate": "simulate",
    "train": "train",
}

__all__ = [
    "AnnotationResult",
    "CrossValidation",
    "DataInspection",
    "Evaluation",
    "InputError",
    "Inspection",
    "Loader",
    "Model",
    "ModelEvaluation",
    "Settings",
    "SparseSGDClassifier",
    "__version__",
    "annotate",
    "convert",
    "cross_validate",
    "evaluate",
    "evaluate_model",
    "inspect",
    "open_source",
    "plot",
    "predict",
    "report",
    "simulate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("streamtrain")
    if name == "plot":
        return import_module("streamtrain.plot")  # which sets the attribute
    if name not in _HOMES:
        raise AttributeError(f"module 'streamtrain' has no attribute {name!r}")
    value = getattr(import_module(f"streamtrain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `streamtrain.train` the function.

    Importing the module `streamtrain.train` would set that attribute to the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
