"""A zarr folder or .zip enters; its root group leaves, which takes no chunk that went for zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore, ZipStore

from streamtrain.decode.codecs import has_room_for_texts
from streamtrain.decode.files import METADATA, LocalFiles, Opened
from streamtrain.decode.zarr import missing
from streamtrain.errors import InputError
from streamtrain.sources.damage import damaged


class Watched:
    """What a store has to say of its files: of one that is not there, and of one that runs code."""

    def __init__(self) -> None:
        self.complete: set[str] = set()  # arrays of which no chunk may be missing
        self.texts: dict[str, list[Any]] = {}  # what decodes chunks of texts up to these

    def require(self, found: Any, key: str, name: str) -> Any:
        """Pass bytes on, and None but for a chunk that must be there."""
        array = next((path for path in self.complete if key.startswith(f"{path}/")), None)
        if found is None and array is not None and not key.endswith(METADATA):
            raise missing(name, array, f"in the file {key.removeprefix(array + '/')}")
        if found is not None and key.endswith(METADATA) and _names_pickle(found.to_bytes()):
            raise InputError(
                f"{name}/{key} names the codec 'pickle', by which a file can run any code: it is "
                "not read; have it written by AnnData.write_zarr"
            )
        texts = next((path for path in self.texts if key.startswith(f"{path}/")), None)
        if found is not None and texts is not None and not key.endswith(METADATA):
            raw = found.to_bytes()
            for step in self.texts[texts]:
                raw = step(raw)
            if not has_room_for_texts(raw):
                raise damaged(f"{name}/{key}", "it claims more texts than it has bytes for")
        return found


def _names_pickle(metadata: bytes) -> bool:
    """Whether an array's filters or compressor are numcodecs' pickle, which needs no other word."""
    if b"pickle" not in metadata:
        return False

    def within(tree: Any) -> bool:
        if isinstance(tree, dict):
            return tree.get("id") == "pickle" or any(map(within, tree.values()))
        return isinstance(tree, list) and any(map(within, tree))

    try:
        return within(json.loads(metadata))
    except (ValueError, RecursionError):  # which zarr says
        return False


class FolderStore(LocalStore):
    """A folder, for reading; refused is what was written, or went, after it was opened."""

    def __init__(self, root: Path, opened: Opened) -> None:
        super().__init__(root, read_only=True)
        self.files = LocalFiles(root, opened=opened)
        self.watched = Watched()

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Bytes of a file; None where there is none, and there was none."""
        found = await super().get(key, prototype, byte_range)
        self.files.require_same(key)
        return self.watched.require(found, key, self.files.name)


class ZippedStore(ZipStore):
    """A .zip file, for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="r")
        self.watched = Watched()

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Bytes of a file; None where there is none."""
        found = await super().get(key, prototype, byte_range)
        return self.watched.require(found, key, str(self.path))


def open_zarr(path: Path, opened: Opened) -> Any:
    """Open what is at the root of a folder or a .zip."""
    return zarr.open(FolderStore(path, opened) if path.is_dir() else ZippedStore(path), mode="r")
