"""The benchmark's command, on as little as it takes."""

import json
from pathlib import Path

from tests.commands import run_python

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mbrl.py"


def test_the_benchmark_measures_every_part(tmp_path):
    output = tmp_path / "out" / "mbrl.json"
    sizes = "batch_size=4 gen_batch=1 nstep=2 gen_horizon=2 world_model.segment_length=4 world_model.batch_size=1"
    flags = ["--settings", f"+preset=cpu_demo {sizes}", "--episodes", "2", "--repeats", "1", "--output", output]
    run = run_python(SCRIPT, *flags, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    results = json.loads(output.read_text())["results"]
    assert len(results) == 6
    assert all(of["ours_s"] > 0 and of["obvious_s"] > 0 for of in results)
    assert "| all of them |" in run.stdout
