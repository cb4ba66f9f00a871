"""Roll a world model out, a frame at a time: one :class:`Session` for prediction, imagination, planning and play.

Knows pixels, tokens and actions; knows nothing of files, data sets, training or environments.

Dimension keys: B clips, N samples of each, t context frames, C H W pixels, D action dimension. Rows of a batch of B N
are ordered clip by clip.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.metadata import ModelMetadata
from ivideogpt.pixel_range import check_range
from ivideogpt.pretrained import Transformer
from ivideogpt.transformer import (
    DecodeBackend,
    DecoderMark,
    FrameDecoder,
    FrameModel,
    HeadModelWithAction,
    RandomStreams,
    Sampling,
    drawn_seed,
)
from ivideogpt.vq_model import CompressiveVQModel, ContextFeatures

Seed = int | torch.Generator | None
OnFull = Literal["slide", "error"]

# Pixels of the frames that are decoded at once: more are no faster, and take memory.
PIXELS_AT_ONCE = {"cpu": 16 * 64**2, "cuda": 256 * 64**2}


class SessionModel(Protocol):
    """Protocol of the parts of a :class:`~ivideogpt.world_model.WorldModel` that a session needs."""

    tokenizer: CompressiveVQModel
    transformer: Transformer
    metadata: ModelMetadata
    action_space: str | None

    @property
    def device(self) -> torch.device: ...

    @property
    def reward_head(self) -> nn.Linear | None: ...

    @property
    def success_head(self) -> nn.Linear | None: ...

    @property
    def layout(self) -> TokenLayout: ...

    def decode_backend(self) -> DecodeBackend: ...


@dataclass(frozen=True)
class Step:
    """One new frame of every sample.

    Attributes:
        frames: (B, N, C, H, W) in [0, 1]; (B, N, 0, H, W) in a session without frames.
        reward: (B, N) of arriving there, in environment units; None without a reward head.
        success: (B, N) probability that this step succeeds; None without a success head.
        tokens: (B, N, 17) the separator in front of the frame and its ids, as drawn.
    """

    frames: Tensor
    reward: Tensor | None
    tokens: Tensor
    success: Tensor | None = None


class UnsoundModel(UserError, FloatingPointError):
    """Raised for predictions that are not finite numbers."""

    def __init__(self) -> None:
        super().__init__(
            "the world model gives NaN or infinity, expected finite frames, rewards and successes: its weights are "
            "damaged or beyond this precision, or a function in place of a head is wrong; choose another checkpoint, "
            "or float32"
        )


@dataclass(frozen=True)
class SessionMark:
    """A point of a session, for :meth:`Session.rewind`. Keeps the last t frames of every sample."""

    decoder: DecoderMark
    recent: tuple[Tensor, ...]


@dataclass(frozen=True)
class SessionOptions:
    """Options of a session, as :meth:`ivideogpt.world_model.WorldModel.start` documents them."""

    num_samples: int = 1
    sampling: Sampling | None = None
    seed: Seed = None
    on_full: OnFull = "slide"
    max_frames: int | None = None
    clip_numbers: Sequence[int] | None = None
    first_sample: int = 0
    common_noise: bool = False
    action_space: str | None = None
    with_frames: bool = True

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num_samples is {self.num_samples}, must be at least 1")
        if self.on_full not in ("slide", "error"):
            raise UserError(f"on_full is {self.on_full!r}, must be 'slide' or 'error'")
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"max_frames is {self.max_frames}, must be at least 1, or None for as many as fit")

    def numbers(self, num_clips: int) -> Tensor:
        """Return the numbers of the clips, (B,) int64."""
        if self.clip_numbers is None:
            return torch.arange(num_clips)
        if len(self.clip_numbers) != num_clips:
            raise UserError(f"{len(self.clip_numbers)} clip_numbers were given for {num_clips} clips")
        return torch.tensor(self.clip_numbers)

    def streams(self, num_clips: int) -> RandomStreams:
        """Return the random numbers of all samples of ``num_clips`` clips. The seed must be a number."""
        assert isinstance(self.seed, int)
        clips = self.numbers(num_clips)
        return RandomStreams.of_clips(self.seed, clips, self.num_samples, self.first_sample, self.common_noise)

    def seed_number(self, sampling: Sampling) -> int:
        """Return the seed, sampled from the given generator or torch's global one if it is not a number."""
        if self.seed is None or isinstance(self.seed, torch.Generator):
            return drawn_seed(self.seed, sampling)
        return operator.index(self.seed)


@dataclass(frozen=True)
class SampleContexts:
    """Context features and their owners: one set a clip for all its samples or, after sliding, one a sample."""

    features: ContextFeatures
    num_clips: int
    num_samples: int

    def rows(self, clips: Tensor) -> Tensor:
        """Return the row indices of all samples of some clips."""
        return (clips[:, None] * self.num_samples + torch.arange(self.num_samples, device=clips.device)).flatten()

    def replace_clips(self, clips: Tensor, features: ContextFeatures) -> SampleContexts:
        """Give clips other features, one set each."""
        if self._are_shared:
            return replace(self, features=self.features.replace(clips, features))
        return replace(self, features=self.features.replace(self.rows(clips), self._by_sample(features, clips.device)))

    def replace_rows(self, rows: Tensor, features: ContextFeatures) -> SampleContexts:
        """Give some samples features of their own; all samples have some from then on."""
        before = self._by_sample(self.features, rows.device) if self._are_shared else self.features
        return replace(self, features=before.replace(rows, features))

    def select_clips(self, clips: Tensor) -> SampleContexts:
        """Keep some clips with all their samples."""
        features = self.features.select(clips if self._are_shared else self.rows(clips))
        return SampleContexts(features, len(clips), self.num_samples)

    @property
    def _are_shared(self) -> bool:
        return self.features.num_clips == self.num_clips

    def _by_sample(self, features: ContextFeatures, device: torch.device) -> ContextFeatures:
        return features.select(torch.arange(features.num_clips, device=device).repeat_interleave(self.num_samples))


class Session:
    """One or more futures of a batch of clips, a frame at a time. Owns its caches and its randomness.

    Attributes:
        prompt: (B, 257 t) the tokens of the context that each clip began with.
        action_dim: length of an action that callers give; None if action-free.
    """

    def __init__(self, model: SessionModel, context: Tensor, options: SessionOptions) -> None:
        sampling = options.sampling or model.metadata.generation
        if sampling.separators == "sampled" and model.metadata.action_dim is not None:
            raise UserError("separators='sampled' is for action-free models; with actions they must be 'forced'")
        _check_context(context, model.tokenizer)
        options = replace(options, seed=options.seed_number(sampling), sampling=sampling)
        streams = options.streams(len(context))
        self.num_samples = options.num_samples
        self._model = model
        self._space = model.metadata.find_space(options.action_space or model.action_space)
        self.action_dim = model.metadata.action_dim if self._space is None else self._space.dim
        self._layout = model.layout
        self._options = options
        codebook = model.tokenizer.dynamics_quantize.embedding.weight.detach()
        heads = {"reward_head": model.reward_head, "success_head": model.success_head}
        frame_model = FrameModel(model.decode_backend(), self._layout, sampling, dynamics_vectors=codebook, **heads)
        self._decoder = FrameDecoder(frame_model, streams)
        context = context.to(model.device, torch.float32)
        self.prompt, features = self._read(context)
        self._contexts = SampleContexts(features, len(context), options.num_samples)
        self._context: Tensor | None = None
        self._decoder.prefill(self.prompt, options.max_frames)
        # a session that slides reads its own frames
        self._decodes = options.with_frames or options.max_frames != self._decoder.frames_that_fit
        if not self._decodes:
            self._options = replace(options, on_full="error")
        if options.num_samples > 1:
            self._decoder.expand(options.num_samples)
        # the last t frames of every sample, (B, N, C, H, W) each; with a goal it stays the first of them
        own = context.clone()  # the caller's may be a buffer that is filled again
        self._recent = [frame[:, None].expand(-1, options.num_samples, -1, -1, -1) for frame in own.unbind(1)]

    @property
    def context(self) -> Tensor:
        """Context that each clip began with, as the tokenizer reconstructs it: (B, t, C, H, W) in [0, 1]."""
        if self._context is None:  # decoded when asked for: stepping does not need it
            tokenizer, codes = self._model.tokenizer, self._layout.unpack_context(self.prompt)
            with torch.no_grad(), evaluating(tokenizer):
                self._context = tokenizer.decode_context(codes).frames.float().clamp(0, 1)
        return self._context

    @torch.no_grad()
    def step(self, action: Tensor | None = None) -> Step:
        """Predict the next frame of every sample after ``action`` (B, D), or (B, N, D) for one per sample."""
        action_embedding = self._embed_action(action)
        if self._decoder.frames_left < 1:
            self._slide()
        decoded = self._decoder.step(action_embedding)
        frames = self._recent[-1][:, :, :0]
        if self._decodes:
            frames = self._decode(decoded.tokens)
            self._recent.append(frames.clone())  # frames are the caller's, who may write to them
            del self._recent[1 if self._model.metadata.goal_conditioned else 0]
        reward = decoded.reward
        if reward is not None:
            reward = self._by_sample(symexp(reward) if self._model.metadata.symlog else reward)
        success = None if decoded.success is None else self._by_sample(decoded.success.sigmoid())
        if not self._options.with_frames:  # a session that slides has decoded them for itself
            frames = frames[:, :, :0]
        return Step(frames=frames, reward=reward, tokens=self._by_sample(decoded.tokens), success=success)

    def mark(self) -> SessionMark:
        """Mark this point, to come back to it with :meth:`rewind`."""
        return SessionMark(self._decoder.mark(), tuple(self._recent))

    def can_rewind(self, mark: SessionMark) -> bool:
        """Whether a mark can still be reached: since then no context was read, by sliding or by rows that began anew,
        no row was dropped, and the session did not go back to before it."""
        return self._decoder.can_rewind(mark.decoder)

    def rewind(self, mark: SessionMark) -> None:
        """Go back to a mark: the same actions give the same frames again. Marks made later end.

        Raises:
            UserError: the mark has ended, see :meth:`can_rewind`.
        """
        if not self.can_rewind(mark):
            raise UserError(
                "a context was read since this mark, or the session went another way: start one on the frames in front "
                "of the mark"
            )
        self._decoder.rewind(mark.decoder)
        self._recent = list(mark.recent)

    def check_room(self, num_frames: int) -> None:
        """Make sure that so many more frames can be drawn; UserError if it would have to slide and may not."""
        room, at_all = self._decoder.frames_left, self._decoder.frames_that_fit
        if self._options.on_full == "error" and num_frames > room:
            raise UserError(
                f"{num_frames} more frames do not fit, {room} do ({at_all} after each context); "
                "ask for fewer or use on_full='slide'"
            )

    @torch.no_grad()
    def reset_rows(self, mask: Tensor, context: Tensor, clip_numbers: Sequence[int] | None = None) -> None:
        """Begin some clips again, with all their samples; the others go on as if nothing had happened.

        Args:
            mask: (B,) bool, which clips.
            context: (number of them, t, C, H, W) in [0, 1].
            clip_numbers: these clips draw what a new session of these numbers would; by default their noise goes on.

        Raises:
            UserError: mask and context do not fit, or separators are sampled.
        """
        self._check_mask(mask)
        self._decoder.check_reset()
        if not mask.any():
            return
        _check_context(context, self._model.tokenizer, batch=int(mask.sum()))
        clips = mask.nonzero().flatten().to(self.prompt.device)
        context = context.to(self._model.device, torch.float32)
        renumbered = replace(self._options, clip_numbers=clip_numbers)
        streams = None if clip_numbers is None else renumbered.streams(len(context))
        prompts, features = self._read(context)
        self.prompt, self._context = self.prompt.index_copy(0, clips, prompts), None
        self._decoder.reset_rows(self._contexts.rows(clips), prompts, streams)
        self._contexts = self._contexts.replace_clips(clips, features)
        for k, frame in enumerate(context.unbind(1)):
            new = frame[:, None].expand(-1, self.num_samples, -1, -1, -1)
            self._recent[k] = self._recent[k].index_copy(0, clips, new)

    @torch.no_grad()
    def drop_rows(self, mask: Tensor) -> None:
        """Drop some clips, (B,) bool; from now on the session has only the others, in their order."""
        self._check_mask(mask)
        if mask.all():
            raise UserError("drop_rows would leave no clip: let go of the session instead")
        clips = (~mask).nonzero().flatten().to(self.prompt.device)
        self._decoder.keep_rows(self._contexts.rows(clips))
        self._contexts = self._contexts.select_clips(clips)
        self.prompt, self._context = self.prompt[clips], None
        self._recent = [frame[clips] for frame in self._recent]

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or tuple(mask.shape) != (len(self.prompt),):
            raise UserError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected bool of shape ({len(self.prompt)},): "
                "one for each clip"
            )

    def _read(self, context: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Encode frames (R, t, C, H, W) to prompts (R, 257 t) and the features that decoding later frames needs."""
        tokenizer = self._model.tokenizer
        with torch.no_grad(), evaluating(tokenizer):
            codes = tokenizer.context_codes(context)
            features = tokenizer.decoding_features(codes)
        return self._layout.pack_context(codes), features

    def _slide(self) -> None:
        """Continue full rows from their last t frames. Samples differ by now, so each has a context of its own."""
        self.check_room(1)
        full = self._decoder.full_rows().to(self._model.device)
        recent = torch.stack(self._recent, dim=2).flatten(0, 1)
        if len(full) == len(recent):
            prompts, features = self._read(recent)
            self._contexts = replace(self._contexts, features=features)
            self._decoder.prefill(prompts, self._options.max_frames)
            return
        prompts, features = self._read(recent[full])
        self._decoder.reset_rows(full, prompts)
        self._contexts = self._contexts.replace_rows(full, features)

    def _decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens (B N, 17) of one frame to frames (B, N, C, H, W) in [0, 1]."""
        codes = self._layout.local_dynamics(tokens[:, 1:])
        tokenizer = self._model.tokenizer
        with evaluating(tokenizer):
            # samples of one clip look like later frames of it to the tokenizer, which decodes them against one context
            codes = codes.unflatten(0, (self._contexts.features.num_clips, -1))
            pixels = PIXELS_AT_ONCE.get(codes.device.type, PIXELS_AT_ONCE["cpu"])
            frames_at_once = max(1, pixels // tokenizer.config.resolution**2)
            frames = tokenizer.decode_dynamics(codes, self._contexts.features, frames_at_once)
        return self._by_sample(frames.flatten(0, 1).float().clamp(0, 1))

    def _embed_action(self, action: Tensor | None) -> Tensor | None:
        """Embed actions (B, D) or (B, N, D) for the separators of all rows: (B N, width), or None if action-free."""
        transformer = self._model.transformer
        check_actions(action, self.action_dim, len(self.prompt), self.num_samples, ())
        if action is None or not isinstance(transformer, HeadModelWithAction):
            return None
        action = self._model.metadata.encode_actions(action.to(self._model.device, torch.float32), self._space)
        if action.ndim == 2:
            action = action[:, None].expand(-1, self.num_samples, -1)
        return transformer.embed_actions(action.flatten(0, 1))

    def _by_sample(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, self.num_samples))


def are_finite(*predicted: Tensor | None) -> Tensor:
    """Tell whether all numbers are finite, as a scalar on their device: whoever asks for its value waits for that."""
    return torch.stack([values.isfinite().all() for values in predicted if values is not None]).all()


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|), the space in which rewards may be trained."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Return the inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set eval mode for the duration; afterwards every submodule has the mode it had."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


def _check_context(context: Tensor, tokenizer: CompressiveVQModel, batch: int | None = None) -> None:
    """Check the context frames. ``batch`` is the number of clips that must be given; None accepts any but zero."""
    check_tensor(context, "context frames")
    length, resolution = tokenizer.context_length, tokenizer.config.resolution
    expected = (length, tokenizer.config.in_channels, resolution, resolution)
    fits = len(context) > 0 if batch is None else len(context) == batch
    if context.ndim != 5 or not fits or tuple(context.shape[1:]) != expected:
        raise UserError(
            f"context frames have shape {tuple(context.shape)}, expected (batch, context, channels, height, width) = "
            f"({'any' if batch is None else batch}, {', '.join(map(str, expected))})"
        )
    check_range(context, "context frames")


def check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{name} are {type(value).__name__}, expected a tensor: torch.as_tensor makes one")


def check_actions(
    actions: Tensor | None, action_dim: int | None, batch: int, num_samples: int, frames: tuple[int, ...]
) -> None:
    """Check that actions are (B, *frames, D) or (B, N, *frames, D) for a model with ``action_dim``, else None."""
    if action_dim is None:
        if actions is not None:
            raise UserError("this model is action-free: call step or predict without actions")
        return
    if actions is None:
        raise UserError(f"this model is action-conditioned: give an action of {action_dim} numbers for every frame")
    check_tensor(actions, "actions")
    shared, per_sample = (batch, *frames, action_dim), (batch, num_samples, *frames, action_dim)
    if tuple(actions.shape) not in (shared, per_sample):
        raise UserError(f"actions have shape {tuple(actions.shape)}, expected {shared} or, by sample, {per_sample}")
    # looking at numbers on another device would make every step wait for it
    if actions.device.type == "cpu" and not actions.isfinite().all():
        raise UserError("actions hold NaN or infinity")
