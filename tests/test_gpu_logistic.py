"""Logistic regression as a GPU runs it, by NumPy, against the sums of the CPU on the same tiles."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import streamtrain
from streamtrain.errors import InputError
from streamtrain.gpu.device import Device
from streamtrain.gpu.logistic import CELLS, DeviceBlock, DeviceCells, DeviceSums, nbytes
from streamtrain.kernels import blocks as kernel
from streamtrain.rows import Rows
from streamtrain.scratch import ScratchArray
from streamtrain.solvers.logistic import Logistic, TileSums, column_classes, problem_weights
from streamtrain.threads import Threads
from streamtrain.tiles import TILE, Tiles
from tests import atlas
from tests.test_gpu_device import fake_cupy
from tests.test_logistic import NAMES, problem, solve

SIZES = (
    1500,
    300,
    5,
    256,
)  # cells of each append: blocks of several dense tiles, and of uneven ends


def filled(n_classes=4, n_genes=25, memory=1e9, dtype=np.float64):
    """Tiles of cells that came in slices, and the cells."""
    rows, _, _ = problem(n_classes, n_obs=sum(SIZES), n_genes=n_genes)
    rows = Rows(rows.data.astype(dtype), rows.indices, rows.indptr, n_genes, rows.codes)
    tiles, start = Tiles(n_genes, dtype, memory, None), 0
    for n in SIZES:
        tiles.append(rows.slice(start, start + n))
        start += n
    return tiles, rows


def point(n_genes, n_columns, size=1.0):
    rng = np.random.default_rng(3)
    return size * rng.normal(size=(n_genes, n_columns)), rng.normal(size=n_columns)


def room_for(tiles, weights, blocks):
    """Room beside which as many blocks stay on the device, and a little of the next."""
    sizes = [DeviceBlock.send(Device(np), block).nbytes for block in tiles]
    return nbytes(tiles.n_genes, *weights.shape) + 5 * tiles.largest + sum(sizes[:blocks]) + 10


# 1e-12 of the largest sum: float64 sums in another order, of some 2,000 terms as large.
def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.1, 3.0])
@pytest.mark.parametrize("spec", [None, "balanced", {"a": 5.0, "b": 0.5}], ids=str)
def test_sums__equal_the_cpu(n_classes, dtype, size, spec):
    tiles, rows = filled(n_classes, dtype=dtype)
    weights = problem_weights(spec, NAMES[:n_classes], np.bincount(rows.codes))
    classes = column_classes(n_classes)
    W, constant = point(rows.n_vars, len(classes), size)
    seen = []
    with tiles, Threads(1) as threads:
        host = TileSums(tiles, weights, threads)
        device = DeviceSums(Device(np), tiles, weights, classes)
        for columns in (np.arange(len(classes)), np.arange(len(classes))[::-2]):
            given = columns, np.ascontiguousarray(W[:, columns]), constant[columns]
            assert_same(device(*given, seen.append), host(*given, lambda _: None))
    assert seen == 2 * [1500, 300, 5, 256]


@pytest.mark.parametrize("constant", [1e3, -1e3, 40.0, -40.0])
def test_sums__of_large_scores(constant):
    """Exact where exp would overflow, and where a probability differs from 1 by rounding."""
    tiles, rows = filled()
    weights, classes = np.ones((4, 4)), np.arange(4)
    W, _ = point(rows.n_vars, 4, 0.01)
    given = np.arange(4), W, np.full(4, constant)
    with tiles, Threads(1) as threads:
        found = DeviceSums(Device(np), tiles, weights, classes)(*given, lambda _: None)
        expected = TileSums(tiles, weights, threads)(*given, lambda _: None)
    assert np.isfinite(found[0]).all()
    for a, b in zip(found, expected, strict=True):
        # 1e-11: the rounding of a score of 40, which exp magnifies. Of 1,000 curvatures are zeros.
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("memory", [0, 40_000, 1e9])
@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_sums__blocks_that_stay_are_not_read_again(memory, blocks, monkeypatch):
    """Whatever stays there the sums are the same to the bit."""
    tiles, rows = filled(memory=memory)
    weights, classes = np.ones((4, 4)), np.arange(4)
    given = np.arange(4), *point(rows.n_vars, 4)
    reads, sent = [], []
    read, send = ScratchArray.__getitem__, Device.send
    with tiles:
        expected = DeviceSums(Device(np), tiles, weights, classes)(*given, lambda _: None)
        device = Device(np, room_for(tiles, weights, blocks))
        sums = DeviceSums(device, tiles, weights, classes)
        monkeypatch.setattr(
            ScratchArray, "__getitem__", lambda self, part: reads.append(part) or read(self, part)
        )
        monkeypatch.setattr(
            Device, "send", lambda self, *arrays, **_: sent.append(arrays) or send(self, *arrays)
        )
        stored = len(tiles._offsets[1:])
        for left in (4, 4 - blocks, 4 - blocks):
            reads.clear()
            sent.clear()
            seen = []
            found = sums(*given, seen.append)
            assert len(reads) == 8 * min(stored, left)  # eight arrays a block
            assert len(sent) == left + 1  # and the weights
            assert seen == list(SIZES)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_cells__come_in_two_buffers_however_many():
    """Of all that a device is sent in a pass, a block and the next one are there at a time."""
    rows, _, _ = problem(n_obs=10 * TILE)
    xp = fake_cupy()
    with Tiles(rows.n_vars, np.float64, 0, None) as tiles:
        for start in range(0, rows.n_obs, TILE):
            tiles.append(rows.slice(start, start + TILE))
        cells = DeviceCells(Device(xp), tiles, 0)
        plain = [[a.copy() for a in DeviceBlock.send(Device(np), b).arrays] for b in tiles]
        for _ in range(2):
            for block, arrays in zip(cells, plain, strict=True):
                for a, b in zip(block.arrays, arrays, strict=True):
                    np.testing.assert_array_equal(a, b)
        assert 1 <= len(xp.made) <= 2
        assert sum(xp.made) <= 5 * tiles.largest
        kept = DeviceCells(Device(xp), tiles, np.inf)
        for _ in range(2):
            for block, arrays in zip(kept, plain, strict=True):
                for a, b in zip(block.arrays, arrays, strict=True):
                    np.testing.assert_array_equal(a, b)
        assert len(xp.made) <= 4


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("tiles_memory", [0, 1e9])
def test_solve__reaches_the_same_optimum(n_classes, tiles_memory):
    rows, shift, _ = problem(n_classes, n_obs=900)
    weights = problem_weights(None, NAMES[:n_classes], np.bincount(rows.codes))
    classes = column_classes(n_classes)
    options = {"tiles_memory": tiles_memory}
    expected = solve(rows, shift, n_classes, **options)
    found = solve(
        rows, shift, n_classes, **options,
        sums=lambda tiles: DeviceSums(Device(np), tiles, weights, classes),
    )  # fmt: skip
    assert found.certificate["converged"].all()
    # Both stop within 1e-10 of the minimum, relatively, and there on nearly the same path.
    np.testing.assert_allclose(found.coef, expected.coef, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.intercept, expected.intercept, rtol=0, atol=1e-6)


def test_solve__classes_in_turns():
    rows, shift, _ = problem()
    weights = problem_weights("balanced", NAMES, np.bincount(rows.codes))
    found, expected = (
        solve(
            rows, shift, 4, spec="balanced", memory=2 * Logistic.nbytes(25, 600),
            sums=make,
        )
        for make in (
            lambda tiles: DeviceSums(Device(np), tiles, weights, column_classes(4)), None,
        )
    )  # fmt: skip
    np.testing.assert_allclose(found.coef, expected.coef, rtol=0, atol=1e-6)


def test_sums__memory_of_the_device():
    message = r"logistic regression of 400 columns x 30,000 genes takes .* GPU memory.*gpu-memory"
    with Tiles(30_000, np.float32, 0, None) as tiles, pytest.raises(InputError, match=message):
        DeviceSums(Device(np, 2e8), tiles, np.ones((400, 400)), np.arange(400))


def test_sums__memory_of_cells_on_their_way():
    weights = np.ones((4, 4))
    tiles, rows = filled()
    with tiles, Tiles(25, np.float64, 0, None) as none:
        device = Device(np, nbytes(25, 4, 4) + 5 * tiles.largest - 1)
        sums = DeviceSums(device, none, weights, np.arange(4))
        none.append(rows.slice(0, SIZES[0]))
        with pytest.raises(InputError, match=r"logistic regression of 4 columns x 25 genes takes"):
            sums(np.arange(4), *point(25, 4), lambda _: None)


@settings(max_examples=20, deadline=None)
@given(
    n_obs=st.integers(1, 2 * CELLS), n_genes=st.integers(1, 40), share=st.sampled_from([0, 0.1, 1])
)
def test_tile__is_the_cells(n_obs, n_genes, share):
    """Also of no entries at all."""
    rng = np.random.default_rng(n_obs)
    X = np.where(rng.random((n_obs, n_genes)) < share, rng.random((n_obs, n_genes)) + 1, 0)
    csr = sp.csr_matrix(X)
    codes = rng.integers(0, 3, n_obs).astype(np.int32)
    rows = Rows(csr.data, csr.indices, csr.indptr.astype(np.int64), n_genes, codes)
    with Tiles(n_genes, np.float64, 1e9, None) as tiles:
        tiles.append(rows)
        assert sum(block.n_obs for block in sent_blocks(tiles)) == n_obs
        at = 0
        for block in sent_blocks(tiles):
            for begin, end in zip(block.cuts[:-1], block.cuts[1:], strict=True):
                tile, of_tile = block.tile(begin, end, n_genes)
                stop = at + tile.shape[1]
                assert tile.shape[1] <= CELLS
                np.testing.assert_array_equal(tile, X[at:stop].T)
                np.testing.assert_array_equal(of_tile, codes[at:stop])
                at = stop
        assert at == n_obs


def sent_blocks(tiles):
    return [DeviceBlock.send(Device(np), block) for block in tiles]


def test_kernel__residuals_as_plain_numpy():
    rng = np.random.default_rng(0)
    score, constant = rng.normal(0, 5, (50, 3)), np.array([0.0, 800.0, -800.0])
    codes, classes = rng.integers(0, 4, 50).astype(np.int32), np.array([0, 2, 3], np.int32)
    weights = rng.random((4, 3))
    s, y, w = score + constant, codes[:, None] == classes, weights[codes]
    plain = w * (np.logaddexp(0, s) - y * s), w * (expit(s) - y), w * expit(s) * expit(-s)
    sums = np.ones((3, 60, 3))
    kernel.residuals(codes, classes, weights, constant, score, *sums)
    # 1e-13: scores of up to 820, whose rounding is in the loss.
    np.testing.assert_allclose(score, plain[1], rtol=1e-13, atol=1e-15)
    for found, expected in zip(sums, plain, strict=True):
        np.testing.assert_allclose(found[:50], 1 + expected, rtol=1e-13, atol=1e-13)
        assert (found[50:] == 1).all()


@pytest.mark.parametrize("n_types", [2, 5])
@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced", "with_mean": False}], ids=str)
def test_train__equals_the_cpu(monkeypatch, options, n_types):
    adata = atlas.make(900, n_types=n_types)
    options = options | {"dtype": "float64", "progress": False, "tol": 1e-8}
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np))
    expected = streamtrain.train(adata, "cell_type", **options)
    found = streamtrain.train(adata, "cell_type", device="gpu", **options)
    for name in ("coef", "intercept", "objective"):
        a, b = (m.dataset[name].to_numpy() for m in (found, expected))
        # Both stop within 1e-10 of the minimum, relatively; coefficients differ by its root.
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


def test_train__what_does_not_fit(monkeypatch):
    monkeypatch.setattr(Device, "gpu", lambda _: Device(np, 1e4))
    with pytest.raises(InputError, match=r"logistic regression of 5 columns x [0-9]+ genes takes"):
        streamtrain.train(atlas.make(300), "cell_type", device="gpu", progress=False)
