"""Captured frames on a GPU against the same frames drawn kernel by kernel."""

from __future__ import annotations

import pytest
import torch

from ivideogpt.transformer import FrameDecoder, FrameModel, RandomStreams, Sampling, open_backend
from tests.parity.formulas import fill
from tests.transformer.test_decoder import EXPECTED, LAYOUT, PROMPT, VECTORS, llm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "sampling", [Sampling(greedy=True), Sampling(top_k=20), EXPECTED], ids=["greedy", "sampled", "expected"]
)
@pytest.mark.parametrize("has_reward_head", [False, True])
def test_a_gpu_replays_what_it_would_compute(sampling, has_reward_head):
    """Three rows in a bucket for four, over windows, with a row that begins anew in the middle of one."""
    model, prompts = llm().cuda(), torch.cat([PROMPT, PROMPT[:1]]).cuda()
    reward_head = fill(torch.nn.Linear(64, 1)).cuda() if has_reward_head else None
    actions = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).cuda()
    results = []
    for name in ("torch", "auto"):
        frame_model = FrameModel(open_backend(name, model), LAYOUT, sampling, reward_head, VECTORS.cuda())
        decoder = FrameDecoder(frame_model, RandomStreams.of_clips(0, torch.arange(3)))
        frames = []
        for _ in range(3):
            decoder.prefill(prompts)
            frames += [decoder.step(actions), decoder.step(-actions)]
            decoder.reset_rows(torch.tensor([1]).cuda(), prompts[:1])
            frames.append(decoder.step(actions))
        results.append(frames)
    assert frame_model.backend.borrow_buffers(frame_model, 3, decoder.cache.capacity) is not None, "capturing works"
    assert torch.equal(*(torch.cat([frame.tokens for frame in frames]) for frames in results))
    if has_reward_head:
        rewards = (torch.cat([frame.reward for frame in frames]) for frames in results)
        torch.testing.assert_close(*rewards, atol=1e-3, rtol=1e-3)
