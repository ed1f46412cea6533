"""Progress of the long stages: a tqdm bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


_NOTEBOOK = any("notebook" in kind.__module__ for kind in tqdm.__mro__)
_DELAY = 2  # seconds that a stage may take without a word


@contextmanager
def stage(name: str, total: int | None, unit: str = " cells", *, show: bool) -> Iterator[Any]:
    """Count towards `total` with rate and time left; stages below two seconds stay silent.

    A `total` of None has no end in sight. On a terminal and in a notebook a bar moves; in a log a
    line stands every 30 s and at the end.
    """
    log = not (_NOTEBOOK or sys.stderr.isatty())
    with tqdm(
        total=total, desc=name, unit=unit, unit_scale=True, disable=not show, delay=_DELAY,
        mininterval=30 if log else 0.1, maxinterval=30 if log else 10, leave=False,
    ) as bar:  # fmt: skip
        start = time.monotonic()
        yield bar
        last = str(bar)
    if show and log and time.monotonic() - start > _DELAY:
        sys.stderr.write(f"{last}\n")


def counted(
    items: Iterable[tuple[int, T]], name: str, total: int, *, show: bool
) -> Iterator[tuple[int, T]]:
    """Pass on (position, item) pairs, counting up to the position that each next pair begins at."""
    with stage(name, total, show=show) as bar:
        for position, item in items:
            bar.update(position - bar.n)
            yield position, item
        bar.update(total - bar.n)
