"""Training by workers of dask in processes of their own, against one process; workers that die."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import streamtrain
from streamtrain import InputError, frozen
from streamtrain.cluster import training
from streamtrain.cluster.turns import turn
from streamtrain.cluster.workers import Shared, Workers
from streamtrain.journal import StoppedError
from tests import atlas
from tests.cluster import workers
from tests.killed import KilledError, killed_after
from tests.models import assert_same

QUIET = {"progress": False}
MINI = atlas.MINI | {"batch_size": 100, "batch_number": 5, "epochs": 3}
FOLDS = MINI | {"folds": 3, "n_iter_no_change": 1, "epochs": 6, "average": True}
WAYS = {
    "optimum": {"max_iter": 15},
    "optimum without l2": {"penalty": "l1", "solver": "saga", "max_iter": 15},
    "mini-batches": MINI,
    "averaged, priors corrected": MINI
    | {"balance_cell_type": True, "replace": True, "average": True, "correct_prior": True},
    "early stopping": MINI | {"early_stopping": True, "learning_rate": "adaptive", "eta0": 0.01},
    "whole epochs": {"use_SGD": True, "max_iter": 6},
    "selected genes": MINI | {"feature_selection": True, "top_genes": 5},
    "selected for the optimum": {"feature_selection": True, "top_genes": 10, "max_iter": 8},
    "trials": FOLDS | {"alpha": [1e-3, 1e-1], "step": [1.0, 0.1], "calibrate": True},
    "trials of one setting": FOLDS | {"validation_groups": "donor"},
    "copies averaged": MINI | {"replicas": 3, "average": True, "step": "auto"},
    "cells chosen": MINI | {"where": "donor != 'D1'", "sampling_weight": "n"},
    "counts": MINI | {"layer": "counts", "normalize": "log1p"},
}


@pytest.fixture(scope="module")
def client():
    with workers(2) as client:
        yield client


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """More cells than a stretch has, so that ranges are several."""
    path = tmp_path_factory.mktemp("atlas") / "atlas.h5ad"
    atlas.make(20_000, n_types=20).write_h5ad(path)
    return path


@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_train__to_the_bit(way, client, path):
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize("n", [1, 4])
def test_train__by_any_number_of_workers(n, path, tmp_path):
    ways = [
        MINI | {"memory": "400MB", "scratch": str(tmp_path)},
        {"dtype": "float64", "max_iter": 8},
    ]
    with workers(n, threads=3 - min(n, 2)) as client:
        for way in ways:
            one = streamtrain.train(path, "cell_type", **way, **QUIET)
            assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)
        assert not list(tmp_path.iterdir())


def test_train__two_types_of_several_files(client, tmp_path):
    for seed, name in enumerate(("a.h5ad", "b.h5ad")):
        atlas.make(300, n_types=2, seed=seed).write_h5ad(tmp_path / name)
    for way in (MINI, {}):
        one, other = (
            streamtrain.train(tmp_path, "cell_type", client=c, **way, **QUIET)
            for c in (None, client)
        )
        assert_same(one, other)


@pytest.mark.parametrize("option", ["warm_start", "init"])
def test_train__from_a_model(option, client, path):
    options = MINI | {"average": True}
    before = streamtrain.train(atlas.make(n_types=5), "cell_type", **options, **QUIET)
    one, other = (
        streamtrain.train(path, "cell_type", client=c, **options, **{option: before}, **QUIET)
        for c in (None, client)
    )
    assert_same(one, other)


def test_cross_validate__several_columns(client, path):
    options = FOLDS | {"alpha": [1e-3, 1e-1], "labels": ["cell_type", "donor"]}
    one, other = (
        streamtrain.cross_validate(path, client=c, **options, **QUIET) for c in (None, client)
    )
    assert one.table.equals(other.table)
    for name in ("cell_type", "donor"):
        assert_same(one.models[name], other.models[name])


def test_train__relative_paths_and_files_that_are_gone(client, path, monkeypatch):
    """Parts that another worker cannot open are read once more."""
    monkeypatch.chdir(path.parent)
    one = streamtrain.train(path.name, "cell_type", **MINI, **QUIET)
    read = training.first_pass

    def without_files(*given, **more):
        moments, parts = read(*given, **more)
        parts[0].path.with_suffix(".genes").unlink()
        with parts[1].path.with_suffix(".values").open("r+b") as file:
            file.truncate(1000)
        return moments, parts

    monkeypatch.setattr(training, "first_pass", without_files)
    assert_same(streamtrain.train(path.name, "cell_type", client=client, **MINI, **QUIET), one)


class Watched(Workers):
    """Calls a function with the client when classes are given out for the third time."""

    look = None

    def submit(self, name, *args, **more):
        task = super().submit(name, *args, **more)
        Watched.submitted += name == "train-classes"
        if name == "train-classes" and Watched.submitted == 3:
            Watched.seen = Watched.look(self.client)
        return task


@pytest.fixture
def watch(monkeypatch):
    """Train with weights that come back after every epoch, and look on."""

    def patch(look):
        monkeypatch.setattr(training, "Workers", Watched)
        monkeypatch.setattr(training, "_FIRST", 0.0)
        monkeypatch.setattr(Watched, "look", look)
        monkeypatch.setattr(Watched, "submitted", 0, raising=False)
        monkeypatch.setattr(Watched, "seen", None, raising=False)

    return patch


def test_train__cells_are_written_once(client, path, watch):
    """In three files of each worker that reads; none has a copy of its own."""

    def sizes(dask_worker):
        found = list(Path(dask_worker.local_directory).glob("streamtrain-*/*"))
        for file in Path("/proc/self/fd").glob("*"):  # Linux
            with suppress(FileNotFoundError):  # that of this listing
                if file.readlink().name.endswith("(deleted)"):
                    found.append(file)
        return [size for file in found if (size := file.stat().st_size)]

    watch(lambda client: client.run(sizes))
    streamtrain.train(path, "cell_type", client=client, use_SGD=True, max_iter=6, tol=None, **QUIET)
    found = list(Watched.seen.values())
    assert {len(sizes) for sizes in found} <= {0, 3}
    entries = atlas.make(20_000, n_types=20).X.nnz
    assert sum(map(sum, found)) == entries * (4 + 2) + 20_000 * 4


def test_train__files_that_go_while_it_trains(client, path, watch):
    """As those of a worker that has ended, on a disk of many machines."""

    def cut(dask_worker):
        files = list(Path(dask_worker.local_directory).glob("streamtrain-*/*.values"))
        for file in files:
            os.truncate(file, 1000)
        return len(files)

    way = MINI | {"epochs": 8}
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    watch(lambda client: client.run(cut))
    assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)
    assert sum(Watched.seen.values()) >= 1


def test_train__leaves_nothing_on_the_workers(client, path):
    streamtrain.train(path, "cell_type", client=client, **MINI, **QUIET)

    def left(dask_worker):
        from pathlib import Path

        from streamtrain.cluster import turns

        folders = Path(dask_worker.local_directory).glob("streamtrain-*")
        return len(turns._kept), [str(folder) for folder in folders], len(dask_worker.data)

    deadline = time.monotonic() + 10
    while any(found != (0, [], 0) for found in client.run(left).values()):
        assert time.monotonic() < deadline, client.run(left)
        time.sleep(0.1)


class Killer(Workers):
    """Kills a worker now and then, once tasks of a name have been submitted so often."""

    times = ()
    of = ""
    submitted = 0

    def submit(self, name, *args, **more):
        task = super().submit(name, *args, **more)
        if name == Killer.of:
            Killer.submitted += 1
            if Killer.submitted in Killer.times:
                while not (found := self.client.run(os.getpid, on_error="ignore")):
                    time.sleep(0.1)  # the last one has just died
                os.kill(next(iter(found.values())), signal.SIGKILL)
        return task


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "of", "times", "way"),
    [
        (1, "read-cells", (1, 2), MINI),
        (2, "train-classes", (2, 4), MINI | {"epochs": 12}),
        (2, "sum-cells", (3, 8), {"max_iter": 8}),
        (2, "train-copies", (2, 4), MINI | {"replicas": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_train__workers_killed_twice(n, of, times, way, path, monkeypatch):
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    monkeypatch.setattr(training, "Workers", Killer)
    monkeypatch.setattr(training, "_FIRST", 0.0)  # weights come back after every epoch at first
    monkeypatch.setattr(training, "_LONGEST", 0.1)
    monkeypatch.setattr(Killer, "of", of)
    monkeypatch.setattr(Killer, "times", times)
    monkeypatch.setattr(Killer, "submitted", 0)
    with workers(n) as client:
        pids = set(client.run(os.getpid).values())
        assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)
        client.wait_for_workers(n)
        assert not pids <= set(client.run(os.getpid).values())
    assert Killer.submitted >= max(times)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_train__a_worker_that_joins_late(path, monkeypatch):
    """And takes over some of the cells."""
    way = {"max_iter": 12}
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    on = []

    class Grows(Workers):
        def submit(self, name, *args, **more):
            if name == "sum-cells":
                on.append(more["on"])
                if len(on) == 3:
                    self.client.cluster.scale(2)
                    self.client.wait_for_workers(2, timeout=60)
            return super().submit(name, *args, **more)

    monkeypatch.setattr(training, "Workers", Grows)
    with workers(1) as client:
        assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)
    assert len(set(on[:3])) == 1
    assert len(set(on)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize("way", [MINI | {"epochs": 40}, {"tol": 1e-6, "max_iter": 40}])
def test_train__a_scheduler_that_is_killed(way, path, tmp_path, monkeypatch):
    """Leaves a run that goes on under another one, to the bit."""
    one, folder = streamtrain.train(path, "cell_type", **way, **QUIET), tmp_path / "run"
    dask = [sys.executable, "-m", "dask"]
    file = tmp_path / "scheduler.json"
    file_of = ["--scheduler-file", str(file), "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    monkeypatch.setattr(training, "_FIRST", 0.0)
    lost, names = monkeypatch.context(), []

    class Lost(Workers):
        def submit(self, name, *args, **more):
            names.append(name)
            if len([n for n in names if n in ("train-classes", "sum-cells")]) == 6:
                scheduler.kill()
            return super().submit(name, *args, **more)

    with (
        lost as patch,
        subprocess.Popen([*dask, "scheduler", "--port", "0", *file_of], **quiet) as scheduler,  # noqa: S603
        subprocess.Popen([*dask, "worker", "--nthreads", "1", *file_of], **quiet) as worker,  # noqa: S603
    ):
        try:
            with Client(scheduler_file=str(file), timeout=30) as client:
                client.wait_for_workers(1, timeout=60)
                client._timeout = 1  # seconds in which the scheduler may come back
                patch.setattr(training, "Workers", Lost)
                with pytest.raises(ConnectionError, match=r"is lost; the run so far is in '.*run'"):
                    streamtrain.train(
                        path, "cell_type", client=client, checkpoint=folder, **way, **QUIET
                    )
        finally:
            scheduler.kill()
            worker.kill()
    assert frozen.read(max(folder.glob("*.state")))["now"]
    with workers(1) as client:
        again = {"client": client, "checkpoint": folder, "resume": True}
        assert_same(streamtrain.train(path, "cell_type", **again, **way, **QUIET), one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
@pytest.mark.parametrize(
    "name", ["optimum", "mini-batches", "early stopping", "selected genes", "trials",
             "copies averaged"],
)  # fmt: skip
def test_train__resumed_to_the_bit(name, client, path, tmp_path, monkeypatch):
    """By workers that have other cells, after each of the driver's states was its last."""
    way, kills = WAYS[name], 0
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    given = {"client": client, "checkpoint": tmp_path / "run", "checkpoint_every": 1e-9}
    monkeypatch.setattr(training, "_FIRST", 0.0)
    while True:
        with monkeypatch.context() as patch:
            killed_after(patch, 1 + kills % 3)
            try:
                found = streamtrain.train(
                    path, "cell_type", resume=True, **given, **way, **QUIET
                )  # fmt: skip
                break
            except KilledError:
                kills += 1
    assert kills >= 2
    assert_same(found, one)


def test_train__resumed_by_fewer_workers(client, path, tmp_path, monkeypatch):
    """Each has the columns that it had."""
    way, folder = MINI | {"epochs": 8}, tmp_path / "run"
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    given = {"checkpoint": folder, "resume": True, **way, **QUIET}
    monkeypatch.setattr(training, "_FIRST", 0.0)
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(KilledError):
            streamtrain.train(path, "cell_type", client=client, checkpoint_every=1e-9, **given)
    monkeypatch.setattr(Workers, "n", 1)
    assert_same(streamtrain.train(path, "cell_type", client=client, **given), one)
    with pytest.raises(InputError, match="holds a run by place='a cluster', not 'one process'"):
        streamtrain.train(path, "cell_type", **given)


def test_train__a_signal_where_no_worker_is_left(client, path, tmp_path, monkeypatch):
    """As where a batch system ends workers and driver together."""

    class Gone(Workers):
        times = 0

        def addresses(self):
            return [] if Gone.times else super().addresses()

        def submit(self, name, *args, **more):
            if name == "train-classes" and not Gone.times:
                os.kill(os.getpid(), signal.SIGTERM)
                Gone.times += 1
            return super().submit(name, *args, **more)

    monkeypatch.setattr(training, "Workers", Gone)
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        streamtrain.train(
            path, "cell_type", client=client, checkpoint=tmp_path / "run", **MINI, **QUIET
        )


def test_train__a_signal_does_not_wait_for_the_workers(client, path, tmp_path, monkeypatch):
    """Who train for a minute at a time."""
    way = MINI | {"epochs": 8}
    one = streamtrain.train(path, "cell_type", **way, **QUIET)
    given = {"client": client, "checkpoint": tmp_path / "run", **way, **QUIET}
    ended = []

    class Signalled(Workers):
        times = 0

        def first_of(self, tasks):
            self.times += 1
            if self.times == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                ended.append(self.result(self.submit("sleep", time.sleep, 4)))
            return super().first_of(tasks)

    monkeypatch.setattr(training, "_FIRST", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "Workers", Signalled)
        with pytest.raises(StoppedError, match="stopped by SIGTERM"):
            streamtrain.train(path, "cell_type", **given)
    assert ended == []
    assert_same(streamtrain.train(path, "cell_type", resume=True, **given), one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*cell types did not converge")
def test_workers__tasks_whose_arguments_died_are_run_again(path):
    """Also where the scheduler allows no death of a task's worker."""
    way = {"max_iter": 4}
    one = streamtrain.train(path, "cell_type", **way, **QUIET)

    def allow(n, dask_scheduler):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, n
        return before

    with workers(2) as own, pytest.MonkeyPatch.context() as patch:
        own.run_on_scheduler(allow, 0)
        patch.setattr(training, "Workers", Killer)
        patch.setattr(Killer, "of", "sum-cells")
        patch.setattr(Killer, "times", (4,))
        patch.setattr(Killer, "submitted", 0)
        assert_same(streamtrain.train(path, "cell_type", client=own, **way, **QUIET), one)


def test_train__what_dask_spilled_and_read_again(client, path):
    """Selected genes are then another object."""
    way = MINI | {"feature_selection": True, "top_genes": 5, "epochs": 8}
    one = streamtrain.train(path, "cell_type", **way, **QUIET)

    class Anew(Workers):
        def submit(self, name, function, *args, **more):
            args = [self.share(a.value) if isinstance(a, Shared) else a for a in args]
            return super().submit(name, function, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Workers", Anew)
        patch.setattr(training, "_FIRST", 0.0)
        assert_same(streamtrain.train(path, "cell_type", client=client, **way, **QUIET), one)


def test_train__a_client_that_is_not_the_default(client, path):
    with Client(client.scheduler.address, set_as_default=False) as other:
        streamtrain.train(path, "cell_type", client=other, **MINI, **QUIET)
    with pytest.raises(InputError, match="must be connected, and not asynchronous; it is closed"):
        streamtrain.train(path, "cell_type", client=other, **MINI, **QUIET)


BAD = {
    "no client": (
        {"client": "tcp://here:1"},
        "must be a dask.distributed Client; got a str",
    ),
    "gpu": ({"device": "gpu"}, "a cluster works on CPUs: leave out device='gpu'"),
    "memory": ({"memory": "100MB"}, "memory=100 MB is too small for 20 cell types"),
    "counts": ({"layer": "counts"}, "The values are integers: for raw counts pass normalize="),
    "logged": ({"normalize": "log1p"}, "needs raw counts, but 16,384 of 16,384 cells are log1p"),
    "checkpoint exists": ({"checkpoint": "."}, "holds something else than a run"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_train__bad_input(options, message, client, path):
    with pytest.raises(InputError, match=message):
        streamtrain.train(path, "cell_type", **{"client": client} | MINI | options, **QUIET)


def test_train__cells_that_workers_cannot_read(client, tmp_path):
    adata = atlas.make()
    adata.to_df().to_csv(tmp_path / "cells.csv")
    labels = adata.obs["cell_type"].tolist()
    for X in (adata, tmp_path / "cells.csv"):
        with pytest.raises(InputError, match="each worker reads the cells by itself: pass"):
            streamtrain.train(X, labels, client=client, check_expression=False, **MINI, **QUIET)


def test_train__damage_is_told_as_by_one_process(client, tmp_path):
    adata = atlas.make(20_000)
    adata.X.data[-3] = np.nan
    adata.write_h5ad(tmp_path / "damaged.h5ad")
    messages = []
    for c in (None, client):
        with pytest.raises(InputError, match=r"is not finite \(nan\)") as caught:
            streamtrain.train(tmp_path / "damaged.h5ad", "cell_type", client=c, **MINI, **QUIET)
        messages.append(str(caught.value).split("; such")[0])
    assert messages[0] == messages[1]


def test_turn__a_file_that_the_worker_has_not(client):
    def opens(path):
        with turn("1GB", None), open(path):  # noqa: PTH123 - FileNotFoundError is the point
            pass

    with Workers(client) as cluster:
        task = cluster.submit("read-cells", opens, "/nowhere/atlas.h5ad")
        with pytest.raises(InputError, match=r"at tcp://.* finds no /nowhere/atlas.h5ad: put"):
            cluster.result(task)


def test_turn__of_one_task_at_a_time_within_the_workers_threads(client):
    def work(_):
        with turn(None, 5) as (budget, threads):
            return budget > 10**6, threads.n

    with Workers(client) as cluster:
        tasks = [cluster.submit("work", work, i) for i in range(4)]
        assert {cluster.result(task) for task in tasks} == {(True, 1)}


def test_workers__waits_are_in_order_and_few_are_begun(client):
    with Workers(client) as cluster:
        begun = []

        def task(i):
            begun.append(i)
            return cluster.submit("count", pow, i, 2)

        with closing(cluster.in_order((lambda i=i: task(i)) for i in range(40))) as squares:
            assert next(squares) == 0
            assert len(begun) <= 2 * cluster.n + 1
            assert list(squares) == [i * i for i in range(1, 40)]
