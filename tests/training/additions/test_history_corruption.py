"""Leaks from the future and moved labels would train a model that predicts well only in training."""

import torch

from ivideogpt.layout import FrameTokens, TokenLayout
from ivideogpt.training.additions.history_corruption import with_stale_tokens

LAYOUT = TokenLayout(context_frames=2, future_frames=5, context_codes=30, dynamics_codes=100)


def test_replaced_tokens_are_older_ones_of_the_same_place():
    torch.manual_seed(0)
    frame_and_place = torch.arange(5 * 16).reshape(1, 5, 16).expand(64, -1, -1)  # every code tells where it is from
    tokens = LAYOUT.pack(FrameTokens(torch.randint(30, (64, 2, 256)), frame_and_place))
    stale = with_stale_tokens(tokens, LAYOUT, max_share=0.9)
    assert torch.equal(stale[:, : LAYOUT.prompt_length], tokens[:, : LAYOUT.prompt_length])
    assert torch.equal(stale == LAYOUT.future_separator, tokens == LAYOUT.future_separator)
    before, after = frame_and_place, LAYOUT.unpack(stale).dynamics
    assert torch.equal(after % 16, before % 16)
    age = (before - after) // 16
    assert age.min() == 0
    assert age.max() == 4
    assert 0.2 < (age > 0).float().mean() < 0.4  # 0.9 * 2 / 3 on average, less where the own frame is drawn
    assert (age > 0).float().mean(dim=(1, 2)).std() > 0.1  # each clip has a share of its own
    stale_from = [set((clip // 16)[of > 0].tolist()) for clip, of in zip(after, age, strict=True)]
    stand_still = sum(len(frames) <= 1 for frames in stale_from)
    assert 16 < stand_still < 48  # half of 64


def test_no_share_changes_nothing():
    tokens = LAYOUT.pack(FrameTokens(torch.randint(30, (2, 2, 256)), torch.randint(100, (2, 5, 16))))
    assert torch.equal(with_stale_tokens(tokens, LAYOUT, max_share=0.0), tokens)
