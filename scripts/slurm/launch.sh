#!/usr/bin/env bash
# accelerate launch on one machine of a SLURM job: launch.sh <processes of all machines> <script> <flags>
# Ends with 143 (128 + SIGTERM) if it was asked to stop: the launcher itself ends with 1, as after any failure.
set -uo pipefail
processes=$1
shift
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280 # seconds that a signalled run has for its step and its checkpoint
stopped=
trap 'stopped=yes; kill -TERM "$launcher"' TERM
accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_machines "$SLURM_NNODES" \
    --num_processes "$processes" --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_ADDRESS" \
    --main_process_port "$MAIN_PORT" "$@" &
launcher=$!
wait "$launcher" # a signal ends the waiting, not the launcher
status=$?
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher"
    status=$?
done
if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
    exit 143
fi
exit "$status"
