"""Train by workers that are jobs of SLURM each, from a node that may submit jobs.

    pip install dask-jobqueue
    python conf/cluster/slurm.py atlas.zarr cell_type model.zarr

The paths lie on a file system that all nodes have. A job that ends, or is preempted, costs what its
worker was doing; others do it.
"""

import os
import sys
from pathlib import Path

# Before dask is imported: the scheduler runs in this process.
os.environ.setdefault("DASK_CONFIG", str(Path(__file__).resolve().parent / "dask.yaml"))

from dask_jobqueue import SLURMCluster
from distributed import Client

import streamtrain

JOBS = 4  # of one worker each


def cluster() -> SLURMCluster:
    """What to ask SLURM for; `print(cluster().job_script())` shows it."""
    return SLURMCluster(
        cores=16,
        processes=1,  # all cores of a job work on one task at a time
        memory="64GB",
        walltime="04:00:00",
        # queue="compute", account="lab", interface="ib0": as your cluster has them.
        job_script_prologue=[f"export DASK_CONFIG='{Path(__file__).resolve().parent}/dask.yaml'"],
        scheduler_options={"dashboard_address": ":0"},
    )


def main(atlas: str, labels: str, out: str) -> None:
    """Train, and save the model; run once more after a loss, it goes on from where it was."""
    with cluster() as jobs, Client(jobs) as client:
        jobs.scale(jobs=JOBS)
        client.wait_for_workers(JOBS)
        model = streamtrain.train(
            atlas, labels, recipe="atlas", memory="48GB", client=client,
            checkpoint=f"{out}.checkpoint", resume=True,
        )  # fmt: skip
        model.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
