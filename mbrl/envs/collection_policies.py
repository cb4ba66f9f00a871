"""Policies that collect data: Meta-World's scripted ones with correlated noise, and a random one that gets about.

A policy maps the simulator's observation to an action; nothing here looks at pictures. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.errors import UserError, first_line
from mbrl.envs.env_settings import ACTION_DIM

Policy = Callable[[np.ndarray], np.ndarray]  # simulator observation (39,) -> action (4,), not yet clipped


class CorrelatedNoise:
    """AR(1) noise of a given standard deviation that remembers about ten steps, so that it carries the arm away.

    White noise of the same size would average out within the arm's inertia. In bursts, it comes and goes for
    stretches of about fifteen steps: the policy then recovers from places where it never goes by itself.
    """

    MEMORY = 0.9
    SWITCHING = 1 / 15

    def __init__(self, scale: float, bursts: bool, rng: np.random.Generator, size: int = ACTION_DIM) -> None:
        self._scale, self._bursts, self._rng = scale, bursts, rng
        self._value = rng.normal(size=size)
        self._active = True

    def __call__(self) -> np.ndarray:
        fresh = self._rng.normal(size=self._value.shape)
        self._value = self.MEMORY * self._value + np.sqrt(1 - self.MEMORY**2) * fresh
        if self._bursts and self._rng.random() < self.SWITCHING:
            self._active = not self._active
        return self._scale * self._value * self._active


class NoisyPolicy:
    """Adds noise to what another policy wants, clipped first: some scripted policies ask for ten times the maximum."""

    def __init__(self, policy: Policy, noise: CorrelatedNoise) -> None:
        self._policy, self._noise = policy, noise

    def __call__(self, state: np.ndarray) -> np.ndarray:
        return np.clip(self._policy(state), -1, 1) + self._noise()


class RandomReacher:
    """Heads for random points of the workspace at random speeds, gripper at random, each for a stretch of steps."""

    GAIN = 10.0  # metres to action, as in most scripted policies
    LONGEST_STRETCH = 25

    def __init__(self, workspace: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
        self._workspace, self._rng = workspace, rng
        self._noise = CorrelatedNoise(0.3, bursts=False, rng=rng)
        self._steps_left = 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        if self._steps_left == 0:
            self._target = self._rng.uniform(*self._workspace)
            self._speed = self._rng.uniform(0.2, 1.0)
            self._grip = self._rng.uniform(-1.0, 1.0)
            self._steps_left = int(self._rng.integers(3, self.LONGEST_STRETCH + 1))
        self._steps_left -= 1
        velocity = self._speed * np.clip(self.GAIN * (self._target - state[:3]), -1, 1)
        return np.append(velocity, self._grip) + self._noise()


class Restless:
    """Follows one policy until the hand has come to rest, for good or because it is stuck, then another.

    A scripted policy is done after half an episode; the rest would be pictures of a still arm.
    """

    PATIENCE = 10  # agent steps: longer than a gripper takes to close
    REST = 0.01  # metres

    def __init__(self, policy: Policy, when_idle: Policy) -> None:
        self._policy, self._when_idle = policy, when_idle
        self._recent: deque[np.ndarray] = deque(maxlen=self.PATIENCE)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        self._recent.append(state[:3].copy())
        if len(self._recent) == self.PATIENCE and np.ptp(self._recent, axis=0).max() < self.REST:
            self._policy = self._when_idle
        return self._policy(state)


def scripted_policy(task: str) -> Policy:
    from metaworld.policies import ENV_POLICY_MAP

    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")  # we clip, as the environments do
    return ENV_POLICY_MAP[f"{task}-v3"]().get_action


def imported_policy(module: str, function: str) -> Callable[..., Any]:
    """Return a user's function, also of a module in the current folder; UserError if there is none."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"policy {module}:{function}: {module!r} is not the name of a module, such as my_policies")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # Python puts a script's own folder there
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # whatever a module does when it is imported
        raise UserError(f"policy {module}:{function}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UserError(f"policy {module}:{function}: is {type(found).__name__}, expected a function")
    return found


@dataclass(frozen=True)
class CollectionPolicies:
    """Choose the policy of an episode: a random one now and then, else scripted with the noise levels in turn."""

    noise_levels: tuple[float, ...]
    random_fraction: float
    wander: bool = True  # on, after the hand has come to rest

    def policy(
        self, task: str, workspace: tuple[np.ndarray, np.ndarray], episode: int, rng: np.random.Generator
    ) -> Policy:
        if rng.random() < self.random_fraction:
            return RandomReacher(workspace, rng)
        # Shifted by one every hundred, as every hundredth episode is for testing and those want all levels, too.
        level = self.noise_levels[(episode + episode // 100) % len(self.noise_levels)]
        scripted = NoisyPolicy(scripted_policy(task), CorrelatedNoise(level, bursts=rng.random() < 0.5, rng=rng))
        return Restless(scripted, RandomReacher(workspace, rng)) if self.wander else scripted
