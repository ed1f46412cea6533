"""A sound model, pickle or checkpoint enters; the same with one thing wrong in it leaves."""

from __future__ import annotations

import json
import pickletools
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c

from benchmarks.fuzz.atlases import Change, zarr_arrays, zarr_bytes, zarr_metadata
from benchmarks.fuzz.changes import INTEGERS, changed_bytes, changed_json
from benchmarks.fuzz.seeds import Seed

_INSERTED = (
    b"0", b"2", b"(", b"1", b"N", b"\x88", b"]", b"}", b")", b"t", b"l", b"d", b"R", b"b", b"s",
    b"u", b"a", b"e", b"\x81", b"\x85", b"\x86", b"\x87", b"\x93", b"\x94", b"\x82\x01", b"Q",
    b"h\x00", b"h\x05", b"h\xff", b"q\x00", b"q\x05", b"K\x07", b"J\xff\xff\xff\x7f", b".",
    b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"cos\nsystem\n",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"I01\n",
    b"Pid\n", b"i__main__\nx\n", b"V\\ud800\n", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f",
    b"X\x02\x00\x00\x00T0", b"cnumpy\ndtype\n", b"cbuiltins\nbytearray\n", b"\x8f", b"\x90",
)  # fmt: skip
_LENGTHS = {"BINBYTES": 4, "BINUNICODE": 4, "SHORT_BINBYTES": 1, "SHORT_BINUNICODE": 1,
            "BINUNICODE8": 8, "BINBYTES8": 8, "FRAME": 8, "LONG1": 1}  # fmt: skip


def model_signed(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:
    """Change an array or the JSON, and write the checksum that then belongs there."""
    import xarray as xr

    from streamtrain import model_store

    changed, what = rng.choice((zarr_arrays, zarr_arrays, zarr_metadata))(seed, rng, folder)
    path = changed.write(folder, "signed")
    files = dict(changed.files)
    try:
        with xr.open_zarr(path, chunks=None, consolidated=False, decode_cf=False) as opened:
            told = model_store.checksum(opened.load())
        attrs = json.loads(files[".zattrs"])
        attrs["checksum"] = told
        files[".zattrs"] = json.dumps(attrs).encode()
        meta = json.loads(files[".zmetadata"])
        for name, raw in files.items():
            if Path(name).name in (".zarray", ".zgroup", ".zattrs"):
                meta["metadata"][name] = json.loads(raw)
        files[".zmetadata"] = json.dumps(meta).encode()
    except Exception:  # what cannot be read needs no checksum
        return changed, what
    return replace(seed, files=files), f"{what}, signed"


def pickle_bytes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Damage the file anywhere."""
    raw, what = changed_bytes(seed.files[""], rng)
    return replace(seed, files={"": raw}), what


def pickle_opcodes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Delete, insert, double or exchange opcodes, or change their arguments."""
    raw = seed.files[""]
    ops = list(pickletools.genops(raw))
    starts = [at or 0 for _, _, at in ops] + [len(raw)]
    parts = [raw[a:b] for a, b in pairwise(starts)]
    i, j = rng.randrange(1, len(ops)), rng.randrange(1, len(ops))
    name = ops[i][0].name
    how = rng.choice(("delete", "insert", "insert", "double", "swap", "copy", "memo", "length",
                      "name", "value"))  # fmt: skip
    if how == "delete":
        parts[i] = b""
    elif how == "insert":
        parts[i] += rng.choice(_INSERTED) * rng.choice((1, 1, 1, 2, 300))
    elif how == "double":
        parts[i] *= 2
    elif how == "swap":
        parts[i], parts[j] = parts[j], parts[i]
    elif how == "copy":
        parts[i] = parts[j]
    else:
        i, what = _argument(how, ops, parts, rng)
        return replace(seed, files={"": b"".join(parts)}), what
    return replace(seed, files={"": b"".join(parts)}), f"{how} opcode {i} ({name})"


def _argument(how: str, ops: list[Any], parts: list[bytes], rng: Random) -> tuple[int, str]:
    kinds = {
        "memo": ("BINGET", "BINPUT", "LONG_BINGET", "LONG_BINPUT"), "length": tuple(_LENGTHS),
        "name": ("GLOBAL", "SHORT_BINUNICODE", "BINUNICODE"),
        "value": ("BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"),
    }[how]  # fmt: skip
    found = [i for i, (opcode, _, _) in enumerate(ops) if opcode.name in kinds]
    if not found:
        return 0, "nothing"
    i = rng.choice(found)
    part, name = parts[i], ops[i][0].name
    if how == "length":
        width = _LENGTHS[name]
        old = int.from_bytes(part[1 : 1 + width], "little")
        new = rng.choice((old + 1, max(0, old - 1), *INTEGERS)) % 256**width
        parts[i] = part[:1] + new.to_bytes(width, "little") + part[1 + width :]
    elif how == "name" and name == "GLOBAL":
        others = [parts[k] for k in found if ops[k][0].name == "GLOBAL"]
        parts[i] = rng.choice((*others, b"cbuiltins\neval\n", b"cnumpy\nload\n"))
    elif how == "name":
        parts[i] = rng.choice(parts[1:-1])
    else:
        parts[i] = part[:1] + changed_bytes(part[1:], rng)[0]
    return i, f"{how} of opcode {i} ({name})"


def state_bytes(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Damage the file anywhere."""
    raw, what = changed_bytes(seed.files[""], rng)
    return replace(seed, files={"": raw}), what


def state_signed(seed: Seed, rng: Random, folder: Path) -> tuple[Seed, str]:  # noqa: ARG001
    """Change the header or the arrays, and write the checksum that then belongs there."""
    from streamtrain import frozen

    raw, begin = seed.files[""][:-4], len(frozen._MAGIC) + 8
    size = int.from_bytes(raw[begin - 8 : begin], "little")
    header, arrays = raw[begin : begin + size], raw[-(-(begin + size) // 64) * 64 :]
    header, what = changed_json(header, rng)
    if rng.random() < 0.2:
        arrays, what = changed_bytes(arrays, rng)
    whole = raw[: begin - 8] + len(header).to_bytes(8, "little") + header
    whole += bytes(-len(whole) % 64) + arrays
    whole += google_crc32c.value(whole).to_bytes(4, "little")
    return replace(seed, files={"": whole}), f"{what}, signed"


MODEL: dict[str, Change] = {
    "model chunks": zarr_bytes,
    "model metadata": zarr_metadata,
    "model signed": model_signed,
}
PICKLE: dict[str, Change] = {"pickle bytes": pickle_bytes, "pickle opcodes": pickle_opcodes}
STATE: dict[str, Change] = {"state bytes": state_bytes, "state signed": state_signed}
