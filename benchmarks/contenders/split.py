"""A job's files in; the cells to train on and those to annotate out, the same for every contender.

anndata, NumPy and SciPy alone: every contender's environment has them.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

TYPE, GROUP = "cell_type", "group"
STUDY = "study"  # the group that every file can tell of its cells: its own name


@dataclass(frozen=True)
class Split:
    """Two halves of a data set that share no group.

    Attributes
    ----------
    train, query
        AnnData: X is CSR, float32, log1p of counts per 10,000; obs has `cell_type`, and that of
        the training half `group`, where the job names an `inner` column.
    digest
        Of the counts, genes and labels of both halves: equal digests, equal cells.
    held_out
        The groups of the query half.
    unseen
        Number of query cells left out, as the training half lacks their type: nobody can name it.
    """

    train: anndata.AnnData
    query: anndata.AnnData
    digest: str
    held_out: list[str]
    unseen: int

    @property
    def types(self) -> NDArray[Any]:
        """Names of the types of the training half, ascending."""
        return np.unique(_strings(self.train.obs[TYPE]))

    @property
    def truth(self) -> NDArray[Any]:
        """Type of each query cell."""
        return _strings(self.query.obs[TYPE])

    def counts(self) -> dict[str, Any]:
        """What a record says of the split."""
        return {
            "n_train": self.train.n_obs,
            "n_query": self.query.n_obs,
            "n_genes": self.train.n_vars,
            "n_types": len(self.types),
            "n_unseen": self.unseen,
            "digest": self.digest,
        }

    def evidence(self, classes: Any, predicted: Any, probabilities: Any) -> dict[str, NDArray[Any]]:
        """What a contender found, as arrays, beside what is true.

        Parameters
        ----------
        classes
            Names of the contender's classes, shape (n_classes,).
        predicted
            Name of the class predicted for each query cell.
        probabilities
            As the contender reports them, shape (n_query, n_classes). Not made float32, whose
            least number is 1e-45: one-vs-rest models report 1e-250 and mean it.
        """
        names = _strings(classes)
        code = {name: i for i, name in enumerate(names)}
        return {
            "truth": self.truth,
            "classes": names,
            "predicted": np.array([code.get(label, -1) for label in _strings(predicted)], np.int64),
            "probabilities": np.asarray(probabilities, np.float64),
        }


def split(job: dict[str, Any]) -> Split:
    """Read a job's files and cut their cells in two.

    Parameters
    ----------
    job
        Of which `files`: paths of .h5ad with raw counts, joined on the genes that all have;
        `label`: obs column of the types; `group`: obs column of donors or the like, or "study";
        `held_out`: the groups to annotate, or none for a quarter of them, the same on every call;
        `drop`: labels whose cells are left out of both halves; and, where given,
        `trained_on`: the groups to learn from, by default all the others;
        `inner`: obs column of the groups within the training half, which its files have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on names of cells that are not unique
        parts = [anndata.read_h5ad(path) for path in job["files"]]
    genes = parts[0].var_names
    for part in parts[1:]:
        genes = genes[genes.isin(part.var_names)]
    X = sparse.vstack([part[:, genes].X for part in parts], format="csr", dtype=np.float32)
    X.sort_indices()
    labels = np.concatenate([_strings(part.obs[job["label"]]) for part in parts])
    group = np.concatenate(
        [_groups(part, job["group"], path) for part, path in zip(parts, job["files"], strict=True)]
    )
    held_out = list(job["held_out"]) or _quarter(group)
    kept, query = ~np.isin(labels, job["drop"]), np.isin(group, held_out)
    taken = kept & ~query
    if job.get("trained_on"):
        taken &= np.isin(group, job["trained_on"])
    known = np.isin(labels, labels[taken])
    halves = [(X[rows], labels[rows]) for rows in (taken, kept & query & known)]
    train, annotated = (_adata(counts, names, genes) for counts, names in halves)
    if job.get("inner"):
        train.obs[GROUP] = _inner(parts, taken, job)
    return Split(
        train,
        annotated,
        digest=_digest(halves, genes),
        held_out=held_out,
        unseen=int(np.count_nonzero(kept & query & ~known)),
    )


def everything(job: dict[str, Any]) -> Split:
    """Read a job's `files`; all their cells are the training half, by the types in `label`."""
    return split({"drop": [], **job, "group": STUDY, "held_out": [""]})  # no file has that name


def _groups(part: anndata.AnnData, key: str, path: str) -> NDArray[Any]:
    return np.full(part.n_obs, Path(path).stem) if key == STUDY else _strings(part.obs[key])


def _inner(parts: list[Any], taken: NDArray[np.bool_], job: dict[str, Any]) -> NDArray[Any]:
    """Group of each cell of the training half; a file without any need not have the column."""
    found, start = [], 0
    for part, path in zip(parts, job["files"], strict=True):
        rows = taken[start : start + part.n_obs]
        start += part.n_obs
        if rows.any():
            found.append(_groups(part, job["inner"], path)[rows])
    return np.concatenate(found)


def _quarter(group: NDArray[Any]) -> list[str]:
    names = np.random.default_rng(0).permutation(np.unique(group))
    return [str(name) for name in names[: max(1, len(names) // 4)]]


def _strings(values: Any) -> NDArray[Any]:
    """Fixed-width strings: arrays of objects do not pass between processes."""
    return np.array([str(value) for value in values])


def _digest(halves: list[tuple[Any, NDArray[Any]]], genes: Any) -> str:
    """Digest of counts, not of normalised values: another NumPy may round log1p otherwise."""
    digest = hashlib.sha256("\n".join(genes).encode())
    for counts, names in halves:
        digest.update("\n".join(names).encode())
        digest.update(counts.data.astype(np.float32).tobytes())
        for array in (counts.indices, counts.indptr):
            digest.update(array.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _adata(counts: Any, labels: NDArray[Any], genes: Any) -> anndata.AnnData:
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    per_10k = counts.data * (1e4 / np.repeat(total, np.diff(counts.indptr)))
    X = (np.log1p(per_10k).astype(np.float32), counts.indices, counts.indptr)
    adata = anndata.AnnData(sparse.csr_matrix(X, counts.shape))
    adata.obs_names = [f"cell-{i}" for i in range(len(labels))]
    adata.var_names = genes
    adata.obs[TYPE] = labels
    return adata
