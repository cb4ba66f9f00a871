"""Meta-World tasks as a ``gymnasium.Env``: one camera picture per agent step, a new goal in every episode.

The protocol of the paper (action repeat, zero-action step after reset, reward) without frame stacking and without
the success bonus: those belong to the replay format.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import ACTION_DIM, METAWORLD, canonical_task
from mbrl.envs.offscreen import OffscreenRenderer, select_backend
from mbrl.envs.simulator_state import State, set_simulator_state, simulator_state

METADATA = {"render_modes": ["rgb_array"], "render_fps": 20}


class MetaWorldEnv(gymnasium.Env):
    """After `reset(seed=...)` the same actions give the same frames and rewards, bit for bit. Close it after use.

    Observations are frames (H, W, 3) uint8; a reward is the sum over the repeats of an action, and ``info["success"]``
    tells whether any of them succeeded. Episodes have no end of their own.

    Args:
        paper_reward: concerns button-press-topdown-wall alone, whose reward has changed since the paper.
    """

    metadata = METADATA

    def __init__(
        self,
        task: str,
        image_size: int = 64,
        action_repeat: int = 2,
        camera: str = "corner",
        paper_reward: bool = True,
        render_mode: str = "rgb_array",
    ) -> None:
        select_backend()  # before Meta-World imports mujoco
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.render_mode = render_mode
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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Sample goal and object from the seed, or one that is sampled, and return the first frame."""
        super().reset(seed=seed)
        self._env.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._env.reset()
        self.state, *_ = self._env.step(np.zeros(ACTION_DIM, np.float32))
        return self.render(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            self.state, step_reward, _, _, info = self._env.step(action)
            reward += float(step_reward)
            success = success or bool(info["success"])
        return self.render(), reward, False, False, {"success": success}

    def render(self) -> np.ndarray:
        # The camera hangs upside-down and OpenGL's rows go upwards: together they give the upright, mirrored picture
        # of the published demonstrations.
        return self._renderer.render(self._env.data)

    def snapshot(self) -> State:
        """Return everything that the future depends on, about 5 KB; possible from the first reset on."""
        return {"task": np.array(self.task), "observation": self.state.copy(), **simulator_state(self._env)}

    def restore(self, state: State) -> None:
        """Continue from a snapshot, bit for bit.

        Raises:
            UserError: it belongs to another task.
        """
        if str(state["task"]) != self.task:
            raise UserError(f"a snapshot of {state['task']} cannot be restored in an environment of {self.task}")
        set_simulator_state(self._env, state)
        self.state = state["observation"].copy()

    def close(self) -> None:
        self._renderer.close()


gymnasium.register(METAWORLD.partition(":")[2], MetaWorldEnv, disable_env_checker=True, order_enforce=False)


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
    """Reward a closed gripper in button-press-topdown-wall, as the paper's version did; Meta-World 3.1 wants it open.

    3.1 uses `max(obs[3], 0)` where the older one had `1 - obs[3]`, so we hand it that.
    """

    def compute_paper_reward(action: np.ndarray, obs: np.ndarray) -> tuple[float, ...]:
        inverted = obs.copy()
        inverted[3] = 1.0 - obs[3]
        reward, to_object, _, *rest = compute_reward(action, inverted)
        return reward, to_object, obs[3], *rest

    return compute_paper_reward
