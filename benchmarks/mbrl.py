"""Measure a step of model-based RL, part by part, beside the obvious way in the same run.

    python benchmarks/mbrl.py --output outputs/mbrl.json

The obvious way (`benchmarks/plain_mbrl.py`) renders with MuJoCo's own renderer, replays with a
DataLoader over episodes, updates DrQ-v2 as published, trains the world model with the modules as they come and imagines
without a cache. The whole loop is the sum of the parts in 200 frames of the schedule of MBPO after its start,
without evaluations and saving. Sizes and schedule are those of the settings; the world model is always the bundled one.
Parts alternate; times are minima over all turns.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# So that it runs from any directory, and that "mbrl" is the package and not this file, whose folder comes first.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.measuring import Timer, write_results
from benchmarks.models import BUNDLED_FOLDER, CONFIGS
from benchmarks.plain_mbrl import PlainDrQ, batches_from_files, imagine, in_the_obvious_way
from benchmarks.released import huggingface_model
from ivideogpt.errors import cli
from ivideogpt.flags import option, parse
from mbrl.agent.drqv2 import build_agent
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.offscreen import select_backend
from mbrl.heap import keep_freed_memory
from mbrl.replay.episodes import ReplayEpisode
from mbrl.replay.replay_buffer import EpisodeShape, ReplayBuffer
from mbrl.settings import MbpoSettings
from mbrl.train_metaworld_mbpo import parse as parse_settings
from mbrl.world_model.build import build_video_predictor
from mbrl.world_model.config import WorldModelConfig

FRAMES = 200  # length of the composed loop


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
    paths = _write_files(episodes, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    buffer = ReplayBuffer(args.episodes * settings.duration, shape)
    for episode in episodes:
        buffer.add(episode)
    agent = build_agent(shape, settings.agent, 0, device)
    plain_agent = PlainDrQ(shape, settings.agent, device)
    replay = settings.batch_size, settings.nstep, settings.discount
    batch, plain_batches = buffer.sample(*replay, rng), batches_from_files(paths, *replay)
    predictor = build_video_predictor(_bundled(settings), device, seed=0)
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


def _write_files(episodes: list[ReplayEpisode], folder: Path) -> list[Path]:
    paths = [folder / f"{number}.npz" for number in range(len(episodes))]
    for path, episode in zip(paths, episodes, strict=True):
        np.savez(path, observation=episode.stacks(), action=episode.action, reward=episode.reward)
    return paths


def _bundled(settings: MbpoSettings) -> WorldModelConfig:
    return replace(
        settings.world_model,
        config_name=str(CONFIGS / "llama" / "config_tiny.json"),
        pretrained_model_name_or_path=str(BUNDLED_FOLDER / "tokenizer"),
        pretrained_transformer_path=str(BUNDLED_FOLDER / "transformer"),
        load_internal_llm=False,
    )


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
    settings, _ = parse_settings(args.settings.split())
    keep_freed_memory()
    torch.manual_seed(0)
    with ExitStack() as stack:
        results = measure(build_parts(args, settings, stack), args.repeats, settings.torch_device)
    print(table(results))
    packages = () if args.without_environment else ("metaworld", "mujoco")
    write_results(args.output, {"arguments": asdict(args), "results": results}, *packages)


if __name__ == "__main__":
    cli(main)
