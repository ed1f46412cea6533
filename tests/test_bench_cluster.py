"""The cluster suite: its model against sums by hand, what it times, and the work it refuses."""

import json
from contextlib import closing
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import cluster_model, cluster_tables, measuring, report, settings
from benchmarks.cluster_model import LINE, Assumed, Crew, Job, Rates, _Model, nodes, predict
from benchmarks.contenders import cluster as contender
from benchmarks.measuring import Case, WrongWorkError
from benchmarks.suites import cluster as suite
from streamtrain import open_source, simulate
from streamtrain.errors import InputError
from streamtrain.pairwise import PairwiseSum, stretch_of

# Of a cell 1 s to read, 2 to decode, 4 to load; nothing else takes time.
NOTHING = Rates(**dict.fromkeys(Rates.__dataclass_fields__, 0.0))
READS = replace(NOTHING, read=1.0, decode=2.0, load=4.0, entries=10.0, stored=100.0, chunk=1.0)
STEPS = replace(NOTHING, step=1.0, line=10.0, line_averaged=30.0, entries=10.0, chunk=1.0)
FAST = Assumed(network=np.inf, storage=np.inf)
LIKELY = Rates(
    read=4e-5, decode=2e-5, load=5e-6, step=1e-5, line=1e-5, line_averaged=2e-5, tile=2e-5,
    multiply_add=2e-10, add=5e-10, optimise=5e-8, plan=1e-8, start=0.3, task=1e-3, trip=5e-3,
    wire=1e-9, entries=2500.0, stored=5000.0, chunk=400.0,
)  # fmt: skip
UNIT = stretch_of(1)
SGD = Job("SGD", 8 * UNIT, 100, 100, draws=1000, taken=8 * UNIT)
LOGISTIC = Job("logistic", 8 * UNIT, 100, 10, passes=3)
ALL = [
    Job("mini", 10**7, 30_000, 100, draws=10**6, epochs=10, taken=950_000),
    Job("copies", 10**7, 30_000, 100, draws=10**6, epochs=10, taken=950_000, replicas=0,
        most_replicas=100),
    Job("recipe", 10**7, 30_000, 100, draws=150_000, epochs=30, taken=170_000, averaged=True,
        settings=3, folds=5, judged=20_000),
    Job("epochs", 10**7, 30_000, 100, draws=5 * 10**7, epochs=5),
    Job("logistic", 10**7, 30_000, 100, passes=60),
    Job("two", 10**7, 30_000, 2, passes=60),
    Job("few", 100, 300, 5, draws=1000, epochs=10),
]  # fmt: skip


@pytest.mark.parametrize("start", range(12))
def test_nodes__as_a_sum_of_neighbours_holds(start):
    for stop in range(start, start + 40):
        sums = PairwiseSum()
        for number in range(start, stop):
            sums.add(1, number)
        assert nodes(start, stop) == len(sums._nodes)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_read__by_hand(workers):
    found = predict(SGD, Crew(workers), READS, FAST)
    assert found.reading == 8 * UNIT / workers
    assert found.stored >= 8 * UNIT * 100


def test_read__stretches_that_do_not_go_into_the_workers():
    """Nine stretches by four: one has three, or by eight: two."""
    job = replace(SGD, cells=9 * UNIT)
    assert predict(job, Crew(4), READS, FAST).reading == 3 * UNIT
    assert predict(job, Crew(8), READS, FAST).reading == 2 * UNIT
    assert predict(job, Crew(100), READS, FAST).reading == UNIT
    assert predict(replace(SGD, cells=100), Crew(4), READS, FAST).reading == 100


def test_read__storage_that_is_slower_than_the_workers():
    slow = Assumed(network=np.inf, storage=50.0)
    assert predict(SGD, Crew(8), READS, slow).reading == 8 * UNIT * 100 / 50


@pytest.mark.parametrize(("workers", "own"), [(1, 1.0), (2, 0.5), (4, 0.25)])
def test_load__what_another_has_read_is_decoded_again(workers, own):
    n = 8 * UNIT
    apart = predict(SGD, Crew(workers), READS, FAST)
    assert apart.loading == n * (own * 4 + (1 - own) * 2)
    assert apart.stored == 100 * n * (1 + workers * (1 - own))
    shared = predict(SGD, Crew(workers, shared=True), READS, FAST)
    assert (shared.loading, shared.stored) == (4 * n, 100 * n)


def test_load__chunks_are_decoded_whole():
    """A tenth of the cells lies in a tenth of the chunks of a cell, in nearly all of a hundred."""
    job = replace(SGD, taken=8 * UNIT // 10)
    ones = predict(job, Crew(2), replace(READS, load=0.0), FAST)
    assert ones.loading == pytest.approx(0.1 * 8 * UNIT / 2 * 2, rel=1e-4)
    hundreds = predict(job, Crew(2), replace(READS, load=0.0, chunk=100.0), FAST)
    assert hundreds.loading == pytest.approx(8 * UNIT / 2 * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("workers", "busy", "lines"),
    [(1, 1, 7), (2, 2, 4), (4, 4, 2), (7, 7, 1), (8, 7, 1), (99, 7, 1)],
)
def test_descend__lines_are_shared_out(workers, busy, lines):
    """A hundred classes are seven lines; every worker takes every step."""
    assert -(-100 // LINE) == 7
    found = predict(SGD, Crew(workers), STEPS, FAST)
    assert (found.busy, found.training) == (busy, 1000 * (1 + 10 * lines))
    averaged = predict(replace(SGD, averaged=True), Crew(workers), STEPS, FAST)
    assert averaged.training == 1000 * (1 + 30 * lines)


def test_descend__threads_share_lines_and_cores():
    assert predict(SGD, Crew(1, 2), STEPS, FAST).training == pytest.approx(1000 * (0.5 + 10 * 3.5))
    assert predict(SGD, Crew(7, 8), STEPS, FAST).training == 1000 * (1 / 8 + 10)
    assert predict(SGD, Crew(4, 1, cores=2), STEPS).training == 2 * 1000 * (1 + 10 * 2)
    assert predict(SGD, Crew(2, 1, cores=4), STEPS).training == 1000 * (1 + 10 * 4)


def test_descend__weights_come_at_the_end_of_each_task():
    """Of 5, 10, 20 and 40 s: 1000 steps of 40 ms are four tasks."""
    job = replace(SGD, cells=1000, taken=1000, classes=LINE)
    rates = replace(NOTHING, step=0.04, chunk=1.0)
    sent = predict(job, Crew(1), rates, FAST).sent
    assert sent - predict(job, Crew(1), NOTHING, FAST).sent == 4 * 4 * 100 * LINE
    planned = predict(job, Crew(1), replace(rates, plan=1e-3), FAST).training
    assert planned == pytest.approx(40 + 4 * 1e-3 * 1000)


def test_descend__settings_are_tried_side_by_side():
    job = replace(SGD, settings=3, folds=5, averaged=True, epochs=2, judged=100)
    each = 1000 * (1 + 5 * 7 * 30)
    for workers, turns in ((1, 3), (2, 2), (3, 1), (8, 1)):
        assert predict(job, Crew(workers), STEPS, FAST).searching == turns * each
    scored = replace(STEPS, multiply_add=1.0)
    more = 2 * 100 * 10 * 100  # epochs, cells, entries, classes
    assert predict(job, Crew(3), scored, FAST).searching == each + more


@pytest.mark.parametrize(("workers", "each"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_descend__copies_are_shared_out(workers, each):
    job = replace(SGD, replicas=4, most_replicas=10)
    found = predict(job, Crew(workers), STEPS, FAST)
    assert found.busy == min(4, workers)
    assert found.training == 1000 / 4 * each * (1 + 70)


def test_descend__a_copy_for_each_worker_up_to_the_batches():
    job = replace(SGD, replicas=0, most_replicas=10)
    for workers, copies in ((2, 2), (10, 10), (64, 10)):
        found = predict(job, Crew(workers), STEPS, FAST)
        assert (found.busy, found.training) == (copies, 1000 / copies * 71)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_solve__by_hand(workers):
    rates = replace(NOTHING, multiply_add=1.0, tile=5.0, optimise=7.0, entries=10.0, chunk=1.0)
    found = predict(LOGISTIC, Crew(workers), rates, FAST)
    cells = 8 * UNIT / workers
    assert found.training == 3 * cells * 10 * 10 * 2
    assert found.loading == 5 * cells
    assert found.driving == 3 * 100 * 10 * 7
    assert found.busy == workers


def test_solve__more_workers_than_stretches():
    rates = replace(NOTHING, multiply_add=1.0, entries=10.0)
    eight, many = (predict(LOGISTIC, Crew(n), rates, FAST) for n in (8, 100))
    assert (many.busy, many.training) == (8, eight.training)


@pytest.mark.parametrize(
    ("workers", "merges", "sums"),
    [
        (1, 0, 1),  # one sum of eight goes to the driver
        (2, 1, 2),  # half of them to the other half
        (4, 2, 4),
        (8, 3, 8),
        (3, 2, 2 + 2 + 1),  # 2, 3 and 3: of (2-5) two sums, of (5-8) two
    ],
)
def test_solve__sums_merge_in_a_tree(workers, merges, sums):
    """A sum is a slope, 8 bytes of each of 1,000 weights; a byte takes a second."""
    rates = replace(NOTHING, wire=1.0)
    model = _Model(LOGISTIC, Crew(workers), rates, FAST)
    seconds, sent = model._tree([8 * i // workers for i in range(workers + 1)], 8000.0)
    assert sent == 8000 * sums
    moves = merges + (workers == 3) * 2  # two at a time, both times
    assert seconds == 8000 * (moves + 1)


@pytest.mark.parametrize(("workers", "turns"), [(1, 1), (2, 3), (3, 3), (4, 5), (9, 5), (10, 7)])
def test_share__those_that_have_it_send_it_on(workers, turns):
    model = _Model(SGD, Crew(workers), replace(NOTHING, wire=1.0, trip=0.5), FAST)
    assert model.share(100) == turns * 100 + 0.5
    assert model.found.sent == workers * 100


def test_predict__network_that_is_slower_than_pickling():
    rates = replace(NOTHING, wire=1e-9)
    for network, byte in ((1e6, 1e-6), (1e12, 1e-9)):
        assert _Model(SGD, Crew(2), rates, Assumed(network=network)).byte == byte
    assert _Model(SGD, Crew(2, cores=2), rates, Assumed(network=1e6)).byte == 1e-9


@pytest.mark.parametrize("job", ALL, ids=lambda job: job.name)
@pytest.mark.parametrize("shared", [False, True])
def test_predict__what_holds_of_any_job(job, shared):
    found = [predict(job, Crew(2**i, shared=shared), LIKELY) for i in range(9)]
    for one in found:
        values = asdict(one)
        assert all(np.isfinite(value) and value >= 0 for value in values.values())
        names = ("reading", "loading", "searching", "training", "between", "driving", "start")
        assert one.seconds == pytest.approx(sum(values[name] for name in names))
        assert one.stored >= job.cells * LIKELY.stored
    for less, more in pairwise(found):
        assert more.busy >= less.busy
        assert more.training + more.searching <= (less.training + less.searching) * (1 + 1e-9)
        assert more.held <= less.held * (1 + 1e-9)
        if job.name != "few":  # the longest of so many ranges may be longer, but for a task's time
            assert more.reading <= less.reading * (1 + 1e-9) + 0.001 * 4 * 256
    if shared:
        assert all(one.stored == job.cells * LIKELY.stored for one in found)


STREAM = [
    {"key": "sum-cells-0a1b-3", "worker": "tcp://a", "startstops": [
        {"action": "transfer", "start": 2.0, "stop": 2.5},
        {"action": "compute", "start": 2.5, "stop": 4.0}]},
    {"key": "read-cells-0a1b-1", "worker": "tcp://a", "startstops": [
        {"action": "compute", "start": 0.5, "stop": 1.0}]},
    {"key": "read-cells-0a1b-2", "worker": "tcp://b", "startstops": [
        {"action": "compute", "start": 0.0, "stop": 1.5}]},
    {"key": "merge-sums-0a1b-4", "worker": "tcp://b", "startstops": [
        {"action": "compute", "start": 4.5, "stop": 4.75}]},
]  # fmt: skip


def test_tasks_of__the_scheduler_s_notes():
    tasks = contender.tasks_of(STREAM)
    assert [task[0] for task in tasks] == ["read-cells", "read-cells", "sum-cells", "merge-sums"]
    assert contender.spans(tasks) == {"reading_s": 1.5, "training_s": 2.25}
    assert contender.spans(tasks[:2]) == {"reading_s": 1.5}
    assert contender._seconds(tasks, "read-cells") == 2.0


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """An atlas of 1,300 cells of 20 types, which is the small one, too."""
    path = tmp_path_factory.mktemp("cluster") / "a.zarr"
    simulate(path, n_obs=1_300, n_vars=150, n_types=20, n_donors=3, progress=False)
    mini = {"use_SGD": True, "mini_batch": True, "batch_size": 100, "batch_number": 13, "epochs": 2}
    return {
        "store": str(path), "small": str(path), "memory": "500MB", "held_out": [], "repeat": 0,
        "threads": 1, "workers": 0, "settings": mini, "max_iter": 2, "planned": 1000,
        "batch_size": 100, "epochs": 2, "cells": 1_300,
    }  # fmt: skip


def done(work):
    """What a contender did, and its evidence."""
    next(work)
    found = next(work)
    return found, next(work, None)


@pytest.fixture(scope="module")
def alone(job):
    return done(contender.ours(job))


def test_ours__by_one_process(alone):
    found, evidence = alone
    assert (found["cells"], found["steps"], found["workers_rss"]) == (1_300, 2_600, 0)
    assert found["seconds"] > 0
    assert evidence["coef"].shape[0] == 20


@pytest.mark.slow
def test_ours__by_workers(job, alone):
    found, evidence = done(contender.ours(job | {"workers": 2}))
    np.testing.assert_array_equal(evidence["coef"], alone[1]["coef"])
    assert (found["cells"], found["steps"]) == (1_300, 2_600)
    assert min(found["reading_s"], found["training_s"]) > 0
    assert found["sent"] > evidence["coef"].size * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of few steps
def test_rates__of_one_core(job):
    found, _ = done(contender.rates(job))
    rates = Rates.of(found["rates"])
    assert all(value >= 0 for value in asdict(rates).values())
    with closing(open_source(job["store"])) as source:
        entries = len(source.read(0, 1_300).data)
    assert rates.entries == entries / 1_300
    assert found["rates"]["classes"] == 20
    assert min(rates.read, rates.decode, rates.multiply_add, rates.task, rates.wire) > 0
    assert rates.trip > rates.task
    case = Case("rates", job, (suite.RATES,), about={"group": "rates"})
    suite.check(case, {}, {suite.RATES.name: [found]})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dask-ml calls what is deprecated
@pytest.mark.parametrize("way", ["incremental", "logistic"])
def test_dask_ml__is_a_model_of_the_cells(job, way):
    dask_ml = pytest.importorskip("benchmarks.contenders.dask_ml")
    held_out = {"held_out": ["donor_1"], "workers": 1}
    found, evidence = done(getattr(dask_ml, way)(job | held_out))
    name = {"incremental": "SGD", "logistic": "logistic regression"}[way]
    ours = job | held_out | ({"settings": {}} if way == "logistic" else {})
    case = Case("case", ours, (), about={"group": "dask-ml"}, reference=job["store"])
    lines = {suite.THEIRS[name].name: [{"contender": suite.THEIRS[name].name, **found}]}
    suite.check(case, {who: [evidence] for who in lines}, lines)
    [[line]] = lines.values()
    assert line["macro_f1"] > 0.1  # of 20 types, after so few steps; one type for all: 0.02
    assert found["cells"] < 1_300
    assert found.get("steps", 2 * found["cells"]) == 2 * found["cells"]


def one_process(job, found, evidence, ways=None):
    """A case that one process did rightly, and two workers as is given."""
    case = Case(
        "case", {**job, "settings": ways or job["settings"]}, (),
        about={"group": "one process", "shape": {"cells": 1_300}},
    )  # fmt: skip
    line = {"cells": 1_300, "steps": 2_600, "repeat": 0}
    right = {"coef": np.ones((3, 4)), "intercept": np.ones(3)}
    suite.check(
        case, {cluster_tables.ALONE: [right], "2 workers": [right | evidence]},
        {cluster_tables.ALONE: [line], "2 workers": [line | found]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "evidence", "message"),
    [
        ({"cells": 1_299}, {}, "2 workers had 1299 cells of 1300"),
        ({"steps": 2_599}, {}, "2 workers took 2599 steps of 2600"),
        ({}, {"coef": np.full((3, 4), 1 + 1e-15)}, "2 workers gave another coef than one process"),
        ({}, {"intercept": np.zeros(3)}, "2 workers gave another intercept than one process"),
    ],
)
def test_check__workers_do_as_one_process(job, found, evidence, message):
    one_process(job, {}, {})
    with pytest.raises(WrongWorkError, match=f"case: {message}"):
        one_process(job, found, evidence)


def test_check__steps_as_asked_for(job):
    one_process(job, {}, {}, ways={"use_SGD": True, "max_iter": 2})
    one_process(job, {"steps": 1}, {}, ways=job["settings"] | {"replicas": 2})
    with pytest.raises(WrongWorkError, match="one process took 2600 steps of 3900"):
        one_process(job, {}, {}, ways={"use_SGD": True, "max_iter": 3})


def test_check__rates_that_cannot_be():
    case = Case("rates", {}, (), about={"group": "rates"})
    suite.check(case, {}, {"one core": [{"rates": {"read": 0.0}}]})
    for wrong in (-1e-9, np.inf, np.nan):
        with pytest.raises(WrongWorkError, match=r"not finite: \{'step'"):
            suite.check(case, {}, {"one core": [{"rates": {"read": 1.0, "step": wrong}}]})


def beside_dask_ml(job, alone, change=None, **other):
    """Ours, and a model of the same, with what is changed, by another."""
    found, evidence = alone
    case = Case("case", job, (), about={"group": "dask-ml"}, reference=job["store"])
    case = replace(case, job=job | {"held_out": ["donor_1"]})
    with closing(open_source(job["store"])) as source:
        cells = int((source.obs("donor_id") != "donor_1").sum())
    lines = {
        name: [{"contender": name, "steps": found["steps"], "cells": cells, **more}]
        for name, more in (("streamtrain", {}), ("theirs", other))
    }
    suite.check(case, {"streamtrain": [evidence], "theirs": [evidence | (change or {})]}, lines)
    return [line["macro_f1"] for [line] in lines.values()]


def test_check__dask_ml(job, alone):
    ours, theirs = beside_dask_ml(job, alone)
    assert ours == theirs > 0.3
    with pytest.raises(WrongWorkError, match="case: theirs had 7 cells, not"):
        beside_dask_ml(job, alone, cells=7)
    with pytest.raises(WrongWorkError, match=r"the steps differ: \[7, 2600\]"):
        beside_dask_ml(job, alone, steps=7)
    with pytest.raises(WrongWorkError, match=r"theirs reached a macro-F1 of 0\.\d\d on"):
        beside_dask_ml(job, alone, {"coef": -alone[1]["coef"]})


def test_cases(monkeypatch, job):
    monkeypatch.setattr(suite, "atlas", lambda *_, **__: job["store"])
    smoke = settings.load("cluster", ["size=smoke"])
    cases = suite.cases(smoke)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) == 10
    crews = [
        [(who.options["workers"], who.options["threads"]) for who in case.contenders]
        for case in suite.cases(smoke | {"more_workers": [2, 4]})[:7]
    ]
    assert crews == [[(0, 2), (1, 2)], [(0, 2), (2, 1), (4, 1)]] * 3 + [[(0, 2), (2, 1), (4, 1)]]
    assert [len(case.contenders) for case in cases[:7]] == [2] * 7
    assert {bool(who.needs) for who in cases[0].contenders} == {False, True}
    assert cases[6].job["settings"]["replicas"] == 4 <= smoke["batch_number"]
    assert cases[-1].job["held_out"] == ["donor_2"]
    with pytest.raises(InputError, match="dask_held_out must be at least 1 and less than donors=8"):
        suite.cases(smoke | {"dask_held_out": 8})


@pytest.fixture
def lines(monkeypatch, job):
    """As of a run, with made-up figures: one worker takes a tenth longer, four half as long."""
    monkeypatch.setattr(suite, "atlas", lambda *_, **__: job["store"])
    found = []
    for case in suite.cases(settings.load("cluster")):
        for who in case.contenders:
            n = who.options.get("workers", 0)
            for repeat in range(case.repeats or 3):
                line = {
                    "suite": "cluster", "set": [], **measuring._record(case, who),
                    "repeat": repeat, "cpu_seconds": 5.0, "peak_rss": 10**9,
                    "seconds": (10.0 if n == 0 else 11.0 if n == 1 else 20.0 / n) + 0.1 * repeat,
                    "driver_rss": 10**8, "workers_rss": n * 10**8, "macro_f1": 0.8,
                    "passes": 9,
                } | ({"sent": 10**6, "reading_s": 1.0, "training_s": 2.0} if n else {})  # fmt: skip
                if case.about["group"] == "rates":
                    line["rates"] = asdict(LIKELY) | {"genes": 3e4, "cells": 16384.0}
                elif "dask" in who.name:
                    line |= {"seconds": 40.0, "workers_rss": 4 * 10**8}
                found.append(line)
    return found


def test_report__tables_of_all_groups(lines, tmp_path):
    path = tmp_path / "cluster.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report.write(tmp_path, "cluster")
    rows = [row for row in text.splitlines() if row.startswith("|")]
    [one] = [row for row in rows if row.startswith("| SGD, whole epochs | 1 worker x 2 | 11.10 |")]
    assert one.split("|")[4:6] == [" 1.10 ", " 1.09 - 1.11 "]
    theirs = "| dask-ml, SGD | dask-ml, Incremental | 10.00 | 40.00 | 4.0 | 300 | 500 | 0.800 |"
    assert any(row.startswith(theirs) for row in rows)
    assert text.count("### ") == 2 * 5
    # Of the model, one row for each number of workers in every table.
    assert sum(row.startswith("| 256 |") for row in rows) == 10
    assert (tmp_path / "cluster.png").exists()


def test_report__without_rates_there_is_no_model(lines, tmp_path):
    some = [line for line in lines if "rates" not in line]
    assert cluster_tables.larger(some) == cluster_tables.checked(some) == []
    assert cluster_tables.beside_one_process([]) == cluster_tables.beside_dask_ml([]) == []
    assert len(cluster_tables.beside_one_process(some)) == 4 + 2 + 3 * 5 + 3


def test_jobs__as_the_settings_are():
    model = {"model_genes": 300, "model_classes": 20, "model_epochs": 2, "model_passes": 7}
    mini, copies, recipe, epochs, logistic = cluster_tables.jobs(model, 10**6)
    assert (mini.draws, mini.epochs) == (10**6, 10)
    assert mini.taken == pytest.approx(10**6 * (1 - 0.9**10), abs=1)
    assert copies == replace(mini, name=copies.name, replicas=0, most_replicas=100)
    assert (recipe.draws, recipe.settings, recipe.folds) == (150_000, 3, 5)
    assert (epochs.draws, epochs.taken, logistic.passes) == (2 * 10**6, 0, 7)


@pytest.mark.parametrize(
    ("seconds", "last", "stage"), [([100, 50, 45], 2, "reading"), ([100, 99], 1, "reading")]
)
def test_end__where_twice_the_workers_bring_little(seconds, last, stage):
    job = replace(SGD, draws=0)
    said = {2**i: replace(predict(job, Crew(1), NOTHING), reading=s) for i, s in enumerate(seconds)}
    words = f"Worth it up to {last} workers, where {stage} takes 100% of the time."
    assert cluster_tables._end(said) == words


def test_model__counts_as_training_does():
    pytest.importorskip("distributed")
    from streamtrain.cluster import reading, training

    assert cluster_model._RANGES == reading._TASKS
    assert (cluster_model._FIRST, cluster_model._LONGEST) == (training._FIRST, training._LONGEST)
