"""streamtrain cross-validate: atlases and settings in, a ranking and models out."""

from __future__ import annotations

from pathlib import Path

from streamtrain.cli.options import (
    Cluster,
    ClusterOptions,
    GenesFile,
    Overwrite,
    Running,
    RunningOptions,
    StorageOptions,
    one,
)
from streamtrain.cli.settings import Given, SettingsGiven
from streamtrain.errors import InputError, some


def command(
    source: list[str],
    /,
    *,
    labels: list[str],
    out: Path,
    refit: bool = True,
    genes: GenesFile = None,
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    storage_options: StorageOptions = None,
    settings: SettingsGiven = Given(),
) -> None:
    """Rank settings by cross-validation on the cells of SOURCE, and train by the chosen on all.

    Examples: streamtrain cross-validate atlas.h5ad --labels cell_type --validation-groups donor_id
    --alpha 1e-4 --alpha 1e-2 --step 1 --step 3 --out ranking.csv

    streamtrain cross-validate atlas.h5ad --labels cell_type --labels compartment --recipe atlas
    --out ranking.csv

    All settings, folds and columns of labels are trained from one reading. The ranking is by the
    mean macro-F1 on held-out cells.

    Parameters
    ----------
    source
        As of streamtrain train.
    labels
        Columns of obs with cell types, each trained on by itself.
    out
        The ranking, .csv. The model of each column of labels stands beside it, under its name
        and that of the column: ranking.cell_type.zarr.
    refit
        Train the chosen setting of each column on all cells.
    """
    running.begin()
    from streamtrain import atomic
    from streamtrain import model as models
    from streamtrain.cross_validate import cross_validate as run
    from streamtrain.querying import keep_inputs

    if out.suffix != ".csv":
        raise InputError(f"--out must end in .csv; got {str(out)!r}")
    atomic.check_output(out, overwrite, folder=False)
    keep_inputs(
        out,
        {"X": source[0], "genes": genes, "gene_list": settings.given.get("gene_list")}
        | {f"labels[{i}]": name for i, name in enumerate(labels)},
    )
    paths = {name: out.with_name(f"{out.stem}.{Path(name).name}.zarr") for name in labels}
    if len(set(paths.values())) < len(labels):
        raise InputError(f"--labels must differ, in the names of files too; got {some(labels, 9)}")
    for path in paths.values() if refit else ():
        models.check_output(path, overwrite)
    with cluster.client(settings.given) as client:
        found = run(
            one(source), labels, genes, refit=refit, progress=not running.quiet,
            storage_options=storage_options, client=client, **settings.given,
        )  # fmt: skip
    with atomic.replacing(out, overwrite, folder=False) as partial:
        found.table.to_csv(partial, index=False)
    for name, model in found.models.items():
        model.save(paths[name], overwrite=overwrite)
    if not running.quiet:
        print(found.table.to_string(index=False, float_format="{:.4g}".format))
        print(f"saved as {', '.join(map(str, (out, *paths.values()) if refit else (out,)))}")
