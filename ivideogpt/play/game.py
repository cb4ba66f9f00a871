"""One person's game: a session of the model, the real world under the same actions, and everything since the start.

Knows no web. Not for several threads at once.

Shapes: N samples, t context frames, H W pixels, D action dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ivideogpt.data.clips.transforms import channels_first, unit_range
from ivideogpt.errors import UserError
from ivideogpt.flags import SAMPLING_RULES
from ivideogpt.play.starts import Floats, Outcome, Start, StartChoice
from ivideogpt.session import Session, SessionMark, UnsoundModel, are_finite
from ivideogpt.transformer import Sampling
from ivideogpt.video_io import Pixels, to_pixels
from ivideogpt.world_model import WorldModel

MAX_SAMPLES = 8
MAX_BYTES = 256 << 20  # pixels that a game remembers
MAX_STEPS = 2000
Numbers = NDArray[np.float32]
GoalSource = Literal["shown", "end", "none"]


@dataclass(frozen=True)
class Settings:
    """Choices about the imagined world. ``top_k`` 0 keeps all tokens."""

    num_samples: int
    temperature: float
    top_k: int
    rule: str

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise UserError(f"num_samples is {self.num_samples}, expected 1 to {MAX_SAMPLES}")
        if not 0.01 <= self.temperature <= 10:
            raise UserError(f"temperature is {self.temperature}, expected 0.01 to 10")
        if not 0 <= self.top_k <= 2**20:
            raise UserError(f"top_k is {self.top_k}, expected 0 (all) or more")
        if self.rule not in SAMPLING_RULES:
            raise UserError(f"rule is {self.rule!r}, expected one of {', '.join(SAMPLING_RULES)}")

    @classmethod
    def of_checkpoint(cls, sampling: Sampling) -> Settings:
        return cls(1, sampling.temperature, 1 if sampling.greedy else sampling.top_k or 0, sampling.rule)

    def sampling(self, usual: Sampling) -> Sampling:
        chosen: dict[str, Any] = {"temperature": self.temperature, "top_k": self.top_k or None, "rule": self.rule}
        return replace(usual, greedy=False, **chosen)


@dataclass(frozen=True)
class Moment:
    """Frames after a step, and what is needed to go on from there. The first moment is the last context frame.

    Attributes:
        dream: (N, H, W, 3) imagined frames.
        action: (D,) that led here; zero for the first.
        reward, success: (N,) as the model has heads for them.
        mark: where the session stood; None once it cannot be rewound to there.
    """

    dream: Pixels
    action: Floats
    real: Outcome
    real_state: Any
    reward: Numbers | None = None
    success: Numbers | None = None
    mark: SessionMark | None = None


class Game:
    """The timeline of one person: step, seek to a past moment, and step from there.

    A step behind the last moment replaces what came after. Going back to a frame of the present context is exact: the
    same actions give the same frames again. From older ones the model goes on with what it sees in their last t frames.

    Attributes:
        selected: the sample that is shown large, saved and continued from.
        goal: (H, W, 3) frame that the planner makes for; None if none was chosen. Stays when a scene begins again.
        plan: what the planner keeps from one step to the next.
    """

    def __init__(self, model: WorldModel, choices: dict[str, StartChoice]) -> None:
        self.model, self.choices = model, choices
        self.settings = Settings.of_checkpoint(model.metadata.generation)
        self.selected, self.key = 0, ""
        self.goal: Pixels | None = None
        self.plan: Any = None
        self._start: Start | None = None
        self.moments: list[Moment] = []
        self.position = 0
        self._session: Session | None = None
        self._stands_at: int | None = None  # the moment at which session and real world stand; None: elsewhere

    @property
    def action_dim(self) -> int:
        return self.model.action_dim or 0

    def from_controls(self, controls: Floats) -> Floats:
        """Return the action (D,) of controls in [-1, 1], which span the model's usual actions."""
        low, high = self.model.action_bounds
        return (low + high) / np.float32(2) + (high - low) / np.float32(2) * controls

    def to_controls(self, action: Floats) -> Floats:
        low, high = self.model.action_bounds
        return (action - (low + high) / np.float32(2)) / ((high - low) / np.float32(2))

    @property
    def has_goal(self) -> bool:
        """Whether the first context frame is a goal, not a moment."""
        return self.model.metadata.goal_conditioned

    @property
    def title(self) -> str:
        return self.choices[self.key].title

    @property
    def now(self) -> Moment:
        return self.moments[self.position]

    @property
    def max_steps(self) -> int:
        return min(MAX_STEPS, MAX_BYTES // max(self.now.dream.nbytes + self.now.dream[0].nbytes, 1))

    def reset(self, key: str, seed: int) -> None:
        """Begin at one of the choices.

        Raises:
            UserError: there is no such choice, or it cannot be opened; the game is what it was.
        """
        if key not in self.choices:
            raise UserError(f"there is no start {key!r}")
        start = self.choices[key].open(seed)
        self.close()
        if key != self.key:
            self.goal = None
        self._start, self.key, self.seed, self.position = start, key, seed, 0
        dream = np.repeat(start.context[-1:], self.settings.num_samples, axis=0)
        action = np.zeros(self.action_dim, np.float32)
        self.moments = [Moment(dream, action, Outcome(start.context[-1]), start.real.snapshot())]
        self._session = self._stands_at = None

    def change(self, settings: Settings) -> None:
        """Change how the model samples, from the next step on."""
        self.settings = settings
        self._session = self._stands_at = None
        if self.position == 0:
            assert self._start is not None
            dream = np.repeat(self._start.context[-1:], settings.num_samples, axis=0)
            self.moments[0] = replace(self.now, dream=dream)

    def seek(self, position: int) -> None:
        """Look at another moment; the next step goes on from there."""
        if not 0 <= position < len(self.moments):
            raise UserError(f"position is {position}, expected 0 to {len(self.moments) - 1}")
        self.position = position

    def choose_goal(self, source: GoalSource) -> None:
        """Choose the frame that the planner makes for: the shown one, or the one that the recorded episode ends with.

        Raises:
            UserError: the episode's end is not known.
        """
        goal = {"shown": self.frames(self.position, self.selected)[-1], "end": self._real_world().end}.get(source)
        if goal is None and source == "end":
            raise UserError("how this episode ends is not known: take the frame that you see as the goal")
        self.goal = goal

    def step(self, action: Floats) -> None:
        """Go on from the shown moment under an action (D,); later moments are dropped."""
        if self.position >= self.max_steps:
            raise UserError(f"this game is full ({self.max_steps} steps): go back in time, or restart")
        session, real = self._at_position(), self._real_world()
        self._stands_at = None  # until all of it has succeeded
        imagined = session.step(torch.from_numpy(action)[None].expand(self._num_clips, -1) if self.action_dim else None)
        if not are_finite(imagined.frames):
            raise UnsoundModel
        outcome = real.step(action)
        moment = Moment(
            to_pixels(imagined.frames.flatten(0, 1)),
            action,
            outcome,
            real.snapshot(),
            None if imagined.reward is None else imagined.reward.flatten().cpu().numpy(),
            None if imagined.success is None else imagined.success.flatten().cpu().numpy(),
            session.mark(),
        )
        self.moments[self.position + 1 :] = [moment]
        self.position = self._stands_at = self.position + 1
        self._forget_marks(session)

    def policy_action(self, name: str) -> Floats | None:
        """Return the action that a policy of the real world wants at the shown moment; None if it has none."""
        real = self._real_world()
        if self._stands_at != self.position:
            real.restore(self.now.real_state)
            self._stands_at = None
        policy = real.policies.get(name)
        return None if policy is None else policy()

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies of the real world."""
        return tuple(self._real_world().policies)

    def frames(self, last: int, sample: int) -> Pixels:
        """Return context and imagined frames of a sample up to a moment, (t + last, H, W, 3)."""
        assert self._start is not None
        imagined = [moment.dream[min(sample, len(moment.dream) - 1)] for moment in self.moments[1 : last + 1]]
        return np.stack([*self._start.context, *imagined])

    def context(self, sample: int) -> Pixels:
        """Return what the model goes on from at the shown moment: the last t frames of a sample, (t, H, W, 3)."""
        t, frames = self.model.metadata.context_length, self.frames(self.position, sample)
        return np.concatenate([frames[:1], frames[1:][1 - t :]]) if self.has_goal else frames[-t:]

    def latest(self, number: int) -> Pixels:
        """Return the last frames of the selected sample, (number, H, W, 3), the first one repeated if there are fewer.

        The goal of a goal-conditioned model is none of them.
        """
        frames = self.frames(self.position, self.selected)[self.has_goal :]
        return frames[np.arange(len(frames) - number, len(frames)).clip(min=0)]

    def actions(self, last: int) -> Floats:
        """Return the action taken at each of :meth:`frames`, zero at the last one."""
        assert self._start is not None
        taken = [moment.action for moment in self.moments[1 : last + 1]]
        return np.stack([*self._start.actions, *taken, np.zeros(self.action_dim, np.float32)]).astype(np.float32)

    def real_frames(self, last: int) -> Pixels | None:
        """Return what really happened up to a moment, in step with :meth:`frames`; None if that is not known."""
        assert self._start is not None
        real = [moment.real.frame for moment in self.moments[1 : last + 1]]
        known = [frame for frame in real if frame is not None]
        return np.stack([*self._start.context, *known]) if len(known) == len(real) else None

    def check_begun(self) -> None:
        """Raise UserError before the first reset."""
        if self._start is None:
            raise UserError("this game has not begun: send a reset first")

    def close(self) -> None:
        """Let the real world go; the game can be reset."""
        if self._start is not None:
            self._start.real.close()
            self._start = None

    def _real_world(self) -> Any:
        self.check_begun()
        assert self._start is not None
        return self._start.real

    def _at_position(self) -> Session:
        """Bring session and real world to the shown moment."""
        session, moment = self._session, self.now
        if session is not None and self._stands_at == self.position:
            return session
        self._real_world().restore(moment.real_state)
        if session is not None and moment.mark is not None and session.can_rewind(moment.mark):
            session.rewind(moment.mark)
        else:
            session = self._session = self._read()
            self.moments[self.position] = replace(moment, mark=session.mark())
        self._stands_at = self.position
        return session

    def _read(self) -> Session:
        """Start a session on the last t frames: those of every sample, or of one if their number has changed."""
        num_samples, num_shown = self.settings.num_samples, len(self.now.dream)
        is_shared = num_samples != num_shown or self.position == 0
        samples = [min(self.selected, num_shown - 1)] if is_shared else range(num_samples)
        contexts = np.stack([self.context(sample) for sample in samples])
        self._num_clips = len(contexts)
        context = unit_range(channels_first(contexts.reshape(-1, *contexts.shape[2:])))
        sampling = self.settings.sampling(self.model.metadata.generation)
        return self.model.start(
            context.unflatten(0, contexts.shape[:2]), num_samples // len(contexts), sampling=sampling, seed=self.seed
        )

    def _forget_marks(self, session: Session) -> None:
        """Let go of marks that the session has slid past; they hold frames on its device."""
        for k in range(self.position - 1, -1, -1):
            mark = self.moments[k].mark
            if mark is None:
                return
            if not session.can_rewind(mark):
                self.moments[k] = replace(self.moments[k], mark=None)
