"""The soak: kills, what they fell on, and models that would differ."""

import numpy as np
import pytest

import streamtrain
from benchmarks import soak
from tests import atlas


def test_fallen_on__by_what_is_there(tmp_path):
    found = []
    for name in ("run.json", "000001.state", "000002.state.new"):
        found.append(soak.fallen_on(tmp_path))
        (tmp_path / name).write_text("")
    found.append(soak.fallen_on(tmp_path))
    assert found == ["start", "reading", "training", "a state being written"]


def test_same__to_the_bit():
    one, other = (
        streamtrain.train(atlas.make(), "cell_type", **atlas.MINI, batch_size=100) for _ in range(2)
    )
    assert soak.same(one, other)
    coef = other.dataset["coef"].to_numpy()
    coef[0, 0] = np.nextafter(coef[0, 0], np.float32(9))
    assert not soak.same(one, other)


@pytest.mark.slow
def test_soak__writes_its_table(monkeypatch, tmp_path):
    way = {"use_SGD": True, "max_iter": 40, "tol": None}
    monkeypatch.setattr(soak, "WAYS", {"whole epochs": way})
    assert soak.main(["--minutes", "1e-3", "--out", str(tmp_path), "--cells", "400"]) == 0
    table = (tmp_path / "soak.md").read_text()
    assert "1 trainings, of which 0 differ" in table
    monkeypatch.setattr(soak, "same", lambda *_: False)
    assert soak.main(["--minutes", "1e-3", "--out", str(tmp_path), "--cells", "400"]) == 1
