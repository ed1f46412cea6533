"""Where the chunks of a stored array lie, whatever its format: what `hdf5` and `zarr` answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamtrain.decode.codecs import Decoder
from streamtrain.decode.files import Files


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one chunk lie; `stop` is None for all of a file of its own."""

    key: str
    start: int
    stop: int | None
    decoder: Decoder


class Chunks(Protocol):
    """The chunks of a one-dimensional array, by their number."""

    n: int  # entries of a chunk
    padded: bool  # whether the last chunk is stored as long as the others
    told: bool  # whether an index says which chunks its writer left out: others are missing

    @property
    def files(self) -> Files:
        """Where they lie."""
        ...

    def places(self, chunks: NDArray[np.int64]) -> list[Place | None]:
        """Where in the files; None for a chunk that was never written and holds the fill value."""
        ...
