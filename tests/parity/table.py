"""Every argument of celltypist.train in the values that matter: what is compared, and how.

A row is one training by both. ``python -m tests.parity.table`` prints the table of docs/parity.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

KINDS = ("same", "better", "differs")
# How rows are compared: what it means that they are the same. Each is a test of test_parity.py.
COMPARED = {
    "optimum": "the same optimum, reached at least as closely",
    "steps": "the same weights from the same cells in the same order",
    "noise": "as accurate",
    "outcome": "the same result or error",
    "jobs": "the same threads",
    "limits": "the same default",
    "texts": "the same texts",
    "seeds": "the same draw",
    "selection": "the same genes",
    "labels": "the same labels and probabilities",
    "real": "the same labels of real cells",
}


@dataclass(frozen=True)
class Row:
    """One training by CellTypist and by us.

    Attributes
    ----------
    argument
        Whose value it shows; several, parted by blanks, that belong together.
    compare
        One of `COMPARED`.
    options
        Keyword arguments of both.
    kind
        One of `KINDS`.
    why
        What is better or differs, for a reader who knows CellTypist.
    theirs, ours
        For "outcome": patterns that the words of `child.observe` must match.
    X, labels, genes
        As `child.arguments` reads them.
    model
        For "labels": the file of our model.
    tolerance
        For "steps": of the weights, relative.
    """

    argument: str
    compare: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "same"
    why: str = ""
    theirs: str = "gave: Model"
    ours: str = "gave: Model"
    X: str = "path:atlas.h5ad"
    labels: str = "column:cell_type"
    genes: str = "none"
    model: str = "logistic.pkl"
    tolerance: float = 1e-9

    def __str__(self) -> str:
        given = [f"{name}={value}" for name, value in self.options.items()]
        ways = ("X", "labels", "genes", "model")
        given += [getattr(self, n) for n in ways if getattr(self, n) != getattr(type(self), n)]
        return f"{self.argument}: {', '.join(given) or 'default'}"

    @property
    def cells(self) -> str:
        """Name of the cells for `inputs.cells`."""
        return self.X.partition(":")[2]

    @property
    def in_float64(self) -> bool:
        """Whether CellTypist holds the cells in float64: scanpy reads tables as float32."""
        return self.cells.endswith(".h5ad") and "float32" not in self.cells


def better(argument: str, why: str, theirs: str, ours: str = "gave: Model", **more: Any) -> Row:
    """Give the outcome of a case in which CellTypist falls short."""
    options = more.pop("options", {})
    return Row(argument, "outcome", options, "better", why, theirs, ours, **more)


def refused(argument: str, theirs: str, ours: str, **more: Any) -> Row:
    """Give the outcome of a case that both refuse."""
    return Row(argument, "outcome", more.pop("options", {}), theirs=theirs, ours=ours, **more)


ON_GPU = "InputError: .*CuPy|gave: Model"  # where there is none, and where there is

# SGD in an order that both share, by steps too small to amplify rounding.
SMALL = {"use_SGD": True, "shuffle": False, "learning_rate": "constant", "eta0": 1e-3}
EPOCHS = SMALL | {"max_iter": 20}
# CellTypist's own schedule begins with steps that do amplify it: few, and less is asked.
FIRST = {"use_SGD": True, "shuffle": False, "max_iter": 3}
DRAWN = SMALL | {"mini_batch": True, "batch_size": 50, "batch_number": 3, "epochs": 3}
FREE = {"use_SGD": True, "mini_batch": True, "batch_size": 50, "batch_number": 3, "epochs": 10}
IN_MEMORY = {"labels": "array:cell_type", "genes": "list:"}
TABLE = {"labels": "file:labels.txt"}
MORE_INPUTS = "zarr, gzipped tables, SciPy's sparse arrays and NumPy's matrices are read"
ORDER = "the cells come in a seeded order of its own: as accurate, within the noise of such orders"
HELD_OUT = "other cells are held out: as accurate, within the noise of the choice"
MTX = TABLE | {"genes": "file:genes.txt"}

ROWS = [
    # X
    *[Row("X", "optimum", X=f"path:{x}.h5ad") for x in ("atlas", "csc", "dense", "float32", "two")],
    Row("X", "optimum", X="path:scaled.h5ad"),  # both turn to its raw
    Row("X", "optimum", X="anndata:atlas.h5ad"),
    *[Row("X", "optimum", X=f"path:counts.{e}", **TABLE) for e in ("csv", "tsv", "txt", "tab")],
    *[Row("X", "optimum", X=f"path:counts.{e}", **MTX) for e in ("mtx", "mtx.gz")],
    *[
        Row("X", "optimum", X=f"{form}:atlas.h5ad", **IN_MEMORY)
        for form in ("array", "csr_matrix", "csc_matrix")
    ],
    Row("X", "optimum", X="frame:atlas.h5ad", labels="array:cell_type"),
    Row("X", "outcome", X="path:fractions.csv", **TABLE,
        theirs="log: .*seems not a raw count matrix", ours="log: .*no integers, so they are not"),
    refused("X", "ValueError: .*Invalid input. Supp", "InputError: .*no type that can be read",
            X="path:labels.pdf", **TABLE),
    refused("X", "Exception: .*Missing training data", "InputError: train.. needs both X and lab",
            X="none:"),
    better("X", "a backed AnnData is read from its file", "Error: ", X="backed:atlas.h5ad"),
    better("X", MORE_INPUTS, "ValueError: .*Invalid",
           X="path:atlas_zarr2.zarr"),
    better("X", MORE_INPUTS, "ValueError: .*Invalid",
           X="path:counts.csv.gz", **TABLE),
    better("X", MORE_INPUTS, "Error: ",
           X="csr_array:atlas.h5ad", **IN_MEMORY),
    better("X", MORE_INPUTS,
           "TypeError: np.matrix is not supported", X="matrix:atlas.h5ad", **IN_MEMORY),
    refused("X", "FileNotFoundError", "FileNotFoundError: .*does not exist", X="path:none.h5ad"),
    better("X", "a value that is no number is named by its cell and gene",
           "ValueError: Input X contains NaN", "InputError: .*gene 'GENE.' in cell 40 .*not finite",
           X="path:nan.h5ad"),
    # labels
    *[Row("labels", "optimum", labels=f"{form}:cell_type")
      for form in ("list", "tuple", "array", "series", "index", "categorical")],
    Row("labels", "optimum", labels="file:labels.txt"),
    refused("labels", "Missing training data and/or training labels", "needs both X and labels",
            labels="none"),
    refused("labels", "ValueError: .*Length of training labels .239. does not match",
            "InputError: there must be one label for each cell; got 239 labels for 240",
            labels="short:cell_type"),
    refused("labels", "ValueError: .*needs samples of at least 2 classes",
            "InputError: .*needs two cell types at least", labels="file:one.txt"),
    refused("labels", "Exception: .*No such file", "InputError: .*no obs column 'type' and",
            labels="column:type"),
    better("labels", "cells without a label are counted, or left out",
           "ValueError: Input contains NaN", "InputError: .*7 of 240 cells have no label",
           X="path:unlabelled.h5ad"),
    better("labels", "cells without a label are counted, or left out",
           "types: .*'nan'", "InputError: .*7 of 240 cells have no label",
           X="path:unlabelled.h5ad", labels="list:cell_type"),
    better("labels", "a label in a file may hold a comma", "Exception: .*Expected 1 fields",
           "types: .*'Monocyte, classical'", X="path:comma.h5ad", labels="file:comma.txt"),
    better("labels", "a label in a file may hold a comma", r"types: \['B'", r"types: \['B, blood'",
           labels="file:blood.txt"),
    better("labels", "whole numbers become names, so that types can be joined",
           "prob match: TypeError", "prob match: gave", labels="list:number"),
    # genes
    *[Row("genes", "optimum", X="array:atlas.h5ad", labels="list:cell_type", genes=f"{form}:")
      for form in ("tuple", "array", "series", "index")],
    Row("genes", "optimum", X="array:atlas.h5ad", labels="list:cell_type", genes="file:genes.txt"),
    refused("genes", "Exception: .*Missing `genes`", r"InputError: .*pass genes= .*one name",
            X="array:atlas.h5ad", labels="list:cell_type"),
    refused("genes", "Exception: .*Missing `genes`", r"InputError: .*pass genes= .*one name",
            X="path:counts.mtx", **TABLE),
    refused("genes", "ValueError: .*number of genes .79. provided does not match",
            "InputError: genes has 79 names, and .* has 80 columns",
            X="array:atlas.h5ad", labels="list:cell_type", genes="short:"),
    Row("genes", "optimum", X="path:repeated.h5ad"),
    better("genes", "names for an AnnData, which has its own, are refused instead of ignored",
           "gave: Model", "InputError: genes= is for a matrix without gene names", genes="list:"),
    better("genes", "repeated names are numbered in any input, not only in an AnnData",
           "genes: 71 names for 72", "genes: 72 names for 72",
           X="array:repeated.h5ad", labels="list:cell_type", genes="list:"),
    # transpose_input
    Row("transpose_input", "optimum", {"transpose_input": True}, X="path:genes-by-cells.csv",
        **TABLE),
    Row("transpose_input", "optimum", {"transpose_input": True}, X="path:genes-by-cells.mtx",
        **MTX),
    Row("transpose_input", "optimum", {"transpose_input": True}, X="array.T:atlas.h5ad",
        **IN_MEMORY),
    Row("transpose_input", "optimum", {"transpose_input": True}, X="csr_matrix.T:atlas.h5ad",
        **IN_MEMORY),
    Row("transpose_input", "optimum", {"transpose_input": True}, X="frame.T:atlas.h5ad",
        labels="array:cell_type"),
    Row("transpose_input", "optimum", {"transpose_input": True}),
    # with_mean
    Row("with_mean", "optimum", {"with_mean": False}),
    Row("with_mean", "optimum", {"with_mean": False}, X="path:dense.h5ad"),
    Row("with_mean", "steps", EPOCHS | {"with_mean": False}),
    Row("with_mean", "steps", EPOCHS | {"with_mean": False}, X="path:dense.h5ad"),
    better("with_mean", "False: such a model annotates sparse cells", "best match: .*Error",
           "best match: gave", options={"with_mean": False}),
    # check_expression
    Row("check_expression", "optimum", {"check_expression": False}, X="path:twice.h5ad"),
    refused("check_expression", "ValueError: .*Invalid expression matrix",
            "InputError: .*is not 10,000 in 240 cells", X="path:twice.h5ad"),
    better("check_expression", "every cell is checked, not the first alone", "gave: Model",
           r"InputError: .*is not 10,000 in 1 cells of 240 \(cell 40", X="path:off.h5ad"),
    # C
    *[Row("C", "optimum", {"C": C}) for C in (0.01, 10)],
    Row("C", "steps", EPOCHS | {"C": 5}),
    *[refused("C", "InvalidParameterError: The 'C' parameter", "InputError: C must be a number ab",
              options={"C": C}) for C in (0, -1)],
    # solver
    *[Row("solver", "optimum", {"solver": solver, "C": 0.1})
      for solver in ("lbfgs", "liblinear", "newton-cg", "sag", "saga")],
    refused("solver", "ValueError: .*Invalid `solver`", "InputError: solver must be one of",
            options={"solver": "newton-cholesky"}),
    # max_iter
    Row("max_iter", "outcome", {"max_iter": 2}, theirs="ConvergenceWarning: lbfgs failed to conv",
        ours="ConvergenceWarning: 4 of 4 cell types did not converge after 2 iterations"),
    Row("max_iter", "steps", SMALL | {"max_iter": 7}),
    Row("max_iter", "limits"),
    # n_jobs
    # Of the solvers, sag runs threads; processes take seconds to begin.
    *[Row("n_jobs", "optimum", {"n_jobs": n, "solver": "sag", "C": 0.1}) for n in (1, 2, -1)],
    Row("n_jobs", "jobs", kind="differs", why="all CPUs by default, not one; the same model"),
    # SGD
    Row("use_SGD", "steps", FIRST, tolerance=1e-6),
    Row("use_SGD", "noise", {"use_SGD": True}, "differs", ORDER),
    Row("alpha", "steps", EPOCHS | {"alpha": 0.01}),
    Row("alpha", "optimum", {"alpha": 0.01}),
    refused("alpha", "ValueError: alpha must be > 0", "InputError: alpha must be above 0",
            options={"use_SGD": True, "alpha": 0.0}),
    refused("alpha", "InvalidParameterError: The 'alpha'", "InputError: alpha must be a number of",
            options={"use_SGD": True, "alpha": -1.0}),
    better("use_GPU", "without the library an error that names it, not None",
           "(?s)^(?!.*gave: Model).*log: .*please first install cuml", ON_GPU,
           options={"use_GPU": True}),
    better("use_GPU", "SGD runs there, too", ours=ON_GPU, theirs="gave: Model",
           options=EPOCHS | {"use_GPU": True}),
    # mini-batches
    Row("mini_batch", "steps", DRAWN),
    Row("mini_batch", "steps", FREE | {"shuffle": False, "epochs": 2}, tolerance=1e-6),
    Row("mini_batch", "noise", FREE, "differs", ORDER),
    Row("mini_batch", "optimum", {"mini_batch": True}),
    Row("mini_batch", "outcome", FREE, theirs="log: .*not big enough to conduct a proper mini-bat",
        ours="log: .*240 cells are few for mini-batches"),
    Row("batch_number", "steps", DRAWN | {"batch_number": 100}),
    Row("batch_number", "steps", EPOCHS | {"batch_number": 7}),
    Row("batch_size", "steps", DRAWN | {"batch_size": 70}),
    refused("batch_size", "ValueError: .*fewer than the batch size",
            "InputError: .*mini-batches need more cells than batch_size; got 240",
            options={"use_SGD": True, "mini_batch": True}),
    Row("epochs", "steps", DRAWN | {"epochs": 1}),
    Row("balance_cell_type", "steps", DRAWN | {"balance_cell_type": True}),
    Row("balance_cell_type", "noise", FREE | {"balance_cell_type": True}, "differs", ORDER),
    # feature selection
    Row("feature_selection", "steps", EPOCHS | {"feature_selection": True, "top_genes": 8}),
    Row("feature_selection", "steps", DRAWN | {"feature_selection": True, "top_genes": 8}),
    Row("feature_selection", "selection", {"feature_selection": True, "top_genes": 8}, "differs",
        "the first round's cells come in an order of its own: genes as like CellTypist's as those "
        "of two seeds of it"),
    Row("top_genes", "steps", EPOCHS | {"feature_selection": True, "top_genes": 20}),
    Row("top_genes", "optimum", {"top_genes": 8}),
    better("top_genes", "too few genes are found out before the first round",
           "(?s)Training data using SGD.*ValueError: .*fewer than the `top_genes`",
           "(?s)^(?!.*first round).*InputError: .*keeps the top_genes=300",
           options={"feature_selection": True}),
    # description
    Row("date details url source version", "texts"),
    Row("date details url source version", "texts", {"date": "today", "details": "small",
        "url": "https://", "source": "tests", "version": "1"}),
    # other arguments, which go to the estimator
    refused("kwargs", "TypeError: .*unexpected keyword argument 'alfa'",
            "TypeError: .*no argument 'alfa': did you mean 'alpha'", options={"alfa": 1}),
    Row("tol", "real", {}, "better",
        "logistic regression ends at its optimum, proven to 1e-6 of the objective; by default "
        "CellTypist stops 2% to 340% above it on three real sets, and gives 0.5% to 11% of new "
        "cells other labels, fewer of them right"),
    Row("tol", "optimum", {"tol": 1e-3}),
    Row("tol", "steps", SMALL | {"tol": 1e-2}),
    Row("tol", "steps", SMALL | {"tol": None, "max_iter": 8}),
    refused("tol", "InvalidParameterError: The 'tol'", "InputError: tol=None never stops",
            options={"tol": None}),
    *[Row("penalty", "optimum", {"penalty": "l1", "solver": s, "C": 0.2})
      for s in ("saga", "liblinear")],
    Row("penalty", "optimum", {"penalty": None}, X="path:mixed.h5ad"),
    better("penalty", "every penalty goes with every solver",
           "ValueError: Solver lbfgs supports only 'l2' or None", options={"penalty": "l1"}),
    *[Row("penalty", "steps", EPOCHS | {"penalty": penalty, "alpha": 1e-3})
      for penalty in ("l1", "elasticnet", None)],
    Row("l1_ratio", "optimum", {"penalty": "elasticnet", "solver": "saga", "l1_ratio": 0.4,
                                "C": 0.2}),
    Row("l1_ratio", "steps", EPOCHS | {"penalty": "elasticnet", "l1_ratio": 0.7, "alpha": 1e-3}),
    refused("l1_ratio", "ValueError: l1_ratio must be specified",
            "InputError: penalty='elasticnet' needs l1_ratio",
            options={"penalty": "elasticnet", "solver": "saga"}),
    Row("fit_intercept", "optimum", {"fit_intercept": False}),
    Row("fit_intercept", "steps", EPOCHS | {"fit_intercept": False}),
    Row("dual", "optimum", {"dual": True, "solver": "liblinear", "C": 0.1}),
    better("dual", "taken with every solver, as it does not change the optimum",
           "ValueError: Solver lbfgs supports only dual=False", options={"dual": True}),
    Row("intercept_scaling", "optimum", {"intercept_scaling": 3.0, "solver": "liblinear",
                                         "C": 0.1}),
    *[Row("class_weight", "optimum", {"class_weight": weight})
      for weight in ("balanced", {"NK": 3.0, "T CD8": 0.5})],
    *[Row("class_weight", "steps", EPOCHS | {"class_weight": weight})
      for weight in ("balanced", {"NK": 3.0, "T CD8": 0.5})],
    *[Row("class_weight", "optimum", {"class_weight": weight, "solver": "liblinear", "C": 0.1})
      for weight in ("balanced", {"NK": 3.0, "T CD8": 0.5})],
    Row("class_weight", "optimum", {"class_weight": "balanced"}, X="path:two.h5ad"),
    Row("class_weight", "optimum", {"class_weight": {"B": 3.0}}, X="path:two.h5ad"),
    Row("class_weight", "optimum",
        {"class_weight": {"B": 3.0}, "solver": "liblinear", "C": 0.1}, X="path:two.h5ad"),
    better("class_weight", "\"balanced\" for mini-batches too",
           "ValueError: class_weight 'balanced' is not supported for partial_fit",
           options=DRAWN | {"class_weight": "balanced"}),
    Row("class_weight", "steps", DRAWN | {"class_weight": {"NK": 3.0, "T CD8": 0.5}}),
    refused("class_weight", "ValueError: The classes, .* are not in class_weight",
            "InputError: class_weight names 'b', which is no cell type",
            options={"class_weight": {"b": 3.0}}),
    Row("class_weight", "outcome", {"class_weight": {"NK": 0.0}}, "differs",
        "a weight of 0 is refused: `where` leaves cells out",
        ours=r"InputError: class_weight\['NK'\] must be a number above 0"),
    Row("random_state", "optimum", {"random_state": 3, "solver": "sag", "C": 0.1}),
    Row("random_state", "steps", EPOCHS | {"random_state": 3}),
    Row("random_state", "seeds", FREE | {"random_state": 3}, kind="better",
        why="it seeds the draw of mini-batches too"),
    Row("verbose", "outcome", {"use_SGD": True, "verbose": 1}, ours="log: epoch 1: 4 cell types",
        kind="differs", why="goes to the log, not to standard output"),
    better("warm_start", "continues from the Model given; in CellTypist without effect",
           "gave: Model", "InputError: warm_start must be a Model", options={"warm_start": True}),
    Row("warm_start", "optimum", {"warm_start": False}),
    refused("multi_class", "TypeError: .*multiple values for keyword argument 'multi_class'",
            "TypeError: .*no argument 'multi_class'", options={"multi_class": "ovr"}),
    better("loss", "can be chosen; fixed in CellTypist",
           "TypeError: .*multiple values for keyword argument 'loss'",
           options=EPOCHS | {"loss": "modified_huber"}),
    Row("epsilon", "steps", EPOCHS | {"epsilon": 0.3}),
    Row("shuffle", "steps", FIRST, tolerance=1e-6),
    Row("eta0", "steps", EPOCHS | {"eta0": 5e-3}),
    refused("eta0", "Error: .*eta0", "InputError: eta0 must be above 0",
            options=EPOCHS | {"eta0": 0.0}),
    Row("power_t", "steps", EPOCHS | {"learning_rate": "invscaling", "power_t": 0.25}),
    *[Row("learning_rate", "steps", EPOCHS | {"learning_rate": rate})
      for rate in ("constant", "invscaling", "adaptive")],
    Row("learning_rate", "steps", FIRST | {"learning_rate": "optimal"}, tolerance=1e-6),
    *[refused("learning_rate", "ValueError: Learning rate 'pa.' only works with loss 'hinge'",
              "InputError: .*learning_rate='pa.' goes with loss='hinge' alone",
              options=DRAWN | {"learning_rate": rate}) for rate in ("pa1", "pa2")],
    better("early_stopping", "works with mini-batches too",
           "ValueError: early_stopping should be False with partial_fit",
           options=FREE | {"early_stopping": True}),
    Row("early_stopping", "noise", {"use_SGD": True, "early_stopping": True}, "differs", HELD_OUT),
    Row("validation_fraction", "noise",
        {"use_SGD": True, "early_stopping": True, "validation_fraction": 0.2}, "differs",
        HELD_OUT),
    Row("n_iter_no_change", "steps", SMALL | {"tol": 1e-2, "n_iter_no_change": 2}),
    Row("average", "steps", EPOCHS | {"average": True}),
    Row("average", "steps", EPOCHS | {"average": 100}),
    Row("average", "steps", DRAWN | {"average": True, "fit_intercept": False}),
    Row("average", "steps", DRAWN | {"average": True}, "better",
        "intercepts are averaged over mini-batches too; scikit-learn loses them between two"),
    # annotate
    *[Row("annotate(filename)", "labels", X=f"path:{x}")
      for x in ("query.h5ad", "dense_query.h5ad", "counts.csv", "counts.tsv")],
    *[Row("annotate(model)", "labels", X="path:query.h5ad", model=m)
      for m in ("sgd.pkl", "two.pkl")],
    Row("annotate(model)", "labels", X="path:dense_query.h5ad", model="uncentred.pkl"),
    Row("annotate(transpose_input)", "labels", {"transpose_input": True},
        X="path:genes-by-cells.csv"),
    Row("annotate(gene_file) annotate(cell_file)", "labels",
        {"gene_file": "file:genes.txt", "cell_file": "file:cells.txt"}, X="path:counts.mtx"),
    *[Row("annotate(mode) annotate(p_thres)", "labels", {"mode": "prob match", "p_thres": p},
          "better", "\"Unassigned\" is whole, not cut to the longest label",
          X="path:query.h5ad") for p in (0.1, 0.5, 0.9)],
    *[Row("annotate(majority_voting) annotate(over_clustering)", "labels",
          {"majority_voting": True, "over_clustering": c}, X="path:query.h5ad")
      for c in ("cluster", "file:clusters.txt")],
    Row("annotate(min_prop)", "labels",
        {"majority_voting": True, "over_clustering": "cluster", "min_prop": 0.8},
        X="path:query.h5ad"),
]  # fmt: skip

# Of a trained model, and where it is compared.
METHODS = [
    ("Model.extract_top_markers", "same", "the same genes",
     "test_extract_top_markers__as_celltypist"),
    ("Model.convert", "differs", "gives a new model; the map must be named",
     "test_convert__as_celltypist"),
    ("Model.subset", "differs", "gives a new model; two types that remain share one boundary",
     "test_subset__as_celltypist"),
]  # fmt: skip


def table() -> str:
    """The table of docs/parity.md: a line for each argument, from the rows."""
    lines = ["| argument | | why | test |", "|---|---|---|---|"]
    names = dict.fromkeys(row.argument for row in ROWS)
    for name in names:
        rows = [row for row in ROWS if row.argument == name]
        kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
        why = [row.why for row in rows if row.why] or [COMPARED[row.compare] for row in rows]
        tests = dict.fromkeys(row.compare for row in rows)
        cells = (
            ", ".join(f"`{n}`" for n in name.split()), ", ".join(kinds),
            "; ".join(dict.fromkeys(why)), ", ".join(tests),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| `{name}` | {kind} | {why} | {test} |" for name, kind, why, test in METHODS]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
