"""streamtrain convert: atlases in, one zarr AnnData that reads fast out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from streamtrain.cli.options import (
    Cluster,
    ClusterOptions,
    GenesFile,
    Matrix,
    MatrixOptions,
    Overwrite,
    ResourceOptions,
    Resources,
    Running,
    RunningOptions,
    StorageOptions,
    Whole,
    WholeOrNone,
    one,
)


def command(
    sources: list[str],
    /,
    *,
    out: Path,
    shuffle: bool = False,
    random_state: Whole = 0,
    genes: GenesFile = None,
    join: str = "outer",
    compression: Literal["blosc", "zstd", "none"] = "blosc",
    index_dtype: Literal["int32", "uint16"] = "int32",
    chunk_size: WholeOrNone = None,
    shard_size: WholeOrNone = None,
    matrix: MatrixOptions = Matrix(),
    resources: ResourceOptions = Resources(),
    overwrite: Overwrite = False,
    running: RunningOptions = Running(),
    cluster: ClusterOptions = Cluster(),
    storage_options: StorageOptions = None,
) -> None:
    """Write the cells of SOURCES as one zarr AnnData that reads fast, shuffled if asked.

    Example: streamtrain convert atlas.h5ad --out atlas.zarr --shuffle

    Values and the columns of obs and var stay as they are (of several files, the columns of var in
    which they do not differ); other layers, obsm and uns are left out. anndata, scanpy and annbatch
    open the output. With --shuffle the cells come in random order, drawn from all orders alike, so
    that reading them in order is reading at random; it takes disk space of the size of the matrix,
    uncompressed, beside the output or in --scratch. Cells, their names, obs and var are read back
    and compared before the output appears. Stopped half-way, even killed, the same
    command goes on where it was; what is done so far stands in .NAME.partial beside the output.

    Parameters
    ----------
    sources
        AnnData on disk, an .h5ad file or a zarr folder; or a text table (.csv, .txt, .tsv, .tab), a
        Matrix Market file (.mtx), gzipped or not, or a 10x folder. Several AnnData are joined; they
        may lie on a server: s3://, gs://, az://, https://.
    out
        Folder for the AnnData, ending in .zarr.
    shuffle
        Shuffle the cells.
    random_state
        Seed of the shuffle. Same seed, same order.
    join
        Genes of several files: outer (the default, as counts can be normalised only over all genes
        of their cell), inner, or a text file with one gene a line.
    compression
        blosc (lz4), zstd or none. zstd takes half the space for normalised values, as much for
        counts, and reads at half the speed.
    index_dtype
        Type of the gene positions. uint16 is for up to 65,536 genes and decodes a third faster.
    chunk_size
        Entries of a chunk, which is decoded whole. The default is 131,072, about 50 cells.
    shard_size
        Entries of a file, a multiple of chunk-size. The default is 16,777,216.
    """
    running.begin()
    from streamtrain.convert import convert as run

    sizes: dict[str, Any] = {"chunk_size": chunk_size, "shard_size": shard_size}
    with cluster.client(vars(resources)) as client:
        run(
            one(sources), out, join=join, storage_options=storage_options, shuffle=shuffle,
            random_state=random_state, genes=genes, compression=compression,
            index_dtype=index_dtype, **vars(matrix), **vars(resources), overwrite=overwrite,
            progress=not running.quiet, client=client,
            **{name: size for name, size in sizes.items() if size is not None},
        )  # fmt: skip
    if not running.quiet:
        print(f"saved as {out}")
