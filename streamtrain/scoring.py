"""A model and a source enter; the scores of its cells under the model leave, block by block."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamtrain.budget import check_gpu_memory
from streamtrain.errors import InputError, some
from streamtrain.kernels import predict as kernel
from streamtrain.model import Model
from streamtrain.rows import Rows
from streamtrain.scaling import Scaler, places
from streamtrain.sources.base import Source
from streamtrain.sources.collection import CollectionSource
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device
    from streamtrain.gpu.scores import DeviceScores

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


def device_for(device: str, gpu_memory: int | str | None) -> Device | None:
    """The GPU, where it is asked for.

    Raises
    ------
    InputError
        If there is no such device, or no GPU that works.
    """
    if device not in ("cpu", "gpu"):
        raise InputError(f"device must be 'cpu' or 'gpu'; got {device!r}")
    check_gpu_memory(gpu_memory, on_gpu=device == "gpu")
    if device == "cpu":
        return None
    from streamtrain.gpu.device import Device

    return Device.gpu(gpu_memory)


@dataclass(frozen=True, slots=True)
class Part:
    """Cells that are predicted as by themselves: all that are selected, or those of one file.

    Attributes
    ----------
    name
        The source or file.
    at
        Where each of the model's genes stands among those of the source, -1 for nowhere, shape
        (n_features,).
    start, stop
        Positions of the cells among the selected.
    """

    name: str
    at: NDArray[np.int64]
    start: int
    stop: int

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.stop - self.start


def parts_of(model: Model, source: Source, rows: NDArray[np.int64] | None) -> list[Part]:
    """Find the model's genes in a source or, as a file may lack some, in each of its files.

    Raises
    ------
    InputError
        If a source or file shares no gene with the model.
    """
    if not isinstance(source, CollectionSource):
        n_obs = source.n_obs if rows is None else len(rows)
        return [Part(source.name, shared_genes(model, source.genes, source.name), 0, n_obs)]
    edges = np.cumsum([0, *(member.n_obs for member in source.members)])
    if rows is not None:
        edges = np.searchsorted(rows, edges)
    # Of all files now: one without the model's genes is told of before hours are spent.
    return [
        Part(
            name,
            shared_genes(model, source.genes, name, source.held(i)),
            int(edges[i]),
            int(edges[i + 1]),
        )
        for i, name in enumerate(source.files)
    ]


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the model's genes are centred and divided by, shapes (n_features,), float64."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, model: Model) -> Scaling:
        """That of the cells which the model was trained on."""
        mean, scale = (model.dataset[name].to_numpy() for name in ("mean", "scale"))
        return cls(mean.astype(np.float64), scale.astype(np.float64))


def linear_scores(
    cells: Rows, weights: NDArray[np.float64], constant: NDArray[np.float64], threads: Threads
) -> NDArray[np.float64]:
    """Scores x' W + constant of scaled cells, shape (n_obs, n_classes); W is genes x classes."""
    out = np.empty((cells.n_obs, len(constant)))
    threads.share(
        cells.n_obs,
        lambda lo, hi: kernel.scores(
            cells.data, cells.indices, cells.indptr, weights, constant, lo, hi, out
        ),
    )
    return out


class Scorer:
    """Scores of cells under a model, by CellTypist's rules.

    The genes that model and source share are scaled and clipped at 10; a gene of the model that
    the source lacks contributes nothing, which is its mean. All in float64.

    Parameters
    ----------
    model
        The classifier.
    at
        Where each of its genes stands among those of the source; see `shared_genes`.
    n_vars
        Number of genes of the source.
    scaling
        In place of the model's own.
    device
        The GPU that scores, also in float64; None for the CPU.
    """

    def __init__(
        self,
        model: Model,
        at: NDArray[np.int64],
        n_vars: int,
        threads: Threads,
        scaling: Scaling | None = None,
        device: Device | None = None,
    ) -> None:
        data = model.dataset
        self._shared = np.flatnonzero(at >= 0)
        self._position = places(at[self._shared], n_vars)
        self._with_mean = bool(data.attrs["with_mean"])
        coef = data["coef"].to_numpy()[:, self._shared].astype(np.float64)
        self._weights = np.ascontiguousarray(coef.T)
        self._intercept = data["intercept"].to_numpy().astype(np.float64)
        self._threads, self._device = threads, device
        self._on_device: DeviceScores | None = None
        self._scale_by(scaling or Scaling.of(model))

    def rescaled(self, scaling: Scaling) -> Scorer:
        """Score by another scaling, sharing the weights: of 400 types and 60,000 genes 192 MB."""
        other = copy(self)
        other._scale_by(scaling)
        return other

    def _scale_by(self, scaling: Scaling) -> None:
        self._scale = Scaler(
            scaling.mean[self._shared],
            scaling.scale[self._shared],
            self._position,
            with_mean=self._with_mean,
            dtype=np.float64,
        )
        if self._device is not None:
            self._on_device = self._scores_on(self._device)
            return
        # Of a cell whose entries are all -m. By BLAS the sum would depend on its threads, which
        # are others on a cluster's workers.
        shift = self._scale.shift
        every = np.arange(len(shift), dtype=np.int32)
        nothing = Rows(-shift, every, np.array([0, len(shift)]), len(shift))
        (self._constant,) = linear_scores(nothing, self._weights, self._intercept, self._threads)

    def _scores_on(self, device: Device) -> DeviceScores:
        from streamtrain.gpu.cells import DeviceScaler
        from streamtrain.gpu.scores import DeviceScores

        scale = DeviceScaler(self._scale, device)
        if self._on_device is not None:
            return self._on_device.rescaled(scale)
        return DeviceScores(scale, self._weights, self._intercept)

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes), of normalised cells."""
        if self._on_device is not None:
            return self._on_device(rows)
        return linear_scores(self._scale(rows).rows, self._weights, self._constant, self._threads)


class PartScorer:
    """Scores of cells in parts, those of each as a `Scorer` of it alone gives them.

    A gene that a file lacks is no zero there, as in the joined matrix: it contributes nothing.
    Parts come one after the other, so that the scorer of one is kept at a time.

    Parameters
    ----------
    model
        The classifier.
    parts
        What follows each other.
    n_vars
        Number of genes of the source.
    scalings
        Of each part in place of the model's own, or None for that.
    device
        As of `Scorer`.
    """

    def __init__(
        self,
        model: Model,
        parts: Sequence[Part],
        n_vars: int,
        threads: Threads,
        scalings: Sequence[Scaling | None] | None = None,
        device: Device | None = None,
    ) -> None:
        self._model, self._parts, self._n_vars, self._threads = model, parts, n_vars, threads
        self._device = device
        self._scalings = scalings or [None] * len(parts)
        self._kept: tuple[int, Scorer] | None = None

    def _of(self, i: int) -> Scorer:
        if self._kept is None or self._kept[0] != i:
            self._kept = None
            at, own = self._parts[i].at, self._scalings[i]
            scorer = Scorer(self._model, at, self._n_vars, self._threads, own, self._device)
            self._kept = i, scorer
        return self._kept[1]

    def __call__(self, block: Rows, position: int) -> NDArray[np.float64]:
        """Scores, shape (n_obs, n_classes), of the cells from `position` on, all of one part."""
        return self._of(part_at(self._parts, position))(block)


def part_at(parts: Sequence[Part], position: int) -> int:
    """Which of the parts holds the cell at `position` among the selected."""
    return bisect_right(parts, position, key=lambda part: part.stop)
