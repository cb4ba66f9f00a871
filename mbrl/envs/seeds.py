"""Random numbers of an episode: a pure function of the run's seed, the episode's purpose, and its number.

A resumed run draws the same goals, and so does an evaluation, whatever else has drawn numbers in between.
"""

from __future__ import annotations

import zlib

import numpy as np


def episode_rng(seed: int, purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), number])


def episode_seed(seed: int, purpose: str, number: int) -> int:
    """Return the seed of an environment's reset; ``purpose`` is a word such as "train" or "eval"."""
    return int(episode_rng(seed, purpose, number).integers(2**31))
