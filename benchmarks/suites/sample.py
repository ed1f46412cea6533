"""Sampling: class-balanced mini-batches from an atlas whose cells are not shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.atlases import atlas, truth
from benchmarks.contenders.delivery import class_spread
from benchmarks.contenders.streamtrain import plan
from benchmarks.environments import UnavailableError
from benchmarks.measuring import Case, Contender, Evidence, WrongWorkError
from benchmarks.report import CPU, OURS, PEAK, RATE, READ, Column, View, bars
from streamtrain.errors import InputError

VIEW = View(
    (
        RATE,
        Column("class_spread", "std/mean of class counts", "{:.2f}".format),
        Column("classes_left_out", "classes left out"),
        Column("distinct_cells", "distinct cells"),
        Column("seconds_to_first_batch", "first batch, s", "{:.2f}".format),
        CPU, PEAK, READ,
    ), "rate", bars,
)  # fmt: skip
_CHANCE = 1e-6  # independent draws as uneven as what is refused come once in so many


def cases(settings: dict[str, Any]) -> list[Case]:
    """One case a number of batches.

    annbatch's sampler wants classes in runs, so it reads a collection that its own converter has
    sorted by class; the others read the atlas as it lies.
    """
    _possible(settings)
    shape = {k: settings[k] for k in ("cells", "genes", "cell_types", "donors")}
    store = str(atlas(settings["store"], **shape))
    job = {k: settings[k] for k in ("batch_size", "window")}
    job |= {"n_types": shape["cell_types"], "seed": 0}
    try:
        grouped = str(atlas("collection-grouped", **shape))
    except UnavailableError:
        grouped = ""  # annbatch itself is skipped, with the reason, when its turn comes
    who = contenders(settings, store=store, grouped=grouped)
    return [
        Case(
            f"{settings['store']}, {n} batches",
            job | {"batches": n},
            [c for c in who if not _cell_by_cell(c) or n <= settings["cell_by_cell"]],
            warm_up=job | {"batches": 1},
            verify={"verify": True},
            files=[path for path in (store, grouped) if path],
            about={"batches": n, "store": settings["store"]},
            reference=atlas("h5ad", **shape),  # the same cells
        )
        for n in settings["batches"]
    ]


def _possible(settings: dict[str, Any]) -> None:
    """Refuse epochs that do not make up the batches, or need more cells than there are."""
    for an_epoch in settings["batches_an_epoch"]:
        if uneven := [n for n in settings["batches"] if n % an_epoch]:
            raise InputError(
                f"batches must be multiples of batches_an_epoch={an_epoch}; got {uneven}"
            )
        if (needed := an_epoch * settings["batch_size"]) > settings["cells"]:
            raise InputError(
                f"an epoch takes each cell once at most: batches_an_epoch={an_epoch} needs "
                f"{needed:,} cells; got cells={settings['cells']:,}"
            )


def contenders(settings: dict[str, Any], *, store: str, grouped: str) -> list[Contender]:
    """Ours, annbatch, scDataset and a loop by hand, with their `store` and `way` of drawing.

    Ways: "plan" is streamtrain's own, "blocks" its fastest, which does not balance, "cells" draws
    each cell by itself, and a number is that of neighbours of one class drawn together.
    """
    call = "benchmarks.contenders.{}:sample".format
    own: dict[str, dict[str, Any]] = {
        OURS: {"way": "plan", "replace": True},
        f"{OURS}, in blocks, not balanced": {"way": "blocks", "block": settings["block"]},
    } | {
        f"{OURS}, without replacement, epochs of {n}": {
            "way": "plan", "replace": False, "batches_an_epoch": n,
        }
        for n in settings["batches_an_epoch"]
    }  # fmt: skip
    found = [
        Contender(name, call("streamtrain"), options={"store": store, **options})
        for name, options in own.items()
    ]
    found += [
        Contender(
            f"annbatch, chunks of {n}", call("annbatch"), "annbatch",
            {"store": grouped, "way": n, "chunk": n},
        )
        for n in settings["chunks"]
    ]  # fmt: skip
    found += [
        Contender(
            f"scDataset, blocks of {n}", call("scdataset"), "scdataset",
            {"store": store, "way": "cells", "block": n},
        )
        for n in settings["blocks"]
    ]  # fmt: skip
    return [*found, Contender("h5py", call("h5py"), options={"store": store, "way": "cells"})]


def _cell_by_cell(contender: Contender) -> bool:
    return contender.options["way"] in ("cells", 1)


def check(
    case: Case,
    evidence: Mapping[str, Sequence[Evidence]],
    done: Mapping[str, Sequence[dict[str, Any]]],
) -> None:
    """All batches are full, of cells that the atlas holds, drawn as each contender claims.

    Adds `distinct_cells` to the records: how many of the delivered cells differ.
    """
    whole = truth(case.reference)
    options = {c.name: c.options for c in case.contenders}
    for name, lines in done.items():
        wrong = f"{case.name}: {name} "
        found, way = evidence[name][0], options[name]["way"]
        cells = _cells(found, whole, wrong)
        _full(found, case.job, wrong)
        independent = way in ("cells", 1)
        if way == "plan":
            _planned(cells, whole["labels"], {**case.job, **options[name]}, wrong)
            independent = options[name]["replace"]
        if way == "blocks":
            _passes(cells, len(whole["labels"]), case.job["batch_size"], wrong)
        elif independent or way != "plan":
            chunk = 1 if independent else way
            left_out = lines[0]["classes_left_out"]
            _even(found["classes"].sum(axis=0), whole["labels"], chunk, left_out, wrong)
        if independent:
            _spread_out(cells, whole["labels"], wrong)
        elif way not in ("plan", "blocks"):
            _covered(cells, whole["labels"], wrong)
        for line in lines:
            _repeated(line, found, wrong)
            line["distinct_cells"] = len(np.unique(cells))


def _cells(found: Evidence, whole: Evidence, wrong: str) -> NDArray[np.int64]:
    """Row in the atlas of each delivered cell; its label must be that row's."""
    order = np.argsort(whole["prints"])
    places = np.searchsorted(whole["prints"], found["prints"], sorter=order)
    cells = order[np.minimum(places, len(order) - 1)]
    if strange := np.count_nonzero(whole["prints"][cells] != found["prints"]):
        raise WrongWorkError(f"{wrong}delivered {strange:,} cells that the atlas does not hold")
    if other := np.count_nonzero(whole["labels"][cells] != found["labels"]):
        raise WrongWorkError(f"{wrong}gave {other:,} cells another label than theirs")
    return cells


def _full(found: Evidence, job: Mapping[str, Any], wrong: str) -> None:
    """As many batches as asked for, each of `batch_size`, with the classes that were counted."""
    n, size, n_types = job["batches"], job["batch_size"], job["n_types"]
    sizes = found["classes"].sum(axis=1).tolist()
    if sizes != [size] * n or len(found["labels"]) != n * size:
        raise WrongWorkError(f"{wrong}must deliver {n} batches of {size:,}; delivered {sizes}")
    labels = found["labels"].reshape(n, size)
    counts = [np.bincount(batch, minlength=n_types) for batch in labels]
    if not np.array_equal(found["classes"], counts):
        raise WrongWorkError(f"{wrong}counted other classes than it delivered")


def _planned(
    cells: NDArray[np.int64], labels: NDArray[np.int64], job: dict[str, Any], wrong: str
) -> None:
    """Exactly the cells of the plan, in its order; without replacement none twice in an epoch."""
    drawing = plan(labels.astype(np.int32), job)
    epochs = cells.reshape(drawing.epochs, -1)
    for number, epoch in enumerate(epochs):
        if not job["replace"] and len(np.unique(epoch)) < len(epoch):
            raise WrongWorkError(f"{wrong}delivered a cell twice in epoch {number}")
        if not np.array_equal(epoch, drawing.epoch(number)):
            raise WrongWorkError(f"{wrong}left the plan in epoch {number}")


def _passes(cells: NDArray[np.int64], n_obs: int, size: int, wrong: str) -> None:
    """No cell twice in the full batches of one pass."""
    each = n_obs // size * size
    for number, start in enumerate(range(0, len(cells), each)):
        part = cells[start : start + each]
        if len(np.unique(part)) < len(part):
            raise WrongWorkError(f"{wrong}delivered a cell twice in pass {number}")


def _even(
    totals: NDArray[np.int64], labels: NDArray[np.int64], chunk: int, left_out: int, wrong: str
) -> None:
    """Class totals are no more uneven than those of independent draws of `chunk` cells each.

    Of `left_out` classes nothing is drawn, and a class of fewer cells than `chunk` is among them.
    """
    small = np.count_nonzero(np.bincount(labels, minlength=len(totals)) < chunk)
    if left_out < small:
        raise WrongWorkError(
            f"{wrong}cannot serve the {small} classes of fewer than {chunk} cells, and says that "
            f"it left out {left_out}"
        )
    ascending = np.sort(totals)
    drawn = ascending[left_out:] / chunk
    statistic = float(((drawn - drawn.mean()) ** 2).sum() / drawn.mean())
    if ascending[:left_out].any() or stats.chi2.sf(statistic, len(drawn) - 1) < _CHANCE:
        raise WrongWorkError(
            f"{wrong}is not balanced: chi-square {statistic:.0f} over {len(drawn)} classes, "
            f"{left_out} left out"
        )


def _spread_out(cells: NDArray[np.int64], labels: NDArray[np.int64], wrong: str) -> None:
    """As many different cells as independent balanced draws give.

    With K classes, n_k cells in class k and N draws: the sum over all cells of
    1 - (1 - 1 / (K n_k))^N. Its variance is below it, as cells compete for draws.
    """
    sizes = np.bincount(labels)
    each = 1 / (np.count_nonzero(sizes) * sizes[labels])
    expected = float((1 - (1 - each) ** len(cells)).sum())
    distinct = len(np.unique(cells))
    if abs(distinct - expected) > 6 * np.sqrt(expected):
        raise WrongWorkError(
            f"{wrong}drew {distinct:,} different cells where {expected:,.0f} are due"
        )


def _covered(cells: NDArray[np.int64], labels: NDArray[np.int64], wrong: str) -> None:
    """Chunks begin anywhere in a class: most of the cells that single draws would reach are met.

    T draws in a class of n cells reach n (1 - (1 - 1/n)^T) of them on average; chunks that may
    overlap reach about as many, and the ends of a class less often.
    """
    sizes, drawn = np.bincount(labels), np.bincount(labels[cells], minlength=labels.max() + 1)
    due = float((sizes * (1 - (1 - 1 / sizes) ** drawn)).sum())
    distinct = len(np.unique(cells))
    if distinct < 0.7 * due:
        raise WrongWorkError(f"{wrong}drew {distinct:,} different cells of about {due:,.0f}")


def _repeated(line: dict[str, Any], found: Evidence, wrong: str) -> None:
    """A timed run delivered what the verified one did."""
    due = dict(zip(("cells", "entries", "total"), found["sums"].tolist(), strict=True))
    due["class_spread"] = class_spread(found["classes"])
    for key, value in due.items():
        if not np.isclose(line[key], value, rtol=1e-12, atol=0):
            raise WrongWorkError(f"{wrong}must repeat {key} {value}; a timed run had {line[key]}")
