"""The text of the CUDA kernels, compiled as C++, against numba's; and SGD by it on a fake GPU."""

import itertools
import shutil
import subprocess

import numpy as np
import pytest

import streamtrain
from streamtrain.batches import batches
from streamtrain.gpu import device as devices
from streamtrain.gpu.cells import TILE, DeviceScaler
from streamtrain.gpu.device import THREADS, Device, Sent, source
from streamtrain.gpu.sgd import DeviceSGD
from streamtrain.kernels import blocks as kernel
from streamtrain.kernels.losses import EPSILON_INSENSITIVE, HINGE, LOG
from streamtrain.solvers.schedule import LOSSES, Schedule
from tests import atlas
from tests.cuda_on_cpu import Module
from tests.fake_cupy import Cupy, Event
from tests.test_gpu_sgd import problem
from tests.test_sgd_taken import assert_near

DTYPES = (np.float32, np.float64)
# float32: a rounding of what is written. The rest is float64, whose sums are in the same order.
NEAR = {np.float32: 1e-6, np.float64: 1e-12}


def options(dtype):
    """Those of CuPy's compiler."""
    return devices._module(Cupy(), np.dtype(dtype).name).options


def run(name, dtype, blocks, *args, seed=0, code=None):
    """Launch a kernel on copies of arrays, each among NaN or the like; give the copies."""
    whole = [a for a in args if isinstance(a, np.ndarray)]
    room = [np.full(a.nbytes + 128, 255, np.uint8) for a in whole]
    inner = [r[64:-64].view(a.dtype).reshape(a.shape) for a, r in zip(whole, room, strict=True)]
    for copy, a in zip(inner, whole, strict=True):
        copy[:] = a
    copies = iter(inner)
    given = tuple(next(copies) if isinstance(a, np.ndarray) else a for a in args)
    module = Module(code=code or source(), options=options(dtype), seed=seed)
    module.get_function(name)((blocks,), (THREADS,), given)
    assert all((r[:64] == 255).all() and (r[-64:] == 255).all() for r in room)
    return inner


def assert_close(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=NEAR[dtype], atol=NEAR[dtype])


@pytest.mark.parametrize("genes", [np.uint16, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most", [0, 3, 600])
def test_fill__is_numbas(most, dtype, genes):
    rng = np.random.default_rng(most)
    n_source, n_genes, n = 900, 700, 12
    counts = rng.integers(0, most, n + 5, endpoint=True)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.concatenate([rng.permutation(n_source)[:c] for c in counts]).astype(genes)
    data = rng.gamma(1, 2, indptr[-1]).astype(dtype)
    place = np.where(rng.random(n_source) < 0.1, -1, rng.permutation(n_source)).astype(np.int32)
    place[place >= n_genes] = -1
    rule = rng.random((n_source, 3)) * (4, 1, 1)
    nothing, out = rng.random(n_genes).astype(dtype), np.empty((n, n_genes), dtype)
    name = f"fill_{np.dtype(genes).name}"
    rest = place, rule, nothing
    given = data, indices, indptr, np.int64(3), *rest  # cells that are not the first
    found = run(name, dtype, n, *given, np.int64(n_genes), out, seed=1)[-1]
    kernel.fill(data, indices, indptr[3 : n + 4], *rest, out)
    assert_close([found], [out], dtype)


def a_block(n, dtype, n_columns=5, n_groups=3, seed=0):
    """Cells and columns as `steps` takes them, up to its options; and what it brings up to date."""
    rng = np.random.default_rng([seed, n])
    Z = rng.normal(size=(n, 20))
    of_group = n, n_groups
    taken = rng.random(of_group) < 0.9
    eta = np.where(taken, rng.uniform(0.001, 0.03, of_group), 0)
    decay = np.where(taken, rng.uniform(0.9, 1, of_group), 1)
    decay[0] = 0
    given = [
        (Z @ rng.normal(size=(20, n_columns))).astype(dtype), (Z @ Z.T).astype(dtype),
        rng.integers(0, 3, n).astype(np.int32), rng.uniform(0.5, 2, n), rng.random(n) < 0.5,
        eta, decay,
        taken & (rng.random(of_group) < 0.5), rng.random(of_group), rng.uniform(0, 9, of_group),
        rng.random(n_groups), rng.integers(0, n_groups, n_columns).astype(np.int32),
        (np.arange(n_columns) % 3).astype(np.int32), rng.uniform(1, 2, n_columns),
        rng.uniform(1, 2, n_columns),
    ]  # fmt: skip
    return given, list(rng.random((5, n_columns)))


def stepped(dtype, n, loss, tracked, averaging, **how):
    """What the kernel of CUDA brought up to date, and the steps, last."""
    given, sums = a_block(n, dtype)
    out = np.empty((n, 5 * (1 + averaging)), dtype)
    first = 3  # cells before these
    for at in range(2, 10):
        given[at] = np.concatenate([given[at][-1:]] * first + [given[at]])
    sizes = (np.int32(size) for size in (first, n, 5, 3, loss))
    numbers = np.float64(0.2), np.float64(0.3), np.int32(tracked), np.int32(averaging)
    return run("steps", dtype, 5, *given, *sizes, *numbers, *sums, out, **how)[-6:]


@pytest.mark.parametrize("n", [1, 2, 77, THREADS])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps__is_numbas(dtype, loss, n):
    for tracked, averaging in itertools.product(range(3), (False, True)):
        given, sums = a_block(n, dtype)
        out = np.empty((n, 5 * (1 + averaging)), dtype)
        kernel.steps(*given, LOSSES[loss], 0.2, 0.3, tracked, averaging, *sums, out)
        found = stepped(dtype, n, LOSSES[loss], tracked, averaging)
        assert np.isfinite(out).all()
        assert np.abs(out).max() > 0
        assert_close(found, [*sums, out], dtype)


@pytest.mark.parametrize("loss", [LOG, HINGE, EPSILON_INSENSITIVE])
def test_steps__whichever_thread_is_first(loss):
    for n in (7, THREADS):
        first, *others = (stepped(np.float64, n, loss, 2, True, seed=seed) for seed in range(4))
        for other in others:
            for a, b in zip(first, other, strict=True):
                np.testing.assert_array_equal(a, b)


# What the tests above would miss if threads ran on to the end, or always in the same order.
@pytest.mark.parametrize(
    ("text", "instead"), [("step[i & 1]", "step[0]"), ("__syncthreads();  // one a step", "//")]
)
def test_steps__a_race_is_found(text, instead):
    assert text in source()
    code = source().replace(text, instead)
    given = np.float64, 40, LOG, 2, True
    expected = stepped(*given)[-1]
    assert not np.array_equal(stepped(*given, seed=1, code=code)[-1], expected)


def test_steps__losses_wait_for_one_another():
    text = "half /= 2) {\n            __syncthreads();"
    assert text in source()
    code = source().replace(text, "half /= 2) {")
    expected = stepped(np.float64, 40, LOG, 1, False)[-3]
    assert not np.array_equal(
        stepped(np.float64, 40, LOG, 1, False, seed=1, code=code)[-3], expected
    )


def test_steps__a_barrier_that_some_threads_pass_by():
    code = source().replace("if (j == i) {", "if (j == i) { __syncthreads();")
    with pytest.raises(RuntimeError, match=r"not all threads of a block meet in line \d+"):
        stepped(np.float64, 3, LOG, 0, False, code=code)


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_genes", "n_columns"), [(1, 1), (257, 3), (64, 40)])
def test_settle__is_numbas(n_genes, n_columns, dtype, averaging):
    rng = np.random.default_rng(n_genes)
    whole, begun = rng.random((2, 3))
    group = rng.integers(0, 3, n_columns).astype(np.int32)
    moved = rng.random((n_genes, n_columns * (1 + averaging))).astype(dtype)
    U, A = rng.random((2, n_genes, n_columns)).astype(dtype)
    A = A if averaging else A[:0]
    numbers = np.int32(2), np.int32(3), np.int64(U.size), np.int32(n_columns), np.int32(averaging)
    blocks = -(-U.size // THREADS)
    of_blocks = (np.vstack([rng.random((2, 3)), factors]) for factors in (whole, begun))
    given = moved, *of_blocks, group, *numbers, U, A
    found = run("settle", dtype, blocks, *given, seed=1)[-2:]
    kernel.settle(moved, whole, begun, group, averaging, U, A)
    assert_close(found, [U, A], dtype)


# As many as fit a tile, more and fewer, in an order that makes buffers too small, and too large.
SIZES = (1, 300, 37, 2, TILE, 290, 700, 64, 3, 1)


def trained(device, *, dtype=np.float64, genes=np.uint16, gene_dropout=0.0, **options):
    """A solver after batches that were sent ahead, and cells on the device."""
    (rows, *_), rule = problem(5, dtype=dtype, genes=genes)
    rng = np.random.default_rng(7)
    at = [rng.integers(0, rows.n_obs, size) for size in SIZES]
    served = ((0, cells, rows.take(cells)) for cells in at)
    scale = DeviceScaler(rule, device)
    schedules = [Schedule("constant", 1e-2, 1e-3), Schedule("invscaling", 1e-3, 1e-2)]
    solver = DeviceSGD(device, 5, len(rule.shift), schedules, dtype=dtype, **options)
    for batch in batches(served, rows.codes, scale, gene_dropout=gene_dropout):
        solver.partial_fit(batch.cells)
    return solver, lambda: scale(rows)


def both(**options):
    """The same on a fake GPU and by NumPy."""
    xp = Cupy(seed=1)
    devices = Device(xp), Device(np)
    return xp, *(trained(device, **options) for device in devices)


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({"average": True}, 1e-12),
        ({"average": 400, "epochs": True, "loss": "squared_hinge"}, 1e-12),
        ({"genes": np.int32, "gene_dropout": 0.3}, 1e-12),
        ({"average": True, "dtype": np.float32}, 1e-5),
    ],
)
def test_sgd__on_a_fake_gpu(options, within):
    xp, (found, cells), (expected, same_cells) = both(**options)
    assert xp.waits == 0  # the device is told what to do, and not waited for
    for model in range(2):
        assert_near(found.state(model), expected.state(model), within)
    for a, b in zip(found.end_epoch(), expected.end_epoch(), strict=True):
        np.testing.assert_allclose(a, b, rtol=within)
    scores = found.scores(cells()), expected.scores(same_cells())
    np.testing.assert_allclose(*scores, rtol=within, atol=10 * within)


def test_sgd__on_a_fake_gpu_freezes_and_slows():
    _, *sides = both(average=True)
    for solver, cells in sides:
        solver.slow(np.array([3]))
        solver.freeze(np.array([1, 7]))
        solver.partial_fit(cells())
        solver.freeze(np.arange(5))
        solver.partial_fit(cells())
    (found, cells), (expected, same_cells) = sides
    for model in range(2):
        assert_near(found.state(model), expected.state(model), 1e-12)
    np.testing.assert_array_equal(found.n_correct(cells()), expected.n_correct(same_cells()))
    np.testing.assert_allclose(cells().mean_square(), same_cells().mean_square(), rtol=1e-12)


def test_sgd__a_missing_wait_is_found(monkeypatch):
    monkeypatch.setattr(Sent, "wait", lambda sent: sent.arrays)
    with pytest.raises(AssertionError, match="used before its copy is waited for"):
        trained(Device(Cupy()))


def test_sgd__an_early_release_is_found(monkeypatch):
    monkeypatch.setattr(devices._Slot, "release", lambda _: None)
    with pytest.raises(AssertionError, match="copied to before what used it is done"):
        trained(Device(Cupy()))


def test_sgd__pinned_memory_that_is_written_to_early_is_found(monkeypatch):
    monkeypatch.setattr(Event, "synchronize", lambda _: None)
    with pytest.raises(AssertionError, match="written to before the copy from it is done"):
        trained(Device(Cupy()))


def test_sgd__gives_no_memory_back_early():
    xp = Cupy()
    trained(Device(xp))
    assert xp.faults == []


# As when training ends early, with the next batch on its way.
def test_send__of_a_batch_that_nobody_uses():
    xp = Cupy()
    Device(xp).send(np.arange(1000))
    assert xp.faults == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda args: args[:-1], "settle has 11 parameters: 10 given"),
        (lambda args: [args[0].astype(np.float32), *args[1:]], r"is \*f4, not \*f8"),
        (lambda args: [*args[:6], 6, *args[7:]], "argument 6 of settle is None, not i8"),
        (lambda args: [args[0].T.copy().T, *args[1:]], "argument 0 of settle is not contiguous"),
    ],
)
def test_launch__refuses_what_the_kernel_does_not_take(change, message):
    U = np.ones((2, 3))
    group = np.zeros(3, np.int32)
    sizes = np.int32(0), np.int32(1), np.int64(6), np.int32(3), np.int32(0)
    args = change([U.copy(), np.ones(1), np.ones(1), group, *sizes, U, U[:0]])
    settle = Module(code=source(), options=options(np.float64)).get_function("settle")
    with pytest.raises(TypeError, match=message):
        settle((1,), (THREADS,), args)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_source__is_cuda(architecture, dtype, tmp_path):
    text = tmp_path / "kernels.cu"
    text.write_text(source())
    strict = "--ptx", f"-arch={architecture}", "-Werror", "all-warnings"
    command = ["nvcc", *strict, *options(dtype), "-o", tmp_path / "kernels.ptx", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert f".target {architecture}" in (tmp_path / "kernels.ptx").read_text()


# 1e-9: sums of the CPU's solver are in another order.
@pytest.mark.parametrize(
    "options",
    [
        atlas.MINI | {"batch_size": 100, "batch_number": 4, "epochs": 3, "gene_dropout": 0.3},
        atlas.MINI | {"batch_size": 100, "batch_number": 4, "folds": 2, "alpha": [1e-4, 1e-2]},
        {"use_SGD": True, "max_iter": 40, "tol": 0.05, "learning_rate": "adaptive"},
    ],
    ids=["mini_batch", "trials", "epochs"],
)
def test_train__on_a_fake_gpu(options, monkeypatch):
    xp = Cupy()
    monkeypatch.setattr(Device, "gpu", lambda _: Device(xp, 1e9))
    options = {"learning_rate": "constant", "eta0": 0.003, "dtype": "float64"} | options
    adata = atlas.make(300, 40, dtype=np.float64)
    found, expected = (
        streamtrain.train(adata, "cell_type", progress=False, device=device, **options)
        for device in ("gpu", "cpu")
    )
    assert xp.waits > 0
    assert np.linalg.norm(found.coef_ - expected.coef_) <= 1e-9 * np.linalg.norm(expected.coef_)
