"""What means several files: a list, a pattern or a folder enters, the files in order leave."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamtrain.decode.address import Address
from streamtrain.errors import InputError, require_readable
from streamtrain.sources.memory import is_a
from streamtrain.sources.mtx import find_10x

logger = logging.getLogger(__name__)

ANNBATCH = "annbatch-preshuffled"  # encoding-type of a collection that annbatch finished


@dataclass(frozen=True, slots=True)
class Members:
    """The parts of a collection, in order.

    Attributes
    ----------
    name
        What messages call the whole.
    items
        Paths, addresses or AnnData objects, one at least.
    names
        What messages call each.
    """

    name: str
    items: list[Any]
    names: list[str]


def find_members(X: Any) -> Members | None:
    """Tell what files X means; None where it is one source itself.

    A list or tuple names them, in its order. A pattern ("atlases/*.h5ad"; ** for any folders)
    where no such path exists, a folder of .h5ad files and zarr stores, and a collection that
    annbatch wrote stand for what is in them, in natural order: part_2 before part_10.

    Raises
    ------
    InputError
        Where there is no file, one comes twice, or a list holds anything but files and AnnData.
    """
    if isinstance(X, Members):  # found already
        return X
    if isinstance(X, list | tuple):
        return _listed(X)
    if not isinstance(X, str | os.PathLike):
        return None
    path = Path(X).expanduser()
    if path.is_dir():
        found = _inside(path)
    elif not path.exists() and any(sign in str(X) for sign in "*?[") and "://" not in str(X):
        found = _matching(path)
        if not found:
            raise InputError(f"no .h5ad file or zarr store matches {str(X)!r}: correct the pattern")
    else:
        return None
    return _members(str(X), found) if found else None


def natural(text: str) -> tuple[list[str | int], str]:
    """Key that sorts text with the numbers in it by their value."""
    # Split so, text and digits alternate and only like is compared with like.
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def _listed(X: Iterable[Any]) -> Members:
    items = list(X)
    if not items:
        raise InputError("X is an empty list: name one file at least")
    for i, item in enumerate(items):
        path = isinstance(item, str | os.PathLike)
        if path and find_members(item) is not None:
            raise InputError(
                f"X[{i}] is {str(item)!r}, several files itself: list these, or pass it alone"
            )
        stored = path or isinstance(item, Address)
        if not stored and not is_a(item, "anndata", "AnnData"):
            raise InputError(
                f"a list as X holds paths or AnnData objects, and X[{i}] is a "
                f"{type(item).__name__}: lists are not nested; pass other matrices one by one, as "
                "numpy or scipy arrays"
            )
    paths = [Path(x).expanduser() if isinstance(x, str | os.PathLike) else x for x in items]
    names = [
        str(x) if isinstance(x, Path | Address) else f"AnnData {i}" for i, x in enumerate(paths)
    ]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return _members(names[0] + more, paths, names)


def _members(name: str, items: list[Any], names: list[str] | None = None) -> Members:
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Path | Address):
            real = str(item.resolve()) if isinstance(item, Path) else item.url
            if real in seen:
                raise InputError(f"{name}: {item} is there twice: name each file once")
            seen.add(real)
    return Members(name, items, names or [str(item) for item in items])


def _is_store(path: Path) -> bool:
    return path.is_dir() and any((path / key).exists() for key in ("zarr.json", ".zgroup"))


def _inside(folder: Path) -> list[Path]:
    """Stores in a folder, or data sets in a collection of annbatch; none for one source."""
    require_readable(folder)
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if (folder / "obs").exists() or find_10x(folder):
        return []
    if _is_store(folder):
        sets = [p for p in inside if re.fullmatch("dataset_[0-9]+", p.name) and _is_store(p)]
        if sets:
            _warn_unfinished(folder)
        return _in_order(sets)
    files = (".h5ad", ".zarr.zip")
    return _in_order(p for p in inside if _is_store(p) or p.name.lower().endswith(files))


def _warn_unfinished(folder: Path) -> None:
    import zarr

    if zarr.open_group(folder, mode="r").attrs.get("encoding-type") != ANNBATCH:
        logger.warning(
            "%s lacks the mark that annbatch sets last: if it did not finish writing it, cells are "
            "missing", folder,
        )  # fmt: skip


def _matching(pattern: Path) -> list[Path]:
    matches = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path's knows no root
    found = {Path(match) for match in matches}
    stores = {path for path in found if _is_store(path)}
    # "**" enters stores, too: what lies in one that matches is a part of it.
    return _in_order(
        path
        for path in found
        if (path in stores or path.is_file()) and stores.isdisjoint(path.parents)
    )


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural(path.as_posix()))
