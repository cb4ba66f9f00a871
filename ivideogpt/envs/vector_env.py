"""A world model as a ``gymnasium.vector.VectorEnv``: one session for all rows. Knows gymnasium; knows no agent.

Shapes: N rows, K frames in a stack, M frames of a start, T steps of a chunk, D action dimension, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.envs.contexts import Contexts, GivenContexts, start_sampler
from ivideogpt.envs.imagination import Imagination
from ivideogpt.envs.settings import FrameFunction, WorldModelEnvSettings
from ivideogpt.errors import UserError
from ivideogpt.session import UnsoundModel, are_finite
from ivideogpt.world_model import WorldModel

Observation = Any  # images (N, H, W, 3 K) uint8, or a dict with them: arrays, from `chunk_step` tensors
Infos = dict[str, Any]
RENDER_FPS = 10
NO_REWARD = (
    "the model has no reward head: give reward=, a function of frames (N, 3, H, W) in [0, 1] that returns (N,), or use "
    "a model trained by train_gpt.py --reward_prediction"
)


class WorldModelVectorEnv(VectorEnv):
    """Episodes in a world model, in the N rows of one session.

    With ``reset(seed=s)`` row i has seed s + i. An episode depends on its row's seed, on its number since that seed and
    on its actions, and on nothing else.
    """

    def __init__(
        self, model: WorldModel, contexts: Contexts | str | Path | NDArray[np.uint8], num_envs: int = 1, **settings: Any
    ) -> None:
        """
        Args:
            contexts: source of the frames that episodes begin with: a path of recorded episodes, frames
                (E, M, H, W, 3) uint8, or a :class:`~ivideogpt.envs.contexts.Contexts`.
            settings: attributes of :class:`~ivideogpt.envs.settings.WorldModelEnvSettings`.

        Raises:
            UserError: the model takes no actions or knows no reward, or there are no contexts for it.
        """
        self.settings = WorldModelEnvSettings(**settings)
        if num_envs < 1:
            raise UserError(f"num_envs is {num_envs}, must be at least 1")
        if model.action_dim is None:
            raise UserError("this model is action-free: an environment needs one that takes actions")
        if model.reward_head is None and self.settings.reward is None:
            raise UserError(NO_REWARD)
        self.model, self.num_envs, self.render_mode = model, num_envs, self.settings.render_mode
        self.horizon = self.settings.horizon or model.layout.future_frames
        self.num_start_frames = max(model.tokenizer.context_length, self.settings.frame_stack)
        self._sample_start = start_sampler(contexts, model, self.num_start_frames)
        self._set_spaces(model.action_dim)
        mode = self.settings.autoreset_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS, "autoreset_mode": mode}
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._episodes = [0] * num_envs  # seed of each row's episode
        self._imagination: Imagination | None = None
        self._ended = np.zeros(num_envs, bool)  # rows that only a reset lets go on
        # of the present episodes, (N,), on the model's device
        self.elapsed_steps = torch.zeros(num_envs, dtype=torch.int64, device=model.device)
        self._returns = torch.zeros(num_envs, device=model.device)
        self._has_succeeded = torch.zeros(num_envs, dtype=torch.bool, device=model.device)
        self._is_sound = torch.ones((), dtype=torch.bool, device=model.device)

    def _set_spaces(self, action_dim: int) -> None:
        resolution, low, high = self.model.metadata.resolution, *self._action_bounds(action_dim)
        image = Box(0, 255, (resolution, resolution, 3 * self.settings.frame_stack), np.uint8)
        key = self.settings.observation_key
        self.single_observation_space = image if key is None else Dict({key: image})
        self.single_action_space = Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _action_bounds(self, action_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.settings.action_bounds is None:
            return self.model.action_bounds
        low, high = self.settings.action_bounds
        return np.full(action_dim, low, np.float32), np.full(action_dim, high, np.float32)

    # ---- gymnasium

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Infos]:
        """Begin all episodes anew, or those of the rows that ``options["reset_mask"]`` (N,) bool names.

        Args:
            seed: of row i, seed + i; or one for each row. A row whose seed is None goes on with its generator.
            options: ``reset_mask``; ``contexts``, frames (rows that begin anew, M, H, W, 3) uint8 to begin with.
        """
        options = options or {}
        rows = self._reset_mask(options)
        given = self._given_starts(rows, options.get("contexts"))
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if not isinstance(seeds, Sequence | np.ndarray | None):
            raise UserError(f"seed is {seeds}, must be a whole number, or one for each row")
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"{len(seeds)} seeds were given for {self.num_envs} rows")
        known = [number for number in (() if seeds is None else seeds) if number is not None]
        for number in known:
            if not isinstance(number, int | np.integer) or number < 0:
                raise UserError(f"a seed is {number}, must be a whole number, at least 0")
        for row, generator_seed in enumerate(() if seeds is None else seeds):
            if rows[row] and generator_seed is not None:
                self._generators[row] = np.random.default_rng(generator_seed)
        starts = self._starts(rows, given)
        if "reset_mask" in options:
            self._restart(rows, starts)
        else:
            self._begin(starts)
        return self._observe(), self._infos(rows, np.zeros(self.num_envs, bool))

    def step(self, actions: NDArray[np.floating]) -> tuple[Observation, NDArray, NDArray, NDArray, Infos]:
        """Take actions (N, D).

        Returns:
            Observations; rewards (N,) float64; terminations and truncations (N,) bool; infos with ``is_success`` (N,),
            whether this step succeeded. In ``final_info`` it tells whether any step of the episode did.
        """
        active = self._active_rows()
        rewards, ends = np.zeros(self.num_envs), np.zeros((3, self.num_envs), bool)
        if active.any():
            checked, is_active = self._check_actions(actions, ()), torch.from_numpy(active)
            ignored = ~is_active[:, None].to(checked.device)
            reward, *flags = self._take(checked.masked_fill(ignored, 0), is_active.to(self.model.device))
            self._check_sound()
            rewards, ends = reward.cpu().double().numpy(), torch.stack(flags).cpu().numpy()
        if not active.all():
            self._restart(~active, self._starts(~active))
        terminations, truncations, successes = ends
        ended, infos = terminations | truncations, Infos()
        if self.settings.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._ended = ended
        elif ended.any():
            infos = self._final_infos(ended)
            self._restart(ended, self._starts(ended))
            successes = successes & ~ended
        infos |= self._infos(np.ones(self.num_envs, bool), successes)
        return self._observe(), rewards, terminations, truncations, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return the newest frame (H, W, 3) of each row."""
        if self.render_mode is None:
            return None
        return tuple(_images(self._running().stacks[:, -1:]).cpu().numpy())

    # ---- policies that act in chunks

    def chunk_step(self, actions: Tensor) -> tuple[list[Observation], Tensor, Tensor, Tensor, list[Infos]]:
        """Take actions (N, T, D) one after another. Everything stays on the model's device.

        A row that ends keeps its frame and gets no reward for the rest of the chunk, which was meant for the episode
        that has ended. At the end of the chunk it begins anew, unless the autoreset mode is DISABLED: the last
        observation is then the new episode's first one, and the one before is ``final_obs`` of the last infos.

        Returns:
            T observations of tensors; rewards, terminations and truncations (N, T); and T infos. Each holds
            ``is_success``; the last one ``episode``: ``return``, ``success_once`` and ``length``, (N,) each.
        """
        actions = self._check_actions(actions, (-1,))
        active = torch.from_numpy(self._active_rows()).to(self.model.device)
        stacks, observations, taken = self._running().stacks, [], []
        for step_actions in actions.unbind(1):
            taken.append(self._take(step_actions, active))
            stacks = torch.where(active[:, None, None, None, None], self._running().stacks, stacks)
            observations.append(self._keyed(_images(stacks)))
            active = active & ~(taken[-1][1] | taken[-1][2])
        self._check_sound()
        rewards, terminations, truncations, successes = (torch.stack(values, dim=1) for values in zip(*taken))
        infos = [{"is_success": success} for success in successes.unbind(1)]
        self._end_chunk(~active, observations, infos[-1])
        return observations, rewards, terminations, truncations, infos

    def _end_chunk(self, ended: Tensor, observations: list[Observation], last_infos: Infos) -> None:
        episode = {"return": self._returns, "success_once": self._has_succeeded, "length": self.elapsed_steps}
        last_infos["episode"] = {name: values.clone() for name, values in episode.items()}
        self._ended = ended.cpu().numpy()
        if self.auto_reset and self._ended.any():
            last_infos |= {"final_obs": observations[-1], "_final_obs": ended}
            self._restart(self._ended, self._starts(self._ended))
            observations[-1] = self._keyed(_images(self._running().stacks))

    # ---- for trainers that ask an environment for its properties

    @property
    def auto_reset(self) -> bool:
        return self.settings.autoreset_mode is not AutoresetMode.DISABLED

    @property
    def ignore_terminations(self) -> bool:
        return self.settings.ignore_terminations

    @property
    def task(self) -> str:
        return self.settings.task

    @property
    def task_description(self) -> str:
        return self.settings.task

    @property
    def _max_episode_steps(self) -> int:
        return self.horizon

    @property
    def envs(self) -> tuple[WorldModelVectorEnv, ...]:
        """Return this environment for each row, as if the rows were environments of their own."""
        return (self,) * self.num_envs

    def call(self, name: str) -> tuple[Any, ...]:
        """Return an attribute for each row, or what ``render`` returns."""
        return self.render() or () if name == "render" else (getattr(self, name),) * self.num_envs

    # ---- steps

    def _take(self, actions: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step all rows. Returns rewards, terminations, truncations and successes (N,), nothing for inactive rows."""
        settings, step = self.settings, self._running().step(actions)
        reward = _scores("reward", settings.reward, step.frames, step.reward)
        assert reward is not None
        reward = reward.masked_fill(~active, 0)
        probability = _scores("success", settings.success, step.frames, step.success)
        success = active & (probability >= settings.success_threshold) if probability is not None else active & ~active
        self._is_sound &= are_finite(step.frames, reward, probability)
        self.elapsed_steps = self.elapsed_steps + active
        self._returns = self._returns + reward
        self._has_succeeded = self._has_succeeded | success
        terminated = torch.zeros_like(success) if settings.ignore_terminations else success
        return reward, terminated, active & (self.elapsed_steps >= self.horizon), success

    def _active_rows(self) -> NDArray[np.bool_]:
        """Return which rows take actions now; the others have ended, and begin anew in place of it."""
        if self._ended.any() and not self.auto_reset:
            raise UserError(
                f"the episodes of rows {self._ended.nonzero()[0].tolist()} have ended: reset them first, by "
                'reset(options={"reset_mask": ...})'
            )
        return ~self._ended

    def _check_actions(self, actions: NDArray[np.floating] | Tensor, chunk: tuple[int, ...]) -> Tensor:
        actions = torch.as_tensor(actions, dtype=torch.float32)
        expected = (self.num_envs, *chunk, self.model.action_dim)
        fits = (found == size or (size == -1 and found) for found, size in zip(actions.shape, expected))
        if actions.ndim != len(expected) or not all(fits):
            shape = ", ".join("steps" if size == -1 else str(size) for size in expected)
            raise UserError(f"actions have shape {tuple(actions.shape)}, expected ({shape})")
        return actions

    def _check_sound(self) -> None:
        if not self._is_sound:
            raise UnsoundModel

    # ---- beginnings

    def _reset_mask(self, options: Infos) -> NDArray[np.bool_]:
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise UserError(f"reset_mask is {mask!r}, expected an array of {self.num_envs} bool, one of them True")
        return mask

    def _given_starts(self, rows: NDArray[np.bool_], contexts: NDArray[np.uint8] | None) -> Tensor | None:
        """Check contexts before a generator is used: a refused reset must not change later episodes."""
        if contexts is None:
            return None
        given = GivenContexts(contexts)
        if len(contexts) != rows.sum():
            raise UserError(f"{len(contexts)} contexts were given for {rows.sum()} rows")
        return given.all(self.model.metadata, self.num_start_frames)

    def _starts(self, rows: NDArray[np.bool_], given: Tensor | None = None) -> Tensor:
        """Return (number of rows, M, 3, H, W) uint8: the given ones, or some that each row's generator samples."""
        numbers = rows.nonzero()[0].tolist()
        for row in numbers:
            self._episodes[row] = int(self._generators[row].integers(2**62))
        if given is not None:
            return given
        return torch.stack([self._sample_start(np.random.default_rng(self._episodes[row])) for row in numbers])

    def _begin(self, starts: Tensor) -> None:
        self._imagination = Imagination(
            self.model,
            starts,
            self.settings.frame_stack,
            seed=0,
            max_frames=self.horizon + 1,  # rows that wait for their restart may take a step that nobody sees
            row_numbers=self._episodes,
        )
        self._is_sound = torch.ones_like(self._is_sound)
        self._clear(np.ones(self.num_envs, bool))

    def _restart(self, rows: NDArray[np.bool_], starts: Tensor) -> None:
        self._running().restart(torch.from_numpy(rows), starts, [self._episodes[row] for row in rows.nonzero()[0]])
        self._clear(rows)

    def _clear(self, rows: NDArray[np.bool_]) -> None:
        self._ended = self._ended & ~rows
        cleared = torch.from_numpy(rows).to(self.model.device)
        self.elapsed_steps = self.elapsed_steps.masked_fill(cleared, 0)
        self._returns = self._returns.masked_fill(cleared, 0)
        self._has_succeeded = self._has_succeeded & ~cleared

    def _running(self) -> Imagination:
        if self._imagination is None:
            raise UserError("no episode has begun: call reset() first, without reset_mask")
        return self._imagination

    # ---- observations

    def _observe(self) -> Observation:
        return self._keyed(_images(self._running().stacks).cpu().numpy())

    def _keyed(self, images: Any) -> Observation:
        key = self.settings.observation_key
        return images if key is None else {key: images}

    def _infos(self, known: NDArray[np.bool_], successes: NDArray[np.bool_]) -> Infos:
        return {"is_success": successes, "_is_success": known.copy()}

    def _final_infos(self, ended: NDArray[np.bool_]) -> Infos:
        infos, has_succeeded = Infos(), self._has_succeeded.cpu().numpy()
        for row, observation in enumerate(iterate(self.observation_space, self._observe())):
            if ended[row]:
                final = {"final_obs": observation, "final_info": {"is_success": bool(has_succeeded[row])}}
                infos = self._add_info(infos, final, row)
        return infos


def _images(stacks: Tensor) -> Tensor:
    """Copy stacks (N, K, 3, H, W) to images (N, H, W, 3 K)."""
    return rearrange(stacks, "n k c h w -> n h w (k c)").contiguous()


def _scores(name: str, function: FrameFunction | None, frames: Tensor, predicted: Tensor | None) -> Tensor | None:
    """Return what a user's function says of the frames, (N,) float32, or else what the model's head predicts."""
    if function is None:
        return predicted
    values = function(frames)
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(frames),):
        found = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"the function {name}= returned {found}, expected a tensor of shape ({len(frames)},)")
    return values.to(frames.device, torch.float32)
