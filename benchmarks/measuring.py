"""Cases in, one checked record a run out: each contender in its own process, taken in turn."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import keeping
from benchmarks.child import drop_page_cache
from benchmarks.environments import UnavailableError, interpreter
from streamtrain.threads import n_threads

logger = logging.getLogger("benchmarks")

ROOT = Path(__file__).resolve().parents[1]
_EVERY = 0.2  # seconds between looks at the processes; each look takes about 1 ms of a CPU

Evidence = dict[str, NDArray[Any]]


class WrongWorkError(Exception):
    """A contender did not do the work that its time would be reported for."""


class FailedError(Exception):
    """A contender's process ended without a result; the message is its last word."""


class TimeLimitError(Exception):
    """A contender was stopped at the time limit."""


@dataclass(frozen=True)
class Contender:
    """Who does the work.

    Attributes
    ----------
    name
        As tables show it.
    call
        "module:function" of the generator function.
    environment
        Name of a requirement file, or None for this interpreter's own.
    options
        What the job has besides for this contender.
    needs
        Module that it imports, of a package that need not be installed here, or "".
    """

    name: str
    call: str
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


@dataclass(frozen=True)
class Case:
    """One piece of work that all contenders do.

    Attributes
    ----------
    name
        As tables show it.
    job
        What each contender is handed.
    contenders
        Who does it.
    warm_up
        A small job of the same kind, done first in the same process (compiles, imports), or None.
    verify
        What is added to the job for one more, untimed run, which gives the evidence; None where
        the timed runs give it.
    cold
        Whether the page cache is dropped before the clock starts.
    repeats
        Number of runs, where it is not that of the suite.
    files
        What is read: brought into the page cache before every run that is not cold.
    skipped
        Why nobody can do it here, or "".
    about
        What the pictures and tables need to know of it.
    reference
        What the suite's check compares with.
    depends
        All that the answers of contenders in environments of their own depend on, besides these,
        their options and the repeat: such runs are kept for the next run of the suite. None keeps
        nothing.
    """

    name: str
    job: Mapping[str, Any]
    contenders: Sequence[Contender]
    warm_up: Mapping[str, Any] | None = None
    verify: Mapping[str, Any] | None = None
    cold: bool = False
    repeats: int | None = None
    files: Sequence[str] = ()
    skipped: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    reference: Any = None
    depends: Mapping[str, Any] | None = None


Check = Callable[[Case, Mapping[str, Sequence[Evidence]], Mapping[str, Sequence[Any]]], None]


def measure(
    cases: Sequence[Case], check: Check, *, repeats: int, limit_s: float, fresh: bool = False
) -> Iterator[dict[str, Any]]:
    """Run every case; yield its records once `check` has passed all of them.

    Contenders take turns, every other round in reverse, so that a drift of the machine's speed
    meets them alike. One that cannot run here gives a record with `skipped`; one over the time
    limit a record with `over_s`, and one whose process failed a record with `failed`, and neither
    runs again in that case. A run that an earlier one of the suite has kept is not done again,
    unless `fresh`: its record says `kept`, and is of when and where it was done.

    Raises
    ------
    WrongWorkError
        A contender did other work than the case's.
    """
    for number, case in enumerate(cases, 1):
        records = []
        evidence: dict[str, list[Evidence]] = {}
        done: dict[str, list[Any]] = {}
        lost = set()
        for repeat, contender in _turns(case, case.repeats or repeats):
            name = contender.name
            if name in lost:
                continue
            logger.info("case %d of %d, %s: %s, run %d", number, len(cases), case.name, name,
                        repeat + 1)  # fmt: skip
            record = _record(case, contender) | {"repeat": repeat}
            records.append(record)
            try:
                _possible(case, contender)
                found, proof = _answer(case, contender, record, limit_s, fresh)
            except UnavailableError as error:
                record |= {"skipped": str(error)}
            except TimeLimitError:
                record |= {"over_s": limit_s}
            except FailedError as error:
                record |= {"failed": str(error)}
            else:
                record |= found
                done.setdefault(name, []).append(record)
                if proof and (case.verify is None or repeat == 0):
                    evidence.setdefault(name, []).append(proof)
                continue
            lost.add(name)
            logger.warning("%s: %s", name, record.get("skipped") or record.get("failed") or "over")
        check(case, evidence, done)
        yield from records


def _answer(
    case: Case, contender: Contender, record: dict[str, Any], limit_s: float, fresh: bool
) -> tuple[dict[str, Any], Evidence]:
    """Do a run, or find it kept; what is found adds to the record."""
    python, repeat, place = interpreter(contender.environment), record["repeat"], None
    if case.depends is not None and contender.environment is not None:
        place = keeping.place(
            {**case.depends, "call": contender.call, "options": contender.options,
             "repeat": repeat, "environment": python.parents[1].name},  # by packages and Python
        )  # fmt: skip
        if place.exists() and not fresh:
            found, proof = keeping.kept(place)
            now = ("case", "contender", *case.about)
            return found | {key: record[key] for key in now} | {"kept": True}, proof
    found, proof = run(
        contender, {**case.job, "repeat": repeat}, warm_up=case.warm_up,
        verify=None if repeat else case.verify, cold=case.cold, files=case.files, limit_s=limit_s,
    )  # fmt: skip
    if place:
        keeping.keep(place, record | found, proof)
    return found, proof


def _turns(case: Case, repeats: int) -> Iterator[tuple[int, Contender]]:
    for repeat in range(repeats):
        for contender in case.contenders[::-1] if repeat % 2 else case.contenders:
            yield repeat, contender


def _record(case: Case, contender: Contender) -> dict[str, Any]:
    """What is known of a run before it begins."""
    return {
        "case": case.name,
        "contender": contender.name,
        **case.about,
        "cache": "cold" if case.cold else "warm",
        "job": {**case.job, **contender.options},
        "machine": machine(),
        "commit": commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
    }


def _possible(case: Case, contender: Contender) -> None:
    """Raise UnavailableError where a contender cannot do a case on this machine."""
    if case.skipped:
        raise UnavailableError(case.skipped)
    if case.cold and not can_drop_page_cache():
        raise UnavailableError("the page cache cannot be dropped here (on Linux, root can)")
    if contender.needs and find_spec(contender.needs) is None:
        raise UnavailableError(f"{contender.needs} is not installed here")
    interpreter(contender.environment)


def run(
    contender: Contender,
    job: Mapping[str, Any],
    *,
    warm_up: Mapping[str, Any] | None = None,
    verify: Mapping[str, Any] | None = None,
    cold: bool = False,
    files: Sequence[str] = (),
    limit_s: float,
) -> tuple[dict[str, Any], Evidence]:
    """Run one job in a fresh process; return what it took and did, and its evidence.

    `peak_rss` is the most that the process and its children held at a time while the clock ran:
    the process's own high-water mark, or the sum over the tree, seen five times a second, where
    that is more. On Linux memory that processes share is divided among them in the sum.

    Raises
    ------
    TimeLimitError
        The clock ran over `limit_s`, or what is not timed over ten times that.
    FailedError
        The process ended without a result.
    """
    if not cold:
        for file in files:
            _into_page_cache(Path(file))
    with tempfile.TemporaryDirectory(prefix="streamtrain-bench-") as folder:
        names = ("result", "proof.npz", "started", "log")
        result, proof, started, log = (Path(folder, name) for name in names)
        spec = {
            "call": contender.call,
            "job": {**job, **contender.options},
            "warm_up": warm_up and {**warm_up, **contender.options},
            "verify": verify and dict(verify),
            "cold": cold,
            "started": str(started),
            "result": str(result),
            "evidence": str(proof),
        }
        command = [str(interpreter(contender.environment)), "-m", "benchmarks.child"]
        with log.open("w") as words:
            process = subprocess.Popen(  # noqa: S603 - our own module
                command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=words, stderr=words,
                start_new_session=True,
            )  # fmt: skip
            try:
                seen = _watch(process, json.dumps(spec), limit_s, started, result)
            finally:
                with suppress(ProcessLookupError):  # whatever it left running, too
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode or not result.exists():
            text = log.read_text(errors="replace").strip()[-2000:]
            killed = " (killed: out of memory?)" if process.returncode == -signal.SIGKILL else ""
            raise FailedError(f"ended with status {process.returncode}{killed}: {text}")
        found = json.loads(result.read_text())
        if found["seconds"] > limit_s:
            raise TimeLimitError
        start, stop = found.pop("clock")
        tree = max((rss for at, rss in seen if start <= at <= stop), default=0)
        found["peak_rss"] = max(found["peak_rss"], tree)
        if "cells" in found:
            found["cells_per_s"] = found["cells"] / found["seconds"]
        evidence = {}
        if proof.exists():
            with np.load(proof, allow_pickle=False) as arrays:
                evidence = dict(arrays)
        return found, evidence


def _watch(
    process: subprocess.Popen[str], spec: str, limit_s: float, started: Path, result: Path
) -> list[tuple[float, int]]:
    """Hand over the job and wait; return when and how much memory the tree was seen to hold."""
    assert process.stdin is not None  # noqa: S101 - for the type checker
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(spec)
    seen: list[tuple[float, int]] = []
    begun, clock = time.monotonic(), 0.0
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY)
            return seen
        now = time.monotonic()
        if not clock and started.exists():
            clock = now
        timed = clock and not result.exists() and now - clock > limit_s
        if timed or now - begun > 11 * limit_s:
            raise TimeLimitError
        with suppress(psutil.Error):
            root = psutil.Process(process.pid)
            tree = [root, *root.children(recursive=True)]
            if len(tree) > 1:  # of one process the kernel keeps the mark
                seen.append((now, sum(map(_resident, tree))))


def _resident(process: psutil.Process) -> int:
    """Bytes that a process holds, its share alone of what it shares, where the system tells."""
    with suppress(psutil.Error):
        if psutil.LINUX:
            return int(process.memory_full_info().pss)
        return int(process.memory_info().rss)
    return 0


def _into_page_cache(path: Path) -> None:
    """Read a file, or all files of a folder, to the end."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


@cache
def can_drop_page_cache() -> bool:
    """Tell whether cold runs are possible."""
    try:
        drop_page_cache()
    except OSError:
        return False
    return True


@cache
def machine() -> dict[str, Any]:
    """Name the processor, cores, memory and system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((v.strip() for k, _, v in lines if k.strip() == "model name"), cpu)
    memory = round(psutil.virtual_memory().total / 2**30)
    return {
        "cpu": cpu,
        "cores": n_threads(None),
        "memory_gib": memory,
        "system": platform.platform(),
    }


@cache
def commit() -> str:
    """Name the commit, with a plus sign where the code has changed since; "" outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", *words]
        try:
            ran = subprocess.run(  # noqa: S603
                command, cwd=ROOT, capture_output=True, text=True, check=False
            )
        except OSError:  # there is no git
            return ""
        return ran.stdout.strip()

    paths = ("streamtrain", "benchmarks", "conf", ":!benchmarks/results")
    changed = git("status", "--porcelain", "--", *paths)
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
