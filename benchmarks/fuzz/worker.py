"""Numbers of mutants enter on standard input, a line of JSON for each leaves on standard output."""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.fuzz import atlases, models, oracle, seeds
from benchmarks.fuzz.oracle import Finding, Judged
from benchmarks.fuzz.seeds import Seed

MOST = 192 << 20  # bytes that reading one mutant may take beside what there was
ROOM = 2 << 30  # of addresses: what asks for more gets MemoryError
_DEEP = 23  # one mutant in so many is trained on, or scored with
_TRIES = 20  # changes that are drawn for a mutant, until one can be written
CHANGES: dict[str, atlases.Change] = (
    atlases.HDF5 | atlases.ZARR | models.MODEL | models.PICKLE | models.STATE
)
# In turn, so that a number alone tells the kind.
TURNS = (
    *("h5ad bytes", "zarr chunks", "h5ad arrays", "pickle opcodes", "h5ad links", "zarr metadata"),
    *("h5ad attributes", "zarr arrays", "h5ad bytes", "h5ad arrays", "model metadata"),
    *("h5ad chunks", "zarr metadata", "pickle bytes", "h5ad lengths", "zarr chunks", "zarr zip"),
    *("h5ad attributes", "model chunks", "state signed", "h5ad links", "pickle opcodes"),
    *("zarr arrays", "model signed", "h5ad arrays", "state bytes", "h5ad bytes"),
)


def kind(number: int) -> str:
    """What is done to the mutant of that number."""
    return TURNS[number % len(TURNS)]


def mutant(seed: int, number: int, folder: Path) -> tuple[Seed, str]:
    """Make a mutant, always the same, and say what was done."""
    rng, what = Random(f"{seed}/{number}"), kind(number)  # noqa: S311
    form = what.split()[0].replace("zip", "zarr")
    sound = seeds.seed(rng.choice(seeds.NAMES[form]))
    for _ in range(_TRIES):
        try:
            changed, words = CHANGES[what](sound, rng, folder)
        except Exception:  # HDF5 and zarr do not write everything: another change
            shutil.rmtree(folder)
            folder.mkdir()
            continue
        return replace(changed, name=sound.name), f"{sound.name}: {words}"
    return sound, "nothing that can be written"


def judge(seed: int, number: int, folder: Path, stage: oracle.Stage) -> tuple[Judged, str]:
    """Make a mutant, read it, and judge also memory and files left open."""
    making = Path(tempfile.mkdtemp(dir=folder))
    changed, words = mutant(seed, number, making)
    shutil.rmtree(making)
    path = changed.write(folder, f"m{number}")
    before = _peak()
    grown = 0

    def told(name: str) -> None:
        nonlocal grown
        grown = _peak() - before
        stage(name)

    try:
        what = kind(number)
        judged = oracle.judge(path, changed, number % _DEEP == 0, "signed" in what, told)
    finally:
        _remove(path)
    grown = grown or _peak() - before
    if grown > MOST:
        judged.findings.append(Finding("memory", what, f"{grown >> 20} MB more"))
    if _open(path):
        gc.collect()
        if _open(path):
            judged.findings.append(Finding("left open", what, str(_open(path))))
    if judged.findings:
        judged.outcome = "finding"
    return judged, words


def plain(seed: int, number: int, folder: Path) -> None:
    """Read a mutant by its library alone; the status is 1 where that takes too much memory."""
    making = folder / "making"
    making.mkdir()
    changed, _ = mutant(seed, number, making)
    before = _peak()
    with suppress(Exception):
        oracle.read_plainly(changed.write(folder, "mutant"), changed.form)
    if _peak() - before > MOST:
        sys.exit(1)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _open(path: Path) -> list[str]:
    """Files of the mutant that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - links to nowhere
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue
        if target.startswith(str(path)):
            found.append(target)
    return found


def quiet() -> None:
    """No warnings and no words of the libraries; a bound for memory; traces of crashes."""
    faulthandler.enable(all_threads=False)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound() -> None:
    size = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def warm(folder: Path) -> None:
    """Read every seed: the kernels are compiled, and what is sound must read alike."""
    for names in seeds.NAMES.values():
        for number, name in enumerate(names):
            sound = seeds.seed(name)
            path = sound.write(folder, "sound")
            found = oracle.judge(path, sound, number == 0, False, lambda _: None)
            _remove(path)
            if found.outcome != "read alike":
                raise AssertionError(f"{name}, without a change: {found}")


def serve(numbers: Iterator[tuple[int, int]], folder: Path, tell: Any) -> None:
    """Judge mutants of (seed, number), a line for each."""
    warm(folder)
    _bound()
    tell({"stage": "ready"})
    for seed, number in numbers:
        began = time.perf_counter()
        judged, words = judge(seed, number, folder, lambda stage: tell({"stage": stage}))
        line = asdict(judged) | {"number": number, "what": words}
        tell(line | {"ms": round(1e3 * (time.perf_counter() - began), 2)})


def main() -> None:
    """Serve what standard input asks for."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no line of ours

    def tell(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    quiet()
    asked = json.loads(sys.stdin.readline())
    if asked["plain"]:
        plain(asked["seed"], asked["numbers"][0], Path(asked["folder"]))
        return
    numbers = ((asked["seed"], number) for number in asked["numbers"])
    serve(numbers, Path(asked["folder"]), tell)


if __name__ == "__main__":
    main()
