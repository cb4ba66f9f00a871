"""The examples of docs/environments.md, one after another."""

from __future__ import annotations

import subprocess
import sys

from tests.documented import ROOT, blocks


def test_the_examples_run():
    """Examples are what people copy."""
    examples = blocks((ROOT / "docs" / "environments.md").read_text(), "python")
    assert len(examples) >= 5
    done = subprocess.run([sys.executable, "-c", "\n".join(examples)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "success_once" in done.stdout
