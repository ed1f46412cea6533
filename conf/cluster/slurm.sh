#!/usr/bin/env bash
# Train on several nodes of SLURM, in one job:
#
#   sbatch conf/cluster/slurm.sh atlas.zarr --labels cell_type --recipe atlas --memory 24GB --out model.zarr
#
# What follows the script's name goes to streamtrain train: with --checkpoint run --resume, a job that is
# taken away goes on where it was when it runs again. The atlas, the output, this folder and the
# Python environment that is active when you submit lie on a file system that all nodes have. Each
# node has one worker with all its CPUs; the first has the scheduler and the command as well, so that
# --memory, which is of each worker and of the command, is less than half of --mem.
#SBATCH --job-name=streamtrain
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

export DASK_CONFIG="$SLURM_SUBMIT_DIR/conf/cluster/dask.yaml" # where sbatch is called: it runs a copy
file="$SLURM_SUBMIT_DIR/scheduler-$SLURM_JOB_ID.json"
log="$SLURM_SUBMIT_DIR/dask-$SLURM_JOB_ID.log"

# Where nodes have several networks, name the fast one for both: --interface ib0
dask scheduler --scheduler-file "$file" --port 0 --dashboard-address :0 >> "$log" 2>&1 &
scheduler=$!
trap 'kill "$scheduler" 2> /dev/null; wait; rm -f "$file"' EXIT # workers end with their scheduler

# The cells that training takes lie in TMPDIR, a local disk of each node. A node that fails does not
# end the job: others do its work.
srun --no-kill --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    dask worker --scheduler-file "$file" --nworkers 1 --nthreads "$SLURM_CPUS_PER_TASK" \
    --no-dashboard --death-timeout 300 >> "$log" 2>&1 &

timeout 900 python -c 'import sys, distributed
with distributed.Client(scheduler_file=sys.argv[1], timeout=300) as client:
    client.wait_for_workers(int(sys.argv[2]))' "$file" "$SLURM_NTASKS"

# SLURM tells this script alone that its time is over.
streamtrain train "$@" --scheduler "$file" &
train=$!
trap 'kill -TERM "$train"' TERM
wait "$train" || wait "$train" # the first ends at the signal, the second when the run is saved
