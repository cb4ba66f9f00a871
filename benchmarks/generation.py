"""Measure how fast a world model rolls out, part by part, beside the released implementation's way in the same run.

    python benchmarks/generation.py --models bundled --batches 1,8 --samples 1,5,100 --output outputs/generation.json

The released way (`benchmarks/released.py`) runs in float32, this project's engine in each of `--dtypes`, both with
random actions, temperature 1 and top-k 100. Cases are batches of clips with one sample each, and several samples of one
clip. Ways alternate, so that other load on the machine affects all of them; times are medians, after one warm-up
turn. A rollout goes from context frames to future frames, tokenizer included. The floor is the time of a
rollout at the machine's peak rates (`benchmarks/generation_floor.py`). `--agreement` compares every way's greedy
rollouts with those of our engine in float32.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from benchmarks.recipes import ACTION_DIM, BUNDLED, MODELS, ROOT
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import option, parse

DTYPES = ("float32", "bfloat16", "float16", "auto")
LARGE = 10**8  # weights; above, the released rollout takes minutes on a CPU
CPU_BASELINE_FRAMES = 2  # measured frames of such a rollout


@dataclass(frozen=True, kw_only=True)
class BenchmarkArgs:
    """Measure how fast a world model rolls out."""

    models: str = option("full-64,bundled", f"comma-separated: {', '.join([*MODELS, BUNDLED])}")
    batches: str = option("1,8", "comma-separated numbers of clips, with one sample each")
    samples: str = option("1,5", "comma-separated numbers of samples, of one clip")
    dtypes: str = option("float32,auto", f"comma-separated types of our engine: {', '.join(DTYPES)}")
    frames: int = option(14, "future frames of a rollout", minimum=1)
    baseline_frames: int | None = option(
        None,
        "frames that the released way predicts; the time of the others is scaled by the number of positions that "
        f"they process (default: all, but {CPU_BASELINE_FRAMES} of large models on a CPU)",
        minimum=1,
    )
    repeats: int = option(3, "measured turns of each way, after a warm-up turn", minimum=1)
    device: str = option("auto", "device of the rollouts; auto: cuda if there is one")
    agreement: bool = option(False, "also compare greedy rollouts with those in float32")
    output: str | None = option(None, "JSON file of the results, rewritten after every case")

    def validate(self) -> None:
        for flag, names, known in (("models", self.models, {*MODELS, BUNDLED}), ("dtypes", self.dtypes, {*DTYPES})):
            for name in names.split(","):
                if name not in known:
                    raise UserError(f"--{flag} {name}: choose from {', '.join(sorted(known))}")
        for flag, numbers in (("batches", self.batches), ("samples", self.samples)):
            for number in numbers.split(","):
                if not number.isdecimal() or int(number) < 1:
                    raise UserError(f"--{flag} {numbers}: expected numbers of at least 1, separated by commas")

    def cases(self) -> list[tuple[int, int]]:
        """Return the cases as pairs: number of clips, number of samples."""
        batches = [(int(number), 1) for number in self.batches.split(",")]
        return list(dict.fromkeys(batches + [(1, int(number)) for number in self.samples.split(",")]))


if __name__ == "__main__":
    cli(lambda: parse(BenchmarkArgs))  # answers --help, and refuses flags, before torch is imported


import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.generation_floor import floor, num_weights
from benchmarks.measuring import Timer, medians, write_results
from benchmarks.models import checkpoint
from ivideogpt.devices import choose_device
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.precision import precision
from ivideogpt.pretrained import language_model
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel

SAMPLING, GREEDY = Sampling(top_k=100), Sampling(greedy=True)
RELEASED = "released"  # name of the baseline
SAMPLE_STARTS = (0, 20, 40, 60)  # frames of a bundled episode at which its clips begin
PARTS = ("encode", "prefill", "passes", "frames")


# ---- what is measured


@dataclass(frozen=True)
class Inputs:
    """Inputs of a session: ``context`` (B, t, 3, H, W) and ``actions`` (B, F, D)."""

    context: Tensor
    actions: Tensor
    samples: int = 1

    @property
    def num_predicted(self) -> int:
        """Return the number of future frames of all clips and samples."""
        return self.actions.shape[0] * self.actions.shape[1] * self.samples


def random_inputs(world_model: WorldModel, clips: int, frames: int, samples: int = 1) -> Inputs:
    tokenizer, device = world_model.tokenizer, world_model.device
    side = tokenizer.config.resolution
    context = torch.rand(clips, tokenizer.context_length, 3, side, side)
    actions = torch.rand(clips, frames, ACTION_DIM) * 2 - 1
    return Inputs(context.to(device), actions.to(device), samples)


def recorded_inputs(world_model: WorldModel, frames: int) -> Inputs:
    """Return clips of the bundled episodes."""
    t, device = world_model.tokenizer.context_length, world_model.device
    contexts, actions = [], []
    for file in sorted((ROOT / "inference" / "samples").glob("*.npz")):
        episode = np.load(file)
        for start in SAMPLE_STARTS:
            contexts.append(episode["image"][start : start + t])
            actions.append(episode["action"][start + t - 1 : start + t - 1 + frames])
    context = torch.from_numpy(np.stack(contexts)).permute(0, 1, 4, 2, 3).float() / 255
    return Inputs(context.to(device), torch.from_numpy(np.stack(actions)).to(device))


@dataclass(frozen=True)
class Turn:
    seconds: dict[str, float]
    steps: list[float] = field(default_factory=list)  # seconds of each step of a session


class ReleasedWay:
    """The released implementation's generation, in float32. Only ``num_frames`` are predicted."""

    def __init__(self, folder: Path, device: torch.device, num_frames: int) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, torch.float32)
        self.world_model.tokenizer.to(memory_format=torch.contiguous_format)  # ours are channels-last
        self.num_frames = num_frames

    def turn(self, inputs: Inputs) -> Turn:
        timer = Timer(self.world_model.device)
        clips = self.world_model, inputs.context, inputs.actions
        released.generate(*clips, inputs.samples, SAMPLING, timer, self.num_frames)
        return Turn(timer.seconds | {"rollout": sum(timer.seconds.values())})

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians([turn.seconds for turn in turns])
        rollout = seconds.pop("rollout")
        return {"frames_measured": self.num_frames, **_speed(rollout, inputs), "parts_s": seconds}


class OurWay:
    """This project's engine, in one precision."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | Literal["auto"]) -> None:
        self.world_model = WorldModel.from_pretrained(folder, device, dtype)

    def turn(self, inputs: Inputs) -> Turn:
        """Measure one call of `predict`, and the same rollout step by step, as in an interactive use."""
        timer = Timer(self.world_model.device)
        options: dict[str, Any] = {"num_samples": inputs.samples, "sampling": SAMPLING}
        with timer.part("rollout"):
            self.world_model.predict(inputs.context, inputs.actions, **options)
        with timer.part("start"):
            session = self.world_model.start(
                inputs.context, max_frames=inputs.actions.shape[1], on_full="error", **options
            )
        ends = [timer.now()]
        for action in inputs.actions.unbind(1):
            session.step(action)
            ends.append(timer.now())
        self._tokenizer_alone(inputs, timer)
        return Turn(timer.seconds, [end - start for start, end in pairwise(ends)])

    @torch.no_grad()
    def _tokenizer_alone(self, inputs: Inputs, timer: Timer) -> None:
        """Time the tokenizer's part of `start` and of one step."""
        tokenizer = self.world_model.tokenizer
        with timer.part("encode"):
            codes = tokenizer.context_codes(inputs.context)
            features = tokenizer.decoding_features(codes)
        layout = tokenizer.layout(1)
        shape = (len(codes), inputs.samples, layout.dynamics_tokens)
        frame_codes = torch.randint(layout.dynamics_codes, shape, device=codes.device)
        with timer.part("decode_frame"):
            tokenizer.decode_dynamics(frame_codes, features)

    def summary(self, turns: list[Turn], inputs: Inputs) -> dict[str, Any]:
        seconds = medians([turn.seconds for turn in turns])
        steps = [step for turn in turns for step in turn.steps]
        num_frames = inputs.actions.shape[1]
        decode = num_frames * seconds["decode_frame"]
        passes = statistics.median(sum(turn.steps) for turn in turns) - decode
        least = floor(self.world_model, len(inputs.context), inputs.samples, num_frames)
        return {
            **_speed(seconds["rollout"], inputs),
            "first_frame_s": statistics.median(turn.seconds["start"] + turn.steps[0] for turn in turns),
            "step_s": {"median": statistics.median(steps), "p95": float(np.percentile(steps, 95))},
            "parts_s": {
                "encode": seconds["encode"],
                "prefill": max(seconds["start"] - seconds["encode"], 0.0),
                "passes": max(passes, 0.0),
                "frames": decode,
            },
            "floor_s": least,
            "share_of_floor": least / seconds["rollout"],
        }


def _speed(rollout: float, inputs: Inputs) -> dict[str, float]:
    return {"rollout_s": rollout, "frames_per_s": inputs.num_predicted / rollout}


Way = ReleasedWay | OurWay


@torch.no_grad()
def measure_agreement(ways: dict[str, Way], reference: WorldModel, inputs: Inputs) -> list[dict[str, Any]]:
    """Compare greedy rollouts of all ways with those of `reference`.

    After the first different token two rollouts diverge, so few equal tokens may still mean equal quality: the first
    frame shows numerical precision, the PSNR the visible difference.
    """
    expected = _roll_out(reference, inputs)
    found = []
    for name, way in ways.items():
        if isinstance(way, OurWay):
            rollout = _roll_out(way.world_model, inputs)
        else:
            timer = Timer(reference.device)
            rollout = released.generate(way.world_model, inputs.context, inputs.actions, 1, GREEDY, timer)
        layout = reference.layout.with_future_frames(inputs.actions.shape[1])
        equal = (rollout.tokens == expected.tokens)[:, layout.prompt_length - 1 :].unflatten(
            1, (-1, layout.step_length)
        )
        psnr = frame_psnr(expected.frames, rollout.frames)[:, layout.context_frames :]
        found.append(
            {
                "way": name,
                "clips": len(equal),
                "samples": 1,
                "equal_tokens": equal[..., 1:].float().mean().item(),
                "equal_tokens_of_first_frame": equal[:, 0, 1:].float().mean().item(),
                "psnr": psnr.mean().item(),
            }
        )
    return found


def _roll_out(world_model: WorldModel, inputs: Inputs) -> released.Generated:
    rollout = world_model.predict(inputs.context, inputs.actions, sampling=GREEDY)
    frames = torch.cat([rollout.context, rollout.frames[:, 0]], dim=1)
    return released.Generated(rollout.tokens[:, 0], frames)


def measure_model(name: str, args: BenchmarkArgs, agreement: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the result of each case; append the results of `--agreement` to `agreement`."""
    with checkpoint(name) as folder:
        ways = {way: build_way(way, folder, args) for way in (RELEASED, *args.dtypes.split(","))}
        model = ways[RELEASED].world_model
        for clips, samples in args.cases():
            measured = measure_case(ways, random_inputs(model, clips, args.frames, samples), args.repeats)
            yield {"model": name, "clips": clips, "samples": samples, "frames": args.frames, "ways": measured}
        if args.agreement:
            reference = WorldModel.from_pretrained(folder, torch.device(args.device), torch.float32)
            inputs = recorded_inputs(model, args.frames) if name == BUNDLED else random_inputs(model, 2, args.frames)
            agreement += [{"model": name, **found} for found in measure_agreement(ways, reference, inputs)]


def build_way(name: str, folder: Path, args: BenchmarkArgs) -> Way:
    device = torch.device(args.device)
    if name != RELEASED:
        return OurWay(folder, device, precision(name))
    way = ReleasedWay(folder, device, args.frames)
    llm = language_model(way.world_model.transformer)
    room = way.world_model.layout.future_frames_that_fit(llm.config.max_position_embeddings)
    if args.frames > room:
        raise UserError(f"--frames is {args.frames}, but this model has positions for {room}")
    is_slow = device.type == "cpu" and num_weights(llm) > LARGE
    way.num_frames = min(args.frames, args.baseline_frames or (CPU_BASELINE_FRAMES if is_slow else args.frames))
    return way


def measure_case(ways: dict[str, Way], inputs: Inputs, repeats: int) -> dict[str, dict[str, Any]]:
    """Summaries by way. A way that runs out of memory has only an "error"."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name in list(turns):
            try:
                turns[name].append(ways[name].turn(inputs))
            except torch.OutOfMemoryError:
                del turns[name]
                torch.cuda.empty_cache()
    measured = {name: ways[name].summary(taken[1:], inputs) for name, taken in turns.items()}
    for way in measured.values() if RELEASED in measured else ():
        way["ratio"] = measured[RELEASED]["rollout_s"] / way["rollout_s"]
    return {name: measured.get(name, {"error": "out of memory"}) for name in ways}


# ---- tables


def speed_table(results: list[dict[str, Any]]) -> str:
    """Return a table of speeds, and of parts of rollouts in milliseconds, with notes on scaled measurements."""
    lines = _header("frames/s", "times as fast", "first frame", "step", "p95", *PARTS, "floor", "floor/rollout")
    notes = {}
    for result in results:
        for name, way in result["ways"].items():
            if "error" in way:
                continue
            step = way.get("step_s", {})
            times = [way.get("first_frame_s"), step.get("median"), step.get("p95")]
            times += [*(way["parts_s"][part] for part in PARTS), way.get("floor_s")]
            ratio = f"{way['ratio']:.2f}" if "ratio" in way else ""
            share = f"{100 * way['share_of_floor']:.0f} %" if "share_of_floor" in way else ""
            lines.append(_line(result, name, f"{way['frames_per_s']:.3g}", ratio, *map(_ms, times), share))
            if way.get("frames_measured", result["frames"]) < result["frames"]:
                notes[result["model"]] = f"predicted {way['frames_measured']} of {result['frames']} frames, rest scaled"
    return "\n".join([*lines, *(f"\n{model}: the released way {note}" for model, note in notes.items())])


def agreement_table(results: list[dict[str, Any]]) -> str:
    lines = _header("equal tokens", "in the first frame", "PSNR, dB")
    for result in results:
        cells = [f"{100 * result[key]:.1f} %" for key in ("equal_tokens", "equal_tokens_of_first_frame")]
        lines.append(_line(result, result["way"], *cells, f"{result['psnr']:.1f}"))
    return "\n".join(lines)


def _header(*columns: str) -> list[str]:
    return [f"| model | clips x samples | way | {' | '.join(columns)} |", f"|---|---:|---|{'---:|' * len(columns)}"]


def _line(result: dict[str, Any], way: str, *cells: str) -> str:
    return f"| {result['model']} | {result['clips']} x {result['samples']} | {way} | {' | '.join(cells)} |"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def main() -> None:
    args = parse(BenchmarkArgs)
    args = replace(args, device=choose_device(args.device).type)
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    agreement: list[dict[str, Any]] = []
    try:
        for name in args.models.split(","):
            for result in measure_model(name, args, agreement):
                results.append(result)
                record = {"arguments": asdict(args), "results": results, "agreement": agreement}
                write_results(args.output, record, "transformers", "diffusers")
                print(speed_table([result]), file=sys.stderr, flush=True)
            write_results(args.output, record, "transformers", "diffusers")
            gc.collect()  # free the model's memory before the next is loaded
    finally:  # print partial results, too
        tables = (speed_table, results), (agreement_table, agreement)
        print("\n\n".join(table(rows) for table, rows in tables if rows), flush=True)


if __name__ == "__main__":
    cli(main)
