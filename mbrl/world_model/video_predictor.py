"""The world model in the loop: trained on what the agent saw, asked what would follow.

Knows segments of episodes, starts and policies; knows neither environment nor agent nor schedule.

Shapes: B batch, S frames of a segment, t context frames, F = S - t future frames, K frames in a stack, D action
dimension, h w pixels. Frames are uint8 outside and in [0, 1] inside.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ivideogpt.errors import UserError
from ivideogpt.evaluation.visualize import INK, PAPER, error_frames, font
from ivideogpt.losses import LossTerms, TokenizerLoss, TokenizerLossConfig, transformer_loss
from ivideogpt.metrics.frame_metrics import load_lpips
from ivideogpt.paths import LPIPS_FOLDER, here_or_in_project
from ivideogpt.pretrained import (
    ModelMetadata,
    build_transformer,
    initialise_transformer,
    load_tokenizer,
    model_folder,
    read_llama_config,
)
from ivideogpt.training.common.updates import SoundUpdates
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.video_io import Pixels, side_by_side, to_pixels
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel, evaluating, symlog
from mbrl.replay.episodes import FRAME_CHANNELS
from mbrl.replay.replay_buffer import Segments
from mbrl.world_model.imagination import ImaginationError, Imagined, Policy, Validation

RELEASED = "pretrained_models/ivideogpt-oxe-64-act-free"
PUBLISHED = "thuml/ivideogpt-oxe-64-act-free"
NEW_TOKENIZER = "configs/ctx_vae64/config.json"
INERT_KEYS = ("fast_reward_predictor", "reward_lr", "reward_wd")
AT_LEAST_0 = ("tok_lr", "tok_wd", "model_lr", "model_wd", "reward_weight")
BELOW_1 = ("tok_beta1", "tok_beta2", "llama_attn_drop")
WITHOUT_LPIPS = "or let the tokenizer learn without the perceptual loss: world_model.without_lpips=true"
FILM_SCALE, CAPTION_HEIGHT, CAPTION_SIZE = 2, 18, 11

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorldModelConfig:
    """The keys of ``world_model``; the paper's settings.

    Attributes:
        load_pretrained_model: start the transformer from ``pretrained_transformer_path``; otherwise it is new.
        pretrained_model_name_or_path: the tokenizer; None for a new one.
        load_internal_llm: the transformer's file is of an action-free model, or only its language model is wanted.
        llama_attn_drop: attention dropout in the transformer's updates; None: as ``config_name`` says.
        symlog: rewards are learned in symlog space.
        max_grad_norm: None: gradients are not clipped.
        selected_params: the codebooks stay as they are.
        max_target_frames: future frames of a segment that the tokenizer trains on.
        reward_weight: of the reward's squared error beside the cross-entropy.
        without_lpips: the tokenizer learns without the perceptual loss.
        fast_reward_predictor, reward_lr, reward_wd: historical, without effect.
    """

    load_pretrained_model: bool = True
    config_name: str = "configs/llama/config.json"
    vqgan_type: str = "ctx_vqgan"
    pretrained_model_name_or_path: str | None = f"{RELEASED}/tokenizer"
    pretrained_transformer_path: str = f"{RELEASED}/transformer"
    load_internal_llm: bool = True
    llama_attn_drop: float | None = 0.1
    symlog: bool = True
    context_length: int = 2
    segment_length: int = 12
    action_dim: int = 4
    batch_size: int = 16
    selected_params: bool = True
    tok_lr: float = 1e-4
    tok_wd: float = 0.0
    tok_beta1: float = 0.9
    tok_beta2: float = 0.999
    max_grad_norm: float | None = 1.0
    max_target_frames: int = 5
    model_lr: float = 1e-4
    model_wd: float = 0.0
    embed_no_wd: bool = True
    reward_weight: float = 1.0
    without_lpips: bool = False
    fast_reward_predictor: bool = False
    reward_lr: float = 1e-4
    reward_wd: float = 0.0

    def __post_init__(self) -> None:
        if self.vqgan_type != "ctx_vqgan":
            raise UserError(f"world_model.vqgan_type is {self.vqgan_type!r}, only 'ctx_vqgan' is supported")
        if not 0 < self.context_length < self.segment_length:
            raise UserError(
                f"world_model.segment_length {self.segment_length} must be more than its context_length "
                f"{self.context_length}, which must be positive"
            )
        for name in ("batch_size", "max_target_frames", "action_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in (*AT_LEAST_0, *BELOW_1):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be at least 0")
        for name in BELOW_1:
            if (getattr(self, name) or 0) >= 1:
                raise UserError(f"world_model.{name} is {getattr(self, name)}: it must be less than 1")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"world_model.max_grad_norm is {self.max_grad_norm}: it must be more than 0")
        for name in INERT_KEYS:
            if getattr(self, name) != WorldModelConfig.__dataclass_fields__[name].default:
                logger.warning("world_model.%s has no effect: the transformer's own head predicts rewards", name)


class VideoPredictor:
    """A world model with a reward head, and the optimizers of its two halves. Both are in eval mode between calls.

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
        """One step on the context and a few future frames, the same ones of all segments. Returns detached scalars."""
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
        """One step on tokens, actions and rewards of whole segments. Returns detached scalars."""
        frames, actions, rewards = self._frames(segments.frames), *self._actions_and_rewards(segments)
        normalise = self.model.metadata.action_normalization
        with torch.no_grad():  # in full precision, as imagination will tokenize its starts
            tokens, _ = self.tokenizer.tokenize(frames, self.config.context_length)
        with self._autocast(), _training(self.transformer):
            terms = transformer_loss(
                self.transformer,
                tokens,
                self._layout,
                normalise(actions) if normalise else actions,
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
    def imagine(self, starts: Tensor, act: Policy, horizon: int, seed: int) -> Imagined:
        """What would follow from ``starts`` (B, 3 K, h, w) uint8 if ``act`` decided; it sees stacks as in reality.

        Raises:
            ImaginationError: the model gives NaN or infinity.
        """
        film = starts.to(self.model.device).unflatten(1, (-1, FRAME_CHANNELS))  # (B, K, 3, h, w)
        num_stacked, context_length = film.shape[1], self.config.context_length
        if num_stacked < context_length:
            raise UserError(f"stacks of {num_stacked} frames hold no context of {context_length}: raise frame_stack")
        session = self.model.start(self._frames(film[:, -context_length:]), seed=seed, max_frames=horizon)
        actions, rewards, sound = [], [], torch.ones((), dtype=torch.bool, device=film.device)
        for _ in range(horizon):
            action = act(film[:, -num_stacked:].flatten(1, 2)).to(film.device)
            step = session.step(action)
            assert step.reward is not None
            film = torch.cat([film, _as_pixels(step.frames)], dim=1)
            actions.append(action)
            rewards.append(step.reward[:, 0])
            sound &= step.frames.isfinite().all() & step.reward.isfinite().all()
        if not sound:  # asked once, since the host waits for the answer
            if not torch.stack(actions).isfinite().all():
                raise UserError("the policy's actions are not finite: the agent is lost, not the world model")
            raise ImaginationError("the world model predicts frames or rewards that are not finite")
        start = torch.zeros_like(actions[0])
        reward = torch.stack([torch.zeros_like(rewards[0]), *rewards], dim=1)
        return Imagined(
            frames=film[:, num_stacked - 1 :],
            earlier=film[:, : num_stacked - 1],
            action=torch.stack([start, *actions], dim=1),
            reward=reward,
            discount=torch.ones_like(reward),
        )

    @torch.no_grad()
    def validate(self, segments: Segments, seed: int) -> Validation:
        """Roll segments out under their recorded actions and compare with what happened."""
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
        films = [
            film(to_pixels(true), to_pixels(made), true_rewards.tolist(), made_rewards.tolist())
            for true, made, true_rewards, made_rewards in zip(
                future, predicted, rewards.cpu(), predicted_rewards.cpu(), strict=True
            )
        ]
        return Validation(metrics, films)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that later updates depend on. Not a copy: save it before the next update."""
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "transformer": self.transformer.state_dict(),
            "generator": self._generator.get_state(),
            "perceptual_loss": self._tokenizer_loss.lpips is not None,
            "optimizers": {half: optimizer.state_dict() for half, optimizer in self._optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the perceptual loss was there and is not, or the other way round.
        """
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
            optimizer.load_state_dict(state["optimizers"][half])

    # ---- helpers

    def _frames(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.model.device, non_blocking=True).float() / 255

    def _actions_and_rewards(self, segments: Segments) -> tuple[Tensor, Tensor]:
        return segments.actions.to(self.model.device).float(), segments.rewards.to(self.model.device).float()

    def _autocast(self) -> torch.autocast:
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Training mode for the duration: dropout belongs to updates, not to imagination."""
    with evaluating(network):  # remembers every submodule's mode
        network.train()
        yield


def _as_pixels(frames: Tensor) -> Tensor:
    """One new frame (B, 1, 3, h, w) in [0, 1] as replay holds it, uint8."""
    return (frames * 255).round().to(torch.uint8)


def film(truth: Pixels, prediction: Pixels, true_rewards: list[float], predicted_rewards: list[float]) -> Pixels:
    """Videos (F, h, w, 3) side by side with their difference, enlarged; the rewards of arriving in each frame below."""
    pictures = side_by_side([truth, prediction, error_frames(truth, prediction)])
    enlarged = pictures.repeat(FILM_SCALE, axis=1).repeat(FILM_SCALE, axis=2)
    rewards = zip(true_rewards, predicted_rewards, strict=True)
    captions = [f"reward {true:.2f}, predicted {predicted:.2f}" for true, predicted in rewards]
    return np.stack([_captioned(picture, text) for picture, text in zip(enlarged, captions, strict=True)])


def _captioned(picture: Pixels, text: str) -> Pixels:
    height, width = picture.shape[:2]
    page = Image.new("RGB", (width, height + CAPTION_HEIGHT), PAPER)
    page.paste(Image.fromarray(picture))
    ImageDraw.Draw(page).text((4, height + 2), text, fill=INK, font=font(CAPTION_SIZE))
    return np.asarray(page)


# ---- building


def build_video_predictor(
    config: WorldModelConfig,
    device: torch.device,
    seed: int,
    image_size: int = 64,
    lpips_path: str | Path = LPIPS_FOLDER,
) -> VideoPredictor:
    """A world model and what it learns with.

    Raises:
        UserError: as :func:`build_world_model`, or the perceptual loss is wanted and its weights are not there.
    """
    if config.without_lpips:
        logger.warning("the tokenizer learns WITHOUT the perceptual loss, as world_model.without_lpips=true says")
        loss = TokenizerLoss(TokenizerLossConfig())
    else:
        loss = TokenizerLoss(TokenizerLossConfig(), load_lpips(lpips_path, device, WITHOUT_LPIPS))
    model = build_world_model(config, seed, image_size).to(device)
    if config.selected_params:
        for codebook in (model.tokenizer.quantize, model.tokenizer.dynamics_quantize):
            codebook.requires_grad_(False)
        if config.pretrained_model_name_or_path is None:
            logger.warning(
                "the codebooks of a new tokenizer stay random: world_model.selected_params=false trains them"
            )
    trained = [parameter for parameter in model.tokenizer.parameters() if parameter.requires_grad]
    betas = (config.tok_beta1, config.tok_beta2)
    return VideoPredictor(
        model,
        loss,
        AdamW(trained, lr=config.tok_lr, betas=betas, weight_decay=config.tok_wd, fused=True),
        AdamW(_decay_groups(model.transformer, config), lr=config.model_lr, fused=True),
        config,
        torch.Generator().manual_seed(seed),
    )


def build_world_model(config: WorldModelConfig, seed: int, image_size: int = 64) -> WorldModel:
    """With a reward head, from a released checkpoint, the bundled one, or from scratch; on the CPU.

    Args:
        seed: of what starts fresh.
        image_size: of the frames that it will be shown, pixels.

    Raises:
        UserError: a checkpoint is missing, or does not go with the configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer(config)
        if tokenizer.config.resolution != image_size:
            raise UserError(
                f"the tokenizer in {config.pretrained_model_name_or_path} is for {tokenizer.config.resolution} px, "
                f"and the environment shows {image_size} px: name one for these"
            )
        tokenizer.set_context_length(config.context_length)
        transformer = _transformer(config, tokenizer)
    return WorldModel(tokenizer, transformer, _metadata(config, tokenizer))


def _tokenizer(config: WorldModelConfig) -> CompressiveVQModel:
    if config.pretrained_model_name_or_path is not None:
        return load_tokenizer(_given_or_bundled(config.pretrained_model_name_or_path))
    settings = CompressiveVQModel.load_config(here_or_in_project(NEW_TOKENIZER))
    return CompressiveVQModel.from_config({**settings, "context_length": config.context_length})


def _transformer(config: WorldModelConfig, tokenizer: CompressiveVQModel) -> HeadModelWithAction:
    llama = read_llama_config(here_or_in_project(config.config_name))
    if config.llama_attn_drop is not None:
        llama.attention_dropout = config.llama_attn_drop
    layout = tokenizer.layout(config.segment_length - config.context_length)
    if layout.sequence_length > llama.max_position_embeddings:
        fits = config.context_length + layout.future_frames_that_fit(llama.max_position_embeddings)
        raise UserError(
            f"world_model.segment_length {config.segment_length} takes {layout.sequence_length} tokens, but the "
            f"transformer has {llama.max_position_embeddings} positions: at most {fits} frames fit; lower gen_horizon"
        )
    transformer = build_transformer(llama, layout, config.action_dim, reward_prediction=True)
    assert isinstance(transformer, HeadModelWithAction)
    if config.load_pretrained_model:
        path = _given_or_bundled(config.pretrained_transformer_path)
        initialise_transformer(transformer, path, config.load_internal_llm)
    return transformer


def _metadata(config: WorldModelConfig, tokenizer: CompressiveVQModel) -> ModelMetadata:
    """What the model will be; how it is sampled, and its actions normalized, is what its starting point says."""
    stated = _stated_metadata(config)
    known: dict[str, Any] = {}
    if stated is not None:
        _check_rewards(config, stated)
        known["generation"] = stated.generation
        if stated.action_dim == config.action_dim:
            known["action_normalization"] = stated.action_normalization
    return ModelMetadata(
        resolution=tokenizer.config.resolution,
        context_length=config.context_length,
        segment_length=config.segment_length,
        action_dim=config.action_dim,
        reward_prediction=True,
        symlog=config.symlog,
        **known,
    )


def _check_rewards(config: WorldModelConfig, stated: ModelMetadata) -> None:
    takes_reward_head = config.load_pretrained_model and not config.load_internal_llm and stated.reward_prediction
    if takes_reward_head and stated.symlog != config.symlog:
        raise UserError(
            f"world_model.symlog is {str(config.symlog).lower()}, but {config.pretrained_transformer_path} learned "
            f"rewards with{'' if stated.symlog else 'out'} it: set it to {str(stated.symlog).lower()}"
        )


def _stated_metadata(config: WorldModelConfig) -> ModelMetadata | None:
    """The transformer's, or what stands beside the tokenizer."""
    starts = [config.pretrained_transformer_path] if config.load_pretrained_model else []
    if config.pretrained_model_name_or_path is not None:
        starts.append(config.pretrained_model_name_or_path)
    found = (ModelMetadata.read(model_folder(_given_or_bundled(start))) for start in starts)
    return next((metadata for metadata in found if metadata is not None), None)


def _given_or_bundled(path: str) -> str | Path:
    """Relative paths also name folders of the project, wherever the command is run from; others may be hub ids.

    Raises:
        UserError: the published checkpoint is wanted and is not there.
    """
    found = here_or_in_project(path)
    if found.exists():
        return found
    if path.startswith(f"{RELEASED}/"):
        raise UserError(
            f"no checkpoint folder {path}: put the files of {PUBLISHED} there, or give {PUBLISHED} itself, which is "
            "then downloaded, or the bundled model, as world_model.pretrained_model_name_or_path and "
            "world_model.pretrained_transformer_path (docs/mbrl.md)"
        )
    return path


def _decay_groups(transformer: HeadModelWithAction, config: WorldModelConfig) -> list[dict[str, object]]:
    from ivideogpt.training.common.optim import weight_decay_groups  # brings accelerate along

    return weight_decay_groups(transformer, config.model_wd, config.embed_no_wd)
