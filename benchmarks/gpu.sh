#!/usr/bin/env bash
# Everything that needs a GPU, within nine minutes: its tests, generation, training steps. Results go to OUT (outputs/gpu).
# PYTHON=... names the interpreter; MINUTES=... another limit. Packages that it lacks are installed without their
# dependencies, so that its torch stays as it is; where no registry can be reached, PIP_FIND_LINKS=FOLDER and
# PIP_NO_INDEX=1 make pip take wheels from a folder. A part that fails or lasts too long leaves the others alone.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-outputs/gpu}
PYTHON=${PYTHON:-python3}
DEADLINE=$((${MINUTES:-9} * 60 - 20)) # seconds since the start
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=()

# part NAME SECONDS COMMAND...: runs it for so long at most, and no longer than there is time left
part() {
    local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) started=$SECONDS status=0
    shift 2
    if ((left < 20)); then
        echo "== $name: no time left"
        failed+=("$name")
        return
    fi
    echo "== $name: $*"
    timeout --signal=INT --kill-after=15 $((limit < left ? limit : left)) "$@" || status=$?
    echo "== $name: exit status $status after $((SECONDS - started)) s"
    if ((status != 0)); then
        failed+=("$name")
    fi
}

# benchmark NAME SECONDS SCRIPT FLAGS...
benchmark() {
    part "$1" "$2" "$PYTHON" "benchmarks/$3" "${@:4}" --output "$OUT/$1.json"
}

missing_packages() {
    "$PYTHON" - <<'PY'
from importlib.util import find_spec

names = {
    "accelerate", "diffusers", "einops", "huggingface_hub", "hypothesis", "numpy", "omegaconf", "pytest",
    "safetensors", "tensorboard", "tqdm", "transformers", "wandb",
}  # fmt: skip
of_diffusers = {"importlib_metadata", "filelock", "regex", "requests", "zipp"}
modules = {name: name for name in names | of_diffusers} | {
    "antlr4-python3-runtime": "antlr4", "hydra-core": "hydra", "pillow": "PIL", "pyyaml": "yaml",
}  # fmt: skip
print(*sorted(name for name, module in modules.items() if find_spec(module) is None))
PY
}

install() {
    local pinned
    pinned=$(grep -iE "^${1//_/[-_]}==" requirements.txt | head -1)
    part "install $1" 60 "$PYTHON" -m pip install --quiet --no-deps --disable-pip-version-check --retries 0 \
        "${pinned:-$1}"
}

show_versions() {
    nvidia-smi
    "$PYTHON" - <<'PY'
import platform
from importlib.metadata import PackageNotFoundError, version

print("python", platform.python_version())
for package in ("torch", "triton", "transformers", "diffusers", "accelerate", "huggingface_hub", "numpy", "pytest"):
    try:
        print(package, version(package))
    except PackageNotFoundError:
        print(package, "missing")
PY
}

run_parts() {
    local package ours="--dtypes float32,bfloat16" both="--precision bf16 --tokenizer_precision bf16"
    for package in $(missing_packages); do
        install "$package"
    done
    show_versions
    # shellcheck disable=SC2086
    {
        # by name or by mark; modules whose packages are missing do not stop the others
        part tests 90 "$PYTHON" -m pytest -q -k "gpu or cuda" --continue-on-collection-errors -p no:cacheprovider
        benchmark generation-full-64 150 generation.py --models full-64 --batches 1,8,32,128 --samples 1 $ours --repeats 2
        benchmark generation-bundled 70 generation.py --models bundled --batches 1 --samples 1,5,100 $ours --agreement
        benchmark generation-medium-64 130 generation.py --models medium-64 --batches 1,8,32,128 --samples 1 $ours \
            --repeats 1 --baseline_frames 4
        benchmark mbrl 60 mbrl.py --settings "+preset=cpu_demo device=cuda batch_size=256 agent.hidden_dim=1024" \
            --without_environment
        benchmark training-64 70 training.py --models full-64,medium-64 --clips 16 $both
        benchmark training-256 50 training.py --models full-256 --clips 2 $both
        benchmark training-64-compiled 120 training.py --models full-64 --clips 16 $both --compile
    }
    if ((${#failed[@]})); then
        echo "== failed or cut short: ${failed[*]}"
        return 1
    fi
    echo "== all parts done after $SECONDS s"
}

mkdir -p "$OUT"
run_parts 2>&1 | tee "$OUT/gpu.log"
exit "${PIPESTATUS[0]}"
