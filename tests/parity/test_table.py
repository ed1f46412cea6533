"""The table of the comparisons: complete, and that of the docs."""

from pathlib import Path

import pytest

from tests import test_model
from tests.parity import test_parity, test_real
from tests.parity.conftest import HERE, OLD
from tests.parity.table import COMPARED, KINDS, METHODS, ROWS, table

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


@pytest.mark.parametrize("name", ["train", "LogisticRegression", "SGDClassifier"])
@pytest.mark.parametrize("environment", [OLD, HERE])
def test_table__has_every_argument(celltypist, environment, name):
    """Of celltypist.train, and of the estimators that its keyword arguments go to."""
    arguments = set(celltypist[environment].done()["signatures"][name])
    assert not arguments - {a for row in ROWS for a in row.argument.split()}


def test_table__rows_are_whole():
    for row in ROWS:
        assert row.kind in KINDS
        assert bool(row.why) == (row.kind != "same"), row
        assert "not supported" not in row.why
        module = test_real if row.compare == "real" else test_parity
        assert callable(getattr(module, f"test_{row.compare}"))
    assert all(kind in KINDS and hasattr(test_model, test) for _, kind, _, test in METHODS)
    assert {row.compare for row in ROWS} == set(COMPARED)
    assert len({f"{row.compare} {row}" for row in ROWS}) == len(ROWS)


def test_table__is_that_of_the_docs():
    """`python -m tests.parity.table` prints it."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("<!-- parity -->\n")[2].partition("\n<!-- /parity -->")[0] == table()
