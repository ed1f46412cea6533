"""Comparison of models in tests."""

import numpy as np


def assert_same(one, other):
    """Every array of two models, to the bit, and what cross-validation found."""
    assert set(one.dataset) == set(other.dataset)
    for name in one.dataset:
        a, b = (model.dataset[name].to_numpy() for model in (one, other))
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, name)
    for model in (one, other):
        assert ("cross_validation" in model.provenance) == ("cross_validation" in one.provenance)
    found = (model.provenance.get("cross_validation") for model in (one, other))
    assert next(found) == next(found)
