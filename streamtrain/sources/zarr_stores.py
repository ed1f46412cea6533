"""A zarr folder or .zip enters; its root group leaves, which takes no chunk that went for zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore, ZipStore

from streamtrain.decode.files import LocalFiles, Opened
from streamtrain.decode.zarr import METADATA, missing


class Complete:
    """What a store has to say of a file that is not there: it belongs to an array, or does not."""

    def __init__(self) -> None:
        self.complete: set[str] = set()  # arrays of which no chunk may be missing

    def require(self, found: Any, key: str, name: str) -> Any:
        """Pass bytes on, and None but for a chunk that must be there."""
        array = next((path for path in self.complete if key.startswith(f"{path}/")), None)
        if found is None and array is not None and not key.endswith(METADATA):
            raise missing(name, array, f"in the file {key.removeprefix(array + '/')}")
        return found


class FolderStore(LocalStore):
    """A folder, for reading; refused is what was written, or went, after it was opened."""

    def __init__(self, root: Path, opened: Opened) -> None:
        super().__init__(root, read_only=True)
        self.files = LocalFiles(root, opened=opened)
        self._all = Complete()
        self.complete = self._all.complete

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Bytes of a file; None where there is none, and there was none."""
        found = await super().get(key, prototype, byte_range)
        self.files.require_same(key)
        return self._all.require(found, key, self.files.name)


class ZippedStore(ZipStore):
    """A .zip file, for reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="r")
        self._all = Complete()
        self.complete = self._all.complete

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Bytes of a file; None where there is none."""
        found = await super().get(key, prototype, byte_range)
        return self._all.require(found, key, str(self.path))


def open_zarr(path: Path, opened: Opened) -> Any:
    """Open what is at the root of a folder or a .zip."""
    return zarr.open(FolderStore(path, opened) if path.is_dir() else ZippedStore(path), mode="r")
