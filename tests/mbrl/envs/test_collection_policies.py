"""Collection policies: what matters is that they move the arm, and that their generator decides everything."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.collection_policies import (
    CollectionPolicies,
    CorrelatedNoise,
    NoisyPolicy,
    RandomReacher,
    Restless,
    imported_policy,
)

WORKSPACE = np.array([-0.5, 0.4, 0.05]), np.array([0.5, 1.0, 0.5])


def test_noise_has_its_scale_and_is_correlated():
    noise = CorrelatedNoise(0.5, bursts=False, rng=np.random.default_rng(0))
    values = np.stack([noise() for _ in range(20_000)])
    np.testing.assert_allclose(values.std(0), 0.5, rtol=0.05)
    neighbours = (values[1:] * values[:-1]).mean(0) / values.var(0)
    np.testing.assert_allclose(neighbours, CorrelatedNoise.MEMORY, atol=0.02)


def test_bursts_come_and_go_in_stretches():
    noise = CorrelatedNoise(0.5, bursts=True, rng=np.random.default_rng(0))
    active = np.array([noise().any() for _ in range(10_000)])
    assert 0.4 < active.mean() < 0.6
    assert 10 < len(active) / np.count_nonzero(np.diff(active)) < 20


def test_zero_noise_is_the_policy_itself_clipped():
    policy = NoisyPolicy(lambda state: np.full(4, 25.0), CorrelatedNoise(0.0, True, np.random.default_rng(0)))
    np.testing.assert_array_equal(policy(np.zeros(39)), np.ones(4))


def distance_covered(policy) -> np.ndarray:
    """How far the hand gets along each axis in 100 agent steps, as a part of the workspace."""
    hand = np.array([0.0, 0.6, 0.2])
    path = []
    for _ in range(100):
        action = np.clip(policy(np.append(hand, np.zeros(36))), -1, 1)
        hand = np.clip(hand + 0.02 * action[:3], *WORKSPACE)
        path.append(hand)
    return np.ptp(path, axis=0) / np.ptp(WORKSPACE, axis=0)


def test_random_reacher_gets_about():
    """Bug prevented: white noise, under which the arm trembles in place."""
    rng = np.random.default_rng(0)
    reached = np.mean([distance_covered(RandomReacher(WORKSPACE, rng)) for _ in range(20)], axis=0)
    trembled = np.mean([distance_covered(lambda state: rng.uniform(-1, 1, 4)) for _ in range(20)], axis=0)
    assert (reached > 0.4).all()
    assert reached.mean() > 1.5 * trembled.mean()


def test_restless_policy_wanders_once_the_hand_rests():
    """Bug prevented: episodes whose second half is a still picture, which teaches nothing and flatters copying."""
    policy = Restless(lambda state: np.zeros(4), lambda state: np.ones(4))
    moving, still = (np.linspace(0, 1, 50), np.ones(Restless.PATIENCE))
    taken = [policy(np.full(39, place))[0] for place in np.concatenate([moving, still, 5 + moving])]
    first = taken.index(1.0)
    assert len(moving) < first < len(moving) + Restless.PATIENCE
    assert not any(taken[:first])
    assert all(taken[first:])


def test_behaviour_takes_noise_levels_in_turn_and_random_policies_at_their_rate():
    pytest.importorskip("metaworld")
    collection = CollectionPolicies((0.0, 0.7), random_fraction=0.25, wander=False)
    policies = [collection.policy("reach", WORKSPACE, i, np.random.default_rng(i)) for i in range(200)]
    random = [isinstance(policy, RandomReacher) for policy in policies]
    assert 0.17 < np.mean(random) < 0.33
    levels = {((i + i // 100) % 2, p._noise._scale) for i, p in enumerate(policies) if isinstance(p, NoisyPolicy)}
    assert levels == {(0, 0.0), (1, 0.7)}


def test_modules_in_the_current_folder_are_found(tmp_path, monkeypatch):
    """`python datasets/record.py` looked in datasets/ alone; a path left behind would lead later imports astray."""
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 3")
    (tmp_path / "policy_of_mine.py").write_text(
        "import helper_of_mine\n\ndef act():\n    return helper_of_mine.VALUE\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert imported_policy("policy_of_mine", "act")() == 3
    with pytest.raises(UserError, match="no attribute 'rest'"):
        imported_policy("policy_of_mine", "rest")
    assert sys.path == before
