"""Runs of the training commands in this process: a simulator and a world model that cost nothing, and a tiny agent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from mbrl import build_trainer
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.env_settings import EnvSettings
from mbrl.replay.replay_buffer import Imagined, Segments
from mbrl.settings import MbpoSettings, Settings, read_settings

SIZE = 64
SEGMENT_LENGTH = 5
FRAMES_A_STEP, STEPS = 2, 6  # of an episode; an episode is 12 frames


def words(text: str) -> list[str]:
    return text.split()


TINY = words(
    "task=plate_slide device=cpu duration=6 num_train_frames=120 num_seed_frames=24 eval_every_frames=48 "
    "num_eval_episodes=2 batch_size=4 agent_update_times=1 agent.hidden_dim=8 agent.feature_dim=4 "
    "agent.num_expl_steps=12 replay_buffer_size=60 save_video=false use_tb=false"
)
TINY_DREAMS = words(
    "start_mbpo=24 init_update_gen_steps=2 init_gen_times=2 update_gen_every_step=4 update_tokenizer_every_step=8 "
    "gen_every_steps=12 gen_batch=2 gen_horizon=3 world_model.segment_length=5 world_model.batch_size=2"
)


class Simulator(gymnasium.Env):
    """Brightness follows the actions and a generator of its own, which a snapshot must hold."""

    observation_space, action_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8), Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.rng, self.level = np.random.default_rng(seed), 100.0
        return self.frame(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.level += 10 * float(action.sum()) + self.rng.normal()
        return self.frame(), self.level / 100, False, False, {"success": self.level > 120}

    def frame(self) -> np.ndarray:
        return np.full((SIZE, SIZE, 3), self.level % 256, np.uint8)

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"level": np.array(self.level), "rng": np.array(json.dumps(self.rng.bit_generator.state))}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.rng, self.level = np.random.default_rng(), float(state["level"])
        self.rng.bit_generator.state = json.loads(str(state["rng"]))

    def close(self) -> None: ...


class WorldModel:
    """One weight that remembers all segments; what is imagined depends on it, on the seed and on the actions."""

    def __init__(self, fails_at_round: int = -1) -> None:
        self.weight = torch.zeros(())
        self.generator = torch.Generator().manual_seed(0)
        self.num_rounds, self.fails_at_round = 0, fails_at_round

    def update_tokenizer(self, segments: Segments) -> dict[str, Tensor]:
        return self._learn(segments.frames.float().mean() / 256)

    def update_transformer(self, segments: Segments) -> dict[str, Tensor]:
        return self._learn(segments.rewards.mean() + segments.actions.mean())

    def _learn(self, value: Tensor) -> dict[str, Tensor]:
        noise = torch.rand((), generator=self.generator) + torch.rand(())
        self.weight = 0.9 * self.weight + value + noise
        return {"loss": self.weight}

    def imagine(self, starts: Tensor, act: Callable[[Tensor], Tensor], horizon: int, seed: int) -> Imagined:
        self.num_rounds += 1
        if self.num_rounds == self.fails_at_round:
            raise FloatingPointError("NaN in a frame")
        generator = torch.Generator().manual_seed(seed)
        stack, frames, actions, rewards = starts, [starts[:, -3:]], [torch.zeros(len(starts), 4)], []
        for _ in range(horizon):
            actions.append(act(stack).cpu())
            noise = torch.rand(len(starts), generator=generator)
            rewards.append(actions[-1].sum(1) + self.weight + noise)
            frames.append((frames[-1] + 10 * noise[:, None, None, None]).to(torch.uint8))
            stack = torch.cat([stack[:, 3:], frames[-1]], 1)
        return Imagined(
            frames=torch.stack(frames, 1),
            earlier=starts[:, :-3].unflatten(1, (-1, 3)),
            action=torch.stack(actions, 1),
            reward=torch.stack([torch.zeros(len(starts)), *rewards], 1),
        )

    def validate(self, segments: Segments, seed: int) -> tuple[dict[str, float], list]:
        return {"frame_mse": float(self.weight + segments.rewards.sum() + seed % 7)}, []

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "generator": self.generator.get_state(), "num_rounds": self.num_rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.num_rounds = state["weight"], state["num_rounds"]
        self.generator.set_state(state["generator"])


def make_env(settings: EnvSettings) -> AgentEnv:
    """In place of `EnvSettings.make`."""
    return AgentEnv(Simulator(), settings.frame_stack, settings.duration, settings.success_bonus)


def parse_drq(argv: list[str], config_name: str = "config") -> tuple[Settings, dict[str, Any]]:
    return read_settings(Settings, argv, config_name)


def parse_mbpo(argv: list[str], config_name: str = "mbpo_config") -> tuple[MbpoSettings, dict[str, Any]]:
    return read_settings(MbpoSettings, argv, config_name)


def train_drq(run_dir: Path, *overrides: str) -> int:
    return build_trainer.train(*parse_drq([*TINY, f"run_dir={run_dir}", *overrides]))


def train_mbpo(run_dir: Path, *overrides: str, world_model: WorldModel | None = None) -> int:
    settings, config = parse_mbpo([*TINY, *TINY_DREAMS, f"run_dir={run_dir}", *overrides])
    return build_trainer.train(settings, config, world_model or WorldModel())


def lines(run_dir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what depends on the clock."""
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("hours", "frames_per_s")}
        for line in read
        if split in (None, line["split"])
    ]
