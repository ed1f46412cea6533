"""A model's dataset enters; that of a model with other gene names or fewer types leaves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from streamtrain.errors import InputError, near, some
from streamtrain.model_schema import CERTIFICATE, DIMS, MIRRORED, sklearn_rows, two_rows

Collapse = Literal["average", "random"]
GeneMap = str | os.PathLike[str] | pd.DataFrame | Mapping[str, str]
_HUMAN_MOUSE = "celltypist/data/samples/Ensembl105_Human2Mouse_Genes.csv"


def convert(
    dataset: xr.Dataset,
    map_file: GeneMap | None,
    *,
    sep: str,
    convert_from: int | None,
    convert_to: int | None,
    unique_only: bool,
    collapse: Collapse,
    random_state: int,
) -> xr.Dataset:
    """Do what `Model.convert` documents."""
    if collapse not in ("average", "random"):
        raise InputError(f"collapse must be 'average' or 'random'; got {collapse!r}")
    if not _is_whole(random_state, 2**32 - 1):
        raise InputError(
            f"random_state must be a whole number from 0 to 2**32 - 1; got {random_state!r}"
        )
    genes = pd.Index(dataset["gene"].to_numpy())
    pairs = _pairs(map_file, sep)
    start = _column_from(pairs, genes, convert_from, convert_to)
    known = pairs[pairs[start].isin(genes)]
    if known.empty:
        raise InputError(
            f"column {start} of the gene map names no gene of the model: it has names such as "
            f"{some(pairs[start])}, the model {some(genes)}"
        )
    if unique_only:
        known = known.drop_duplicates(0, keep=False).drop_duplicates(1, keep=False)
        if known.empty:
            raise InputError(
                "no gene of the model stands in one pair of the gene map alone: pass "
                "unique_only=False"
            )
    places = genes.get_indexer(pd.Index(known[start]))
    names = known[1 - start].to_numpy(object)
    if unique_only:
        groups = list(places[:, None])
    else:
        names, group = np.unique(names, return_inverse=True)
        order = np.argsort(group, kind="stable")
        groups = np.split(places[order], np.cumsum(np.bincount(group))[:-1])
    if collapse == "random":
        groups = _drawn(groups, random_state)
    variables = {}
    for name, dims in DIMS.items():
        if name in dataset and name not in CERTIFICATE:  # which holds for the old weights alone
            values = dataset[name].to_numpy()
            if name in MIRRORED:  # one row of two, as in CellTypist: a mean's last bit may depend
                values = sklearn_rows(values)
            if "gene" in dims:
                values = _collapsed(values, groups)
            variables[name] = (dims, two_rows(values) if name in MIRRORED else values)
    coords = {"cell_type": dataset["cell_type"], "gene": names}
    return _dated(xr.Dataset(variables, coords, dataset.attrs))


def _pairs(table: GeneMap | None, sep: str) -> pd.DataFrame:
    """Distinct pairs of names, in columns 0 and 1."""
    if table is None:
        raise InputError(
            "map_file is missing: pass a table of two columns of gene names; CellTypist's own for "
            f"human and mouse is {_HUMAN_MOUSE} in its package"
        )
    if isinstance(table, pd.DataFrame):
        pairs = table.copy()
    elif isinstance(table, Mapping | pd.Series):
        pairs = pd.DataFrame(list(table.items()), columns=[0, 1])
    elif isinstance(table, str | os.PathLike):
        try:
            pairs = pd.read_csv(Path(table).expanduser(), sep=sep, header=None, dtype=str)
        except ValueError as error:  # pandas' and of decoding
            raise InputError(f"{str(table)!r} cannot be read as a table: {error}") from error
    else:
        raise InputError(f"map_file must be a path, a DataFrame or a dict; got {table!r:.80}")
    if pairs.shape[1] != 2:
        check = f": check sep, which is {sep!r}" if isinstance(table, str | os.PathLike) else ""
        raise InputError(f"a gene map has two columns, this one {pairs.shape[1]}{check}")
    pairs.columns = pd.Index([0, 1])
    pairs = pairs.dropna().astype(str).drop_duplicates()
    pairs = pairs[(pairs != "").all(axis=1)]  # missing too, as in a file
    if pairs.empty:
        raise InputError("the gene map is empty: it has no pair of names")
    return pairs


def _column_from(
    pairs: pd.DataFrame, genes: pd.Index, convert_from: int | None, convert_to: int | None
) -> int:
    """Column that holds the model's names: as told, else that with more of them."""
    for name, column in (("convert_from", convert_from), ("convert_to", convert_to)):
        if column is not None and not _is_whole(column, 1):
            raise InputError(f"{name} must be 0 or 1, a column of the gene map; got {column!r}")
    if convert_from is None and convert_to is None:
        return 0 if pairs[0].isin(genes).sum() > pairs[1].isin(genes).sum() else 1
    if convert_from == convert_to:
        raise InputError(f"convert_from and convert_to must differ; both are {convert_from}")
    return 1 - convert_to if convert_from is None else convert_from  # type: ignore[operator]


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= most


def _drawn(groups: list[NDArray[np.intp]], random_state: int) -> list[NDArray[np.intp]]:
    """One gene of each group. CellTypist draws four times a group, the first for `coef`."""
    draw = np.random.RandomState(random_state)  # CellTypist's generator
    return [g if len(g) == 1 else g[draw.randint(0, len(g), size=4)[:1]] for g in groups]


def _collapsed(values: NDArray[Any], groups: list[NDArray[np.intp]]) -> NDArray[Any]:
    """Mean over each group along the last axis."""
    out: NDArray[Any] = values[..., [group[0] for group in groups]]
    for place, group in enumerate(groups):
        if len(group) > 1:
            out[..., place] = values[..., group].mean(axis=-1)
    return out


def subset(
    dataset: xr.Dataset,
    keep_cell_types: str | Iterable[str] | None,
    exclude_cell_types: str | Iterable[str] | None,
) -> xr.Dataset:
    """Do what `Model.subset` documents."""
    types = dataset["cell_type"].to_numpy()
    if keep_cell_types is None and exclude_cell_types is None:
        raise InputError("name the cell types to keep (keep_cell_types) or to exclude")
    excluded = _listed(exclude_cell_types, types)
    kept = set(types) - excluded if keep_cell_types is None else _listed(keep_cell_types, types)
    if kept & excluded:
        raise InputError(f"cell type {min(kept & excluded)!r} is both kept and excluded")
    if len(kept) < 2:
        raise InputError(f"at least two cell types must remain, not {len(kept)}")
    picked = dataset.isel(cell_type=np.flatnonzero([t in kept for t in types]))
    if "t" in picked:
        picked = picked.assign_attrs(t=picked["t"].to_numpy().max().item())
    return _dated(_mirrored(picked) if len(kept) == 2 < len(types) else picked)


def _listed(cell_types: str | Iterable[str] | None, known: NDArray[Any]) -> set[str]:
    if cell_types is None:
        return set()
    listed = {cell_types} if isinstance(cell_types, str) else set(cell_types)
    unknown = sorted(listed - set(known), key=str)
    if unknown:
        raise InputError(
            f"no cell type {unknown[0]!r} in the model: {near(str(unknown[0]), known)}"
        )
    return listed


def _mirrored(dataset: xr.Dataset) -> xr.Dataset:
    """Give the two types the rows -w and w, w = (w1 - w0) / 2, so that s1 - s0 stays as it was."""
    found = dataset.drop_vars([name for name in CERTIFICATE if name in dataset])
    for name in MIRRORED:
        if name in found:
            first, second = found[name].to_numpy()
            half = (second - first) / 2
            found[name] = (DIMS[name], np.stack([-half, half]))
    for name in ("t", "n_averaged"):  # one column stands for both
        if name in found:
            found[name] = (DIMS[name], np.full(2, found[name].to_numpy().max()))
    return found


def _dated(dataset: xr.Dataset) -> xr.Dataset:
    description = dataset.attrs["description"] | {"date": str(datetime.now())}
    made = {k: v for k, v in dataset.attrs["provenance"].items() if k != "run"}
    return dataset.assign_attrs(description=description, provenance=made)
