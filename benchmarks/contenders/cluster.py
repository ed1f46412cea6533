"""Training by workers of dask.distributed on this machine, and what one core of it can do.

The workers are there before the clock starts, as those of a cluster that lives long, and have
trained once: compiled and imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import zarr

from benchmarks.child import high_water, set_back_high_water
from benchmarks.cluster_model import LINE
from benchmarks.contenders.training import weights_of
from streamtrain import train
from streamtrain.budget import BLOCK, release_freed
from streamtrain.cells import expression_of
from streamtrain.sampling import Plan
from streamtrain.sources import open_source
from streamtrain.streaming import sweep
from streamtrain.targets import recorder
from streamtrain.threads import Threads

Task = tuple[str, str, float, float]  # what it did, for whom, from when to when
_FEW = {"batch_size": 100, "batch_number": 4, "epochs": 1}
_ARRAY = 64 * 2**20  # bytes that are sent, or added, to time it
_TASKS = 200


@contextmanager
def workers(n: int, threads: int) -> Iterator[Any]:
    """A client of `n` worker processes on this machine."""
    distributed: Any = import_module("distributed")  # need not be installed, and has no types
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with (
        distributed.LocalCluster(
            n_workers=n, threads_per_worker=threads, processes=True, dashboard_address=None,
            memory_limit=0,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        client.get_task_stream(start=0, stop=0)  # from now on the scheduler takes notes
        yield client


def _train(job: dict[str, Any], client: Any, **options: Any) -> Any:
    settings = {
        "normalize": "log1p", "memory": job["memory"], "random_state": job["repeat"],
        **job["settings"], **options,
    }  # fmt: skip
    labels = settings.pop("labels", "cell_type")
    names = ", ".join(map(repr, job["held_out"]))
    return train(
        job["store"], labels, client=client, progress=False,
        where=f"donor_id not in [{names}]" if names else None, **settings,
    )  # fmt: skip


def warmed(job: dict[str, Any], client: Any) -> None:
    """Train as the job asks, but on few cells."""
    few = _FEW if job["settings"].get("mini_batch") else {}
    _train(job | {"store": job["small"], "held_out": []}, client, **few)


def sent() -> int:
    """Bytes that processes of this machine have sent each other over its own network."""
    nics = psutil.net_io_counters(pernic=True)
    return sum(nic.bytes_sent for name, nic in nics.items() if name.startswith("lo"))


def held() -> int:
    """Bytes that this process holds; its high-water mark begins again here."""
    release_freed()
    set_back_high_water()
    return int(psutil.Process().memory_info().rss)


def everywhere(client: Any, function: Callable[[], int]) -> list[int]:
    """What a function gives here, and then on each worker."""
    return [function(), *([] if client is None else client.run(function).values())]


def above(client: Any, before: list[int]) -> dict[str, int]:
    """Most bytes that this process, and its workers together, held above what they held before."""
    driver, *others = np.subtract(everywhere(client, high_water), before).tolist()
    return {"driver_rss": driver, "workers_rss": sum(others)}


def noted(client: Any) -> list[dict[str, Any]]:
    """All that the scheduler has taken notes of.

    Not from a time on: it sets the workers' clocks by how long their messages took, so that tasks
    of a busy machine may seem to have ended before they were asked for.
    """
    found: list[dict[str, Any]] = client.get_task_stream(start=0)
    return found


def tasks_of(stream: list[dict[str, Any]]) -> list[Task]:
    """Tasks of the scheduler's notes, in the order in which they began."""
    found = []
    for each in stream:
        for part in each["startstops"]:
            if part["action"] == "compute":
                name = each["key"].rsplit("-", 2)[0]  # before the run's name and the number
                found.append((name, each["worker"], part["start"], part["stop"]))
    return sorted(found, key=lambda task: task[2])


def spans(tasks: list[Task]) -> dict[str, float]:
    """Seconds from the first of a kind of tasks to the end of the last: reading, and training."""
    kinds = {"reading": [t for t in tasks if t[0] == "read-cells"],
             "training": [t for t in tasks if t[0] != "read-cells"]}  # fmt: skip
    return {
        f"{kind}_s": max(task[3] for task in of) - min(task[2] for task in of)
        for kind, of in kinds.items()
        if of
    }


def ours(job: dict[str, Any]) -> Iterator[Any]:
    """Train by `workers` of `threads` threads each, or by this process alone where there are none.

    Memory is what processes held at most above what they held before, the libraries.
    """
    if not job["workers"]:
        yield from _ours(job, None)
        return
    with workers(job["workers"], job["threads"]) as client:
        yield from _ours(job, client)


def _ours(job: dict[str, Any], client: Any) -> Iterator[Any]:
    warmed(job, client)
    before = everywhere(client, held)
    yield
    earlier = 0 if client is None else len(noted(client))
    clock, wire = time.perf_counter(), sent()
    model = _train(job, client, **({"n_jobs": job["threads"]} if client is None else {}))
    seconds, wire = time.perf_counter() - clock, sent() - wire
    found: dict[str, Any] = {"seconds": seconds, "cells": model.provenance["n_cells"]}
    found |= above(client, before)
    data = model.dataset
    if job["settings"].get("use_SGD"):
        found["steps"] = int(np.max(data.attrs["t"])) - 1
    else:
        found["passes"] = int(data["n_passes"].max())
    if client is not None:
        found |= spans(tasks_of(noted(client)[earlier:])) | {"sent": wire}
    yield found
    yield weights_of(model)


def rates(job: dict[str, Any]) -> Iterator[Any]:
    """Measure what one core takes for each part of the work, by a worker that has no more.

    Trainings by few and many epochs, by classes that fill one cache line and several, and with
    averaged weights tell the parts apart by their differences.
    """
    with workers(1, 1) as client:
        client.run(_pinned)
        warmed(job, client)
        warmed(job | {"settings": {}}, client)
        atlas = client.submit(_atlas, job).result()
        yield
        own = client.submit(_own, job["planned"]).result() | _between(client)
        found = atlas | own | _of_sgd(job, client)
        found |= _of_logistic(job, client, found)
        yield {"rates": found}


def _pinned() -> None:
    """Keep this process to one core; threads that come later stay there, too."""
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0))
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, {core})


def _atlas(job: dict[str, Any]) -> dict[str, float]:
    """What an atlas has of everything, and seconds to read a cell without more."""
    with Threads(1) as threads, closing(open_source(job["store"], threads=threads)) as source:
        expression = expression_of(
            source, None, normalize="log1p", check=None, dtype="float32", threads=threads
        )
        start, entries = time.perf_counter(), 0
        for position, rows in sweep(source, None, BLOCK):
            entries += len(expression(rows, position).data)
        seconds, n_obs = time.perf_counter() - start, source.n_obs
        classes = len(source.obs("cell_type").cat.categories)
    files = [path for path in Path(job["store"]).rglob("*") if path.is_file()]
    values = zarr.open_array(Path(job["store"]) / "X/data", mode="r")
    return {
        "genes": source.n_vars, "classes": classes, "entries": entries / n_obs, "cells": n_obs,
        "stored": sum(path.stat().st_size for path in files) / n_obs,
        "chunk": values.chunks[0] * n_obs / entries, "decode": seconds / n_obs,
    }  # fmt: skip


def _own(n_obs: int) -> dict[str, float]:
    """Seconds to plan an epoch of few of the cells, for each of them; to add a byte to another."""
    codes = np.random.default_rng(0).integers(0, 10, n_obs).astype(np.int32)
    start = time.perf_counter()
    plan = Plan(codes, 10, batch_size=1000, batch_number=1, epochs=1, balance=False, shuffle=True,
                seed=0)  # fmt: skip
    recorder(np.ones(n_obs, bool))(plan.epoch(0).astype(np.int64))
    planning = (time.perf_counter() - start) / n_obs
    one = np.ones(_ARRAY // 8)
    start = time.perf_counter()
    for _ in range(4):  # each into new memory, as sums are merged
        one = one + one
    return {"plan": planning, "add": (time.perf_counter() - start) / 4 / _ARRAY}


def _between(client: Any) -> dict[str, float]:
    """Seconds of a task, of many at a time and of one alone, and of a byte that is sent."""
    from streamtrain.cluster.workers import Workers

    with Workers(client) as crew:
        begun = [crew.submit("nothing", abs, i) for i in range(_TASKS)]  # the first are slow
        for task in begun:
            crew.result(task)
        start = time.perf_counter()
        begun = [crew.submit("nothing", abs, i) for i in range(_TASKS)]
        for task in begun:
            crew.result(task)
        many = (time.perf_counter() - start) / _TASKS
        start = time.perf_counter()
        for i in range(_TASKS // 10):
            crew.result(crew.submit("nothing", abs, i))
        alone = (time.perf_counter() - start) / (_TASKS // 10)
        value = np.zeros(_ARRAY // 8)
        start = time.perf_counter()
        crew.share(value)
        wire = (time.perf_counter() - start) / _ARRAY
    return {"task": many, "trip": alone, "wire": wire}


def _run(job: dict[str, Any], client: Any, **options: Any) -> tuple[list[Task], float]:
    """Train; what tasks there were, and the seconds of all."""
    earlier, clock = len(noted(client)), time.perf_counter()
    _train(job, client, n_jobs=1, **options)
    seconds = time.perf_counter() - clock
    return tasks_of(noted(client)[earlier:]), seconds


def _seconds(tasks: list[Task], name: str) -> float:
    """Of all tasks of a kind."""
    return sum(stop - start for each, _, start, stop in tasks if each == name)


def _of_sgd(job: dict[str, Any], client: Any) -> dict[str, float]:
    """Seconds a cell of reading, of loading, and of a step by its parts; of what is around them."""
    with closing(open_source(job["store"])) as source:
        codes = source.obs("cell_type").cat.codes.to_numpy()
    n_obs, epochs = len(codes), job["settings"]["epochs"]
    line = np.array([f"type {code % LINE}" for code in codes])
    once, whole = _run(job, client, labels=line, epochs=1)
    often, _ = _run(job, client, labels=line)
    wide, _ = _run(job, client)
    averaged, _ = _run(job, client, average=True)
    of_once, *others = (_seconds(t, "train-classes") for t in (once, often, wide, averaged))
    each = (others[0] - of_once) / (epochs - 1) / n_obs
    load = max(0.0, of_once / n_obs - each)
    of_wide, of_averaged = (seconds / n_obs - load for seconds in others[1:])
    lines = -(-(int(codes.max()) + 1) // LINE)
    a_line = max(0.0, (of_wide / epochs - each) / (lines - 1))
    step = max(0.0, each - a_line)
    return {
        "read": _seconds(wide, "read-cells") / n_obs, "load": load, "step": step, "line": a_line,
        "line_averaged": max(0.0, (of_averaged / epochs - step) / lines),
        "start": whole - sum(spans(once).values()),
    }  # fmt: skip


def _of_logistic(job: dict[str, Any], client: Any, known: dict[str, float]) -> dict[str, float]:
    """Seconds to turn a cell by gene, of a multiply-add, and of the driver's step of a weight."""
    settings = {"max_iter": job["max_iter"]}
    tasks, _ = _run(job | {"settings": settings}, client)
    sums = [task for task in tasks if task[0] == "sum-cells"]
    first, *others = (stop - start for _, _, start, stop in sums)
    a_pass, cells = median(others), known["cells"]
    weights = known["genes"] * known["classes"]
    gaps = [two[2] - one[3] for one, two in pairwise(sums)]
    travels = known["trip"] + 2 * 8 * weights * known["wire"]
    return {
        "tile": max(0.0, (first - a_pass) / cells - known["load"]),
        "multiply_add": a_pass / (2 * cells * known["entries"] * known["classes"]),
        "optimise": max(0.0, median(gaps) - travels) / weights,
    }  # fmt: skip
