"""Histories that lag behind, as a model's own do. Knows token layouts; knows no model."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.layout import FrameTokens, TokenLayout


def with_stale_tokens(tokens: Tensor, layout: TokenLayout, max_share: float) -> Tensor:
    """The input (B, L) with some dynamics tokens replaced by those of the same place in an earlier future frame.

    Most tokens equal those of the frame before, so a transformer first learns to repeat them, and its rollouts stand
    still whatever the actions say. A history that cannot be trusted leaves context and actions to predict from. Labels
    stay what they are.

    Args:
        max_share: the share of a clip's tokens that is replaced is drawn uniformly from 0 to this.
    """
    codes = layout.unpack(tokens)
    shape = codes.dynamics.shape
    share = max_share * torch.rand(shape[0], 1, 1, device=tokens.device)
    is_stale = torch.rand(shape, device=tokens.device) < share
    age = torch.arange(1, shape[1] + 1, device=tokens.device)[:, None]
    earlier = (torch.rand(shape, device=tokens.device) * age).long()  # any frame up to its own: nothing of the future
    dynamics = torch.where(is_stale, codes.dynamics.gather(1, earlier), codes.dynamics)
    return layout.pack(FrameTokens(codes.context, dynamics))
