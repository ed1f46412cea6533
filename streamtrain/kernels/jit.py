"""The JIT options of every kernel, and a place for the compiled code that can be written."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

config: Any = numba.config


def _private_dir() -> str | None:
    """Make the user's own cache folder under the temporary directory, or None if it is not ours."""
    path = Path(tempfile.gettempdir()) / f"streamtrain-kernels-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        seen = path.lstat()
    except OSError:
        return None
    # Cached code is unpickled by numba: never take it from a folder that somebody else can write.
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o022
    return str(path) if ours else None


@cache
def _sources() -> str:
    """Digest of every kernel's source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cached(function: Callable[..., Any], **options: Any) -> Any:
    """Compile and cache, by the source of all kernels.

    numba's stamp is the content of the function's own file, so that after an upgrade a kernel
    whose file is the same would go on with the old code of those that it calls.
    """
    compiled = numba.njit(function, cache=True, **options)
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is not None:  # numba's own affair: a test says whether it is still there
        file._source_stamp = (file._source_stamp, _sources())
    return compiled


def jit(function: Callable[..., Any]) -> Any:
    """Compile on first call, off the GIL, cached on disk.

    No `parallel=True`: kernels take a range of their work, and a thread pool calls them, so one
    thread budget holds for reading and training, and numba's threading layers (of which the
    default aborts when two Python threads meet in it) never start. No `fastmath`: sums keep their
    order, so the result does not depend on how the work was split.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return _cached(function, **options)
    except RuntimeError:  # neither the package's nor the user's cache folder can be written
        place = _private_dir()
        if place is None:
            return numba.njit(function, **options)
        before = config.CACHE_DIR
        config.CACHE_DIR = place  # read while decorating only, so other packages do not see it
        try:
            return _cached(function, **options)
        finally:
            config.CACHE_DIR = before
