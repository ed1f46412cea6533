"""What the first pass leaves for a round of training, and what a round leaves for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.cells import Cells
from streamtrain.errors import some
from streamtrain.history import History
from streamtrain.ordered import PlanOrder
from streamtrain.rows import Rows
from streamtrain.solvers.counters import State
from streamtrain.spill import Spill

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device


@dataclass(frozen=True, slots=True)
class Stored:
    """The cells of a run as the first pass left them.

    Attributes
    ----------
    spill
        Normalised expression of the cells that any round takes.
    record
        Gives their number on scratch by their position among the labelled cells.
    cells
        Codes and classes of the labelled cells, a class for each column of the solver.
    drawn
        The same cells by the classes that they have, from which they are drawn.
    held_out
        Whether each labelled cell is held out to judge epochs by, shape (n,); None for none.
    is_sparse
        Whether scikit-learn would see a sparse matrix where cells are not centred.
    ordered
        The cells of every mini-batch, in place of `spill`; None where they are there.
    device
        The GPU that trains; None for the CPU.
    share
        The columns that are trained here; None for all.
    """

    spill: Spill
    record: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    cells: Cells
    drawn: Cells
    held_out: NDArray[np.bool_] | None
    is_sparse: bool
    ordered: PlanOrder | None = None
    device: Device | None = None
    share: range | None = None

    @property
    def entries(self) -> float:
        """Entries of a cell, on average."""
        kept = self.spill if self.ordered is None else self.ordered
        return kept.entries

    @property
    def counts(self) -> NDArray[np.int64]:
        """Cells of each class, shape (n_classes,)."""
        return self.cells.counts

    def sweep(self, positions: NDArray[np.int64], nbytes: int, most: int) -> Iterator[Rows]:
        """Cells with their codes, in order; about `nbytes` and `most` at a time."""
        spill = self.spill
        step = max(1, min(most, int(nbytes / (spill.nbytes / spill.n_obs + 8))))
        for start in range(0, len(positions), step):
            part = positions[start : start + step]
            yield spill.gather(self.record(part)).with_codes(self.cells.codes[part])


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights, in the form training continues from, and what is known of each column's.

    Attributes
    ----------
    state
        The weights.
    certificate
        Of each column, by the names that a model has for it.
    unconverged
        Words which cell types did not converge, and what to do; empty for none.
    eta0
        Constant step that `step` came to; None without it.
    drawn
        Cells of each class that SGD took in all, shape (n_classes,); None for the optimum.
    history
        What each epoch or pass came to.
    """

    state: State
    certificate: dict[str, NDArray[Any]] | None = None
    unconverged: str = ""
    eta0: float | None = None
    drawn: NDArray[np.int64] | None = None
    history: History | None = None

    @property
    def weights(self) -> NDArray[Any]:
        """Coefficients that score cells: the average where there is one, shape (columns, genes)."""
        return self.state.scoring[0]


def unconverged(classes: NDArray[np.object_], which: NDArray[np.bool_], remedy: str) -> str:
    """Name the columns `which`, that did not converge; the one of two classes is the second."""
    columns = classes[1:] if len(classes) == 2 else classes
    names = columns[which]
    if len(names) == 0:
        return ""
    share = f"{len(names)} of {len(columns)}"
    return f"{share} cell types did not converge {remedy}; {some(names, 10)}"
