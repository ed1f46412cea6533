"""convert(): cells from anywhere in; a sharded zarr AnnData, shuffled if asked, out; streamed."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from streamtrain.atomic import check_atlas_output
from streamtrain.budget import parse_bytes, release_freed
from streamtrain.cells import select_rows
from streamtrain.conversion import Conversion, room_for
from streamtrain.decode.address import Address, located
from streamtrain.errors import InputError, near, some
from streamtrain.named import NamedCells
from streamtrain.partial import Partial, State
from streamtrain.shards import CHUNK, SHARD
from streamtrain.sources import open_source
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource, report_files
from streamtrain.sources.forms import EMPTY
from streamtrain.sources.genes import Genes
from streamtrain.sources.members import find_members
from streamtrain.threads import Threads
from streamtrain.writing import COMPRESSION

logger = logging.getLogger(__name__)


def convert(
    X: Any,
    out: str | os.PathLike[str],
    *,
    shuffle: bool = False,
    random_state: int = 0,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Genes | None = None,
    join: Genes = "outer",
    transpose_input: bool = False,
    where: str | None = None,
    compression: Literal["blosc", "zstd", "none"] = "blosc",
    index_dtype: Literal["int32", "uint16"] = "int32",
    chunk_size: int = CHUNK,
    shard_size: int = SHARD,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    client: Any = None,
) -> Path:
    """Write cells as a zarr AnnData that reads fast, in storage order or shuffled.

    The values stay as they are, and so do all columns of obs and var, but that text which repeats
    becomes categories, bytes become text, and True and False in the matrix 1 and 0 (uint8). Of
    several files the columns of obs are joined, and of var those in which files do not differ.
    What else an AnnData holds (other layers, obsm, uns) is left out and logged. With `shuffle` the
    cells come in one of all orders, each as likely as any other: cell ``order[k]`` of those
    selected becomes the k-th, for
    ``order = streamtrain.sampling.permutation(n, random_state)``. Reading the result in order then
    is reading at random.

    All is read back and compared before the output takes its place: each column of obs and var
    once it is written, and at the end every cell with its name, by a checksum of 64 bits, and the
    files of these columns. A run that was interrupted or killed goes on when it is called again
    with the same arguments, and gives the same bytes; until then `.NAME.partial` stands beside the
    output. It loses the last minute at most. Cells in memory cannot be compared with what was
    begun, and are begun anew.

    Parameters
    ----------
    X, genes, layer, gene_key, transpose_input, where
        Cells x genes and which of them, as in `train`; names by `gene_key` become var's index.
    join
        Genes of several files, as in `open_source`; but "outer" unless asked otherwise, as counts
        can be normalised only over all genes of their cell.
    out
        Folder for the AnnData, ending in .zarr.
    shuffle
        Whether to shuffle the cells. This takes scratch of the size of the matrix, uncompressed.
    random_state
        Seed of the shuffle.
    compression
        Of the matrix: "blosc" (lz4 with bitshuffle), "zstd" or "none". zstd takes half the space
        of blosc for normalised values and as much for counts, and decodes at half the speed.
    index_dtype
        Type of the gene positions. "uint16", for up to 65,536 genes, decodes a third faster;
        anndata, scanpy and annbatch read it as well.
    chunk_size, shard_size
        Entries of a chunk, which is decoded whole, and of a file; the second a multiple of the
        first. The defaults are 131,072 (about 50 cells) and 16,777,216.
    memory
        Bytes to stay within, as in `train`; 8 bytes a cell of it are for the permutation.
    scratch
        Folder on a local disk for shuffling. The default is beside the output.
    n_jobs
        Threads; None and -1 take every CPU. The output is the same for any number.
    overwrite
        Replace `out` if it exists.
    progress
        Show progress on standard error if it takes more than two seconds.
    storage_options
        Credentials and settings of a remote store, as in `open_source`.
    client
        A dask.distributed Client, whose workers do the work and give the same bytes. All of them
        need the source, which must be AnnData on disk or on a server, and the folder of `out`, and
        `scratch` if it is given, under the same path. `memory` and `n_jobs` are then of each
        worker. One that dies does not matter, but where this process does, the next call begins
        anew.

    Returns
    -------
    Path
        The AnnData.

    Raises
    ------
    InputError
        If the cells cannot be read or are changed meanwhile, `out` exists or cannot be written, a
        setting is out of range, or the disk or the budget is too small.
    FileNotFoundError
        If X does not exist.
    OSError
        If what was written reads back as something else, or cannot be read.
    """
    _check(shuffle, random_state, compression, index_dtype, chunk_size, shard_size)
    if client is not None:
        from streamtrain.cluster.workers import check

        check(client)
    path = Path(out)
    if path.suffix != ".zarr":
        raise InputError(f"the output must end in .zarr and is {str(path)!r}: rename it")
    target = check_atlas_output(path, overwrite, folder=True)
    if scratch is not None:  # absolute, so that another run finds it from another folder
        scratch = str(Path(scratch).expanduser().resolve())
    X = located(X, storage_options)
    files = _files(X)
    _keep_inputs(target, files)
    budget = parse_bytes(memory)
    with (
        Threads(n_jobs) as threads,
        closing(
            open_source(
                X, layer=layer, gene_key=gene_key, genes=genes, transpose=transpose_input,
                join=join, memory=budget // 4, scratch=scratch, progress=progress, threads=threads,
            )
        ) as source,
        ThreadPoolExecutor(threads.n, "streamtrain-encode") as pool,
    ):  # fmt: skip
        if client is not None:
            from streamtrain.cluster.workers import check_source

            check_source(source)
        rows = select_rows(source, where)
        cells = NamedCells(source, rows, threads, progress)
        if cells.n_obs == 0:
            raise InputError(f"{source.name} has no cells: name another file")
        if index_dtype == "uint16" and source.n_vars > 2**16:
            raise InputError(
                f"index_dtype='uint16' is for at most 65,536 genes, and {source.name} has "
                f"{source.n_vars:,}: leave it out (--index-dtype)"
            )
        settings: State = {
            "layer": layer, "gene_key": gene_key, "where": where, "shuffle": bool(shuffle),
            "transpose_input": bool(transpose_input), "scratch": scratch,
            "random_state": int(random_state) if shuffle else None, "compression": compression,
            "index_dtype": index_dtype, "chunk_size": int(chunk_size),
            "shard_size": int(shard_size),
        }  # fmt: skip
        identity = None if files is None else _identity(source, files)
        known = None if identity is None or client is not None else settings | identity
        _report(source)
        with Partial(target, known) as partial:
            run = Conversion(cells, partial, settings, room_for(budget, cells.n_obs, shuffle), pool)
            run.lay_out()
            if client is not None:
                from streamtrain.cluster.converting import distribute

                distribute(run, client, memory, n_jobs)
            else:
                if shuffle:
                    run.scatter()
                    release_freed()
                run.write()
            if files is not None and _identity(source, files) != identity:
                partial.discard()
                raise InputError(
                    f"{source.name} was changed while it was read: run again once it is complete"
                )
            partial.finish(overwrite)
    return path


def _report(source: Source) -> None:
    """Log what each of several files holds, and warn where their values are of several kinds."""
    report_files(source, None, None)
    if not isinstance(source, CollectionSource):
        return
    forms: dict[str, list[str]] = {}
    for report in source.report():
        if report.form != EMPTY:
            forms.setdefault(report.form, []).append(report.file)
    if len(forms) > 1:
        words = "; ".join(f"{form} in {some(files)}" for form, files in forms.items())
        logger.warning(
            "%s: files hold values of different kinds (%s), and each keeps its own: name a matrix "
            "that is the same in all (layer, --layer)", source.name, words,
        )  # fmt: skip


def _check(
    shuffle: bool, random_state: int, compression: str, index_dtype: str, chunk: int, shard: int
) -> None:
    if not isinstance(shuffle, bool):
        raise InputError(f"shuffle must be True or False; got {shuffle!r}")
    if random_state and not shuffle:
        logger.warning("random_state is ignored: it is for shuffle=True")
    for name, whole, least in (
        ("random_state", random_state, 0), ("chunk_size", chunk, 1), ("shard_size", shard, 1)
    ):  # fmt: skip
        if not isinstance(whole, Integral) or isinstance(whole, bool) or whole < least:
            raise InputError(f"{name} must be a whole number of at least {least}; got {whole!r}")
    if shard % chunk:
        raise InputError(
            f"shard_size must be a multiple of chunk_size; got {shard:,} and {chunk:,} "
            "(--shard-size, --chunk-size)"
        )
    choices = {"compression": COMPRESSION[".zarr"], "index_dtype": ("int32", "uint16")}
    for name, text in (("compression", compression), ("index_dtype", index_dtype)):
        if text not in choices[name]:
            raise InputError(f"{name}={text!r} is not known: {near(str(text), choices[name])}")


def _files(X: Any) -> list[Path | Address] | None:
    """The files and addresses that X names; None for cells in memory."""
    members = find_members(X)
    items = [X] if members is None else members.items
    if not all(isinstance(item, (str, os.PathLike, Address)) for item in items):
        return None
    return [i if isinstance(i, Address) else Path(i).expanduser().resolve() for i in items]


def _keep_inputs(target: Path, files: list[Path | Address] | None) -> None:
    for path in files or ():
        if isinstance(path, Path) and (
            target == path or target in path.parents or path in target.parents
        ):
            raise InputError(
                f"the output {str(target)!r} would take the place of what is read, "
                f"{str(path)!r}: choose another path"
            )


def _identity(source: Source, files: list[Path | Address]) -> State:
    """What tells whether a source is the same as before: its shape, genes, and files' times.

    Of an address the name alone, as servers do not all tell when a file changed.
    """
    digest = hashlib.sha256()
    for path in files:
        if isinstance(path, Address):
            digest.update(f"{path}\n".encode())
            continue
        parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for part in parts:
            found = part.stat()
            digest.update(f"{part}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    names = "\n".join(source.genes).encode()
    return {
        "files": digest.hexdigest(),
        "genes": hashlib.sha256(names).hexdigest(),
        "shape": [source.n_obs, source.n_vars],
        "dtype": str(source.dtype),
    }
