"""A model in, the TOML file of the command that trains it anew out.

TOML has no word for None: what is None by default is left out, and where another value is the
default the file has "none", as the command line would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from streamtrain.config import IN_MEMORY, Settings
from streamtrain.errors import InputError
from streamtrain.model import Model

_KEYS = {"source", "labels", "settings"}


def to_toml(model: Model, name: str | Path) -> str:
    """The file of the command that trains `model` anew.

    It has the inputs as they were given and the settings that differ from the defaults, those of a
    recipe too. What was given as values in memory it names, for the command to ask for.

    Parameters
    ----------
    name
        What the model is called.

    Raises
    ------
    InputError
        If the model does not know from what it was trained.
    """
    run = model.provenance.get("run")
    if not (isinstance(run, dict) and set(run) >= _KEYS and isinstance(run["settings"], dict)):
        raise InputError(
            f"{name} does not know the command that trained it: CellTypist's models, those that "
            "were converted or subset, and those of earlier versions do not; train it anew"
        )
    return "\n".join([*_head(model, name, run), *_table(model, run)]) + "\n"


def _head(model: Model, name: str | Path, run: Mapping[str, Any]) -> Iterator[str]:
    made, recipe = model.provenance, model.settings.get("recipe")
    several = not isinstance(run["labels"], str)
    command, out = ("cross-validate", "ranking.csv") if several else ("train", "again.zarr")
    packages = ", ".join(f"{k} {v}" for k, v in dict(made.get("packages", {})).items())
    yield from _comment(f"Trains {name} anew: streamtrain {command} --config FILE --out {out}")
    yield from _comment(
        f"It was trained {made.get('trained')}, by {packages}, on {made.get('n_cells')} cells."
    )
    if recipe is not None:
        yield from _comment(f"Its recipe was {recipe!r}, of which the settings below are, too.")
    if made.get("device") == "gpu":
        yield from _comment('A GPU trained it; with device = "cpu" it is the same to rounding.')
    for key in ("source", "labels", "genes"):
        if _in_memory(run.get(key)):
            yield from _comment(f"Write {key} to a file, and name it below: it was in memory.")
    if run.get("storage_options"):
        yield from _comment("Credentials come from the environment; none are kept.")
    yield f"[{command}]"


def _in_memory(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and each.startswith(IN_MEMORY) for each in values)


def _comment(text: str) -> Iterator[str]:
    # A name may have what a comment may not.
    yield "# " + "".join(each if each.isprintable() else "?" for each in text)


def _table(model: Model, run: Mapping[str, Any]) -> Iterator[str]:
    inputs = {key: run.get(key) for key in ("source", "labels", "genes", "storage_options")}
    settings = model.settings | run["settings"]
    different = {
        field.name: settings[field.name]
        for field in fields(Settings)
        if field.name in settings
        and field.name != "recipe"
        and settings[field.name] != field.default
    }
    for key, value in inputs.items():
        if value not in (None, {}):
            yield f"{key} = {_toml(value)}"
    for key, value in different.items():
        # The name alone is that of the input.
        yield f"{_toml('--source') if key == 'source' else key} = {_toml(value)}"


def _toml(value: Any) -> str:
    """A value of JSON's types as TOML has it."""
    if value is None:
        return '"none"'
    if isinstance(value, str):
        # JSON's texts are TOML's, but for a character that TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else repr(value)
