"""annotate(): an AnnData and a model in; labels in its obs and an AnnotationResult out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.adapt import Adapt
from streamtrain.annotation_result import AnnotationResult, check_clusters, check_writable
from streamtrain.calibration import probabilities as probabilities_of
from streamtrain.cells import Labels
from streamtrain.errors import InputError
from streamtrain.expression import Normalize
from streamtrain.given import AnnotateGiven
from streamtrain.model import Model
from streamtrain.predict import VOTED, Mode, predict
from streamtrain.querying import model_of
from streamtrain.sources.memory import is_a

if TYPE_CHECKING:
    from anndata import AnnData

_PIECE = 1 << 20  # scores that are made probabilities at a time


@overload
def annotate(
    adata: AnnData,
    model: Model | str | os.PathLike[str],
    *,
    inplace: bool = ...,
    copy: Literal[True],
    **options: Unpack[AnnotateGiven],
) -> AnnData: ...
@overload
def annotate(
    adata: AnnData,
    model: Model | str | os.PathLike[str],
    *,
    inplace: bool = ...,
    copy: Literal[False] = ...,
    **options: Unpack[AnnotateGiven],
) -> AnnotationResult: ...
def annotate(
    adata: AnnData,
    model: Model | str | os.PathLike[str],
    *,
    mode: Mode = "best match",
    p_thres: float = 0.5,
    majority_voting: bool = False,
    over_clustering: Labels | None = None,
    min_prop: float = 0,
    probabilities: bool = False,
    scores: bool = False,
    adapt: Adapt = "none",
    prefix: str = "",
    inplace: bool = True,
    copy: bool = False,
    normalize: Normalize = None,
    check_expression: bool = True,
    layer: str | None = None,
    gene_key: str | None = None,
    memory: int | str | None = None,
    scratch: str | None = None,
    n_jobs: int | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    gpu_memory: int | str | None = None,
    progress: bool = True,
) -> AnnotationResult | AnnData:
    """Annotate an AnnData with a model: labels in its obs, by CellTypist's rules.

    X is read as `predict` reads it, in blocks, and neither copied nor made dense. For files, and
    for what is no AnnData, there is `predict`.

    Parameters
    ----------
    adata
        In memory or backed. Columns of obs, and entries of obsm and uns, that have the names of the
        results are replaced, as by scanpy; but never the column that `over_clustering` names. Of a
        backed one they are in memory alone, until you write it. A view becomes an AnnData of its
        own, as whenever anndata writes to one.
    model, mode, p_thres, majority_voting, over_clustering, min_prop, adapt
        As in `predict`.
    probabilities, scores
        Keep the probability, or the decision score, of each type in each cell, which takes 8 bytes:
        in `probability_matrix` and `decision_matrix` of the result, and in obsm as an array, whose
        columns are the types of uns["streamtrain"]["cell_types"]: a table's columns could not be
        stored where the name of a type has a "/".
    prefix
        Of the names in obs, obsm and uns.
    inplace
        Whether to put the results into `adata`; False leaves it alone, as celltypist.annotate does,
        until `to_adata` of the result is called.
    copy
        Leave `adata` alone, and give a copy of it that has the results.
    normalize, check_expression, layer, gene_key, memory, scratch, n_jobs, device, gpu_memory
        As in `predict`.
    progress
        As in `predict`.

    Returns
    -------
    AnnotationResult or AnnData
        The result; with `copy` an AnnData. Into `adata`, or the copy, go obs["predicted_labels"],
        categories being the types that occur in the model's order; with `majority_voting`
        obs["over_clustering"] and obs["majority_voting"]; obs["conf_score"], the highest
        probability; where asked for, obsm["probabilities"] and obsm["scores"], shape (n_obs,
        n_types), float64; and uns["streamtrain"], what the model was and how it was applied.

    Raises
    ------
    InputError
        If `adata` is no AnnData, or one that cannot be changed or copied, or as `predict`.
    FileNotFoundError
        If the model does not exist.
    """
    _check(adata, inplace, copy, prefix, probabilities=probabilities, scores=scores)
    clusters = isinstance(over_clustering, str) and over_clustering in adata.obs
    named = str(over_clustering) if clusters else None
    if inplace:
        check_clusters(named, (name for name in VOTED if name != "over_clustering"), prefix)
    model = model_of(model)
    table = predict(
        model, adata, mode=mode, p_thres=p_thres, majority_voting=majority_voting,
        over_clustering=over_clustering, min_prop=min_prop, scores=scores,
        probabilities=probabilities and not scores, adapt=adapt, normalize=normalize,
        check_expression=check_expression, layer=layer, gene_key=gene_key, memory=memory,
        scratch=scratch, n_jobs=n_jobs, device=device, gpu_memory=gpu_memory, progress=progress,
    )  # fmt: skip
    target = adata.copy() if copy else adata
    result = _result(target, table, model, named, probabilities=probabilities, scores=scores)
    if not inplace:
        return result
    result.to_adata(prefix=prefix)
    if probabilities:
        target.obsm[f"{prefix}probabilities"] = result.probability_matrix.to_numpy()
    if scores:
        target.obsm[f"{prefix}scores"] = result.decision_matrix.to_numpy()
    target.uns[f"{prefix}streamtrain"] = _plain(
        {
            "version": version("streamtrain"),
            "cell_types": model.cell_types.astype(object),
            "model": {**model.description, "calibrated": model.calibration is not None},
            "params": {
                "mode": mode, "p_thres": p_thres if mode == "prob match" else None,
                "majority_voting": majority_voting, "over_clustering": named,
                "min_prop": min_prop if majority_voting else None, "normalize": normalize,
                "layer": layer, "gene_key": gene_key, "adapt": adapt,
            },
            "adapt": next(iter(table.attrs.get("adapt", {}).values()), None),
        }
    )  # fmt: skip
    return target if copy else result


def _check(adata: Any, inplace: bool, copy: bool, prefix: str, **switches: bool) -> None:
    """Refuse, before cells are read, what cannot take the results."""
    if not is_a(adata, "anndata", "AnnData"):
        what = repr(str(adata)) if isinstance(adata, (str, os.PathLike)) else type(adata).__name__
        raise InputError(
            f"annotate() takes an AnnData; got {what}: for files, matrices and tables call "
            "predict(model, X), which writes with out=FILE or in_place=True"
        )
    for name, switch in {"inplace": inplace, "copy": copy, **switches}.items():
        if switch not in (True, False):
            raise InputError(f"{name} must be True or False; got {switch!r}")
    if not isinstance(prefix, str):
        raise InputError(f"prefix must be a text; got {prefix!r}")
    if not inplace and (copy or prefix):
        given = "copy=True" if copy else f"prefix={prefix!r}"
        raise InputError(
            f"inplace=False puts nothing into an AnnData, and {given} says how: leave one out, or "
            "call to_adata() of the result"
        )
    if copy and adata.isbacked:
        raise InputError(
            f"copy=True would load all of {str(adata.filename)!r}, which backs adata: leave it "
            "out, or write a copy of the file by predict(model, PATH, out=COPY)"
        )
    if inplace and not copy:
        check_writable(adata)


def _result(
    adata: AnnData,
    table: pd.DataFrame,
    model: Model,
    named: str | None,
    *,
    probabilities: bool,
    scores: bool,
) -> AnnotationResult:
    """Part the table that predict() gives into what the result holds, without copying matrices."""
    n = table.columns.get_loc("conf_score")
    assert isinstance(n, int)  # noqa: S101 - one column has the name: predict() sees to it
    table.index = adata.obs_names
    labels = table.iloc[:, :n].copy()
    for name in labels.columns:
        labels[name] = labels[name].cat.remove_unused_categories()
    labels.attrs = {}
    matrix = table.iloc[:, n + 1 :]
    matrix.attrs = {}
    probability = matrix if probabilities else None
    if probabilities and scores:
        values = _probabilities(matrix.to_numpy(), model)
        probability = pd.DataFrame(values, index=matrix.index, columns=matrix.columns)
    return AnnotationResult(
        adata, labels, table["conf_score"].to_numpy(), matrix if scores else None, probability,
        named,
    )  # fmt: skip


def _probabilities(scores: NDArray[np.float64], model: Model) -> NDArray[np.float64]:
    temperature = None if model.calibration is None else model.calibration.temperature
    out = np.empty_like(scores)
    step = max(1, _PIECE // scores.shape[1])
    for start in range(0, len(scores), step):
        out[start : start + step] = probabilities_of(scores[start : start + step], temperature)
    return out


def _plain(note: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has no value: anndata before 0.12 reads no None."""
    return {
        name: _plain(value) if isinstance(value, Mapping) else value
        for name, value in note.items()
        if value is not None
    }
