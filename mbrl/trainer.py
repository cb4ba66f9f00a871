"""A run of DrQ-v2 or MBPO: the loop, in the order in which things happen.

The agent acts in one environment; whole episodes go to the replay buffer; everything periodic is asked of the schedule.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ivideogpt.errors import UserError
from ivideogpt.runs.averages import MetricAverager
from ivideogpt.runs.signals import Interrupted, StopSignal
from ivideogpt.runs.state import Stateful
from mbrl.agent.drqv2 import DrQAgent
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.env_settings import episode_seed
from mbrl.envs.vector_env import LostEnvironment, VectorEnv, evaluate
from mbrl.mbpo import Mbpo
from mbrl.metric_logger import MetricLogger, enlarged
from mbrl.replay.episodes import Floats, Pixels, ReplayEpisode
from mbrl.replay.replay_buffer import ReplayBuffer, Transitions
from mbrl.settings import Settings
from mbrl.snapshots import RandomNumbers, Snapshots

logger = logging.getLogger(__name__)

SNAPSHOT_EVERY = 10  # episodes
VALIDATE_EVERY = 5  # episodes


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0  # agent steps done
    episode: int = 0  # episodes finished
    seconds: float = 0.0  # duration of the run until it was last saved
    evaluated: int = -1  # agent steps done at the last evaluation

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Trainer:
    """Owns the progress of a run; :meth:`run` begins it, or continues from its last checkpoint."""

    def __init__(
        self,
        settings: Settings,
        env: AgentEnv,
        eval_envs: VectorEnv,
        agent: DrQAgent,
        real: ReplayBuffer,
        batches: Callable[[], Transitions],
        rng: RandomNumbers,
        metric_logger: MetricLogger,
        mbpo: Mbpo | None = None,
    ) -> None:
        self.settings, self.env, self.eval_envs = settings, env, eval_envs
        self.agent, self.real, self.batches, self.mbpo = agent, real, batches, mbpo
        self.rng, self.metric_logger = rng, metric_logger
        self.progress = Progress()
        self.averager = MetricAverager()
        self.stop_signal = StopSignal()
        self._saved_evaluation = -1  # Progress.evaluated when the run was last saved
        self._started = time.perf_counter()

    @property
    def frame(self) -> int:
        return self.settings.frame(self.progress.step)

    def parts(self) -> dict[str, Stateful]:
        """Return the stateful components to checkpoint, by name."""
        parts: dict[str, Stateful] = {
            "agent": self.agent,
            "random": self.rng,
            "records": self.metric_logger,
            "progress": self.progress,
            "window": self.averager,
        }
        return parts if self.mbpo is None else parts | {"world_model": self.mbpo.world_model, "dreaming": self.mbpo}

    def run(self, snapshots: Snapshots, demonstrations: Sequence[ReplayEpisode] | None) -> int:
        """Begin with the demonstrations, or go on from what was loaded; return the command's exit code.

        Args:
            demonstrations: None if a snapshot was loaded.
        """
        with ExitStack() as stack:
            stack.enter_context(self.stop_signal.listening())
            stack.enter_context(logging_redirect_tqdm())
            stack.callback(self.metric_logger.close)
            if demonstrations is not None:
                self.metric_logger.set_aside_unsaved()
                for episode in demonstrations:
                    self.real.add(episode, demonstration=True)
                self._reset()
            self._saved_evaluation, self._started = self.progress.evaluated, time.perf_counter()
            frames = self.settings.frame(self.settings.num_steps)
            bar = tqdm(total=frames, initial=self.frame, unit="frame", disable=None, desc=self.settings.task_name)
            stack.enter_context(bar)
            while self.progress.step < self.settings.num_steps and not self.stop_signal.number:
                self._evaluate_if_due(snapshots)
                if self.stop_signal.number:
                    break
                if self.mbpo is not None and self.mbpo.begins(self.progress.step):
                    self._save(snapshots, must_succeed=False)  # a step that may be given up
                try:
                    self.advance()
                except Interrupted:
                    logger.warning("the initial updates of the world model are given up, and will begin anew")
                    return self._leave()
                bar.update(self.settings.action_repeat)
                if self.env.num_steps == self.env.duration:
                    self.finish_episode()
                    if self.progress.episode % SNAPSHOT_EVERY == 0:
                        self._save(snapshots, must_succeed=False)
            if not self.stop_signal.number:
                self._evaluate_if_due(snapshots)
            self._save(snapshots, must_succeed=True)
        return self._leave()

    def advance(self) -> None:
        step = self.progress.step
        action = self._act(self.env.stack[None], mean=False)[0]
        if self.mbpo is not None:
            self.mbpo.prepare(step, self.stop_signal.check)
        if self.settings.agent_learns(step):
            for _ in range(self.settings.agent_update_times):
                self.averager.add(self.agent.update(self.batches(), step))
        if self.mbpo is not None:
            self.mbpo.imagine(step)
        _, reward, *_ = self.env.step(action)
        if not math.isfinite(reward):  # it would spoil every batch that it is in, also after a resume
            raise UserError(f"the simulator's reward is {reward} at frame {self.frame}: {self._advice()}")
        self.progress.step += 1

    def finish_episode(self) -> None:
        episode = self.env.episode()
        self.real.add(episode)
        self.progress.episode += 1
        metrics = self._finite(self.averager.take())
        if self.mbpo is not None:
            metrics |= self.mbpo.averager.take()
        outcome = {"episode_reward": float(episode.reward.sum()), "success": float(self.env.success)}
        self.metric_logger.write("train", self.frame, {**self._place(), **outcome, **metrics})
        if self.settings.save_train_video:
            self._write_video("train", episode.frames)
        if self.mbpo is not None and self.progress.episode % VALIDATE_EVERY == 0:
            self.mbpo.validate(self.progress.step)
        self._reset()

    def _reset(self) -> None:
        self.env.reset(seed=episode_seed(self.settings.seed, "train", self.progress.episode))

    def _write_video(self, kind: str, frames: Pixels) -> None:
        self.metric_logger.write_video(kind, f"{self.frame:09d}", enlarged(frames.transpose(0, 2, 3, 1)))

    def _place(self) -> dict[str, float]:
        seconds = self._seconds()
        return {
            "step": self.progress.step,
            "episode": self.progress.episode,
            "hours": seconds / 3600,
            "frames_per_s": self.frame / max(seconds, 1e-9),
        }

    def _seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self._started

    def _evaluate_if_due(self, snapshots: Snapshots) -> None:
        """Evaluate once; an evaluation that is cut short leaves the run as it was before."""
        if not self.settings.evaluates(self.progress.step) or self.progress.evaluated == self.progress.step:
            return
        try:
            self.evaluate()
        except Interrupted:
            logger.warning("the evaluation at frame %d is given up, and will begin anew", self.frame)
        except LostEnvironment:
            self._save(snapshots, must_succeed=False)
            raise

    def evaluate(self) -> None:
        """Evaluate on the same episodes every time."""
        seeds = [episode_seed(self.settings.seed, "eval", i) for i in range(self.settings.num_eval_episodes)]
        results = evaluate(self.eval_envs, self._mean_actions, seeds, record=(0,) if self.settings.save_video else ())
        rewards = [result.total_reward for result in results]
        metrics = {
            **self._place(),
            "episode_reward": float(np.mean(rewards)),
            "success_rate": float(np.mean([result.success for result in results])),
            "num_episodes": len(results),
        }
        self.metric_logger.write("eval", self.frame, metrics)
        self.progress.evaluated = self.progress.step
        self.metric_logger.plot_success()
        if results[0].frames is not None:
            self._write_video("eval", results[0].frames)
        logger.info(
            "frame %d: success rate %.2f, mean reward %.1f", self.frame, metrics["success_rate"], np.mean(rewards)
        )

    def _mean_actions(self, stacks: Pixels) -> Floats:
        self.stop_signal.check()
        return self._act(stacks, mean=True)

    def _act(self, stacks: Pixels, mean: bool) -> Floats:
        tensor, generator = torch.from_numpy(stacks), self.rng.acting
        actions = self.agent.act(tensor, self.progress.step, mean=mean, generator=generator).cpu().numpy()
        self._finite({"the sum of actions": float(actions.sum())})
        return actions

    def _save(self, snapshots: Snapshots, must_succeed: bool) -> None:
        if not self.settings.save_snapshot:
            return
        self._finite(self.averager.values() | self.agent.weight_norms())
        self.progress.seconds, self._started = self._seconds(), time.perf_counter()
        try:
            snapshots.save(self.frame, again=self.progress.evaluated != self._saved_evaluation)
            self._saved_evaluation = self.progress.evaluated
        except UserError as error:
            if must_succeed:
                raise
            logger.error("%s; going on without", error)

    def _finite(self, metrics: dict[str, float]) -> dict[str, float]:
        """Refuse losses that are not finite: they have spoiled the agent, which must not be saved."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise UserError(f"{name} is {value} at frame {self.frame}: the agent is lost. {self._advice()}")
        return metrics

    def _advice(self) -> str:
        return (
            f"The last snapshot, if there is one, in {self.settings.run_dir} is good: start the same command again, "
            "perhaps with a lower lr in another run_dir"
        )

    def _leave(self) -> int:
        if not self.stop_signal.number:
            logger.info("%d frames are done; see %s", self.frame, self.settings.run_dir)
            return 0
        again = "the same command goes on from here" if self.settings.save_snapshot else "nothing is saved"
        logger.info("stopped after frame %d: %s", self.frame, again)
        return 128 + self.stop_signal.number
