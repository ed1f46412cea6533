"""scikit-learn's own SGD for what ours lacks: scaled batches in, weights per class out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from streamtrain.errors import InputError, near
from streamtrain.scaling import Scaled
from streamtrain.solvers.sgd import LOSSES, LearningRate, State
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

OPTIONS = (
    "loss", "penalty", "alpha", "l1_ratio", "fit_intercept", "epsilon", "learning_rate", "eta0",
    "power_t",
)  # fmt: skip
# Bytes of dense cells at a time: a thousand cells of 30,000 genes in float64 are one piece. It
# follows from no setting, as under an L1 penalty each piece begins anew what weights have paid.
_PIECE = 256 * 10**6


def is_native(loss: str, learning_rate: str) -> bool:
    """Whether `SGD` takes this loss and schedule, so that no `Fallback` is needed."""
    return loss in LOSSES and learning_rate in get_args(LearningRate)


def check(options: Mapping[str, Any]) -> None:
    """Refuse options that scikit-learn would, by a step on one cell.

    Raises
    ------
    InputError
        For an option that is not of `OPTIONS`, a value or a combination that it does not take.
    """
    from sklearn.linear_model import SGDClassifier

    for name in options:
        if name not in OPTIONS:
            raise InputError(f"scikit-learn's SGD takes no {name!r} here: {near(name, OPTIONS)}")
    try:
        SGDClassifier(**options).partial_fit([[0.0]], [0], classes=[0, 1])
    except (ValueError, TypeError) as error:
        raise InputError(f"scikit-learn's SGD does not take these settings: {error}") from error


class Fallback:
    """`SGD`'s interface over ``SGDClassifier.partial_fit``, on cells made dense piece by piece.

    It costs every gene of every cell for each class. Averaging is not offered: scikit-learn 1.9
    loses the intercept between two averaged calls.

    Parameters
    ----------
    n_classes, shift, class_weight, threads
        As for `SGD`.
    options
        Of `OPTIONS`, passed on to scikit-learn.
    sparse
        Whether scikit-learn takes the cells as a sparse matrix; needs a shift of zero.
    dtype
        Of weights and cells: float32 or float64.
    state
        Where to continue from; its averages are not used.

    Raises
    ------
    InputError
        As by `check`.
    """

    def __init__(
        self,
        n_classes: int,
        shift: NDArray[np.float64],
        options: Mapping[str, Any],
        *,
        class_weight: ArrayLike | None = None,
        sparse: bool = False,
        dtype: Any = np.float32,
        threads: Threads,
        state: State | None = None,
    ) -> None:
        from sklearn.linear_model import SGDClassifier

        check(options)
        self._shift, self._sparse, self._dtype = shift, sparse, np.dtype(dtype)
        weight = np.ones(n_classes) if class_weight is None else np.asarray(class_weight, float)
        columns = 1 if n_classes == 2 else n_classes
        if state is None:
            state = State(np.zeros((columns, len(shift)), self._dtype), np.zeros(columns))
        self._sgd = SGDClassifier(
            **options,
            class_weight=dict(enumerate(weight.tolist())),
            shuffle=False,
            n_jobs=threads.n,
        )
        self._sgd.classes_ = np.arange(n_classes)
        self._sgd.n_features_in_ = len(shift)
        self._sgd.coef_ = np.array(state.coef, self._dtype, order="C")
        self._sgd.intercept_ = np.array(state.intercept, self._dtype)
        self._sgd.t_ = state.t
        logger.warning(
            "scikit-learn's own SGD trains, on dense cells and many times slower, for %s",
            ", ".join(f"{name}={value!r}" for name, value in options.items()),
        )

    @property
    def t_(self) -> float:
        """Steps taken plus one."""
        return float(self._sgd.t_)

    def partial_fit(self, cells: Scaled) -> Fallback:
        """Take one step for each cell of the batch, in order.

        Raises
        ------
        InputError
            If the weights overflow.
        """
        rows = cells.rows
        if rows.codes is None:
            raise ValueError("a batch needs label codes")
        size = max(1, _PIECE // (rows.n_vars * self._dtype.itemsize))
        for start in range(0, rows.n_obs, size):
            piece = rows.slice(start, min(start + size, rows.n_obs))
            csr = sp.csr_matrix(
                (piece.data.astype(self._dtype, copy=False), piece.indices, piece.indptr),
                shape=(piece.n_obs, piece.n_vars),
            )
            Z: Any = csr
            if not self._sparse:
                Z = csr.toarray()
                Z -= self._shift
            try:
                self._sgd.partial_fit(Z, piece.codes)
            except ValueError as error:
                raise InputError(
                    "the weights overflowed: lower the step (eta0) or raise alpha; scikit-learn "
                    f"says: {error}"
                ) from error
        return self

    def state(self) -> State:
        """Present weights and counter."""
        sgd = self._sgd
        return State(sgd.coef_.copy(), sgd.intercept_.astype(np.float64), t=self.t_)

    @staticmethod
    def nbytes(n_genes: int, n_classes: int, dtype: Any, batch_size: int) -> int:
        """Bytes that training needs, the export at the end included."""
        item = int(np.dtype(dtype).itemsize)
        weights = n_genes * (1 if n_classes == 2 else n_classes)
        piece = min(max(_PIECE, n_genes * item), batch_size * n_genes * item)
        return 2 * weights * item + piece
