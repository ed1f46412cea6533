"""streamtrain convert-model: a model in, the same for another program out."""

from __future__ import annotations

from pathlib import Path

from streamtrain.cli.options import FromFile, FromFileOption, Overwrite
from streamtrain.errors import InputError


def command(
    model: str,
    out: Path,
    /,
    *,
    overwrite: Overwrite = False,
    _file: FromFileOption = FromFile(),
) -> None:
    """Write MODEL anew, for CellTypist or for streamtrain, by the ending of OUT.

    A .pkl of any scikit-learn becomes one that CellTypist loads today. Nothing in it is run.

    Example: streamtrain convert-model old.pkl new.pkl

    Parameters
    ----------
    model
        A .pkl file of CellTypist, or a saved model (.zarr).
    out
        A .pkl file for CellTypist, or a .zarr folder.
    """
    from streamtrain import atomic
    from streamtrain import model as models

    if out.suffix not in (".pkl", ".zarr"):
        raise InputError(f"the output must end in .pkl or .zarr; got {str(out)!r}")
    if out.suffix == ".pkl":
        atomic.check_output(out, overwrite, folder=False)
        models.Model.load(model).to_celltypist(out, overwrite=overwrite)
    else:
        models.check_output(out, overwrite)
        models.Model.load(model).save(out, overwrite=overwrite)
    print(f"saved as {out}")
