"""Running moments and the sparse scaling, against NumPy and scikit-learn's StandardScaler."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from streamtrain.kernels import moments as kernel
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments, Scaler, standard_deviation
from streamtrain.threads import Threads, spans


def rows_of(matrix):
    csr = sp.csr_matrix(matrix)
    return Rows(csr.data, csr.indices, csr.indptr.astype(np.int64), csr.shape[1])


def matrix(n_obs=90, n_vars=23, seed=0, dtype=np.float64):
    """Sparse expression with gene 2 absent, gene 5 dense, and an empty first cell."""
    rng = np.random.default_rng(seed)
    dense = rng.gamma(1.0, 2.0, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.3)
    dense[:, 5] = rng.normal(8, 0.1, n_obs)
    dense[:, 2] = 0
    dense[:1] = 0
    return dense.astype(dtype)


def moments_of(blocks, n_vars, n_threads=1, block=MomentsPass.BLOCK):
    """Feed matrices or Rows to a MomentsPass."""
    with Threads(n_threads) as threads:
        stream = MomentsPass(n_vars, threads)
        stream.BLOCK = block
        for rows in blocks:
            stream.update(rows if isinstance(rows, Rows) else rows_of(rows))
        return stream.result()


def assert_same(a, b):
    assert a.n == b.n
    for name in ("nonzero", "mean", "m2"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def welford(dense, first, stop):
    count, mean, m2 = np.zeros(dense.shape[1], np.int64), *np.zeros((2, dense.shape[1]))
    for row in dense.astype(np.float64):
        for gene in range(first, stop):
            if row[gene] != 0:
                count[gene] += 1
                delta = row[gene] - mean[gene]
                mean[gene] += delta / count[gene]
                m2[gene] += delta * (row[gene] - mean[gene])
    return count, mean, m2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (40, 23)])
def test_welford__equals_python(shape, dtype):
    dense = matrix(*(40, 23))[: shape[0], : shape[1]]
    if np.issubdtype(dtype, np.integer):
        dense = np.round(dense * 3)
    dense = dense.astype(dtype)
    rows = rows_of(dense)
    n_vars = shape[1]
    for first, stop in ((0, n_vars), (n_vars // 3, n_vars // 2), (n_vars, n_vars)):
        found = np.zeros(n_vars, np.int64), np.zeros(n_vars), np.zeros(n_vars)
        kernel.welford(rows.data, rows.indices, rows.indptr, 0, shape[0], first, stop, *found)
        # The compiler may contract delta * x into one rounding, hence not bit for bit.
        for ours, reference in zip(found, welford(dense, first, stop), strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments__equal_numpy(dtype):
    dense = matrix(dtype=dtype)
    found = moments_of([dense], 23)
    wide = dense.astype(np.float64)
    assert found.n == 90
    np.testing.assert_array_equal(found.nonzero, (dense != 0).sum(0))
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.var, wide.var(0), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=8).map(sorted),
    n_threads=st.integers(1, 30),
    block=st.sampled_from([1, 7, 32, 90, 4096]),
)
def test_moments__any_split_is_the_whole_to_the_bit(cuts, n_threads, block):
    dense = matrix()
    whole = moments_of([dense], 23, 1, block)
    assert_same(moments_of(np.split(dense, cuts), 23, n_threads, block), whole)


def test_moments__real_blocks_in_slices():
    """Over the true block length, from slices that share their arrays."""
    assert MomentsPass.BLOCK == 4096, "another length changes the last bits of every model"
    rows = rows_of(matrix(10_000, 6))
    whole = moments_of([rows], 6)
    pieces = [rows.slice(lo, hi) for lo, hi in ((0, 4096), (4096, 4097), (4097, 9999))]
    assert_same(moments_of([*pieces, rows.slice(9999, 10_000)], 6, 2), whole)
    np.testing.assert_allclose(whole.var, matrix(10_000, 6).var(0), rtol=1e-12)


def test_moments__result_may_be_asked_midway():
    dense = matrix()
    stream = MomentsPass(23, Threads(2))
    stream.update(rows_of(dense[:31]))
    np.testing.assert_allclose(stream.result().mean, dense[:31].mean(0), rtol=1e-13)
    assert_same(stream.result(), stream.result())
    stream.update(rows_of(dense[31:]))
    assert_same(stream.result(), moments_of([dense], 23))


def test_moments__of_no_cells():
    found = moments_of([matrix()[:0]], 23)
    assert_same(found, RunningMoments.empty(23))
    np.testing.assert_array_equal(found.var, np.zeros(23))
    zero = np.zeros(3, np.int64)
    assert_same(RunningMoments.of_sparse(0, zero, zero, zero), RunningMoments.empty(3))


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), max_size=6).map(sorted))
def test_running_moments__merge(cuts):
    dense = matrix()
    total = RunningMoments.empty(23)
    for part in np.split(dense, cuts):
        total += moments_of([part], 23)
    assert total.n == 90
    np.testing.assert_array_equal(total.nonzero, (dense != 0).sum(0))
    np.testing.assert_allclose(total.mean, dense.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.var, dense.var(0), rtol=1e-12)


def test_running_moments__merge_with_none_changes_nothing():
    some = moments_of([matrix()], 23)
    assert_same(some + RunningMoments.empty(23), some)
    assert_same(RunningMoments.empty(23) + some, some)
    assert_same(RunningMoments.empty(23) + RunningMoments.empty(23), RunningMoments.empty(23))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=23, max_size=23), min_size=1, max_size=4))
def test_running_moments__merge_genes_that_some_cells_lack(measured):
    dense, total = matrix(), RunningMoments.empty(23)
    for part, has in zip(np.array_split(dense, len(measured)), np.array(measured), strict=True):
        found = moments_of([part], 23)
        values = (np.where(has, x, 0) for x in (found.nonzero, found.mean, found.m2))
        total += RunningMoments(np.where(has, found.n, 0), *values)
        part[:, ~has] = np.nan
    n = np.isfinite(dense).sum(0)
    np.testing.assert_array_equal(total.n, n)
    np.testing.assert_array_equal(total.nonzero, (np.nan_to_num(dense) != 0).sum(0))
    squares = np.nan_to_num(dense - np.where(n > 0, total.mean, 0)) ** 2
    mean = np.nansum(dense, 0) / np.maximum(n, 1)
    np.testing.assert_allclose(total.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(total.var, squares.sum(0) / np.maximum(n, 1), rtol=1e-11)
    some = total.take(np.array([3, 0]))
    np.testing.assert_array_equal(some.var, total.var[[3, 0]])


def exactly(values):
    """Mean and sum of squared deviations as fractions."""
    parts = [Fraction(v) for v in values]
    mean = sum(parts) / len(parts)
    return mean, sum((v - mean) ** 2 for v in parts)


SIZES = st.sampled_from([1e-4, 1.0, 1e3, 1e6])
ENTRIES = st.just(0.0) | st.builds(lambda v, size: v * size, st.floats(-1, 1, width=32), SIZES)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=st.lists(ENTRIES, min_size=1, max_size=24),
    offset=st.sampled_from([0.0, 1e4]),
    data=st.data(),
)
def test_running_moments__any_merges_are_near_fractions(values, offset, data):
    """Of one gene, cut anywhere, and its parts merged two by two in any order.

    The bound is Chan, Golub and LeVeque's: n * eps times the condition sqrt(S * (S + n * mean**2))
    of the sum S, and the square of what a mean is off by, which is all where S is zero.
    """
    values = np.array(values) + offset
    n, eps, most = len(values), np.finfo(float).eps, np.abs(values).max()
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    parts = [moments_of([part[:, None]], 1) for part in np.split(values, cuts)]
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 1))
        one = parts.pop(i)
        j = data.draw(st.integers(0, len(parts) - 1))
        parts[j] = parts[j] + one
    [found] = parts
    mean, squares = map(float, exactly(values))
    assert found.n == n
    assert found.nonzero[0] == np.count_nonzero(values)
    assert abs(found.mean[0] - mean) <= 4 * n * eps * most
    condition = np.sqrt(squares * (squares + n * mean**2))
    assert abs(found.m2[0] - squares) <= 4 * n * eps * condition + n * (4 * n * eps * most) ** 2


def test_moments__cancellation():
    """Mean 1e6 and variance 1e-6: E[x^2] - mean^2 would be off by its rounding, 1e-4."""
    rng = np.random.default_rng(2)
    dense = 1e6 + rng.normal(0, 1e-3, (10_000, 2))
    exact = (dense - 1e6).var(0)  # the subtraction is exact
    assert exact == pytest.approx([1e-6, 1e-6], rel=0.1)
    halves = moments_of([dense[:5000]], 2) + moments_of([dense[5000:]], 2)
    for found in (moments_of([dense], 2), halves):
        # Rounding of the mean (1e-10) enters squared: 1e-20 / 1e-6, and per step 1e-10 / 1e-3.
        np.testing.assert_allclose(found.var, exact, rtol=1e-6)


def test_standard_deviation__equals_sklearn():
    rng = np.random.default_rng(3)
    dense = matrix(500)
    dense = np.column_stack(
        [
            dense,
            np.full(500, 0.1),
            np.full(500, 1e6),
            np.full(500, 3.3e-7),
            np.where(np.arange(500) == 7, 1e-9, 0),  # rare and tiny, yet no constant
            1e6 + rng.normal(0, 1e-12, 500),  # rounds to a constant
            1e3 * (1 + 1e-15 * (np.arange(500) % 2)),  # varies by rounding alone
        ]
    )
    theirs = StandardScaler().fit(dense)
    found = moments_of([dense], dense.shape[1])
    scale = standard_deviation(found)
    np.testing.assert_allclose(found.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale, theirs.scale_, rtol=1e-12)
    constant = [2, 23, 24, 25, 27, 28]
    assert (theirs.scale_[constant] == 1).all(), "the case must hold constant genes"
    assert (scale[constant] == 1).all()
    assert scale[26] < 1e-9
    varies = np.delete(np.arange(29), constant)
    np.testing.assert_allclose(found.var[varies], theirs.var_[varies], rtol=1e-12)


def scaled(dense, with_mean, position=None, dtype=np.float64):
    theirs = StandardScaler().fit(dense)
    every = np.arange(dense.shape[1], dtype=np.int32)
    scaler = Scaler(
        theirs.mean_, theirs.scale_, every if position is None else position,
        with_mean=with_mean, dtype=dtype,
    )  # fmt: skip
    centre = theirs.mean_ if with_mean else 0
    return scaler, np.minimum((dense - centre) / theirs.scale_, 10)


def to_dense(batch, scaler):
    rows = batch.rows
    shape = (rows.n_obs, rows.n_vars)
    Z = sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=shape).toarray() - scaler.shift
    assert (Z[:, batch.dense_at] == 0).all(), "genes apart have no other entries"
    Z[:, batch.dense_at] = batch.dense
    return Z


def clipped():
    """Each gene has a cell far above 10 standard deviations."""
    dense = matrix(300)
    dense[np.arange(23) + 2, np.arange(23)] += 500
    return dense


# float32: x' rounds by 6e-8 of a value up to 10 + m, m up to 35 here.
@pytest.mark.parametrize(("dtype", "within"), [(np.float64, 1e-12), (np.float32, 5e-6)])
@pytest.mark.parametrize("with_mean", [True, False])
def test_scaler__equals_dense(with_mean, dtype, within):
    dense = clipped()
    scaler, Z = scaled(dense, with_mean, dtype=dtype)
    assert (Z.max(0) == 10).all(), "every gene must meet the clip"
    rows = rows_of(dense).with_codes(np.arange(300, dtype=np.int32))
    batch = scaler(rows)
    assert batch.rows.data.dtype == dtype
    np.testing.assert_array_equal(batch.rows.codes, rows.codes)
    assert batch.rows.data.shape == rows.data.shape  # nothing was densified
    np.testing.assert_allclose(to_dense(batch, scaler), Z, atol=within)
    x = (to_dense(batch, scaler) + scaler.shift).astype(np.float64)
    np.testing.assert_allclose(batch.dots, x @ scaler.shift, rtol=1e-5 if within > 1e-9 else 1e-12)


@pytest.mark.parametrize("clip", [0.5, 3.0, np.inf])
@pytest.mark.parametrize("with_mean", [True, False])
def test_scaler__bound_of_any_values(with_mean, clip):
    """Where values are negative a mean may lie so far below 0 that the bound touches zeros."""
    rng = np.random.default_rng(5)
    dense = matrix(300) - 2
    dense[:, 3] = np.where(rng.random(300) < 0.95, -7, 0)
    theirs = StandardScaler(with_mean=with_mean).fit(dense)
    Z = theirs.transform(dense)
    assert (Z[dense == 0] > 3).any() == with_mean, "the case must bound zeros"
    scaler = Scaler(
        theirs.mean_, theirs.scale_, np.arange(23, dtype=np.int32), with_mean=with_mean,
        dtype=np.float64, share=(dense != 0).mean(0), clip=clip,
    )  # fmt: skip
    batch = scaler(rows_of(dense))
    np.testing.assert_allclose(to_dense(batch, scaler), np.minimum(Z, clip), atol=1e-12)


@pytest.mark.parametrize("with_mean", [True, False])
def test_scaler__takes_the_models_genes(with_mean):
    """Genes of the source in another order than the model's, some of them unknown to it."""
    dense = clipped()
    theirs = StandardScaler(with_mean=with_mean).fit(dense)
    mean = theirs.mean_ if with_mean else np.zeros(23)
    Z = np.minimum(theirs.transform(dense), 10)
    order = np.random.default_rng(4).permutation(23)
    source = np.column_stack([dense[:, order], np.ones((300, 3))])
    position = np.concatenate([order, [-1, -1, -1]]).astype(np.int32)
    scaler = Scaler(mean, theirs.scale_, position, with_mean=with_mean, dtype=np.float64)
    np.testing.assert_allclose(to_dense(scaler(rows_of(source)), scaler), Z, atol=1e-12)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_scaler__genes_that_most_cells_express(apart, with_mean):
    """They come apart as dense numbers, or first in each cell; a source's other genes are left."""
    dense = clipped()
    dense[:, ::2] += np.arange(300)[:, None] % 5  # four of five cells
    share = (dense != 0).mean(axis=0)
    assert 5 < (share > 0.5).sum() < 18, "the case must have genes of both kinds"
    theirs = StandardScaler(with_mean=with_mean).fit(dense)
    kept = np.arange(23) != 4
    position = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    scaler = Scaler(
        theirs.mean_[kept] if with_mean else np.zeros(22), theirs.scale_[kept], position,
        with_mean=with_mean, dtype=np.float64, share=share[kept], apart=apart,
    )  # fmt: skip
    batch = scaler(rows_of(dense))
    often = np.flatnonzero(share[kept] > 0.5)
    Z = np.minimum(theirs.transform(dense), 10)[:, kept]
    np.testing.assert_allclose(to_dense(batch, scaler), Z, atol=1e-12)
    assert batch.dense_at.tolist() == (often.tolist() if apart else [])
    if with_mean:
        assert (scaler.shift[often] == 0).all()
    if with_mean and not apart:
        for i in range(300):
            start = batch.rows.indptr[i]
            assert batch.rows.indices[start : start + len(often)].tolist() == often.tolist()


@settings(max_examples=40, deadline=None)
@given(
    dropped=st.lists(st.booleans(), min_size=22, max_size=22).map(np.array),
    apart=st.booleans(),
    with_mean=st.booleans(),
)
def test_scaler__without(dropped, apart, with_mean):
    """To the bit of what stays; the scaler itself drops nothing."""
    dense = clipped()[:40]
    dense[:, ::2] += np.arange(40)[:, None] % 5
    share = (dense != 0).mean(axis=0)
    kept = np.arange(23) != 4
    position = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    theirs = StandardScaler(with_mean=with_mean).fit(dense)
    scaler = Scaler(
        theirs.mean_[kept] if with_mean else np.zeros(22), theirs.scale_[kept], position,
        with_mean=with_mean, dtype=np.float32, share=share[kept], apart=apart,
    )  # fmt: skip
    lacking = scaler.without(dropped)
    batch = lacking(rows_of(dense))
    Z = to_dense(scaler(rows_of(dense)), scaler)
    assert (Z != 0).any(axis=0).all(), "the case must express every gene"
    Z[:, dropped] = 0
    np.testing.assert_array_equal(to_dense(batch, lacking), Z)
    assert batch.shift is lacking.shift
    assert not batch.shift[dropped].any()
    x = (Z + lacking.shift).astype(np.float64)
    np.testing.assert_allclose(batch.dots, x @ lacking.shift, rtol=1e-5, atol=1e-5)
    entries = np.zeros(22, bool)
    entries[batch.rows.indices[batch.rows.data != 0]] = True
    assert not (entries & dropped).any()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (4, 3)])
def test_scaler__no_entries(shape):
    n_vars = shape[1]
    every = np.arange(n_vars, dtype=np.int32)
    scaler = Scaler(np.ones(n_vars), np.ones(n_vars), every, with_mean=True, dtype=np.float32)
    batch = scaler(rows_of(np.zeros(shape)))
    assert batch.rows.n_obs == len(batch.dots) == shape[0]
    assert (batch.dots == 0).all()
    np.testing.assert_array_equal(to_dense(batch, scaler), -np.ones(shape))


@given(st.integers(0, 100), st.integers(1, 100))
def test_split__covers_once(n, parts):
    pieces = list(spans(n, parts))
    assert [i for lo, hi in pieces for i in range(lo, hi)] == list(range(n))
    assert len(pieces) == min(n, parts) or (n == 0 and not pieces)
    sizes = [hi - lo for lo, hi in pieces]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert 0 not in sizes
