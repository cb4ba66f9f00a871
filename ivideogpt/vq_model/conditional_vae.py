"""The encoder and decoder of future frames, which look at the context frames through cross-attention.

Dimension keys: B clips, t context frames, F future frames (any number for the same context), C channels, R resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.layout import CONTEXT_GRID
from ivideogpt.vq_model.vae import AutoencoderBlocks, DecoderBlocks, EncoderBlocks

NUM_HEADS = 4
DROPOUT = 0.1

# Cross-attention that starts aligned (see `CrossAttention.align`): the logit of a query's own place, above those of
# unrelated places near 0, and the size of the position code next to features of unit variance.
ALIGNED_LOGIT = 14.0
POSITION_SCALE = 3.0
# The code of frames before the last context frame is shorter, so that the last one has nearly all of the attention.
EARLIER_FRAMES_SCALE = 0.6


class KeysValues(NamedTuple):
    """Keys and values of the context for one cross-attention block, each (B, heads, t R^2, C / heads)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class ContextFeatures:
    """Context features of a conditional network, one row a clip: ``blocks`` has an entry per attention block."""

    blocks: list[KeysValues]

    @property
    def num_clips(self) -> int:
        return len(self.blocks[0].keys)

    def select(self, rows: Tensor) -> ContextFeatures:
        """Return the features of some clips: ``rows`` are indices (repeats allowed) or a mask over the batch."""
        return ContextFeatures([KeysValues(*(part[rows] for part in block)) for block in self.blocks])

    def replace(self, rows: Tensor, other: ContextFeatures) -> ContextFeatures:
        """Return the features with the clips of ``other`` at ``rows``, (other.num_clips,) indices."""
        pairs = (zip(mine, new, strict=True) for mine, new in zip(self.blocks, other.blocks, strict=True))
        return ContextFeatures([KeysValues(*(part.index_copy(0, rows, new) for part, new in pair)) for pair in pairs])


class CrossAttention(nn.Module):
    """One future frame's features attend to the features of all t context frames of its clip.

    The context is projected to keys and values once per clip; every future frame of the clip reuses them, folded into
    the query length instead of copied.
    """

    def __init__(self, channels: int, resolution: int, context_length: int) -> None:
        super().__init__()
        area = resolution**2
        self.context_length = context_length
        self.resolution = resolution
        self.q_norm = nn.GroupNorm(32, channels, eps=1e-5)
        self.kv_norm = nn.GroupNorm(32, channels, eps=1e-5)
        self.q_pos_emb = nn.Parameter(torch.zeros(area, channels))
        self.kv_pos_emb = nn.Parameter(torch.zeros(context_length * area, channels))
        # The module holds the released names (att.in_proj_weight, att.out_proj); its own forward would project the
        # context again for every future frame.
        self.att = nn.MultiheadAttention(channels, NUM_HEADS, dropout=DROPOUT, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)

    def project_context(self, features: Tensor) -> KeysValues:
        """Project context features (B t, C, R, R) to keys and values. ``kv_norm`` normalises over all t frames."""
        frames = features.unflatten(0, (-1, self.context_length)).transpose(1, 2)  # (B, C, t, R, R)
        tokens = self.kv_norm(frames.flatten(2)).transpose(1, 2) + self.kv_pos_emb
        _, key_weight, value_weight = self.att.in_proj_weight.chunk(3)
        _, key_bias, value_bias = self.att.in_proj_bias.chunk(3)
        return KeysValues(
            _split_heads(F.linear(tokens, key_weight, key_bias)),
            _split_heads(F.linear(tokens, value_weight, value_bias)),
        )

    def forward(self, hidden: Tensor, context: KeysValues) -> Tensor:
        """Return SiLU(hidden + attention), of the shape (B F, C, R, R) of ``hidden``."""
        rows, channels = hidden.shape[:2]
        clips, area = len(context.keys), self.resolution**2
        tokens = self.q_norm(hidden.flatten(2)).transpose(1, 2) + self.q_pos_emb  # (B F, R^2, C)
        queries = F.linear(tokens, self.att.in_proj_weight[:channels], self.att.in_proj_bias[:channels])
        attended = F.scaled_dot_product_attention(
            _split_heads(queries.reshape(clips, rows // clips * area, channels)),
            context.keys,
            context.values,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).reshape(rows, area, channels)
        attended = self.dropout(self.att.out_proj(attended)).transpose(1, 2)
        return F.silu(hidden + attended.reshape(hidden.shape))

    @torch.no_grad()
    def align(self, features: Tensor) -> None:
        """Initialise attention to read, at each position, the same position of the last context frame.

        With zero position embeddings (the start that the architecture defines) attention is a mean over the whole
        context, the same for every place. Its gradients stay small while a frame's own tokens still explain most of
        the error, and short trainings end with attention as flat as it began.

        A code of the place, orthogonal between unrelated places, lies in a subspace as wide as a head, the one in which
        features differ least; queries and keys read that subspace, values everything else.

        Args:
            features: those of the context frames of some clips, (B t, C, R, R).
        """
        frames = features.unflatten(0, (-1, self.context_length)).transpose(1, 2).flatten(2)  # as `project_context`
        normed = F.group_norm(frames, self.kv_norm.num_groups, eps=self.kv_norm.eps).transpose(1, 2).flatten(0, 1)
        channels = self.q_pos_emb.shape[1]
        width = channels // NUM_HEADS
        basis = torch.linalg.eigh(torch.cov(normed.T.float())).eigenvectors[:, :width]  # the smallest come first
        code = POSITION_SCALE * _place_code(self.resolution, width).to(basis) @ basis.T  # (R^2, C)
        for norm in (self.q_norm, self.kv_norm):
            norm.reset_parameters()
        frame_scale = torch.full((self.context_length, 1, 1), EARLIER_FRAMES_SCALE).to(code)
        frame_scale[-1] = 1
        self.q_pos_emb.copy_(code)
        self.kv_pos_emb.copy_((frame_scale * code).flatten(0, 1))

        identity = torch.eye(channels).to(basis)
        own_logit = POSITION_SCALE**2 * width / width**0.5  # |code|^2 / sqrt(head width), before the gain
        read_place = (ALIGNED_LOGIT / own_logit) ** 0.5 * basis.T.repeat(NUM_HEADS, 1)  # the same in every head
        self.att.in_proj_weight.copy_(torch.cat([read_place, read_place, identity - basis @ basis.T]))
        self.att.in_proj_bias.zero_()
        self.att.out_proj.weight.copy_(identity)
        self.att.out_proj.bias.zero_()

    @torch.no_grad()
    def align_to_difference(self, features: Tensor) -> None:
        """Initialise as :meth:`align` does, but subtract: little is left of a frame that equals the context.

        That is, if both frames went through equal layers.
        """
        self.align(features)
        groups = features.transpose(0, 1).reshape(self.kv_norm.num_groups, -1)
        per_group = len(self.att.out_proj.weight) // len(groups)
        scale, offset = (each.repeat_interleave(per_group) for each in (groups.std(dim=1), groups.mean(dim=1)))
        self.att.out_proj.weight.copy_(-scale.diag())
        self.att.out_proj.bias.copy_(-offset)


def _place_code(resolution: int, width: int) -> Tensor:
    """Return codes (R^2, width) of unit variance: sines and cosines of row and column.

    The frequencies are odd multiples of pi / (2 n), for which two codes' product falls to zero one step away.
    """
    num_frequencies = width // 4
    frequencies = torch.pi * (torch.arange(num_frequencies) + 0.5) / num_frequencies
    angles = torch.arange(resolution)[:, None] * frequencies
    axis = 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)  # (R, width / 2)
    rows = axis[:, None].expand(-1, resolution, -1)
    columns = axis[None].expand(resolution, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _split_heads(tokens: Tensor) -> Tensor:
    """Split tokens (B, L, C) into heads (B, heads, L, C / heads)."""
    return tokens.unflatten(-1, (NUM_HEADS, tokens.shape[-1] // NUM_HEADS)).transpose(1, 2)


class _AttendsToContext(AutoencoderBlocks):
    """Base of the conditional encoder and decoder: attention blocks at some levels of the context branch's features.

    ``attention_levels`` indexes the context branch's feature list (see :mod:`ivideogpt.vq_model.vae`).
    """

    cross_att_blocks: nn.ModuleList
    attention_levels: tuple[int, ...]

    def _attentions(self) -> list[CrossAttention]:
        return cast(list[CrossAttention], list(self.cross_att_blocks))

    def project_context(self, features: Sequence[Tensor]) -> ContextFeatures:
        """Project the context branch's feature list of B t context frames to keys and values."""
        levels = zip(self._attentions(), self.attention_levels, strict=True)
        return ContextFeatures([block.project_context(features[level]) for block, level in levels])

    def _run_attending(self, blocks: Sequence[nn.Module], hidden: Tensor, context: ContextFeatures) -> Tensor:
        """Run the blocks, whose outputs are levels 1, 2, ... of the feature list; attend at some levels."""
        at_level = dict(zip(self.attention_levels, zip(self._attentions(), context.blocks, strict=True), strict=True))
        for level, block in enumerate(blocks, start=1):
            hidden = self.run_block(block, hidden)
            if level in at_level:
                attention, keys_values = at_level[level]
                hidden = attention(hidden, keys_values)
        return hidden

    def set_context_length(self, context_length: int) -> None:
        """Drop the position embeddings of all but the last ``context_length`` context frames."""
        for block in self._attentions():
            block.context_length = context_length
            kept = block.kv_pos_emb[-context_length * block.resolution**2 :]
            block.kv_pos_emb = nn.Parameter(kept.detach().clone())

    def set_dropout(self, probability: float) -> None:
        for block in self._attentions():
            block.dropout.p = probability


class ConditionalEncoder(_AttendsToContext, EncoderBlocks):
    """Future frames (B F, 3, H, W) and the context's keys and values to latents (B F, latent_channels, 16, 16)."""

    def __init__(self, *, resolution: int, max_att_resolution: int, context_length: int, **encoder_config: Any) -> None:
        EncoderBlocks.__init__(self, mid_block_add_attention=True, **encoder_config)
        channels = encoder_config["block_out_channels"]
        last = len(channels) - 1
        sizes = [resolution // 2 ** min(level + 1, last) for level in range(len(channels))]
        qualifying = [level for level, size in enumerate(sizes) if size <= max_att_resolution]
        self.attention_levels = tuple(level + 1 for level in qualifying)  # level 0 is conv_in
        self.cross_att_blocks = nn.ModuleList(
            CrossAttention(channels[level], sizes[level], context_length) for level in qualifying
        )

    def forward(self, sample: Tensor, context: ContextFeatures) -> Tensor:
        blocks = [*self.down_blocks, self.mid_block]
        return self.project_out(self._run_attending(blocks, self.conv_in(sample), context))

    def align(self, plain: nn.Module, features: Sequence[Tensor]) -> None:
        """Initialise as the plain encoder of differences from the last context frame.

        The first attention subtracts; later ones find other features than the plain encoder's, and say nothing yet.

        Args:
            features: the plain encoder's feature list of some clips' context frames.
        """
        _start_as(plain, self)
        first, *others = self._attentions()
        first.align_to_difference(features[self.attention_levels[0]])
        for block, level in zip(others, self.attention_levels[1:], strict=True):
            block.align(features[level])
            nn.init.zeros_(block.att.out_proj.weight)
            nn.init.zeros_(block.att.out_proj.bias)


class ConditionalDecoder(_AttendsToContext, DecoderBlocks):
    """Latents (B F, latent_channels, 16, 16) and the context's keys and values to frames (B F, 3, H, W)."""

    def __init__(self, *, max_att_resolution: int, context_length: int, **decoder_config: Any) -> None:
        DecoderBlocks.__init__(self, mid_block_add_attention=True, **decoder_config)
        channels = list(reversed(decoder_config["block_out_channels"]))
        last = len(channels) - 1
        sizes = [CONTEXT_GRID * 2 ** min(level + 1, last) for level in range(len(channels))]
        qualifying = [level for level, size in enumerate(sizes) if size <= max_att_resolution]
        self.attention_levels = (1, *(level + 2 for level in qualifying))  # 0 is conv_in, 1 the mid block
        self.cross_att_blocks = nn.ModuleList([CrossAttention(channels[0], CONTEXT_GRID, context_length)])
        self.cross_att_blocks.extend(
            CrossAttention(channels[level], sizes[level], context_length) for level in qualifying
        )

    def forward(self, latents: Tensor, context: ContextFeatures) -> Tensor:
        blocks = [self.mid_block, *self.up_blocks]
        return self.project_out(self._run_attending(blocks, self.conv_in(latents), context))

    def align(self, plain: nn.Module, features: Sequence[Tensor]) -> None:
        """Initialise as the plain decoder, to which attention adds features of the last context frame."""
        _start_as(plain, self)
        for block, level in zip(self._attentions(), self.attention_levels, strict=True):
            block.align(features[level])


def copy_shared(plain: nn.Module, conditional: nn.Module) -> list[str]:
    """Copy the weights of all parts that the two have in common. Returns the parts that only ``conditional`` has."""
    weights, names = plain.state_dict(), conditional.state_dict().keys()
    conditional.load_state_dict({name: weights[name] for name in names & weights.keys()}, strict=False)
    own = [name for name in names if name not in weights]
    return sorted({".".join(name.split(".")[:2]) for name in own})


def _start_as(plain: nn.Module, conditional: nn.Module) -> None:
    """Copy shared weights, and zero the output of self-attention that only one of the two has."""
    copy_shared(plain, conditional)
    shared = plain.state_dict().keys()
    for name, parameter in conditional.named_parameters():
        if ".to_out.0." in name and name not in shared:
            nn.init.zeros_(parameter)
