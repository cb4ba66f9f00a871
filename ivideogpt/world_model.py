"""Rolling a world model out: one :class:`Session` for prediction, imagination, planning and play.

::

    world_model = WorldModel.from_pretrained(folder)
    session = world_model.start(context)          # (B, t, 3, H, W) in [0, 1]
    step = session.step(action)                   # step.frames (B, N, 3, H, W), step.reward (B, N) or None

Knows pixels, tokens and actions; knows nothing of data sets, training or environments.

Dimension keys: B clips, N samples of each, t context frames, F future frames, C H W pixels, D action dimension,
L tokens. Rows of a batch of B N are ordered clip by clip.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.pixel_range import check_range
from ivideogpt.precision import forced_bfloat16
from ivideogpt.pretrained import (
    RELEASED_SEGMENT_LENGTH,
    ModelMetadata,
    Transformer,
    language_model,
    load_tokenizer,
    load_transformer,
    model_folder,
    save_tokenizer,
    save_transformer,
)
from ivideogpt.transformer import (
    DecodeBackend,
    FrameDecoder,
    FrameModel,
    HeadModelWithAction,
    RandomStreams,
    Sampling,
    check_backend,
    drawn_seed,
    open_backend,
)
from ivideogpt.transformer.backends.cpu_kernels import kernels
from ivideogpt.vq_model import CompressiveVQModel, ContextFeatures

Seed = int | torch.Generator | None
OnFull = Literal["slide", "error"]

# Pixels of the frames that are decoded at once: more are no faster, and take memory.
PIXELS_AT_ONCE = {"cpu": 16 * 64**2, "cuda": 256 * 64**2}


@dataclass(frozen=True)
class Step:
    """One new frame of every sample.

    Attributes:
        frames: (B, N, C, H, W) in [0, 1].
        reward: (B, N) of arriving there, in environment units; None without a reward head.
        tokens: (B, N, 17) the separator in front of the frame and its ids, as drawn.
    """

    frames: Tensor
    reward: Tensor | None
    tokens: Tensor


@dataclass(frozen=True)
class Rollout:
    """A predicted future.

    Attributes:
        context: (B, t, C, H, W) reconstructed, in [0, 1].
        frames: (B, N, F, C, H, W) in [0, 1].
        rewards: (B, N, F) in environment units; None without a reward head.
        tokens: (B, N, L) context and future as one sequence (see :mod:`ivideogpt.layout`). If the session slid, the
            later ones belong to a later context that is not among them.
    """

    context: Tensor
    frames: Tensor
    rewards: Tensor | None
    tokens: Tensor


class WorldModel:
    """A tokenizer and a transformer that belong together, and what is to be known to use them.

    The modules may be in training elsewhere: a new session reads the weights as they are then, works without dropout,
    and leaves their mode as it was. Train them between sessions, not during one.
    """

    def __init__(
        self,
        tokenizer: CompressiveVQModel,
        transformer: Transformer,
        metadata: ModelMetadata | None = None,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.metadata = metadata or ModelMetadata.infer(tokenizer, transformer)
        self.backend = backend
        self._decode_backend: DecodeBackend | None = None
        self._check_parts()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | Literal["auto"] | None = None,
        backend: str = "auto",
    ) -> WorldModel:
        """Load a model folder (or its tokenizer's folder) or a hub id.

        Args:
            dtype: float32 if not given. "auto" takes what the device is fastest in, which may be another precision for
                the tokenizer than for the transformer: samples follow the same distribution up to rounding.
            backend: what decodes tokens: "torch" anywhere, "cpu_kernels", "cuda_graph", or a registered one; "auto"
                takes the fastest that runs on the device.
        """
        check_backend(backend)
        folder = model_folder(path_or_hub_id)
        metadata = ModelMetadata.read(folder)
        precisions = fastest_precisions(torch.device(device or "cpu"), backend) if dtype == "auto" else (dtype, dtype)
        tokenizer = load_tokenizer(folder, precisions[0])
        segment_length = metadata.segment_length if metadata else RELEASED_SEGMENT_LENGTH
        layout = tokenizer.layout(segment_length - tokenizer.context_length)
        transformer = load_transformer(folder, layout, dtype=precisions[1])
        tokenizer.to(memory_format=torch.channels_last)  # convolutions are 1.1 to 1.6 times as fast
        return cls(tokenizer, transformer, metadata, backend).to(device or "cpu")

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write both networks and the metadata; ``dtype`` may be a 16-bit one to halve the files."""
        folder = Path(folder)
        save_tokenizer(self.tokenizer, folder / "tokenizer", dtype)
        save_transformer(self.transformer, folder / "transformer", dtype)
        self.metadata.write(folder)

    def push_to_hub(self, repo_id: str, private: bool = False, dtype: torch.dtype | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes, creating the repository if there is none. Returns its address."""
        hub = huggingface_hub.HfApi()
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype)
            hub.upload_folder(repo_id=repo_id, folder_path=folder)
        return str(address)

    def to(self, device: torch.device | str) -> WorldModel:
        self.tokenizer.to(device)
        self.transformer.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return language_model(self.transformer).device

    @property
    def action_dim(self) -> int | None:
        """Length of an action; None for action-free models."""
        return self.transformer.action_dim if isinstance(self.transformer, HeadModelWithAction) else None

    @property
    def reward_head(self) -> nn.Linear | None:
        return self.transformer.reward_linear if isinstance(self.transformer, HeadModelWithAction) else None

    @property
    def layout(self) -> TokenLayout:
        """Where tokens stand in clips of the model's segment length."""
        return self.tokenizer.layout(self.metadata.segment_length - self.tokenizer.context_length)

    def start(
        self,
        context: Tensor,
        num_samples: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: Seed = None,
        on_full: OnFull = "slide",
        max_frames: int | None = None,
        clip_numbers: Sequence[int] | None = None,
        first_sample: int = 0,
    ) -> Session:
        """Begin a session on context frames (B, t, C, H, W) in [0, 1]. A goal-conditioned model wants the goal first.

        Args:
            num_samples: futures of each clip; they share the reading of the context.
            sampling: the checkpoint's own if not given.
            seed: a number, or a generator to draw it from; by default torch's global one.
            on_full: when the model's positions are used up, "slide" makes the last t frames the new context (a goal
                stays in front) and "error" raises.
            max_frames: reserve memory for that many frames only; the session is full after them.
            clip_numbers: what is drawn depends on the seed, the clip's number and the sample's number, and not on what
                else is in the batch; by default clips are numbered 0, 1, ...
            first_sample: number of the first sample. Those of several sessions are all those of one.
        """
        return Session(self, context, num_samples, sampling, seed, on_full, max_frames, clip_numbers, first_sample)

    def predict(
        self,
        context: Tensor,
        actions: Tensor | None = None,
        horizon: int | None = None,
        num_samples: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: Seed = None,
        on_full: OnFull = "slide",
        clip_numbers: Sequence[int] | None = None,
        first_sample: int = 0,
    ) -> Rollout:
        """Predict ``horizon`` frames: by default one an action, else to the end of the model's segment length.

        ``actions`` is (B, F, D), or (B, N, F, D) for different ones per sample; the first is taken at the last context
        frame, so of a clip's actions it is ``[:, t - 1 : T - 1]``. Other arguments as in :meth:`start`.
        """
        horizon = self._horizon(actions, horizon)
        session = self.start(
            context,
            num_samples,
            sampling=sampling,
            seed=seed,
            on_full=on_full,
            max_frames=horizon,
            clip_numbers=clip_numbers,
            first_sample=first_sample,
        )
        _check_actions(actions, self.action_dim, len(context), num_samples, (horizon,))
        session.check_room(horizon)
        of_steps = [None] * horizon if actions is None else actions.unbind(-2)
        steps = [session.step(action) for action in of_steps]
        rewards = [step.reward for step in steps if step.reward is not None]
        prompt = session.prompt[:, None, :-1].expand(-1, num_samples, -1)
        return Rollout(
            context=session.context,
            frames=torch.stack([step.frames for step in steps], dim=2),
            rewards=torch.stack(rewards, dim=2) if rewards else None,
            tokens=torch.cat([prompt, *(step.tokens for step in steps)], dim=2),
        )

    def decode_backend(self) -> DecodeBackend:
        """Return what decodes tokens, with the weights as they are now."""
        self._decode_backend = open_backend(self.backend, language_model(self.transformer), self._decode_backend)
        return self._decode_backend

    def _horizon(self, actions: Tensor | None, horizon: int | None) -> int:
        if horizon is None:
            horizon = self.layout.future_frames if actions is None or actions.ndim < 2 else actions.shape[-2]
        if horizon < 1:
            raise UserError(f"horizon is {horizon}, must be at least 1")
        return horizon

    def _check_parts(self) -> None:
        context_length = self.tokenizer.context_length
        vocabulary = language_model(self.transformer).config.vocab_size
        if vocabulary != self.tokenizer.layout(0).vocab_size:
            raise UserError(
                f"the transformer's vocabulary is {vocabulary}, the tokenizer's {self.tokenizer.layout(0).vocab_size}: "
                "they do not belong together"
            )
        if isinstance(self.transformer, HeadModelWithAction) and self.transformer.context != context_length:
            raise UserError(
                f"the transformer has {self.transformer.context} context frames, the tokenizer {context_length}"
            )
        stated = (self.metadata.resolution, self.metadata.context_length, self.metadata.action_dim)
        actual = (self.tokenizer.config.resolution, context_length, self.action_dim)
        if stated != actual:
            raise UserError(
                f"the metadata says resolution, context_length, action_dim = {stated}, but the networks have {actual}"
            )


class Session:
    """One or more futures of a batch of clips, a frame at a time. Owns its caches and its randomness.

    Attributes:
        prompt: (B, 257 t) the tokens of the context that each clip began with.
    """

    def __init__(
        self,
        world_model: WorldModel,
        context: Tensor,
        num_samples: int = 1,
        sampling: Sampling | None = None,
        seed: Seed = None,
        on_full: OnFull = "slide",
        max_frames: int | None = None,
        clip_numbers: Sequence[int] | None = None,
        first_sample: int = 0,
    ) -> None:
        sampling = sampling or world_model.metadata.generation
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}, must be at least 1")
        if on_full not in ("slide", "error"):
            raise UserError(f"on_full is {on_full!r}, must be 'slide' or 'error'")
        if max_frames is not None and max_frames < 1:
            raise UserError(f"max_frames is {max_frames}, must be at least 1, or None for as many as fit")
        if sampling.separators == "sampled" and world_model.action_dim is not None:
            raise UserError("separators='sampled' is for action-free models; with actions they must be 'forced'")
        _check_context(context, world_model)
        if clip_numbers is not None and len(clip_numbers) != len(context):
            raise UserError(f"{len(clip_numbers)} clip_numbers were given for {len(context)} clips")
        self.num_samples = num_samples
        self._world_model = world_model
        self._layout = world_model.layout
        self._on_full = on_full
        self._max_frames = max_frames
        numbers = torch.arange(len(context)) if clip_numbers is None else torch.tensor(clip_numbers)
        if seed is None or isinstance(seed, torch.Generator):
            seed = drawn_seed(seed, sampling)
        self._decoder = FrameDecoder(
            FrameModel(
                world_model.decode_backend(),
                self._layout,
                sampling,
                world_model.reward_head,
                world_model.tokenizer.dynamics_quantize.embedding.weight.detach(),
            ),
            RandomStreams.of_clips(operator.index(seed), numbers, num_samples, first_sample),
        )
        context = context.to(world_model.device, torch.float32)
        # one row a clip; samples that have slid have one each
        self.prompt, self._features = self._read(context)
        self._context: Tensor | None = None
        self._decoder.prefill(self.prompt, max_frames)
        if num_samples > 1:
            self._decoder.expand(num_samples)
        # the last t frames of every sample, (B, N, C, H, W) each; with a goal it stays the first of them
        self._recent = [frame[:, None].expand(-1, num_samples, -1, -1, -1) for frame in context.unbind(1)]

    @property
    def context(self) -> Tensor:
        """(B, t, C, H, W) The context that each clip began with, as the tokenizer sees it, in [0, 1]."""
        if self._context is None:  # decoded when asked for: stepping does not need it
            tokenizer, codes = self._world_model.tokenizer, self._layout.unpack_context(self.prompt)
            with torch.no_grad(), evaluating(tokenizer):
                self._context = tokenizer.decode_context(codes).frames.float().clamp(0, 1)
        return self._context

    @torch.no_grad()
    def step(self, action: Tensor | None = None) -> Step:
        """The next frame of every sample after ``action`` (B, D), or (B, N, D) for a different one per sample."""
        action_embedding = self._embed_action(action)
        if self._decoder.frames_left < 1:
            self._slide()
        decoded = self._decoder.step(action_embedding)
        frames = self._decode(decoded.tokens)
        self._remember(frames)
        return Step(frames=frames, reward=self._reward(decoded.reward), tokens=self._by_sample(decoded.tokens))

    def check_room(self, num_frames: int) -> None:
        """Make sure that so many more frames can be drawn.

        Raises:
            UserError: the positions do not suffice and the session may not slide.
        """
        room, at_all = self._decoder.frames_left, self._decoder.frames_that_fit
        if self._on_full == "error" and num_frames > room:
            raise UserError(
                f"{num_frames} more frames do not fit, {room} do ({at_all} after each context); "
                "ask for fewer or use on_full='slide'"
            )

    @torch.no_grad()
    def reset_rows(self, mask: Tensor, context: Tensor) -> None:
        """Begin some clips anew, with all their samples; the others go on as if nothing had happened.

        Args:
            mask: (B,) bool, which clips.
            context: (number of them, t, C, H, W) in [0, 1].

        Raises:
            UserError: mask and context do not fit, or separators are sampled.
        """
        self._check_mask(mask)
        self._decoder.check_reset()
        if not mask.any():
            return
        _check_context(context, self._world_model, batch=int(mask.sum()))
        clips = mask.nonzero().flatten().to(self.prompt.device)
        context = context.to(self._world_model.device, torch.float32)
        prompts, features = self._read(context)
        self.prompt, self._context = self.prompt.index_copy(0, clips, prompts), None
        rows = self._rows_of(clips)
        self._decoder.reset_rows(rows, prompts)
        if self._samples_have_contexts:
            self._features = self._features.replace(rows, self._of_samples(features))
        else:
            self._features = self._features.replace(clips, features)
        for k, frame in enumerate(context.unbind(1)):
            new = frame[:, None].expand(-1, self.num_samples, -1, -1, -1)
            self._recent[k] = self._recent[k].index_copy(0, clips, new)

    @torch.no_grad()
    def drop_rows(self, mask: Tensor) -> None:
        """Let go of some clips, (B,) bool; from now on the session has only the others, in their order."""
        self._check_mask(mask)
        if mask.all():
            raise UserError("drop_rows would leave no clip: let go of the session instead")
        clips = (~mask).nonzero().flatten().to(self.prompt.device)
        rows = self._rows_of(clips)
        self._decoder.keep_rows(rows)
        self._features = self._features.select(rows if self._samples_have_contexts else clips)
        self.prompt, self._context = self.prompt[clips], None
        self._recent = [frame[clips] for frame in self._recent]

    @property
    def _samples_have_contexts(self) -> bool:
        """Has every sample features of its own, as after sliding? Otherwise every clip has."""
        return self._features.num_clips == len(self.prompt) * self.num_samples

    def _rows_of(self, clips: Tensor) -> Tensor:
        """Indices of all samples' rows of some clips."""
        return (clips[:, None] * self.num_samples + torch.arange(self.num_samples, device=clips.device)).flatten()

    def _of_samples(self, features: ContextFeatures) -> ContextFeatures:
        """Those of clips to those of all their samples."""
        clips = torch.arange(features.num_clips, device=self._world_model.device)
        return features.select(clips.repeat_interleave(self.num_samples))

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or tuple(mask.shape) != (len(self.prompt),):
            raise UserError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected bool of shape ({len(self.prompt)},): "
                "one for each clip"
            )

    def _read(self, context: Tensor) -> tuple[Tensor, ContextFeatures]:
        """Frames (R, t, C, H, W) to prompts (R, 257 t) and what the decoding of later frames needs of them."""
        tokenizer = self._world_model.tokenizer
        with torch.no_grad(), evaluating(tokenizer):
            codes = tokenizer.context_codes(context)
            features = tokenizer.decoding_features(codes)
        return self._layout.pack_context(codes), features

    def _slide(self) -> None:
        """Full rows go on from their last t frames. Samples have parted by now, so each has a context of its own."""
        self.check_room(1)
        full = self._decoder.full_rows().to(self._world_model.device)
        recent = torch.stack(self._recent, dim=2).flatten(0, 1)
        if len(full) == len(recent):
            prompts, self._features = self._read(recent)
            self._decoder.prefill(prompts, self._max_frames)
            return
        prompts, features = self._read(recent[full])
        self._decoder.reset_rows(full, prompts)
        if not self._samples_have_contexts:
            self._features = self._of_samples(self._features)
        self._features = self._features.replace(full, features)

    def _decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B N, 17) of one frame to frames (B, N, C, H, W) in [0, 1]."""
        codes = self._layout.local_dynamics(tokens[:, 1:])
        tokenizer = self._world_model.tokenizer
        with evaluating(tokenizer):
            # samples of one clip look like later frames of it to the tokenizer, which decodes them against one context
            codes = codes.unflatten(0, (self._features.num_clips, -1))
            pixels = PIXELS_AT_ONCE.get(codes.device.type, PIXELS_AT_ONCE["cpu"])
            frames_at_once = max(1, pixels // tokenizer.config.resolution**2)
            frames = tokenizer.decode_dynamics(codes, self._features, frames_at_once)
        return self._by_sample(frames.flatten(0, 1).float().clamp(0, 1))

    def _remember(self, frames: Tensor) -> None:
        goal = 1 if self._world_model.metadata.goal_conditioned else 0
        self._recent.append(frames)
        del self._recent[goal]

    def _embed_action(self, action: Tensor | None) -> Tensor | None:
        """(B, D) or (B, N, D) to what the separators of all rows take, (B N, width); None for an action-free model."""
        transformer = self._world_model.transformer
        _check_actions(action, self._world_model.action_dim, len(self.prompt), self.num_samples, ())
        if action is None or not isinstance(transformer, HeadModelWithAction):
            return None
        action = action.to(self._world_model.device, torch.float32)
        normalise = self._world_model.metadata.action_normalization
        action = normalise(action) if normalise else action
        if action.ndim == 2:
            action = action[:, None].expand(-1, self.num_samples, -1)
        return transformer.embed_actions(action.flatten(0, 1))

    def _reward(self, reward: Tensor | None) -> Tensor | None:
        """(B N,) as predicted to (B, N) in environment units."""
        if reward is None:
            return None
        return self._by_sample(symexp(reward) if self._world_model.metadata.symlog else reward)

    def _by_sample(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, self.num_samples))


def fastest_precisions(device: torch.device, backend: str = "auto") -> tuple[torch.dtype, torch.dtype]:
    """Return the precisions of the tokenizer and the transformer: bfloat16 where it is faster than float32.

    IVIDEOGPT_BFLOAT16 decides in place of the device (:func:`ivideogpt.precision.forced_bfloat16`).
    """
    forced = forced_bfloat16()
    if forced is not None:
        precision = torch.bfloat16 if forced else torch.float32
        return precision, precision
    if device.type == "cuda":
        precision = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
        return precision, precision
    if device.type != "cpu":
        return torch.float32, torch.float32
    products = torch.bfloat16 if kernels.multiplies_bfloat16() else torch.float32
    if backend in ("auto", "cpu_kernels") and kernels.library() is not None:
        return products, torch.bfloat16  # decoding waits for weights to come from memory, of which there are half
    return products, products


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): the space in which rewards may be trained."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; afterwards every submodule has the mode it had."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


def _check_context(context: Tensor, world_model: WorldModel, batch: int | None = None) -> None:
    """``batch`` is the number of clips that must be given; None for any but none."""
    length, resolution = world_model.tokenizer.context_length, world_model.tokenizer.config.resolution
    expected = (length, world_model.tokenizer.config.in_channels, resolution, resolution)
    fits = len(context) > 0 if batch is None else len(context) == batch
    if context.ndim != 5 or not fits or tuple(context.shape[1:]) != expected:
        raise UserError(
            f"context frames have shape {tuple(context.shape)}, expected (batch, context, channels, height, width) = "
            f"({'any' if batch is None else batch}, {', '.join(map(str, expected))})"
        )
    check_range(context, "context frames")


def _check_actions(
    actions: Tensor | None, action_dim: int | None, batch: int, num_samples: int, frames: tuple[int, ...]
) -> None:
    """Actions must be (B, *frames, D) or (B, N, *frames, D) for a model with ``action_dim``, else None."""
    if action_dim is None:
        if actions is not None:
            raise UserError("this model is action-free: call step or predict without actions")
        return
    if actions is None:
        raise UserError(f"this model is action-conditioned: give an action of {action_dim} numbers for every frame")
    shared, per_sample = (batch, *frames, action_dim), (batch, num_samples, *frames, action_dim)
    if tuple(actions.shape) not in (shared, per_sample):
        raise UserError(f"actions have shape {tuple(actions.shape)}, expected {shared} or, by sample, {per_sample}")
    # looking at numbers on another device would make every step wait for it
    if actions.device.type == "cpu" and not actions.isfinite().all():
        raise UserError("actions hold NaN or infinity")
