"""Episodes as the replay format has them, every frame held once. Knows arrays and files; knows no environment.

Row 0 is the start, with a zero action and no reward; row i holds the action that led to its frame and what it earned.

Shapes: L agent steps, K frames in a stack, H W pixels, D action dimension.
Stacks (3 K, H, W) have the oldest frame first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.npz_arrays import npz_members
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

FRAME_CHANNELS = 3
KEYS = ("observation", "action", "reward", "discount")


@dataclass(frozen=True)
class ReplayEpisode:
    """L + 1 rows."""

    frames: Pixels  # (L + 1, 3, H, W) the newest frame of each row's stack
    earlier: Pixels  # (K - 1, 3, H, W) before row 0: copies of its frame after a reset, others in imagined episodes
    action: Floats  # (L + 1, D) in [-1, 1]
    reward: Floats  # (L + 1,)
    discount: Floats  # (L + 1,)

    @property
    def num_steps(self) -> int:
        return len(self.frames) - 1

    def stacks(self) -> Pixels:
        """Stacked frames (L + 1, 3 K, H, W)."""
        film = np.concatenate([self.earlier, self.frames])
        num_stacked = len(self.earlier) + 1
        return np.concatenate([film[age : age + len(self.frames)] for age in range(num_stacked)], axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "observation": self.stacks(),
            "action": self.action,
            "reward": self.reward[:, None],
            "discount": self.discount[:, None],
        }

    @classmethod
    def from_file(cls, path: Path) -> ReplayEpisode:
        """Read ``observation`` (L + 1, 3 K, H, W), ``action``, ``reward`` and ``discount`` (L + 1, 1).

        Raises:
            UserError: the file is unreadable, or its arrays are not such an episode.
        """
        members = npz_members(str(path))
        missing = [key for key in KEYS if key not in members]
        if missing:
            raise UserError(f"{path} is no replay episode: it has no {missing[0]} and should hold {', '.join(KEYS)}")
        observation, action, reward, discount = (members[key].all() for key in KEYS)
        rows = len(observation) if observation.ndim else 0
        shapes = {"action": action.shape, "reward": reward.shape, "discount": discount.shape}
        if observation.ndim != 4 or observation.shape[1] % FRAME_CHANNELS or rows < 2 or not observation.size:
            raise UserError(f"{path}: observations have shape {observation.shape}, expected (rows, 3 K, H, W)")
        if observation.dtype != np.uint8:
            raise UserError(f"{path}: observations are {observation.dtype}, expected uint8 in 0..255")
        if any(len(shape) != 2 or shape[0] != rows or shape[1] < 1 for shape in shapes.values()):
            raise UserError(f"{path}: {shapes} do not go with {rows} observations: expected ({rows}, n) each")
        for name, values in (("action", action), ("reward", reward), ("discount", discount)):
            if values.dtype.kind not in "fiub":
                raise UserError(f"{path}: {name} is {values.dtype}, expected numbers")
            check_plausible(values, f"{path}: {name}", "remove it")
        film = observation.reshape(rows, -1, FRAME_CHANNELS, *observation.shape[2:])
        return cls(
            frames=film[:, -1],
            earlier=film[0, :-1],
            action=action.astype(np.float32),
            reward=reward[:, 0].astype(np.float32),
            discount=discount[:, 0].astype(np.float32),
        )
