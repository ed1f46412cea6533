"""Comparison of models in tests."""

import numpy as np


def assert_same(one, other):
    """Every array of two models, to the bit, and what cross-validation and training told."""
    assert set(one.dataset) == set(other.dataset)
    for name in one.dataset:
        a, b = (model.dataset[name].to_numpy() for model in (one, other))
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, name)
    curves = [model.provenance.get("history") or {} for model in (one, other)]
    first, second = ({k: v for k, v in curve.items() if k != "seconds"} for curve in curves)
    assert first == second
    for model in (one, other):
        assert ("cross_validation" in model.provenance) == ("cross_validation" in one.provenance)
    found = (model.provenance.get("cross_validation") for model in (one, other))
    assert next(found) == next(found)
