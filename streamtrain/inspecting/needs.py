"""Cells, their classes and how they are stored enter; what training on them would take leaves."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.first_pass import room_for_cells
from streamtrain.holdout import Folds
from streamtrain.inspecting.matrices import MatrixReport
from streamtrain.judged import MOST, Judged
from streamtrain.rounds import needed_room
from streamtrain.sources.base import Source
from streamtrain.targets import Target

# Rates of this package on two cores, from docs/figures.md.
# "How fast", reading all cells once, cold, of 2,550 entries a cell: from a gzipped .h5ad, and from
# a collection in zarr.
GZIP_ENTRIES, ENTRIES = 53_039 * 2_550, 79_858 * 2_550
# "How fast", SGD steps: cells a second at 2, 10, 100 and 400 classes are 270,182, 109,146, 31,498
# and 8,621: nearly so many units of time a cell.
_STEP, _STEP_CLASS = 6.5, 0.27
# "The recipe": 127 s of CPU time, of two cores, for 42,000 cells and 50 types, of 2,550 entries.
_RECIPE, _RECIPE_TYPES, _RECIPE_ENTRIES = 127 / 2, 50, 2_550
_LEAST_ENTRIES = 200  # of a cell, below which other work takes the time
# "How fast", logistic regression: 4.1, 4.7 and 6.3 s for 78, 68 and 78 million entries times
# types; "Text": 45 s for 1,700 million.
_LOGISTIC = 0.045e-6
_LOGISTIC_FIRST = 1.5  # s
_FIRST, _FEWEST = 1 << 14, 64  # cells of a first block, at most and at least
_UNLIKE = 1.5  # first cells may have so many times the entries of all, where that is not known
_ROUND = 10**7  # bytes to which memory is rounded up
_MOST = 1 << 60  # a budget in which all fits
_LEAST = 16 * 10**6  # bytes for cells, of `room_for_cells`


@dataclass(frozen=True, slots=True)
class Needs:
    """What training takes, in one way.

    Attributes
    ----------
    way
        "recipe atlas" or "defaults".
    memory
        Least `--memory`, bytes.
    kept
        Bytes of cells that training keeps: in memory where they fit into about half of what is left
        there, else on scratch.
    scratch
        Most bytes on scratch.
    reading, training
        Seconds on two cores, about.
    """

    way: str
    memory: int
    kept: int
    scratch: int
    reading: float
    training: float


def needs_of(
    source: Source, cells: Cells, matrix: MatrixReport, entries: float, group: str | None
) -> list[Needs]:
    """What the recipe and plain defaults take.

    Parameters
    ----------
    matrix
        That is read.
    entries
        Of a cell that are not zero, about.
    group
        Column of donors by which the recipe holds out.
    """
    recipe = Settings.from_keywords({"recipe": "atlas", "validation_groups": group})
    return [
        _needs("recipe atlas", source, cells, matrix, entries, recipe),
        _needs("defaults", source, cells, matrix, entries, Settings()),
    ]


def _needs(
    way: str, source: Source, cells: Cells, matrix: MatrixReport, entries: float, config: Settings
) -> Needs:
    n_obs, n_classes = cells.n_obs, len(cells.classes)
    folds = judged = None
    if config.folds is not None:  # as many as there may be
        m = min(MOST, n_obs)
        judged = Judged(
            np.zeros(m, np.int64), np.zeros(m, np.int32), np.zeros(m, np.uint8), np.zeros(m),
            n_classes,
        )  # fmt: skip
        folds = Folds(np.zeros(0, np.uint8), config.folds, config.validation_groups)
    target = Target("", cells, cells, None, folds, judged)
    fixed = _MOST - room_for_cells(_MOST, 0, source, [target], config)
    entry = np.dtype(config.dtype).itemsize + (2 if source.n_vars <= 2**16 else 4)
    cell = max(1.0, entries) * entry
    room = _LEAST
    if config.trains_sgd:  # whose batches are judged by the first cells that are read
        first = entry * _first_entries(source, entries)
        while needed_room(config, room, first, entry) > room:
            room = int(1.1 * room)
    taken = n_obs
    if config.use_SGD and config.mini_batch:
        drawn = config.batch_number * config.batch_size * config.epochs
        taken = min(n_obs, drawn + (0 if judged is None else len(judged.at)))
    kept = int(taken * cell)
    copies = 1 + (not config.use_SGD)
    scratch = kept * copies + _transposed(matrix)
    if config.use_SGD:
        step = _STEP + _STEP_CLASS * n_classes
        training = _RECIPE * step / (_STEP + _STEP_CLASS * _RECIPE_TYPES)
        training *= max(entries, _LEAST_ENTRIES) / _RECIPE_ENTRIES
    else:
        training = _LOGISTIC_FIRST + _LOGISTIC * n_obs * entries * n_classes
    memory = -(-(fixed + room) // _ROUND) * _ROUND
    return Needs(way, memory, kept, scratch, _reading(source, matrix, entries), training)


def _first_entries(source: Source, entries: float) -> float:
    """Entries of a cell in the first block, which may be of any size: at most so many."""
    lengths = getattr(source, "lengths", None)
    found = None if lengths is None else lengths(0, min(source.n_obs, _FIRST))
    if found is None or len(found) == 0:
        return _UNLIKE * entries
    means = np.cumsum(found) / np.arange(1, len(found) + 1)
    return max(entries, float(means[min(_FEWEST, len(means)) - 1 :].max()))


def _transposed(matrix: MatrixReport) -> int:
    """Bytes on scratch of a matrix that is stored by gene, as `CscMatrix` takes them."""
    if matrix.encoding != "csc":
        return 0
    return matrix.entries * (8 + np.dtype(matrix.dtype).itemsize) + 8 * (matrix.n_obs + 1)


def _reading(source: Source, matrix: MatrixReport, entries: float) -> float:
    """Seconds to read all cells; by gene, to read, write and read them once more."""
    if matrix.read_seconds is not None:
        return source.n_obs * matrix.read_seconds
    rate = GZIP_ENTRIES if "gzip" in matrix.codecs or "zlib" in matrix.codecs else ENTRIES
    share = 2 / min(2, os.cpu_count() or 1)
    return source.n_obs * entries / rate * share * (3 if matrix.encoding == "csc" else 1)
