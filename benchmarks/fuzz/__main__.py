"""Damaged files by the thousand in; how many are refused, read as by others, or neither, out."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread
from typing import Any

from cyclopts import App

from benchmarks.measuring import commit
from streamtrain.errors import InputError, near

LIMIT = 10.0  # seconds for one mutant, which takes 0.04
_START = 300.0  # seconds until a worker is ready, its kernels compiled
_BATCH = 2_000  # mutants that one process reads
_WORKERS = 2
_COLUMNS = ("refused", "refused in part", "read alike", "read alone", "library ends",
            "finding")  # fmt: skip

app = App(name="python -m benchmarks.fuzz", version_flags=[])


@dataclass
class Told:
    """Counts of outcomes by kind, and the lines with findings."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """Count a line."""
        self.counts.setdefault(kind, Counter())[line["outcome"]] += 1
        if line["findings"]:
            self.found.append(line | {"kind": kind})
            first = line["findings"][0]
            print(f"{line['number']}, {kind}: {first['how']}, {first['where']}", file=sys.stderr)


@app.default
def run(
    *,
    out: Path | None = None,
    mutants: int = 10_000,
    seed: int = 0,
    only: str | None = None,
    replay: int | None = None,
) -> int:
    """Damage small atlases and models in a known way, read them, and compare with other readers.

    Example: python -m benchmarks.fuzz --mutants 1000 --out /tmp/fuzz

    Each mutant is told by its number and the seed. It may be refused in words, or be read as
    anndata (else h5py or zarr and scipy; xarray; pickle) reads it. Anything else is a finding: a
    crash, more than 10 seconds, memory, files left open, another exception, other data. The status
    is 1 if there are findings.

    Parameters
    ----------
    out
        Folder for fuzz.md, and for the mutants with findings.
    mutants
        How many.
    seed
        Of all that is drawn.
    only
        One kind alone: "h5ad bytes", "zarr metadata", ... or the beginning of several: "zarr".
    replay
        Number of one mutant, which is read in this process; its traceback is printed.
    """
    if replay is not None:
        return _replay(seed, replay, out)
    began, numbers = time.monotonic(), list(islice(_numbers(only), mutants))
    told = campaign(seed, numbers)
    text = table(told, seed, time.monotonic() - began)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "fuzz.md").write_text(text, encoding="utf-8")
        for line in told.found[:200]:
            _save(seed, line, out)
    return int(bool(told.found))


def _numbers(only: str | None) -> Iterator[int]:
    from benchmarks.fuzz.worker import TURNS, kind

    if only is None:
        return count()
    if not any(name.startswith(only) for name in TURNS):
        raise InputError(f"there is no kind {only!r}: {near(only, sorted(set(TURNS)), 30)}")
    return (number for number in count() if kind(number).startswith(only))


def campaign(seed: int, numbers: list[int]) -> Told:
    """Have all read by workers, each a process, and count."""
    from benchmarks.fuzz.worker import kind

    told, lock = Told(), Lock()
    size = max(1, min(_BATCH, -(-len(numbers) // _WORKERS)))
    batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def read(batch: list[int]) -> None:
        for line in _read(seed, batch):
            if [f["how"] for f in line["findings"]] == ["memory"] and _plainly(
                seed, line["number"]
            ):
                line |= {"outcome": "library ends", "findings": []}
            with lock:
                told.add(kind(line["number"]), line)

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(read, batches))
    return told


def _read(seed: int, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Lines of a batch; a worker that crashes or hangs is followed by another."""
    left = list(numbers)
    while left:
        with tempfile.TemporaryFile() as said, _scratch() as folder:
            ended = yield from _one(seed, left, folder, said)
        if left:
            number = left.pop(0)
            yield {"number": number} | ended


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one worker, which may not live to delete them; in memory."""
    shared = "/dev/shm"  # noqa: S108 - a folder of our own in it
    base = shared if os.path.isdir(shared) else None  # noqa: PTH112
    return tempfile.TemporaryDirectory(prefix="streamtrain-fuzz-", dir=base)


def _started(seed: int, numbers: list[int], folder: str, said: Any, plain: bool = False) -> Any:
    """A worker that has been asked for mutants."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fuzz.worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=said, cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    asked = {"seed": seed, "numbers": numbers, "folder": folder, "plain": plain}
    if process.stdin is not None:
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.close()
    return process


def _one(
    seed: int, left: list[int], folder: str, said: Any
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Lines of one worker, which takes numbers from `left`; returns how the next one ended it."""
    process = _started(seed, left, folder, said)
    lines: Queue[bytes] = Queue()
    reader = Thread(target=_listen, args=(process.stdout, lines))
    reader.start()
    stage, how = "start", ""
    try:
        while left:
            limit = _START if stage == "start" else LIMIT
            try:
                raw = lines.get(timeout=limit)
            except Empty:
                how = "hang"
                break
            if not raw:
                how = "crash"
                break
            line = json.loads(raw)
            stage = line.get("stage", "reading")
            if "number" in line:
                left.pop(0)
                yield line
    finally:
        code = _ended(process, signal.SIGABRT if how == "hang" else signal.SIGKILL)
        reader.join()
        process.stdout.close()
    said.seek(0)
    words = said.read().decode(errors="replace")
    words = words[: words.find("Extension modules")][-4000:]
    if left and stage == "start":
        raise RuntimeError(f"a worker did not start: {words}")
    if left and (stage == "reference" or _plainly(seed, left[0])):
        return {"outcome": "library ends", "findings": [], "words": how, "what": ""}
    found = [{"how": how, "where": _frame(words), "words": f"status {code}\n{words}"}]
    return {"outcome": "finding", "findings": found, "words": how, "what": ""}


def _ended(process: Any, number: int) -> int:
    """Status of a process, sent a signal if it goes on; SIGABRT has it say where it was."""
    try:
        return int(process.wait(0.5))
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    try:
        return int(process.wait(10))
    except subprocess.TimeoutExpired:
        process.kill()
        return int(process.wait())


def _listen(stream: Any, lines: Queue[bytes]) -> None:
    """Hand on lines, and an empty one for the end."""
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _plainly(seed: int, number: int) -> bool:
    """Whether h5py or zarr crash, hang or take too much memory, too, without streamtrain."""
    with tempfile.TemporaryFile() as said, _scratch() as folder:
        process = _started(seed, [number], folder, said, plain=True)
        process.stdout.close()
        try:
            return bool(process.wait(3 * LIMIT) != 0)
        except subprocess.TimeoutExpired:
            process.kill()
            return bool(process.wait())


def _frame(words: str) -> str:
    """The first frame of ours in what faulthandler says."""
    ours = [line for line in words.splitlines() if "/streamtrain/" in line]
    return ours[0].rpartition("/streamtrain/")[2] if ours else "?"


def _save(seed: int, line: dict[str, Any], out: Path) -> None:
    """Keep a mutant with findings."""
    from benchmarks.fuzz.worker import mutant

    folder = out / f"{line['number']} {line['kind']}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        changed, _ = mutant(seed, line["number"], Path(scratch))
    changed.write(folder, "mutant")
    (folder / "finding.json").write_text(json.dumps(line, indent=1), encoding="utf-8")


def _replay(seed: int, number: int, out: Path | None) -> int:
    """Read one mutant here."""
    from benchmarks.fuzz import worker

    worker.quiet()
    with tempfile.TemporaryDirectory(prefix="streamtrain-fuzz-") as name:
        judged, what = worker.judge(seed, number, Path(name), lambda _: None)
    print(f"{number}, {worker.kind(number)}: {what}\n{judged.outcome}: {judged.words}")
    for finding in judged.findings:
        print(f"\n{finding.how}, {finding.where}:\n{finding.words}")
    if out is not None:
        _save(seed, {"number": number, "kind": worker.kind(number)}, out)
    return int(bool(judged.findings))


def table(told: Told, seed: int, seconds: float) -> str:
    """Kinds by outcomes, and the findings by what they have in common."""
    total: Counter[str] = sum(told.counts.values(), Counter())
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    lines = [
        "# fuzz", "",
        f"`python -m benchmarks.fuzz --mutants {sum(total.values())} --seed {seed}`: "
        f"{sum(total.values()):,} damaged files in {seconds:,.0f} s, of which {total['finding']} "
        f"with findings ({machine}; commit {commit()}).", "",
        f"| kind | {' | '.join(_COLUMNS)} |",
        "|---|" + "--:|" * len(_COLUMNS),
    ]  # fmt: skip
    for kind, counts in [*sorted(told.counts.items()), ("all", total)]:
        lines.append(f"| {kind} | " + " | ".join(f"{counts[c]:,}" for c in _COLUMNS) + " |")
    alike: dict[tuple[str, str, str], list[int]] = {}
    for line in told.found:
        for finding in line["findings"]:
            key = line["kind"], finding["how"], finding["where"]
            alike.setdefault(key, []).append(line["number"])
    if alike:
        lines += ["", "| kind | finding | where | mutants | first |", "|---|---|---|--:|--:|"]
    for (kind, how, where), numbers in sorted(alike.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {kind} | {how} | {where} | {len(numbers)} | {min(numbers)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the command line."""
    try:
        sys.exit(app())
    except InputError as error:
        print(f"fuzz: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    sys.exit(2)


if __name__ == "__main__":
    main()
