"""The quality suite's tables, by hand: the recipe beside CellTypist, and adaptation."""

import json

import pytest

from benchmarks import comparison, report
from benchmarks.comparison import BALANCED, LOGISTIC, RECIPE, SGD


def runs(case, kind, contender, scores, **found):
    machine = {"cpu": "CPU", "cores": 2, "memory_gib": 24, "system": "Linux"}
    common = {"machine": machine, "commit": "abc", "set": [], "seconds": 1.0, "accuracy": 0.5,
              "balanced_accuracy": 0.5, "log_loss": 1.0, "calibration_error": 0.02,
              "hopeless": 0.0}  # fmt: skip
    name = {"case": case, "contender": contender, "kind": kind}
    return [common | name | {"macro_f1": f1} | found for f1 in scores]


LINES = [
    *runs("lung", "donors", RECIPE, (0.70, 0.72), auto_macro_f1=0.71, auto_log_loss=0.9,
          auto_adapted=False, log_loss=0.4),
    *runs("lung", "donors", SGD, (0.58, 0.62)),
    *runs("lung", "donors", BALANCED, (0.63, 0.67)),
    *runs("lung", "donors", LOGISTIC, (0.64,), log_loss=0.5),
    *runs("IFN", "conditions", RECIPE, (0.90,), hopeless=0.001, calibration_error=0.06),
    *runs("IFN", "conditions", SGD, (0.95,)),
    *runs("IFN", "conditions", LOGISTIC, (0.97,), log_loss=0.3),
    *runs("3k", "studies", RECIPE, (0.40, 0.50), auto_macro_f1=0.6, auto_log_loss=0.8,
          auto_adapted=True),
    *runs("3k", "studies", SGD, (0.3,)),
    *runs("pair", "pairs", RECIPE, (0.50,), auto_macro_f1=0.48, auto_log_loss=1.2),
    {"case": "3k", "contender": LOGISTIC, "kind": "studies", "over_s": 60.0, "commit": "abc",
     "set": []},
]  # fmt: skip


def table(text):
    """Cells of the rows of a Markdown table, without its head."""
    return [[cell.strip() for cell in row.split("|")[1:-1]]
            for row in text if row.startswith("|")][2:]  # fmt: skip


def test_beside_celltypist():
    text = comparison.beside_celltypist(LINES)
    assert text[0] == "## The recipe beside CellTypist"
    assert table(text) == [
        ["lung", "0.710", "0.014", "0.650", "SGD, balanced", "+0.060", "0.710", "+0.060", "0.600",
         "0.028", "+0.110", "0.400", "0.500", "0.020", "0.000%"],
        ["IFN", "0.900", "", "0.970", "logistic, of 2", "-0.070", "", "", "0.950", "", "-0.050",
         "1.000", "0.300", "0.060", "0.100%"],
        ["3k", "0.450", "0.071", "0.300", "SGD, of 1", "+0.150", "0.600", "+0.300", "0.300", "",
         "+0.150", "1.000", "", "0.020", "0.000%"],
        ["mean of 3: all", "0.687", "", "0.640", "", "+0.047", "", "", "0.617", "", "+0.070",
         "0.800", "", "0.033", "0.033%"],
        ["worst of 3: all", "", "", "", "", "-0.070", "", "", "", "", "-0.050", "", "", "0.060",
         "0.100%"],
        ["mean of 2: donors and conditions", "0.805", "", "0.810", "", "-0.005", "", "", "0.775",
         "", "+0.030", "0.700", "0.400", "0.040", "0.050%"],
        ["worst of 2: donors and conditions", "", "", "", "", "-0.070", "", "", "", "", "-0.050",
         "", "", "0.060", "0.100%"],
    ]  # fmt: skip


def test_adaptation():
    text = comparison.adaptation(LINES)
    assert text[0] == "## Adaptation"
    assert table(text) == [
        ["lung", "0.710", "0.710", "+0.000", "0 of 2", "0.400", "0.900"],
        ["3k", "0.450", "0.600", "+0.150", "2 of 2", "1.000", "0.800"],
        ["pair", "0.500", "0.480", "-0.020", "", "1.000", "1.200"],
        ["mean of 2: studies and pairs of them", "0.475", "0.540", "+0.065", "", "1.000", "1.000"],
        ["worst of 2: studies and pairs of them", "", "", "-0.020", "", "", ""],
    ]


def test_tables__nothing_to_compare():
    others = [line for line in LINES if line["contender"] != RECIPE]
    ours = [line for line in LINES if line["case"] == "IFN" and line["contender"] == RECIPE]
    for lines in (others, ours):
        assert comparison.beside_celltypist(lines) == comparison.adaptation(lines) == []


def test_report__tables_stand_above_all_runs(tmp_path):
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    text = report.write(tmp_path, "quality")
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == ["# quality", "## The recipe beside CellTypist", "## Adaptation", "## All runs"]
    assert "| 3k | CellTypist logistic | stopped after 60 s |" in text
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_dots__a_row_a_question():
    view = report.View((report.Column("macro_f1", "macro-F1"),), None, comparison.dots)
    figure = comparison.dots([x for x in LINES if "seconds" in x], view)
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["lung", "IFN", "3k", "pair"]
    ours = next(line for line in panel.lines if line.get_label() == RECIPE)
    assert ours.get_xdata() == pytest.approx([0.71, 0.90, 0.45, 0.50])
    assert panel.yaxis_inverted()
