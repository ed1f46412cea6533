"""Peak memory of training as cells grow: ``python -m benchmarks.memory``.

Simulates atlases of several sizes, trains on each in a process of its own under one budget, and
prints a Markdown table. Peak RSS is the process's own, as the system counts it; beside it stands
that of the same process on a tiny atlas, which is the interpreter with all its libraries.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def train_once(source: str, memory: str, epochs: int) -> None:
    """Train and print one JSON line: seconds, cells, peak RSS."""
    import streamtrain

    start = time.perf_counter()
    model = streamtrain.train(
        source, "cell_type", normalize="log1p", memory=memory, epochs=epochs, batch_size=500,
        progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = peak_rss()
    cells = model.provenance["n_cells"]
    print(json.dumps({"cells": cells, "seconds": round(seconds, 1), "peak_rss": peak}))


def peak_rss() -> int:
    """Most bytes that this process held at a time.

    From /proc on Linux: ru_maxrss begins there with what the parent held when it started us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(source: Path, memory: str, epochs: int) -> dict[str, float]:
    """Run `train_once` in a fresh process."""
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "benchmarks.memory", "--one", str(source), "--memory", memory,
         "--epochs", str(epochs)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def main() -> None:
    """Parse the command line, simulate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--genes", type=int, default=30_000)
    parser.add_argument("--types", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--folder", type=Path, help="keep the atlases here, and use those there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        train_once(chosen.one, chosen.memory, chosen.epochs)
        return
    from streamtrain.simulate import simulate

    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)

        def atlas(cells: int, genes: int, types: int) -> Path:
            path = folder / f"{cells}x{genes}.zarr"
            if not path.exists():
                simulate(path, n_obs=cells, n_vars=genes, n_types=types, n_donors=10)
            return path

        measure(atlas(2_000, 500, 4), chosen.memory, 1)  # compiles the kernels
        base = measure(atlas(2_000, 500, 4), chosen.memory, 1)["peak_rss"]
        print(f"streamtrain {version('streamtrain')}, Python {platform.python_version()}")
        print(f"interpreter and libraries: {base / 1e6:.0f} MB\n")
        print(f"| cells x {chosen.genes:,} genes | peak RSS | less interpreter | seconds |")
        print("|---|---|---|---|")
        for cells in chosen.cells:
            found = measure(atlas(cells, chosen.genes, chosen.types), chosen.memory, chosen.epochs)
            peak = found["peak_rss"]
            print(
                f"| {cells:,} | {peak / 1e6:,.0f} MB | {(peak - base) / 1e6:,.0f} MB "
                f"| {found['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
