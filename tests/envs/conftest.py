from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from ivideogpt.envs import WorldModelEnv, WorldModelVectorEnv
from ivideogpt.envs.rlinf import RLinfEnv, rlinf_settings
from ivideogpt.envs.server import EnvServer
from ivideogpt.transformer import Sampling
from ivideogpt.web import WebArgs, make_server, open_socket
from ivideogpt.world_model import WorldModel
from tests.parity.networks import world_model
from tests.play.serving import PATIENCE, wait_until

HORIZON, NUM_SERVED = 3, 2
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
BRIGHT = dict(success=brightness, success_threshold=0.0985)


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


# ---- served


@contextmanager
def running(env: RLinfEnv, max_requests: int = 4, **flags: Any) -> Iterator[SimpleNamespace]:
    """Serve an environment in a thread, on a free port of this machine."""
    args, app = WebArgs(port=0, **flags), EnvServer(env, max_requests)
    with open_socket(args) as bound:
        server, port = make_server(app.app, args, bound, "environment"), bound.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}", port=port, app=app)
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def make_env(rewarding_model, frames) -> Callable[..., RLinfEnv]:
    def make(auto_reset: bool = True, **settings: Any) -> RLinfEnv:
        chosen = DEFAULTS | {"task": "push the puck"} | rlinf_settings(auto_reset) | settings
        return RLinfEnv(WorldModelVectorEnv(rewarding_model, frames, NUM_SERVED, **chosen))

    return make


@pytest.fixture(scope="session")
def server(make_env) -> Iterator[SimpleNamespace]:
    with running(make_env(**BRIGHT)) as served:
        yield served
