"""How long starting takes, as ratios to `import torch`: CPU seconds of alternating processes, the least of each."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
STARTS = {
    "import torch": ["-c", "import torch"],
    "from ivideogpt import WorldModel": ["-c", "from ivideogpt import WorldModel"],
    "train_gpt.py --help": ["train_gpt.py", "--help"],
    "inference/predict.py --help": ["inference/predict.py", "--help"],
    "python -m ivideogpt.data --help": ["-m", "ivideogpt.data", "--help"],
    "inference/predict.py": ["inference/predict.py", "--output_path", "outputs/startup"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """Run a Python process and return what it took of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    least = dict.fromkeys(STARTS, float("inf"))
    for _ in range(ROUNDS):
        for name, arguments in STARTS.items():
            least[name] = min(least[name], cpu_seconds(arguments))
    for name, seconds in least.items():
        print(f"{seconds / least['import torch']:5.2f}  {seconds:5.2f} s  {name}")


if __name__ == "__main__":
    main()
