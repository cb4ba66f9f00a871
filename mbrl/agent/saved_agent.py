"""Agent of a run as it was saved last, to act and not to learn.

Shapes: n rows, K frames in a stack, H W pixels, D action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivideogpt.errors import UserError
from mbrl.agent.drqv2 import DrQConfig, build_agent
from mbrl.envs.env_settings import EnvSettings
from mbrl.replay.replay_buffer import EpisodeShape
from mbrl.run_folder import RunFolder
from mbrl.settings import read
from mbrl.snapshots import saved_state


@dataclass(frozen=True)
class SavedAgent:
    """Mean actions of an agent.

    Attributes:
        act: maps stacks (n, 3 K, H, W) uint8 to actions (n, D).
        frame: the run's frame at which it was saved.
        settings: of its run, as ``run.json`` has them.
    """

    act: Callable[[Tensor], Tensor]
    frame_stack: int
    frame: int
    settings: Mapping[str, Any]


def trained_agent(
    run_dir: Path, size: int, action_dim: int, device: torch.device, frame_stack: int | None = None
) -> SavedAgent:
    """Return the agent that a run of mbrl/ saved last; UserError if there is none, or if its frames or actions differ.

    Args:
        size: H and W of the frames that it is to see.
        frame_stack: K that it must have; any if not given.
    """
    folder = RunFolder(run_dir)
    settings, saved = folder.settings(), saved_state(folder)
    if saved is None:
        raise UserError(f"{run_dir} was never saved: it has no agent yet")
    seen = settings["frame_stack"], settings.get("image_size", EnvSettings.image_size)
    given = frame_stack or seen[0], size
    if seen != given:
        advice = "" if seen[0] == given[0] else ": give --frame_stack"
        raise UserError(f"{run_dir}: its agent sees stacks and sizes of {seen}, not {given}{advice}")
    state = saved["parts"]["agent"]
    actions = len(state["actor"]["policy.4.bias"])
    if actions != action_dim:
        raise UserError(f"{run_dir}: its agent's actions are {actions} numbers, those of the model {action_dim}")
    config = {name: value for name, value in settings["agent"].items() if name in DrQConfig.__dataclass_fields__}
    agent = build_agent(EpisodeShape(seen[0], (size,) * 2, action_dim), read(DrQConfig, config, "agent."), 0, device)
    agent.load_state_dict(state)
    unused = torch.Generator()
    frame = saved["parts"]["progress"]["step"] * settings["action_repeat"]
    return SavedAgent(lambda stacks: agent.act(stacks, 0, mean=True, generator=unused), seen[0], frame, settings)
