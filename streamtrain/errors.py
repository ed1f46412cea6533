"""The one exception that a user's mistake raises, and the words and checks that many share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """Input that streamtrain cannot use: the message gives the rule, the value and the remedy.

    A note of the exception names the section of docs/faq.md that says more.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        _add_help(self)


def help_for(error: BaseException) -> str | None:
    """Word where an error is explained, or None where it is not.

    The page is read when the first error happens.
    """
    try:
        from streamtrain.faq import note_for

        return note_for(str(error))
    except OSError:  # as where no more files can be opened: the error itself is what counts
        return None


def _add_help(error: BaseException) -> None:
    note = help_for(error)
    if note is not None:
        error.add_note(note)


def near(name: str, names: Iterable[str], limit: int = 12) -> str:
    """Word the names closest to `name`, or the first few of `names` where none is close."""
    known = [str(n) for n in names]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return f"there are {some(known, limit)}"


def absent(path: Path, what: str = "") -> FileNotFoundError:
    """Word the error of a path where nothing is, with what near it may have been meant."""
    error = FileNotFoundError(_absent(path, what))
    _add_help(error)
    return error


def _absent(path: Path, what: str) -> str:
    word = f"{path} does not exist" if not what else f"no {what} at {str(path)!r}"
    if path.is_symlink():
        return f"{word}: it is a link to {path.readlink()}, which is not there"
    if not path.parent.is_dir():
        return f"{word}, nor the folder {str(path.parent)!r}: correct the path"
    there = path.parent.iterdir() if os.access(path.parent, os.R_OK) else ()
    others = [p.name for p in there if p.name != path.name]
    close = get_close_matches(path.name, others, n=3, cutoff=0.85)
    meant = "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return f"{word}: {meant if close else 'correct the path'}"


def require_readable(path: Path) -> None:
    """Refuse a file that this user may not read, which HDF5 takes for another format."""
    try:
        if path.is_dir():
            os.scandir(path).close()
        elif path.is_file():
            path.open("rb").close()
    except PermissionError as error:
        raise InputError(
            f"{path} cannot be read: there is no permission; ask its owner for it"
        ) from error


def some(names: Iterable[str], limit: int = 3) -> str:
    """Word the first few of `names`, and how many there are."""
    known = [str(n) for n in names]
    more = f", ... ({len(known)} in all)" if len(known) > limit else ""
    return ", ".join(repr(n) for n in known[:limit]) + more or "none"
