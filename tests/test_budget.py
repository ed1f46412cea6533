"""Sizes and thread counts as users write them."""

import os
import platform
import re
import subprocess
import sys

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain import budget
from streamtrain.budget import format_bytes, parse_bytes
from streamtrain.errors import InputError
from streamtrain.threads import n_threads


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("2G", 2 * 10**9),
        ("2GiB", 2 * 2**30),
        ("512 MiB", 512 * 2**20),
        (" 512MB ", 512 * 10**6),
        ("1.5kB", 1500),
        (".5k", 500),
        ("0.25TiB", 2**38),
        ("1T", 10**12),
        ("100", 100),
        ("100B", 100),
        ("1", 1),
        (100, 100),
        (1e9, 10**9),
        (1.9, 1),
        (np.int64(5), 5),
    ],
)
def test_parse_bytes__sizes(memory, expected):
    found = parse_bytes(memory)
    assert found == expected
    assert isinstance(found, int)


def test_parse_bytes__default(monkeypatch):
    class Memory:
        available = 4003

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert parse_bytes(None) == 1000


@pytest.mark.parametrize(
    "memory",
    ["", "GB", "2 XB", "2i", "2iB", "two", "-1GB", "1e9", "2GB free", "1.2.3", "1,5GB", "nan"],
)
def test_parse_bytes__what_is_no_size(memory):
    words = "memory must be a size such as '2GB', '512MiB' or a number of bytes; got "
    with pytest.raises(InputError, match=re.escape(words + repr(memory))):
        parse_bytes(memory)


@pytest.mark.parametrize(
    "memory",
    [0, -1, 0.5, True, False, float("nan"), float("inf"), "0", "0.0GB", "0.1", "9" * 400],
)
def test_parse_bytes__not_positive(memory):
    words = "memory must be a positive size such as '2GB'; got "
    with pytest.raises(InputError, match=re.escape(words + repr(memory))):
        parse_bytes(memory)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1536, "1.54 kB"), (2.5e6, "2.5 MB"),
        (10**9, "1 GB"), (1.5e12, "1.5 TB"), (5e15, "5e+03 TB"),
    ],
)  # fmt: skip
def test_format_bytes__for_people(n, text):
    assert format_bytes(n) == text


@given(st.integers(1, 10**15))
def test_format_bytes__reads_back(n):
    text = format_bytes(n).replace("bytes", "").replace("e+0", "")
    if "e" not in format_bytes(n):
        assert parse_bytes(text) == pytest.approx(n, rel=0.006)


def test_n_threads__all_cpus():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert n_threads(None) == n_threads(-1) == cpus


def test_n_threads__as_asked():
    assert n_threads(1) == 1
    assert n_threads(64) == 64
    assert n_threads(np.int64(3)) == 3


@pytest.mark.parametrize("n_jobs", [0, -2, 1.5, "2", True])
def test_n_threads__refuses(n_jobs):
    words = f"n_jobs must be a positive number of CPUs, or -1 for all; got {n_jobs!r}"
    with pytest.raises(InputError, match=re.escape(words)):
        n_threads(n_jobs)


ALLOCATE = """
import resource, sys
import numpy as np
from streamtrain.budget import keep_freed
if sys.argv[1:]:
    keep_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(1 << 18, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_keep_freed__under_a_nanny():
    """A hundred times the same megabyte, of 256 pages, which dask would have given back."""
    faults = []
    for words in ([], ["keep"]):
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", ALLOCATE, *words], check=True, capture_output=True, text=True,
            env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"},
        )  # fmt: skip
        faults.append(int(done.stdout))
    assert faults[0] > 20_000
    assert faults[1] < 2_000


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory__of_the_control_group(tmp_path, monkeypatch, version):
    """The tightest of the groups around the process, droppable pages of files not counted."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    line, top, names = {
        1: ("5:cpu,memory:/job/step\n4:cpuset:/\n", root / "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
        2: ("0::/job/step\n", root, ("memory.max", "memory.current", "inactive_file")),
    }[version]  # fmt: skip
    (proc / "cgroup").write_text(line)
    for folder, limit, used, cached in (
        ("job", 10**6, 900_000, 300_000),
        ("job/step", "max", 1, 0),
    ):
        place = top / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / names[0]).write_text(f"{limit}\n")
        (place / names[1]).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")
    monkeypatch.setattr(budget, "_PROC", proc)
    monkeypatch.setattr(budget, "_CGROUP", root)
    assert budget.free_memory() == 400_000
    assert parse_bytes(None) == 100_000
