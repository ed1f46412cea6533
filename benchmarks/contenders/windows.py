"""Block-random order as every loader here means it: blocks shuffled, then cells within a window.

NumPy alone: every contender's environment has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Block = tuple[int, int]


def random(
    n_obs: int, job: dict[str, Any]
) -> Iterator[tuple[list[Block], NDArray[np.int64], NDArray[np.int64]]]:
    """Cut the cells into blocks, shuffle these, and serve `window` cells' worth at a time.

    Yields
    ------
    blocks, cells, order
        Row ranges of the window, ascending; their row numbers; and the shuffled positions among
        those in which batches take them.
    """
    rng = np.random.default_rng(job["seed"])
    size = job["block"]
    starts = rng.permutation(np.arange(0, n_obs, size))
    per_window = job["window"] // size
    for first in range(0, len(starts), per_window):
        blocks = [
            (int(s), min(int(s) + size, n_obs)) for s in np.sort(starts[first : first + per_window])
        ]
        cells = np.concatenate([np.arange(*block) for block in blocks])
        yield blocks, cells, rng.permutation(len(cells))


def single(job: dict[str, Any]) -> str:
    """Path of the one AnnData in a job's store: a collection of one data set counts as one."""
    path = Path(job["store"])
    inner = [p for p in path.glob("dataset_*") if p.is_dir()]
    inner = inner if path.suffix == ".collection" else [path]
    if len(inner) != 1:
        raise ValueError(f"{path} holds {len(inner)} data sets, and this reader takes one")
    return str(inner[0])
