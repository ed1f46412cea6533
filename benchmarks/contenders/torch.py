"""PyTorch: minibatch logistic regression on dense cells, and gradients by `torch.sparse`.

Products of float32 are exact, as ours are: PyTorch's default allows no TF32 in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from benchmarks.contenders.gpu import STAND_IN, Gradients, expression, sampled, timed
from benchmarks.simulated import Genes
from streamtrain.rows import Rows
from streamtrain.scaling import CLIP
from streamtrain.threads import Threads


def _place(job: dict[str, Any]) -> tuple[Any, Callable[[], None]]:
    """Where the tensors are, and how to wait until all is done."""
    if job["device"] == STAND_IN:
        return torch.device("cpu"), lambda: None
    return torch.device("cuda"), torch.cuda.synchronize


def _csr(indptr: Any, indices: Any, data: Any, *, n_genes: int) -> Any:
    return torch.sparse_csr_tensor(indptr, indices, data, size=(len(indptr) - 1, n_genes))


def _of_scipy(m: Any) -> Any:
    return _csr(*(torch.from_numpy(a) for a in (m.indptr, m.indices, m.data)), n_genes=m.shape[1])


def sgd(job: dict[str, Any]) -> Iterator[Any]:
    """Take one step a batch, by autograd, which is other work than a step a cell.

    Cells come as CSR in pinned memory, and are made dense, scaled and clipped on the device.
    """
    place, finish = _place(job)
    dtype = getattr(torch, job["dtype"])
    with Threads(job["n_jobs"]) as threads:
        rows = expression(job)
        genes = Genes.of(rows, threads)
    mean, scale = torch.zeros(rows.n_vars, dtype=dtype), torch.ones(rows.n_vars, dtype=dtype)
    mean[genes.at], scale[genes.at] = (
        torch.from_numpy(a).to(dtype) for a in (genes.mean, genes.scale)
    )
    mean, scale = mean.to(place), scale.to(place)
    columns = 1 if job["classes"] == 2 else job["classes"]
    labels = torch.arange(columns, device=place) + (job["classes"] == 2)
    W = torch.zeros(rows.n_vars, columns, dtype=dtype, device=place, requires_grad=True)
    b = torch.zeros(columns, dtype=dtype, device=place, requires_grad=True)
    solver = torch.optim.SGD([W, b], lr=1e-4)

    def hold(part: Rows) -> _Held:
        arrays = (part.indptr, part.indices.astype(np.int64), part.data, part.codes)
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        return _Held([t.pin_memory() if place.type == "cuda" else t for t in tensors])

    def take(held: _Held) -> None:
        indptr, indices, data, codes = (t.to(place, non_blocking=True) for t in held.tensors)
        X = _csr(indptr, indices, data.to(dtype), n_genes=rows.n_vars).to_dense()
        Z = torch.clamp((X - mean) / scale, max=CLIP)
        y = (codes[:, None] == labels).to(dtype)
        solver.zero_grad()
        binary_cross_entropy_with_logits(Z @ W + b, y, reduction="sum").backward()
        solver.step()

    size = job["batch_size"]
    held = [hold(rows.slice(i, min(i + size, rows.n_obs))) for i in range(0, rows.n_obs, size)]
    take(held[0])
    yield
    yield timed(take, cycle(held), job["at_least_s"], finish)
    yield {"coef": W.detach().cpu().numpy().T, "intercept": b.detach().cpu().numpy()}


class _Held:
    """A batch in the host's memory."""

    def __init__(self, tensors: list[Any]) -> None:
        self.tensors, self.n_obs = tensors, len(tensors[0]) - 1


def gradient(job: dict[str, Any]) -> Iterator[Any]:
    """Pass over scaled cells, which stay on the device, by sparse products in float64.

    Both the cells and their transpose are there, so that no pass sorts.
    """
    place, finish = _place(job)
    with Threads(job["n_jobs"]) as threads:
        rows = expression(job)
        rule = Genes.of(rows, threads).scaler(job["dtype"])

    def passes(rows: Rows) -> Callable[[], tuple[Any, ...]]:
        point = Gradients(rows, rule, job["classes"])
        X = point.matrix()
        both = [_of_scipy(m).to(place) for m in (X, X.T.tocsr())]
        W, constant, labels, codes = (
            torch.from_numpy(np.ascontiguousarray(a)).to(place)
            for a in (point.W, point.constant, point.classes, rows.codes)
        )
        y = (codes[:, None] == labels).to(W.dtype)

        def once() -> tuple[Any, ...]:
            score = both[0] @ W + constant
            residual = torch.sigmoid(score) - y
            loss = (softplus(score) - y * score).sum(dim=0)
            return loss, both[1] @ residual, residual.sum(dim=0)

        return once

    once = passes(rows)
    once()
    yield
    yield timed(lambda _: once(), repeat(rows), job["at_least_s"], finish)
    some = rows.slice(0, min(job["compared"], rows.n_obs))
    yield sampled(*(t.cpu().numpy() for t in passes(some)()))
