"""Genes and obs columns of several files enter; those of all of them together leave."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, near, some
from streamtrain.sources.genes import Genes, name_list

logger = logging.getLogger(__name__)

Names = NDArray[np.object_]
ELSEWHERE = "gene names may stand in another column of var (gene_key, --gene-key)"
FEW, SHARE = 1000, 0.2  # genes in common, and share of a file's, below which a warning is due


def join_genes(files: list[str], genes: list[Names], join: Genes | None) -> Names:
    """Choose the genes of a collection.

    A name that one file gives to several genes (numbered -1, -2, ... by us or by
    `var_names_make_unique`) does not tell which of them another file means. So unless all files
    have the same genes in the same order, such names are left out, with a warning.

    Parameters
    ----------
    files
        Their names, for messages.
    genes
        Gene names of each.
    join
        "inner" takes the genes that every file has, in the order of the first; "outer" those that
        any has, in the order of first appearance; else names, or the path of a text file with one
        a line, in their order. None takes all names of all files and checks nothing, for what
        treats each file by itself.

    Returns
    -------
    ndarray
        The names, shape (n_vars,), str.

    Raises
    ------
    InputError
        If a file has no gene in common with the others, or a listed gene is in no file, several
        times in one, or listed twice.
    """
    if join is None:
        return np.array(list(dict.fromkeys(n for names in genes for n in names)), dtype=object)
    alike = all(same(genes[0], names) for names in genes[1:])
    unsure: dict[str, str] = {}
    if not alike:
        for file, names in zip(files, genes, strict=True):
            unsure.update(dict.fromkeys(_repeated(names), file) | unsure)
    if not (isinstance(join, str) and join in ("inner", "outer")):
        return _listed(files, genes, join, unsure)
    if alike:
        return genes[0]
    _require_common(files, genes, join)
    every = set(genes[0]).intersection(*genes[1:])
    if join == "inner":
        wanted = [name for name in genes[0] if name in every]
    else:
        wanted = list(dict.fromkeys(name for names in genes for name in names))
    left_out = [name for name in wanted if name in unsure]
    if left_out:
        logger.warning(
            "%d gene names stand for several genes of one file, so that files cannot be matched by "
            "them, and are left out: %s (in %s); %s",
            len(left_out), some(left_out), unsure[left_out[0]], ELSEWHERE,
        )  # fmt: skip
    smallest = min(map(len, genes))
    if join == "inner" and (len(every) < SHARE * smallest or len(every) < min(FEW, smallest)):
        logger.warning(
            "only %d genes are in every file, of which the smallest has %d: join='outer' takes "
            "those of any file; or %s", len(every), smallest, ELSEWHERE,
        )  # fmt: skip
    return np.array([name for name in wanted if name not in unsure], dtype=object)


def require_join(join: Any) -> None:
    """Refuse what is no way to join genes, before anything is opened.

    Raises
    ------
    InputError
        For anything but the two words, a list of names, or the path of a file.
    """
    if isinstance(join, str | os.PathLike):
        known = str(join) in ("inner", "outer") or Path(join).expanduser().is_file()
    else:
        known = join is None or isinstance(join, Iterable)
    if not known:
        raise InputError(
            "join must be 'inner', 'outer', a list of gene names, or the path of a text file with "
            f"one a line; got {join!r}"
        )


def same(a: Names, b: Names) -> bool:
    """Whether two files name the same genes in the same order."""
    return a is b or np.array_equal(a, b)


def _repeated(names: Names) -> set[str]:
    """Names that were made unique by numbers, and those that they repeat."""
    known = set(names)
    found: set[str] = set()
    for name in names:
        base, dash, number = name.rpartition("-")
        if dash and number.isdecimal() and base in known:
            found |= {name, base}
    return found


def _listed(files: list[str], genes: list[Names], join: Genes, unsure: dict[str, str]) -> Names:
    names = pd.Index(name_list(join), dtype=object)
    if len(names) == 0:
        raise InputError("join is an empty list: name the genes, or pass 'inner' or 'outer'")
    if names.has_duplicates:
        raise InputError(
            f"join names a gene twice: {some(names[names.duplicated()].unique())}; name each once"
        )
    known = dict.fromkeys(name for names in genes for name in names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"join names {len(unknown)} genes that no file has ({some(unknown)}): "
            f"{near(unknown[0], known)}"
        )
    for name in names:
        if name in unsure:
            raise InputError(
                f"join names {name!r}, which stands for several genes of {unsure[name]}: "
                + ELSEWHERE
            )
    for file, own in zip(files, genes, strict=True):
        if names.isin(own).sum() == 0:
            raise InputError(
                f"{file} has none of the {len(names)} genes that join names; it has {some(own)}, "
                f"join {some(names)}: {ELSEWHERE}"
            )
    return names.to_numpy()


def _require_common(files: list[str], genes: list[Names], join: Genes) -> None:
    """Refuse files whose names have nothing in common, such as symbols and Ensembl ids."""
    common = set(genes[0])
    for file, names in zip(files[1:], genes[1:], strict=True):
        found = common.intersection(names)
        if not found:
            raise InputError(
                f"{file} has no gene in common with {files[0]}"
                + (" and those between" if file != files[1] and join == "inner" else "")
                + f": names such as {some(names)} there and {some(genes[0])} here; {ELSEWHERE}"
            )
        common = found if join == "inner" else common.union(names)


def join_columns(
    column: str, files: list[str], parts: list[pd.Series[Any] | None], lengths: list[int]
) -> pd.Series[Any]:
    """Put the values of one obs column in all files behind each other.

    Parameters
    ----------
    parts
        The column in each file; None where it has none, which are missing values.
    lengths
        Number of cells of each file.

    Returns
    -------
    Series
        Text as categorical of at most 4 bytes a cell, categories sorted (kept as they are where
        all files have the same); numbers in the narrowest type that holds all.

    Raises
    ------
    InputError
        Where it is text in one file and numbers, or True and False, in another.
    """
    held = [None if part is None or part.isna().all() else part for part in parts]
    first: tuple[str, str] | None = None
    for file, part in zip(files, held, strict=True):
        if part is None:
            continue
        kind = _kind(part)
        first = first or (kind, file)
        if kind != first[0]:
            raise InputError(
                f"obs column {column!r} holds {first[0]} in {first[1]} and {kind} in {file}: make "
                "it one of them in both, or leave one file out"
            )
    categorical = [part is None or isinstance(part.dtype, pd.CategoricalDtype) for part in held]
    if all(categorical):
        return pd.Series(_join_categories(held, lengths), name=column)
    plain = [_plain(part) for part in held if part is not None]
    blank = _blank_dtype(plain[0].dtype)
    filled = iter(plain)
    whole = [
        pd.Series(pd.array([None], dtype=blank).repeat(n)) if part is None else next(filled)
        for part, n in zip(held, lengths, strict=True)
    ]
    joined = pd.concat(whole, ignore_index=True).rename(column)
    if isinstance(joined.dtype, pd.Float32Dtype | pd.Float64Dtype):  # of Int64 and float64
        return joined.astype("float64")
    return joined


def is_text(part: pd.Series[Any]) -> bool:
    """Whether a column holds text."""
    return _kind(part) == "text"


def _kind(part: pd.Series[Any]) -> str:
    dtype: Any = part.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "True and False"
    if pd.api.types.is_numeric_dtype(dtype):
        return "numbers"
    return "text" if pd.api.types.is_string_dtype(dtype) else str(dtype)


def _join_categories(parts: list[pd.Series[Any] | None], lengths: list[int]) -> pd.Categorical:
    held = [part.cat for part in parts if part is not None]
    alike = all(part.categories.equals(held[0].categories) for part in held[1:])
    ordered = alike and all(part.ordered for part in held)
    if not held:
        names: Any = pd.Index([], dtype=object)
    elif alike:
        names = held[0].categories
    else:
        names = pd.Index(sorted(set().union(*(part.categories for part in held))))
    codes = np.full(sum(lengths), -1, np.int32)
    at = 0
    for part, n in zip(parts, lengths, strict=True):
        if part is not None:
            place = np.append(names.get_indexer(part.cat.categories), -1).astype(np.int32)
            codes[at : at + n] = place[part.cat.codes.to_numpy()]  # -1, missing, takes the last
        at += n
    return pd.Categorical.from_codes(codes, categories=names, ordered=ordered)


def _plain(part: pd.Series[Any]) -> pd.Series[Any]:
    """Values of a categorical of numbers, as such."""
    if not isinstance(part.dtype, pd.CategoricalDtype):
        return part
    kind = part.dtype.categories.dtype
    return part.astype(_blank_dtype(kind) if part.isna().any() else kind)


def _blank_dtype(dtype: Any) -> Any:
    """Type of the same kind that has missing values."""
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    return "Int64" if pd.api.types.is_integer_dtype(dtype) else dtype


def distinct_names(names: Iterable[str]) -> list[str]:
    """Last parts of paths where these differ, else the paths."""
    given = list(names)
    short = [name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in given]
    return short if len(set(short)) == len(short) else given
