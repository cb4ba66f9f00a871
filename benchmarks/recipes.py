"""Recipes whose models the benchmarks build, by name. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
ACTION_DIM = 4


@dataclass(frozen=True)
class Model:
    """The networks of a recipe and its training clips."""

    tokenizer: str
    transformer: str
    resolution: int
    clips: int  # per micro-batch
    context_length: int = 2
    segment_length: int = 16  # frames of the transformer's clips
    tokenizer_segment_length: int = 8


MODELS = {
    "full-64": Model("ctx_vae64", "config.json", 64, clips=2),
    "medium-64": Model("ctx_vae64", "config_medium.json", 64, clips=1),
    "full-256": Model("ctx_vae", "config.json", 256, clips=1),
    "tiny-64": Model("ctx_vae64_tiny", "config_tiny.json", 64, clips=4),
}
BUNDLED = "bundled"
