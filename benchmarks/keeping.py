"""A run's record and evidence in, a file of the cache folder out, and back.

For runs of other libraries, which take hours and whose answers nothing of ours changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import cache_folder

_RECORD = "record"  # beside the evidence's arrays


def place(depends: Mapping[str, Any]) -> Path:
    """Path of a run by all that its answers depend on."""
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "runs" / f"{key}.npz"


def keep(path: Path, record: Mapping[str, Any], evidence: Mapping[str, NDArray[Any]]) -> None:
    """Write a run, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npz")
    arrays: dict[str, Any] = {**evidence, _RECORD: np.array(json.dumps(record))}
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.rename(path)


def kept(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a run's record and evidence."""
    with np.load(path, allow_pickle=False) as arrays:
        evidence = dict(arrays)
    record: dict[str, Any] = json.loads(str(evidence.pop(_RECORD)))
    return record, evidence
