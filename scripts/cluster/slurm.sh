#!/usr/bin/env bash
# A sweep on SLURM, Ray over all nodes of one allocation:
#   sbatch scripts/cluster/slurm.sh EXPERIMENT.yaml [key=value …]
# Single trials, one a task of an array, without Ray; task N adds line N+1 of EXPERIMENT.overrides (key=value …):
#   sbatch --array=0-9 --nodes=1 scripts/cluster/slurm.sh EXPERIMENT.yaml [key=value …]
# The same command again goes on. Run it where .venv is, on a file system that all nodes share.
# Edit the lines marked EDIT.
#SBATCH --job-name=greenprune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=greenprune-%j.log
# EDIT: #SBATCH --partition=… --account=…
set -euo pipefail
experiment=${1:?usage: sbatch slurm.sh EXPERIMENT.yaml [key=value …]}
shift
cd "${SLURM_SUBMIT_DIR:?sbatch sets it: start this with sbatch}"
source .venv/bin/activate
export HF_HOME=${HF_HOME:-$PWD/hub} GREENPRUNE_CACHE=${GREENPRUNE_CACHE:-$PWD/cache} # EDIT: shared by all nodes

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  overrides=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "${experiment%.yaml}.overrides")
  : "${overrides:?${experiment%.yaml}.overrides must have a line for every task of the array}"
  # shellcheck disable=SC2086 # a line holds several overrides
  exec srun greenprune trial "$experiment" $overrides "$@"
fi

# Every node and the driver need the cluster's token. The keepalive: a lost node is given up after 30 s, not 7 min.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_grpc_client_keepalive_time_ms=10000 RAY_grpc_client_keepalive_timeout_ms=20000
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # importing Ray from a busy shared file system takes its time
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000)) # the usual one may be taken
exec srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  greenprune sweep "$experiment" "$@" --address "$head:$port"
