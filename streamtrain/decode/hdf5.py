"""An open HDF5 dataset enters; the places of its chunks, and their decoder, leave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from streamtrain.decode import codecs
from streamtrain.decode.chunks import Chunks, Place
from streamtrain.decode.codecs import Decoder
from streamtrain.decode.files import Files, LocalFiles
from streamtrain.decode.seekable import remote_file


@dataclass
class FlatChunks:
    """An uncompressed array in one piece, seen as chunks of `n` entries."""

    files: Files
    n: int
    offset: int
    size: int
    decoder: Decoder
    padded = False
    told = False

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie."""
        width = self.decoder.dtype.itemsize
        return [
            Place(
                "",
                self.offset + i * self.n * width,
                self.offset + min((i + 1) * self.n, self.size) * width,
                self.decoder,
            )
            for i in chunks.tolist()
        ]


@dataclass
class Hdf5Chunks:
    """Chunks of an HDF5 dataset: offset and size of each, 16 bytes, read once."""

    files: Files
    n: int
    decoder: Decoder
    table: NDArray[np.uint64]  # offset and size, 0 where never written; shape (n_chunks, 2)
    masks: dict[int, int]  # of the chunks that skip filters
    padded = True
    told = False

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where they lie."""
        found: list[Place | None] = []
        for i, (offset, size) in zip(chunks.tolist(), self.table[chunks].tolist(), strict=True):
            mask = self.masks.get(i, 0)
            decoder = self.decoder.without(mask) if mask else self.decoder
            found.append(None if size == 0 else Place("", offset, offset + size, decoder))
        return found


def of_hdf5(dataset: h5py.Dataset) -> Chunks | None:
    """Chunks of an HDF5 dataset; None where only h5py can read it.

    So it is for data that is virtual, external, behind a user block, in memory or still being
    written, for types that numpy does not have (of 12 bits, say), and for filters that `codecs`
    does not know.
    """
    files = _files(dataset)
    if files is None:
        return None
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    decoder = codecs.for_hdf5(filters, dataset.dtype)
    if decoder is None:
        return None
    if dataset.chunks is None:
        offset = dataset.id.get_offset()  # None: compact in its header, or never written
        n = max(1, (1 << 20) // dataset.dtype.itemsize)
        return None if offset is None else FlatChunks(files, n, offset, len(dataset), decoder)
    n = int(dataset.chunks[0])
    # Zeros take no memory until they are written: a damaged length may claim any number of chunks.
    table = np.zeros((-(-len(dataset) // n), 2), np.uint64)
    masks: dict[int, int] = {}

    def note(info: Any) -> None:
        i = info.chunk_offset[0] // n
        if i < len(table):  # a dataset that shrank may keep chunks beyond its end
            table[i] = info.byte_offset, info.size
            if info.filter_mask:
                masks[i] = info.filter_mask

    dataset.id.chunk_iter(note)  # one pass over the B-tree; get_chunk_info walks it for each chunk
    if plist.get_fill_time() == h5py.h5d.FILL_TIME_NEVER and not table[:, 1].all():
        return None  # what a chunk that was never written holds is for HDF5 to say
    return Hdf5Chunks(files, n, decoder, table, masks)


def _files(dataset: h5py.Dataset) -> Files | None:
    """The file, if it holds the entries as numpy would, all written, at offsets from its start."""
    file = dataset.file
    if (
        file.mode != "r"
        or file.swmr_mode
        or file.userblock_size
        or dataset.is_virtual
        or dataset.external
    ):
        return None
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype, logical=True)):
        return None
    if file.driver == "fileobj":
        remote = remote_file(file.filename)
        return None if remote is None else remote.files
    if file.driver != "sec2":
        return None
    try:  # another file may have taken the name since
        found = os.fstat(file.id.get_vfd_handle())
        same = os.path.samestat(found, Path(file.filename).stat())
    except OSError:
        return None
    return LocalFiles(file.filename, found) if same else None
