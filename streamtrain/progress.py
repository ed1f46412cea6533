"""Counts of the long stages enter; a moving bar, or a line now and then in a log, leaves."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TypeVar

import psutil
from tqdm.auto import tqdm
from tqdm.std import tqdm as counter

from streamtrain import logs
from streamtrain.budget import format_bytes

T = TypeVar("T")

_NOTEBOOK = any("notebook" in kind.__module__ for kind in tqdm.__mro__)
_DELAY = 2  # seconds that a stage may take without a word
_EVERY = 30  # seconds from line to line in a log


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that ends in the memory of this process."""

    @property
    def format_dict(self) -> Any:
        """What tqdm words."""
        return _with_memory(super().format_dict)


@contextmanager
def stage(name: str, total: int | None, unit: str = " cells", *, show: bool) -> Iterator[Any]:
    """Count towards `total`, with rate, time left and memory; short stages stay silent.

    A `total` of None has no end in sight. On a terminal and in a notebook a bar moves, from two
    seconds on; in a log a line stands every 30 s and at the end.
    """
    options: dict[str, Any] = {"total": total, "desc": name, "unit": unit, "unit_scale": True}
    if not show:
        yield counter(disable=True, **options)
    elif _NOTEBOOK and not logs.as_json():
        with _Bar(delay=_DELAY, leave=False, **options) as drawn:
            yield drawn
    elif sys.stderr.isatty() and not logs.as_json():
        # A bar that waits, for a server perhaps, still tells the time.
        with _Bar(delay=_DELAY, leave=False, **options) as moving, _every(1, moving.refresh):
            yield moving
    else:
        start = time.monotonic()
        with counter(delay=math.inf, **options) as silent:
            with _every(_EVERY, lambda: _line(silent)):
                yield silent
            if time.monotonic() - start > _DELAY:
                _line(silent)


def counted(
    items: Iterable[tuple[int, T]], name: str, total: int, *, show: bool
) -> Iterator[tuple[int, T]]:
    """Pass on (position, item) pairs, counting up to the position that each next pair begins at."""
    with stage(name, total, show=show) as bar:
        for position, item in items:
            bar.update(position - bar.n)
            yield position, item
        bar.update(total - bar.n)


@contextmanager
def _every(seconds: float, tell: Callable[[], Any]) -> Iterator[None]:
    """Tell again and again while the work goes on, after the first two seconds."""
    ended = Event()

    def telling() -> None:
        wait = max(seconds, _DELAY)
        while not ended.wait(wait):
            tell()
            wait = seconds

    thread = Thread(target=telling, name="streamtrain progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(bar: Any) -> None:
    now = bar.format_dict
    elapsed, done, total = now["elapsed"], now["n"], now["total"]
    if not logs.as_json():
        sys.stderr.write(bar.format_meter(**{**_with_memory(now), "ncols": 0}) + "\n")
        return
    rate = done / elapsed if elapsed else None
    logs.write_json(
        level="INFO",
        stage=now["prefix"],
        done=round(done),
        total=total,
        unit=now["unit"].strip(),
        per_second=rate and round(rate, 3),
        seconds=round(elapsed, 3),
        seconds_left=round((total - done) / rate, 3) if rate and total is not None else None,
        memory=psutil.Process().memory_info().rss,
        **({"said": now["postfix"]} if now["postfix"] else {}),
    )


def _with_memory(now: Any) -> dict[str, Any]:
    said = [*filter(None, [now["postfix"]]), format_bytes(psutil.Process().memory_info().rss)]
    return {**now, "postfix": ", ".join(said)}
