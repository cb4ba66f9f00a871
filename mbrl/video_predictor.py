"""World model of an agent: trains on its episodes and imagines further ones.

Knows segments of episodes, starts and policies; knows neither environment nor agent nor schedule.

Shapes: B batch, S frames of a segment, t context frames, F = S - t future frames, K frames in a stack, D action
dimension, h w pixels. Frames are uint8 outside and in [0, 1] inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ivideogpt.envs.imagination import Imagination
from ivideogpt.errors import UserError
from ivideogpt.evaluation.visualize import error_frames
from ivideogpt.losses import LossTerms, TokenizerLoss, transformer_loss
from ivideogpt.runs.state import load_moments
from ivideogpt.session import UnsoundModel, are_finite
from ivideogpt.training.common.optim import SoundUpdates
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.video_io import Pixels, side_by_side, to_pixels
from ivideogpt.world_model import WorldModel, evaluating, symlog
from mbrl.metric_logger import captioned
from mbrl.replay.episodes import FRAME_CHANNELS
from mbrl.replay.replay_buffer import Imagined, Segments
from mbrl.settings import WorldModelConfig


class VideoPredictor:
    """A world model with a reward head and the optimizers of both networks. Both are in eval mode between calls.

    All randomness of the updates comes from ``generator``, but dropout's, which is torch's global one.
    """

    def __init__(
        self,
        model: WorldModel,
        tokenizer_loss: TokenizerLoss,
        tokenizer_optimizer: Optimizer,
        transformer_optimizer: Optimizer,
        config: WorldModelConfig,
        generator: torch.Generator,
    ) -> None:
        assert isinstance(model.transformer, HeadModelWithAction)
        self.model = model
        self.config = config
        self.tokenizer, self.transformer = model.tokenizer.eval(), model.transformer.eval()
        self._tokenizer_loss = tokenizer_loss
        self._optimizers = {"tokenizer": tokenizer_optimizer, "transformer": transformer_optimizer}
        self._updates = {half: SoundUpdates(half, optimizer) for half, optimizer in self._optimizers.items()}
        self._generator = generator
        self._layout = self.tokenizer.layout(config.segment_length - config.context_length)

    # ---- learning

    def update_tokenizer(self, segments: Segments) -> dict[str, Tensor]:
        """Update on the context and some future frames, the same ones in all segments. Returns detached metrics."""
        t, frames = self.config.context_length, self._frames(segments.frames)
        order = torch.randperm(frames.shape[1] - t, generator=self._generator)
        chosen = torch.cat([torch.arange(t), t + order[: self.config.max_target_frames].sort().values])
        clips = frames[:, chosen.to(frames.device)]
        context, future = clips[:, :t], clips[:, t:]
        with self._autocast():
            output = self.tokenizer(
                sample=context.flatten(0, 1),
                return_loss=True,
                segment_len=future.shape[1],
                dyn_sample=future.flatten(0, 1),
            )
            terms = self._tokenizer_loss(clips, output, t)
        return self._descend("tokenizer", self.tokenizer, terms)

    def update_transformer(self, segments: Segments) -> dict[str, Tensor]:
        """Update on tokens, actions and rewards of whole segments. Returns detached metrics."""
        frames, actions, rewards = self._frames(segments.frames), *self._actions_and_rewards(segments)
        space = self.model.metadata.find_space(self.model.action_space)
        with torch.no_grad():  # in full precision, as imagination will tokenize its starts
            tokens, _ = self.tokenizer.tokenize(frames, self.config.context_length)
        with self._autocast(), evaluating(self.transformer):  # remembers every submodule's mode
            self.transformer.train()  # dropout belongs to updates, not to imagination
            terms = transformer_loss(
                self.transformer,
                tokens,
                self._layout,
                self.model.metadata.encode_actions(actions, space),
                symlog(rewards) if self.config.symlog else rewards,
                self.config.reward_weight,
            )
        return self._descend("transformer", self.transformer, terms)

    def _descend(self, half: str, network: nn.Module, terms: LossTerms) -> dict[str, Tensor]:
        updates = self._updates[half]
        updates.optimizer.zero_grad()
        terms.total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.max_grad_norm or math.inf)
        skipped = updates.step(terms.total, norm.detach())
        return terms.detached() | {"grad_norm": norm.detach(), "skipped_updates": skipped}

    # ---- imagining

    @torch.no_grad()
    def imagine(self, starts: Tensor, act: Callable[[Tensor], Tensor], horizon: int, seed: int) -> Imagined:
        """Roll out ``starts`` (B, 3 K, h, w) uint8 under the policy ``act``, which sees stacked frames as in reality.

        UnsoundModel if the model gives NaN or infinity.
        """
        frames = starts.unflatten(1, (-1, FRAME_CHANNELS))  # (B, K, 3, h, w)
        num_stacked = frames.shape[1]
        imagination = Imagination(self.model, frames, num_stacked, seed=seed, max_frames=horizon)
        recorded, actions, rewards = [imagination.stacks], [], []
        sound = torch.ones((), dtype=torch.bool, device=self.model.device)
        for _ in range(horizon):
            action = act(imagination.stacks.flatten(1, 2)).to(self.model.device)
            step = imagination.step(action)
            assert step.reward is not None
            recorded.append(imagination.stacks[:, -1:])
            actions.append(action)
            rewards.append(step.reward)
            sound &= are_finite(step.frames, step.reward)
        if not sound:  # asked once, since the host waits for the answer
            if not torch.stack(actions).isfinite().all():
                raise UserError("the policy's actions are not finite: the agent is lost, not the world model")
            raise UnsoundModel
        frames = torch.cat(recorded, dim=1)
        return Imagined(
            frames=frames[:, num_stacked - 1 :],
            earlier=frames[:, : num_stacked - 1],
            action=torch.stack([torch.zeros_like(actions[0]), *actions], dim=1),
            reward=torch.stack([torch.zeros_like(rewards[0]), *rewards], dim=1),
        )

    @torch.no_grad()
    def validate(self, segments: Segments, seed: int) -> tuple[dict[str, float], list[Pixels]]:
        """Roll segments out under their recorded actions and compare with what happened.

        Returns:
            Mean squared errors of frames in [0, 1] and of rewards in the environment's units, and a video
            (F, H, W, 3) a segment: truth, prediction, error; both rewards below.
        """
        t, frames = self.config.context_length, self._frames(segments.frames)
        actions, rewards = self._actions_and_rewards(segments)
        future = frames[:, t:]
        layout = self.model.layout.with_future_frames(future.shape[1])
        rollout = self.model.predict(frames[:, :t], layout.to_future(actions), seed=seed)
        assert rollout.rewards is not None
        predicted, predicted_rewards, rewards = rollout.frames[:, 0], rollout.rewards[:, 0], layout.to_future(rewards)
        metrics = {
            "frame_mse": (predicted - future).square().mean().item(),
            "reward_mse": (predicted_rewards - rewards).square().mean().item(),
        }
        videos = [
            comparison_video(to_pixels(true), to_pixels(made), true_rewards.tolist(), made_rewards.tolist())
            for true, made, true_rewards, made_rewards in zip(
                future, predicted, rewards.cpu(), predicted_rewards.cpu(), strict=True
            )
        ]
        return metrics, videos

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later updates depend on. Not a copy: save it before the next update."""
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "transformer": self.transformer.state_dict(),
            "generator": self._generator.get_state(),
            "perceptual_loss": self._tokenizer_loss.lpips is not None,
            "optimizers": {half: optimizer.state_dict() for half, optimizer in self._optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """UserError if the perceptual loss was there and is not, or the other way round."""
        before, now = state["perceptual_loss"], self._tokenizer_loss.lpips is not None
        if before != now:
            raise UserError(
                f"the run was trained with{'' if before else 'out'} the perceptual loss: set "
                f"world_model.without_lpips={str(not before).lower()} again, or use another run_dir"
            )
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.transformer.load_state_dict(state["transformer"])
        self._generator.set_state(state["generator"])
        for half, optimizer in self._optimizers.items():
            load_moments(optimizer, state["optimizers"][half])

    # ---- helpers

    def _frames(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.model.device, non_blocking=True).float() / 255

    def _actions_and_rewards(self, segments: Segments) -> tuple[Tensor, Tensor]:
        return segments.actions.to(self.model.device).float(), segments.rewards.to(self.model.device).float()

    def _autocast(self) -> torch.autocast:
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def comparison_video(
    truth: Pixels, prediction: Pixels, true_rewards: list[float], predicted_rewards: list[float]
) -> Pixels:
    """Place videos (F, h, w, 3) side by side with their difference, rewards below."""
    rewards = zip(true_rewards, predicted_rewards, strict=True)
    texts = [f"reward {true:.2f}, predicted {predicted:.2f}" for true, predicted in rewards]
    return captioned(side_by_side([truth, prediction, error_frames(truth, prediction)]), texts)
