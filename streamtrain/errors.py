"""The one exception that a user's mistake raises, and the wording helpers that it shares."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that streamtrain cannot use: the message gives the rule, the value and the remedy."""


def near(name: str, names: Iterable[str], limit: int = 12) -> str:
    """Word the names closest to `name`, or the first few of `names` where none is close."""
    known = [str(n) for n in names]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return f"there are {some(known, limit)}"


def some(names: Iterable[str], limit: int = 3) -> str:
    """Word the first few of `names`, and how many there are."""
    known = [str(n) for n in names]
    more = f", ... ({len(known)} in all)" if len(known) > limit else ""
    return ", ".join(repr(n) for n in known[:limit]) + more or "none"
