"""Where the project's own files are, wherever a command is run from."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[1]

# Weights of metrics, for the user to put there.
LPIPS_FOLDER = "pretrained_models/lpips"
I3D_FILE = "pretrained_models/i3d/i3d_torchscript.pt"


def here_or_in_project(path: str | Path) -> Path:
    """Defaults name files of the project: a path that is not in the current directory is looked for there."""
    return Path(path) if Path(path).exists() else PROJECT / path
