"""What importing the package loads: seconds that every command and every notebook waits."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLOW = {"diffusers", "transformers", "accelerate", "huggingface_hub", "scipy", "matplotlib", "torch._dynamo"}


def test_the_world_model_loads_no_model_library():
    """diffusers and transformers took three times as long to import as torch."""
    code = f"import sys; from ivideogpt import WorldModel; print(sorted({SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
