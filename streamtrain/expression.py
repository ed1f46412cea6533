"""Stored expression in, log1p-normalised expression out, each cell checked on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import expression as kernel
from streamtrain.rows import Rows
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

TARGET_SUM = 1e4  # transcripts per cell after normalisation, CellTypist's
TOLERANCE = 1.0  # on that sum, CellTypist's
_SURE = 10_000  # cells after which their form is judged, before the end of the stream
_SUMS = ("_seen", "_off", "_fractions", "_done", "_empty")
_REPAIR = "Remove or repair those cells, or leave them out (where, --where)"
MAX_LOG1P = 9.22  # CellTypist's bound on a value; log1p(10,000) is 9.2104

Normalize = Literal["log1p"] | None


class Expression:
    """Check and normalise blocks of cells as they stream by.

    Values must be finite and not negative. Without `normalize` they are taken as
    log1p(counts per 10,000), which holds for a cell if sum(expm1(x)) is 10,000 within 1; with
    ``normalize="log1p"`` they are taken as counts, and become log1p(10,000 x / sum(x)). Cells
    without any transcript pass, as neither form can change them.

    Parameters
    ----------
    name
        The source, for messages.
    normalize
        None or "log1p".
    check
        "sum" raises for cells whose sum is off, "range" (CellTypist's rule when annotating) raises
        for values above 9.22 and warns of sums, None checks neither.
    dtype
        Of the values that leave: float32 or float64.
    cell, gene
        Give the name of a cell by its position in the stream, and of a gene by its position.
    threads
        They share the cells of a block.
    judges
        Raise as soon as most cells have the wrong form; else that is left to whoever `merge`s.
    """

    def __init__(
        self,
        name: str,
        *,
        normalize: Normalize,
        check: Literal["sum", "range"] | None,
        dtype: Any,
        cell: Callable[[int], str],
        gene: Callable[[int], str],
        threads: Threads,
        judges: bool = True,
    ) -> None:
        self.name, self.normalize, self.check = name, normalize, check
        self._judges = judges
        self.dtype = np.dtype(dtype)
        self._cell, self._gene = cell, gene
        self._threads = threads
        self._seen = self._off = self._fractions = self._done = self._empty = 0
        self._most = 0.0  # the highest value
        self._examples: list[str] = []
        self._off_whole = True  # whether all cells whose sum is off hold integers

    def __call__(self, rows: Rows, position: int) -> Rows:
        """Check and normalise `rows`, the cells from `position` on in the stream.

        Returns rows without explicit zeros. Raises InputError at the first block that shows a
        value that cannot be used, or in which most cells have the wrong form.
        """
        data, indptr = rows.data, rows.indptr
        sums, flags = self._inspect(rows, exponentiate=self.normalize is None)
        self._refuse_values(rows, position, flags)
        self._seen += rows.n_obs
        self._empty += int(np.count_nonzero(sums == 0))
        if self.normalize is None:
            self._note_sums(rows, position, sums, flags)
            values = data.astype(self.dtype, copy=False)
        else:
            self._note_fractions(rows, position, flags)
            values = np.zeros(len(data), self.dtype)
            self._threads.share(
                rows.n_obs,
                lambda lo, hi: kernel.normalize_log1p(
                    data, indptr, sums, TARGET_SUM, lo, hi, values
                ),
            )
        return _without_zeros(Rows(values, rows.indices, indptr, rows.n_vars, rows.codes))

    def _inspect(
        self, rows: Rows, exponentiate: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Sum each cell, what is left out of it included; flag the values that are here."""
        sums, flags = np.zeros(rows.n_obs), np.zeros(rows.n_obs, np.uint8)
        self._threads.share(
            rows.n_obs,
            lambda lo, hi: kernel.inspect_rows(
                rows.data, rows.indptr, exponentiate, lo, hi, sums, flags
            ),
        )
        if rows.left_out is not None:
            sums += rows.left_out[:, int(exponentiate)]
        return sums, flags

    def _refuse_values(self, rows: Rows, position: int, flags: NDArray[np.uint8]) -> None:
        for flag, fault, remedy in (
            (kernel.NOT_FINITE, "is not finite", _REPAIR),
            (
                kernel.NEGATIVE,
                "is negative",
                "Scaled expression cannot be used: point to the unscaled matrix with "
                "layer='raw' or layer=NAME",
            ),
        ):
            bad = np.flatnonzero(flags & flag)
            if len(bad):
                i = int(bad[0])
                entries = slice(rows.indptr[i], rows.indptr[i + 1])
                values = rows.data[entries]
                wrong = ~np.isfinite(values) if flag == kernel.NOT_FINITE else values < 0
                k = int(np.flatnonzero(wrong)[0])
                gene = self._gene(int(rows.indices[entries][k]))
                raise InputError(
                    f"{self.name}: expression must be finite and not negative, but the value of "
                    f"gene {gene!r} in {self._cell(position + i)} {fault} ({values[k]}); such "
                    f"values stand in {len(bad):,} of the {rows.n_obs:,} cells read with it. "
                    f"{remedy}."
                )
        if rows.left_out is not None and not np.isfinite(rows.left_out[:, 0]).all():
            i = int(np.argmin(np.isfinite(rows.left_out[:, 0])))
            raise InputError(
                f"{self.name}: expression must be finite, but a value of a gene that not all files "
                f"have is not, in {self._cell(position + i)}. {_REPAIR}."
            )

    def _note_sums(
        self, rows: Rows, position: int, sums: NDArray[np.float64], flags: NDArray[np.uint8]
    ) -> None:
        if self.check is None:
            return
        if self.check == "range" and len(rows.data) and rows.data.max() > MAX_LOG1P:
            i = int(np.searchsorted(rows.indptr, np.argmax(rows.data), side="right")) - 1
            raise InputError(
                f"{self.name}: expression must be log1p-normalised to 10,000 counts per cell, so "
                f"no value exceeds {MAX_LOG1P}; {self._cell(position + i)} holds "
                f"{rows.data.max():g}. For raw counts pass normalize='log1p' (--normalize log1p); "
                "for another matrix layer=NAME."
            )
        off = np.flatnonzero((np.abs(sums - TARGET_SUM) > TOLERANCE) & (sums != 0))
        self._off += len(off)
        self._off_whole &= not bool(np.any(flags[off] & kernel.FRACTION))
        for i in off[: max(0, 3 - len(self._examples))].tolist():
            self._examples.append(f"{self._cell(position + i)}: {sums[i]:.6g}")
        if self._judges:
            self._judge_sums(self._off - len(off))

    def _judge_sums(self, before: int) -> None:
        """Warn of the first cells whose sum is off, of which there were `before`; refuse most."""
        if self.check != "sum":
            return
        if self._off and not before:
            logger.warning(
                "%s: expm1 does not sum to 10,000 in %s; the run will end in an error once all "
                "cells are read", self.name, self._examples[0],
            )  # fmt: skip
        if self._off > self._seen / 2:
            self._refuse_sums(f"of the first {self._seen:,} read")

    def _refuse_sums(self, among: str) -> None:
        remedy = (
            "The values are integers: for raw counts pass normalize='log1p' (--normalize log1p)"
            if self._off_whole
            else "Normalise all genes with scanpy.pp.normalize_total(target_sum=1e4) and "
            "scanpy.pp.log1p, or point to raw counts with layer=NAME and normalize='log1p', or "
            "pass check_expression=False (--no-check-expression) to train on the values as they are"
        )
        raise InputError(
            f"{self.name}: expression must be log1p-normalised to 10,000 counts per cell, but "
            f"sum(expm1(x)) is not 10,000 in {self._off:,} cells {among} "
            f"({'; '.join(self._examples)}). {remedy}."
        )

    def _note_fractions(self, rows: Rows, position: int, flags: NDArray[np.uint8]) -> None:
        fractions = np.flatnonzero(flags & kernel.FRACTION)
        self._fractions += len(fractions)
        if self.check is None or len(fractions) == 0:
            return
        sums, _ = self._inspect(rows, exponentiate=True)
        done = fractions[np.abs(sums[fractions] - TARGET_SUM) <= TOLERANCE]
        self._done += len(done)
        self._most = max(self._most, float(rows.data.max()))
        if not self._examples:
            i = int(done[0] if len(done) else fractions[0])
            self._examples.append(self._cell(position + i))
        if self._judges and self._seen >= _SURE:
            self._refuse_logged()

    def _refuse_logged(self) -> None:
        """Refuse what was given as counts, if over the cells so far it looks like their logarithm.

        A single cell proves nothing: among a million cells of corrected, fractional counts some
        have sum(expm1(x)) near 10,000.
        """
        done = self._done > self._seen / 2
        if done or (self._fractions > self._seen / 2 and self._most <= MAX_LOG1P):
            state = (
                f"{self._done:,} of {self._seen:,} cells are log1p-normalised to 10,000 already"
                if done
                else f"{self._fractions:,} of {self._seen:,} cells hold fractions and none a value "
                f"above {MAX_LOG1P}, as after a logarithm"
            )
            raise InputError(
                f"{self.name}: normalize='log1p' needs raw counts, but {state} (first "
                f"{self._examples[0]}). Leave out normalize, or point to the counts with "
                "layer=NAME; if these are counts, pass check_expression=False "
                "(--no-check-expression)."
            )

    def tally(self) -> dict[str, Any]:
        """What was seen so far, for `merge`."""
        return {name: getattr(self, name) for name in (*_SUMS, "_most", "_examples", "_off_whole")}

    def merge(self, tally: Mapping[str, Any]) -> None:
        """Take what another saw of the cells that follow; raises as for these cells."""
        before = self._off
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + tally[name])
        self._most = max(self._most, tally["_most"])
        self._examples = (self._examples + tally["_examples"])[:3]
        self._off_whole &= tally["_off_whole"]
        self._judge_sums(before)
        if self.check is not None and tally["_fractions"] and self._seen >= _SURE:
            self._refuse_logged()

    def finish(self) -> None:
        """Raise or warn of what only the whole stream shows."""
        if self.check is not None and self._fractions:
            self._refuse_logged()
        if self.check == "sum" and self._off:
            self._refuse_sums(f"of {self._seen:,}")
        if self.check == "range" and self._off:
            logger.warning(
                "%s: %d of %d cells do not sum to 10,000 after expm1 (%s): predictions need log1p "
                "expression normalised over all genes and may be off",
                self.name, self._off, self._seen, "; ".join(self._examples),
            )  # fmt: skip
        if self._fractions:
            logger.warning(
                "%s: %d of %d cells hold values that are no integers, so they are not raw counts; "
                "the result may be biased", self.name, self._fractions, self._seen,
            )  # fmt: skip
        if self._empty:
            logger.warning("%s: %d cells have no expression at all", self.name, self._empty)


def _without_zeros(rows: Rows) -> Rows:
    if np.count_nonzero(rows.data) == len(rows.data):
        return rows
    data, indices = np.empty_like(rows.data), np.empty_like(rows.indices)
    indptr = np.empty_like(rows.indptr)
    n = kernel.drop_zeros(rows.data, rows.indices, rows.indptr, data, indices, indptr)
    return Rows(data[:n], indices[:n], indptr, rows.n_vars, rows.codes)
