"""Cells and a model enter; a query of them leaves, opened and ready to be gone over."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from streamtrain.adapt import Adapt, adapt_parts, kept_bytes
from streamtrain.annotating import Detail, Passes, Query, Rule, blocks_within
from streamtrain.annotations import Calls
from streamtrain.decode.address import located
from streamtrain.errors import InputError
from streamtrain.expression import MAX_LOG1P, Normalize
from streamtrain.model import Model
from streamtrain.scoring import device_for, parts_of
from streamtrain.sources import open_expression, open_source
from streamtrain.sources.base import Source
from streamtrain.sources.collection import report_files
from streamtrain.sources.members import Members, find_members
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device

logger = logging.getLogger(__name__)


def check_rule(mode: Any, p_thres: float, adapt: Any, normalize: Any, **switches: Any) -> None:
    """Refuse how cells cannot be annotated or read, before anything is.

    Raises
    ------
    InputError
        With the rule and the value.
    """
    if mode not in ("best match", "prob match"):
        raise InputError(f"mode must be 'best match' or 'prob match'; got {mode!r}")
    if not isinstance(p_thres, Real) or not 0 <= p_thres <= 1:
        raise InputError(f"p_thres must be a probability from 0 to 1; got {p_thres!r}")
    if p_thres != 0.5 and mode == "best match":
        logger.warning("p_thres is ignored: it is for mode='prob match'")
    if adapt not in get_args(Adapt):
        raise InputError(f"adapt must be 'none', 'genes' or 'auto'; got {adapt!r}")
    if normalize not in ("log1p", None):
        raise InputError(f"normalize must be 'log1p' or None; got {normalize!r}")
    for name, switch in switches.items():
        if switch not in (True, False):
            raise InputError(f"{name} must be True or False; got {switch!r}")


def device_of(device: str, gpu_memory: int | str | None, client: Any) -> Device | None:
    """The GPU, where it is asked for; a client is checked to be one that can do the work."""
    if client is not None:
        from streamtrain.cluster.workers import check

        check(client, on_gpu=device == "gpu")
    return device_for(device, gpu_memory)


def model_of(model: Any) -> Model:
    """A Model, or that of a path."""
    if isinstance(model, Model):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model must be a Model or the path of one; got {model!r}")
    return Model.load(model)


def files_of(X: Any, storage_options: Mapping[str, Any] | None) -> Any:
    """What X means: several files, or one source by itself."""
    X = located(X, storage_options)
    members = find_members(X)
    if members is None:
        return X
    return members.items[0] if len(members.items) == 1 else members


def keep_inputs(out: str | os.PathLike[str], inputs: dict[str, Any]) -> None:
    """Refuse an output that would take the place of something that is read."""
    target = Path(out).expanduser().resolve()
    files = inputs["X"].items if isinstance(inputs["X"], Members) else []
    inputs = inputs | {f"X[{i}]": file for i, file in enumerate(files)}
    for what, path in inputs.items():
        if isinstance(path, (str, os.PathLike)) and Path(path).expanduser().resolve() == target:
            raise InputError(
                f"out={str(out)!r} is what {what} names, and would replace it: choose another path"
            )


@contextmanager
def opened(
    X: Any,
    genes: Any,
    *,
    normalize: Normalize,
    check_expression: bool,
    layer: str | None,
    gene_key: str | None,
    transpose_input: bool,
    budget: int,
    scratch: str | None,
    n_jobs: int | None,
    device: Device | None,
    client: Any,
    progress: bool,
) -> Iterator[tuple[Source, Threads]]:
    """Open cells to annotate, each file as by itself, and threads to read and score them by."""
    # Raw counts are asked for by name; else X must hold expression, or its raw, as in CellTypist.
    above = MAX_LOG1P if check_expression else None
    opener = open_source if normalize else partial(open_expression, above=above)
    with (
        Threads(n_jobs) as threads,
        nullcontext() if device is None else device.within(threads),
        closing(
            opener(
                X, layer=layer, gene_key=gene_key, genes=genes, transpose=transpose_input,
                join=None, memory=budget // 4, scratch=scratch, progress=progress, threads=threads,
            )
        ) as source,
    ):  # fmt: skip
        if client is not None:
            from streamtrain.cluster.workers import check_source

            check_source(source)
        report_files(source, normalize, "range" if check_expression else None)
        yield source, threads


def query_of(
    model: Model,
    source: Source,
    rows: NDArray[np.int64] | None,
    *,
    p_thres: float | None,
    detail: Detail,
    adapt: Adapt,
    normalize: Normalize,
    check_expression: bool,
    budget: int,
    threads: Threads,
    device: Device | None,
    progress: bool,
) -> tuple[Query, int]:
    """Say what is asked of the cells `rows`, within a budget, and the bytes held beside it."""
    parts = parts_of(model, source, rows)
    beside = kept_bytes(adapt, model, len(parts))
    temperature = None if model.calibration is None else model.calibration.temperature
    nbytes, most = blocks_within(budget, model, source.n_vars, detail is not None, beside)
    query = Query(
        source, rows, model, Rule(p_thres, detail, temperature), parts, normalize=normalize,
        check_expression=check_expression, nbytes=nbytes, most=most, threads=threads,
        progress=progress, device=device,
    )  # fmt: skip
    return query, beside


def adapted(query: Query, passes: Passes, adapt: Adapt) -> tuple[Iterator[Calls], dict[str, Any]]:
    """Annotate the cells, adapted as asked for, and what `adapt` did."""
    if adapt == "none":
        return passes.calls(None), {}
    scalings, decisions = adapt_parts(
        adapt, query.model, query.parts, query.source.n_vars, passes.moments(), query.sampled,
        query.threads,
    )  # fmt: skip
    return passes.calls(scalings), decisions


def passes_of(
    query: Query, client: Any, memory: int | str | None, n_jobs: int | None, beside: int
) -> AbstractContextManager[Passes]:
    """Have a client's workers go over the cells, or this process."""
    if client is None:
        return nullcontext(query)
    from streamtrain.cluster.predicting import ClusterPasses

    return ClusterPasses(query, client, memory, n_jobs, beside)
