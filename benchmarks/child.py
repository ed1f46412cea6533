"""One contender in a process of its own: a JSON job on standard input, a JSON result in a file.

A contender is a generator function of its job. What it does before its first `yield` is
preparation and takes no time. Then the clock runs until it yields a dictionary of what it did
(counts that can be checked, scores; its own `seconds` and `cpu_seconds`, where it must prepare
between one piece of work and the next). It may yield a second dictionary, of arrays, as evidence:
gathering that takes no time either. With `verify` the job is then done once more, with what that
adds to it, and the evidence is of this second time.

Imports nothing of streamtrain's, so that it runs in the environments of the others.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Work = Callable[[dict[str, Any]], Iterator[Any]]

_PACKAGES = (
    "streamtrain", "anndata", "annbatch", "celltypist", "cuml-cu12", "cuml-cu13", "cupy-cuda12x",
    "cupy-cuda13x", "dask", "dask-ml", "distributed", "h5py", "numba", "numpy", "scdataset",
    "scikit-learn", "scipy", "torch", "zarr", "zarrs",
)  # fmt: skip
_DROP = Path("/proc/sys/vm/drop_caches")


def drop_page_cache() -> None:
    """Make the next reads come from the disk; OSError where this process may not."""
    os.sync()
    _DROP.write_text("1")


def usage() -> dict[str, float]:
    """CPU seconds and bytes read of this process and its children, past and present.

    `bytes_read` is what read calls asked for, pipes between processes included, and
    `bytes_from_disk` what the page cache did not have; both only where the system tells (Linux).
    """
    me = psutil.Process()
    total = {"cpu_seconds": 0.0}
    if hasattr(me, "io_counters"):
        total |= {"bytes_read": 0.0, "bytes_from_disk": 0.0}
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total["cpu_seconds"] += times.user + times.system
            total["cpu_seconds"] += times.children_user + times.children_system
            if "bytes_read" in total:
                io = process.io_counters()  # the dead children's included
                total["bytes_read"] += io.read_chars
                total["bytes_from_disk"] += io.read_bytes
    return total


def work(contender: Work, spec: dict[str, Any]) -> None:
    """Warm up, run the job, write what it took, and gather the evidence.

    `base_rss` is what the process held after the warm-up: its libraries, with what they compiled.
    """
    if spec["warm_up"]:
        for _ in contender(spec["warm_up"]):
            pass
    base = psutil.Process().memory_info().rss
    run = contender(spec["job"])
    next(run)
    if spec["cold"]:
        drop_page_cache()
    set_back_high_water()
    Path(spec["started"]).touch()
    before, clock, start = usage(), time.monotonic(), time.perf_counter()
    found = next(run)
    seconds = time.perf_counter() - start
    after, peak = usage(), high_water()
    result = {
        "seconds": seconds,
        **{name: after[name] - before[name] for name in before},
        "base_rss": base,
        "peak_rss": peak,
        "clock": [clock, clock + seconds],  # when, for who watches the tree of processes
        "versions": versions(),
        **found,
    }
    written = Path(spec["result"]).with_suffix(".partial")
    written.write_text(json.dumps(result))
    written.rename(spec["result"])
    evidence = next(run, None)
    if spec["verify"]:
        *_, evidence = contender({**spec["job"], **spec["verify"]})
    if evidence is not None:
        np.savez(spec["evidence"], allow_pickle=False, **evidence)


def set_back_high_water() -> None:
    """Have the high-water mark of this process's memory begin again, where it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water() -> int:
    """Most bytes that this process held at a time, since the mark was last set back."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main() -> None:
    """Read the job and do it."""
    spec = json.load(sys.stdin)
    module, name = spec["call"].split(":")
    work(getattr(import_module(module), name), spec)


if __name__ == "__main__":
    main()
