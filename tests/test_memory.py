"""Peak memory of whole runs, measured by the system in processes of their own."""

import subprocess
import sys

import pytest

from streamtrain.simulate import simulate

RUN = """
import re, sys, warnings
from pathlib import Path
import streamtrain
what, source, model, memory, *rest = sys.argv[1:]
if what == "train":
    streamtrain.train(
        source, "cell_type", normalize="log1p", memory=memory, use_SGD=True, mini_batch=True,
        batch_size=500, epochs=3, early_stopping=True, validation_fraction=0.3, progress=False,
    ).save(model, overwrite=True)
elif what == "search":
    streamtrain.train(
        source, "cell_type", normalize="log1p", memory=memory, use_SGD=True, mini_batch=True,
        batch_size=500, batch_number=10, epochs=2, average=True, balance_cell_type=True,
        replace=True, alpha=[1e-4, 1e-2, 1.0], step=[1.0, 3.0], folds=4, n_iter_no_change=1,
        validation_groups="donor_id", calibrate=True, progress=False,
    )
elif what == "solve":
    warnings.simplefilter("ignore")  # that three steps do not reach the optimum
    streamtrain.train(
        source, "cell_type", normalize="log1p", memory=memory, max_iter=3, progress=False
    )
elif what == "convert":
    streamtrain.convert(source, model, memory=memory, shuffle=True, progress=False, overwrite=True)
else:
    streamtrain.predict(
        model, source, normalize="log1p", memory=memory, out=rest[0], overwrite=True,
        probabilities=True, progress=False,
    )
# Not ru_maxrss, which begins with what the parent held when it started this process.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def peak(*arguments):
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", RUN, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RSS is counted in other ways elsewhere")
def test_memory__stays_in_the_budget(tmp_path):
    """A store of twice the budget; the interpreter is what a tiny run takes.

    Predicted are few genes a cell and many types, so that the table outweighs the matrix.
    """
    tiny, large = tmp_path / "tiny.zarr", tmp_path / "large.h5ad"
    simulate(tiny, n_obs=2000, n_vars=200, n_types=4)
    simulate(large, n_obs=100_000, n_vars=2000, n_types=60, n_donors=4)
    assert large.stat().st_size > 2 * 150e6
    model = tmp_path / "m.zarr"
    peak("train", tiny, model, "150MB")  # kernels compile, should they have to
    base = peak("train", tiny, model, "150MB")
    assert peak("train", large, model, "150MB") - base < 150e6
    assert peak("search", large, model, "170MB") - base < 170e6
    assert peak("solve", large, model, "150MB") - base < 150e6
    assert peak("predict", large, model, "150MB", tmp_path / "p.parquet") - base < 150e6
    out = tmp_path / "out.zarr"
    peak("convert", tiny, out, "150MB")
    base = peak("convert", tiny, out, "150MB")
    assert peak("convert", large, out, "150MB") - base < 150e6
