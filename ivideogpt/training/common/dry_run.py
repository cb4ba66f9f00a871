"""``--dry_run``: describe a training run from its parts, which are built and checked but never used."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ivideogpt.training.common.optim import trainable_parameters
from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from ivideogpt.training.transformer.trainer import GptTrainer

GRADIENT_AND_MOMENTS = 3  # tensors of its own size that a trained weight comes with
GIGABYTE = 2**30


def report(trainer: TokenizerTrainer | GptTrainer) -> str:
    """Return a few lines for the terminal."""
    args, run = trainer.args, trainer.run
    parts = dict(trainer.networks())
    start = f"go on from {run.checkpoint}" if run.checkpoint is not None else f"write {run.directory}"
    lines = [
        f"dry run: the command fits together; it would {start}",
        f"clips: {args.segment_length} frames of {args.resolution} px, of which {args.context_length} context",
        f"each update: {trainer.clips_per_update} clips",
        f"processes: {run.accelerator.num_processes} on {run.accelerator.device}, precision {run.args.mixed_precision}",
        *(
            f"{name}: {_millions(_size(part.parameters()))} parameters, {_trained(part)}"
            for name, part in parts.items()
        ),
        f"memory per process: {_state_gb(parts.values()):.2f} GB for weights, gradients and moments, plus activations",
        f"steps: {trainer.progress.step} to {args.max_train_steps}",
    ]
    return "\n".join(lines)


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _trained(part: nn.Module) -> str:
    trained = _size(trainable_parameters(part))
    return f"{_millions(trained)} of them trained" if trained else "frozen"


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M"


def _state_gb(parts: Iterable[nn.Module]) -> float:
    total = 0
    for part in parts:
        total += sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
        total += GRADIENT_AND_MOMENTS * sum(
            parameter.numel() * parameter.element_size() for parameter in trainable_parameters(part)
        )
    return total / GIGABYTE
