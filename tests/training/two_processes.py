"""What tests run in two real processes, ``two_processes.py <what> <folder> <argv.json>``.

``argv.json`` holds the commands ``[[script, flags], ...]``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from ivideogpt.pretrained import language_model
from tests.training.gradients import gradients_of
from tests.training.runs import build_gpt, build_tokenizer, fit

BUILD = {"train_tokenizer.py": build_tokenizer, "train_gpt.py": build_gpt}


def save_gradients(folder: Path, script: str, argv: list[str]) -> None:
    trainer = BUILD[script](argv)
    assert trainer.run.accelerator.num_processes == 2
    gradients = gradients_of(trainer)
    if trainer.run.is_main_process:
        torch.save(gradients, folder / f"{script}.pt")
    PartialState().wait_for_everyone()


def run_and_resume(folder: Path, script: str, argv: list[str]) -> None:
    """One whole run in ``whole``, and one resumed from each of its checkpoints in ``from-<step>``."""
    is_main = PartialState(cpu=True).is_main_process
    whole = fit(BUILD[script]([*argv, "--output_dir", str(folder / "whole")]))
    for checkpoint in sorted(whole.rglob("checkpoint[-_]*"))[:-1]:
        AcceleratorState._reset_state()
        output = folder / f"from-{checkpoint.name[11:]}"
        if is_main:
            shutil.copytree(whole, output / whole.name)
        PartialState(cpu=True).wait_for_everyone()
        at = output / whole.name / checkpoint.relative_to(whole)
        fit(BUILD[script]([*argv, "--output_dir", str(output), "--resume_from_checkpoint", str(at)]))
    AcceleratorState._reset_state()


def run_and_resume_sharded(folder: Path, script: str, argv: list[str]) -> None:
    """As :func:`run_and_resume`, with FSDP2 instead of DDP: accelerate leaves that out on a CPU."""
    Accelerator.prepare = shard
    run_and_resume(folder, script, argv)


def shard(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[Any, Any]:
    for parameter in model.parameters():  # as accelerate does: each process has drawn its own
        torch.distributed.broadcast(parameter.detach(), 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    for layer in language_model(model).model.layers:
        fully_shard(layer)
    fully_shard(model)
    sharded = dict(model.named_parameters())
    for group, of_group in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [sharded[name] for name in of_group]
    return model, optimizer


WHAT = {"gradients": save_gradients, "resume": run_and_resume, "resume-sharded": run_and_resume_sharded}

if __name__ == "__main__":
    PartialState.destroy_process_group = lambda *_: None  # one connection for all runs
    what, folder, commands = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    for script, argv in commands:
        WHAT[what](folder / script, script, argv)
    torch.distributed.barrier()  # neither process leaves while the other still needs it
    torch.distributed.destroy_process_group()
