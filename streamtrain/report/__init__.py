"""A model and, where they are given, labelled cells enter; one HTML page on them leaves."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streamtrain.atomic import check_output, replacing
from streamtrain.cells import Labels
from streamtrain.config import require_number
from streamtrain.errors import InputError
from streamtrain.evaluate_model import ModelEvaluation, evaluate_model
from streamtrain.inspecting.model import Inspection, inspect_model
from streamtrain.model import Model
from streamtrain.plot.figures import save_figure
from streamtrain.progress import stage
from streamtrain.querying import keep_inputs, model_of
from streamtrain.report import made, scored
from streamtrain.report.expression import MarkerExpression, marker_expression
from streamtrain.report.page import Page, Section

__all__ = ["MarkerExpression", "marker_expression", "report"]

# What evaluate_model takes of cells, and what going over them alone takes of it.
_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(evaluate_model).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("out", "overwrite")
}
_READING = (
    "drop_unlabeled", "normalize", "check_expression", "layer", "gene_key", "transpose_input",
    "memory", "scratch", "n_jobs", "progress", "storage_options",
)  # fmt: skip
_FIGURES = (
    "training_curve", "class_balance", "confusion_matrix", "f1_by_type", "calibration_curve",
    "probability_histogram", "markers_dotplot", "markers_heatmap",
)  # fmt: skip


def report(
    model: Model | str | os.PathLike[str],
    X: Any = None,
    labels: Labels | None = None,
    genes: Any = None,
    *,
    out: str | os.PathLike[str],
    evaluation: ModelEvaluation | None = None,
    markers: int = 5,
    figures: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    title: str | None = None,
    **options: Any,
) -> Path:
    """Write one HTML page on a model: how it was trained, from what, and how well it calls cells.

    The page needs no network, no JavaScript and no other file; figures are in it as SVG. It prints
    on A4. Cells are streamed, once to evaluate and once, by this process also where a client
    evaluates, for the expression of marker genes, of which sums for each type are kept.

    Parameters
    ----------
    model
        The classifier, or its path; of a path the page has the checksum.
    X, labels, genes
        Labelled cells, as in `evaluate_model`. Without them the page has what the model alone
        tells: its training, class balance, coefficients, settings and provenance.
    out
        Where the page shall stand, ending in .html.
    evaluation
        What `evaluate_model` gave of this model, in place of evaluating anew; with X and labels
        given as well, the cells that it took are gone over for the marker genes.
    markers
        Genes of each type, those of the highest coefficients. Figures have fewer of many types:
        150 genes in all, or one of each type where that is more.
    figures
        Folder for the same figures as PNG; made where there is none.
    overwrite
        Whether files that stand there are replaced.
    title
        Heading of the page; by default the name of the model's file.
    **options
        Which cells to take and how to read them: all that `evaluate_model` takes by name, but for
        `out`.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If the model, cells or labels cannot be used, an option does not apply, or the page or a
        figure cannot be written.
    FileNotFoundError
        If X or the model does not exist.
    TypeError
        If there is no such option.
    """
    require_number("markers", markers, 1, whole=True)
    _check_title(title)
    _check_cells(X, labels, genes, evaluation, options)
    target = _check_out(out, figures, overwrite)
    read = {"X": X, "model": model, "genes": genes, "labels": labels}
    read["parents"] = options.get("parents")
    keep_inputs(out, read)
    inspection = None if isinstance(model, Model) else inspect_model(model)
    model = model_of(model)
    if X is not None and labels is not None:
        if evaluation is None:
            evaluation = evaluate_model(model, X, labels, genes, **options)
        expression = _expression(model, X, labels, genes, evaluation, markers, options)
    else:
        expression = None
    told = _Told(model, inspection, evaluation, expression, markers, title)
    page = _page(told, progress=options.get("progress", True))
    _write_figures(page, figures, overwrite)
    with replacing(out, overwrite, folder=False) as partial:
        partial.write_text(page.html(), encoding="utf-8")
    return target


@dataclass(frozen=True)
class _Told:
    """What a page can be made of."""

    model: Model
    inspection: Inspection | None
    evaluation: ModelEvaluation | None
    expression: MarkerExpression | None
    markers: int
    title: str | None


def _page(told: _Told, *, progress: bool) -> Page:
    model, evaluation = told.model, told.evaluation
    makers: list[Callable[[], Section | None]] = []
    absent: list[tuple[str, str]] = []
    if evaluation is None:
        absent.append(
            (
                "Scores, confusions, calibration and expression of markers",
                "pass labelled cells, X and labels (SOURCE and --labels).",
            )
        )
    else:
        made_of = (scored.scores, scored.per_type, scored.confusions, scored.calibration)
        makers += [partial(make, evaluation) for make in made_of]
        if told.expression is None:
            absent.append(
                ("Expression of markers", "pass X and labels, too (SOURCE and --labels).")
            )
    makers += [
        partial(made.markers, model, told.markers, told.expression),
        partial(made.training, model),
        partial(made.balance, model),
        partial(made.settings, model),
        partial(made.provenance, model, told.inspection),
    ]
    sections: list[Section | None] = []
    with stage("Drawing", len(makers), " sections", show=progress) as bar:
        for make in makers:
            sections.append(make())
            bar.update()
    for name, section in zip(("Training curve", "Class balance"), sections[-4:-2], strict=True):
        if section is None:
            absent.append((name, "the model has kept nothing of it; train it by streamtrain."))
    day = datetime.now().strftime("%Y-%m-%d")
    return Page(
        title=told.title or _named(told.inspection),
        lead=made.lead(model),
        scores=_headline(model, evaluation),
        sections=[section for section in sections if section is not None],
        absent=absent,
        footer=f"Written by streamtrain {version('streamtrain')} on {day}.",
    )


def _named(inspection: Inspection | None) -> str:
    return "Cell-type model" if inspection is None else Path(inspection.path).name


def _headline(model: Model, evaluation: ModelEvaluation | None) -> list[tuple[str, str]]:
    sizes = [("cell types", f"{len(model.cell_types):,}"), ("genes", f"{len(model.features):,}")]
    if evaluation is None:
        n = model.provenance.get("n_cells")
        return sizes + ([("cells trained on", f"{n:,}")] if isinstance(n, int) else [])
    return [
        ("macro F1", f"{evaluation.macro_f1:.3f}"),
        ("accuracy", f"{evaluation.accuracy:.3f}"),
        ("balanced accuracy", f"{evaluation.balanced_accuracy:.3f}"),
        ("calibration error", f"{scored.calibration_error(evaluation):.3f}"),
        ("cells evaluated", f"{evaluation.n_cells:,}"),
        *sizes,
    ]


def _expression(
    model: Model,
    X: Any,
    labels: Labels,
    genes: Any,
    evaluation: ModelEvaluation,
    markers: int,
    options: Mapping[str, Any],
) -> MarkerExpression:
    wanted = made.drawn_markers(model, markers, list(evaluation.per_type.index))
    reading = {name: options[name] for name in _READING if name in options}
    return marker_expression(X, labels, wanted, genes, where=evaluation.cells["where"], **reading)


def _check_title(title: Any) -> None:
    if title is not None and not (isinstance(title, str) and title.strip()):
        raise InputError(f"title must be a text (--title); got {title!r}")


def _check_cells(
    X: Any, labels: Any, genes: Any, evaluation: Any, options: Mapping[str, Any]
) -> None:
    """Refuse options that nothing would be done by."""
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"report() got an unexpected keyword argument {name!r}")
    if (X is None) != (labels is None):
        given, lacking = ("labels", "X") if X is None else ("X", "labels")
        raise InputError(
            f"cells are evaluated by their labels, and {lacking} is not given: pass it, too "
            f"({'SOURCE' if X is None else '--labels'}), or leave out {given}"
        )
    if evaluation is not None and not isinstance(evaluation, ModelEvaluation):
        raise InputError(f"evaluation must be what evaluate_model gave; got {evaluation!r:.80}")
    given_options = [n for n, v in options.items() if n != "progress" and not _is_default(n, v)]
    alone = given_options + ["genes"] * (genes is not None)
    if X is None and alone:
        raise InputError(
            f"{alone[0]} is of cells to evaluate: pass X and labels (SOURCE and --labels), "
            "or leave it out"
        )
    of_evaluating = [n for n in given_options if n not in _READING]
    if evaluation is not None and of_evaluating:
        raise InputError(
            f"{of_evaluating[0]} is of evaluating, and evaluation is given: leave one of them out"
        )


def _is_default(name: str, value: Any) -> bool:
    default = _OPTIONS[name]
    return value is default or (isinstance(value, (str, int, float)) and value == default)


def _check_out(
    out: str | os.PathLike[str], figures: str | os.PathLike[str] | None, overwrite: bool
) -> Path:
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out must end in .html (--out); got {str(out)!r}")
    target = check_output(out, overwrite, folder=False)
    if figures is not None:
        folder = Path(figures).expanduser()
        if folder.resolve() == target.resolve():
            raise InputError(
                f"figures={str(figures)!r} is the page itself: name a folder for pictures "
                "(--figures)"
            )
        if any((folder / mark).exists() for mark in ("zarr.json", ".zgroup", ".zattrs")):
            raise InputError(
                f"figures={str(figures)!r} is a zarr store: name a folder for pictures (--figures)"
            )
        if not folder.is_dir():
            check_output(folder, overwrite, folder=True)
        else:
            for name in _FIGURES:
                check_output(folder / f"{name}.png", overwrite, folder=False)
    return target


def _write_figures(page: Page, figures: str | os.PathLike[str] | None, overwrite: bool) -> None:
    if figures is None:
        return
    folder = Path(figures).expanduser()
    folder.mkdir(exist_ok=True)
    for section in page.sections:
        for picture in section.pictures:
            save_figure(picture.figure, folder / f"{picture.name}.png", overwrite=overwrite)
