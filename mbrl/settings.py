"""Settings of a run, named as in `cfgs/`, which holds the defaults. They are checked before anything expensive starts.

What is due in which step is asked of them, too: a resumed run needs to know no more than the number of steps.
Frames are simulator steps; an agent step has ``action_repeat`` of them.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ivideogpt.errors import UserError
from ivideogpt.paths import LPIPS_FOLDER
from mbrl.agent.drqv2 import DrQConfig
from mbrl.envs.env_settings import ACTION_DIM, CAMERAS, EnvSettings, canonical_task, is_metaworld

T = TypeVar("T")
S = TypeVar("S", bound="Settings")
NUM_WORKERS = 4  # default, which gives no warning
RELEASED = "pretrained_models/ivideogpt-oxe-64-act-free"
INERT_KEYS = ("fast_reward_predictor", "reward_lr", "reward_wd")
BELOW_1 = ("tok_beta1", "tok_beta2", "llama_attn_drop")

logger = logging.getLogger(__name__)

# Minimum value of each setting, and of those under ``world_model``.
MINIMA = {
    "frame_stack": 1, "action_repeat": 1, "duration": 1, "num_train_frames": 0, "num_seed_frames": 0, "seed": 0,
    "eval_every_frames": 1, "num_eval_episodes": 1, "replay_buffer_size": 1, "nstep": 1, "batch_size": 1,
    "agent_update_times": 0, "start_mbpo": 0, "init_update_gen_steps": 0, "init_gen_times": 0,
    "update_gen_every_step": 1, "update_gen_times": 0, "update_tokenizer_every_step": 1, "gen_every_steps": 1,
    "gen_batch": 1, "gen_horizon": 1,
}  # fmt: skip
WORLD_MODEL_MINIMA = {
    "batch_size": 1, "max_target_frames": 1, "action_dim": 1, "tok_lr": 0, "tok_wd": 0, "model_lr": 0, "model_wd": 0,
    "reward_weight": 0, "tok_beta1": 0, "tok_beta2": 0, "llama_attn_drop": 0,
}  # fmt: skip


def read(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from values by field name; ``prefix`` is that of the names in messages.

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


def read_settings(kind: type[S], argv: Sequence[str], config_name: str) -> tuple[S, dict[str, Any]]:
    """Return the checked settings of a command line, and the values that they were read from."""
    from mbrl.config_files import compose_config  # needs hydra, which may be missing

    config = compose_config(config_name, argv)
    settings = read(kind, config)
    settings.validate()
    return settings, config


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


def _check_minima(settings: Any, minima: Mapping[str, int], prefix: str = "") -> None:
    for name, minimum in minima.items():
        value = getattr(settings, name, None)
        if value is not None and value < minimum:
            raise UserError(f"{prefix}{name} is {value}: it must be at least {minimum}")


@dataclass(frozen=True)
class WorldModelConfig:
    """Settings under ``world_model``; the defaults are the paper's."""

    load_pretrained_model: bool = True  # from ``pretrained_transformer_path``; otherwise the transformer is new
    config_name: str = "configs/llama/config.json"
    vqgan_type: str = "ctx_vqgan"
    pretrained_model_name_or_path: str | None = f"{RELEASED}/tokenizer"  # the tokenizer; None for a new one
    pretrained_transformer_path: str = f"{RELEASED}/transformer"
    load_internal_llm: bool = True  # the transformer's file is action-free, or only its language model is wanted
    llama_attn_drop: float | None = 0.1  # attention dropout in the transformer's updates; None: as ``config_name`` says
    symlog: bool = True  # rewards are learned in symlog space
    context_length: int = 2
    segment_length: int = 12
    action_dim: int = 4
    action_space: str | None = None  # robot of a starting point that knows several
    batch_size: int = 16
    selected_params: bool = True  # the codebooks stay as they are
    tok_lr: float = 1e-4
    tok_wd: float = 0.0
    tok_beta1: float = 0.9
    tok_beta2: float = 0.999
    max_grad_norm: float | None = 1.0  # None: gradients are not clipped
    max_target_frames: int = 5  # future frames of a segment that the tokenizer trains on
    model_lr: float = 1e-4
    model_wd: float = 0.0
    embed_no_wd: bool = True
    reward_weight: float = 1.0  # squared error of rewards beside the cross-entropy
    without_lpips: bool = False  # the tokenizer learns without the perceptual loss
    fast_reward_predictor: bool = False  # historical, without effect
    reward_lr: float = 1e-4  # historical, without effect
    reward_wd: float = 0.0  # historical, without effect

    def __post_init__(self) -> None:
        if self.vqgan_type != "ctx_vqgan":
            raise UserError(f"world_model.vqgan_type is {self.vqgan_type!r}, only 'ctx_vqgan' is supported")
        if not 0 < self.context_length < self.segment_length:
            raise UserError(
                f"world_model.segment_length {self.segment_length} must be more than its context_length "
                f"{self.context_length}, which must be positive"
            )
        _check_minima(self, WORLD_MODEL_MINIMA, "world_model.")
        for name in BELOW_1:
            if (getattr(self, name) or 0) >= 1:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be less than 1")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"world_model.max_grad_norm is {self.max_grad_norm}: it must be more than 0")
        for name in INERT_KEYS:
            if getattr(self, name) != WorldModelConfig.__dataclass_fields__[name].default:
                logger.warning("world_model.%s has no effect: the transformer's own head predicts rewards", name)


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
    def num_steps(self) -> int:
        return self.steps(self.num_train_frames)

    def frame(self, step: int) -> int:
        return step * self.action_repeat

    def steps(self, frames: int) -> int:
        return frames // self.action_repeat

    def is_due(self, step: int, every: int) -> bool:
        """Return whether something due every so many frames, which need not be whole agent steps, is due now."""
        return step % max(self.steps(every), 1) == 0

    def evaluates(self, step: int) -> bool:
        return self.is_due(step, self.eval_every_frames)

    def agent_learns(self, step: int) -> bool:
        return step >= self.steps(self.num_seed_frames) and step % self.agent.update_every_steps == 0

    def validate(self) -> None:
        """Raise UserError if a value is out of its range, or contradicts another one."""
        _check_minima(self, MINIMA)
        _check_minima(self.agent, {"update_every_steps": 1}, "agent.")
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}: it must be less than 2^63")
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
        frames = self.frame(self.duration)
        if getattr(self, start) < frames and not self.demo:
            raise UserError(
                f"{start} is {getattr(self, start)}, before the first episode ends ({frames} frames): "
                "raise it, or add demo=true"
            )

    @property
    def torch_device(self) -> torch.device:
        """Return the device of all parts: ``device`` or, if left at auto, ``agent.device``; "auto" prefers a GPU.

        UserError if it does not exist here.
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
    """Settings of a run of MBPO."""

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
    lpips_path: Path  # folder of the weights of the tokenizer's perceptual loss
    world_model: WorldModelConfig

    @property
    def first_step(self) -> int:
        """The step of the initial updates and rounds of imagination."""
        return self.steps(self.start_mbpo)

    def model_learns(self, step: int) -> bool:
        return step > self.first_step and self.is_due(step, self.update_gen_every_step)

    def tokenizer_learns(self, step: int) -> bool:
        return self.is_due(step, self.update_tokenizer_every_step)

    def imagines(self, step: int) -> bool:
        return step >= self.first_step and self.is_due(step, self.gen_every_steps)

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.real_ratio <= 1:
            raise UserError(f"real_ratio is {self.real_ratio}: it must be in [0, 1]")
        if self.nstep > self.gen_horizon:
            raise UserError(f"nstep {self.nstep} is more than the {self.gen_horizon} imagined steps (gen_horizon)")
        tokenizer_every, model_every = self.update_tokenizer_every_step, self.update_gen_every_step
        if self.steps(tokenizer_every) % max(self.steps(model_every), 1):
            raise UserError(
                f"update_tokenizer_every_step is {tokenizer_every}: the tokenizer learns when the transformer does, "
                f"so give a multiple of {model_every} (update_gen_every_step), and both in multiples of action_repeat "
                f"({self.action_repeat})"
            )
        if self.lpips_path != Path(LPIPS_FOLDER) and not self.lpips_path.is_dir():
            raise UserError(f"lpips_path is {self.lpips_path}: no such folder")
        self._check_there_is_data_by("start_mbpo")
        context, length = self.world_model.context_length, self.world_model.segment_length
        if length != self.gen_horizon + context:
            raise UserError(
                f"world_model.segment_length is {length}: it must be gen_horizon + world_model.context_length, which "
                f"is {self.gen_horizon} + {context}"
            )
        if context > self.frame_stack:
            raise UserError(f"world_model.context_length {context} is more than the frame_stack {self.frame_stack}")
        if self.replay_buffer_size < 2 * self.duration:  # one may be held out
            raise UserError(
                f"replay_buffer_size {self.replay_buffer_size} is less than the two episodes ({2 * self.duration}) "
                "that a world model needs: raise it"
            )
        if length > self.duration:
            raise UserError(
                f"world_model.segment_length {length} is more than the {self.duration} steps of an episode (duration)"
            )
        action_dim = self.world_model.action_dim
        if is_metaworld(self.task_name) and action_dim != ACTION_DIM:
            raise UserError(f"world_model.action_dim is {action_dim}: Meta-World's actions have {ACTION_DIM} numbers")
