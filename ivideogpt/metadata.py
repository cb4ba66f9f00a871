"""Metadata of a checkpoint, in ``ivideogpt.json``: facts that its tensors do not tell."""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.errors import UserError
from ivideogpt.files import check_fields, read_json, write_json
from ivideogpt.transformer import HeadModelWithAction, LlamaForCausalLM, Sampling
from ivideogpt.vq_model import CompressiveVQModel

METADATA_FILE = "ivideogpt.json"
RELEASED_SEGMENT_LENGTH = 16
MAX_NUMBER = 2**20  # frames, pixels or dimensions: more is no model


@dataclass(frozen=True)
class ActionNormalization:
    """Actions were trained as ``(action - mean) / std``; sessions apply it, so that callers give raw actions."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, actions: Tensor) -> Tensor:
        return (actions - actions.new_tensor(self.mean)) / actions.new_tensor(self.std)


@dataclass(frozen=True)
class ModelMetadata:
    """Facts that are needed to use a model correctly and that its tensors do not tell.

    Attributes:
        resolution: side of its square frames.
        context_length: number of context frames.
        segment_length: number of frames of a training clip.
        dataset_step: distance of a clip's frames in the episodes it was trained on; None if unknown.
        action_dim: length of an action as the model sees it; None if action-free.
        action_normalization: applied to actions before the model sees them.
        action_spaces: those of the robots that it was trained on; None if its actions are of one kind.
        reward_prediction: it predicts rewards.
        success_prediction: it predicts successes.
        symlog: its rewards were trained in symlog space.
        goal_conditioned: the first context frame is the goal, the final frame of the clip.
        generation: default sampling.
    """

    resolution: int
    context_length: int
    segment_length: int = RELEASED_SEGMENT_LENGTH
    dataset_step: int | None = None
    action_dim: int | None = None
    action_normalization: ActionNormalization | None = None
    action_spaces: ActionSpaces | None = None
    reward_prediction: bool = False
    success_prediction: bool = False
    symlog: bool = False
    goal_conditioned: bool = False
    generation: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_fields(self, dict.fromkeys(("resolution", "context_length", "dataset_step", "action_dim"), 1), MAX_NUMBER)
        check_fields(self.generation, highest=MAX_NUMBER)
        if self.segment_length <= self.context_length:
            raise UserError(
                f"segment_length {self.segment_length} leaves no frame to predict after context_length "
                f"{self.context_length}: it counts the context"
            )
        if self.goal_conditioned and self.context_length < 2:
            raise UserError(
                "goal_conditioned needs a context_length of at least 2: the goal, and what is to move there"
            )
        if self.action_normalization is not None:
            numbers = (*self.action_normalization.mean, *self.action_normalization.std)
            if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                raise UserError(f"action_normalization is {reprlib.repr(numbers)}, expected numbers")
            lengths = [len(self.action_normalization.mean), len(self.action_normalization.std)]
            if lengths != [self.action_dim, self.action_dim]:
                raise UserError(
                    f"action_normalization has a mean of {lengths[0]} and a std of {lengths[1]} numbers, expected "
                    f"action_dim = {self.action_dim} of each"
                )
            if min(self.action_normalization.std) <= 0:
                raise UserError("action_normalization has a std of 0 or less: give 1 to what never changes")
        if self.action_spaces is not None:
            if self.action_normalization is not None:
                raise UserError("action_spaces and action_normalization exclude each other: each space has its own")
            if self.action_spaces.length != self.action_dim:
                length = self.action_spaces.length
                raise UserError(f"action_spaces encode to {length} numbers, expected action_dim = {self.action_dim}")

    @classmethod
    def infer(cls, tokenizer: CompressiveVQModel, transformer: LlamaForCausalLM | HeadModelWithAction) -> ModelMetadata:
        """Infer metadata from the networks, for checkpoints without a metadata file."""
        conditioned = transformer if isinstance(transformer, HeadModelWithAction) else None
        return cls(
            resolution=tokenizer.config.resolution,
            context_length=tokenizer.context_length,
            segment_length=conditioned.segment_length if conditioned else RELEASED_SEGMENT_LENGTH,
            action_dim=conditioned.action_dim if conditioned else None,
            reward_prediction=conditioned is not None and conditioned.reward_linear is not None,
            success_prediction=conditioned is not None and conditioned.success_linear is not None,
        )

    def find_space(self, name: str | None) -> ActionSpace | None:
        """Return the action space that callers chose; None for models that have none to choose from.

        Raises:
            UserError: there is no such space, or several and no choice.
        """
        if self.action_spaces is not None:
            return self.action_spaces.find(name)
        if name is not None:
            raise UserError(f"action_space {name!r} was given, but this model has one kind of actions: leave it out")
        return None

    def action_bounds(self, name: str | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return usual bounds (D,) of a space's actions: two stds about the mean if it has these, or [-1, 1]."""
        space = self.find_space(name)
        scale = self.action_normalization if space is None else space
        if scale is None or scale.mean is None or scale.std is None:
            dim = self.action_dim if space is None else space.dim
            return -np.ones(dim or 0, np.float32), np.ones(dim or 0, np.float32)
        mean, std = np.array(scale.mean), np.array(scale.std)
        return (mean - 2 * std).astype(np.float32), (mean + 2 * std).astype(np.float32)

    def encode_actions(self, actions: Tensor, space: ActionSpace | None) -> Tensor:
        """Convert actions (..., D) of a space, as callers give them, to those that the model sees."""
        if self.action_spaces is not None and space is not None:
            return self.action_spaces.encode(actions, space.name)
        return actions if self.action_normalization is None else self.action_normalization(actions)

    def for_space(self, name: str | None) -> ModelMetadata:
        """Return the metadata as callers of one action space see it: a model of that robot alone."""
        space = self.find_space(name)
        return self if space is None else replace(self, action_spaces=None, action_dim=space.dim)

    def for_encoded_actions(self) -> ModelMetadata:
        """Return the metadata under which callers give actions that data loaders have encoded, of any space."""
        return replace(self, action_spaces=None)

    @classmethod
    def read(cls, folder: Path) -> ModelMetadata | None:
        """The metadata of a model folder; None if it has none."""
        file = folder / METADATA_FILE
        if not file.is_file():
            return None
        values = read_json(file)
        try:
            if (stated := values.get("action_normalization")) is not None:
                numbers = {key: tuple(listed) for key, listed in stated.items()}
                values["action_normalization"] = ActionNormalization(**numbers)
            if (spaces := values.get("action_spaces")) is not None:
                values["action_spaces"] = ActionSpaces.from_json(spaces)
            values["generation"] = Sampling(**values.get("generation", {}))
            return cls(**values)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except (TypeError, AttributeError) as error:  # an unknown key, or no object where one is expected
            known = ", ".join(each.name for each in fields(cls))
            raise UserError(f"{file}: {error}; its keys are {known}") from error

    def as_json(self) -> dict[str, Any]:
        """Return the values of ``ivideogpt.json``; without action spaces, those that earlier versions read, too."""
        values = asdict(self)
        if self.action_spaces is None:
            del values["action_spaces"]
        return values

    def write(self, folder: Path) -> None:
        write_json(folder / METADATA_FILE, self.as_json())
