"""Override settings of a checkpoint, as far as its tensors allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.transformer import HeadModelWithAction, Sampling
from ivideogpt.world_model import WorldModel


def with_settings(
    model: WorldModel,
    context_length: int | None = None,
    segment_length: int | None = None,
    goal_conditioned: bool | None = None,
    **generation: Any,
) -> WorldModel:
    """Return the model with other settings; None keeps the checkpoint's. A shorter context changes it in place.

    ``generation`` are attributes of :class:`Sampling`; ``top_k`` 0 samples among all tokens.
    """
    before = model.metadata
    context_length, segment_length = context_length or before.context_length, segment_length or before.segment_length
    if segment_length <= context_length:
        raise UserError(f"{segment_length} frames with {context_length} context frames leave none to predict")
    if goal_conditioned is None:
        goal_conditioned = before.goal_conditioned
    if goal_conditioned and before.action_dim is not None:
        raise UserError("--goal_conditioned is for action-free models: a goal in front has no action")
    chosen = {name: value for name, value in generation.items() if value is not None}
    sampling = replace(before.generation, **chosen | ({"top_k": chosen["top_k"] or None} if "top_k" in chosen else {}))
    if "top_k" in chosen and sampling.rule == "expected_code":
        raise UserError("--top_k does nothing with the sampling rule expected_code: add --sampling_rule sample")
    lengths: dict[str, Any] = {"context_length": context_length, "segment_length": segment_length}
    metadata = replace(before, **lengths, goal_conditioned=goal_conditioned, generation=sampling)
    model.tokenizer.set_context_length(context_length)
    if isinstance(model.transformer, HeadModelWithAction):
        model.transformer.context = context_length
    return WorldModel(model.tokenizer, model.transformer, metadata, model.backend, model.action_space)


def flags_for_several(generation: Sampling) -> str:
    """Return flags that make samples of one context differ, for a checkpoint that is deterministic."""
    return "--top_k 100" if generation.rule == "sample" else "--sampling_rule sample --top_k 100"
