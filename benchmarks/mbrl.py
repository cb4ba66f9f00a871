"""Measure a step of model-based RL, part by part, beside the obvious way in the same run.

    python benchmarks/mbrl.py --output outputs/mbrl.json

The obvious way renders with MuJoCo's own renderer; replays with a DataLoader over stacked episodes; updates DrQ-v2 as
published, with shifts by grid sampling of float pictures, an optimizer per network, and metrics fetched at every
update; trains the world model in contiguous memory format with an unfused optimizer; imagines without a cache, so that
every frame reads the whole past. The whole loop is the sum of the parts in 200 frames of the schedule of MBPO after its
start, without evaluations and saving. Sizes and schedule are those of the settings; the world model is always the
bundled one. Parts alternate; times are minima over all turns.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# So that it runs from any directory, and that "mbrl" is the package and not this file, whose folder comes first.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.recipes import CONFIGS
from ivideogpt.errors import cli
from ivideogpt.flags import option, parse


@dataclass(frozen=True, kw_only=True)
class MbrlBenchmarkArgs:
    """Measure the parts of model-based RL with the bundled world model."""

    settings: str = option("+preset=cpu_demo", "settings of train_metaworld_mbpo.py, separated by spaces")
    episodes: int = option(20, "episodes in the replay buffer", minimum=2)
    repeats: int = option(3, "measured turns of each part", minimum=1)
    without_environment: bool = option(False, "skip agent steps, for machines without Meta-World or OpenGL")
    output: str | None = option(None, "also write everything to this .json file")

    def validate(self) -> None:
        """Check nothing: no flags contradict each other."""


if __name__ == "__main__":
    cli(lambda: parse(MbrlBenchmarkArgs))  # answers --help, and refuses flags, before torch is imported


import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM

from benchmarks.measuring import Timer, write_results
from benchmarks.released import append_frame, huggingface_model
from ivideogpt.losses import TokenizerLoss
from ivideogpt.metrics.frame_metrics import find_lpips
from ivideogpt.paths import BUNDLED_MODEL, LPIPS_FOLDER
from ivideogpt.transformer import HeadModelWithAction
from ivideogpt.world_model import WorldModel
from mbrl.agent.drqv2 import DrQAgent, build_agent
from mbrl.build_video_predictor import build_video_predictor
from mbrl.command import keep_freed_memory
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.offscreen import select_backend
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer, Transitions
from mbrl.settings import MbpoSettings, read_settings
from mbrl.video_predictor import VideoPredictor

FRAMES = 200  # length of the composed loop
SHIFT, STDDEV, CLIP, TAU, LR = 4, 0.5, 0.3, 0.01, 1e-4


@dataclass(frozen=True)
class Part:
    """A part of the loop, which runs ``count`` times."""

    name: str
    count: float
    ours: Callable[[], Any]
    obvious: Callable[[], Any]


def measure(parts: list[Part], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    timer = Timer(device)
    least: dict[tuple[str, str], float] = {}
    for _ in range(repeats + 1):  # the first turn warms up, and counts only if no other was quicker
        for part in parts:
            for way, run in (("ours", part.ours), ("obvious", part.obvious)):
                started = timer.now()
                run()
                seconds = timer.now() - started
                least[part.name, way] = min(least.get((part.name, way), seconds), seconds)
    return [
        {"part": part.name, "count": part.count, **{f"{way}_s": least[part.name, way] for way in ("ours", "obvious")}}
        for part in parts
    ]


def build_parts(args: MbrlBenchmarkArgs, settings: MbpoSettings, stack: ExitStack) -> list[Part]:
    shape = EpisodeShape(settings.frame_stack, (settings.env.image_size,) * 2, 4)
    rng, device = np.random.default_rng(0), settings.torch_device
    episodes = [_random_episode(shape, settings.duration, rng) for _ in range(args.episodes)]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    buffer = ReplayBuffer(args.episodes * settings.duration, shape)
    for number, episode in enumerate(episodes):
        buffer.add(episode)
        np.savez(folder / f"{number}.npz", **episode.arrays())  # type: ignore[arg-type]
    agent = build_agent(shape, settings.agent, 0, device)
    plain_agent = PlainDrQ(agent)
    replay = settings.batch_size, settings.nstep, settings.discount
    batch, plain_batches = buffer.sample(*replay, rng), batches_from_files(sorted(folder.iterdir()), *replay)
    bundled = replace(
        settings.world_model,
        config_name=str(CONFIGS / "llama" / "config_tiny.json"),
        pretrained_model_name_or_path=str(BUNDLED_MODEL / "tokenizer"),
        pretrained_transformer_path=str(BUNDLED_MODEL / "transformer"),
        load_internal_llm=False,
    )
    predictor = build_video_predictor(bundled, device, seed=0)
    plain_predictor, llm = in_the_obvious_way(predictor), huggingface_model(predictor.model)
    model = settings.world_model
    segments = buffer.sample_segments(model.batch_size, model.segment_length, rng)
    starts = buffer.sample_starts(settings.gen_batch, settings.nstep, rng)
    generator = torch.Generator().manual_seed(0)

    def act(stacks: torch.Tensor) -> torch.Tensor:
        return agent.act(stacks, settings.agent.num_expl_steps, mean=False, generator=generator)

    steps = FRAMES / settings.action_repeat
    updates = steps * settings.agent_update_times / settings.agent.update_every_steps
    parts = [
        Part("replay of a batch", updates, lambda: buffer.sample(*replay, rng), lambda: next(plain_batches)),
        Part("update of the agent", updates, lambda: agent.update(batch, 0), lambda: plain_agent.update(batch)),
        Part(
            "update of the transformer",
            FRAMES / settings.update_gen_every_step * settings.update_gen_times,
            lambda: predictor.update_transformer(segments),
            lambda: plain_predictor.update_transformer(segments),
        ),
        Part(
            "update of the tokenizer",
            FRAMES / settings.update_tokenizer_every_step * settings.update_gen_times,
            lambda: predictor.update_tokenizer(segments),
            lambda: plain_predictor.update_tokenizer(segments),
        ),
        Part(
            "imagination",
            FRAMES / settings.gen_every_steps,
            lambda: predictor.imagine(starts, act, settings.gen_horizon, 0),
            lambda: imagine(predictor.model, llm, starts, act, settings.gen_horizon, Timer(device)),
        ),
    ]
    if args.without_environment:
        return parts
    return [_agent_step(settings, steps, lambda: act(batch.obs[:1]), stack), *parts]


def _agent_step(settings: MbpoSettings, steps: float, act: Callable[[], Any], stack: ExitStack) -> Part:
    select_backend()  # MuJoCo's own renderer uses the backend that is set when mujoco is first imported
    env = stack.enter_context(closing(settings.env.make()))
    env.reset(seed=0)
    step_plainly = stack.enter_context(_mujoco_renderer(settings.env))
    action = np.zeros(4, np.float32)

    def ours() -> None:
        if env.num_steps == env.duration:
            env.reset(seed=0)
        env.step(action)
        act()

    def obvious() -> None:
        step_plainly()
        act()

    return Part("agent step (simulator, picture, action)", steps, ours, obvious)


@contextmanager
def _mujoco_renderer(settings: EnvSettings) -> Iterator[Callable[[], None]]:
    """Yield an agent step with MuJoCo's own renderer: four samples per pixel, shadows, reflections."""
    env = settings.make()
    import mujoco

    inner = env.env._env
    inner.model.vis.quality.offsamples = 4
    renderer = mujoco.Renderer(inner.model, settings.image_size, settings.image_size)
    inner.reset()
    action = np.zeros(4, np.float32)

    def step() -> None:
        for _ in range(settings.action_repeat):
            inner.step(action)
        renderer.update_scene(inner.data, camera=settings.camera)
        renderer.render()

    try:
        yield step
    finally:
        renderer.close()
        env.close()


def _random_episode(shape: EpisodeShape, num_steps: int, rng: np.random.Generator) -> ReplayEpisode:
    frames = rng.integers(0, 256, (num_steps + 1, *shape.frame), dtype=np.uint8)
    numbers = rng.random((2, num_steps + 1), dtype=np.float32)
    action = rng.uniform(-1, 1, (num_steps + 1, shape.action_dim)).astype(np.float32)
    return ReplayEpisode(frames, np.stack([frames[0]] * (shape.frame_stack - 1)), action, numbers[0], numbers[1])


# ---- the obvious way


class PlainDrQ:
    """Copies of an agent's networks, updated as the published code does."""

    def __init__(self, agent: DrQAgent) -> None:
        self.device = agent.device
        networks = deepcopy((agent.encoder, agent.actor, agent.critic))
        self.encoder, self.actor, self.critic = networks
        self.target = deepcopy(agent.critic_target)
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
                reward += np.float32(self.discount**k) * episode["reward"][i + k, 0]
            yield observation[i - 1], episode["action"][i], reward, observation[i + self.nstep - 1]


def batches_from_files(paths: list[Path], batch_size: int, nstep: int, discount: float) -> Iterator[list[Tensor]]:
    """Build a loader without workers, which would compete with training for a CPU."""
    return iter(DataLoader(EpisodeRows(paths, nstep, discount), batch_size))


@torch.no_grad()
def imagine(
    model: WorldModel,
    llm: LlamaForCausalLM,
    starts: Tensor,
    act: Callable[[Tensor], Tensor],
    horizon: int,
    timer: Timer,
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
        TokenizerLoss(lpips=lpips),
        AdamW(trained, lr=settings.tok_lr, weight_decay=settings.tok_wd, foreach=False),
        AdamW(transformer.parameters(), lr=settings.model_lr, weight_decay=settings.model_wd, foreach=False),
        settings,
        torch.Generator().manual_seed(0),
    )


# ---- results


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| part | in 200 frames | obvious, ms | ours, ms | times as fast |", "|---|---:|---:|---:|---:|"]
    for part in results:
        ours, obvious = 1000 * part["ours_s"], 1000 * part["obvious_s"]
        lines.append(f"| {part['part']} | {part['count']:g} | {obvious:.1f} | {ours:.1f} | {obvious / ours:.1f} |")
    ours, obvious = (sum(part["count"] * part[f"{way}_s"] for part in results) for way in ("ours", "obvious"))
    speeds = f"{FRAMES / obvious:.2f} frames/s | {FRAMES / ours:.2f} frames/s | **{obvious / ours:.2f}**"
    return "\n".join([*lines, f"| all of them | | {speeds} |"])


def main() -> None:
    args = parse(MbrlBenchmarkArgs)
    settings, _ = read_settings(MbpoSettings, args.settings.split(), "mbpo_config")
    keep_freed_memory()
    torch.manual_seed(0)
    with ExitStack() as stack:
        results = measure(build_parts(args, settings, stack), args.repeats, settings.torch_device)
    print(table(results))
    packages = () if args.without_environment else ("metaworld", "mujoco")
    write_results(args.output, {"arguments": asdict(args), "results": results}, *packages)


if __name__ == "__main__":
    cli(main)
