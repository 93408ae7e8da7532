#!/usr/bin/env bash
# A Ray cluster inside a Slurm job, and one command on it. Every node of the job belongs to it.
#
#   ray get-auth-token --generate                                        # once: the token that every request must bring
#   sbatch clusters/slurm.sh run --config pipelines/configs/gsm8k-llama3-8b-8gpu.yaml run_dir=/shared/runs/gsm8k
#
# What stands behind the script is what `nlft-ray` gets. Paths lie on a filesystem that all nodes share, and so does the
# home folder, with the token in it. A job that is preempted, or that runs into its time, is queued again and continues.
#
#SBATCH --job-name=nlft-ray
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nlft-ray-%j.log
#SBATCH --signal=B:USR1@180

set -euo pipefail

VENV=${VENV:-$PWD/.venv}  # where nlft-ray is installed: `make quickstart` makes it
export PATH="$VENV/bin:$PATH" RAY_AUTH_MODE=token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))  # jobs that share a node must not meet
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
steps=()

on_each_of() { # on_each_of NODES RAY_START_WORDS…: keeps Ray running there until the job ends
    srun --overlap --nodes="$(wc -w <<<"${1//,/ }")" --ntasks-per-node=1 --nodelist="$1" \
        ray start --block --disable-usage-stats "${resources[@]}" "${@:2}" &
    steps+=($!)
}

# Slurm's warning, three minutes before the end: stop, and ask to be queued again.
again() {
    echo "slurm.sh: out of time; job $SLURM_JOB_ID is queued again and will continue."
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again USR1
trap 'kill "${steps[@]}" 2>/dev/null || true; wait' EXIT

wait_for() { # wait_for COUNT: until so many nodes have joined
    for ((waited = 0; waited < 180; waited += 3)); do
        joined=$(python -c 'import ray; ray.init(logging_level="ERROR"); print(sum(node["Alive"] for node in ray.nodes()))' \
            2>/dev/null) || joined=0
        ((joined >= $1)) && return
        sleep 3
    done
    echo "slurm.sh: only ${joined:-0} of $1 Ray nodes came up within 3 minutes; their messages are above." >&2
    exit 1
}

export RAY_ADDRESS="$address:$port"
on_each_of "$head" --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1
wait_for 1
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    on_each_of "$others" --address="$RAY_ADDRESS"
    wait_for "${#nodes[@]}" # a stage makes as many workers as there is room for when it starts
fi

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" nlft-ray "$@" &
steps+=($!)
wait "${steps[-1]}" # in the background, so that Slurm's warning is heard at once; its exit code is the job's
