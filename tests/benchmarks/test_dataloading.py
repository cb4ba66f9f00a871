"""The benchmark's command, on as little as it takes."""

import json
from importlib.util import find_spec
from pathlib import Path

from tests.commands import run_python

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dataloading.py"


def test_the_benchmark_measures_both_loaders(tmp_path):
    """A benchmark that nobody runs breaks with the first change of the loader."""
    flags = f"""
        --output {tmp_path / "out" / "results.json"} --num_episodes 2 --episode_length 6 --segment_length 3
        --native_size 32 --image_size 16 --batch_size 2 --repeats 1 --seconds 0
    """.split()
    run = run_python(SCRIPT, *flags, cwd=tmp_path)
    run.check_returncode()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["rates"]) == (10 if find_spec("lance") else 6)
    assert all(row["baseline"] > 0 and row["ours"] > 0 and row["ratio"] > 0 for row in results["rates"])
    for row in results["rates"]:
        assert row["files"] in run.stdout
