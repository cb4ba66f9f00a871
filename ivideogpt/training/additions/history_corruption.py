"""History corruption, by older tokens or by a model's own choices. An addition: the paper has none.

In a rollout a transformer reads what it has chosen itself, in training the truth: it never learns to go on from its own
mistakes. A frame's true tokens depend on the context and that frame alone, so that they are the right target under any
history. :func:`own_history` makes one without a rollout: a few parallel passes, each of which replaces every token by
the model's choice. They begin from a future that stands still; from the true one they would leak it.

Shapes: B clips, L tokens, F future frames of 16 codes, T frames, D action dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ivideogpt.layout import FrameTokens, TokenLayout
from ivideogpt.pretrained import Transformer, language_model
from ivideogpt.transformer import HeadModelWithAction, KeysAndValues, expected_codes
from ivideogpt.world_model import evaluating


def with_stale_tokens(tokens: Tensor, layout: TokenLayout, max_share: float) -> Tensor:
    """Return the input (B, L) with some dynamics tokens replaced by those of the same position in an earlier frame.

    Most tokens equal those of the frame before, so a transformer first learns to repeat them, and its rollouts stand
    still whatever the actions say. A history that cannot be trusted leaves context and actions to predict from. In
    half of the clips these tokens come from one frame, as if the robot had stood still since then; in the others each
    comes from a frame of its own. Labels stay what they are. The replaced share of a clip's tokens is ``max_share``
    times the root of a uniform number: mostly a large one.
    """
    codes = layout.unpack(tokens)
    clips, num_frames, _ = shape = codes.dynamics.shape

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, device=tokens.device)

    frame = torch.arange(num_frames, device=tokens.device)[:, None]
    stands_still_from = (uniform(clips, 1, 1) * num_frames).long()
    any_earlier = (uniform(*shape) * (frame + 1)).long()  # up to its own frame: nothing of the future
    earlier = torch.where(uniform(clips, 1, 1) < 0.5, frame.minimum(stands_still_from), any_earlier)
    is_stale = uniform(*shape) < max_share * uniform(clips, 1, 1).sqrt()
    dynamics = torch.where(is_stale, codes.dynamics.gather(1, earlier), codes.dynamics)
    return layout.pack(FrameTokens(codes.context, dynamics))


@dataclass(frozen=True)
class OwnHistory:
    """Settings of own histories.

    Attributes:
        still_code: dynamics code that says "nothing has moved here", see :func:`find_still_code`.
        passes: how many times every token is replaced by the model's choice.
        from_start: share of clips whose whole future is the model's own; the others' is from a random frame on.
        codebook: dynamics code vectors (codes, d), to choose the code nearest to the expected vector; None: the
            likeliest code.
    """

    still_code: int
    passes: int = 3
    from_start: float = 0.6
    codebook: Tensor | None = None

    def choose(self, logits: Tensor) -> Tensor:
        """Choose dynamics codes (...) from logits (..., codes)."""
        return logits.argmax(-1) if self.codebook is None else expected_codes(logits, self.codebook)


def find_still_code(codebook: Tensor) -> int | None:
    """Return the number of the code vector that is zero: the still one after training with ``--still_weight``."""
    zero = (codebook == 0).all(dim=1).nonzero()
    return int(zero[0]) if len(zero) else None


def sample_first_frames(num_clips: int, layout: TokenLayout, settings: OwnHistory, device: torch.device) -> Tensor:
    """Sample the first future frame that is the model's own, for each clip (B,), from torch's global generator."""
    is_whole = torch.rand(num_clips, device=device) < settings.from_start
    return torch.where(is_whole, 0, torch.randint(layout.future_frames, (num_clips,), device=device))


def standing_still(dynamics: Tensor, first: Tensor, still_code: int) -> Tensor:
    """Replace frames from ``first`` (B,) on by the one before: codes (B, F, 16); before frame 0 nothing moves."""
    start = torch.full_like(dynamics[:, :1], still_code)
    last_true = first[:, None, None].expand(-1, 1, dynamics.shape[-1])
    return torch.where(_is_own(dynamics, first), torch.cat([start, dynamics], dim=1).gather(1, last_true), dynamics)


def read_context(
    transformer: Transformer, tokens: Tensor, layout: TokenLayout, actions: Tensor | None
) -> KeysAndValues:
    """Return the keys and values of the context of clips (B, L), with gradient unless that is off.

    ``transformer`` is the model itself, not wrapped for several processes; ``actions`` (B, T, D) are of whole clips.
    """
    cache = KeysAndValues()
    embeddings = _embed(transformer, tokens, actions)[:, : layout.prompt_length - 1]
    language_model(transformer).model(inputs_embeds=embeddings, past_key_values=cache)
    return cache


@torch.no_grad()
def own_history(
    transformer: Transformer,
    context: KeysAndValues,
    tokens: Tensor,
    layout: TokenLayout,
    actions: Tensor | None,
    first: Tensor,
    settings: OwnHistory,
) -> Tensor:
    """Replace future frames from ``first`` (B,) on by the model's own choices, without dropout: tokens (B, L).

    ``context`` is what :func:`read_context` returns; it is left as it is.
    """
    with evaluating(transformer):
        return _FuturePasses(transformer, context, tokens, layout, actions).own_history(first, settings)


@torch.no_grad()
def evaluate_own_history(
    transformer: Transformer, tokens: Tensor, layout: TokenLayout, actions: Tensor | None, settings: OwnHistory
) -> Tensor:
    """Return the cross-entropy of the true tokens (B, L) when all of the history is the model's own."""
    with evaluating(transformer):
        context = read_context(transformer, tokens, layout, actions)
        future = _FuturePasses(transformer, context, tokens, layout, actions)
        history = future.own_history(tokens.new_zeros(len(tokens)), settings)
        logits = language_model(transformer).lm_head(future.hidden(history)[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, layout.prompt_length :].flatten())


@dataclass
class _FuturePasses:
    """Passes over the future frames of clips, after a context that has been read."""

    transformer: Transformer
    context: KeysAndValues
    tokens: Tensor
    layout: TokenLayout
    actions: Tensor | None

    def __post_init__(self) -> None:
        self.cache = KeysAndValues(list(self.context.layers))

    def own_history(self, first: Tensor, settings: OwnHistory) -> Tensor:
        """Tokens (B, L), the true ones before frame ``first`` and the model's own from there on."""
        codes = self.layout.unpack(self.tokens)
        is_own = _is_own(codes.dynamics, first)
        dynamics = standing_still(codes.dynamics, first, settings.still_code)
        layout = self.layout
        for _ in range(settings.passes):  # every code is chosen from what comes before it in the present history
            hidden = self.hidden(layout.pack(FrameTokens(codes.context, dynamics)))
            hidden = hidden.unflatten(1, (layout.future_frames, layout.step_length))[:, :, :-1]
            logits = language_model(self.transformer).lm_head(hidden)[
                ..., layout.context_codes : layout.frame_separator
            ]
            dynamics = torch.where(is_own, settings.choose(logits), dynamics)
        return layout.pack(FrameTokens(codes.context, dynamics))

    def hidden(self, history: Tensor) -> Tensor:
        """Last hidden states (B, 17 F, width) from the first future separator on."""
        embeddings = _embed(self.transformer, history, self.actions)[:, self.layout.prompt_length - 1 :]
        llm = language_model(self.transformer)
        outputs = llm.model(inputs_embeds=embeddings, past_key_values=self.cache)
        self.cache.crop(-embeddings.shape[1])
        return outputs.last_hidden_state


def _embed(transformer: Transformer, tokens: Tensor, actions: Tensor | None) -> Tensor:
    if isinstance(transformer, HeadModelWithAction):
        assert actions is not None
        return transformer.embed(tokens, actions)
    return transformer.get_input_embeddings()(tokens)


def _is_own(codes: Tensor, first: Tensor) -> Tensor:
    """True for the frames of codes (B, F, 16) from ``first`` (B,) on, (B, F, 1)."""
    return (torch.arange(codes.shape[1], device=codes.device) >= first[:, None])[..., None]
