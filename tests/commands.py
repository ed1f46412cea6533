"""Commands in the process of the tests, which is quicker than one of their own."""

from __future__ import annotations

from streamtrain import cli


def call(capsys, *arguments):
    """Run a command: exit code, standard output and error."""
    try:
        cli.main([*map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err
