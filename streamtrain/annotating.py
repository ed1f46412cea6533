"""A source's cells and a model enter; in passes over the cells, moments and calls of them leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.annotations import Calls, JoinedLabels
from streamtrain.budget import BLOCK, READING_RESERVE, format_bytes
from streamtrain.calibration import probabilities as probabilities_of
from streamtrain.cells import expression_of
from streamtrain.errors import InputError
from streamtrain.expression import Expression, Normalize
from streamtrain.model import Model
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments
from streamtrain.scoring import Part, PartScorer, Scaling, part_at
from streamtrain.sources.base import Source
from streamtrain.streaming import sweep
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device

Detail = Literal["probabilities", "scores"] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores become labels and confidences.

    Attributes
    ----------
    p_thres
        Every type with a probability above it is in the label; None for the best type alone.
    detail
        What is kept of each type as well.
    temperature
        Of a calibrated model, else None.
    """

    p_thres: float | None
    detail: Detail
    temperature: float | None

    def joined(self, model: Model) -> JoinedLabels | None:
        """Labels of several types, none so far; None where the best type alone is asked for."""
        return None if self.p_thres is None else JoinedLabels(model.cell_types)


def annotate(
    scores: NDArray[np.float64], position: int, rule: Rule, joined: JoinedLabels | None
) -> Calls:
    """Turn scores, shape (n_obs, n_types), into labels and confidences.

    Parameters
    ----------
    position
        Of the first cell.
    joined
        The rule's, with the labels of the cells before.
    """
    probability = probabilities_of(scores, rule.temperature)
    if joined is None or rule.p_thres is None:
        codes = scores.argmax(axis=1).astype(np.int32)
    else:
        codes = joined.codes(probability > rule.p_thres)
    values = probability.max(axis=1, keepdims=True)
    if rule.detail is not None:
        more = probability if rule.detail == "probabilities" else scores
        values = np.concatenate([values, more], axis=1)
    return Calls(position, codes, values)


class Passes(Protocol):
    """What goes over the cells of a query."""

    def moments(self) -> Iterator[tuple[int, RunningMoments]]:
        """Moments of each part that has cells, with its place."""
        ...

    def calls(self, scalings: Sequence[Scaling | None] | None) -> Iterator[Calls]:
        """Annotate all cells, in order; each part scaled as said or, for None, as the model is."""
        ...


@dataclass
class Query:
    """Cells to annotate and how; a pass over them reads and normalises block after block.

    Attributes
    ----------
    source, rows
        The cells: row numbers, ascending, None for all.
    model, rule
        What annotates them.
    parts
        Cells that are annotated as by themselves.
    normalize, check_expression
        As of `predict`. The first pass checks.
    nbytes, most
        Bytes of a block of stored cells, and the most cells that one may hold.
    threads, progress
        What passes are done by, and whether their progress is shown.
    device
        The GPU that scores; None for the CPU.
    joined
        The rule's; labels enter as cells are annotated.
    """

    source: Source
    rows: NDArray[np.int64] | None
    model: Model
    rule: Rule
    parts: list[Part]
    normalize: Normalize
    check_expression: bool
    nbytes: int
    most: int
    threads: Threads
    progress: bool
    device: Device | None = None
    joined: JoinedLabels | None = field(init=False)
    _begun: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.joined = self.rule.joined(self.model)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)

    def begin(self) -> tuple[Expression, bool]:
        """Begin a pass: what normalises its cells, and whether it is the first, which is judged."""
        first, self._begun = not self._begun, True
        check: Literal["range"] | None = "range" if first and self.check_expression else None
        return self._expression(self.rows, check), first

    def _expression(
        self, rows: NDArray[np.int64] | None, check: Literal["range"] | None
    ) -> Expression:
        return expression_of(
            self.source, rows, normalize=self.normalize, dtype=np.float64, threads=self.threads,
            check=check,
        )  # fmt: skip

    def expressed(self, stage: str) -> Iterator[tuple[int, Rows]]:
        """Go over all cells: position of the first, and cells."""
        expression, first = self.begin()
        stored = sweep(self.source, self.rows, self.nbytes, self.most)
        for position, block in counted(stored, stage, self.n_obs, show=self.progress):
            yield position, expression(block, position)
        if first:
            expression.finish()

    def sampled(self, part: Part, n: int) -> Iterator[Rows]:
        """Cells of a part, evenly spaced, at most `n`."""
        n = min(n, part.n_obs)
        at = part.start + np.arange(n) * part.n_obs // n
        chosen = at if self.rows is None else self.rows[at]
        expression = self._expression(chosen, None)
        step = max(1, min(self.most, int(self.nbytes / (12 * self.source.cell_entries() + 1))))
        for start in range(0, n, step):
            yield expression(self.source.take(chosen[start : start + step]), start)

    def moments(self) -> Iterator[tuple[int, RunningMoments]]:
        """Moments of each part that has cells, with its place."""
        blocks = self.expressed("Reading")
        for i, cells in groupby(blocks, key=lambda block: part_at(self.parts, block[0])):
            taken = MomentsPass(self.source.n_vars, self.threads)
            for _, rows in cells:
                taken.update(rows)
            yield i, taken.result()

    def calls(self, scalings: Sequence[Scaling | None] | None) -> Iterator[Calls]:
        """Annotate all cells, in order; each part scaled as said or, for None, as the model is."""
        scorer = PartScorer(
            self.model, self.parts, self.source.n_vars, self.threads, scalings, self.device
        )
        for position, rows in self.expressed("Predicting"):
            yield annotate(scorer(rows, position), position, self.rule, self.joined)


def blocks_within(
    budget: int, model: Model, n_vars: int, details: bool, beside: int
) -> tuple[int, int]:
    """Bytes of a block of stored cells, and the most cells that one may hold.

    Half of what is left beside the weights goes to the cells: alive at a time are two blocks as
    stored and as read, and the normalised and scaled values in float64. The other half goes to
    what a cell gets, however sparse it is: scores and probabilities, a copy for the table and one
    for the file, its name and labels.

    Parameters
    ----------
    n_vars
        Number of genes of the source.
    details
        Whether a cell gets a number for each cell type.
    beside
        Bytes that are held beside.

    Raises
    ------
    InputError
        If the budget is too small for the model.
    """
    n_classes = len(model.cell_types)
    fixed = 2 * model.dataset["coef"].size * 8 + 12 * 8 * n_vars + READING_RESERVE + beside
    least = 8 * 10**6
    if budget < fixed + least:
        raise InputError(
            f"memory={format_bytes(budget)} is too small for this model: at least "
            f"{format_bytes(fixed + least)} are needed: raise it (--memory)"
        )
    room = (budget - fixed) // 2
    per_cell = 8 * n_classes * (8 if details else 4) + 500
    return min(room // 10, BLOCK), max(1, room // per_cell)
