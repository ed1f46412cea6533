"""Stages of a run, and how far each is, in; a folder from which it goes on, to the same bits, out.

A state is a file (`frozen`), written aside, synced and renamed, every some minutes and when a
signal comes. The last two are kept: one that is found damaged is said, and the one before taken.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from streamtrain import frozen
from streamtrain.atomic import NEW, disk_full, replace_file
from streamtrain.errors import InputError
from streamtrain.partial import LOCK, locked
from streamtrain.parts import files_of

T = TypeVar("T")
logger = logging.getLogger(__name__)

EVERY = 600.0  # seconds from one state to the next
CELLS = "cells"  # what the files of cells are called
_RUN, _STATE = "run.json", ".state"
_STATES = 2  # that are kept
_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class StoppedError(KeyboardInterrupt):
    """A signal came, and the run was saved first.

    Attributes
    ----------
    number
        Of the signal.
    folder
        From which it goes on.
    """

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {go_on(folder)}")
        self.number, self.folder = number, folder


def go_on(folder: Path) -> str:
    """Word how a run goes on."""
    return (
        f"the run so far is in {str(folder)!r}: the same with resume=True (--resume) goes on from "
        "there"
    )


class Journal:
    """The folder of a run; a context manager, in which signals wait for the next state.

    Parameters
    ----------
    folder
        Where; made if it is not there.
    resume
        Go on from the run that it holds, if it holds one.
    every
        Seconds from one state to the next.

    Raises
    ------
    InputError
        Where another process has the folder, it holds something else, or a run and `resume` is not
        asked for.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, resume: bool, every: float = EVERY
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, (int, float)) or not every > 0:
            raise InputError(
                f"checkpoint_every must be a positive number of seconds; got {every!r}"
            )
        self.folder = Path(folder).expanduser().resolve()
        self._every = every
        if not self.folder.parent.is_dir():
            raise InputError(
                f"checkpoint={str(folder)!r}: the folder {str(self.folder.parent)!r} does not "
                "exist, create it"
            )
        there = self.folder.exists()
        if there and not self.folder.is_dir():
            raise InputError(f"checkpoint={str(folder)!r} is a file: choose another path")
        names = {path.name for path in self.folder.iterdir()} if there else set()
        others = names - {LOCK, f"{_RUN}{NEW}"}
        if others and _RUN not in names:
            raise InputError(
                f"checkpoint={str(folder)!r} holds something else than a run ({min(others)!r}): "
                "choose another folder"
            )
        if _RUN in names and not resume:
            os.close(_locked(self.folder))  # or another process has it
            raise InputError(
                f"checkpoint={str(folder)!r} holds a run: go on from it by resume=True (--resume), "
                "delete the folder, or choose another"
            )
        self._done: dict[str, Any] = {}
        self._now: dict[str, Any] = {}
        self._number = 0
        self._damaged: list[Path] = []
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._begun = 0  # numbered stages
        self._latest: tuple[str, Callable[[], Any] | None] = "", None

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._lock)
        if self._signal is not None:  # no stage saw it
            signal.raise_signal(self._signal)

    def _came(self, number: int, _: object) -> None:
        """Note a signal; a second one is taken at once, as without a journal."""
        if self._signal is not None:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self._signal = number
        name = signal.Signals(number).name
        logger.warning("%s: the run is saved at the end of this batch; again ends it at once", name)

    def begin(self, run: dict[str, Any]) -> None:
        """Take what a run is made of, as plain values; read how far the same run was.

        From here on signals wait.

        Raises
        ------
        InputError
            Where the folder holds another run; the message names what differs.
        """
        file = self.folder / _RUN
        run = json.loads(json.dumps(run, default=lambda value: value.item()))  # NumPy's numbers
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            handled = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {n: signal.signal(n, self._came) for n in handled}  # nohup ignores one
        if file.exists():
            former = _read_json(file)
            differ = [key for key in {**former, **run} if former.get(key) != run.get(key)]
            if differ:
                raise InputError(
                    f"checkpoint={str(self.folder)!r} holds a run by "
                    + "; ".join(f"{k}={former.get(k)!r}, not {run.get(k)!r}" for k in differ[:5])
                    + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
                    + ": give the same, or choose another folder"
                )
            self._read()
            return
        with disk_full(self.folder):
            replace_file(file, lambda path: path.write_text(json.dumps(run, indent=1)))

    def _states(self) -> list[tuple[int, Path]]:
        """Numbers and files of the states, the last first."""
        files = self.folder.glob(f"*{_STATE}")
        return sorted(((int(f.stem), f) for f in files if f.stem.isdigit()), reverse=True)

    def _read(self) -> None:
        for number, file in self._states():
            self._number = max(self._number, number)
            try:
                found = frozen.read(file)
                self._done, self._now = found["done"], found["now"]
            except (frozen.DamagedError, OSError, TypeError, KeyError) as error:
                logger.warning("%s; the state before it is taken", error)
                self._damaged.append(file)
                continue
            logger.info("going on from %s", file)
            return
        logger.info("%s holds no state to go on from: the run begins anew", self.folder)

    def stage(self, name: str, work: Callable[[Any], T]) -> T:
        """What a stage gives: what it gave before, or now, from where it was (None: nowhere).

        `work` is called with that; what it gives is kept, and must be what `frozen` writes.
        """
        if name in self._done:
            found: T = self._done[name]
            return found
        # Popped: it would stay beside what is made of it.
        before = self._now.pop(name, None)
        self._latest = name, None if before is None else lambda: before
        found = work(before)
        self._latest = "", None
        self._done[name] = found
        self._save()
        return found

    def next(self, name: str, work: Callable[..., T]) -> T:
        """A stage by its name and number: runs have the same ones in the same order.

        `work` takes `before`, from where it goes on, and `keep`, which is as `tick`.
        """
        self._begun += 1
        numbered = f"{name} {self._begun}"
        keep = partial(self.tick, numbered)
        return self.stage(numbered, lambda before: work(before=before, keep=keep))

    def tick(self, name: str, state: Callable[[], Any] | None) -> None:
        """Between two batches of a stage: keep its state, if it is due or a signal came.

        Without a state the stage will begin anew.

        Raises
        ------
        StoppedError
            After a signal.
        """
        self._latest = name, state
        self.look()

    def look(self) -> None:
        """The same with the state that was told last, which must still hold."""
        due = self._latest[1] is not None and time.monotonic() - self._saved >= self._every
        if self._signal is not None or due:
            self.save()

    def save(self) -> None:
        """Keep all stages that are done, and the state that was told last.

        Raises
        ------
        StoppedError
            After a signal.
        """
        name, state = self._latest
        if state is not None:
            self._now[name] = state()
        self._save()
        self._now.pop(name, None)

    def _save(self) -> None:
        self._number += 1
        whole = {"done": self._done, "now": self._now}
        file = self.folder / f"{self._number:06d}{_STATE}"
        start = time.monotonic()
        with disk_full(self.folder):
            replace_file(file, lambda path: frozen.write(path, whole))
        good = [f for _, f in self._states() if f not in self._damaged]
        for old in (*self._damaged, *good[_STATES:]):
            old.unlink(missing_ok=True)
        self._damaged.clear()
        self._saved = time.monotonic()
        logger.info("saved in %s, %.1f s", file, self._saved - start)
        if self._signal is not None:
            number, self._signal = self._signal, None
            raise StoppedError(number, self.folder)


def clear(folder: str | os.PathLike[str]) -> None:
    """Delete what a journal has in its folder, and the folder if that was all.

    Nothing is done where another process has it.
    """
    path = Path(folder).expanduser().resolve()
    try:
        lock = _locked(path)
    except (InputError, OSError):
        return
    for file in path.iterdir():
        base = file.name.removesuffix(NEW)
        if base in (_RUN, *(f.name for f in files_of(path / CELLS))) or base.endswith(_STATE):
            file.unlink()
    (path / LOCK).unlink()
    os.close(lock)
    with suppress(OSError):  # it holds something else
        path.rmdir()


def _locked(folder: Path) -> int:
    return locked(
        folder,
        f"another process trains in checkpoint={str(folder)!r}: wait for it, or choose another "
        "folder",
        f"checkpoint={str(folder)!r}",
        "a folder",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): delete its folder") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: delete its folder")
    return found
