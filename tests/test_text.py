"""Text tables, Matrix Market files and 10x folders, beside what anndata, scipy and scanpy read."""

import gzip
import logging
import pickle
import re
import subprocess
import sys
import warnings
from unittest import mock

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.kernels import text as kernel
from streamtrain.sources import lines, open_expression, open_source
from streamtrain.sources.matrix import CsrMatrix
from tests.stores import make_anndata, positions, read_all, write

ULP = np.finfo(np.float64).eps
original = CsrMatrix.read


def put(folder, name, text):
    """Write a file, gzipped if its name says so."""
    path = folder / name
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path


def names(source):
    return source.obs_names(0, source.n_obs).tolist()


def opened(path, **options):
    """(values, genes, cells) of a source, read by single cells and as a whole."""
    source = open_source(path, progress=False, **options)
    values = read_all(source, 1 << 20)
    np.testing.assert_array_equal(read_all(source, 1), values)
    found = values, source.genes.tolist(), names(source)
    source.close()
    return found


def as_bytes(text):
    return np.frombuffer(f"{text}\n ".encode(), np.uint8)


@settings(max_examples=200, deadline=None)
@given(
    st.from_regex(
        r"[+-]?([0-9]{1,12}(\.[0-9]{0,3})?|\.[0-9]{1,12})([eE][+-]?[0-9])?", fullmatch=True
    )
)
def test_number__is_exact_to_15_digits(text):
    assert kernel.number(as_bytes(text), 0) == (float(text), len(text))


@settings(max_examples=200, deadline=None)
@given(st.floats(-3e38, 3e38) | st.integers(-(10**30), 10**30).map(float))
def test_number__others_to_two_units_in_the_last_place(value):
    """Mantissa, power and what comes of both are rounded; below 1e-307 with fewer digits."""
    for text in (repr(value), f"{value:.25e}"):
        found, end = kernel.number(as_bytes(text), 0)
        assert end == len(text)
        assert abs(found - value) <= 2 * ULP * abs(value) + 1e-307


@pytest.mark.parametrize("text", ["", ".", "+", "-.", "e5", "x", "nan", "inf", " 1"])
def test_number__none(text):
    assert kernel.number(as_bytes(text), 0) == (0, 0)


NEWLINES = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"])
VALUES = st.one_of(
    st.just("0"),
    st.integers(0, 9).map(str),
    st.integers(-300, 2**24).map(str),
    st.floats(0, 1e6, width=32).map(lambda x: repr(float(x))),
    st.sampled_from(["0.0", "1e3", "2.50E-2", "+4", "007", "1.", "-0"]),
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_table__any_layout_is_what_anndata_reads(tmp_path_factory, data):
    n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 6))
    cells = data.draw(st.lists(VALUES, min_size=n * m, max_size=n * m))
    end, header, named, corner, last, blanks = (
        data.draw(s) for s in (NEWLINES, *[st.booleans()] * 5)
    )
    name = data.draw(st.sampled_from(["a.csv", "a.txt", "a.tsv", "a.tab", "a.csv.gz", "a.tsv.gz"]))
    parting = "," if "csv" in name else data.draw(st.sampled_from([" ", "\t"]))
    block, transpose = data.draw(st.integers(8, 200)), data.draw(st.booleans())
    rows = [
        ([f'"r {i}"' if parting != " " and not blanks else f"r{i}"] if named else [])
        + cells[i * m : i * m + m]
        for i in range(n)
    ]
    head = [f"g{j}" for j in range(m)]
    table = ([["cell"] * (named and corner) + head] if header else []) + rows
    text = end.join(parting.join(row) for row in table) + (end if last else "")
    path = put(tmp_path_factory.mktemp("table"), name, text)
    read = ad.io.read_csv if "csv" in name else ad.io.read_text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that repeat
        want = read(path, parting)
    if transpose:
        want = want.T
    genes = None if (named if transpose else header) else list(want.var_names)
    with mock.patch.object(lines, "BLOCK", block):
        values, found, obs = opened(path, genes=genes, transpose=transpose)
    np.testing.assert_array_equal(values, want.X)
    assert found == [name.strip('"') for name in want.var_names]
    assert obs == [name.strip('"') for name in want.obs_names]


PLAIN = [[1, 0], [0, 2.5]]
LAYOUTS = {
    "pandas, no cell names": (",A,B\n0,1,0\n1,0,2.5\n", "0 1"),
    "R": ('"","A","B"\n"1",1,0\n"2",0,2.5\n', "1 2"),
    "all in quotes": ('"A","B"\n"1","0"\n"0","2.5"\n', "0 1"),
    "all in quotes, names": ('"","A","B"\n"x","1","0"\n"y","0","2.5"\n', "x y"),
    "blanks around": ("cell,A,B\nx, 1,0 \ny,0 , 2.5\n", "x y"),
    "byte order mark": ("\ufeffcell,A,B\nx,1,0\ny,0,2.5\n", "x y"),
    "comment as header": ("# made by hand\n#A,B\n1,0\n0,2.5\n", "0 1"),
    "cells repeat": ("cell,A,B\nx,1,0\nx,0,2.5\n", "x x"),
    "delimiters at the ends": ("cell,A,B,\nx,1,0,\r\ny,0,2.5, \n", "x y"),
    "delimiter at the header's end": ("cell,A,B,\nx,1,0\ny,0,2.5\n", "x y"),
    "delimiters, no names": ('"A","B",\n"1","0",\n"0","2.5",\n', "0 1"),
    "cells that Python takes for numbers": ("cell,A,B\n1_1,1,0\nnan,0,2.5\n", "1_1 nan"),
    "blank lines": ("\n\ncell,A,B\n\nx,1,0\n\r\ny,0,2.5\n\n\n", "x y"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_table__what_anndata_does_not_read(tmp_path, case):
    text, cells = LAYOUTS[case]
    values, genes, obs = opened(put(tmp_path, "a.csv", text))
    assert values.tolist() == PLAIN
    assert genes == ["A", "B"]
    assert obs == cells.split()


def test_table__header_with_numbers_at_its_end(tmp_path):
    assert opened(put(tmp_path, "a.csv", "cell,A,7\nx,1,0\n"))[1:] == (["A", "7"], ["x"])
    assert opened(put(tmp_path, "a.csv", "cell,A,1_1\nx,1,0\n"))[1] == ["A", "1_1"]


IDS = {
    "name": ("Cell,A\n7,1\n9,0\n", True),
    "from 0": ("A,B\n0,1\n1,0\n2,0\n", True),
    "from 1": ("A,B\n1,1\n2,0\n3,0\n", True),
    "over blocks": ("A,B\n" + "".join(f"{i},1\n" for i in range(50)), True),
    "two rows": ("A,B\n0,1\n1,0\n", False),
    "counts": ("A,B\n0,1\n1,0\n3,0\n", False),
    "apart at the end": ("A,B\n" + "".join(f"{i},1\n" for i in range(50)) + "7,1\n", False),
    "named": ("cell,A\nx,0\ny,1\nz,2\n", False),
    "empty": (",A\n0,0\n1,1\n2,2\n", False),
}


@pytest.mark.parametrize("case", IDS)
def test_table__warns_of_a_first_column_like_names(tmp_path, case, caplog):
    text, warns = IDS[case]
    with mock.patch.object(lines, "BLOCK", 30):
        open_source(put(tmp_path, "a.csv", text))
    assert ("looks like names of rows and is taken as a gene" in caplog.text) == warns


def test_table__transposed_is_stored_by_gene(tmp_path, caplog):
    assert opened(put(tmp_path, "a.csv", ",x,y\nA,1,0\nB,0,2.5\n"), transpose=True)[0].tolist()
    assert "a.csv is stored by gene; transposing it through" in caplog.text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.from_regex(r"[ \t]?[-+.0-9eEx_]{0,4} ?", fullmatch=True), min_size=1))
def test_numbers__is_what_parse_rows_reads(fields):
    text = np.frombuffer("".join(fields).encode() + b" ", np.uint8)
    found = kernel.numbers(text, np.cumsum([len(field) for field in fields]))
    number = re.compile(r"[ \t]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?[ \t]*")
    assert found.tolist() == [number.fullmatch(field) is not None for field in fields]


def test_table__names_are_kept_whole(tmp_path):
    text = '"","A, long","B ""x"""\n"cell, one",1,0\nµ,0,2.5\n'
    assert opened(put(tmp_path, "a.csv", text))[1:] == (["A, long", 'B "x"'], ["cell, one", "µ"])
    text = "\tA b\tB\ncell one\t1\t0\ny\t0\t2.5\n"
    assert opened(put(tmp_path, "a.tsv", text))[1:] == (["A b", "B"], ["cell one", "y"])
    text = '"A b" B\n"cell one"  1 0\ny 0 2.5 \n'
    assert opened(put(tmp_path, "a.txt", text))[1:] == (["A b", "B"], ["cell one", "y"])


def test_table__source(tmp_path, caplog):
    text = "cell,A,A,B\n" + "".join(f"c{i},{i % 3},0,{i}\n" for i in range(500))
    path = put(tmp_path, "a.csv", text)
    source = open_source(path, scratch=tmp_path, genes=["x"], memory=1 << 20)
    assert (source.n_obs, source.n_vars, source.dtype) == (500, 3, np.float32)
    assert source.is_table
    assert not source.is_sparse  # as CellTypist reads it
    assert source.genes.tolist() == ["A", "A-1", "B"]
    assert f"{path} names its genes itself: genes is ignored" in caplog.text
    assert source.obs_columns() == []
    assert source.obs_names(498, 500).tolist() == ["c498", "c499"]
    assert list(tmp_path.iterdir()) == [path]  # nameless files
    with pytest.raises(InputError, match=r"a\.csv has no column 'cell_type': there are none"):
        source.obs("cell_type")
    values = read_all(source, 5_000)
    for again in (pickle.loads(pickle.dumps(source)), source):  # noqa: S301
        again.close()
        np.testing.assert_array_equal(read_all(again, 5_000), values)
        assert names(again)[7] == "c7"
        again.close()


BAD = {
    "empty": ("", "is empty: it must hold a table"),
    "blank": ("\n\n", "is empty"),
    "comments": ("# none\n", "is empty"),
    "header": ("cell,A,B\n", "has a header and no rows"),
    "tabs": ("cell\tA\nc\t1\n", r"parted by commas, and line 1 has a single one \('cell\\tA'\)"),
    "one column": ("A\n1\n2\n", "parted by commas, and line 1 has a single one"),
    "no genes": ("1,0\n0,1\n", "has no gene names: pass genes="),
    "header too long": ("cell,A,B\nx,1\ny,1,2\n", "header has 3 fields and line 2 has 2"),
    "short": ("cell,A,B\nx,1,0\n\ny,1\n", "line 4 has 1 numbers where 2 are due"),
    "long": ("cell,A,B\nx,1,0\ny,1,2,3\n", "line 3 has 3 numbers where 2 are due"),
    "name alone": ("cell,A,B\nx,1,0\ny\n", "line 3 has 0 numbers where 2 are due"),
    "NA": ("cell,A,B\nx,1,0\ny,1,NA\n", r"line 3, column 3 \(gene 'B'\), holds 'NA'"),
    "missing": ("cell,A,B\nx,1,0\ny,,1\n", r"line 3, column 2 \(gene 'A'\), holds ''"),
    "nan": ("A,B\n1,0\nnan,1\n", r"line 3, column 1 \(gene 'A'\), holds 'nan'"),
    "huge": ("A,B\n1,0\n1,1e39\n", r"column 2 \(gene 'B'\), holds '1e39'"),
    "comma": ('A,B\n1,1\n"1,5",0\n', r"line 3, column 1 .* holds '\"1'"),
    "two": ("A,B\n1,1\n1 2,0\n", r"line 3, column 1 .* holds '1 2'"),
    "text": ("A,B\n1,0\n1x,1\n", r"line 3, column 1 .* holds '1x'"),
    "trailing": ("cell,A\nx,1,\ny,1,\n", r"line 2, column 3 .* holds ''"),
    "quote": ('cell,A,B\nx,1,0\n"y,1,2\n', "the quote in line 3 is not closed"),
    "header's quote": ('"cell,A,B\nx,1,0\n', "a quote in its first lines is not closed"),
    "encoding": ("cell,Ä\nx,1\n".encode("latin-1"), r"bad\.csv must be a text file in UTF-8"),
    "cells' encoding": (
        "cell,A\nÄ,1\n".encode("latin-1"),
        r"bad\.csv must be a text file in UTF-8",
    ),
    "no name at the end": ("g1,g2,\nc1,1,2\n", "field 3 of its header is empty"),
    "no name amid": ("cell,A,,B\nx,1,2,3\n", "field 3 of its header is empty"),
    "no name first": (",A\nx,1,2\n", "field 1 of its header is empty"),
    "NA first": ("x,NA,1\ny,1,2\n", "has no gene names"),
    "single field": ("A,B,\n7\n", "header has 3 fields and line 2 has 1"),
    "two delimiters": ("cell,A,\nx,1,,\n", r"line 2, column 3 .*holds ''"),
    "UTF-16": ("cell,A\nx,1\n".encode("utf-16"), "is in UTF-16: convert it"),
    "UTF-16, big": (b"\xfe\xff\0A\0,\0B\0\n", "is in UTF-16: convert it"),
    "CR": ("cell,A\rx,1\ry,2\r", r"carriage return \(CR\) alone: convert the line ends"),
    "binary": (bytes(range(256)) * 9, "parted by commas, and line 1 has a single one"),
}


@pytest.mark.parametrize("case", BAD)
def test_table__bad(tmp_path, case):
    text, match = BAD[case]
    path = put(tmp_path, "bad.csv", text)
    with pytest.raises(InputError, match=match) as caught:
        open_source(path, scratch=tmp_path)
    assert "bad.csv" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_table__bad_line_is_counted_over_blocks(tmp_path):
    text = "gene,x,y\n" + "".join(f"G{i},{i},0\n" for i in range(900)) + "G900,1,NA\n"
    path = put(tmp_path, "a.csv", text)
    with (
        mock.patch.object(lines, "BLOCK", 300),
        pytest.raises(InputError, match=r"line 902, column 3 \(gene 'G900'\), holds 'NA'"),
    ):
        open_source(path, transpose=True)


def test_table__line_longer_than_the_memory(tmp_path):
    path = put(tmp_path, "a.csv", "A,B\n1," + "0" * 5000 + "1\n")
    with pytest.raises(InputError, match=r"line 2 is longer than 4.1 kB, the most .* raise memory"):
        open_source(path, memory=10_000)
    assert opened(path, memory=100_000)[0].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "content",
    [b"no gzip", b"", gzip.compress(b"A,B\n1,2\n" * 999)[:-40]],
    ids=["other", "empty", "cut short"],
)
def test_table__damaged_gzip(tmp_path, content):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.csv.gz (is damaged: it cannot be read|is empty)"):
        open_source(path)
    bad = bytearray(gzip.compress(np.random.default_rng(0).bytes(4000)))
    bad[2000:2040] = b"\xff" * 40
    path.write_bytes(bad)
    with pytest.raises(InputError, match="is damaged: it cannot be read"):
        open_source(path)


def test_table__gzip_of_several_members(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"A,B\n1,") + gzip.compress(b"0\n0,2.5\n"))
    assert opened(path)[0].tolist() == PLAIN


def test_table__scratch_is_checked(tmp_path, monkeypatch):
    path = put(tmp_path, "a.csv", "A,B\n" + "1,2\n" * 100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"parsing .*a\.csv needs .* of scratch, and .* 10 bytes"):
        open_source(path)


PEAK = """
import re, sys
from pathlib import Path
from streamtrain.sources import open_source
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
def run(path, transpose):
    source = open_source(path, memory=12_000_000, transpose=transpose, progress=False)
    for start, stop in source.blocks(1_000_000):
        source.read(start, stop)
    source.close()
for transpose in (False, True):
    run(sys.argv[1], transpose)
base = peak()
for transpose in (False, True):
    run(sys.argv[2], transpose)
print(peak() - base)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RSS is counted in other ways elsewhere")
def test_table__stays_in_the_memory(tmp_path):
    """25 MB of text, 17 MB of sparse values, 50 MB of dense ones, in 12 MB."""
    n_vars = 3000
    head = "," + ",".join(f"g{j}" for j in range(n_vars))
    row = ",".join(str(j % 9 * (j % 6 == 0)) for j in range(n_vars))
    paths = [
        put(tmp_path, name, "\n".join([head, *(f"c{i},{row}" for i in range(n))]))
        for name, n in (("tiny.csv", 2), ("large.csv", 4200))
    ]
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12_000_000


def entries(rng, n_obs=40, n_vars=30, n=400):
    """Cells, genes and values, some places twice."""
    return rng.integers(0, n_obs, n), rng.integers(0, n_vars, n), rng.integers(1, 99, n)


ORDERS = {
    "cell": lambda cells, genes: np.lexsort((genes, cells)),
    "cell, genes falling": lambda cells, genes: np.lexsort((-genes, cells)),
    "gene": lambda cells, genes: np.lexsort((cells, genes)),
    "none": lambda cells, _: np.random.default_rng(1).permutation(len(cells)),
}


@pytest.mark.parametrize("kind", ["integer", "real", "pattern"])
@pytest.mark.parametrize("name", ["m.mtx", "m.mtx.gz"])
@pytest.mark.parametrize("order", ORDERS)
def test_mtx__any_order(tmp_path, order, name, kind, caplog):
    cells, genes, values = entries(np.random.default_rng(0))
    cells[cells == 7], genes[genes == 29] = 8, 28  # a cell without any, a gene without any
    at = ORDERS[order](cells, genes)
    values = {"real": values * 0.37, "integer": values, "pattern": values}[kind]
    body = [
        f"{g + 1} {c + 1}" + ("" if kind == "pattern" else f" {v}")
        for c, g, v in zip(cells[at], genes[at], values[at], strict=True)
    ]
    head = f"%%MatrixMarket matrix coordinate {kind} general\n% by hand\n\n30 40 400\n"
    path = put(tmp_path, name, head + "\n".join(body))
    want = scipy.io.mmread(path).astype(np.float32).tocsr()
    gene_names = [f"g{j}" for j in range(30)]
    with mock.patch.object(lines, "BLOCK", 100):
        found, names_, obs = opened(path, genes=gene_names, transpose=True, memory=5000)
        np.testing.assert_allclose(found, want.T.toarray(), rtol=1e-6)  # order of the sums
        assert names_ == gene_names
        assert obs == [str(i) for i in range(40)]
        found = opened(path, genes=[f"g{j}" for j in range(40)])[0]
        np.testing.assert_allclose(found, want.toarray(), rtol=1e-6)
    assert "repeat a gene of their cell; their values are summed" in caplog.text
    assert f"{path} is not sorted by cell; transposing it through" in caplog.text
    assert open_source(path, genes=gene_names, transpose=True).is_sparse


MTX = "%%MatrixMarket matrix coordinate real general\n2 3 3\n1 1 1.5\n2 1 2\n2 3 7\n"
BAD_MTX = {
    "symmetric": ("general", "symmetric", "begins with '%%matrixmarket .* symmetric', and must"),
    "array": ("coordinate", "array", "begins with '%%matrixmarket .* array"),
    "complex": ("real", "complex", "begins with"),
    "empty": (MTX, "", "begins with ''"),
    "no size": (MTX[46:], "", "line 2 must give the numbers of rows, columns and entries"),
    "size": ("2 3 3", "2 x 3", "line 2 must give the numbers .* holds '2 x 3'"),
    "huge": ("2 3 3", "2 3000000000 3", "it is damaged"),
    "few": ("2 3 3", "2 3 4", "holds 3 entries where its header says 4"),
    "many": ("2 3 3", "2 3 2", "holds 3 entries where its header says 2"),
    "gene": ("2 3 7", "2 4 7", r"line 5 \('2 4 7'\) lies outside the matrix of 2 cells x 3 genes"),
    "zero": ("2 3 7", "0 3 7", "lies outside"),
    "wraps": ("2 3 7", f"2 {2**64 + 3} 7", "lies outside"),
    "negative": ("2 3 7", "-2 3 7", "is no entry, it must hold cell and gene counted from 1"),
    "value": ("2 3 7", "2 3 x", "is no entry"),
    "no value": ("2 3 7", "2 3", "is no entry"),
    "infinite": ("2 3 7", "2 3 1e99", "is no entry"),
    "more": ("2 3 7", "2 3 7 8", "is no entry"),
    "pattern": ("real", "pattern", r"line 3 \('1 1 1.5'\) is no entry"),
}


@pytest.mark.parametrize("case", BAD_MTX)
def test_mtx__bad(tmp_path, case):
    old, new, match = BAD_MTX[case]
    path = put(tmp_path, "bad.mtx", MTX.replace(old, new))
    with pytest.raises(InputError, match=match) as caught:
        open_source(path, genes=list("abc"), scratch=tmp_path)
    assert "bad.mtx" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_mtx__claims_more_cells_than_fit(tmp_path, monkeypatch):
    path = put(tmp_path, "m.mtx", MTX.replace("2 3 3", "2000000000 3 3"))
    with pytest.raises(InputError, match=r"m\.mtx claims 2,000,000,000 cells, and .* raise memory"):
        open_source(path, genes=list("abc"))
    path = put(tmp_path, "m.mtx", MTX.replace("2 3 3", "1000000 3 3"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(InputError, match=r"parsing .*m\.mtx needs 8 MB of scratch"):
        open_source(path, genes=list("abc"))


def test_mtx__genes(tmp_path):
    path = put(tmp_path, "m.mtx", MTX)
    with pytest.raises(InputError, match=r"m\.mtx has no gene names: pass genes="):
        open_source(path)
    with pytest.raises(InputError, match=r"genes has 1 names, and .*m\.mtx has 3 columns"):
        open_source(path, genes=["a"])
    with pytest.raises(InputError, match=r"as many cells and 3 genes: .* change transpose"):
        open_source(path, genes=["a", "b"])


def tenx(folder, end=".gz", legacy=False, kinds=("Gene Expression",) * 3):
    """A folder as Cell Ranger writes it, of 3 genes and 4 cells; returns the cells x genes."""
    X = sp.coo_matrix(np.array([[1, 0, 2], [0, 0, 3], [4, 5, 0], [0, 6, 0]]))
    scipy.io.mmwrite(folder / "matrix.mtx", X.T, field="integer", symmetry="general")
    matrix = (folder / "matrix.mtx").read_bytes()
    (folder / "matrix.mtx").unlink()
    put(folder, f"matrix.mtx{end}", matrix)
    rows = [f"ENS{j}\t{'AAB'[j]}" + ("" if legacy else f"\t{kinds[j]}") for j in range(3)]
    put(folder, f"{'genes' if legacy else 'features'}.tsv{end}", "\n".join(rows) + "\n")
    put(folder, f"barcodes.tsv{end}", "".join(f"cell{i}-1\n" for i in range(4)))
    return X.toarray()


@pytest.mark.parametrize(("end", "legacy"), [(".gz", False), ("", True), ("", False)])
def test_10x__folder(tmp_path, end, legacy, caplog):
    want = tenx(tmp_path, end, legacy)
    values, genes, obs = opened(tmp_path)
    np.testing.assert_array_equal(values, want)
    assert genes == ["A", "A-1", "B"]
    assert obs == [f"cell{i}-1" for i in range(4)]
    assert opened(tmp_path, gene_key="gene_ids")[1] == ["ENS0", "ENS1", "ENS2"]
    source = open_source(tmp_path, transpose=True, genes=list("abc"))
    assert source.n_obs == 4
    assert source.is_table
    assert source.is_sparse
    assert pickle.loads(pickle.dumps(source)).read(0, 4).n_obs == 4  # noqa: S301
    for option in ("transpose", "genes"):
        assert f"{tmp_path} names its genes itself: {option} is ignored" in caplog.text
    if legacy or end == ".gz":  # the pairs that scanpy knows
        import scanpy as sc

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = sc.read_10x_mtx(tmp_path)
        np.testing.assert_array_equal(read.X.toarray(), values)
        assert read.var_names.tolist() == genes
        assert read.obs_names.tolist() == obs


def test_10x__other_features_are_left_out(tmp_path):
    want = tenx(tmp_path, kinds=("Gene Expression", "Antibody Capture", "Gene Expression"))
    values, genes, _ = opened(tmp_path)
    np.testing.assert_array_equal(values, want[:, [0, 2]])
    assert genes == ["A", "B"]


def test_10x__gene_without_symbol_is_called_by_its_id(tmp_path):
    tenx(tmp_path)
    put(tmp_path, "features.tsv.gz", "ENS0\tA\nENS1\t\tGene Expression\nENS2\n")
    assert opened(tmp_path)[1] == ["A", "ENS1", "ENS2"]


def test_10x__blank_lines_at_the_end(tmp_path):
    tenx(tmp_path)
    put(tmp_path, "features.tsv.gz", "ENS0\tA\nENS1\tB\nENS2\tC\n\n")
    put(tmp_path, "barcodes.tsv.gz", "a\nb\nc\nd\n\n \n")
    assert opened(tmp_path)[1:] == (["A", "B", "C"], list("abcd"))


def test_10x__bad(tmp_path):
    tenx(tmp_path)
    with pytest.raises(InputError, match="no gene_key 'gene_id': did you mean 'gene_ids'"):
        open_source(tmp_path, gene_key="gene_id")
    with pytest.raises(InputError, match="layer='counts' is for an AnnData, and X is /"):
        open_source(tmp_path, layer="counts")
    put(tmp_path, "barcodes.tsv.gz", "a\n")
    with pytest.raises(InputError, match=r"barcodes.tsv.gz has 1 lines where matrix.mtx.gz"):
        open_source(tmp_path)
    (tmp_path / "barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match="is not a 10x folder: it must hold matrix"):
        open_source(tmp_path)


def test_open__unknown_ending(tmp_path):
    for name in ("a.xlsx", "a.csv.bz2", "a"):
        with pytest.raises(InputError, match=r"of no type .*: supported are \.h5ad, zarr"):
            open_source(put(tmp_path, name, "x"))
    for name in ("none.csv", "none.mtx.gz", "none.xyz"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            open_source(tmp_path / name)
    adata = make_anndata()
    path = write(adata, tmp_path, "h5ad").rename(tmp_path / "atlas.h5")
    assert open_source(path).n_obs == adata.n_obs


def test_genes__forms(tmp_path):
    X = positions(5, 3)
    wanted = ["a, x", "b", "c"]
    file = tmp_path / "genes.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(wanted).encode())
    packed = put(tmp_path, "genes.txt.gz", "\n".join(wanted))
    for genes in (
        wanted, tuple(wanted), np.array(wanted), pd.Series(wanted), pd.Index(wanted), iter(wanted),
        file, str(file), packed,
    ):  # fmt: skip
        assert open_source(X, genes=genes).genes.tolist() == wanted
    file.write_text("a\n\nc\n\n \n")
    assert open_source(X, genes=file).genes.tolist() == ["a", "", "c"]
    with pytest.raises(InputError, match=r"genes has 3 names, and ndarray has 4 columns"):
        open_source(positions(5, 4), genes=file)
    with pytest.raises(InputError, match=r"genes='none.txt' is one string, and there is no such"):
        open_source(X, genes="none.txt")
    file.write_bytes("ä\nb\nc".encode("latin-1"))
    with pytest.raises(InputError, match="genes must be a text file in UTF-8"):
        open_source(X, genes=file)


def transposed():
    values = positions(17, 6)
    by_gene = values.T.copy()
    cells = [f"c{i}" for i in range(17)]
    frame = pd.DataFrame(by_gene, index=list("abcdef"), columns=cells)
    return values, {
        "numpy": by_gene,
        "csr": sp.csr_matrix(by_gene),
        "csc": sp.csc_array(by_gene),
        "dask": da.from_array(by_gene, chunks=(4, 5)),
        "dask_csr": da.from_array(by_gene, chunks=(4, 5)).map_blocks(sp.csr_matrix),
        "frame": frame,
        "sparse_frame": frame.astype(pd.SparseDtype("float32", 0)),
    }


@pytest.mark.parametrize("name", transposed()[1])
def test_transpose__in_memory(name):
    values, objects = transposed()
    framed = "frame" in name
    genes = None if framed else list("abcdef")
    found, genes, cells = opened(objects[name], genes=genes, transpose=True)
    np.testing.assert_array_equal(found, values)
    assert genes == list("abcdef")
    assert cells == [f"c{i}" if framed else str(i) for i in range(17)]


def test_transpose__is_for_memory_and_text(tmp_path, caplog):
    adata = make_anndata()
    for X in (adata, write(adata, tmp_path, "h5ad")):
        caplog.clear()
        source = open_source(X, transpose=True)
        assert source.n_obs == adata.n_obs
        assert not source.is_table
        assert "an AnnData is cells x genes as it stands: transpose is ignored" in caplog.text
        source.close()
    with pytest.raises(InputError, match="transpose is for arrays in memory"):
        open_source(zarr.array(positions(4, 3)), genes=list("abcd"), transpose=True)


def test_frame__names_win_over_genes(caplog):
    frame = pd.DataFrame(positions(5, 2), columns=["A", "B"])
    assert open_source(frame, genes=["x", "y"]).genes.tolist() == ["A", "B"]
    assert "DataFrame names its genes itself: genes is ignored" in caplog.text


def scaled(where, value=-1.5, n_obs=1200):
    """AnnData whose X has one value of another kind, and raw."""
    adata = make_anndata(n_obs=n_obs)
    X = adata.X.toarray() / n_obs
    X[where] = value
    adata.X = sp.csr_matrix(X)
    return adata


@pytest.mark.parametrize("form", ["memory", "h5ad"])
def test_raw__stands_in(tmp_path, form, caplog):
    adata = scaled((999, 3))
    X = adata if form == "memory" else write(adata, tmp_path, "h5ad")
    with caplog.at_level(logging.INFO):
        source = open_expression(X, memory=1 << 20)
    assert source.genes.tolist() == adata.raw.var_names.tolist()
    np.testing.assert_array_equal(read_all(source, 1 << 20), adata.raw.X.toarray())
    source.close()
    assert re.search(
        r"X of .* does not hold expression: gene 'g3' in cell 999 \('cell999'\) is negative "
        r"\(-1.5\); its raw/X is read instead", caplog.text,
    )  # fmt: skip
    source = open_expression(X, layer="counts")
    assert source.genes.tolist() == adata.var_names.tolist()
    source.close()


def test_raw__only_the_first_thousand_cells_count(caplog):
    adata = scaled((1000, 3))
    read = []
    with mock.patch(
        "streamtrain.sources.matrix.CsrMatrix.read",
        autospec=True,
        side_effect=lambda self, a, b: read.append((a, b)) or original(self, a, b),
    ):
        source = open_expression(adata, memory=100_000)
    assert source.genes.tolist() == adata.var_names.tolist()
    assert len(read) > 1
    assert read[-1][1] == 1000


def test_raw__above():
    adata = scaled((3, 2), 9.5)
    for above, wanted in ((None, adata), (9.5, adata), (9.22, adata.raw)):
        source = open_expression(adata, above=above)
        assert source.genes.tolist() == wanted.var_names.tolist()
    del adata.raw
    with pytest.raises(
        InputError,
        match=r"gene 'g2' in cell 3 .* is above 9.22 \(9.5\), and there is no raw/X to read "
        r"instead: name a layer that holds log1p expression \(layer, --layer\)",
    ):
        open_expression(adata, above=9.22)


def test_raw__is_for_an_anndata(tmp_path):
    X = positions(5, 3) - 9
    assert open_expression(X, above=1.0, genes=list("abc")).n_obs == 5
    assert open_expression(put(tmp_path, "a.csv", "A,B\n-1,2\n")).read(0, 1).data.tolist() == [
        -1,
        2,
    ]
