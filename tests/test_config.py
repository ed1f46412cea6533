"""The settings: defaults as CellTypist's, every rule and its message, and how they are shown."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError, fields
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier

import streamtrain
from streamtrain.config import Settings, takes_settings
from streamtrain.errors import InputError

NAMES = [f.name for f in fields(Settings)]
ROOT = Path(__file__).resolve().parents[1]


def celltypists_arguments():
    """Names and defaults of celltypist.train, read and not imported: that takes six seconds."""
    spec = find_spec("celltypist")
    if spec is None:
        pytest.skip("celltypist is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "train.py").read_text())
    (found,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train"]
    arguments = found.args.args
    assert len(arguments) == len(found.args.defaults)
    return {a.arg: ast.literal_eval(d) for a, d in zip(arguments, found.args.defaults, strict=True)}


def test_settings__defaults_as_celltypist():
    theirs = celltypists_arguments()
    ours = {f.name: f.default for f in fields(Settings)}
    shared = set(theirs) & set(ours)
    assert len(shared) >= 22
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_train__takes_every_argument_of_celltypist():
    assert set(celltypists_arguments()) <= set(inspect.signature(streamtrain.train).parameters)


@pytest.mark.parametrize("estimator", [SGDClassifier, LogisticRegression])
def test_train__takes_every_argument_of_the_estimators(estimator):
    """What celltypist.train hands on, but for the names of one class against the rest."""
    theirs = set(inspect.signature(estimator).parameters) - {"multi_class"}
    assert theirs <= set(inspect.signature(streamtrain.train).parameters)


def test_settings__defaults_are_valid_and_plain():
    assert Settings.from_keywords({}) == Settings()
    # A model that a GPU trained is trained alike by a CPU.
    where = {"device", "use_GPU", "gpu_memory"}
    assert list(Settings().to_dict()) == [name for name in NAMES if name not in where]
    assert Settings(**Settings(alpha=0.1, where="a == 'b'").to_dict()) == Settings(
        alpha=0.1, where="a == 'b'"
    )


def test_settings__frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().alpha = 1.0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("alfa", "did you mean 'alpha'"),
        ("batchsize", "did you mean 'batch_size'"),
        ("balance_celltype", "did you mean 'balance_cell_type'"),
        ("with_means", "did you mean 'with_mean'"),
        ("zzz", f"there are '{NAMES[0]}', '{NAMES[1]}'"),
    ],
)
def test_settings__unknown_keyword(name, near):
    words = f"train() has no argument {name!r}: {near}"
    with pytest.raises(TypeError, match=re.escape(words)):
        Settings.from_keywords({name: 1})
    with pytest.raises(TypeError, match=re.escape(words)):
        streamtrain.train(None, "cell_type", **{name: 1})


def test_settings__any_seed():
    seeds = {Settings.from_keywords({"random_state": None}).random_state for _ in range(3)}
    assert len(seeds) > 1


IGNORED = [
    ({"use_SGD": True, "C": 2.0}, "C is ignored: it is for use_SGD=False"),
    ({"use_SGD": True, "solver": "saga"}, "solver is ignored"),
    ({"alpha": 0.1}, "alpha is ignored: it is for use_SGD=True"),
    ({"mini_batch": True}, "mini_batch is ignored: it is for use_SGD=True"),
    ({"use_SGD": True, "batch_size": 9}, "is ignored: it is for use_SGD=True with mini_batch=True"),
    ({"balance_cell_type": True}, "is ignored: it is for use_SGD=True with mini_batch=True"),
    ({"top_genes": 9}, "top_genes is ignored: it is for feature_selection=True"),
    (
        {"use_SGD": True, "mini_batch": True, "max_iter": 9},
        "it is for logistic regression and whole epochs, not mini-batches",
    ),
    (
        {"use_SGD": True, "mini_batch": True, "tol": 0.1},
        "tol is ignored: it is for logistic regress",
    ),
    ({"use_SGD": True, "mini_batch": True, "n_iter_no_change": 3}, "n_iter_no_change is ignored"),
    ({"use_SGD": True, "mini_batch": True, "folds": 3, "tol": 0.1}, "tol is ignored"),
    ({"use_SGD": True, "mini_batch": True, "folds": 3, "n_iter_no_change": 2}, None),
    ({"intercept_scaling": 3.0}, "intercept_scaling is ignored: it is for solver='liblinear'"),
    ({"use_SGD": True, "max_iter": 9}, None),
    ({"feature_selection": True, "alpha": 0.1, "mini_batch": True, "batch_size": 9}, None),
    ({"feature_selection": True, "C": 2.0, "top_genes": 5}, None),
]


@pytest.mark.parametrize(("keywords", "words"), IGNORED, ids=[str(k) for k, _ in IGNORED])
def test_settings__warn_of_what_celltypist_ignores(keywords, words, caplog):
    Settings(**keywords).warn_of_ignored()
    assert (words or "") in caplog.text
    assert bool(caplog.records) == bool(words)


def test_first_round__is_sgd_with_the_other_settings():
    config = Settings(
        feature_selection=True, C=2.0, alpha=0.3, tol=1e-7, solver="liblinear", dual=True
    )
    first = config.first_round()
    assert first.use_SGD
    assert not first.feature_selection
    assert (first.alpha, first.stop_tol) == (0.3, 1e-3)
    assert Settings(feature_selection=True, use_SGD=True, tol=1e-7).first_round().stop_tol == 1e-7


def test_most_passes__as_celltypist():
    assert [Settings().most_passes(n) for n in (49_999, 50_000, 499_999, 500_000)] == [
        1000, 500, 500, 200,
    ]  # fmt: skip
    assert Settings(max_iter=7).most_passes(10**6) == 7


@pytest.mark.parametrize("name", ["with_mean", "balance_cell_type", "shuffle", "replace"])
@pytest.mark.parametrize("value", ["False", None, 2])
def test_settings__switches_are_booleans(name, value):
    with pytest.raises(InputError, match=f"{name} must be one of True, False; got"):
        Settings(**{name: value})


WHOLE = "must be a whole number of at least"
CV = {"use_SGD": True, "mini_batch": True, "folds": 3}
REFUSED = [
    *[
        ({name: value}, f"{name} must be a number above 0; got {value!r}")
        for name in ("C", "intercept_scaling")
        for value in (0, -1, "1", None)
    ],
    *[({"max_iter": value}, f"max_iter {WHOLE} 1; got {value!r}") for value in (0, 0.5, True)],
    ({"tol": -1}, "tol must be a number of at least 0; got -1"),
    ({"tol": "none"}, "tol must be a number of at least 0; got 'none'"),
    ({"tol": None}, "tol=None never stops, which SGD alone can do"),
    (
        {"solver": "newton-cholesky"},
        "solver must be one of 'lbfgs', 'liblinear', 'newton-cg', 'sag'",
    ),
    ({"loss": "log"}, "loss must be one of 'log_loss', 'hinge'"),
    ({"penalty": "none"}, "penalty must be one of 'l2', 'l1', 'elasticnet', None; got 'none'"),
    ({"penalty": "elasticnet"}, "penalty='elasticnet' needs l1_ratio"),
    ({"l1_ratio": 0.5}, "l1_ratio is for penalty='elasticnet': leave it out, or pass that"),
    (
        {"use_SGD": True, "validation_groups": "donor"},
        "validation_groups is for early_stopping=True",
    ),
    (
        {"use_SGD": True, "validation_fraction": 0.2},
        "validation_fraction is for early_stopping=True",
    ),
    ({"C": -np.inf}, "C must be a number above 0; got -inf"),
    ({"l1_ratio": 1.5}, "l1_ratio must be a number of at least 0 and at most 1; got 1.5"),
    ({"validation_fraction": 0}, "validation_fraction must be a number above 0 and at most 0.999"),
    ({"class_weight": "balance"}, "class_weight must be one of 'balanced', None; got 'balance'"),
    ({"class_weight": {"B": -1}}, "class_weight['B'] must be a number above 0; got -1"),
    ({"use_SGD": True, "dual": True}, "dual is for use_SGD=False: leave it out"),
    *[
        ({name: value}, f"{name} is for use_SGD=True: leave it out, or pass that")
        for name, value in {
            "average": True,
            "learning_rate": "constant",
            "eta0": 1.0,
            "power_t": 1.0,
            "loss": "hinge",
            "epsilon": 1.0,
            "shuffle": False,
            "early_stopping": True,
            "n_iter_no_change": 3,
        }.items()
    ],
    *[
        ({name: value}, f"{name} {WHOLE} 1; got {value!r}")
        for name in ("batch_number", "batch_size", "epochs")
        for value in (0, -5, 1.5, 2.0, "3", None, True)
    ],
    *[
        ({"random_state": value}, f"random_state {WHOLE} 0; got {value!r}")
        for value in (-1, 0.5, False)
    ],
    *[({"average": value}, f"average {WHOLE} 0; got {value!r}") for value in (-1, 0.5, "yes")],
    *[
        ({name: value}, f"{name} must be a number of at least 0; got {value!r}")
        for name in ("alpha", "eta0", "power_t")
        for value in (-1e-4, float("nan"), float("inf"), "0.1", None, True)
    ],
    (
        {"use_SGD": True, "alpha": 0},
        "alpha must be above 0, as learning_rate='optimal' divides by it",
    ),
    (
        {"eta0": 0, "learning_rate": "constant"},
        "eta0 must be above 0 with learning_rate='constant'",
    ),
    ({"eta0": 0.0, "learning_rate": "invscaling"}, "eta0 must be above 0 with learning_rate='inv"),
    ({"normalize": "log2"}, "normalize must be one of 'log1p', None; got 'log2'"),
    ({"normalize": True}, "normalize must be one of 'log1p', None; got True"),
    (
        {"learning_rate": "adapt"},
        "learning_rate must be one of 'optimal', 'constant', 'invscaling'",
    ),
    (
        {"use_SGD": True, "learning_rate": "pa2", "eta0": 1e-3},
        "learning_rate='pa2' goes with loss='hinge' alone; got loss='log_loss'",
    ),
    (
        {"use_SGD": True, "mini_batch": True, "learning_rate": "adaptive"},
        "learning_rate='adaptive' follows the loss of whole epochs: leave out mini_batch",
    ),
    *[
        ({name: value} | way, f"{name} is for use_SGD=True with mini_batch=True: leave it out")
        for name, value in {"replace": True, "quotas": "equal", "sampling_weight": "w"}.items()
        for way in ({}, {"use_SGD": True}, {"mini_batch": True})
    ],
    *[
        (
            {"batch_key": "donor"} | way,
            "batch_key is for use_SGD=True with mini_batch=True, and balance_cell_type=True or",
        )
        for way in (
            {},
            {"use_SGD": True, "balance_cell_type": True},
            {"use_SGD": True, "mini_batch": True},
        )
    ],
    *[
        ({"quotas": {"B": value}}, f"quotas['B'] {WHOLE} 1; got {value!r}")
        for value in (0, -1, 1.5, "3", True, None)
    ],
    ({"quotas": "even"}, "quotas must be one of 'equal', None; got 'even'"),
    (
        {"quotas": {"B": 600, "T": 401}},
        "quotas must fit in a mini-batch: they take 1,001 cells of batch_size=1,000; lower them",
    ),
    (
        {"quotas": "equal", "balance_cell_type": True},
        "quotas set the cells of each type: leave out balance_cell_type, or the quotas",
    ),
    (
        {"quotas": "equal", "sampling_weight": "w"},
        "quotas with sampling_weight draw with replacement: pass replace=True (--replace) too",
    ),
    ({"batch_key": 3}, "batch_key must name a column of obs; got 3"),
    *[
        ({name: value} | CV, f"{name}: values to choose from must differ; got {value!r}")
        for name in ("alpha", "step")
        for value in ([1.0, 2.0, 1], [])
    ],
    *[
        (
            {name: [1.0, 2.0]} | way,
            f"{name}=[1.0, 2.0] is chosen from by cross-validation: pass folds (--folds 5) too",
        )
        for name in ("alpha", "step")
        for way in ({}, {"use_SGD": True, "mini_batch": True})
    ],
    ({"alpha": [1e-4, -1.0]} | CV, "alpha must be a number of at least 0; got -1.0"),
    ({"alpha": [0.0, 1.0]} | CV, "alpha must be above 0, as learning_rate='optimal' divides by it"),
    *[
        ({"step": value} | CV, f"step must be a number above 0; got {wrong!r}")
        for value, wrong in ((0, 0), ("large", "large"), ([1.0, None], None), ([-1, 2], -1))
    ],
    *[
        (
            {"use_SGD": True, "step": "auto", name: value},
            f"step takes the place of {name}: leave one of them out",
        )
        for name, value in {"learning_rate": "adaptive", "eta0": 0.1, "power_t": 0.2}.items()
    ],
    ({"step": 1.0}, "step is for use_SGD=True: leave it out, or pass that"),
    ({"alpha": [1.0, 2.0], "penalty": None} | CV, "alpha=[1.0, 2.0] makes no difference with pen"),
    *[
        ({"folds": value}, f"folds {WHOLE} 2 and at most 20; got {value!r}")
        for value in (0, 1, 21, 2.5, True)
    ],
    *[
        ({"folds": 3} | way, "folds is for use_SGD=True with mini_batch=True: leave it out")
        for way in ({}, {"use_SGD": True})
    ],
    *[
        (CV | {name: True}, f"folds cross-validates, and {name} {why}")
        for name, why in {
            "early_stopping": "stops by other held-out cells: leave one out",
            "feature_selection": "would choose genes by the held-out cells too: leave one out",
        }.items()
    ],
    ({"calibrate": True}, "calibrate is for folds, cross-validation: leave it out, or pass that"),
    (
        CV | {"validation_fraction": 0.2},
        "validation_fraction is for early_stopping=True: leave it out",
    ),
    ({"gene_dropout": 0.95}, "gene_dropout must be a number of at least 0 and at most 0.9; got"),
    ({"use_SGD": True, "gene_dropout": 0.1}, "gene_dropout is for use_SGD=True with mini_batch"),
    *[
        (
            {"correct_prior": True} | way,
            "correct_prior is for use_SGD=True with mini_batch=True, and",
        )
        for way in ({}, {"use_SGD": True, "average": True}, {"use_SGD": True, "mini_batch": True})
    ],
    (
        CV | {"correct_prior": True, "average": True, "fit_intercept": False},
        "correct_prior shifts the intercepts, and fit_intercept=False has none: leave one out",
    ),
    ({"gene_list": 3}, "gene_list must be a list of names, or the path of a text file with one a"),
    ({"device": "cuda"}, "device must be one of 'cpu', 'gpu'; got 'cuda'"),
    ({"gpu_memory": "2GB"}, "gpu_memory is for device='gpu': leave it out, or pass that"),
    ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64'; got 'float16'"),
]


@pytest.mark.parametrize(("keywords", "words"), REFUSED, ids=[str(k) for k, _ in REFUSED])
def test_settings__refuse(keywords, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Settings(**keywords)
    # Before the input is looked at.
    with pytest.raises(InputError, match=re.escape(words)):
        streamtrain.train("/no/such/file.h5ad", "cell_type", **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"batch_size": 1, "batch_number": 1, "epochs": 1, "random_state": 0},
        {"batch_size": np.int64(500), "random_state": np.uint32(7), "alpha": np.float32(0.1)},
        {"alpha": 1},
        {"alpha": 0, "learning_rate": "constant"},
        {"eta0": 0},  # "optimal" does not use it
        {"power_t": 0, "learning_rate": "invscaling"},
        {"average": True},
        {"average": 700},
        {"average": 0},
        {"dtype": "float64", "normalize": "log1p"},
        {"mini_batch": True, "quotas": {"B": 5}, "batch_key": "donor"},
        {"mini_batch": True, "quotas": "equal", "sampling_weight": "w", "replace": True},
        {"mini_batch": True, "balance_cell_type": True, "batch_key": "donor", "replace": True},
        CV | {"alpha": [1e-4, 1e-2], "step": ["auto", 3], "calibrate": True},
        CV | {"alpha": [0, 1], "step": 2.0, "validation_groups": "donor"},
        {"step": "auto", "early_stopping": True},
        {"alpha": [1.0]},
        {"mini_batch": True, "gene_dropout": 0.9, "gene_list": ["A"]},
    ],
    ids=str,
)
def test_settings__accept(keywords):
    kept = Settings(**{"use_SGD": True} | keywords)
    assert {name: getattr(kept, name) for name in keywords} == keywords


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        (CV | {"init": "m"}, "init goes on from cells that no fold can leave out: leave one out"),
        (CV | {"warm_start": "m"}, "warm_start starts from weights that the held-out cells may"),
        (
            {"use_SGD": True, "init": "m", "gene_list": ["A"]},
            "init adds cells to a model, and gene_list names other genes than the model's: leave",
        ),
        (
            {
                "use_SGD": True,
                "mini_batch": True,
                "average": True,
                "init": "m",
                "correct_prior": True,
            },
            "and correct_prior goes by the shares of these cells alone: leave one out",
        ),
    ],
)
def test_settings__refuse_with_another_model(keywords, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Settings(**keywords)


def test_settings__several_values_in_any_form():
    for alpha in ([0.1, 1.0], (0.1, 1.0), np.array([0.1, 1.0])):
        kept = Settings.from_keywords(CV | {"alpha": alpha, "step": (3.0,)})
        assert kept.alpha == [0.1, 1.0]
        assert kept.alphas == (0.1, 1.0)
        assert kept.step == 3.0
        assert kept.steps == (3.0,)
    assert Settings().steps == (None,)


# Recipes

ATLAS = tomllib.loads((ROOT / "conf" / "atlas.toml").read_text(encoding="utf-8"))


def test_recipe__atlas_is_the_one_in_conf():
    packaged = resources.files("streamtrain") / "recipes" / "atlas.toml"
    assert packaged.read_text(encoding="utf-8") == (ROOT / "conf" / "atlas.toml").read_text(
        encoding="utf-8"
    )
    kept = Settings.from_keywords({"recipe": "atlas"})
    assert kept.recipe == "atlas"
    assert len(ATLAS) > 8
    assert {name: getattr(kept, name) for name in ATLAS} == ATLAS
    others = {name: getattr(kept, name) for name in NAMES if name not in (*ATLAS, "recipe")}
    assert others == {name: getattr(Settings(), name) for name in others}


def test_recipe__keywords_beat_it():
    given = {"alpha": 1e-3, "folds": 3, "calibrate": False, "step": None, "memory": "1GB"}
    kept = Settings.from_keywords({"recipe": "atlas"} | given)
    assert {name: getattr(kept, name) for name in given} == given
    assert kept.average == ATLAS["average"]
    assert kept.epochs == ATLAS["epochs"]


@pytest.mark.parametrize("kind", [str, Path])
def test_recipe__of_a_file(tmp_path, kind):
    path = tmp_path / "own recipe.toml"
    path.write_text('use_SGD = true\nalpha = 0.5\nclass_weight = {"B αβ" = 2}\n', encoding="utf-8")
    kept = Settings.from_keywords({"recipe": kind(path)})
    assert (kept.use_SGD, kept.alpha, kept.class_weight) == (True, 0.5, {"B αβ": 2})
    assert kept.recipe == str(path)
    assert Settings(**kept.to_dict()) == kept


RECIPES = {
    "unknown": (b"alfa = 1", "no setting 'alfa': did you mean 'alpha'"),
    "a table": (b"[train]\nalpha = 1", "has a table [train], and a recipe has settings alone: the"),
    "of another": (b"recipe = 'atlas'", "no setting 'recipe'"),
    "broken": (b"alpha = ", "is no TOML file: Invalid value"),
    "binary": (b"\xff\xfe\x00", "is no TOML file: 'utf-8' codec can't decode"),
    "a value out of range": (b"alpha = -1", "alpha must be a number of at least 0; got -1"),
    "a value of another type": (b"epochs = 2.5", "epochs must be a whole number of at least 1"),
}


@pytest.mark.parametrize(("text", "words"), RECIPES.values(), ids=RECIPES.keys())
def test_recipe__bad_files(tmp_path, text, words):
    path = tmp_path / "r.toml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        Settings.from_keywords({"recipe": path})
    assert "must be" in words or f"recipe {str(path)!r}" in str(raised.value)
    with pytest.raises(InputError, match=re.escape(words)):  # before the input is looked at
        streamtrain.train("/no/such/file.h5ad", "cell_type", recipe=str(path))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("atlsa", "or the path of a TOML file of settings; there is no file 'atlsa'"),
        (str(ROOT), f"there is no file {str(ROOT)!r}"),
        (
            7,
            "recipe must be 'atlas', 'quick-look', 'celltypist', 'gpu', 'cluster', or the path of ",
        ),
        ({"alpha": 1}, "or the path of a TOML file of settings; got {'alpha': 1}"),
    ],
)
def test_recipe__none_there(recipe, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Settings.from_keywords({"recipe": recipe})


def documented(text, names):
    """Names that `text` documents numpydoc style, in order."""
    return [line.strip() for line in text.splitlines() if line.strip() in names]


def test_settings__each_documented_once_in_order():
    assert documented(inspect.getdoc(Settings), NAMES) == NAMES


def test_train__shows_every_setting():
    signature = inspect.signature(streamtrain.train)
    own = [
        "X", "labels", "genes", "progress", "storage_options", "client", "checkpoint",
        "checkpoint_every", "resume",
    ]  # fmt: skip
    assert list(signature.parameters) == [*own, *NAMES]
    for f in fields(Settings):
        parameter = signature.parameters[f.name]
        assert parameter.default == f.default
        assert parameter.kind is parameter.KEYWORD_ONLY
    text = inspect.getdoc(streamtrain.train)
    assert "{settings}" not in text
    assert documented(text, NAMES) == NAMES
    body = inspect.getdoc(Settings).split("----------\n", 1)[1]
    squeezed = " ".join(text.split())
    assert " ".join(body.split()) in squeezed
    for section in ("Returns", "Raises"):  # the settings did not swallow what follows
        assert f"\n{section}\n-------" in text or f"\n{section}\n------" in text


def test_takes_settings__keeps_the_functions_own():
    @takes_settings
    def run(a, *, b=2, **settings):
        """Run.

        Parameters
        ----------
        **settings
            {settings}
        """
        return a, b, settings

    assert run(1, alpha=3) == (1, 2, {"alpha": 3})
    assert list(inspect.signature(run).parameters) == ["a", "b", *NAMES]
    assert run.__name__ == "run"

    @takes_settings
    def bare(**settings):
        return settings

    assert bare.__doc__ is None
    assert list(inspect.signature(bare).parameters) == NAMES


def test_command_line__help_shows_every_setting():
    command = [sys.executable, "-m", "streamtrain", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603
    assert done.returncode == 0, done.stderr
    text = done.stdout.lower()
    for name in NAMES:
        flag = "--" + name.replace("_", "-").lower()
        assert flag in text or flag.replace("use-sgd", "use-s-g-d") in text, flag
    first = inspect.getdoc(Settings).split("batch_number\n", 1)[1].strip().split(";")[0]
    assert first.lower() in " ".join(text.replace("│", " ").split())


def test_settings__an_error_names_the_recipe_that_has_a_part_in_it():
    with pytest.raises(InputError, match="with what recipe='atlas' sets: average is for use_SGD"):
        Settings.from_keywords({"recipe": "atlas", "use_SGD": False})
