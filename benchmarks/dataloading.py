"""Measure how fast training data is read on one CPU core, beside an obvious loader in the same run.

    python benchmarks/dataloading.py --output outputs/dataloading.json

The baseline is the obvious loader: `np.load` of the whole episode, Pillow for every frame. Each setting names the files
of both loaders. The last rows have our loader of npz files as the baseline of our loader of Lance tables, if pylance is
installed. Episodes are synthetic, in a temporary folder, and soon in the file cache: the CPU work is compared.
Rates are per second of CPU time, so that other processes disturb them little. Absolute rates depend on the machine,
their ratios much less.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from ivideogpt.errors import UserError, cli
from ivideogpt.flags import option, parse


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
    repeats: int = option(5, "measurements of each kind, alternating; medians are reported", minimum=1)
    seconds: float = option(1.0, "minimum CPU time of a measurement", minimum=0)

    def validate(self) -> None:
        if self.episode_length < self.segment_length:
            raise UserError(f"--episode_length {self.episode_length} is below --segment_length {self.segment_length}")


if __name__ == "__main__":
    cli(lambda: parse(BenchmarkArgs))  # answers --help, and refuses flags, before torch is imported


import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from benchmarks.measuring import write_results
from ivideogpt.data.clips.colour import OPERATIONS
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation, central_square, sample_colour, sample_crop
from ivideogpt.data.convert.conversion import write_episode

REPACK = Path(__file__).resolve().parents[1] / "datasets" / "repack.py"
DATASET = "synthetic"


# ---- episodes


def make_episodes(folder: Path, args: BenchmarkArgs) -> None:
    """Write compressed episodes of a square that moves over a shaded, noisy background."""
    rng = np.random.default_rng(0)
    size = args.native_size
    ground = np.broadcast_to(np.linspace(110, 210, size)[:, None], (size, size, 3))
    for number in range(args.num_episodes):
        frames = np.empty((args.episode_length, size, size, 3), np.uint8)
        for t, frame in enumerate(frames):
            frame[:] = np.clip(ground + rng.normal(0, 2, ground.shape), 0, 255)
            place = int(0.01 * t % 0.8 * size)
            frame[place : place + size // 6, place : place + size // 6] = 250, 50, 50
        actions = rng.normal(size=(args.episode_length, 7)).astype(np.float32)
        write_episode(folder / DATASET / f"{number:05d}.npz", {"image": frames, "action": actions}, compress=True)


# ---- the baseline


@dataclass(frozen=True)
class Baseline:
    """The obvious loader."""

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
        """Sample the augmentation of a clip; return it as a function of one frame."""
        size = (self.args.image_size, self.args.image_size)
        if self.augmentation is None:
            crop = central_square(height, width)
        else:
            crop = sample_crop(self.rng, height, width, self.augmentation)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        resize = partial(Image.Image.resize, size=size, resample=Image.Resampling.BILINEAR, box=box)
        if self.augmentation is None:
            return resize
        colour = sample_colour(self.rng, self.augmentation)
        steps = [(OPERATIONS[number], float(colour.factors[0, number])) for number in colour.order[0]]
        return lambda image: jitter(resize(image), steps)


ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


def jitter(image: Image.Image, steps: Sequence[tuple[str, float]]) -> Image.Image:
    for name, amount in steps:
        if name == "hue":
            hue, saturation, value = image.convert("HSV").split()
            turned = (np.asarray(hue, np.int16) + int(amount * 255)).astype(np.uint8)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        else:
            image = ENHANCERS[name](image).enhance(amount)
    return image


# ---- measurements


@dataclass(frozen=True)
class Comparison:
    """Clips per second of CPU time."""

    files: str
    augmented: bool
    baseline: float
    ours: float
    ratio: float  # median over the ratios of consecutive measurements


def config(path: Path | str, augmentation: Augmentation | None, args: BenchmarkArgs) -> DataConfig:
    """Return a configuration without cache of inflated arrays, into which these few episodes would fit."""
    return DataConfig(
        dataset_path=str(path),
        mix=((DATASET, 1.0),),
        segment=SegmentSpec("contiguous", args.segment_length),
        image_size=args.image_size,
        batch_size=args.batch_size,
        augmentation=augmentation,
        load_action=True,
        cache_mb=0,
    )


Batch = Callable[[], object]
BatchOf = Callable[[Augmentation | None], Batch]  # the loader of some files


def obvious(folder: Path, args: BenchmarkArgs) -> BatchOf:
    episodes = sorted(map(str, (folder / DATASET).glob("*.npz")))
    return lambda augmentation: Baseline(episodes, args, augmentation, np.random.default_rng(0)).batch


def ours(path: Path | str, args: BenchmarkArgs) -> BatchOf:
    def loader(augmentation: Augmentation | None) -> Batch:
        batches = iter(build_loader(config(path, augmentation, args)))
        return lambda: next(batches).to("cpu")

    return loader


def compare(name: str, baseline: Batch, faster: Batch, augmented: bool, args: BenchmarkArgs) -> Comparison:
    slow, fast = [], []
    for _ in range(args.repeats):
        slow.append(clips_a_second(baseline, args))
        fast.append(clips_a_second(faster, args))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(fast, slow))
    return Comparison(name, augmented, statistics.median(slow), statistics.median(fast), ratio)


def clips_a_second(batch: Batch, args: BenchmarkArgs) -> float:
    batch()  # warm-up
    start, number = time.process_time(), 0
    while number == 0 or time.process_time() - start < args.seconds:
        batch()
        number += 1
    return number * args.batch_size / (time.process_time() - start)


def table(rates: list[Comparison], args: BenchmarkArgs) -> str:
    lines = ["| files | augmented | baseline clips/s | ours clips/s | ours frames/s | ratio |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in rates:
        cells = [row.files, "yes" if row.augmented else "no", f"{row.baseline:.1f}", f"{row.ours:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {row.ours * args.segment_length:.0f} | {row.ratio:.3g} |")
    return "\n".join(lines)


def repack(source: Path, output: Path, *flags: str) -> Path:
    command = [sys.executable, str(REPACK), "--input_path", str(source), "--output_path", str(output), *flags]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return output


def measure(args: BenchmarkArgs, root: Path) -> list[Comparison]:
    native = root / "native"
    make_episodes(native, args)
    repacked = repack(native, root / "repacked", "--resize", str(args.image_size))
    large, small = f"compressed {args.native_size} px", f"repacked {args.image_size} px"
    settings = [
        (f"baseline: {large}, ours: {small}", obvious(native, args), ours(repacked, args)),
        (f"both: {small}", obvious(repacked, args), ours(repacked, args)),
        (f"both: {large}", obvious(native, args), ours(native, args)),
    ]
    if find_spec("lance"):
        for size, npz in ((args.image_size, repacked), (args.native_size, repack(native, root / "plain"))):
            tables = repack(npz, root / f"lance{size}", "--format", "lance") / DATASET
            files = f"baseline: our npz {size} px, ours: Lance {size} px"
            settings.append((files, ours(npz, args), ours(f"lance:{tables}", args)))
    rates = []
    for name, baseline, faster in settings:
        for augmentation in (None, Augmentation()):
            batches = baseline(augmentation), faster(augmentation)
            rates.append(compare(name, *batches, augmentation is not None, args))
            print(f"{name}: {rates[-1].ratio:.1f} times as fast", file=sys.stderr)
    return rates


def main() -> None:
    args = parse(BenchmarkArgs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(args, Path(folder))
    print(table(rates, args))
    results = {"arguments": asdict(args), "rates": [asdict(row) for row in rates]}
    write_results(args.output, results, "numpy", "pillow")


if __name__ == "__main__":
    cli(main)
