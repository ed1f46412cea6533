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
    normalize: bool = False,
    overwrite: Overwrite = False,
    _file: FromFileOption = FromFile(),
) -> None:
    """Write MODEL anew, for CellTypist, for ONNX or for streamtrain, by the ending of OUT.

    A .pkl of any scikit-learn becomes one that CellTypist loads today. Nothing in it is run.

    Example: streamtrain convert-model old.pkl new.pkl

    Parameters
    ----------
    model
        A .pkl file of CellTypist, or a saved model (.zarr).
    out
        A .pkl file for CellTypist, an .onnx graph, or a .zarr folder.
    normalize
        Of .onnx: take raw counts, and the total of each cell, and normalise inside.
    """
    from streamtrain import atomic
    from streamtrain import model as models

    if out.suffix not in (".pkl", ".onnx", ".zarr"):
        raise InputError(f"the output must end in .pkl, .onnx or .zarr; got {str(out)!r}")
    if normalize and out.suffix != ".onnx":
        raise InputError(f"--normalize is for an .onnx graph; got {str(out)!r}: leave it out")
    if out.suffix == ".zarr":
        models.check_output(out, overwrite)
        models.Model.load(model).save(out, overwrite=overwrite)
    else:
        atomic.check_output(out, overwrite, folder=False)
        found = models.Model.load(model)
        if out.suffix == ".pkl":
            found.to_celltypist(out, overwrite=overwrite)
        else:
            found.to_onnx(out, normalize=normalize, overwrite=overwrite)
    print(f"saved as {out}")
