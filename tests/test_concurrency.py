"""Runs side by side, in processes of their own: on one scratch, one store, one output."""

import multiprocessing
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import streamtrain
from streamtrain import Model, convert, journal, local, open_source, shuffle
from streamtrain.errors import InputError
from streamtrain.scratch import ScratchArray
from tests import atlas, stores
from tests.models import assert_same
from tests.test_model import arrays

SETTINGS = {"batch_size": 50, "batch_number": 8, "epochs": 4, "progress": False, "n_jobs": 1}
SETTINGS |= atlas.MINI
# Forked from one that has imported all but has no threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Child:
    """A process that runs a function of this module, and gives what that gives, or its error."""

    def __init__(self, work, *arguments):
        self.answers, answers = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_answer, args=(answers, work, *arguments), daemon=True
        )
        self._process.start()
        answers.close()

    def kill(self):
        self._process.kill()
        self._process.join(30)
        assert self._process.exitcode == -signal.SIGKILL
        self.answers.close()

    def get(self):
        assert self.answers.poll(120)
        found = self.answers.recv()
        self._process.join(30)
        assert self._process.exitcode == 0
        self.answers.close()
        return found


def _answer(answers, work, *arguments):
    warnings.simplefilter("error")
    try:
        found = work(*arguments)
    except Exception as error:
        found = error
    answers.send(found)


def until(condition, *children):
    """Wait for what the children do, each of which still has to answer."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        for child in children:
            assert not child.answers.poll(), child.get()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return stores.write(atlas.make(), tmp_path_factory.mktemp("concurrency"), "h5ad")


# Scratch


def to_scratch(path, seed, scratch, ready=None, go=None):
    """Train with the cells on scratch; stop there until `go` stands."""
    local._KEPT = 1e-6
    real = ScratchArray.append

    def append(self, values):
        real(self, values)
        if ready is not None:
            ready.touch()
            until(go.exists)

    ScratchArray.append = append
    model = streamtrain.train(
        path, "cell_type", random_state=seed, scratch=str(scratch), **SETTINGS
    )
    return model.dataset


@pytest.mark.slow
def test_scratch__is_shared(path, tmp_path):
    """Three trainings, of which one is killed, and then a fourth: each as if it were alone."""
    alone = [streamtrain.train(path, "cell_type", random_state=i, **SETTINGS) for i in range(3)]
    scratch, go = tmp_path / "scratch", tmp_path / "go"
    scratch.mkdir()
    marks = [tmp_path / f"ready{i}" for i in range(3)]
    children = [Child(to_scratch, path, i, scratch, marks[i], go) for i in range(3)]
    until(lambda: all(mark.exists() for mark in marks), *children)
    children.pop(2).kill()
    children.append(Child(to_scratch, path, 2, scratch))
    last = children[2].get()  # while the others wait
    go.touch()
    for found, expected in zip([*(c.get() for c in children[:2]), last], alone, strict=True):
        assert_same(Model(found), expected)
    assert not list(scratch.iterdir())


def convert_slowly(path, out, scratch, ready, go):
    real = shuffle.Buckets.append

    def append(self, *arguments):
        done = real(self, *arguments)
        ready.touch()
        until(go.exists)
        return done

    shuffle.Buckets.append = append
    convert(path, out, shuffle=True, scratch=str(scratch), progress=False)


@pytest.mark.slow
def test_scratch__of_two_conversions(path, tmp_path):
    """Each has its own folder there, also beside one that a killed one left."""
    scratch, go = tmp_path / "scratch", tmp_path / "go"
    scratch.mkdir()
    outs, marks = ([tmp_path / f"{i}{end}" for i in range(3)] for end in (".zarr", ".ready"))
    children = [
        Child(convert_slowly, path, out, scratch, mark, go)
        for out, mark in zip(outs, marks, strict=True)
    ]
    until(lambda: all(mark.exists() for mark in marks), *children)
    assert len(list(scratch.iterdir())) == 3
    children.pop().kill()
    with pytest.raises(InputError, match="another process writes"):
        convert(path, outs[0], shuffle=True, scratch=str(scratch), progress=False)
    go.touch()
    assert [child.get() for child in children] == [None, None]
    left = list(scratch.iterdir())
    assert len(left) == 1  # of the killed one, which goes on from it
    convert(path, outs[2], shuffle=True, scratch=str(scratch), progress=False)
    assert not list(scratch.iterdir())
    x = [ad.io.read_zarr(out).X for out in outs]
    assert (x[0] != x[1]).nnz == (x[0] != x[2]).nnz == 0


# Readers


def read(path, seed):
    """Some cells, several times; whether each is the one asked for."""
    source, rng = open_source(path), np.random.default_rng(seed)
    whole = dense(source, np.arange(source.n_obs))
    some = [np.sort(rng.permutation(source.n_obs)[:50]) for _ in range(30)]
    return all(np.array_equal(dense(source, cells), whole[cells]) for cells in some)


def dense(source, cells):
    rows = source.take(cells.astype(np.int64))
    shape = len(cells), source.n_vars
    return csr_matrix((rows.data, rows.indices, rows.indptr), shape).toarray()


@pytest.mark.parametrize("form", ["h5ad", "sharded"])
def test_readers__of_one_store(tmp_path, form):
    path = stores.write(stores.make_anndata(n_obs=400), tmp_path, form)
    children = [Child(read, path, seed) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(partial(read, path), range(2, 6)))
    assert all(child.get() for child in children)


# One output


def model_of(seed):
    return Model.build(**arrays(5, n_genes=3000, seed=seed), provenance={"seed": seed})


def save_until(stop, seed, out):
    model = model_of(seed)
    while not stop.exists():
        model.save(out, overwrite=True)


def save_each(both, seed, outs):
    """How many were refused because the other was first."""
    model, refused = model_of(seed), 0
    for out in outs:
        both.wait(60)
        try:
            model.save(out)
        except InputError as error:
            refused += "exists: pass overwrite=True" in str(error)
    return refused


def test_save__to_one_path(tmp_path):
    """A reader meanwhile finds a whole model of one of both, or none."""
    out, stop = tmp_path / "m.zarr", tmp_path / "stop"
    expected = [model_of(seed) for seed in range(2)]
    children = [Child(save_until, stop, seed, out) for seed in range(2)]
    seen, end = [], time.monotonic() + 60
    until(out.exists, *children)
    begin = time.monotonic()
    while time.monotonic() < begin + 2 or len(set(seen)) < 2:
        assert time.monotonic() < end
        try:
            model = Model.load(out)
        except FileNotFoundError:
            continue
        seen.append(model.provenance["seed"])
        assert_same(model, expected[seen[-1]])
    stop.touch()
    assert [child.get() for child in children] == [None, None]
    assert_same(Model.load(out), expected[Model.load(out).provenance["seed"]])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "stop"]


def test_save__one_is_first(tmp_path):
    """Without overwrite the other is refused, however close they are."""
    outs = [tmp_path / f"{i}.zarr" for i in range(8)]
    both = CONTEXT.Barrier(2)
    children = [Child(save_each, both, seed, outs) for seed in range(2)]
    assert sum(child.get() for child in children) == 8
    assert sorted(tmp_path.iterdir()) == sorted(outs)
    for out in outs:
        Model.load(out)


def predict(model, path, out, options, n):
    for _ in range(n):
        streamtrain.predict(
            model, path, out=out, overwrite=True, progress=False, n_jobs=1, **options
        )


@pytest.mark.parametrize("name", ["p.parquet", "p.h5ad"])
def test_predict__to_one_path(path, tmp_path, name):
    model, out = tmp_path / "m.zarr", tmp_path / name
    streamtrain.train(path, "cell_type", **SETTINGS).save(model)
    ways = [{"probabilities": True}, {"scores": True}]
    whole = []
    for options in ways:
        predict(model, path, out, options, 1)
        whole.append(_annotated(out))
    children = [Child(predict, model, path, out, options, 6) for options in ways]
    seen = 0
    while seen < 5:
        found = _annotated(out)
        assert any(found.equals(other) for other in whole)
        seen += 1
    assert [child.get() for child in children] == [None, None]
    assert any(_annotated(out).equals(other) for other in whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["m.zarr", name])


def _annotated(out):
    if out.suffix == ".parquet":
        return pd.read_parquet(out)
    return ad.io.read_h5ad(out).obs


def train_with(path, folder, resume, ready=None, go=None):
    if ready is not None:
        real = journal.Journal.tick

        def tick(self, *arguments):
            ready.touch()
            until(go.exists)
            return real(self, *arguments)

        journal.Journal.tick = tick
    return streamtrain.train(
        path, "cell_type", checkpoint=folder, resume=resume, **SETTINGS
    ).dataset


@pytest.mark.parametrize("resume", [False, True])
def test_checkpoint__of_two_trainings(path, tmp_path, resume):
    """The second is refused, and the first does not notice."""
    folder, ready, go = tmp_path / "run", tmp_path / "ready", tmp_path / "go"
    first = Child(train_with, path, folder, False, ready, go)
    until(ready.exists, first)
    second = Child(train_with, path, folder, resume).get()
    assert isinstance(second, InputError)
    assert f"another process trains in checkpoint={str(folder)!r}" in str(second)
    go.touch()
    assert_same(Model(first.get()), streamtrain.train(path, "cell_type", **SETTINGS))
