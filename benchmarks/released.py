"""Action-conditioned generation as in the released implementation, the baseline of this project's engine.

Slow on purpose. It encodes dummy future frames with the context; for every future frame it embeds the whole sequence
again and lets Hugging Face's `generate` read all of it, whose cache is then discarded; every sample is a separate row,
from the prompt to the decoding of its context. The tokenizer is this project's, to compare generation only; the
language model is Hugging Face's with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.measuring import Timer
from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import language_model
from ivideogpt.transformer import HeadModelWithAction, Sampling
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class Generated:
    """Generated ``tokens`` (B N, L) and all T ``frames`` (B N, T, 3, H, W) of the samples, clip by clip."""

    tokens: Tensor
    frames: Tensor


def huggingface_model(world_model: WorldModel) -> LlamaForCausalLM:
    """Return Hugging Face's class with the weights of a world model's language model."""
    own = language_model(world_model.transformer)
    config = {key: value for key, value in own.config.to_dict().items() if key != "model_type"}
    llm = LlamaForCausalLM(LlamaConfig(**config)).to(world_model.device, next(own.parameters()).dtype).eval()
    llm.load_state_dict(own.state_dict())
    return llm


@torch.no_grad()
def generate(
    world_model: WorldModel,
    context: Tensor,
    actions: Tensor,
    num_samples: int,
    sampling: Sampling,
    timer: Timer,
    num_frames: int | None = None,
) -> Generated:
    """Generate F future frames of every sample from context (B, t, 3, H, W) and actions (B, F, D).

    With ``num_frames`` only the first ``num_frames`` are predicted; the others repeat the last of them, and the timer
    gets their estimated time (see :func:`scale_to`).
    """
    tokenizer, transformer = world_model.tokenizer, world_model.transformer
    assert isinstance(transformer, HeadModelWithAction)
    layout = tokenizer.layout(actions.shape[1])
    num_frames = num_frames or layout.future_frames
    llm = huggingface_model(world_model)

    with timer.part("encode"):
        dummies = context[:, -1:].expand(-1, layout.future_frames, -1, -1, -1)
        tokens, _ = tokenizer.tokenize(torch.cat([context, dummies], dim=1), layout.context_frames)
        tokens = tokens[:, : layout.prompt_length].repeat_interleave(num_samples, dim=0)

    actions = actions.repeat_interleave(num_samples, dim=0)
    for _ in range(num_frames):
        tokens = append_frame(transformer, llm, layout, tokens, actions, sampling, timer)
    scale_to(layout, num_frames, timer)
    rest = tokens[:, -layout.step_length :].repeat(1, layout.future_frames - num_frames)
    tokens = torch.cat([tokens, rest], dim=1)[:, :-1]  # no separator follows the last frame

    with timer.part("frames"):
        frames = tokenizer.detokenize(tokens, layout.context_frames).clamp(0, 1)
    return Generated(tokens, frames)


def append_frame(
    transformer: HeadModelWithAction,
    llm: LlamaForCausalLM,
    layout: TokenLayout,
    tokens: Tensor,
    actions: Tensor,
    sampling: Sampling,
    timer: Timer,
) -> Tensor:
    """Append one frame and a separator to tokens that end with a separator."""
    start = timer.now()
    num_separators = layout.future_frames_in(tokens.shape[1]) + 1
    positions = layout.with_future_frames(num_separators).action_positions.to(tokens.device)
    embeddings = llm.get_input_embeddings()(tokens)
    embeddings[:, positions] += transformer.action_linear(actions[:, :num_separators])
    prefill = _PrefillClock(timer)
    drawn = llm.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=layout.dynamics_tokens,
        logits_processor=LogitsProcessorList([prefill]),
        **_options(sampling),
    )
    timer.add("prefill", prefill.end - start)
    timer.add("passes", timer.now() - prefill.end)
    separator = drawn.new_full((len(drawn), 1), layout.future_separator)
    return torch.cat([tokens, drawn, separator], dim=1)


def scale_to(layout: TokenLayout, num_frames: int, timer: Timer) -> None:
    """Scale the timer from ``num_frames`` frames to all, by prefilled positions and single-position passes."""
    if num_frames == layout.future_frames:
        return
    read = prefilled_positions(layout.with_future_frames(num_frames))
    timer.seconds["prefill"] *= prefilled_positions(layout) / read
    timer.seconds["passes"] *= layout.future_frames / num_frames


def prefilled_positions(layout: TokenLayout) -> int:
    """Count the prefilled positions of a row: every frame reads the prompt and all frames before it."""
    return sum(layout.prompt_length + layout.step_length * frame for frame in range(layout.future_frames))


def _options(sampling: Sampling) -> dict[str, bool | float | int | None]:
    if sampling.greedy:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}


class _PrefillClock(LogitsProcessor):
    """Logits processor that changes nothing and records the end of the prefill."""

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.end = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.end = self.end or self.timer.now()
        return scores
