"""The LZF encoder, read back by a plain decoder and by HDF5."""

import h5py
import numpy as np
import pytest

from streamtrain.kernels import lzf


def decompress(data):
    out = bytearray()
    k = 0
    while k < len(data):
        control = data[k]
        k += 1
        if control < 32:
            out += data[k : k + control + 1]
            k += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[k]
            k += 1
        back = ((control & 31) << 8 | data[k]) + 1
        k += 1
        for _ in range(length + 2):
            out.append(out[-back])
    return bytes(out)


def compress(values):
    out = np.full(lzf.bound(len(values)) + 8, 255, np.uint8)
    n = lzf.compress(values, out)
    assert (out[-8:] == 255).all()  # nothing beyond the bound
    return out[:n].tobytes()


def examples():
    rng = np.random.default_rng(0)
    period = rng.integers(0, 256, 8_192)  # the furthest that a reference reaches
    yield "zeros", np.zeros(100_000)
    yield "random", rng.integers(0, 256, 70_000)
    yield "few values", rng.integers(0, 3, 50_000)
    yield "furthest", np.tile(period, 3)
    yield "too far", np.tile(np.append(period, 7), 3)
    yield "runs", np.repeat(rng.integers(0, 256, 500), rng.integers(1, 700, 500))


EXAMPLES = dict(examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_compress__is_read_back(name):
    values = EXAMPLES[name].astype(np.uint8)
    small = compress(values)
    assert decompress(small) == values.tobytes()
    if name in ("zeros", "runs", "furthest"):
        assert len(small) < len(values) / 2


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 31, 32, 33, 34, 263, 264, 265, 266, 267, 268])
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_compress__short(n, kind):
    values = EXAMPLES[kind][:n].astype(np.uint8)
    assert decompress(compress(values)) == values.tobytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_compress__hdf5_reads_it(tmp_path, name):
    values = EXAMPLES[name].astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset(
            "x", shape=values.shape, dtype="u1", chunks=values.shape, compression="lzf"
        )
        array.id.write_direct_chunk((0,), compress(values))
        np.testing.assert_array_equal(array[:], values)
