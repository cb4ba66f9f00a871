"""The benchmark's command, on as little as it takes."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mbrl.py"


def test_the_benchmark_measures_every_part(tmp_path):
    output = tmp_path / "out" / "mbrl.json"
    sizes = {"batch_size": 4, "model_batch_size": 1, "starts": 1, "horizon": 2, "episodes": 2, "repeats": 1}
    flags = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    run = subprocess.run(
        [sys.executable, SCRIPT, *flags, "--output", str(output)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())["results"]
    assert len(results) == 6
    assert all(of["ours_s"] > 0 and of["obvious_s"] > 0 for of in results)
    assert "| whole loop |" in run.stdout
