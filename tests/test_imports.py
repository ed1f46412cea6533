"""What imports what, what importing costs, and the public names."""

import ast
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import streamtrain
from streamtrain.kernels import jit

PACKAGE = Path(streamtrain.__file__).parent

# DESIGN, section 2: each module imports from its own layer or those below. A new module needs a
# place here; the longest prefix counts.
# fmt: off
LAYERS = [
    ("errors", "faq", "kernels"),
    (
        "atomic", "budget", "buffers", "config", "frozen", "given", "history", "logs", "pairwise",
        "partial", "pickled", "progress", "quotas", "recipes", "rows", "scratch", "threads",
    ),
    ("scaling", "sampling", "strata", "mixing", "expression", "calibration"),
    ("sharded", "shards", "shuffle", "synthetic", "writing"),
    ("sources", "decode"),
    (
        "cells", "spill", "streaming", "batches", "sampling_columns", "tiles", "holdout", "named",
        "judged", "parts", "journal", "splits",
    ),
    ("ordered", "strategies", "serving", "loader", "conversion"),
    ("voting", "obs_columns", "annotations", "overcluster"),
    ("model_layout",),
    (
        "celltypist_export", "celltypist_import", "markers", "model_edit", "model_schema",
        "model_store", "onnx_export",
    ),
    ("solvers", "model", "gpu"),
    ("stored",),
    ("descent", "optimum"),
    ("replicas",),
    (
        "adapt", "annotating", "rounds", "scoring", "selection", "features", "warm_start",
        "standardised", "adding",
    ),
    ("estimator", "trials"),
    ("targets", "kept"),
    ("first_pass", "provenance"),
    ("local",),
    ("cluster",),
    ("train",),
    (
        "annotate", "annotation_result", "cross_validate", "querying", "predict", "evaluate",
        "evaluate_model", "lineage", "tally", "plot", "report", "rerun", "simulate", "convert",
        "inspecting",
    ),
    ("demo", "cli", "__main__", ""),
]
# fmt: on
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Only these may import them, and inside functions.
GUARDED = {
    "gpu": {"descent", "optimum", "rounds", "trials", "scoring"},
    "cluster": {"train", "convert", "querying", "cli.options"},
}


def layer_of(module):
    """Rank of "sources.memory" and the like, or None where the table has no place for it."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((RANK[name] for name in names if name in RANK), None)


def modules(package):
    """Name within the package -> path; the package itself is ""."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """(imported module, whether at module level) of the package, TYPE_CHECKING left out."""
    found = set()

    def add(name, top):
        if name == "streamtrain" or name.startswith("streamtrain."):
            found.add((name.removeprefix("streamtrain").removeprefix("."), top))

    def visit(node, top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, top)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("streamtrain.") in known
                add(inner if is_module else node.module, top)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, top and not is_function)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def faults(package):
    """Every import that goes the wrong way, in words."""
    known = modules(package)
    wrong = [f"{m or 'streamtrain'} has no layer" for m in known if layer_of(m) is None]
    graph = {}
    for module, path in known.items():
        used = imports(path, known)
        graph[module] = {name for name, top in used if top and name != module}
        for name, top in sorted(used):
            if (layer_of(name) or 0) > (layer_of(module) or 0):
                wrong.append(f"{module} imports {name}, a layer above")
            for guarded, users in GUARDED.items():
                inside = module.split(".")[0] == guarded
                if name.split(".")[0] == guarded and not inside and (top or module not in users):
                    wrong.append(f"{module} imports {name}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"cycle: {' -> '.join(error.args[1])}")
    return wrong


def test_layers__imports_run_one_way():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("rows", "from streamtrain.scaling import Scaler", "rows imports scaling, a layer above"),
        ("rows", "from streamtrain import train", "rows imports train, a layer above"),
        ("rows", "import streamtrain", "rows imports , a layer above"),
        ("rows", "def f():\n    import streamtrain.cells", "rows imports cells, a layer above"),
        ("scaling", "import streamtrain.sampling", "cycle: sampling -> scaling -> sampling"),
        ("sources.new", "import streamtrain.solvers.sgd", "sources.new imports solvers.sgd, a la"),
        ("utils", "", "utils has no layer"),
        ("train", "import streamtrain.gpu", "train imports gpu"),
        ("predict", "def f():\n    import streamtrain.gpu", "predict imports gpu"),
        ("rounds", "def f():\n    import streamtrain.gpu", None),
        ("rows", "if TYPE_CHECKING:\n    import streamtrain.train", None),
    ],
)
def test_layers__the_check_sees(tmp_path, module, text, fault):
    planted = {
        "__init__": "", "rows": "", "scaling": "", "cells": "", "train": "", "gpu": "",
        "sampling": "from streamtrain.scaling import split", "solvers/sgd": "", module: text,
    }  # fmt: skip
    for name, content in planted.items():
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    found = faults(tmp_path)
    if fault is None:
        assert found == []
    elif fault.startswith("cycle"):
        assert len(found) == 1
        assert {"sampling", "scaling"} == set(found[0].removeprefix("cycle: ").split(" -> "))
    else:
        assert len(found) == 1
        assert found[0].startswith(fault)


def test_kernels__import_numba_and_numpy_alone():
    allowed = {"__future__", "math", "numba", "numpy"}
    for path in sorted((PACKAGE / "kernels").glob("*.py")):
        # The JIT options and where compiled code is kept; and numba's own vectors.
        if path.name in ("jit.py", "lanes.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module}
            else:
                continue
            for name in names:
                inside = name.startswith("streamtrain.kernels")
                assert inside or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_kernels__are_the_only_numba():
    for name, path in modules(PACKAGE).items():
        if not name.startswith("kernels"):
            roots = {
                alias.name.split(".")[0] if isinstance(node, ast.Import) else node.module
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names
            }
            assert "numba" not in roots, name


def run(code, cwd=None, **environment):
    """Run Python code in a process of its own; returns the words it prints."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


HEAVY = {
    "anndata", "celltypist", "cupy", "dask", "h5py", "matplotlib", "numba", "obstore", "onnx",
    "pandas", "scipy", "sklearn", "xarray", "zarr",
}  # fmt: skip


@pytest.mark.parametrize("module", ["streamtrain", "streamtrain.cli"])
def test_import__loads_nothing_heavy(module):
    """So that the command answers at once: 0.05 s and 0.15 s, the interpreter included."""
    loaded = run(f"import sys, {module}; print(*sys.modules)")
    assert module in loaded
    assert HEAVY & set(loaded) == set()


def test_package__tells_that_it_has_types():
    assert (PACKAGE / "py.typed").is_file()


def test_import__of_the_train_module():
    """The function stays, however the module came in; no backend that was not asked for."""
    found = run(
        "import sys, streamtrain.train\n"
        "from streamtrain.train import train\n"
        "import streamtrain.predict, streamtrain.evaluate\n"
        "assert streamtrain.train is train and callable(train)\n"
        "assert streamtrain.predict is sys.modules['streamtrain.predict'].predict\n"
        "assert streamtrain.evaluate is sys.modules['streamtrain.evaluate'].evaluate\n"
        "print(*sys.modules)"
    )
    assert "streamtrain.train" in found
    assert {"cupy", "celltypist", "streamtrain.gpu", "streamtrain.cluster"} & set(found) == set()


PUBLIC = {
    "AnnotationResult": "annotation_result",
    "CrossValidation": "cross_validate",
    "DataInspection": "inspecting",
    "Evaluation": "evaluate",
    "InputError": "errors",
    "Inspection": "inspecting",
    "Loader": "loader",
    "Model": "model",
    "ModelEvaluation": "evaluate_model",
    "Settings": "config",
    "SparseSGDClassifier": "estimator",
    "annotate": "annotate",
    "convert": "convert",
    "cross_validate": "cross_validate",
    "evaluate": "evaluate",
    "evaluate_model": "evaluate_model",
    "inspect": "inspecting",
    "open_source": "sources",
    "predict": "predict",
    "report": "report",
    "simulate": "simulate",
    "train": "train",
}


def test_public_names__are_pinned():
    assert sorted(streamtrain.__all__) == sorted([*PUBLIC, "__version__", "plot"])
    assert dir(streamtrain) == sorted(streamtrain.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names__resolve(name):
    home = importlib.import_module(f"streamtrain.{PUBLIC[name]}")
    assert getattr(streamtrain, name) is getattr(home, name)
    assert getattr(streamtrain, name).__doc__


def test_public_names__others():
    assert streamtrain.__version__ == importlib.metadata.version("streamtrain")
    assert streamtrain.plot is importlib.import_module("streamtrain.plot")
    with pytest.raises(AttributeError, match="module 'streamtrain' has no attribute 'fit'"):
        streamtrain.fit  # noqa: B018


def test_public_names__type_checkers_see_the_same():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {
        alias.name: node.module.removeprefix("streamtrain.")
        for node in block.body
        for alias in node.names
    }
    assert seen.pop("plot") == "streamtrain"
    assert seen == PUBLIC


CALL = """
import sys
import numpy as np
import streamtrain
from streamtrain.kernels import csr
assert csr.take_indptr(np.array([0, 2, 5]), np.array([1])).tolist() == [0, 3]
print(streamtrain.__file__, sum(csr.take_indptr.stats.cache_hits.values()))
"""


def test_jit__caches_where_neither_package_nor_home_can_be_written(tmp_path):
    """Files stand where the folders would be made, which stops root too."""
    copy = tmp_path / "site" / "streamtrain"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, copy, ignore=ignore)
    for folder in (copy, copy / "kernels"):
        (folder / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    (tmp_path / "tmp").mkdir()
    environment = {
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(tmp_path / "site"),
        "NUMBA_CACHE_DIR": "",
    }
    for hits in (0, 1):
        path, found = run(CALL, tmp_path, **environment)
        assert Path(path).parent == copy
        assert int(found) == hits
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.name == f"streamtrain-kernels-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.rglob("*.nbi"))
    # A folder that others can write might hold others' code: compile anew, store nothing.
    shutil.rmtree(folder)
    folder.mkdir()
    folder.chmod(0o777)
    assert run(CALL, tmp_path, **environment)[1] == "0"
    assert not list(folder.iterdir())


def test_jit__an_upgrade_leaves_no_old_code(tmp_path):
    """A change of any kernel's file compiles all anew, as one may hold the code of another."""
    copy = tmp_path / "site" / "streamtrain"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PYTHONPATH": str(tmp_path / "site"), "NUMBA_CACHE_DIR": ""}
    assert [run(CALL, tmp_path, **environment)[1] for _ in range(2)] == ["0", "1"]
    path = copy / "kernels" / "losses.py"
    path.write_text(path.read_text() + "\n")
    assert [run(CALL, tmp_path, **environment)[1] for _ in range(2)] == ["0", "1"]


def test_jit__private_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = tmp_path / f"streamtrain-kernels-{os.getuid()}"
    assert jit._private_dir() == str(place)
    assert jit._private_dir() == str(place)  # it is there already
    for mode in (0o720, 0o702, 0o777):
        place.chmod(mode)
        assert jit._private_dir() is None
    place.rmdir()
    place.write_text("")
    assert jit._private_dir() is None
    place.unlink()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "elsewhere")
    assert jit._private_dir() is None
    place.unlink()
    owner = os.getuid()
    place.mkdir(mode=0o700)
    assert jit._private_dir() == str(place)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    place.rename(tmp_path / f"streamtrain-kernels-{owner + 1}")
    assert jit._private_dir() is None  # somebody else's
