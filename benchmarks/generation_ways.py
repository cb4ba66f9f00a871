"""The ways to roll out that `generation.py` measures, each one turn at a time."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.generation_floor import floor
from benchmarks.models import ACTION_DIM
from benchmarks.timer import Timer
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel

SAMPLING = Sampling(top_k=100)
RELEASED = "released"  # the name of the way that the others are compared with
FORGET_PEAK = Path("/proc/self/clear_refs")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Inputs:
    """``context`` (B, t, 3, H, W) and ``actions`` (B, F, D), as a session takes them."""

    context: Tensor
    actions: Tensor
    samples: int

    @property
    def num_predicted(self) -> int:
        """Future frames of all clips and samples."""
        return self.actions.shape[0] * self.actions.shape[1] * self.samples


def random_inputs(world_model: WorldModel, clips: int, frames: int, samples: int = 1) -> Inputs:
    tokenizer, device = world_model.tokenizer, world_model.device
    side = tokenizer.config.resolution
    context = torch.rand(clips, tokenizer.context_length, 3, side, side)
    actions = torch.rand(clips, frames, ACTION_DIM) * 2 - 1
    return Inputs(context.to(device), actions.to(device), samples)


@dataclass(frozen=True)
class Turn:
    """What one measurement of one way gave."""

    seconds: dict[str, float]
    steps: list[float] = field(default_factory=list)  # seconds of each step of a session


class ReleasedWay:
    """The released implementation's generation, in float32. ``num_frames`` are really predicted."""

    def __init__(self, folder: Path, device: torch.device, num_frames: int) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, torch.float32)
        self.world_model.tokenizer.to(memory_format=torch.contiguous_format)  # ours are channels-last
        self.num_frames = num_frames

    def turn(self, inputs: Inputs) -> Turn:
        timer = Timer(self.world_model.device)
        released.generate(
            self.world_model, inputs.context, inputs.actions, inputs.samples, SAMPLING, timer, self.num_frames
        )
        return Turn(timer.seconds | {"rollout": sum(timer.seconds.values())})

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians(turns)
        rollout = seconds.pop("rollout")
        return {"frames_measured": self.num_frames, **speed(rollout, inputs), "parts_s": seconds}


class OurWay:
    """This project's engine, in one type of numbers."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | Literal["auto"]) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, dtype)

    def turn(self, inputs: Inputs) -> Turn:
        timer = Timer(self.world_model.device)
        with timer.part("rollout"):
            self.world_model.predict(inputs.context, inputs.actions, num_samples=inputs.samples, sampling=SAMPLING)
        steps = self._step_by_step(inputs, timer)
        self._tokenizer_alone(inputs, timer)
        return Turn(timer.seconds, steps)

    def _step_by_step(self, inputs: Inputs, timer: Timer) -> list[float]:
        num_frames = inputs.actions.shape[1]
        with timer.part("start"):
            session = self.world_model.start(
                inputs.context, inputs.samples, sampling=SAMPLING, max_frames=num_frames, on_full="error"
            )
        ends = [timer.now()]
        for action in inputs.actions.unbind(1):
            session.step(action)
            ends.append(timer.now())
        return [end - start for start, end in pairwise(ends)]

    @torch.no_grad()
    def _tokenizer_alone(self, inputs: Inputs, timer: Timer) -> None:
        """The tokenizer's part of `start` and of one step."""
        tokenizer = self.world_model.tokenizer
        with timer.part("encode_context"):
            codes = tokenizer.context_codes(inputs.context)
        with timer.part("context_features"):
            features = tokenizer.decoding_features(codes)
        layout: TokenLayout = tokenizer.layout(1)
        shape = (len(codes), inputs.samples, layout.dynamics_tokens)
        frame_codes = torch.randint(layout.dynamics_codes, shape, device=codes.device)
        with timer.part("decode_frame"):
            tokenizer.decode_dynamics(frame_codes, features)

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians(turns)
        steps = [step for turn in turns for step in turn.steps]
        first = statistics.median(turn.seconds["start"] + turn.steps[0] for turn in turns)
        num_frames = inputs.actions.shape[1]
        encode = seconds["encode_context"] + seconds["context_features"]
        decode = num_frames * seconds["decode_frame"]
        of_steps = statistics.median(sum(turn.steps) for turn in turns)
        least = floor(self.world_model, len(inputs.context), inputs.samples, num_frames)
        return {
            **speed(seconds["rollout"], inputs),
            "first_frame_s": first,
            "step_s": {"median": statistics.median(steps), "p95": float(np.percentile(steps, 95))},
            "parts_s": {
                "encode": encode,
                "prefill": max(seconds["start"] - encode, 0.0),
                "passes": max(of_steps - decode, 0.0),
                "frames": decode,
            },
            "tokenizer_s_per_frame": {
                "encode": seconds["encode_context"] / inputs.context.shape[:2].numel(),
                "decode": seconds["decode_frame"] * num_frames / inputs.num_predicted,
            },
            "floor_s": least,
            "share_of_floor": sum(least.values()) / seconds["rollout"],
        }


def speed(rollout: float, inputs: Inputs) -> dict[str, float]:
    return {"rollout_s": rollout, "frames_per_s": inputs.num_predicted / rollout}


def medians(turns: list[Turn]) -> dict[str, float]:
    return {part: statistics.median(turn.seconds[part] for turn in turns) for part in turns[0].seconds}


Way = ReleasedWay | OurWay


class Memory:
    """The most that one way needed at a time.

    On a GPU without what the others keep there. On a CPU it is the whole process's, while that way had its turns (where
    the kernel does not forget earlier peaks: so far).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept = 0  # by the way, between its turns
        self.peak = 0

    def watch(self, call: Callable[[], Result]) -> Result:
        return self._on_gpu(call) if self.device.type == "cuda" else self._on_cpu(call)

    def _on_gpu(self, call: Callable[[], Result]) -> Result:
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            return call()
        finally:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device) - before + self.kept)
            self.kept += torch.cuda.memory_allocated(self.device) - before

    def _on_cpu(self, call: Callable[[], Result]) -> Result:
        with suppress(OSError):
            FORGET_PEAK.write_text("5")
        result = call()
        self.peak = max(self.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return result
