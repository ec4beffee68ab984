#!/usr/bin/env bash
# A run on the nodes of a SLURM job: one Ray process per node, the command on the first.
#
#   sbatch --nodes=4 scripts/cluster/slurm.sh train --env simple_spread_v3 --env-runners 31 --out /shared/runs/a
#
# Submitted again with the same --out, it goes on where the run stopped. Five minutes before its time is up, SLURM
# sends SIGTERM, and the run stops after its iteration. MARL_AAJR_VENV: the virtual environment, on a disk that all
# nodes see. Tested with stand-ins for srun and scontrol, never under SLURM itself.
#SBATCH --job-name=marl-aajr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

bin="${MARL_AAJR_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin"
if [[ "$bin" == *[[:space:]]* ]]; then
    echo "error: Ray starts no nodes from $bin, a path with a space; set MARL_AAJR_VENV to a link without one" >&2
    exit 2
fi
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
# Only this job may use its Ray, whoever else is on these machines.
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d " \n")"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
cpus="${SLURM_CPUS_ON_NODE:?expected to be started by sbatch}"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port"

on() { # in the background: a node, and what to run there beside what runs there already
    exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${@:2}"
}

ray_processes=()
stop_ray() {
    kill "${ray_processes[@]}" 2>/dev/null || true
    wait "${ray_processes[@]}" 2>/dev/null || true
}
trap stop_ray EXIT

# The first node keeps a processor for the command itself.
on "$head" "$bin/python" -m ray.scripts.scripts start --head --port="$port" --num-cpus="$((cpus > 1 ? cpus - 1 : cpus))" --block \
    --include-dashboard=false &
ray_processes+=($!)
for node in "${nodes[@]:1}"; do
    on "$node" "$bin/python" -m ray.scripts.scripts start --address="$RAY_ADDRESS" --num-cpus="$cpus" --block &
    ray_processes+=($!)
done
"$bin/python" - "${#nodes[@]}" <<'PYTHON' &
import sys, time
import ray

deadline = time.monotonic() + 300
while True:
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
        break
    except ConnectionError:
        if time.monotonic() > deadline:
            sys.exit("error: no Ray answers on the first node after 300 s; see the lines above")
        time.sleep(2)
while (up := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(f"error: {up} of {sys.argv[1]} nodes have joined after 300 s; see the lines above")
    time.sleep(1)
PYTHON
waiting=$!
# Whatever ends first: the wait for all nodes, or a Ray that could not start.
wait -n "$waiting" "${ray_processes[@]}" || true
if kill "$waiting" 2>/dev/null; then
    echo "error: Ray has ended on a node; see the lines above" >&2
    exit 1
fi
wait "$waiting"

# The run's folder is what follows --out; where there is a run, it is resumed.
command=("$@")
for ((i = 0; i < $#; i++)); do
    if [ "${command[i]}" = --out ] && [ "${command[0]}" = train ] && [ -e "${command[i + 1]}/config.yaml" ]; then
        command=(train --resume --out "${command[i + 1]}")
        break
    fi
done
"$bin/python" -m marl_aajr "${command[@]}" &
run=$!
trap 'kill -TERM "$run"' TERM
status=0
wait "$run" || status=$?
# A trapped signal ends the first wait; the run itself takes until the end of its iteration.
while kill -0 "$run" 2>/dev/null; do
    status=0
    wait "$run" || status=$?
done
exit "$status"
