"""A path and a writer enter; a finished file or folder leaves, or what stood there before."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from streamtrain.errors import InputError

_TRIES = 20  # to delete what failed
T = TypeVar("T")

NEW = ".new"  # ending of a file that is being written
ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether it is of a server, also one that passed through `Path`, which drops a slash."""
    return re.match("[a-z][a-z0-9]+:/", str(path)) is not None


def check_output(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    *,
    folder: bool | None = None,
    marks: Sequence[str] = ZARR_MARKS,
) -> Path:
    """Check that an output may be written at `path`, before any work is spent on it.

    Parameters
    ----------
    path
        Where the file or folder shall stand; a symbolic link means what it points to.
    overwrite
        Whether an output that stands there may be replaced. Of folders, only one with a file of
        `marks` may: a zarr store.
    folder
        Whether a folder (True) or a file (False) will be written; a target of the other kind is
        then refused. None where that is not known yet.

    Returns
    -------
    Path
        `path`, absolute and with its links followed.

    Raises
    ------
    InputError
        The parent folder is missing or not writable, or the target exists and may not be replaced.
    """
    if is_address(path):
        raise InputError(
            f"the output must be on a disk, and is {str(path)!r} on a server: choose another path"
        )
    # Resolved, so that a link to another disk stays a link and the data goes where it points.
    target = Path(path).expanduser().resolve()
    steady(target, lambda: _check(path, target, overwrite, folder, marks))
    return target


def check_atlas_output(
    path: str | os.PathLike[str], overwrite: bool = False, *, folder: bool
) -> Path:
    """Check as `check_output` does that an AnnData may be written, which replaces no other store.

    Raises
    ------
    InputError
        As `check_output`, or if a store without obs stands there.
    """
    target = check_output(path, overwrite, folder=folder)

    def check() -> None:
        # --overwrite on a mistyped path must not cost a model.
        if target.is_dir() and not (target / "obs").exists():
            raise InputError(
                f"{str(path)!r} is no AnnData, and not overwritten by one: choose another path"
            )

    steady(target, check)
    return target


def _check(
    path: str | os.PathLike[str],
    target: Path,
    overwrite: bool,
    folder: bool | None,
    marks: Sequence[str],
) -> None:
    parent = target.parent
    if not parent.is_dir():
        raise InputError(
            f"cannot write {str(path)!r}: the folder {str(parent)!r} does not exist, create it"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {str(path)!r}: no permission to write in {str(parent)!r}, "
            "choose another path"
        )
    if not target.exists():
        return
    if not overwrite:
        raise InputError(f"{str(path)!r} exists: pass overwrite=True (--overwrite) or another path")
    if target.is_dir() and not any((target / mark).exists() for mark in marks):
        kind = "a zarr store" if marks is ZARR_MARKS else "one of ours"
        raise InputError(
            f"{str(path)!r} is a folder but not {kind} (no {', '.join(marks)}): "
            "it is not overwritten, choose another path"
        )
    if not (target.is_dir() or target.is_file()):
        raise InputError(f"{str(path)!r} is neither a file nor a folder: choose another path")
    if folder is not None and folder != target.is_dir():
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise InputError(
            f"{str(path)!r} is a {found} and would be replaced by a {wanted}: choose another path"
        )


def steady(path: Path, read: Callable[[], T]) -> T:
    """Call `read`, again where it fails while another process replaces what stands at `path`."""
    while True:
        before = _identity(path)
        try:
            return read()
        except InputError:
            if _identity(path) == before:
                raise


def _identity(path: Path) -> tuple[int, ...] | None:
    """By what a file or folder is known: one that is renamed to its place differs."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    *,
    folder: bool | None = None,
    marks: Sequence[str] = ZARR_MARKS,
) -> Iterator[Path]:
    """Give a sibling path to write to, which takes the place of `path` once the block ends well.

    The sibling (`.{name}.{random}.partial`) is fsynced and renamed over `path`. When the block
    raises it is removed, and what stood at `path` stays. A file changes over in one step; a folder
    in two renames (the old aside, the new in), after which the old one is deleted.

    Parameters
    ----------
    path, overwrite, folder, marks
        As in `check_output`, which runs first.

    Yields
    ------
    Path
        Where the block shall create one file or one folder.

    Raises
    ------
    InputError
        As `check_output`, before the block and, if the target appeared meanwhile, after it.
    FileNotFoundError
        The block ended without creating anything.
    """
    target = check_output(path, overwrite, folder=folder, marks=marks)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        with disk_full(target):
            yield partial
            put_in_place(partial, path, overwrite, marks)
    except BaseException:
        remove(partial)
        for _ in range(_TRIES):  # of several writes of zarr one failed, the others are under way
            time.sleep(0.05)
            if not partial.exists():
                break
            remove(partial)
        raise


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Word the error of a disk that is full, or cannot be written any more."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter of h5py, which has the number in words
        told = re.search(r"errno = (\d+)", str(error))
        number = int(told[1]) if told else int(getattr(error, "errno", 0) or 0)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"the disk of {path} is full ({os.strerror(number)}): free some space there, or "
                "choose a larger disk"
            ) from error
        # What the block reads may be denied, too.
        denied = number in (errno.EROFS, errno.EACCES, errno.EPERM)
        file = getattr(error, "filename", None) or path
        if denied and path.parent in Path(file).absolute().parents:
            raise InputError(
                f"{path} cannot be written ({os.strerror(number)}): choose a folder that can be"
            ) from error
        raise


def put_in_place(
    partial: Path,
    path: str | os.PathLike[str],
    overwrite: bool = False,
    marks: Sequence[str] = ZARR_MARKS,
) -> None:
    """Fsync a finished file or folder, and rename it to `path` on the same disk.

    Parameters
    ----------
    partial
        What was written.
    path, overwrite, marks
        As in `check_output`, which runs once more.
    """
    fsync_tree(partial)
    target = check_output(path, overwrite, folder=partial.is_dir(), marks=marks)
    former = _rename(partial, target, lambda: check_output(path, overwrite, marks=marks))
    fsync(target.parent)
    for old in former:
        try:
            shutil.rmtree(old)
        except OSError as error:  # the new output is in place: work done must not end in an error
            warnings.warn(f"could not delete the former output {old}: {error}", stacklevel=4)


def replace_file(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside, fsync it, and rename it to `file`, which stays where that fails."""
    new = file.with_name(f"{file.name}{NEW}")
    new.unlink(missing_ok=True)
    try:
        write(new)
        fsync(new)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    new.replace(file)
    fsync(file.parent)


def _rename(partial: Path, target: Path, check: Callable[[], Any]) -> list[Path]:
    """Rename `partial` to `target`; folders there go aside, also one that others put there now.

    Returns
    -------
    list
        Where the former folders are.
    """
    former: list[Path] = []
    if not partial.is_dir():
        partial.replace(target)
        return former
    while True:
        try:
            partial.rename(target)
            return former
        except BaseException as error:
            if getattr(error, "errno", None) not in (errno.ENOTEMPTY, errno.EEXIST):
                for old in former[-1:]:
                    old.rename(target)
                raise
        check()
        old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
        with suppress(FileNotFoundError):  # another process has just taken it away
            target.rename(old)
            former.append(old)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # the caller's own exception matters more
    else:
        path.unlink(missing_ok=True)


def fsync_tree(path: Path) -> None:
    """Have the system write a file, or a folder and all in it, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))
    if not path.is_dir():
        fsync(path)


def fsync(path: Path) -> None:
    """Have the system write a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
