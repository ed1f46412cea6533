"""Several files as one: against anndata.concat, against one file, and every mistake."""

import logging
import pickle
import shutil
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain import cli
from streamtrain.cells import labelled_cells, name_cell, select_rows
from streamtrain.errors import InputError
from streamtrain.kernels import remap
from streamtrain.rows import Rows, stack
from streamtrain.sources import collection, open_expression, open_source
from streamtrain.sources.forms import FileReport, form_of
from streamtrain.sources.join_var import join_var
from streamtrain.sources.joins import distinct_names, join_columns, join_genes
from streamtrain.sources.members import find_members, natural
from streamtrain.threads import Threads
from tests import atlas
from tests.stores import make_anndata, of_kind, positions, read_all, to_dense, write

PARTS = (
    ("csr", "h5ad"),
    ("csc", "zarr2"),
    ("dense", "zarr3"),
    ("csr", "sharded"),
    ("dense", "h5ad"),
)
GENES = [f"g{j}" for j in range(14)]


def part(i, kind):
    """AnnData with its own genes, 9 to 11 of 14, in its own order, and its own obs."""
    rng = np.random.default_rng(i)
    genes = GENES[:7] + [str(g) for g in rng.choice(GENES[7:], 2 + i % 3, replace=False)]
    names = [str(g) for g in rng.permutation(genes)]
    n = 5 + 2 * i
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"T{(i + k) % 4}" for k in range(n)]),
            "n": np.arange(n, dtype=np.int32 if i % 2 else np.int64),
        },
        index=[f"p{i}c{k}" for k in range(n)],
    )
    values = positions(n, len(names), seed=i, offset=100 * i)
    return ad.AnnData(of_kind(values, kind), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """AnnData and where it lies, of every kind of matrix and store."""
    made = []
    for i, (kind, form) in enumerate(PARTS):
        adata = part(i, kind)
        made.append((adata, write(adata, tmp_path_factory.mktemp(f"part{i}"), form)))
    return made


def joined(parts, join):
    whole = ad.concat([adata for adata, _ in parts], join=join, fill_value=0)
    return whole, np.asarray(whole.X.toarray() if sp.issparse(whole.X) else whole.X)


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_collection__equals_concat(parts, join):
    whole, values = joined(parts, join)
    source = open_source([path for _, path in parts], join=join)
    index = [whole.var_names.get_loc(gene) for gene in source.genes]
    assert sorted(index) == list(range(whole.n_vars))
    if join == "inner":  # the order of the first; anndata sorts an outer join
        first = parts[0][0].var_names
        assert list(source.genes) == [gene for gene in first if gene in set(whole.var_names)]
    else:
        assert list(source.genes[: parts[0][0].n_vars]) == list(parts[0][0].var_names)
    values = values[:, index]
    assert (source.n_obs, source.n_vars) == values.shape
    assert source.dtype == np.float32
    assert source.is_sparse
    for nbytes in (1, 500, 1 << 20):
        np.testing.assert_array_equal(read_all(source, nbytes), values)
    np.testing.assert_array_equal(to_dense(source.read(3, 30)), values[3:30])
    for rows in ([], [0], [44], [4, 5, 6, 20, 30, 31], list(range(source.n_obs))):
        taken = source.take(np.array(rows, np.int64))
        np.testing.assert_array_equal(to_dense(taken), values[rows])
    assert list(source.obs_names(0, source.n_obs)) == list(whole.obs_names)
    assert list(source.obs_names(4, 14)) == list(whole.obs_names[4:14])
    assert source.obs("cell_type").tolist() == whole.obs["cell_type"].tolist()
    assert source.obs("n").tolist() == whole.obs["n"].tolist()
    assert source.obs("n").dtype == np.int64
    with pytest.raises(IndexError, match="cells 3 to 99 of 45"):
        source.read(3, 99)
    source.close()


def test_collection__of_listed_genes(parts, tmp_path):
    whole, values = joined(parts, "outer")
    names = ["g13", "g2", "g0", "g9"]
    (tmp_path / "genes.txt").write_text("\n".join(names) + "\n")
    expected = values[:, [whole.var_names.get_loc(name) for name in names]]
    for join in (names, tuple(names), tmp_path / "genes.txt", str(tmp_path / "genes.txt")):
        source = open_source([path for _, path in parts], join=join)
        assert list(source.genes) == names
        np.testing.assert_array_equal(read_all(source, 1 << 20), expected)
        source.close()
    adata, path = parts[0]
    chosen = [str(adata.var_names[5]), str(adata.var_names[1])]
    for X in (path, [path], adata):  # of one file, too
        source = open_source(X, join=chosen)
        np.testing.assert_array_equal(read_all(source, 1 << 20), adata[:, chosen].X.toarray())
        source.close()


def test_collection__in_memory_and_mixed(parts):
    whole, values = joined(parts, "inner")
    source = open_source((parts[0][0], parts[1][1], *(adata for adata, _ in parts[2:])))
    assert source.files[0] == "AnnData 0"
    assert source.files[1] == str(parts[1][1])
    index = [whole.var_names.get_loc(gene) for gene in source.genes]
    np.testing.assert_array_equal(read_all(source, 300), values[:, index])
    source.close()


def test_collection__rows_of_equal_genes_pass_untouched(monkeypatch):
    adata = make_anndata()
    other = adata.copy()
    other.X = other.X.astype(np.float64)
    source = open_source([adata, adata.copy(), other])
    assert source.dtype == np.float64
    monkeypatch.setattr(collection.csr, "select_genes", None)
    rows = source.members[0].read(0, 5)
    monkeypatch.setattr(source.members[0], "read", lambda *_: rows)
    assert source.read(0, 5).indices is rows.indices
    monkeypatch.undo()
    np.testing.assert_array_equal(read_all(source, 1 << 20), np.tile(adata.X.toarray(), (3, 1)))


def test_collection__dense_members_alone_are_dense():
    adata = make_anndata("dense")
    assert not open_source([adata, adata.copy()]).is_sparse
    assert open_source([adata, make_anndata("csr")]).is_sparse


def test_collection__pickled_closed_and_few_open(parts):
    source = open_source([path for _, path in parts], join="outer")
    before = read_all(source, 1 << 20)
    assert len(source._open) <= collection.OPEN + 1  # the transposed one stays
    assert 1 in source._open
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - written one call before
    source.close()
    for again in (source, copy):
        np.testing.assert_array_equal(read_all(again, 1 << 20), before)
        assert again.obs("cell_type").equals(source.obs("cell_type"))
        again.close()
    unfinished = source.blocks(1)
    next(unfinished)
    source.close()
    del unfinished  # its file is closed already


def test_collection__blocks_and_lengths_of_a_range(tmp_path):
    paths = []
    for i, kind in enumerate(("csr", "csr", "dense")):
        adata = make_anndata(kind, n_obs=6 + i)
        adata.var_names = [f"g{(3 * j) % 11 + (i == 1)}" for j in range(11)]
        paths.append(tmp_path / f"{i}.h5ad")
        adata.write_h5ad(paths[-1])
    source = open_source(paths, join="outer")
    for start, stop in ((0, 21), (2, 5), (4, 15), (6, 6), (20, 21)):
        found = list(source.blocks(300, start, stop))
        assert [i for block in found for i in range(*block)] == list(range(start, stop))
        if stop <= 13:
            expected = np.diff(source.read(start, stop).indptr)
            assert source.lengths(start, stop).tolist() == expected.tolist()
    assert source.lengths(4, 15) is None  # of a dense file
    source.close()
    source = open_source(paths[:2])
    assert source.lengths(0, 6) is None  # a gene is left out
    source.close()


def test_collection__copy_of_other_threads(parts):
    source = open_source([path for _, path in parts], join="outer")
    before = read_all(source, 1 << 20)
    with Threads(2) as threads:
        copy = source.with_threads(threads)
        source.close()
        np.testing.assert_array_equal(read_all(copy, 1 << 20), before)
        assert {member._threads for member in copy.members} == {threads}
        assert threads not in {member._threads for member in source.members}
        copy.close()


def test_collection__many_files_many_threads(tmp_path):
    """Names are asked for while cells are read; files open and close all the time."""
    paths = []
    for i in range(9):
        adata = make_anndata(n_obs=6)
        adata.obs_names = [f"{i}-{k}" for k in range(6)]
        paths.append(tmp_path / f"{i}.h5ad")
        adata.write_h5ad(paths[-1])
    source = open_source(paths)
    expected = read_all(source, 1)
    wrong = []

    def names():
        for _ in range(4):
            found = [source.obs_names(r, r + 1)[0] for r in range(53, -1, -5)]
            wrong.extend(
                n for n, r in zip(found, range(53, -1, -5), strict=True) if n != f"{r // 6}-{r % 6}"
            )

    other = threading.Thread(target=names)
    other.start()
    for _ in range(3):
        np.testing.assert_array_equal(read_all(source, 1), expected)
    other.join()
    assert wrong == []
    assert len(source._open) <= collection.OPEN
    source.close()


# What means a collection


def test_members__of_one_is_that_source(tmp_path):
    path = write(make_anndata(), tmp_path, "h5ad")
    for X in ([path], str(tmp_path / "*.h5ad"), tmp_path):
        source = open_source(X)
        assert source.name == str(path)
        assert source.obs_columns() == ["cell_type", "n_genes", "flag"]
        source.close()


def test_members__natural_order(tmp_path):
    names = ["part10.h5ad", "part2.h5ad", "Part1.h5ad", "part2b.h5ad", "part02.h5ad", "x.zarr"]
    for name in [*names, "notes.md", ".part3.h5ad"]:
        (tmp_path / name).touch() if not name.endswith("zarr") else (tmp_path / name).mkdir()
    (tmp_path / "x.zarr" / "zarr.json").touch()
    (tmp_path / "x.zarr" / "obs").mkdir()
    (tmp_path / "x.zarr" / "obs" / "zarr.json").touch()
    expected = ["Part1.h5ad", "part02.h5ad", "part2.h5ad", "part2b.h5ad", "part10.h5ad", "x.zarr"]
    assert [p.name for p in find_members(tmp_path).items] == expected
    assert [p.name for p in find_members(f"{tmp_path}/part*").items] == expected[1:5]
    assert [p.name for p in find_members(f"{tmp_path}/**/*.h5ad").items] == expected[:5]
    inside = find_members(f"{tmp_path}/**")  # what lies in a store is a part of it
    assert [p.name for p in inside.items] == ["notes.md", *expected] or [
        p.name for p in inside.items
    ] == ["Part1.h5ad", "notes.md", *expected[1:]]
    assert natural("a10") > natural("a9") > natural("a")
    assert find_members(tmp_path / "x.zarr") is None
    assert find_members("s3://bucket/*.h5ad") is None


def test_members__a_path_with_brackets_is_itself(tmp_path):
    path = tmp_path / "atlas[1].h5ad"
    make_anndata().write_h5ad(path)
    open_source(path).close()


def write_annbatch(folder, n, mark=True):
    """A collection as annbatch lays it out: an AnnData in each of dataset_0, dataset_1, ..."""
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    if mark:
        root.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    for i in range(n):
        adata = make_anndata(n_obs=5)
        adata.obs["src_path"] = pd.Categorical(["a"] * 5)
        adata.obs_names = [f"{i}-{k}" for k in range(5)]
        stored = write(adata, folder.parent, "sharded")
        shutil.move(stored, folder / f"dataset_{i}")


@pytest.mark.parametrize("mark", [True, False])
def test_members__annbatch(tmp_path, caplog, mark):
    folder = tmp_path / "cells.zarr"
    write_annbatch(folder, 11, mark)
    source = open_source(folder)
    assert list(source.obs("file").cat.categories) == [f"dataset_{i}" for i in range(11)]
    assert list(source.obs_names(8, 12)) == ["1-3", "1-4", "2-0", "2-1"]
    assert source.name == str(folder)
    assert source.obs_columns() == ["cell_type", "n_genes", "flag", "src_path", "file"]
    expected = np.tile(make_anndata(n_obs=5).X.toarray(), (11, 1))
    np.testing.assert_array_equal(read_all(source, 200), expected)
    source.close()
    assert ("lacks the mark that annbatch sets last" in caplog.text) == (not mark)


def test_members__annbatch_as_it_wrote_it():
    cache = Path("~/.cache/streamtrain-bench").expanduser()
    found = sorted(cache.glob("3000x1000*.collection"))
    if not found:
        pytest.skip("no collection of the benchmarks here")
    source = open_source(found[0])
    assert (source.n_obs, source.n_vars) == (3000, 1000)
    assert source.read(0, 10).n_obs == 10
    source.close()


# Genes


def names(text):
    return np.array(text.split(), dtype=object)


def test_genes__joined():
    lists = [names("a b c d"), names("d x b a"), names("b a y")]
    assert list(join_genes(["1", "2", "3"], lists, "inner")) == ["a", "b"]
    assert list(join_genes(["1", "2", "3"], lists, "outer")) == list("abcdxy")
    assert list(join_genes(["1", "2", "3"], lists, ["y", "a"])) == ["y", "a"]


def test_genes__repeated_names_are_left_out(caplog):
    """A-1 may be a second A, and the A there any of the two: nothing tells which."""
    lists = [names("A A-1 B HLA-1 C"), names("C B A HLA-1")]
    assert list(join_genes(["1", "2"], lists, "inner")) == ["B", "HLA-1", "C"]
    assert list(join_genes(["1", "2"], lists, "outer")) == ["B", "HLA-1", "C"]
    assert "1 gene names stand for several genes of one file" in caplog.text
    assert "'A' (in 1)" in caplog.text
    with pytest.raises(InputError, match="join names 'A', which stands for several genes of 1"):
        join_genes(["1", "2"], lists, ["A"])
    same = [lists[0], lists[0].copy()]  # here the order tells
    assert join_genes(["1", "2"], same, "inner") is lists[0]
    assert list(join_genes(["1", "2"], same, ["A-1"])) == ["A-1"]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes__repeats_across_files_never_mismatch():
    first = ad.AnnData(np.array([[1, 2, 3]], np.float32), var=pd.DataFrame(index=["A", "A", "B"]))
    second = ad.AnnData(np.array([[4, 5]], np.float32), var=pd.DataFrame(index=["B", "A"]))
    source = open_source([first, second], join="outer")
    assert list(source.genes) == ["B"]
    assert read_all(source, 1 << 20).tolist() == [[3], [4]]


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_genes__of_two_kinds(join):
    lists = [names("CD3D LYZ"), names("LYZ CD8A"), names("ENSG1 ENSG2")]
    with pytest.raises(
        InputError,
        match=r"c has no gene in common with a.*'ENSG1', 'ENSG2' there "
        r"and 'CD3D', 'LYZ' here; .*--gene-key",
    ):
        join_genes(["a", "b", "c"], lists, join)


def test_genes__few_in_common(caplog):
    lists = [names("a b c d e f"), names("a v w x y z")]
    join_genes(["1", "2"], lists, "inner")
    assert (
        "only 1 genes are in every file, of which the smallest has 6: join='outer'" in caplog.text
    )
    caplog.clear()
    join_genes(["1", "2"], [names("a b"), names("b a c")], "inner")
    assert caplog.text == ""


JOINS = {
    "word": ("innr", "join must be 'inner', 'outer', a list of gene names, or the path"),
    "number": (3, "join must be 'inner'.*got 3"),
    "empty": ([], "join is an empty list"),
    "twice": (["g1", "g2", "g1"], "join names a gene twice: 'g1'"),
    "unknown": (["g1", "g33"], r"join names 1 genes that no file has \('g33'\): did you mean 'g"),
}


@pytest.mark.parametrize("case", JOINS)
def test_genes__no_such_join(parts, case):
    join, match = JOINS[case]
    with pytest.raises(InputError, match=match):
        open_source([parts[0][0], parts[1][0]], join=join)


def test_genes__none_of_a_file_listed():
    with pytest.raises(InputError, match="2 has none of the 1 genes that join names"):
        join_genes(["1", "2"], [names("a b"), names("c d")], ["a"])


def test_genes__gene_key(tmp_path):
    adata = make_anndata()
    other = adata[:, ::-1].copy()
    other.var_names = [f"ENSG{j}" for j in range(other.n_vars)]
    source = open_source([adata, other], gene_key="symbol")
    assert list(source.genes) == list(adata.var["symbol"])
    np.testing.assert_array_equal(read_all(source, 1 << 20), np.tile(adata.X.toarray(), (2, 1)))
    del other.var["symbol"]
    with pytest.raises(InputError, match="AnnData 1: var of AnnData has no column 'symbol'"):
        open_source([adata, other], gene_key="symbol")


# Kernels


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_remap__against_scipy(data):
    seed = data.draw(st.integers(0, 1 << 30))
    n_obs, n_vars = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 100))
    out_vars = data.draw(st.integers(1, 130))
    rng = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from([np.int16, np.float32, np.float64]))
    matrix = sp.random(n_obs, n_vars, 0.4, "csr", random_state=rng)
    matrix.data = rng.integers(1, 9, matrix.nnz).astype(dtype)
    position = np.full(n_vars, -1, np.int32)
    kept = rng.permutation(n_vars)[: data.draw(st.integers(0, min(n_vars, out_vars)))]
    position[kept] = rng.permutation(out_vars)[: len(kept)]
    move = sp.csr_matrix((np.ones(len(kept), dtype), (kept, position[kept])), (n_vars, out_vars))
    expected = matrix @ move
    expected.sort_indices()

    values, indices = np.empty(matrix.nnz, dtype), np.empty(matrix.nnz, np.int32)
    own = matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64)
    indptr = collection.csr.select_genes(*own, position, values, indices)
    values, indices = values[: indptr[-1]], indices[: indptr[-1]]
    remap.sort_genes(values, indices, indptr, out_vars)
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.data)

    sums = np.full((n_obs, 2), np.nan)
    remap.sum_left_out(*own, position, sums)
    rest = matrix.toarray()[:, position < 0].astype(np.float64)
    np.testing.assert_allclose(sums, np.stack([rest.sum(1), np.expm1(rest).sum(1)], 1), rtol=1e-12)


def test_remap__what_is_not_finite_shows_in_the_plain_sum():
    data = np.array([1, np.nan, np.inf, 2], np.float32)
    sums = np.zeros((1, 2))
    remap.sum_left_out(
        data, np.arange(4, dtype=np.int32), np.array([0, 4]), np.full(4, -1, np.int32), sums
    )
    np.testing.assert_allclose(sums, [[np.nan, np.expm1(1) + np.expm1(2)]])


def test_rows__left_out_follows_its_cells():
    own = np.arange(6.0).reshape(3, 2)
    rows = Rows(np.ones(3), np.zeros(3, np.int32), np.arange(4), 1, left_out=own)
    assert rows.take(np.array([2, 0])).left_out.tolist() == own[[2, 0]].tolist()
    assert rows.slice(1, 3).left_out.tolist() == own[1:].tolist()
    plain = Rows(np.ones(1), np.zeros(1, np.int32), np.arange(2), 1)
    assert stack([plain, rows], 1, float).left_out.tolist() == [[0, 0], *own.tolist()]
    assert stack([plain, plain], 1, float).left_out is None
    assert rows.nbytes == plain.nbytes * 3 - 16 + own.nbytes


# Columns of obs


def column(values, dtype=None):
    return pd.Series(values, dtype=dtype)


COLUMNS = {
    "text": ([["b", "a"], ["c", None]], "category", ["b", "a", "c", None]),
    "whole numbers": ([[1, 2], [3]], None, [1, 2, 3]),
    "wider": ([[1, 2], [0.5]], None, [1, 2, 0.5]),
    "absent whole numbers": ([[1, 2], None], None, [1, 2, None, None]),
    "absent fractions": ([None, [1.5]], None, [None, None, 1.5]),
    "flags": ([[True], [False, True]], None, [True, False, True]),
    "absent flags": ([[True], None], None, [True, None, None]),
    "all missing is no kind": ([["a"], [np.nan, np.nan]], None, ["a", None, None]),
    "absent": ([None, ["x"]], None, [None, None, "x"]),
    "nullable": ([pd.array([1, None], "Int64"), [4]], None, [1, None, 4]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns__joined(case):
    given_parts, dtype, expected = COLUMNS[case]
    lengths = [2 if part is None else len(part) for part in given_parts]
    series = [None if part is None else column(part, dtype) for part in given_parts]
    text = [s.astype("category") if s is not None and s.dtype == object else s for s in series]
    found = join_columns("x", ["1", "2"], text, lengths)
    assert found.name == "x"
    assert [None if pd.isna(v) else v for v in found] == expected
    if any(isinstance(v, str) for v in expected):
        assert found.cat.codes.dtype.itemsize <= 4
        assert list(found.cat.categories) == sorted(v for v in set(expected) if v)


def test_columns__categories():
    ordered = pd.Categorical(["lo", "hi"], ["lo", "hi"], ordered=True)
    same = join_columns("x", ["1", "2"], [column(ordered), column(ordered)], [2, 2])
    assert same.cat.ordered
    assert list(same.cat.categories) == ["lo", "hi"]
    other = pd.Categorical(["hi", "mid"], ["hi", "mid"], ordered=True)
    mixed = join_columns("x", ["1", "2"], [column(ordered), column(other)], [2, 2])
    assert not mixed.cat.ordered
    assert list(mixed.cat.categories) == ["hi", "lo", "mid"]
    numbers = pd.Categorical([3, None, 1])
    found = join_columns("x", ["1", "2"], [column(numbers), column([7])], [3, 1])
    assert [None if pd.isna(v) else v for v in found] == [3, None, 1, 7]
    assert join_columns("x", ["1"], [None], [3]).isna().all()


@pytest.mark.parametrize(
    ("other", "kind"), [([1, 2], "numbers"), ([True, False], "True and False")]
)
def test_columns__of_two_kinds(other, kind):
    with pytest.raises(InputError, match=f"'x' holds text in a.h5ad and {kind} in b.h5ad"):
        join_columns("x", ["a.h5ad", "b.h5ad"], [column(["u"], "category"), column(other)], [1, 2])


def test_columns__files(parts, tmp_path):
    source = open_source([path for _, path in parts])
    files = source.obs("file")
    assert list(files.cat.categories) == distinct_names(map(str, source.files))
    assert files.cat.codes.tolist() == np.repeat(range(5), [5, 7, 9, 11, 13]).tolist()
    chosen = select_rows(source, f"file in [{str(parts[1][1])!r}] and n < 2")
    assert list(chosen) == [5, 6]
    assert name_cell(source, None, 6) == f"cell 1 of {parts[1][1]} ('p1c1')"
    with pytest.raises(InputError, match="no column 'celltype': did you mean 'cell_type'"):
        source.obs("celltype")
    source.close()
    with_one = [adata.copy() for adata, _ in parts[:2]]
    with_one[1].obs["file"] = "mine"
    assert open_source(with_one).obs("file").tolist() == ["AnnData 0"] * 5 + ["mine"] * 7
    assert distinct_names(["a/x.h5ad", "a/y.zarr/"]) == ["x.h5ad", "y.zarr"]
    assert distinct_names(["a/x.h5ad", "b/x.h5ad"]) == ["a/x.h5ad", "b/x.h5ad"]


def test_columns__a_file_column_of_numbers(parts):
    with_one = [adata.copy() for adata, _ in parts[:2]]
    with_one[1].obs["file"] = 3
    assert open_source(with_one).obs("file").tolist() == [pd.NA] * 5 + [3] * 7


def test_columns__whole_numbers_with_gaps_and_fractions():
    whole, half = column([1, None], "Int64"), column([0.5], "float64")
    found = join_columns("x", ["a", "b"], [whole, half], [2, 1])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1, np.nan, 0.5])


def table(index, **columns):
    return pd.DataFrame(columns, index=pd.Index(list(index), name="gene"))


def test_join_var__columns():
    kind = pd.CategoricalDtype(["y", "x"], ordered=True)
    first = table(
        "abc", name=["A", "B", "C"], often=["u", "u", None], length=[1, 2, 3], mean=[0.1, 0.2, 0.3],
        kind=pd.Categorical(["x", "y", "x"], dtype=kind), chosen=[True, False, True],
    )  # fmt: skip
    second = table(
        "cdz", name=["C", "D", "Z"], often=["v", "u", "w"], length=np.array([3, 4, 9], "i2"),
        mean=[0.4, 0.5, 0.6], kind=pd.Categorical(["x", "y", "y"], dtype=kind), late=[1.5, 2, 3],
    )  # fmt: skip
    found, differ = join_var(np.array(list("abcd"), object), iter([first, second]))
    expected = table(
        "abcd", name=["A", "B", "C", "D"], often=pd.Categorical(["u", "u", "v", "u"]),
        length=[1, 2, 3, 4], kind=pd.Categorical(["x", "y", "x", "y"], dtype=kind),
        chosen=pd.array([True, False, True, None], "boolean"), late=[np.nan, np.nan, 1.5, 2],
    )  # fmt: skip
    pd.testing.assert_frame_equal(found, expected)
    assert differ == ["mean"]


def test_join_var__text_and_numbers_for_other_genes():
    found, differ = join_var(np.array(["a", "b"], object), [table("a", x=["u"]), table("b", x=[1])])
    assert (list(found), differ) == ([], ["x"])


def test_columns__labels_that_a_file_lacks(parts):
    with_one = [adata.copy() for adata, _ in parts[:3]]
    del with_one[1].obs["cell_type"]
    source = open_source(with_one)
    with pytest.raises(
        InputError,
        match=r"7 of 21 cells have no label in 'cell_type' \(there is no "
        r"such column in 'AnnData 1'\); pass drop_unlabeled=True",
    ):
        labelled_cells(source, "cell_type", where=None, drop_unlabeled=False)
    cells = labelled_cells(source, "cell_type", where=None, drop_unlabeled=True)
    assert cells.rows.tolist() == [*range(5), *range(12, 21)]


# The report, and forms of values


def test_form__of_values():
    matrix, _ = atlas.counts(n_obs=30)
    logged = atlas.log1p_10k(matrix)
    cases = {
        "counts": matrix,
        "log1p of 10,000": logged,
        "no expression": np.zeros_like(matrix),
        "other: negative values": logged - 1,
        "other: not finite": np.where(logged > 2, np.nan, logged),
        "other: sum(expm1(x)) from 1,000,000 to 1,000,000": np.log1p(np.expm1(logged) * 100),
        f"other: fractions up to {1.5 * matrix.max():g}": 1.5 * matrix,
    }
    for form, values in cases.items():
        X = sp.csr_matrix(values)
        assert form_of(open_source(ad.AnnData(X))) == form
        assert form_of(open_source(ad.AnnData(X)), 2000) == form  # in several blocks


def test_report__a_line_for_each_file(tmp_path, caplog):
    adata = atlas.make(60)
    path = write(adata, tmp_path, "h5ad")
    scaled = adata[:, ::-1][:, 5:].copy()
    scaled.raw = adata
    scaled.X = scaled.X.toarray() - 1
    source = open_expression([path, scaled])
    assert source.report() == [
        FileReport(str(path), 60, 120, 120, "X", "log1p of 10,000"),
        FileReport("AnnData 1", 60, 120, 120, "raw/X", "log1p of 10,000"),
    ]
    np.testing.assert_array_equal(read_all(source, 1 << 20), np.tile(adata.X.toarray(), (2, 1)))
    source.close()
    with caplog.at_level(logging.INFO, "streamtrain"):
        streamtrain.train([path, scaled], "cell_type", tol=0.5, progress=False)
    line = f"{path}: 60 cells, 120 genes of which 120 are taken, X: log1p of 10,000"
    assert line in caplog.messages
    assert caplog.messages.index(line) < caplog.messages.index("Model training done")


def test_report__mixed_forms():
    logged, raw = atlas.make(60), atlas.make(60, seed=1)
    raw.X = raw.layers["counts"].copy()
    for normalize in (None, "log1p"):
        with pytest.raises(
            InputError,
            match=r"log1p of 10,000 in 'AnnData 0'; counts in 'AnnData 1'"
            r".*--layer.*--normalize log1p",
        ):
            streamtrain.train([logged, raw], "cell_type", normalize=normalize, progress=False)
    with pytest.raises(InputError, match="AnnData 0: X of AnnData does not hold expression"):
        streamtrain.predict(trained(logged), [raw, logged], progress=False)
    few = raw.copy()
    few.X = few.X.minimum(9)  # counts in the range of logarithms
    with pytest.raises(InputError, match="counts in 'AnnData 0'; log1p of 10,000 in 'AnnData 1'"):
        streamtrain.predict(trained(logged), [few, logged], progress=False)
    other = logged[:, 20:].copy()
    assert len(streamtrain.predict(trained(logged), [other, logged], progress=False)) == 120
    with pytest.raises(InputError, match=r"other: sum\(expm1\(x\)\) from .* in 'AnnData 0'; log1p"):
        streamtrain.train([other, logged], "cell_type", progress=False)
    streamtrain.train([logged, raw], "cell_type", tol=0.5, check_expression=False, progress=False)
    with pytest.raises(InputError, match=r"is not 10,000.*--normalize log1p"):  # of none
        streamtrain.train([raw, raw.copy()], "cell_type", progress=False)


# Training and annotation


def trained(X, **options):
    return streamtrain.train(X, "cell_type", progress=False, **{"tol": 1e-2, **options})


def halves(adata):
    return adata[:350].copy(), adata[350:].copy()


@pytest.mark.parametrize(
    "options", [{}, {**atlas.MINI, "batch_size": 50, "feature_selection": True, "top_genes": 9}]
)
@pytest.mark.parametrize("normalize", [None, "log1p"])
def test_train__parts_as_the_whole(tmp_path, options, normalize):
    """To the bit, wherever the parts lie and whatever the order of their genes."""
    adata = atlas.make()
    layer = "counts" if normalize else None
    whole = trained(adata, normalize=normalize, layer=layer, **options)
    first, second = halves(adata)
    order = np.random.default_rng(0).permutation(adata.n_vars)
    paths = [
        write(first, tmp_path, "zarr3"),
        write(second[:, order].copy(), tmp_path, "h5ad"),
    ]
    found = trained(paths, normalize=normalize, layer=layer, **options)
    np.testing.assert_array_equal(found.features, whole.features)
    np.testing.assert_array_equal(found.coef_, whole.coef_)
    np.testing.assert_array_equal(found.intercept_, whole.intercept_)
    assert [s["name"] for s in found.provenance["sources"]] == [str(p) for p in paths]
    assert [s["n_obs"] for s in found.provenance["sources"]] == [350, 250]
    assert all(s["bytes"] > 1000 for s in found.provenance["sources"])


@pytest.mark.parametrize("normalize", [None, "log1p"])
def test_train__cells_are_normalised_over_all_genes_of_their_file(normalize):
    """Genes that another file lacks count: else each sum would be off, or each value."""
    adata = atlas.make()
    first, second = halves(adata)
    parts = [first[:, 10:].copy(), second[:, :-15].copy()]
    if normalize is None:  # each cell 10,000 over what its file has
        for p in parts:
            p.X = sp.csr_matrix(atlas.log1p_10k(p.layers["counts"].toarray()).astype(np.float32))
    layer = "counts" if normalize else None
    found = trained(parts, normalize=normalize, layer=layer)
    for p in parts:
        p.X = sp.csr_matrix(atlas.log1p_10k(p.layers["counts"].toarray()).astype(np.float32))
    whole = ad.concat(parts, join="inner")
    expected = trained(whole, check_expression=False)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=2e-3, atol=1e-5)


def test_train__settings(tmp_path):
    adata = atlas.make()
    first, second = halves(adata)
    chosen = [f"GENE{j}" for j in (40, 3, 77, 5, 21)]
    model = trained([first, second], join=np.array(chosen))
    assert list(model.features) == chosen
    assert model.settings["join"] == chosen
    (tmp_path / "genes.txt").write_text("\n".join(chosen))
    np.testing.assert_array_equal(trained(adata, join=tmp_path / "genes.txt").coef_, model.coef_)
    held = trained(
        [first, second], use_SGD=True, early_stopping=True, validation_groups="file",
        validation_fraction=0.4,
    )  # fmt: skip
    assert len(held.features) > 100


def test_train__a_broken_file_is_named_first(tmp_path):
    good, bad = tmp_path / "good.h5ad", tmp_path / "bad.h5ad"
    atlas.make(60).write_h5ad(good)
    bad.write_bytes(good.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"bad\.h5ad cannot be opened"):
        trained([good, bad])
    bad.unlink()
    with pytest.raises(FileNotFoundError, match=r"bad\.h5ad does not exist"):
        trained([good, bad])
    values = atlas.make(60)
    values.X.data[7] = np.nan
    values.write_h5ad(bad)
    with pytest.raises(InputError, match=r"in cell \d+ of .*bad.h5ad \('cell-\d+'\) is not finite"):
        trained([good, bad], check_expression=False)


def test_predict__each_file_as_alone(tmp_path):
    adata = atlas.make()
    model = trained(adata)
    first, second = halves(adata)
    second = second[:, 30:][:, ::-1].copy()  # lacks genes of the model
    second.X = sp.csr_matrix(atlas.log1p_10k(second.layers["counts"].toarray()).astype(np.float32))
    paths = [tmp_path / "a.h5ad", write(second, tmp_path, "zarr3")]
    first.write_h5ad(paths[0])
    alone = [streamtrain.predict(model, p, scores=True, progress=False) for p in paths]
    found = streamtrain.predict(model, paths, scores=True, progress=False)
    whole = pd.concat(alone)
    assert found.index.tolist() == whole.index.tolist()
    assert (
        found["predicted_labels"].astype(str).tolist()
        == whole["predicted_labels"].astype(str).tolist()
    )
    np.testing.assert_allclose(
        found[whole.columns[2:]], whole[whole.columns[2:]], rtol=1e-9, atol=1e-9
    )
    some = streamtrain.predict(
        model, paths, where="donor == 'D2'", majority_voting=True, over_clustering="file",
        progress=False,
    )  # fmt: skip
    assert set(some["over_clustering"]) == {"a.h5ad", paths[1].name}
    twice = first.copy()  # alone, a repeated name is the first of its genes
    twice.var_names = [*twice.var_names[:-1], "GENE3-1"]
    alone = streamtrain.predict(model, twice, scores=True, progress=False)
    found = streamtrain.predict(model, [second, twice], scores=True, progress=False)
    np.testing.assert_allclose(found.iloc[250:, 1:], alone.iloc[:, 1:], rtol=1e-9, atol=1e-9)
    second.var_names = [f"ENSG{j}" for j in range(second.n_vars)]
    with pytest.raises(InputError, match="AnnData 1: none of its 90 genes is in the model"):
        streamtrain.predict(model, [first, second], progress=False)


@pytest.mark.parametrize("options", [{"in_place": True}, {"out": "copy.h5ad"}])
def test_predict__no_obs_of_several(tmp_path, options):
    adata = atlas.make(60)
    with pytest.raises(InputError, match="AnnData 0 and 1 more is several: predict each by itself"):
        streamtrain.predict(trained(adata), [adata, adata.copy()], **options)


def test_predict__out_is_no_member(tmp_path):
    paths = [tmp_path / "a.h5ad", tmp_path / "b.parquet"]
    with pytest.raises(InputError, match=r"is what X\[1\] names, and would replace it"):
        streamtrain.predict(trained(atlas.make(60)), paths, out=paths[1])


# Mistakes and the command line


def test_errors__what_is_no_collection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atlas.make(60).write_h5ad("a.h5ad")
    shutil.copy("a.h5ad", "b.h5ad")
    (tmp_path / "table.csv").write_text("cell,g\nc,1\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "more").mkdir()
    for name in "ab":
        shutil.copy(f"{name}.h5ad", f"more/{name}.h5ad")
    cases = [
        ([], {}, "X is an empty list"),
        ([["a.h5ad"], "b.h5ad"], {}, r"X\[0\] is a list: lists are not nested"),
        (["a.h5ad", 3], {}, r"X\[1\] is a int"),
        (["a.h5ad", "more"], {}, r"X\[1\] is 'more', several files itself: list these"),
        (["a.h5ad", "more/*.h5ad"], {}, r"X\[1\] is 'more/\*.h5ad', several files itself"),
        (["a.h5ad", "./a.h5ad"], {}, "a.h5ad is there twice"),
        (["a.h5ad", "table.csv"], {}, "table.csv is text: convert it"),
        ("none*.h5ad", {}, r"no .h5ad file or zarr store matches 'none\*.h5ad'"),
        ("empty", {}, "empty is not an AnnData: .* holds no .h5ad files or zarr stores"),
        (["a.h5ad", "b.h5ad"], {"genes": ["g"]}, "genes= is for a matrix without gene names"),
        ("table.csv", {"join": ["g"]}, r"join with names of genes .* X is table.csv"),
        (np.ones((1, 1)), {"join": ["g"]}, r"join with names of genes .* X is a ndarray"),
        (["a.h5ad", "b.h5ad"], {"layer": "x"}, "a.h5ad has no layer 'x'"),
    ]
    for X, options, match in cases:
        with pytest.raises(InputError, match=match):
            open_source(X, **options)


def test_cli__several_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = halves(atlas.make())
    first.write_h5ad("a.h5ad")
    second[:, :100].copy().write_h5ad("b.h5ad")

    def call(*arguments):
        try:
            cli.main([*arguments, "--quiet"])
        except SystemExit as stop:
            return stop.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err

    options = ("--labels", "cell_type", "--tol", "0.1", "--no-check-expression", "--overwrite")
    for X in (["a.h5ad", "b.h5ad"], ["*.h5ad"]):
        assert call("train", *X, *options, "--out", "m.zarr", "--join", "outer")[0] == 0
        model = streamtrain.Model.load("m.zarr")
        assert model.settings["join"] == "outer"
        assert len(model.features) > 100
        assert call("predict", "m.zarr", *X, "--out", "p.csv", "--overwrite")[0] == 0
        assert len(pd.read_csv("p.csv")) == 600
    assert call("train", "*.h5ad", *options, "--out", "m.zarr")[0] == 0
    assert 90 < len(streamtrain.Model.load("m.zarr").features) < 100
    code, error = call("predict", "m.zarr", "a.h5ad", "b.h5ad", "--in-place")
    assert code == 2
    assert "a.h5ad and 1 more is several" in error
    assert call("train", "a.h5ad", *options, "--out", "m.zarr", "--empty-join")[0] != 0
    code, error = call("train", "a.h5ad", *options, "--out", "m.zarr", "--join", "both")
    assert code == 2
    assert "join must be" in error
