"""A model enters; the sections on what it is, how it was trained and from what leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamtrain.config import Settings
from streamtrain.errors import some
from streamtrain.inspecting.model import Inspection
from streamtrain.model import Model
from streamtrain.plot.curves import QUANTITIES, history_of, training_curve
from streamtrain.plot.figures import new_figure
from streamtrain.plot.markers import marker_genes, markers_dotplot, markers_heatmap, per_type
from streamtrain.plot.types import class_balance
from streamtrain.report.expression import MarkerExpression
from streamtrain.report.page import Picture, Section, facts, heading, paragraph, table
from streamtrain.report.scored import figure_of

_APART = ("history", "cross_validation", "held_out", "sources")  # have a table or a sentence
_OF_THE_RUN = ("date", "details", "url", "source", "version", "verbose")
_MOST = 600  # letters of a value


def solver(model: Model) -> str:
    """Word how the model was trained."""
    settings = model.settings
    if not settings.get("use_SGD"):
        return f"logistic regression ({settings.get('solver') or 'lbfgs'})"
    return "SGD over mini-batches" if settings.get("mini_batch") else "SGD over whole epochs"


def lead(model: Model) -> list[str]:
    """Say in a sentence what the model is, and what its author says of it."""
    n_cells = model.provenance.get("n_cells")
    of = f" on {n_cells:,} cells" if isinstance(n_cells, int) else ""
    day = str(model.provenance.get("trained") or model.description["date"])[:10]
    first = (
        f"A classifier of {len(model.cell_types):,} cell types by the expression of "
        f"{len(model.features):,} genes, trained{of} by {solver(model)}"
        f"{f' on {day}' if day else ''}."
    )
    if model.calibration is not None:
        first += " Its probabilities are calibrated by held-out cells."
    return [first, *([str(model.description["details"])] if model.description["details"] else [])]


def training(model: Model) -> Section | None:
    """Curves over epochs or passes; None where the model has no history."""
    history = history_of(model)
    if history is None:
        return None
    section = Section("training", "Training")
    known = list(history.columns)
    tall = -(-len(known) // 2)
    wide = min(2, len(known))
    figure = new_figure(4.3 * wide, 2.4 * tall)
    panels = figure.subplots(tall, wide, squeeze=False).ravel()
    for panel, name in zip(panels, known, strict=False):
        training_curve(model, panel, quantity=name)
    for panel in panels[len(known) :]:
        panel.remove()
    ends = ", ".join(f"{QUANTITIES[name]} {history[name].dropna().iloc[-1]:.4g}" for name in known)
    unit = {"epoch": "epochs", "pass": "passes"}.get(str(history.index.name), "steps")
    section.draw(
        Picture(
            "training_curve",
            figure,
            f"Training over {history.index[-1]:,} {unit}; at the end: {ends}.",
            "Numbers are those at the end. The loss is the mean over cells and types, each cell's "
            "before its own step, without the penalty."
            if "loss" in known
            else "Numbers are those at the end.",
        )
    )
    return section


def balance(model: Model) -> Section | None:
    """Cells of each type; None where the model does not know them."""
    data = model.dataset
    if "n_cells" not in data:
        return None
    section = Section("balance", "Class balance")
    n = data["n_cells"].to_numpy()
    rare, common = model.cell_types[n.argmin()], model.cell_types[n.argmax()]
    drawn = "n_drawn" in data
    section.draw(
        Picture(
            "class_balance",
            figure_of(class_balance(model)),
            f"Cells of each of {len(n)} types: from {n.min():,} ({rare}) to {n.max():,} "
            f"({common}){', beside those drawn by SGD' if drawn else ''}.",
            "Cells of each type that training had, on a logarithmic axis"
            + (", beside how many SGD drew in all its epochs." if drawn else "."),
        )
    )
    return section


def markers(model: Model, n: int, expression: MarkerExpression | None) -> Section:
    """The genes that drive each type's score: expression where it is known, else coefficients."""
    section = Section("markers", "Marker genes")
    types = model.cell_types
    if expression is None or expression.share.empty:
        shown = per_type(len(types), n)
        section.draw(
            Picture(
                "markers_heatmap",
                figure_of(markers_heatmap(model, markers=n)),
                f"Coefficients of the top {shown} genes of each of {len(types)} cell types.",
                "Coefficients: purple lowers the type's score, orange raises it. Genes stand in "
                "the order of their types.",
            )
        )
    else:
        genes = expression.share.shape[1]
        section.draw(
            Picture(
                "markers_dotplot",
                figure_of(markers_dotplot(expression)),
                f"Expression of {genes} marker genes in {len(expression.share)} cell types.",
                "The area of a dot is the share of the type's cells that express the gene, its "
                "colour their mean expression, as a share of the gene's highest.",
            )
        )
    if expression is not None and expression.absent:
        section.add(paragraph("Not among the genes of these cells: " + some(expression.absent, 20)))
    rows = [[str(t), ", ".join(map(str, model.extract_top_markers(t, n)))] for t in types]
    section.add(
        table(
            f"Genes of the highest coefficients, {n} of each type",
            ["cell type", "genes"],
            rows,
            fold=True,
        )
    )
    return section


def drawn_markers(model: Model, n: int, types: Sequence[str]) -> list[str]:
    """Genes of a dot plot: those of the types that have cells, of all where none has."""
    there = np.isin(model.cell_types, np.array(types, object))
    return marker_genes(model, model.cell_types[there if there.any() else ~there], n)


def settings(model: Model) -> Section:
    """What was asked for, and what was left at its default."""
    section = Section("settings", "Settings")
    defaults = {name: f.default for name, f in Settings.__dataclass_fields__.items()}
    given = {k: v for k, v in model.settings.items() if k not in _OF_THE_RUN}
    own = {k: v for k, v in given.items() if k not in defaults or defaults[k] != v}
    section.add(facts((k, word(v)) for k, v in own.items()))
    rest = ", ".join(f"{k}={word(v)}" for k, v in given.items() if k not in own)
    if rest:
        section.add(paragraph(f"At their defaults: {rest}.", soft=True))
    tried = model.provenance.get("cross_validation")
    if tried:
        section.add(heading("Cross-validation"), _records("Trials, the best first", tried))
    return section


def provenance(model: Model, inspection: Inspection | None) -> Section:
    """What the model was made from, and by what it is known again."""
    section = Section("provenance", "Provenance")
    told = model.provenance
    said = {k: v for k, v in model.description.items() if v != "" and k != "details"}
    said.pop("number_celltypes")
    said |= {k: v for k, v in told.items() if k not in _APART}
    section.add(facts([*_file(inspection), *((k, word(v)) for k, v in said.items())]))
    if told.get("sources"):
        section.add(_records("Sources", told["sources"]))
    held = told.get("held_out")
    if isinstance(held, Mapping):
        section.add(heading("Held out of training"), facts((k, word(v)) for k, v in held.items()))
    return section


def _file(inspection: Inspection | None) -> list[tuple[str, str]]:
    if inspection is None:
        return []
    version = inspection.format_version
    kind = inspection.kind + ("" if version is None else f", format version {version}")
    how = "of the file" if inspection.verified == "nothing" else f"{inspection.verified} verified"
    return [
        ("file", inspection.path), ("kind", kind), ("SHA-256", f"{inspection.checksum} ({how})")
    ]  # fmt: skip


def word(value: Any) -> str:
    """Word a value of settings or provenance on a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {word(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(word, value))
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    words = f"{value:.6g}" if isinstance(value, float) else str(value)
    return words if len(words) <= _MOST else f"{words[:_MOST]} ..."


def _records(caption: str, rows: Any) -> str:
    """A table of dicts; what is chosen among them stands out. Of other values their words."""
    if not (isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows)):
        return facts([(caption, word(rows))])
    head = list(dict.fromkeys(str(k) for row in rows for k in row))
    chosen = [i for i, row in enumerate(rows) if row.get("chosen") is True]
    shown = [[_cell(row.get(name, "")) for name in head] for row in rows]
    return table(caption, head, shown, chosen=chosen[0] if chosen else None)


def _cell(value: Any) -> Any:
    """Whole numbers as they are, for their column; else words."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(f"{v:.3f}" if isinstance(v, float) else word(v) for v in value)
    return {True: "yes", False: ""}.get(value, "") if isinstance(value, bool) else word(value)
