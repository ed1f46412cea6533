"""An open one-dimensional array enters; one whose stretches are decoded on many threads leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from streamtrain.buffers import empty
from streamtrain.decode.chunks import Chunks, Place
from streamtrain.decode.codecs import Decoder
from streamtrain.decode.files import Bytes
from streamtrain.decode.hdf5 import of_hdf5
from streamtrain.decode.slices import Gatherable, as_gatherable, pieces, plain, put
from streamtrain.decode.zarr import missing, of_zarr, require_chunks
from streamtrain.threads import Threads, every_cpu

# Decoded bytes that one task takes at least: to hand it over costs 30 us, and neighbours are read
# at once. 1 MB was 8% slower.
_TASK = 1 << 22
_DECODED = 1 << 26  # bytes of decoded chunks that threads hold at a time, unless one is more
_READ = 1 << 22  # encoded bytes fetched by one read at most


def gatherable(array: Any, threads: Threads | None, complete: bool = False) -> Gatherable:
    """Decode an array by our own readers where they know its format, else by its library.

    Parameters
    ----------
    array
        One-dimensional: of h5py, zarr, numpy or scratch.
    threads
        They share the chunks; None for all CPUs.
    complete
        A chunk that is missing is refused: else it holds the fill value.
    """
    chunks: Chunks | None = None
    if len(array.shape) == 1 and array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        if isinstance(array, h5py.Dataset):
            chunks = of_hdf5(array)
        elif hasattr(array, "store_path"):
            chunks = of_zarr(array)
    if chunks is None:
        if complete and hasattr(array, "store_path"):
            require_chunks(array)
        return as_gatherable(array)
    fill = array.fillvalue if isinstance(array, h5py.Dataset) else array.fill_value
    fill = 0 if fill is None else fill  # null, which zarr v2 allows
    name = str(array.name).removeprefix("/") if complete else None
    return StoredArray(chunks, int(array.shape[0]), array.dtype, fill, threads, name)


class StoredArray:
    """Entries of chunks on disk; slices like an array, stretches decoded off the GIL.

    Parameters
    ----------
    chunks
        Where they lie.
    size
        Number of entries.
    dtype
        Of the entries as stored.
    fill
        Value of chunks that were never written.
    threads
        They share the chunks; None for all CPUs.
    complete
        What messages call the array, if a chunk that is missing is to be refused.
    """

    def __init__(
        self,
        chunks: Chunks,
        size: int,
        dtype: Any,
        fill: Any,
        threads: Threads | None,
        complete: str | None = None,
    ) -> None:
        self.shape, self.dtype = (size,), plain(np.empty(0, dtype)).dtype
        self.chunks = (chunks.n,)
        self._chunks, self._fill, self._threads = chunks, fill, threads
        self._complete = complete
        self.decoded = 0
        self._forget()

    def _forget(self) -> None:
        # What the last read in order left of its last chunk: its first entry, and values.
        self._rest: tuple[int, NDArray[Any]] = 0, np.empty(0, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_threads": None}
        del state["_rest"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def close(self) -> None:
        """Give up files and what the last read left; a later read opens anew."""
        self._forget()
        self._chunks.files.close()

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        out = np.empty(max(0, stop - start), self.dtype)
        self.gather(np.array([start]), np.array([start + len(out)]), out)
        return out

    def gather(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        out: NDArray[Any],
        limit: int | None = None,
    ) -> bool:
        """Copy stretches of entries into `out`, one after the other; each chunk is decoded once.

        Parameters
        ----------
        starts, stops
            Entries of each stretch; ascending, and none overlaps the next.
        out
            Of as many entries, and any type that holds them.
        limit
            Entries must be whole numbers, at least 0 and below it.

        Returns
        -------
        bool
            Whether they are; else `out` may hold values that the cast has changed.
        """
        some = stops > starts
        starts, stops = starts[some], stops[some]
        if len(starts) == 0:
            return True
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        n, end = self._chunks.n, int(stops[-1])
        _, touched = pieces(starts, stops, n)
        touched = touched[np.diff(touched, prepend=-1) > 0]
        rest, self._rest = self._rest, (0, np.empty(0, self.dtype))
        wrong: list[int] = []

        def place(first: int, values: NDArray[Any]) -> None:
            lo = int(np.searchsorted(stops, first, side="right"))
            hi = int(np.searchsorted(starts, first + len(values), side="left"))
            if not put((values, first, starts, stops, offsets, lo, hi), limit, out):
                wrong.append(first)

        def work(part: NDArray[np.int64]) -> None:
            for first, values in self._decoded(part):
                place(first, values)
                # What comes next goes on here: the chunk need not be decoded again.
                if end < first + len(values):
                    self._rest = end, plain(values[end - first :].copy())

        if len(rest[1]) and rest[0] // n == touched[0] and rest[0] <= starts[0]:
            place(*rest)
            if end < rest[0] + len(rest[1]):
                self._rest = end, rest[1][end - rest[0] :]
            touched = touched[1:]
        self.decoded += len(touched) * n * self.dtype.itemsize
        # Waiting for a server takes no CPU: it has more threads than there are CPUs.
        threads = self._chunks.files.threads or self._threads or every_cpu()
        threads.each(work, self._tasks(touched, threads.n))
        return not wrong

    def _tasks(self, touched: NDArray[np.int64], n_threads: int) -> list[NDArray[np.int64]]:
        """Parts for the threads; of large chunks a few at a time, as each is held decoded."""
        chunk = self._chunks.n * self.dtype.itemsize
        if chunk * n_threads > _DECODED:
            return np.array_split(touched, min(len(touched), max(1, _DECODED // chunk)) or 1)
        size = min(max(1, _TASK // chunk), -(-len(touched) // n_threads) or 1)
        return [touched[i : i + size] for i in range(0, len(touched), size)]

    def _decoded(self, chunks: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
        """First entry and values of each chunk; the values hold until the next is asked for."""
        n, size = self._chunks.n, self.shape[0]
        buffer = np.empty(0, np.uint8)
        for i, raw, decoder in self._raw(chunks):
            first = i * n
            here = min(n, size - first)
            if raw is None or decoder is None:
                if self._complete is not None and not (decoder is None and self._chunks.told):
                    raise missing(
                        self._chunks.files.name, self._complete, f"of entries {first:,} on"
                    )
                yield first, plain(np.full(here, self._fill, self.dtype))
                continue
            due = n if self._chunks.padded else here
            nbytes = due * decoder.dtype.itemsize
            if len(buffer) < nbytes:
                buffer = empty(nbytes, np.uint8)
            values = decoder(raw, due, buffer[:nbytes])
            yield first, plain(values)[:here]

    def _raw(self, chunks: NDArray[np.int64]) -> Iterator[tuple[int, Bytes | None, Decoder | None]]:
        """Encoded bytes of each chunk, neighbours fetched by one read; None for the fill value."""
        files, places = self._chunks.files, self._chunks.places(chunks)
        at = 0
        while at < len(places):
            place, i = places[at], int(chunks[at])
            if place is None or place.stop is None:
                raw = None if place is None else files.whole(place.key)
                yield i, raw, None if place is None else place.decoder
                at += 1
                continue
            run = [place]
            for other in places[at + 1 :]:
                if not _follows(run[-1], other, files.gap, place.start + _READ):
                    break
                run.append(cast(Place, other))
            raw = files.read(place.key, place.start, cast(int, run[-1].stop))
            for j, part in enumerate(run):
                lo, hi = part.start - place.start, cast(int, part.stop) - place.start
                yield int(chunks[at + j]), raw[lo:hi], part.decoder
            at += len(run)


def _follows(before: Place, place: Place | None, gap: int, end: int) -> bool:
    """Whether two places are read at once: near each other in a file, and before `end`."""
    if place is None or place.stop is None or place.key != before.key or before.stop is None:
        return False
    return before.stop <= place.start <= before.stop + gap and place.stop <= end
