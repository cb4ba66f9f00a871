"""Scripts of datasets/, which is no package: imported by file, or run as their users run them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.commands import run_python

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def command(cwd: Path, name: str, *flags: object) -> subprocess.CompletedProcess:
    """From another directory."""
    return run_python(DATASETS / f"{name}.py", *flags, cwd=cwd)
