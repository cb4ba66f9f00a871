"""The implementations of rollouts that `generation.py` measures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.generation_floor import floor
from benchmarks.measuring import Timer, medians
from benchmarks.models import ACTION_DIM, ROOT
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel

SAMPLING, GREEDY = Sampling(top_k=100), Sampling(greedy=True)
RELEASED = "released"  # name of the baseline
SAMPLE_STARTS = (0, 20, 40, 60)  # frames of a bundled episode at which its clips begin


@dataclass(frozen=True)
class Inputs:
    """Inputs of a session: ``context`` (B, t, 3, H, W) and ``actions`` (B, F, D)."""

    context: Tensor
    actions: Tensor
    samples: int = 1

    @property
    def num_predicted(self) -> int:
        """Return the number of future frames of all clips and samples."""
        return self.actions.shape[0] * self.actions.shape[1] * self.samples


def random_inputs(world_model: WorldModel, clips: int, frames: int, samples: int = 1) -> Inputs:
    tokenizer, device = world_model.tokenizer, world_model.device
    side = tokenizer.config.resolution
    context = torch.rand(clips, tokenizer.context_length, 3, side, side)
    actions = torch.rand(clips, frames, ACTION_DIM) * 2 - 1
    return Inputs(context.to(device), actions.to(device), samples)


def recorded_inputs(world_model: WorldModel, frames: int) -> Inputs:
    """Return clips of the bundled episodes."""
    t, device = world_model.tokenizer.context_length, world_model.device
    contexts, actions = [], []
    for file in sorted((ROOT / "inference" / "samples").glob("*.npz")):
        episode = np.load(file)
        for start in SAMPLE_STARTS:
            contexts.append(episode["image"][start : start + t])
            actions.append(episode["action"][start + t - 1 : start + t - 1 + frames])
    context = torch.from_numpy(np.stack(contexts)).permute(0, 1, 4, 2, 3).float() / 255
    return Inputs(context.to(device), torch.from_numpy(np.stack(actions)).to(device))


@dataclass(frozen=True)
class Turn:
    """One measurement of one way."""

    seconds: dict[str, float]
    steps: list[float] = field(default_factory=list)  # seconds of each step of a session


class ReleasedWay:
    """The released implementation's generation, in float32. Only ``num_frames`` are predicted."""

    def __init__(self, folder: Path, device: torch.device, num_frames: int) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, torch.float32)
        self.world_model.tokenizer.to(memory_format=torch.contiguous_format)  # ours are channels-last
        self.num_frames = num_frames

    def turn(self, inputs: Inputs) -> Turn:
        timer = Timer(self.world_model.device)
        clips = self.world_model, inputs.context, inputs.actions
        released.generate(*clips, inputs.samples, SAMPLING, timer, self.num_frames)
        return Turn(timer.seconds | {"rollout": sum(timer.seconds.values())})

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians([turn.seconds for turn in turns])
        rollout = seconds.pop("rollout")
        return {"frames_measured": self.num_frames, **_speed(rollout, inputs), "parts_s": seconds}


class OurWay:
    """This project's engine, in one precision."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | Literal["auto"]) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, dtype)

    def turn(self, inputs: Inputs) -> Turn:
        """Measure one call of `predict`, and the same rollout step by step, as in an interactive use."""
        timer = Timer(self.world_model.device)
        options: dict[str, Any] = {"num_samples": inputs.samples, "sampling": SAMPLING}
        with timer.part("rollout"):
            self.world_model.predict(inputs.context, inputs.actions, **options)
        with timer.part("start"):
            session = self.world_model.start(
                inputs.context, max_frames=inputs.actions.shape[1], on_full="error", **options
            )
        ends = [timer.now()]
        for action in inputs.actions.unbind(1):
            session.step(action)
            ends.append(timer.now())
        self._tokenizer_alone(inputs, timer)
        return Turn(timer.seconds, [end - start for start, end in pairwise(ends)])

    @torch.no_grad()
    def _tokenizer_alone(self, inputs: Inputs, timer: Timer) -> None:
        """Time the tokenizer's part of `start` and of one step."""
        tokenizer = self.world_model.tokenizer
        with timer.part("encode"):
            codes = tokenizer.context_codes(inputs.context)
            features = tokenizer.decoding_features(codes)
        layout = tokenizer.layout(1)
        shape = (len(codes), inputs.samples, layout.dynamics_tokens)
        frame_codes = torch.randint(layout.dynamics_codes, shape, device=codes.device)
        with timer.part("decode_frame"):
            tokenizer.decode_dynamics(frame_codes, features)

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians([turn.seconds for turn in turns])
        steps = [step for turn in turns for step in turn.steps]
        num_frames = inputs.actions.shape[1]
        decode = num_frames * seconds["decode_frame"]
        passes = statistics.median(sum(turn.steps) for turn in turns) - decode
        least = floor(self.world_model, len(inputs.context), inputs.samples, num_frames)
        return {
            **_speed(seconds["rollout"], inputs),
            "first_frame_s": statistics.median(turn.seconds["start"] + turn.steps[0] for turn in turns),
            "step_s": {"median": statistics.median(steps), "p95": float(np.percentile(steps, 95))},
            "parts_s": {
                "encode": seconds["encode"],
                "prefill": max(seconds["start"] - seconds["encode"], 0.0),
                "passes": max(passes, 0.0),
                "frames": decode,
            },
            "floor_s": least,
            "share_of_floor": least / seconds["rollout"],
        }


def _speed(rollout: float, inputs: Inputs) -> dict[str, float]:
    return {"rollout_s": rollout, "frames_per_s": inputs.num_predicted / rollout}


Way = ReleasedWay | OurWay


@torch.no_grad()
def measure_agreement(ways: dict[str, Way], reference: WorldModel, inputs: Inputs) -> list[dict[str, Any]]:
    """Compare greedy rollouts of all ways with those of `reference`.

    After the first different token two rollouts diverge, so few equal tokens may still mean equal quality: the first
    frame shows numerical precision, the PSNR the visible difference.
    """
    expected = _roll_out(reference, inputs)
    found = []
    for name, way in ways.items():
        if isinstance(way, OurWay):
            rollout = _roll_out(way.world_model, inputs)
        else:
            timer = Timer(reference.device)
            rollout = released.generate(way.world_model, inputs.context, inputs.actions, 1, GREEDY, timer)
        layout = reference.layout.with_future_frames(inputs.actions.shape[1])
        equal = (rollout.tokens == expected.tokens)[:, layout.prompt_length - 1 :].unflatten(
            1, (-1, layout.step_length)
        )
        psnr = frame_psnr(expected.frames, rollout.frames)[:, layout.context_frames :]
        found.append(
            {
                "way": name,
                "clips": len(equal),
                "samples": 1,
                "equal_tokens": equal[..., 1:].float().mean().item(),
                "equal_tokens_of_first_frame": equal[:, 0, 1:].float().mean().item(),
                "psnr": psnr.mean().item(),
            }
        )
    return found


def _roll_out(world_model: WorldModel, inputs: Inputs) -> released.Generated:
    rollout = world_model.predict(inputs.context, inputs.actions, sampling=GREEDY)
    frames = torch.cat([rollout.context, rollout.frames[:, 0]], dim=1)
    return released.Generated(rollout.tokens[:, 0], frames)
