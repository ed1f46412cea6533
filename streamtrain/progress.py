"""Progress of the long stages: a tqdm bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


@contextmanager
def stage(name: str, total: int, unit: str = " cells", *, show: bool) -> Iterator[Any]:
    """Count towards `total` with rate and time left; nothing is shown in the first two seconds."""
    log = not sys.stderr.isatty()
    with tqdm(
        total=total, desc=name, unit=unit, unit_scale=True, disable=not show, delay=2,
        mininterval=30 if log else 0.1, maxinterval=30 if log else 10, leave=log,
    ) as bar:  # fmt: skip
        yield bar


def counted(
    items: Iterable[tuple[int, T]], name: str, total: int, *, show: bool
) -> Iterator[tuple[int, T]]:
    """Pass on (position, item) pairs, counting up to the position that each next pair begins at."""
    with stage(name, total, show=show) as bar:
        for position, item in items:
            bar.update(position - bar.n)
            yield position, item
        bar.update(total - bar.n)
