"""streamtrain inspect: an atlas or a model in, what is in it out."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from streamtrain.cli.options import (
    AsJson,
    FromFile,
    FromFileOption,
    GenesFile,
    StorageOptions,
    Transposed,
    one,
)


def command(
    source: list[str],
    /,
    *,
    labels: str | None = None,
    genes: GenesFile = None,
    transpose_input: Transposed = False,
    as_json: AsJson = False,
    storage_options: StorageOptions = None,
    _file: FromFileOption = FromFile(),
) -> None:
    """Say what is in SOURCE, an atlas or a model: of an atlas also the command to train on it.

    Examples: streamtrain inspect atlas.h5ad

    streamtrain inspect atlas.h5ad --labels cell_type

    streamtrain inspect model.zarr

    Of an atlas, in seconds, whatever its size, as metadata, obs and some hundred cells are read
    (text is parsed whole): its matrices, how they are stored and whether they hold raw counts,
    log1p of 10,000 or else; whether genes have symbols or ids; which columns of obs may name cell
    types, and which donors and batches; the classes, with those that are too rare; what training
    takes of memory, scratch and time; and the command, as it can be run.

    Of a model, which is verified first: its cell types and genes, how and from what it was trained.
    Nothing in a .pkl is run.

    Parameters
    ----------
    source
        What streamtrain train takes: an .h5ad file, a zarr folder, text, a 10x folder, several
        AnnData, or an address. Or a saved model, or one of CellTypist's (.pkl).
    labels
        Column of obs with the cell types, or a text file with one label a line. The default is the
        column that most likely has them.
    as_json
        Print all of it as JSON, of a model with the name of every gene.
    """
    from streamtrain.inspecting import inspect

    logging.getLogger("streamtrain").setLevel(logging.ERROR)  # the page says what is warned of
    found = inspect(
        one(source), labels, genes=genes, transpose_input=transpose_input,
        storage_options=storage_options,
    )  # fmt: skip
    print(json.dumps(asdict(found), indent=1) if as_json else found)
