"""An environment that this project knows nothing of, as docs/architecture.md says how to add one."""

from __future__ import annotations

import errno
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from tests.mbrl.runs import Simulator


class Toy(Simulator):
    def __init__(self, image_size: int, action_repeat: int) -> None:
        assert action_repeat == 2
        self.observation_space = Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = Box(-1, 1, (2,), np.float32)


class FullDisk(Toy):
    """Fails at its second step, as an environment that writes videos might."""

    steps_done = 0

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps_done += 1
        if self.steps_done == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().step(action)


class Desk(Simulator):
    """Can begin in a state, as RoboDesk can, of which it reads the first number."""

    def __init__(self, image_size: int, action_repeat: int) -> None:
        self.observation_space = Box(0, 255, (image_size, image_size, 3), np.uint8)

    def frame(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.level % 256, np.uint8)

    def reset_to(self, state: np.ndarray) -> np.ndarray:
        self.level = float(state[0])
        return self.frame()


gymnasium.register("Toy-v0", Toy)
gymnasium.register("Desk-v0", Desk)
gymnasium.register("FullDisk-v0", FullDisk)
