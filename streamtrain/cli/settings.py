"""The fields of `Settings` in, options of training out: those that are given, and no others."""

from __future__ import annotations

import inspect
from dataclasses import Field, fields
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter

from streamtrain.cli.options import whole
from streamtrain.config import Settings, types


def _by_name(kind: Any, tokens: Any) -> Any:
    """Turn --quotas.NAME 5 --quotas.OTHER 9 into a dict, and --quotas equal into a text."""
    if not isinstance(tokens, dict):
        return tokens[-1].value  # Settings refuses another
    (number,) = (get_args(k)[1] for k in get_args(kind) if get_origin(k) is dict)
    named: dict[str, Any] = {}
    for name, given in tokens.items():
        if isinstance(given, dict):  # a name with a dot in it
            named |= {f"{name}.{rest}": n for rest, n in _by_name(kind, given).items()}
            continue
        try:
            named[name] = number(given[-1].value)
        except ValueError:
            raise ValueError(f"{name!r} needs a number; got {given[-1].value!r}") from None
    return named


class Given:
    """The settings that are given, and no others, so that a recipe can have the rest."""

    def __init__(self, **given: Any) -> None:
        self.given = given


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    if field.name in ("quotas", "class_weight"):
        # cyclopts converts no union of a dict and a text by itself.
        kind = Annotated[kind, Parameter(converter=_by_name)]
    elif kind in (int, int | None):
        kind = Annotated[kind, Parameter(converter=whole)]
    elif field.name == "C":  # also as CellTypist spells it
        kind = Annotated[kind, Parameter(alias="--C")]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind
    )


# What cyclopts reads of a class: its fields and their help are those of Settings.
Given.__doc__ = Settings.__doc__
Given.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        *(_parameter(field, types()[field.name]) for field in fields(Settings)),
    ]
)
SettingsGiven = Annotated[Given, Parameter(name="*")]
