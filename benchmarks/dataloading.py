"""How fast training data is read on one CPU core, beside an obvious loader in the same run.

    python benchmarks/dataloading.py --output outputs/dataloading.json

The baseline is what one writes first: `np.load` of the whole episode, Pillow for every frame. Each setting says which
files either loader reads. Episodes are synthetic, in a temporary folder, and soon in the file cache: what is compared
is the work of the processor. Rates are per second of processor time, so that other processes on the machine disturb
them little; absolute ones still depend on the machine, their ratios much less.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from benchmarks.machine import machine
from ivideogpt.data.clips.colour import OPERATIONS
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation, central_square, draw_colour, draw_crop
from ivideogpt.data.convert.conversion import write_episode
from ivideogpt.data.formats.folder_index import INDEXED_FROM, SETTLED_AFTER
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import option, parse

REPACK = Path(__file__).resolve().parents[1] / "datasets" / "repack.py"
DATASET = "synthetic"
LINKS = 10_000  # of one file: file systems limit them


@dataclass(frozen=True, kw_only=True)
class BenchmarkArgs:
    """Measure how fast training data is read."""

    output: str | None = option(None, "JSON file of the results")
    num_episodes: int = option(8, "synthetic episodes", minimum=2)
    episode_length: int = option(60, "frames of an episode", minimum=1)
    native_size: int = option(256, "width and height of the recorded frames", minimum=8)
    image_size: int = option(64, "width and height of training frames", minimum=8)
    segment_length: int = option(16, "frames of a clip", minimum=1)
    batch_size: int = option(16, "clips of a batch", minimum=1)
    repeats: int = option(5, "measurements of each kind, in turns; medians are reported", minimum=1)
    seconds: float = option(1.0, "processor time of a measurement, at least", minimum=0)
    num_startup_episodes: int = option(20_000, "files of the folder whose start-up is timed; 0: not timed", minimum=0)
    num_memory_batches: int = option(2000, "batches over which memory is watched; 0: not watched", minimum=0)

    def validate(self) -> None:
        if self.episode_length < self.segment_length:
            raise UserError(f"--episode_length {self.episode_length} is below --segment_length {self.segment_length}")


# ---- episodes


def make_episodes(folder: Path, args: BenchmarkArgs) -> None:
    """Compressed episodes of a few things that move over a shaded, noisy ground."""
    rng = np.random.default_rng(0)
    size = args.native_size
    y, x = np.mgrid[0:size, 0:size] / size
    ground = np.stack([150 + 60 * x, 130 + 50 * x - 40 * y, 110 + 40 * x], axis=-1)
    for number in range(args.num_episodes):
        frames = np.empty((args.episode_length, size, size, 3), np.uint8)
        for t, frame in enumerate(frames):
            scene = ground.copy()
            for thing in range(3):
                top, left = ((np.array([0.3, 0.2]) * thing + t * 0.01 * (thing + 1)) % 0.8 * size).astype(int)
                scene[top : top + size // 6, left : left + size // 6] = 50 + 200 * np.eye(3)[thing]
            frame[:] = np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255)
        actions = rng.normal(size=(args.episode_length, 7)).astype(np.float32)
        write_episode(folder / DATASET / f"{number:05d}.npz", {"image": frames, "action": actions}, compress=True)


def repack(source: Path, target: Path, size: int) -> None:
    flags = ["--input_path", str(source), "--output_path", str(target), "--resize", str(size)]
    subprocess.run([sys.executable, str(REPACK), *flags], check=True, stderr=subprocess.DEVNULL)


# ---- the baseline


@dataclass(frozen=True)
class Baseline:
    """Batches as one writes a loader first."""

    files: Sequence[str]
    args: BenchmarkArgs
    augmentation: Augmentation | None
    rng: np.random.Generator

    def batch(self) -> tuple[Tensor, Tensor]:
        clips = [self.clip(str(self.rng.choice(self.files))) for _ in range(self.args.batch_size)]
        frames, actions = zip(*clips)
        return torch.stack(frames), torch.stack(actions)

    def clip(self, file: str) -> tuple[Tensor, Tensor]:
        with np.load(file) as episode:
            frames, actions = episode["image"], episode["action"]
        start = self.rng.integers(len(frames) - self.args.segment_length + 1)
        segment = slice(start, start + self.args.segment_length)
        change = self.change(*frames.shape[1:3])
        pixels = np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames[segment]])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(actions[segment])

    def change(self, height: int, width: int) -> Callable[[Image.Image], Image.Image]:
        """What happens to every frame of a clip."""
        size = (self.args.image_size, self.args.image_size)
        if self.augmentation is None:
            crop = central_square(height, width)
        else:
            crop = draw_crop(self.rng, height, width, self.augmentation)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        resize = partial(Image.Image.resize, size=size, resample=Image.Resampling.BILINEAR, box=box)
        if self.augmentation is None:
            return resize
        colour = draw_colour(self.rng, self.augmentation)
        steps = [(OPERATIONS[number], float(colour.factors[0, number])) for number in colour.order[0]]
        return lambda image: jitter(resize(image), steps)


def jitter(image: Image.Image, steps: Sequence[tuple[str, float]]) -> Image.Image:
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name, amount in steps:
        image = turn_hue(image, amount) if name == "hue" else enhancers[name](image).enhance(amount)
    return image


def turn_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, np.int16) + int(turns * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


# ---- measurements


@dataclass(frozen=True)
class Files:
    """Which files either loader reads."""

    name: str
    baseline: Path
    ours: Path


@dataclass(frozen=True)
class Comparison:
    """Clips a second of processor time."""

    files: str
    augmented: bool
    baseline: float
    ours: float
    ratio: float  # the median of the ratios of measurements that followed one another


def config(folder: Path, args: BenchmarkArgs) -> DataConfig:
    """Without the cache of inflated arrays: these few episodes would all fit into it."""
    return DataConfig(
        dataset_path=str(folder),
        mix=((DATASET, 1.0),),
        segment=SegmentSpec("contiguous", args.segment_length),
        image_size=args.image_size,
        batch_size=args.batch_size,
        load_action=True,
        cache_mb=0,
    )


def compare(files: Files, augmentation: Augmentation | None, args: BenchmarkArgs) -> Comparison:
    episodes = sorted(map(str, (files.baseline / DATASET).glob("*.npz")))
    baseline = Baseline(episodes, args, augmentation, np.random.default_rng(0))
    batches = iter(build_loader(replace(config(files.ours, args), augmentation=augmentation)))
    slow, fast = [], []
    for _ in range(args.repeats):
        slow.append(clips_a_second(baseline.batch, args))
        fast.append(clips_a_second(lambda: next(batches).to("cpu"), args))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(fast, slow))
    return Comparison(files.name, augmentation is not None, statistics.median(slow), statistics.median(fast), ratio)


def clips_a_second(batch: Callable[[], object], args: BenchmarkArgs) -> float:
    batch()  # what is made once is not of interest
    start, number = time.process_time(), 0
    while number == 0 or time.process_time() - start < args.seconds:
        batch()
        number += 1
    return number * args.batch_size / (time.process_time() - start)


def startup_seconds(root: Path, episode: Path, args: BenchmarkArgs) -> dict[str, float]:
    """Until a loader of a large folder is ready: listing it, and with the list that was kept."""
    folder = root / DATASET
    folder.mkdir(parents=True)
    for number in range(args.num_startup_episodes):
        if number % LINKS == 0:
            original = folder / f"{number:07d}.npz"
            shutil.copyfile(episode, original)
        else:
            os.link(original, folder / f"{number:07d}.npz")
    if args.num_startup_episodes >= INDEXED_FROM:
        time.sleep(SETTLED_AFTER + 1)  # before, no list is kept
    return {name: seconds_to_build(root, args) for name in ("first", "again")}


def seconds_to_build(root: Path, args: BenchmarkArgs) -> float:
    start = time.perf_counter()
    build_loader(config(root, args))
    return time.perf_counter() - start


def memory_mb(folder: Path, args: BenchmarkArgs) -> list[float]:
    """Resident memory of this process and its data worker at ten moments of a stream. Linux only."""
    augmented = replace(config(folder, args), augmentation=Augmentation(), batch_size=2, num_workers=1, cache_mb=16)
    ends = {args.num_memory_batches * (i + 1) // 10 for i in range(10)}
    levels = []
    for index, batch in zip(range(1, args.num_memory_batches + 1), build_loader(augmented)):
        batch.to("cpu")
        if index in ends:
            levels.append(resident_mb())
    return levels


def resident_mb() -> float:
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---- all of it


@dataclass(frozen=True)
class Results:
    machine: dict[str, str]
    args: BenchmarkArgs
    rates: list[Comparison]
    startup_s: dict[str, float]
    memory_mb: list[float]

    def table(self) -> str:
        lines = [
            "| files | augmented | baseline clips/s | ours clips/s | ours frames/s | ratio |",
            "|---|---|---:|---:|---:|---:|",
            *(
                f"| {row.files} | {'yes' if row.augmented else 'no'} | {row.baseline:.1f} | {row.ours:.1f} | "
                f"{row.ours * self.args.segment_length:.0f} | {row.ratio:.1f} |"
                for row in self.rates
            ),
        ]
        if self.startup_s:
            times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.startup_s.items())
            lines.append(f"\nstart-up with {self.args.num_startup_episodes} episodes: {times}")
        if self.memory_mb:
            levels = " ".join(f"{value:.0f}" for value in self.memory_mb)
            lines.append(f"\nMB of memory after each tenth of {self.args.num_memory_batches} batches: {levels}")
        return "\n".join(lines)


def pairs_of_files(native: Path, repacked: Path, args: BenchmarkArgs) -> list[Files]:
    large, small = f"compressed {args.native_size} px", f"repacked {args.image_size} px"
    return [
        Files(f"baseline: {large}, ours: {small}", baseline=native, ours=repacked),
        Files(f"both: {small}", baseline=repacked, ours=repacked),
        Files(f"both: {large}", baseline=native, ours=native),
    ]


def measure(args: BenchmarkArgs, root: Path) -> Results:
    native, repacked = root / "native", root / "repacked"
    make_episodes(native, args)
    repack(native, repacked, args.image_size)
    rates = []
    for files in pairs_of_files(native, repacked, args):
        for augmentation in (None, Augmentation()):
            rates.append(compare(files, augmentation, args))
            print(f"{files.name}: {rates[-1].ratio:.1f} times as fast", file=sys.stderr)
    episode = repacked / DATASET / f"{0:05d}.npz"
    startup = startup_seconds(root / "many", episode, args) if args.num_startup_episodes else {}
    memory = memory_mb(repacked, args) if args.num_memory_batches else []
    return Results(machine("numpy", "pillow"), args, rates, startup, memory)


def main() -> None:
    args = parse(BenchmarkArgs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")  # where lists of folders are kept
        results = measure(args, Path(folder))
    print(results.table())
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(asdict(results), indent=2) + "\n")


if __name__ == "__main__":
    cli(main)
