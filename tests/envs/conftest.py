from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from ivideogpt.envs import WorldModelEnv, WorldModelVectorEnv
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel
from tests.parity.networks import world_model

HORIZON = 3
DEFAULTS = dict(horizon=HORIZON, success_threshold=2)  # no step succeeds, unless a test wants it


@pytest.fixture(scope="session")
def rewarding_model() -> WorldModel:
    """64 px, context 2, 4-D actions, segment 5, heads for reward and success; takes the likeliest tokens."""
    heads = dict(reward_prediction=True, success_prediction=True)
    return world_model(2, 4, **heads, generation=Sampling(greedy=True))


@pytest.fixture(scope="session")
def sampling_model() -> WorldModel:
    """The same with success alone, which samples its tokens."""
    return world_model(2, 4, success_prediction=True, generation=Sampling(top_k=None, temperature=3.0))


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    """Five starts of three frames, (5, 3, 64, 64, 3): squares of random colours."""
    squares = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8, 3), dtype=np.uint8)
    return squares.repeat(8, axis=2).repeat(8, axis=3)


def brightness(frames: Tensor) -> Tensor:
    return frames.mean(dim=(1, 2, 3))


# about every other frame that the tiny model draws is as bright as this, so that rows end at different times
BRIGHT = dict(success=brightness, success_threshold=0.151)


@pytest.fixture
def envs(rewarding_model, frames) -> Callable[..., WorldModelVectorEnv]:
    return lambda num_envs=3, **settings: WorldModelVectorEnv(
        rewarding_model, frames, num_envs, **{**DEFAULTS, **settings}
    )


@pytest.fixture
def single(rewarding_model, frames) -> Callable[..., WorldModelEnv]:
    return lambda **settings: WorldModelEnv(rewarding_model, frames, **{**DEFAULTS, **settings})


def actions(env: Any, seed: int = 0) -> np.ndarray:
    """Six actions of every row, (6, N, 4)."""
    return np.random.default_rng(seed).uniform(-1, 1, (6, env.num_envs, 4)).astype(np.float32)
