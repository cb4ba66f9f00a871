"""Settings of a run, named as in `cfgs/`, which holds the defaults. They are checked before anything expensive starts.

Frames are simulator steps; an agent step has ``action_repeat`` of them.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ivideogpt.errors import UserError
from ivideogpt.paths import LPIPS_FOLDER
from mbrl.agent.drqv2 import DrQConfig
from mbrl.envs.env_settings import ACTION_DIM, CAMERAS, EnvSettings, canonical_task, is_metaworld
from mbrl.world_model.config import WorldModelConfig

T = TypeVar("T")
NUM_WORKERS = 4  # default, which gives no warning

logger = logging.getLogger(__name__)

# Minimum value of each setting.
MINIMA = {
    "frame_stack": 1, "action_repeat": 1, "duration": 1, "num_train_frames": 0, "num_seed_frames": 0, "seed": 0,
    "eval_every_frames": 1, "num_eval_episodes": 1, "replay_buffer_size": 1, "nstep": 1, "batch_size": 1,
    "agent_update_times": 0, "start_mbpo": 0, "init_update_gen_steps": 0, "init_gen_times": 0,
    "update_gen_every_step": 1, "update_gen_times": 0, "update_tokenizer_every_step": 1, "gen_every_steps": 1,
    "gen_batch": 1, "gen_horizon": 1,
}  # fmt: skip


def read(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from values by field name.

    Args:
        prefix: prefix of the names in messages.

    Raises:
        UserError: a name is unknown or missing, or a value is of another type.
    """
    hints = typing.get_type_hints(kind)
    for name in sorted(values.keys() - hints.keys()):
        near = difflib.get_close_matches(name, hints, n=1)
        raise UserError(f"no setting named {prefix + name!r}" + (f"; did you mean {prefix + near[0]}?" if near else ""))
    required = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
    if missing := required - values.keys():
        raise UserError(f"settings are missing: {', '.join(prefix + name for name in sorted(missing))}")
    return kind(**{name: _typed(hints[name], value, prefix + name) for name, value in values.items()})


def _typed(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {value!r}: it should be a group of settings, as in --help")
        return read(hint, value, f"{name}.")  # type: ignore[arg-type]
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint is int and number and math.isfinite(value) and value == int(value):  # 1e6 is also a whole number
        return int(value)
    if hint in (str, Path) and (isinstance(value, str) or number):
        return hint(str(value))
    if hint is bool and isinstance(value, bool):
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false"}
    raise UserError(f"{name} is {value!r}: it should be {words.get(hint, 'a text')}")


@dataclass(frozen=True, kw_only=True)
class AgentSettings(DrQConfig):
    """Keys of the group `agent`: those of `DrQConfig`, and three of the run."""

    update_every_steps: int
    use_tb: bool
    device: str


@dataclass(frozen=True)
class Settings:
    """Settings of a run of DrQ-v2, which MBPO shares."""

    task_name: str
    camera: str
    frame_stack: int
    action_repeat: int
    duration: int
    succ_bonus: float
    paper_reward: bool
    discount: float
    num_train_frames: int
    num_seed_frames: int
    stddev_schedule: str
    eval_every_frames: int
    num_eval_episodes: int
    save_snapshot: bool
    resume_with_changes: bool
    save_video: bool
    save_train_video: bool
    use_tb: bool
    use_wandb: bool
    replay_buffer_size: int
    replay_buffer_num_workers: int
    nstep: int
    batch_size: int
    demo: bool
    demo_path_prefix: Path
    seed: int
    device: str
    experiment: str
    exp_name: str
    run_dir: Path
    agent_update_times: int
    lr: float
    feature_dim: int
    agent: AgentSettings

    @property
    def env(self) -> EnvSettings:
        return EnvSettings(
            task=canonical_task(self.task_name),
            action_repeat=self.action_repeat,
            camera=self.camera,
            frame_stack=self.frame_stack,
            duration=self.duration,
            success_bonus=self.succ_bonus,
            paper_reward=self.paper_reward,
        )

    @property
    def episode_frames(self) -> int:
        return self.duration * self.action_repeat

    def validate(self) -> None:
        """Check ranges and combinations.

        Raises:
            UserError: a value is out of its range, or contradicts another one.
        """
        for name, minimum in MINIMA.items():
            if getattr(self, name, minimum) < minimum:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least {minimum}")
        if self.agent.update_every_steps < 1:
            raise UserError(f"agent.update_every_steps is {self.agent.update_every_steps}: it must be at least 1")
        if not 0 <= self.discount <= 1:
            raise UserError(f"discount is {self.discount}: it must be in [0, 1]")
        if self.camera not in CAMERAS:
            raise UserError(f"camera is {self.camera!r}: there are {', '.join(CAMERAS)}")
        if self.nstep > self.duration:
            raise UserError(f"nstep {self.nstep} is more than the {self.duration} steps of an episode (duration)")
        if self.replay_buffer_size < self.duration:
            raise UserError(f"replay_buffer_size {self.replay_buffer_size} is less than one episode ({self.duration})")
        if self.replay_buffer_num_workers != NUM_WORKERS:
            logger.warning("replay_buffer_num_workers has no effect: batches are put together in this process")
        if self.agent.use_tb != self.use_tb:
            logger.warning("agent.use_tb has no effect: use_tb alone decides")
        if self.device not in ("auto", self.agent.device):
            raise UserError(
                f"agent.device is {self.agent.device} and device is {self.device}: the agent is where everything is, "
                "give device alone"
            )
        if self.agent.device == "auto" and not torch.cuda.is_available():
            logger.warning(
                "no GPU here: training on the CPU, where the published settings take days and MBPO's weeks; the "
                "presets cpu_agent, cpu_mbpo and cpu_demo are made for one (docs/mbrl.md)"
            )
        self._check_there_is_data_by("num_seed_frames")
        _ = self.env  # checks itself

    def _check_there_is_data_by(self, start: str) -> None:
        if getattr(self, start) < self.episode_frames and not self.demo:
            raise UserError(
                f"{start} is {getattr(self, start)}, before the first episode ends ({self.episode_frames} frames): "
                "raise it, or add demo=true"
            )

    @property
    def torch_device(self) -> torch.device:
        """Return the device of all parts: ``device`` or, if left at auto, ``agent.device``; "auto" prefers a GPU.

        Raises:
            UserError: the device does not exist here.
        """
        device = self.agent.device
        if device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not (known := re.fullmatch(r"cpu|cuda(?::(0|[1-9]\d*))?", device)):
            raise UserError(f"device is {device!r}: it should be auto, cpu, cuda or cuda:<number>")
        if device != "cpu":
            if not torch.cuda.is_available():
                raise UserError(f"device={device}, but PyTorch finds no GPU here: leave device out, or give device=cpu")
            num_gpus = torch.cuda.device_count()
            if int(known[1] or 0) >= num_gpus:
                raise UserError(f"device={device}, but the last GPU that PyTorch finds here is cuda:{num_gpus - 1}")
        return torch.device(device)


@dataclass(frozen=True)
class MbpoSettings(Settings):
    """Settings of a run of MBPO.

    Attributes:
        lpips_path: folder of the weights of the tokenizer's perceptual loss.
    """

    start_mbpo: int
    init_update_gen_steps: int
    init_gen_times: int
    update_gen_every_step: int
    update_gen_times: int
    update_tokenizer_every_step: int
    gen_every_steps: int
    gen_batch: int
    gen_horizon: int
    real_ratio: float
    lpips_path: Path
    world_model: WorldModelConfig

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.real_ratio <= 1:
            raise UserError(f"real_ratio is {self.real_ratio}: it must be in [0, 1]")
        if self.nstep > self.gen_horizon:
            raise UserError(f"nstep {self.nstep} is more than the {self.gen_horizon} imagined steps (gen_horizon)")
        tokenizer_every, model_every = self.update_tokenizer_every_step, self.update_gen_every_step
        if (tokenizer_every // self.action_repeat) % max(
            model_every // self.action_repeat, 1
        ):  # in agent steps, the unit of the schedule
            raise UserError(
                f"update_tokenizer_every_step is {tokenizer_every}: the tokenizer learns when the transformer does, "
                f"so give a multiple of {model_every} (update_gen_every_step), and both in multiples of action_repeat "
                f"({self.action_repeat})"
            )
        if self.lpips_path != Path(LPIPS_FOLDER) and not self.lpips_path.is_dir():
            raise UserError(f"lpips_path is {self.lpips_path}: no such folder")
        self._check_there_is_data_by("start_mbpo")
        self._check_world_model()

    def _check_world_model(self) -> None:
        context, length = self.world_model.context_length, self.world_model.segment_length
        if length != self.gen_horizon + context:
            raise UserError(
                f"world_model.segment_length is {length}: it must be gen_horizon + world_model.context_length, which "
                f"is {self.gen_horizon} + {context}"
            )
        if context > self.frame_stack:
            raise UserError(f"world_model.context_length {context} is more than the frame_stack {self.frame_stack}")
        if length > self.duration:
            raise UserError(
                f"world_model.segment_length {length} is more than the {self.duration} steps of an episode (duration)"
            )
        action_dim = self.world_model.action_dim
        if is_metaworld(self.task_name) and action_dim != ACTION_DIM:
            raise UserError(f"world_model.action_dim is {action_dim}: Meta-World's actions have {ACTION_DIM} numbers")
