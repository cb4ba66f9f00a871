"""Measure start-up time: the minimum CPU seconds of alternating processes, also as ratios to `import torch`.

python benchmarks/startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
TORCH, PREDICT = "import torch", "inference/predict.py, without its rollout"
COMMANDS = (
    "train_tokenizer.py",
    "train_gpt.py",
    "inference/play.py",
    "inference/predict.py",
    "inference/plan.py",
    "-m ivideogpt.data",
    "-m ivideogpt.data inspect",
    "-m ivideogpt.data preview",
    "-m ivideogpt.data tokenize",
    "-m ivideogpt.evaluation",
    "-m ivideogpt.evaluation tokenizer",
    "-m ivideogpt.evaluation compare",
    "-m ivideogpt.evaluation policies",
    "-m ivideogpt.training.export",
    "datasets/videos_to_npz.py",
    "datasets/record_metaworld.py",
    "mbrl/train_metaworld_mbpo.py",
)
# The bundled model on a bundled episode; the last printed line is the duration of the rollout.
PREDICT_CODE = """
import sys, time
from inference import predict, prediction

def timed_rollout(*args, rollout=prediction.predict):
    started = time.process_time()
    predicted = rollout(*args)
    timed_rollout.seconds = time.process_time() - started
    return predicted

prediction.predict = timed_rollout
predict.main(["--output_path", sys.argv[1]])
print(timed_rollout.seconds)
"""


def run(*arguments: str) -> tuple[float, str]:
    """Run a Python process; return the CPU seconds that it took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def measure() -> dict[str, float]:
    """Return the CPU seconds of one round, by what was started."""
    seconds = {code: run("-c", code)[0] for code in (TORCH, "from ivideogpt import WorldModel")}
    seconds |= {f"{command} --help": run(*command.split(), "--help")[0] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        total, printed = run("-c", PREDICT_CODE, folder)
    return seconds | {PREDICT: total - float(printed.split()[-1])}


def main() -> None:
    rounds = [measure() for _ in range(ROUNDS)]
    least = {name: min(seconds[name] for seconds in rounds) for name in rounds[0]}
    for name, seconds in least.items():
        print(f"{seconds / least[TORCH]:5.2f}  {seconds:5.2f} s  {name}")


if __name__ == "__main__":
    main()
