"""A source on disk through any sequence of calls: what it gives is always what was written."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from streamtrain import open_source
from streamtrain.threads import Threads
from tests import stores

N = 23  # of `make_anndata`
KINDS = [(form, kind) for form in stores.FORMATS for kind in stores.KINDS]


@pytest.fixture(scope="module", autouse=True)
def written(tmp_path_factory):
    """Each form and kind once."""
    folder = tmp_path_factory.mktemp("states")
    for form, kind in KINDS:
        (folder / kind / form).mkdir(parents=True)
        stores.write(stores.make_anndata(kind), folder / kind / form, form)
    SourceStates.folder = folder


class SourceStates(RuleBasedStateMachine):
    """Open, read, take, close, copy and read again, in any order."""

    folder: Path

    @initialize(form_and_kind=st.sampled_from(KINDS))
    def open(self, form_and_kind):
        form, kind = form_and_kind
        [path] = (self.folder / kind / form).iterdir()
        self.source = open_source(path)
        adata = stores.make_anndata(kind)
        X = adata.X if kind == "dense" else adata.X.toarray()
        self.dense, self.obs = np.asarray(X), adata.obs

    @rule(rows=st.tuples(st.integers(0, N), st.integers(0, N)).map(sorted))
    def read(self, rows):
        found = stores.to_dense(self.source.read(*rows))
        np.testing.assert_array_equal(found, self.dense[slice(*rows)])

    @rule(rows=st.sets(st.integers(0, N - 1)).map(sorted), compact=st.booleans())
    def take(self, rows, compact):
        found = stores.to_dense(self.source.take(np.array(rows, np.int64), compact=compact))
        np.testing.assert_array_equal(found, self.dense[rows])

    @rule(nbytes=st.integers(1, 5000))
    def blocks(self, nbytes):
        np.testing.assert_array_equal(stores.read_all(self.source, nbytes), self.dense)

    @rule(column=st.sampled_from(["cell_type", "n_genes", "flag"]))
    def column(self, column):
        assert self.source.obs(column).tolist() == self.obs[column].tolist()

    @rule(rows=st.tuples(st.integers(0, N), st.integers(0, N)).map(sorted))
    def names(self, rows):
        assert self.source.obs_names(*rows).tolist() == [f"cell{i}" for i in range(*rows)]

    @rule()
    def close(self):
        self.source.close()

    @rule(close=st.booleans())
    def pickled(self, close):
        copy = pickle.loads(pickle.dumps(self.source))  # noqa: S301 - our own
        if close:
            self.source.close()
        self.take_over(copy)

    @rule()
    @precondition(lambda self: self.source.path is not None)
    def on_threads(self):
        with Threads(2) as threads:
            copy = self.source.with_threads(threads)
            np.testing.assert_array_equal(stores.to_dense(copy.read(0, N)), self.dense)
            copy.close()

    def take_over(self, copy):
        self.source.close()
        self.source = copy

    def teardown(self):
        if hasattr(self, "source"):
            self.source.close()
            self.source.close()  # a second time does nothing


SourceStates.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, derandomize=True
)
TestSourceStates = SourceStates.TestCase
