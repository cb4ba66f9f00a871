"""Losses against numbers worked out by hand: weights, shares and above all which reward belongs to which frame."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ivideogpt.layout import TokenLayout
from ivideogpt.losses import (
    TokenizerLoss,
    adaptive_weight,
    hinge_loss,
    moving_patches,
    transformer_loss,
)
from tests.parity import networks
from tests.parity.formulas import actions, golden

CONTEXT, FUTURE = 2, 4


@pytest.fixture
def frames():
    return torch.full((3, CONTEXT + FUTURE, 3, 8, 8), 0.5)


def output(frames, context_error=0.0, future_error=0.0):
    """A tokenizer's output that is off by so much everywhere, with commitment losses 5 and 7."""
    return SimpleNamespace(
        ref_sample=frames[:, :CONTEXT].flatten(0, 1) + context_error,
        sample=frames[:, CONTEXT:].flatten(0, 1) + future_error,
        commit_loss=torch.tensor(5.0),
        dyn_commit_loss=torch.tensor(7.0),
    )


def loss(config, frames, out, lpips=None):
    return replace(config, lpips=lpips)(frames, out, CONTEXT)


@pytest.mark.parametrize(("kind", "context", "future"), [("l1", 0.1, 0.3), ("l2", 0.01, 0.09)])
def test_reconstruction_is_weighted_and_commitment_is_not(frames, kind, context, future):
    terms = loss(TokenizerLoss(kind, recon_weight=2.0), frames, output(frames, 0.1, 0.3))
    assert terms.parts["ref_recon"].item() == pytest.approx(context)
    assert terms.parts["recon"].item() == pytest.approx(future)
    assert terms.total.item() == pytest.approx(2 * (context + future) + 5 + 7)


def test_balanced_loss_weighs_by_the_number_of_frames(frames):
    """F/T for the future and t/T for the context, not the other way round, and never the commitment."""
    terms = loss(TokenizerLoss(balanced=True), frames, output(frames, 0.1, 0.3))
    assert terms.total.item() == pytest.approx(0.3 * 4 / 6 + 0.1 * 2 / 6 + 12)


class BrightnessDistance(nn.Module):
    """Stands in for LPIPS: the difference of mean brightness, and a note of the range that it was given."""

    def features(self, frames):
        return [frames.mean(dim=(1, 2, 3))]

    def distance(self, ours, theirs):
        assert theirs[0].unique().tolist() == [0.0]  # frames of 0.5 as they are in [-1, 1]
        return (ours[0] - theirs[0]).abs()


def test_lpips_sees_frames_in_minus_one_to_one(frames):
    terms = loss(TokenizerLoss(perc_weight=10.0), frames, output(frames, 0.1, 0.3), BrightnessDistance())
    assert terms.parts["ref_perc"].item() == pytest.approx(0.2)
    assert terms.parts["perc"].item() == pytest.approx(0.6)
    assert terms.total.item() == pytest.approx(0.1 + 0.3 + 10 * (0.2 + 0.6) + 12, rel=1e-5)


def test_motion_weight_counts_pixels_that_left_the_last_context_frame(frames):
    """Half of the last future frame has moved in full: an eighth of all future pixels counts three times more."""
    frames[:, -1, :, :4] += 0.2
    terms = loss(TokenizerLoss(motion_weight=3.0), frames, output(frames, 0.0, 0.3))
    assert terms.parts["recon"].item() == pytest.approx(0.3 * (1 + 3 / 8))


def test_gradient_weight_punishes_lost_edges_only(frames):
    config = TokenizerLoss(gradient_weight=1.0)
    assert loss(config, frames, output(frames, 0.1, 0.3)).parts["gradient"].item() == pytest.approx(0, abs=1e-6)
    edge = output(frames)
    edge.sample[:, :, 4:] += 0.7  # one of seven horizontal lines between rows
    assert loss(config, frames, edge).parts["gradient"].item() == pytest.approx(0.7 / 7)


def test_still_weight_wants_short_latents_where_nothing_moves():
    frames = torch.full((1, CONTEXT + 1, 3, 64, 64), 0.5)
    frames[0, 0] = 0  # only the last context frame is compared with
    frames[0, -1, 2, 20, 50] += 0.1  # one pixel, of the patch in row 1, column 3
    moving = moving_patches(frames, CONTEXT)
    assert moving.nonzero().tolist() == [[0, 7]]
    out = output(frames)
    out.dynamics_latents = torch.full((1, 16, 5), 3.0).masked_fill(moving[..., None], 6.0).requires_grad_()
    terms = loss(TokenizerLoss(still_weight=2.0), frames, out)
    assert terms.parts["still"].item() == pytest.approx(9 / 36)
    assert terms.total.item() == pytest.approx(12 + 2 * 9 / 36)
    terms.total.backward()
    assert not out.dynamics_latents.grad[moving].any()  # longer latents elsewhere would be no gain
    at_rest = frames[:, 1:2].expand(-1, CONTEXT + 1, -1, -1, -1)
    assert loss(TokenizerLoss(still_weight=2.0), at_rest, out).parts["still"] == 0  # there is no length to go by


class RewardsByFrame(nn.Module):
    """Predicts 10, 11, ... for the future frames of a clip."""

    def forward(self, input_ids, labels, action, past_key_values=None):
        zero = torch.zeros(())
        outputs = SimpleNamespace(loss=zero, cross_entropy=zero, action_recon_loss=None)
        return outputs, (10.0 + torch.arange(FUTURE)).expand(len(input_ids), -1)[..., None]


def test_future_frame_k_is_rewarded_for_the_action_that_led_to_it():
    """The released code trained on rewards one step late. rewards[:, j] is what actions[:, j] earned at frame j."""
    layout = TokenLayout(CONTEXT, FUTURE, context_codes=8, dynamics_codes=8)
    tokens = torch.zeros(3, layout.sequence_length, dtype=torch.int64)
    rewards = (10.0 - (CONTEXT - 1) + torch.arange(CONTEXT + FUTURE)).expand(3, -1)
    terms = transformer_loss(RewardsByFrame(), tokens, layout, torch.zeros(3, 6, 4), rewards)
    assert terms.parts["reward"].item() == 0
    late = transformer_loss(RewardsByFrame(), tokens, layout, torch.zeros(3, 6, 4), rewards - 1, reward_weight=0.5)
    assert late.total.item() == pytest.approx(0.5)


class SuccessesByFrame(nn.Module):
    """Is sure that the second future frame alone is a success."""

    def forward(self, input_ids, labels, action, past_key_values=None):
        zero = torch.zeros(())
        logits = torch.full((len(input_ids), FUTURE, 1), -30.0)
        logits[:, 1] = 30
        return SimpleNamespace(loss=zero, cross_entropy=zero, action_recon_loss=None, success_logits=logits)


def test_future_frame_k_succeeds_by_the_action_that_led_to_it():
    layout = TokenLayout(CONTEXT, FUTURE, context_codes=8, dynamics_codes=8)
    tokens, taken = torch.zeros(3, layout.sequence_length, dtype=torch.int64), torch.zeros(3, 6, 4)
    successes = torch.zeros(3, CONTEXT + FUTURE)
    successes[:, CONTEXT] = 1  # by the action that is taken at the first future frame
    terms = transformer_loss(SuccessesByFrame(), tokens, layout, taken, successes=successes)
    assert terms.total.item() == terms.parts["success"].item() == pytest.approx(0, abs=1e-6)
    late = transformer_loss(SuccessesByFrame(), tokens, layout, taken, successes=successes.roll(1, 1))
    assert late.total.item() == pytest.approx(2 * 30 / FUTURE)
    lighter = transformer_loss(
        SuccessesByFrame(), tokens, layout, taken, successes=successes.roll(1, 1), success_weight=0.5
    )
    assert lighter.total.item() == pytest.approx(30 / FUTURE)
    assert lighter.parts["success"] == late.parts["success"]


def test_parts_are_unweighted_and_the_cross_entropy_is_pure():
    """Action reconstruction inside the logged cross-entropy would make runs with and without it incomparable."""
    record = golden()["transformer"]["ctx2"]["act_cond"]
    model = networks.transformer(
        networks.tokenizer(), action_dim=4, reward_prediction=True, action_recon=record["action_recon_weight"]
    )
    tokens = torch.tensor(golden()["tokenizer"]["ctx2_64"]["tokens"])
    layout = model.layout.with_future_frames(FUTURE)
    with torch.no_grad():
        terms = transformer_loss(model, tokens, layout, actions(len(tokens), CONTEXT + FUTURE, 4))
    reconstruction = record["action_recon_loss"]
    assert terms.parts["action_recon"].item() == pytest.approx(reconstruction, abs=1e-4)
    assert terms.parts["ce"].item() == pytest.approx(record["loss"] - 0.5 * reconstruction, abs=1e-4)
    assert terms.total.item() == pytest.approx(record["loss"], abs=1e-4)


def test_hinge_loss_is_content_with_what_is_beyond_the_margin():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.25 + 0.5)


def test_the_adversarial_gradient_is_made_as_long_as_the_reference():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    reference, gan = 10 * layer.sum(), -0.1 * layer[0]
    assert adaptive_weight(reference, gan, layer).item() == pytest.approx(10 * 2**0.5 / 0.1)
    assert adaptive_weight(reference, 1e-9 * gan, layer) == 1e4
    assert adaptive_weight(reference, 0 * gan, layer) == 1e4
    assert layer.grad is None


def test_an_action_free_models_loss_is_the_mean_over_all_future_tokens():
    model = networks.transformer(networks.tokenizer())
    tokens = torch.tensor(golden()["tokenizer"]["ctx2_64"]["tokens"])
    layout = TokenLayout(CONTEXT, FUTURE, 0, 0)
    with torch.no_grad():
        logits = model(tokens).logits
        expected = torch.nn.functional.cross_entropy(
            logits[:, layout.prompt_length - 1 : -1].flatten(0, 1), tokens[:, layout.prompt_length :].flatten()
        )
        assert transformer_loss(model, tokens, layout).total.item() == pytest.approx(expected.item(), abs=1e-5)


def test_labels_do_not_follow_the_inputs():
    """A model that reads a stale history is to predict the true one."""
    model = networks.transformer(networks.tokenizer(), action_dim=4)
    tokens = torch.tensor(golden()["tokenizer"]["ctx2_64"]["tokens"])
    layout = model.layout.with_future_frames(FUTURE)
    taken = actions(len(tokens), CONTEXT + FUTURE, 4)
    read = tokens.clone()
    read[:, -1] = read[:, -2]
    with torch.no_grad():
        loss = transformer_loss(model, tokens, layout, taken, inputs=read).total
        plain = transformer_loss(model, tokens, layout, taken).total
    assert loss == plain  # nothing is predicted from the last token, and as a label it stays
