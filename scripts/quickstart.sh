#!/usr/bin/env bash
# From a fresh clone to a predicted video: makes .venv if there is none and runs the bundled model on a bundled episode.
# Arguments go to inference/predict.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python inference/predict.py "$@"
