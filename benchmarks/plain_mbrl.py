"""Baselines for the parts of model-based RL, implemented in the obvious way.

Slow on purpose: shifts by grid sampling of float pictures, one optimizer per network, metrics fetched at every update;
replay by a DataLoader over stacked episodes; a rollout that reads its whole past for every frame; a world model in
contiguous memory format with an unfused optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM

from benchmarks.measuring import Timer
from benchmarks.released import append_frame
from ivideogpt.losses import TokenizerLoss, TokenizerLossConfig
from ivideogpt.metrics.frame_metrics import find_lpips
from ivideogpt.paths import LPIPS_FOLDER
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.world_model import WorldModel
from mbrl.agent.drqv2 import DrQConfig
from mbrl.agent.networks import Actor, Encoder, TwinCritic
from mbrl.replay.replay_buffer import EpisodeShape, Transitions
from mbrl.world_model.imagination import Policy
from mbrl.world_model.video_predictor import VideoPredictor

SHIFT, STDDEV, CLIP, TAU, LR = 4, 0.5, 0.3, 0.01, 1e-4


class PlainDrQ:
    """Networks of the project's shapes, updated as the published code does."""

    def __init__(self, shape: EpisodeShape, config: DrQConfig, device: torch.device) -> None:
        self.device = device
        self.encoder = Encoder(shape.frame_stack * 3, shape.image_size)
        sizes = self.encoder.num_features, shape.action_dim, config.feature_dim, config.hidden_dim
        self.actor, self.critic, self.target = Actor(*sizes), TwinCritic(*sizes), TwinCritic(*sizes)
        self.target.load_state_dict(self.critic.state_dict())
        for network in (self.encoder, self.actor, self.critic, self.target):
            network.to(device)
        networks: tuple[nn.Module, ...] = (self.encoder, self.actor, self.critic)
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=LR, foreach=False) for network in networks]

    def update(self, batch: Transitions) -> dict[str, float]:
        batch = batch.to(self.device)
        encoder_optimizer, actor_optimizer, critic_optimizer = self.optimizers
        features = self._features(batch.obs)
        with torch.no_grad():
            following = self._features(batch.next_obs)
            value = self.target(following, self._explore(following)).amin(0)
            wanted = batch.reward + batch.discount * value
        values = self.critic(features, batch.action)
        critic_loss = F.mse_loss(values[0], wanted) + F.mse_loss(values[1], wanted)
        encoder_optimizer.zero_grad()
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        encoder_optimizer.step()
        features = features.detach()
        actor_loss = -self.critic(features, self._explore(features)).amin(0).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()
        for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            slow.data.copy_(TAU * fast.data + (1 - TAU) * slow.data)
        return {"critic_loss": critic_loss.item(), "actor_loss": actor_loss.item()}

    def _features(self, stacks: Tensor) -> Tensor:
        return self.encoder.convolutions(shifted(stacks) / 255 - 0.5).flatten(1)

    def _explore(self, features: Tensor) -> Tensor:
        mean = self.actor(features)
        return (mean + (STDDEV * torch.randn_like(mean)).clamp(-CLIP, CLIP)).clamp(-1, 1)


def shifted(stacks: Tensor) -> Tensor:
    """Shift (B, C, H, H) randomly by up to four pixels, in float."""
    batch, _, height, _ = stacks.shape
    padded = F.pad(stacks.float(), (SHIFT,) * 4, mode="replicate")
    size = height + 2 * SHIFT
    axis = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=stacks.device)[:height]
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).expand(batch, -1, -1, -1)
    by = torch.randint(0, 2 * SHIFT + 1, (batch, 1, 1, 2), device=stacks.device).float() * 2 / size
    return F.grid_sample(padded, grid + by, padding_mode="zeros", align_corners=False)


class EpisodeRows(IterableDataset):
    """Transitions of episodes in npz files, which are read once and kept with whole stacks for every row."""

    def __init__(self, paths: list[Path], nstep: int, discount: float) -> None:
        self.episodes = [{name: array.copy() for name, array in np.load(path).items()} for path in paths]
        self.nstep, self.discount = nstep, discount

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while True:
            episode = self.episodes[np.random.randint(len(self.episodes))]
            observation, reward = episode["observation"], np.float32(0)
            i = np.random.randint(1, len(observation) - self.nstep + 1)
            for k in range(self.nstep):
                reward += np.float32(self.discount**k) * episode["reward"][i + k]
            yield observation[i - 1], episode["action"][i], reward, observation[i + self.nstep - 1]


def batches_from_files(paths: list[Path], batch_size: int, nstep: int, discount: float) -> Iterator[list[Tensor]]:
    """Build a loader without workers, which would compete with training for a CPU."""
    return iter(DataLoader(EpisodeRows(paths, nstep, discount), batch_size))


@torch.no_grad()
def imagine(
    model: WorldModel, llm: LlamaForCausalLM, starts: Tensor, act: Policy, horizon: int, timer: Timer
) -> Tensor:
    """Imagine frames (B, H, 3, h, w); every frame reads and decodes the whole past again, row by row."""
    transformer, tokenizer = model.transformer, model.tokenizer
    assert isinstance(transformer, HeadModelWithAction)
    layout = tokenizer.layout(horizon)
    frames_so_far = starts.to(model.device).unflatten(1, (-1, 3))
    context = frames_so_far[:, -layout.context_frames :].float() / 255
    dummies = context[:, -1:].expand(-1, horizon, -1, -1, -1)
    tokens, _ = tokenizer.tokenize(torch.cat([context, dummies], dim=1), layout.context_frames)
    tokens, actions, sampling = tokens[:, : layout.prompt_length], [], model.metadata.generation
    for _ in range(horizon):
        actions.append(act(frames_so_far[:, -3:].flatten(1, 2)))
        past = torch.stack(actions, dim=1)
        tokens = append_frame(transformer, llm, layout, tokens, past, sampling, timer)
        frames = tokenizer.detokenize(tokens[:, :-1], layout.context_frames)
        frames_so_far = torch.cat([frames_so_far, (frames[:, -1:].clamp(0, 1) * 255).round().byte()], dim=1)
    return frames_so_far[:, -horizon:]


def in_the_obvious_way(predictor: VideoPredictor) -> VideoPredictor:
    """Copy a predictor into contiguous memory format, with an unfused optimizer."""
    tokenizer = deepcopy(predictor.tokenizer).to(memory_format=torch.contiguous_format)
    transformer = deepcopy(predictor.transformer)
    settings = predictor.config
    lpips = None if settings.without_lpips else find_lpips(LPIPS_FOLDER, predictor.model.device)
    trained = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    return VideoPredictor(
        WorldModel(tokenizer, transformer, predictor.model.metadata),
        TokenizerLoss(TokenizerLossConfig(), lpips),
        AdamW(trained, lr=settings.tok_lr, weight_decay=settings.tok_wd, foreach=False),
        AdamW(transformer.parameters(), lr=settings.model_lr, weight_decay=settings.model_wd, foreach=False),
        settings,
        torch.Generator().manual_seed(0),
    )
