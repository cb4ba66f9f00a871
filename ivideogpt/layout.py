"""The position and the id range of every token of a clip. Knows no network.

::

    context frame 0   SCF   context frame 1   SDF   future 0   SDF   future 1   ...   SDF   future F-1
    0 ........ 255    256   257 ........ 512  513   514..529   530   531..546         ...   L-16 .. L-1     (t = 2)
    |<--------------- prompt: 257 t tokens ----->|

SCF (here ``frame_separator``) stands between context frames, SDF (``future_separator``) in front of every future frame.
Ids: context codes, then dynamics codes, then SCF, then SDF (iVideoGPT, section 3.1 and appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CONTEXT_GRID = 16  # a context frame is 16 x 16 codes at every resolution
DYNAMICS_GRID = 4  # a future frame is 4 x 4 codes
IGNORED_LABEL = -100


@dataclass(frozen=True)
class FrameTokens:
    """Codes of a clip, local to their codebooks: ``context`` (B, t, 256) and ``dynamics`` (B, F, 16), int64."""

    context: Tensor
    dynamics: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Token arithmetic for clips of ``context_frames`` + ``future_frames`` frames.

    ``context_codes`` and ``dynamics_codes`` are the codebook sizes. All positions count from the start of the sequence.
    """

    context_frames: int
    future_frames: int
    context_codes: int
    dynamics_codes: int
    context_tokens: int = CONTEXT_GRID**2
    dynamics_tokens: int = DYNAMICS_GRID**2

    def __post_init__(self) -> None:
        if self.context_frames < 1 or self.future_frames < 0:
            raise ValueError(
                f"a clip needs at least one context frame and no negative number of future frames, got "
                f"context_frames={self.context_frames}, future_frames={self.future_frames}"
            )

    @property
    def num_frames(self) -> int:
        return self.context_frames + self.future_frames

    @property
    def frame_separator(self) -> int:
        return self.context_codes + self.dynamics_codes

    @property
    def future_separator(self) -> int:
        return self.frame_separator + 1

    @property
    def vocab_size(self) -> int:
        return self.context_codes + self.dynamics_codes + 2

    @property
    def prompt_length(self) -> int:
        """Number of tokens of all context frames and the first future separator."""
        return (self.context_tokens + 1) * self.context_frames

    @property
    def step_length(self) -> int:
        """Number of tokens that one more future frame adds: its separator and its codes."""
        return self.dynamics_tokens + 1

    @property
    def sequence_length(self) -> int:
        return self.prompt_length - 1 + self.step_length * self.future_frames

    @property
    def action_positions(self) -> Tensor:
        """(F,) positions of the separators in front of future frames, whose embeddings take the actions."""
        return self.prompt_length - 1 + self.step_length * torch.arange(self.future_frames)

    @property
    def reward_positions(self) -> Tensor:
        """(F,) positions of each future frame's last token, whose hidden states give the rewards."""
        return self.action_positions + self.dynamics_tokens

    def to_future(self, series: Tensor) -> Tensor:
        """Select the actions, or their rewards, that lead to the future frames: (B, T, ...) to (B, F, ...).

        ``action[i]`` is taken at frame i and leads to frame i + 1; ``reward[i]`` is earned by it.
        """
        first = self.context_frames - 1
        return series[:, first : first + self.future_frames]

    def with_future_frames(self, future_frames: int) -> TokenLayout:
        return replace(self, future_frames=future_frames)

    def future_frames_that_fit(self, num_positions: int) -> int:
        """Return how many future frames a model with ``num_positions`` positions can hold after the prompt."""
        return max((num_positions - self.prompt_length + 1) // self.step_length, 0)

    def future_frames_in(self, sequence_length: int) -> int:
        """Return the number of future frames in a sequence of this length (a final separator does not count).

        Raises:
            ValueError: the length is not that of a whole number of frames.
        """
        future_frames, rest = divmod(sequence_length - (self.prompt_length - 1), self.step_length)
        if future_frames < 0 or rest not in (0, 1):
            raise ValueError(
                f"{sequence_length} tokens are no whole number of frames: with {self.context_frames} context frames "
                f"a sequence has {self.prompt_length - 1} + {self.step_length} F tokens"
            )
        return future_frames

    def pack(self, codes: FrameTokens) -> Tensor:
        """Join codes into one flat sequence of ids, (B, sequence_length) int64."""
        prompt = self.pack_context(codes.context)
        return torch.cat([prompt[:, :-1], self.pack_dynamics(codes.dynamics)], dim=1)

    def pack_context(self, context: Tensor) -> Tensor:
        """Join context codes (B, t, 256) into the prompt (B, 257 t), which ends with the first future separator."""
        batch = context.shape[0]
        prompt = context.new_full((batch, self.context_frames, self.context_tokens + 1), self.frame_separator)
        prompt[:, :, :-1] = context
        prompt[:, -1, -1] = self.future_separator
        return prompt.flatten(1)

    def pack_dynamics(self, dynamics: Tensor) -> Tensor:
        """Join dynamics codes (B, n, 16) into n frames of ids (B, 17 n), each with its separator in front."""
        batch, frames = dynamics.shape[:2]
        ids = dynamics.new_full((batch, frames, self.step_length), self.future_separator)
        ids[:, :, 1:] = dynamics + self.context_codes
        return ids.flatten(1)

    def unpack(self, ids: Tensor) -> FrameTokens:
        """Split flat ids into codes. Separators are ignored, dynamics positions are clamped into their range."""
        frames = self.future_frames_in(ids.shape[1])
        first = self.prompt_length - 1
        dynamics = ids[:, first : first + frames * self.step_length].unflatten(1, (frames, self.step_length))[:, :, 1:]
        return FrameTokens(context=self.unpack_context(ids), dynamics=self.local_dynamics(dynamics))

    def unpack_context(self, ids: Tensor) -> Tensor:
        """Return the context codes (B, t, 256) of a sequence that begins with a prompt; the rest of it is ignored."""
        context = ids[:, : self.prompt_length - 1]
        context = torch.cat([context, context.new_zeros(len(ids), 1)], dim=1)
        return context.unflatten(1, (self.context_frames, self.context_tokens + 1))[:, :, :-1]

    def local_dynamics(self, ids: Tensor) -> Tensor:
        """Convert ids at dynamics positions to codes of the dynamics codebook, clamped into its range."""
        return (ids - self.context_codes).clamp(0, self.dynamics_codes - 1)

    def labels(self, ids: Tensor) -> Tensor:
        """Return next-token targets: the ids, with ``IGNORED_LABEL`` up to and including the first future separator."""
        labels = ids.clone()
        labels[:, : self.prompt_length] = IGNORED_LABEL
        return labels
