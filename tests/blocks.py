"""A page of docs in; its blocks of code, run in order in one folder, and what each prints, out.

A block of text right below one of code is what that prints: line by line, "…" for any text. A
comment `<!-- not run: why -->` above a block leaves it out. `python -m tests.blocks PAGE` runs a
page in the folder at hand, in a process of its own, which it may change as it likes.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(<!-- not run[^>]*-->\n+)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Code of a page, and what it prints; None where the page does not say."""

    language: str
    code: str
    line: int
    run: bool
    expected: str | None = None


def blocks(page):
    """All blocks of code of a page, bash and Python, in order."""
    found = []
    text = page.read_text(encoding="utf-8")
    matches = list(_BLOCK.finditer(text))
    for at, match in enumerate(matches):
        if match[2] not in ("bash", "python"):
            continue
        after = matches[at + 1] if at + 1 < len(matches) else None
        told = (
            after is not None
            and after[2] == "text"
            and not text[match.end() : after.start()].strip()
        )
        line = text.count("\n", 0, match.start(2)) + 1
        expected = after[3] if told else None
        found.append(Block(match[2], match[3], line, match[1] is None, expected))
    return found


def agrees(expected, printed):
    """Whether it was printed, but for spaces at the ends of lines."""
    wanted, got = ("\n".join(map(str.rstrip, t.strip().splitlines())) for t in (expected, printed))
    return re.fullmatch(re.escape(wanted).replace("…", ".*"), got, re.DOTALL) is not None


def _bash(code, bin_folder):
    env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "COLUMNS": "100"}
    done = subprocess.run(  # noqa: S603 - our own page
        ["/bin/bash", "-euo", "pipefail", "-c", code],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}\nexit status {done.returncode}")
    return done.stdout


def _python(code, line, page, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * line + code, page, "exec"), names)  # noqa: S102 - our own page
    return out.getvalue()


def main(page):
    """Run a page; end with status 1 at the first block that fails or prints something else."""
    names = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as bin_folder:
        for name, words in (("python", ""), ("streamtrain", " -m streamtrain")):
            path = Path(bin_folder, name)
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
            path.chmod(0o755)
        for block in blocks(Path(page)):
            if not block.run:
                continue
            if block.language == "bash":
                printed = _bash(block.code, bin_folder)
            else:
                printed = _python(block.code, block.line, page, names)
            if block.expected is not None and not agrees(block.expected, printed):
                sys.exit(f"{page}:{block.line} printed\n\n{printed}\nand not\n\n{block.expected}")


if __name__ == "__main__":
    main(sys.argv[1])
