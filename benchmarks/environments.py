"""Names of pinned requirement files in, interpreters of virtual environments out.

Each `requirements/NAME.txt` begins with a line `# python SPECIFIER`. The environment is built on
first use, outside the repository, and found again by the content of the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from packaging.specifiers import SpecifierSet

logger = logging.getLogger("benchmarks")

_REQUIREMENTS = Path(__file__).parent / "requirements"


class UnavailableError(Exception):
    """A contender cannot run here; the message says why."""


class NoDeviceError(UnavailableError):
    """A suite's work is for a device that is not here; the message says why."""


def cache_folder() -> Path:
    """Where environments and atlases are kept: a folder in STREAMTRAIN_BENCH or ~/.cache."""
    base = os.environ.get("STREAMTRAIN_BENCH") or os.environ.get("XDG_CACHE_HOME")
    folder = Path(base or Path.home() / ".cache") / "streamtrain-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the lock of one thing in the cache folder, so that two runs do not make it at once."""
    import fcntl

    with (cache_folder() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def interpreter(name: str | None) -> Path:
    """Python of the environment `name`, or this one's for None.

    Raises
    ------
    UnavailableError
        No interpreter of the version is there, or the packages could not be installed.
    """
    if name is None:
        return Path(sys.executable)
    found = _built(name)
    if isinstance(found, str):
        raise UnavailableError(found)
    return found


@cache
def _built(name: str) -> Path | str:
    """Python of an environment, or why there is none: asked for once a run."""
    file = _REQUIREMENTS / f"{name}.txt"
    text = file.read_text(encoding="utf-8")
    wanted = SpecifierSet(text.splitlines()[0].removeprefix("# python "))
    base, version = next(((p, v) for p, v in _interpreters() if wanted.contains(v)), ("", ""))
    if not base:
        return f"{name} needs Python {wanted}, and none was found here"
    key = hashlib.sha256(f"{base}{version}{text}".encode()).hexdigest()[:12]
    folder = cache_folder() / "environments" / f"{name}-{key}"
    python, done = folder / "bin" / "python", folder / "complete"
    with alone(f"{name}-{key}"):
        if not done.exists():
            logger.info("building the environment %s: %s", name, folder)
            shutil.rmtree(folder, ignore_errors=True)
            make = [base, "-m", "venv", str(folder)]
            install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(file)]
            for command in (make, install):
                ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
                if ran.returncode:
                    words = f"{ran.stdout}\n{ran.stderr}".strip() or "no message"
                    return f"{name} could not be installed: {words.splitlines()[-1]}"
            done.touch()
    return python


@cache
def _interpreters() -> list[tuple[str, str]]:
    """Path and version of every Python at hand, this one first."""
    found = []
    for path in _candidates():
        ask = [path, "-c", "import platform, venv; print(platform.python_version())"]
        ran = subprocess.run(ask, capture_output=True, text=True, check=False)  # noqa: S603
        if ran.returncode == 0:
            found.append((path, ran.stdout.strip()))
    return found


def _candidates() -> Iterator[str]:
    # Not of this virtual environment, which may go, and has another path in every checkout.
    yield getattr(sys, "_base_executable", sys.executable)
    for minor in range(11, 16):
        if path := shutil.which(f"python3.{minor}"):
            yield path
    yield from map(str, sorted((Path.home() / ".pyenv/versions").glob("3.*/bin/python")))
