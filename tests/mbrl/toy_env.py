"""An environment that this project knows nothing of, as docs/architecture.md says how to add one."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from tests.mbrl.runs import Simulator


class Toy(Simulator):
    def __init__(self, image_size: int, action_repeat: int) -> None:
        assert action_repeat == 2
        self.observation_space = Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = Box(-1, 1, (2,), np.float32)


gymnasium.register("Toy-v0", Toy)
