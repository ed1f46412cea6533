"""streamtrain demo: a folder in, an atlas, a model, predictions and a report in it out."""

from __future__ import annotations

from pathlib import Path

from streamtrain.cli.options import Overwrite, Running, RunningOptions


def command(
    folder: Path = Path("streamtrain-demo"),
    *,
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
) -> None:
    """Simulate a small atlas, train on some of its donors, predict the others, show how well.

    Takes about a minute and no network. The folder then holds the atlas, the model (also for
    CellTypist), the predictions and a report to open in a browser.

    Parameters
    ----------
    folder
        Where to write.
    """
    running.begin()
    from streamtrain.demo import demo as run

    for line in run(folder, overwrite=overwrite, progress=not running.quiet):
        if not running.quiet:
            print(line, flush=True)
