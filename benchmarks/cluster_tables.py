"""JSON lines of the cluster suite in; its tables, and those of its model for larger ones, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from benchmarks.cluster_model import LINE, Assumed, Crew, Job, Predicted, Rates, predict
from benchmarks.report import Line, grouped, middle, table
from streamtrain.config import Settings, with_recipe
from streamtrain.judged import MOST

ALONE = "one process"
OURS = "streamtrain"
_WORTH = 1.25  # times as fast by twice the workers; below, more are not worth it


def beside_one_process(lines: Sequence[Line]) -> list[str]:
    """Times of workers over that of one process in the same case."""
    body = []
    for (case, name), runs in _timed(lines, "one process").items():
        of = _timed(lines, "one process").get((case, ALONE))
        if of is None:
            continue
        alone = middle(of, "seconds")
        times = sorted(run["seconds"] / alone for run in runs)
        body.append([
            case, name, f"{middle(runs, 'seconds'):.2f}", f"{middle(runs, 'seconds') / alone:.2f}",
            "" if len(times) == 1 else f"{times[0]:.2f} - {times[-1]:.2f}",
            f"{middle(runs, 'cpu_seconds') / middle(of, 'cpu_seconds'):.2f}",
            f"{middle(runs, 'driver_rss') / 1e6:,.0f}", f"{middle(runs, 'workers_rss') / 1e6:,.0f}",
            f"{middle(runs, 'sent') / 1e6:,.0f}" if "sent" in runs[0] else "",
        ])  # fmt: skip
    if not body:
        return []
    cores = lines[0]["machine"]["cores"]
    titles = ["case", "by", "seconds", "of one process's", "range", "CPU s, of one process's",
              "driver, MB", "workers, MB", "sent, MB"]  # fmt: skip
    return [
        "## Workers beside one process", "",
        f"Workers x threads are on this machine, which has {cores} cores in all: four workers are "
        "two for each core of two. They exist and have trained once before the clock starts. Every "
        "model is that of one process, to the bit. Memory is what driver and workers (together) "
        "held at most above their libraries; sent is what processes sent each other.", "",
        *table(titles, body, words=2),
    ]  # fmt: skip


def beside_dask_ml(lines: Sequence[Line]) -> list[str]:
    """Times, memory and macro-F1 of dask-ml over ours."""
    found = _timed(lines, "dask-ml")
    body = []
    for (case, name), runs in found.items():
        ours = found.get((case, OURS))
        if name == OURS or ours is None:
            continue
        held = [middle(of, "driver_rss") + middle(of, "workers_rss") for of in (ours, runs)]
        times = middle(runs, "seconds") / middle(ours, "seconds")
        body.append([
            case, name, f"{middle(ours, 'seconds'):.2f}", f"{middle(runs, 'seconds'):.2f}",
            f"{times:.1f}", *(f"{nbytes / 1e6:,.0f}" for nbytes in held),
            f"{middle(ours, 'macro_f1'):.3f}", f"{middle(runs, 'macro_f1'):.3f}",
        ])  # fmt: skip
    if not body:
        return []
    titles = ["case", "by", "ours, s", "theirs, s", "theirs / ours", "ours, MB", "theirs, MB",
              "our macro-F1", "theirs"]  # fmt: skip
    return [
        "## Beside dask-ml", "",
        "File to model, by the same two workers of a thread each: ours, and dask-ml on dense "
        "blocks that its StandardScaler scaled and the workers hold. The same steps of SGD. Its "
        "LogisticRegression is of two classes, so one is fitted for each type, by L-BFGS and at "
        "most the steps that the settings allow; ours goes to the optimum. Memory is what driver "
        "and workers held together above their libraries; macro-F1 is on held-out donors.", "",
        *table(titles, body, words=2),
    ]  # fmt: skip


def _timed(lines: Sequence[Line], group: str) -> dict[tuple[str, str], list[Line]]:
    return grouped([line for line in lines if line["group"] == group and "seconds" in line])


def checked(lines: Sequence[Line]) -> list[str]:
    """What the model says of the runs by workers, beside what was measured."""
    rates = _rates(lines)
    if rates is None:
        return []
    body = []
    for (case, name), runs in _timed(lines, "one process").items():
        line = runs[0]
        if name == ALONE:
            continue
        job = _job(line)
        crew = Crew(
            line["job"]["workers"], line["job"]["threads"], shared=True,
            cores=line["machine"]["cores"],
        )  # fmt: skip
        said = predict(job, crew, rates)
        rest = said.seconds - said.reading - said.start
        body.append([
            case, name,
            *_pair(said.reading, middle(runs, "reading_s"), "{:.2f}"),
            *_pair(rest, middle(runs, "training_s"), "{:.2f}"),
            *_pair(said.seconds, middle(runs, "seconds"), "{:.2f}"),
            *_pair(said.sent / 1e6, middle(runs, "sent") / 1e6, "{:,.0f}"),
        ])  # fmt: skip
    if not body:
        return []
    titles = ["case", "by"]
    for what in ("reading, s", "training, s", "all, s", "sent, MB"):
        titles += [what, "measured"]
    return [
        "## The model beside what was measured", "",
        "What the rates of one core (below) say of the runs above. Training is from the first of "
        "its tasks to the end of the last.", "",
        *table(titles, body, words=2),
    ]  # fmt: skip


def _pair(said: float, found: float, form: str) -> tuple[str, str]:
    return form.format(said), form.format(found)


def _job(line: Line) -> Job:
    """What a measured run did."""
    ways, shape = line["job"]["settings"], line["shape"]
    cells = shape["cells"]
    job = Job(line["case"], cells, shape["genes"], shape["cell_types"])
    if not ways.get("use_SGD"):
        return replace(job, passes=line["passes"])
    if not ways.get("mini_batch"):
        epochs = ways["max_iter"]
        return replace(job, draws=epochs * cells, epochs=epochs)
    size = min(ways["batch_size"] * ways["batch_number"], cells)
    return replace(
        job, draws=size * ways["epochs"], epochs=ways["epochs"],
        taken=_distinct(cells, size, ways["epochs"]), replicas=ways.get("replicas", 1),
        most_replicas=ways["batch_number"],
    )  # fmt: skip


def _distinct(cells: int, draws: int, epochs: int) -> int:
    """Different cells in so many epochs, each without replacement, as are to be expected."""
    return round(cells * (1 - (1 - draws / cells) ** epochs))


def _rates(lines: Sequence[Line]) -> Rates | None:
    found = [line["rates"] for line in lines if "rates" in line]
    return Rates.of(found[0]) if found else None


def larger(lines: Sequence[Line]) -> list[str]:
    """What the model says of larger clusters and atlases, and what it takes for granted."""
    rates = _rates(lines)
    if rates is None:
        return []
    line = next(line for line in lines if "rates" in line)
    model = line["model"]
    assumed = Assumed(model["network"], model["storage"])
    parts = [
        "## Larger clusters and atlases: a model", "",
        *_stated(line["rates"], rates, model, assumed),
    ]  # fmt: skip
    for cells in model["model_cells"]:
        for job in jobs(model, cells):
            parts += ["", *_scaling(job, model["model_workers"], rates, assumed)]
    return parts


def jobs(model: Mapping[str, Any], cells: int) -> list[Job]:
    """Trainings on an atlas of so many cells: ours by default, by recipe and so on."""
    default = Settings()
    size = default.batch_size * default.batch_number
    plain = Job("", cells, model["model_genes"], model["model_classes"])
    mini = replace(
        plain, name=f"SGD, mini-batches ({default.epochs} epochs of {size:,})",
        draws=size * default.epochs, epochs=default.epochs,
        taken=_distinct(cells, size, default.epochs),
    )  # fmt: skip
    recipe = with_recipe({"recipe": "atlas"})
    draws = recipe["epochs"] * recipe["batch_size"] * recipe["batch_number"]
    taken = round(cells * (1 - (1 - 1 / cells) ** draws)) + MOST
    epochs, passes = model["model_epochs"], model["model_passes"]
    return [
        mini,
        replace(mini, name=f"{mini.name}, a copy for each worker (replicas)", replicas=0,
                most_replicas=default.batch_number),
        replace(plain, name="recipe atlas", draws=draws, epochs=recipe["epochs"],
                taken=min(cells, taken), averaged=True, settings=len(recipe["alpha"]),
                folds=recipe["folds"], judged=MOST),
        replace(plain, name=f"SGD, {epochs} whole epochs", draws=epochs * cells, epochs=epochs),
        replace(plain, name=f"logistic regression, {passes} passes", passes=passes),
    ]  # fmt: skip


def _stated(
    found: Mapping[str, float], rates: Rates, model: Mapping[str, Any], assumed: Assumed
) -> list[str]:
    """The rates, as sentences, and what is taken for granted."""
    lines = -(-model["model_classes"] // LINE)
    weights = model["model_genes"] * model["model_classes"]

    def a_second(seconds: float) -> str:
        return f"{1 / seconds:,.0f} cells/s" if seconds > 0 else "too fast to tell"

    return [
        f"Measured by one worker that is kept to one core, on {found['cells']:,.0f} cells x "
        f"{found['genes']:,.0f} genes with {rates.entries:,.0f} non-zero entries and "
        f"{rates.stored:,.0f} compressed bytes a cell:", "",
        f"- reading {a_second(rates.read)}, with checks, moments and files; decoding once more "
        f"{a_second(rates.decode)}; finding files of cells {a_second(rates.load)};",
        f"- a step of SGD takes {rates.step * 1e6:.1f} µs a cell, and {rates.line * 1e6:.1f} µs "
        f"for each {LINE} classes ({rates.line_averaged * 1e6:.1f} µs with averaged weights);",
        f"- logistic regression turns {a_second(rates.tile)} by gene, and does "
        f"{2e-9 / rates.multiply_add:.1f} GFLOP/s; the driver steps "
        f"{1e-6 / rates.optimise if rates.optimise else 0:,.1f} million weights/s;",
        f"- {1e6 * rates.task:,.0f} µs a task of many, {1e3 * rates.trip:.1f} ms for one alone; "
        f"{1e-6 / rates.wire:,.0f} MB/s between processes; sums add up at "
        f"{1e-9 / rates.add:.1f} GB/s; {rates.start:.2f} s of a job are neither reading nor "
        "training.", "",
        f"Taken for granted: a worker is one core, as fast as this one however many there are; a "
        f"machine sends and receives {assumed.network / 1e9:g} GB/s (10 Gbit/s is 1.25), and the "
        f"atlas is read at {assumed.storage / 1e9:g} GB/s by all together; it has "
        f"{model['model_genes']:,} genes and {model['model_classes']} types and is otherwise like "
        "the one measured; scratch is each worker's own, so that a worker decodes once more what "
        "it trains on and another has read (\"shared\" is the time where all workers have one "
        "scratch folder); cells that do not fit in memory come from scratch as fast; every class "
        "takes every pass of logistic regression; no worker dies.", "",
        f"Where it ends: SGD shares out classes, {LINE} (a cache line) at a time, so "
        f"{model['model_classes']} types keep {lines} workers busy, and each of them takes every "
        "step: more workers only read. What a step takes whatever the classes is not shared. "
        "Copies (`replicas`) go on to the number of mini-batches of an epoch. "
        "Logistic regression shares out cells, in at most 512 stretches; "
        f"it sends {8e-6 * weights:,.0f} MB of weights to each worker and as many of slopes back, "
        "in trees, every pass, and the driver's own step is not shared.",
    ]  # fmt: skip


def _scaling(job: Job, workers: Sequence[int], rates: Rates, assumed: Assumed) -> list[str]:
    """One table: a row for each number of workers."""
    said = {n: predict(job, Crew(n), rates, assumed) for n in workers}
    common = {n: predict(job, Crew(n, shared=True), rates, assumed) for n in workers}
    first = said[workers[0]].seconds
    body = [
        [f"{n}", f"{one.busy}", *map(_time, (
            one.reading, one.loading, one.searching + one.training, one.between, one.driving,
            one.seconds,
        )), f"{first / one.seconds:.1f}", _time(common[n].seconds), _size(one.stored),
         _size(one.sent), _size(one.held)]
        for n, one in said.items()
    ]  # fmt: skip
    titles = ["workers", "that train", "reading, s", "loading, s", "training, s", "network, s",
              "driver, s", "all, s", "times as fast", "shared, s", "read, GB", "sent, GB",
              "held by one, GB"]  # fmt: skip
    return [
        f"### {job.name}: {job.cells:,} cells", "", *table(titles, body, words=0), "",
        _end(said),
    ]  # fmt: skip


def _end(said: Mapping[int, Predicted]) -> str:
    """Say up to how many workers it is worth it, and what takes the time then."""
    numbers = list(said)
    last = numbers[0]
    for n, more in pairwise(numbers):
        if said[n].seconds < _WORTH * said[more].seconds:
            break
        last = more
    one = said[last]
    stages = {
        "reading": one.reading, "loading": one.loading, "training": one.searching + one.training,
        "the network": one.between, "the driver": one.driving, "starting": one.start,
    }  # fmt: skip
    most = max(stages, key=lambda name: stages[name])
    return (
        f"Worth it up to {last} workers, where {most} takes {stages[most] / one.seconds:.0%} of "
        "the time."
    )


def _time(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.0f}" if nbytes >= 1e11 else f"{nbytes / 1e9:,.1f}"
