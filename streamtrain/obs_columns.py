"""Columns of one value a cell enter; an AnnData on disk whose obs has them leaves, or none."""

from __future__ import annotations

import glob
import logging
import os
import re
import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from streamtrain.atomic import check_atlas_output, check_output, replacing
from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.progress import stage
from streamtrain.sources.columns import StoredFrame
from streamtrain.sources.store import close_root, open_root

logger = logging.getLogger(__name__)

Column = pd.Categorical | NDArray[np.float64]

_ANNDATA = {".h5ad": "an .h5ad file", ".zarr": "a zarr folder"}
_PIECE = 16 << 20  # bytes that are copied at a time
_NEWEST = "0.2.0"  # anndata's encoding of a table since 0.8
# What `replacing` writes beside its place, and leaves there if it is killed.
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.(partial|old)")
_LONGEST = 255 - len("..01234567.partial")  # bytes of a file name that has such a sibling


class ObsFile:
    """An AnnData on disk that gets columns of obs: a copy of a file, or the file itself.

    A file in HDF5 has no transactions: a copy beside it gets the columns and takes its place. A
    zarr folder gets the arrays of the columns first and the list that names them last, by renaming
    one file. So a process killed half-way leaves the file as it was, or (in a zarr folder, where
    columns are replaced) without the columns that were to be replaced.

    Parameters
    ----------
    source
        The .h5ad file or zarr folder that is read.
    out
        The copy, or None for the source itself.
    overwrite
        Whether a copy that exists, or columns that exist, may be replaced.
    progress
        Whether to show how far the copy is.

    Raises
    ------
    InputError
        If the source is no such file, or the output cannot be written.
    """

    def __init__(
        self, source: str | os.PathLike[str], out: str | os.PathLike[str] | None, overwrite: bool,
        progress: bool = False,
    ) -> None:  # fmt: skip
        self._source = Path(source).expanduser().resolve()
        self._overwrite, self._progress = overwrite, progress
        self._folder = self._source.is_dir()
        if not self._folder and not h5py.is_hdf5(self._source):
            raise InputError(
                f"columns can be added to an .h5ad file or a zarr folder, and {str(source)!r} is "
                "neither: write to .parquet or .csv instead"
            )
        kind = ".zarr" if self._folder else ".h5ad"
        self._in_place = out is None
        self._target = self._source if out is None else Path(out)
        if out is None:
            check_output(self._source, overwrite=True, folder=self._folder)
            self._require_own()
        elif Path(out).suffix.lower() != kind:
            raise InputError(
                f"{str(source)!r} is {_ANNDATA[kind]} and its copy another: out must end in "
                f"{kind}, .parquet or .csv; got {str(out)!r}"
            )
        elif check_atlas_output(out, overwrite, folder=self._folder) == self._source:
            raise InputError(
                f"out={str(out)!r} is the input itself: to add columns to it pass in_place=True "
                "(--in-place)"
            )
        if not (self._folder and self._in_place):
            self._require_space()
        target = self._target.expanduser().resolve()
        warn_of_leftovers(target.parent, target.name)
        if self._folder and self._in_place:
            warn_of_leftovers(self._source / "obs")

    def _require_own(self) -> None:
        """Refuse to change a file that is read-only, or to part one that has two names."""
        if not os.access(self._source, os.W_OK):
            raise InputError(
                f"{str(self._source)!r} is read-only, so no columns are added to it: write a copy "
                "(out, --out), or make it writable"
            )
        links = self._source.stat().st_nlink
        if not self._folder and links > 1:
            raise InputError(
                f"{str(self._source)!r} has {links} names (hard links), of which only this one "
                "would get the columns: write a copy (out, --out)"
            )

    def _require_space(self) -> None:
        self._size = size = sum(f.stat().st_size for f in _files(self._source))
        free = shutil.disk_usage(self._target.expanduser().resolve().parent).free
        if free < size:
            raise InputError(
                f"a copy of {self._source} needs {format_bytes(size)}, and the disk has "
                f"{format_bytes(free)} free"
            )

    def check(self, names: list[str]) -> None:
        """Refuse columns that obs has (unless they may be replaced) or cannot have.

        Raises
        ------
        InputError
            With the first such name.
        """
        for name in names:
            if "/" in name or "\0" in name or not name.strip("."):
                raise InputError(
                    f"{name!r} cannot be the name of an obs column, which holds no '/' and no NUL "
                    "and more than dots: leave probabilities and scores out, or choose another "
                    "prefix"
                )
            if self._folder and len(name.encode()) > _LONGEST:
                raise InputError(
                    f"{name!r} is too long for a column in a zarr folder, of {_LONGEST} bytes at "
                    "most: leave probabilities and scores out, or write to .parquet or .csv"
                )
        root = open_root(self._source, str(self._source))
        try:
            obs = root["obs"]
            version = obs.attrs.get("encoding-version")
            if not hasattr(obs, "keys") or version != _NEWEST:
                raise InputError(
                    f"obs of {self._source} is written in an older form of anndata, to which no "
                    "columns can be added: read and write it anew with a current anndata"
                )
            frame = StoredFrame(obs, f"obs of {self._source}")
            there = set(names) & set(frame.columns())
            index = obs.attrs["_index"]
        finally:
            close_root(root)
        if index in names:
            raise InputError(
                f"{index!r} is the index of obs in {self._source}: choose another prefix"
            )
        if there and not self._overwrite:
            raise InputError(
                f"obs of {self._source} has a column {min(there)!r}: pass overwrite=True "
                "(--overwrite) to replace it, or a prefix"
            )

    def write(self, columns: Iterable[tuple[str, Column]]) -> None:
        """Add columns, one after the other, and put the result in its place."""
        if self._folder and self._in_place:
            _add_to_zarr(self._source, columns)
            return
        overwrite = self._overwrite or self._in_place
        with replacing(self._target, overwrite, folder=self._folder) as partial:
            _copy(self._source, partial, self._size, self._progress)
            (_add_to_zarr if self._folder else _add_to_hdf5)(partial, columns)
            if self._in_place:
                found = self._source.stat()
                with suppress(PermissionError):  # a file of another user becomes ours
                    os.chown(partial, found.st_uid, found.st_gid)
                shutil.copymode(self._source, partial)


def warn_of_leftovers(folder: Path, name: str | None = None) -> None:
    """Warn of what killed processes left in a folder, beside the file `name` or beside any."""
    for path in sorted(folder.glob(f".{'*' if name is None else glob.escape(name)}.*")):
        if _ASIDE.fullmatch(path.name):
            logger.warning(
                "%s was left by a run that was killed, or belongs to one that still works: if none "
                "does, delete it", path,
            )  # fmt: skip


def _tree(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder of a store with the files in it, parents first; links are followed."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"{str(folder)!r} is a link to a folder that it lies in: remove the link")
    inside = [path for path in folder.iterdir() if not _ASIDE.fullmatch(path.name)]
    yield folder, [path for path in inside if path.is_file()]
    for path in inside:
        if path.is_dir():
            yield from _tree(path, (*above, real))


def _files(path: Path) -> Iterable[Path]:
    return (f for _, files in _tree(path) for f in files) if path.is_dir() else [path]


def _copy(source: Path, target: Path, size: int, progress: bool) -> None:
    """Copy a file, or a folder of files, without permissions: an atlas may be read-only."""
    with stage("Copying", size, "B", show=progress) as bar:
        if not source.is_dir():
            _copy_file(source, target, bar.update)
            return
        for folder, files in _tree(source):
            to = target / folder.relative_to(source)
            to.mkdir()
            for file in files:
                _copy_file(file, to / file.name, bar.update)


def _copy_file(source: Path, target: Path, done: Callable[[int], object]) -> None:
    with source.open("rb") as file, target.open("wb") as copy:
        while part := file.read(_PIECE):
            copy.write(part)
            done(len(part))


def _write(group: Any, name: str, values: Column, **kwargs: Any) -> None:
    from anndata.io import write_elem

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, about forms of text that anndata chose
        write_elem(group, name, values, dataset_kwargs=kwargs)


def _add_to_hdf5(path: Path, columns: Iterable[tuple[str, Column]]) -> None:
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        order = StoredFrame(obs, "obs").columns()
        for name, values in columns:
            if name in obs:
                del obs[name]
            _write(obs, name, values)
            order += [] if name in order else [name]
        obs.attrs["column-order"] = order


def _add_to_zarr(path: Path, columns: Iterable[tuple[str, Column]]) -> None:
    """Add columns in an order that leaves the store readable wherever it ends.

    A column that is not in obs' `column-order` is not read. So all are written aside first; then
    those that will be replaced leave that list, all are renamed, and enter it last.
    """
    obs: Any = zarr.open_group(path, path="obs", mode="r+", use_consolidated=False)
    order = StoredFrame(obs, "obs").columns()
    added: list[str] = []
    with ExitStack() as renamed:
        for name, values in columns:
            partial = renamed.enter_context(replacing(path / "obs" / name, overwrite=True))
            _write(obs, partial.name, values, shards=None)
            added.append(name)
        kept = [name for name in order if name not in added]
        if len(kept) < len(order):
            _set_columns(path, kept)
    _set_columns(path, kept + added)


def _set_columns(path: Path, order: list[str]) -> None:
    """Name the columns of obs: in its own attributes, then in the store's consolidated metadata."""
    store = _ReplacingStore(path)
    obs = zarr.open_group(store, path="obs", mode="r+", use_consolidated=False)
    obs.attrs["column-order"] = order
    if zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the standard does not know it yet
            zarr.consolidate_metadata(store)


class _ReplacingStore(zarr.storage.LocalStore):
    """A folder whose files change over in one step, and are on disk once they have.

    What is written aside, or was left there by a killed process, is no part of the store.
    """

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async for name in super().list_dir(prefix):
            if not _ASIDE.fullmatch(name):
                yield name

    async def set(self, key: str, value: Any) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, overwrite=True, folder=False) as partial:
            partial.write_bytes(value.to_bytes())
            if path.exists():
                shutil.copymode(path, partial)
