"""Environments for one episode at a time, and the registered ones."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import ivideogpt.envs  # noqa: F401  registers them
from ivideogpt.errors import UserError
from tests.documented import ROOT
from tests.envs.conftest import brightness

BUNDLED = "ivideogpt/metaworld-tiny-v0"


@pytest.mark.parametrize("settings", [{"frame_stack": 2}, {"observation_key": "pixels"}], ids=str)
def test_gymnasium_accepts_it(tiny_world_model, settings):
    """gymnasium's own check: spaces, seeds, arrays that are not used again, rendering."""
    settings = dict(pretrained_model_name_or_path=str(tiny_world_model), contexts=str(ROOT / "inference" / "samples"))
    settings |= dict(reward=brightness, device="cpu", dtype="float32")
    env = gymnasium.make("ivideogpt/world-model-v0", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_bundled_model_and_its_episodes(monkeypatch):
    """The first line that a newcomer tries; its kwargs are paths, which must hold from any working directory."""
    monkeypatch.chdir("/")
    env = gymnasium.make_vec(BUNDLED, num_envs=2, vectorization_mode="vector_entry_point")
    observations, _ = env.reset(seed=0)
    assert observations.shape == (2, 64, 64, 3)
    assert env.action_space.shape == (2, 4)
    observations, rewards, *_ = env.step(env.action_space.sample())
    assert observations in env.observation_space
    assert rewards.shape == (2,)
    assert np.isfinite(rewards).all()
    assert env.unwrapped.model.success_head is not None
    with pytest.raises(UserError, match="dtype is 'fp16', expected"):
        gymnasium.make(BUNDLED, dtype="fp16")
