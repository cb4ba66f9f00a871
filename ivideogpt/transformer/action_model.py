"""A LLaMA that also reads actions and may predict rewards: the shape of action-conditioned checkpoints.

Knows token positions from :class:`TokenLayout` alone, and nothing of pixels.

Dimension keys: B batch, L tokens, T = t + F frames, t context frames, F future frames, D width, A action dimension.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer.backends import open_backend
from ivideogpt.transformer.decoder import DecodedFrames, FrameDecoder, FrameModel
from ivideogpt.transformer.language_model import KeysAndValues, LanguageModelOutput, LlamaForCausalLM
from ivideogpt.transformer.sampling import RandomStreams, Sampling, drawn_seed


class ActionModelOutput(LanguageModelOutput):
    """``loss`` is the weighted sum; ``cross_entropy`` and ``action_recon_loss`` are its terms before weighting.

    ``success_logits`` (B, F, 1) are those of the success head.
    """

    cross_entropy: Tensor | None
    success_logits: Tensor | None
    action_recon_loss: Tensor | None


class HeadModelWithAction(nn.Module):
    """A language model with an action input and optional heads for rewards and for action reconstruction.

    The separator in front of future frame k is embedded with ``action[t - 1 + k]``, the action that leads to it.

    Args:
        llm: the language model.
        action_dim: length of an action vector.
        prelude_tokens_num: tokens of the context frames and the separators between them (and, or not, after them).
        tokens_num_per_dyna: tokens of a future frame, without its separator.
        context: number of context frames.
        segment_length: number of frames of a clip; the default length of a generation. May be assigned between calls.
        model_type: only "llama" exists.
        reward_prediction: add a reward head.
        action_recon: add a head that reconstructs actions, with this weight in the loss; None, False and 0: none.
        success_prediction: add a head for the probability that a step succeeds. An addition: the paper has none.
    """

    def __init__(
        self,
        llm: LlamaForCausalLM,
        action_dim: int,
        prelude_tokens_num: int,
        tokens_num_per_dyna: int,
        context: int,
        segment_length: int,
        model_type: str = "llama",
        reward_prediction: bool = False,
        action_recon: float | None = None,
        *,
        success_prediction: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if model_type != "llama":
            raise UserError(f"model_type is {model_type!r}, only 'llama' is supported")
        if ignored:
            warnings.warn(f"HeadModelWithAction ignores {', '.join(sorted(ignored))}", stacklevel=2)
        self.llm = llm
        self.context = context
        self.segment_length = segment_length
        self.tokens_num_per_dyna = tokens_num_per_dyna
        prompt_length = self.layout.prompt_length
        if prelude_tokens_num not in (prompt_length - 1, prompt_length):
            raise UserError(
                f"prelude_tokens_num is {prelude_tokens_num}; {context} context frames have {prompt_length - 1} tokens"
            )

        width = llm.config.hidden_size
        self.action_linear = nn.Linear(action_dim, width)
        nn.init.zeros_(self.action_linear.weight)
        nn.init.zeros_(self.action_linear.bias)
        self.action_recon = action_recon or None
        self.reward_linear = nn.Linear(width, 1) if reward_prediction else None
        self.action_recon_linear = nn.Linear(width, action_dim) if action_recon else None
        self.success_linear = nn.Linear(width, 1) if success_prediction else None
        self.action_recon_loss: Tensor | None = None  # from the last forward, for logging

    @property
    def layout(self) -> TokenLayout:
        """Current token layout. How ids divide between the codebooks is the tokenizer's business and not known here."""
        return TokenLayout(
            context_frames=self.context,
            future_frames=self.segment_length - self.context,
            context_codes=self.llm.config.vocab_size - 2,
            dynamics_codes=0,
            dynamics_tokens=self.tokens_num_per_dyna,
        )

    @property
    def token_for_sdf(self) -> int:
        return self.layout.future_separator

    @property
    def action_dim(self) -> int:
        return self.action_linear.in_features

    def get_input_embeddings(self, ids: Tensor | None = None) -> Tensor | nn.Embedding:
        """Embed ids; without ids return the embedding module, as libraries ask of a language model."""
        embedding = self.llm.get_input_embeddings()
        return embedding if ids is None else embedding(ids)

    def embed(self, ids: Tensor, action: Tensor) -> Tensor:
        """Embed tokens (B, L), with a clip's actions (B, T, A) added at the future separators: (B, L, D)."""
        layout = self._layout_of(ids)
        positions = layout.action_positions.to(ids.device)
        embeddings = self.llm.get_input_embeddings()(ids)
        action_embeddings = self.embed_actions(self._actions_to_future(action, layout.future_frames))
        return embeddings.index_add(1, positions, action_embeddings.to(embeddings.dtype))

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Convert actions (..., A) to the vectors that are added to the embeddings of separators, (..., D)."""
        return self.action_linear(actions.to(self.action_linear.weight.dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        action: Tensor | None = None,
        *,
        past_key_values: KeysAndValues | None = None,
    ) -> ActionModelOutput | tuple[ActionModelOutput, Tensor]:
        """Return next-token logits and loss; with a reward head also predicted rewards, (B, F, 1).

        ``labels`` (B, n) belong to the last n tokens, and only those get logits. With labels the loss includes action
        reconstruction, if the model has it. ``past_key_values`` hold the first tokens of ``input_ids``, at most all
        before the first future separator: only the others are read.
        """
        if action is None:
            raise UserError("this model is action-conditioned: forward needs action, (batch, frames, action_dim)")
        has_heads = any((self.reward_linear, self.action_recon_linear, self.success_linear))
        num_read = 0 if past_key_values is None else past_key_values.get_seq_length()
        outputs = self.llm(
            inputs_embeds=self.embed(input_ids, action)[:, num_read:],
            attention_mask=attention_mask,
            labels=labels,
            logits_to_keep=0 if labels is None else labels.shape[1],
            position_ids=position_ids,
            output_hidden_states=has_heads,
            past_key_values=past_key_values,
        )
        result = ActionModelOutput(loss=outputs.loss, logits=outputs.logits, cross_entropy=outputs.loss)
        if not has_heads:
            return result
        hidden = outputs.hidden_states[-1]  # after the final norm
        if self.action_recon is not None:
            result.action_recon_loss = self._reconstruct_actions(hidden, input_ids, action, num_read)
            self.action_recon_loss = result.action_recon_loss.detach()
            if outputs.loss is not None:
                result.loss = outputs.loss + self.action_recon * result.action_recon_loss
        ends = hidden[:, self._layout_of(input_ids).reward_positions - num_read]
        if self.success_linear is not None:
            result.success_logits = self.success_linear(ends)
        return result if self.reward_linear is None else (result, self.reward_linear(ends))

    def generate(
        self,
        inputs_token: Tensor,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | None = 100,
        max_new_tokens: int | None = None,
        pad_token_id: int | None = None,
        *,
        action: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Continue prompts (B, 257 t) under a clip's actions (B, T, A); separators are forced.

        Returns:
            tokens (B, 257 t + 17 F - 1), without a final separator; with a reward head (tokens, rewards (B, F)).
            ``pad_token_id`` is accepted for compatibility: nothing is ever padded.
        """
        sampling = Sampling(temperature, top_k, greedy=not do_sample)
        num_frames = self._num_new_frames(max_new_tokens)
        with torch.no_grad():
            action_embeddings = self.embed_actions(self._actions_to_future(action, num_frames))
        frames = self._rollout(inputs_token, num_frames, sampling, action_embeddings, self.reward_linear, generator)
        tokens = torch.cat([inputs_token[:, :-1], frames.tokens], dim=1)
        return tokens if frames.rewards is None else (tokens, frames.rewards)

    def generate_without_action(
        self,
        inputs_token: Tensor,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | None = 100,
        max_new_tokens: int | None = None,
        pad_token_id: int | None = None,
        *,
        separators: str = "forced",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue prompts as :meth:`generate` does, with the language model alone."""
        sampling = Sampling(temperature, top_k, greedy=not do_sample, separators=separators)  # type: ignore[arg-type]
        frames = self._rollout(inputs_token, self._num_new_frames(max_new_tokens), sampling, None, None, generator)
        return torch.cat([inputs_token[:, :-1], frames.tokens], dim=1)

    def _rollout(
        self,
        prompt: Tensor,
        num_frames: int,
        sampling: Sampling,
        action_embeddings: Tensor | None,
        reward_head: nn.Linear | None,
        generator: torch.Generator | None,
    ) -> DecodedFrames:
        layout = self.layout.with_future_frames(num_frames)
        if prompt.shape[1] != layout.prompt_length:
            raise UserError(
                f"the prompt has {prompt.shape[1]} tokens, expected {layout.prompt_length}: {self.context} context "
                "frames, each followed by a separator"
            )
        streams = RandomStreams.of_clips(drawn_seed(generator, sampling), torch.arange(len(prompt)))
        # a graph that is captured for one call alone would cost more than it saves
        backend = open_backend("torch" if self.llm.device.type == "cuda" else "auto", self.llm)
        decoder = FrameDecoder(FrameModel(backend, layout, sampling, reward_head), streams)
        decoder.prefill(prompt, max_frames=num_frames)
        return decoder.rollout(num_frames, action_embeddings)

    def _num_new_frames(self, max_new_tokens: int | None) -> int:
        if max_new_tokens is None:
            return self.layout.future_frames
        num_frames, rest = divmod(max_new_tokens + 1, self.layout.step_length)
        if rest:
            step = self.layout.step_length
            raise UserError(f"max_new_tokens is {max_new_tokens}, must be {step} F - 1 for F whole frames")
        return num_frames

    def _actions_to_future(self, action: Tensor, num_frames: int) -> Tensor:
        """Return :meth:`TokenLayout.to_future` of a clip's actions (B, T, A), checked: (B, F, A)."""
        leading = self.layout.with_future_frames(num_frames).to_future(action)
        if leading.shape[1:] != (num_frames, self.action_dim):
            raise UserError(
                f"actions have shape {tuple(action.shape)}, expected (batch, at least "
                f"{self.context - 1 + num_frames} steps, {self.action_dim}) "
                f"for {self.context} context and {num_frames} future frames"
            )
        return leading

    def _layout_of(self, ids: Tensor) -> TokenLayout:
        return self.layout.with_future_frames(self.layout.future_frames_in(ids.shape[1]))

    def _reconstruct_actions(self, hidden: Tensor, ids: Tensor, action: Tensor, num_read: int) -> Tensor:
        """Mean squared error of the actions as read from each future frame's separator and tokens.

        ``hidden`` are the states of the ``ids`` from number ``num_read`` on.
        """
        assert self.action_recon_linear is not None
        layout = self._layout_of(ids)
        first = layout.prompt_length - 1 - num_read
        frame_states = hidden[:, first : first + layout.step_length * layout.future_frames]
        reconstructed = self.action_recon_linear(frame_states).unflatten(1, (layout.future_frames, layout.step_length))
        target = self._actions_to_future(action, layout.future_frames)[:, :, None].expand_as(reconstructed)
        return F.mse_loss(reconstructed, target.to(reconstructed.dtype))
