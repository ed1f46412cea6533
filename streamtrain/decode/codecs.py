"""Names of codecs as zarr and HDF5 write them enter; a function from bytes to entries leaves.

Every step runs off the GIL but crc32c, which is fast. What is not listed here is left to the
format's own library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import deflate
import google_crc32c
import numpy as np
from numcodecs import blosc, get_codec, lz4, zstd
from numpy.typing import NDArray

from streamtrain.decode.files import Bytes
from streamtrain.kernels import decode as kernel

# Takes encoded bytes, the decoded size, and a buffer of that size that it may fill and return.
Step = Callable[[Bytes, int, Bytes], Bytes]


def _require(told: int, nbytes: int) -> None:
    if told != nbytes:
        raise ValueError(f"a chunk decodes to {told} bytes, and {nbytes} are due")


def _as_bytes(values: Any, nbytes: int) -> Bytes:
    found: Bytes = np.frombuffer(values, np.uint8)
    _require(len(found), nbytes)
    return found


def _deflate(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:  # noqa: ARG001 - a Step
    # libdeflate: 350 million entries/s on two threads, where ISA-L decodes 150 and zlib 60.
    return _as_bytes(deflate.zlib_decompress(raw, nbytes), nbytes)


def _gzip(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:  # noqa: ARG001 - a Step
    return _as_bytes(deflate.gzip_decompress(raw, nbytes), nbytes)


def _zstd(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:  # noqa: ARG001 - a Step
    return _as_bytes(zstd.decompress(raw), nbytes)


# numcodecs fills only as much of a buffer as the header tells, and its blosc reads as far as the
# header tells, beyond the end of a chunk that was cut short: both are checked before.


def _lz4(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:
    _require(_number(raw, 0), nbytes)
    lz4.decompress(raw, buffer)
    return buffer


def _blosc(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:
    _require(_number(raw, 4), nbytes)
    if _number(raw, 12) != len(raw):
        raise ValueError(f"a chunk has {len(raw)} bytes, and {_number(raw, 12)} are due")
    blosc.decompress(raw, buffer)
    return buffer


def _number(raw: Bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4].tobytes(), "little")


def _crc32c(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:  # noqa: ARG001 - a Step
    return verified(raw)


def verified(raw: Bytes) -> Bytes:
    """Cut off the CRC-32C in the last four bytes.

    Raises
    ------
    ValueError
        Where it is not that of the bytes before.
    """
    body, told = raw[:-4], raw[-4:].tobytes()
    if google_crc32c.value(body.tobytes()).to_bytes(4, "little") != told:
        raise ValueError("a checksum (crc32c) does not match its bytes")
    return body


def _fletcher32(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:  # noqa: ARG001 - a Step
    # numcodecs has it, too, but holds the GIL, and raises IndexError for a chunk cut short.
    body, told = raw[:-4], raw[-4:].tobytes()
    if int(kernel.fletcher32(body)).to_bytes(4, "little") != told:
        raise ValueError("a checksum (fletcher32) does not match its bytes")
    return body


def _lzf(raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:
    if kernel.unlzf(raw, buffer) != nbytes:
        raise ValueError(f"an lzf chunk does not decode to the {nbytes} bytes that are due")
    return buffer


_WIDE = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def _unshuffle(itemsize: int, raw: Bytes, nbytes: int, buffer: Bytes) -> Bytes:
    _require(len(raw), nbytes)
    if itemsize == 1:
        return raw
    if np.shares_memory(raw, buffer):
        raw = raw.copy()
    kernel.UNSHUFFLE[itemsize](raw, buffer.view(_WIDE[itemsize]))
    return buffer


class Decoder:
    """Decode chunks of one array: steps in the order of decoding, then entries of `dtype`."""

    def __init__(self, steps: Sequence[Step], dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._steps = steps

    def without(self, mask: int) -> Decoder:
        """The same for an HDF5 chunk that skips filters: bit i of `mask` is the i-th to encode."""
        n = len(self._steps)
        steps = [step for i, step in enumerate(self._steps) if not mask >> (n - 1 - i) & 1]
        return Decoder(steps, self.dtype)

    def __call__(self, raw: Bytes, n: int, buffer: Bytes) -> NDArray[Any]:
        """The `n` entries of a chunk, perhaps in `buffer`, of n * itemsize bytes."""
        nbytes = n * self.dtype.itemsize
        for step in self._steps:
            raw = step(raw, nbytes, buffer)
        return _as_bytes(raw, nbytes).view(self.dtype)


_ZARR: dict[str, Step] = {"blosc": _blosc, "zstd": _zstd, "gzip": _gzip}
_ZARR2: dict[str, Step] = _ZARR | {"lz4": _lz4, "zlib": _deflate}
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_HDF5: dict[int, Step] = {_DEFLATE: _deflate, _FLETCHER32: _fletcher32, _LZF: _lzf}
_HDF5_ORDER = {_SHUFFLE: 0, _DEFLATE: 1, _LZF: 1, _FLETCHER32: 2}


def for_zarr3(codecs: Sequence[dict[str, Any]], dtype: Any) -> Decoder | None:
    """Decoder for a chain of zarr v3 codecs without sharding; None where one is not known."""
    first, *rest = codecs
    if first["name"] != "bytes":
        return None
    names = [codec["name"] for codec in rest]
    sized = [name for name in names if name != "crc32c"]
    # A checksum inside of the compression would make the decompressed size another.
    if len(sized) > 1 or sized != names[: len(sized)] or not set(sized) <= set(_ZARR):
        return None
    steps = [_crc32c if name == "crc32c" else _ZARR[name] for name in reversed(names)]
    endian = first.get("configuration", {}).get("endian", "little")
    return Decoder(steps, np.dtype(dtype).newbyteorder("<" if endian == "little" else ">"))


def for_zarr2(compressor: dict[str, Any] | None, filters: Any, dtype: Any) -> Decoder | None:
    """Decoder for a zarr v2 array; None where its compressor or a filter is not known."""
    if filters:
        return None
    if compressor is None:
        return Decoder([], dtype)
    step = _ZARR2.get(compressor["id"])
    return None if step is None else Decoder([step], dtype)


def before_texts(metadata: Any) -> list[Callable[[bytes], Any]] | None:
    """What decodes a chunk up to its texts (vlen-utf8); None where that is not known."""
    if metadata.zarr_format == 2:
        if [codec.codec_id for codec in metadata.filters or ()] != ["vlen-utf8"]:
            return None
        return [] if metadata.compressor is None else [metadata.compressor.decode]
    first, *rest = [codec["name"] for codec in metadata.to_dict()["codecs"]]
    if first != "vlen-utf8" or not set(rest) <= set(_ZARR):
        return None
    return [get_codec({"id": name}).decode for name in reversed(rest)]


def has_room_for_texts(raw: Bytes | bytes) -> bool:
    """Whether a chunk is long enough for as many texts as it claims: each has 4 bytes of length."""
    return 4 + 4 * int.from_bytes(bytes(raw[:4]), "little") <= len(raw)


def for_hdf5(filters: Sequence[int], dtype: Any) -> Decoder | None:
    """Decoder for the numbers of filters in the order of encoding; None for others."""
    # Only in the order in which HDF5 and h5py put them: others change the sizes in between.
    ranks = [_HDF5_ORDER.get(number, -1) for number in filters]
    if -1 in ranks or ranks != sorted(set(ranks)):
        return None
    steps: dict[int, Step] = {**_HDF5, _SHUFFLE: partial(_unshuffle, np.dtype(dtype).itemsize)}
    return Decoder([steps[number] for number in reversed(filters)], dtype)
