"""Every way to get input wrong, and the whole message that it gives: one table a level.

A row is a call and its message, to the last word: the rule, the value that breaks it, the remedy.
"@x" stands for the file x among the inputs, "{cwd}" for the folder of the call, "…" for words that
are not ours. Each row is called in Python and, where its arguments can be written there, on the
command line. None may change a byte of the inputs, leave anything behind, or show a traceback.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import streamtrain
from streamtrain import InputError, Model, cli
from tests import atlas, stores
from tests.servers import Failing, serving

N, GENES = 60, 30
SGD = {"use_SGD": True, "mini_batch": True, "batch_size": 20, "batch_number": 2, "epochs": 2}

# ------------------------------------------------------------------------------------- the inputs


def good(**columns):
    """The atlas that every bad one is made of: 60 cells, 30 genes, 5 types."""
    adata = atlas.make(n_obs=N, n_vars=GENES)
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def of_values(change):
    """X changed as an array: `change` has its values, and gives others."""
    adata = good()
    adata.X = change(adata.X.toarray().astype(np.float64))
    return adata


def put(value):
    """One value of X, of cell 7 and gene 5, replaced."""

    def change(x):
        x[7, 5] = value
        return sp.csr_matrix(x.astype(np.float32))

    return of_values(change)


def named(names):
    adata = good()
    adata.var_names = names
    return adata


def labelled(values):
    """Labels in the column `label`; the cells and other columns are good."""
    return good(label=values)


def logs(base=None, target=1e4):
    """Expression normalised otherwise: to another total, or by another logarithm."""
    adata = good()
    counts = adata.layers["counts"].toarray()
    scaled = np.log1p(counts / counts.sum(1, keepdims=True) * target)
    adata.X = sp.csr_matrix((scaled / np.log(base or np.e)).astype(np.float32))
    return adata


def only(X, adata=None):
    """An AnnData with X alone."""
    adata = adata or good()
    return ad.AnnData(X, obs=adata.obs, var=adata.var)


def without_x():
    adata = good()
    adata.X = None
    return adata


def scaled(x):
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


TYPES = good().obs["cell_type"].astype(str).to_numpy()
RANK = np.arange(N)
ENSEMBL = [f"ENSG{i:011d}" for i in range(GENES)]

ATLASES = {
    "good": good,
    "no_x": without_x,
    "nan": lambda: put(np.nan),
    "inf": lambda: put(np.inf),
    "negative": lambda: put(-1.5),
    "scaled": lambda: of_values(scaled),
    "scaled_alone": lambda: only(scaled(good().X.toarray())),
    "counts": lambda: only(good().layers["counts"]),
    "cp100k": lambda: logs(target=1e5),
    "log2": lambda: logs(base=2),
    "no_cells": lambda: good()[:0].copy(),
    "no_genes": lambda: good()[:, :0].copy(),
    "two_genes": lambda: only(good().X[:, :2], good()[:, :2]),
    "silent": lambda: only(sp.csr_matrix((N, GENES), dtype=np.float32)),
    "one_type": lambda: labelled("T"),
    "unlabelled": lambda: labelled(pd.Categorical(np.where(RANK % 6, TYPES, None))),
    "all_unlabelled": lambda: labelled(pd.Categorical([None] * N, ["T", "B"])),
    "blank": lambda: labelled(np.where(RANK % 6, TYPES, "")),
    "fractions": lambda: labelled(RANK / 7),
    "own_name": lambda: atlas.make(n_obs=1200, n_vars=GENES),
    "duplicates": lambda: named(["CD3D"] * 2 + [f"GENE{i}" for i in range(2, GENES)]),
    "ensembl": lambda: named(ENSEMBL),
    "weights": lambda: good(w=np.where(RANK == 4, -1.0, 1.0), zero=0.0, few=1.0 * (RANK < 5)),
    "donors": lambda: good(one="D", each=[f"D{i}" for i in range(N)]),
}

BROKEN = {}


def broken(builder):
    """Note a builder of an .h5ad whose parts are then changed; its name is the file's."""
    BROKEN[builder.__name__] = builder
    return builder


def replace(file, key, values):
    attrs = dict(file[key].attrs)
    del file[key]
    file[key] = values
    file[key].attrs.update(attrs)


@broken
def of_texts(file):
    replace(file, "X/data", np.array([b"high"] * len(file["X/data"])))


@broken
def complex_numbers(file):
    replace(file, "X/data", file["X/data"][...] * 1j)


@broken
def coo(file):
    file["X"].attrs["encoding-type"] = "coo_matrix"


@broken
def descending(file):
    file["X/indptr"][5] = file["X/indptr"][9] + 1


@broken
def beyond(file):
    file["X/indices"][3] = GENES


@broken
def below(file):
    file["X/indices"][3] = -1


@broken
def short_data(file):
    replace(file, "X/data", file["X/data"][:-4])


@broken
def short_indptr(file):
    replace(file, "X/indptr", file["X/indptr"][:-1])


@broken
def no_indices(file):
    del file["X/indices"]


@broken
def more_cells(file):
    file["X"].attrs["shape"] = [N + 1, GENES]


@broken
def short_obs(file):
    replace(file, "obs/_index", file["obs/_index"][:-1])


@broken
def short_var(file):
    replace(file, "var/_index", file["var/_index"][:-1])


@broken
def short_labels(file):
    replace(file, "obs/cell_type/codes", file["obs/cell_type/codes"][:-1])


@broken
def label_codes(file):
    file["obs/cell_type/codes"][4] = 9


@broken
def no_var_index(file):
    del file["var/_index"]


@broken
def no_obs(file):
    del file["obs"]


@broken
def no_var(file):
    del file["var"]


@broken
def half(file):
    """Dense float16, whose sums of expm1 are too coarse to be told from wrong ones."""
    del file["X"]
    file["X"] = good().X.toarray().astype(np.float16)
    file["X"].attrs["encoding-type"] = "array"


@broken
def flat(file):
    del file["X"]
    file["X"] = np.ones(N, np.float32)
    file["X"].attrs["encoding-type"] = "array"


FILES = {
    "text.h5ad": b"cell,gene\n",
    "empty.h5ad": b"",
    "atlas.rds": b"\x1f\x8b\x08\x00RDS",
    "matrix.npz": b"PK\x03\x04",
    "packed.zarr.zip": b"PK no zip",
    "labels.txt": "\n".join(TYPES[:-1]).encode(),
    "labels_nul.txt": b"\0\n" * N,
    "labels_utf16.txt": "\n".join(TYPES).encode("utf-16"),
    "labels_blank.txt": b"\n" * N,
    "genes.txt": b"GENE1\nGENE2\nGENE99\n",
    "genes_other.txt": b"A\nB\n",
    "genes_twice.txt": b"GENE1\nGENE1\n",
    "genes_none.txt": b"",
    "empty.csv": b"",
    "header.csv": b"cell,a,b\n",
    "words.csv": b"cell,a,b\nc1,1,high\n",
    "ragged.csv": b"cell,a,b\nc1,1\n",
    "tabs.csv": b"cell\ta\tb\nc1\t1\t2\n",
    "bad.mtx": b"%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 0\n",
    "short.mtx": b"%%MatrixMarket matrix coordinate integer general\n3 3 2\n1 1 1\n",
    "recipe.toml": b"alfa = 1.0\n",
    "text.toml": b"alpha: 1.0\n",
    "wrong.toml": b"alpha = -1.0\n",
    "run.toml": b'[train]\nlabels = "cell_type"\n',
    "file": b"a file\n",
    "file.zarr": b"a file\n",
    "model_text.pkl": b"no pickle\n",
    "model_empty.pkl": b"",
}


def build(folder: Path) -> None:
    """Write every input, good and bad."""
    for name, make in ATLASES.items():
        make().write_h5ad(folder / f"{name}.h5ad")
    for name, change in BROKEN.items():
        shutil.copy(folder / "good.h5ad", folder / f"{name}.h5ad")
        with h5py.File(folder / f"{name}.h5ad", "r+") as file:
            change(file)
    for name, raw in FILES.items():
        (folder / name).write_bytes(raw)
    build_stores(folder)
    build_models(folder)


def build_stores(folder: Path) -> None:
    raw = (folder / "good.h5ad").read_bytes()
    (folder / "cut.h5ad").write_bytes(raw[: len(raw) // 2])
    with h5py.File(folder / "writing", "w", libver="latest") as file:
        file.create_group("obs")
        file.swmr_mode = True
        shutil.copy(folder / "writing", folder / "writing.h5ad")  # as another process sees it
    (folder / "writing").unlink()
    for name in ("atlas.h5mu", "atlas.loom", "atlas.h5"):
        with h5py.File(folder / name, "w") as file:
            file["matrix"] = np.ones((2, 2))
    stores.write(good(), folder, "zarr3").rename(folder / "good.zarr")
    shutil.copytree(folder / "good.zarr", folder / "no_metadata.zarr")
    for path in (folder / "no_metadata.zarr").glob("zarr.json"):
        path.unlink()
    shutil.copytree(folder / "good.zarr", folder / "lost_chunk.zarr")
    shutil.rmtree(folder / "lost_chunk.zarr" / "X" / "data")
    (folder / "results").mkdir()
    (folder / "results" / "notes.txt").write_text("mine\n")
    (folder / "folder.h5ad").mkdir()
    (folder / "10x").mkdir()
    (folder / "10x" / "matrix.mtx").write_bytes(FILES["short.mtx"])
    (folder / "gone.h5ad").symlink_to(folder / "deleted.h5ad")


def build_models(folder: Path) -> None:
    train = {**SGD, "progress": False, "random_state": 0}
    model = streamtrain.train(good(), "cell_type", **train)
    model.save(folder / "model.zarr")
    model.to_celltypist(folder / "model.pkl")
    streamtrain.train(good(), "cell_type", progress=False).save(folder / "logistic.zarr")
    raw = (folder / "model.pkl").read_bytes()
    (folder / "cut.pkl").write_bytes(raw[: len(raw) // 2])
    (folder / "good.html").write_text("a page")
    (folder / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (folder / "graph.onnx").write_bytes(b"onnx")
    (folder / "code.pkl").write_bytes(pickle.dumps(os.system))
    for name, change in MODELS.items():
        shutil.copytree(folder / "model.zarr", folder / f"{name}.zarr")
        change(folder / f"{name}.zarr")


def attrs(**values):
    def change(path):
        for name in (".zattrs", ".zmetadata"):
            held = json.loads((path / name).read_text())
            (held if name == ".zattrs" else held["metadata"][".zattrs"]).update(values)
            (path / name).write_text(json.dumps(held))

    return change


def resaved(change):
    """The model with other arrays, and the right checksum: as another tool may write it."""
    from streamtrain import model_store

    def write(path):
        dataset = Model.load(path).dataset.copy(deep=True)
        shutil.rmtree(path)
        model_store.write(change(dataset), path, False)

    return write


def without(dataset):
    return dataset.drop_vars("coef")


def with_nan(dataset):
    values = dataset["coef"].to_numpy().copy()
    values[0, 0] = np.nan
    return dataset.assign(coef=(dataset["coef"].dims, values))


def cut_file(path):
    chunk = next(p for p in sorted((path / "coef").iterdir()) if not p.name.startswith("."))
    chunk.write_bytes(chunk.read_bytes()[:9])


def fewer_genes(path):
    for name in (".zmetadata", "gene/.zarray"):
        held = json.loads((path / name).read_text())
        array = held if name == "gene/.zarray" else held["metadata"]["gene/.zarray"]
        array["shape"] = [array["shape"][0] - 1]
        (path / name).write_text(json.dumps(held))


MODELS = {
    "newer": attrs(format_version=99),
    "no_version": attrs(format_version="one"),
    "other_format": attrs(format="another"),
    "not_json": lambda path: (path / ".zattrs").write_text("{"),
    "cut_model": cut_file,
    "lost_coef": lambda path: shutil.rmtree(path / "coef"),
    "no_coef": resaved(without),
    "nan_coef": resaved(with_nan),
    "lost_genes": lambda path: shutil.rmtree(path / "gene"),
    "short_genes": fewer_genes,
}


# ---------------------------------------------------------------------------- how they are called


@dataclass(frozen=True)
class Call:
    """A call of the Python API that the command line can make, too."""

    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    def python(self, fill):
        arguments = [fill(value) for value in self.arguments]
        keywords = {name: fill(value) for name, value in self.keywords.items()}
        if self.name == "load":
            return Model.load(*arguments)
        if self.name == "evaluate":
            return streamtrain.evaluate(*arguments)
        function = getattr(streamtrain, self.name)
        if self.name in ("train", "cross_validate"):
            keywords.pop("out", None)  # of the command alone
            keywords.pop("celltypist", None)
        return function(*arguments, **{"progress": False} | keywords)

    def words(self, fill):
        """The same as the words of a command."""
        keywords = dict(self.keywords)
        arguments = list(self.arguments)
        if self.name in ("train", "cross_validate"):
            keywords["labels"] = arguments.pop(1)
            keywords.setdefault("out", "out.csv" if self.name == "cross_validate" else "out.zarr")
        elif self.name == "convert":
            keywords["out"] = arguments.pop(1)
        elif self.name == "predict" and "in_place" not in keywords:
            keywords.setdefault("out", "out.csv")
        elif self.name == "load":
            return ["convert-model", str(fill(arguments[0])), "out.pkl"]
        words = [self.name.replace("_", "-")]
        for value in arguments:
            words += map(str, fill(value) if isinstance(value, list) else [fill(value)])
        for name, value in keywords.items():
            words += option(name, fill(value))
        return [*words, "--quiet"]


def option(name, value):
    word = f"--{name.lower().replace('_', '-')}"
    if isinstance(value, bool):
        return [word if value else f"--no-{word[2:]}"]
    if isinstance(value, dict):
        return [part for k, v in value.items() for part in (f"{word}.{k}", str(v))]
    if isinstance(value, list):
        return [part for v in value for part in (word, str(v))]
    return [word, str(value)]


def train(X="@good.h5ad", labels="cell_type", **keywords):
    return Call("train", (X, labels), keywords)


def sgd(X="@good.h5ad", labels="cell_type", **keywords):
    return train(X, labels, **SGD | keywords)


def cross(X="@good.h5ad", labels="cell_type", **keywords):
    return Call("cross_validate", (X, labels), SGD | {"folds": 2, "alpha": [0.1, 1.0]} | keywords)


def predict(model="@model.zarr", X="@good.h5ad", **keywords):
    return Call("predict", (model, X), keywords)


def report(model="@model.zarr", *given, **keywords):
    return Call("report", (model, *given), {"out": "out.html"} | keywords)


def convert(X="@good.h5ad", out="out.zarr", **keywords):
    return Call("convert", (X, out), keywords)


def load(path):
    return Call("load", (path,))


def clustered():
    adata = good()
    adata.obs["a_conf_score"] = adata.obs["donor"]
    return adata


def annotate(adata=None, **keywords):
    return Call("annotate", (good() if adata is None else adata, "@model.zarr"), keywords)


def evaluate(truth, predicted):
    return Call("evaluate", (truth, predicted))


def s3(server):
    """Settings of a bucket of a server of the tests, for which nobody has a key."""
    return {"endpoint": server, "region": "eu-west-1", "allow_http": "true"}


SAME = "same"


@dataclass(frozen=True)
class Row:
    """A call, its message in Python and that of the command; None where it cannot be made there."""

    call: Call
    python: str | None
    cli: str | None = SAME


# ------------------------------------------------------------------------------ how they are held


@dataclass(frozen=True)
class Place:
    """The inputs, an empty folder to work in, an empty one for scratch, and words to fill in."""

    inputs: Path
    cwd: Path
    scratch: Path
    words: dict[str, str]

    def fill(self, value):
        if isinstance(value, list):
            return [self.fill(v) for v in value]
        if isinstance(value, dict):
            return {name: self.fill(v) for name, v in value.items()}
        if not isinstance(value, str):
            return value
        for word, meant in self.words.items():
            value = value.replace(word, meant)
        return value

    def matches(self, message, told):
        """Whether a message is as the table has it, to the last word."""
        pattern = re.escape(self.fill(message)).replace("…", ".*")
        return re.fullmatch(pattern, told) is not None


def tree(folder):
    """Every file and folder below `folder`, with its bytes or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        at = str(path.relative_to(folder))
        found[at] = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
    return found


def marks(folder):
    """Inode, size and time of the last change of every file and folder below `folder`."""
    found = {}
    for at, folders, files in os.walk(folder):
        for name in folders + files:
            status = os.lstat(f"{at}/{name}")
            found[at, name] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def before(inputs):
    """What tells a change of the inputs at once; their bytes are compared at the end."""
    held = tree(inputs)
    yield marks(inputs)
    assert tree(inputs) == held


@pytest.fixture
def place(inputs, before, tmp_path, monkeypatch):
    """Where a row is called; afterwards nothing is left there, and the inputs are as they were."""
    cwd, scratch = tmp_path / "cwd", tmp_path / "scratch"
    cwd.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("COLUMNS", "2000")  # for what cyclopts words, in a frame
    yield Place(inputs, cwd, scratch, WORDS | {"@": f"{inputs}/", "{cwd}": str(cwd)})
    assert tree(cwd) == {}
    assert tree(scratch) == {}
    assert marks(inputs) == before


def command(capsys, words):
    """Exit code, output and error of a command, called in this process."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        cli.main(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out, err = capsys.readouterr()
    return code, out, err


def unframed(text):
    """What cyclopts says, without its frame."""
    return " ".join(re.sub(r"╭─ Error ─+╮|[╰╯│─]", " ", text).split())


def hold(row, place, capsys):
    """Call a row in Python and as a command, and compare what each says."""
    if row.python is not None:
        with pytest.raises((InputError, FileNotFoundError, TypeError)) as caught:
            row.call.python(place.fill)
        told = str(caught.value)
        assert place.matches(row.python, told), told
        assert isinstance(caught.value, TypeError) == ("argument '" in row.python)
        assert tree(place.cwd) == {}
    if row.cli is None:
        return
    code, out, err = command(capsys, row.call.words(place.fill))
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    message = row.python if row.cli == SAME else row.cli
    if err.startswith("streamtrain: "):
        assert err.endswith("\n")
        told = err.removeprefix("streamtrain: ").partition("\nhelp: ")[0].removesuffix("\n")
    else:
        told = unframed(err)
    assert place.matches(message, told), told


@pytest.fixture(scope="module")
def servers(inputs):
    """Addresses of a server of the inputs, of one that refuses, and of one that is not there."""
    with serving(inputs) as server, serving(inputs) as denying, socket.socket() as closed:
        denying.fault = Failing(403, times=10**9)
        closed.bind(("127.0.0.1", 0))  # and does not listen
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
        yield {"SERVER": server.url, "DENYING": denying.url, "AWAY": away}


def table(rows):
    return pytest.mark.parametrize("row", rows.values(), ids=rows.keys())


# Long words that several messages share.
# fmt: off
WORDS = {
    "<write one>":
        "write one with AnnData.write_h5ad or AnnData.write_zarr",
    "<cut or written>":
        "it is damaged, cut short or still being written (…); restore it from a copy or "
        "write it anew",
    "<no type>":
        "is of no type that can be read: supported are .h5ad, zarr (a folder or .zip), "
        ".csv, .txt, .tsv, .tab, .mtx (each also with .gz), and a 10x folder (matrix.mtx, "
        "features.tsv or genes.tsv, barcodes.tsv)",
    "<restore>":
        "restore it from a copy or write it anew",
    "<allowed>":
        "allowed are obs columns, text, numbers, lists, == != < <= > >=, in, not in, and, "
        "or, not, & | ~ and parentheses, e.g. tissue == 'lung' and n_genes >= 200",
    "<no total>":
        "expression must be log1p-normalised to 10,000 counts per cell, but sum(expm1(x)) "
        "is not 10,000 in",
    "<normalise>":
        "Normalise all genes with scanpy.pp.normalize_total(target_sum=1e4) and "
        "scanpy.pp.log1p, or point to raw counts with layer=NAME and normalize='log1p', or "
        "pass check_expression=False (--no-check-expression) to train on the values as "
        "they are.",
    "<counts>":
        "(cell 0 ('cell-0'): 3318.68; cell 1 ('cell-1'): 26.5244; cell 2 ('cell-2'): "
        "445831). The values are integers: for raw counts pass normalize='log1p' "
        "(--normalize log1p).",
    "<no raw>":
        "and there is no raw/X to read instead: name a layer that holds log1p expression "
        "(layer, --layer), or for raw counts pass normalize='log1p' (--normalize log1p)",
    "<not finite>":
        "expression must be finite and not negative, but the value of gene 'GENE5' in cell "
        "7 ('cell-7') is not finite",
    "<one cell>":
        "such values stand in 1 of the 60 cells read with it. Remove or repair those "
        "cells, or leave them out (where, --where).",
    "<logarithms>":
        "normalize='log1p' needs raw counts, but 60 of 60 cells are log1p-normalised to "
        "10,000 already (first cell 0 ('cell-0')). Leave out normalize, or point to the "
        "counts with layer=NAME; if these are counts, pass check_expression=False "
        "(--no-check-expression).",
    "<gene key>":
        "gene names may stand in another column of var (gene_key, --gene-key)",
    "<ENSG>":
        "'ENSG00000000000', 'ENSG00000000001', 'ENSG00000000002', ... (30 in all)",
    "<GENE>":
        "'GENE0', 'GENE1', 'GENE2', ... (30 in all)",
    "<model's>":
        "'GENE0', 'GENE1', 'GENE2', ... (26 in all)",
    "<no model>":
        "is not a streamtrain model: it must be a folder that save() wrote, or a .pkl file "
        "of CellTypist",
    "<memory>":
        "memory must be a size such as '2GB', '512MiB' or a number of bytes",
    "<types>":
        "'B', 'Monocyte, classical', 'NK', 'T CD4', 'T CD8'",
    "<columns>":
        "there are 'cell_type', 'donor', 'n'",
    "<login>":
        "is denied (403 Forbidden SlowDown): a signed address may have expired; a login "
        "goes into it as https://USER:PASSWORD…HOST",
    "<there>":
        "exists: pass overwrite=True (--overwrite) or another path",
}
# fmt: on


# fmt: off
FILE = {
    "absent": Row(train("@nowhere.h5ad"), "@nowhere.h5ad does not exist: correct the path"),
    "absent, near": Row(train("@good.h5da"),
        "@good.h5da does not exist: did you mean 'good.h5ad'?"),
    "absent folder": Row(convert("nowhere/a.h5ad"),
        "nowhere/a.h5ad does not exist, nor the folder 'nowhere': correct the path"),
    "link to nothing": Row(train("@gone.h5ad"),
        "@gone.h5ad does not exist: it is a link to @deleted.h5ad, which is not there"),
    "folder": Row(train("@results"),
        "@results is not an AnnData: it is a folder without zarr metadata, and holds no "
        ".h5ad files or zarr stores; <write one>"),
    "folder named h5ad": Row(train("@folder.h5ad"),
        "@folder.h5ad is not an AnnData: it is a folder without zarr metadata, and holds "
        "no .h5ad files or zarr stores; <write one>"),
    "no metadata": Row(train("@no_metadata.zarr"),
        "@no_metadata.zarr is not an AnnData: it is a folder without zarr metadata, and "
        "holds no .h5ad files or zarr stores; <write one>"),
    "text named h5ad": Row(train("@text.h5ad"),
        "@text.h5ad is not an .h5ad (HDF5) file; <write one>"),
    "cut short": Row(train("@cut.h5ad"), "@cut.h5ad cannot be opened: <cut or written>"),
    "empty": Row(train("@empty.h5ad"),
        "@empty.h5ad is not an .h5ad (HDF5) file: it is empty (0 bytes); <write one>"),
    "being written": Row(train("@writing.h5ad"),
        "@writing.h5ad cannot be opened: <cut or written>"),
    "no zip": Row(train("@packed.zarr.zip"),
        "@packed.zarr.zip cannot be opened as zarr (…); <write one>"),
    "model as data": Row(train("@model.zarr"),
        "@model.zarr is not an AnnData: it is a model that streamtrain saved; name the "
        "cells there, and a model where one is asked for"),
    "pickle as data": Row(train("@model.pkl"), "@model.pkl <no type>; <write one>"),
    "data as model": Row(predict("@good.h5ad", "@model.zarr"),
        "'@good.h5ad' is not a usable CellTypist model: it is an HDF5 file, as atlases "
        "are: give the model first, then X"),
    "zarr as model": Row(predict("@good.zarr", "@model.zarr"), "'@good.zarr' <no model>"),
    "rds": Row(train("@atlas.rds"),
        "@atlas.rds <no type>; write one with "
        "zellkonverter::writeH5AD(as.SingleCellExperiment(readRDS(PATH)), OUT) in R"),
    "npz": Row(train("@matrix.npz"), "@matrix.npz <no type>; <write one>"),
    "loom": Row(train("@atlas.loom"),
        "@atlas.loom is not an AnnData: it has no obs; write one with "
        "anndata.io.read_loom(PATH).write_h5ad(OUT)"),
    "h5mu": Row(train("@atlas.h5mu"),
        "@atlas.h5mu is not an AnnData: it has no obs; write one with "
        "mudata.read_h5mu(PATH).mod['rna'].write_h5ad(OUT)"),
    "10x h5": Row(train("@atlas.h5"),
        "@atlas.h5 is not an AnnData: it has no obs; write one with "
        "scanpy.read_10x_h5(PATH).write_h5ad(OUT)"),
    "no match": Row(train("@nowhere*.h5ad"),
        "no .h5ad file or zarr store matches '@nowhere*.h5ad': correct the pattern"),
    "twice": Row(train(["@good.h5ad", "@good.h5ad"]),
        "@good.h5ad and 1 more: @good.h5ad is there twice: name each file once"),
    "text among several": Row(train(["@good.h5ad", "@words.csv"]),
        "several files are trained on as one where each is an AnnData, and @words.csv is "
        "text: convert it (streamtrain convert @words.csv words.zarr), or pass it alone"),
    "absent among several": Row(train(["@good.h5ad", "@nowhere.h5ad"]),
        "@nowhere.h5ad does not exist: correct the path"),
    "empty list": Row(train([]), "X is an empty list: name one file at least", None),
    "number": Row(train(3),
        "X is a builtins.int, and must be a path, an AnnData, a scipy csr or csc matrix, a "
        "numpy array, a DataFrame or a dask array: convert it",
        None),
    "nothing": Row(train(None), "train() needs both X and labels", None),
    "empty table": Row(train("@empty.csv", "@labels.txt"),
        "@empty.csv is empty: it must hold a table of numbers"),
    "header alone": Row(train("@header.csv", "@labels.txt"),
        "@header.csv has a header and no rows below it: write the file anew"),
    "words in a table": Row(train("@words.csv", "@labels.txt"),
        "@words.csv: expression must be finite numbers, but line 2, column 3 (gene 'b'), "
        "holds 'high': write 0 for what was not measured, or leave out that cell"),
    "ragged table": Row(train("@ragged.csv", "@labels.txt"),
        "@ragged.csv: its header has 3 fields and line 2 has 2: each number needs a name, "
        "and each name a number"),
    "tabs in csv": Row(train("@tabs.csv", "@labels.txt"),
        "@tabs.csv: fields are parted by commas, and line 1 has a single one "
        "('cell\\ta\\tb'): name files with commas .csv, with tabs .tsv"),
    "complex mtx": Row(train("@bad.mtx", "@labels.txt"),
        "@bad.mtx begins with '%%matrixmarket matrix coordinate complex general', and must "
        "with %%MatrixMarket matrix coordinate, real, integer or pattern, general: write "
        "it with scipy.io.mmwrite(..., symmetry='general') from a sparse matrix"),
    "mtx without genes": Row(train("@short.mtx", "@labels.txt"),
        "@short.mtx has no gene names: pass genes= (--genes FILE), one name for each gene"),
    "half a 10x folder": Row(train("@10x", "@labels.txt"),
        "@10x is not a 10x folder: it must hold matrix.mtx, features.tsv or genes.tsv, and "
        "barcodes.tsv, or these with .gz"),
    "convert a folder": Row(convert("@results"),
        "@results is not an AnnData: it is a folder without zarr metadata, and holds no "
        ".h5ad files or zarr stores; <write one>"),
    "convert what is cut short": Row(convert("@cut.h5ad"),
        "@cut.h5ad cannot be opened: <cut or written>"),
    "predict for nothing": Row(predict(X="@nowhere.h5ad"),
        "@nowhere.h5ad does not exist: correct the path"),
    "predict for a model": Row(predict(X="@model.zarr"),
        "@model.zarr is not an AnnData: it is a model that streamtrain saved; name the "
        "cells there, and a model where one is asked for"),
    "predict for what is cut short": Row(predict(X="@cut.h5ad"),
        "@cut.h5ad cannot be opened: <cut or written>"),
    "cross-validate on nothing": Row(cross("@nowhere.h5ad"),
        "@nowhere.h5ad does not exist: correct the path"),
}
# fmt: on


@table(FILE)
def test_files__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
MATRIX = {
    "no X": Row(train("@no_x.h5ad"), "@no_x.h5ad has no X: choose layer='counts'"),
    "no such layer": Row(train(layer="count"),
        "@good.h5ad has no layer 'count': did you mean 'counts'?"),
    "no raw": Row(train(layer="raw"), "@good.h5ad has no raw/X: choose layer=None (X)"),
    "texts": Row(train("@of_texts.h5ad"),
        "X of @of_texts.h5ad holds values of type |S4, and expression must be real "
        "numbers: convert it, e.g. with X.astype('float32')"),
    "complex": Row(train("@complex_numbers.h5ad"),
        "X of @complex_numbers.h5ad holds values of type complex64, and expression must be "
        "real numbers: convert it, e.g. with X.astype('float32')"),
    "coo": Row(train("@coo.h5ad"),
        "X of @coo.h5ad is encoded as 'coo_matrix', and must be an array, csr_matrix or "
        "csc_matrix: convert it and write it anew"),
    "one dimension": Row(train("@flat.h5ad"),
        "X of @flat.h5ad has shape (60,), and must be cells x genes"),
    "NaN": Row(train("@nan.h5ad"), "@nan.h5ad: <not finite> (nan); <one cell>"),
    "NaN, unchecked": Row(train("@nan.h5ad", check_expression=False),
        "@nan.h5ad: <not finite> (nan); <one cell>"),
    "infinity": Row(train("@inf.h5ad"), "@inf.h5ad: <not finite> (inf); <one cell>"),
    "negative": Row(train("@negative.h5ad"),
        "X of @negative.h5ad does not hold expression: gene 'GENE5' in cell 7 ('cell-7') "
        "is negative (-1.5), <no raw>"),
    "scaled": Row(train("@scaled.h5ad"),
        "X of @scaled.h5ad does not hold expression: gene 'GENE1' in cell 0 ('cell-0') is "
        "negative (-0.840679), <no raw>"),
    "counts": Row(train("@counts.h5ad"),
        "@counts.h5ad: <no total> 60 cells of the first 60 read <counts>"),
    "counts, mini-batches": Row(sgd("@counts.h5ad"),
        "@counts.h5ad: <no total> 60 cells of the first 60 read <counts>"),
    "counts layer": Row(train(layer="counts"),
        "@good.h5ad: <no total> 60 cells of the first 60 read <counts>"),
    "log1p of logarithms": Row(train(normalize="log1p"), "@good.h5ad: <logarithms>"),
    "per 100,000": Row(train("@cp100k.h5ad"),
        "@cp100k.h5ad: <no total> 60 cells of the first 60 read (cell 0 ('cell-0'): "
        "100000; cell 1 ('cell-1'): 100000; cell 2 ('cell-2'): 100000). <normalise>"),
    "log2": Row(train("@log2.h5ad"),
        "@log2.h5ad: <no total> 60 cells of the first 60 read (cell 0 ('cell-0'): 230023; "
        "cell 1 ('cell-1'): 220150; cell 2 ('cell-2'): 207580). <normalise>"),
    "float16": Row(train("@half.h5ad"),
        "@half.h5ad: <no total> 52 cells of the first 60 read (cell 0 ('cell-0'): 9995.34; "
        "cell 1 ('cell-1'): 9995.49; cell 2 ('cell-2'): 9993.7). <normalise>"),
    "no cells": Row(train("@no_cells.h5ad"), "@no_cells.h5ad has no cells: name another file"),
    "no genes": Row(train("@no_genes.h5ad"),
        "@no_genes.h5ad: no cell expresses any of its 0 genes: name another matrix (layer, "
        "--layer), or write the file anew"),
    "all zero": Row(train("@silent.h5ad"),
        "@silent.h5ad: no cell expresses any of its 30 genes: name another matrix (layer, "
        "--layer), or write the file anew"),
    "all zero, mini-batches": Row(sgd("@silent.h5ad"),
        "@silent.h5ad: no cell expresses any of its 30 genes: name another matrix (layer, "
        "--layer), or write the file anew"),
    "lost chunks": Row(train("@lost_chunk.zarr"),
        "@lost_chunk.zarr is damaged: in X/data the chunk of entries 0 on is missing, and would "
        "be read as zeros; restore it from a copy. If its writer left it out, as it holds zeros "
        "alone, write it anew with zarr.config.set({'array.write_empty_chunks': True})"),
    "indptr descends": Row(train("@descending.h5ad"),
        "X of @descending.h5ad is damaged: the offsets (indptr) at cell 5 do not ascend; "
        "<restore>"),
    "position behind": Row(train("@beyond.h5ad"),
        "X of @beyond.h5ad is damaged: cell 0 has gene position 30, outside 0 to 29; "
        "<restore>"),
    "position before": Row(train("@below.h5ad"),
        "X of @below.h5ad is damaged: cell 0 has gene position -1, outside 0 to 29; "
        "<restore>"),
    "short data": Row(train("@short_data.h5ad"),
        "X of @short_data.h5ad is damaged: data has shape (683,) and indices (687,); "
        "<restore>"),
    "short indptr": Row(train("@short_indptr.h5ad"),
        "X of @short_indptr.h5ad is damaged: indptr has shape (60,) where (61,) is due; "
        "<restore>"),
    "no indices": Row(train("@no_indices.h5ad"),
        "X of @no_indices.h5ad is damaged: it cannot be read (…); <restore>"),
    "more cells than offsets": Row(train("@more_cells.h5ad"),
        "X of @more_cells.h5ad is damaged: indptr has shape (61,) where (62,) is due; "
        "<restore>"),
    "fewer names than cells": Row(train("@short_obs.h5ad"),
        "@short_obs.h5ad: obs has 59 cells and the matrix 60: they must be equal; write "
        "the file anew"),
    "fewer names than genes": Row(train("@short_var.h5ad"),
        "@short_var.h5ad: var has 29 genes and the matrix 30: they must be equal; write "
        "the file anew"),
    "no obs": Row(train("@no_obs.h5ad"),
        "@no_obs.h5ad is not an AnnData: it has no obs; <write one>"),
    "no var": Row(train("@no_var.h5ad"),
        "@no_var.h5ad is not an AnnData: it has no var; <write one>"),
    "counts and logarithms": Row(train(["@good.h5ad", "@counts.h5ad"]),
        "@good.h5ad and 1 more: all files must hold the same kind of values, and by their "
        "first cells there are log1p of 10,000 in '@good.h5ad'; counts in '@counts.h5ad'. "
        "Name a matrix that is the same in all (layer, --layer), for raw counts with "
        "normalize='log1p' (--normalize log1p), or normalise the others with "
        "scanpy.pp.normalize_total(target_sum=1e4) and scanpy.pp.log1p, or leave them out; "
        "check_expression=False (--no-check-expression) takes values as they are"),
    "fewer cells than a batch": Row(sgd(batch_size=100),
        "@good.h5ad: mini-batches need more cells than batch_size; got 60 cells and "
        "batch_size=100: lower batch_size (--batch-size), or leave out mini_batch"),
    "predict counts": Row(predict(X="@counts.h5ad"),
        "X of @counts.h5ad does not hold expression: gene 'GENE4' in cell 2 ('cell-2') is "
        "above 9.22 (13), <no raw>"),
    "predict NaN": Row(predict(X="@nan.h5ad"), "@nan.h5ad: <not finite> (nan); <one cell>"),
    "predict no cells": Row(predict(X="@no_cells.h5ad"),
        "@no_cells.h5ad has no cells: name another file"),
    "predict log1p of logarithms": Row(predict(normalize="log1p"), "@good.h5ad: <logarithms>"),
    "predict descending": Row(predict(X="@descending.h5ad"),
        "X of @descending.h5ad is damaged: the offsets (indptr) at cell 5 do not ascend; "
        "<restore>"),
    "convert no cells": Row(convert("@no_cells.h5ad"),
        "@no_cells.h5ad has no cells: name another file"),
    "convert descending": Row(convert("@descending.h5ad"),
        "X of @descending.h5ad is damaged: the offsets (indptr) at cell 5 do not ascend; "
        "<restore>"),
    "convert short data": Row(convert("@short_data.h5ad"),
        "X of @short_data.h5ad is damaged: data has shape (683,) and indices (687,); "
        "<restore>"),
    "convert position behind": Row(convert("@beyond.h5ad"),
        "X of @beyond.h5ad is damaged: cell 0 has gene position 30, outside 0 to 29; "
        "<restore>"),
    "convert texts": Row(convert("@of_texts.h5ad"),
        "X of @of_texts.h5ad holds values of type |S4, and expression must be real "
        "numbers: convert it, e.g. with X.astype('float32')"),
    "cross-validate NaN": Row(cross("@nan.h5ad"), "@nan.h5ad: <not finite> (nan); <one cell>"),
}
# fmt: on


@table(MATRIX)
def test_matrices__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
LABEL = {
    "near column": Row(train(labels="celltype"),
        "@good.h5ad has no obs column 'celltype' and there is no such file: did you mean "
        "'cell_type'?"),
    "no column": Row(train(labels="zzz"),
        "@good.h5ad has no obs column 'zzz' and there is no such file: <columns>"),
    "in obsm": Row(train(labels="X_umap"),
        "@good.h5ad has no obs column 'X_umap' and there is no such file: <columns>"),
    "empty name": Row(train(labels=""),
        "@good.h5ad has no obs column '' and there is no such file: <columns>"),
    "one class": Row(train("@one_type.h5ad", "label"),
        "@one_type.h5ad: training needs two cell types at least; 'label' holds only 'T': "
        "name another column"),
    "one class selected": Row(train(where="cell_type == 'B'"),
        "@good.h5ad: training needs two cell types at least; 'cell_type' holds only 'B' "
        'among the cells that where="cell_type == \'B\'" selects: name another column, or '
        "select more cells"),
    "missing": Row(train("@unlabelled.h5ad", "label"),
        "@unlabelled.h5ad: 10 of 60 cells have no label in 'label'; pass "
        "drop_unlabeled=True (--drop-unlabeled) to leave them out"),
    "all missing": Row(train("@all_unlabelled.h5ad", "label"),
        "@all_unlabelled.h5ad: none of 60 cells has a label in 'label': name another "
        "column"),
    "all left out": Row(train("@all_unlabelled.h5ad", "label", drop_unlabeled=True),
        "@all_unlabelled.h5ad: none of 60 cells has a label in 'label': name another "
        "column"),
    "empty strings": Row(train("@blank.h5ad", "label"),
        "@blank.h5ad: 10 of 60 cells have no label in 'label'; pass drop_unlabeled=True "
        "(--drop-unlabeled) to leave them out"),
    "continuous": Row(train("@fractions.h5ad", "label"),
        "labels must name cell types, and 'label' holds 60 different fractions: name "
        "another column"),
    "one a cell": Row(train("@own_name.h5ad", "n"),
        "labels must name cell types, and 'n' holds 1,200 different values for 1,200 "
        "cells, the first '0': name another column"),
    "short file": Row(train(labels="@labels.txt"),
        "there must be one label for each cell; got 59 labels for 60 cells of @good.h5ad: "
        "give one a cell, in their order, or name a column of obs"),
    "empty lines": Row(train(labels="@labels_blank.txt"),
        "there must be one label for each cell; got 0 labels for 60 cells of @good.h5ad: "
        "give one a cell, in their order, or name a column of obs"),
    "NUL": Row(train(labels="@labels_nul.txt"),
        "labels must be text without NUL, which AnnData cannot store, and "
        "'@labels_nul.txt' holds '\\x00': correct it there"),
    "UTF-16": Row(train(labels="@labels_utf16.txt"),
        "labels must be a text file in UTF-8; '@labels_utf16.txt': …: convert it"),
    "folder": Row(train(labels="@results"),
        "@good.h5ad has no obs column '@results' and there is no such file: <columns>"),
    "short list": Row(train(labels=["a", "b"]),
        "there must be one label for each cell; got 2 labels for 60 cells of @good.h5ad: "
        "give one a cell, in their order, or name a column of obs",
        None),
    "a table": Row(train(labels=[["a"]] * N),
        "labels must be a list of one label a cell; got shape (60, 1): pass one column of "
        "it",
        None),
    "number": Row(train(labels=3),
        "labels must be the name of an obs column, the path of a text file with one a "
        "line, or a list of one a cell; got 3",
        None),
    "none": Row(train(labels=None), "train() needs both X and labels", None),
    "1 and '1'": Row(train(labels=[1, "1"] * (N // 2)),
        "labels must differ as text, and '1' stands for two or more (such as 1 and '1'): "
        "give one type to all",
        None),
    "codes out of range": Row(train("@label_codes.h5ad"),
        "column 'cell_type' of obs of @label_codes.h5ad is damaged: it cannot be read (…); "
        "<restore>"),
    "short column": Row(train("@short_labels.h5ad"),
        "column 'cell_type' of obs of @short_labels.h5ad is damaged: it has 59 values for "
        "60 names; <restore>"),
    "one of two columns": Row(cross(labels=["cell_type", "celltype"]),
        "@good.h5ad has no obs column 'celltype' and there is no such file: did you mean "
        "'cell_type'?"),
    "same column twice": Row(cross(labels=["donor", "donor"]),
        "there must be one label for each cell; got 2 labels for 60 cells of @good.h5ad: "
        "give one a cell, in their order, or name a column of obs",
        "--labels must differ, in the names of files too; got 'donor', 'donor'"),
    "no cluster column": Row(predict(majority_voting=True, over_clustering="donnor"),
        "@good.h5ad has no obs column 'donnor' and there is no such file: did you mean "
        "'donor'?"),
    "short clusters": Row(predict(majority_voting=True, over_clustering="@labels.txt"),
        "over_clustering must hold one cluster for each cell; got 59 for 60 cells of "
        "@good.h5ad: give one a cell, in their order"),
    "missing clusters": Row(
        predict(X="@unlabelled.h5ad", majority_voting=True, over_clustering="label"),
        "@unlabelled.h5ad: over_clustering must hold one cluster for each cell, and 10 of "
        "60 have none; name the others with where, or another clustering"),
    "no batch column": Row(sgd(balance_cell_type=True, batch_key="donr"),
        "@good.h5ad has no obs column 'donr' and there is no such file: did you mean "
        "'donor'?"),
    "a batch a cell": Row(sgd("@donors.h5ad", balance_cell_type=True, batch_key="each"),
        "batch_key='each' has 60 values for 60 cells: name a column of donors, samples or "
        "studies"),
    "no group column": Row(cross(validation_groups="donr"),
        "obs of @good.h5ad has no column 'donr': did you mean 'donor'?"),
    "one group": Row(cross("@donors.h5ad", validation_groups="one"),
        "validation_groups='one' has one group alone, 'D', and folds hold out whole "
        "groups: name a column with more, or leave it out"),
    "a group a cell": Row(cross("@donors.h5ad", validation_groups="each"),
        "validation_groups='each' has 60 groups for 60 cells: name a column of donors, "
        "samples or studies"),
    "negative weights": Row(sgd("@weights.h5ad", sampling_weight="w"),
        "@weights.h5ad: sampling_weight must be finite numbers of at least 0; cell 4 "
        "('cell-4') has -1.0 and 1 cells have such: mend them, or leave these cells out "
        "with where (--where)"),
    "zero weights": Row(sgd("@weights.h5ad", sampling_weight="zero"),
        "@weights.h5ad: the weights of sampling_weight are all zero: name another column"),
    "few weights": Row(sgd("@weights.h5ad", sampling_weight="few"),
        "sampling_weight is above 0 in 5 cells, and an epoch draws 40 without replacement: "
        "pass replace=True (--replace), or lower batch_number (--batch-number)"),
    "weights of text": Row(sgd(sampling_weight="cell_type"),
        "@good.h5ad: sampling_weight must be finite numbers of at least 0; cell 0 "
        "('cell-0') has B and 60 cells have such: mend them, or leave these cells out with "
        "where (--where)"),
    "quota of no type": Row(sgd(quotas={"T": 3}),
        "quotas names 'T', which is no cell type: there are <types>"),
    "weight of no type": Row(train(class_weight={"T cell": 2.0}),
        "class_weight names 'T cell', which is no cell type: there are <types>"),
    "evaluate lengths": Row(evaluate(["a"], ["a", "b"]),
        "truth and predicted need one label a cell each: they have 1 and 2: take both from "
        "the same cells",
        None),
    "evaluate nothing": Row(evaluate([], []),
        "there are no cells to evaluate: truth and predicted are empty: pass some",
        None),
    "evaluate missing": Row(evaluate(["a", None], ["a", "b"]),
        "truth lacks the label of 1 cells: drop those cells first",
        None),
    "evaluate a number": Row(evaluate(3, ["a"]),
        "truth must be a list of one label a cell; got 3",
        None),
    "evaluate a text": Row(evaluate("abc", "abd"),
        "truth must be a list of one label a cell; got 'abc'",
        None),
    "evaluate a table": Row(evaluate([["a"]], [["a"]]),
        "truth must be a list of one label a cell; got [['a']]",
        None),
}
# fmt: on


@table(LABEL)
def test_labels__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
GENE = {
    "Ensembl ids and symbols": Row(predict(X="@ensembl.h5ad"),
        "@ensembl.h5ad: none of its 30 genes is in the model; it has names such as <ENSG>, "
        "the model <model's>: <gene key>"),
    "no name column": Row(train(gene_key="feature"),
        "var of @good.h5ad has no column 'feature': did you mean 'feature_name'?"),
    "no name column to predict": Row(predict(gene_key="symbol"),
        "var of @good.h5ad has no column 'symbol': there are 'feature_name'"),
    "no var index": Row(train("@no_var_index.h5ad"),
        "var of @no_var_index.h5ad is damaged: its index '_index' is missing; <restore>"),
    "genes of an AnnData": Row(train(genes="@genes.txt"),
        "genes= is for a matrix without gene names: name a var column, gene_key= "
        "(--gene-key)"),
    "no file of genes": Row(train("@short.mtx", "@labels.txt", genes="none.txt"),
        "genes must be a list or a text file with one a line; there is no file 'none.txt'"),
    "files share none": Row(train(["@good.h5ad", "@ensembl.h5ad"]),
        "@ensembl.h5ad has no gene in common with @good.h5ad: names such as <ENSG> there "
        "and <GENE> here; <gene key>"),
    "empty gene list": Row(sgd(gene_list="@genes_none.txt"),
        "@good.h5ad: none of its genes is in gene_list; it has names such as <GENE>, the "
        "list none: <gene key>"),
    "gene list of others": Row(sgd(gene_list="@genes_other.txt"),
        "@good.h5ad: none of its genes is in gene_list; it has names such as <GENE>, the "
        "list 'A', 'B': <gene key>"),
    "no gene list": Row(sgd(gene_list="panel.txt"),
        "gene_list must be a list or a text file with one a line; there is no file "
        "'panel.txt'"),
    "join of unknown": Row(train(join="@genes.txt"),
        "join names 1 genes that no file has ('GENE99'): did you mean 'GENE9' or 'GENE29' "
        "or 'GENE19'?"),
    "join twice": Row(train(join="@genes_twice.txt"),
        "join names a gene twice: 'GENE1'; name each once"),
    "join none": Row(train(join="@genes_none.txt"),
        "join is an empty list: name the genes, or pass 'inner' or 'outer'"),
    "join word": Row(train(join="left"),
        "join must be 'inner', 'outer', a list of gene names, or the path of a text file "
        "with one a line; got 'left'"),
    "fewer than top_genes": Row(train("@two_genes.h5ad", feature_selection=True, top_genes=5),
        "@two_genes.h5ad: feature_selection keeps the top_genes=5 of each cell type, and "
        "there are only 2 genes: lower top_genes, or leave out feature_selection"),
    "warm start shares none": Row(sgd("@ensembl.h5ad", warm_start="@model.zarr"),
        "warm_start: the model shares no gene with these cells: it has <model's>, they "
        "have <ENSG>; <gene key>"),
    "warm start shares no type": Row(sgd(labels="donor", warm_start="@model.zarr"),
        "warm_start: the model shares no cell type with these cells: it has 'B', "
        "'Monocyte, classical', 'NK', ... (5 in all), they have 'D0', 'D1', 'D2', ... (4 "
        "in all); name another column of labels, or leave warm_start out"),
    "init shares none": Row(sgd("@ensembl.h5ad", init="@model.zarr"),
        "init: the model shares no gene with these cells: it has <model's>, they have "
        "<ENSG>; <gene key>"),
    "names of cells": Row(predict(cells="@labels.txt"),
        "cells must hold one name for each cell; got 59 for 60 cells of @good.h5ad: give "
        "one a cell, in their order"),
}
# fmt: on


@table(GENE)
def test_genes__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
SETTING = {
    "C": Row(train(C=0.0), "C must be a number above 0; got 0.0"),
    "max_iter": Row(train(max_iter=0), "max_iter must be a whole number of at least 1; got 0"),
    "tol": Row(train(tol=-1.0), "tol must be a number of at least 0; got -1.0"),
    "n_jobs": Row(train(n_jobs=0),
        "n_jobs must be a positive number of CPUs, or -1 for all; got 0"),
    "random_state": Row(train(random_state=-1),
        "random_state must be a whole number of at least 0; got -1"),
    "l1_ratio": Row(train(l1_ratio=2.0),
        "l1_ratio must be a number of at least 0 and at most 1; got 2.0"),
    "intercept_scaling": Row(train(intercept_scaling=0.0),
        "intercept_scaling must be a number above 0; got 0.0"),
    "verbose": Row(train(verbose=-1), "verbose must be a whole number of at least 0; got -1"),
    "top_genes": Row(train(top_genes=0), "top_genes must be a whole number of at least 1; got 0"),
    "alpha": Row(sgd(alpha=-1.0), "alpha must be a number of at least 0; got -1.0"),
    "batch_size": Row(sgd(batch_size=0), "batch_size must be a whole number of at least 1; got 0"),
    "batch_number": Row(sgd(batch_number=0),
        "batch_number must be a whole number of at least 1; got 0"),
    "epochs": Row(sgd(epochs=0), "epochs must be a whole number of at least 1; got 0"),
    "step": Row(sgd(step=0.0), "step must be a number above 0; got 0.0"),
    "eta0": Row(sgd(eta0=-1.0), "eta0 must be a number of at least 0; got -1.0"),
    "power_t": Row(sgd(power_t=-1.0), "power_t must be a number of at least 0; got -1.0"),
    "epsilon": Row(sgd(epsilon=-1.0), "epsilon must be a number of at least 0; got -1.0"),
    "average": Row(sgd(average=-1), "average must be a whole number of at least 0; got -1"),
    "gene_dropout": Row(sgd(gene_dropout=1.0),
        "gene_dropout must be a number of at least 0 and at most 0.9; got 1.0"),
    "folds": Row(sgd(folds=1), "folds must be a whole number of at least 2 and at most 20; got 1"),
    "validation_fraction": Row(sgd(validation_fraction=1.0),
        "validation_fraction must be a number above 0 and at most 0.999; got 1.0"),
    "n_iter_no_change": Row(sgd(n_iter_no_change=0),
        "n_iter_no_change must be a whole number of at least 1; got 0"),
    "replicas": Row(sgd(replicas=0), "replicas must be a whole number of at least 1; got 0"),
    "too many folds": Row(sgd(folds=21),
        "folds must be a whole number of at least 2 and at most 20; got 21"),
    "half a cell": Row(sgd(batch_size=1.5),
        "batch_size must be a whole number of at least 1; got 1.5",
        "Invalid value for --batch-size: a whole number is due; got '1.5'"),
    "half a CPU": Row(train(n_jobs=1.5),
        "n_jobs must be a positive number of CPUs, or -1 for all; got 1.5",
        "Invalid value for --n-jobs: a whole number is due; got '1.5'"),
    "half a seed": Row(train(random_state=0.5),
        "random_state must be a whole number of at least 0; got 0.5",
        "Invalid value for --random-state: a whole number is due; got '0.5'"),
    "C of text": Row(train(C="high"),
        "C must be a number above 0; got 'high'",
        'Invalid value for --c: unable to convert "high" into …'),
    "alpha of text": Row(sgd(alpha="small"),
        "alpha must be a number of at least 0; got 'small'",
        'Invalid value for --alpha: unable to convert "small" into …'),
    "max_iter of text": Row(train(max_iter="many"),
        "max_iter must be a whole number of at least 1; got 'many'",
        "Invalid value for --max-iter: a whole number is due; got 'many'"),
    "NaN": Row(train(C=float("nan")), "C must be a number above 0; got nan"),
    "no such setting": Row(train(alfa=1.0),
        "train() has no argument 'alfa': did you mean 'alpha'?",
        "Unknown option: --alfa. Did you mean --alpha?"),
    "no such option of predict": Row(predict(layr="raw"),
        "predict() got an unexpected keyword argument 'layr'",
        "Unknown option: --layr. Did you mean --layer?"),
    "no such option of convert": Row(convert(shufle=True),
        "convert() got an unexpected keyword argument 'shufle'",
        "Unknown option: --shufle. Did you mean --shuffle?"),
    "loss": Row(sgd(loss="log"),
        "loss must be one of 'log_loss', 'hinge', 'modified_huber', 'squared_hinge', "
        "'perceptron', 'squared_error', 'huber', 'epsilon_insensitive', "
        "'squared_epsilon_insensitive'; got 'log'",
        'Invalid value "log" for --loss. Choose from: …'),
    "penalty": Row(train(penalty="l3"),
        "penalty must be one of 'l2', 'l1', 'elasticnet', None; got 'l3'",
        'Invalid value "l3" for --penalty. Choose from: …'),
    "solver": Row(train(solver="newton"),
        "solver must be one of 'lbfgs', 'liblinear', 'newton-cg', 'sag', 'saga', None; got "
        "'newton'",
        'Invalid value "newton" for --solver. Choose from: …'),
    "device": Row(train(device="cuda"),
        "device must be one of 'cpu', 'gpu'; got 'cuda'",
        'Invalid value "cuda" for --device. Choose from: …'),
    "dtype": Row(train(dtype="float16"),
        "dtype must be one of 'float32', 'float64'; got 'float16'",
        'Invalid value "float16" for --dtype. Choose from: …'),
    "learning rate": Row(sgd(learning_rate="adam"),
        "learning_rate must be one of 'optimal', 'constant', 'invscaling', 'adaptive', "
        "'pa1', 'pa2'; got 'adam'",
        'Invalid value "adam" for --learning-rate. Choose from: …'),
    "normalize": Row(train(normalize="log2"),
        "normalize must be one of 'log1p', None; got 'log2'",
        'Invalid value "log2" for --normalize. Choose from: …'),
    "class weight": Row(train(class_weight="balance"),
        "class_weight must be one of 'balanced', None; got 'balance'"),
    "quotas": Row(sgd(quotas="even"), "quotas must be one of 'equal', None; got 'even'"),
    "switch": Row(train(with_mean="yes"),
        "with_mean must be one of True, False; got 'yes'",
        "Unused Tokens: ['yes']."),
    "recipe": Row(train(recipe="atals"),
        "recipe must be 'atlas', 'quick-look', 'celltypist', 'gpu', 'cluster', or the path of a "
        "TOML file of settings; there is no file 'atals'"),
    "recipe with an unknown setting": Row(train(recipe="@recipe.toml"),
        "recipe '@recipe.toml': no setting 'alfa': did you mean 'alpha'?"),
    "recipe that is a file of options": Row(train(recipe="@run.toml"),
        "recipe '@run.toml' has a table [train], and a recipe has settings alone: the file of a "
        "command is for --config"),
    "recipe that is no TOML": Row(train(recipe="@text.toml"),
        "recipe '@text.toml' is no TOML file: …"),
    "recipe out of range": Row(sgd(recipe="@wrong.toml"),
        "with what recipe='@wrong.toml' sets: alpha must be a number of at least 0; got "
        "-1.0"),
    "folds without mini-batches": Row(train(folds=3),
        "folds is for use_SGD=True with mini_batch=True: leave it out, or pass that"),
    "quotas and balance": Row(sgd(quotas="equal", balance_cell_type=True),
        "quotas set the cells of each type: leave out balance_cell_type, or the quotas"),
    "step and eta0": Row(sgd(step=1.0, eta0=0.1),
        "step takes the place of eta0: leave one of them out"),
    "folds and early stopping": Row(sgd(folds=2, early_stopping=True),
        "folds cross-validates, and early_stopping stops by other held-out cells: leave "
        "one out"),
    "calibrate without folds": Row(train(calibrate=True),
        "calibrate is for folds, cross-validation: leave it out, or pass that"),
    "loss of logistic regression": Row(train(loss="hinge"),
        "loss is for use_SGD=True: leave it out, or pass that"),
    "init and warm start": Row(sgd(init="@model.zarr", warm_start="@model.zarr"),
        "init adds cells to a model, and warm_start starts on these cells alone: leave one "
        "out"),
    "several alpha without folds": Row(sgd(alpha=[0.1, 1.0]),
        "alpha=[0.1, 1.0] is chosen from by cross-validation: pass folds (--folds 5) too, "
        "or one value"),
    "gpu_memory without a GPU": Row(train(gpu_memory="1GB"),
        "gpu_memory is for device='gpu': leave it out, or pass that"),
    "correct_prior without average": Row(sgd(correct_prior=True),
        "correct_prior is for use_SGD=True with mini_batch=True, and average: leave it "
        "out, or pass that"),
    "more replicas than batches": Row(sgd(replicas=9),
        "replicas=9 copies need a mini-batch each in every epoch, and batch_number=2: "
        "raise it, or lower replicas"),
    "elastic net without its ratio": Row(train(penalty="elasticnet"),
        "penalty='elasticnet' needs l1_ratio, from 0 (l2) to 1 (l1)"),
    "never stops": Row(train(tol=None),
        "tol=None never stops, which SGD alone can do: pass a number",
        None),
    "optimal without alpha": Row(sgd(alpha=0.0),
        "alpha must be above 0, as learning_rate='optimal' divides by it; for no penalty "
        "pass penalty=None, or learning_rate='constant' and eta0"),
}
# fmt: on


@table(SETTING)
def test_settings__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
OPTION = {
    "mode": Row(predict(mode="best"),
        "mode must be 'best match' or 'prob match'; got 'best'",
        'Invalid value "best" for --mode. Choose from: …'),
    "p_thres": Row(predict(p_thres=2.0), "p_thres must be a probability from 0 to 1; got 2.0"),
    "p_thres of text": Row(predict(p_thres="high"),
        "p_thres must be a probability from 0 to 1; got 'high'",
        'Invalid value for --p-thres: unable to convert "high" into …'),
    "min_prop": Row(predict(min_prop=-1.0), "min_prop must be a share from 0 to 1; got -1.0"),
    "adapt": Row(predict(adapt="all"),
        "adapt must be 'none', 'genes' or 'auto'; got 'all'",
        'Invalid value "all" for --adapt. Choose from: …'),
    "normalize": Row(predict(normalize="log2"),
        "normalize must be 'log1p' or None; got 'log2'",
        'Invalid value "log2" for --normalize. Choose from: …'),
    "device": Row(predict(device="cuda"),
        "device must be 'cpu' or 'gpu'; got 'cuda'",
        'Invalid value "cuda" for --device. Choose from: …'),
    "n_jobs": Row(predict(n_jobs=0),
        "n_jobs must be a positive number of CPUs, or -1 for all; got 0"),
    "switch": Row(predict(in_place="no"), "in_place must be True or False; got 'no'", None),
    "probabilities and scores": Row(predict(probabilities=True, scores=True),
        "probabilities and scores both add a column for each cell type: choose one"),
    "clusters without voting": Row(predict(over_clustering="donor"),
        "over_clustering is for majority voting: pass majority_voting=True "
        "(--majority-voting)"),
    "gpu_memory without a GPU": Row(predict(gpu_memory="1GB"),
        "gpu_memory is for device='gpu': leave it out, or pass that"),
    "chunk_size": Row(convert(chunk_size=0),
        "chunk_size must be a whole number of at least 1; got 0"),
    "shard_size": Row(convert(chunk_size=3, shard_size=10),
        "shard_size must be a multiple of chunk_size; got 10 and 3 (--shard-size, "
        "--chunk-size)"),
    "chunk_size in parts": Row(convert(chunk_size=3.5),
        "chunk_size must be a whole number of at least 1; got 3.5",
        "Invalid value for --chunk-size: a whole number is due; got '3.5'"),
    "compression": Row(convert(compression="gzip"),
        "compression='gzip' is not known: there are 'blosc', 'none', 'zstd'",
        'Invalid value "gzip" for --compression. Choose from: …'),
    "index_dtype": Row(convert(index_dtype="int8"),
        "index_dtype='int8' is not known: did you mean 'int32' or 'uint16'?",
        'Invalid value "int8" for --index-dtype. Choose from: …'),
    "seed": Row(convert(random_state=-1),
        "random_state must be a whole number of at least 0; got -1"),
    "shuffle": Row(convert(shuffle="yes"),
        "shuffle must be True or False; got 'yes'",
        "Unused Tokens: ['yes']."),
    "too little memory": Row(train(memory="1kB"),
        "memory=1 kB is too small for 5 cell types x 30 genes and 60 cells: at least … MB "
        "is needed: raise it (--memory)"),
    "too little memory, mini-batches": Row(sgd(memory="10kB", replace=True),
        "memory=10 kB is too small for 5 cell types x 30 genes and 60 cells: at least … MB "
        "is needed, as an epoch draws 40: raise it (--memory), or lower batch_number"),
    "too little memory, folds": Row(cross(memory="10kB"),
        "memory=10 kB is too small for 5 cell types x 30 genes and 60 cells: at least … MB "
        "is needed, with a model for each of 2 folds: raise it (--memory), or ask for "
        "fewer"),
    "too little memory to predict": Row(predict(memory="1kB"),
        "memory=1 kB is too small for this model: at least … MB are needed: raise it "
        "(--memory)"),
    "too little memory to convert": Row(convert(memory="1kB"),
        "memory=1 kB is too small for 60 cells: at least … MB are needed: raise it "
        "(--memory)"),
    "memory of text": Row(train(memory="lots"), "<memory>; got 'lots'"),
    "memory of another unit": Row(predict(memory="2XB"), "<memory>; got '2XB'"),
    "negative memory": Row(convert(memory="-2GB"),
        "<memory>; got '-2GB'",
        'Command "convert" parameter --memory requires an argument.'),
    "no memory": Row(train(memory=0), "memory must be a positive size such as '2GB'; got 0"),
    "no scratch": Row(train(scratch="none"),
        "scratch must be a folder that can be written; none: No such file or directory"),
    "scratch is a file": Row(train(scratch="@file"),
        "scratch must be a folder that can be written; @file: Not a directory"),
    "no scratch to shuffle": Row(convert(scratch="none", shuffle=True),
        "scratch must be a folder that can be written; {cwd}/none: No such file or "
        "directory"),
    "any seed with a checkpoint": Row(train(random_state=None, checkpoint="run"),
        "random_state=None cannot be resumed: pass a number with checkpoint",
        None),
    "resume without a checkpoint": Row(train(resume=True),
        "resume is of a run that is kept: pass checkpoint=FOLDER (--checkpoint), too"),
    "checkpoint_every alone": Row(train(checkpoint_every=5.0),
        "checkpoint_every is of a run that is kept: pass checkpoint=FOLDER (--checkpoint), too"),
    "checkpoint_every": Row(train(checkpoint="run", checkpoint_every=0.0),
        "checkpoint_every must be a positive number of seconds; got 0.0"),
    "checkpoint elsewhere": Row(train(checkpoint="none/run"),
        "checkpoint='none/run': the folder '{cwd}/none' does not exist, create it"),
    "checkpoint is a file": Row(train(checkpoint="@file"),
        "checkpoint='@file' is a file: choose another path"),
    "checkpoint is a folder of others": Row(train(checkpoint="@results"),
        "checkpoint='@results' holds something else than a run ('notes.txt'): choose "
        "another folder"),
    "checkpoint is the input": Row(train("@good.zarr", checkpoint="@good.zarr"),
        "checkpoint='@good.zarr' holds something else than a run ('X'): choose another "
        "folder"),
    "client": Row(train(client=3), "client must be a dask.distributed Client; got a int", None),
    "no workers": Row(train(workers=0),
        None,
        "--workers must be a number of processes, 1 at least; got 0"),
    "workers and scheduler": Row(train(workers=2, scheduler="tcp://head:8786"),
        None,
        "--scheduler takes the workers of a cluster that runs, and --workers starts some "
        "here: leave one of them out"),
    "scheduler": Row(train(scheduler="head"),
        None,
        "--scheduler must be an address, such as tcp://host:8786, or the path of the file "
        "that dask scheduler --scheduler-file FILE.json writes; got 'head'"),
    "storage options": Row(train(storage_options=3),
        "storage_options must be a dict, such as {'region': 'eu-west-1'}; got 3",
        None),
    "nowhere to": Row(Call("predict", ("@model.zarr", "@good.h5ad"), {"in_place": False}),
        None,
        "say where the predictions go: --out FILE, or --in-place"),
}
# fmt: on


@table(OPTION)
def test_options__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
ANNOTATE = {
    "a file": Row(annotate("@good.h5ad"),
        "annotate() takes an AnnData; got '@good.h5ad': for files, matrices and tables call "
        "predict(model, X), which writes with out=FILE or in_place=True", None),
    "a matrix": Row(annotate(good().X),
        "annotate() takes an AnnData; got csr_matrix: for files, matrices and tables call "
        "predict(model, X), which writes with out=FILE or in_place=True", None),
    "switch": Row(annotate(copy="yes"), "copy must be True or False; got 'yes'", None),
    "prefix": Row(annotate(prefix=3), "prefix must be a text; got 3", None),
    "prefix of nothing": Row(annotate(inplace=False, prefix="a_"),
        "inplace=False puts nothing into an AnnData, and prefix='a_' says how: leave one out, or "
        "call to_adata() of the result", None),
    "copy of nothing": Row(annotate(inplace=False, copy=True),
        "inplace=False puts nothing into an AnnData, and copy=True says how: leave one out, or "
        "call to_adata() of the result", None),
    "as of predict": Row(annotate(over_clustering="donor"),
        "over_clustering is for majority voting: pass majority_voting=True "
        "(--majority-voting)", None),
    "clusters in the way": Row(
        annotate(clustered(), majority_voting=True, over_clustering="a_conf_score", prefix="a_"),
        "the column 'a_conf_score' of obs, which over_clustering names, would be replaced: pass "
        "another prefix", None),
    "counts": Row(annotate(only(good().layers["counts"])),
        "X of AnnData does not hold expression: gene 'GENE4' in cell 2 ('cell-2') is above 9.22 "
        "(13), and there is no raw/X to read instead: …", None),
}
RESULT = {
    "scores": ("to_adata", {"insert_decision": True},
        "decision_matrix takes 8 bytes for each cell and type, and was not kept: pass scores=True "
        "to annotate()"),
    "probabilities": ("to_adata", {"insert_prob": True},
        "probability_matrix takes 8 bytes for each cell and type, and was not kept: pass "
        "probabilities=True to annotate()"),
    "no such confidence": ("to_adata", {"insert_conf_by": "donor"},
        "insert_conf_by must be 'predicted_labels' or 'majority_voting'; got 'donor'"),
    "no voting": ("summary_frequency", {"by": "majority_voting"},
        "there is no majority_voting: pass majority_voting=True to annotate()"),
    "no such labels": ("summary_frequency", {"by": "donor"},
        "no labels 'donor': there are 'predicted_labels'"),
    "no folder": ("to_table", {"folder": "words"}, "no folder at 'words': correct the path"),
    "markers of none": ("markers", {"top_n": 0},
        "top_n must be a whole number of at least 1; got 0"),
    "markers of nobody": ("markers", {"cell_types": []},
        "cell_types must name a cell type at least, or be None for all; got none"),
    "markers of a number": ("markers", {"cell_types": 3},
        "no cell type 3 in the model: there are 'B', 'Monocyte, classical', 'NK', 'T CD4', "
        "'T CD8'"),
    "markers of another": ("markers", {"cell_types": "b"},
        "no cell type 'b' in the model: there are 'B', 'Monocyte, classical', 'NK', 'T CD4', "
        "'T CD8'"),
    "graph of another form": ("to_onnx", {"path": "a.onnx", "normalize": "log1p"},
        "normalize must be True or False; got 'log1p'"),
}
# fmt: on


@table(ANNOTATE)
def test_annotate__is_refused(row, place, capsys):
    hold(row, place, capsys)


@pytest.mark.parametrize(("method", "keywords", "message"), RESULT.values(), ids=RESULT.keys())
def test_results__are_refused(place, method, keywords, message):
    model = Model.load(place.fill("@model.zarr"))
    found = streamtrain.annotate(good(), model, progress=False)
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        getattr(found if hasattr(found, method) else model, method)(**keywords)
    assert place.matches(message, str(caught.value)), caught.value


# fmt: off
WHERE = {
    "cut off": Row(train(where="donor =="), "where='donor ==' cannot be read (…): <allowed>"),
    "one equals sign": Row(train(where="donor = 'D1'"),
        'where="donor = \'D1\'" cannot be read (…): <allowed>'),
    "empty": Row(train(where=""), "where='' cannot be read (…): <allowed>"),
    "number": Row(train(where=3), 'where must be a text such as "tissue == \'lung\'"; got 3', None),
    "column": Row(train(where="donnor == 'D1'"),
        'where="donnor == \'D1\'": obs has no column \'donnor\': did you mean \'donor\'?'),
    "column to predict": Row(predict(where="donnor == 'D1'"),
        'where="donnor == \'D1\'": obs has no column \'donnor\': did you mean \'donor\'?'),
    "column to convert": Row(convert(where="donnor == 'D1'"),
        'where="donnor == \'D1\'": obs has no column \'donnor\': did you mean \'donor\'?'),
    "none": Row(train(where="donor == 'D9'"),
        '@good.h5ad: where="donor == \'D9\'" selects none of 60 cells'),
    "kind": Row(train(where="donor == 3"),
        "where='donor == 3': column 'donor' holds text and 3 is of another kind: compare "
        "it with a value such as 'D0'"),
    "order of text": Row(train(where="donor > 'D1'"),
        'where="donor > \'D1\'": column \'donor\' holds text, which has no order relative to '
        "'D1': use ==, !=, in or not in"),
    "no condition": Row(train(where="donor"),
        "where='donor': column 'donor' holds text, not True/False: compare it, e.g. donor "
        "== 'D0'"),
    "constant": Row(train(where="True"),
        "where='True' has 'True' where a condition is due: <allowed>"),
    "arithmetic": Row(train(where="n + 1 == 3"), "where='n + 1 == 3' holds 'n + 1': <allowed>"),
    "power": Row(train(where="n == 9**9**9"), "where='n == 9**9**9' holds '9**9**9': <allowed>"),
    "call": Row(train(where="__import__('os').system('touch x')"),
        'where="__import__(\'os\').system(\'touch x\')" holds "__import__(\'os\').system(\'touch '
        'x\')": <allowed>'),
    "attribute": Row(train(where="donor.str.len() > 1"),
        "where='donor.str.len() > 1' holds 'donor.str.len()': <allowed>"),
    "lambda": Row(train(where="(lambda: 1)()"),
        "where='(lambda: 1)()' holds '(lambda: 1)()': <allowed>"),
    "comprehension": Row(train(where="donor in [x for x in 'a']"),
        'where="donor in [x for x in \'a\']" uses \'in\' otherwise than COLUMN in [\'A\', \'B\']: '
        "<allowed>"),
    "f-string": Row(train(where="donor == f'{n}'"),
        'where="donor == f\'{n}\'" holds "f\'{n}\'": <allowed>'),
    "subscript": Row(train(where="donor[0] == 'D'"),
        'where="donor[0] == \'D\'" holds \'donor[0]\': <allowed>'),
    "walrus": Row(train(where="(x := 3) == n"), "where='(x := 3) == n' holds 'x := 3': <allowed>"),
    "NUL": Row(train(where="n == \x00"), "where='n == \\x00' cannot be read (…): <allowed>", None),
    "deep": Row(train(where="(" * 300 + "n" + ")" * 300),
        "where='(… cannot be read (…): <allowed>"),
}
# fmt: on


@table(WHERE)
def test_conditions__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
OUTPUT = {
    "there": Row(convert(out="@good.zarr"), "'@good.zarr' <there>"),
    "the input": Row(convert("@good.zarr", "@good.zarr", overwrite=True),
        "the output '@good.zarr' would take the place of what is read, '@good.zarr': "
        "choose another path"),
    "folder missing": Row(convert(out="none/out.zarr"),
        "cannot write 'none/out.zarr': the folder '{cwd}/none' does not exist, create it"),
    "other ending": Row(convert(out="out.h5ad"),
        "the output must end in .zarr and is 'out.h5ad': rename it"),
    "a file": Row(convert(out="@file.zarr"), "'@file.zarr' <there>"),
    "on a server": Row(convert(out="s3://bucket/out.zarr"),
        "the output must be on a disk, and is 's3:/bucket/out.zarr' on a server: choose "
        "another path"),
    "predictions there": Row(predict(out="@words.csv"), "'@words.csv' <there>"),
    "predictions over X": Row(predict(out="@good.h5ad", overwrite=True),
        "out='@good.h5ad' is the input itself: to add columns to it pass in_place=True "
        "(--in-place)"),
    "predictions over X of text": Row(predict(X="@words.csv", out="@words.csv", overwrite=True),
        "out='@words.csv' is what X names, and would replace it: choose another path"),
    "predictions over the model": Row(
        predict("@model.zarr", "@good.zarr", out="@model.zarr", overwrite=True),
        "'@model.zarr' is no AnnData, and not overwritten by one: choose another path"),
    "predictions of other ending": Row(predict(out="out.txt"),
        "out must end in .parquet, .csv, .csv.gz, .h5ad or .zarr; got 'out.txt'"),
    "predictions in a missing folder": Row(predict(out="none/out.csv"),
        "cannot write 'none/out.csv': the folder '{cwd}/none' does not exist, create it"),
    "predictions on a server": Row(predict(out="s3://bucket/out.csv"),
        "the output must be on a disk, and is 's3:/bucket/out.csv' on a server: choose "
        "another path"),
    "copy of other kind": Row(predict(out="out.zarr"),
        "'@good.h5ad' is an .h5ad file and its copy another: out must end in .h5ad, "
        ".parquet or .csv; got 'out.zarr'"),
    "prefix in a table": Row(predict(prefix="a_"),
        "prefix='a_' is for obs columns: pass in_place=True, or out=COPY.h5ad or .zarr"),
    "out and in place": Row(predict(out="out.csv", in_place=True),
        "choose either out (--out) or in_place (--in-place), not both"),
    "in place of text": Row(predict(X="@words.csv", in_place=True),
        "columns can be added to an .h5ad file or a zarr folder, and '@words.csv' is "
        "neither: write to .parquet or .csv instead"),
    "in place of several": Row(predict(X=["@good.h5ad", "@ensembl.h5ad"], in_place=True),
        "obs columns are added to one .h5ad file or zarr folder, and @good.h5ad and 1 more "
        "is several: predict each by itself, or write to .parquet or .csv"),
    "model there": Row(train(out="@model.zarr"), None, "'@model.zarr' <there>"),
    "model over a folder": Row(train(out="@results", overwrite=True),
        None,
        "'@results' is a folder but not a zarr store (no zarr.json, .zgroup, .zattrs): it "
        "is not overwritten, choose another path"),
    "model over data": Row(train("@good.zarr", out="@good.zarr", overwrite=True),
        None,
        "'@good.zarr' is not a streamtrain model, and not overwritten by one: choose "
        "another path"),
    "atlas over a model": Row(convert(out="@model.zarr", overwrite=True),
        "'@model.zarr' is no AnnData, and not overwritten by one: choose another path"),
    "model over a file": Row(train(out="@file", overwrite=True),
        None,
        "'@file' is a file and would be replaced by a folder: choose another path"),
    "model in a missing folder": Row(train(out="none/out.zarr"),
        None,
        "cannot write 'none/out.zarr': the folder '{cwd}/none' does not exist, create it"),
    "model as a pickle": Row(train(out="model.pkl"),
        None,
        "--out is the folder of the model, .zarr by custom; got 'model.pkl': for a file "
        "that CellTypist reads pass --celltypist FILE.pkl, too"),
    "model as a graph": Row(train(out="model.onnx"),
        None,
        "--out is the folder of the model, .zarr by custom; got 'model.onnx': streamtrain "
        "convert-model writes the graph of a saved model"),
    "pickle of other ending": Row(train(celltypist="out.txt"),
        None,
        "--celltypist must end in .pkl; got 'out.txt'"),
    "pickle over the model": Row(train(out="out.pkl", celltypist="out.pkl"),
        None,
        "--out and --celltypist must differ; got 'out.pkl' for both"),
    "pickle there": Row(train(celltypist="@model.pkl"), None, "'@model.pkl' <there>"),
    "model in the checkpoint": Row(train(out="run", checkpoint="run"),
        None,
        "--checkpoint 'run' and the output 'run' must not be in each other: choose another "
        "folder"),
    "ranking of other ending": Row(cross(out="rank.txt"),
        None,
        "--out must end in .csv; got 'rank.txt'"),
    "models of the same name": Row(cross(labels=["x/a.txt", "y/a.txt"]),
        None,
        "--labels must differ, in the names of files too; got 'x/a.txt', 'y/a.txt'"),
}
# fmt: on


@table(OUTPUT)
def test_outputs__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
MODEL = {
    "absent": Row(load("@nowhere.zarr"), "no model at '@nowhere.zarr': correct the path"),
    "absent, near": Row(load("@model.pk"), "no model at '@model.pk': did you mean 'model.pkl'?"),
    "folder": Row(load("@results"), "'@results' <no model>"),
    "atlas": Row(load("@good.h5ad"),
        "'@good.h5ad' is not a usable CellTypist model: it is an HDF5 file, as atlases "
        "are: give the model first, then X"),
    "zarr atlas": Row(load("@good.zarr"), "'@good.zarr' <no model>"),
    "table": Row(load("@words.csv"),
        "'@words.csv' is not a usable CellTypist model: not a pickle, or damaged: it "
        "begins with b'cell,a,b', not as one of protocol 3 to 5; get the file once more"),
    "text": Row(load("@model_text.pkl"),
        "'@model_text.pkl' is not a usable CellTypist model: not a pickle, or damaged: it "
        "begins with b'no pickl', not as one of protocol 3 to 5; get the file once more"),
    "empty": Row(load("@model_empty.pkl"),
        "'@model_empty.pkl' is not a usable CellTypist model: not a pickle, or damaged: it "
        "begins with b'', not as one of protocol 3 to 5; get the file once more"),
    "cut pickle": Row(load("@cut.pkl"),
        "'@cut.pkl' is not a usable CellTypist model: not a pickle, or damaged (…): "
        "get the file once more"),
    "pickle of a list": Row(load("@list.pkl"),
        "'@list.pkl' is not a usable CellTypist model: it has no Model, Scaler_ and "
        "description, as CellTypist's models have"),
    "pickle that calls": Row(load("@code.pkl"),
        "'@code.pkl' is not a usable CellTypist model: refused: it asks for "
        "'posix.system', which no such file needs; nothing was run"),
    "another version": Row(load("@newer.zarr"),
        "model '@newer.zarr' has format version 99, this streamtrain reads up to 2: "
        "upgrade streamtrain"),
    "no version": Row(load("@no_version.zarr"),
        "model '@no_version.zarr' is damaged: its format_version is 'one'; restore it from "
        "a copy, or train again"),
    "another format": Row(load("@other_format.zarr"), "'@other_format.zarr' <no model>"),
    "metadata cut": Row(load("@not_json.zarr"),
        "model '@not_json.zarr' is damaged: .zattrs: …; restore it from a copy, or train again"),
    "array cut": Row(load("@cut_model.zarr"),
        "model '@cut_model.zarr' is damaged: coef/0.0 is cut short, or was changed; restore it "
        "from a copy, or train again"),
    "array lost": Row(load("@lost_coef.zarr"),
        "model '@lost_coef.zarr' is damaged: its array coef is missing; restore it from a copy, "
        "or train again"),
    "array missing": Row(load("@no_coef.zarr"),
        "model '@no_coef.zarr' is damaged: a model needs coef: the dataset has none; "
        "restore it from a copy, or train again"),
    "graph": Row(load("@graph.onnx"),
        "'@graph.onnx' is an ONNX graph, from which no model is read: load the model that it was "
        "written of"),
    "NaN weights": Row(load("@nan_coef.zarr"),
        "model '@nan_coef.zarr' is damaged: coef holds NaN or infinity: training diverged "
        "or input was broken; restore it from a copy, or train again"),
    "lost names": Row(load("@lost_genes.zarr"),
        "model '@lost_genes.zarr' is damaged: its array gene is missing; restore it from a copy, "
        "or train again"),
    "fewer genes": Row(load("@short_genes.zarr"),
        "model '@short_genes.zarr' is damaged: …; restore it from a copy, or train again"),
    "number": Row(load(3), "a model must be named by its path; got 3", None),
    "empty path": Row(load(""), "a model must be named by its path; got ''"),
    "on a server": Row(load("s3://bucket/model.zarr"),
        "model 's3://bucket/model.zarr' is on a server, and models are read from a disk: "
        "download it"),
    "predict with none": Row(predict("@nowhere.zarr"),
        "no model at '@nowhere.zarr': correct the path"),
    "predict with NaN": Row(predict("@nan_coef.zarr"),
        "model '@nan_coef.zarr' is damaged: coef holds NaN or infinity: training diverged "
        "or input was broken; restore it from a copy, or train again"),
    "predict with a cut one": Row(predict("@cut.pkl"),
        "'@cut.pkl' is not a usable CellTypist model: not a pickle, or damaged (…): "
        "get the file once more"),
    "predict with a number": Row(predict(3),
        "model must be a Model or the path of one; got 3",
        None),
    "predict with one on a server": Row(predict("https://host/model.pkl"),
        "model 'https://host/model.pkl' is on a server, and models are read from a disk: "
        "download it"),
    "warm start from none": Row(sgd(warm_start="@nowhere.zarr"),
        "no model at '@nowhere.zarr': correct the path"),
    "warm start from data": Row(sgd(warm_start="@good.h5ad"),
        "'@good.h5ad' is not a usable CellTypist model: it is an HDF5 file, as atlases "
        "are: give the model first, then X"),
    "warm start from a number": Row(sgd(warm_start=3),
        "warm_start must be a Model or the path of one; got 3",
        None),
    "init by logistic regression": Row(sgd(init="@logistic.zarr"),
        "init goes on where SGD stopped, and this model counts no steps of SGD, as those "
        "of logistic regression: train on the old and the new cells together as X, or pass "
        "the model as warm_start, which only starts from its weights"),
    "init of another centring": Row(sgd(init="@model.zarr", with_mean=False),
        "init goes on with a model of with_mean=True: pass with_mean=True (--with-mean), "
        "too"),
}
# fmt: on


@table(MODEL)
def test_models__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
REPORT = {
    "page of other ending": Row(report(out="out.pdf"),
        "out must end in .html (--out); got 'out.pdf'",
        None),
    "page where one is": Row(report(out="@good.html"),
        "'@good.html' exists: pass overwrite=True (--overwrite) or another path",
        None),
    "page over what is read": Row(
        report("@good.html", out="@good.html", overwrite=True),
        "out='@good.html' is what model names, and would replace it: choose another path",
        None),
    "report of no model": Row(report("@modle.zarr"),
        "no model at '@modle.zarr': did you mean 'model.zarr'?",
        None),
    "no markers": Row(report(markers=0),
        "markers must be a whole number of at least 1; got 0",
        None),
    "no title": Row(report(title=""),
        "title must be a text (--title); got ''",
        None),
    "cells without labels": Row(report("@model.zarr", "@good.h5ad"),
        "cells are evaluated by their labels, and labels is not given: pass it, too (--labels), "
        "or leave out X",
        None),
    "labels without cells": Row(report(labels="cell_type"),
        "cells are evaluated by their labels, and X is not given: pass it, too (SOURCE), or "
        "leave out labels",
        None),
    "option without cells": Row(report(top_k=2),
        "top_k is of cells to evaluate: pass X and labels (SOURCE and --labels), or leave it out",
        None),
    "no such option of report": Row(report(layr="raw"),
        "report() got an unexpected keyword argument 'layr'",
        None),
    "another evaluation": Row(report(evaluation="scores.json"),
        "evaluation must be what evaluate_model gave; got 'scores.json'",
        None),
    "figures into a store": Row(report(figures="@model.zarr"),
        "figures='@model.zarr' is a zarr store: name a folder for pictures (--figures)",
        None),
    "figures into a file": Row(report(figures="@good.html"),
        "'@good.html' exists: pass overwrite=True (--overwrite) or another path",
        None),
    "figures in the place of the page": Row(report(figures="out.html"),
        "figures='out.html' is the page itself: name a folder for pictures (--figures)",
        None),
    "report of labels that are not there": Row(
        report("@model.zarr", "@good.h5ad", "cell_typ"),
        "@good.h5ad has no obs column 'cell_typ' and there is no such file: did you mean "
        "'cell_type'?",
        None),
}
# fmt: on


@table(REPORT)
def test_reports__are_refused(row, place, capsys):
    hold(row, place, capsys)


# fmt: off
REMOTE = {
    "no such scheme": Row(train("ftp://host/atlas.h5ad"),
        "ftp://host/atlas.h5ad: ftp:// is no kind of address that can be read; there are "
        "s3://, gs://, az://, http://, https:// and paths"),
    "a Path": Row(train(Path("s3://bucket/atlas.h5ad")),
        "an address on a server must be passed as text, not as a Path; got "
        "'s3:/bucket/atlas.h5ad'",
        None),
    "no bucket in it": Row(train("s3:///atlas.h5ad"),
        "s3:///atlas.h5ad names no bucket: write s3://BUCKET/PATH"),
    "no host in it": Row(train("https:///atlas.h5ad"),
        "https:///atlas.h5ad names no host: write https://HOST/PATH"),
    "no such file": Row(train("SERVER/nowhere.h5ad"),
        "SERVER/nowhere.h5ad does not exist (the server answers 404 …): correct the "
        "address"),
    "no such store": Row(train("SERVER/nowhere.zarr"),
        "SERVER/nowhere.zarr does not exist (the server answers 404 …), nor "
        "SERVER/nowhere.zarr/zarr.json or .zgroup: pass the address of an .h5ad file, or "
        "of the folder of a zarr AnnData"),
    "refused": Row(train("DENYING/good.h5ad"), "access to DENYING/good.h5ad <login>"),
    "away": Row(train("AWAY/good.h5ad"),
        "AWAY/good.h5ad cannot be read: its host does not answer; check the address and "
        "the network"),
    "cut short": Row(train("SERVER/cut.h5ad"),
        "SERVER/cut.h5ad cannot be opened: <cut or written>"),
    "text named h5ad": Row(train("SERVER/text.h5ad"),
        "SERVER/text.h5ad is neither an .h5ad (HDF5) file nor a zarr store: pass the "
        "address of an .h5ad file, or of the folder of a zarr AnnData"),
    "table": Row(train("SERVER/words.csv"),
        "SERVER/words.csv is text or packed, which is not read from a server: download it, "
        "and pass the path"),
    "a model": Row(train("SERVER/model.zarr"),
        "SERVER/model.zarr is not an AnnData: it is a model that streamtrain saved; name "
        "the cells there, and a model where one is asked for"),
    "counts": Row(train("SERVER/counts.h5ad"),
        "SERVER/counts.h5ad: <no total> 60 cells of the first 60 read <counts>"),
    "no such column": Row(train("SERVER/good.h5ad", "celltype"),
        "SERVER/good.h5ad has no obs column 'celltype' and there is no such file: did you "
        "mean 'cell_type'?"),
    "no such bucket": Row(train("s3://nowhere/good.h5ad", storage_options=s3("SERVER")),
        "s3://nowhere/good.h5ad does not exist (the server answers 404 …): correct the "
        "address"),
    "no such key": Row(train("s3://results/good.h5ad", storage_options=s3("SERVER")),
        "s3://results/good.h5ad does not exist (the server answers 404 …): correct the "
        "address"),
    "no credentials": Row(train("s3://results/good.h5ad", storage_options=s3("DENYING")),
        "access to s3://results/good.h5ad is denied (403 Forbidden SlowDown): set "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the like in "
        "storage_options (--storage-options.KEY); skip_signature=true is for public data, "
        "and false for the role of a cloud machine"),
    "no such storage option": Row(train("s3://results/good.h5ad", storage_options={"regoin": "x"}),
        "storage_options has 'regoin', which s3:// does not know: see obstore's settings "
        "of s3://"),
    "predict for no such file": Row(predict(X="SERVER/nowhere.h5ad"),
        "SERVER/nowhere.h5ad does not exist (the server answers 404 …): correct the "
        "address"),
    "predict for what is refused": Row(predict(X="DENYING/good.h5ad"),
        "access to DENYING/good.h5ad <login>"),
    "predict into it": Row(predict(X="SERVER/good.h5ad", in_place=True),
        "no columns can be added to SERVER/good.h5ad, on a server: write to .parquet or "
        ".csv instead"),
    "convert no such file": Row(convert("SERVER/nowhere.h5ad"),
        "SERVER/nowhere.h5ad does not exist (the server answers 404 …): correct the "
        "address"),
    "cross-validate on what is refused": Row(cross("DENYING/good.h5ad"),
        "access to DENYING/good.h5ad <login>"),
}
# fmt: on


@table(REMOTE)
def test_addresses__are_refused(row, place, servers, capsys, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    place.words.update(servers)
    hold(row, place, capsys)


@contextmanager
def powerless():
    """As a user who may not read everything, also where root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["atlas.h5ad", "atlas.h5", "atlas.zarr"])
def test_unreadable__is_not_taken_for_another_format(inputs, name):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, name)
        if path.suffix == ".zarr":
            shutil.copytree(inputs / "good.zarr", path)
        else:
            shutil.copy(inputs / "good.h5ad", path)
        path.chmod(0)
        words = f"{path} cannot be read: there is no permission; ask its owner for it"
        try:
            with powerless(), pytest.raises(InputError, match=f"^{re.escape(words)}\n"):
                streamtrain.train(path, "cell_type", progress=False)
        finally:
            path.chmod(0o755)


@pytest.mark.parametrize("row", [FILE["cut short"], SETTING["C"], LABEL["no column"]])
def test_debug__shows_where_a_mistake_was_found(place, capsys, row):
    code, out, err = command(capsys, [*row.call.words(place.fill), "--debug"])
    assert code == 2
    assert out == ""
    assert err.startswith("Traceback (most recent call last)")
    last = [line for line in err.splitlines() if not line.startswith("help: ")][-1]
    assert place.matches(f"streamtrain: {row.python}", last)


# What a command that goes on until something happens does then, and the exit code of it.
ENDS = {
    "done": (lambda: None, 0, ""),
    "mistake": (lambda: fail(InputError("rule, value, remedy")), 2, "rule, value, remedy\n"),
    "full disk": (lambda: fail(OSError(28, "full", "/x")), 2, "[Errno 28] full: '/x'\n"),
    "SIGINT": (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted\n"),
    "SIGTERM": (lambda: signal.raise_signal(signal.SIGTERM), 143, "terminated\n"),
    "SIGHUP": (lambda: signal.raise_signal(signal.SIGHUP), 129, "terminated\n"),
}


def fail(error):
    raise error


@pytest.mark.parametrize(("happens", "code", "told"), ENDS.values(), ids=ENDS.keys())
def test_exit_code__says_how_a_command_ended(capsys, monkeypatch, happens, code, told):
    monkeypatch.setattr(cli, "app", lambda _: happens())
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as by nohup
        monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert command(capsys, []) == (code, "", told and f"streamtrain: {told}")


def test_exit_code__of_a_bug_is_1_with_its_traceback():
    script = "from streamtrain import cli\ncli.app = lambda words: 1 / 0\ncli.main([])"
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_exit_code__of_help_is_0(capsys, words):
    code, out, err = command(capsys, words)
    assert (code, err) == (0, "")
    assert out


WORDLESS = {
    "no source": (["train", "--labels", "a", "--out", "m.zarr"], "SOURCE requires an argument."),
    "no labels": (["train", "a.h5ad", "--out", "m.zarr"], "--labels requires an argument."),
    "no out": (["convert", "a.h5ad"], "--out requires an argument."),
    "no such command": (["trian", "a.h5ad"], 'Unknown command "trian". Did you mean "train"?…'),
    "cells in parts": (
        ["simulate", "--cells", "10.5", "--out", "a.zarr"],
        "Invalid value for --cells: a whole number is due; got '10.5'",
    ),
    "model of no ending": (
        ["convert-model", "@model.pkl", "model"],
        "the output must end in .pkl, .onnx or .zarr; got 'model'",
    ),
    "no file of options": (
        ["train", "--config", "none.toml"],
        "no file of --config at 'none.toml': correct the path",
    ),
    "a recipe as options": (
        ["train", "--config", "@recipe.toml"],
        "@recipe.toml: 'alfa' stands before any table: write it below [train], or pass a file of "
        "settings alone as --recipe",
    ),
    "no such recipe": (["recipes", "atals"], "no recipe 'atals': did you mean 'atlas'?"),
    "no command known": (
        ["config", "@model.pkl"],
        "@model.pkl does not know the command that trained it: CellTypist's models, those that "
        "were converted or subset, and those of earlier versions do not; train it anew",
    ),
}


@pytest.mark.parametrize(("words", "message"), WORDLESS.values(), ids=WORDLESS.keys())
def test_command__says_what_it_lacks(place, capsys, words, message):
    code, out, err = command(capsys, place.fill(words))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert place.matches(f"…{message}", unframed(err.partition("\nhelp: ")[0])), err
