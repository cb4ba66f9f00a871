"""Schedules of a run as predicates on the number of agent steps, which is all that a resumed run needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl.settings import MbpoSettings, Settings

SNAPSHOT_EVERY = 10  # episodes
VALIDATE_EVERY = 5  # episodes


@dataclass(frozen=True)
class Schedule:
    settings: Settings

    def frame(self, step: int) -> int:
        return step * self.settings.action_repeat

    def steps(self, frames: int) -> int:
        return frames // self.settings.action_repeat

    def is_due(self, step: int, every: int) -> bool:
        """Return whether something due every so many frames, which need not be whole agent steps, is due now."""
        return step % max(self.steps(every), 1) == 0

    @property
    def num_steps(self) -> int:
        return self.steps(self.settings.num_train_frames)

    def evaluates(self, step: int) -> bool:
        return self.is_due(step, self.settings.eval_every_frames)

    def agent_learns(self, step: int) -> bool:
        started = step >= self.steps(self.settings.num_seed_frames)
        return started and step % self.settings.agent.update_every_steps == 0


@dataclass(frozen=True)
class MbpoSchedule(Schedule):
    settings: MbpoSettings

    @property
    def first_step(self) -> int:
        return self.steps(self.settings.start_mbpo)

    def begins(self, step: int) -> bool:
        """Return whether the initial updates and rounds of imagination are due."""
        return step == self.first_step

    def model_learns(self, step: int) -> bool:
        return step > self.first_step and self.is_due(step, self.settings.update_gen_every_step)

    def tokenizer_learns(self, step: int) -> bool:
        return self.is_due(step, self.settings.update_tokenizer_every_step)

    def imagines(self, step: int) -> bool:
        return step >= self.first_step and self.is_due(step, self.settings.gen_every_steps)
