"""How far greedy rollouts are from those of this project's engine in float32.

After the first token that differs a rollout goes its own way, so that few equal tokens may still mean equal quality:
the first frame says more about the numbers' precision, the PSNR more about what is seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks import released
from benchmarks.generation_ways import RELEASED, Inputs, random_inputs
from benchmarks.models import BUNDLED, ROOT, checkpoint, precision
from benchmarks.timer import Timer
from ivideogpt.layout import TokenLayout
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel

GREEDY = Sampling(greedy=True)
SAMPLE_EPISODES = ROOT / "inference" / "samples"
SAMPLE_STARTS = (0, 20, 40, 60)  # frames of an episode at which its clips begin


@torch.no_grad()
def measure_agreement(name: str, dtypes: list[str], device: torch.device, frames: int) -> list[dict[str, Any]]:
    """Rollouts of the released way and of our engine in ``dtypes``; from recorded clips where a model can read them."""
    with checkpoint(name) as folder:
        reference = WorldModel.from_pretrained(folder, device, torch.float32)
        inputs = recorded_inputs(reference, frames) if name == BUNDLED else random_inputs(reference, 2, frames)
        expected = roll_out(reference, inputs)
        rollouts = {RELEASED: roll_out_as_released(reference, inputs)}
        for dtype in [dtype for dtype in dtypes if dtype != "float32"]:
            rollouts[dtype] = roll_out(WorldModel.from_pretrained(folder, device, precision(dtype)), inputs)
    return [
        {"model": name, "way": way} | compare(rollout, expected, reference.layout) for way, rollout in rollouts.items()
    ]


def recorded_inputs(world_model: WorldModel, frames: int) -> Inputs:
    """Clips of the bundled episodes."""
    context_length = world_model.tokenizer.context_length
    contexts, actions = [], []
    for file in sorted(SAMPLE_EPISODES.glob("*.npz")):
        episode = np.load(file)
        for start in SAMPLE_STARTS:
            first_action = start + context_length - 1
            contexts.append(episode["image"][start : start + context_length])
            actions.append(episode["action"][first_action : first_action + frames])
    context = torch.from_numpy(np.stack(contexts)).permute(0, 1, 4, 2, 3).float() / 255
    return Inputs(context.to(world_model.device), torch.from_numpy(np.stack(actions)).to(world_model.device), 1)


def roll_out(world_model: WorldModel, inputs: Inputs) -> released.Generated:
    rollout = world_model.predict(inputs.context, inputs.actions, sampling=GREEDY)
    frames = torch.cat([rollout.context, rollout.frames[:, 0]], dim=1)
    return released.Generated(rollout.tokens[:, 0], frames)


def roll_out_as_released(world_model: WorldModel, inputs: Inputs) -> released.Generated:
    timer = Timer(world_model.device)
    return released.generate(world_model, inputs.context, inputs.actions, 1, GREEDY, timer)


def compare(rollout: released.Generated, expected: released.Generated, layout: TokenLayout) -> dict[str, Any]:
    """Over predicted frames, but for the context's tokens."""
    equal = rollout.tokens == expected.tokens
    of_future = equal[:, layout.prompt_length - 1 :].unflatten(1, (-1, layout.step_length))
    equal_frames = of_future.all(dim=2).cumprod(dim=1).sum(dim=1).float()  # before the first that differs
    psnr = frame_psnr(expected.frames, rollout.frames)[:, layout.context_frames :]
    return {
        "clips": len(equal),
        "samples": 1,
        "equal_context_tokens": equal[:, : layout.prompt_length - 1].float().mean().item(),
        "equal_tokens": of_future[..., 1:].float().mean().item(),
        "equal_tokens_of_first_frame": of_future[:, 0, 1:].float().mean().item(),
        "frames_before_first_difference": equal_frames.mean().item(),
        "psnr": psnr.mean().item(),
        "psnr_of_first_frame": psnr[:, 0].mean().item(),
    }
