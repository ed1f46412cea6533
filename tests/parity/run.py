"""Cases and an interpreter in, what CellTypist did of them out."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

_CHILD = Path(__file__).with_name("child.py")


class Run:
    """One process that does cases while the tests go on.

    Parameters
    ----------
    folder
        Holds the inputs; results come beside them.
    name
        Of the run.
    python
        Interpreter, or why there is none: `done` then skips the test.
    cases
        As child.py reads them.
    """

    def __init__(self, folder, name, python, cases):
        self._folder, self._name, self._cases = folder, name, cases
        self._reason = python if isinstance(python, str) else None
        self._done = self._process = None
        assert len({c["id"] for c in cases}) == len(cases), "two cases have one name"
        if self._reason is None:
            (folder / f"{name}.json").write_text(json.dumps(cases))
            # CellTypist makes a folder when imported, by default in the user's home.
            env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "CELLTYPIST_FOLDER": str(folder)}
            with self._log.open("w") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [python, _CHILD, folder, name], stdout=log, stderr=log,
                    env=os.environ | env,
                )  # fmt: skip

    @property
    def _log(self):
        return self._folder / f"{self._name}.log"

    def done(self):
        """Wait; give what became of each case by its id, and `version` and `signatures`."""
        if self._reason is not None:
            pytest.skip(self._reason)
        if self._done is None:
            assert self._process.wait(timeout=600) == 0, self._log.read_text()[-3000:]
            done = json.loads((self._folder / f"{self._name}.done.json").read_text())
            for i, case in enumerate(self._cases):
                with np.load(self._folder / f"{self._name}-{i}.npz") as file:
                    arrays = dict(file)
                pickle = self._folder / f"{self._name}-{i}.pkl"
                done[case["id"]] = SimpleNamespace(**done[case["id"]], **arrays, pickle=pickle)
            self._done = done
        return self._done

    def stop(self):
        """End it if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
