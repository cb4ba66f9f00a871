"""MBPO: when a world model learns from real episodes, and when it imagines episodes that the agent learns from.

Knows when that happens and what is kept of it; how a world model works is its own affair.

Shapes: B batch, H imagined agent steps, S frames of a segment, K frames in a stack, D action dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from ivideogpt.runs.averages import MetricAverager
from ivideogpt.video_io import side_by_side
from mbrl.agent.drqv2 import DrQAgent
from mbrl.envs.seeds import episode_seed
from mbrl.metric_logger import MetricLogger, enlarged, with_rewards
from mbrl.replay.replay_buffer import ReplayBuffer, Segments
from mbrl.schedule import MbpoSchedule
from mbrl.world_model.imagination import ImaginationError, Imagined, Policy, Validation

logger = logging.getLogger(__name__)

VALIDATION_SEGMENTS = 16
VIDEO_ROWS = 4  # rows of the video of a round, or of a validation


class WorldModelInTheLoop(Protocol):
    def update_tokenizer(self, segments: Segments) -> Mapping[str, Tensor]: ...

    def update_transformer(self, segments: Segments) -> Mapping[str, Tensor]: ...

    def imagine(self, starts: Tensor, act: Policy, horizon: int, seed: int) -> Imagined:
        """
        Args:
            starts: (B, 3 K, h, w) uint8.
            act: stacks like these to actions (B, D).

        Raises:
            ImaginationError: a frame or a reward is not finite.
        """

    def validate(self, segments: Segments, seed: int) -> Validation: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Mbpo:
    """Add MBPO to the steps of DrQ-v2. A world model that fails is left alone from then on; the run goes on.

    Args:
        rng: of what is sampled, the run's own.
    """

    def __init__(
        self,
        schedule: MbpoSchedule,
        world_model: WorldModelInTheLoop,
        agent: DrQAgent,
        real: ReplayBuffer,
        imagined: ReplayBuffer,
        rng: np.random.Generator,
        metric_logger: MetricLogger,
    ) -> None:
        self._schedule, self._settings = schedule, schedule.settings
        self._world_model, self._agent = world_model, agent
        self._real, self._imagined = real, imagined
        self._rng = rng
        self._metric_logger = metric_logger
        self.averager = MetricAverager()
        self._num_rounds = 0
        self._stopped = False

    def begins(self, step: int) -> bool:
        """Return whether :meth:`prepare` will make the initial updates now, which take long."""
        return not self._stopped and self._schedule.begins(step)

    def prepare(self, step: int, check: Callable[[], None]) -> None:
        """Train the model before the agent learns, and imagine for the first time.

        Args:
            check: is called between initial updates and rounds; what it raises ends them.
        """
        if self._stopped:
            return
        with self._stopping_on_failure():
            if self._schedule.begins(step):
                self._begin(step, check)
            elif self._schedule.model_learns(step):
                for _ in range(self._settings.update_gen_times):
                    self._update(with_tokenizer=self._schedule.tokenizer_learns(step))

    def imagine(self, step: int) -> None:
        """Make a round of imagination with the current policy, if it is due."""
        if self._stopped or not self._schedule.imagines(step):
            return
        with self._stopping_on_failure():
            generator = torch.Generator().manual_seed(self._seed("dreamed actions", self._num_rounds))
            video = f"{self._schedule.frame(step):09d}" if self._schedule.evaluates(step) else None
            self._imagine(lambda stacks: self._agent.act(stacks, step, mean=False, generator=generator), video)

    def validate(self, step: int) -> None:
        """Validate the model on held-out episodes, once it has begun to learn; logs a line if there are none yet."""
        if not self._stopped and step > self._schedule.first_step:
            self._validate(step)

    def _validate(self, step: int) -> None:
        length = self._settings.world_model.segment_length
        if not self._real.num_segments(length, held_out=True):
            logger.info("no episode is held out yet: the world model is not validated")
            return
        frame = self._schedule.frame(step)
        rng = np.random.default_rng(self._seed("validation", step))
        with self._stopping_on_failure():
            segments = self._real.sample_segments(VALIDATION_SEGMENTS, length, rng, held_out=True)
            validation = self._world_model.validate(segments, self._seed("validated", step))
            self._metric_logger.write("validation", frame, validation.metrics)
            for number, video in enumerate(validation.videos[:VIDEO_ROWS] if self._settings.save_video else ()):
                self._metric_logger.write_video("validation", f"{frame:09d}-{number}", video)

    def state_dict(self) -> dict[str, Any]:
        return {"num_rounds": self._num_rounds, "stopped": self._stopped, "window": self.averager.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_rounds, self._stopped = state["num_rounds"], state["stopped"]
        self.averager.load_state_dict(state["window"])

    def _begin(self, step: int, check: Callable[[], None]) -> None:
        """Make the initial updates, and rounds of imagination with random actions: the agent is untrained."""
        for _ in trange(self._settings.init_update_gen_steps, desc="world model", leave=False, disable=None):
            check()
            self._update(with_tokenizer=True)
        self._metric_logger.write("world_model", self._schedule.frame(step), self.averager.take())
        self._validate(step)
        for number in range(self._settings.init_gen_times):
            check()
            generator = torch.Generator().manual_seed(self._seed("dreamed actions", self._num_rounds))
            video = f"{self._schedule.frame(step):09d}-random" if number == 0 else None
            self._imagine(lambda stacks, g=generator: self._agent.random_actions(len(stacks), g), video)  # type: ignore[misc]

    def _update(self, with_tokenizer: bool) -> None:
        model = self._settings.world_model
        segments = self._real.sample_segments(model.batch_size, model.segment_length, self._rng)
        if with_tokenizer:
            self._add("tokenizer_", self._world_model.update_tokenizer(segments))
        self._add("transformer_", self._world_model.update_transformer(segments))

    def _add(self, prefix: str, metrics: Mapping[str, Tensor]) -> None:
        self.averager.add({prefix + name: value for name, value in metrics.items()})

    def _imagine(self, act: Callable[[Tensor], Tensor], video: str | None) -> None:
        settings = self._settings
        starts = self._real.sample_starts(settings.gen_batch, settings.nstep, self._rng)
        seed = self._seed("imagination", self._num_rounds)
        self._num_rounds += 1
        episodes = self._world_model.imagine(starts, act, settings.gen_horizon, seed)
        self._imagined.add_many(episodes.frames, episodes.earlier, episodes.action, episodes.reward, episodes.discount)
        self.averager.add({"imagined_reward": episodes.reward[:, 1:].mean()})
        if video is not None and self._settings.save_video:
            frames, rewards = (part[:VIDEO_ROWS].cpu().numpy() for part in (episodes.frames, episodes.reward))
            videos = [with_rewards(enlarged(row), earned) for row, earned in zip(frames, rewards, strict=True)]
            self._metric_logger.write_video("imagined", video, side_by_side(videos))

    def _seed(self, purpose: str, number: int) -> int:
        return episode_seed(self._settings.seed, purpose, number)

    @contextmanager
    def _stopping_on_failure(self) -> Iterator[None]:
        try:
            yield
        except ImaginationError as error:
            self._stopped = True
            self._imagined.clear()  # the last rounds come from a model that was about to fail
            logger.error("the world model failed (%s): no imagination from here on, the agent goes on without", error)
