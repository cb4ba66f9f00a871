"""Several environments in lock-step, in worker processes or in this one, and evaluation on top of them.

Knows how work is divided and how a failing worker is reported; what an environment does is `agent_env`'s affair.

Shapes: n environments in use, K frames in a stack, H W pixels, D action dimension, L agent steps.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.convert.conversion import start_worker
from ivideogpt.errors import UserError
from mbrl.envs.agent_env import AgentEnv, AgentStep, EnvSettings
from mbrl.replay.episodes import Floats, Pixels, ReplayEpisode

BatchPolicy = Callable[[Pixels], Floats]  # stacks (n, 3 K, H, W) -> actions (n, D) in [-1, 1]


class LostWorker(UserError):
    """A process with environments is gone, and nothing else has changed."""


PATIENCE = 5.0  # seconds that a worker gets to finish its step and close its renderers


@dataclass(frozen=True)
class PoolStep:
    """
    Attributes:
        stacks: (n, 3 K, H, W).
        rewards: (n,) success bonus included.
        successes: (n,).
        last: the episodes have ended, all of them.
    """

    stacks: Pixels
    rewards: NDArray[np.float64]
    successes: NDArray[np.bool_]
    last: bool


class EnvPool:
    """``num_envs`` environments of one task; the first so many are in use as the latest ``reset`` got seeds.

    The same seeds and actions give the same episodes, however many workers there are. Close it after use.

    Raises:
        UserError: a worker cannot make its environments (unknown task, no OpenGL), or was killed.
        RuntimeError: a worker failed in another way; the message holds its traceback. Either way the pool is closed.
    """

    def __init__(self, settings: EnvSettings, num_envs: int, num_workers: int = 0) -> None:
        """
        Args:
            num_workers: processes among which the environments are divided; 0: they run here, one after the other.
        """
        assert num_envs > 0, "a pool without environments"
        self.settings, self.num_envs, self.num_in_use = settings, num_envs, 0
        self._groups: list[_Here | _Worker] = []
        try:
            if num_workers == 0:
                self._groups.append(_Here(settings, num_envs))
            for share in _round_robin(range(num_envs), min(num_workers, num_envs)):
                self._groups.append(_Worker(settings, len(share)))
            for group in self._groups:
                group.answer()
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> Pixels:
        """Begin one episode for each seed, at most ``num_envs``. Returns (n, 3 K, H, W)."""
        assert 0 < len(seeds) <= self.num_envs, f"{len(seeds)} seeds for {self.num_envs} environments"
        self.num_in_use = len(seeds)
        return np.stack(self._each("reset", [(seed,) for seed in seeds]))

    def step(self, actions: Floats) -> PoolStep:
        """
        Args:
            actions: (n, D) in [-1, 1].
        """
        steps: list[AgentStep] = self._each("step", [(action,) for action in actions])
        return PoolStep(
            stacks=np.stack([step.stack for step in steps]),
            rewards=np.array([step.reward for step in steps]),
            successes=np.array([step.success for step in steps]),
            last=steps[0].last,
        )

    def episodes(self) -> list[ReplayEpisode]:
        """The finished ones, in the order of their seeds."""
        return self._each("episode", [()] * self.num_in_use)

    def close(self) -> None:
        for group in self._groups:
            group.close()
        self._groups = []

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of each environment in use, at the same time in all workers."""
        assert self._groups, "the pool is closed"
        assert len(arguments) == self.num_in_use, f"{len(arguments)} actions for {self.num_in_use} environments"
        answers: list[Any] = [None] * len(arguments)
        num_groups = len(self._groups)
        try:
            for group, share in zip(self._groups, _round_robin(arguments, num_groups), strict=True):
                group.ask(method, share)
            for first, group in enumerate(self._groups):
                answers[first::num_groups] = group.answer()
        except BaseException:  # interrupted, too: answers still to come would pass for those to the next question
            self.close()
            raise
        return answers


def _round_robin(items: Sequence[Any], num_groups: int) -> list[Sequence[Any]]:
    """So that every worker has work when only some of the environments are in use."""
    return [items[first::num_groups] for first in range(num_groups)]


class _Here:
    """A group of environments in this process."""

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        self._envs: list[AgentEnv] = []
        self._answer: list[Any] = []
        try:
            for _ in range(num_envs):
                self._envs.append(settings.make())
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Call a method of the first so many environments."""
        self._answer = [getattr(env, method)(*args) for env, args in zip(self._envs, arguments, strict=False)]

    def answer(self) -> list[Any]:
        return self._answer

    def close(self) -> None:
        for env in self._envs:
            env.close()


@dataclass(frozen=True)
class _Failure:
    """What a worker sends in place of an answer."""

    message: str
    is_of_user: bool


class _Worker:
    """A group of environments in a process of its own, which answers once unasked: when they are made."""

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        spawning = multiprocessing.get_context("spawn")  # an OpenGL library does not survive a fork
        self._pipe, its_end = spawning.Pipe()
        self._process = spawning.Process(target=_work, args=(its_end, settings, num_envs), daemon=True)
        self._process.start()
        its_end.close()  # the last one open here: its death shall be seen
        # Python ends with SIGTERM to its workers, for which they do not care, and waits for them.
        Finalize(self, self._pipe.close, exitpriority=0)

    def ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        with contextlib.suppress(ConnectionError):  # the worker is gone; what it said last is still to be read
            self._pipe.send((method, arguments))

    def answer(self) -> list[Any]:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(PATIENCE)
            raise LostWorker(
                f"a process with environments ended by itself (exit code {self._process.exitcode}), "
                "if killed by the system then perhaps for its memory: give the run fewer processors (taskset)"
            ) from error
        if isinstance(answer, _Failure):
            raise (UserError if answer.is_of_user else RuntimeError)(answer.message)
        return answer

    def close(self) -> None:
        self._pipe.close()  # at which the worker ends
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()


def _work(pipe: Connection, settings: EnvSettings, num_envs: int) -> None:
    start_worker()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it reaches all processes; the first one finishes its step and saves
    with contextlib.suppress(EOFError, ConnectionError):  # the pool was closed
        try:
            with contextlib.closing(_Here(settings, num_envs)) as envs:
                while True:
                    pipe.send(envs.answer())
                    envs.ask(*pipe.recv())
        except UserError as error:
            pipe.send(_Failure(str(error), is_of_user=True))
        except (EOFError, ConnectionError):
            raise
        except Exception:
            pipe.send(_Failure(f"an environment failed in its process:\n{traceback.format_exc()}", is_of_user=False))


@dataclass(frozen=True)
class EpisodeResult:
    """
    Attributes:
        total_reward: success bonuses included, not discounted.
        success: whether any step succeeded.
        frames: (L + 1, 3, H, W), if asked for.
    """

    total_reward: float
    success: bool
    frames: Pixels | None


def evaluate(
    pool: EnvPool, policy: BatchPolicy, seeds: Sequence[int], record: Container[int] = ()
) -> list[EpisodeResult]:
    """One episode for each seed, in their order, as many at a time as the pool has environments.

    Args:
        record: which of the results, counted from 0, hold their frames.
    """
    results: list[EpisodeResult] = []
    for first in range(0, len(seeds), pool.num_envs):
        numbers = range(first, min(first + pool.num_envs, len(seeds)))
        steps = _play(pool, policy, [seeds[number] for number in numbers])
        rewards = np.sum([step.rewards for step in steps], axis=0)
        successes = np.any([step.successes for step in steps], axis=0)
        recorded = [number in record for number in numbers]
        films = [episode.frames for episode in pool.episodes()] if any(recorded) else [None] * len(numbers)
        results += [
            EpisodeResult(float(reward), bool(success), film if kept else None)
            for reward, success, film, kept in zip(rewards, successes, films, recorded, strict=True)
        ]
    return results


def _play(pool: EnvPool, policy: BatchPolicy, seeds: Sequence[int]) -> list[PoolStep]:
    stacks = pool.reset(seeds)
    steps: list[PoolStep] = []
    while not (steps and steps[-1].last):
        steps.append(pool.step(policy(stacks)))
        stacks = steps[-1].stacks
    return steps
