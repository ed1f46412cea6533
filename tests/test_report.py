"""The page on a model: its structure, its numbers, its figures, and what it looks like."""

import io
import itertools
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from urllib.parse import unquote

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.image import imread

import streamtrain
from streamtrain import InputError, Model
from streamtrain.history import Curve, of_epochs
from streamtrain.report import expression, marker_expression, page, scored
from tests import atlas, stores
from tests.test_plot import HISTORY

QUIET = {"progress": False}
SMALL = atlas.MINI | QUIET | {"batch_size": 100, "batch_number": 4, "epochs": 2, "alpha": 1.0}
EVIL = "<script>alert(1)</script> & \"T\" 'x' $a$"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
SECTIONS = [
    "scores", "types", "confusions", "calibration", "markers", "training", "balance", "settings",
    "provenance",
]  # fmt: skip
FIGURES = [
    "calibration_curve.png", "class_balance.png", "confusion_matrix.png", "f1_by_type.png",
    "markers_dotplot.png", "probability_histogram.png", "training_curve.png",
]  # fmt: skip
VOID = {"meta", "link", "img", "br"}


class Parsed(HTMLParser):
    """A page taken apart: tags that close, attributes, texts and tables by section."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.tables, self.texts = [], [], {}, []
        self.section = None
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attrs["id"]
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.section][-1][-1][-1] += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def svgs(self):
        found = []
        for image in self.of("img"):
            kind, data = image["src"].split(",", 1)
            assert kind == "data:image/svg+xml"
            found.append(ET.fromstring(unquote(data)))  # noqa: S314 - we wrote it
        return found


@pytest.fixture(scope="module")
def cells():
    """Few counts a cell, so that some are called wrong."""
    adata = atlas.make()
    kept = np.random.default_rng(0).random(adata.shape) < 0.15
    kept[:, 0] = True
    counts = adata.layers["counts"].multiply(kept).toarray()
    adata.X = sp.csr_matrix(atlas.log1p_10k(counts).astype(np.float32))
    names = adata.obs["cell_type"].cat.categories
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({names[0]: EVIL})
    return adata


@pytest.fixture(scope="module")
def model(cells):
    found = streamtrain.train(
        cells, "cell_type", holdout="donor=D3", details="of <b>donors</b>", **SMALL
    )
    dataset = found.dataset.copy(deep=True)
    dataset.attrs["provenance"] |= {
        "history": HISTORY,
        "cross_validation": [
            {"alpha": 0.1, "macro_f1": 0.9, "folds": [0.89, 0.91], "chosen": True},
            {"alpha": 1.0, "macro_f1": 0.8, "folds": [0.8, 0.8], "chosen": False},
        ],
    }
    dataset["n_drawn"] = ("cell_type", np.arange(5) + 40)
    return Model(dataset)


@pytest.fixture(scope="module")
def written(tmp_path_factory, model, cells):
    """The page of everything, its evaluation, and the folder of both and the figures."""
    folder = tmp_path_factory.mktemp("report")
    path = stores.write(cells, folder, "h5ad")
    model.save(folder / "model.zarr")
    found = streamtrain.evaluate_model(model, path, "cell_type", **QUIET)
    out = streamtrain.report(
        folder / "model.zarr", path, "cell_type", out=folder / "r.html", figures=folder / "figures",
        **QUIET,
    )  # fmt: skip
    assert out == (folder / "r.html").resolve()
    return Parsed(out), found, folder


def test_report__stands_alone(written):
    parsed, _, _ = written
    assert parsed.source.startswith("<!DOCTYPE html>")
    assert parsed.of("html") == [{"lang": "en"}]
    assert "width=device-width, initial-scale=1" in [m.get("content") for m in parsed.of("meta")]
    (safe,) = [m["content"] for m in parsed.of("meta") if "http-equiv" in m]
    assert safe == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in parsed.tags}
    for _, attrs in parsed.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    css = re.search(r"<style>(.*?)</style>", parsed.source, re.S)[1]
    assert not re.search(r"@import|url\(|https?:", css)
    assert "@media print" in css


def test_report__structure(written):
    parsed, _, _ = written
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [a["id"] for a in parsed.of("section")] == SECTIONS
    assert [a["href"] for a in parsed.of("a")] == [f"#{name}" for name in SECTIONS]
    for name in ("aria-labelledby",):
        assert {attrs[name] for _, attrs in parsed.tags if name in attrs} <= set(ids)
    images = parsed.of("img")
    assert len(images) == len(FIGURES)
    for image in images:
        assert len(image["alt"]) > 40
        assert int(image["width"]) > 100
        assert int(image["height"]) > 100
    assert all(attrs.get("scope") in ("col", "row") for attrs in parsed.of("th"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_report__counts_all_epochs_of_a_thinned_history(tmp_path, model):
    curve = Curve(["loss"])
    for _ in range(2500):
        curve.add(10, np.ones(5))
    dataset = model.dataset.copy(deep=True)
    dataset.attrs["provenance"] |= {"history": of_epochs([curve])}
    parsed = Parsed(streamtrain.report(Model(dataset), out=tmp_path / "r.html"))
    assert any("Training over 2,500 epochs" in image["alt"] for image in parsed.of("img"))


def test_report__escapes_names(written):
    parsed, _, _ = written
    assert "<script" not in parsed.source
    assert "of <b>donors</b>" in parsed.words  # as text
    assert EVIL in [row[0] for row in parsed.tables["types"][0]]
    for svg in parsed.svgs:  # parsed as XML, so that a name cannot break out
        tags = {element.tag.split("}")[-1] for element in svg.iter()}
        assert not tags & {"script", "b", "foreignObject"}
    texts = [text for svg in parsed.svgs for text in svg.itertext()]
    assert any(EVIL in text for text in texts)


def test_text__every_character():
    assert page.text("a<b>&\"'\0\x1b[31m\ud800\x85") == "a&lt;b&gt;&amp;&quot;&#x27;  [31m  "


def numbers(rows):
    return [[row[0], *(value.replace(",", "") for value in row[1:])] for row in rows]


def test_report__numbers_are_those_of_the_evaluation(written):
    parsed, found, _ = written
    assert found.n_cells == 150
    for words in (f"{found.macro_f1:.3f}", f"{found.accuracy:.3f}", "150", "5"):
        assert words in parsed.texts[: parsed.texts.index("Contents")]
    head, *rows = numbers(parsed.tables["types"][0])
    assert head == ["cell type", "precision", "recall", "F1", "cells"]
    expected = found.per_type.sort_values("f1", ascending=False, kind="stable")
    assert [row[0] for row in rows] == list(expected.index)
    assert [row[1:] for row in rows] == [
        [f"{r.precision:.3f}", f"{r.recall:.3f}", f"{r.f1:.3f}", f"{r.support}"]
        for r in expected.itertuples()
    ]
    summary = dict(row for row in parsed.tables["scores"][0][1:])
    assert summary == {k: f"{v:.3f}" for k, v in found.summary["all cells"].items()}
    by_size = numbers(parsed.tables["scores"][1])[1:]
    assert [int(row[2]) for row in by_size] == found.by_size["n_cells"].tolist()
    filled = found.calibration[found.calibration["n_cells"] > 0]
    curve = numbers(parsed.tables["calibration"][0])[1:]
    assert [int(row[2]) for row in curve] == filled["n_cells"].tolist()
    assert [row[4] for row in curve] == [f"{v:.3f}" for v in filled["accuracy"]]


def test_report__most_frequent_confusions(written):
    parsed, found, _ = written
    assert 0.3 < found.accuracy < 0.95
    pairs = found.confusion.stack()
    pairs = pairs[pairs.index.get_level_values(0) != pairs.index.get_level_values(1)]
    pairs = pairs[pairs > 0].sort_values(ascending=False, kind="stable")
    support = found.per_type["support"]
    assert [list(row) for row in parsed.tables["confusions"][0][1:]] == [
        [a, b, str(n), f"{100 * n / support[a]:.1f}"] for (a, b), n in pairs.iloc[:20].items()
    ]


def test_frequent_confusions__by_hand():
    found = streamtrain.evaluate(list("aaaabbbcc"), list("abbcbaacc"))
    listed = scored.frequent_confusions(found)
    assert listed.to_numpy().tolist() == [
        ["a", "b", 2, 50.0], ["b", "a", 2, pytest.approx(200 / 3)], ["a", "c", 1, 25.0],
    ]  # fmt: skip


def test_report__says_what_the_model_is(written):
    parsed, _, folder = written
    shown = streamtrain.inspect(folder / "model.zarr")
    for words in (
        "A classifier of 5 cell types by the expression of",
        "trained on 450 cells by SGD over mini-batches on 20",
        "of donor D3 alone. All of them were held out of training.",
        f"{shown.checksum} (content verified)",
        "batch_size",
        "At their defaults: recipe=None",
        "streamtrain " + streamtrain.__version__,
    ):
        assert words in parsed.words
    assert parsed.tables["settings"][0] == [
        ["alpha", "macro_f1", "folds", "chosen"],
        ["0.1", "0.9", "0.890, 0.910", "yes"],
        ["1", "0.8", "0.800, 0.800", ""],
    ]
    assert parsed.tables["provenance"][0][1][1:3] == ["600", "120"]
    markers = dict(parsed.tables["markers"][0][1:])
    model = Model.load(folder / "model.zarr")
    assert markers == {t: ", ".join(model.extract_top_markers(t, 5)) for t in model.cell_types}


def test_report__figures_as_png(written):
    _, _, folder = written
    assert sorted(p.name for p in (folder / "figures").iterdir()) == FIGURES
    for path in (folder / "figures").iterdir():
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 200
        assert 0.005 < (pixels.min(axis=2) < 0.9).mean() < 0.9


def test_report__of_the_model_alone(tmp_path, model):
    bare = model.dataset.copy(deep=True).drop_vars(["n_drawn", "n_cells"])
    bare.attrs["provenance"].pop("history")
    parsed = Parsed(streamtrain.report(Model(bare), out=tmp_path / "r.html", title="A & B"))
    assert [a["id"] for a in parsed.of("section")] == [
        "markers",
        "settings",
        "provenance",
        "absent",
    ]
    assert [a["alt"] for a in parsed.of("img")] == [
        "Coefficients of the top 5 genes of each of 5 cell types."
    ]
    assert parsed.of("title") == [{}]
    assert "A & B" in parsed.texts
    for words in (
        "pass labelled cells, X and labels",
        "Training curve : the model has kept nothing",
    ):
        assert words in parsed.words
    assert "Class balance : the model has kept nothing" in parsed.words


def test_report__of_a_given_evaluation(tmp_path, model, cells, monkeypatch):
    found = streamtrain.evaluate_model(model, cells, "cell_type", where="n >= 501", **QUIET)
    alone = Parsed(streamtrain.report(model, out=tmp_path / "a.html", evaluation=found))
    assert "Expression of markers : pass X and labels, too" in alone.words
    home = sys.modules["streamtrain.report"]
    monkeypatch.setattr(home, "evaluate_model", None)
    taken = []
    monkeypatch.setattr(
        home,
        "marker_expression",
        lambda *a, **k: taken.append(marker_expression(*a, **k)) or taken[-1],
    )
    streamtrain.report(
        model, cells, "cell_type", out=tmp_path / "b.html", evaluation=found, **QUIET
    )
    assert taken[0].n_cells.sum() == found.n_cells == 99


def test_report__unknown_types_and_absent_genes(tmp_path, model, cells):
    other = cells.copy()
    names = other.obs["cell_type"].astype(str).to_numpy().copy()
    names[:30] = "Platelet"
    other.obs["cell_type"] = names
    gone = model.extract_top_markers("NK", 1)[0]
    other = other[:, other.var_names != gone].copy()
    options = {"held_out": False, "check_expression": False} | QUIET
    out = streamtrain.report(model, other, "cell_type", out=tmp_path / "r.html", **options)
    parsed = Parsed(out)
    assert "The model does not have 1 of the 6 cell types here" in parsed.words
    assert parsed.tables["scores"][2] == [["cell type", "cells"], ["Platelet", "30"]]
    assert ["Platelet", "no"] in [[row[0], row[-1]] for row in parsed.tables["types"][0]]
    assert f"Not among the genes of these cells: {gone!r}" in parsed.words


def test_report__the_same_for_the_same(tmp_path, model):
    for name in "ab":
        streamtrain.report(model, out=tmp_path / f"{name}.html", title="T")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.slow
def test_report__size(tmp_path):
    """Of 100 types with long names the page stays within 1.5 MB."""
    n = 100
    cells = atlas.make(n_obs=1500, n_vars=300, n_types=n)
    names = {c: f"{c} of the central nervous system" for c in cells.obs["cell_type"].cat.categories}
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories(names)
    model = streamtrain.train(cells, "cell_type", use_SGD=True, max_iter=2, tol=None, **QUIET)
    out = streamtrain.report(model, cells, "cell_type", out=tmp_path / "r.html", **QUIET)
    assert out.stat().st_size < 1.5e6
    parsed = Parsed(out)
    assert len(parsed.tables["types"][0]) == n + 1


# Expression of markers


def by_hand(adata, markers):
    x = pd.DataFrame(adata.X.toarray(), columns=adata.var_names)[markers]
    groups = x.groupby(adata.obs["cell_type"].to_numpy(), observed=True)
    return (x > 0).groupby(adata.obs["cell_type"].to_numpy(), observed=True).mean(), groups.mean()


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "memory"])
def test_marker_expression__plain_sums(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(expression, "_CELLS", 37)
    cells = atlas.make()
    X = cells if kind == "memory" else stores.write(cells, tmp_path, kind)
    markers = ["GENE80", "GENE7", "GENE0", "GENE31"]
    found = marker_expression(X, "cell_type", [*markers, "none"], where="donor != 'D1'", **QUIET)
    share, mean = by_hand(cells[cells.obs["donor"] != "D1"], markers)
    np.testing.assert_allclose(found.share, share, rtol=1e-12)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    assert list(found.share.columns) == markers
    assert list(found.share.index) == list(share.index)
    assert found.absent == ["none"]
    assert found.n_cells.sum() == 450


def test_marker_expression__genes_that_are_named_twice(cells):
    once = marker_expression(cells, "cell_type", ["GENE3", "GENE1"], **QUIET)
    twice = marker_expression(cells, "cell_type", iter(["GENE3", "GENE1", "GENE3"]), **QUIET)
    pd.testing.assert_frame_equal(twice.mean, once.mean)
    pd.testing.assert_frame_equal(twice.share, once.share)
    one = marker_expression(cells, "cell_type", "GENE3", **QUIET)
    pd.testing.assert_frame_equal(one.mean, once.mean[["GENE3"]])


def test_marker_expression__normalises_counts():
    cells = atlas.make()
    counts = ad.AnnData(cells.layers["counts"], obs=cells.obs, var=cells.var)
    found = marker_expression(counts, "cell_type", ["GENE3"], normalize="log1p", **QUIET)
    np.testing.assert_allclose(found.mean, by_hand(cells, ["GENE3"])[1], rtol=1e-5)


def test_marker_expression__a_gene_that_a_file_lacks_is_no_zero(tmp_path):
    cells = atlas.make()
    first, second = cells[:300].copy(), cells[300:, cells.var_names != "GENE3"].copy()
    second.obs["cell_type"] = second.obs["cell_type"].astype(str).replace("NK", "other")
    paths = []
    for name, part in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        paths.append(stores.write(part, tmp_path / name, "h5ad"))
    found = marker_expression(
        paths, "cell_type", ["GENE3", "GENE0"], check_expression=False, **QUIET
    )
    expected = by_hand(first, ["GENE3"])
    types = list(expected[0].index)
    np.testing.assert_allclose(found.share.loc[types, "GENE3"], expected[0]["GENE3"])
    np.testing.assert_allclose(found.mean.loc[types, "GENE3"], expected[1]["GENE3"], rtol=1e-6)
    assert np.isnan(found.share.loc["other", "GENE3"])  # in the second file alone
    assert found.share.loc["other", "GENE0"] == 1
    assert found.n_cells.sum() == 600


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "r.pdf"}, "out must end in .html"),
        ({"out": "nowhere/r.html"}, "the folder .* does not exist"),
        ({"markers": 0}, "markers must be a whole number of at least 1"),
        ({"title": " "}, "title must be a text"),
        ({"X": "a.h5ad"}, r"labels is not given: pass it, too \(--labels\)"),
        ({"labels": "cell_type"}, r"X is not given: pass it, too \(SOURCE\)"),
        ({"evaluation": 3}, "evaluation must be what evaluate_model gave"),
        ({"genes": ["G1"]}, "genes is of cells to evaluate"),
        ({"where": "n > 3"}, "where is of cells to evaluate: pass X and labels"),
        ({"figures": "model.zarr"}, "figures='model.zarr' is a zarr store"),
        ({"figures": "taken"}, "'taken' exists: pass overwrite=True"),
        ({"model": "taken.html", "out": "taken.html", "overwrite": True}, "is what model names"),
    ],
)
def test_report__refuses(tmp_path, monkeypatch, model, options, words):
    monkeypatch.chdir(tmp_path)
    model.save("model.zarr")
    for name in ("taken", "taken.html"):
        (tmp_path / name).write_text("")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        streamtrain.report(**{"model": model, "out": "r.html"} | options)
    assert sorted(tmp_path.iterdir()) == before


def test_report__refuses_what_exists(written, model):
    _, _, folder = written
    before = (folder / "r.html").read_bytes()
    for given in ({"out": "r.html"}, {"out": "other.html", "figures": folder / "figures"}):
        with pytest.raises(InputError, match="exists: pass overwrite=True"):
            streamtrain.report(model, **given | {"out": folder / given["out"]})
    assert (folder / "r.html").read_bytes() == before
    assert not (folder / "other.html").exists()


def test_report__overwrites(tmp_path, model):
    (tmp_path / "r.html").write_text("before")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "training_curve.png").write_text("before")
    streamtrain.report(
        model, out=tmp_path / "r.html", figures=tmp_path / "f", overwrite=True, mode="best match"
    )
    assert Parsed(tmp_path / "r.html").of("title")
    assert (tmp_path / "f" / "training_curve.png").read_bytes()[1:4] == b"PNG"


def test_report__refuses_options_of_nothing(tmp_path, written, model):
    _, found, _ = written
    out = tmp_path / "r.html"
    with pytest.raises(InputError, match="top_k is of evaluating, and evaluation is given"):
        streamtrain.report(model, "a.h5ad", "cell_type", out=out, evaluation=found, top_k=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wher'"):
        streamtrain.report(model, out=out, wher="n > 1")
    with pytest.raises(FileNotFoundError, match="no model at"):
        streamtrain.report(tmp_path / "m.zarr", out=out)
    assert not out.exists()


# In a browser


def screenshot(path, width, height):
    """A page as Chromium shows it, values from 0 to 1; nothing is said on its console."""
    target = path.with_suffix(".png")
    done = subprocess.run(  # noqa: S603
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}",
            f"--window-size={width},{height}", f"--screenshot={target}", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return imread(io.BytesIO(target.read_bytes()))[..., :3]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is on PATH")
@pytest.mark.parametrize("width", [1200, 480])
def test_report__as_a_browser_shows_it(tmp_path, written, width):
    source = written[0].source
    inside = re.findall(r"<section .*?</section>\n", source, re.S)
    assert len(inside) == len(SECTIONS)
    around = re.sub(r"<section .*</section>\n", "HERE", source, flags=re.S)
    for name, section in [("head", ""), *zip(SECTIONS, inside, strict=True)]:
        path = tmp_path / f"{name}.html"
        path.write_text(around.replace("HERE", section), encoding="utf-8")
        pixels = screenshot(path, width, 1600)
        assert pixels.shape[:2] == (1600, width)
        dark = (pixels.min(axis=2) < 0.6).mean()
        assert 0.001 < dark < 0.5, name
        if name == "head":
            bare = dark
            continue
        assert dark > bare, name
        if "<img" in section:
            coloured = (np.ptp(pixels, axis=2) > 0.15).mean()
            assert coloured > 0.001, name


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is on PATH")
def test_screenshot__hears_the_console(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.log('told'); nothing()</script>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        screenshot(path, 300, 200)
