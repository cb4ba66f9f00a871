"""Games on a model as small as tests need, from an episode of noise."""

from __future__ import annotations

from functools import cache

import numpy as np

from ivideogpt.play.game import Game
from ivideogpt.play.starts import RecordedWorld, Start, StartChoice
from ivideogpt.world_model import WorldModel
from tests.parity.networks import world_model

NUM_FRAMES, ACTION_DIM, FRAMES_THAT_FIT = 7, 4, 4
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (NUM_FRAMES, 64, 64, 3), np.uint8)
ACTIONS = RNG.uniform(-1, 1, (NUM_FRAMES, ACTION_DIM)).astype(np.float32)


@cache
def model() -> WorldModel:
    heads = {"reward_prediction": True, "success_prediction": True}
    return world_model(action_dim=ACTION_DIM, frames_that_fit=FRAMES_THAT_FIT, **heads)


def start(seed: int) -> Start:
    return Start(FRAMES[:2], ACTIONS[:1], RecordedWorld(FRAMES[1:], ACTIONS[1:]))


CHOICES = [StartChoice("episode:noise", "noise", "Tests", start)]


def new_game() -> Game:
    game = Game(model(), {choice.key: choice for choice in CHOICES})
    game.reset("episode:noise", 3)
    return game
