"""SGD that ends after each epoch and goes on elsewhere, in shares of the classes: the same bits."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import streamtrain
from streamtrain import descent, rounds
from streamtrain.solvers.counters import State
from tests import atlas
from tests.models import assert_same

QUIET = {"progress": False}
MINI = atlas.MINI | {"batch_size": 100, "batch_number": 3, "epochs": 4}
WHOLE = {"use_SGD": True, "max_iter": 6}
# Steps so large that blocks of cells end early, and of each class its own.
STEEP = {"learning_rate": "adaptive", "eta0": 2.0, "alpha": 0.05, "n_iter_no_change": 1}
WAYS = {
    "mini-batches": MINI,
    "averaged from a step on": MINI | {"average": 450},
    "in float64": MINI | {"dtype": "float64"},
    "balanced, priors corrected": MINI
    | {"balance_cell_type": True, "replace": True, "average": True, "correct_prior": True},
    "genes dropped": MINI | {"gene_dropout": 0.3},
    "quotas": MINI | {"quotas": "equal", "batch_key": "donor"},
    "not centred": MINI | {"with_mean": False},
    "l1": MINI | {"penalty": "l1", "alpha": 1e-3, "average": True},
    "passive-aggressive": MINI | {"learning_rate": "pa1", "loss": "hinge"},
    "weighted classes": MINI | {"class_weight": "balanced", "loss": "modified_huber"},
    "early stopping": MINI | {"early_stopping": True, "average": True, "correct_prior": True},
    "whole epochs": WHOLE,
    "whole epochs of l1": WHOLE | {"penalty": "l1", "alpha": 1e-3},
    "adaptive steps": WHOLE | STEEP,
    "adaptive steps, judged": WHOLE | STEEP | {"early_stopping": True, "max_iter": 12},
    "selected genes": MINI | {"feature_selection": True, "top_genes": 10},
}


def in_pieces(edges):
    """`rounds.fit`, but each share of the columns by itself, pickled after every epoch."""

    def fit(config, stored, scaler, start, room, threads, *, progress, **_):
        runs = []
        for first, stop in pairwise(edges):
            own = replace(stored, share=range(first, stop))
            run, pieces = None, 0
            while run is None or not run.ended:
                run = descent.descend(
                    config, own, scaler, start, room, threads, progress=progress, before=run,
                    due=lambda: True,
                )  # fmt: skip
                pieces += 1
                run = pickle.loads(pickle.dumps(run))  # noqa: S301 - our own
            assert pieces == run.epoch > 1
            runs.append(run)
        return descent.fitted(config, stored.cells, stored.held_out, runs)

    return fit


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(("n_types", "edges"), [(2, [0, 1]), (5, [0, 2, 3, 5])])
def test_descend__in_pieces_and_shares(way, n_types, edges, monkeypatch):
    adata = atlas.make(900, n_types=n_types)
    whole = streamtrain.train(adata, "cell_type", **way, **QUIET)
    monkeypatch.setattr("streamtrain.local.fit", in_pieces(edges))
    assert_same(streamtrain.train(adata, "cell_type", **way, **QUIET), whole)


def test_state__joined_where_some_have_no_averages():
    """Frozen before averaging began: their weights stand in, as for single columns."""
    one = State(np.ones((2, 3)), np.ones(2), t=np.full(2, 9.0))
    other = State(
        np.zeros((1, 3)), np.zeros(1), np.full((1, 3), 0.5), np.full(1, 0.5), np.full(1, 9.0),
        np.array([4]),
    )  # fmt: skip
    for parts, at in (([one, other], [0, 0, 4]), ([other, one], [4, 0, 0])):
        joined = State.joined(parts)
        np.testing.assert_array_equal(joined.n_averaged, at)
        np.testing.assert_array_equal(joined.average_coef[np.array(at) == 0], np.ones((2, 3)))
        np.testing.assert_array_equal(joined.t, [9, 9, 9])
    assert State.joined([one, one]).average_coef is None


@pytest.mark.parametrize("option", ["warm_start", "init"])
def test_descend__in_pieces_from_a_model(option, monkeypatch):
    """Whose types have taken other numbers of steps: one is new."""
    options = MINI | {"average": True}
    before = streamtrain.train(atlas.make(600, n_types=4), "cell_type", **options, **QUIET)
    more = options | {"epochs": 2, option: before}
    if option == "warm_start":
        more |= {"learning_rate": "invscaling", "eta0": 1.0, "alpha": 0.05}
    adata = atlas.make(700, n_types=5, seed=1)
    whole = streamtrain.train(adata, "cell_type", **more, **QUIET)
    monkeypatch.setattr("streamtrain.local.fit", in_pieces([0, 1, 4, 5]))
    assert_same(streamtrain.train(adata, "cell_type", **more, **QUIET), whole)


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_descend__what_it_goes_on_from_stays_as_it_is(monkeypatch):
    """A task may be run twice."""
    seen = []

    def fit(*given, progress, **_):
        config, stored = given[:2]
        first = descent.descend(*given, progress=progress, due=lambda: True)
        kept = pickle.dumps(first)
        for _ in range(2):
            seen.append(descent.descend(*given, progress=progress, before=first))
            assert pickle.dumps(first) == kept
        return descent.fitted(config, stored.cells, stored.held_out, seen[-1:])

    monkeypatch.setattr("streamtrain.local.fit", fit)
    streamtrain.train(atlas.make(), "cell_type", **MINI, early_stopping=True, **QUIET)
    one, other = (run.solver.state() for run in seen)
    np.testing.assert_array_equal(one.coef, other.coef)


def test_fit__is_what_local_calls():
    """Else the tests above would try nothing."""
    from streamtrain import local

    assert local.fit is rounds.fit
