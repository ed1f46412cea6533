"""The byte budget and the thread budget of a run: what the user asked for, as numbers."""

from __future__ import annotations

import ctypes
import gc
import math
import re
from numbers import Real
from pathlib import Path

import psutil

from streamtrain.errors import InputError

_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{u}i": 2 ** (10 * i) for i, u in enumerate("kmgt", 1)}

# Bytes that the arenas and codecs of reading threads keep beside the blocks: 60 to 95 MB measured.
READING_RESERVE = 96 * 10**6
BLOCK = 64 * 10**6  # bytes of stored cells read at a time; larger blocks read no faster


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group if less."""
    free = int(psutil.virtual_memory().available)
    for limit, used in (  # control groups, version 2 and 1: containers and cluster jobs
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, taken = (int((_CGROUP / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # none here, or "max"
            continue
        free = min(free, max(0, most - taken))
    return free


def parse_bytes(memory: int | float | str | None) -> int:
    """Turn "2GB", "512 MiB" or a number of bytes into bytes; None is a quarter of free memory."""
    if memory is None:
        return free_memory() // 4
    if not isinstance(memory, (str, Real)):
        raise InputError(f"memory must be a size such as '2GB'; got {memory!r}")
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", memory.lower())
        if match is None or match[2] not in _UNITS:
            raise InputError(
                "memory must be a size such as '2GB', '512MiB' or a number of bytes; "
                f"got {memory!r}"
            )
        value = float(match[1]) * _UNITS[match[2]]
    else:
        value = memory
    if isinstance(memory, bool) or not 1 <= value < math.inf:
        raise InputError(f"memory must be a positive size such as '2GB'; got {memory!r}")
    return int(value)


def format_bytes(n: float) -> str:
    """Write a number of bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def release_freed() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    Its arenas keep what many threads freed: 80 to 250 MB after reading a store, measured, which
    would stand beside the next stage's buffers although nothing uses it. zarr's finished tasks
    hold decoded chunks in reference cycles, so those are collected first.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
