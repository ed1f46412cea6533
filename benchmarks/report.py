"""JSON lines of a suite enter; its Markdown table and its picture leave, from those lines alone."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

OURS = "streamtrain"
_RATIOS = {
    "rate": "ours / theirs",
    "time": "theirs / ours",
    "time a step": "theirs / ours, of time a step",
}
Line = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a run: its key in the JSON lines, its heading, and how it is written."""

    key: str
    title: str
    form: Callable[[float], str] = "{:,.0f}".format


SECONDS = Column("seconds", "seconds", "{:,.2f}".format)
RATE = Column("cells_per_s", "cells/s")
CPU = Column("cpu_seconds", "CPU s", "{:,.1f}".format)
PEAK = Column("peak_rss", "peak RSS, MB", lambda x: f"{x / 1e6:,.0f}")
READ = Column("bytes_read", "read calls, MB", lambda x: f"{x / 1e6:,.0f}")
DISK = Column("bytes_from_disk", "from disk, MB", lambda x: f"{x / 1e6:,.0f}")


@dataclass(frozen=True)
class View:
    """How a suite's figures are shown.

    Attributes
    ----------
    columns
        Of the table; the first is the one that contenders are compared by, with its spread.
    ratio
        What the first column's ratio means: "rate" (ours over theirs), "time" (theirs over ours),
        "time a step" (the same, of time over steps); either way more than 1 is in our favour. None
        for scores, which have no ratio.
    picture
        Draws all lines of the suite on a figure of its own.
    summaries
        Each makes Markdown of all lines of the suite, which stands above the table.
    """

    columns: Sequence[Column]
    ratio: str | None
    picture: Callable[[Sequence[Line], View], Figure]
    summaries: Sequence[Callable[[Sequence[Line]], list[str]]] = ()


def write(folder: Path, suite: str) -> str:
    """Write SUITE.md and SUITE.png beside SUITE.jsonl; return the text."""
    path = folder / f"{suite}.jsonl"
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    view: View = import_module(f"benchmarks.suites.{suite}").VIEW
    above = [part for summary in view.summaries if (part := summary(lines))]
    heading = [["## All runs"]] if above else []
    parts = [head(suite, lines), *above, *heading, rows(lines, view)]
    text = "\n\n".join("\n".join(part) for part in parts)
    (folder / f"{suite}.md").write_text(text + "\n", encoding="utf-8")
    figure = view.picture([line for line in lines if "seconds" in line], view)
    figure.savefig(folder / f"{suite}.png", dpi=120, metadata={"Software": None})
    return text


def head(suite: str, lines: Sequence[Line]) -> list[str]:
    """What was run, where and with what."""
    now = [line for line in lines if "kept" not in line] or lines
    machine = now[0]["machine"]
    found: dict[str, set[str]] = {}
    for line in lines:
        for name, version in line.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(found.items()))
    # The lines may be of several runs, of some questions each.
    commands = dict.fromkeys(f"`{_command(suite, line['set'])}`" for line in lines)
    commits = dict.fromkeys(line["commit"] for line in now)
    return [
        f"# {suite}",
        "",
        f"{' and '.join(commands)} at commit {' and '.join(commits)} on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; {versions}. "
        "Medians over the runs, the range in brackets." + _kept(lines),
    ]


def _command(suite: str, settings: Sequence[str]) -> str:
    words = (word for text in settings for word in ("--set", text))
    return shlex.join(["python", "-m", "benchmarks", suite, *words])


def _kept(lines: Sequence[Line]) -> str:
    """Say how many of the runs are older than the others; "" where none is."""
    days = sorted(line["started"][:10] for line in lines if "kept" in line)
    if not days:
        return ""
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    return f" {len(days)} of the {len(lines)} runs, of other libraries, are kept ones, done {when}."


def rows(lines: Sequence[Line], view: View) -> list[str]:
    """Write the table: one row a case and contender."""
    first, *others = view.columns
    titles = ["case", "contender", first.title]
    if view.ratio:
        titles.append(_RATIOS[view.ratio])
    titles += [column.title for column in others]
    body = []
    for (case, contender), runs in grouped(lines).items():
        timed = [run for run in runs if "seconds" in run]
        cells = [case, contender]
        lost = next((reason for run in runs if (reason := _lost(run))), "")
        if not timed:
            cells += [lost] + [""] * (len(titles) - 3)
        else:
            cells.append(spread(timed, first) + (f"; then {lost}" if lost else ""))
            if view.ratio:
                cells.append(ratio(lines, case, contender, view))
            cells += [
                column.form(middle(timed, column.key)) if column.key in timed[0] else ""
                for column in others
            ]
        body.append(cells)
    return table(titles, body, words=2)


def table(titles: Sequence[str], body: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lay out a table in Markdown, of which the first `words` columns are text."""
    rule = "|" + "---|" * words + "--:|" * (len(titles) - words)
    head, *others = (f"| {' | '.join(cells)} |" for cells in (titles, *body))
    return [head, rule, *others]


def _lost(run: Line) -> str:
    """Why a run gave no time, in a few words; "" for one that did."""
    if "over_s" in run:
        return f"stopped after {run['over_s']:,.0f} s"
    reason = str(run.get("skipped") or run.get("failed") or "")
    return reason.splitlines()[0] if reason else ""


def grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Runs of each case and contender, in the order of their first."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["case"], line["contender"]), []).append(line)
    places = _places(lines)
    return dict(sorted(found.items(), key=lambda item: places[item[0][0]]))


def _places(lines: Sequence[Line]) -> dict[str, int]:
    return {case: i for i, case in enumerate(dict.fromkeys(line["case"] for line in lines))}


def middle(runs: Sequence[Line], key: str) -> float:
    """Median of a figure over runs."""
    return float(median(run[key] for run in runs))


def spread(runs: Sequence[Line], column: Column) -> str:
    """Median and range of a column; the range only where there are several runs; "" for none."""
    values = [run[column.key] for run in runs if column.key in run]
    text = column.form(median(values)) if values else ""
    if len(values) > 1:
        text += f" [{column.form(min(values))} - {column.form(max(values))}]"
    return text


def ratio(lines: Sequence[Line], case: str, contender: str, view: View) -> str:
    """How many times faster ours is than a contender in the same case; "" where none is to tell."""
    key, runs = view.columns[0].key, grouped(lines)
    ours, other = (
        [run for run in runs.get((case, name), ()) if key in run] for name in (OURS, contender)
    )
    if contender == OURS or not ours or not other:
        return ""
    mine, theirs = (
        middle(runs, key) / (runs[0]["steps"] if view.ratio == "time a step" else 1)
        for runs in (ours, other)
    )
    times = mine / theirs if view.ratio == "rate" else theirs / mine
    return f"{times:.2f}" if times < 10 else f"{times:.0f}"


def bars(lines: Sequence[Line], view: View) -> Figure:
    """One panel a case, one bar a contender, its range as a line."""
    column = view.columns[0]
    cases = list(_places(lines))
    if not cases:
        return Figure()
    wide = min(4, len(cases))
    tall = math.ceil(len(cases) / wide)
    figure = Figure(figsize=(1 + 4.2 * wide, 0.8 + 2.2 * tall), layout="constrained")
    panels = figure.subplots(tall, wide, squeeze=False).ravel()
    runs = grouped(lines)
    for panel, case in zip(panels, cases, strict=False):
        names = [name for c, name in runs if c == case][::-1]
        values = [[run[column.key] for run in runs[case, name]] for name in names]
        _bars(panel, names, values)
        panel.set_title(case, fontsize=10)
        panel.set_xlabel(column.title, fontsize=9)
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    return figure


def _bars(panel: Axes, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    middles = [median(v) for v in values]
    low = [m - min(v) for m, v in zip(middles, values, strict=True)]
    high = [max(v) - m for m, v in zip(middles, values, strict=True)]
    colors = ["tab:orange" if name.startswith(OURS) else "tab:gray" for name in names]
    panel.barh(names, middles, xerr=[low, high], color=colors, height=0.7, capsize=2)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def curves(lines: Sequence[Line], view: View) -> Figure:
    """One column of panels for each dimension that grows, one row a figure; both axes log."""
    axes = list(dict.fromkeys(line["axis"] for line in lines))
    if not axes:
        return Figure()
    shown = [column for column in view.columns if column.key in ("seconds", "peak_rss")]
    figure = Figure(figsize=(1 + 3.6 * len(axes), 1 + 2.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(axes), squeeze=False, sharey="row")
    for row, column in zip(panels, shown, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            for name in dict.fromkeys(line["contender"] for line in lines):
                runs = [r for r in lines if r["axis"] == axis and r["contender"] == name]
                points = sorted({run["value"] for run in runs})
                y = [middle([r for r in runs if r["value"] == x], column.key) for x in points]
                scaled = [v / 1e6 if column.key == "peak_rss" else v for v in y]
                color = "tab:orange" if name == OURS else "tab:gray"
                panel.plot(points, scaled, "o-", color=color, label=name)
            panel.set(xscale="log", yscale="log", xlabel=axis.replace("_", " "))
            values = sorted({run["value"] for run in lines if run["axis"] == axis})
            panel.set_xticks(values, [f"{value:,}" for value in values])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(column.title)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure
