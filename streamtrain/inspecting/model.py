"""The path of a model enters; what it is, holds and was made from leaves, to read or as JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from streamtrain.config import Settings
from streamtrain.history import History, index_of
from streamtrain.inspecting.shown import shown
from streamtrain.model import Model
from streamtrain.model_store import header

_PIECE = 1 << 24  # bytes hashed at a time
_NOT_SHOWN = ("date", "details", "url", "source", "version", "verbose")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model says of itself; printed it is a page of text.

    Attributes
    ----------
    path
        Where it stands.
    kind
        "streamtrain model" or "CellTypist model".
    format_version
        Of the store; None for CellTypist's pickles, which have none.
    checksum
        SHA-256: that of the content which `Model.save` stored, or that of the pickle's bytes.
    verified
        What was compared with a checksum: "content", the "arrays" alone in a store of format
        version 1, or "nothing" in a pickle.
    cell_types
        Names, in the order of the model, with the cells that each was trained on, where known.
    n_cells
        Cells that it was trained on, where known.
    genes
        Names, in the order of the model.
    solver
        How it was trained.
    converged
        Cell types whose optimum a solver certifies; None where it certifies nothing.
    calibration
        Fields of `Calibration`; None where probabilities are plain sigmoids.
    settings, provenance, description
        As in `Model`.
    """

    path: str
    kind: str
    format_version: int | None
    checksum: str
    verified: str
    cell_types: dict[str, int | None]
    n_cells: int | None
    genes: list[str]
    solver: str
    converged: int | None
    calibration: dict[str, float] | None
    settings: dict[str, Any]
    provenance: dict[str, Any]
    description: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def inspect_model(path: str | os.PathLike[str]) -> Inspection:
    """Read a model, verify it, and say what it is; see `streamtrain.inspect`."""
    found = Path(path).expanduser()
    model = Model.load(path)
    data = model.dataset
    types = model.cell_types.tolist()
    known = data["n_cells"].to_numpy().tolist() if "n_cells" in data else [None] * len(types)
    n_cells = model.provenance.get("n_cells")
    converged = int(data["converged"].sum()) if "converged" in data else None
    return Inspection(
        path=str(path),
        **(_of_store(found) if found.is_dir() else _of_pickle(found)),
        cell_types=dict(zip(types, known, strict=True)),
        n_cells=n_cells if isinstance(n_cells, int) else None,
        genes=model.features.tolist(),
        solver=_solver(model.settings),
        converged=converged,
        calibration=data.attrs.get("calibration"),
        settings=model.settings,
        provenance=model.provenance,
        description=model.description,
    )


def _of_store(folder: Path) -> dict[str, Any]:
    held = header(folder)
    version = held["format_version"]
    return {
        "kind": "streamtrain model",
        "format_version": version,
        "checksum": held["checksum"],
        "verified": "content" if version > 1 else "arrays",
    }


def _of_pickle(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(_PIECE):
            digest.update(part)
    return {
        "kind": "CellTypist model",
        "format_version": None,
        "checksum": digest.hexdigest(),
        "verified": "nothing",
    }


def _solver(settings: dict[str, Any]) -> str:
    if not settings.get("use_SGD"):
        return f"logistic regression ({settings.get('solver') or 'lbfgs'})"
    return "SGD over mini-batches" if settings.get("mini_batch") else "SGD"


def _lines(found: Inspection) -> Iterator[str]:
    version = "" if found.format_version is None else f", format version {found.format_version}"
    yield f"{found.kind}{version}: {shown(found.path)}"
    compared = f"{found.verified} verified" if found.verified != "nothing" else "of the file"
    yield f"SHA-256: {found.checksum} ({compared})"
    for key, value in found.description.items():
        if value != "" and key != "number_celltypes":
            yield f"{shown(key)}: {shown(value)}"
    yield f"solver: {found.solver}" + (
        "" if found.converged is None
        else f", converged for {found.converged} of {len(found.cell_types)} cell types"
    )  # fmt: skip
    if found.provenance.get("history") is not None:
        yield f"training: {_training(found.provenance['history'])}"
    if found.calibration is not None:
        yield "calibrated: " + _pairs(found.calibration)
    yield "settings: " + (_pairs(_set(found.settings)) or "defaults")
    yield from _made_from(found.provenance)
    first = ", ".join([*found.genes[:3], *["..."] * (len(found.genes) > 3)])
    yield f"genes: {len(found.genes)} ({shown(first)})"
    of = "" if found.n_cells is None else f", trained on {found.n_cells:,} cells"
    yield f"cell types: {len(found.cell_types)}{of}"
    names = [shown(name) for name in found.cell_types]
    wide = max(map(len, names))
    for name, n in zip(names, found.cell_types.values(), strict=True):
        yield f"    {name}" if n is None else f"    {name:<{wide}}  {n:>9,}"


def _training(history: History) -> str:
    """How training went: how long, from which loss or objective to which, how fast."""
    kind = index_of(history)
    n = history[kind][-1]
    several = {"epoch": "epochs", "pass": "passes"}[kind]
    words = [f"{n:,} {kind if n == 1 else several}"]
    for name in ("loss", "objective"):
        ends = [value for value in history.get(name, []) if value is not None]
        if ends:
            first, last = f"{ends[0]:.3g}", f"{ends[-1]:.3g}"
            words.append(f"{name} {last}" if len(ends) == 1 else f"{name} {first} to {last}")
    cells, seconds = (sum(x or 0 for x in history.get(key, [])) for key in ("n_cells", "seconds"))
    if cells and seconds:
        words.append(f"{cells / seconds:,.0f} cells/s")
    return ", ".join(words)


def _made_from(provenance: dict[str, Any]) -> Iterator[str]:
    """Lines of a provenance: the report of a cross-validation is a table, the rest as it is."""
    for key, value in provenance.items():
        if key in ("n_cells", "history"):  # which stand with the cell types, and the solver
            continue
        rows = value if isinstance(value, list) else []
        if not (rows and all(isinstance(row, dict) for row in rows)):
            yield f"{shown(key)}: {shown(value)}"
            continue
        yield f"{shown(key)}:"
        yield from (f"    {_pairs(row)}" for row in rows)


def _set(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not what `Settings` has by default."""
    defaults = {field.name: field.default for field in fields(Settings)}
    return {
        key: value
        for key, value in settings.items()
        if key not in _NOT_SHOWN and not (key in defaults and defaults[key] == value)
    }


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{shown(key)}={shown(value)}" for key, value in values.items())
