"""Override settings of a checkpoint, as far as its tensors allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.world_model import WorldModel


def with_settings(
    model: WorldModel,
    context_length: int | None = None,
    segment_length: int | None = None,
    goal_conditioned: bool | None = None,
    **generation: Any,
) -> WorldModel:
    """Return the model with other settings; None keeps the checkpoint's. A shorter context changes it in place.

    ``generation`` are what :meth:`Sampling.with_flags` takes.
    """
    before = model.metadata
    context_length, segment_length = context_length or before.context_length, segment_length or before.segment_length
    if segment_length <= context_length:
        raise UserError(f"{segment_length} frames with {context_length} context frames leave none to predict")
    if goal_conditioned is None:
        goal_conditioned = before.goal_conditioned
    if goal_conditioned and before.action_dim is not None:
        raise UserError("--goal_conditioned is for action-free models: a goal in front has no action")
    sampling = before.generation.with_flags(**generation)
    lengths: dict[str, Any] = {"context_length": context_length, "segment_length": segment_length}
    metadata = replace(before, **lengths, goal_conditioned=goal_conditioned, generation=sampling)
    model.tokenizer.set_context_length(context_length)
    if isinstance(model.transformer, HeadModelWithAction):
        model.transformer.context = context_length
    return WorldModel(model.tokenizer, model.transformer, metadata, model.backend, model.action_space)
