"""The context-aware tokenizer: 256 tokens for a context frame, 16 for every later one.

Four primitives, from which everything else is composed::

    encode_context(frames)             -> codes, features
    encode_dynamics(frames, features)  -> codes
    decode_context(codes)              -> frames, features
    decode_dynamics(codes, features)   -> frames

Rollouts need half of two of them: :meth:`CompressiveVQModel.context_codes` leaves out the features of the first,
:meth:`CompressiveVQModel.decoding_features` the frames of the third.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames, C latent channels, H W pixels.
Frames are in [0, 1] on the way in and unclamped on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.layout import CONTEXT_GRID, DYNAMICS_GRID, FrameTokens, TokenLayout
from ivideogpt.outputs import Output
from ivideogpt.vq_model.conditional_vae import ConditionalDecoder, ConditionalEncoder, ContextFeatures, copy_shared
from ivideogpt.vq_model.quantizer import Quantized, VectorQuantizer
from ivideogpt.vq_model.strict_model import StrictModel, register_to_config
from ivideogpt.vq_model.vae import Decoder, Encoder


@dataclass(frozen=True)
class EncodedContext:
    """``codes`` (B, t, 256) int64, and the context ``features`` that encoding future frames needs."""

    codes: Tensor
    features: ContextFeatures


@dataclass(frozen=True)
class ContextCache:
    """``frames`` (B, t, 3, H, W) reconstructed, and the context ``features`` that decoding future frames needs."""

    frames: Tensor
    features: ContextFeatures


class VQEncoderOutput(Output):
    """``latents`` (N, d, 16, 16) of context frames, not quantized yet."""

    latents: Tensor


class VQDecoderOutput(Output):
    """``sample`` (N, 3, H, W), context frames as reconstructed; ``commit_loss`` of their latents' quantization."""

    sample: Tensor
    commit_loss: Tensor


class CompressiveVQOutput(Output):
    """Reconstructions, codebook losses and latents of a training step.

    Attributes:
        sample: reconstructed future frames (B F, 3, H, W).
        ref_sample: reconstructed context frames (B t, 3, H, W). It and all that follow are None unless losses were
            asked for.
        commit_loss, dyn_commit_loss: codebook and commitment terms of both quantizers.
        context_latents, context_codes, dynamics_latents, dynamics_codes: inputs and results of both quantizers, for
            the upkeep of the codebooks. Dynamics latents (B F, 16, d) have a gradient.
    """

    sample: Tensor
    ref_sample: Tensor
    commit_loss: Tensor
    dyn_commit_loss: Tensor
    context_latents: Tensor
    context_codes: Tensor
    dynamics_latents: Tensor
    dynamics_codes: Tensor


class CompressiveVQModel(StrictModel):
    """Context-aware conditional VQGAN (iVideoGPT, section 3.1), with the released names and config keys."""

    kind = "tokenizer"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        num_dyn_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        context_length: int = 1,
        max_att_resolution: int = 32,
        resolution: int = 256,
        patch_size: int = DYNAMICS_GRID,
    ) -> None:
        super().__init__()
        latent_grid = resolution // 2 ** (len(block_out_channels) - 1)
        if latent_grid != CONTEXT_GRID or patch_size * DYNAMICS_GRID != CONTEXT_GRID:
            raise UserError(
                f"resolution {resolution} with {len(block_out_channels)} blocks gives {latent_grid} x {latent_grid} "
                f"latents in patches of {patch_size}; expected {CONTEXT_GRID} x {CONTEXT_GRID} in patches of "
                f"{DYNAMICS_GRID}: change the number of blocks or the resolution"
            )
        if norm_type != "group":
            raise UserError(f"norm_type is {norm_type!r}, only 'group' exists")
        code_dim = vq_embed_dim or latent_channels
        patch_dim = latent_channels * patch_size**2
        shared: dict[str, Any] = dict(block_out_channels=block_out_channels, layers_per_block=layers_per_block)
        shared |= dict(norm_num_groups=norm_num_groups, act_fn=act_fn)
        encoder = dict(shared, in_channels=in_channels, out_channels=latent_channels, down_block_types=down_block_types)
        decoder = dict(shared, in_channels=latent_channels, out_channels=out_channels, up_block_types=up_block_types)
        attention: dict[str, Any] = dict(max_att_resolution=max_att_resolution, context_length=context_length)

        self.encoder = Encoder(mid_block_add_attention=mid_block_add_attention, **encoder)
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, 1)
        self.quantize = VectorQuantizer(num_vq_embeddings, code_dim)
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, 1)
        self.decoder = Decoder(mid_block_add_attention=mid_block_add_attention, **decoder)

        self.cond_encoder = ConditionalEncoder(resolution=resolution, **attention, **encoder)
        self.quant_linear = nn.Linear(patch_dim, code_dim)
        self.dynamics_quantize = VectorQuantizer(num_dyn_embeddings, code_dim)
        self.post_quant_linear = nn.Linear(code_dim, patch_dim)
        self.cond_decoder = ConditionalDecoder(**attention, **decoder)

    @property
    def context_length(self) -> int:
        return self.config.context_length

    @property
    def num_vq_embeddings(self) -> int:
        return self.config.num_vq_embeddings

    @property
    def num_dyn_embeddings(self) -> int:
        return self.config.num_dyn_embeddings

    def layout(self, future_frames: int) -> TokenLayout:
        """Return the token layout of clips with this model's context and ``future_frames`` more frames."""
        return TokenLayout(self.context_length, future_frames, self.num_vq_embeddings, self.num_dyn_embeddings)

    def set_context_length(self, context_length: int) -> None:
        """Shrink to the last ``context_length`` context frames' position embeddings and say so in the config.

        Raises:
            UserError: the model was trained with fewer context frames.
        """
        if not 1 <= context_length <= self.context_length:
            raise UserError(
                f"context_length {context_length} was asked of a tokenizer with {self.context_length} context frames; "
                f"position embeddings exist for those only: choose 1 to {self.context_length} or train a new tokenizer"
            )
        self.cond_encoder.set_context_length(context_length)
        self.cond_decoder.set_context_length(context_length)
        self.config["context_length"] = context_length

    @torch.no_grad()
    def align_to_context(self, context: Tensor) -> None:
        """Initialise the future branch: it encodes differences from the context, and decoding adds them to it.

        It takes the weights of the context branch, and attention reads the same place of the last context frame (see
        :meth:`CrossAttention.align`): the encoder subtracts it, the decoder adds it.

        Args:
            context: context frames (B, t, 3, H, W) of a few dozen clips: positions take up what varies least in them.
        """
        latents, features = self._context_latents(context.flatten(0, 1))
        self.cond_encoder.align(self.encoder, features)
        _, features = self._decode_plainly(self.quantize.embedding(self.quantize.nearest_codes(latents)))
        self.cond_decoder.align(self.decoder, features)

    def init_modules(self) -> list[str]:
        """Copy the context branch's weights into the future branch. Returns the parts without a counterpart."""
        return [
            *(f"cond_encoder.{name}" for name in copy_shared(self.encoder, self.cond_encoder)),
            "quant_linear",
            "dynamics_quantize",
            "post_quant_linear",
            *(f"cond_decoder.{name}" for name in copy_shared(self.decoder, self.cond_decoder)),
        ]

    def set_cross_attention_dropout(self, probability: float) -> None:
        """Set the dropout of attention to the context in training (default 0.1). Tensor shapes stay."""
        self.cond_encoder.set_dropout(probability)
        self.cond_decoder.set_dropout(probability)

    def cast_networks(self, dtype: torch.dtype) -> Self:
        """Cast the weights in place, but not the codebooks: rounded code vectors would change the nearest codes."""
        for module in self.children():
            if not isinstance(module, VectorQuantizer):
                module.to(dtype)
        return self

    # ---- the four primitives

    def encode_context(self, frames: Tensor) -> EncodedContext:
        """Encode context frames (B, t, 3, H, W) in [0, 1] to codes and features."""
        latents, features = self._context_latents(frames.flatten(0, 1))
        codes = self.quantize.nearest_codes(latents)
        return EncodedContext(codes.view(*frames.shape[:2], -1), self.cond_encoder.project_context(features))

    def context_codes(self, frames: Tensor) -> Tensor:
        """Encode context frames (B, t, 3, H, W) in [0, 1] to codes (B, t, 256), without features."""
        latents, _ = self._context_latents(frames.flatten(0, 1))
        return self.quantize.nearest_codes(latents).view(*frames.shape[:2], -1)

    def encode_dynamics(self, frames: Tensor, features: ContextFeatures) -> Tensor:
        """Encode future frames (B, F, 3, H, W) in [0, 1], with the features of their context, to codes (B, F, 16)."""
        if frames.shape[1] == 0:  # the networks refuse an empty batch
            return frames.new_zeros(len(frames), 0, DYNAMICS_GRID**2, dtype=torch.int64)
        latents = self._dynamics_latents(frames.flatten(0, 1), features)
        return self.dynamics_quantize.nearest_codes(latents).unflatten(0, frames.shape[:2])

    def decode_context(self, codes: Tensor) -> ContextCache:
        """Decode context codes (B, t, 256) to reconstructed frames and features."""
        frames, features = self._decode_context(self._context_vectors(codes))
        return ContextCache(frames.unflatten(0, codes.shape[:2]), features)

    def decoding_features(self, codes: Tensor) -> ContextFeatures:
        """Compute features for decoding future frames from context codes (B, t, 256), without frames."""
        last_level = self.cond_decoder.attention_levels[-1]
        features = self.decoder.features(self._context_decoder_input(self._context_vectors(codes)), last_level)
        return self.cond_decoder.project_context(features)

    def decode_dynamics(self, codes: Tensor, context: ContextFeatures, frames_at_once: int | None = None) -> Tensor:
        """Decode dynamics codes (B, F, 16), with the decoding features of their context, to frames (B, F, 3, H, W).

        The F frames may be later frames or samples of the same one. ``frames_at_once`` bounds the memory.
        """
        batch, length = codes.shape[:2]
        if frames_at_once is not None and batch * length > frames_at_once:
            clips = torch.arange(batch, device=codes.device).split(max(1, frames_at_once // length))
            return torch.cat([self._decode_some(codes[some], context.select(some), frames_at_once) for some in clips])
        vectors = self.dynamics_quantize.embedding(codes).flatten(0, 1)
        return self._decode_dynamics(vectors, context).unflatten(0, (batch, length))

    # ---- historical interface

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Encode context frames (N, 3, H, W) to latents, as diffusers' ``VQModel.encode`` does."""
        latents = self._context_latents(x)[0].permute(0, 3, 1, 2)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def decode(self, h: Tensor, return_dict: bool = True) -> VQDecoderOutput | tuple[Tensor, Tensor]:
        """Quantize latents (N, d, 16, 16) and decode context frames, as diffusers' ``VQModel.decode`` does."""
        quantized: Quantized = self.quantize(h.permute(0, 2, 3, 1))
        sample, _ = self._decode_plainly(quantized.latents)
        if not return_dict:
            return sample, quantized.loss
        return VQDecoderOutput(sample=sample, commit_loss=quantized.loss)

    def tokenize(self, pixel_values: Tensor, context_length: int) -> tuple[Tensor, Tensor]:
        """Encode clips (B, T, 3, H, W) in [0, 1] to flat ids (B, L) and labels (:mod:`ivideogpt.layout`)."""
        self._check_context_length(context_length)
        layout = self.layout(pixel_values.shape[1] - context_length)
        context = self.encode_context(pixel_values[:, :context_length])
        dynamics = self.encode_dynamics(pixel_values[:, context_length:], context.features)
        tokens = layout.pack(FrameTokens(context.codes, dynamics))
        return tokens, layout.labels(tokens)

    @overload
    def detokenize(
        self, indices: Tensor, context_length: int, cache: ContextCache | None = ..., return_cache: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def detokenize(
        self, indices: Tensor, context_length: int, cache: ContextCache | None = ..., *, return_cache: Literal[True]
    ) -> tuple[Tensor, ContextCache]: ...

    def detokenize(
        self, indices: Tensor, context_length: int, cache: ContextCache | None = None, return_cache: bool = False
    ) -> Tensor | tuple[Tensor, ContextCache]:
        """Decode flat ids (B, L) to all T frames (B, T, 3, H, W), context first, not clamped.

        ``cache`` of an earlier call with the same context saves decoding it again; it fits any number of future frames.
        """
        self._check_context_length(context_length)
        codes = self.layout(0).unpack(indices)
        cache = cache or self.decode_context(codes.context)
        frames = cache.frames
        if codes.dynamics.shape[1] > 0:  # the networks refuse an empty batch
            frames = torch.cat([frames, self.decode_dynamics(codes.dynamics, cache.features)], dim=1)
        return (frames, cache) if return_cache else frames

    def forward(
        self,
        sample: Tensor,
        return_dict: bool = True,
        return_loss: bool = False,
        segment_len: int | None = None,
        dyn_sample: Tensor | None = None,
    ) -> CompressiveVQOutput | tuple[Tensor, ...]:
        """Reconstruct context frames ``sample`` (B t, 3, H, W) and future frames ``dyn_sample`` (B F, 3, H, W).

        ``segment_len`` is F. Without ``return_loss`` only the future reconstruction is returned.
        """
        if dyn_sample is None or segment_len is None:
            raise UserError("forward needs the future frames: pass dyn_sample (B F, 3, H, W) and segment_len = F")
        if len(sample) * segment_len != len(dyn_sample) * self.context_length:
            raise UserError(
                f"{len(sample)} context frames of {self.context_length} a clip do not go with {len(dyn_sample)} future "
                f"frames of segment_len={segment_len} a clip"
            )
        context_latents, encoder_features = self._context_latents(sample)
        dynamics_latents = self._dynamics_latents(dyn_sample, self.cond_encoder.project_context(encoder_features))
        context: Quantized = self.quantize(context_latents)
        dynamics: Quantized = self.dynamics_quantize(dynamics_latents)
        ref_sample, features = self._decode_context(context.latents)
        future = self._decode_dynamics(dynamics.latents, features)

        if not return_loss:
            return CompressiveVQOutput(sample=future) if return_dict else (future,)
        if not return_dict:
            return future, ref_sample, context.loss, dynamics.loss
        return CompressiveVQOutput(
            sample=future,
            ref_sample=ref_sample,
            commit_loss=context.loss,
            dyn_commit_loss=dynamics.loss,
            context_latents=context_latents.detach(),
            context_codes=context.codes,
            dynamics_latents=dynamics_latents,
            dynamics_codes=dynamics.codes,
        )

    @torch.no_grad()
    def latents(self, sample: Tensor, dyn_sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of both quantizers: context vectors (n, d) and dynamics vectors (m, d), float32."""
        context, features = self._context_latents(sample)
        dynamics = self._dynamics_latents(dyn_sample, self.cond_encoder.project_context(features))
        return context.flatten(0, -2).float(), dynamics.flatten(0, -2).float()

    def _decode_some(self, codes: Tensor, context: ContextFeatures, frames_at_once: int) -> Tensor:
        return torch.cat([self.decode_dynamics(part, context) for part in codes.split(frames_at_once, dim=1)], dim=1)

    # ---- parts, between pixels and channel-last code vectors

    def _context_latents(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames (B t, 3, H, W) to vectors (B t, 16, 16, d) and the encoder's feature list."""
        latents, features = self.encoder(self._as_input(frames))
        return self.quant_conv(latents).permute(0, 2, 3, 1), features

    def _dynamics_latents(self, frames: Tensor, features: ContextFeatures) -> Tensor:
        """Encode frames (B F, 3, H, W) to one vector a patch, (B F, 16, d), ordered row, column, channel."""
        latents = self.cond_encoder(self._as_input(frames), features)
        size = self.config.patch_size
        return self.quant_linear(rearrange(latents, "n c (h p) (w q) -> n (h w) (p q c)", p=size, q=size))

    def _decode_context(self, vectors: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Decode vectors (B t, 16, 16, d) to frames and the keys and values of the conditional decoder."""
        frames, features = self._decode_plainly(vectors)
        return frames, self.cond_decoder.project_context(features)

    def _decode_plainly(self, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Decode vectors (B t, 16, 16, d) to frames and the decoder's feature list."""
        return self.decoder(self._context_decoder_input(vectors))

    def _context_vectors(self, codes: Tensor) -> Tensor:
        """Look up context codes (B, t, 256): vectors (B t, 16, 16, d)."""
        return self.quantize.embedding(codes).flatten(0, 1).unflatten(1, (CONTEXT_GRID, CONTEXT_GRID))

    def _context_decoder_input(self, vectors: Tensor) -> Tensor:
        """Project vectors (B t, 16, 16, d) to the decoder's input (B t, latent_channels, 16, 16)."""
        return self.post_quant_conv(self._as_input(vectors.permute(0, 3, 1, 2)))

    def _decode_dynamics(self, vectors: Tensor, features: ContextFeatures) -> Tensor:
        """Decode vectors (B F, 16, d) to frames (B F, 3, H, W)."""
        size = self.config.patch_size
        patches = self.post_quant_linear(self._as_input(vectors))
        latents = rearrange(
            patches, "n (h w) (p q c) -> n c (h p) (w q)", h=DYNAMICS_GRID, w=DYNAMICS_GRID, p=size, q=size
        )
        return self.cond_decoder(latents, features)

    def _as_input(self, tensor: Tensor) -> Tensor:
        """Cast to the precision of the networks' weights; quantizers stay in float32."""
        return tensor.to(self.quant_conv.weight.dtype)

    def _check_context_length(self, context_length: int) -> None:
        if context_length != self.context_length:
            raise UserError(
                f"context_length {context_length} was given, but this tokenizer has {self.context_length} context "
                f"frames: pass {self.context_length}, or shrink the tokenizer with set_context_length"
            )

    # ---- loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a local folder or hub id strictly, from safetensors only, in float32 unless ``torch_dtype`` is given.

        Raises:
            UserError: a file is missing or unreadable, or a tensor is missing, unexpected or of another shape.
        """
        dtype = kwargs.pop("torch_dtype", None)
        model = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for module in model.modules():  # loading used to draw random numbers: trainings of a seed keep their results
            if isinstance(module, nn.Embedding | nn.MultiheadAttention):
                next(module.parameters()).detach().new_empty(next(module.parameters()).shape).uniform_()
        return model if dtype is None else model.cast_networks(dtype)
