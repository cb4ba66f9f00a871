"""Paths of the project's own files, wherever a command is run from."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[1]

# Weights of metrics, for the user to put there.
LPIPS_FOLDER = "pretrained_models/lpips"
I3D_FILE = "pretrained_models/i3d/i3d_torchscript.pt"


def here_or_in_project(path: str | Path) -> Path:
    """Return the path if it exists, else the path below the project's root, which defaults are relative to."""
    return Path(path) if Path(path).exists() else PROJECT / path
