"""Measure streamtrain beside its peers: python -m benchmarks SUITE [--set k=v] [--out DIR]."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks import measuring, report, settings
from benchmarks.environments import NoDeviceError, UnavailableError, cache_folder
from streamtrain.errors import InputError

logger = logging.getLogger("benchmarks")
RESULTS = Path(__file__).parent / "results"

app = App(name="python -m benchmarks", version_flags=[])


@app.default
def run(
    *suites: str,
    set: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),  # noqa: A002
    out: Path = RESULTS,
) -> None:
    """Measure streamtrain beside its peers and write DIR/SUITE.jsonl, .md and .png.

    Example: python -m benchmarks read step --set size=smoke --out /tmp/figures

    Environments of other libraries and synthetic atlases are made on first use and kept in
    ~/.cache/streamtrain-bench (or STREAMTRAIN_BENCH), as are CellTypist's runs of `quality` (but
    with --set fresh=true); `python -m benchmarks clean` removes them.

    Parameters
    ----------
    suites
        Of read, sample, step, train, scale, solve, quality, cluster and gpu; or all, of which gpu
        is left out where there is none.
    set
        A setting of conf/bench/SUITE.toml: size=smoke, repeats=5, cells=200000, ...
    out
        Folder for the results.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if not suites:
        raise InputError(f"name a suite: {', '.join(settings.suites())}, or all")
    names = settings.suites() if suites == ("all",) else suites
    loaded = {name: settings.load(name, set) for name in names}
    failed = []
    for name in names:
        suite, chosen = import_module(f"benchmarks.suites.{name}"), loaded[name]
        try:
            cases = suite.cases(chosen)
        except NoDeviceError as error:
            if suites != ("all",):
                raise
            logger.warning("%s is left out: %s", name, error)
            continue
        out.mkdir(parents=True, exist_ok=True)
        # Beside the old results until all is done and checked.
        partial = out / f"{name}.jsonl.partial"
        with partial.open("w", encoding="utf-8") as file:
            for line in measuring.measure(
                cases, suite.check, repeats=chosen["repeats"], limit_s=chosen["limit_s"],
                fresh=chosen.get("fresh", False),
            ):  # fmt: skip
                if "failed" in line:
                    failed.append(f"{name}, {line['case']}: {line['contender']} {line['failed']}")
                file.write(json.dumps({"suite": name, "set": list(set), **line}) + "\n")
                file.flush()
        partial.replace(out / f"{name}.jsonl")
        print(report.write(out, name))
    if failed:
        raise measuring.FailedError("\n".join(failed))


@app.command
def table(*suites: str, out: Path = RESULTS) -> None:
    """Make the tables and pictures anew from the JSON lines in a folder.

    Parameters
    ----------
    suites
        Names of suites; by default all that have results there.
    out
        Folder with the results.
    """
    for name in suites or sorted(path.stem for path in out.glob("*.jsonl")):
        print(report.write(out, name))


@app.command
def clean() -> None:
    """Remove the environments, atlases and other libraries' runs that earlier runs have kept."""
    shutil.rmtree(cache_folder())


def main() -> None:
    """Run the command line; what cannot be measured ends in words and exit status 1."""
    # As an exception, so that a contender's processes end with this one.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except (
        InputError, OSError, UnavailableError, measuring.FailedError, measuring.TimeLimitError,
        measuring.WrongWorkError,
    ) as error:  # fmt: skip
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
