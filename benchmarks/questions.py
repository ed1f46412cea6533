"""Names of questions in; out come the cells to annotate and those to learn from, of real sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from benchmarks.atlases import DONOR, LABEL
from benchmarks.contenders.split import STUDY
from streamtrain.errors import InputError, near

SIMULATED = "simulated"
DONORS, CONDITIONS, STUDIES, PAIRS = KINDS = ("donors", "conditions", "studies", "pairs")


@dataclass(frozen=True)
class Question:
    """Which cells to annotate, and which to learn that from.

    Attributes
    ----------
    kind
        "donors" (or libraries), "conditions", "studies", or "pairs" of studies: few cells of one
        to learn from, asked for what adaptation is worth, not of CellTypist.
    files
        Names of files in the data folder; several are joined on their common genes.
    group
        obs column of what is held out; "study" is the file.
    held_out
        The groups to annotate; by default a quarter of them, drawn once.
    label
        obs column of the cell types. `cell_type_coarse` names alike what the PBMC sets name each
        in its own way, and pools the FACS sorts of CD4 and of CD8 T cells.
    inner
        obs column of the groups that a recipe may hold out within the cells to learn from; None
        where these are of one library.
    trained_on
        The groups to learn from; by default all that are not held out.
    """

    kind: str
    files: tuple[str, ...]
    group: str
    held_out: tuple[str, ...] = ()
    label: str = LABEL
    inner: str | None = None
    trained_on: tuple[str, ...] = ()


_PANCREAS, _MAMMARY, _IFN = ("pancreas_4studies",), ("mouse_mammary_mca",), ("pbmc_kang_ifnb",)
_STUDIES = {
    name.split()[0]: name
    for name in (
        "Muraro et al. 2016", "Tritschler et al. 2022", "Fasolino et al. 2022", "Tosti et al. 2021",
    )
}  # fmt: skip
_PBMC = {  # file, and the column of its libraries or donors
    "3k": ("pbmc3k", None),
    "FACS": ("pbmc_zheng_facs", None),
    "10x": ("pbmc_10x_4k8k", "batch"),
    "IFN-beta": ("pbmc_kang_ifnb", "donor"),
}


def _donors(file: str, column: str) -> Question:
    return Question(DONORS, (file,), column, inner=column)


def _pancreas_pair(one: str, other: str) -> Question:
    held_out, trained_on = (_STUDIES[other],), (_STUDIES[one],)
    return Question(PAIRS, _PANCREAS, "batch", held_out, inner="donor", trained_on=trained_on)


def _pbmc_pair(one: str, other: str) -> Question:
    (here, inner), (there, _) = _PBMC[one], _PBMC[other]
    return Question(STUDIES, (here, there), STUDY, (there,), "cell_type_coarse", inner)


# Those that take least time first.
QUESTIONS = {
    "bone marrow, mouse": _donors("mouse_bm_paul15", "batch"),
    "mammary gland, mouse": _donors("mouse_mammary_mca", "batch"),
    "mammary gland, mouse, condition": Question(CONDITIONS, _MAMMARY, "condition", inner="batch"),
    "lung": _donors("lung_ts", "donor"),
    "BALF": _donors("balf_covid", "donor"),
    "pancreas": _donors("pancreas_4studies", "donor"),
    **{
        f"pancreas, study {name}": Question(STUDIES, _PANCREAS, "batch", (full,), inner="batch")
        for name, full in _STUDIES.items()
    },
    **{
        f"PBMC, {one} to {other}": _pbmc_pair(one, other)
        for one, other in permutations(_PBMC, 2)
        if one in ("3k", "FACS")
    },
    **{
        f"pancreas, {one} to {other}": _pancreas_pair(one, other)
        for one, other in permutations(_STUDIES, 2)
    },
    "PBMC, 10x": Question(DONORS, ("pbmc_10x_4k8k",), "batch"),
    "PBMC, control to stimulated": Question(
        CONDITIONS, _IFN, "condition", ("stim",), inner="donor"
    ),
    "PBMC, stimulated to control": Question(
        CONDITIONS, _IFN, "condition", ("ctrl",), inner="donor"
    ),
    **{
        f"PBMC, {one} to {other}": _pbmc_pair(one, other)
        for one, other in permutations(_PBMC, 2)
        if one not in ("3k", "FACS")
    },
    "PBMC, IFN-beta": _donors("pbmc_kang_ifnb", "donor"),
    "brain": _donors("brain_habib17", "batch"),
    SIMULATED: Question(DONORS, (SIMULATED,), DONOR, inner=DONOR),
}


def chosen(wanted: Sequence[str]) -> dict[str, Question]:
    """Pick questions by their names or kinds, or all on real cells; those of least time first.

    Raises
    ------
    InputError
        There is no such question.
    """
    known = (*KINDS, *QUESTIONS)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"sets: there is no {unknown[0]!r}: {near(unknown[0], known)}")
    wanted = wanted or KINDS
    return {
        name: question
        for name, question in QUESTIONS.items()
        if name in wanted or (question.kind in wanted and name != SIMULATED)
    }
