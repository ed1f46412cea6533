"""Class weights against scikit-learn's, and what is refused."""

import numpy as np
import pytest
from sklearn.utils import compute_class_weight

from streamtrain.errors import InputError
from streamtrain.solvers.class_weight import class_weights

CLASSES = ["B cell", "NK cell", "T cell"]
COUNTS = np.array([5, 1, 14])


@pytest.mark.parametrize("spec", [None, "balanced", {"T cell": 0.5, "B cell": np.int64(2)}, {}])
def test_class_weights__equal_sklearn(spec):
    y = np.repeat(CLASSES, COUNTS)
    full = {**dict.fromkeys(CLASSES, 1), **spec} if isinstance(spec, dict) else spec
    expected = compute_class_weight(full, classes=np.array(CLASSES), y=y)
    np.testing.assert_allclose(class_weights(spec, CLASSES, COUNTS), expected, rtol=1e-15)


def test_class_weights__classes_without_cells_count_for_nothing():
    found = class_weights("balanced", [*CLASSES, "none"], np.append(COUNTS, 0))
    np.testing.assert_array_equal(found, [*class_weights("balanced", CLASSES, COUNTS), 1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"T cel": 2}, "class_weight names 'T cel', which is no cell type: did you mean 'T cell'"),
        ({"T cell": -1}, "class_weight must be numbers of at least 0; got -1 for 'T cell'"),
        ({"T cell": np.nan}, "got nan for 'T cell'"),
        ({"T cell": "2"}, "got '2' for 'T cell'"),
        ("auto", "class_weight must be 'balanced' or name weights; got 'auto'"),
    ],
)
def test_class_weights__refused(spec, message):
    with pytest.raises(InputError) as caught:
        class_weights(spec, CLASSES, COUNTS)
    assert message in str(caught.value)
