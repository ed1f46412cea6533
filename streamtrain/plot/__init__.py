"""Models, evaluations and sums of expression enter; figures leave, drawn without a display."""

from streamtrain.plot.confusion import confusion_matrix
from streamtrain.plot.curves import calibration_curve, probability_histogram, training_curve
from streamtrain.plot.figures import save_figure
from streamtrain.plot.markers import markers_dotplot, markers_heatmap
from streamtrain.plot.types import class_balance, f1_by_type

__all__ = [
    "calibration_curve",
    "class_balance",
    "confusion_matrix",
    "f1_by_type",
    "markers_dotplot",
    "markers_heatmap",
    "probability_histogram",
    "save_figure",
    "training_curve",
]
