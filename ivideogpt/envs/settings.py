"""Choices of an environment in a world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ivideogpt.errors import UserError

FrameFunction = Callable[[Tensor], Tensor]  # frames (N, 3, H, W) in [0, 1] on the model's device -> (N,)


@dataclass(frozen=True, kw_only=True)
class WorldModelEnvSettings:
    """Choices of an environment.

    Attributes:
        horizon: steps until an episode is truncated; None: as many frames as the model was trained to predict.
        frame_stack: frames of an observation, joined along its channels, the oldest first.
        reward: function of the frames in place of the reward head.
        success: function of the frames that returns probabilities, in place of the success head.
        success_threshold: probability from which on a step is a success.
        ignore_terminations: let episodes go on to the horizon after a success.
        observation_key: None: an observation is the image. Else it is a dict with the image under this key:
            "pixels" for LeRobot's policies, "main_images" for RLinf's trainers (see `rlinf.py`).
        autoreset_mode: of gymnasium.
        action_bounds: lowest and highest number of an action; None: those of
            :meth:`~ivideogpt.metadata.ModelMetadata.action_bounds`. What lies beyond is passed on as it is.
        task: description of the task, for policies that read one.
        render_mode: None or "rgb_array".
    """

    horizon: int | None = None
    frame_stack: int = 1
    reward: FrameFunction | None = None
    success: FrameFunction | None = None
    success_threshold: float = 0.5
    ignore_terminations: bool = False
    observation_key: str | None = None
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP
    action_bounds: tuple[float, float] | None = None
    task: str = ""
    render_mode: str | None = None

    def __post_init__(self) -> None:
        for name in ("horizon", "frame_stack"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | np.integer) and value >= 1):
                raise UserError(f"{name} is {value}, must be a whole number, at least 1")
        if not self.success_threshold >= 0:
            raise UserError(f"success_threshold is {self.success_threshold}, must be a number, at least 0")
        if self.action_bounds is not None:
            bounds = np.asarray(self.action_bounds, np.float64)
            if bounds.shape != (2,) or not -np.inf < bounds[0] < bounds[1] < np.inf:
                raise UserError(f"action_bounds are {self.action_bounds}, must be two numbers, the lower one first")
        try:  # gymnasium takes its name, too
            object.__setattr__(self, "autoreset_mode", AutoresetMode(self.autoreset_mode))
        except ValueError as error:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise UserError(f"autoreset_mode is {self.autoreset_mode!r}, must be one of {modes}") from error
        if self.render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode is {self.render_mode!r}, must be None or 'rgb_array'")
        if self.observation_key is not None and self.frame_stack > 1:
            raise UserError(f"observation_key={self.observation_key!r} is for policies that stack frames themselves")
