"""The sampling suite's check: right work passes, and each kind of wrong work is named."""

import numpy as np
import pytest

from benchmarks.contenders.delivery import Delivery, class_spread
from benchmarks.contenders.streamtrain import plan
from benchmarks.measuring import Case, Contender, WrongWorkError
from benchmarks.suites import sample
from streamtrain.errors import InputError

SIZES = [300, 120, 60, 24]  # cells of each class
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))
PRINTS = np.random.default_rng(1).permutation(len(LABELS)).astype(np.uint64) * np.uint64(7)
JOB = {"n_types": 4, "batch_size": 40, "batches": 12, "seed": 0}
WAYS = {
    "plan": {"way": "plan", "batches_an_epoch": 3, "replace": False},
    "with replacement": {"way": "plan", "replace": True},
    "blocks": {"way": "blocks"},
    "cells": {"way": "cells"},
    "chunks": {"way": 8},
}


def drawn(way):
    """Cells as a contender of this way delivers them."""
    rng = np.random.default_rng(3)
    total = JOB["batches"] * JOB["batch_size"]
    if way in ("plan", "with replacement"):
        drawing = plan(LABELS.astype(np.int32), JOB | WAYS[way])
        return np.concatenate([drawing.epoch(e) for e in range(drawing.epochs)])
    if way == "blocks":
        return rng.permutation(len(LABELS))[:480]
    if way == "cells":
        weights = 1 / np.bincount(LABELS)[LABELS]
        return rng.choice(len(LABELS), total, p=weights / weights.sum())
    rows = np.split(np.argsort(LABELS, kind="stable"), np.cumsum(SIZES)[:-1])
    starts = [(k, rng.integers(len(rows[k]) - 7)) for k in rng.integers(0, 4, total // 8)]
    return rng.permutation(np.concatenate([rows[k][s : s + 8] for k, s in starts]))


def work(cells, labels=None):
    """Evidence and one timed record of delivering `cells`, whole batches of them."""
    labels = LABELS[cells] if labels is None else labels
    batches = [labels[i : i + JOB["batch_size"]] for i in range(0, len(labels), JOB["batch_size"])]
    classes = np.array([np.bincount(batch, minlength=4) for batch in batches])
    sums = {"cells": len(cells), "entries": 9 * len(cells), "total": 12.5 * len(cells)}
    evidence = {
        "classes": classes, "labels": labels, "prints": PRINTS[cells],
        "sums": np.array(list(sums.values())),
    }  # fmt: skip
    line = {**sums, "class_spread": class_spread(classes), "classes_left_out": 0}
    return evidence, line


def check(monkeypatch, way, evidence, line):
    monkeypatch.setattr(sample, "truth", lambda _: {"prints": PRINTS, "labels": LABELS})
    case = Case("few", JOB, [Contender("peer", "module:function", options=WAYS[way])])
    sample.check(case, {"peer": [evidence]}, {"peer": [line]})


@pytest.mark.parametrize("way", WAYS)
def test_check__right_work_passes(monkeypatch, way):
    cells = drawn(way)
    evidence, line = work(cells)
    check(monkeypatch, way, evidence, line)
    assert line["distinct_cells"] == len(set(cells.tolist()))


@pytest.mark.parametrize("way", WAYS)
def test_check__unknown_cell(monkeypatch, way):
    evidence, line = work(drawn(way))
    evidence["prints"][5] += np.uint64(1)  # no multiple of 7
    with pytest.raises(WrongWorkError, match="few: peer delivered 1 cells that the atlas"):
        check(monkeypatch, way, evidence, line)


@pytest.mark.parametrize("way", WAYS)
def test_check__wrong_label(monkeypatch, way):
    cells = drawn(way)
    labels = LABELS[cells]
    labels[7] = (labels[7] + 1) % 4
    with pytest.raises(WrongWorkError, match="gave 1 cells another label"):
        check(monkeypatch, way, *work(cells, labels))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("missing", [1, 40])
def test_check__fewer_cells(monkeypatch, way, missing):
    with pytest.raises(WrongWorkError, match="must deliver 12 batches of 40"):
        check(monkeypatch, way, *work(drawn(way)[:-missing]))


def test_check__a_cell_twice_in_an_epoch(monkeypatch):
    cells = drawn("plan")
    cells[121] = cells[120 + np.flatnonzero(LABELS[cells[120:240]] == LABELS[cells[121]])[-1]]
    with pytest.raises(WrongWorkError, match="delivered a cell twice in epoch 1"):
        check(monkeypatch, "plan", *work(cells))


def test_check__a_cell_twice_in_a_pass(monkeypatch):
    cells = drawn("blocks")
    cells[7] = cells[400]
    with pytest.raises(WrongWorkError, match="delivered a cell twice in pass 0"):
        check(monkeypatch, "blocks", *work(cells))


def test_check__another_order_than_the_plan(monkeypatch):
    cells = drawn("plan")
    cells[[360, 361]] = cells[[361, 360]]
    with pytest.raises(WrongWorkError, match="left the plan in epoch 3"):
        check(monkeypatch, "plan", *work(cells))


@pytest.mark.parametrize("way", ["cells", "chunks"])
def test_check__classes_as_in_the_atlas(monkeypatch, way):
    """Even draws over cells favour the common classes."""
    cells = np.random.default_rng(3).choice(len(LABELS), 480)
    if way == "chunks":
        cells = np.repeat(np.random.default_rng(3).choice(len(LABELS), 60), 8)
    with pytest.raises(WrongWorkError, match=r"is not balanced: chi-square \d+ over 4 classes"):
        check(monkeypatch, way, *work(cells))


def test_check__classes_left_out(monkeypatch):
    """A class that is never drawn must be owned up to, and one owned up to must not be drawn."""
    monkeypatch.setitem(WAYS, "chunks", {"way": 1})
    cells = drawn("cells")
    evidence, line = work(np.resize(cells[LABELS[cells] != 3], len(cells)))
    with pytest.raises(WrongWorkError, match="4 classes, 0 left out"):
        check(monkeypatch, "chunks", evidence, line)
    check(monkeypatch, "chunks", evidence, line | {"classes_left_out": 1})
    evidence, line = work(cells)
    with pytest.raises(WrongWorkError, match="3 classes, 1 left out"):
        check(monkeypatch, "chunks", evidence, line | {"classes_left_out": 1})


def test_check__classes_too_small_for_the_chunk(monkeypatch):
    monkeypatch.setitem(WAYS, "chunks", {"way": 25})
    with pytest.raises(WrongWorkError, match="cannot serve the 1 classes of fewer than 25 cells"):
        check(monkeypatch, "chunks", *work(drawn("chunks")))


def test_check__the_same_few_cells(monkeypatch):
    """Balanced, but always the first cells of each class."""
    rows = np.split(np.argsort(LABELS, kind="stable"), np.cumsum(SIZES)[:-1])
    few = np.concatenate([cells[:10] for cells in rows])
    with pytest.raises(WrongWorkError, match="drew 40 different cells where 2"):
        check(monkeypatch, "cells", *work(np.tile(few, 12)))


@pytest.mark.parametrize("key", ["cells", "entries", "total", "class_spread"])
def test_check__a_timed_run_did_less(monkeypatch, key):
    evidence, line = work(drawn("cells"))
    with pytest.raises(WrongWorkError, match=f"must repeat {key}"):
        check(monkeypatch, "cells", evidence, line | {key: line[key] * 0.999})


def test_check__counts_of_other_labels(monkeypatch):
    evidence, line = work(drawn("cells"))
    evidence["classes"][0] = np.roll(evidence["classes"][0], 1)
    with pytest.raises(WrongWorkError, match="counted other classes"):
        check(monkeypatch, "cells", evidence, line)


def test_class_spread():
    """Two batches: (0, 4) has standard deviation 2 and mean 2; (3, 3) has 0."""
    assert class_spread(np.array([[0, 4], [3, 3]])) == 0.5


def test_delivery__draws():
    from scipy import sparse

    delivery = Delivery({"n_types": 2, "verify": True})
    for codes in ([0, 0], [0, 1]):
        delivery.take(sparse.csr_matrix(np.array([[1, 0], [0, 2]])), np.array(codes))
    found = delivery.draws(start=0.0, classes_left_out=3)
    assert found["class_spread"] == 0.5
    assert (found["cells"], found["entries"], found["total"]) == (4, 4, 6.0)
    assert found["classes_left_out"] == 3
    assert found["seconds_to_first_batch"] > 0
    assert delivery.evidence()["sums"].tolist() == [4, 4, 6.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batches": [10, 7]}, r"multiples of batches_an_epoch=5; got \[7\]"),
        ({"cells": 199}, "batches_an_epoch=5 needs 200 cells; got cells=199"),
    ],
)
def test_cases__impossible_epochs(change, words):
    settings = {"batches": [10], "batches_an_epoch": [1, 5], "batch_size": 40, "cells": 500}
    with pytest.raises(InputError, match=words):
        sample.cases(settings | change)
