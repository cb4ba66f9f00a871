"""Settings of an environment, names of tasks, and seeds of episodes. Imports neither gymnasium nor a simulator.

Beside Meta-World's, ``gym:id`` is a task: any environment of gymnasium that renders. So is ``module:id``: one that
returns frames itself; docs/architecture.md has an example.
"""

from __future__ import annotations

import difflib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ivideogpt.errors import UserError, first_line

if TYPE_CHECKING:
    from mbrl.envs.agent_env import AgentEnv

METAWORLD = "mbrl.envs.metaworld_env:ivideogpt/MetaWorld-v0"  # as gymnasium.make imports and makes it
RENDERED = "gym:"  # begins the names of environments that are seen as they render themselves
ACTION_DIM = 4  # Meta-World's actions
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
PAPER_TASKS = ("button-press-topdown-wall", "coffee-push", "door-lock", "hammer", "handle-pull-side", "plate-slide")


def task_names() -> tuple[str, ...]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS))


def is_metaworld(task: str) -> bool:
    """Tell a task of Meta-World from another environment, ``gym:id`` or ``module:id`` of gymnasium's registry."""
    return ":" not in task


def canonical_task(name: str) -> str:
    """Return `coffee-push` for `coffee_push`, `coffee-push` and `coffee-push-v3`; other environments as they are.

    UserError if Meta-World has no such task.
    """
    if not is_metaworld(name):
        return name
    task, known = name.replace("_", "-").removesuffix("-v3"), task_names()
    if task not in known:
        near = difflib.get_close_matches(task, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no Meta-World task named {name!r}; {hint}")
    return task


def episode_rng(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Make an episode's generator, a function of the run's seed, the episode's purpose, and its number alone.

    A resumed run draws the same goals, and so does an evaluation, whatever else has drawn numbers in between.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), number])


def episode_seed(seed: int, purpose: str, number: int) -> int:
    """Return the seed of an environment's reset; ``purpose`` is a word such as "train" or "eval"."""
    return int(episode_rng(seed, purpose, number).integers(2**31))


@dataclass(frozen=True)
class EnvSettings:
    """Settings of an environment; pickled to worker processes, each of which makes its own."""

    task: str
    image_size: int = 64
    action_repeat: int = 2
    camera: str = "corner"
    paper_reward: bool = True
    frame_stack: int = 3
    duration: int = 100
    success_bonus: float = 10.0
    vary: tuple[str, ...] = ()

    def make(self) -> AgentEnv:
        """Make the environment; UserError if there is none of this name, or it cannot render here."""
        import gymnasium

        from mbrl.envs.agent_env import AgentEnv
        from mbrl.envs.users_code import guard_environment

        if self.task.startswith(RENDERED):
            from mbrl.envs.rendered_env import RenderedEnv

            rendered = RenderedEnv(self.task.removeprefix(RENDERED), self.image_size, self.action_repeat)
            return AgentEnv(rendered, self.frame_stack, self.duration, self.success_bonus)
        arguments: dict[str, Any] = {"image_size": self.image_size, "action_repeat": self.action_repeat}
        if is_metaworld(self.task):
            arguments |= {"task": self.task, "camera": self.camera, "paper_reward": self.paper_reward}
            arguments |= {"vary": self.vary}
        try:
            env = gymnasium.make(METAWORLD if is_metaworld(self.task) else self.task, **arguments)
        except (ModuleNotFoundError, gymnasium.error.Error) as error:
            raise UserError(f"no environment {self.task}: {error}") from error
        except Exception as error:  # whatever its module or its class raise
            if is_metaworld(self.task) or isinstance(error, UserError | OSError):
                raise
            reason, wanted = f"{type(error).__name__}: {first_line(error)}", " and ".join(arguments)
            raise UserError(
                f"no environment {self.task}, which must take {wanted} (docs/architecture.md): {reason}"
            ) from error
        if not is_metaworld(self.task):
            guard_environment(self.task, env.unwrapped)
        return AgentEnv(env.unwrapped, self.frame_stack, self.duration, self.success_bonus)
