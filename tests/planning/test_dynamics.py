"""A world model as dynamics, and objectives of what it predicts, on a tiny real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ivideogpt import Sampling, WorldModel
from ivideogpt.errors import UserError
from ivideogpt.planning import (
    MPPI,
    Classifier,
    Futures,
    LatentError,
    Reward,
    SessionDynamics,
    SquaredError,
    Success,
)
from ivideogpt.session import Session
from tests.parity.formulas import actions, clip
from tests.parity.networks import world_model

SAMPLED = Sampling(temperature=1.2, top_k=20)
HORIZON = 2


@pytest.fixture(scope="module")
def model() -> WorldModel:
    """With both heads; one frame fits after the context, so that plans slide."""
    return world_model(action_dim=4, reward_prediction=True, success_prediction=True, frames_that_fit=1)


@pytest.fixture(scope="module")
def dynamics(model) -> SessionDynamics:
    return SessionDynamics(model, clip(1, 2, 64, 64)[0].clamp(0, 1), sampling=SAMPLED)


CANDIDATES = actions(5, HORIZON, 4)


@pytest.fixture(scope="module")
def futures(dynamics) -> Futures:
    return dynamics(CANDIDATES)


def assert_same(one: Futures, other: Futures) -> None:
    for name in ("frames", "rewards", "successes"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)


def test_predicts_as_the_world_model_does(dynamics, futures, model):
    """Actions that are one off, and heads that are lost on the way."""
    for number in (0, 3):
        rollout = model.predict(
            dynamics.context[None], CANDIDATES[None, number], num_samples=1, sampling=SAMPLED, seed=0
        )
        expected = Futures(rollout.frames[0], rollout.rewards[0], rollout.successes[0])
        parts = (part[number : number + 1] for part in (futures.frames, futures.rewards, futures.successes))
        assert_same(Futures(*parts), expected)


def test_order_of_candidates_does_not_matter(dynamics, futures):
    """With noise of its own for each place, a candidate would win or lose by its place."""
    order = torch.tensor([3, 0, 4, 1, 2])
    parts = (part[order] for part in (futures.frames, futures.rewards, futures.successes))
    assert_same(dynamics(CANDIDATES[order]), Futures(*parts))


def test_equal_candidates_are_equal_only_with_common_noise(dynamics):
    """A difference of scores is a difference of actions, unless it is asked otherwise."""
    equal = CANDIDATES[:1].expand(3, -1, -1)
    together = dynamics(equal).frames
    assert torch.equal(together[0], together[2])
    apart = replace(dynamics, common_noise=False)(equal).frames
    assert not torch.equal(apart[0], apart[2])


@pytest.mark.parametrize("common_noise", [True, False])
def test_small_batches_change_nothing(dynamics, common_noise):
    """A second batch that drew the first one's numbers again."""
    whole = replace(dynamics, common_noise=common_noise)
    assert_same(replace(whole, max_batch=2)(CANDIDATES), whole(CANDIDATES))


def test_context_of_any_length(dynamics, futures):
    """At the start of an episode there are fewer frames than the model wants, later there are more."""
    longer = torch.cat([torch.zeros_like(dynamics.context), dynamics.context])
    assert_same(replace(dynamics, context=longer)(CANDIDATES), futures)
    still = dynamics.context[-1:]
    padded = replace(dynamics, context=torch.cat([still, still]))(CANDIDATES[:1])
    assert_same(replace(dynamics, context=still)(CANDIDATES[:1]), padded)


@pytest.mark.parametrize("frames_that_fit", [1, HORIZON])
def test_heads_without_frames(dynamics, frames_that_fit, monkeypatch):
    """Three quarters of a decision went into frames that nobody looked at; a session that slides needs them."""
    heads = dict(reward_prediction=True, success_prediction=True)
    model, decoded = world_model(action_dim=4, frames_that_fit=frames_that_fit, **heads), []
    whole = replace(dynamics, world_model=model)
    expected = whole(CANDIDATES)
    decode = Session._decode
    monkeypatch.setattr(Session, "_decode", lambda *args: decoded.append(1) or decode(*args))
    without = replace(whole, with_frames=False)(CANDIDATES)
    assert without.frames is None
    torch.testing.assert_close((without.rewards, without.successes), (expected.rewards, expected.successes))
    assert len(decoded) == (HORIZON if frames_that_fit == 1 else 0)


def test_objectives_say_whether_they_read_frames():
    """A sum that forgot one of its parts would have no frames to look at."""
    goal = SquaredError(torch.zeros(3, 64, 64))
    assert [one.reads_frames for one in (Reward(), 2 * Success() + Reward(), goal, Reward() + 0.5 * goal)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_bad_dynamics(dynamics):
    with pytest.raises(UserError, match="action-free"):
        SessionDynamics(world_model(), dynamics.context)
    with pytest.raises(UserError, match=r"\(5, 2, 3\).*4 numbers an action"):
        dynamics(CANDIDATES[..., :3])
    for context in (dynamics.context[None], dynamics.context[:, :, :32], dynamics.context[:0]):
        with pytest.raises(UserError, match=r"context has shape .*, expected \(frames, channels, 64, 64\)"):
            replace(dynamics, context=context)
    with pytest.raises(UserError, match="max_batch is 0"):
        replace(dynamics, max_batch=0)


def test_objectives_add_up_and_scale(futures):
    """The benchmark's objective is such a sum; a lost weight goes unnoticed."""
    goal = torch.full((3, 64, 64), 0.25)
    expected = -((futures.frames - 0.25) ** 2).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(SquaredError(goal)(futures), expected)
    both = 0.5 * SquaredError(goal) + Reward() * 10 + Success()
    torch.testing.assert_close(both(futures), 0.5 * expected + 10 * futures.rewards.sum(1) + futures.successes.sum(1))


def test_classifier_scores_each_frame(futures, monkeypatch):
    """Dropout left on, frames in one batch with those of other candidates, or a step left out."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 64 * 64, 1)).train()
    monkeypatch.setattr("ivideogpt.planning.objectives.FRAMES_AT_ONCE", 3)
    scores = Classifier(network)(futures)
    assert network.training
    network.eval()
    torch.testing.assert_close(scores, sum(network(step).flatten() for step in futures.frames.unbind(1)).detach())
    with pytest.raises(UserError, match=r"gives 20 numbers for 10 frames"):
        Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)))(futures)


def test_latent_error_is_least_at_the_goal(futures, model):
    goal = futures.frames[1, 0]
    scores = LatentError(model.tokenizer, goal)(Futures(futures.frames[:, :1]))
    assert scores.argmax() == 1
    assert scores[1] == pytest.approx(0, abs=1e-6)
    assert scores[0] < -1e-3


def test_what_is_not_predicted_cannot_be_planned_for(futures):
    frames_only, rewards_only = Futures(futures.frames), Futures(rewards=futures.rewards)
    with pytest.raises(UserError, match="no reward head"):
        Reward()(frames_only)
    with pytest.raises(UserError, match="no success head"):
        Success()(frames_only)
    with pytest.raises(UserError, match="predicts no frames"):
        SquaredError(torch.zeros(3, 64, 64))(rewards_only)
    with pytest.raises(UserError, match="the goal has shape"):
        SquaredError(torch.zeros(3, 32, 32))(frames_only)


def test_a_plan_of_the_world_model(dynamics):
    """The three parts fit together."""
    planner = MPPI(low=(-1.0,) * 4, high=(1.0,) * 4, horizon=HORIZON, num_candidates=4)
    plan = planner.plan(dynamics, 2 * Success(), torch.Generator().manual_seed(0))
    assert plan.actions.shape == (HORIZON, 4)
    assert 0 < plan.score <= 2 * HORIZON
