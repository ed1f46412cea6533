"""Where cells come from: a path or an object in memory enters, a Source leaves."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamtrain.budget import BLOCK
from streamtrain.errors import InputError, absent, require_readable
from streamtrain.scratch import Room
from streamtrain.sources.base import Source
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.sources.genes import Genes
    from streamtrain.sources.members import Members
    from streamtrain.sources.text import Parse

__all__ = ["Source", "is_text", "open_expression", "open_source"]

logger = logging.getLogger(__name__)

TEXT = (".csv", ".txt", ".tsv", ".tab", ".mtx")
SUPPORTED = (
    f".h5ad, zarr (a folder or .zip), {', '.join(TEXT)} (each also with .gz), and a 10x folder "
    "(matrix.mtx, features.tsv or genes.tsv, barcodes.tsv)"
)


def open_source(
    X: Any,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    genes: Any = None,
    transpose: bool = False,
    join: Genes | None = "inner",
    memory: int | None = None,
    scratch: str | Path | None = None,
    progress: bool = True,
    threads: Threads | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Open cells x genes for reading by row, wherever they are.

    Parameters
    ----------
    X
        Path of an .h5ad file or a zarr AnnData (folder or .zip), of a text table (.csv, .txt,
        .tsv, .tab) or a Matrix Market file (.mtx), each gzipped (.gz) or not, or of a 10x folder;
        an AnnData, backed or not; a scipy CSR or CSC matrix or array, a two-dimensional numpy
        array, a DataFrame with one column per gene, or a dask array. Text is parsed here, in
        blocks, onto scratch. Several AnnData as one: a list of paths or objects, a pattern such as
        "atlases/*.h5ad", a folder of them, or a collection that annbatch wrote.
        An .h5ad file or a zarr folder may lie on a server, at an address that begins with s3://,
        gs://, az://, https:// or http://: only what is needed is read.
    layer
        Which matrix of an AnnData: None for X, "raw" for raw/X with its own genes, else a layer's
        name.
    gene_key
        Column of an AnnData's var with the gene names (default: var's index); of a 10x folder
        "gene_ids" or "gene_symbols" (default).
    genes
        Gene names for a matrix, array or file without: a list-like, or the path of a text file
        with one a line. Ignored where X names its genes, refused for an AnnData.
    transpose
        X is genes x cells. Ignored for an AnnData and a 10x folder, which say what they are.
    join
        Genes of several files: "inner" for those that every file has, in the order of the first;
        "outer" for those of any, in order of appearance, zero in the cells of a file that lacks
        them; or names, as a list or the path of a text file with one a line, in their order (of
        one file, too). None is "outer" without its checks, for what treats each file by itself.
    memory
        Bytes that parsing text, and transposing a matrix stored by gene, may hold (default 256 MB).
    scratch
        Folder for the files of that (default: the system's temporary one).
    progress
        Show progress on standard error while text is parsed, or a matrix transposed.
    threads
        They decode what is read; None for one a CPU.
    storage_options
        For an address: settings of obstore's store, such as region, endpoint, access_key_id or
        skip_signature, and of its HTTP client, such as proxy_url. Credentials are else taken from
        the environment (AWS_*, GOOGLE_*, AZURE_*), and public data needs none.

    Returns
    -------
    Source
        Close it when done.

    Raises
    ------
    FileNotFoundError
        Where the path does not exist.
    InputError
        Where X is of another type, is damaged, or lacks what the other arguments name; or a
        server does not give it.
    """
    from streamtrain.decode.address import located

    X = located(X, storage_options)
    X, members = _members(X, join)
    if members is not None:
        _refuse_for_anndata(genes, transpose)
        one = partial(
            open_source, layer=layer, gene_key=gene_key, memory=memory, scratch=scratch,
            progress=progress, threads=threads,
        )  # fmt: skip
        return _collection(members, join, one)
    room = Room(Room.memory if memory is None else memory, scratch, progress)
    return _open_one(X, layer, gene_key, genes, transpose, room, threads)


def _members(X: Any, join: Genes | None) -> tuple[Any, Members | None]:
    """Tell what files X means; one alone is itself, unless genes of it are to be chosen."""
    from streamtrain.decode.address import Address
    from streamtrain.sources.joins import require_join
    from streamtrain.sources.members import find_members
    from streamtrain.sources.memory import is_a

    require_join(join)
    chosen = join is not None and not (isinstance(join, str) and join in ("inner", "outer"))
    members = find_members(X)
    if members is None and chosen:
        if is_text(X) or not (
            isinstance(X, str | os.PathLike | Address) or is_a(X, "anndata", "AnnData")
        ):
            what = X if isinstance(X, str | os.PathLike | Address) else f"a {type(X).__name__}"
            raise InputError(f"join with names of genes is for an AnnData, and X is {what}")
        members = find_members([X])
    elif members is not None and len(members.items) == 1 and not chosen:
        return members.items[0], None
    return X, members


def _collection(members: Members, join: Genes | None, open_one: Callable[[Any], Any]) -> Source:
    from streamtrain.sources.collection import CollectionSource

    for item in members.items:
        if isinstance(item, Path) and item.exists() and _parser(item) is not None:
            raise InputError(
                f"several files are trained on as one where each is an AnnData, and {item} is text:"
                f" convert it (streamtrain convert {item} {item.stem}.zarr), or pass it alone"
            )
    return CollectionSource(members, open_one, join)


def _refuse_for_anndata(genes: Any, transpose: bool) -> None:
    if genes is not None:
        raise InputError(
            "genes= is for a matrix without gene names: name a var column, gene_key= (--gene-key)"
        )
    if transpose:
        logger.warning("an AnnData is cells x genes as it stands: transpose is ignored")


def _open_one(
    X: Any,
    layer: str | None,
    gene_key: str | None,
    genes: Any,
    transpose: bool,
    room: Room,
    threads: Threads | None,
) -> Source:
    """Open one file or object; see `open_source`."""
    from streamtrain.decode.address import Address
    from streamtrain.sources import memory as in_memory
    from streamtrain.sources.mtx import parse_10x
    from streamtrain.sources.store import StoreSource
    from streamtrain.sources.text import TextSource

    path = Path(X).expanduser() if isinstance(X, str | os.PathLike) else None
    parse = None if path is None else _parser(path)
    store: Path | Address | None = path
    if isinstance(X, Address):
        if X.suffix in (*TEXT, ".gz", ".zip"):
            raise InputError(
                f"{X.name} is text or packed, which is not read from a server: download it, and "
                "pass the path"
            )
        store = X
    if parse is None and (store is not None or in_memory.is_a(X, "anndata", "AnnData")):
        _refuse_for_anndata(genes, transpose)
        if store is not None:
            return StoreSource(store, layer, gene_key, room, threads)
        return in_memory.AnnDataSource(X, layer, gene_key, room, threads)
    if parse is parse_10x:
        parse, gene_key = partial(parse_10x, gene_key=gene_key), None
    for option, value in (("layer", layer), ("gene_key", gene_key)):
        if value is not None:
            what = path or f"a {type(X).__name__}"
            raise InputError(f"{option}={value!r} is for an AnnData, and X is {what}")
    if path is not None and parse is not None:
        return TextSource(path, parse, transpose, genes, room)
    return in_memory.array_source(X, genes, room, transpose, threads)


def is_text(X: Any) -> bool:
    """Whether X is text, by its ending or as a 10x folder: parsed whole, without obs columns."""
    from streamtrain.sources.mtx import find_10x

    if not isinstance(X, str | os.PathLike):
        return False
    path = Path(X).expanduser()
    return bool(find_10x(path)) if path.is_dir() else _ending(path) in TEXT


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _parser(path: Path) -> Parse | None:
    """Choose how text is parsed; None for an AnnData."""
    import h5py

    from streamtrain.sources.mtx import parse_10x, parse_mtx
    from streamtrain.sources.text import parse_table

    ending = _ending(path)
    if is_text(path):
        if path.is_dir():
            return parse_10x
        if not path.exists():
            raise absent(path)
        return parse_mtx if ending == ".mtx" else parse_table
    require_readable(path)
    if path.is_file() and ending not in (".h5ad", ".zip") and not h5py.is_hdf5(path):
        from streamtrain.sources.store import converted

        raise InputError(
            f"{path} is of no type that can be read: supported are {SUPPORTED}; "
            f"{converted(path.name)}"
        )
    return None


def open_expression(X: Any, *, above: float | None = None, **options: Any) -> Source:
    """Open an AnnData's raw matrix where X does not hold expression, else X, as CellTypist does.

    Judged by the first 1,000 cells, of several files each by itself. Where `layer` is given, and
    for anything but an AnnData, it is `open_source`.

    Parameters
    ----------
    above
        Refuse values above this too, not only negative ones.
    **options
        As of `open_source`.

    Returns
    -------
    Source
        Close it when done.

    Raises
    ------
    InputError
        Where X does not hold expression and there is no raw; and as `open_source`.
    """
    from streamtrain.decode.address import located
    from streamtrain.sources.memory import AnnDataSource
    from streamtrain.sources.store import StoreSource

    join = options.pop("join", "inner")
    X = located(X, options.pop("storage_options", None))
    X, members = _members(X, join)
    if members is not None:
        _refuse_for_anndata(options.pop("genes", None), options.pop("transpose", False))
        return _collection(members, join, partial(open_expression, above=above, **options))
    source = open_source(X, **options)
    if options.get("layer") is not None or not isinstance(source, StoreSource | AnnDataSource):
        return source
    try:
        found = _no_expression(source, math.inf if above is None else above, options.get("memory"))
    except BaseException:
        source.close()
        raise
    if found is None:
        return source
    source.close()
    try:
        raw = open_source(X, **options | {"layer": "raw"})
    except InputError as error:
        raise InputError(
            f"{found}, and there is no raw/X to read instead: name a layer that holds log1p "
            "expression (layer, --layer), or for raw counts pass normalize='log1p' (--normalize "
            "log1p)"
        ) from error
    logger.warning("%s; its raw/X is read instead", found)
    return raw


def _no_expression(source: Source, above: float, memory: int | None) -> str | None:
    """Word what in the first cells is no log1p expression; None for nothing."""
    from streamtrain.sources.forms import FIRST

    for start, stop in source.blocks(BLOCK if memory is None else min(BLOCK, memory // 4)):
        if start >= FIRST:
            break
        rows = source.read(start, min(stop, FIRST))
        bad = (rows.data < 0) | (rows.data > above)
        if bad.any():
            entry = int(bad.argmax())
            cell = start + int(rows.indptr.searchsorted(entry, side="right")) - 1
            rule = "negative" if rows.data[entry] < 0 else f"above {above:g}"
            return (
                f"X of {source.name} does not hold expression: gene "
                f"{source.genes[rows.indices[entry]]!r} in cell {cell} "
                f"({source.obs_names(cell, cell + 1)[0]!r}) is {rule} ({rows.data[entry]:g})"
            )
    return None
