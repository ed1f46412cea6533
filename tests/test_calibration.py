"""Calibration against the optimum that scipy finds, and what it never changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, log_softmax, softmax

from streamtrain import calibration as module
from streamtrain.calibration import Calibration, probabilities


def scored(n, n_classes, seed=0, noise=1.0, unseen=False):
    """Scores that favour the true class, classes, and weights; `unseen`: some classes are not."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n).astype(np.int32)
    scores = rng.normal(-3, 2 * noise, (n, n_classes))
    scores[np.arange(n), codes] += 3
    if unseen:
        fold = rng.integers(0, 3, n)
        scores[fold == 0, 0] = -np.inf
        scores[fold == 1, :2] = -np.inf
    weight = rng.choice([1.0, 2.5, 40.0], n)
    return scores.astype(np.float32), codes, weight


def usable(scores, codes, weight):
    """The cells whose class their model knows, weights of mean 1."""
    kept = np.isfinite(scores[np.arange(len(codes)), codes])
    return scores[kept].astype(np.float64), codes[kept], weight[kept] / weight[kept].mean()


def temperature_by_scipy(scores, codes, weight):
    """By the weighted log-likelihood of all cells, and of one more that is each type's alike."""
    s, k, w = usable(scores, codes, weight)

    def loss(log_t):
        p = log_softmax(s / np.exp(log_t), axis=1)
        every = np.where(np.isfinite(s), p, 0).sum(axis=1) / np.isfinite(s).sum(axis=1)
        return -(w * p[np.arange(len(s)), k]).sum() - every.mean()

    found = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(1e3)), options={"xatol": 1e-10})
    return np.exp(found.x)


def offset_by_scipy(scores, codes, weight, temperature):
    """By Platt's targets, of whether the highest score is right."""
    s, k, w = usable(scores, codes, weight)
    top, best = s.argmax(axis=1), s.max(axis=1) / temperature
    right, wrong = w[top == k].sum(), w[top != k].sum()
    target = np.where(top == k, (right + 1) / (right + 2), 1 / (wrong + 2))

    def gap(offset):
        return (w * (expit(best + offset) - target)).sum()

    return brentq(gap, -3000, 3000, xtol=1e-12)


CASES = {
    "two classes": scored(300, 2),
    "many": scored(700, 9, seed=1),
    "hardly right": scored(300, 4, seed=2, noise=4.0),
    "nearly all right": scored(500, 5, seed=3, noise=0.3),
    "classes not seen": scored(600, 5, seed=4, unseen=True),
    "few": scored(12, 3, seed=5),
    "far scores": tuple(a * f for a, f in zip(scored(300, 4, seed=6), (900, 1, 1), strict=True)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fit__temperature_is_scipys(case, monkeypatch):
    found = Calibration.fit(*case)
    assert found.temperature == pytest.approx(temperature_by_scipy(*case), rel=1e-5)
    monkeypatch.setattr(module, "_PIECE", 50)  # scores at a time
    assert Calibration.fit(*case).temperature == pytest.approx(found.temperature, rel=1e-9)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fit__offset_is_scipys(case):
    found = Calibration.fit(*case)
    assert found.offset == pytest.approx(offset_by_scipy(*case, found.temperature), abs=1e-6)


def test_fit__all_right_stays_finite():
    scores, codes, weight = scored(400, 4)
    scores[np.arange(400), codes] = scores.max(axis=1) + 5
    found = Calibration.fit(scores, codes, weight)
    assert 1e-3 < found.temperature < 1
    p = expit(scores.max(axis=1) / found.temperature + found.offset)
    assert p.min() > 0.85
    assert np.average(p, weights=weight) == pytest.approx(401 / 402, abs=1e-6)
    p = probabilities(scores.astype(float), found.temperature).max(axis=1)
    assert 0.98 < p.min() < p.max() < 1


@pytest.mark.parametrize("value", [0.0, 0.1, 2.0, -70.0])
def test_fit__equal_scores(value):
    """Nothing tells right from wrong: the sigmoid gives how many are right, of any such score."""
    codes = np.array([0, 0, 0, 1], np.int32).repeat(50)
    scores = np.full((200, 3), value - 5, np.float32)
    scores[:, 0] = value
    found = Calibration.fit(scores, codes, np.ones(200))
    share = expit(value / found.temperature + found.offset)
    assert share == pytest.approx(0.75, abs=0.01)


def test_fit__an_outlier_overflows_nothing():
    scores, codes, weight = scored(5000, 3, noise=0.1)
    scores[7] -= 1e5
    found = Calibration.fit(scores, codes, weight)
    assert np.isfinite([found.temperature, found.offset]).all()


def test_fit__leaves_out_cells_of_classes_that_the_model_has_not_seen():
    scores, codes, weight = scored(600, 5, unseen=True)
    kept = np.isfinite(scores[np.arange(600), codes])
    assert 0 < kept.sum() < 600
    assert Calibration.fit(scores, codes, weight) == Calibration.fit(
        scores[kept], codes[kept], weight[kept]
    )


def test_fit__a_weight_stands_for_as_many_cells():
    scores, codes, _ = scored(200, 4)
    weight = np.arange(200) % 3 + 1
    whole = Calibration.fit(scores.repeat(weight, axis=0), codes.repeat(weight), np.ones(399))
    found = Calibration.fit(scores, codes, weight.astype(float))
    # 2%: the cell more of every type, and Platt's, weigh as one of 200 and of 399.
    assert found.temperature == pytest.approx(whole.temperature, rel=0.02)
    assert found.offset == pytest.approx(whole.offset, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_classes=st.integers(2, 6),
    noise=st.sampled_from([0.01, 1.0, 30.0]),
    unseen=st.booleans(),
)
def test_fit__never_changes_the_predicted_type(seed, n_classes, noise, unseen):
    scores, codes, weight = scored(60, n_classes, seed, noise, unseen and n_classes > 2)
    found = Calibration.fit(scores, codes, weight)
    assert 1e-3 <= found.temperature <= 1e3
    s = scores.astype(np.float64)
    for p in (probabilities(s, found.temperature), s / found.temperature + found.offset):
        # Not the argmax, as probabilities round to 1 and then tie.
        np.testing.assert_array_equal(
            np.take_along_axis(p, s.argmax(axis=1)[:, None], axis=1)[:, 0], p.max(axis=1)
        )


@pytest.mark.parametrize("temperature", [None, 0.1, 1.0, 700.0])
def test_probabilities(temperature):
    scores = np.random.default_rng(0).normal(0, 300, (40, 7))
    scores[0] = [-np.inf, 1, 2, 800, -900, 0, 0]
    found = probabilities(scores, temperature)
    if temperature is None:
        np.testing.assert_allclose(found, expit(scores), rtol=1e-12)
    else:
        np.testing.assert_allclose(found, softmax(scores / temperature, axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_str():
    assert str(Calibration(0.51234, -0.3)) == (
        "calibrated by held-out cells: temperature 0.512; as sigmoids, offset -0.3"
    )
