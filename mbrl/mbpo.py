"""MBPO: when a world model learns from real episodes, and when it imagines episodes that the agent learns from.

Knows when that happens and what is kept of it; how a world model works is its own affair.

Shapes: B batch, T rows of an imagined episode, K frames in a stack, D action dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from ivideogpt.runs.averages import MetricAverager
from ivideogpt.video_io import side_by_side
from mbrl.agent.drqv2 import DrQAgent
from mbrl.envs.env_settings import episode_seed
from mbrl.metric_logger import MetricLogger, captioned
from mbrl.replay.replay_buffer import HELD_OUT_EVERY, ReplayBuffer
from mbrl.settings import MbpoSettings

if TYPE_CHECKING:
    from mbrl.video_predictor import VideoPredictor

logger = logging.getLogger(__name__)

VALIDATION_SEGMENTS = 16
VIDEO_ROWS = 4  # rows of the video of a round, or of a validation


class Mbpo:
    """Add MBPO to the steps of DrQ-v2. A world model that fails is left alone from then on; the run goes on.

    Args:
        rng: of what is sampled, the run's own.
    """

    def __init__(
        self,
        settings: MbpoSettings,
        world_model: VideoPredictor,
        agent: DrQAgent,
        real: ReplayBuffer,
        imagined: ReplayBuffer,
        rng: np.random.Generator,
        metric_logger: MetricLogger,
    ) -> None:
        self._settings, self.world_model, self._agent = settings, world_model, agent
        self._real, self._imagined = real, imagined
        self._rng, self._metric_logger = rng, metric_logger
        self.averager = MetricAverager()
        self._num_rounds = 0
        self._stopped = False

    def begins(self, step: int) -> bool:
        """Return whether :meth:`prepare` will make the initial updates now, which take long."""
        return not self._stopped and step == self._settings.first_step

    def prepare(self, step: int, check: Callable[[], None]) -> None:
        """Train the model before the agent learns, and imagine for the first time.

        Args:
            check: is called between initial updates and rounds; what it raises ends them.
        """
        if self._stopped:
            return
        with self._stopping_on_failure():
            if self.begins(step):
                self._begin(step, check)
            elif self._settings.model_learns(step):
                for _ in range(self._settings.update_gen_times):
                    self._update(with_tokenizer=self._settings.tokenizer_learns(step))

    def imagine(self, step: int) -> None:
        """Make a round of imagination with the current policy, if it is due."""
        if self._stopped or not self._settings.imagines(step):
            return
        with self._stopping_on_failure():
            video = f"{self._settings.frame(step):09d}" if self._settings.evaluates(step) else None
            self._imagine(
                lambda stacks, generator: self._agent.act(stacks, step, mean=False, generator=generator), video
            )

    def validate(self, step: int) -> None:
        """Validate the model on held-out episodes, once it has begun to learn and there are some."""
        if not self._stopped and step > self._settings.first_step and self._has_held_out():
            self._validate(step)

    def _has_held_out(self) -> bool:
        return self._real.num_segments(self._settings.world_model.segment_length, held_out=True) > 0

    def _validate(self, step: int) -> None:
        length, frame = self._settings.world_model.segment_length, self._settings.frame(step)
        rng = np.random.default_rng(self._seed("validation", step))
        with self._stopping_on_failure():
            segments = self._real.sample_segments(VALIDATION_SEGMENTS, length, rng, held_out=True)
            metrics, videos = self.world_model.validate(segments, self._seed("validated", step))
            self._metric_logger.write("validation", frame, metrics)
            for number, video in enumerate(videos[:VIDEO_ROWS] if self._settings.save_video else ()):
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
        self._metric_logger.write("world_model", self._settings.frame(step), self.averager.take())
        if self._has_held_out():
            self._validate(step)
        else:
            logger.info("no episode is held out yet (one of %d is): validating from then on", HELD_OUT_EVERY)
        for number in range(self._settings.init_gen_times):
            check()
            video = f"{self._settings.frame(step):09d}-random" if number == 0 else None
            self._imagine(lambda stacks, generator: self._agent.random_actions(len(stacks), generator), video)

    def _update(self, with_tokenizer: bool) -> None:
        model = self._settings.world_model
        segments = self._real.sample_segments(model.batch_size, model.segment_length, self._rng)
        if with_tokenizer:
            self._add("tokenizer_", self.world_model.update_tokenizer(segments))
        self._add("transformer_", self.world_model.update_transformer(segments))

    def _add(self, prefix: str, metrics: Mapping[str, Tensor]) -> None:
        self.averager.add({prefix + name: value for name, value in metrics.items()})

    def _imagine(self, act: Callable[[Tensor, torch.Generator], Tensor], video: str | None) -> None:
        """Make one round of imagination, and a video of this name of some episodes."""
        settings = self._settings
        generator = torch.Generator().manual_seed(self._seed("dreamed actions", self._num_rounds))
        starts = self._real.sample_starts(settings.gen_batch, settings.nstep, self._rng)
        seed = self._seed("imagination", self._num_rounds)
        self._num_rounds += 1
        episodes = self.world_model.imagine(starts, lambda stacks: act(stacks, generator), settings.gen_horizon, seed)
        self._imagined.add_imagined(episodes)
        self.averager.add({"imagined_reward": episodes.reward[:, 1:].mean()})
        if video is not None and settings.save_video:
            frames = episodes.frames[:VIDEO_ROWS].movedim(2, -1).cpu().numpy()  # (rows, T, h, w, 3)
            videos = [
                captioned(video, [f"reward {reward:.2f}" for reward in rewards])
                for video, rewards in zip(frames, episodes.reward[:VIDEO_ROWS].tolist(), strict=True)
            ]
            self._metric_logger.write_video("imagined", video, side_by_side(videos))

    def _seed(self, purpose: str, number: int) -> int:
        return episode_seed(self._settings.seed, purpose, number)

    @contextmanager
    def _stopping_on_failure(self) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            self._stopped = True
            self._imagined.clear()  # the last rounds come from a model that was about to fail
            logger.error("the world model failed (%s): no imagination from here on, the agent goes on without", error)
