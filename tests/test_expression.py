"""The expression checks and the log1p normalisation, against NumPy and scanpy."""

import logging

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamtrain.errors import InputError
from streamtrain.expression import Expression
from streamtrain.kernels import expression as kernel
from streamtrain.rows import Rows
from streamtrain.threads import Threads

DTYPES = (np.float32, np.float64, np.int32, np.uint16)


def rows_of(matrix):
    csr = sp.csr_matrix(matrix)
    return Rows(csr.data, csr.indices, csr.indptr.astype(np.int64), csr.shape[1])


def dense_of(rows):
    shape = (rows.n_obs, rows.n_vars)
    return sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=shape).toarray()


def counts(n_obs=60, n_vars=40, seed=0):
    """Counts from 0 to some hundred, cells 0 and 7 empty."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(rng.gamma(0.2, 8.0, (n_obs, n_vars)))
    values[:, 3] += 1
    values[[0, 7]] = 0
    return values


def log1p_of(values, dtype=np.float64):
    sums = values.sum(1, keepdims=True)
    return np.log1p(values / np.maximum(sums, 1) * 1e4).astype(dtype)


def run(blocks, *, normalize=None, check="sum", dtype=np.float32, n_threads=2, finish=True):
    """Pass blocks (matrices or Rows) through Expression; returns what leaves, joined, dense."""
    with Threads(n_threads) as threads:
        expression = Expression(
            "atlas.h5ad", normalize=normalize, check=check, dtype=dtype,
            cell=lambda i: f"cell {i} ('c{i}')", gene=lambda j: f"G{j}",
            threads=threads,
        )  # fmt: skip
        out, position = [], 0
        for block in blocks:
            rows = block if isinstance(block, Rows) else rows_of(block)
            out.append(expression(rows, position))
            position += rows.n_obs
        if finish:
            expression.finish()
    return np.concatenate([dense_of(rows) for rows in out])


@pytest.mark.parametrize("exponentiate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inspect_rows__sums(dtype, exponentiate):
    values = counts().astype(dtype)
    if exponentiate:
        values = np.minimum(values, 9)
        if np.issubdtype(dtype, np.floating):
            values = log1p_of(counts(), dtype)
    rows = rows_of(values)
    sums, flags = np.full(60, -1.0), np.full(60, 255, np.uint8)
    kernel.inspect_rows(rows.data, rows.indptr, exponentiate, 0, 60, sums, flags)
    wide = values.astype(np.float64)
    np.testing.assert_allclose(sums, (np.expm1(wide) if exponentiate else wide).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(flags, np.where((wide % 1 != 0).any(1), kernel.FRACTION, 0))


def test_inspect_rows__flags():
    data = np.array([1.0, -2.0, np.nan, 0.5, np.inf, -0.5, 3.0, -np.inf, -1.0])
    indptr = np.array([0, 1, 3, 3, 6, 7, 9])
    sums, flags = np.empty(6), np.empty(6, np.uint8)
    kernel.inspect_rows(data, indptr, False, 0, 6, sums, flags)
    bad, negative, fraction = kernel.NOT_FINITE, kernel.NEGATIVE, kernel.FRACTION
    expected = [0, negative | bad, 0, fraction | bad | negative, 0, bad | negative]
    assert flags.tolist() == expected
    assert sums.tolist() == [1, -2, 0, 0, 3, -1]  # what is not finite is left out


def test_inspect_rows__only_its_range():
    rows = rows_of(counts())
    sums, flags = np.full(60, -1.0), np.zeros(60, np.uint8)
    kernel.inspect_rows(rows.data, rows.indptr, False, 10, 20, sums, flags)
    np.testing.assert_array_equal(sums[10:20], counts().sum(1)[10:20])
    assert (np.delete(sums, range(10, 20)) == -1).all()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float64, st.integers(0, 200), elements=st.floats(-50, 700, width=64) | st.just(2.5)
    )
)
def test_inspect_rows__kept_results_are_the_right_ones(data):
    """Values that share a slot of the kernel's little table must not take each other's result."""
    sums, flags = np.empty(1), np.empty(1, np.uint8)
    indptr = np.array([0, len(data)])
    kernel.inspect_rows(data, indptr, True, 0, 1, sums, flags)
    total = 0.0
    for x in data:
        total += np.expm1(x)
    assert sums[0] == pytest.approx(total, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("out_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_log1p__equals_numpy(dtype, out_dtype):
    values = counts()
    rows = rows_of(values.astype(dtype))
    out = np.zeros(len(rows.data), out_dtype)
    sums = values.sum(1).astype(np.float64)
    kernel.normalize_log1p(rows.data, rows.indptr, sums, 1e4, 0, 60, out)
    dense = dense_of(Rows(out, rows.indices, rows.indptr, rows.n_vars))
    np.testing.assert_allclose(
        dense, log1p_of(values), rtol=1e-6 if out_dtype == np.float32 else 1e-14
    )


def test_normalize_log1p__fractions_and_the_edge_of_the_table():
    data = np.array([0.5, 1.0, 1.5, 62.0, 63.0, 63.5, 64.0, 65.0, 1e6, 1.0])
    indptr = np.array([0, 9, 10])
    sums = np.array([data[:9].sum(), 1.0])
    out = np.zeros(10)
    kernel.normalize_log1p(data, indptr, sums, 1e4, 0, 2, out)
    np.testing.assert_allclose(out[:9], np.log1p(data[:9] * 1e4 / sums[0]), rtol=1e-14)
    assert out[9] == pytest.approx(np.log1p(1e4), rel=1e-14)  # not the first cell's result for 1


@pytest.mark.parametrize("n_obs", [0, 1])
def test_kernels__no_entries(n_obs):
    empty, indptr = np.empty(0), np.zeros(n_obs + 1, np.int64)
    sums, flags = np.ones(n_obs), np.ones(n_obs, np.uint8)
    kernel.inspect_rows(empty, indptr, True, 0, n_obs, sums, flags)
    assert (sums == 0).all()
    assert (flags == 0).all()
    kernel.normalize_log1p(empty, indptr, sums, 1e4, 0, n_obs, empty)
    out = np.full(n_obs + 1, -1, np.int64)
    assert kernel.drop_zeros(empty, empty.astype(np.int32), indptr, empty, empty, out) == 0
    assert (out == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_drop_zeros__as_scipy(dtype):
    rng = np.random.default_rng(1)
    matrix = sp.csr_matrix(counts().astype(dtype))
    matrix.data[rng.random(matrix.nnz) < 0.4] = 0
    matrix.data[matrix.indptr[5] : matrix.indptr[6]] = 0  # a cell of zeros alone
    data, indices = np.empty_like(matrix.data), np.empty_like(matrix.indices)
    indptr = np.empty(61, np.int64)
    n = kernel.drop_zeros(
        matrix.data, matrix.indices, matrix.indptr.astype(np.int64), data, indices, indptr
    )
    matrix.eliminate_zeros()
    np.testing.assert_array_equal(data[:n], matrix.data)
    np.testing.assert_array_equal(indices[:n], matrix.indices)
    np.testing.assert_array_equal(indptr, matrix.indptr)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_expression__normalises(dtype, caplog):
    values = counts()
    found = run([values[:25], values[25:]], normalize="log1p", dtype=dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, log1p_of(values), rtol=1e-6)
    assert caplog.messages == ["atlas.h5ad: 2 cells have no expression at all"]


def test_expression__normalises_as_scanpy():
    """To 2e-6: scanpy divides and takes the logarithm in float32."""
    ad = pytest.importorskip("anndata")
    pp = pytest.importorskip("scanpy.preprocessing")
    values = counts()[8:]
    adata = ad.AnnData(sp.csr_matrix(values.astype(np.float32)))
    pp.normalize_total(adata, target_sum=1e4)
    pp.log1p(adata)
    found = run([values], normalize="log1p")
    np.testing.assert_allclose(found, adata.X.toarray(), rtol=2e-6)


@pytest.mark.parametrize("normalize", [None, "log1p"])
def test_expression__threads_and_blocks_change_nothing(normalize):
    values = counts(n_obs=97)
    values[[0, 7]] = 1
    given_values = values.astype(np.float32) if normalize else log1p_of(values, np.float32)
    whole = run([given_values], normalize=normalize, n_threads=1)
    for n_threads in (2, 5, 200):
        cut = run(np.split(given_values, [1, 30, 30, 90]), normalize=normalize, n_threads=n_threads)
        np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("check", ["sum", "range", None])
def test_expression__good_input_passes_unchanged(check, caplog):
    values = log1p_of(counts(), np.float32)[8:]
    np.testing.assert_array_equal(run([values], check=check), values)
    assert not caplog.messages


def test_expression__explicit_zeros_leave():
    csr = sp.csr_matrix(log1p_of(counts()))
    rows = rows_of(csr)
    # A zero at gene 39 of each cell, where none is stored yet.
    dense = csr.toarray()
    dense[:, 39] = np.where(dense[:, 39] == 0, 99, dense[:, 39])
    padded = rows_of(dense)
    padded.data[padded.data == 99] = 0
    assert len(padded.data) > len(rows.data)
    with Threads(1) as threads:
        expression = Expression(
            "x", normalize=None, check="sum", dtype=np.float64, cell=str, gene=str,
            threads=threads,
        )  # fmt: skip
        codes = np.arange(60, dtype=np.int32)
        found = expression(padded.with_codes(codes), 0)
    np.testing.assert_array_equal(found.data, rows.data)
    np.testing.assert_array_equal(found.indices, rows.indices)
    np.testing.assert_array_equal(found.indptr, rows.indptr)
    np.testing.assert_array_equal(found.codes, codes)


def test_expression__empty_block_and_empty_cells(caplog):
    values = log1p_of(counts(), np.float32)
    found = run([values[:0], values[:1], values[1:]])
    np.testing.assert_array_equal(found, values)
    assert caplog.messages == ["atlas.h5ad: 2 cells have no expression at all"]


@pytest.mark.parametrize("normalize", [None, "log1p"])
@pytest.mark.parametrize("check", ["sum", "range", None])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            np.nan,
            "is not finite (nan); such values stand in 3 of the 50 cells read with it. Remo",
        ),
        (
            np.inf,
            "is not finite (inf); such values stand in 3 of the 50 cells read with it. Remo",
        ),
        (-np.inf, "is not finite (-inf); such values stand in 3 of the 50 cells read with it."),
        (
            -1.0,
            "is negative (-1.0); such values stand in 3 of the 50 cells read with it. Scale",
        ),
    ],
)
def test_expression__refuses_values(value, words, check, normalize):
    values = counts().astype(np.float64) if normalize else log1p_of(counts())
    values[14, 5] = values[14, 8] = values[20, 2] = values[40, 0] = value
    rule = "atlas.h5ad: expression must be finite and not negative, but the value of gene 'G5' in "
    with pytest.raises(InputError) as caught:
        run([values[:10], values[10:]], normalize=normalize, check=check, finish=False)
    assert rule + "cell 14 ('c14') " + words in str(caught.value)


def test_expression__negative_before_not_finite_in_one_cell():
    values = log1p_of(counts())
    values[14, 2], values[14, 5] = -1, np.nan
    with pytest.raises(InputError, match=r"gene 'G5' in cell 14 .* is not finite \(nan\)"):
        run([values])


def test_expression__negative_names_the_remedy():
    with pytest.raises(InputError, match=r"point to the unscaled matrix with layer='raw' or layer"):
        run([-np.ones((1, 1))])


@pytest.mark.parametrize("dtype", DTYPES)
def test_expression__counts_given_as_log1p(dtype):
    values = counts()[8:].astype(dtype)
    with pytest.raises(InputError) as caught:
        run([values])
    message = str(caught.value)
    sums = np.expm1(values[:3].astype(np.float64)).sum(1)
    examples = "; ".join(f"cell {i} ('c{i}'): {s:.6g}" for i, s in enumerate(sums))
    assert (
        "atlas.h5ad: expression must be log1p-normalised to 10,000 counts per cell, but "
        f"sum(expm1(x)) is not 10,000 in 52 cells of the first 52 read ({examples}). The values "
        "are integers: for raw counts pass normalize='log1p' (--normalize log1p)."
    ) == message


def test_expression__few_cells_off_are_counted_to_the_end():
    values = log1p_of(counts())
    for i in (12, 30, 31, 59):
        values[i] = np.log1p(counts()[i] * 2.5 / counts()[i].sum() * 1e4)
    with pytest.raises(InputError) as caught:
        run(np.split(values, [10, 35]))
    examples = "; ".join(f"cell {i} ('c{i}'): 25000" for i in (12, 30, 31))
    assert f"is not 10,000 in 4 cells of 60 ({examples}). Normalise all genes with" in str(
        caught.value
    )
    assert "check_expression=False (--no-check-expression)" in str(caught.value)


def test_expression__stops_early_when_most_are_off():
    values = log1p_of(counts())[8:]
    seen = []

    def blocks():
        for i in range(0, 52, 4):
            seen.append(i)
            yield values[i : i + 4] * (1 if i < 8 else 1.1)

    with pytest.raises(InputError, match="in 12 cells of the first 20 read"):
        run(blocks())
    assert seen == [0, 4, 8, 12, 16]


@pytest.mark.parametrize(("total", "passes"), [(9999.01, True), (10000.99, True), (9998.9, False)])
def test_expression__tolerance_on_the_sum(total, passes):
    values = np.log1p(np.array([[total / 4, total * 3 / 4]]))
    if passes:
        np.testing.assert_array_equal(run([values], dtype=np.float64), values)
    else:
        with pytest.raises(InputError, match="is not 10,000 in 1 cells of the first 1 read"):
            run([values])


def test_expression__check_none_takes_values_as_they_are(caplog):
    values = counts()[8:].astype(np.uint16)
    found = run([values], check=None)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.float32
    assert not caplog.messages


def test_expression__range_refuses_a_large_value():
    values = log1p_of(counts())
    values[33, 4] = 9.5
    words = (
        r"so no value exceeds 9\.22; cell 33 \('c33'\) holds 9\.5\. "
        r"For raw counts pass normalize='log1p'"
    )
    with pytest.raises(InputError, match=words):
        run([values[:20], values[20:]], check="range")


def test_expression__range_bound():
    """log1p(10,000), all transcripts in one gene, is the largest value there is."""
    values = np.log1p(np.array([[1e4]], np.float32))
    np.testing.assert_array_equal(run([values], check="range"), values)


def test_expression__range_warns_of_sums(caplog):
    values = log1p_of(counts())[8:]
    values[[3, 9, 20, 21]] *= 0.9
    with caplog.at_level(logging.WARNING):
        run([values[:15], values[15:]], check="range")
    assert len(caplog.messages) == 1
    expected = "atlas.h5ad: 4 of 52 cells do not sum to 10,000 after expm1 (cell 3 ('c3'): "
    assert caplog.messages[0].startswith(expected)
    assert "cell 20 ('c20')" in caplog.messages[0]
    assert "cell 21" not in caplog.messages[0]


@pytest.mark.parametrize("check", ["sum", "range"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_expression__log1p_given_as_counts(dtype, check):
    values = log1p_of(counts(), dtype)[7:]  # the first cell is empty
    words = (
        r"needs raw counts, but 52 of 53 cells are log1p-normalised to 10,000 already "
        r"\(first cell 1 \('c1'\)\)\. Leave out normalize"
    )
    with pytest.raises(InputError, match=words):
        run([values], normalize="log1p", check=check)


def test_expression__fractions_warn(caplog):
    values = counts().astype(np.float64)[8:]
    values[[3, 4], 3] += 0.25
    found = run([values[:4], values[4:]], normalize="log1p", dtype=np.float64)
    np.testing.assert_allclose(found, log1p_of(values), rtol=1e-12)
    assert caplog.messages == [
        "atlas.h5ad: 2 of 52 cells hold values that are no integers, so they are not raw counts; "
        "the result may be biased"
    ]


def test_expression__large_fractions(caplog):
    """Counts after ambient correction: expm1 of them overflows, which is no concern of the user."""
    values = np.array([[1200.5, 3.25], [10.0, 2.5]])
    np.testing.assert_allclose(run([values], normalize="log1p"), log1p_of(values), rtol=1e-6)
    assert len(caplog.messages) == 1


def test_expression__log1p_given_as_counts_unchecked(caplog):
    run([log1p_of(counts())[8:]], normalize="log1p", check=None)
    assert "52 of 52 cells hold values that are no integers" in caplog.messages[0]
