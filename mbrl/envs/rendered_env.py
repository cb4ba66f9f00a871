"""Any environment of gymnasium that renders, as an environment of frames whose actions are in [-1, 1].

Shapes: D action dimension, H W pixels.
"""

from __future__ import annotations

import atexit
import math
from contextlib import suppress
from reprlib import repr as shortened
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from PIL import Image

from ivideogpt.errors import UserError, first_line
from mbrl.envs.offscreen import select_backend
from mbrl.envs.users_code import guard_environment
from mbrl.replay.episodes import Floats, Pixels


class RenderedEnv(gymnasium.Env):
    """Observations are rendered frames (H, W, 3) uint8. Close it after use.

    A reward is the sum over the repeats of an action. ``info["success"]`` tells whether any of them had a true
    "is_success" or "success" in its info. The environment's own limit of steps is lifted.

    Attributes:
        inner: the environment itself, for policies that act on its own observations.
        state: its latest own observation.
        reports_success: whether any step of this episode had one of the two in its info.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, env_id: str, image_size: int = 64, action_repeat: int = 1) -> None:
        """
        Args:
            env_id: of gymnasium's registry, ``module:id`` if a module must be imported first.

        Raises:
            UserError: there is no such environment, it does not render, or its actions are neither numbers with
                bounds nor a choice of one of several.
        """
        with suppress(UserError):  # it may need no OpenGL
            select_backend()  # before it imports mujoco, if it does
        try:
            self.inner = gymnasium.make(env_id, render_mode="rgb_array", max_episode_steps=-1, disable_env_checker=True)
        except Exception as error:  # whatever its module or its class raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"no environment {env_id} that renders pictures: {reason}") from error
        guard_environment(env_id, self.inner.unwrapped)
        self._id, self._size, self.action_repeat = env_id, image_size, action_repeat
        self.observation_space = Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = Box(-1, 1, (self._action_dim(),), np.float32)
        self._seed, self._actions = 0, list[Floats]()

    def _action_dim(self) -> int:
        space = self.inner.action_space
        if isinstance(space, Discrete):
            return int(space.n)
        if not isinstance(space, Box) or not space.is_bounded() or len(space.shape) != 1:
            self.close()
            raise UserError(f"{self._id} takes actions of {space}: expected a vector of bounded numbers, or Discrete")
        return int(space.shape[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Pixels, dict[str, Any]]:
        """Return the first frame. What follows is a function of the seed and the actions."""
        super().reset(seed=seed)
        self._seed, self._actions = int(self.np_random.integers(2**31)) if seed is None else seed, []
        self.reports_success = False
        self.state, _ = self.inner.reset(seed=self._seed, options=options)
        frame = self.render()
        # It must be closed ahead of the OpenGL library, which begins with the first picture and is ended at exit, too.
        atexit.unregister(self.inner.close)
        atexit.register(self.inner.close)
        return frame, {}

    def step(self, action: Floats) -> tuple[Pixels, float, bool, bool, dict[str, Any]]:
        result = self._advance(action)
        return self.render(), *result

    def _advance(self, action: Floats) -> tuple[float, bool, bool, dict[str, Any]]:
        self._actions.append(np.array(action, np.float32))
        reward, success, terminated, truncated = 0.0, False, False, False
        for _ in range(self.action_repeat):
            self.state, step_reward, terminated, truncated, info = self.inner.step(self.to_inner(action))
            reward += float(step_reward)
            self.reports_success |= not info.keys().isdisjoint(("is_success", "success"))
            success = success or bool(info.get("is_success", info.get("success", False)))
            if terminated or truncated:
                break
        return reward, terminated, truncated, {"success": success}

    def to_inner(self, action: Floats) -> Any:
        """Return the environment's own action of one in [-1, 1]; of a choice, that with the highest number."""
        space = self.inner.action_space
        if isinstance(space, Discrete):
            return space.start + int(np.argmax(action))
        assert isinstance(space, Box)
        return (space.low + (action + 1) / 2 * (space.high - space.low)).astype(space.dtype)

    def from_inner(self, action: Any) -> Floats:
        """Return the action in [-1, 1] of one of the environment's own, which is clipped to its bounds.

        Raises:
            UserError: it is not one of the environment's choices, or not as many numbers as its actions have.
        """
        space = self.inner.action_space
        try:
            given = np.asarray(action)
        except (TypeError, ValueError, RuntimeError):  # rows of several lengths, or a tensor on a GPU
            given = np.asarray(None)
        if given.dtype.kind in "fiub" and given.size == math.prod(space.shape):
            if isinstance(space, Box):
                own = np.clip(given.reshape(space.shape), space.low, space.high)
                return (2 * (own - space.low) / (space.high - space.low) - 1).astype(np.float32)
            chosen = np.arange(space.n) == given.item() - space.start
            if chosen.any():
                return np.where(chosen, 1, -1).astype(np.float32)
        raise UserError(f"a policy wants the action {shortened(action)}, expected one of {space} of {self._id}")

    def render(self) -> Pixels:
        picture = self.inner.render()
        is_array = isinstance(picture, np.ndarray)
        if not is_array or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            found = f"{picture.dtype} of shape {picture.shape}" if is_array else type(picture).__name__
            raise UserError(f"{self._id} renders {found}, expected pictures (H, W, 3) in uint8")
        return np.asarray(Image.fromarray(picture).resize((self._size, self._size), Image.Resampling.BILINEAR))

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return seed and actions of the episode so far: what the future depends on, if the environment is
        deterministic."""
        actions = np.reshape(self._actions, (-1, *self.action_space.shape)).astype(np.float32)
        return {"task": np.array(self._id), "seed": np.array(self._seed), "actions": actions}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Play the episode of a snapshot again; UserError if it belongs to another environment."""
        if str(state["task"]) != self._id:
            raise UserError(f"a snapshot of {state['task']} cannot be restored in an environment of {self._id}")
        self.reset(seed=int(state["seed"]))
        for action in state["actions"]:
            self._advance(action)

    def close(self) -> None:
        atexit.unregister(self.inner.close)
        self.inner.close()
