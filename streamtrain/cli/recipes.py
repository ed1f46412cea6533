"""streamtrain recipes: the name of a recipe in, its text out."""

from __future__ import annotations

from streamtrain import recipes


def command(name: str | None = None, /) -> None:
    """List the recipes of settings, or print the one called NAME.

    Examples: streamtrain recipes

    streamtrain recipes atlas > own.toml

    streamtrain train atlas.h5ad --labels cell_type --recipe own.toml --out model.zarr

    Parameters
    ----------
    name
        Print this recipe: a TOML file, to copy and to change.
    """
    if name is not None:
        print(recipes.text(name), end="")
        return
    for each in recipes.NAMES:
        print(each, *recipes.purpose(each), sep="\n    ")
