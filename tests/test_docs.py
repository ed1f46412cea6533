"""The pages of docs/: their code runs and prints what they say, their links lead somewhere, and the
reference has every public name."""

import ast
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import streamtrain
from streamtrain import cli
from tests.blocks import agrees, blocks

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKED = [ROOT / "README.md", *PAGES]


def by_name(path):
    return str(path.relative_to(ROOT))


def with_this_checkout(words, cwd, **options):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(  # noqa: S603 - our own pages
        [sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True,
        check=False, **options,
    )  # fmt: skip


def real_cells(folder):
    """700 blood cells that scanpy ships, most of them as atlas.h5ad and the others as new.h5ad."""
    script = """
import anndata, numpy, scanpy
raw = scanpy.datasets.pbmc68k_reduced().raw.to_adata()
obs = raw.obs[["bulk_labels", "louvain"]].rename(columns={"bulk_labels": "cell_type"})
cells = anndata.AnnData(raw.X.expm1(), obs=obs, var=raw.var[[]])
scanpy.pp.normalize_total(cells, target_sum=1e4)
scanpy.pp.log1p(cells)
new = numpy.arange(len(cells)) % 4 == 0
cells[~new].write_h5ad("atlas.h5ad")
cells[new].write_h5ad("new.h5ad")
"""
    done = with_this_checkout(["-c", script], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "prepare"),
    [("tutorial.md", None), ("moving-from-celltypist.md", real_cells)],
    ids=["tutorial", "moving"],
)
def test_page__runs_and_prints_what_it_says(tmp_path, page, prepare):
    pytest.importorskip("celltypist", reason="the test extra brings celltypist")
    if prepare is not None:
        prepare(tmp_path)
    done = with_this_checkout(["-m", "tests.blocks", ROOT / "docs" / page], tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]


def test_blocks__are_found_with_what_they_print(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\necho a\n```\n\n```text\na\n```\n\nWords.\n\n<!-- not run: it fails -->\n\n"
        "```python\n1 / 0\n```\n\nMore.\n\n```text\nof nothing\n```\n"
    )
    one, two = blocks(page)
    assert (one.language, one.code, one.line, one.run) == ("bash", "echo a\n", 1, True)
    assert one.expected == "a\n"
    assert (two.language, two.run, two.expected) == ("python", False, None)
    assert with_this_checkout(["-m", "tests.blocks", page], tmp_path).returncode == 0
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    done = with_this_checkout(["-m", "tests.blocks", page], tmp_path)
    assert done.returncode == 1
    assert "page.md:1 printed\n\n1\n" in done.stderr
    page.write_text("```bash\nfalse\n```\n")
    assert with_this_checkout(["-m", "tests.blocks", page], tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a 0.9…\n…\nz", "a 0.93  \nb\nc\nz\n", True),
        ("a", "ab", False),
        ("a\nb", "a\n\nb", False),
        ("(1.5)", "(1x5)", False),
    ],
)
def test_agrees__but_for_what_is_left_open(expected, printed, same):
    assert agrees(expected, printed) is same


def commands():
    """Every command of the pages, in whole lines."""
    for page in LINKED:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.code.replace("\\\n", " ").splitlines():
                    if line.startswith("streamtrain "):
                        words = line.partition(" > ")[0]
                        yield page.name, shlex.split(words, comments=True)[1:]


def test_commands__have_the_options_that_the_pages_give_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('[train]\nsource = "atlas.h5ad"\nlabels = "cell_type"\n')
    found = list(commands())
    assert len(found) > 30
    for page, words in found:
        if words == ["--version"] or words[0] not in set(cli.app):
            assert words == ["--version"], (page, words)
            continue
        try:
            cli.app.parse_args(words, exit_on_error=False, print_error=False)
        except Exception as error:
            raise AssertionError(f"{page}: streamtrain {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python__of_the_pages_is_python_and_calls_what_there_is(page):
    """Names of streamtrain, and the keywords of the functions that are called by these names."""
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.code)):
            named = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "streamtrain"
            assert not named or hasattr(streamtrain, node.attr), node.attr
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.startswith("streamtrain.") and called.count(".") == 1:
                taken = inspect.signature(getattr(streamtrain, called.split(".")[1])).parameters
                assert {k.arg for k in node.keywords if k.arg} <= set(taken), called


def anchors(path):
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    found = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


@pytest.mark.parametrize("page", LINKED, ids=by_name)
def test_links__lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    if page.name != "how-it-works.md":
        assert links
    for link in links:
        if re.match(r"\w+://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_anchors__are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n\n### Beside celltypist.train\n\n```\n# none\n```\n## labels-missing\n"
    )
    assert anchors(page) == ["a-b-c", "beside-celltypisttrain", "labels-missing"]


def public():
    """Every public name, of streamtrain.plot too, and every public member of a class of ours."""
    names = {name: getattr(streamtrain, name) for name in streamtrain.__all__}
    names |= {f"plot.{name}": getattr(streamtrain.plot, name) for name in streamtrain.plot.__all__}
    for name, thing in names.items():
        if isinstance(thing, str) or inspect.ismodule(thing):
            continue
        yield name, thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                plain = getattr(value, "__func__", value)
                if not member.startswith("_") and (
                    inspect.isfunction(plain) or isinstance(value, property)
                ):
                    yield f"{name}.{member}", plain


def documented(thing):
    """Names that the sections of a docstring give: parameters and attributes."""
    text = inspect.getdoc(thing) or ""
    lines = re.findall(r"^ *(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: : .+)?$", text, re.MULTILINE)
    return {name.lstrip("*") for line in lines for name in line.split(", ")}


def undocumented(thing):
    """Parameters, or fields of a dataclass, that the docstring does not name.

    A single parameter may be told in the summary.
    """
    if isinstance(thing, property):
        return set()
    if is_dataclass(thing):
        names = {f.name for f in fields(thing) if not f.name.startswith("_")}
    else:
        hidden = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        taken = inspect.signature(thing).parameters.values()
        names = {p.name for p in taken if p.kind not in hidden} - {"self", "cls"}
    return names - documented(thing) if len(names) > 1 else set()


def test_docstrings__tell_every_parameter_and_attribute():
    found = dict(public())
    assert len(found) > 50
    assert [name for name, thing in found.items() if not inspect.getdoc(thing)] == []
    assert {name: undocumented(thing) for name, thing in found.items() if undocumented(thing)} == {}


@pytest.mark.slow
def test_reference__has_every_public_name_and_parameter(tmp_path):
    """Built without a warning; the names in the page, its links to them, and its parameters."""
    if importlib.util.find_spec("pdoc") is None:
        pytest.skip("the test extra brings pdoc")
    script = ROOT / "docs" / "build_api.py"
    done = with_this_checkout(["-W", "error", script, tmp_path / "api"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warn" not in done.stderr
    made = sorted(p.name for p in (tmp_path / "api").rglob("*"))
    assert made == ["index.html", "plot.html", "search.js", "streamtrain", "streamtrain.html"]
    pages = {
        part: (tmp_path / "api" / f"{part}.html").read_text(encoding="utf-8")
        for part in ("streamtrain", "streamtrain/plot")
    }
    text = re.sub(r"<[^>]+>", "", "".join(pages.values()))
    for name, thing in public():
        page = pages["streamtrain/plot" if name.startswith("plot.") else "streamtrain"]
        name = name.removeprefix("plot.")
        assert f'id="{name}"' in page, name
        if inspect.isfunction(thing):
            at = page.index(f'id="{name}"')
            shown = page[at : page.index("</section>", at)]
            for parameter in inspect.signature(thing).parameters:
                assert parameter in shown or parameter in ("self", "cls"), (name, parameter)
    assert "{settings}" not in text
    page = pages["streamtrain"]
    own = page[page.index('id="train"') : page.index('id="train"') + 100_000]
    assert "<li><strong>C</strong>: Inverse of the regularization strength" in own
