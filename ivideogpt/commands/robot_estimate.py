"""Estimate how long a robot's training will take on this machine, by single steps on random pictures.

Dimension keys: B clips, T frames, S size of a frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from ivideogpt.commands.train_robot import Preset
from ivideogpt.losses import TokenizerLoss, transformer_loss
from ivideogpt.pretrained import language_model
from ivideogpt.training.additions.history_corruption import OwnHistory, own_history, read_context
from ivideogpt.training.tokenizer.trainer import reconstruct
from ivideogpt.world_model import WorldModel


def estimate(
    model: Path,
    preset: Preset,
    mixed_precision: str,
    segment_length: int,
    tokenizer_length: int,
    device: torch.device,
) -> dict[str, float]:
    """Return the seconds that long stages take, by their names."""
    given = WorldModel.from_pretrained(model, device)
    tokenizer, transformer = given.tokenizer, language_model(given.transformer)
    layout = tokenizer.layout(segment_length - tokenizer.context_length)
    size, loss = tokenizer.config.resolution, TokenizerLoss()

    def frames(num_clips: int, num_frames: int) -> torch.Tensor:
        return torch.rand(num_clips, num_frames, 3, size, size, device=device)

    clip = frames(1, segment_length)
    with torch.no_grad():
        tokens = tokenizer.tokenize(clip, tokenizer.context_length)[0].expand(preset.transformer_batch, -1)
    first, settings = torch.zeros(len(tokens), dtype=torch.int64, device=device), OwnHistory(still_code=0)

    def tokenizer_step() -> None:
        shown = frames(preset.tokenizer_batch, tokenizer_length)
        loss(shown, reconstruct(tokenizer, shown, tokenizer.context_length), tokenizer.context_length).total.backward()

    def transformer_step() -> None:
        context = read_context(transformer, tokens, layout, None)
        history = own_history(transformer, context, tokens, layout, None, first, settings)
        transformer_loss(transformer, tokens, layout, inputs=history, past_key_values=context).total.backward()

    def tokenize() -> None:
        with torch.no_grad():
            tokenizer.tokenize(clip, tokenizer.context_length)

    def predict() -> None:
        WorldModel(tokenizer, transformer).predict(clip[:, : tokenizer.context_length], horizon=layout.future_frames)

    cast = torch.autocast(device.type, torch.bfloat16) if mixed_precision == "bf16" else nullcontext()
    for network in (tokenizer, transformer):
        network.train().requires_grad_(True)
    with cast:
        times = {
            "train_tokenizer": preset.tokenizer_steps * seconds(tokenizer_step, device),
            "train_transformer": preset.transformer_steps * seconds(transformer_step, device),
        }
    for network in (tokenizer, transformer):
        network.eval()
    times["tokenize"] = preset.most_clips * seconds(tokenize, device)
    times["report"] = 2 * preset.report_clips * seconds(predict, device)  # once more under other actions
    return times


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Measure a call after another one."""
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started


def hours(duration: float) -> str:
    return f"{duration / 3600:.1f} h" if duration >= 5400 else f"{max(round(duration / 60), 1)} min"
