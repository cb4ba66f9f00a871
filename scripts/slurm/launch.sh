#!/usr/bin/env bash
# accelerate launch on one machine of a SLURM job: launch.sh <processes of all machines> <script> <flags>
set -euo pipefail
processes=$1
shift
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280 # seconds that a signalled run has for its step and its checkpoint
exec accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_machines "$SLURM_NNODES" \
    --num_processes "$processes" --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_ADDRESS" \
    --main_process_port "$MAIN_PORT" "$@"
