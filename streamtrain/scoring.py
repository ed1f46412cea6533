"""A model and a source enter; the scores of its cells under the model leave, block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.errors import InputError, some
from streamtrain.kernels import predict as kernel
from streamtrain.model import Model
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler, places
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)


def shared_genes(
    model: Model, genes: NDArray[np.object_], name: str, held: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Find the model's genes in a source: position of each, shape (n_features,), or -1.

    Parameters
    ----------
    genes
        Gene names of the source, shape (n_vars,).
    name
        The source, for messages.
    held
        Which of `genes` the source has, shape (n_vars,); None for all.

    Raises
    ------
    InputError
        If there is none.
    """
    at: NDArray[np.int64] = pd.Index(genes).get_indexer(pd.Index(model.features))
    if held is not None:
        at[~held[at]] = -1
    n = int(np.count_nonzero(at >= 0))
    if n == 0:
        own = genes if held is None else genes[held]
        raise InputError(
            f"{name}: none of its {len(own):,} genes is in the model; it has names such as "
            f"{some(own)}, the model {some(model.features)}: gene names may stand in "
            "another column of var (gene_key, --gene-key)"
        )
    logger.info("%s: %d of the model's %d genes", name, n, len(at))
    if n < len(at) / 2:
        logger.warning(
            "%s: only %d of the model's %d genes are there; predictions may be poor",
            name, n, len(at),
        )  # fmt: skip
    return at


class Scorer:
    """Scores of cells under a model, by CellTypist's rules.

    The genes that model and source share are scaled by the model's mean and standard deviation
    and clipped at 10; a gene of the model that the source lacks contributes nothing, which is its
    mean. All in float64.

    Parameters
    ----------
    model
        The classifier.
    at
        Where each of its genes stands among those of the source; see `shared_genes`.
    n_vars
        Number of genes of the source.
    """

    def __init__(self, model: Model, at: NDArray[np.int64], n_vars: int, threads: Threads) -> None:
        shared = np.flatnonzero(at >= 0)
        data = model.dataset
        self._scale = Scaler(
            data["mean"].to_numpy()[shared],
            data["scale"].to_numpy()[shared],
            places(at[shared], n_vars),
            with_mean=bool(data.attrs["with_mean"]),
            dtype=np.float64,
        )
        coef = data["coef"].to_numpy()[:, shared].astype(np.float64)
        self._weights = np.ascontiguousarray(coef.T)
        self._constant = data["intercept"].to_numpy().astype(np.float64) - coef @ self._scale.shift
        self._threads = threads

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes), of normalised cells."""
        cells = self._scale(rows).rows
        out = np.empty((cells.n_obs, len(self._constant)))
        self._threads.share(
            cells.n_obs,
            lambda lo, hi: kernel.scores(
                cells.data, cells.indices, cells.indptr, self._weights, self._constant, lo, hi, out
            ),
        )
        return out


class FileScorer:
    """Scores of cells of a collection, those of each file as a `Scorer` of it alone gives them.

    A gene that a file lacks is no zero there, as in the joined matrix: it contributes nothing.
    Files come one after the other, so that the scorer of one is kept at a time.
    """

    def __init__(
        self,
        model: Model,
        source: CollectionSource,
        rows: NDArray[np.int64] | None,
        threads: Threads,
    ) -> None:
        self._model, self._source, self._rows, self._threads = model, source, rows, threads
        # Of all files now: one without the model's genes is told of before hours are spent.
        self._at = [
            shared_genes(model, source.genes, name, source.held(i))
            for i, name in enumerate(source.files)
        ]
        self._kept: tuple[int, Scorer] | None = None

    def _of(self, file: int) -> Scorer:
        if self._kept is None or self._kept[0] != file:
            self._kept = None
            n_vars = self._source.n_vars
            self._kept = file, Scorer(self._model, self._at[file], n_vars, self._threads)
        return self._kept[1]

    def __call__(self, block: Rows, position: int) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes), of the cells from `position` on, all of one file."""
        row = position if self._rows is None else int(self._rows[position])
        return self._of(self._source.locate(row)[0])(block)


def scorer_of(
    model: Model, source: Source, rows: NDArray[np.int64] | None, threads: Threads
) -> Callable[[Rows, int], NDArray[np.float64]]:
    """Make what scores the cells `rows` of a source, given a block of them and its position.

    Raises
    ------
    InputError
        If a file shares no gene with the model.
    """
    if isinstance(source, CollectionSource):
        return FileScorer(model, source, rows, threads)
    at = shared_genes(model, source.genes, source.name)
    scorer = Scorer(model, at, source.n_vars, threads)
    return lambda block, _: scorer(block)
