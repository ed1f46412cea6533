"""What a command logs enters; lines on standard error leave, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from datetime import datetime
from typing import Any

_json = False


class _Handler(logging.StreamHandler[Any]):
    """Writes to what standard error is by then, past a bar that moves there."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; a bar, if there is one, steps aside."""
        self.stream = sys.stderr
        moving = sys.modules.get("tqdm.std") if sys.stderr.isatty() else None
        with moving.tqdm.external_write_mode(sys.stderr) if moving else nullcontext():
            super().emit(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object: time, level, logger, message and, of an exception, its traceback."""
        said = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return _worded(said, record.created)


def begin(*, quiet: bool = False, log_json: bool = False) -> None:
    """Have messages written to standard error: at a level, and in a form, for one command.

    Parameters
    ----------
    quiet
        Warnings and errors alone.
    log_json
        As JSON, an object a line, progress too: `time`, `level`, and `logger` and `message`, or
        of progress `stage`, `done`, `total`, `unit`, `per_second`, `seconds`, `seconds_left` and
        `memory`, in bytes, and what else is `said`.
    """
    global _json
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler()
    if log_json:
        handler.setFormatter(_Json())
        root.addHandler(handler)
    else:  # what an application has set up stays as it is
        logging.basicConfig(handlers=[handler], format="%(message)s", level=logging.WARNING)
    logging.captureWarnings(log_json)
    _json = log_json
    logging.getLogger("streamtrain").setLevel(logging.WARNING if quiet else logging.INFO)


def expect(*, log_json: bool) -> None:
    """Have what fails before `begin`, and after it, told as JSON or not."""
    global _json
    _json = log_json


def as_json() -> bool:
    """Whether JSON is asked for."""
    return _json


def write_json(**said: Any) -> None:
    """Write an object a line, with the time."""
    sys.stderr.write(_worded(said) + "\n")


def failed(words: str, note: str | None = None) -> None:
    """Write why a command ends, and where more is said of it."""
    if _json:
        said = {"level": "ERROR", "logger": "streamtrain", "message": words}
        write_json(**said, **({} if note is None else {"note": note}))
    else:
        sys.stderr.write(f"streamtrain: {words}\n" + (f"{note}\n" if note else ""))


def _worded(said: dict[str, Any], seconds: float | None = None) -> str:
    when = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    return json.dumps({"time": when.astimezone().isoformat(timespec="milliseconds"), **said})
