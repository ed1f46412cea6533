"""The name of a recipe, or the path of a TOML file, in; the settings that it holds out."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable
from functools import partial
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


def hyphened(key: str) -> str:
    """A key in the one spelling that stands for both: batch_size and batch-size."""
    return key.lower().replace("_", "-")


def is_there(path: Path) -> bool:
    """Whether a file can be read from: a pipe will do, and a folder will not."""
    return path.exists() and not path.is_dir()


def parsed(words: Callable[[], str], what: str) -> dict[str, Any]:
    """What TOML says that is read by `words`.

    Raises
    ------
    InputError
        If it is no TOML in UTF-8; `what` words where it stands.
    """
    try:
        return tomllib.loads(words())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} is no TOML file: {error}") from None


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
    path = Path(recipe).expanduser()
    if recipe not in NAMES and not is_there(path):
        raise InputError(f"{known}; there is no file {str(recipe)!r}")
    words = partial(text, str(recipe)) if recipe in NAMES else partial(path.read_text, "utf-8")
    found = parsed(words, f"recipe {str(recipe)!r}")
    spelled = {hyphened(name): name for name in settings}
    named = {}
    for key, value in found.items():
        name = spelled.get(hyphened(key))
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
