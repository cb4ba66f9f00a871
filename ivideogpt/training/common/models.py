"""Prepare models for training: shared by both trainings and by model-based RL. Without accelerate."""

from __future__ import annotations

from dataclasses import replace

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer import LlamaConfig
from ivideogpt.vq_model import CompressiveVQModel


def adapt_tokenizer(
    tokenizer: CompressiveVQModel, context_length: int, resolution: int, advice: str | None = None
) -> None:
    """Shrink the tokenizer to ``context_length``; UserError if it has less, or another resolution, with ``advice``."""
    tokenizer.set_context_length(context_length)
    made_for = tokenizer.config.resolution
    if made_for != resolution:
        advice = advice or f"give --resolution {made_for}"
        raise UserError(f"the tokenizer is for {made_for} px, not {resolution}: {advice}")


def freeze_codebooks(tokenizer: CompressiveVQModel) -> None:
    tokenizer.quantize.requires_grad_(False)
    tokenizer.dynamics_quantize.requires_grad_(False)


def freeze_tokens(tokenizer: CompressiveVQModel) -> None:
    """Leave nothing but the decoders to train."""
    tokenizer.requires_grad_(False)
    for part in (tokenizer.post_quant_conv, tokenizer.decoder, tokenizer.post_quant_linear, tokenizer.cond_decoder):
        part.requires_grad_(True)


def adapt_llama_config(config: LlamaConfig, layout: TokenLayout, setting: str, dropout: float | None) -> LlamaConfig:
    """Set the attention dropout if it is given; UserError if clips of ``layout`` do not fit into the positions.

    ``setting`` names the clips' length in the message.
    """
    if layout.sequence_length > config.max_position_embeddings:
        fits = layout.context_frames + layout.future_frames_that_fit(config.max_position_embeddings)
        raise UserError(
            f"{setting} {layout.num_frames} takes {layout.sequence_length} tokens, but the transformer has "
            f"{config.max_position_embeddings} positions: at most {fits} frames fit"
        )
    return config if dropout is None else replace(config, attention_dropout=dropout)
