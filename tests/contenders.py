"""Contenders for the tests of the benchmark harness: honest, lazy, hungry, failing, endless."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_HOLD = "b = bytearray({0}); b[::4096] = b'x' * len(b[::4096]); import time; time.sleep(1)"


def honest(job):
    prepared = time.perf_counter()
    time.sleep(0.2)
    yield
    sum(range(job["work"]))
    yield {"cells": job["cells"], "seed": job.get("repeat")}
    yield {"cells": np.arange(job["cells"]), "checked": np.array(job.get("verify", False))}
    assert prepared


def lazy(job):
    yield
    yield {"cells": job["cells"] - 1}
    yield {"cells": np.arange(job["cells"] - 1)}


def hungry(job):
    """Hold memory in a child process, and read a file."""
    yield
    text = _HOLD.format(job["bytes"])
    subprocess.run([sys.executable, "-c", text], check=True)  # noqa: S603
    Path(job["file"]).read_bytes()
    yield {"cells": 1}


def failing(job):
    yield
    raise RuntimeError(f"no cells in {job['file']}")


def endless(job):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # mark-of-endless"])
    yield
    time.sleep(60)
    yield {}
