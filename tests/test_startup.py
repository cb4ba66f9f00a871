"""What importing the package and asking a command for help load: seconds that every user waits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import startup
from ivideogpt.paths import BUNDLED_MODEL

ROOT = Path(__file__).parents[1]
MODEL_LIBRARIES = {"diffusers", "transformers", "accelerate", "huggingface_hub", "scipy", "matplotlib", "torch._dynamo"}
SLOW = {"torch", "tensorflow", "metaworld", "mujoco", "h5py", "av", "pyarrow", "hydra", *MODEL_LIBRARIES}
HYDRA = {"mbrl/train_metaworld_drq.py", "mbrl/train_metaworld_mbpo.py"}  # it puts together the settings to be shown

FOLDERS = ("datasets", "examples", "mbrl/tools")
SCRIPTS = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}
BENCHMARKS = {f"benchmarks/{name}.py" for name in ("dataloading", "generation", "mbrl", "training")}
COMMANDS = sorted(
    {
        *startup.COMMANDS,
        "-m ivideogpt.data validate",
        "train_robot.py",
        "-m ivideogpt.envs export",
        "-m ivideogpt.envs serve",
        *SCRIPTS,
        *BENCHMARKS,
        *HYDRA,
    }
)
ASK_FOR_HELP = """
import runpy, sys
sys.argv = [*sys.argv[1:], "--help"]
try:
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sys.modules, file=sys.stderr)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )


def test_a_world_model_is_loaded_without_a_model_library():
    """diffusers and transformers took three times as long to import as torch, torch._dynamo as long as torch."""
    load = f"WorldModel.from_pretrained({str(BUNDLED_MODEL)!r})"
    done = python(f"import sys; from ivideogpt import WorldModel; {load}; print(*sys.modules)")
    assert not MODEL_LIBRARIES & set(done.stdout.split())


def test_training_starts_without_a_slow_import():
    """Learning-rate schedules of transformers alone took twice as long to import as all else."""
    scripts = "ivideogpt.training.tokenizer.build, ivideogpt.training.transformer.build"
    done = python(f"import sys, {scripts}; print(*sys.modules)")
    assert not (MODEL_LIBRARIES - {"accelerate", "huggingface_hub"}) & set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_answered_before_a_slow_library_is_imported(command):
    """Help took as long as importing torch and the models; so did the answer to a mistyped flag."""
    done = python(ASK_FOR_HELP, *command.split())
    assert "--" in done.stdout
    said_twice_or_none = r"\(default: [^()]*\)\s+\(default: |\(default: (None|\(\))\)"
    assert not re.search(said_twice_or_none, done.stdout)
    assert not (SLOW - ({"hydra"} if command in HYDRA else set())) & set(done.stderr.split())
