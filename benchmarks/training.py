"""Measure how long a training step takes, part by part, beside the obvious way to do it in the same run.

    python benchmarks/training.py --models full-64,tiny-64 --output outputs/training.json

The obvious way encodes the clips of every step again in float32, computes logits of all tokens, and updates with an
unfused AdamW. Ours are this project's own parts as `train_gpt.py` puts them together, from pixels and from a token
store. Weights and clips are random, which does not affect speed. Ways alternate, so that other load on the machine
affects all of them; times are medians.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from benchmarks.recipes import CONFIGS, MODELS, Model
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import option, parse


@dataclass(frozen=True, kw_only=True)
class BenchmarkArgs:
    """Measure how long a training step takes."""

    models: str = option("full-64,tiny-64", f"comma-separated: {', '.join(MODELS)}")
    clips: int | None = option(None, "clips per step (default: few enough for a CPU)", minimum=1)
    repeats: int = option(3, "measured steps of each way, after a warm-up step", minimum=1)
    device: str = option("auto", "device of the training; auto: cuda if there is one")
    precision: str = option("bf16", "autocast precision of trained networks", choices=("no", "bf16"))
    tokenizer_precision: str = option("bf16", "autocast precision of the frozen tokenizer", choices=("no", "bf16"))
    compile: bool = option(False, "compile our networks, as --compile of the training scripts does")
    output: str | None = option(None, "JSON file of the results")

    def validate(self) -> None:
        for name in self.models.split(","):
            if name not in MODELS:
                raise UserError(f"--models {name}: choose from {', '.join(MODELS)}")


if __name__ == "__main__":
    cli(lambda: parse(BenchmarkArgs))  # answers --help, and refuses flags, before torch is imported


import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.generation_floor import num_weights
from benchmarks.measuring import Timer, medians, write_results
from benchmarks.models import build_tokenizer
from ivideogpt.devices import choose_device
from ivideogpt.layout import TokenLayout
from ivideogpt.losses import TokenizerLoss, transformer_loss
from ivideogpt.pretrained import build_transformer, language_model, read_llama_config
from ivideogpt.training.common.optim import build_adamw, weight_decay_groups
from ivideogpt.training.tokenizer.trainer import reconstruct
from ivideogpt.training.transformer.build import compile_transformer, prepare_tokenizer

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 0.01, 1.0

Step = Callable[[Timer], None]


class TransformerSteps:
    """Steps of `train_gpt.py`, ours and the obvious one, on the same weights."""

    def __init__(self, model: Model, args: BenchmarkArgs) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.tokenizer = build_tokenizer(model, self.device).eval().requires_grad_(False)
        self.layout: TokenLayout = self.tokenizer.layout(model.segment_length - model.context_length)
        config = read_llama_config(CONFIGS / "llama" / model.transformer)
        self.transformer = build_transformer(config, self.layout).train().to(self.device)
        self.frames = random_frames(model, model.segment_length, self.device)
        with torch.no_grad():
            self.stored, _ = self.tokenizer.tokenize(self.frames, self.tokenizer.context_length)

    def obvious(self) -> Step:
        optimizer = AdamW(
            self.transformer.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
        )

        def step(timer: Timer) -> None:
            with timer.part("tokenize"), torch.no_grad():
                tokens, labels = self.tokenizer.tokenize(self.frames, self.tokenizer.context_length)
            with timer.part("gradients"):
                with autocast(self.device, self.args.precision):
                    loss = self.transformer(input_ids=tokens, labels=labels).loss
                loss.backward()
            with timer.part("optimizer"):
                update(self.transformer, optimizer)

        return step

    def ours(self, from_store: bool) -> Step:
        transformer = self.transformer
        if self.args.compile:
            transformer = deepcopy(transformer)
            compile_transformer(transformer)
        optimizer = build_adamw(weight_decay_groups(transformer, WEIGHT_DECAY, True), LEARNING_RATE)
        tokenizer = prepare_tokenizer(deepcopy(self.tokenizer))

        def step(timer: Timer) -> None:
            tokens = self.stored
            if not from_store:
                with timer.part("tokenize"), torch.no_grad(), autocast(self.device, self.args.tokenizer_precision):
                    tokens, _ = tokenizer.tokenize(self.frames, tokenizer.context_length)
            with timer.part("gradients"):
                with autocast(self.device, self.args.precision):
                    loss = transformer_loss(transformer, tokens, self.layout).total
                loss.backward()
            with timer.part("optimizer"):
                update(transformer, optimizer)

        return step

    def flops(self) -> float:
        """Count a step's matrix products: 6 per weight and token for forward and backward, 6 per attended pair."""
        config: Any = language_model(self.transformer).config
        clips, length = self.stored.shape
        layer_weights = sum(p.numel() for name, p in self.transformer.named_parameters() if ".layers." in name)
        attention = config.num_hidden_layers * config.hidden_size * length  # per token; causal, so half of them count
        labelled = length - self.layout.prompt_length + 1
        return 6.0 * clips * (length * (layer_weights + attention) + labelled * config.hidden_size * config.vocab_size)


def tokenizer_step(model: Model, args: BenchmarkArgs) -> Step:
    """Build a generator phase of `train_tokenizer.py` without LPIPS and discriminator."""
    device = torch.device(args.device)
    tokenizer = build_tokenizer(model, device).train()
    frames = random_frames(model, model.tokenizer_segment_length, device)
    loss, optimizer = TokenizerLoss(), build_adamw(tokenizer.parameters(), LEARNING_RATE)

    def step(timer: Timer) -> None:
        with timer.part("gradients"):
            with autocast(device, args.precision):
                output = reconstruct(tokenizer, frames, model.context_length)
            loss(frames, output, model.context_length).total.backward()
        with timer.part("optimizer"):
            update(tokenizer, optimizer)

    return step


def random_frames(model: Model, length: int, device: torch.device) -> Tensor:
    return torch.rand(model.clips, length, 3, model.resolution, model.resolution).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def update(model: nn.Module, optimizer: Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()


def measure(steps: dict[str, Step], args: BenchmarkArgs) -> dict[str, dict[str, float]]:
    """Measure the median seconds of each part of each way."""
    device = torch.device(args.device)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in range(args.repeats + 1):
        for name, step in steps.items():
            timer = Timer(device)
            step(timer)
            if number:
                measured[name].append(timer.seconds)
    return {name: medians(turns) for name, turns in measured.items()}


def measure_model(name: str, args: BenchmarkArgs) -> dict[str, Any]:
    model = MODELS[name] if args.clips is None else replace(MODELS[name], clips=args.clips)
    steps = TransformerSteps(model, args)
    transformer_parts = measure(
        {"obvious": steps.obvious(), "from pixels": steps.ours(False), "from a token store": steps.ours(True)}, args
    )
    flops = steps.flops()
    parameters = {"transformer": num_weights(steps.transformer), "tokenizer": num_weights(steps.tokenizer)}
    del steps
    tokenizer_parts = measure({"tokenizer": tokenizer_step(model, args)}, args)
    seconds = {way: sum(parts.values()) for way, parts in (transformer_parts | tokenizer_parts).items()}
    return {
        "model": name,
        "clips": model.clips,
        "parameters": parameters,
        "parts_s": transformer_parts | tokenizer_parts,
        "s_per_clip": {way: total / model.clips for way, total in seconds.items()},
        "ratio": {way: seconds["obvious"] / seconds[way] for way in transformer_parts},
        "tflops": flops / seconds["from a token store"] / 1e12,
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| model | clips | way | tokenize, s | gradients, s | optimizer, s | s per clip | times as fast |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|")
    for result in results:
        for way, parts in result["parts_s"].items():
            cells = [f"{parts[part]:.3f}" if part in parts else "" for part in ("tokenize", "gradients", "optimizer")]
            ratio = f"{result['ratio'][way]:.2f}" if way in result["ratio"] else ""
            cells += [f"{result['s_per_clip'][way]:.3f}", ratio]
            lines.append(f"| {result['model']} | {result['clips']} | {way} | {' | '.join(cells)} |")
    notes = [f"\n{result['model']} from a token store: {result['tflops']:.3f} TFLOP/s" for result in results]
    return "\n".join(lines + notes)


def main() -> None:
    args = parse(BenchmarkArgs)
    args = replace(args, device=choose_device(args.device).type)
    torch.manual_seed(0)
    results = [measure_model(name, args) for name in args.models.split(",")]
    print(table(results))
    write_results(args.output, {"arguments": asdict(args), "results": results}, "transformers", "diffusers")


if __name__ == "__main__":
    cli(main)
