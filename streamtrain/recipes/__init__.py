"""The name of a recipe, or the path of a TOML file, in; the settings that it holds out."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from streamtrain.errors import InputError, near

# In the order in which they are listed. Each is a file of its name in conf/, linked here.
NAMES = ("atlas", "quick-look", "celltypist", "gpu", "cluster")


def text(name: str) -> str:
    """The file of a recipe of ours.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    if name not in NAMES:
        raise InputError(f"no recipe {name!r}: {near(name, NAMES)}")
    file = resources.files("streamtrain") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def purpose(name: str) -> tuple[str, str]:
    """What a recipe of ours is for, and when to take it: the first two lines of its file."""
    what, when, *_ = text(name).splitlines()
    return what.removeprefix("# "), when.removeprefix("# ")


def read(recipe: str | os.PathLike[str], settings: Iterable[str]) -> dict[str, Any]:
    """Settings of a recipe of ours, by its name, or of a TOML file.

    Parameters
    ----------
    settings
        Names of all settings that it may have.

    Raises
    ------
    InputError
        If there is no such recipe, or the file is no TOML or holds something else.
    """
    known = f"recipe must be {', '.join(map(repr, NAMES))}, or the path of a TOML file of settings"
    if not isinstance(recipe, (str, os.PathLike)):
        raise InputError(f"{known}; got {recipe!r}")
    try:
        if recipe in NAMES:
            found = tomllib.loads(text(str(recipe)))
        else:
            path = Path(recipe).expanduser()
            if path.is_dir() or not path.exists():
                raise InputError(f"{known}; there is no file {str(recipe)!r}")
            found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {str(recipe)!r} is no TOML file: {error}") from None
    spelled = {name.lower().replace("_", "-"): name for name in settings}
    named = {}
    for key, value in found.items():
        name = spelled.get(key.lower().replace("_", "-"))
        if name is None and isinstance(value, dict):
            raise InputError(
                f"recipe {str(recipe)!r} has a table [{key}], and a recipe has settings alone: "
                "the file of a command is for --config"
            )
        if name is None:
            known_names = list(spelled.values())
            raise InputError(
                f"recipe {str(recipe)!r}: no setting {key!r}: {near(key, known_names)}"
            )
        if name in named:
            raise InputError(
                f"recipe {str(recipe)!r}: {key} is there twice, spelled in two ways: leave one out"
            )
        named[name] = value
    return named
