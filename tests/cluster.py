"""Workers of dask.distributed in processes of their own, for tests."""

from __future__ import annotations

from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def workers(n, threads=1):
    """A client of `n` worker processes, which a nanny starts again when they die."""
    with (
        LocalCluster(
            n_workers=n, threads_per_worker=threads, processes=True, dashboard_address=":0",
            silence_logs="CRITICAL", memory_limit=0,
        ) as cluster,
        Client(cluster, timeout=20) as client,
    ):  # fmt: skip
        yield client
