"""A model and a query's own expression enter; the scaling that suits the query leaves, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.model import Model
from streamtrain.rows import Rows
from streamtrain.scaling import RunningMoments, constant_genes, standard_deviation
from streamtrain.scoring import Part, Scaling, Scorer
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

Adapt = Literal["none", "genes", "auto"]
FEWEST = {"genes": 50, "auto": 300}  # cells whose mean and standard deviation say something
SAMPLE = 4096  # cells that the evidence is taken of
WAYS = (0.5, 1.0)  # how far "auto" may go to the query's moments
# Chosen on 28 pairs of studies of blood and pancreas: asked for evidence of anything from 0.065 to
# 0.095, "auto" lost 0.004 of macro-F1 at most. Evidence of going the whole way at once is worse: it
# was 0.05 to 0.15 for pairs that gained and for others that lost 0.02.
SHARPNESS, MARGIN_WEIGHT, ENOUGH = 2.0, 0.5, 0.08

Sampled = Callable[[Part, int], Iterator[Rows]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much predictions say of the cells, without the query's own scaling and with it.

    Attributes
    ----------
    information
        Mutual information of cell and cell type in nats, before and after; see `information`.
    margin
        Lead of the best type, before and after; see `margin`.
    """

    information: tuple[float, float]
    margin: tuple[float, float]

    @classmethod
    def of(cls, before: NDArray[np.float64], after: NDArray[np.float64]) -> Evidence:
        """Compare the scores of the same cells, both (n_obs, n_types)."""
        unit = float(after.std(axis=1).mean()) or 1.0
        return cls(
            (information(before, unit), information(after, unit)), (margin(before), margin(after))
        )

    @property
    def value(self) -> float:
        """What the information gained plus half of what the margin did."""
        gained, wider = (b - a for a, b in (self.information, self.margin))
        return gained + MARGIN_WEIGHT * wider

    @property
    def enough(self) -> bool:
        """Whether it speaks for the query's own scaling.

        The margin may not fall: centred, cells of one type spread over all types, which looks like
        information, with half the lead.
        """
        told = self.information[1] > 0  # nothing is where no gene varies, and margins are constant
        return told and self.value > ENOUGH and self.margin[1] >= self.margin[0]

    def __str__(self) -> str:
        told, led = ("{:.2f} -> {:.2f}".format(*pair) for pair in (self.information, self.margin))
        return f"information {told} and margin {led}: evidence {self.value:+.2f}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done to the cells of a part.

    Attributes
    ----------
    adapted
        Whether they are scaled by their own expression.
    reason
        Why, in words.
    n_obs
        Number of cells.
    evidence
        What speaks for it; None where none was needed or taken.
    way
        How far towards it: 0 where they are not, 0.5 half-way, 1 wholly.
    """

    adapted: bool
    reason: str
    n_obs: int
    evidence: float | None = None
    way: float = 0.0


def information(scores: NDArray[np.float64], unit: float) -> float:
    """Mutual information of cell and cell type under softmax(2 score / unit), in nats.

    The entropy of the mean prediction less the mean entropy of a prediction: high where each cell
    is of one type surely, and not all are of the same. Of Bridle, Heading and MacKay (1991). The
    unit makes scores of any scale comparable: CellTypist's reach hundreds.
    """
    logits = scores * (SHARPNESS / unit)
    logits -= logits.max(axis=1, keepdims=True)
    share = np.exp(logits)
    total = share.sum(axis=1, keepdims=True)
    share /= total
    entropy = np.log(total[:, 0]) - (share * logits).sum(axis=1)
    mean = share.mean(axis=0)
    of_mean = -np.sum(mean[mean > 0] * np.log(mean[mean > 0]))
    return float(of_mean - entropy.mean())


def margin(scores: NDArray[np.float64]) -> float:
    """Lead of a cell's best type over the next, in standard deviations of its scores; the mean."""
    best = np.partition(scores, -2, axis=1)[:, -2:]
    spread = scores.std(axis=1)
    lead = (best[:, 1] - best[:, 0]) / np.where(spread > 0, spread, 1.0)
    return float(lead.mean())


def own_scaling(
    model: Model, part: Part, moments: RunningMoments, of_mean: float, of_deviation: float
) -> Scaling:
    """Scale genes by moments between those of the training cells and the query's.

    A gene that does not vary in the query keeps the training cells' standard deviation: centred by
    its own mean, it contributes nothing.

    Parameters
    ----------
    moments
        Of all genes of the source over the cells of the part.
    of_mean
        Share of the query's mean: 1 for it alone.
    of_deviation
        Power of the query's standard deviation, the rest to 1 being that of the training cells': 1
        for it alone, 0.5 for the geometric mean.
    """
    trained = Scaling.of(model)
    mean, scale = trained.mean.copy(), trained.scale.copy()
    shared = np.flatnonzero(part.at >= 0)
    own = moments.take(part.at[shared])
    mean[shared] += of_mean * (own.mean - mean[shared])
    mixed = standard_deviation(own) ** of_deviation * scale[shared] ** (1 - of_deviation)
    scale[shared] = np.where(constant_genes(own), scale[shared], mixed)
    return Scaling(mean, scale)


def adapt_parts(
    how: Literal["genes", "auto"],
    model: Model,
    parts: Sequence[Part],
    n_vars: int,
    moments: Iterable[tuple[int, RunningMoments]],
    sampled: Sampled,
    threads: Threads,
) -> tuple[list[Scaling | None], dict[str, dict[str, Any]]]:
    """Choose what the cells of each part are scaled by, and tell of it.

    Parameters
    ----------
    how
        "genes" scales by the query's own mean and standard deviation. "auto" goes half-way towards
        the query's mean and the geometric mean of both standard deviations where the predictions
        then say more of the cells (see `Evidence`), the whole way where they then say still more,
        and else scales as the model does.
    n_vars
        Number of genes of the source.
    moments
        Of each part that has cells, with its place; asked for where they are needed.
    sampled
        Gives cells of a part, evenly spaced, at most as many as asked for.

    Returns
    -------
    list
        A `Scaling` for each part, None for the model's own.
    dict
        A `Decision` as a dict for each part with cells, by its name.

    Raises
    ------
    InputError
        If "genes" is asked for and a part has too few cells.
    """
    for part in parts:
        if how == "genes" and 0 < part.n_obs < FEWEST[how]:
            raise InputError(
                f"{part.name}: adapt='genes' takes mean and standard deviation of {FEWEST[how]} "
                f"cells at least, and there are {part.n_obs}: leave out adapt (--adapt)"
            )
    refused = [_refusal(how, model, part) for part in parts]
    own: list[list[Scaling]] = [[] for _ in parts]
    if not all(refused):
        amounts = ((1.0, 1.0),) if how == "genes" else tuple((way, way / 2) for way in WAYS)
        for i, seen in moments:
            own[i] = [own_scaling(model, parts[i], seen, *amount) for amount in amounts]
    found: list[Scaling | None] = [None] * len(parts)
    decisions: dict[str, dict[str, Any]] = {}
    for i, part in enumerate(parts):
        if part.n_obs == 0:
            continue
        if refused[i]:
            decision = Decision(False, refused[i], part.n_obs)
        elif how == "genes":
            decision = _by_genes(model, part)
        else:
            decision = _by_evidence(model, part, own[i], n_vars, sampled, threads)
        if decision.adapted:
            found[i] = own[i][-1] if decision.way == 1 else own[i][0]
        word = "adapted" if decision.adapted else "not adapted"
        # Not asked for outright, it is told of even where only warnings are.
        level = logging.WARNING if how == "auto" and decision.adapted else logging.INFO
        logger.log(level, "%s: %s: %s", part.name, word, decision.reason)
        decisions[part.name] = asdict(decision)
    return found, decisions


def kept_bytes(how: Adapt, model: Model, n_parts: int) -> int:
    """Bytes that adapting holds beside what prediction does."""
    if how == "none":
        return 0
    n_types, n_genes = model.dataset["coef"].shape
    evidence = 8 * n_types * 8 * SAMPLE if how == "auto" else 0
    return 16 * n_genes * n_parts * (len(WAYS) if how == "auto" else 1) + evidence


def _refusal(how: str, model: Model, part: Part) -> str:
    """Why "auto" leaves the cells of a part as they are, without a look at them; "" if not so."""
    if how == "auto" and not model.dataset.attrs["with_mean"]:
        return "the model does not centre genes (with_mean=False)"
    if how == "auto" and part.n_obs < FEWEST[how]:
        return f"it takes {FEWEST[how]} cells, and there are {part.n_obs}"
    return ""


def _by_genes(model: Model, part: Part) -> Decision:
    centred = bool(model.dataset.attrs["with_mean"])
    by = "mean and standard deviation" if centred else "standard deviation (no gene is centred)"
    reason = f"genes scaled by the {by} of its own {part.n_obs:,} cells"
    return Decision(True, reason, part.n_obs, way=1.0)


def _by_evidence(
    model: Model, part: Part, own: list[Scaling], n_vars: int, sampled: Sampled, threads: Threads
) -> Decision:
    """Whether predictions say more of the cells half-way to the query's scaling, or all the way."""
    scorer = Scorer(model, part.at, n_vars, threads)
    scorers = [scorer, *(scorer.rescaled(scaling) for scaling in own)]
    blocks = [[score(rows) for score in scorers] for rows in sampled(part, SAMPLE)]
    none, half, whole = (np.concatenate(scores) for scores in zip(*blocks, strict=True))
    found, way = Evidence.of(none, half), 0.0
    reason = f"scaled half-way to its own expression, predictions have {found}"
    reason += f", and it takes more than {ENOUGH} and no smaller margin"
    if found.enough:
        further, way = Evidence.of(half, whole), 0.5
        if further.value > 0 and further.margin[1] >= found.margin[0]:
            way = 1.0
        word = "goes" if way == 1 else "does not go"
        reason += f"; it {word} all the way, at {further}"
    return Decision(found.enough, reason, part.n_obs, found.value, way)
