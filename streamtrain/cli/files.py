"""Arguments of a command and the TOML file that --config names in, arguments with both out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Argument, ArgumentCollection, CycloptsError, Token

from streamtrain.config import IN_MEMORY
from streamtrain.errors import InputError, absent, near, some
from streamtrain.recipes import hyphened, is_there, parsed

_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path",
    NoneType: "'none'", dict: "a table",
}  # fmt: skip
_MANY = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}


def fill_in(commands: tuple[str, ...], command: str, arguments: ArgumentCollection) -> None:
    """Give the arguments that the command line leaves out the values that its file has.

    They are read as the command line would read them.

    Parameters
    ----------
    commands
        Names of all commands, which tables may have.
    command
        Name of the one that is called.
    arguments
        Its arguments, which are filled in.

    Raises
    ------
    InputError
        If the file is no TOML, has no table of this command, or has a key or value that no option
        of it takes; with the file, the key, and the nearest name.
    """
    own = [argument for argument in arguments if argument.name not in ("*", "--config")]
    given = [argument.tokens for argument in arguments if argument.name == "--config"]
    if not given or not given[0]:
        return
    path = Path(given[0][-1].value).expanduser()
    table = _table(path, commands, command)
    known = {argument.name.lower(): argument for argument in own}
    # An input before an option of its name: train's SOURCE, and --source, a text.
    known |= {_bare(argument.name): argument for argument in reversed(own)}
    filled: list[Argument] = []
    for key in table:
        argument = known.get(hyphened(key))
        if argument is None:
            names = [_bare(argument.name).replace("-", "_") for argument in own]
            raise InputError(f"{path}: no option {key!r} of {command}: {near(key, names)}")
        if any(argument is other for other in filled):
            raise InputError(f"{path}: {key} is there twice, spelled in two ways: leave one out")
        filled.append(argument)
    for argument, (key, value) in zip(filled, table.items(), strict=True):
        if not argument.tokens:
            _fill(argument, key, value, path)


def _bare(name: str) -> str:
    return hyphened(name.lstrip("-"))


def _table(path: Path, commands: tuple[str, ...], command: str) -> dict[str, Any]:
    """The file's table of a command."""
    if not is_there(path):
        raise absent(path, "file of --config")
    tables = parsed(partial(path.read_text, "utf-8"), str(path))
    found = None
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(
                f"{path}: {key!r} stands before any table: write it below [{command}], or pass a "
                "file of settings alone as --recipe"
            )
        if hyphened(key) not in commands:
            raise InputError(f"{path}: no command has the name of the table [{key}]: "
                             f"{near(hyphened(key), commands)}")  # fmt: skip
        found = table if hyphened(key) == command else found
    if found is None:
        raise InputError(f"{path} has no table [{command}]: it has {some(tables, 9)}")
    return found


def _fill(argument: Argument, key: str, value: Any, path: Path) -> None:
    """Give an argument a value, as tokens of the command line."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one.startswith(IN_MEMORY):
            raise InputError(
                f"{path}: {key} was given {one}, which a file cannot hold: write it to a file of "
                f"its own, and name that as {key}"
            )
    wrong = InputError(f"{path}: {key} must be {_worded(argument.hint)}; got {value!r}")
    kinds = {get_origin(kind) or kind for kind in _kinds(argument.hint)}
    for kind in (bool, list, dict):
        if isinstance(value, kind) and (kind not in kinds or value in ([], {})):
            raise wrong
    # A list of one text would be read as a text, which names a file.
    names = isinstance(value, list) and str in kinds and all(isinstance(v, str) for v in value)
    whole = [Token(keyword=key, implicit_value=value, source=str(path))]
    try:
        for token in whole if names else _tokens(key, value, str(path)):
            argument.append(token)
        argument.convert()
    except (CycloptsError, ValueError):
        raise wrong from None


def _tokens(key: str, value: Any, source: str) -> list[Token]:
    if isinstance(value, Mapping):
        named = _flat(value)
        return [
            Token(keyword=key, value=_text(one), source=source, keys=(name,))
            for name, one in named.items()
        ]
    values = value if isinstance(value, list) else [value]
    return [
        Token(keyword=key, value=_text(one), source=source, index=i) for i, one in enumerate(values)
    ]


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Names with dots in place of tables within tables, which TOML makes of such names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        inner = _flat(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{rest}" if rest else name: one for rest, one in inner.items()}
    return flat


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float, date, time)):
        raise ValueError(value)
    return str(value)


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for each in get_args(hint) for kind in _kinds(each)]
    return [hint]


def _worded(hint: Any) -> str:
    words = []
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            words += [repr(choice) for choice in get_args(kind)]
        elif get_origin(kind) is list:
            each = [_MANY.get(word, word) for word in _worded(get_args(kind)[0]).split(" or ")]
            words.append(f"a list of {' or '.join(each)}")
        else:
            words.append(_WORDS[get_origin(kind) or kind])
    return " or ".join(words)
