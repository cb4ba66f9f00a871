"""A world model as the planners of VP2 call it (the visual planning benchmark; ``configs/vp2/ivideogpt.yaml``).

Shapes: B candidates, n context frames, h planned steps, D action dimension, H W pixels. Knows numpy arrays with
channels last, as VP2 has them; all else is :class:`~ivideogpt.planning.dynamics.SessionDynamics`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ivideogpt.devices import choose_device
from ivideogpt.errors import UserError
from ivideogpt.planning.dynamics import SessionDynamics
from ivideogpt.precision import precision
from ivideogpt.world_model import WorldModel

logger = logging.getLogger(__name__)


class VP2Model:
    """The interface that VP2 asks of a model. Its keywords are those of VP2's model configurations.

    Args:
        checkpoint_dir: folder or hub id of an action-conditioned world model.
        n_past: number of context frames that the planners show, at least 2 (they go wrong with 1). The model sees the
            last ones that it has room for.
        planning_modalities: must be rgb alone.
        epoch: ignored, as are all other keywords; a warning names them.
        dtype: a name such as "float32", or "auto" for the fastest on the device.
        max_batch: number of candidates predicted at once.
        common_noise: all candidates draw the same random numbers.
        action_space: robot of a model of several.

    Raises:
        UserError: the model or a keyword does not fit.
    """

    base_prediction_modality = "rgb"

    def __init__(
        self,
        checkpoint_dir: str,
        n_past: int = 2,
        planning_modalities: Iterable[str] = ("rgb",),
        epoch: Any = None,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 200,
        seed: int = 0,
        common_noise: bool = True,
        action_space: str | None = None,
        **ignored: Any,
    ) -> None:
        if n_past < 2:
            raise UserError(f"n_past is {n_past}: say 2, as VP2's planners need; a model of one frame sees the last")
        if list(planning_modalities) != [self.base_prediction_modality]:
            raise UserError(f"planning_modalities is {list(planning_modalities)}: this model predicts rgb alone")
        if unused := sorted(ignored) + ["epoch"] * (epoch is not None):
            logger.warning("these keywords have no effect on this model: %s", ", ".join(unused))
        self.num_context = n_past
        where, how = choose_device(device), precision(dtype)
        self._model = WorldModel.from_pretrained(checkpoint_dir, where, how, action_space=action_space)
        side = self._model.metadata.resolution
        self._dynamics = SessionDynamics(self._model, torch.zeros(1, 3, side, side), seed, common_noise, max_batch)

    @property
    def device(self) -> torch.device:
        return self._model.device

    def __call__(self, batch: Mapping[str, Any], grad_enabled: bool = False) -> dict[str, NDArray[np.float32]]:
        """Predict what candidates lead to.

        Args:
            batch: "video" (B, n, H, W, 3) in [0, 1], the same frames for all candidates; "actions" (B, n - 1 + h, D),
                those of the first n - 1 frames and then the planned ones. Other entries are not looked at.
            grad_enabled: must be false.

        Returns:
            "rgb" (B, n - 1 + h, H, W, 3) in [0, 1]: the last n - 1 frames as given, and h predicted ones.

        Raises:
            UserError: gradients are asked for, or arrays have other shapes.
        """
        if grad_enabled:
            raise UserError("gradients were asked for, but this model predicts discrete tokens: plan with CEM or MPPI")
        video, actions = np.asarray(batch["video"], np.float32), np.asarray(batch["actions"], np.float32)
        self._check(video, actions)
        past = self.num_context - 1
        context = torch.from_numpy(video[0].transpose(0, 3, 1, 2).copy())
        frames = replace(self._dynamics, context=context)(torch.from_numpy(actions[:, past:])).frames
        assert frames is not None
        predicted = frames.movedim(2, -1).cpu().numpy()
        return {"rgb": np.concatenate([video[:, 1:], predicted], axis=1)}

    def close(self) -> None:
        """Do nothing; VP2 calls it at the end."""

    def _check(self, video: NDArray[np.float32], actions: NDArray[np.float32]) -> None:
        n = self.num_context
        if video.ndim != 5 or video.shape[1] != n or video.shape[4] != 3 or len(video) == 0:
            raise UserError(f"video has shape {video.shape}, expected (B, {n}, H, W, 3)")
        dim = self._model.action_dim
        if actions.ndim != 3 or actions.shape != (len(video), max(actions.shape[1], n), dim):
            expected = f"({len(video)}, {n - 1} + horizon, {dim}): the model was trained on actions of {dim} numbers"
            raise UserError(f"actions have shape {actions.shape}, expected {expected}")
        if (video != video[:1]).any():
            raise UserError("the candidates have different context frames; all must begin in the same state")
