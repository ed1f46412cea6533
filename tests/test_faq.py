"""Which section of docs/faq.md an error names, and how the sections are shown."""

import ast
import contextlib
import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import streamtrain
from streamtrain import InputError, cli, errors, faq
from tests import test_bad_input as bad

PACKAGE = Path(streamtrain.__file__).parent
TABLES = (
    bad.FILE, bad.MATRIX, bad.LABEL, bad.GENE, bad.SETTING, bad.OPTION, bad.WHERE, bad.OUTPUT,
    bad.MODEL, bad.REMOTE,
)  # fmt: skip
# Sections that no error names.
GENERAL = {
    "slow", "out-of-memory", "scores-differ", "which-recipe", "cite", "poor-predictions",
}  # fmt: skip
# Modules whose words stand within another's message: "model ... is damaged: ...".
WITHIN = {
    "celltypist_import", "frozen", "model_layout", "model_schema", "pickled",
}  # fmt: skip
# Other such words: what comes before them is worded elsewhere.
PARTS = {
    "…; got …",
    "… must be … …; got …",
    "…: … must be …; got …",
    "…; there is no file …",
    "…: it is a link to …, which is not there",
    "…, nor the folder …: correct the path",
    "…, and there is no raw/X to read instead: name a layer that holds log1p expression (layer, "
    "--layer), or for raw counts pass normalize='log1p' (--normalize log1p)",
    "…, nor …/zarr.json or .zgroup: …",
    "…: correct the address",
    "… has no …: …",
    "where=… …: …",
    "… has shape …, not … = …",
}
MISTYPED = "run.toml: batch_size must be a whole number; got 'many'"


def filled(message):
    for word, meant in bad.WORDS.items():
        message = message.replace(word, meant)
    return message.replace("@", "/data/")


def messages():
    """All of tests/test_bad_input.py, by table and row."""
    for number, table in enumerate(TABLES):
        for name, row in table.items():
            for message in {row.python, row.cli} - {None, bad.SAME}:
                yield f"{number}/{name}", filled(message)
    for name, (_, message) in bad.WORDLESS.items():
        yield f"command/{name}", message


def literal(node):
    """Text of an expression of the source, with "…" for what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return "…"


def raised():
    """Messages of every InputError in the source, by where."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem in WITHIN:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InputError"):
                message = literal(node.args[0]) if node.args else ""
                if message.strip(" :;…") and message not in PARTS:
                    yield f"{path.name}:{node.lineno}", message


def topic(message):
    note = faq.note_for(message)
    return None if note is None else note.removeprefix("help: streamtrain faq ")


@pytest.mark.parametrize("known", [messages, raised])
def test_note__of_every_message(known):
    """Add what is missing to the block of a section of docs/faq.md."""
    found = list(known())
    assert len(found) > 250
    assert [(name, message) for name, message in found if topic(message) is None] == []


def test_sections__answer_a_message_or_are_general():
    quoting = {topic(message) for known in (messages, raised) for _, message in known()}
    assert set(faq._sections()) - quoting == GENERAL
    assert len(GENERAL) == 6


def test_quotations__are_of_messages():
    """A message that nobody raises any more leaves the page."""
    everything = [message for known in (messages, raised) for _, message in known()]
    everything += "No space left on device", MISTYPED  # the first is the system's
    dead = [
        "…".join(parts)
        for quoted in faq._quoted().values()
        for parts in quoted
        if not any(faq._in_turn(parts, message) for message in everything)
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a.h5ad does not exist: correct the path", "file-missing"),
        ("s3://b/a.h5ad does not exist (the server answers 404 x): correct", "server"),
        ("a.h5ad has no obs column 'x' and there is no such file: ...", "labels-column"),
        ("var of a.h5ad has no column 'x': there are 'y'", "genes-named"),
        ("where=\"x == 1\": obs has no column 'x': did you mean 'y'?", "where"),
        ("memory=1 kB is too small for 60 cells: at least 3 MB are needed", "memory"),
        ("gpu_memory is for device='gpu': leave it out, or pass that", "gpu"),
        ("C must be a number above 0; got 0.0", "settings-range"),
        ("model 'm.zarr' is damaged: coef holds NaN or infinity: train", "model-damaged"),
        ("X of a.h5ad is damaged: the offsets do not ascend; restore it", "file-damaged"),
        (MISTYPED, "config"),
        ("no file of --config at 'run.toml': correct the path", "file-missing"),
        ("full", None),
    ],
)
def test_note__of_the_section_that_quotes_most(message, expected):
    assert topic(message) == expected


def test_note__is_of_the_exception_and_leaves_its_message():
    message = "a.h5ad: 3 of 60 cells have no label in 'x'; pass drop_unlabeled=True"
    error = InputError(message)
    assert str(error) == message
    assert error.args == (message,)
    assert error.__notes__ == ["help: streamtrain faq labels-missing"]
    assert not hasattr(InputError("nothing of the kind"), "__notes__")


def test_note__of_a_path_that_is_not_there(tmp_path):
    error = errors.absent(tmp_path / "a.h5ad")
    assert error.__notes__ == ["help: streamtrain faq file-missing"]


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])  # noqa: S301 - our own
def test_note__stays_one_when_an_error_travels(copied):
    error = InputError("C must be a number above 0; got 0")
    assert copied(error).__notes__ == error.__notes__ == ["help: streamtrain faq settings-range"]


def test_note__is_left_out_where_the_page_cannot_be_read(monkeypatch):
    def broken(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(faq, "note_for", broken)
    assert not hasattr(InputError("C must be a number above 0; got 0"), "__notes__")


def test_text__lists_every_topic():
    lines = faq.faq_text().split("\n")
    assert [line.split()[0] for line in lines[:-2]] == list(faq._sections())
    assert "labels-missing     Cells have no label." in lines
    assert lines[-2:] == ["", "streamtrain faq TOPIC says more of one."]


def test_text__of_a_section_is_plain():
    text = faq.faq_text("genes-shared")
    assert text.startswith("genes-shared\n\nThe cells share no gene with the model, the list")
    assert "\n    streamtrain predict model.zarr new.h5ad --gene-key feature_name" in text
    assert text.endswith("see streamtrain faq other-species.")
    for name in faq._sections():
        shown = [line for line in faq.faq_text(name).split("\n") if not line.startswith("    ")]
        assert not any(mark in line for line in shown for mark in ("```", "**", "](", "## "))


def test_text__refuses_an_unknown_topic():
    words = r"^there is no topic 'label': did you mean .*'labels-text'.*; streamtrain faq lists all"
    with pytest.raises(InputError, match=words):
        faq.faq_text("label")


def test_import__reads_the_page_at_the_first_error():
    script = (
        "import sys, streamtrain.errors as e; assert 'streamtrain.faq' not in sys.modules; "
        "e.InputError('x'); assert 'streamtrain.faq' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603 - our own command


def test_command__names_the_section_below_the_message(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(tmp_path / "no.h5ad"), "--labels", "x", "--out", "m.zarr"])
    assert stop.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("streamtrain: ")
    assert first.endswith("no.h5ad does not exist: correct the path")
    assert second == "help: streamtrain faq file-missing"


def test_command__prints_a_section_and_the_list(capsys):
    for words, text in ((["faq"], faq.faq_text()), (["faq", "memory"], faq.faq_text("memory"))):
        with contextlib.suppress(SystemExit):
            cli.main(words)
        assert capsys.readouterr().out == f"{text}\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(["faq", "label"])
    assert stop.value.code == 2
    assert "there is no topic 'label': did you mean" in capsys.readouterr().err
