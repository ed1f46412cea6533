"""A suite's TOML file and what the command line sets: settings as a plain dictionary."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamtrain.errors import InputError, near

FOLDER = Path(__file__).resolve().parents[1] / "conf" / "bench"


def suites() -> list[str]:
    """Names of the suites: those with a file of settings."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(suite: str, assignments: Iterable[str] = ()) -> dict[str, Any]:
    """Settings of a suite: its file, of which `size` picks one table of `sizes`, then `key=value`s.

    Raises
    ------
    InputError
        The suite or a key does not exist, or a value is of another type than the file's.
    """
    if suite not in suites():
        raise InputError(f"there is no suite {suite!r}: {near(suite, suites())}")
    file = tomllib.loads((FOLDER / f"{suite}.toml").read_text(encoding="utf-8"))
    sizes = file.pop("sizes")
    chosen = dict(_assignment(text) for text in assignments)
    size = chosen.get("size", file["size"])
    if size not in sizes:
        raise InputError(f"suite {suite} has no size {size!r}: {near(str(size), sizes)}")
    settings: dict[str, Any] = file | sizes[size]
    for key, value in chosen.items():
        if key not in settings:
            raise InputError(f"suite {suite} has no setting {key!r}: {near(key, settings)}")
        known = settings[key]
        if isinstance(known, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(known):
            raise InputError(
                f"{key} must be like {known!r}, which conf/bench/{suite}.toml has; got {value!r}"
            )
        settings[key] = value
    return settings


def _assignment(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`; the value as TOML, or as it stands where it is none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set takes key=value; got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
