"""CellTypist itself: a folder with inputs and cases in; beside them, what it did, out.

Run as ``python child.py FOLDER NAME``, for the cases in FOLDER/NAME.json, in any environment that
has CellTypist; imports nothing of streamtrain. The tests build the same arguments with `arguments`.
"""

from __future__ import annotations

import json
import logging
import pickle
import sys
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

MATRICES = {
    "array": np.asarray,
    "matrix": np.asmatrix,
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
}
LISTS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "series": pd.Series,
    "index": pd.Index,
    "categorical": pd.Categorical,
    "short": lambda values: list(values)[1:],
}


def arguments(case, folder):
    """X, labels and genes as the case words them, "FORM:WHAT", for a file or an obs column."""
    form, _, name = case["X"].partition(":")
    path = folder / name
    atlas = path if name.endswith(".h5ad") else folder / "atlas.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeated genes, and matrices on their way out
        return {
            "X": _matrix(form, path),
            "labels": _values(
                case["labels"], folder, lambda key: anndata.read_h5ad(atlas).obs[key]
            ),
            "genes": _values(case["genes"], folder, lambda _: anndata.read_h5ad(atlas).var_names),
        }


def options(case, folder):
    """The case's keyword arguments; "file:NAME" is a path."""
    return {
        name: str(folder / value[5:]) if str(value).startswith("file:") else value
        for name, value in case["options"].items()
    }


def _matrix(form, path):
    if form == "none":
        return None
    if form == "path":
        return str(path)
    adata = anndata.read_h5ad(path, backed="r" if form == "backed" else None)
    if form in ("anndata", "backed"):
        return adata
    dense = adata.X.toarray()
    if form.startswith("frame"):
        made = pd.DataFrame(dense, adata.obs_names, adata.var_names)
    else:
        made = MATRICES[form.removesuffix(".T")](dense)
    return made.T if form.endswith(".T") else made


def _values(spec, folder, column):
    form, _, what = spec.partition(":")
    if form == "none":
        return None
    if form == "column":
        return what
    if form == "file":
        return str(folder / what)
    return LISTS[form](column(what).tolist())


def observe(call, logger):
    """What `call` gives (None where it fails), and in words how it went: error, warnings, log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"log: {record.getMessage()}")
    source, value = logging.getLogger(logger), None
    source.addHandler(handler)
    level = source.level
    source.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value = call()
                lines.append(f"gave: {type(value).__name__}")
            except Exception as error:
                lines.append(f"{type(error).__name__}: {error}")
    finally:
        source.removeHandler(handler)
        source.setLevel(level)
    lines += [f"{w.category.__name__}: {w.message}" for w in caught]
    return value, "\n".join(lines)


def named(types, genes):
    """Words for the names in a model."""
    return f"\ntypes: {[str(t) for t in types]}\ngenes: {len(set(genes))} names for {len(genes)}"


def told(what, words):
    """How another call went, without its log."""
    return "".join(f"\n{what}: {w}" for w in words.splitlines() if not w.startswith("log:"))


def fitted(model):
    """Arrays of a CellTypist model."""
    made, scaler = model.classifier, model.scaler
    return {
        "coef": made.coef_,
        "intercept": made.intercept_,
        "classes": np.asarray(made.classes_, str),
        "features": np.asarray(made.features, str),
        "mean": scaler.mean_,
        "var": scaler.var_,
        "scale": scaler.scale_,
        "t": np.array(getattr(made, "t_", 1.0)),
    }


def annotated(result):
    """Arrays of a CellTypist annotation."""
    labels = result.predicted_labels
    found = {name: np.asarray(labels[name].astype(str), str) for name in labels}
    return found | {"probability": result.probability_matrix.to_numpy()}


def _replayed(draws, seen):
    """np.random.choice that gives the planned cells and keeps what was asked of it."""
    orders = cycle(draws)

    def choice(n, size, replace, p=None):
        seen.append({"n": n, "size": size, "replace": replace})
        seen[-1] |= {} if p is None else {"p": p.tolist()}
        return next(orders)

    return choice


def run(celltypist, case, folder, stem):
    """Do one case; arrays go to STEM.npz, a trained model to STEM.pkl.

    A case has `X`, `labels` and `genes` (see `arguments`), `options`, the `seed` of NumPy, and
    perhaps `draws`, the cells of each epoch; `modes` in which the trained model annotates
    query.h5ad; or, to annotate X instead of training, the file of a `model`.
    """
    done = {"draws": []}
    np.random.seed(case["seed"])  # noqa: NPY002 - what CellTypist draws from

    def call():
        given, more = arguments(case, folder), options(case, folder)
        if "model" in case:
            return celltypist.annotate(given["X"], model=str(folder / case["model"]), **more)
        return celltypist.train(**given, **more)

    choice = np.random.choice
    if case.get("draws"):
        np.random.choice = _replayed(case["draws"], done["draws"])
    try:
        value, done["outcome"] = observe(call, "celltypist")
    finally:
        np.random.choice = choice
    arrays = {}
    if "model" in case and value is not None:
        arrays = annotated(value)
    elif value is not None:
        made = value.classifier
        done |= {"estimator": type(made).__name__, "params": made.get_params()}
        done["description"] = value.description
        arrays = fitted(value)
        with (folder / f"{stem}.pkl").open("wb") as file:  # as Model.write, which changes names
            pickle.dump(
                {"Model": made, "Scaler_": value.scaler, "description": value.description}, file
            )
        done["outcome"] += named(arrays["classes"], arrays["features"])
        for mode in case["modes"]:
            query = str(folder / "query.h5ad")
            found, words = observe(
                partial(celltypist.annotate, query, model=value, mode=mode), "celltypist"
            )
            done["outcome"] += told(mode, words)
            arrays |= {} if found is None else annotated(found)
    np.savez(folder / f"{stem}.npz", **arrays)
    return done


def main(folder, name):
    """Do all cases of FOLDER/NAME.json."""
    import inspect

    import celltypist
    from sklearn import __version__ as version
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    functions = (celltypist.train, LogisticRegression, SGDClassifier)
    done = {
        "version": version,
        "signatures": {f.__name__: list(inspect.signature(f).parameters) for f in functions},
    }
    for i, case in enumerate(json.loads((folder / f"{name}.json").read_text())):
        done[case["id"]] = run(celltypist, case, folder, f"{name}-{i}")
    (folder / f"{name}.done.json").write_text(json.dumps(done, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
