"""Progress in a log, where nothing moves."""

import pytest

from streamtrain import progress
from streamtrain.progress import counted, stage


def test_stage__short_ones_are_silent(capsys):
    with stage("Reading", 10, show=True) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [True, False])
def test_stage__a_log_gets_a_last_line(capsys, monkeypatch, show):
    monkeypatch.setattr(progress, "_DELAY", 0)
    with stage("Reading", 1000, show=show) as bar:
        bar.update(1000)
    found = capsys.readouterr().err
    if show:
        assert found.endswith("\n")
        assert "Reading: 100%" in found
        assert "1.00k/1.00k" in found
    else:
        assert found == ""


def test_counted__passes_items_on_and_counts_to_the_end(monkeypatch):
    bars = []
    real = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **more: bars.append(real(**more)) or bars[-1])
    items = [(0, "a"), (4, "b"), (9, "c")]
    seen = [(item, bars[0].n) for item in counted(items, "Reading", 12, show=True)]
    assert seen == [((0, "a"), 0), ((4, "b"), 4), ((9, "c"), 9)]
    assert bars[0].n == 12
