"""Several environments in lock-step, as ``gymnasium.vector`` has them, and evaluation of a policy in them.

Shapes: n environments in use, K frames in a stack, H W pixels, D action dimension, L agent steps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ivideogpt.data.convert.workers import start_worker
from ivideogpt.errors import UserError, first_line
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.env_settings import EnvSettings
from mbrl.replay.episodes import Floats, Pixels

BatchPolicy = Callable[[Pixels], Floats]  # stacks (n, 3 K, H, W) -> actions (n, D) in [-1, 1]
PATIENCE = 5.0  # seconds until the exit code of a worker is known


class LostEnvironment(UserError):
    """An environment has failed, or its process is gone; nothing else has changed."""


def make_vector_env(settings: EnvSettings, num_envs: int, in_processes: bool) -> VectorEnv:
    """Make environments of one task, which give the same episodes here and in processes. Close them after use.

    UserError if they cannot be made: unknown task, no OpenGL, a process that was killed.
    """
    if in_processes:
        return ProcessVectorEnv(settings, num_envs)
    return SyncVectorEnv([settings.make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class ProcessVectorEnv(AsyncVectorEnv):
    """An ``AsyncVectorEnv`` of spawned processes; the death of one is a :class:`LostEnvironment`, and ends the others.

    Workers hold nothing that is worth saving, so they are killed in place of being asked to end.
    """

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        make = partial(_make, settings, os.getpid())  # spawned: an OpenGL library does not survive a fork
        with self._watching():
            super().__init__([make] * num_envs, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        # At its end, Python waits for its workers after a SIGTERM that they ignore.
        Finalize(self, _end, (self.processes,), exitpriority=0)

    def reset(self, **arguments: Any) -> Any:
        with self._watching():
            return super().reset(**arguments)

    def step(self, actions: Floats) -> Any:
        with self._watching():
            return super().step(actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._watching():
            return super().call(name, *args, **kwargs)

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """Raise the first worker's exception, its traceback as a note. Gymnasium would print the tracebacks of all."""
        if not all(successes):
            _, kind, value, trace = self.error_queue.get()
            self.close()
            error = kind(value)
            error.add_note(trace)
            raise error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        _end(self.processes)
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            ended = connection.wait([process.sentinel for process in self.processes], PATIENCE)
            lost = [process for process in self.processes if process.sentinel in ended]
            for process in lost:
                process.join(PATIENCE)  # the pipes close shortly before the exit code is known
            codes = [process.exitcode for process in lost]
            self.close()
            raise LostEnvironment(
                f"a process with environments ended by itself (exit code {', '.join(map(str, codes))}), "
                "if killed by the system then perhaps for its memory: give the run fewer processors (taskset)"
            ) from error


def _make(settings: EnvSettings, parent: int) -> AgentEnv:
    """Make an environment; in a worker, first leave signals to the parent, which finishes its step and saves."""
    if os.getpid() != parent:
        start_worker()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return settings.make()


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one evaluation episode."""

    total_reward: float  # success bonuses included, not discounted
    success: bool  # whether any step succeeded
    frames: Pixels | None  # (L + 1, 3, H, W), if requested


def evaluate(
    envs: VectorEnv, policy: BatchPolicy, seeds: Sequence[int], record: Container[int] = ()
) -> list[EpisodeResult]:
    """Play one episode for each seed, in their order, as many at a time as there are environments.

    Args:
        record: which of the results, counted from 0, hold their frames.

    Raises:
        LostEnvironment: one of them failed for a reason that is the user's to solve.
    """
    results: list[EpisodeResult] = []
    for first in range(0, len(seeds), envs.num_envs):
        numbers = range(first, min(first + envs.num_envs, len(seeds)))
        rewards, successes = _play(envs, policy, [seeds[number] for number in numbers])
        recorded = [number in record for number in numbers]
        episodes = _ask(envs.call, "episode") if any(recorded) else ()
        results += [
            EpisodeResult(float(rewards[i]), bool(successes[i]), episodes[i].frames if kept else None)
            for i, kept in enumerate(recorded)
        ]
    return results


def _play(envs: VectorEnv, policy: BatchPolicy, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return total rewards and successes (n,). Environments without a seed of their own repeat the last one's steps."""
    in_use, rows = len(seeds), np.minimum(np.arange(envs.num_envs), len(seeds) - 1)
    stacks, _ = _ask(envs.reset, seed=[seeds[row] for row in rows])
    rewards, successes, ended = [], [], False
    while not ended:
        actions = policy(stacks[:in_use])[rows]
        stacks, reward, _, truncated, info = _ask(envs.step, actions)
        rewards.append(reward[:in_use])
        successes.append(info["success"][:in_use])
        ended = truncated[0]
    return np.sum(rewards, axis=0), np.any(successes, axis=0)


def _ask(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return method(*args, **kwargs)
    except LostEnvironment:
        raise
    except (UserError, OSError) as error:
        raise LostEnvironment(f"an environment failed in an evaluation: {first_line(error)}") from error
