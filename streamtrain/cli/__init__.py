"""The command line: arguments in, calls of the Python API, words out. No logic of its own.

A command is a module with a function: its parameters are options, its docstring the help. Options
that several have are in `options`. Heavy modules (numba, xarray, anndata) load inside the commands:
--help takes 0.3 s, not 3 s.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter

from streamtrain import logs
from streamtrain.cli import (
    config,
    convert,
    convert_model,
    cross_validate,
    demo,
    evaluate,
    faq,
    inspect,
    predict,
    recipes,
    report,
    simulate,
    train,
)
from streamtrain.cli.files import fill_in
from streamtrain.cli.options import leaving_logs
from streamtrain.errors import InputError, help_for

_COMMANDS = {
    "train": train,
    "cross-validate": cross_validate,
    "predict": predict,
    "evaluate": evaluate,
    "report": report,
    "inspect": inspect,
    "convert": convert,
    "convert-model": convert_model,
    "config": config,
    "recipes": recipes,
    "faq": faq,
    "simulate": simulate,
    "demo": demo,
}


def _from_file(_: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    if commands:
        fill_in(tuple(_COMMANDS), commands[-1], arguments)


app = App(
    name="streamtrain",
    help="Train CellTypist cell-type classifiers from single-cell atlases on disk. With --debug an "
    "error also tells where in streamtrain it was raised.",
    version=lambda: version("streamtrain"),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-join
    config=_from_file,
)
for _name, _module in _COMMANDS.items():
    app.command(leaving_logs(_module.command), name=_name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2.

    With --debug among the arguments the line comes after where it was raised.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in given, "--log-json" in given
    logs.expect(log_json=as_json)
    plain: dict[str, Any] = {"print_error": False, "exit_on_error": False} if as_json else {}
    # As an exception, so that what is half written is removed on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup
            signal.signal(number, _terminate)
    try:
        app([argument for argument in given if argument != "--debug"], **plain)
        sys.stdout.flush()
    except BrokenPipeError:  # as of | head, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (CycloptsError, InputError, OSError) as error:
        if debug:
            traceback.print_exc()
        logs.failed(str(error), help_for(error))
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)  # of a StoppedError
        logs.failed(str(error) or "interrupted")
        sys.exit(128 + number)


def _terminate(number: int, _: object) -> None:
    logs.failed("terminated")
    sys.exit(128 + number)
