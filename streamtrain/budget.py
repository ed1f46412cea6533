"""The byte budget and the thread budget of a run: what the user asked for, as numbers."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import re
from collections.abc import Iterator
from numbers import Real
from pathlib import Path

import psutil

from streamtrain import buffers
from streamtrain.errors import InputError

_CGROUP, _PROC = Path("/sys/fs/cgroup"), Path("/proc/self")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{u}i": 2 ** (10 * i) for i, u in enumerate("kmgt", 1)}

# Bytes that the arenas and codecs of reading threads keep beside the blocks: 60 to 95 MB measured.
READING_RESERVE = 96 * 10**6
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers
BLOCK = 64 * 10**6  # bytes of stored cells read at a time; larger blocks read no faster


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group if less."""
    return min([int(psutil.virtual_memory().available), *_control_groups()])


def _control_groups() -> Iterator[int]:
    """Free bytes of each control group around this process: containers and cluster jobs.

    Pages of files that the system can drop (inactive_file) count as free: reading fills them.
    """
    try:
        lines = (_PROC / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2
            root, most, used, cached = _CGROUP, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):  # version 1
            root, cached = _CGROUP / "memory", "total_inactive_file"
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's: then its own group is the root.
        for folder in (group, *group.parents, root):
            try:
                limit, taken = int((folder / most).read_text()), int((folder / used).read_text())
                stat = re.search(rf"^{cached} (\d+)", (folder / "memory.stat").read_text(), re.M)
            except (OSError, ValueError):  # no such group, or "max"
                continue
            yield max(0, limit - taken + (int(stat[1]) if stat else 0))


def parse_bytes(memory: int | float | str | None, name: str = "memory") -> int:
    """Turn "2GB", "512 MiB" or a number of bytes into bytes; None is a quarter of free memory.

    `name` is what the setting is called.
    """
    if memory is None:
        return free_memory() // 4
    if not isinstance(memory, (str, Real)):
        raise InputError(f"{name} must be a size such as '2GB'; got {memory!r}")
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", memory.lower())
        if match is None or match[2] not in _UNITS:
            raise InputError(
                f"{name} must be a size such as '2GB', '512MiB' or a number of bytes; "
                f"got {memory!r}"
            )
        value = float(match[1]) * _UNITS[match[2]]
    else:
        value = memory
    if isinstance(memory, bool) or not 1 <= value < math.inf:
        raise InputError(f"{name} must be a positive size such as '2GB'; got {memory!r}")
    return int(value)


def check_gpu_memory(gpu_memory: int | str | None, *, on_gpu: bool) -> None:
    """Refuse what is no size, or is given without a GPU."""
    if gpu_memory is None:
        return
    if not on_gpu:
        raise InputError("gpu_memory is for device='gpu': leave it out, or pass that")
    parse_bytes(gpu_memory, "gpu_memory")


def format_bytes(n: float) -> str:
    """Write a number of bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def keep_freed() -> None:
    """Have the C library (glibc) use freed memory again, where it was told not to.

    A nanny of dask sets MALLOC_TRIM_THRESHOLD_, with which glibc no longer adapts: all blocks came
    in fresh pages, two million of them for converting 60,000 cells, and half of the CPU time. These
    are the limits up to which it adapts by itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        mallopt(_TRIM_THRESHOLD, 64 << 20)
        mallopt(_MMAP_THRESHOLD, 32 << 20)


def release_freed() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    Its arenas keep what many threads freed: 80 to 250 MB after reading a store, measured, which
    would stand beside the next stage's buffers although nothing uses it. zarr's finished tasks
    hold decoded chunks in reference cycles, so those are collected first.
    """
    buffers.clear()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
