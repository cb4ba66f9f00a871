from __future__ import annotations

import pytest
import torch

from ivideogpt.layout import IGNORED_LABEL, FrameTokens, TokenLayout


def layout(context_frames: int = 2, future_frames: int = 14) -> TokenLayout:
    return TokenLayout(context_frames, future_frames, context_codes=8192, dynamics_codes=8192)


def codes(of: TokenLayout, batch: int = 2) -> FrameTokens:
    generator = torch.Generator().manual_seed(0)
    return FrameTokens(
        context=torch.randint(of.context_codes, (batch, of.context_frames, 256), generator=generator),
        dynamics=torch.randint(of.dynamics_codes, (batch, of.future_frames, 16), generator=generator),
    )


def test_numbers_of_the_released_models():
    assert (layout().frame_separator, layout().future_separator, layout().vocab_size) == (16384, 16385, 16386)
    assert (layout().prompt_length, layout().sequence_length, layout().step_length) == (514, 257 * 2 - 1 + 17 * 14, 17)
    assert layout().future_frames_that_fit(1024) == 30


def test_the_drawing_in_the_docstring():
    """The indices drawn in the module are those that pack gives."""
    of = layout(future_frames=3)
    ids = of.pack(codes(of))[0]
    assert ids[256] == of.frame_separator
    assert [ids[513], ids[530]] == [of.future_separator] * 2
    assert [i for i, token in enumerate(ids.tolist()) if token >= of.frame_separator] == [256, 513, 530, 547]
    assert len(ids) == 564


@pytest.mark.parametrize("context_frames", [1, 2, 3])
@pytest.mark.parametrize("future_frames", [1, 4])
def test_unpack_inverts_pack(context_frames, future_frames):
    of = layout(context_frames, future_frames)
    expected = codes(of)
    ids = of.pack(expected)
    assert ids.shape == (2, of.sequence_length)
    unpacked = of.unpack(ids)
    assert torch.equal(unpacked.context, expected.context)
    assert torch.equal(unpacked.dynamics, expected.dynamics)


def test_unpack_ignores_separators_and_clamps_dynamics():
    """Sampled separators may hold any id, and a sampled dynamics token may leave its codebook."""
    of = layout(1, 2)
    expected = codes(of)
    ids = of.pack(expected)
    ids[:, of.action_positions] = 5
    ids[:, of.prompt_length] = 3
    ids[:, of.prompt_length + 1] = of.future_separator
    unpacked = of.unpack(ids)
    assert unpacked.dynamics[:, 0, :2].tolist() == [[0, 8191]] * 2
    assert torch.equal(unpacked.dynamics[:, 0, 2:], expected.dynamics[:, 0, 2:])
    assert torch.equal(unpacked.dynamics[:, 1], expected.dynamics[:, 1])


def test_labels_start_after_the_first_future_separator():
    of = layout()
    ids = of.pack(codes(of))
    labels = of.labels(ids)
    assert (labels[:, :514] == IGNORED_LABEL).all()
    assert torch.equal(labels[:, 514:], ids[:, 514:])


@pytest.mark.parametrize("context_frames", [1, 2, 3])
def test_actions_enter_at_separators_and_rewards_leave_at_last_tokens(context_frames):
    of = layout(context_frames, 3)
    ids = of.pack(codes(of))
    assert (ids[:, of.action_positions] == of.future_separator).all()
    assert of.reward_positions.tolist() == [*(of.action_positions[1:] - 1).tolist(), of.sequence_length - 1]


def test_lengths_that_are_no_clip_are_refused():
    of = layout()
    assert of.future_frames_in(of.sequence_length) == of.future_frames_in(of.sequence_length + 1) == 14
    assert of.future_frames_in(of.prompt_length) == 0
    with pytest.raises(ValueError, match="no whole number of frames"):
        of.future_frames_in(of.sequence_length + 2)


def test_the_action_at_the_last_context_frame_leads_to_the_first_future_frame():
    """One step off, a model learns that nothing it does matters for the frame at hand."""
    layout, actions = TokenLayout(2, 3, 8, 8), torch.arange(5)[None, :, None]
    assert layout.to_future(actions).flatten().tolist() == [1, 2, 3]
    assert layout.to_future(actions.flatten(1)).flatten().tolist() == [1, 2, 3]
