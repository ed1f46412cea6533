"""A value enters; what a terminal may show of it on one line leaves."""

from __future__ import annotations

import re
from typing import Any

_SHOWN = 300  # characters of a value


def shown(value: Any, most: int = _SHOWN) -> str:
    """A value on a line: a file may be somebody else's, and must not steer the terminal."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict):
        text = ", ".join(f"{k} {v}" for k, v in value.items())
    text = text if len(text) <= most else f"{text[:most]} ..."
    return re.sub(r"[^ -~]", lambda c: c[0] if c[0].isprintable() else ascii(c[0])[1:-1], text)
