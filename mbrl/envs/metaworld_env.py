"""Meta-World tasks as agents see them here: one camera picture per agent step, goals re-drawn in every episode.

The protocol of the paper (action repeat, zero-action step after reset, reward) without frame stacking and without
the success bonus: those belong to the replay format.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivideogpt.errors import UserError
from mbrl.envs.offscreen import OffscreenRenderer, select_backend
from mbrl.envs.simulator_state import State, set_simulator_state, simulator_state

ACTION_DIM = 4
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
PAPER_TASKS = (
    "button-press-topdown-wall",
    "coffee-push",
    "door-lock",
    "hammer",
    "handle-pull-side",
    "plate-slide",
)


def task_names() -> tuple[str, ...]:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS))


def canonical_task(name: str) -> str:
    """`coffee_push`, `coffee-push` and `coffee-push-v3` are one task: `coffee-push`."""
    task, known = name.replace("_", "-").removesuffix("-v3"), task_names()
    if task not in known:
        near = difflib.get_close_matches(task, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no Meta-World task named {name!r}; {hint}")
    return task


@dataclass(frozen=True)
class EnvStep:
    """What an action earned, summed over its repeats, and the picture that followed."""

    frame: np.ndarray  # (H, W, 3) uint8
    reward: float
    success: bool


class MetaWorldEnv:
    """After `reset(seed)` the same actions give the same frames and rewards, bit for bit. Close it after use.

    `paper_reward` concerns button-press-topdown-wall alone, whose reward has changed since the paper.
    """

    def __init__(
        self, task: str, image_size: int = 64, action_repeat: int = 2, camera: str = "corner", paper_reward: bool = True
    ) -> None:
        select_backend()  # before Meta-World imports mujoco
        self.task = canonical_task(task)
        self.action_repeat, self.camera = action_repeat, camera
        self._env = _make_task(self.task)
        if paper_reward and self.task == "button-press-topdown-wall":
            self._env.compute_reward = paper_button_reward(self._env.compute_reward)
        self._renderer = OffscreenRenderer(self._env.model, image_size, camera)
        self.state = np.zeros(39)  # full simulator observation, goal included: for scripted policies, not for agents

    @property
    def workspace(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the box that the hand can be sent to."""
        return self._env.mocap_low, self._env.mocap_high

    def reset(self, seed: int) -> np.ndarray:
        """Draw goal and object from the seed and return the first frame."""
        self._env.seed(seed)
        self._env.reset()
        self.state, *_ = self._env.step(np.zeros(ACTION_DIM, np.float32))
        return self.render()

    def step(self, action: np.ndarray) -> EnvStep:
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            self.state, step_reward, _, _, info = self._env.step(action)
            reward += float(step_reward)
            success = success or bool(info["success"])
        return EnvStep(self.render(), reward, success)

    def render(self) -> np.ndarray:
        # The camera hangs upside-down and OpenGL's rows go upwards: together they give the upright, mirrored picture
        # of the published demonstrations.
        return self._renderer.render(self._env.data)

    def snapshot(self) -> State:
        """All that the future depends on, about 5 KB; possible from the first reset on."""
        return {"task": np.array(self.task), "observation": self.state.copy(), **simulator_state(self._env)}

    def restore(self, state: State) -> None:
        """Go on as the environment of which it is a snapshot would have, bit for bit.

        Raises:
            UserError: it belongs to another task.
        """
        if str(state["task"]) != self.task:
            raise UserError(f"a snapshot of {state['task']} cannot be restored in an environment of {self.task}")
        set_simulator_state(self._env, state)
        self.state = state["observation"].copy()

    def close(self) -> None:
        self._renderer.close()


def _make_task(task: str) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._set_task_called = True
    env._freeze_rand_vec = False  # a new goal and object position in every episode
    env.seeded_rand_vec = True  # drawn from env.seed, not from numpy's global state
    env._partially_observable = False
    del env.sawyer_observation_space  # cached when the goal was hidden; observations are clipped to it
    env.max_path_length = sys.maxsize  # whoever steps decides how long an episode is
    return env


def paper_button_reward(compute_reward: Callable[..., tuple[float, ...]]) -> Callable[..., tuple[float, ...]]:
    """Meta-World 3.1 rewards an open gripper in button-press-topdown-wall; the paper's version rewarded a closed one.

    3.1 uses `max(obs[3], 0)` where the older one had `1 - obs[3]`, so we hand it that.
    """

    def compute_paper_reward(action: np.ndarray, obs: np.ndarray) -> tuple[float, ...]:
        inverted = obs.copy()
        inverted[3] = 1.0 - obs[3]
        reward, to_object, _, *rest = compute_reward(action, inverted)
        return reward, to_object, obs[3], *rest

    return compute_paper_reward
