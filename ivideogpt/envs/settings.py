"""Choices of an environment in a world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is {value}, must be at least 1")
        if self.render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode is {self.render_mode!r}, must be None or 'rgb_array'")
        if self.observation_key is not None and self.frame_stack > 1:
            raise UserError(f"observation_key={self.observation_key!r} is for policies that stack frames themselves")
