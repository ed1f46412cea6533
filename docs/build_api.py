"""The docstrings of the public names enter; pages about them leave.

`python docs/build_api.py docs/api` writes them below docs/api, for a browser.
"""

import inspect
import sys
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pdoc
import pdoc.render

import streamtrain


def flat(docstring: str) -> str:
    """Give the settings that stand below `**settings` as parameters beside the others.

    Parameters
    ----------
    docstring
        Cleaned of its indentation.
    """
    before, found, below = docstring.partition("\n**settings\n")
    if not found:
        return docstring
    about, *lines = below.split("\n")
    within = list(takewhile(lambda line: line.startswith("    "), lines))
    rest = lines[len(within) :]
    raised = [line.removeprefix("    ") for line in within]
    return "\n".join([before, "settings", about, *raised, *rest])


def build(folder: Path) -> None:
    """Write a page of all public names of streamtrain below a folder.

    Parameters
    ----------
    folder
        Made if it is not there; `index.html` leads to the rest.
    """
    # pdoc looks names up without the module's __getattr__, and would take `train` for the module.
    for name in streamtrain.__all__:
        value = vars(streamtrain)[name] = getattr(streamtrain, name)
        if inspect.isfunction(value):
            value.__doc__ = flat(inspect.getdoc(value) or "")
    # Annotations name `Series[int]` and the like, which pandas has in its stubs alone.
    for kind in (pd.Series, pd.Index):
        kind.__class_getitem__ = classmethod(lambda cls, _: cls)  # type: ignore[attr-defined]
    pdoc.render.configure(docformat="numpy", math=True, search=True, show_source=False)
    # Of the modules below, streamtrain.plot alone.
    names = "streamtrain", r"!streamtrain\.", "streamtrain.plot", r"!streamtrain\.plot\."
    pdoc.pdoc(*names, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
