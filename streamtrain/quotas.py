"""Cells per batch asked for by class name in, the classes of every mini-batch out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError, near


@dataclass(frozen=True, slots=True)
class Quotas:
    """Cells of each class in every mini-batch.

    Attributes
    ----------
    fixed
        Cells of each class in every batch, shape (n_classes,).
    sharing
        Classes that get the `rest` as well, in turn from batch to batch, shape (n,).
    rest
        Cells of a batch that `fixed` leaves, fewer than sharing classes.
    """

    fixed: NDArray[np.int64]
    sharing: NDArray[np.int64]
    rest: int

    @classmethod
    def of(
        cls,
        spec: Mapping[str, int] | Literal["equal"],
        classes: Sequence[str] | NDArray[Any],
        batch_size: int,
    ) -> Quotas:
        """Quotas from class names and cells per batch; classes not named share the rest evenly.

        Raises
        ------
        InputError
            For an unknown class, or where the quotas leave cells, or classes, over.
        """
        named = {} if isinstance(spec, str) else {str(name): n for name, n in spec.items()}
        place = {str(name): k for k, name in enumerate(classes)}
        for name in named:
            if name not in place:
                raise InputError(
                    f"quotas names {name!r}, which is no cell type: {near(name, place)}"
                )
        rest = batch_size - sum(named.values())
        sharing = np.array([k for name, k in place.items() if name not in named], np.int64)
        if rest < 0 or (rest == 0) != (len(sharing) == 0):
            raise InputError(
                f"quotas take {batch_size - rest:,} of batch_size={batch_size:,} cells and name "
                f"{len(named)} of {len(place)} cell types, and those not named share what is left: "
                "raise or lower batch_size (--batch-size) or the quotas"
            )
        fixed = np.array([named.get(name, 0) for name in place], np.int64)
        if len(sharing):
            fixed[sharing], rest = divmod(rest, len(sharing))
        return cls(fixed, sharing, rest)

    def classes(self, batch: int) -> NDArray[np.int64]:
        """Class of each cell of a batch, counted over all epochs; ascending, (batch_size,)."""
        counts = self.fixed.copy()
        if self.rest:
            turns = batch * self.rest + np.arange(self.rest)
            counts[self.sharing[turns % len(self.sharing)]] += 1
        return np.repeat(np.arange(len(counts)), counts)
