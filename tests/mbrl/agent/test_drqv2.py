"""DrQ-v2 against its plain formulas, and what of it must not depend on chance."""

from __future__ import annotations

import copy
import functools
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ivideogpt.errors import UserError
from mbrl.agent import drqv2
from mbrl.agent.drqv2 import DrQAgent, DrQConfig, build_agent, parse_noise_schedule
from mbrl.agent.networks import PAD, Actor, Encoder, TwinCritic, noisy, random_shifts, shifted
from mbrl.replay.replay_buffer import EpisodeShape, Transitions

SHAPE = EpisodeShape(frame_stack=3, image_size=(24, 24), action_dim=2)
CONFIG = DrQConfig(lr=1e-3, feature_dim=8, hidden_dim=16, num_expl_steps=10)
CPU = torch.device("cpu")


def tiny_agent(seed: int = 0, **changes) -> DrQAgent:
    return build_agent(SHAPE, DrQConfig(**{**vars(CONFIG), **changes}), seed, CPU)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(size: int = 6, seed: int = 0) -> Transitions:
    random = generator(seed)
    obs, next_obs = torch.randint(0, 256, (2, size, 9, *SHAPE.image_size), dtype=torch.uint8, generator=random)
    action = 2 * torch.rand(size, 2, generator=random) - 1
    reward = torch.randn(size, generator=random)
    return Transitions(obs, action, reward, torch.full((size,), 0.97), next_obs)


def random_shift(stacks: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return shifted(stacks, random_shifts(len(stacks), random))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_sizes_and_initial_weights():
    """The published sizes at 64 pixels: 20000 features, orthogonal weights, no biases, targets that begin as copies."""
    agent = build_agent(EpisodeShape(3, (64, 64), 4), DrQConfig(hidden_dim=32), 0, CPU)
    assert agent.encoder.num_features == 20_000
    assert weights(agent.actor.trunk).numel() == 20_000 * 50 + 50 + 2 * 50
    assert torch.equal(weights(agent.critic), weights(agent.critic_target))
    second = agent.encoder.convolutions[2].weight.flatten(1)
    torch.testing.assert_close(second @ second.T, 2 * torch.eye(32), atol=1e-5, rtol=0)
    trunk = agent.critic.trunk[0].weight
    torch.testing.assert_close(trunk @ trunk.T, torch.eye(50), atol=1e-5, rtol=0)
    biases = [p for network in (agent.encoder, agent.actor, agent.critic) for n, p in network.named_parameters()
              if n.endswith("bias")]  # fmt: skip
    assert not any(bias.any() for bias in biases)
    heads = agent.critic.heads
    assert not torch.equal(heads[0][0].weight, heads[1][0].weight)


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = tiny_agent(seed=3)
    torch.manual_seed(2)
    assert torch.equal(weights(first.actor), weights(tiny_agent(seed=3).actor))
    assert not torch.equal(weights(first.actor), weights(tiny_agent(seed=4).actor))


def test_encoder_reads_pixels_between_minus_and_plus_one_half():
    """Bug prevented: a policy fed with pictures that are not in 0 .. 255 acts on a nearly blank one."""
    encoder = tiny_agent().encoder
    stacks = random_batch().obs
    expected = encoder.convolutions(stacks / 255.0 - 0.5).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(encoder(stacks), expected)
    with pytest.raises(AssertionError):
        encoder(stacks / 255.0)


def test_random_shift_is_a_crop_of_the_padded_stack():
    """One whole-pixel shift for all nine channels of a stack, another for each stack."""
    stacks = torch.randint(0, 256, (40, 9, 16, 20), dtype=torch.uint8, generator=generator())
    moved = random_shift(stacks, generator(1))
    padded = F.pad(stacks.float(), (PAD,) * 4, mode="replicate").to(torch.uint8)
    found = []
    for film, result in zip(padded, moved):
        crops = {(y, x): film[:, y : y + 16, x : x + 20] for y in range(2 * PAD + 1) for x in range(2 * PAD + 1)}
        found.append([place for place, crop in crops.items() if torch.equal(crop, result)])
    assert all(len(places) == 1 for places in found)
    rows, columns = (set(axis) for axis in zip(*(places[0] for places in found)))
    assert rows == columns == set(range(2 * PAD + 1))
    assert moved.dtype == torch.uint8


def test_random_shift_equals_the_published_bilinear_one():
    """Sampled on a grid, with padding: the same pixels up to rounding."""
    stacks = torch.randint(0, 256, (8, 9, 64, 64), dtype=torch.uint8, generator=generator())
    shift = torch.randint(2 * PAD + 1, (2, 8, 1), generator=generator(1)).float()  # as random_shift draws them
    padded = F.pad(stacks.float(), (PAD,) * 4, mode="replicate")
    side = padded.shape[-1]
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)[:64]
    x, y = line.expand(64, 64), line[:, None].expand(64, 64)
    grid = torch.stack([x + shift[1, :, :, None] * 2 / side, y + shift[0, :, :, None] * 2 / side], dim=-1)
    expected = F.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(random_shift(stacks, generator(1)).float(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("text", "step", "expected"),
    [
        ("linear(1.0,0.1,100000)", 0, 1.0),
        ("linear(1.0,0.1,100000)", 50_000, 0.55),
        ("linear(1.0, 0.1, 100000)", 100_000, 0.1),
        ("linear(1.0,0.1,1e5)", 900_000, 0.1),
        ("0.2", 77, 0.2),
        ("step_linear(1.0,0.4,100,0.1,200)", 0, 1.0),
        ("step_linear(1.0,0.4,100,0.1,200)", 50, 0.7),
        ("step_linear(1.0,0.4,100,0.1,200)", 100, 0.4),
        ("step_linear(1.0,0.4,100,0.1,200)", 200, 0.25),
        ("step_linear(1.0,0.4,100,0.1,200)", 300, 0.1),
        ("step_linear(1.0,0.4,100,0.1,200)", 10**6, 0.1),
    ],
)
def test_noise_schedule(text, step, expected):
    assert parse_noise_schedule(text)(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "linear(1.0,0.1)", "cosine(1,0,5)", "linear(1,0.1,0)", "-1", "nan", "linear(1,-,3)", "linear(1,0,inf)",
        "step_linear(1,0.1,9)", "step_linear(1,1,0,1,9)",
    ],
)  # fmt: skip
def test_wrong_noise_schedules_are_refused(text):
    with pytest.raises(UserError, match=r"stddev_schedule .* like linear\(1.0,0.1,100000\)"):
        parse_noise_schedule(text)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"agent.beta is 0.5"):
        DrQConfig(beta=0.5)
    with pytest.raises(UserError, match=r"agent.delay_steps is 0"):
        DrQConfig(delay_steps=0)


def test_acting():
    """One row or many, in numbers of each row's own; noise follows the schedule and is not clipped."""
    agent = tiny_agent(stddev_schedule="0.5")
    stacks = random_batch(400).obs
    mean = agent.act(stacks, 0, mean=True, generator=generator())
    torch.testing.assert_close(agent.act(stacks[:1], 0, mean=True, generator=generator()), mean[:1])
    assert mean.shape == (400, 2)
    noise = agent.act(stacks, 10, mean=False, generator=generator()) - mean
    assert 0.45 < noise.std() < 0.55
    assert noise.abs().max() > agent.config.stddev_clip
    again = agent.act(stacks, 10, mean=False, generator=generator())
    torch.testing.assert_close(again, noise + mean)
    assert not again.requires_grad


def test_exploration_is_uniform_until_its_last_step():
    agent = tiny_agent(stddev_schedule="0.0")
    stacks = random_batch(1).obs.expand(2000, -1, -1, -1)
    explored = agent.act(stacks, 9, mean=False, generator=generator())
    assert torch.equal(explored, agent.random_actions(2000, generator()))
    assert explored.abs().max() <= 1
    assert explored.std() == pytest.approx(1 / math.sqrt(3), abs=0.02)
    policy = agent.act(stacks[:2], 10, mean=False, generator=generator())
    torch.testing.assert_close(policy, agent.act(stacks[:2], 9, mean=True, generator=generator()))


def test_noise_in_updates_is_clipped_and_actions_stay_inside():
    mean = torch.zeros(1000, 1, requires_grad=True)
    action = noisy(mean, torch.linspace(-2, 2, 1000)[:, None], clip=0.3)
    assert action.abs().max().item() == pytest.approx(0.3)
    beyond = noisy(mean, torch.full((1000, 1), 5.0), clip=None)
    assert beyond.max() < 1
    beyond.sum().backward()
    assert torch.equal(mean.grad, torch.ones(1000, 1))  # also where it was cut off


class FixedCritic(nn.Module):
    """Two estimates that are known beforehand: of which the lower one counts."""

    def forward(self, features, action):
        return torch.stack([action.sum(1) + 10, torch.tensor([3.0, 100.0])])


def test_target_values_by_hand():
    """r + discount * min(Q1, Q2), at the policy's action in the next state."""
    agent = tiny_agent(stddev_schedule="0.0")
    agent.critic_target = FixedCritic()
    seen = []
    agent.actor.register_forward_hook(lambda *_: seen.append(True) or torch.full((2, 2), 0.25))
    batch = random_batch(2)
    reward, discount = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.9])
    target = agent._target_values(reward, discount, batch.next_obs, torch.zeros(2, 2))
    torch.testing.assert_close(target, torch.tensor([1 + 0.5 * 3.0, 2 + 0.9 * 10.5]))
    assert len(seen) == 1


class PlainAgent:
    """DrQ-v2 as its paper writes it: one optimizer each, every gradient computed, a loop over the target's weights."""

    def __init__(self, agent: DrQAgent) -> None:
        self.encoder, self.actor, self.critic = map(copy.deepcopy, (agent.encoder, agent.actor, agent.critic))
        self.critic_target = copy.deepcopy(agent.critic)
        self.random = generator()
        self.random.set_state(agent.state_dict()["generator"])
        adam = dict(lr=CONFIG.lr, weight_decay=CONFIG.weight_decay, foreach=False)
        self.optimizers = [torch.optim.Adam(n.parameters(), **adam) for n in (self.encoder, self.actor, self.critic)]

    def policy(self, features, stddev):
        mean = self.actor(features)
        noise = (torch.randn(mean.shape, generator=self.random) * stddev).clamp(-0.3, 0.3)
        action = mean + noise
        return action - action.detach() + action.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    def update(self, batch: Transitions, stddev: float) -> None:
        encoder_optimizer, actor_optimizer, critic_optimizer = self.optimizers
        obs = self.encoder(random_shift(batch.obs, self.random))
        with torch.no_grad():
            next_obs = self.encoder(random_shift(batch.next_obs, self.random))
            q1, q2 = self.critic_target(next_obs, self.policy(next_obs, stddev))
            target = batch.reward + batch.discount * torch.min(q1, q2)
        q1, q2 = self.critic(obs, batch.action)
        self.step(F.mse_loss(q1, target) + F.mse_loss(q2, target), encoder_optimizer, critic_optimizer)
        q1, q2 = self.critic(obs.detach(), self.policy(obs.detach(), stddev))
        self.step(-torch.min(q1, q2).mean(), actor_optimizer)
        for mine, target in zip(self.critic.parameters(), self.critic_target.parameters()):
            target.data.copy_(CONFIG.critic_target_tau * mine.data + (1 - CONFIG.critic_target_tau) * target.data)

    def step(self, loss, *optimizers) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def test_updates_equal_the_plain_ones():
    """Encoder, actor, critic and target after five updates, also where noise is clipped."""
    agent = tiny_agent()
    plain = PlainAgent(agent)
    for number in range(5):
        agent.update(random_batch(seed=number), step=number)
        plain.update(random_batch(seed=number), parse_noise_schedule(CONFIG.stddev_schedule)(number))
    for name in ("encoder", "actor", "critic", "critic_target"):
        torch.testing.assert_close(weights(getattr(agent, name)), weights(getattr(plain, name)), atol=1e-5, rtol=1e-4)


def test_compiled_updates_equal_the_plain_ones(monkeypatch):
    """With a policy that learns in every second update, and another step and noise each time: one program for all.

    Traced and differentiated as for a GPU, but run without Inductor, which takes a minute here.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    agent, compiled = tiny_agent(delay_steps=2), tiny_agent(delay_steps=2, compile=True)
    assert compiled._compute_critic_loss != compiled._critic_loss
    for number in range(5):
        with torch._dynamo.config.patch(error_on_recompile=True):
            mine, its = (each.update(random_batch(seed=number), step=number) for each in (agent, compiled))
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            torch.testing.assert_close(its[name], value, atol=1e-4, rtol=1e-3)
    for name in ("encoder", "actor", "critic", "critic_target"):
        torch.testing.assert_close(
            weights(getattr(compiled, name)), weights(getattr(agent, name)), atol=1e-4, rtol=1e-3
        )
    assert compiled.state_dict().keys() == agent.state_dict().keys()


def test_where_nothing_compiles_the_updates_are_plain(monkeypatch, caplog):
    """Bug prevented: a run that ends after its first thousand frames for want of a C compiler."""

    def fails(function):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert drqv2._compiles(CPU)
    monkeypatch.setattr(torch, "compile", fails)
    assert not drqv2._compiles(CPU)
    assert caplog.messages[-1].endswith("torch.compile fails here: no compiler")


def test_only_the_critic_s_loss_trains_the_encoder():
    """The actor's loss reaches the actor, and neither the encoder nor the critic."""
    agent = tiny_agent()
    features = agent.encoder(random_batch().obs)
    for network in (agent.encoder, agent.critic):
        network.zero_grad()
    agent._actor_loss(features.detach(), torch.zeros(6, 2)).backward()
    assert all(p.grad.abs().sum() > 0 for p in agent.actor.policy.parameters())
    assert all(p.grad is None for network in (agent.encoder, agent.critic) for p in network.parameters())


def test_target_moves_by_tau():
    agent = tiny_agent(critic_target_tau=0.25)
    before = weights(agent.critic_target)
    agent.update(random_batch(), 0)
    torch.testing.assert_close(weights(agent.critic_target), 0.75 * before + 0.25 * weights(agent.critic))
    assert not any(p.requires_grad for p in agent.critic_target.parameters())


def test_delayed_policy():
    agent = tiny_agent(delay_steps=2)
    batch = random_batch()
    assert "actor_loss" in agent.update(batch, 0)
    before = weights(agent.actor), weights(agent.critic_target)
    assert "actor_loss" not in agent.update(batch, 0)
    assert torch.equal(weights(agent.actor), before[0])
    assert torch.equal(weights(agent.critic_target), before[1])
    assert "actor_loss" in agent.update(batch, 0)


def test_restored_agent_goes_on_bit_for_bit():
    """Through a file, as a run would: weights, both optimizers, the target and the random numbers."""
    agent = tiny_agent(delay_steps=2)
    for number in range(3):
        agent.update(random_batch(seed=number), number)
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    restored = tiny_agent(seed=9, delay_steps=2)
    restored.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for number in range(3, 7):
        mine, its = (each.update(random_batch(seed=number), number) for each in (agent, restored))
        assert {name: value.item() for name, value in mine.items()} == {n: v.item() for n, v in its.items()}
    for name in ("encoder", "actor", "critic", "critic_target"):
        assert torch.equal(weights(getattr(agent, name)), weights(getattr(restored, name)))


def test_restored_on_another_kind_of_device():
    """Its generator's state does not fit; weights and optimizers do."""
    agent = tiny_agent()
    agent.update(random_batch(), 0)
    restored = tiny_agent(seed=9)
    restored.load_state_dict({**agent.state_dict(), "generator": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(weights(agent.actor), weights(restored.actor))
    restored.update(random_batch(), 1)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_losses_that_are_not_finite_stay_so(reward):
    """Who looks at the metrics only now and then must not miss it."""
    agent = tiny_agent()
    batch = random_batch()
    bad = Transitions(batch.obs, batch.action, batch.reward.clone().fill_(reward), batch.discount, batch.next_obs)
    assert all(value.isfinite() for value in agent.update(batch, 0).values())
    agent.update(bad, 1)
    for step in range(2, 5):
        assert not agent.update(batch, step)["critic_loss"].isfinite()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_updates_never_wait_for_the_device():
    """Tensors without numbers: an ``item()``, or a branch on one, would fail. Metrics are detached scalars."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder = Encoder(9, SHAPE.image_size)
        sizes = encoder.num_features, SHAPE.action_dim, CONFIG.feature_dim, CONFIG.hidden_dim
        agent = DrQAgent(encoder, Actor(*sizes), TwinCritic(*sizes), CONFIG, torch.Generator())
        stacks = torch.empty(4, 9, *SHAPE.image_size, dtype=torch.uint8)
        batch = Transitions(stacks, torch.empty(4, 2), torch.empty(4), torch.empty(4), stacks)
        for step in range(2):
            metrics = agent.update(batch, step)
        with pytest.raises(DataDependentOutputException):
            metrics["critic_loss"].item()
    assert not any(value.requires_grad or value.ndim for value in metrics.values())
