"""DrQ-v2: an actor and twin critics that learn from pictures. Knows batches of transitions, not where they come from.

Shapes: B batch, K frames in a stack, H W pixels, D action dimension. An agent step is ``action_repeat`` frames.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ivideogpt.errors import UserError, first_line
from ivideogpt.runs.state import load_moments
from mbrl.agent.networks import Actor, Encoder, TwinCritic, initialise, noisy, random_shifts, shifted
from mbrl.replay.episodes import FRAME_CHANNELS
from mbrl.replay.replay_buffer import EpisodeShape, Transitions

logger = logging.getLogger(__name__)

NUM_NUMBERS = {"": 1, "linear": 3, "step_linear": 5}  # kind of noise schedule -> count


def parse_noise_schedule(text: str) -> Callable[[int], float]:
    """Return the standard deviation of the noise on actions as a function of the agent step.

    ``text`` is ``linear(first, last, duration)``, ``step_linear(first, middle, duration, last, duration)`` or one
    number. Durations are agent steps; noise is linear in each and stays at its last value.
    """
    match = re.fullmatch(r"\s*(?:(linear|step_linear)\((.*)\)|(.*))\s*", text)
    kind, inside, alone = match.groups() if match else (None, None, text)
    try:
        numbers = [float(number) for number in (inside or alone or "").split(",")]
    except ValueError:
        numbers = []
    first, levels, durations = numbers[:1], numbers[1::2], numbers[2::2]
    valid = len(numbers) == NUM_NUMBERS[kind or ""] and all(map(math.isfinite, numbers))
    if not (valid and min(first + levels) >= 0 and min(durations, default=1) > 0):
        raise UserError(
            f"stddev_schedule {text!r} should be a number, or like linear(1.0,0.1,100000) or "
            "step_linear(1.0,0.1,100000,0.05,50000), none negative"
        )

    def stddev(step: int) -> float:
        (level,), start = first, 0.0
        for next_level, duration in zip(levels, durations, strict=True):
            done = min(max((step - start) / duration, 0.0), 1.0)
            level, start = (1 - done) * level + done * next_level, start + duration
        return level

    return stddev


@dataclass(frozen=True)
class DrQConfig:
    """Architecture and hyperparameters of the agent."""

    lr: float = 1e-4
    weight_decay: float = 1e-6
    critic_target_tau: float = 0.01
    feature_dim: int = 50
    hidden_dim: int = 1024
    stddev_schedule: str = "linear(1.0,0.1,100000)"  # noise on actions, over agent steps
    stddev_clip: float = 0.3  # most that noise moves an action in updates; acting has no such bound
    num_expl_steps: int = 2000  # agent steps with uniformly random actions before the policy acts
    delay_steps: int = 1  # updates from one to the next in which the actor learns and the target network moves
    beta: float = 0.0  # has no meaning but 0
    compile: bool | None = None  # losses and gradients; None: on a GPU, if it works there. The first update waits

    def __post_init__(self) -> None:
        parse_noise_schedule(self.stddev_schedule)
        if self.beta != 0:
            raise UserError(f"agent.beta is {self.beta}: only 0 is known; leave it out")
        for name in ("lr", "feature_dim", "hidden_dim", "delay_steps", "stddev_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"agent.{name} is {getattr(self, name)}: it must be more than 0")
        if not 0 < self.critic_target_tau <= 1:
            raise UserError(f"agent.critic_target_tau is {self.critic_target_tau}: it must be in (0, 1]")


class DrQAgent:
    """Acts and learns on the device that its networks and its generator are on.

    All randomness of updates comes from ``generator``, that of acting from the caller's.
    """

    def __init__(
        self, encoder: Encoder, actor: Actor, critic: TwinCritic, config: DrQConfig, generator: torch.Generator
    ) -> None:
        self.config = config
        self.device = generator.device
        self.encoder, self.actor, self.critic = encoder, actor, critic
        self.critic_target = copy.deepcopy(critic).requires_grad_(False)
        self.num_updates = 0
        self._generator = generator
        self._stddev = parse_noise_schedule(config.stddev_schedule)
        self._move_target = get_ema_multi_avg_fn(1 - config.critic_target_tau)
        settings: dict[str, Any] = dict(lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self._critic_optimizer = torch.optim.Adam([*encoder.parameters(), *critic.parameters()], **settings)
        self._actor_optimizer = torch.optim.Adam(actor.parameters(), **settings)
        losses: tuple[Callable[..., Any], ...] = (self._critic_loss, self._actor_loss)
        if config.compile or (config.compile is None and self.device.type == "cuda" and _compiles(self.device)):
            losses = tuple(torch.compile(loss, fullgraph=True, dynamic=False) for loss in losses)
        self._compute_critic_loss, self._compute_actor_loss = losses

    @torch.no_grad()
    def act(self, stacks: Tensor, step: int, *, mean: bool, generator: torch.Generator) -> Tensor:
        """Choose actions, uniformly random in the first ``num_expl_steps`` unless the mean is asked for.

        Args:
            stacks: (B, 3 K, H, W) uint8 on any device.
            step: agent steps so far; they decide how much noise there is.
            mean: without noise, as in evaluation.
            generator: of the noise; on a CPU it gives the same noise whatever device the agent is on.

        Returns:
            (B, D) in [-1, 1] on the agent's device.
        """
        if step < self.config.num_expl_steps and not mean:
            return self.random_actions(len(stacks), generator)
        action: Tensor = self.actor(self.encoder(stacks.to(self.device)))
        if mean:
            return action
        noise = torch.randn(action.shape, generator=generator, device=generator.device).to(self.device)
        return noisy(action, self._stddev(step) * noise, clip=None)

    def random_actions(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Sample actions (B, D) uniformly in [-1, 1]."""
        size = (num_rows, self.actor.action_dim)
        return (2 * torch.rand(size, generator=generator, device=generator.device) - 1).to(self.device)

    def update(self, batch: Transitions, step: int) -> dict[str, Tensor]:
        """Learn from a batch, without waiting for the device.

        A loss that is not finite makes the weights NaN, and with them all later losses: whoever looks at the metrics
        now and then, and at :meth:`weight_norms` before saving, misses none.

        Returns:
            Detached scalars on the device.
        """
        batch = batch.to(self.device)
        shifts, next_shifts = (random_shifts(len(batch), self._generator) for _ in range(2))
        noise = self._noise(batch, step)
        loss, features, metrics = self._compute_critic_loss(
            batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, shifts, next_shifts, noise
        )
        _descend(self._critic_optimizer, loss)
        if self.num_updates % self.config.delay_steps == 0:
            loss = self._compute_actor_loss(features, self._noise(batch, step))
            _descend(self._actor_optimizer, loss)
            self._move_target(list(self.critic_target.parameters()), list(self.critic.parameters()), 0)
            metrics["actor_loss"] = loss.detach()
        self.num_updates += 1
        return metrics

    def weight_norms(self) -> dict[str, float]:
        """Return the norm of each network's weights, which is not finite if any weight is not. Waits for the device.

        The last update may have had a finite loss and gradients that were not.
        """
        return {
            f"the norm of the {name}'s weights": get_total_norm(list(part.parameters())).item()
            for name, part in self._parts().items()
            if isinstance(part, nn.Module)
        }

    def _noise(self, batch: Transitions, step: int) -> Tensor:
        """Sample noise (B, D) for the policy's actions."""
        unit = torch.randn(batch.action.shape, generator=self._generator, device=self.device)
        return self._stddev(step) * unit

    # The losses draw nothing and know no step: compiled, they are the same program in every update.

    def _critic_loss(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_obs: Tensor,
        shifts: Tensor,
        next_shifts: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the critics' loss, features of ``obs`` (without gradients) and metrics."""
        target = self._target_values(reward, discount, shifted(next_obs, next_shifts), noise)
        features = self.encoder(shifted(obs, shifts))
        values = self.critic(features, action)
        loss = F.mse_loss(values[0], target) + F.mse_loss(values[1], target)
        metrics = {
            "critic_loss": loss.detach(),
            "critic_value": values.detach().mean(),
            "target_value": target.mean(),
            "batch_reward": reward.mean(),
        }
        return loss, features.detach(), metrics

    @torch.no_grad()
    def _target_values(self, reward: Tensor, discount: Tensor, next_obs: Tensor, noise: Tensor) -> Tensor:
        """Return the critics' targets (B,): rewards plus the lower of two discounted estimates."""
        features = self.encoder(next_obs)
        values: Tensor = self.critic_target(features, self._explore(features, noise))
        return reward + discount * values.amin(0)

    def _actor_loss(self, features: Tensor, noise: Tensor) -> Tensor:
        judge = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        values: Tensor = functional_call(self.critic, judge, (features, self._explore(features, noise)))
        return -values.amin(0).mean()

    def _explore(self, features: Tensor, noise: Tensor) -> Tensor:
        return noisy(self.actor(features), noise, self.config.stddev_clip)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later updates depend on. Not a copy: save it before the next update."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "generator": self._generator.get_state(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            if isinstance(part, Optimizer):
                load_moments(part, state[name])
            else:
                part.load_state_dict(state[name])
        if state["generator"].shape == self._generator.get_state().shape:
            self._generator.set_state(state["generator"].cpu())
        else:  # state of another device type, whose generator cannot be continued
            self._generator.manual_seed(self._generator.initial_seed() + state["num_updates"])
        self.num_updates = state["num_updates"]

    def _parts(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "actor": self.actor,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self._critic_optimizer,
            "actor_optimizer": self._actor_optimizer,
        }


def _compiles(device: torch.device) -> bool:
    """Return whether torch.compile works here: Triton, a C compiler, Python's headers and a new enough GPU."""
    probe = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(lambda numbers: (numbers * numbers).sum())(probe).backward()
    except Exception as error:  # several packages raise many types
        logger.warning("the agent's updates are not compiled, since torch.compile fails here: %s", first_line(error))
        return False
    return True


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def build_agent(shape: EpisodeShape, config: DrQConfig, seed: int, device: torch.device) -> DrQAgent:
    """Build an agent whose initial weights depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    encoder = Encoder(shape.frame_stack * FRAME_CHANNELS, shape.image_size)
    sizes = encoder.num_features, shape.action_dim, config.feature_dim, config.hidden_dim
    actor, critic = Actor(*sizes), TwinCritic(*sizes)
    for network in (encoder, actor, critic):
        initialise(network, generator)
        network.to(device)
    return DrQAgent(encoder, actor, critic, config, torch.Generator(device).manual_seed(seed))
