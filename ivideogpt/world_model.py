"""A world model: load it, save it, start a :class:`~ivideogpt.session.Session` with it, predict.

::

    world_model = WorldModel.from_pretrained(folder)
    session = world_model.start(context)          # (B, t, 3, H, W) in [0, 1]
    step = session.step(action)                   # step.frames (B, N, 3, H, W), step.reward (B, N) or None

Dimension keys: B clips, N samples of each, t context frames, F future frames, C H W pixels, D action dimension,
L tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.files import atomic_folder
from ivideogpt.layout import TokenLayout
from ivideogpt.metadata import RELEASED_SEGMENT_LENGTH, ModelMetadata
from ivideogpt.precision import forced_bfloat16, precision
from ivideogpt.pretrained import (
    Transformer,
    language_model,
    load_tokenizer,
    load_transformer,
    model_folder,
    save_transformer,
)
from ivideogpt.session import OnFull, Seed, Session, SessionOptions, Step, check_actions, evaluating, symexp, symlog
from ivideogpt.transformer import DecodeBackend, HeadModelWithAction, Sampling, check_backend, open_backend
from ivideogpt.transformer.backends.cpu_kernels import kernels
from ivideogpt.vq_model import CompressiveVQModel

__all__ = [
    "Rollout", "Session", "SessionOptions", "Step", "WorldModel",
    "evaluating", "fastest_precisions", "symexp", "symlog",
]  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """A predicted future.

    Attributes:
        context: (B, t, C, H, W) reconstructed, in [0, 1].
        frames: (B, N, F, C, H, W) in [0, 1]; (B, N, F, 0, H, W) if they were not wanted.
        rewards: (B, N, F) in environment units; None without a reward head.
        successes: (B, N, F) probabilities; None without a success head.
        tokens: (B, N, L) context and future as one sequence (see :mod:`ivideogpt.layout`). If the session slid, the
            later ones belong to a later context that is not among them.
    """

    context: Tensor
    frames: Tensor
    rewards: Tensor | None
    tokens: Tensor
    successes: Tensor | None = None


class WorldModel:
    """A tokenizer and a transformer that belong together, with the metadata that is needed to use them.

    The modules may be in training elsewhere: a new session reads the weights as they are then, works without dropout,
    and leaves their mode as it was. Train them between sessions, not during one.
    """

    def __init__(
        self,
        tokenizer: CompressiveVQModel,
        transformer: Transformer,
        metadata: ModelMetadata | None = None,
        backend: str = "auto",
        action_space: str | None = None,
    ) -> None:
        check_backend(backend)
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.metadata = metadata or ModelMetadata.infer(tokenizer, transformer)
        self.backend = backend
        self.action_space = action_space
        self._decode_backend: DecodeBackend | None = None
        self._check_parts()
        if action_space is not None:
            self.metadata.find_space(action_space)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str = "auto",
        action_space: str | None = None,
    ) -> WorldModel:
        """Load a model folder (or its tokenizer's folder) or a hub id.

        Args:
            dtype: float32 if not given; a name such as "bfloat16" will do. "auto" takes what the device is fastest in,
                which may be another precision for the tokenizer than for the transformer: samples follow the same
                distribution up to rounding.
            backend: what decodes tokens: "torch" anywhere, "cpu_kernels", "cuda_graph", or a registered one; "auto"
                takes the fastest that runs on the device.
            action_space: robot whose actions callers give, for models of several; sessions may choose another.
        """
        check_backend(backend)
        dtype = precision(dtype) if isinstance(dtype, str) else dtype
        folder = model_folder(path_or_hub_id)
        metadata = ModelMetadata.read(folder)
        precisions = fastest_precisions(torch.device(device or "cpu"), backend) if dtype == "auto" else (dtype, dtype)
        tokenizer = load_tokenizer(folder, precisions[0])
        segment_length = metadata.segment_length if metadata else RELEASED_SEGMENT_LENGTH
        layout = tokenizer.layout(segment_length - tokenizer.context_length)
        transformer = load_transformer(folder, layout, dtype=precisions[1])
        tokenizer.to(memory_format=torch.channels_last)  # convolutions are 1.1 to 1.6 times as fast
        return cls(tokenizer, transformer, metadata, backend, action_space).to(device or "cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and other processes get: compiled kernels are opened again there."""
        return vars(self) | {"_decode_backend": None}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write both networks and the metadata; ``dtype`` may be a 16-bit one to halve the files.

        A model that is there already is replaced once all of this one is written.
        """
        with atomic_folder(folder) as written:
            self.tokenizer.save_pretrained(written / "tokenizer", dtype)
            save_transformer(self.transformer, written / "transformer", dtype)
            self.metadata.write(written)

    def push_to_hub(self, repo_id: str, private: bool = False, dtype: torch.dtype | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes, creating the repository if there is none. Returns its address."""
        import huggingface_hub

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
        """Length of an action that callers give, of the chosen space if there are several; None for action-free models.

        Raises:
            UserError: the model has several action spaces, and none was chosen.
        """
        space = self.metadata.find_space(self.action_space)
        return self.metadata.action_dim if space is None else space.dim

    @property
    def action_bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Usual lowest and highest action (D,) of the chosen space: :meth:`ModelMetadata.action_bounds`."""
        return self.metadata.action_bounds(self.action_space)

    @property
    def reward_head(self) -> nn.Linear | None:
        return self.transformer.reward_linear if isinstance(self.transformer, HeadModelWithAction) else None

    @property
    def success_head(self) -> nn.Linear | None:
        return self.transformer.success_linear if isinstance(self.transformer, HeadModelWithAction) else None

    @property
    def layout(self) -> TokenLayout:
        """Token layout of clips of the model's segment length."""
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
        common_noise: bool = False,
        action_space: str | None = None,
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
            common_noise: all samples of a clip draw the same random numbers: only their actions tell them apart.
            action_space: robot whose actions are given, in place of the model's choice.
        """
        options = SessionOptions(
            num_samples, sampling, seed, on_full, max_frames, clip_numbers, first_sample, common_noise, action_space
        )
        return Session(self, context, options)

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
        common_noise: bool = False,
        action_space: str | None = None,
        with_frames: bool = True,
    ) -> Rollout:
        """Predict ``horizon`` frames: by default one an action, else to the end of the model's segment length.

        ``actions`` is (B, F, D), or (B, N, F, D) for different ones per sample; the first is taken at the last context
        frame, so of a clip's actions it is ``layout.to_future``. ``with_frames=False`` leaves out the frames, on which
        most of the time is spent: rewards, successes and tokens are the same. Other arguments as in :meth:`start`.
        """
        if horizon is None:
            horizon = self.layout.future_frames if actions is None or actions.ndim < 2 else actions.shape[-2]
        if horizon < 1:
            raise UserError(f"horizon is {horizon}, must be at least 1")
        options = SessionOptions(
            num_samples, sampling, seed, on_full, horizon, clip_numbers, first_sample, common_noise, action_space,
            with_frames,
        )  # fmt: skip
        session = Session(self, context, options)
        check_actions(actions, session.action_dim, len(context), num_samples, (horizon,))
        session.check_room(horizon)
        step_actions = [None] * horizon if actions is None else actions.unbind(-2)
        steps = [session.step(action) for action in step_actions]
        rewards = [step.reward for step in steps if step.reward is not None]
        successes = [step.success for step in steps if step.success is not None]
        prompt = session.prompt[:, None, :-1].expand(-1, num_samples, -1)
        return Rollout(
            context=session.context,
            frames=torch.stack([step.frames for step in steps], dim=2),
            rewards=torch.stack(rewards, dim=2) if rewards else None,
            tokens=torch.cat([prompt, *(step.tokens for step in steps)], dim=2),
            successes=torch.stack(successes, dim=2) if successes else None,
        )

    def decode_backend(self) -> DecodeBackend:
        """Return the backend that decodes tokens, with the weights as they are now."""
        self._decode_backend = open_backend(self.backend, language_model(self.transformer), self._decode_backend)
        return self._decode_backend

    def _check_parts(self) -> None:
        context_length = self.tokenizer.context_length
        vocabulary = language_model(self.transformer).config.vocab_size
        if vocabulary != self.tokenizer.layout(0).vocab_size:
            raise UserError(
                f"the transformer's vocabulary is {vocabulary}, the tokenizer's {self.tokenizer.layout(0).vocab_size}: "
                "they do not belong together"
            )
        if isinstance(self.transformer, HeadModelWithAction) and self.transformer.context != context_length:
            found = self.transformer.context
            raise UserError(f"the transformer has {found} context frames, the tokenizer {context_length}")
        stated = (self.metadata.resolution, self.metadata.context_length, self.metadata.action_dim)
        action_dim = self.transformer.action_dim if isinstance(self.transformer, HeadModelWithAction) else None
        actual = (self.tokenizer.config.resolution, context_length, action_dim)
        if stated != actual:
            names = "resolution, context_length, action_dim"
            raise UserError(f"the metadata says {names} = {stated}, but the networks have {actual}")


def fastest_precisions(device: torch.device, backend: str = "auto") -> tuple[torch.dtype, torch.dtype]:
    """Return the precisions of the tokenizer and the transformer: bfloat16 where it is faster than float32.

    IVIDEOGPT_BFLOAT16 decides in place of the device (:func:`ivideogpt.precision.forced_bfloat16`).
    """
    forced = forced_bfloat16()
    if forced is not None:
        is_faster = forced
    elif device.type == "cuda":
        is_faster = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        is_faster = device.type == "cpu" and kernels.multiplies_bfloat16()
    products = torch.bfloat16 if is_faster else torch.float32
    if forced is None and device.type == "cpu" and backend in ("auto", "cpu_kernels") and kernels.library() is not None:
        return products, torch.bfloat16  # decoding waits for weights to come from memory, of which there are half
    return products, products
