"""How fast a world model rolls out, part by part, beside the released implementation's way in the same run.

    python benchmarks/generation.py --models bundled --batches 1,8 --samples 1,5,100 --output outputs/generation.json

The released way (`benchmarks/released.py`) runs in float32, this project's engine in each of `--dtypes`, both with
random actions, temperature 1 and top-k 100. Cases are batches of clips with one sample each, and several samples of one
clip. Ways take turns, so that what else the machine does falls on all of them; times are medians, after one turn that
is not counted. A rollout goes from context frames to future frames, tokenizer included; it is timed as one call of
`predict` and again step by step, as a user does who acts on every frame. The floor is what a rollout would take at the
machine's own rates (`benchmarks/generation_floor.py`). `--agreement` compares every way's greedy rollouts with those of
our engine in float32.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

import torch

from benchmarks.generation_agreement import measure_agreement
from benchmarks.generation_floor import measure_rates, num_weights
from benchmarks.generation_tables import agreement_table, case_name, parts_table, scaling_notes, speed_table
from benchmarks.generation_ways import RELEASED, Inputs, Memory, OurWay, ReleasedWay, Turn, Way, random_inputs
from benchmarks.machine import machine
from benchmarks.models import BUNDLED, MODELS, checkpoint, precision
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import option, parse
from ivideogpt.pretrained import language_model
from ivideogpt.world_model import fastest_precisions

DTYPES = ("float32", "bfloat16", "float16", "auto")
LARGE = 10**8  # weights of a transformer whose released rollout takes minutes on a CPU
CPU_BASELINE_FRAMES = 2  # of such a one


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
        "first frames that the released way really predicts; the time of the others is scaled by the positions that "
        f"they process (default: all, but {CPU_BASELINE_FRAMES} of large models on a CPU)",
        minimum=1,
    )
    repeats: int = option(3, "turns of each way that are measured, after one that is not", minimum=1)
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "where to roll out")
    agreement: bool = option(False, "also compare greedy rollouts with those in float32")
    output: str | None = option(None, "JSON file of the results, written anew after every case")

    def validate(self) -> None:
        for flag, names, known in (("models", self.models, {*MODELS, BUNDLED}), ("dtypes", self.dtypes, {*DTYPES})):
            for name in names.split(","):
                if name not in known:
                    raise UserError(f"--{flag} {name}: choose from {', '.join(sorted(known))}")
        for flag, numbers in (("batches", self.batches), ("samples", self.samples)):
            for number in numbers.split(","):
                if not number.isdecimal() or int(number) < 1:
                    raise UserError(f"--{flag} {numbers}: expected numbers of at least 1, separated by commas")

    def cases(self) -> list[Case]:
        batches = [Case(int(number), 1) for number in self.batches.split(",")]
        several = [Case(1, int(number)) for number in self.samples.split(",")]
        return list(dict.fromkeys(batches + several))


@dataclass(frozen=True)
class Case:
    clips: int
    samples: int


# ---- measuring


def measure_model(name: str, args: BenchmarkArgs) -> Iterator[dict[str, Any]]:
    """The result of one case after the other."""
    device = torch.device(args.device)
    memory = {way: Memory(device) for way in (RELEASED, *args.dtypes.split(","))}
    with checkpoint(name) as folder:
        ways = {way: memory[way].watch(partial(build_way, way, folder, args)) for way in memory}
    parts = ways[RELEASED].world_model
    parameters = {"transformer": num_weights([parts.transformer]), "tokenizer": num_weights([parts.tokenizer])}
    for case in args.cases():
        inputs = random_inputs(parts, case.clips, args.frames, case.samples)
        measured = measure_case(ways, memory, inputs, args.repeats)
        yield {"model": name, **asdict(case), "frames": args.frames, "parameters": parameters, "ways": measured}


def build_way(name: str, folder: Path, args: BenchmarkArgs) -> Way:
    device = torch.device(args.device)
    if name != RELEASED:
        return OurWay(folder, device, precision(name))
    way = ReleasedWay(folder, device, args.frames)
    llm = language_model(way.world_model.transformer)
    room = way.world_model.layout.future_frames_that_fit(llm.config.max_position_embeddings)
    if args.frames > room:
        raise UserError(f"--frames is {args.frames}, but this model has positions for {room}")
    is_slow = device.type == "cpu" and num_weights([llm]) > LARGE
    way.num_frames = min(args.frames, args.baseline_frames or (CPU_BASELINE_FRAMES if is_slow else args.frames))
    return way


def measure_case(
    ways: dict[str, Way], memory: dict[str, Memory], inputs: Inputs, repeats: int
) -> dict[str, dict[str, Any]]:
    """Of each way. One that needs more memory than there is has an "error" and nothing else."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    too_large: set[str] = set()
    for of_way in memory.values():
        of_way.peak = 0
    for _ in range(repeats + 1):
        for name in [name for name in ways if name not in too_large]:
            try:
                turns[name].append(memory[name].watch(partial(ways[name].turn, inputs)))
            except torch.OutOfMemoryError:
                too_large.add(name)
                torch.cuda.empty_cache()
    summaries: dict[str, dict[str, Any]] = {name: {"error": "out of memory"} for name in ways}
    for name in [name for name in ways if name not in too_large]:
        summaries[name] = ways[name].summary(turns[name][1:], inputs) | {"peak_bytes": memory[name].peak}
        if RELEASED not in too_large:
            summaries[name]["ratio"] = summaries[RELEASED]["rollout_s"] / summaries[name]["rollout_s"]
    return summaries


# ---- the command


def main() -> None:
    args = parse(BenchmarkArgs)
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []
    agreement: list[dict[str, Any]] = []
    try:
        measure(args, results, agreement)
    finally:  # what there is, also when it is cut short
        texts = [speed_table(results), parts_table(results), scaling_notes(results)] if results else []
        texts += [agreement_table(agreement)] if agreement else []
        print("\n\n".join(text for text in texts if text), flush=True)


def measure(args: BenchmarkArgs, results: list[dict[str, Any]], agreement: list[dict[str, Any]]) -> None:
    """Appends to both lists."""
    models, dtypes, device = args.models.split(","), args.dtypes.split(","), torch.device(args.device)
    for name in models:
        for result in measure_model(name, args):
            results.append(result)
            write(args, results, agreement)
            print(progress(result), file=sys.stderr, flush=True)
        free(device)
    for name in models if args.agreement else []:
        agreement += measure_agreement(name, dtypes, device, args.frames)
        write(args, results, agreement)
        free(device)


def progress(result: dict[str, Any]) -> str:
    ways = result["ways"].items()
    speeds = [f"{name}: {way.get('error') or format(way['frames_per_s'], '.3g')}" for name, way in ways]
    return f"{case_name(result)} | frames/s {', '.join(speeds)}"


def free(device: torch.device) -> None:
    """One model's memory before the next is loaded."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write(args: BenchmarkArgs, results: list[dict[str, Any]], agreement: list[dict[str, Any]]) -> None:
    if not args.output:
        return
    device = torch.device(args.device)
    chosen = {name: precision(name) for name in args.dtypes.split(",")}
    dtypes = {
        kind for dtype in chosen.values() for kind in (fastest_precisions(device) if dtype == "auto" else [dtype])
    }
    rates = {str(dtype).removeprefix("torch."): asdict(measure_rates(device, dtype)) for dtype in dtypes}
    record = {
        "arguments": asdict(args),
        "machine": machine("transformers", "diffusers"),
        "threads": torch.get_num_threads(),
        "rates_per_s": rates,
        "results": results,
        "agreement": agreement,
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    cli(main)
