"""streamtrain config: a model in, the file of the command that trains it anew out."""

from __future__ import annotations


def command(model: str, /) -> None:
    """Print the file of the command that trains MODEL anew.

    Example: streamtrain config model.zarr > run.toml

    streamtrain train --config run.toml --out again.zarr

    gives the same model, from the same cells. The file has all settings that differ from the
    defaults, those of a recipe as well, and the inputs as they were given; what was given as
    values in memory is named, and asked for. Credentials are not kept.

    Parameters
    ----------
    model
        A saved model (.zarr).
    """
    from streamtrain.model import Model
    from streamtrain.rerun import to_toml

    print(to_toml(Model.load(model), model), end="")
