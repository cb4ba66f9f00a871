"""The benchmark's command, on as little as it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mbrl.py"


@pytest.mark.parametrize(("flags", "num_parts"), [([], 6), (["--without_environment"], 5)])
def test_the_benchmark_measures_every_part(tmp_path, flags, num_parts):
    output = tmp_path / "out" / "mbrl.json"
    sizes = "batch_size=4 gen_batch=1 nstep=2 gen_horizon=2 world_model.segment_length=4 world_model.batch_size=1"
    flags = [*flags, "--settings", f"+preset=cpu_demo {sizes}", "--episodes", "2", "--repeats", "1"]
    run = subprocess.run(
        [sys.executable, SCRIPT, *flags, "--output", str(output)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())["results"]
    assert len(results) == num_parts
    assert all(of["ours_s"] > 0 and of["obvious_s"] > 0 for of in results)
    assert "| all of them |" in run.stdout
