"""The benchmark's command, on as little as it takes."""

import json
from pathlib import Path

from tests.commands import run_python

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


def test_the_benchmark_measures_every_way(tmp_path):
    """A benchmark that nobody runs breaks with the first change of what it measures."""
    output = str(tmp_path / "out" / "results.json")
    flags = ["--models", "tiny-64", "--clips", "1", "--repeats", "1", "--output", output]
    flags += ["--precision", "no", "--tokenizer_precision", "no"]  # bfloat16 takes minutes without units for it
    run = run_python(SCRIPT, *flags, cwd=tmp_path)
    run.check_returncode()
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    ways = {"obvious", "from pixels", "from a token store", "tokenizer"}
    assert result["parts_s"].keys() == ways
    assert "tokenize" not in result["parts_s"]["from a token store"]
    assert all(seconds > 0 for parts in result["parts_s"].values() for seconds in parts.values())
    for way in ways:
        assert f"| tiny-64 | 1 | {way} |" in run.stdout
