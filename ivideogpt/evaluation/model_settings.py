"""Override settings of a checkpoint, as far as its tensors allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ivideogpt.errors import UserError
from ivideogpt.metadata import ModelMetadata
from ivideogpt.transformer import HeadModelWithAction, Sampling
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class ModelSettings:
    """Settings to override; None keeps the checkpoint's. ``top_k`` 0 samples among all tokens."""

    context_length: int | None = None
    segment_length: int | None = None
    goal_conditioned: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    separators: Literal["forced", "sampled"] | None = None
    sampling_rule: Literal["sample", "expected_code"] | None = None

    def metadata(self, before: ModelMetadata) -> ModelMetadata:
        context_length = self.context_length or before.context_length
        segment_length = self.segment_length or before.segment_length
        if segment_length <= context_length:
            raise UserError(f"{segment_length} frames with {context_length} context frames leave none to predict")
        goal_conditioned = before.goal_conditioned if self.goal_conditioned is None else self.goal_conditioned
        if goal_conditioned and before.action_dim is not None:
            raise UserError("--goal_conditioned is for action-free models: a goal in front has no action")
        changed: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        changed |= {} if self.top_k is None else {"top_k": self.top_k or None}
        changed |= {} if self.separators is None else {"separators": self.separators}
        changed |= {} if self.sampling_rule is None else {"rule": self.sampling_rule}
        generation = replace(before.generation, **changed)
        if self.top_k is not None and generation.rule == "expected_code":
            raise UserError("--top_k does nothing with the sampling rule expected_code: add --sampling_rule sample")
        return replace(
            before,
            context_length=context_length,
            segment_length=segment_length,
            goal_conditioned=goal_conditioned,
            generation=generation,
        )


def flags_for_several(generation: Sampling) -> str:
    """Return flags that make samples of one context differ, for a checkpoint that is deterministic."""
    return "--top_k 100" if generation.rule == "sample" else "--sampling_rule sample --top_k 100"


def with_settings(model: WorldModel, settings: ModelSettings) -> WorldModel:
    """Return the model with these settings. A shorter context changes its networks in place."""
    metadata = settings.metadata(model.metadata)
    model.tokenizer.set_context_length(metadata.context_length)
    if isinstance(model.transformer, HeadModelWithAction):
        model.transformer.context = metadata.context_length
    return WorldModel(model.tokenizer, model.transformer, metadata, model.backend)
