"""What a step of model-based RL is made of, part by part, beside the obvious way in the same run.

    python benchmarks/mbrl.py --output outputs/mbrl.json

The obvious way (`benchmarks/plain_drq.py`) renders with MuJoCo's own renderer, opens a file for every replayed row,
updates DrQ-v2 as published and imagines without a cache. The world model's updates are the same in both. The whole loop
is what the schedule of MBPO makes of the parts: in 200 frames 100 agent steps, 200 updates of the agent, 20 of the
transformer, 5 of the tokenizer and one round of imagination. Parts take turns; times are the least of all turns.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# So that it runs from any directory, and that "mbrl" is the package and not this file, which lies in the first place.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.models import BUNDLED_FOLDER, CONFIGS
from benchmarks.plain_drq import PlainDrQ, imagine, sample_from_files
from benchmarks.timer import Timer
from ivideogpt.errors import cli
from ivideogpt.flags import option, parse
from mbrl.agent_env import EnvSettings
from mbrl.drqv2 import DrQConfig, build_agent
from mbrl.episodes import ReplayEpisode
from mbrl.heap import keep_freed_memory
from mbrl.replay_buffer import EpisodeShape, ReplayBuffer
from mbrl.video_predictor import WorldModelConfig, build_video_predictor

FRAMES = 200  # of the loop that is put together
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class MbrlBenchmarkArgs:
    """Measure the parts of model-based RL with the bundled world model on a CPU."""

    task: str = option("plate-slide", "Meta-World task")
    batch_size: int = option(256, "of the agent", minimum=1)
    model_batch_size: int = option(16, "segments of a world model's update", minimum=1)
    starts: int = option(32, "of a round of imagination", minimum=1)
    horizon: int = option(10, "imagined steps of each", minimum=1)
    episodes: int = option(20, "in the replay buffer", minimum=2)
    repeats: int = option(3, "turns of each part", minimum=1)
    output: str | None = option(None, "also write everything to this .json file")

    def validate(self) -> None:
        """Nothing here can contradict anything else."""


@dataclass(frozen=True)
class Part:
    """``count`` of it are in the loop. ``obvious`` is None where both ways do the same."""

    name: str
    count: int
    ours: Callable[[], Any]
    obvious: Callable[[], Any] | None = None


def measure(parts: list[Part], repeats: int) -> list[dict[str, Any]]:
    least: dict[tuple[str, str], float] = {}
    for _ in range(repeats + 1):  # the first turn warms up, and counts only if no other was quicker
        for part in parts:
            for way, run in (("ours", part.ours), ("obvious", part.obvious)):
                if run is not None:
                    started = time.perf_counter()
                    run()
                    seconds = time.perf_counter() - started
                    least[part.name, way] = min(least.get((part.name, way), seconds), seconds)
    results = []
    for part in parts:
        ours = least[part.name, "ours"]
        obvious = least.get((part.name, "obvious"), ours)
        results.append({"part": part.name, "count": part.count, "ours_s": ours, "obvious_s": obvious})
    return results


def build_parts(args: MbrlBenchmarkArgs, stack: ExitStack) -> list[Part]:
    settings = EnvSettings(args.task)
    env = stack.enter_context(closing(settings.make()))
    plain = stack.enter_context(_mujoco_renderer(settings))
    env.reset(0)
    shape = EpisodeShape(settings.frame_stack, (settings.image_size,) * 2, 4)
    rng = np.random.default_rng(0)
    episodes = [_random_episode(shape, settings.duration, rng) for _ in range(args.episodes)]
    paths = _write_files(episodes, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    buffer = ReplayBuffer(args.episodes * settings.duration, shape)
    for episode in episodes:
        buffer.add(episode)
    agent, plain_agent = build_agent(shape, DrQConfig(), 0, CPU), PlainDrQ(shape)
    batch = buffer.sample(args.batch_size, 3, 0.99, rng)
    predictor = build_video_predictor(_bundled(args), CPU, seed=0)
    segments = buffer.sample_segments(args.model_batch_size, predictor.config.segment_length, rng)
    starts = buffer.sample_starts(args.starts, 3, rng)
    generator, action = torch.Generator().manual_seed(0), np.zeros(4, np.float32)

    def act(stacks: torch.Tensor) -> torch.Tensor:
        return agent.act(stacks, 10_000, mean=False, generator=generator)

    def step() -> None:
        if env.num_steps == env.duration:
            env.reset(0)
        env.step(action)

    def obvious_imagination() -> None:
        imagine(predictor.model, starts, act, args.horizon, Timer(CPU))

    steps = FRAMES // settings.action_repeat
    return [
        Part("agent step (simulator, picture, action)", steps, _both(step, lambda: act(batch.obs[:1])), plain),
        Part(
            "replay of a batch",
            2 * steps,
            lambda: buffer.sample(args.batch_size, 3, 0.99, rng),
            lambda: sample_from_files(paths, args.batch_size, 3, 0.99),
        ),
        Part("update of the agent", 2 * steps, lambda: agent.update(batch, 0), lambda: plain_agent.update(batch)),
        Part("update of the transformer", FRAMES // 10, lambda: predictor.update_transformer(segments)),
        Part("update of the tokenizer", FRAMES // 40, lambda: predictor.update_tokenizer(segments)),
        Part("imagination", 1, lambda: predictor.imagine(starts, act, args.horizon, 0), obvious_imagination),
    ]


def _both(*calls: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


@contextmanager
def _mujoco_renderer(settings: EnvSettings) -> Iterator[Callable[[], None]]:
    """An agent step with MuJoCo's own renderer: four samples a pixel, shadows, reflections."""
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


def _bundled(args: MbrlBenchmarkArgs) -> WorldModelConfig:
    return WorldModelConfig(
        config_name=str(CONFIGS / "llama" / "config_tiny.json"),
        pretrained_model_name_or_path=str(BUNDLED_FOLDER / "tokenizer"),
        pretrained_transformer_path=str(BUNDLED_FOLDER / "transformer"),
        load_internal_llm=False,
        segment_length=args.horizon + 2,
        batch_size=args.model_batch_size,
    )


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| part | in 200 frames | obvious, ms | ours, ms | times as fast |", "|---|---:|---:|---:|---:|"]
    for of in results:
        ours, obvious = 1000 * of["ours_s"], 1000 * of["obvious_s"]
        lines.append(f"| {of['part']} | {of['count']} | {obvious:.1f} | {ours:.1f} | {obvious / ours:.1f} |")
    ours, obvious = (sum(of["count"] * of[f"{way}_s"] for of in results) for way in ("ours", "obvious"))
    speeds = f"{FRAMES / obvious:.2f} frames/s | {FRAMES / ours:.2f} frames/s | **{obvious / ours:.2f}**"
    return "\n".join([*lines, f"| whole loop | | {speeds} |"])


def main() -> None:
    args = parse(MbrlBenchmarkArgs)
    keep_freed_memory()
    torch.manual_seed(0)
    with ExitStack() as stack:
        results = measure(build_parts(args, stack), args.repeats)
    print(table(results))
    if args.output:
        record = {"arguments": asdict(args), "machine": machine("metaworld", "mujoco"), "results": results}
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(record | {"threads": torch.get_num_threads()}, indent=2) + "\n")


if __name__ == "__main__":
    cli(main)
