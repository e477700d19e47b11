#!/usr/bin/env bash
# Training by several workers under Slurm: sbatch deploy/slurm.sh [OPTIONS of keras-ssl pretrain]
# What to change, and what happens if a worker fails: README.md in this folder.
#SBATCH --job-name=rotation
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# When a machine fails or the job is preempted, Slurm restarts this script, and appends to the log.
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

data=${DATA:-$PWD/photos}
out=${OUT:-$PWD/training}  # a folder that all machines see
mkdir -p "$out"

# srun takes this from the job no longer by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# If a worker fails, the others stop: all are restarted and resume from the checkpoint.
for attempt in {1..10}; do
    srun --kill-on-bad-exit=1 keras-ssl pretrain rotation \
        --data="$data" --size=96 --epochs=100 --batch-size=256 \
        --strategy=multi_worker \
        --checkpoint="$out/rotation" --checkpoint-every=500 \
        --log="$out/rotation.csv" --out="$out/rotation.keras" "$@" && exit 0
    echo "slurm.sh: attempt $attempt of 10 has failed" >&2
    sleep 10
done
exit 1
