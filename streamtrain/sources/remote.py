"""AnnData on a server: an address enters, its open root group in zarr or HDF5 leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import h5py
import zarr
from zarr.storage import ObjectStore

from streamtrain.decode.address import Address
from streamtrain.decode.files import METADATA, Opened
from streamtrain.decode.remote import RemoteFiles, explained
from streamtrain.decode.seekable import RemoteFile
from streamtrain.errors import InputError
from streamtrain.sources.damage import READ_ERRORS
from streamtrain.sources.zarr_stores import Watched

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5 = (".h5ad", ".h5", ".hdf5")
NO_ANNDATA = "pass the address of an .h5ad file, or of the folder of a zarr AnnData"


class RemoteStore(ObjectStore):  # type: ignore[type-arg]
    """What zarr itself reads from a server (all but X), with our words for what goes wrong."""

    def __init__(self, files: RemoteFiles) -> None:
        super().__init__(files.store, read_only=True)
        self.files = files
        self.watched = Watched()

    def __str__(self) -> str:
        return self.files.name

    def _explained(self, error: Exception, key: str) -> Exception:
        files = self.files
        return explained(error, f"{files.name}/{key}", files.address.scheme)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Bytes of a file; None where there is none."""
        from obstore.exceptions import BaseError, PermissionDeniedError

        try:
            found = await super().get(key, prototype, byte_range)
            return self.watched.require(found, key, self.files.name)
        except BaseError as error:
            # S3 says so of what is missing, to who may not list it. Of a chunk that would be
            # taken for zeros.
            if isinstance(error, PermissionDeniedError) and key.endswith(METADATA):
                return None
            raise self._explained(error, key) from None

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        from obstore.exceptions import BaseError

        try:
            return await super().exists(key)
        except BaseError as error:
            raise self._explained(error, key) from None

    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names in a folder."""
        return self._listed(super().list_dir(prefix), prefix)

    async def _listed(self, names: AsyncIterator[str], prefix: str) -> AsyncGenerator[str, None]:
        from obstore.exceptions import BaseError

        if self.files.address.scheme.startswith("http"):
            raise InputError(
                f"{self.files.name}: what is in {prefix or 'its root'} cannot be listed over "
                "http(s): consolidate the store's metadata where it was written "
                "(zarr.consolidate_metadata)"
            )
        try:
            async for name in names:
                yield name
        except BaseError as error:
            raise self._explained(error, prefix) from None

    def close(self) -> None:
        """Give up connections and threads."""
        super().close()
        self.files.close()


def open_remote(address: Address, opened: Opened | None = None) -> Any:
    """Open the root group of an AnnData on a server for reading.

    Parameters
    ----------
    opened
        When it was opened first; None for now.

    Raises
    ------
    FileNotFoundError
        Where nothing is there.
    InputError
        Where it is no AnnData, or the server does not give it.
    """
    files, name = RemoteFiles(address, opened), address.name
    if address.suffix not in _HDF5:
        version = _zarr_version(files)
        if version is not None:
            return _open_zarr(files, version)
    try:
        start, size = files.begin("", len(_SIGNATURE))
    except FileNotFoundError as error:
        if address.suffix in _HDF5:
            raise FileNotFoundError(f"{error}: correct the address") from None
        raise FileNotFoundError(f"{error}, nor {name}/zarr.json or .zgroup: {NO_ANNDATA}") from None
    if start != _SIGNATURE:
        raise InputError(f"{name} is neither an .h5ad (HDF5) file nor a zarr store: {NO_ANNDATA}")
    try:
        return h5py.File(RemoteFile(files, size), "r")
    except OSError as error:
        raise InputError(
            f"{name} cannot be opened: it is damaged, cut short or still being written ({error}); "
            "restore it from a copy or write it anew"
        ) from error


def _zarr_version(files: RemoteFiles) -> int | None:
    denied = None
    for key, version in (("zarr.json", 3), (".zgroup", 2)):
        try:
            files.begin(key)
        except FileNotFoundError:
            continue
        except InputError as error:
            if "is denied" not in str(error):
                raise
            denied = error
            continue
        return version
    if denied is not None:
        raise denied
    return None


def _open_zarr(files: RemoteFiles, version: int) -> Any:
    try:
        return zarr.open_group(RemoteStore(files), mode="r", zarr_format=version)  # type: ignore[arg-type]
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(
            f"{files.name} cannot be opened as zarr ({type(error).__name__}: {error}): {NO_ANNDATA}"
        ) from error
