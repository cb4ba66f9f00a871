"""History corruption: training inputs that lag behind, as a model's own rollouts do. Knows layouts; knows no model."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.layout import FrameTokens, TokenLayout


def with_stale_tokens(tokens: Tensor, layout: TokenLayout, max_share: float) -> Tensor:
    """Return the input (B, L) with some dynamics tokens replaced by those of the same position in an earlier frame.

    Most tokens equal those of the frame before, so a transformer first learns to repeat them, and its rollouts stand
    still whatever the actions say. A history that cannot be trusted leaves context and actions to predict from. In
    half of the clips these tokens come from one frame, as if the robot had stood still since then; in the others each
    comes from a frame of its own. Labels stay what they are.

    Args:
        max_share: the share of a clip's tokens that is replaced is this times the root of a uniform number: mostly a
            large one.
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
