#!/usr/bin/env bash
# A training on one or more nodes of a Slurm cluster that is preempted, or runs into its time limit, and goes on by itself:
#
#     sbatch --nodes=2 docs/slurm_train.sh train.py --config_file configs/hoss_transoss.yml \
#         DATASETS.ROOT_DIR /shared/data OUTPUT_DIR /shared/logs/hoss
#
# Slurm announces the end by SIGUSR1 (below) or, where it preempts, by SIGTERM. The processes then write last.pth after the step
# that they are at; the job is queued again under its number, and goes on from there (SOLVER.RESUME auto), by as many processes as
# it then has. OUTPUT_DIR lies on a disk that all nodes see.
#SBATCH --job-name=mos
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

processes=${MOS_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}} # on each node
python=${MOS_PYTHON:-python}
nodes=${SLURM_JOB_NUM_NODES:-1}
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)
asked=""

stop() {
    asked=yes
    kill -TERM "$run" 2> /dev/null # srun passes it on to torchrun, and that to its processes
}
trap stop USR1 TERM

srun --kill-on-bad-exit=1 "$python" -m torch.distributed.run --nnodes="$nodes" --nproc_per_node="$processes" \
    --rdzv_id="${SLURM_JOB_ID:-0}" --rdzv_backend=c10d --rdzv_endpoint="${head:-localhost}:${MOS_PORT:-29500}" \
    "$@" SOLVER.RESUME auto &
run=$!
status=0
wait "$run" || status=$?
while kill -0 "$run" 2> /dev/null; do # a signal ends the waiting, not what is waited for
    wait "$run" && status=0 || status=$?
done
if [ -n "$asked" ] && [ "$status" -ne 0 ]; then
    exec scontrol requeue "${SLURM_JOB_ID:-0}"
fi
exit "$status"
